"""The simulation: what a dose changes, what it must not change, its statistics and its speed."""

import dataclasses
import time

import numpy as np
import pytest

import ptycho_nb as pt
from ptycho_nb.config import InputError, SimulationConfig
from ptycho_nb.data.simulation import generate_simulated_data, simulate_halves
from ptycho_nb.physics.noise import closed_form_intensity_scale, intensity_scale
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import defocused_probe, make_probe
from ptycho_nb.physics.scans import half_regions, make_positions

SMALL = SimulationConfig(n_train=150, n_test=80, seed=5)


def same(first, second, *fields) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in fields)


@pytest.mark.parametrize("probe_kind", ["disk", "defocused"])
def test_another_dose_changes_the_photons_only(probe_kind):
    config = dataclasses.replace(SMALL, probe_kind=probe_kind)
    bright, dim = (simulate_halves(dataclasses.replace(config, nphotons=nphotons)) for nphotons in (1e9, 1e4))
    for first, second in zip(bright, dim, strict=True):
        assert same(first, second, "positions_px", "object", "probe", "scan_index")
        assert not same(first, second, "diff3d")
    rms = [np.sqrt(np.mean(np.square(train.diff3d, dtype=np.float64))) for train, _ in (bright, dim)]
    assert rms[0] / rms[1] == pytest.approx(np.sqrt(1e5), rel=0.01)  # 316.2


def test_each_seed_moves_its_own_thing():
    train, _ = simulate_halves(SMALL)
    noise, _ = simulate_halves(dataclasses.replace(SMALL, noise_seed=1))
    scan, _ = simulate_halves(dataclasses.replace(SMALL, scan_seed=1))
    sample, _ = simulate_halves(dataclasses.replace(SMALL, object_seed=1))
    assert same(train, noise, "positions_px", "object", "probe") and not same(train, noise, "diff3d")
    assert same(train, scan, "object", "probe") and not same(train, scan, "positions_px")
    assert same(train, sample, "positions_px", "probe") and not same(train, sample, "object")


def test_the_same_configuration_gives_the_same_bytes():
    for first, second in zip(simulate_halves(SMALL), simulate_halves(SMALL), strict=True):
        assert first.checksums() == second.checksums()


@pytest.mark.parametrize("scan_kind", ["random", "raster", "jittered", "fermat"])
def test_the_halves_share_no_pixel(scan_kind):
    train, test = simulate_halves(dataclasses.replace(SMALL, scan_kind=scan_kind, nphotons=1e4))
    last_train = np.floor(train.positions_px[:, 0] + 0.5).max() + SMALL.N // 2
    first_test = np.floor(test.positions_px[:, 0] + 0.5).min() - SMALL.N // 2
    assert last_train <= first_test
    assert (train.n_patterns, test.n_patterns) == (150, 80)
    assert train.diff3d[0].sum() != test.diff3d[0].sum()


@pytest.mark.parametrize("nphotons", [1e2, 1e4, 1e6, 1e9])
@pytest.mark.parametrize("object_phase", [False, True])
def test_mean_detected_photons(nphotons, object_phase):
    for data in simulate_halves(dataclasses.replace(SMALL, nphotons=nphotons, object_phase=object_phase)):
        standard_error = np.sqrt(nphotons / data.n_patterns)
        assert abs(data.nphotons_mean - nphotons) < 5 * standard_error + 1e-6 * nphotons
        assert intensity_scale(data.diff3d) == pytest.approx(closed_form_intensity_scale(nphotons, SMALL.N), rel=0.05)


def test_the_units_of_the_probe_do_not_change_the_dose():
    sample, probe = make_object("lines", 392), make_probe("disk", 64)
    positions_px = make_positions("random", 20, half_regions(392, 64)[0])
    one = generate_simulated_data(SMALL, sample, probe, positions_px)
    other = generate_simulated_data(SMALL, sample, 1e3 * probe, positions_px)
    # An amplitude scatters by half a photon's root, whatever the dose; rounding alone may already draw another photon.
    assert np.mean((other.diff3d - one.diff3d) ** 2) < 0.6
    assert other.nphotons_mean == pytest.approx(SMALL.nphotons, rel=1e-4)


