"""How many true values are inside the intervals of `pt.uncertainty`? `python benchmarks/interval_coverage.py fit FILE`.

fit: 24 scans of six families of samples under random probes at 630 to 1e6 photons, and 36 of four more under three
probes at 1e3, 1e4 and 1e5; from them come the factors in `ptycho_nb.network.uncertainty`. test: 12 scans of two
families and two probes that took no part. `table FILE`: the factors that the scans in FILE ask for, and the share of
true values inside the intervals that the library makes. What is in FILE (a JSON value a line) is kept: a run that was
stopped goes on. About eight seconds of one core a scan.
"""
import argparse
import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import planner

import ptycho_nb as pt
from ptycho_nb.config import SimulationConfig
from ptycho_nb.data.scan import RawData
from ptycho_nb.data.simulation import generate_simulated_data
from ptycho_nb.network.pretraining import random_probe
from ptycho_nb.network.uncertainty import FACTORS
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import defocused_probe, disk_probe
from ptycho_nb.physics.scans import make_positions
from ptycho_nb.solvers.gauge import align

N, INNER_PX, OBJECT_PX = 64, 128, 392
RANDOM = ("lines", "shapes", "points", "diagonals", "random_field", "text")  # families under random probes
PROBES = {"disk": disk_probe(N), "defocused": defocused_probe(N, 12.0, 2.5), "speckled": planner.speckled_probe(),
          "gaussian": planner.gaussian_probe(7.0), "focused": planner.focused_probe(6.0)}
DOSES = (1e3, 1e4, 1e5)
CELLS = {which: list(itertools.product(families, probes, DOSES)) for which, families, probes in (
    ("fit", ("siemens_star", "grains", "disks", "mosaic"), ("disk", "defocused", "speckled")),
    ("test", ("rings", "clouds"), ("gaussian", "focused")))}
QUANTILES = np.linspace(0.005, 0.995, 199)  # of error by half-width, kept of each scan


def rings(size: int, rng: np.random.Generator) -> np.ndarray:
    """Thin circles around random centres."""
    y, x = np.indices((size, size))
    centres = rng.uniform(0, size, (40, 2))
    radii_px = rng.uniform(4, 40, 40)
    return sum(np.exp(-0.5 * ((np.hypot(y - cy, x - cx) - radius) / 1.2) ** 2) * rng.uniform(0.3, 1)
               for (cy, cx), radius in zip(centres, radii_px, strict=True))


def clouds(size: int, rng: np.random.Generator) -> np.ndarray:
    """A field without edges: amplitudes that fall as the frequency to the power of -2.2."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    return np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * frequency**-2.2, s=(size, size))


OTHERS = {"rings": rings, "clouds": clouds, "text": planner.text, "disks": planner.disks, "mosaic": planner.mosaic,
          "grains": planner.grains}


def structure(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A piece of a sample of a family, between 0 and 1."""
    size = INNER_PX + N
    if kind in OTHERS:
        image = OTHERS[kind](size, rng)
        return (image - image.min()) / np.ptp(image)
    margin = 40 if kind == "siemens_star" else 0
    y, x = rng.integers(margin, OBJECT_PX - size - margin + 1, 2)
    return 2 * np.abs(make_object(kind, OBJECT_PX, int(rng.integers(2**31))))[y : y + size, x : x + size] - 1


def drawn(k: int, rng: np.random.Generator) -> tuple[str, str, np.ndarray, float, tuple[float, float], float]:
    """A scan to fit: family, name and probe, dose, range of the amplitude, patterns per px²."""
    kind, probe, dose = RANDOM[k % 6], random_probe(rng), float(10 ** rng.uniform(2.8, 6))
    low, high = 0.5, 1.0
    if rng.random() >= 0.4:
        low = rng.uniform(0.1, 0.8)
        high = min(1.0, low + rng.uniform(0.2, 0.8))
    return kind, "random", probe, dose, (low, high), 10 ** rng.uniform(-2.1, -1.5)


