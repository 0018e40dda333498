"""How fast is each part? `python benchmarks/speed.py [--out FOLDER]` (some minutes; let nothing else run beside it).

Prints one table, and writes it as Markdown and JSON with the machine and the versions. Seconds are by the clock, CPU
seconds of all cores together; each is the best of three. Shared machines are noisy: compare rates within one run, for
instance with the matrix product of the first row.
"""
import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
from keras import ops

from ptycho_nb.config import ModelConfig, SimulationConfig, TrainingConfig
from ptycho_nb.estimate import estimate, scan_gradient
from ptycho_nb.files import replacing, write_json
from ptycho_nb.group_estimates import EstimateSettings, GroupEstimates
from ptycho_nb.grouping import group_data, group_indices
from ptycho_nb.inference import reconstruct
from ptycho_nb.model import PtychoModel
from ptycho_nb.optics import as_complex, diffraction_amplitude
from ptycho_nb.patches import extract_patches, stitch
from ptycho_nb.photons import intensity_scale, split_positions
from ptycho_nb.simulate import simulate_halves


class Table:
    """Rows of measurements, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def measure(self, what: str, amount: float, unit: str, work: Callable[[], object], times: int = 3) -> float:
        """Time `work`, which does `amount` of `unit`, after one unmeasured call; the rate of the fastest."""
        work()
        spent = []
        for _ in range(times):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            spent.append((time.perf_counter() - wall, time.process_time() - cpu))
        seconds, cpu_seconds = min(spent)
        self.rows.append({"what": what, "rate": amount / seconds, "unit": f"{unit}/s", "seconds": seconds,
                          "cpu_seconds": cpu_seconds})
        rate = f"{amount / seconds:10.4g} {unit + '/s':12s}"
        print(f"{what:58s} {rate} {seconds:8.3f} s {cpu_seconds:8.3f} CPU s", flush=True)
        return amount / seconds

    def markdown(self) -> str:
        lines = ["| what | rate | seconds | CPU seconds |", "| --- | --- | --- | --- |"]
        return "\n".join(lines + [f"| {row['what']} | {row['rate']:.4g} {row['unit']} | {row['seconds']:.3f} | "
                                  f"{row['cpu_seconds']:.3f} |" for row in self.rows]) + "\n"


def gradient_by_backend(scan, patterns: np.ndarray) -> Callable[[], object]:
    """The gradient of the squared amplitude error of some patterns with respect to the object, by TensorFlow."""
    import tensorflow as tf

    _, corners, _, shape = split_positions(scan.positions_px, scan.N)
    side = max(shape)
    probe = (scan.probe * intensity_scale(scan.diff3d)).astype(np.complex64)
    measured = ops.convert_to_tensor(scan.diff3d[patterns][None])
    places = ops.convert_to_tensor(corners[patterns][None].astype(np.int32))
    parts = tf.Variable(np.stack([np.ones((1, side, side)), np.zeros((1, side, side))], axis=-1).astype(np.float32))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            patches = extract_patches(as_complex(parts[..., 0], parts[..., 1]), places, scan.N)
            error = ops.sum(ops.square(diffraction_amplitude(patches, probe) - measured))
        return tape.gradient(error, parts)

    return lambda: gradient().numpy()


def gradient_by_numpy(scan, patterns: np.ndarray) -> Callable[[], object]:
    """The same by the solver's own NumPy code, on one thread."""
    _, corners, _, shape = split_positions(scan.positions_px, scan.N)
    probe = (scan.probe * intensity_scale(scan.diff3d)).astype(np.complex64)
    blank, canvas = np.ones((1, *shape), np.complex64), np.zeros(len(corners), int)
    return lambda: scan_gradient(blank, probe, scan.diff3d, patterns, canvas, corners, likelihood="amplitude")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/benchmarks", help="folder for speed.md and speed.json")
    out = Path(parser.parse_args().out)
    table, rng = Table(), np.random.default_rng(0)

    matrix = rng.normal(size=(2048, 2048)).astype(np.float32)
    table.measure("float32 matrix product 2048³", 2 * 2048**3 / 1e9, "GFLOP", lambda: matrix @ matrix)
    importing = [sys.executable, "-c", "import ptycho_nb"]
    table.measure("import ptycho_nb, a fresh process", 1, "import", lambda: subprocess.run(importing, check=True))

    config = SimulationConfig(nphotons=1e4, n_train=1000, n_test=1000)
    table.measure("simulate 64² patterns", 2000, "patterns", lambda: simulate_halves(config))
    positions = rng.uniform(0, 2000, (10_000, 2))
    table.measure("group 10 000 patterns by four", 10_000, "patterns", lambda: group_indices(positions, 4))
    _, scan = simulate_halves(SimulationConfig(n_train=16, n_test=1000))

    table.measure("estimate of a scan, 10 steps and validation", 10_000, "patterns",
                  lambda: estimate(scan, iterations=10, patience=10))
    some = np.arange(500)
    ours = table.measure("gradient of a scan: NumPy, one thread", 500, "patterns", gradient_by_numpy(scan, some))
    theirs = table.measure("gradient of a scan: the differentiable optics, all threads", 500, "patterns",
                           gradient_by_backend(scan, some))
    regions = np.ones((1000, 64, 64), np.complex64)
    corners = rng.integers(0, 300, (1000, 2))
    table.measure("stitch 64² regions", 1000, "regions",
                  lambda: stitch(regions, corners, np.ones((64, 64), np.float32), (364, 364)))

    for generator in ("residual_unet", "cnn"):
        model_config = ModelConfig(generator=generator)
        container = group_data(scan, model_config, targets="held_out", n_groups=64)
        settings = EstimateSettings(8, 0.0)
        extra = GroupEstimates(container, settings)
        batch = container.batch(np.arange(16)) | extra(np.arange(16))
        for precision in ("float32", "bfloat16"):
            model = PtychoModel(model_config, container.probe, container.intensity_scale, container.canvas_px,
                                training=TrainingConfig(), settings=settings, subpixel=container.subpixel,
                                precision=precision)
            model.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=model.jit_compile)
            table.measure(f"train {generator}, gridsize 2, {precision}", 16, "groups",
                          lambda model=model, batch=batch: model.train_on_batch(batch))
        table.measure(f"reconstruct with {generator}, raw patterns to object", 1000, "patterns",
                      lambda model=model: reconstruct(model, scan), times=1)

    about = {"machine": platform.machine(), "processor": platform.processor(), "cores": len(os.sched_getaffinity(0)),
             "backend": keras.backend.backend(), "python": platform.python_version(),
             "versions": {name: version(name) for name in ("ptycho_nb", "numpy", "scipy", "keras", "tensorflow")},
             "numpy_against_optics_per_pattern": ours / theirs}
    print(f"\ngradient of a scan: NumPy on one thread is {ours / theirs:.2f} times as fast as the optics on all")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "speed.json", {"about": about, "rows": table.rows})
    with replacing(out / "speed.md") as temporary:
        temporary.write_text(table.markdown(), encoding="utf-8")
    print(f"written to {out}/speed.md and {out}/speed.json")


if __name__ == "__main__":
    main()
