"""`pt.reconstruct(data)` beside the estimate and the network: is it ever worse than the better of the two?

Their seeds are used nowhere else (one of them, points at 1e3 photons, led to a further candidate); SSIM of the
amplitude, and of the phase if there is one. Writes one_call.md into `--out`. About ten minutes on one core; `--quick` a
sixth of it.
"""
import argparse
import itertools
import warnings
from pathlib import Path

import numpy as np

import ptycho_nb as pt
from ptycho_nb.files import replacing

OBJECTS = ("siemens_star", "lines", "random_field", "points", "shapes")
PROBES, DOSES = ("disk", "defocused"), (1e3, 1e4, 1e5)
SEED = 7_300


def scores(result: pt.Reconstruction, truth: np.ndarray) -> tuple[float, float]:
    """SSIM of amplitude and phase; NaN without a phase."""
    metrics = pt.compare(result, truth)
    return metrics["amplitude"]["ssim"], metrics.get("phase", {}).get("ssim", np.nan)


def measure(kind: str, probe: str, nphotons: float, has_phase: bool, seed: int, n_test: int) -> tuple[list, str, float]:
    """The scores of estimate, network and the one call, what it chose, and its seconds."""
    config = pt.SimulationConfig(nphotons=nphotons, object_kind=kind, probe_kind=probe, object_phase=has_phase,
                                 object_size_px=300, n_train=4, n_test=n_test, seed=seed)
    _, scan = pt.simulate_halves(config)
    best = pt.reconstruct(scan, progress=False)
    results = pt.estimate(scan, progress=False), pt.amortised(scan, progress=False), best
    return [scores(result, scan.truth) for result in results], best.info["chosen"], best.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one dose, fewer patterns")
    parser.add_argument("--out", type=Path, default=Path("runs/one_call"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = ["| object | probe | photons | estimate | network | `reconstruct` | chosen | s |", "| --- " * 8 + "|"]
    print(*lines, sep="\n")
    worst, doses = {"amplitude": np.inf, "phase": np.inf}, (1e4,) if arguments.quick else DOSES
    for k, (kind, probe, nphotons) in enumerate(itertools.product(OBJECTS, PROBES, doses)):
        has_phase = bool(k % 2)
        ssims, chosen, seconds = measure(kind, probe, nphotons, has_phase, SEED + k, 200 if arguments.quick else 500)
        for part, (estimate, network, best) in zip(worst, zip(*ssims, strict=True), strict=True):
            if not np.isnan(best):
                worst[part] = min(worst[part], best - max(estimate, network))
        cells = [f"{amplitude:.3f}" + ("" if np.isnan(phase) else f", {phase:.3f}") for amplitude, phase in ssims]
        row = [kind.replace("_", " "), probe, f"{nphotons:.0e}", *cells, chosen, f"{seconds:.0f}"]
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
        said = ", ".join(f"{part} {value:+.3f}" for part, value in worst.items())
        with replacing(arguments.out / "one_call.md") as temporary:
            temporary.write_text("\n".join([*lines, "", f"Least beside the better of the two: {said}."]) + "\n")
    print(f"least beside the better of the two: {said}")


if __name__ == "__main__":
    main()
