"""A scan that is larger than the memory it may use, reconstructed from disk: peak memory and seconds.

    python benchmarks/large_scan.py                    # 8 GB of counts, at most 4 GiB of memory, model "fixed"
    python benchmarks/large_scan.py --gigabytes 0.05 --side 128 --limit-gib 0      # a small one, without a limit

The file (HDF5, counts in 32 bits, one pattern after the other) is simulated first, a few at a time, and removed in the
end. The reconstruction runs in a process of its own, whose data segment the system limits (RLIMIT_DATA: heap and
private maps); its peak resident memory (VmHWM: libraries and pages of files too) is read at the end.
Prints JSON.
"""
import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
from skimage.metrics import structural_similarity

import ptycho_nb as pt
from ptycho_nb.physics.forward import Layout, scan_amplitudes
from ptycho_nb.physics.noise import observe_poisson
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import defocused_probe
from ptycho_nb.solvers.gauge import align
from ptycho_nb.solvers.result import load_reconstructions, save_reconstructions

KEYS = {name: name for name in ("data", "x", "y", "probe")}
SCORED_PX = 512  # side of the square in the middle that is compared with the truth


def positions_of(gigabytes: float, N: int) -> np.ndarray:
    """A square raster with a jitter, as many patterns as make the file so large; steps of a sixteenth of a pattern."""
    across = math.isqrt(int(gigabytes * 1e9 / (4 * N**2)))
    raster = np.stack(np.mgrid[:across, :across], axis=-1).reshape(-1, 2) * (N / 16)
    return N / 2 + 4 + raster + np.random.default_rng(0).uniform(-2, 2, raster.shape)


def write_scan(path: Path, gigabytes: float, N: int, nphotons: float) -> np.ndarray:
    """Simulate the file; the true object comes back."""
    positions_px = positions_of(gigabytes, N)
    truth = make_object("random_field", int(positions_px.max()) + N // 2 + 6, seed=1, phase=True)
    layout, probe = Layout.on_canvas(positions_px, N, truth.shape), defocused_probe(N)
    lit = probe * np.float32(np.sqrt(nphotons / np.sum(np.abs(probe) ** 2)))
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (len(layout), N, N), np.uint32)
        file.update({"y": positions_px[:, 0], "x": positions_px[:, 1], "probe": probe})
        for first in range(0, len(layout), 32):
            some = slice(first, min(first + 32, len(layout)))
            rate = np.square(scan_amplitudes(truth, lit, layout[some]))
            data[some] = np.rint(np.square(observe_poisson(rate, rng)))
    return truth


def peak_bytes(name: str = "VmHWM") -> int:
    """The peak resident memory of this process, with all that it shares."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def reconstruct(path: Path, model: str, iterations: int, limit_gib: float) -> dict:
    """Load the scan and reconstruct it, under the limit."""
    if limit_gib:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gib * 2**30),) * 2)
    costs, before = {"imports_bytes": peak_bytes()}, time.process_time()
    wall = time.perf_counter()
    scan = pt.load_data(path, keys=KEYS, unit="px", on_disk=True)
    costs |= {"load_seconds": time.perf_counter() - wall, "load_cpu_seconds": time.process_time() - before,
              "loaded_bytes": peak_bytes()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = pt.estimate(scan, model, iterations=iterations)
    save_reconstructions(path.with_suffix(".npz"), no_network=result)
    return costs | {"seconds": result.seconds, "cpu_seconds": result.cpu_seconds, "peak_bytes": peak_bytes(),
                    "iterations": len(result.info["history"]), "chosen": result.info["chosen"],
                    "goodness": result.info.get("goodness")}


def ssim(path: Path, truth: np.ndarray) -> float:
    """Of the amplitude in the middle, after the gauge is fixed."""
    result = next(iter(load_reconstructions(path).values()))
    corner = (np.array(truth.shape) - SCORED_PX) // 2
    window = tuple(slice(low, low + SCORED_PX) for low in np.maximum(corner, 0))
    placed = np.ones(truth.shape, np.complex64)
    y, x = result.origin_px
    height, width = result.object.shape
    placed[y : y + height, x : x + width] = result.object
    aligned, _ = align(placed[window], truth[window])
    exact = np.abs(truth[window])
    scaled = np.abs(aligned) * exact.mean() / np.abs(aligned).mean()
    return float(structural_similarity(exact, scaled, data_range=float(np.ptp(exact))))


def main(words: list[str] | None = None) -> dict:
    """Make the file, reconstruct it in a process of its own, compare it with the truth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of counts in the file")
    parser.add_argument("--side", type=int, default=256, help="of a pattern, px")
    parser.add_argument("--nphotons", type=float, default=1e6, help="in a pattern where the sample is clear")
    parser.add_argument("--model", default="fixed", choices=("fixed", "joint", "auto"))
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--limit-gib", type=float, default=4.0, help="of the data segment; 0: none")
    parser.add_argument("--folder", type=Path, help="where the file lies meanwhile; default: a temporary one")
    parser.add_argument("--reconstruct", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.reconstruct:
        return reconstruct(asked.reconstruct, asked.model, asked.iterations, asked.limit_gib)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        path, began = Path(folder) / "scan.h5", time.perf_counter()
        truth = write_scan(path, asked.gigabytes, asked.side, asked.nphotons)
        record = {"file_bytes": path.stat().st_size, "simulation_seconds": time.perf_counter() - began,
                  "object_px": list(truth.shape), "model": asked.model, "limit_gib": asked.limit_gib}
        options = {"reconstruct": path, "model": asked.model, "iterations": asked.iterations,
                   "limit-gib": asked.limit_gib}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        run = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE)
        return record | json.loads(run.stdout) | {"ssim": ssim(path.with_suffix(".npz"), truth)}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
