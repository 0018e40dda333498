"""How good is the estimate without a network? `python benchmarks/estimates.py [--out FOLDER]` (about a minute).

The lines object of 392 px, 957 patterns of 64² on its lower half, the exact probe; every likelihood is stopped and
smoothed by its own validation patterns. Mean and standard deviation of the amplitude SSIM over three noise seeds.
"""
import argparse
from pathlib import Path

import numpy as np

from ptycho_nb.config import SimulationConfig
from ptycho_nb.estimate import LIKELIHOODS, estimate
from ptycho_nb.files import replacing, write_json
from ptycho_nb.metrics import compare
from ptycho_nb.scans import validation_indices
from ptycho_nb.simulate import simulate_halves

NOISE_SEEDS = (1, 2, 3)


def score(probe_kind: str, nphotons: float, likelihood: str) -> dict:
    """One row: the estimate of one scan with three draws of the noise."""
    results = []
    for noise_seed in NOISE_SEEDS:
        config = SimulationConfig(
            nphotons=nphotons, probe_kind=probe_kind, n_train=16, n_test=957, noise_seed=noise_seed)
        _, scan = simulate_halves(config)
        result = estimate(scan, validation=validation_indices(957, seed=noise_seed), likelihood=likelihood)
        results.append((compare(result, scan.object)["amplitude"]["ssim"], result.seconds, result.info["chosen"]))
    ssim, seconds, chosen = zip(*results, strict=True)
    return {"probe": probe_kind, "nphotons": nphotons, "likelihood": likelihood, "ssim": np.mean(ssim),
            "ssim_std": np.std(ssim), "seconds": np.mean(seconds), "chosen": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/benchmarks", help="folder for estimates.md and estimates.json")
    out = Path(parser.parse_args().out)
    rows, lines = [], ["| probe | photons | likelihood | SSIM | seconds |", "| --- | --- | --- | --- | --- |"]
    for probe_kind in ("disk", "defocused"):
        for nphotons in (1e3, 1e4, 1e5, 1e9):
            for likelihood in LIKELIHOODS:
                row = score(probe_kind, nphotons, likelihood)
                rows.append(row)
                ssim = f"{row['ssim']:.4f} ± {row['ssim_std']:.4f}"
                lines.append(f"| {probe_kind} | {nphotons:.0e} | {likelihood} | {ssim} | {row['seconds']:.1f} |")
                print(lines[-1], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "estimates.json", rows)
    with replacing(out / "estimates.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {out}/estimates.md and {out}/estimates.json")


if __name__ == "__main__":
    main()
