"""The baselines: pty-chi's LSQML in the conventions of this library, and the network taught by the truth."""
import importlib.util
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import h5py
import numpy as np
import pytest

from ptycho_nb.config import InputError, ModelConfig, SimulationConfig, TrainingConfig
from ptycho_nb.data.scan import RawData
from ptycho_nb.data.simulation import generate_simulated_data, simulate_halves
from ptycho_nb.data.writers import write_product
from ptycho_nb.network.supervised import train_supervised
from ptycho_nb.physics.geometry import Geometry
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import defocused_probe, disk_probe, twin_ambiguity
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.held_out import hold_out
from ptycho_nb.solvers.lsqml import _import_ptychi, lsqml, lsqml_epochs
from ptycho_nb.solvers.result import Reconstruction, covered_region, predict_amplitudes

needs_ptychi = pytest.mark.skipif(importlib.util.find_spec("ptychi") is None, reason="pty-chi is not installed")


@pytest.fixture(scope="module")
def scan() -> RawData:
    """An easy scan between whole pixels, in a frame of its own, with a probe that is not its own twin."""
    rng = np.random.default_rng(0)
    config = SimulationConfig(nphotons=1e9)
    positions = rng.uniform((40, 50), (90, 110), (130, 2))
    return generate_simulated_data(config, make_object("lines", 160), defocused_probe(64), positions)


def likeness(one, other, region) -> float:
    one, other = (result.crop_to(region).object for result in (one, other))
    one, other = one - one.mean(), other - other.mean()
    return abs(np.vdot(one, other)) / (np.linalg.norm(one) * np.linalg.norm(other))


@needs_ptychi
@pytest.mark.parametrize(("noise_model", "at_least"), [
    ("gaussian", 0.998), pytest.param("poisson", 0.95, marks=pytest.mark.long)])
def test_lsqml_has_our_geometry(scan, noise_model, at_least):
    "Remainders of the wrong sign give the Gaussian model .993; a conjugated probe gives both less than .1."
    validation = np.arange(0, 130, 10)
    ours = estimate(scan, held=hold_out(scan, validation))
    theirs = lsqml(scan, epochs=8, noise_model=noise_model, batch_size=20, held=hold_out(scan, validation))
    assert theirs.method == "lsqml" and theirs.info["epochs"] == 8 and theirs.seconds > 0
    np.testing.assert_allclose(theirs.probe, ours.probe, rtol=1e-5)  # exact, and in photons
    assert theirs.info["probe_moved"] < 1e-3
    assert likeness(ours, theirs, covered_region(ours)) > at_least
    measured, predicted = scan.diff3d[validation], predict_amplitudes(theirs, validation)
    assert np.sum((measured - predicted) ** 2) < 2e-4 * np.sum(measured**2)  # patterns that it never saw


@needs_ptychi
def test_lsqml_refines_the_probe_of_measured_data(scan):
    wrong = np.exp(0.4j * np.hypot(*(np.indices((64, 64)) - 32)) / 10) * scan.probe
    measured = RawData(scan.diff3d, scan.positions_px, wrong)  # no word of a simulation
    refined = lsqml(measured, epochs=6, noise_model="gaussian", batch_size=20)
    fixed = lsqml(measured, epochs=6, noise_model="gaussian", batch_size=20, refine_probe=False)
    assert refined.info["probe_refined"] and refined.info["probe_moved"] > 0.05
    assert not fixed.info["probe_refined"] and fixed.info["probe_moved"] < 1e-3
    errors = [np.linalg.norm(scan.diff3d - predict_amplitudes(result)) for result in (refined, fixed)]
    assert errors[0] < errors[1]


@needs_ptychi
def test_lsqml_can_be_watched_and_stopped(scan):
    course = list(islice(lsqml_epochs(scan, epochs=9, batch_size=20), 3))
    assert [result.info["epochs"] for result in course] == [1, 2, 3]
    assert 0 < course[0].seconds < course[1].seconds < course[2].seconds
    assert not np.array_equal(course[0].object, course[1].object)  # copies, not one changing array