def scan_of(which: str, k: int) -> tuple[RawData, dict]:
    """A scan, and what it is of."""
    number = k - 24 if which == "fit" else k  # of the cell
    rng = np.random.default_rng([61, k] if number < 0 else [{"fit": 62, "test": 63}[which], number])
    if number < 0:
        kind, name, probe, dose, (low, high), density = drawn(k, rng)
        has_phase = bool((k // 6) % 2)
    else:
        kind, name, dose = CELLS[which][number]
        probe, (low, high), density, has_phase = PROBES[name], (0.5, 1.0), 0.02, bool(number % 2)
    pattern = structure(kind, rng)
    angle = rng.uniform(0.5, 1.6) * (structure(kind, rng) - 0.5) if has_phase else 0 * pattern
    sample = ((low + (high - low) * pattern) * np.exp(1j * angle)).astype(np.complex64)
    region, patterns = 2 * (N // 2, N // 2 + INNER_PX - 1), int(density * INNER_PX**2)
    positions_px = make_positions("random", patterns, region, int(rng.integers(2**31)))
    config = SimulationConfig(nphotons=dose, noise_seed=int(rng.integers(2**31)))
    scan = generate_simulated_data(config, sample, probe, np.floor(positions_px + 0.5))
    return scan, {"k": k, "family": kind, "probe": name, "photons": dose, "phase": has_phase}


def ratios(scan: RawData, result: pt.Reconstruction) -> dict[str, list[float]]:
    """Quantiles of the error of amplitude and phase by the half-width of their intervals."""
    intervals = pt.uncertainty(scan, result, seed=5)
    y0, y1, x0, x1 = intervals.region
    truth = scan.truth[y0:y1, x0:x1]
    aligned, gauge = align(result.crop_to(intervals.region).object, truth)
    errors = {"amplitude": np.abs(np.abs(aligned) - np.abs(truth)) / gauge["scale"] / intervals.amplitude,
              "phase": np.abs(np.angle(aligned * np.conj(truth))) / intervals.phase_rad}
    return {part: np.nanquantile(error, QUANTILES).tolist() for part, error in errors.items()}


def run(which: str, path: Path) -> None:
    """Measure what is not in the file yet."""
    done = {json.loads(line)["k"] for line in path.read_text().splitlines()} if path.exists() else set()
    for k in sorted(set(range(len(CELLS[which]) + 24 * (which == "fit"))) - done):
        scan, row = scan_of(which, k)
        for method, solve in (("best", pt.reconstruct), ("no_network", pt.estimate)):
            row[method] = ratios(scan, solve(scan, progress=False))
        row["factors"] = FACTORS
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({key: row[key] for key in ("k", "family", "probe", "photons")}, flush=True)


def table(path: Path) -> None:
    """Factors and shares inside, as Markdown."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    parts = list(itertools.product(FACTORS, ("amplitude", "phase")))
    heads = "| method | part | inside | least | most | sd | factor asked for |", "| --- " * 7 + "|"
    print(f"{len(rows)} scans", *heads, sep="\n")
    shares = {}
    for method, part in parts:
        index = ("amplitude", "phase").index(part)
        errors = np.array([np.array(row[method][part]) * row["factors"][method][index] for row in rows])
        inside = shares[method, part] = np.array([np.interp(FACTORS[method][index], values, QUANTILES, 0, 1)
                                                  for values in errors])
        numbers = inside.mean(), inside.min(), inside.max(), inside.std(), np.quantile(errors, 0.9)
        print(f"| {method} | {part} |", *(f"{number:.3f} |" for number in numbers))
    print("", "| of | " + " | ".join(map(", ".join, parts)) + " |", "| --- " * 5 + "|", sep="\n")
    for name in ("family", "probe", "photons", "phase"):
        for value in sorted({row[name] for row in rows}):
            of_it = [row[name] == value for row in rows]
            print(f"| {name} {value} |", *(f"{shares[part][of_it].mean():.3f} |" for part in parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "test", "table"))
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.what == "table":
        table(arguments.file)
    else:
        run(arguments.what, arguments.file)


if __name__ == "__main__":
    main()
