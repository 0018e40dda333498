"""What `estimate` makes of measured scans with a fault: `python benchmarks/measured.py [--quick] [--only NAME ...]`

Scans are simulated and then spoiled (`faults.py`), at two strengths, written to a file and read again; nothing says
that they are simulated. Each row has the SSIM of the amplitude against the truth, which only scores: of one fit of
object and probe (`model="joint"`), of the ladder (`model="auto"`), and of one fit (the better of `"fixed"` and
`"joint"`) with the fault known, where that can be said; then the goodness of the ladder's result and what it says of
itself. A wrong image with a verdict that agrees is marked: it is the worst that can happen.

`--low-dose` has 1e3, 1e4 and 1e5 photons with an exact and a defocused probe, beside the exact probe held fixed;
`--clean` a dozen scans without a fault, of which no rung should be kept that changes the data. `--folder DIR` takes
scans of other programs: DIR/NAME.npz and the object in DIR/truth_NAME.npz. `--scorer FILE` scores by a function
`score(object, origin_px, truth)["ssim"]` of another program. Writes measured.md into `--out`. The faults take about
half an hour on two cores; `--quick` the weaker of each fault on small scans, a quarter of that.
"""
import argparse
import runpy
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from faults import FAULTS, Faulty, as_measured, exact_scan, smaller_scan

from ptycho_nb.analysis.metrics import compare
from ptycho_nb.data.formats import load_data
from ptycho_nb.data.scan import RawData
from ptycho_nb.files import replacing
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.result import Reconstruction
from ptycho_nb.solvers.rungs import refocused

# Rungs that change the data:
CHANGES = ("pixels", "orientation", "affine", "drift", "moves", "modes", "background", "light")
SILENT = 0.04  # of the SSIM that is lost beside the scan without a fault: then the verdict should not agree
Scorer = Callable[[Reconstruction, np.ndarray], float]


def quality(result: Reconstruction, truth: np.ndarray) -> float:
    """SSIM of the amplitude."""
    return compare(result, truth)["amplitude"]["ssim"]


def scorer_of(path: Path) -> Scorer:
    """That of another program."""
    score = runpy.run_path(str(path))["score"]
    return lambda result, truth: score(result.object, result.origin_px, truth)["ssim"]


