"""Every method on the lower half of a measured scan: `python benchmarks/star_half.py FILE`.

There is no truth. Counts that no method has fitted judge each image (R factor, goodness), and its phase is compared
with that of LSQML with the Gaussian model, run on all patterns of the whole scan for many epochs. The networks are
trained on patterns of the upper half whose patches share no pixel with those of the lower one. Results are kept in the
folder of `--out`, so that a run that was stopped goes on.
"""
import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from star import phase_agreement

from ptycho_nb.analysis.metrics import data_fit
from ptycho_nb.config import ModelConfig, TrainingConfig
from ptycho_nb.data.formats import load_data
from ptycho_nb.data.scan import RawData
from ptycho_nb.solvers.estimate import as_estimated, estimate
from ptycho_nb.solvers.goodness import goodness
from ptycho_nb.solvers.held_out import HeldOut, hold_out
from ptycho_nb.solvers.lsqml import lsqml
from ptycho_nb.solvers.result import Reconstruction, load_reconstructions, save_reconstructions


def halves(scan: RawData) -> tuple[RawData, RawData]:
    """Patterns above and below the middle, so far apart that no patch of one half has a pixel of the other."""
    y = scan.positions_px[:, 0]
    middle = (y.min() + y.max()) / 2
    upper, lower = y <= middle - scan.N / 2, y >= middle + scan.N / 2
    return scan.subset(np.flatnonzero(upper)), scan.subset(np.flatnonzero(lower))


def trained_and_applied(upper: RawData, lower: RawData, solved: Reconstruction, held: HeldOut, gridsize: int,
                        epochs: int) -> Reconstruction:
    """A network that has learned from the upper half, on the lower one; both with the model that the solver found."""
    from ptycho_nb.network.inference import reconstruct
    from ptycho_nb.network.training import train

    model, _ = train(as_estimated(upper, estimate(upper, progress=False)), ModelConfig(N=upper.N, gridsize=gridsize),
                     TrainingConfig(nepochs=epochs, precision="float32"), progress=False)
    result = reconstruct(as_estimated(lower, solved), model, exclude=held.patterns, rescale="least_squares")
    return replace(result, method=f"network, gridsize {gridsize}")


def makers(scan: RawData, quick: bool) -> tuple[RawData, HeldOut, dict[str, Callable[[dict], Reconstruction]]]:
    """The lower half, what is held out of it, and how each result is made from those before it."""
    from ptycho_nb.network.candidates import reconstruct as best
    from ptycho_nb.network.pretrained import amortised

    upper, lower = halves(scan)
    held, epochs = hold_out(lower), 2 if quick else 100

    def refined(results: dict, network: str) -> Reconstruction:
        model = as_estimated(lower, results["no network"])
        return estimate(model, held=held, start=results[network], progress=False)

    nearly_all = hold_out(scan, np.array([0]))
    made_by: dict[str, Callable[[dict], Reconstruction]] = {
        "reference": lambda results: lsqml(scan, epochs=epochs, noise_model="gaussian", held=nearly_all),
        "no network": lambda results: estimate(lower, held=held, progress=False),
        "LSQML": lambda results: lsqml(lower, epochs=epochs, noise_model="gaussian", held=held),
        "pretrained network": lambda results: amortised(lower, held=held, progress=False),
        "reconstruct, without a bundle": lambda results: best(lower, held=held, progress=False)}
    for gridsize in (1, 2):
        name = f"network, gridsize {gridsize}"
        made_by[name] = lambda results, size=gridsize: trained_and_applied(
            upper, lower, results["no network"], held, size, 1 if quick else 5)
        made_by[f"{name}, refined"] = lambda results, name=name: refined(results, name)
    return lower, held, made_by


def measure(scan: RawData, folder: Path, quick: bool = False) -> list[str]:
    """The lines of the table."""
    lower, held, made_by = makers(scan, quick)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{lower.n_patterns} patterns of {lower.N}², {len(held.patterns)} held out", "",
             "| method | R factor | goodness | Pearson with LSQML's phase | seconds | CPU seconds |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]
    results: dict[str, Reconstruction] = {}
    for name, make in made_by.items():
        path = folder / f"{name.replace(', ', '_').replace(' ', '_')}.npz"
        if not path.exists():
            save_reconstructions(path, result=make(results))
        results[name] = load_reconstructions(path)["result"]
        if name == "reference":
            continue
        fit, agreed = data_fit(results[name], lower, held.patterns), goodness(results[name], held)
        pearson = phase_agreement(results["reference"], results[name])
        lines.append(f"| {name} | {fit['r_factor']:.4f} | {agreed.ratio:.2f} ± {agreed.error:.2f} | {pearson:.4f} | "
                     f"{results[name].seconds:.1f} | {results[name].cpu_seconds:.1f} |")
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the measured scan, tike's or this library's NPZ")
    parser.add_argument("--out", type=Path, default=Path("runs/star_half"), help="where results are kept")
    parser.add_argument("--quick", action="store_true", help="few epochs: does it work?")
    arguments = parser.parse_args()
    table = measure(load_data(arguments.file), arguments.out, arguments.quick)
    (arguments.out / "table.md").write_text("\n".join(table) + "\n", encoding="utf-8")
