"""The speed rows: how fast each part is, beside the matrix products and the memory of the same run. Run by `bench.py`.

The last column compares a rate with the one that the part's arithmetic and its memory traffic allow: the time that its
floating-point operations would take at the speed of the matrix product of the same precision, or the bytes that it
cannot avoid at the speed of a copy, whichever is longer. What NumPy does is compared with NumPy's matrix product, what
the network's framework does with the framework's, which may run on an accelerator. Transforms count 5 n log2 n,
convolutions 2 for each multiply-add, a training step three forward passes. An accelerator, which batches of 16 leave
idle, also gets batches of 256.
"""
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops
from scaling import peak_mb
from table import Table, measured

from ptycho_nb.config import ModelConfig, SimulationConfig, TrainingConfig
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.network.bundle import load_bundle, save_bundle
from ptycho_nb.network.groups import group_data
from ptycho_nb.network.inference import reconstruct
from ptycho_nb.network.inputs import EstimateSettings, GroupEstimates, estimate_features, group_layout, window_px
from ptycho_nb.network.model import PtychoModel
from ptycho_nb.network.optics import as_complex, diffraction_amplitude
from ptycho_nb.network.patches import extract_patches, stitch
from ptycho_nb.network.pretrained import amortised, load_pretrained
from ptycho_nb.physics.forward import Layout
from ptycho_nb.physics.neighbours import group_indices
from ptycho_nb.physics.noise import intensity_scale
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.held_out import hold_out
from ptycho_nb.solvers.likelihood import scan_gradient

N = 64
TRANSFORM = 5 * N**2 * np.log2(N**2)  # floating-point operations of one FFT2
STEP = 2 * TRANSFORM + 40 * N**2, 28 * N**2  # of one pattern in one step of the solver: operations, bytes


class Clock:
    """Adds a row with the rate of the fastest call, of three or a second's, and compares it with what is possible."""

    def __init__(self, table: Table, quick: bool) -> None:
        self.table, self.times, self.patience_s = table, 1 if quick else 3, 0.0 if quick else 1.0
        self.flops = {}  # by precision, and of NumPy; operations per second
        self.bytes_per_second = np.inf

    def possible(self, operations: float = 0.0, bytes: float = 0.0, precision: str = "NumPy") -> float:
        """The least seconds that so much arithmetic and traffic can take here."""
        return max(operations / self.flops[precision], bytes / self.bytes_per_second)

    def measure(self, method: str, amount: float, unit: str, work: Callable[[], object], possible: float | None = None,
                case: str = "64²", note: str | None = None) -> float:
        """Time `work`, which does `amount` of `unit`, after one call that does not count; the rate."""
        work()
        spent, end = [], time.perf_counter() + self.patience_s
        while len(spent) < self.times or time.perf_counter() < end:
            spent.append(measured(work)[1:])
        seconds, cpu_seconds = min(spent)
        fraction = None if possible is None else possible / seconds
        self.table.add("speed", case, method, seconds, cpu_seconds, rate=amount / seconds, unit=f"{unit}/s",
                       fraction=fraction, note=note)
        return amount / seconds


def has_accelerator() -> bool:
    """Whether the framework's arrays live on something else than the processor."""
    return keras.distribution.list_devices()[0].partition(":")[0] != "cpu"


def measure_machine(clock: Clock) -> None:
    """Matrix products and a copy: what everything else is compared with."""
    side = 2048
    matrix = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    rate = clock.measure(f"NumPy's float32 matrix product {side}³", 2 * side**3 / 1e9, "GFLOP", case="machine",
                         work=lambda: matrix @ matrix)
    clock.flops["NumPy"] = 1e9 * rate
    times, copies = (32, 4) if has_accelerator() else (1, 1)  # enough work to hide what a call costs
    base = np.tile(matrix, (copies, copies)) / (copies * side**0.5)  # its powers neither grow nor vanish
    for precision in ("float32", "bfloat16"):
        operand = ops.convert_to_tensor(base, precision)

        def multiply(operand=operand) -> float:
            product = operand
            for _ in range(times):
                product = ops.matmul(product, operand)
            return float(ops.cast(product[0, 0], "float32"))

        rate = clock.measure(f"{precision} matrix product {operand.shape[0]}³", times * 2 * operand.shape[0]**3 / 1e9,
                             "GFLOP", work=multiply, case="machine")
        clock.flops[precision] = 1e9 * rate
    source = np.ones(2**25, np.float32)
    target = np.empty_like(source)
    rate = clock.measure("copy of 128 MB, read and written", 2 * source.nbytes / 1e9, "GB", case="machine",
                         work=lambda: np.copyto(target, source))
    clock.bytes_per_second = 1e9 * rate
    importing = [sys.executable, "-c", "import ptycho_nb"]
    clock.measure("import ptycho_nb, a fresh process", 1, "import", lambda: subprocess.run(importing, check=True),
                  case="machine")


