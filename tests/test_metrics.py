"""Metrics against hand calculations, and the gauge fix against everything that it has to undo or leave alone."""
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import fourier_shift, gaussian_filter
from skimage.metrics import structural_similarity

from ptycho_nb.analysis.metrics import compare, data_fit, frc, frc50, image_metrics, ms_ssim
from ptycho_nb.config import InputError
from ptycho_nb.data.scan import RawData
from ptycho_nb.physics.forward import Layout, scan_amplitudes
from ptycho_nb.physics.noise import observe_poisson
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import make_probe
from ptycho_nb.physics.scans import make_positions
from ptycho_nb.solvers.gauge import align
from ptycho_nb.solvers.result import (
    Reconstruction,
    covered_region,
    load_reconstructions,
    predict_amplitudes,
    save_reconstructions,
)

WINDOW = (slice(40, 180), slice(30, 200))


@pytest.fixture(scope="module", params=[False, True], ids=["absorbing", "with phase"])
def truth(request):
    return make_object("lines", 224, seed=3, phase=request.param)


@pytest.fixture
def images():
    truth = np.abs(make_object("lines", 200, seed=1)).astype(float)
    return truth + 0.03 * np.random.default_rng(0).standard_normal(truth.shape), truth


@pytest.fixture(scope="module")
def scan():
    """A complex object, its noisy scan, and the exact answer on a canvas that does not begin at zero."""
    truth = make_object("lines", 192, seed=5, phase=True)
    positions = make_positions("jittered", 60, (50, 140, 45, 150), seed=1)
    probe = make_probe("defocused", 64) * np.float32(30)
    layout = Layout.around(positions, 64)
    (top, left), (height, width) = layout.origin_px, layout.shape[1:]
    canvas = truth[top : top + height, left : left + width]
    counts = observe_poisson(scan_amplitudes(canvas, probe, layout) ** 2, seed=0)
    exact = Reconstruction(canvas, np.ones(canvas.shape), layout.origin_px, positions, probe, "exact")
    return truth, RawData(counts, positions, probe, object=truth), exact


def complex_noise(shape, level, seed=0):
    rng = np.random.default_rng(seed)
    return level * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


# metrics of one image


def test_errors_psnr_and_ssim_by_hand(images):
    estimate, truth = images
    scores = image_metrics(estimate, truth)
    error, data_range = estimate - truth, truth.max() - truth.min()
    assert scores["mae"] == pytest.approx(np.abs(error).mean())
    assert scores["mse"] == pytest.approx((error**2).mean())
    assert scores["psnr"] == pytest.approx(10 * np.log10(data_range**2 / (error**2).mean()))
    assert scores["ssim"] == pytest.approx(structural_similarity(truth, estimate, data_range=data_range))


def test_ssim_of_one_window_by_hand():
    rng = np.random.default_rng(0)
    truth, estimate = rng.random((2, 11, 11))
    inner = (slice(3, 8),) * 2  # a uniform window of 7 px fits at 5 × 5 places
    windows = [np.lib.stride_tricks.sliding_window_view(image, (7, 7)).reshape(5, 5, 49) for image in (truth, estimate)]
    (mean_t, mean_e), (var_t, var_e) = ([w.mean(-1) for w in windows], [w.var(-1, ddof=1) for w in windows])
    covariance = ((windows[0] - mean_t[..., None]) * (windows[1] - mean_e[..., None])).sum(-1) / 48
    c1, c2 = (0.01 * np.ptp(truth)) ** 2, (0.03 * np.ptp(truth)) ** 2
    by_hand = (2 * mean_t * mean_e + c1) * (2 * covariance + c2) / ((mean_t**2 + mean_e**2 + c1) * (var_t + var_e + c2))
    assert truth[inner].shape == by_hand.shape
    assert image_metrics(estimate, truth)["ssim"] == pytest.approx(by_hand.mean())


def test_the_range_is_that_of_the_truth(images):
    estimate, truth = images
    wild = estimate.copy()
    wild[0, 0] = 100.0  # far outside the range of the truth
    assert image_metrics(wild, truth)["ssim"] <= image_metrics(estimate, truth)["ssim"]


def test_a_flat_image_scores_low(truth):
    amplitude = np.abs(truth).astype(float)
    scores = image_metrics(np.full_like(amplitude, amplitude.mean()), amplitude)
    assert 0 < scores["ssim"] < 0.35
    assert scores["frc50"] == 0 and scores["ms_ssim"] < 0.5


def test_a_constant_truth_leaves_the_errors_only():
    assert image_metrics(np.full((40, 40), 1.1), np.ones((40, 40))) == pytest.approx({"mae": 0.1, "mse": 0.01})


def test_too_small_a_region_is_refused():
    with pytest.raises(InputError, match="11 px"):
        image_metrics(np.ones((10, 40)), np.ones((10, 40)))


