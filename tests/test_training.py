"""Training, bundles and inference: killed and resumed, poisoned, side by side, in other processes and backends."""
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from ptycho_nb.config import InferenceConfig, InputError, ModelConfig, SimulationConfig, TrainingConfig, derive_seeds
from ptycho_nb.data.scan import RawData
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.network.bundle import load_bundle, save_bundle
from ptycho_nb.network.groups import PtychoDataContainer
from ptycho_nb.network.inference import reconstruct
from ptycho_nb.network.training import train as train_network
from ptycho_nb.physics.scans import validation_indices
from ptycho_nb.quiet import Stopped

SIMULATION = SimulationConfig(nphotons=1e4, object_size_px=256, n_train=80, n_test=40, seed=3)
MODEL = ModelConfig(gridsize=1, n_filters=8)
TRAINING = TrainingConfig(nepochs=3, batch_size=8, precision="float32", patience=9)


@pytest.fixture(scope="module")
def scans() -> tuple[RawData, RawData]:
    """A scan to train on and one to test on."""
    return simulate_halves(SIMULATION)


@pytest.fixture(scope="module")
def trained(scans):
    """A model and its history."""
    return train_network(scans[0], MODEL, TRAINING)


def losses(history: dict) -> list[tuple]:
    """What two trainings must have in common: everything but the seconds."""
    return [tuple(value for key, value in row.items() if key != "seconds") for row in history["epochs"]]


def in_a_process(code: str, *arguments: object, backend: str = "tensorflow") -> subprocess.CompletedProcess:
    """Run Python code in a process of its own."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True,
                          text=True, timeout=300)


def same_weights(first, second) -> bool:
    """Whether two models hold exactly the same numbers."""
    return all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))


def test_same_seed_same_numbers(scans, trained):
    again = train_network(scans[0], MODEL, TRAINING)
    assert losses(again.history) == losses(trained.history) and same_weights(again.model, trained.model)
    other = train_network(scans[0], MODEL, replace(TRAINING, nepochs=1, train_seed=5))
    assert losses(other.history)[1] != losses(trained.history)[1]


KILLED = """
import os, signal, sys
from ptycho_nb.config import ModelConfig, TrainingConfig
from ptycho_nb.data.scan import RawData
from ptycho_nb.network.training import train as train_network

