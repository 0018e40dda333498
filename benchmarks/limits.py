"""Do the predictions hold? `python benchmarks/limits.py spread|ladder|thinning [--quick] [--out FILE]`.

spread: the deviation of the estimate over noise seeds beside the limit, on lit pixels: 1/sqrt(2W), the exact one, and
that of the solver's likelihood, whose counts have an offset. Two numbers of iterations tell whether it has settled.
ladder: FRC50 that `how_few` reads off one scan's photons beside that of scans simulated at these doses.
thinning: scans thinned from 1e6 photons to 1e4 beside scans simulated at 1e4: two-sample Kolmogorov-Smirnov tests.
"""
import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

from ptycho_nb.analysis.limits import frc_resolution
from ptycho_nb.analysis.metrics import compare, frc
from ptycho_nb.config import SimulationConfig
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.files import write_json
from ptycho_nb.physics.detector import Detector
from ptycho_nb.physics.fisher import (
    Change,
    Information,
    deviation_limit,
    exact_limits,
    photon_weight,
    solve_information,
)
from ptycho_nb.physics.forward import Layout, scan_amplitudes
from ptycho_nb.physics.probes import normalise_probe
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.gauge import aligned_pair
from ptycho_nb.solvers.likelihood import counting_offset
from ptycho_nb.solvers.result import crop
from ptycho_nb.solvers.steps import Problem, solve
from ptycho_nb.studies.how_few import how_few, part_of
from ptycho_nb.studies.thinning import thinned


def true_scale(config: SimulationConfig) -> float:
    "The intensity scale of the light itself, that no noise has touched: the probe is known exactly."
    bright = simulate_halves(replace(config, nphotons=1e12))[1]
    energy = np.mean(scan_amplitudes(bright.truth, normalise_probe(bright.probe)[0],
                                     Layout.on_canvas(bright.positions_px, bright.N, bright.truth.shape)) ** 2)
    return float(np.sqrt(config.nphotons / (energy * bright.N**2)))


def offset_deviation(object: np.ndarray, light: np.ndarray, layout: Layout, draws: int) -> np.ndarray:
    """The deviation of an estimate that adds an offset c to every count and every rate, as the solver does.

    Its score is (n - I)/(I + c): it weighs dark pixels less than they deserve, and so knows less than the limit.
    """
    added = counting_offset(light)
    counting = Information(object, light, layout, Detector(np.ones((layout.N, layout.N), bool), added))
    rng, squares = np.random.default_rng(0), 0.0
    for _ in range(draws):
        right = counting.nothing()
        for *block, weight in counting._blocks():  # the weight is 1/(I + c)
            rate = np.maximum(1 / weight - added, 0)
            counting._collect(right, np.sqrt(rate) * weight * rng.standard_normal(weight.shape), *block)
        solution = solve_information(counting, Change(right.object.astype(object.dtype), None))
        squares = squares + np.abs(solution.object) ** 2 / (2 * draws)
    return np.sqrt(squares)


STEPS = {1e5: (100, 400), 1e7: (150, 500), 1e9: (250, 800)}  # by photons: iterations, the second to see what is left


def spread(quick: bool) -> list[dict]:
    "Solves to convergence, from the truth and without stopping or smoothing: variance and bias over the seeds apart."
    rows, seeds = [], 8 if quick else 50
    for probe, (nphotons, steps) in itertools.product(("defocused", "disk"), STEPS.items()):
        config = SimulationConfig(nphotons=nphotons, object_size_px=256, probe_kind=probe, n_train=1, n_test=200,
                                  seed=1)
        images = {iteration: [] for iteration in steps}
        for noise_seed in range(seeds):
            scan = simulate_halves(replace(config, noise_seed=noise_seed))[1]
            layout = Layout.on_canvas(scan.positions_px, scan.N, scan.truth.shape)
            light = (normalise_probe(scan.probe)[0] * true_scale(config)).astype(np.complex64)
            (y0, x0), (y1, x1) = (f(scan.positions_px, axis=0).astype(int).tolist() for f in (np.min, np.max))
            region = y0, y1, x0, x1
            problem = Problem(scan.diff3d, layout, light, scan.truth[None].copy(), np.arange(len(layout)))
            for step in solve(problem, steps[-1]):
                if step.iteration in images:
                    image = crop(step.object, region)
                    turn = np.exp(-1j * np.angle(np.vdot(crop(scan.truth, region), image)))
                    images[step.iteration].append(image * turn)
        truth, lit = crop(scan.truth, region), crop(photon_weight(light, layout), region)
        mask = lit > 0.5 * np.median(lit)

        def rms(deviation: np.ndarray, mask: np.ndarray = mask) -> float:
            return float(np.sqrt(np.mean(deviation[mask] ** 2)))

        along, across = exact_limits(Information(scan.truth, light, layout), draws=8)
        predicted = {"simple": rms(deviation_limit(lit)),
                     "exact": rms(crop(np.sqrt((along**2 + across**2) / 2), region)),
                     "offset": rms(crop(offset_deviation(scan.truth, light, layout, 8), region))}
        for iteration, stack in images.items():
            measured = rms(np.sqrt(np.var(stack, axis=0, ddof=1) / 2))  # of a complex number's parts
            offset = rms(np.abs(np.mean(stack, axis=0) - truth) / np.sqrt(2))
            rows.append({"probe": probe, "nphotons": nphotons, "seeds": seeds, "iterations": iteration,
                         "deviation": measured, **{f"by_{name}": measured / value for name, value in predicted.items()},
                         "bias_by_exact": float(np.sqrt(max(offset**2 - measured**2 / seeds, 0))) / predicted["exact"]})
            print(rows[-1], flush=True)
    return rows