class Report:
    """Rows of a Markdown table, printed and written as they come."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.file, self.lines = out / "measured.md", []

    def add(self, *cells: object) -> None:
        text = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
        self.lines.append("| " + " | ".join(text) + " |")
        print(self.lines[-1], flush=True)
        with replacing(self.file) as temporary:
            temporary.write_text("\n".join(self.lines) + "\n")

    def head(self, *titles: str) -> None:
        self.lines.append("")
        self.add(*titles)
        self.add(*["---"] * len(titles))


def kept(result: Reconstruction) -> str:
    """The rungs that were kept, in short."""
    return ", ".join(rung["name"] for rung in result.info["rungs"] if rung["kept"] and rung["name"] != "given")


def with_fault_known(known: RawData, truth: np.ndarray, score: Scorer) -> float:
    """The better of two fits: with everything held fixed, and with the probe refined."""
    return max(score(estimate(known, model, progress=False), truth) for model in ("fixed", "joint"))


def measure(report: Report, name: str, faulty: Faulty, truth: np.ndarray, score: Scorer, best: float = 0.0) -> float:
    """One row; the SSIM of the ladder."""
    with tempfile.TemporaryDirectory() as folder:
        data = load_data(faulty.data.save(Path(folder) / "scan.npz"))
    known = "" if faulty.known is None else with_fault_known(faulty.known, truth, score)
    try:
        before = score(estimate(data, "joint", progress=False), truth)
        began = time.perf_counter()
        result = estimate(data, progress=False)
    except ValueError as refused:  # as it should be for some of them
        report.add(name, "refused", "refused", known, "", str(refused)[:90], "", "")
        return 0.0
    seconds, fit, now = time.perf_counter() - began, result.info["goodness"], score(result, truth)
    says = result.info["verdict"].split(":")[0]
    wrong = now < best - SILENT and "agree" in says
    report.add(name, before, now, known, f"{fit['ratio']:.2f} ± {fit['error']:.2f}", says + " **SILENT**" * wrong,
               kept(result), f"{seconds:.0f}")
    return now


def low_dose(report: Report, quick: bool) -> None:
    """The exact probe and defocused ones."""
    report.head("photons", "defocus / rad", "exact, fixed", "as given, fixed", "joint", "ladder", "rungs kept")
    for nphotons in (1e4,) if quick else (1e3, 1e4, 1e5):
        exact = exact_scan(nphotons)
        best = quality(estimate(as_measured(exact), "fixed", progress=False), exact.object)
        for defocus in (3.6,) if quick else (0.0, 1.5, 3.6, 6.0):
            data = as_measured(exact, probe=refocused(exact.probe, defocus))
            fixed, joint, ladder = (estimate(data, model, progress=False) for model in ("fixed", "joint", "auto"))
            scores = [quality(result, exact.object) for result in (fixed, joint, ladder)]
            report.add(f"{nphotons:.0e}", f"{defocus:g}", best, *scores, kept(ladder))


def clean(report: Report, quick: bool) -> None:
    """Scans without a fault."""
    report.head("clean scan", "photons", "fixed", "ladder", "goodness", "± ", "rungs kept that should not be")
    for seed in range(2 if quick else 12):
        nphotons, kind = 10.0 ** (3 + seed % 6), ("siemens_star", "lines")[seed % 2]
        exact = exact_scan(nphotons, kind=kind, seed=10 + seed)
        result = estimate(as_measured(exact), progress=False)
        wrong = [name for name in kept(result).split(", ") if name in CHANGES]
        fit = result.info["goodness"]
        scores = [quality(item, exact.object) for item in (estimate(exact, progress=False), result)]
        report.add(f"{kind} {seed}", f"{nphotons:.0e}", *scores, fit["ratio"], fit["error"],
                   ", ".join(wrong) or "none")


def faults(report: Report, names: list[str], quick: bool, score: Scorer) -> None:
    """Every fault at two strengths."""
    exact = smaller_scan(n=121, size_px=200) if quick else smaller_scan()
    report.head("fault", "joint", "ladder", "fault known", "goodness", "says", "rungs kept", "seconds")
    best = measure(report, "none", Faulty(as_measured(exact), as_measured(exact)), exact.object, score)
    for name in names:
        for strength, spoil in zip(("weak", "strong"), FAULTS[name], strict=True):
            if strength == "weak" or not quick:
                measure(report, f"{name}, {strength}", spoil(exact), exact.object, score, best)


def of_others(report: Report, folder: Path, score: Scorer) -> None:
    """Scans of other programs."""
    report.head("scan", "joint", "ladder", "", "goodness", "says", "rungs kept", "seconds")
    for path in sorted(folder.glob("truth_*.npz")):
        with np.load(path) as stored:
            truth = stored["object"]
        name = path.stem.removeprefix("truth_")
        try:
            measure(report, name, Faulty(load_data(folder / f"{name}.npz")), truth, score)
        except ValueError as refused:
            report.add(name, "refused", "refused", "", "", str(refused)[:90], "", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--quick", action="store_true", help="small scans, the weaker of each fault")
    parser.add_argument("--low-dose", action="store_true", help="few photons and a defocused guess of the probe")
    parser.add_argument("--clean", action="store_true", help="scans without a fault")
    parser.add_argument("--folder", type=Path, help="scans and truths of another program instead")
    parser.add_argument("--scorer", type=Path, help="a Python file with a function score")
    parser.add_argument("--out", type=Path, default=Path("runs/measured"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    report, score = Report(arguments.out), quality if arguments.scorer is None else scorer_of(arguments.scorer)
    if arguments.only or not (arguments.low_dose or arguments.clean or arguments.folder):
        faults(report, arguments.only or list(FAULTS), arguments.quick, score)
    if arguments.folder:
        of_others(report, arguments.folder, score)
    if arguments.low_dose:
        low_dose(report, arguments.quick)
    if arguments.clean:
        clean(report, arguments.quick)


if __name__ == "__main__":
    main()