def test_equal_images_are_perfect(images):
    scores = image_metrics(images[1], images[1])
    assert scores["ssim"] == pytest.approx(1) and scores["ms_ssim"] == pytest.approx(1) and scores["frc50"] == 1
    assert scores["mae"] == 0 and np.isinf(scores["psnr"])


@pytest.mark.parametrize(("side", "n_scales"), [(11, 1), (22, 2), (44, 3), (88, 4), (133, 4), (175, 4), (176, 5)])
def test_ms_ssim_states_its_scales(images, side, n_scales):
    estimate, truth = (image[:side] for image in images)
    value, used = ms_ssim(estimate, truth)
    assert used == n_scales and 0 < value < 1


def test_ms_ssim_of_two_scales_by_hand(images):
    estimate, truth = (image[:30, :30] for image in images)
    data_range = np.ptp(truth)

    def terms(x, y):
        blur = lambda image: gaussian_filter(image, 1.5, truncate=3.5)  # noqa: E731
        mx, my = blur(x), blur(y)
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        contrast = (2 * (blur(x * y) - mx * my) + c2) / (blur(x * x) - mx**2 + blur(y * y) - my**2 + c2)
        return (luminance * contrast)[5:-5, 5:-5].mean(), contrast[5:-5, 5:-5].mean()

    half_t, half_e = (image.reshape(15, 2, 15, 2).mean(axis=(1, 3)) for image in (truth, estimate))
    weights = np.array([0.0448, 0.2856]) / (0.0448 + 0.2856)
    by_hand = terms(truth, estimate)[1] ** weights[0] * terms(half_t, half_e)[0] ** weights[1]
    assert ms_ssim(estimate, truth)[0] == pytest.approx(by_hand)


def test_ms_ssim_of_blurred_images(images):
    blurred = [gaussian_filter(image, 1.0) for image in images]
    assert ms_ssim(*images, 1.0) == ms_ssim(*blurred) != ms_ssim(*images)


def test_ms_ssim_of_an_inverted_image_is_no_nan(images):
    assert ms_ssim(-images[1], images[1])[0] == 0


# Fourier ring correlation


@pytest.mark.parametrize("shape", [(64, 64), (65, 65), (64, 129), (133, 90)])
def test_frc_of_equal_images_is_one_on_every_ring(shape):
    image = np.random.default_rng(0).random(shape)
    curve = frc(3 * image + 7, image)  # blind to gain and offset
    np.testing.assert_allclose(curve["correlation"], 1, atol=1e-9)
    assert len(curve["cycles_per_px"]) == min(shape) // 2 and curve["cycles_per_px"][-1] <= 0.5
    assert frc50(curve) == 1


def test_frc_of_independent_noise_is_low_at_once():
    first, second = np.random.default_rng(0).standard_normal((2, 128, 128))
    curve = frc(first, second)
    assert np.abs(curve["correlation"][3:]).max() < 0.5 and curve["correlation"][8:].std() < 0.1
    assert frc50(curve) < 0.05


def test_frc_of_one_ring_by_hand():
    first, second = np.random.default_rng(1).standard_normal((2, 32, 32))
    window = np.outer(np.hanning(32), np.hanning(32))
    f, g = (np.fft.fftshift(np.fft.fft2((image - image.mean()) * window)) for image in (first, second))
    cross = power_f = power_g = 0.0
    for y in range(32):
        for x in range(32):
            if 4.5 < np.hypot(y - 16, x - 16) < 5.5:
                cross += (f[y, x] * np.conj(g[y, x])).real
                power_f, power_g = power_f + abs(f[y, x]) ** 2, power_g + abs(g[y, x]) ** 2
    curve = frc(first, second)
    assert curve["cycles_per_px"][4] == 5 / 32
    assert curve["correlation"][4] == pytest.approx(cross / np.sqrt(power_f * power_g))


def test_frc_looks_at_the_central_square():
    image = np.random.default_rng(0).random((40, 80))
    other = image.copy()
    other[:, :20] = 0
    np.testing.assert_allclose(frc(other, image)["correlation"], 1, atol=1e-9)


@pytest.mark.parametrize(
    ("correlation", "expected"),
    [([1, 0.9, 0.6, 0.2, 0.1], 2 * 0.325), ([1, 0.4, 0.9, 0.9, 0.1], 2 * (0.1 + 0.1 * 5 / 6)), ([1, 1, 1, 1, 0.5], 1.0),
     ([0.4, 1, 1, 1, 1], 0.0)],
    ids=["between two rings", "the first crossing counts", "never below", "below at once"],
)
def test_frc50_is_interpolated(correlation, expected):
    curve = {"cycles_per_px": np.array([0.1, 0.2, 0.3, 0.4, 0.5]), "correlation": np.array(correlation, float)}
    assert frc50(curve) == pytest.approx(expected)


