"""The measured star: does the joint estimate agree with a converged LSQML, and how soon?

`python benchmarks/star.py FILE`, and a part of `bench.py`. There is no truth: the phases are compared where at least a
tenth of the brightest light fell, after the gauge fix (scale, phase, plane, shift).
"""
import argparse
import time
from pathlib import Path

import numpy as np
from table import Table

from ptycho_nb.analysis.metrics import data_fit, relative_phase
from ptycho_nb.data.formats import load_data
from ptycho_nb.physics.scans import validation_indices
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.gauge import align
from ptycho_nb.solvers.held_out import hold_out
from ptycho_nb.solvers.lsqml import lsqml_epochs, ptychi_installed
from ptycho_nb.solvers.result import Reconstruction, covered_region


def phase_agreement(one: Reconstruction, reference: Reconstruction) -> float:
    """Pearson correlation of two phases on the region that both cover."""
    region = covered_region(reference)
    one, reference = one.crop_to(region), reference.crop_to(region)
    lit = np.minimum(one.coverage / one.coverage.max(), reference.coverage / reference.coverage.max()) > 0.1
    aligned, _ = align(one.object, reference.object, lit)
    return float(np.corrcoef(*(phase[lit] for phase in relative_phase(aligned, reference.object)))[0, 1])


def measure(table: Table, quick: bool, path: Path) -> None:
    """The rows of the star."""
    scan = load_data(path)
    if quick:
        scan = scan.subset(np.arange(0, scan.n_patterns, 6))
    case = f"{scan.n_patterns} patterns of {scan.N}²"
    validation = validation_indices(scan.n_patterns, seed=0)
    held = hold_out(scan, validation)

    def add(method: str, result: Reconstruction, reference: Reconstruction, note: str = "") -> None:
        fit = data_fit(result, scan, validation)
        table.add("star", case, method, result.seconds, result.cpu_seconds, note=note,
                  pearson=phase_agreement(result, reference),
                  relative_squared_error=fit["relative_squared_error"])

    ours = estimate(scan, "joint", held=held)
    if not ptychi_installed():
        add("estimate, with the probe", ours, ours, "pty-chi is not installed: compared with itself")
        return
    epochs = (1, 2) if quick else (10, 20, 50)
    course = lsqml_epochs(scan, epochs[-1], "gaussian", held=held)
    course = [result for result in course if result.info["epochs"] in epochs]
    converged = course[-1]
    for result in course:
        add(f"LSQML gaussian, {result.info['epochs']} epochs", result, converged)
    add("estimate, with the probe", ours, converged, f"{len(ours.info['history'])} iterations")
    if not quick:
        add("estimate, the model chosen by unseen counts", estimate(scan, held=held), converged)
    for iterations in (2,) if quick else (5, 10, 20):
        some = estimate(scan, "joint", held=held, iterations=iterations)
        add(f"estimate, {iterations} iterations", some, converged,
            f"{some.seconds / converged.seconds:.3f} of LSQML's seconds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the measured scan, tike's or this library's NPZ")
    parser.add_argument("--quick", action="store_true", help="a few patterns and epochs: does it work?")
    arguments, began = parser.parse_args(), time.perf_counter()
    measure(Table(), arguments.quick, arguments.file)
    print(f"{time.perf_counter() - began:.0f} seconds")
