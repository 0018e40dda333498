"""The compiled solver against plain NumPy, and what is held out to judge its estimates."""
import numpy as np
import pytest

from ptycho_nb.config import InputError, ModelConfig, SimulationConfig
from ptycho_nb.data.simulation import generate_simulated_data, simulate_halves
from ptycho_nb.network.groups import group_data
from ptycho_nb.network.inference import reconstruct
from ptycho_nb.network.inputs import choose_group_settings
from ptycho_nb.network.model import PtychoModel
from ptycho_nb.network.pretrained import Pretrained, amortised, build_corrector
from ptycho_nb.physics.forward import Layout, shift_probes
from ptycho_nb.physics.noise import deal_photons
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import make_probe
from ptycho_nb.physics.scans import stand_alone, validation_indices
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.held_out import hold_out, hold_out_photons
from ptycho_nb.solvers.likelihood import counting_offset, scan_gradient
from ptycho_nb.solvers.positions import refine_positions
from ptycho_nb.solvers.result import crop
from ptycho_nb.solvers.steps import Problem, solve

N = 16


def textbook_gradient(objects, probe, amplitude, canvas, corners, remainder, likelihood):
    """The gradient pattern by pattern, with fftshift and without a loop over pixels."""
    gradient, probe_gradient, total = np.zeros_like(objects), np.zeros_like(probe), 0.0
    for k in range(len(amplitude)):
        light = probe if remainder is None else shift_probes(probe, remainder[[k]])[0]
        place = np.s_[canvas[k], corners[k, 0] : corners[k, 0] + N, corners[k, 1] : corners[k, 1] + N]
        wave = np.fft.fftshift(np.fft.fft2(light * objects[place]))
        rate = np.abs(wave) ** 2 / N**2
        total += np.sum((np.sqrt(rate) - amplitude[k]) ** 2)
        factors = {"poisson": (rate - amplitude[k] ** 2) / (2 * (rate + counting_offset(probe))),
                   "amplitude": 1 - amplitude[k] / np.sqrt(rate)}
        back = np.fft.ifft2(np.fft.ifftshift(wave * factors[likelihood]))
        to_probe = back * objects[place].conj()
        gradient[place] += back * light.conj()
        probe_gradient += to_probe if remainder is None else shift_probes(to_probe, -remainder[[k]])[0]
    return gradient, total, probe_gradient


@pytest.mark.parametrize("likelihood", ["poisson", "amplitude"])
@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize("precision", [np.complex64, np.complex128])
def test_the_compiled_gradient_is_the_textbook_one(likelihood, fractional, precision):
    rng = np.random.default_rng(1)

    def draw(*shape):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(precision)

    M = 21  # not a multiple of a chunk
    objects, probe = draw(3, 30, 40), draw(N, N)
    amplitude = rng.uniform(0, 3, (M, N, N)).astype(probe.real.dtype)
    canvas, corners = rng.integers(0, 3, M), rng.integers(0, 14, (M, 2))
    remainder = rng.uniform(-0.5, 0.5, (M, 2)).astype(np.float32) if fractional else None
    layout = Layout(N, corners, objects.shape, remainder, canvas)
    gradients = scan_gradient(objects, probe, amplitude, layout, np.arange(M), likelihood, for_probe=True, chunk=8)
    expected = textbook_gradient(objects, probe, amplitude, canvas, corners, remainder, likelihood)
    for one, other in zip(gradients[:3], expected, strict=True):
        assert np.max(np.abs(one - other)) < 1e-5 * np.max(np.abs(other))


def test_no_pattern_writes_beyond_its_canvas():
    for corners in ([[0, 0], [5, 0]], [[0, 0], [0, -1]]):
        with pytest.raises(InputError, match=r"positions.*patches inside the object"):
            Layout(N, np.array(corners), (20, 20))
    with pytest.raises(InputError, match=r"object.*the canvases"):
        scan_gradient(np.ones((1, 19, 20), np.complex64), np.ones((N, N), np.complex64), np.ones((2, N, N), np.float32),
                      Layout(N, np.array([[0, 0], [4, 0]]), (20, 20)), np.arange(2))


def test_a_start_is_not_overwritten():
    start = np.ones((1, 20, 20), np.complex64)
    layout = Layout(N, np.array([[0, 0], [4, 4]]), (20, 20))
    problem = Problem(np.ones((2, N, N), np.float32), layout, np.ones((N, N), np.complex64), start, np.arange(2))
    assert [step.iteration for step in solve(problem, iterations=3)] == [1, 2, 3]
    np.testing.assert_array_equal(start, 1)


