"""Seconds and peak memory against the number and the size of patterns, each in a process of its own.

Run by `bench.py`; `python benchmarks/scaling.py PATTERNS N` measures one size and prints one line of JSON.
"""
import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from table import Table, measured

from ptycho_nb.config import SimulationConfig
from ptycho_nb.data.simulation import generate_simulated_data
from ptycho_nb.files import replacing
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import make_probe
from ptycho_nb.physics.scans import make_positions
from ptycho_nb.solvers.estimate import estimate

ITERATIONS = 3
PATTERNS_PER_AREA = 0.0186 * 64**2  # patterns on an area of N²: 2000 on a 392 px object at N = 64, at every size


def run(n_patterns: int, N: int) -> dict:
    """One estimate of a simulated scan of constant density; nothing that is compared later is computed here."""
    side = int(np.sqrt(n_patterns / PATTERNS_PER_AREA) * N)
    config = SimulationConfig(N=N, nphotons=1e4, object_size_px=side + N + 2, n_train=1, n_test=n_patterns)
    sample, probe = make_object("random_field", config.object_size_px), make_probe("disk", N)
    positions = make_positions("random", n_patterns, (N / 2, N / 2 + side, N / 2, N / 2 + side))
    scan, simulated, _ = measured(lambda: generate_simulated_data(config, sample, probe, positions))
    before = peak_mb()
    result = estimate(scan, iterations=ITERATIONS, patience=ITERATIONS)
    return {"seconds": result.seconds, "cpu_seconds": result.cpu_seconds, "simulated_seconds": simulated,
            "data_mb": scan.diff3d.nbytes / 2**20, "peak_mb_before": before, "peak_mb": peak_mb(),
            "canvas_px": max(result.object.shape)}


def peak_mb() -> float:
    """The most memory this process has held, MB of 2**20 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux a child inherits its parent's ru_maxrss, but not VmHWM
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(table: Table, quick: bool, out: Path) -> None:
    """The scaling rows, and their plot."""
    counts, sizes = ((300, 1000), (64, 128, 256)) if quick else ((1000, 10_000, 100_000), (64, 128, 256))
    rows = {}
    for n_patterns, N in [(count, 64) for count in counts] + [(counts[0], N) for N in sizes[1:]]:
        command = [sys.executable, str(Path(__file__).resolve()), str(n_patterns), str(N)]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        rows[n_patterns, N] = row
        table.add("scaling", f"{n_patterns} patterns of {N}²", f"estimate, {ITERATIONS} iterations", row["seconds"],
                  row["cpu_seconds"], rate=n_patterns * ITERATIONS / row["seconds"], unit="pattern steps/s",
                  peak_mb=row["peak_mb"], note=f"{row['data_mb']:.0f} MB of patterns, simulated in "
                  f"{row['simulated_seconds']:.1f} s with a peak of {row['peak_mb_before']:.0f} MB")
    plot(rows, counts, sizes, out / "scaling.png")


def plot(rows: dict, counts: tuple[int, ...], sizes: tuple[int, ...], path: Path) -> None:
    """Seconds and memory against the number of patterns, seconds against their size, with the slopes of linear cost."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    by_count, by_size = [rows[count, 64] for count in counts], [rows[counts[0], N] for N in sizes]
    seconds = [[row["seconds"] for row in part] for part in (by_count, by_size)]
    axes[0].loglog(counts, seconds[0], "o-", label="measured")
    axes[0].loglog(counts, seconds[0][0] * np.array(counts) / counts[0], ":", label="proportional")
    axes[0].set(xlabel="patterns of 64²", ylabel=f"seconds ({ITERATIONS} iterations)")
    axes[1].loglog(counts, [row["peak_mb"] for row in by_count], "o-", label="peak of the process")
    axes[1].loglog(counts, [row["data_mb"] for row in by_count], ":", label="the patterns alone")
    axes[1].set(xlabel="patterns of 64²", ylabel="memory (MB)")
    pixels = np.array(sizes, float) ** 2
    axes[2].loglog(sizes, seconds[1], "o-", label="measured")
    axes[2].loglog(sizes, seconds[1][0] * pixels * np.log(pixels) / (pixels[0] * np.log(pixels[0])), ":",
                   label="as N² log N")
    axes[2].set(xlabel="side N of a pattern (px)", ylabel=f"seconds ({counts[0]} patterns)", xticks=sizes,
                xticklabels=[str(N) for N in sizes])
    axes[2].minorticks_off()
    for axis in axes:
        axis.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_patterns", type=int)
    parser.add_argument("N", type=int)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.n_patterns, arguments.N)))