def test_subpixel_patterns_against_a_direct_derivation():
    """The exit wave of a probe that is a sum of plane waves, evaluated at shifted coordinates, without any FFT."""
    N, nphotons = 64, 1e13  # so bright that the noise is far below the comparison
    sample, probe = make_object("lines", 160, seed=1, phase=True), defocused_probe(N)
    positions_px = np.array([[40.3, 50.75], [61.0, 80.49], [99.62, 33.05]])
    config = SimulationConfig(N=N, object_size_px=160, nphotons=nphotons)
    data = generate_simulated_data(config, sample, probe, positions_px)

    pixel = np.arange(N)
    # Same half-open band of frequencies as the discrete transform: -N/2 … N/2 - 1.
    band = np.arange(-N // 2, N // 2)
    forward = np.exp(-2j * np.pi * np.outer(band, pixel) / N)
    coefficients = forward @ probe.astype(complex) @ forward.T / N**2
    patterns = []
    for position_px in positions_px:
        whole = np.floor(position_px + 0.5).astype(int)
        rest = position_px - whole
        waves = [np.exp(2j * np.pi * np.outer(pixel - shift, band) / N) for shift in rest]
        shifted = waves[0] @ coefficients @ waves[1].T
        row, column = whole - N // 2
        exit_wave = shifted * sample[row : row + N, column : column + N]
        far_field = forward @ exit_wave @ forward.T  # zero frequency in the centre, because `band` is centred
        patterns.append(np.abs(far_field) / N)
    expected = np.array(patterns)
    expected *= np.sqrt(nphotons / np.mean(np.sum(expected**2, axis=(1, 2))))
    np.testing.assert_allclose(data.diff3d, expected, rtol=0, atol=2e-5 * expected.max())
    not_shifted = generate_simulated_data(config, sample, probe, np.floor(positions_px + 0.5)).diff3d
    assert np.abs(not_shifted - expected).max() > 1e-2 * expected.max()  # the comparison can tell


@pytest.mark.parametrize("probe_kind", ["disk", "defocused"])
@pytest.mark.parametrize("scan_kind", ["random", "fermat"])
def test_a_thousand_patterns_take_less_than_a_cpu_second(probe_kind, scan_kind):
    config = SimulationConfig(n_train=1000, n_test=1, probe_kind=probe_kind, scan_kind=scan_kind)
    sample, probe = make_object("lines", 392), make_probe(probe_kind, 64)
    positions_px = make_positions(scan_kind, 1000, half_regions(392, 64)[0])
    start = time.process_time()
    generate_simulated_data(config, sample, probe, positions_px)
    assert time.process_time() - start < 1.0


def test_wrong_input_is_refused():
    sample, positions_px = make_object("lines", 160), np.array([[80.0, 80.0]])
    with pytest.raises(InputError, match=r"probe.*N = 64"):
        generate_simulated_data(SMALL, sample, make_probe("disk", 128), positions_px)
    with pytest.raises(InputError, match="position"):
        generate_simulated_data(SMALL, sample, make_probe("disk", 64), np.array([[31.0, 80.0]]))
    with pytest.raises(InputError, match="half"):
        generate_simulated_data(SMALL, sample, make_probe("disk", 64), positions_px, half="middle")
    misspelled = {"object_kind": ("line", "lines"), "probe_kind": ("disc", "disk"), "scan_kind": ("rastr", "raster")}
    for setting, (wrong, right) in misspelled.items():
        with pytest.raises(InputError, match=rf"Did you mean '{right}'"):
            simulate_halves(dataclasses.replace(SMALL, **{setting: wrong}))


@pytest.mark.parametrize("N", [32, 100])
def test_any_even_side_is_simulated_and_estimated(N):
    config = pt.SimulationConfig(N=N, nphotons=1e6, object_size_px=2 * N + 64, n_train=1, n_test=60, seed=1)
    _, scan = pt.simulate_halves(config)
    image = pt.estimate(scan, iterations=5, progress=False)
    assert scan.N == N and np.isfinite(image.object).all()


@pytest.mark.parametrize("N", [36, 50, 100])
def test_the_network_of_halvings_takes_any_even_side(N):
    from ptycho_nb.network.generators import build_cnn, predicted_px

    network = build_cnn(pt.ModelConfig(N=N, n_filters=1), 1)
    for name in ("sigmoid", "tanh"):
        layer = network.get_layer(name)
        layer.kernel.assign(np.random.default_rng(0).normal(0, 0.1, layer.kernel.shape))
    patches = np.asarray(network(np.random.default_rng(1).random((2, N, N, 1), np.float32)))
    predicted = np.any(patches[0] != [1, 0], axis=-1)
    assert patches.shape == (2, N, N, 2) and predicted.sum() == predicted_px(N) ** 2
    assert np.array_equal(predicted, predicted[::-1, ::-1])  # in the middle