@needs_ptychi
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")  # inside pty-chi
def test_ptychi_takes_what_is_written(scan, tmp_path):
    """A product and its patterns, read by h5py alone under the names that pty-chi's own examples use."""
    known = replace(scan, geometry=Geometry(energy_ev=8800, distance_m=1.9, detector_pixel_m=75e-6), object=None)
    write_product(tmp_path / "scan.h5", known)
    with h5py.File(tmp_path / "scan_dp.hdf5") as beside, h5py.File(tmp_path / "scan.h5") as file:
        counts, probe, pixel_m = beside["dp"][()], file["probe"][()], file["probe"].attrs["pixel_height_m"]
        y, x = (file[f"probe_position_{axis}_m"][()] / pixel_m for axis in "yx")
        middle = [file["object"].attrs[f"center_{axis}_m"] / pixel_m for axis in "yx"]
        shape = file["object"].shape
    _, ptychi = _import_ptychi()
    api = ptychi.api
    options = api.LSQMLOptions()
    options.reconstructor_options.default_device = api.Devices.CPU
    options.reconstructor_options.num_epochs, options.reconstructor_options.batch_size = 8, 20
    sample = options.object_options
    sample.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SPECIFIED
    sample.position_origin_coords = [side / 2 - 0.5 for side in shape[1:]]
    task = api.task.PtychographyTask(
        options, diffraction_data=counts.astype(np.float32), object_data=np.ones(shape, np.complex64), probe_data=probe,
        probe_position_y_px=(y - middle[0]).astype(np.float32), probe_position_x_px=(x - middle[1]).astype(np.float32))
    task.run()
    image = task.get_data_to_cpu("object", as_numpy=True)[0]
    corner = np.rint([m - side / 2 for m, side in zip(middle, shape[1:], strict=True)]).astype(int)
    result = Reconstruction(object=image, coverage=np.ones(image.shape), origin_px=corner,
                            positions_px=scan.positions_px, probe=scan.probe, method="lsqml")
    ours = estimate(scan)
    assert likeness(ours, result, covered_region(ours)) > 0.98


def test_lsqml_refuses_what_it_cannot_use(scan):
    with pytest.raises(InputError, match="Did you mean 'poisson'"):
        lsqml(scan, noise_model="poison")
    with pytest.raises(InputError, match="patterns to fit"):
        lsqml(scan, held=hold_out(scan, np.arange(130)))


def test_without_ptychi_the_remedy_is_said():
    code = """
import sys
sys.modules["ptychi"] = None  # what Python itself does for a module that cannot be imported
from ptycho_nb.solvers.lsqml import _import_ptychi, lsqml, lsqml_epochs
from ptycho_nb.config import SimulationConfig
from ptycho_nb.data.simulation import simulate_halves
lsqml(simulate_halves(SimulationConfig(n_train=1, n_test=9))[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "[baselines]" in done.stderr and "pip install" in done.stderr
    assert "InputError" in done.stderr.splitlines()[-1]


def test_supervised_training_needs_the_truth(scan):
    blind = RawData(scan.diff3d, scan.positions_px, scan.probe)
    with pytest.raises(InputError, match="the true object"):
        train_supervised(blind, ModelConfig(gridsize=1, n_filters=4), TrainingConfig(nepochs=1), progress=False)


def test_supervised_training_sees_the_object_and_not_the_photons():
    train, _ = simulate_halves(SimulationConfig(nphotons=1e4, object_size_px=192, n_train=40, n_test=1))
    config, training = ModelConfig(gridsize=1, n_filters=4), TrainingConfig(nepochs=2, precision="float32")
    model, history = train_supervised(train, config, training, progress=False)
    assert np.isclose(model.intensity_scale, model.data_scale)  # photons taught nothing
    wrong = RawData(train.diff3d, train.positions_px, train.probe, 0.5 * train.object.conj() + 1)
    _, other = train_supervised(wrong, config, training, progress=False)
    assert history["epochs"][0]["val_loss"] != other["epochs"][0]["val_loss"]


def test_twin_of_a_probe_without_light_is_refused():
    with pytest.raises(InputError, match="total intensity"):
        twin_ambiguity(np.zeros((64, 64)))


@pytest.mark.parametrize("N", [64, 128])
def test_twins_at_every_size(N):
    assert twin_ambiguity(disk_probe(N))["correlation"] > 0.999
    lopsided = disk_probe(N) * (1 + np.arange(N) / N)
    assert 0.7 < twin_ambiguity(lopsided)["correlation"] < 0.999
    assert twin_ambiguity(defocused_probe(N))["ambiguity"] == "none"