def gradient_by_backend(scan, patterns: np.ndarray) -> Callable[[], object]:
    """The gradient of the squared amplitude error of some patterns with respect to the object, by TensorFlow."""
    import tensorflow as tf

    layout = Layout.around(scan.positions_px, scan.N)
    side = max(layout.shape)
    probe = (scan.probe * intensity_scale(scan.diff3d)).astype(np.complex64)
    measured_amplitude = ops.convert_to_tensor(scan.diff3d[patterns][None])
    places = ops.convert_to_tensor(layout.corners_px[patterns][None].astype(np.int32))
    parts = tf.Variable(np.stack([np.ones((1, side, side)), np.zeros((1, side, side))], axis=-1).astype(np.float32))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            patches = extract_patches(as_complex(parts[..., 0], parts[..., 1]), places, scan.N)
            error = ops.sum(ops.square(diffraction_amplitude(patches, probe) - measured_amplitude))
        return tape.gradient(error, parts)

    return lambda: gradient().numpy()


def gradient_by_solver(scan, patterns: np.ndarray) -> Callable[[], object]:
    """The same by the solver, on one thread."""
    layout = Layout.around(scan.positions_px, scan.N)
    probe = (scan.probe * intensity_scale(scan.diff3d)).astype(np.complex64)
    blank = np.ones(layout.shape, np.complex64)
    return lambda: scan_gradient(blank, probe, scan.diff3d, layout, patterns, "amplitude")


