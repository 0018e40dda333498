"""Optics, patches and losses, on whichever backend KERAS_BACKEND names: every function under test runs compiled."""
import os
import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops

from ptycho_nb.config import InputError
from ptycho_nb.network.losses import amplitude_mae, poisson_nll, realspace_mae, total_variation
from ptycho_nb.network.optics import as_complex, diffract, diffraction_amplitude, illuminate, shift_probe
from ptycho_nb.network.patches import accumulate_patches, canvas_size, extract_patches, merge_patches, stitch
from ptycho_nb.physics.forward import Layout, scan_amplitudes, shift_probes
from ptycho_nb.physics.noise import intensity_scale, observe_poisson, poisson_deviance
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import defocused_probe

BACKEND = keras.backend.backend()

if BACKEND == "jax":
    import jax
else:
    import tensorflow as tf


def compiled(function, *arguments):
    """The value of a function of arrays, compiled; TensorFlow's compiler does not know the length of the first axis."""
    if BACKEND == "jax":
        result = jax.jit(function)(*arguments)
    else:
        signature = [tf.TensorSpec((None, *a.shape[1:]) if a.ndim else (), a.dtype) for a in map(np.asarray, arguments)]
        result = tf.function(function, input_signature=signature)(*arguments)
    return ops.convert_to_numpy(result)


