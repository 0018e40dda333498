"""Pixels that are masked count nowhere above the solvers: not in a loss, a scale, a metric, a check or a picture."""
import warnings
from dataclasses import replace

import numpy as np
import pytest

import ptycho_nb as pt
from ptycho_nb.analysis.plots import plot_diffraction
from ptycho_nb.diagnosis.bias import explained_share
from ptycho_nb.diagnosis.model_checks import intensity_findings, intensity_report
from ptycho_nb.diagnosis.scan_checks import pattern_report, photon_reach
from ptycho_nb.explorers.intensity import read_predictions
from ptycho_nb.network.bundle import load_bundle, save_bundle
from ptycho_nb.network.groups import group_data
from ptycho_nb.network.inputs import GroupEstimates, with_filled_pixels
from ptycho_nb.network.losses import amplitude_mae, poisson_nll
from ptycho_nb.network.model import PtychoModel
from ptycho_nb.physics.detector import Detector
from ptycho_nb.physics.forward import Layout, scan_amplitudes
from ptycho_nb.physics.noise import observe_poisson

GOOD = np.ones((64, 64), bool)
GOOD[:, 37:40], GOOD[11, 20] = False, False
BRIEF = pt.TrainingConfig(nepochs=1, n_groups=24, precision="float32")


@pytest.fixture(scope="module")
def exact():
    config = pt.SimulationConfig(nphotons=3e5, object_size_px=176, n_train=16, n_test=90, probe_kind="defocused",
                                 object_kind="siemens_star", object_phase=True, seed=5)
    return pt.simulate_halves(config)[1]


def spoilt(data, **changes):
    """The scan with a gap and a hot pixel in its detector."""
    patterns = data.diff3d.copy()
    patterns[:, :, 37:40], patterns[:, 11, 20] = 0, 900
    return replace(data, diff3d=patterns, **changes)


@pytest.fixture(scope="module")
def masked(exact):
    return spoilt(exact, detector=Detector(GOOD))


@pytest.fixture(scope="module")
def image(exact):
    return pt.estimate(exact, iterations=15)


@pytest.fixture(scope="module")
def with_modes(exact):
    """A measured scan of two modes on a background, with what a ladder would have found."""
    second = np.roll(exact.probe, 2, 0) - np.roll(exact.probe, -2, 0)
    second *= 0.5 * np.linalg.norm(exact.probe) / np.linalg.norm(second)
    modes = np.stack([exact.probe, second]).astype(np.complex64)
    layout = Layout.on_canvas(exact.positions_px, 64, exact.object.shape)
    rate = np.square(scan_amplitudes(exact.object, modes, layout), dtype=float)
    rate *= 3e5 / rate.sum(axis=(1, 2)).mean()
    detector = Detector(np.ones((64, 64), bool), 3.0)
    return replace(exact, diff3d=observe_poisson(rate + 3.0, 2), weaker_modes=modes[1:], detector=detector)


def test_photons_are_those_of_good_pixels(exact, masked):
    expected = np.sum(np.square(exact.diff3d[:, GOOD], dtype=float), axis=1)
    np.testing.assert_allclose(masked.photons_per_pattern, expected, rtol=1e-6)
    assert masked.summary()["counts_per_pixel_max"] < 900**2


def test_losses_do_not_look_at_masked_pixels():
    rng = np.random.default_rng(0)
    rate, counts = rng.uniform(1, 9, (2, 5, 64, 64)).astype(np.float32)
    wrong, weight = np.where(GOOD, counts, 1e6).astype(np.float32), GOOD.astype(np.float32)
    expected = float(poisson_nll(rate[:, GOOD], counts[:, GOOD]))
    assert np.isclose(float(poisson_nll(rate, wrong, weight)), expected, rtol=1e-5)
    assert np.isclose(float(amplitude_mae(rate, wrong, weight)), np.abs(rate - counts)[:, GOOD].mean(), rtol=1e-5)


def test_groups_know_the_detector(exact, masked):
    clean, groups = (group_data(data, pt.ModelConfig()) for data in (exact, masked))
    assert groups.intensity_scale == pytest.approx(clean.intensity_scale, rel=0.02)
    batch = groups.batch(np.arange(2))
    assert batch["good"].shape == (2, 64, 64, 1) and "good" not in clean.batch(np.arange(2))
    some = [container.with_groups(container.inputs[:8], container.targets[:8]) for container in (clean, groups)]
    first, second = (GroupEstimates(container)(np.arange(8))["estimate"][..., :2] for container in some)
    unknown = GroupEstimates(replace(some[1], detector=None))(np.arange(8))["estimate"][..., :2]
    assert np.abs(second - first).mean() < 0.5 * np.abs(unknown - first).mean()


def test_patterns_as_input_are_filled(exact, masked):
    filled = with_filled_pixels(group_data(masked, pt.ModelConfig()))
    gap = np.abs(filled.amplitude - exact.diff3d)[:, ~GOOD].mean() / exact.diff3d[:, ~GOOD].mean()
    assert gap < 0.3 and np.array_equal(filled.amplitude[:, GOOD], masked.diff3d[:, GOOD])