def test_dealt_photons_are_poisson_counts():
    rng = np.random.default_rng(0)
    amplitude = np.sqrt(rng.poisson(50.0, 100_000)).astype(np.float32)
    many, few = deal_photons(amplitude, 0.8, seed=1)
    np.testing.assert_allclose(many**2 + few**2, amplitude**2, atol=1e-3)
    for part, mean in ((many, 40.0), (few, 10.0)):
        assert abs(np.mean(part**2) - mean) < 0.1 and abs(np.var(part**2) / mean - 1) < 0.02
    assert abs(np.corrcoef(many**2, few**2)[0, 1]) < 0.01


@pytest.fixture(scope="module")
def lone():
    """A scan whose patterns lie farther apart than the probe is wide."""
    grid = np.stack(np.meshgrid(*2 * [np.arange(40, 216, 34.0)], indexing="ij"), axis=-1).reshape(-1, 2)
    return generate_simulated_data(SimulationConfig(nphotons=1e9), make_object("lines", 256, seed=0),
                                   make_probe("defocused", 64), grid)


@pytest.fixture(scope="module")
def dense():
    return simulate_halves(SimulationConfig(nphotons=1e5, n_train=1, n_test=150, object_size_px=256))[1]


def rms_error(result, scan, lit=None):
    truth = np.abs(crop(scan.truth, result.region))
    lit = result.coverage > 0.1 * result.coverage.max() if lit is None else lit
    image = np.abs(result.object) * np.mean(truth[lit]) / np.mean(np.abs(result.object)[lit])
    return np.sqrt(np.mean((image - truth)[lit] ** 2))


def test_patterns_that_stand_alone_are_recognised(lone, dense):
    assert stand_alone(lone.positions_px, lone.probe) and not stand_alone(dense.positions_px, dense.probe)
    assert hold_out(lone).share < 1
    np.testing.assert_array_equal(hold_out(dense, seed=3).patterns, validation_indices(dense.n_patterns, 0.1, 3))


def test_photons_judge_patterns_that_stand_alone(lone):
    by_photons = estimate(lone)
    assert by_photons.info["validation_photons"] == pytest.approx(0.1)
    assert by_photons.info["chosen"]["iteration"] > 10, "with so many photons the solver has far to go"
    by_patterns = estimate(lone, held=hold_out(lone, validation_indices(lone.n_patterns, 0.1, 0)))
    brightest = by_photons.coverage.max()
    lit = by_photons.coverage > 0.1 * brightest
    assert np.mean(by_patterns.coverage[lit] < 0.01 * brightest) > 0.05, "a pattern left out leaves a hole"
    assert rms_error(by_photons, lone, lit) < 0.7 * rms_error(by_patterns, lone, lit)


def test_photons_judge_overlapping_patterns_as_well(dense):
    by_photons, by_patterns = (estimate(dense, held=held) for held in (hold_out_photons(dense), hold_out(dense)))
    assert rms_error(by_photons, dense) < 1.1 * rms_error(by_patterns, dense)
    power = [np.sum(np.abs(result.probe) ** 2) for result in (by_photons, by_patterns)]
    assert abs(power[0] / power[1] - 1) < 0.02, "the dose that is stated is that of all photons"
    again = estimate(dense, held=hold_out_photons(dense), start=by_photons)
    assert abs(np.mean(np.abs(again.object)) / np.mean(np.abs(by_photons.object)) - 1) < 0.01


def test_the_pretrained_network_is_judged_by_photons_too(lone):
    network = Pretrained(build_corrector(8), {})  # corrects nothing
    result = amortised(lone, network, splits=1, orientations=1)
    assert result.info["validation_photons"] == pytest.approx(0.1) and result.info["error_beyond_noise"] < 0.05
    assert rms_error(result, lone) == pytest.approx(rms_error(estimate(lone), lone), rel=1e-3)


def test_settings_for_groups_of_lone_patterns(lone):
    config = ModelConfig(gridsize=1)
    container = group_data(lone, config, targets="input")
    settings = choose_group_settings(container)
    assert settings.iterations >= 12 and settings.smoothing_px == 0, "many photons: far, and sharp"
    model = PtychoModel(config, container.probe, container.intensity_scale, container.canvas_px, settings=settings)
    assert rms_error(reconstruct(lone, model), lone) < 0.1


def test_refusals(lone, dense):
    with pytest.raises(InputError, match=r"held.*of this scan"):
        estimate(dense, held=hold_out(lone))
    with pytest.raises(InputError, match="positions of patterns that stand alone cannot be told"):
        refine_positions(lone)