# gauge fix


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -0.2), (-1.25, 2.6), (3.0, 0.0)], ids=str)
@pytest.mark.parametrize("plane", [(0.0, 0.0), (0.004, -0.011), (0.35, 0.2)], ids=str)
def test_the_gauge_fix_undoes_all_four(truth, shift, plane):
    y, x = np.indices(truth.shape)
    moved = np.fft.ifft2(fourier_shift(np.fft.fft2(truth), shift))
    spoiled = 40 * np.exp(2.5j) * moved * np.exp(1j * (plane[0] * y + plane[1] * x))
    aligned, info = align(spoiled[WINDOW], truth[WINDOW])
    inner = (slice(5, -5),) * 2  # the rim moved in from outside the window
    assert np.abs(aligned - truth[WINDOW])[inner].mean() < (0.01 if any(shift) else 1e-3)
    np.testing.assert_allclose(info["shift_px"], -np.array(shift), atol=0.05)
    np.testing.assert_allclose(info["plane_rad_per_px"], -np.array(plane), atol=1e-3)
    assert info["scale"] == pytest.approx(1 / 40, rel=0.01)


def test_the_gauge_fix_leaves_the_truth_alone(truth):
    aligned, info = align(truth[WINDOW], truth[WINDOW])
    np.testing.assert_allclose(aligned, truth[WINDOW], atol=1e-5)
    assert info["shift_px"] == [0, 0] and info["scale"] == pytest.approx(1)


@pytest.mark.parametrize("blur_px", [0, 1, 2])
@pytest.mark.parametrize("level", [0.1, 0.5, 2.0])
def test_noise_alone_moves_nothing(truth, level, blur_px):
    for seed in range(5):
        noise = complex_noise(truth.shape, 1.0, seed)
        noise = gaussian_filter(noise, blur_px) if blur_px else noise
        noise *= level / noise.std()
        _, info = align((truth + noise)[WINDOW], truth[WINDOW])
        assert info["shift_px"] == [0, 0], (seed, info)


def test_a_shift_under_moderate_noise_is_found(truth):
    moved = np.fft.ifft2(fourier_shift(np.fft.fft2(truth), (1.5, -1.0)))
    _, info = align((moved + complex_noise(truth.shape, 0.05))[WINDOW], truth[WINDOW])
    np.testing.assert_allclose(info["shift_px"], (-1.5, 1.0), atol=0.2)


def test_a_shift_that_is_too_large_is_not_applied(truth):
    moved = np.roll(truth, (8, 0), axis=(0, 1))
    _, info = align(moved[WINDOW], truth[WINDOW])
    assert info["shift_px"] == [0, 0] and info["shift_found_px"][0] == pytest.approx(-8, abs=0.1)


def test_a_constant_truth_has_no_place():
    rng = np.random.default_rng(0)
    aligned, info = align(2 + 0.1 * rng.standard_normal((40, 50)) + 0j, np.ones((40, 50)))
    assert info["shift_px"] == [0, 0] and np.abs(aligned).mean() == pytest.approx(1, rel=1e-5)


def test_what_cannot_be_aligned_is_refused(truth):
    with pytest.raises(InputError, match="shape"):
        align(truth, truth[1:])
    with pytest.raises(InputError, match="above 0"):
        align(np.zeros_like(truth), truth)


# reconstructions


def test_compare_forgives_the_gauge_and_nothing_else(scan):
    truth, _, exact = scan
    rows, columns = np.indices(exact.object.shape)
    same = replace(exact, object=exact.object * 3j * np.exp(0.01j * (rows - 2 * columns)))
    noisy = replace(exact, object=exact.object + complex_noise(exact.object.shape, 0.05))
    for part in ("amplitude", "phase"):
        assert compare(same, truth)[part]["ssim"] > 0.9999
        assert compare(noisy, truth)[part]["ssim"] < 0.95
    assert compare(noisy, truth)["amplitude"]["mae"] == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.05)


def test_a_phase_beyond_pi_is_a_small_error(scan):
    truth, _, exact = scan
    near = np.exp(1j * (np.pi - 0.01)) * truth / np.abs(truth) * np.exp(1j * 0.3)
    scores = compare(replace(exact, object=exact.object / np.abs(exact.object)), near)
    assert scores["phase"]["mae"] < 1e-3 and set(scores["amplitude"]) == {"mae", "mse"}


def test_an_absorbing_truth_has_one_phase_metric(scan):
    truth, _, exact = scan
    scores = compare(replace(exact, object=np.abs(exact.object) + 0j), -np.abs(truth) + 0j)
    assert set(scores["phase"]) == {"mae"} and scores["phase"]["mae"] < 1e-3