def loss_of(data, generator="residual_unet", **weights):
    """What an untrained network of this kind loses on some groups of a scan."""
    groups = group_data(data, pt.ModelConfig())
    groups = groups.with_groups(groups.inputs[:16], groups.targets[:16])
    config = pt.ModelConfig(generator=generator, n_filters=4)
    model = PtychoModel(config, groups.modes, groups.intensity_scale, groups.canvas_px, seed=1,
                        training=pt.TrainingConfig(**weights))
    groups = with_filled_pixels(groups) if generator == "cnn" else groups
    batch = groups.batch(np.arange(16)) | GroupEstimates(groups)(np.arange(16))
    return float(model.compute_loss(batch, None, model(batch)))


MAE = {"nll_weight": 0.0, "mae_weight": 1.0}


@pytest.mark.parametrize("generator, weights", [("residual_unet", {}), ("residual_unet", MAE), ("cnn", {})])
def test_a_network_is_judged_by_good_pixels(exact, masked, generator, weights):
    first, blind, right = (loss_of(data, generator, **weights) for data in (exact, spoilt(exact), masked))
    assert right == pytest.approx(first, rel=0.15) and blind > 1.7 * first


@pytest.mark.parametrize("weights", [{}, MAE])
def test_modes_and_background_belong_to_the_prediction(with_modes, weights):
    both = loss_of(with_modes, **weights)
    assert 1.03 * both < loss_of(replace(with_modes, weaker_modes=None), **weights)
    assert 1.03 * both < loss_of(replace(with_modes, detector=None), **weights)


def test_light_that_changes_belongs_to_the_prediction(exact):
    light = np.linspace(1.5, 0.5, exact.n_patterns).astype(np.float32)
    patterns = observe_poisson(np.square(exact.diff3d, dtype=float) * light[:, None, None], 3)
    data = replace(exact, diff3d=patterns, light=light)
    assert 1.5 * loss_of(data) < loss_of(replace(data, light=None))


@pytest.fixture(scope="module")
def trained(with_modes):
    return pt.train(with_modes, pt.ModelConfig(n_filters=4), BRIEF, progress=False)


def test_a_network_and_its_file_know_modes_and_background(with_modes, trained, tmp_path):
    result = pt.reconstruct(with_modes, trained)
    save_bundle(tmp_path / "wts.h5.zip", trained.model)
    again = pt.reconstruct(with_modes, load_bundle(tmp_path / "wts.h5.zip"))
    assert len(result.modes) == 2 and result.detector.background[0, 0] == 3
    np.testing.assert_allclose(again.object, result.object, atol=1e-6)
    held = pt.hold_out(with_modes)
    fit = pt.data_fit(result, with_modes, held.patterns)
    assert fit["nll_per_pixel"] == pytest.approx(held.deviance(result), rel=1e-6)


def test_metrics_and_checks_leave_masked_pixels_out(exact, masked, image):
    held, blind = pt.hold_out(masked), spoilt(exact)
    right, clean, wrong = (pt.data_fit(image, data, held.patterns) for data in (masked, exact, blind))
    for name, value in clean.items():
        assert right[name] == pytest.approx(value, rel=0.1) and wrong[name] > 2 * value
    assert held.deviance(image) == pytest.approx(right["nll_per_pixel"], rel=1e-6)
    assert explained_share(image, masked) == pytest.approx(explained_share(image, exact), abs=0.02)
    shares = [pattern_report(data.diff3d, data.good_pixels).central_share for data in (masked, exact)]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)
    assert photon_reach(masked, 1e4) == pytest.approx(photon_reach(exact, 1e4), abs=0.05)
    report = intensity_report(masked, reconstruction=image, stated_nphotons=3e5)
    assert not intensity_findings(report) and report.prediction.r_factor == pytest.approx(right["r_factor"], rel=0.2)
    assert intensity_findings(intensity_report(blind, reconstruction=image, stated_nphotons=3e5))


def test_pictures_and_explorers_leave_masked_pixels_out(masked):
    figure = plot_diffraction(masked.diff3d[:2], good=GOOD)
    assert figure.legends and figure.axes[0].images[0].norm.vmax < 900**2
    predictions = read_predictions(masked, count=20)
    assert not predictions.measured[:, ~GOOD].any() and not predictions.by_method["no_network"][:, ~GOOD].any()


def test_a_network_warns_of_what_nobody_has_masked(exact, trained):
    data = spoilt(exact, metadata={}, object=None, source="scan")
    patterns = data.diff3d.copy()
    patterns[12] = 0
    data = replace(data, diff3d=patterns)
    with pytest.warns(UserWarning, match=r"patterns 12 left out.*dead, 1 hot pixels.*as_estimated"):
        pt.reconstruct(data, trained)
    assert 12 not in group_data(data, pt.ModelConfig()).inputs
    mended = replace(data.subset(np.setdiff1d(np.arange(90), [12])), detector=Detector(GOOD))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert not pt.reconstruct(mended, trained).detector.good[11, 20]
