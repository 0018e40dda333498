"""Planted faults are named: wrong factors, flat and dead outputs, batches that make a NaN, rasters."""
import json
import math
import warnings
from dataclasses import replace

import keras
import numpy as np
import pytest

from ptycho_nb.config import InputError, ModelConfig, SimulationConfig, TrainingConfig, derive_seeds
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.diagnosis.bias import bias_report, explained_share, object_contrast, plot_against_truth, plot_bias
from ptycho_nb.diagnosis.raster import lattice_excess, raster_against_free, raster_step_px, scan_both_ways
from ptycho_nb.diagnosis.training_checks import dead_channels, plot_health, training_health
from ptycho_nb.network.courses import training_course
from ptycho_nb.network.groups import PtychoDataContainer, group_data
from ptycho_nb.network.inference import reconstruct, rescale_factor
from ptycho_nb.network.inputs import EstimateSettings
from ptycho_nb.network.model import PtychoModel
from ptycho_nb.network.optimiser import RecordingAdam
from ptycho_nb.network.training import train as train_network
from ptycho_nb.physics.noise import poisson_deviance
from ptycho_nb.physics.scans import make_positions
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.result import predict_amplitudes

SIMULATION = SimulationConfig(nphotons=1e7, object_size_px=192, n_train=40, n_test=60, probe_kind="defocused", seed=2)
MODEL = ModelConfig(gridsize=1, n_filters=4)
TRAINING = TrainingConfig(nepochs=2, batch_size=8, precision="float32")


@pytest.fixture(scope="module")
def scans():
    """A scan to train on and one to test on."""
    return simulate_halves(SIMULATION)


@pytest.fixture(scope="module")
def good(scans):
    """A reconstruction with nothing wrong."""
    return estimate(scans[1])


@pytest.fixture(scope="module")
def trained(scans):
    """A short training with nothing wrong."""
    return train_network(scans[0], MODEL, TRAINING)


def mean_of(reconstruction):
    return np.average(np.abs(reconstruction.object), weights=reconstruction.coverage)


def flat(reconstruction):
    return replace(reconstruction, object=np.full_like(reconstruction.object, mean_of(reconstruction)))