def test_all_methods_share_the_region_of_the_scan(scan):
    truth, data, exact = scan
    y0, y1, x0, x1 = covered_region(exact)
    low, high = np.floor(data.positions_px.min(axis=0) + 0.5), np.floor(data.positions_px.max(axis=0) + 0.5)
    assert [y0, x0, y1 - 1, x1 - 1] == [*low, *high]
    bad_rim = exact.object.copy()
    bad_rim[:20] = 0
    assert compare(replace(exact, object=bad_rim), truth)["amplitude"]["ssim"] > 0.9999


def test_a_region_outside_is_refused(scan):
    truth, _, exact = scan
    with pytest.raises(InputError, match="region of the object"):
        compare(exact, truth, region=(0, 100, 50, 100))
    with pytest.raises(InputError, match="region of the truth"):
        compare(exact, truth[:120])


def test_the_data_fit_by_hand(scan):
    _, data, exact = scan
    validation = np.arange(0, 60, 6)
    fitted = np.setdiff1d(np.arange(60), validation)
    fit = data_fit(exact, data, validation)
    measured, predicted = data.diff3d.astype(float), predict_amplitudes(exact).astype(float)
    error = measured - predicted
    assert fit["r_factor"] == pytest.approx(np.abs(error[validation]).sum() / measured[validation].sum(), rel=1e-5)
    expected = (error[fitted] ** 2).sum() / (measured[fitted] ** 2).sum()
    assert fit["relative_squared_error"] == pytest.approx(expected, rel=1e-5)
    n, rate = measured[validation] ** 2, predicted[validation] ** 2
    rate = rate + 1e-4 * n.mean()
    deviance = rate - n + np.where(n > 0, n * np.log(np.where(n > 0, n, 1) / rate), 0)
    assert fit["nll_per_pixel"] == pytest.approx(deviance.mean(), rel=1e-5)
    assert set(data_fit(exact, data, [])) == {"relative_squared_error"}  # without validation patterns: absent, not zero
    half = data_fit(replace(exact, probe=exact.probe * np.float32(0.5)), data, validation)
    assert half["relative_squared_error"] == pytest.approx(0.25, rel=0.1)  # the probe has to be in photons


def test_a_reconstruction_of_another_scan_is_refused(scan):
    _, data, exact = scan
    with pytest.raises(InputError, match="its own scan"):
        data_fit(exact, data.subset(np.arange(30)), [0])


@pytest.mark.parametrize(
    "wrong", [{"coverage": np.ones((3, 3))}, {"origin_px": (1, 2, 3)}, {"probe": np.ones((64, 32))},
              {"object": np.full((8, 8), np.nan)}, {"positions_px": np.zeros((5, 3))}],
    ids=lambda wrong: next(iter(wrong)))
def test_an_inconsistent_reconstruction_is_refused(scan, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        replace(scan[2], **wrong)


def test_a_file_holds_several_reconstructions(scan, tmp_path):
    _, data, exact = scan
    network = replace(exact.crop_to(covered_region(exact)), method="network", seconds=2.5, info={"epochs": 3})
    refined = replace(exact, method="refined", probe=exact.probe * np.complex64(1j))
    path = save_reconstructions(tmp_path / "reconstruction.npz", no_network=exact, network=network, refined=refined)
    with np.load(path, allow_pickle=False) as stored:
        keys = {"object", "no_network", "refined", "coverage", "origin_px", "positions_px", "probe"}
        assert keys <= set(stored.files)
        assert stored["object"].dtype == np.complex64 and stored["coverage"].dtype == np.float32
        assert stored["object"].shape == stored["no_network"].shape == stored["coverage"].shape
        np.testing.assert_array_equal(stored["origin_px"], exact.origin_px)
        np.testing.assert_array_equal(stored["positions_px"], data.positions_px)
    back = load_reconstructions(path)
    assert list(back) == ["network", "no_network", "refined"]
    assert back["network"].seconds == 2.5 and back["network"].info == {"epochs": 3}
    np.testing.assert_array_equal(back["network"].crop_to(network.region).object, network.object)
    np.testing.assert_array_equal(back["no_network"].probe, exact.probe)
    np.testing.assert_array_equal(back["refined"].probe, refined.probe)
    np.testing.assert_array_equal(predict_amplitudes(back["no_network"]), predict_amplitudes(exact))
    assert [file.name for file in tmp_path.iterdir()] == ["reconstruction.npz"]


def test_without_a_network_the_first_one_is_the_object(scan, tmp_path):
    path = save_reconstructions(tmp_path / "a.npz", no_network=scan[2])
    assert list(load_reconstructions(path)) == ["no_network"]
    with pytest.raises(InputError, match="at least one"):
        save_reconstructions(tmp_path / "b.npz")
    with pytest.raises(InputError, match="no such file"):
        load_reconstructions(tmp_path / "b.npz")
