"""`pt.reconstruct(data)` beside the estimate and the network: is it ever worse than the better of the two?

Sixty scans: ten families of samples, two probes for each, three doses. Five of the families are drawn in these
benchmarks alone, and so are their probes. The seeds are used nowhere else (one scan, points at 1e3 photons, led to a
further candidate). SSIM of the amplitude, and of the phase if there is one. Writes one_call.md into `--out`. About
twenty minutes on one core; `--quick` a sixth of it.
"""
import argparse
import itertools
import warnings
from pathlib import Path

import numpy as np
from interval_coverage import INNER_PX, OTHERS, N, structure
from interval_coverage import PROBES as OTHER_PROBES

import ptycho_nb as pt
from ptycho_nb.data.simulation import generate_simulated_data
from ptycho_nb.files import replacing
from ptycho_nb.physics.scans import make_positions

OBJECTS = ("siemens_star", "lines", "random_field", "points", "shapes", "rings", "clouds", "text", "disks", "grains")
DOSES = (1e3, 1e4, 1e5)
SEED = 7_300


def scores(result: pt.Reconstruction, truth: np.ndarray) -> tuple[float, float]:
    """SSIM of amplitude and phase; NaN without a phase."""
    metrics = pt.compare(result, truth)
    return metrics["amplitude"]["ssim"], metrics.get("phase", {}).get("ssim", np.nan)


def scan_of(kind: str, probe: str, nphotons: float, has_phase: bool, seed: int, patterns: int) -> pt.RawData:
    """A simulated scan: of a sample and a probe of the package, or of those that only the benchmarks have."""
    if kind not in OTHERS:
        config = pt.SimulationConfig(nphotons=nphotons, object_kind=kind, probe_kind=probe, object_phase=has_phase,
                                     object_size_px=300, n_train=4, n_test=patterns, seed=seed)
        return pt.simulate_halves(config)[1]
    rng = np.random.default_rng(seed)
    phase = 1.2 * (structure(kind, rng) - 0.5) if has_phase else 0.0
    sample = ((1 + structure(kind, rng)) / 2 * np.exp(1j * phase)).astype(np.complex64)
    positions_px = make_positions("random", patterns, 2 * (N // 2, N // 2 + INNER_PX - 1), seed)
    return generate_simulated_data(pt.SimulationConfig(nphotons=nphotons, noise_seed=seed), sample, OTHER_PROBES[probe],
                                   np.floor(positions_px + 0.5))


def measure(scan: pt.RawData) -> tuple[list, str, float]:
    """The scores of estimate, network and the one call, what it chose, and its seconds."""
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
    gains, doses = {"amplitude": [], "phase": []}, (1e4,) if arguments.quick else DOSES
    for k, (kind, which, nphotons) in enumerate(itertools.product(OBJECTS, (0, 1), doses)):
        probe = (("gaussian", "speckled") if kind in OTHERS else ("disk", "defocused"))[which]
        patterns = 200 if arguments.quick else 350 if kind in OTHERS else 500
        ssims, chosen, seconds = measure(scan_of(kind, probe, nphotons, bool(k % 2), SEED + k, patterns))
        for part, (estimate, network, best) in zip(gains, zip(*ssims, strict=True), strict=True):
            if not np.isnan(best):
                gains[part].append(best - max(estimate, network))
        cells = [f"{amplitude:.3f}" + ("" if np.isnan(phase) else f", {phase:.3f}") for amplitude, phase in ssims]
        row = [kind.replace("_", " "), probe, f"{nphotons:.0e}", *cells, chosen, f"{seconds:.0f}"]
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
        said = ", ".join(f"{part} {min(values):+.3f}, on average {np.mean(values):+.3f}"
                         for part, values in gains.items() if values)
        with replacing(arguments.out / "one_call.md") as temporary:
            temporary.write_text("\n".join([*lines, "", f"Least beside the better of the two: {said}."]) + "\n")
    print(f"least beside the better of the two: {said}")


if __name__ == "__main__":
    main()