def texture(reconstruction):
    """A pattern of 8 px, repeated: more contrast than many a sample, and nothing of it."""
    height, width = reconstruction.object.shape
    tile = np.random.default_rng(0).normal(mean_of(reconstruction), 0.05, (8, 8))
    return replace(reconstruction, object=np.tile(tile, (1 + height // 8, 1 + width // 8))[:height, :width])


def words(report):
    return " ".join(finding.what for finding in report.findings)


# Bias

@pytest.mark.parametrize("factor", [12.0, 1 / 5])
def test_a_constant_factor_is_found_and_explains_everything(scans, good, factor):
    as_it_is = bias_report(good, scans[1].object)
    report = bias_report(replace(good, object=good.object / factor), scans[1].object)
    assert np.isclose(report.scalar, factor * as_it_is.scalar, rtol=1e-4)
    assert report.one_constant and "One constant explains it" in report.verdict
    assert report.error_after.relative < 0.05 < 0.5 < report.error_before.relative
    assert ("too dark" if factor > 1 else "too bright") in words(report)
    assert report.findings[0].severity == "warning"
    assert np.isclose(report.ratio.median, report.scalar, rtol=0.02)
    json.dumps(report.to_dict(), allow_nan=False)


def test_what_a_constant_cannot_explain(scans, good):
    half = bias_report(replace(good, object=(good.object + mean_of(good)) / 2), scans[1].object)
    assert not half.one_constant and "contrast" in words(half)
    assert np.isclose(half.contrast_kept, 0.5, atol=0.05)
    noise = 0.05 * np.random.default_rng(0).normal(size=good.object.shape)
    noisy = bias_report(replace(good, object=(good.object + noise) / 12), scans[1].object)
    assert noisy.one_constant and noisy.error_after.relative > 0.03, "noise is no lack of contrast"
    for nothing in (flat(good), texture(good)):
        report = bias_report(nothing, scans[1].object)
        assert not report.one_constant and "structure" in report.verdict
        assert report.findings[0].severity == "error" and abs(report.pearson) < 0.3


def test_bias_by_hand(scans, good):
    report = bias_report(good, scans[1].object)
    y0, y1, x0, x1 = 128, 160, 32, 160  # where the patch centres of the test half lie
    top, bottom, left, right = good.region
    perfect = replace(good, object=scans[1].object[top:bottom, left:right])
    exact = bias_report(perfect, scans[1].object, (y0, y1, x0, x1))
    assert np.allclose([exact.scalar, exact.pearson], 1, atol=1e-5) and not exact.findings
    truth = np.abs(scans[1].object[y0:y1, x0:x1])
    assert np.isclose(exact.truth.mean, truth.mean())
    assert np.isclose(exact.truth.percentiles["95"], np.percentile(truth, 95))
    # The probe carries the mean photons, so the object is brighter by about one over its root mean square.
    assert np.isclose(report.scalar, np.sqrt(np.mean(truth**2)), rtol=0.05)
    assert words(report).endswith("otherwise right")
    with pytest.raises(InputError):
        bias_report(good, scans[1].object, (0, 10_000, 0, 10_000))


# Rescaling

def brighter_model(scan, factor, scope="group"):
    """An untrained network whose learned intensity scale is wrong by a factor."""
    config = replace(MODEL, gridsize=2, estimate_scope=scope)
    scale = group_data(scan, config).intensity_scale
    model = PtychoModel(config, scan.probe, scale, 96, settings=EstimateSettings(8, 0.0))
    model.log_scale.assign(math.log(scale * factor))
    return model


@pytest.mark.parametrize("rescale", ["intensity", "least_squares"])
@pytest.mark.parametrize("scope", ["group", "scan"])
def test_rescaling_recovers_a_known_factor(scans, rescale, scope):
    scan, factors, brightness = scans[1], {}, {}
    for factor in (1.0, 12.0):
        result = reconstruct(scan, brighter_model(scan, factor, scope), rescale=rescale)
        assert result.info["rescale"] == rescale
        factors[factor] = result.info["rescale_factor"]
        brightness[factor] = np.sum(predict_amplitudes(result) ** 2, dtype=float) / np.sum(scan.diff3d**2, dtype=float)
    assert np.isclose(factors[1.0] / factors[12.0], 12, rtol=1e-4)
    assert np.isclose(brightness[1.0], brightness[12.0], rtol=1e-4)
    assert np.isclose(brightness[12.0], 1, rtol=1e-4 if rescale == "intensity" else 0.05)


def test_rescaling_is_off_by_default_and_uses_no_truth(scans):
    scan = scans[1]
    model, blind = brighter_model(scan, 3.0), replace(scan, object=None)
    plain, scaled = reconstruct(scan, model), reconstruct(blind, model, rescale="intensity")
    assert plain.info["rescale"] == "none" and plain.info["rescale_factor"] == 1
    lit = plain.coverage > 0
    assert np.allclose(scaled.object[lit], plain.object[lit] * scaled.info["rescale_factor"], rtol=1e-5)
    assert np.array_equal(scaled.object[~lit], plain.object[~lit]), "vacuum stays vacuum"
    assert np.isclose(scaled.info["rescale_factor"], 1 / 3, rtol=0.02)


def test_only_used_patterns_decide_the_factor(scans):
    scan, excluded = scans[1], np.arange(10)
    spoilt = scan.diff3d.copy()
    spoilt[excluded] *= 7
    model = brighter_model(scan, 1.0)
    factors = [reconstruct(data, model, exclude=excluded, rescale="least_squares").info["rescale_factor"]
               for data in (scan, replace(scan, diff3d=spoilt))]
    assert factors[0] == factors[1]


def test_least_squares_by_hand_and_the_order_of_the_two(scans, good):
    measured, predicted = scans[1].diff3d.astype(float), predict_amplitudes(good).astype(float)
    by_hand = np.sum(measured * predicted) / np.sum(predicted**2)
    assert np.isclose(rescale_factor(good, scans[1], "least_squares"), by_hand, rtol=1e-6)
    wrong = texture(good)
    assert rescale_factor(wrong, scans[1], "least_squares") < rescale_factor(wrong, scans[1], "intensity")


def test_a_wrong_rescale_and_a_dark_object_are_refused(scans, good):
    with pytest.raises(InputError, match=r"rescale.*'intensty'.*'intensity'"):
        reconstruct(scans[1], "never-read.h5.zip", rescale="intensty")
    with pytest.raises(InputError, match="no light"):
        rescale_factor(replace(good, object=np.zeros_like(good.object)), scans[1], "intensity")


# Training

def test_a_training_in_order_has_nothing_to_say(scans, good, trained):
    report = training_health(trained.history, good, scans[1])
    assert report.first_nan is None and not [item for item in report.findings if item.severity == "error"]
    assert [row["epoch"] for row in report.epochs] == [0, 1, 2] and report.epochs[1]["gradient_norm"] > 0
    json.dumps(report.to_dict(), allow_nan=False)
    with pytest.raises(InputError, match="no epochs"):
        training_health({"header": {}, "epochs": []})


def test_the_gradient_norm_is_that_of_the_gradient(scans):
    import tensorflow as tf

    one_step, judges = replace(TRAINING, nepochs=1, batch_size=64), np.arange(0, 40, 10)
    model, history = train_network(scans[0], MODEL, one_step, validation=judges)
    fresh, container = model.untrained(), group_data(scans[0], MODEL, exclude=judges, targets="held_out")
    seed = derive_seeds(one_step.seed)["train_seed"]
    course, _ = training_course(scans[0], replace(container, canvas_px=model.canvas_px), MODEL, seed)
    batch = {**container.batch(np.arange(len(container))), **course.extra(np.arange(len(container)))}
    with tf.GradientTape() as tape:
        loss = fresh.compute_loss(x=batch, y_pred=fresh(batch))
    norm = float(tf.linalg.global_norm(tape.gradient(loss, fresh.trainable_variables)))
    row = history["epochs"][1]
    assert np.isclose(row["gradient_norm"], norm, rtol=0.02) and row["gradient_norm"] == row["gradient_norm_max"]


def test_recording_changes_no_weight():
    weights = [keras.Variable(np.ones(5, np.float32)) for _ in range(2)]
    for optimizer, weight in zip((keras.optimizers.Adam(0.1), RecordingAdam(0.1)), weights, strict=True):
        optimizer.build([weight])
        for seed in range(5):
            gradient = np.random.default_rng(seed).normal(size=5).astype(np.float32)
            optimizer.apply([keras.ops.convert_to_tensor(gradient)])
    assert np.array_equal(*(weight.numpy() for weight in weights))


def test_the_batch_that_made_a_nan_is_named(scans, monkeypatch):
    plain, poisonous, batches = PtychoDataContainer.batch, 17, []

    def poisoned(container, rows):
        arrays = plain(container, rows)
        if len(container) == 36:  # the training groups: 40 patterns less 4 that judge
            batches.append(container.targets[rows])
            arrays["target"][(container.targets[rows] == poisonous).any(axis=1)] = np.nan
        return arrays

    monkeypatch.setattr(PtychoDataContainer, "batch", poisoned)
    history = train_network(scans[0], MODEL, TRAINING).history
    first = history["header"]["first_nan"]
    assert first["epoch"] == 1 and poisonous in np.ravel(first["targets"])
    streamed = [targets for targets in batches if len(targets) == 8]  # others are examples and estimates
    assert any(np.array_equal(first["targets"], targets) for targets in streamed)
    report = training_health(history)
    assert report.findings[0].severity == "error" and "not a number" in report.findings[0].what
    assert f"batch {first['batch']}" in report.findings[0].number
    assert "17" in report.findings[0].number.replace(",", " ").split()


def test_an_exploding_training_is_named(scans):
    history = train_network(scans[0], MODEL, replace(TRAINING, learning_rate=1e25)).history
    report = training_health(history)
    assert "not a number" in report.verdict and report.first_nan["epoch"] == 1
    assert plot_health(history).axes


@pytest.mark.parametrize("fault", ["flat", "texture", "dead"])
def test_outputs_that_show_nothing_are_named(scans, good, trained, fault):
    dead = replace(good, object=np.zeros_like(good.object))
    image = {"flat": flat(good), "texture": texture(good), "dead": dead}[fault]
    report = training_health(trained.history, image, scans[1])
    assert report.findings[0].severity == "error"
    assert ("dead" if fault == "dead" else "flat") in report.verdict
    if fault != "texture":  # without the data a texture might be a sample
        assert training_health(trained.history, image).findings[0].what == report.findings[0].what


def test_a_good_image_is_not_flat_and_a_tilted_phase_is_no_structure(scans, good):
    assert object_contrast(good) > 0.05 and explained_share(good, scans[1]) > 0.9
    y, x = np.indices(good.object.shape)
    tilted = replace(flat(good), object=mean_of(good) * np.exp(1j * (0.4 + 0.02 * x - 0.03 * y)))
    assert object_contrast(tilted) < 0.01


def test_noise_that_hides_the_answer_is_said(good):
    _, dim = simulate_halves(replace(SIMULATION, nphotons=300.0))
    assert explained_share(good, dim) is None


def test_a_history_without_norms_is_drawn_without_their_legend(trained):
    rows = [{**row, "gradient_norm": None, "gradient_norm_max": None} for row in trained.history["epochs"]]
    with warnings.catch_warnings(action="error"):
        left, middle, _ = plot_health({"epochs": rows}).axes
    assert left.get_legend() and not middle.lines and not middle.get_legend()


def test_courses_that_go_wrong_are_named():
    row = {"train_loss": 1.0, "val_loss": 1.0, "intensity_scale": 10.0, "gradient_norm": 1.0, "gradient_norm_max": 2.0,
           "nan_count": 0}
    rows = [row | {"epoch": epoch} for epoch in range(5)]
    assert words(training_health({"header": {"kept_epoch": 4}, "epochs": rows})) == ""
    for change, word in (
            ({"gradient_norm": 1e-9, "gradient_norm_max": 1e-9}, "dead"), ({"gradient_norm_max": 500.0}, "far larger"),
            ({"intensity_scale": 14.0}, "wandered off")):
        changed = [*rows[:-1], rows[-1] | change]
        assert word in words(training_health({"header": {"kept_epoch": 4}, "epochs": changed})), word
    falling = [one | {"val_loss": 0.5 ** one["epoch"]} for one in rows]
    assert "still falling" in words(training_health({"header": {"kept_epoch": 4}, "epochs": falling}))
    overfit = [one | {"val_loss": 1 + 0.1 * one["epoch"], "train_loss": 1 - 0.1 * one["epoch"]} for one in rows]
    assert "fit the noise" in words(training_health({"header": {"kept_epoch": 1}, "epochs": overfit}))
    assert "better than the untrained" in words(training_health({"header": {"kept_epoch": 0}, "epochs": rows}))


@pytest.mark.parametrize("generator", ["residual_unet", "cnn"])
def test_dead_channels_name_the_layer(scans, generator):
    config = replace(MODEL, generator=generator)
    model = train_network(scans[0], config, replace(TRAINING, nepochs=1)).model
    network = model.object_network if generator == "residual_unet" else model.object_network.generator
    layer = network.get_layer("convolution_3")
    layer.set_weights([layer.get_weights()[0], np.full(layer.filters, -1e4)])
    dead = dead_channels(model, scans[0])
    assert dead["convolution_3"] == 1 and dead["convolution_1"] < 1 and dead["convolution_2"] < 1


@pytest.mark.long
def test_the_cnn_leaves_the_flat_object():
    """It used to begin with a random object, fall back to a flat one and stay there."""
    train, _ = simulate_halves(replace(SIMULATION, nphotons=1e9))
    config = ModelConfig(gridsize=1, generator="cnn", n_filters=8)
    training = TrainingConfig(nepochs=16, batch_size=8, learning_rate=1e-3, patience=99, targets="input",
                              precision="float32")
    model, history = train_network(train, config, training)
    container = group_data(train, config)
    vacuum = np.abs(np.fft.fftshift(np.fft.fft2(container.probe))) / 64 * container.intensity_scale
    flat_loss = poisson_deviance(np.broadcast_to(vacuum, train.diff3d.shape), train.diff3d)
    flat_loss /= container.intensity_scale**2 / 4
    losses = [row["train_loss"] for row in history["epochs"]]
    assert losses[-1] < 0.5 * flat_loss, (flat_loss, losses)
    untrained = model.untrained().object_network.generator
    patches = np.asarray(untrained(container.batch(np.arange(4))["amplitude"]))
    assert np.array_equal(patches[..., 0], np.ones_like(patches[..., 0])) and not patches[..., 1].any()


# Raster

def test_error_on_the_lattice_of_a_raster_is_found(scans, good):
    step_px, rng = (12.0, 10.0), np.random.default_rng(0)
    y0, y1, x0, x1 = good.region
    true = scans[1].object[y0:y1, x0:x1]
    y, x = np.indices(true.shape) + np.array([y0, x0])[:, None, None]
    periodic = 0.02 * np.cos(2 * np.pi * y / 12) * np.cos(2 * np.pi * x / 10)
    noisy = replace(good, object=true + 0.02 * rng.normal(size=true.shape))
    assert 0.4 < lattice_excess(noisy, scans[1].object, step_px) < 2.5
    printed = replace(good, object=noisy.object * (1 + periodic + 0.02 * np.cos(2 * np.pi * y / 12)))
    assert lattice_excess(printed, scans[1].object, step_px) > 2 * lattice_excess(noisy, scans[1].object, step_px)


def test_steps_of_a_raster():
    positions = make_positions("raster", 120, (160.0, 224.0, 32.0, 224.0))
    step_y, step_x = raster_step_px(positions)
    assert np.isclose(step_y, np.diff(np.unique(positions[:, 0])).mean())
    assert np.isclose(step_x, np.diff(positions[:2, 1])[0], rtol=0.1)
    with pytest.raises(InputError, match="raster"):
        raster_step_px(make_positions("random", 1, (0.0, 10.0, 0.0, 10.0)))


def test_a_raster_suffers_from_a_guessed_probe():
    config = SimulationConfig(object_size_px=256, n_train=4, n_test=120, seed=1)
    pairs = scan_both_ways(config)
    report = raster_against_free(config, pairs=pairs)
    assert np.array_equal(pairs["raster"].data.object, pairs["random"].data.object)
    assert len(pairs["raster"].data.positions_px) == len(pairs["random"].data.positions_px) == 120
    for kind in pairs:
        exact = report.kinds[kind]["methods"]["no_network"]
        assert exact["amplitude"]["ssim"] > 0.95 and exact["probe_moved"] == 0
    raster, free = (report.kinds[kind]["methods"]["probe_refined"] for kind in ("raster", "random"))
    assert raster["amplitude"]["rmse"] > 1.3 * free["amplitude"]["rmse"]
    assert raster["lattice_excess"] > 10 > free["lattice_excess"]
    assert "ambiguous" in words(report) and "lattice" in report.verdict
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_pictures_have_axes_with_units_and_no_empty_panel(scans, good, trained):
    truth = scans[1].object
    for figure in (plot_bias(good, truth), plot_bias(flat(good), truth), plot_health(trained.history)):
        assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)
    figure = plot_against_truth({"good": good, "flat": flat(good)}, truth)
    images = [axes.images for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]
    assert len(images) == 8 and all(images), "three for each, and two for the truth, which has no error"