def measure_solvers(clock: Clock, scan, quick: bool) -> None:
    """Everything that needs no network."""
    n, rng = scan.n_patterns, np.random.default_rng(0)
    config = SimulationConfig(nphotons=1e4, n_train=n // 2, n_test=n - n // 2)
    clock.measure("simulate", n, "patterns", lambda: simulate_halves(config),
                  clock.possible(n * TRANSFORM, n * 12 * N**2), note="Poisson draws count as nothing")
    positions = rng.uniform(0, 2000, (10_000, 2))
    clock.measure("group by four", 10_000, "patterns", lambda: group_indices(positions, 4))
    steps = 10
    bound = clock.possible(n * steps * STEP[0], n * steps * STEP[1])
    clock.measure(f"estimate, {steps} steps, no validation", n * steps, "pattern steps",
                  lambda: estimate(scan, iterations=steps, held=hold_out(scan, np.array([], int))), bound)
    clock.measure(f"estimate, {steps} steps, validated and smoothed", n * steps, "pattern steps",
                  lambda: estimate(scan, iterations=steps, patience=steps), bound)
    clock.measure("estimate, from patterns to object", n, "patterns", lambda: estimate(scan),
                  note="stopped and smoothed by validation patterns")
    start = estimate(scan, iterations=5)
    clock.measure(f"refine, {steps} steps, validated and smoothed", n * steps, "pattern steps",
                  lambda: estimate(scan, iterations=steps, patience=steps, start=start), bound)
    clock.measure(f"estimate with the probe, {steps} epochs", n * steps, "pattern steps",
                  lambda: estimate(scan, iterations=steps, patience=steps, refine_probe=True), bound)
    regions, corners = np.ones((n, N, N), np.complex64), rng.integers(0, 300, (n, 2))
    clock.measure("stitch", n, "patterns", lambda: stitch(regions, corners, np.ones((N, N), np.float32), (364, 364)),
                  clock.possible(bytes=n * N**2 * (8 + 16 + 8)))
    if keras.backend.backend() == "tensorflow":
        some = np.arange(n // 2)
        bound = clock.possible(len(some) * STEP[0], len(some) * STEP[1])
        ours = clock.measure("gradient of a scan: the solver, one thread", len(some), "patterns",
                             gradient_by_solver(scan, some), bound)
        theirs = clock.measure("gradient of a scan: the differentiable optics, all threads", len(some), "patterns",
                               gradient_by_backend(scan, some), bound)
        clock.table.rows[-1]["note"] = f"the solver on one thread is {ours / theirs:.2f} times as fast"


def convolution_operations(network: keras.Model, inputs: np.ndarray) -> float:
    """Floating-point operations of the convolutions of one forward pass of a batch."""
    kinds = keras.layers.Conv2D, keras.layers.Conv2DTranspose
    layers = [layer for layer in network.layers if isinstance(layer, kinds)]
    outputs = keras.Model(network.inputs, [layer.output for layer in layers])([inputs])
    total = 0.0
    for layer, output in zip(layers, outputs, strict=True):
        pixels = np.prod(output.shape[:3])
        if isinstance(layer, keras.layers.Conv2DTranspose):
            pixels /= np.prod(layer.strides)
        total += 2.0 * float(pixels) * np.prod(layer.kernel.shape)
    return total


def measure_network(clock: Clock, scan, config: ModelConfig, precisions: tuple[str, ...]) -> None:
    """Training and inference of one generator."""
    sizes = (16, 256) if has_accelerator() else (16,)
    container = group_data(scan, config, targets="held_out", n_groups=256)
    lit_px = window_px(container, container.inputs)
    settings, batches = EstimateSettings(8, 0.0), {}
    for size in sizes:
        rows = np.arange(size)
        batches[size] = container.batch(rows)
        if config.generator == "residual_unet":
            batches[size] |= GroupEstimates(container, settings)(rows)
    if config.generator == "residual_unet":
        layout, amount = group_layout(container, np.arange(16), container.inputs[:16]), 16 * 4 * 8
        clock.measure("estimates of groups of four, 8 steps", amount, "pattern steps",
                      lambda: estimate_features(container, layout, settings),
                      clock.possible(amount * STEP[0], amount * STEP[1]))
    for precision in precisions:
        model = PtychoModel(config, container.probe, container.intensity_scale, container.canvas_px,
                            training=TrainingConfig(), settings=settings, subpixel=container.subpixel,
                            precision=precision, window_px=int(lit_px.max()))
        model.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=model.jit_compile)
        name = f"{config.generator}, gridsize {config.gridsize}, {precision}"
        if config.generator == "residual_unet":
            margin = (container.canvas_px - model.window_px) // 2
            middle = slice(margin, container.canvas_px - margin)
            operations = convolution_operations(model.object_network, batches[16]["estimate"][:, middle, middle]) / 16
        else:
            operations = convolution_operations(model.object_network.generator, batches[16]["amplitude"]) / 16
        for size, batch in batches.items():
            clock.measure(f"train {name}" + f", batches of {size}" * (len(sizes) > 1), size, "groups",
                          lambda model=model, batch=batch: model.train_on_batch(batch),
                          clock.possible(3 * operations * size, precision=precision),
                          note=f"{3 * operations / 1e9:.2f} GFLOP a group")
        with tempfile.TemporaryDirectory() as folder:  # as a user has it: from a bundle
            save_bundle(Path(folder) / "wts.h5.zip", model)
            loaded = load_bundle(Path(folder) / "wts.h5.zip")
        groups = reconstruct(scan, loaded).info["groups"]
        bound = clock.possible(operations * groups, precision=precision)
        if config.generator == "residual_unet":  # windows as narrow as a group's light, solved while the network works
            steps = groups * 4 * settings.iterations
            solved = clock.possible(steps * STEP[0], steps * STEP[1])
            bound = max(bound * np.mean(lit_px**2) / lit_px.max() ** 2, solved)
        clock.measure(f"reconstruct with {name}", scan.n_patterns, "patterns",
                      lambda loaded=loaded: reconstruct(scan, loaded), bound,
                      note=f"raw patterns to stitched object, {groups} groups")


def measure(table: Table, quick: bool) -> None:
    """All speed rows."""
    clock = Clock(table, quick)
    measure_machine(clock)
    _, scan = simulate_halves(SimulationConfig(nphotons=1e4, n_train=1, n_test=200 if quick else 1000))
    measure_solvers(clock, scan, quick)
    precisions = ("bfloat16",) if quick else ("float32", "bfloat16")
    for generator in ("residual_unet", "cnn"):
        measure_network(clock, scan, ModelConfig(generator=generator), precisions)
    pretrained = load_pretrained()
    for splits, orientations in ((1, 1), (1, 8), (4, 8)):
        clock.measure(f"amortised, splits={splits}, orientations={orientations}", scan.n_patterns, "patterns",
                      lambda splits=splits, orientations=orientations: amortised(
                          scan, pretrained, splits=splits, orientations=orientations),
                      note="raw patterns to object, with the choice of the estimate's steps and smoothing")
    table.add("speed", "machine", "peak memory of this process so far", 0.0, 0.0, peak_mb=peak_mb())
