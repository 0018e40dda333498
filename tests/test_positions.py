"""Refined positions: better where they were wrong, untouched where they were right, and honestly judged."""
from dataclasses import replace

import numpy as np
import pytest

from ptycho_nb.config import InputError, SimulationConfig
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.physics.forward import Layout, checkerboard, scan_amplitudes
from ptycho_nb.physics.noise import observe_poisson
from ptycho_nb.physics.probes import make_probe
from ptycho_nb.physics.scans import validation_indices
from ptycho_nb.solvers.held_out import hold_out
from ptycho_nb.solvers.positions import _Places, moves_in_words, position_gradient, refine_positions
from ptycho_nb.solvers.result import predict_amplitudes

ITERATIONS = 14


def make_scan(nphotons, probe_kind, error_px, n=150):
    """A simulated scan on positions that are wrong by up to `error_px`, and the exact positions."""
    config = SimulationConfig(nphotons=nphotons, probe_kind=probe_kind, object_phase=True, object_size_px=192,
                              n_train=1, n_test=n)
    _, exact = simulate_halves(config)
    errors_px = np.random.default_rng(5).uniform(-error_px, error_px, exact.positions_px.shape)
    return replace(exact, positions_px=exact.positions_px + errors_px, object=None), exact.positions_px


def error_px(positions_px, exact_px):
    """Root mean square per axis, up to the common shift."""
    error = positions_px - exact_px
    return np.sqrt(np.mean((error - error.mean(axis=0)) ** 2))


@pytest.fixture(scope="module")
def wrong():
    """A scan on wrong positions, the exact ones, and what was found."""
    scan, exact_px = make_scan(1e5, "defocused", 1.0)
    return scan, exact_px, refine_positions(scan, iterations=ITERATIONS)


@pytest.mark.parametrize("likelihood", ["poisson", "amplitude"])
def test_the_gradient_is_that_of_the_likelihood(likelihood):
    rng = np.random.default_rng(0)
    probe = make_probe("defocused", 64) * 300
    sample = (1 + 0.3 * rng.normal(size=(70, 70)) + 0.3j * rng.normal(size=(70, 70))).astype(np.complex128)
    corners, here = np.array([[1, 2], [5, 5]]), np.array([[0.2, -0.3], [0.4, 0.1]])

    def predict(positions):
        return scan_amplitudes(sample, probe, Layout(64, corners, sample.shape, positions)).astype(float)

    measured = observe_poisson(predict(np.zeros((2, 2))) ** 2 + 20, 1)

    def cost(positions):
        amplitude = predict(positions)
        if likelihood == "amplitude":
            return 2 * np.sum((amplitude - measured) ** 2, axis=(1, 2))
        rate = amplitude**2 + 0.5  # half a photon on both sides, as in the solver
        return np.sum(rate - (measured**2 + 0.5) * np.log(rate), axis=(1, 2))

    layout = Layout(64, corners, sample.shape, here)
    gradient, information = position_gradient(sample, probe, measured, np.arange(2), layout, likelihood)
    step = 0.02  # single-precision amplitudes
    for axis in np.eye(2):
        finite = (cost(here + step * axis) - cost(here - step * axis)) / (2 * step)
        np.testing.assert_allclose(finite, gradient @ axis, rtol=0.02, atol=0.002 * np.abs(gradient).max())
    assert np.all(np.linalg.eigvalsh(information) > 0)


def test_wrong_positions_are_found_again(wrong):
    scan, exact_px, refined = wrong
    assert refined.info["positions"]["kept"]
    assert error_px(refined.positions_px, exact_px) < 0.2 < 0.5 < error_px(scan.positions_px, exact_px)
    assert "positions moved by" in moves_in_words(refined)


def test_a_common_shift_is_not_made_up(wrong):
    scan, _, refined = wrong
    fitted = np.setdiff1d(np.arange(scan.n_patterns), validation_indices(scan.n_patterns, 0.1, 0))
    np.testing.assert_allclose(np.mean((refined.positions_px - scan.positions_px)[fitted], axis=0), 0, atol=1e-9)


def test_the_result_is_whole(wrong):
    scan, _, refined = wrong
    assert predict_amplitudes(refined).shape == scan.diff3d.shape
    moved_back = replace(refined, positions_px=scan.positions_px)
    errors = [np.mean((predict_amplitudes(result) - scan.diff3d) ** 2) for result in (refined, moved_back)]
    assert errors[0] < errors[1]


def test_a_validation_pattern_never_judges_a_position_that_it_chose():
    scan, _ = make_scan(1e5, "defocused", 0.5, n=20)
    canvas = Layout.around(scan.positions_px, scan.N, margin_px=4)
    places = _Places(scan, hold_out(scan, np.arange(15, 20)), 1.0, canvas)
    sample = np.random.default_rng(0).uniform(0.5, 1, canvas.shape[1:]).astype(np.complex64)
    probe = scan.probe
    before = places.predict(sample, probe)
    places.now[places.sides == 1] += 1  # found by the white fields
    changed = np.any(places.predict(sample, probe) != before, axis=0)
    assert changed.any() and not changed[checkerboard(scan.N) > 0].any()


def test_exact_positions_stay():
    scan, exact_px = make_scan(1e5, "defocused", 0.0)
    refined = refine_positions(scan, iterations=ITERATIONS)
    assert error_px(refined.positions_px, exact_px) <= 0.1
    assert refined.info["positions"]["kept"] or np.array_equal(refined.positions_px, exact_px)


@pytest.mark.parametrize("wrong_px", [0.0, 0.2])
def test_at_low_dose_the_given_positions_stay_unless_the_validation_patterns_are_sure(wrong_px):
    scan, _ = make_scan(1e4, "disk", wrong_px)
    refined = refine_positions(scan, iterations=ITERATIONS)
    record = refined.info["positions"]
    nll = record["validation_nll_per_pixel"]
    assert record["kept"] == (nll["given"] - nll["refined"] > 2 * record["gain_standard_error"])
    assert record["rms_move_px"] > 0.2 and not record["kept"]  # the moves are noise, and are seen to be
    assert np.array_equal(refined.positions_px, scan.positions_px)
    assert "kept as given" in moves_in_words(refined)


def test_no_position_leaves_a_given_object():
    scan, _ = make_scan(1e5, "defocused", 0.0, n=40)
    tight = scan.positions_px - scan.positions_px.min(axis=0) + scan.N // 2
    scan = replace(scan, positions_px=tight, object=np.ones(Layout.around(tight, scan.N).shape[1:]))
    canvas = Layout.around(tight, scan.N, margin_px=4)
    places = _Places(scan, hold_out(scan, np.arange(36, 40)), 1.0, canvas)
    for _ in range(3):
        places.move(np.ones(canvas.shape[1:], np.complex64), scan.probe, "amplitude")
        replace(scan, positions_px=places.merged(places.now))  # refused if a patch leaves the object


def test_what_cannot_be_done_is_refused():
    scan, _ = make_scan(1e5, "disk", 0.0, n=10)
    with pytest.raises(InputError, match="validation patterns"):
        refine_positions(scan, held=hold_out(scan, np.array([], int)))
    with pytest.raises(InputError, match="believed_px"):
        refine_positions(scan, believed_px=0)
