"""What the quality rows are held against: the limit of the photons, and the yardstick. Run by `bench.py`.

Nothing here is timed, so that these rows can be made beside other work, and put into published results that lack them.
"""
from dataclasses import replace
from functools import partial
from pathlib import Path

from quality import (
    QUICK,
    Case,
    Profile,
    amplitude_score,
    benchmark_halves,
    benchmark_probes,
    mean_scores,
    share_of_limit,
)
from table import Table

from ptycho_nb.analysis.limits import photon_limit
from ptycho_nb.analysis.yardstick import YARDSTICK, yardstick
from ptycho_nb.physics.scans import validation_indices
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.held_out import hold_out

SHOWN = ("ssim", "psnr", "frc50", "frc50_smoothed")


def measure(table: Table, quick: bool, star: Path | None) -> None:
    """Limit, yardstick, and the estimate for comparison, at every dose with overlap."""
    profile = QUICK if quick else Profile()
    for rank, (kind, probe) in enumerate(benchmark_probes(profile, star).items()):
        cases = [Case(kind, rank, nphotons) for nphotons in profile.doses]
        for case in cases + [replace(cases[0], nphotons=1e4, object=name) for name in profile.other_objects]:
            measure_case(table, profile, case, partial(benchmark_halves, profile, probe, case.nphotons, case.object))


def measure_case(table: Table, profile: Profile, case: Case, halves: partial) -> None:
    """Rows of one probe, dose and object: means over the noise seeds."""
    by_name: dict[str, list[dict[str, float]]] = {name: [] for name in (YARDSTICK, "estimate")}
    seeds = profile.noise_seeds if case.nphotons < 1e6 else profile.noise_seeds[:1]
    for seed in seeds:
        scan = halves(seed)[1]
        limit, score = photon_limit(scan), amplitude_score(scan)
        reference = yardstick(*limit.parts["amplitude"], seed=seed).scores
        by_name[YARDSTICK].append({name: reference[name] for name in SHOWN}
                                  | share_of_limit(reference["frc50_smoothed"], limit.amplitude.value))
        held = hold_out(scan, validation_indices(scan.n_patterns, seed=seed))  # as the quality rows have it
        by_name["estimate"].append(score(estimate(scan, held=held)))
    allowed = {"frc50": limit.amplitude.raw, "frc50_smoothed": limit.amplitude.value, "frc50_low": limit.amplitude.low,
               "frc50_high": limit.amplitude.high, "of_limit": 1.0}
    table.add("limits", str(case), "photon limit", None, None, **allowed)
    for name, scores in by_name.items():
        table.add("limits", str(case), name, None, None, **mean_scores(scores))