def gradients(function, *arguments):
    """The gradients of a scalar function with respect to each of its real arguments, compiled."""
    if BACKEND == "jax":
        return [np.asarray(g) for g in jax.jit(jax.grad(function, argnums=tuple(range(len(arguments)))))(*arguments)]

    @tf.function
    def differentiate(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        return tape.gradient(value, tensors)

    return [g.numpy() for g in differentiate(*map(tf.convert_to_tensor, arguments))]


def random_complex(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def numpy_amplitude(canvases, probe, corners, remainder=None):
    """The forward model once more: double precision, loops, and fftshift as in the textbook."""
    N = probe.shape[-1]
    frequency = np.fft.fftfreq(N)
    amplitude = np.empty((*corners.shape[:2], N, N))
    for b, c in np.ndindex(corners.shape[:2]):
        y, x = corners[b, c]
        lit = probe
        if remainder is not None:
            ramp = np.exp(-2j * np.pi * (frequency[:, None] * remainder[b, c, 0] + frequency * remainder[b, c, 1]))
            lit = np.fft.ifft2(np.fft.fft2(probe) * ramp)
        wave = lit * canvases[b, y : y + N, x : x + N]
        amplitude[b, c] = np.abs(np.fft.fftshift(np.fft.fft2(wave))) / N
    return amplitude


def test_the_backend_is_the_one_asked_for():
    assert os.environ.get("KERAS_BACKEND", BACKEND) == BACKEND


# Optics

@pytest.mark.parametrize("N", [64, 128])
def test_energy_is_conserved(N):
    waves = random_complex(np.random.default_rng(0), 2, 3, N, N)
    amplitude = compiled(diffract, waves)
    assert amplitude.dtype == np.float32
    np.testing.assert_allclose((amplitude**2).sum((-2, -1)), (np.abs(waves) ** 2).sum((-2, -1)), rtol=1e-5)


@pytest.mark.parametrize("subpixel", [False, True])
def test_forward_model_equals_numpy(subpixel):
    rng, N, S = np.random.default_rng(1), 64, 96
    canvases = np.stack([make_object("random_field", S, seed=k, phase=True) for k in range(3)])
    probe, corners = defocused_probe(N), rng.integers(0, S - N + 1, (3, 4, 2))
    remainder = rng.uniform(-0.5, 0.5, (3, 4, 2)).astype(np.float32) if subpixel else None

    def forward(canvases):
        lit = shift_probe(probe, remainder) if subpixel else probe
        return diffraction_amplitude(extract_patches(canvases, corners, N), lit)

    expected = numpy_amplitude(canvases.astype(complex), probe.astype(complex), corners, remainder)
    predicted = ops.convert_to_numpy(jax.jit(forward)(canvases) if BACKEND == "jax" else tf.function(forward)(canvases))
    np.testing.assert_allclose(predicted, expected, atol=1e-5)

    rest = None if remainder is None else remainder.reshape(-1, 2)
    layout = Layout(N, corners.reshape(-1, 2), canvases.shape, rest, np.repeat(np.arange(3), 4))
    whole_scan = scan_amplitudes(canvases, probe, layout)
    np.testing.assert_allclose(predicted.reshape(whole_scan.shape), whole_scan, atol=1e-5)


def test_shifting_the_probe():
    probe, rng = defocused_probe(64), np.random.default_rng(2)
    remainder = rng.uniform(-0.5, 0.5, (5, 2)).astype(np.float32)
    shifted = compiled(lambda r: shift_probe(probe, r), remainder)
    np.testing.assert_allclose(shifted, shift_probes(probe, remainder), atol=1e-5)
    whole = compiled(lambda r: shift_probe(probe, r), np.float32([[3, -2]]))[0]
    np.testing.assert_allclose(whole, np.roll(probe, (3, -2), (0, 1)), atol=1e-5)


@pytest.mark.parametrize("nphotons", [1e2, 1e4, 1e9])
def test_symmetry_of_the_intensity_scale(nphotons):
    """Measured amplitude and illuminated object are scaled by the same s, and s is the data's own."""
    N, S = 64, 96
    probe, corners = defocused_probe(N), np.array([[[0, 0], [10, 20], [32, 32], [5, 30]]])
    specimen = np.exp(1j * np.angle(make_object("lines", S, seed=5, phase=True))).astype(np.complex64)[None]  # |O| = 1
    s = np.float32(2 * np.sqrt(nphotons) / N)
    waves = illuminate(extract_patches(specimen, corners, N), probe)
    predicted = compiled(diffract, ops.convert_to_numpy(waves))
    scaled_object = compiled(diffract, s * ops.convert_to_numpy(waves))
    np.testing.assert_allclose(scaled_object, s * predicted, rtol=1e-4, atol=1e-5 * max(s, 1))

    measured = numpy_amplitude(specimen, s * probe, corners)  # photons enter by the probe here: a third way round
    np.testing.assert_allclose(measured / s, predicted, atol=1e-5)
    np.testing.assert_allclose(intensity_scale(measured[0]), s, rtol=1e-4)

    def likelihood(log_s):  # counts against (s·x̂)²: the true s is where it does not change
        return poisson_nll(ops.square(ops.exp(log_s) * predicted), np.square(measured).astype(np.float32))

    slopes = [gradients(likelihood, np.float32(np.log(s) + shift))[0] for shift in (-0.2, 0.0, 0.2)]
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 1e-2 * slopes[2]


# Patches

@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_extraction_and_accumulation_are_adjoint(kind, fractional):
    rng, B, C, N, S = np.random.default_rng(3), 3, 4, 16, 40
    draw = random_complex if kind == "complex" else lambda rng, *shape: rng.normal(size=shape).astype(np.float32)
    canvases, patches = draw(rng, B, S, S), draw(rng, B, C, N, N)
    corners = rng.integers(-3, S - N + 4, (B, C, 2)).astype(np.int32)  # some hang over the rim
    if fractional:
        corners = (corners + rng.uniform(0, 1, corners.shape)).astype(np.float32)
    cut = compiled(lambda o, c: extract_patches(o, c, N), canvases, corners)
    added = compiled(lambda p, c: accumulate_patches(p, c, S), patches, corners)
    assert cut.dtype == canvases.dtype and added.dtype == patches.dtype
    there, back = np.vdot(patches, cut), np.vdot(added, canvases)
    assert abs(there - back) < 1e-5 * np.linalg.norm(cut) * np.linalg.norm(patches)


def test_extraction_reads_the_right_pixels_and_nothing_outside():
    rng = np.random.default_rng(4)
    canvases = rng.normal(size=(2, 24, 24)).astype(np.float32)
    corners = np.int32([[[0, 0], [8, 3]], [[-5, 2], [20, 20]]])
    patches = compiled(lambda o, c: extract_patches(o, c, 16), canvases, corners)
    np.testing.assert_array_equal(patches[0, 0], canvases[0, :16, :16])
    np.testing.assert_array_equal(patches[0, 1], canvases[0, 8:, 3:19])
    np.testing.assert_array_equal(patches[1, 0], np.pad(canvases[1, :11, 2:18], ((5, 0), (0, 0))))
    np.testing.assert_array_equal(patches[1, 1], np.pad(canvases[1, 20:, 20:], ((0, 12), (0, 12))))
    same = compiled(lambda o, c: extract_patches(o, c, 16), canvases, corners.astype(np.float32))
    np.testing.assert_array_equal(same, patches)


@pytest.mark.parametrize("C", [1, 4])
@pytest.mark.parametrize("B", [1, 2, 15, 16, 17, 64])
@pytest.mark.parametrize("fractional", [False, True])
def test_as_many_groups_come_out_as_go_in(B, C, fractional):
    """The classic fault: all groups of a batch merged on one canvas, for some batch sizes and without an error."""
    rng, N, S = np.random.default_rng(B), 16, 24
    patches, weights = random_complex(rng, B, C, N, N), rng.uniform(0.1, 1, (N, N)).astype(np.float32)
    corners = rng.integers(0, S - N + 1, (B, C, 2)).astype(np.int32)
    given = corners.astype(np.float32) if fractional else corners
    merged = compiled(lambda p, c: merge_patches(p, c, S, weights), patches, given)
    assert merged.shape == (B, S, S)
    for b in range(B):
        total, weight = np.zeros((S, S), complex), np.zeros((S, S))
        for patch, (y, x) in zip(patches[b], corners[b], strict=True):
            total[y : y + N, x : x + N] += weights * patch
            weight[y : y + N, x : x + N] += weights
        np.testing.assert_allclose(merged[b], total / np.where(weight > 0, weight, 1), atol=1e-5)
    again = compiled(lambda o, c: extract_patches(o, c, N), merged, corners)
    assert again.shape == (B, C, N, N)


def test_a_canvas_holds_offsets_of_400_px():
    offsets, N = np.array([[[400.0, -400.0], [-399.6, 0.0], [0.0, 399.5], [-400.0, 400.0]]]), 64
    S = canvas_size(offsets, N)
    assert S >= N + 2 * 400 and S % 8 == 0
    for corners in (np.floor(offsets + 0.5).astype(np.int32), offsets.astype(np.float32)):
        corners = corners + np.asarray(S // 2 - N // 2, corners.dtype)
        patches = np.random.default_rng(6).uniform(1, 2, (1, 4, N, N)).astype(np.float32)
        canvas = compiled(lambda p, c: accumulate_patches(p, c, S), patches, corners)
        np.testing.assert_allclose(canvas.sum(dtype=float), patches.sum(dtype=float), rtol=1e-5)
    with pytest.raises(InputError, match="finite"):
        canvas_size(np.array([[[np.nan, 0.0]]]), N)


def test_merging_what_was_cut_out_gives_it_back():
    rng, N, S = np.random.default_rng(7), 16, 32
    canvases, corners = rng.uniform(1, 2, (2, S, S)).astype(np.float32), rng.integers(0, S - N, (2, 4, 2))
    merged = compiled(lambda o, c: merge_patches(extract_patches(o, c, N), c, S), canvases, corners.astype(np.float32))
    lit = np.zeros(canvases.shape, bool)
    for b, c in np.ndindex(2, 4):
        y, x = corners[b, c]
        lit[b, y : y + N, x : x + N] = True
    np.testing.assert_allclose(merged, np.where(lit, canvases, 0), rtol=1e-5)


def test_between_pixels_a_plane_is_cut_out_exactly():
    rng, N, S = np.random.default_rng(7), 16, 32
    y, x = np.indices((S, S)).astype(np.float32)
    corners = rng.integers(0, S - N, (1, 4, 2)) + np.float32(0.3)
    patches = compiled(lambda o, c: extract_patches(o, c, N), (1 + 0.1 * y - 0.05 * x)[None],
                       corners.astype(np.float32))
    for patch, (top, left) in zip(patches[0], corners[0], strict=True):
        expected = 1 + 0.1 * (top + np.arange(N))[:, None] - 0.05 * (left + np.arange(N))
        np.testing.assert_allclose(patch, expected, rtol=1e-5)


def test_a_window_that_leaves_the_canvas_is_dark_outside():
    images = random_complex(np.random.default_rng(8), 2, 16, 16)
    moved = compiled(lambda o, c: extract_patches(o, c, 16), images, np.float32([[[-3, 2]], [[-0.5, 0]]]))[:, 0]
    np.testing.assert_allclose(moved[0, 3:, :-2], images[0, :-3, 2:], atol=1e-6)
    assert not moved[0, :3].any() and not moved[0, :, -2:].any()
    np.testing.assert_allclose(moved[1, 1:], (images[1, 1:] + images[1, :-1]) / 2, atol=1e-6)


def test_stitching_keeps_one_region_in_memory():
    N, corners = 128, np.random.default_rng(9).integers(0, 512 - 128, (400, 2))
    whole = make_object("random_field", 512, seed=1, phase=True)
    weights = np.abs(defocused_probe(N)) ** 2
    tracemalloc.start()
    stitched, coverage = stitch((whole[y : y + N, x : x + N] for y, x in corners), corners, weights, whole.shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * whole.nbytes, "400 regions together are 25 times the object"
    lit = coverage > 1e-6
    np.testing.assert_allclose(stitched[lit], whole[lit], atol=1e-4)
    one_by_one = stitch(whole[None, :N, :N], np.array([[7, 9]]), weights[None], whole.shape)[1]
    counted = np.where(weights < 1e-6 * weights.max(), 0, weights)  # the far tail of a probe counts as dark
    np.testing.assert_array_equal(one_by_one[7 : 7 + N, 9 : 9 + N], counted)
    with pytest.raises(InputError, match="columns 400 to 528"):
        stitch(whole[None, :N, :N], np.array([[0, 400]]), weights, whole.shape)


# Losses and gradients

def test_losses_equal_numpy():
    rng = np.random.default_rng(10)
    predicted, measured = rng.uniform(0, 3, (2, 4, 8, 8)).astype(np.float32)
    error = predicted - measured
    np.testing.assert_allclose(compiled(amplitude_mae, predicted, measured), np.abs(error).mean(), rtol=1e-5)
    first, second = random_complex(rng, 3, 8, 8), random_complex(rng, 3, 8, 8)
    np.testing.assert_allclose(compiled(realspace_mae, first, second), np.abs(first - second).mean(), rtol=1e-5)
    steps = np.abs(np.diff(first, axis=-1)).mean() + np.abs(np.diff(first, axis=-2)).mean()
    np.testing.assert_allclose(compiled(total_variation, first), steps, rtol=1e-5)


@pytest.mark.parametrize("mean_counts", [1e-3, 1e-1, 1.0, 1e3, 1e7])
def test_poisson_likelihood_keeps_its_digits_at_any_dose(mean_counts):
    rate = (mean_counts * np.random.default_rng(11).uniform(0, 2, (4, 64, 64))).astype(np.float32)
    amplitude = observe_poisson(rate, seed=0)
    loss = compiled(poisson_nll, rate, np.rint(amplitude**2))
    np.testing.assert_allclose(loss, poisson_deviance(np.sqrt(rate), amplitude), rtol=5e-3)


def test_poisson_likelihood_is_finite_where_nothing_is_expected_or_counted():
    nothing, counts = np.zeros((1, 8, 8), np.float32), np.float32([0, 0, 3, 1e7] * 16).reshape(1, 8, 8)
    for rate, counted in ((nothing, nothing), (nothing, counts), (counts, nothing), (counts, counts)):
        assert np.isfinite(compiled(poisson_nll, rate, counted))
        assert np.isfinite(gradients(lambda r, n=counted: poisson_nll(r, n), rate)[0]).all()
    counts = np.minimum(counts, 8)
    slope = gradients(lambda r: poisson_nll(r, counts), nothing)[0]
    assert (slope[counts > 0] < 0).all() and (slope[counts == 0] > 0).all(), "light where photons came, dark elsewhere"


def test_the_gradient_is_finite_where_patterns_are_dark():
    probe, dark = defocused_probe(64), np.zeros((2, 3, 64, 64), np.float32)
    slope = gradients(lambda parts: ops.sum(diffraction_amplitude(as_complex(parts[0], parts[1]), probe)), dark)[0]
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("loss", ["poisson", "mae"])
@pytest.mark.parametrize("with_respect_to", ["object", "probe", "log_scale"])
def test_gradients_equal_finite_differences(loss, with_respect_to):
    """The compiled float32 gradient against central differences of the NumPy model in double precision."""
    rng, B, C, N, S = np.random.default_rng(12), 2, 4, 16, 24
    corners, remainder = rng.integers(0, S - N + 1, (B, C, 2)), rng.uniform(-0.5, 0.5, (B, C, 2)).astype(np.float32)
    specimen = 1 + 0.3 * random_complex(rng, B, S, S)
    probe = defocused_probe(64)[24:40, 24:40]
    start = {"object": np.stack([specimen.real, specimen.imag]), "probe": np.stack([probe.real, probe.imag]),
             "log_scale": np.float32(np.log(20.0))}
    truth = 1 + 0.3 * random_complex(rng, B, S, S)
    measured = observe_poisson((20 * numpy_amplitude(truth, probe, corners, remainder)) ** 2, seed=0)
    counts = np.rint(measured**2)

    def value(object, probe, log_scale):
        patches = extract_patches(as_complex(object[0], object[1]), corners, N)
        predicted = diffraction_amplitude(patches, shift_probe(as_complex(probe[0], probe[1]), remainder))
        if loss == "mae":
            return amplitude_mae(ops.exp(log_scale) * predicted, measured)
        return poisson_nll(ops.square(ops.exp(log_scale) * predicted), counts)

    def numpy_value(object, probe, log_scale):
        fields = object[0] + 1j * object[1], probe[0] + 1j * probe[1]
        predicted = np.exp(log_scale) * numpy_amplitude(*fields, corners, remainder)
        if loss == "mae":
            return np.abs(predicted - measured).mean()
        rate, n = predicted**2 + 1e-4 * counts.mean(dtype=float), counts.astype(float)
        return np.mean(rate - n - n * np.log(rate / np.where(n > 0, n, 1)) * (n > 0))

    np.testing.assert_allclose(float(value(**start)), numpy_value(**start), rtol=1e-4)
    index = list(start).index(with_respect_to)
    gradient = gradients(value, *start.values())[index]
    direction, step = rng.normal(size=np.shape(start[with_respect_to])), 1e-6

    def moved(by):
        return numpy_value(**{**start, with_respect_to: start[with_respect_to].astype(float) + by * direction})

    finite = (moved(step) - moved(-step)) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient * direction), finite, rtol=2e-3)