def kill(row):
    if row["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)

path, folder, model, training = sys.argv[1:]
train_network(RawData.load(path), ModelConfig.from_json(model), TrainingConfig.from_json(training),
              output_dir=folder, callback=kill)
"""


def test_a_killed_training_goes_on_as_if_nothing_had_happened(scans, trained, tmp_path):
    scans[0].save(tmp_path / "scan.npz")
    folder = tmp_path / "arm"
    run = in_a_process(KILLED, tmp_path / "scan.npz", folder, MODEL.to_json(), TRAINING.to_json())
    assert run.returncode == -signal.SIGKILL, run.stderr[-3000:]
    assert len(json.loads((folder / "history.json").read_text())["epochs"]) == 3
    scan = RawData.load(tmp_path / "scan.npz")
    with pytest.raises(InputError, match="another training"):
        train_network(scan, MODEL, replace(TRAINING, nepochs=4), output_dir=folder)
    trained_here = []
    result = train_network(scan, MODEL, TRAINING, output_dir=folder,
                           callback=lambda row: trained_here.append(row["epoch"]))
    assert trained_here == [3]
    assert losses(result.history) == losses(trained.history) and same_weights(result.model, trained.model)
    assert [path.name for path in folder.iterdir()] == ["history.json"]


def pressing_stop(row: dict) -> None:
    """What somebody does who has seen enough after the second epoch."""
    if row["epoch"] == 2:
        raise KeyboardInterrupt


def test_stopped_by_hand_it_returns_the_best_weights(scans, trained, caplog):
    model, history = train_network(scans[0], MODEL, TRAINING, callback=pressing_stop)
    assert losses(history) == losses(trained.history)[:3]
    assert history["header"]["ended"] == "stopped by hand after 2 of 3 epochs" and "after 2 of 3 epochs" in caplog.text
    assert model.intensity_scale == pytest.approx(history["epochs"][history["header"]["kept_epoch"]]["intensity_scale"])


def test_stopped_by_hand_an_arm_does_not_take_it_for_a_whole_training(scans, trained, tmp_path):
    with pytest.raises(Stopped, match=r"2 of 3 epochs are kept in .*goes on from there") as stop:
        train_network(scans[0], MODEL, TRAINING, output_dir=tmp_path, callback=pressing_stop)
    assert stop.value._render_traceback_() == [f"Stopped: {stop.value}"]
    model, history = train_network(scans[0], MODEL, TRAINING, output_dir=tmp_path)
    assert losses(history) == losses(trained.history) and same_weights(model, trained.model)


def test_training_lowers_the_loss_at_1e4_photons(trained):
    first, *rest = (row["val_loss"] for row in trained.history["epochs"])
    assert min(rest) < first
    assert trained.history["header"]["kept_epoch"] == 1 + int(np.argmin(rest))


def test_a_nan_ends_the_training_with_the_best_weights(scans, trained, monkeypatch):
    plain, of_training = PtychoDataContainer.batch, []
    seed = derive_seeds(TRAINING.seed)["validation_seed"]
    validation = validation_indices(scans[0].n_patterns, TRAINING.validation_fraction, seed)

    def poisoned(container, rows):
        arrays = plain(container, rows)
        of_training.append(not np.array_equal(container.targets[:, 0], validation))
        if sum(of_training) == 20:  # in the second epoch: 108 groups are fourteen training batches
            arrays["target"][0, 0, 0, 0] = np.nan
        return arrays

    monkeypatch.setattr(PtychoDataContainer, "batch", poisoned)
    result = train_network(scans[0], MODEL, TRAINING)
    rows = result.history["epochs"]
    assert [row["nan_count"] > 0 for row in rows] == [False, False, True]
    assert "not a number" in result.history["header"]["ended"] and result.history["header"]["kept_epoch"] == 1
    assert losses(result.history)[:2] == losses(trained.history)[:2]
    assert all(np.all(np.isfinite(weight)) for weight in result.model.get_weights())


def test_no_epoch_better_than_the_untrained_model(scans):
    wild = replace(TRAINING, learning_rate=3.0, patience=2)
    result = train_network(scans[0], MODEL, wild)
    assert result.history["header"]["kept_epoch"] == 0 and "untrained" in result.history["header"]["ended"]
    assert same_weights(result.model, result.model.untrained())


def test_another_scan_is_only_watched(scans, trained):
    watched = train_network(scans[0], MODEL, replace(TRAINING, nepochs=1), test=scans[0])
    rows = watched.history["epochs"]
    assert all(row.pop("test_loss") == row["val_loss"] for row in rows), "here it is the same scan"
    assert losses(watched.history)[0] == losses(trained.history)[0]


def test_validation_patterns_have_no_influence_on_what_is_learned(scans):
    learned, one_epoch = [], replace(TRAINING, nepochs=1)
    for factor in (0.5, 2):
        changed = replace(scans[0], diff3d=np.concatenate([scans[0].diff3d[:-1], factor * scans[0].diff3d[-1:]]))
        last = np.array([changed.n_patterns - 1])
        history = train_network(changed, MODEL, one_epoch, validation=last).history
        learned.append(history["epochs"][1]["train_loss"])
        assert history["header"]["n_validation_groups"] == 1
    assert learned[0] == learned[1]


def test_a_learned_probe_survives_the_bundle(scans, tmp_path):
    model_config = replace(MODEL, probe_trainable=True)
    model = train_network(scans[0], model_config, replace(TRAINING, nepochs=1)).model
    model.probe_parts.assign(model.probe_parts * 1.1)
    save_bundle(tmp_path / "wts.h5.zip", model)
    again = load_bundle(tmp_path / "wts.h5.zip")
    assert np.array_equal(again.probe, model.probe) and np.array_equal(again.patch_weights, model.patch_weights)
    assert np.array_equal(model.untrained().probe, model.initial_probe)


EVERY_MODEL = list(itertools.product((64, 128), (1, 2), ("residual_unet", "cnn")))
EVERY_SETTING = [(64, 2, "cnn"), (128, 1, "residual_unet")]  # the other tests train (64, 1) of both generators


@pytest.mark.xdist_group("sizes")
@pytest.mark.parametrize("models", [
    pytest.param(EVERY_SETTING, id="settings"), pytest.param(EVERY_MODEL, id="all", marks=pytest.mark.long)])
def test_models_of_every_size_side_by_side(models):
    scans, results = {}, {}
    for N, gridsize, generator in models:
        if N not in scans:
            simulation = replace(SIMULATION, N=N, object_size_px=3 * N, n_train=24, n_test=12, nphotons=1e5)
            scans[N] = simulate_halves(simulation)
        model = ModelConfig(N=N, gridsize=gridsize, generator=generator, n_filters=4)
        results[N, gridsize, generator] = train_network(scans[N][0], model, replace(TRAINING, nepochs=1)).model
    for (N, _, generator), trained in results.items():
        test = scans[N][1]
        reconstruction = reconstruct(test, trained, InferenceConfig(batch_size=5))
        assert reconstruction.probe.shape == (N, N) and np.all(np.isfinite(reconstruction.object)), generator
        inside = np.round(test.positions_px).astype(int) - reconstruction.origin_px
        assert np.all(reconstruction.coverage[tuple(inside.T)] > 0)


@pytest.mark.parametrize("scope", ["group", "scan", pytest.param("pretrained", marks=pytest.mark.long)])
def test_an_untrained_residual_unet_returns_the_estimate(scans, scope):
    config = replace(MODEL, estimate_scope=scope)
    model = train_network(scans[0], config, replace(TRAINING, nepochs=2)).model
    untrained = reconstruct(scans[1], model.untrained())
    changed = reconstruct(scans[1], model)
    assert scope == "pretrained" or not np.array_equal(untrained.object, changed.object)  # counts may refuse
    model.object_network.get_layer("correction").set_weights([np.zeros((3, 3, 8, 8)), np.zeros(8)])
    assert np.array_equal(reconstruct(scans[1], model).object, untrained.object)
    assert np.isclose(np.average(np.abs(untrained.object), weights=untrained.coverage), 1, atol=0.1)


FRESH = """
import sys
import numpy as np
from ptycho_nb.network.bundle import load_bundle
from ptycho_nb.network.inference import reconstruct
from ptycho_nb.data.scan import RawData

bundle, scan, result = sys.argv[1:]
image = reconstruct(RawData.load(scan), load_bundle(bundle))
np.savez(result, object=image.object, probe=image.probe, coverage=image.coverage)
"""


@pytest.mark.parametrize("generator", ["residual_unet", pytest.param("cnn", marks=pytest.mark.long)])
def test_a_bundle_predicts_the_same_in_a_fresh_process(scans, trained, tmp_path, generator):
    model = trained.model
    if generator == "cnn":
        model = train_network(scans[0], replace(MODEL, generator="cnn", n_filters=4), TRAINING).model
    save_bundle(tmp_path / "wts.h5.zip", model)
    scans[1].save(tmp_path / "scan.npz")
    run = in_a_process(FRESH, tmp_path / "wts.h5.zip", tmp_path / "scan.npz", tmp_path / "result.npz")
    assert run.returncode == 0, run.stderr[-3000:]
    here = reconstruct(scans[1], model)
    with np.load(tmp_path / "result.npz") as there:
        assert all(np.array_equal(there[name], getattr(here, name)) for name in ("object", "probe", "coverage"))


@pytest.mark.parametrize("damage", ["flipped byte", "missing member", "not a zip", "other weights", "missing file"])
def test_a_damaged_bundle_is_refused(trained, tmp_path, damage):
    path = tmp_path / "wts.h5.zip"
    save_bundle(path, trained.model)
    content = bytearray(path.read_bytes())
    if damage == "flipped byte":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "not a zip":
        path.write_bytes(b"nothing of the kind")
    elif damage == "missing file":
        path.unlink()
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in members.items():
                if damage == "missing member" and name == "weights.h5":
                    continue
                archive.writestr(name, member + b"!" if damage == "other weights" and name == "weights.h5" else member)
    for stated in (True, False):  # with and without the checksum of the whole file beside it
        if not stated:
            (tmp_path / "wts.h5.zip.sha256").unlink()
        with pytest.raises(InputError) as refused:
            load_bundle(path)
        assert "wts.h5.zip" in str(refused.value)


JAX = """
import sys
import keras
import numpy as np
from ptycho_nb.network.bundle import load_bundle, save_bundle
from ptycho_nb.config import ModelConfig, TrainingConfig
from ptycho_nb.network.inference import reconstruct
from ptycho_nb.data.scan import RawData
from ptycho_nb.network.training import train as train_network

train, test, bundle, generators = sys.argv[1:]
assert keras.backend.backend() == "jax"
for generator in generators.split(","):
    # Twelve divides the groups of both kinds: one shape, one compilation.
    training = TrainingConfig(nepochs=2, batch_size=12, precision="float32", tv_weight=1e-3, realspace_mae_weight=1e-3)
    config = ModelConfig(gridsize=1, generator=generator, n_filters=4)
    model, history = train_network(RawData.load(train), config, training)
    assert history["epochs"][-1]["train_loss"] < history["epochs"][1]["train_loss"], history
result = reconstruct(RawData.load(test), model)
assert np.all(np.isfinite(result.object))
there = reconstruct(RawData.load(test), load_bundle(bundle))
np.save(bundle + ".npy", there.object)
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed (extra 'jax')")
@pytest.mark.long  # what differs between the backends, optics and pretrained network, test_jax_backend.py tests always
@pytest.mark.parametrize("generators", ["residual_unet", "cnn,residual_unet"])
def test_jax_trains_and_reads_the_bundles_of_tensorflow(scans, trained, tmp_path, generators):
    scans[0].save(tmp_path / "train.npz")
    scans[1].save(tmp_path / "test.npz")
    save_bundle(tmp_path / "wts.h5.zip", trained.model)
    files = tmp_path / "train.npz", tmp_path / "test.npz", tmp_path / "wts.h5.zip"
    run = in_a_process(JAX, *files, generators, backend="jax")
    assert run.returncode == 0, run.stderr[-3000:]
    here = reconstruct(scans[1], trained.model).object
    assert np.allclose(np.load(tmp_path / "wts.h5.zip.npy"), here, atol=1e-4)


def test_light_beyond_the_canvas_of_the_validation_patterns():
    """On a sparse scan the groups that train see farther than those that judge."""
    config = SimulationConfig(nphotons=1e4, probe_kind="defocused", n_train=48, n_test=1, noise_seed=1)
    model, history = train_network(simulate_halves(config)[0], ModelConfig(estimate_scope="scan", n_filters=4),
                                   TrainingConfig(nepochs=1))
    assert model.window_px <= model.canvas_px and np.isfinite(history["epochs"][-1]["val_loss"])
