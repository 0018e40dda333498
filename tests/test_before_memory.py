"""What cannot fit or cannot be is refused before anything is allocated; what was left out can still be predicted."""
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from ptycho_nb.config import InputError, ModelConfig, SimulationConfig, TrainingConfig, derive_seeds
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.network.groups import group_data
from ptycho_nb.network.inference import reconstruct
from ptycho_nb.network.inputs import EstimateSettings
from ptycho_nb.network.model import PtychoModel
from ptycho_nb.network.pretrained import amortised
from ptycho_nb.network.training import train
from ptycho_nb.physics.scans import validation_indices
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.fit import fit_scan
from ptycho_nb.solvers.positions import refine_positions
from ptycho_nb.solvers.result import predict_amplitudes

MODEL = ModelConfig(gridsize=1, n_filters=1)


def untrained(probe: np.ndarray) -> PtychoModel:
    return PtychoModel(MODEL, probe, 12.5, 64, settings=EstimateSettings(1, 1.0), seed=3)


ENTRIES = {
    "estimate": estimate, "fixed model": lambda scan: estimate(scan, model="fixed"), "fit_scan": fit_scan,
    "refine_positions": refine_positions, "amortised": amortised, "group_data": lambda scan: group_data(scan, MODEL),
    "train": lambda scan: train(scan, MODEL, TrainingConfig(nepochs=1)),
    "reconstruct": lambda scan: reconstruct(scan, untrained(scan.probe)),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_stray_position_is_named_before_a_canvas_is_made(entry):
    scan, _ = simulate_halves(SimulationConfig(object_size_px=200, n_train=30, n_test=1))
    positions_px = scan.positions_px.copy()
    positions_px[17] = 100_000, 40_000
    stray = replace(scan, positions_px=positions_px, object=None)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="pattern 17 at"):
            ENTRIES[entry](stray)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("entry", ENTRIES)
def test_positions_in_nanometres_are_named(entry):
    scan, _ = simulate_halves(SimulationConfig(object_size_px=200, n_train=30, n_test=1))
    with pytest.raises(InputError, match="probably in nanometres"):
        ENTRIES[entry](replace(scan, positions_px=20 * scan.positions_px, object=None))


def test_more_patterns_than_anybody_simulates_are_refused(monkeypatch):
    for name in ("n_train", "n_test"):
        with pytest.raises(InputError, match=rf"{name}: found 1000000000"):
            SimulationConfig(**{name: 1e9})
    monkeypatch.setattr("ptycho_nb.files.free_bytes", lambda: 10**6)
    with pytest.raises(InputError, match="Simulate fewer patterns"):
        simulate_halves(SimulationConfig(object_size_px=200, n_train=100, n_test=1))


@pytest.mark.parametrize("seed", [2, 6])  # a pattern at the rim of the scan is left out
def test_patterns_that_were_left_out_lie_on_the_canvas_of_the_network(seed):
    _, test = simulate_halves(SimulationConfig(object_size_px=392, n_train=1, n_test=20, seed=seed))
    left_out = validation_indices(20, 0.1, derive_seeds(seed)["validation_seed"])
    result = reconstruct(test, untrained(test.probe), exclude=left_out)
    assert predict_amplitudes(result, left_out).shape == (len(left_out), 64, 64)
    assert np.all(result.object[result.coverage == 0] == 1)