SETS = {"first": range(10), "unseen": range(60, 72)}  # seeds; nothing was tuned on the second
FRESH = 6  # scans that are counted anew at each dose


def ladder(quick: bool) -> list[dict]:
    "Simulated scans, three doses each; the true number is that of the mean curve of scans counted anew."
    rows, kinds = [], ("lines", "random_field", "shapes", "diagonals", "siemens_star")
    for name, seed in [(name, seed) for name, seeds in SETS.items() for seed in (seeds[:2] if quick else seeds)]:
        config = SimulationConfig(
            nphotons=2e5, object_kind=kinds[seed % 5], object_phase=bool(seed % 2), object_size_px=224, n_train=1,
            n_test=100, probe_kind=("defocused", "disk")[seed // 5 % 2], seed=seed)
        few = how_few(simulate_halves(config)[1], methods=["no_network"], part="amplitude", shares=(0.5, 0.1, 0.02),
                      progress=False)
        for row in (row for row in few.rows() if not row["extrapolated"]):
            curves = []
            for noise_seed in range(1001, 1001 + FRESH):
                dim = replace(config, nphotons=row["share"] * config.nphotons, noise_seed=noise_seed)
                fresh = simulate_halves(dim)[1]
                aligned, truth, _ = aligned_pair(estimate(fresh, progress=False), fresh.truth)
                curves.append(frc(*(part_of(image, "amplitude") for image in (aligned, truth))))
            mean = {**curves[0], "correlation": np.mean([curve["correlation"] for curve in curves], axis=0)}
            rows.append({"set": name, "probe": config.probe_kind, "object": config.object_kind, "seed": seed,
                         "photons": row["photons_per_pattern"], "said": row["frc50"], "low": row["low"],
                         "high": row["high"], "true": frc_resolution(mean).value,
                         "spread": float(np.std([frc_resolution(curve).value for curve in curves]))})
            print(rows[-1], flush=True)
    for name, probe in [(name, probe) for name in SETS for probe in ("defocused", "disk")]:
        some = [row for row in rows if (row["set"], row["probe"]) == (name, probe)]
        inside = np.mean([row["low"] <= row["true"] <= row["high"] for row in some])
        difference = np.array([row["said"] - row["true"] for row in some])
        print(f"{name}, {probe}: {len(some)} doses, inside the interval {inside:.0%}, mean difference "
              f"{difference.mean():+.3f}, rms {np.sqrt(np.mean(difference**2)):.3f}")
    return rows


def thinning(quick: bool) -> list[dict]:
    "Counts, held-out deviance, SSIM and FRC50 over seeds, thinned and fresh."
    config = SimulationConfig(nphotons=1e6, object_size_px=192, n_train=1, n_test=80, probe_kind="defocused", seed=2)
    runs = {"thinned": [], "fresh": []}
    for seed in range(6 if quick else 20):
        bright = simulate_halves(replace(config, noise_seed=seed))[1]
        dim = {"thinned": thinned(bright, 0.01, np.random.default_rng(seed))[0],
               "fresh": simulate_halves(replace(config, nphotons=1e4, noise_seed=5000 + seed))[1]}
        for name, scan in dim.items():
            image = estimate(scan, progress=False)
            scores, chosen = compare(image, bright.truth)["amplitude"], image.info["chosen"]
            runs[name].append([scan.nphotons_mean, float(np.var(scan.diff3d**2)), chosen["nll_per_pixel"],
                               scores["ssim"], scores["frc50"]])
    names, rows = ("photons", "variance of the counts", "deviance", "ssim", "frc50"), []
    for name, first, second in zip(names, *(np.transpose(runs[key]) for key in ("thinned", "fresh")), strict=True):
        rows.append({"what": name, "thinned": float(first.mean()), "fresh": float(second.mean()),
                     "p": float(ks_2samp(first, second).pvalue)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("spread", "ladder", "thinning"))
    parser.add_argument("--quick", action="store_true", help="fewer seeds and scans")
    parser.add_argument("--out", type=Path, help="a JSON file with the rows")
    arguments = parser.parse_args()
    rows = {"spread": spread, "ladder": ladder, "thinning": thinning}[arguments.what](arguments.quick)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
