"""What `estimate` makes of measured scans with one fault each: `python benchmarks/measured.py [--quick] [NAME ...]`

Scans are simulated and then spoiled, at two strengths; nothing says that they are simulated. Each row compares one fit
of object and probe (`model="joint"`) with the ladder (`model="auto"`): SSIM of the amplitude against the truth, which
only scores, and the goodness of the ladder's result. `--low-dose` has 1e3, 1e4 and 1e5 photons with an exact and a
defocused probe, beside the exact probe held fixed; `--clean` a
dozen scans without a fault, of which no rung should be kept that changes the data. `--folder DIR` takes scans of other
programs: DIR/NAME.npz and the object in DIR/truth_NAME.npz. Writes measured.md into `--out`. The faults take about 15
minutes on two cores, and so do the others; `--quick` the weaker of each fault on small scans, 3 minutes.
"""
import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from ptycho_nb.analysis.metrics import compare
from ptycho_nb.config import SimulationConfig
from ptycho_nb.data.formats import load_data
from ptycho_nb.data.scan import RawData
from ptycho_nb.data.simulation import generate_simulated_data
from ptycho_nb.files import replacing
from ptycho_nb.physics.forward import Layout, scan_amplitudes
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import make_probe
from ptycho_nb.physics.scans import make_positions
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.result import Reconstruction
from ptycho_nb.solvers.rungs import refocused

# Rungs that change the data:
CHANGES = ("pixels", "orientation", "affine", "drift", "moves", "modes", "background", "light")
N = 64


def exact_scan(nphotons: float = 1e6, n: int = 289, size_px: int = 256, kind: str = "siemens_star",
               seed: int = 1) -> RawData:
    """A jittered raster over a complex object."""
    positions = make_positions("jittered", n, (40, size_px - 40, 40, size_px - 40), seed=seed + 1)
    config = SimulationConfig(nphotons=nphotons, probe_kind="defocused", object_phase=True, seed=seed)
    sample = make_object(kind, size_px, seed=seed, phase=True)
    return generate_simulated_data(config, sample, make_probe("defocused", N), positions)


def as_measured(exact: RawData, **changes) -> RawData:
    """A scan of which nothing says that it was simulated."""
    return replace(exact, **{"metadata": {}, "object": None, "source": "scan"} | changes)


def counted(exact: RawData, rate: np.ndarray, **changes) -> RawData:
    """Photons counted at these rates."""
    counts = np.random.default_rng(7).poisson(rate).astype(float)
    return as_measured(exact, diff3d=np.sqrt(counts).astype(np.float32), **changes)


def rates(exact: RawData, modes: np.ndarray | None = None, moved_px: np.ndarray | float = 0.0) -> np.ndarray:
    """Expected counts with this light on these places, of the dose of the exact scan."""
    layout = Layout.on_canvas(exact.positions_px + moved_px, N, exact.object.shape)
    rate = np.square(scan_amplitudes(exact.object, exact.probe if modes is None else modes, layout), dtype=float)
    return rate * (exact.nphotons_mean / rate.sum(axis=(1, 2)).mean())


def affine(exact: RawData, percent: float, degrees: float) -> RawData:
    """Positions scaled by some percent, turned by some degrees, and sheared by half the percent."""
    middle, turn = exact.positions_px.mean(axis=0), np.radians(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.array([[1 + percent / 100, percent / 200], [0, 1 + percent / 100]])
    return as_measured(exact, positions_px=(exact.positions_px - middle) @ matrix.T + middle)


def drift(exact: RawData, px: float) -> RawData:
    """A stage that drifts by so many pixels, not at one speed."""
    t = np.linspace(0, 1, exact.n_patterns)
    path = px * np.stack([t + 0.4 * np.sin(9 * t), 0.6 * np.cos(2 + 6 * t) - 0.8 * t], axis=1)
    return as_measured(exact, positions_px=exact.positions_px + path - path.mean(axis=0))


def jitter(exact: RawData, px: float) -> RawData:
    """Every position wrong by itself (standard deviation along each axis)."""
    errors = np.random.default_rng(5).normal(0, px, exact.positions_px.shape)
    return as_measured(exact, positions_px=exact.positions_px + errors)


def mirrored(exact: RawData, swapped: bool) -> RawData:
    """x counted the other way, or x and y exchanged."""
    middle = exact.positions_px.mean(axis=0)
    turned = (exact.positions_px - middle)[:, ::-1] if swapped else (exact.positions_px - middle) * [1, -1]
    return as_measured(exact, positions_px=turned + middle)


def decay(exact: RawData, depth: float, with_top_up: bool) -> RawData:
    """Light that dwindles by a share of it; refilled in the middle, or flickering as well."""
    t = np.linspace(0, 1, exact.n_patterns)
    light = 1 - depth * ((2 * t) % 1 if with_top_up else t)
    light *= np.random.default_rng(3).normal(1, 0.05, len(t)) if with_top_up else 1
    return counted(exact, rates(exact) * light[:, None, None])


def second_mode(exact: RawData, share: float) -> RawData:
    """Light in another mode that is incoherent with the first."""
    mode = np.roll(exact.probe, 3, 0) - np.roll(exact.probe, -3, 1)
    mode -= exact.probe * np.vdot(exact.probe, mode) / np.vdot(exact.probe, exact.probe)
    mode *= np.sqrt(share / (1 - share)) * np.linalg.norm(exact.probe) / np.linalg.norm(mode)
    return counted(exact, rates(exact, np.stack([exact.probe, mode]).astype(np.complex64)))


def fly(exact: RawData, px: float) -> RawData:
    """A stage that moves along x by so many pixels while it is counted."""
    steps = np.linspace(-0.5, 0.5, 9) * px
    return counted(exact, np.mean([rates(exact, moved_px=np.array([0, step])) for step in steps], axis=0))


def blurred(exact: RawData, sigma_px: float) -> RawData:
    """A detector whose pixels share their charge."""
    return counted(exact, gaussian_filter(rates(exact), (0, sigma_px, sigma_px)))


def foggy(exact: RawData, photons: float, ring: bool) -> RawData:
    """A background: flat, or a ring."""
    radius = np.hypot(*(np.indices((N, N)) - N // 2))
    return counted(exact, rates(exact) + photons * (np.exp(-((radius - 18) / 5) ** 2) if ring else 1))


def spoiled(exact: RawData, counts: Callable[[np.ndarray], None]) -> RawData:
    """Counts that a function changes in place."""
    changed = np.square(exact.diff3d, dtype=float)
    counts(changed)
    return as_measured(exact, diff3d=np.sqrt(changed).astype(np.float32))


def saturated(exact: RawData, share: float) -> RawData:
    """Counts that end at a share of the largest."""
    counts = np.square(exact.diff3d, dtype=float)
    return as_measured(exact, diff3d=np.sqrt(np.minimum(counts, np.rint(share * counts.max()))).astype(np.float32))


def beam_stop(exact: RawData, radius_px: int) -> RawData:
    """A disk in the centre that lets nothing through."""
    def stop(counts: np.ndarray) -> None:
        counts[:, np.hypot(*(np.indices((N, N)) - N // 2)) < radius_px] = 0
    return spoiled(exact, stop)


def marked(exact: RawData, value: float, some: bool) -> RawData:
    """Pixels that could not be read and hold a value that says so; some of them in some patterns only."""
    rng = np.random.default_rng(2)
    pixels = rng.choice(N * N, 60, replace=False)

    def mark(counts: np.ndarray) -> None:
        flat = counts.reshape(len(counts), -1)
        flat[:, pixels] = np.where(rng.uniform(size=(len(flat), 60)) < (0.2 if some else 1.0), value, flat[:, pixels])
    return spoiled(exact, mark)


def aberrated(exact: RawData, defocus: float, astigmatism: float = 0.0, coma: float = 0.0,
              spherical: float = 0.0) -> RawData:
    """A probe guess with wrong phases (rad at the Nyquist frequency)."""
    y, x = np.meshgrid(*2 * [2 * np.fft.fftfreq(N)], indexing="ij")
    r2 = y**2 + x**2
    phase = defocus * r2 + astigmatism * (y**2 - x**2 + y * x) + coma * y * r2 + spherical * r2**2
    probe = np.fft.ifft2(np.fft.fft2(exact.probe) * np.exp(1j * phase)).astype(np.complex64)
    return as_measured(exact, probe=probe)


FAULTS: dict[str, tuple[Callable[[RawData], RawData], Callable[[RawData], RawData]]] = {
    "affine": (lambda e: affine(e, 1, 0.5), lambda e: affine(e, 2, -1)),
    "drift": (lambda e: drift(e, 1), lambda e: drift(e, 3)),
    "jitter": (lambda e: jitter(e, 0.5), lambda e: jitter(e, 1.5)),
    "mirrored": (lambda e: mirrored(e, False), lambda e: mirrored(e, True)),
    "decay": (lambda e: decay(e, 0.3, False), lambda e: decay(e, 0.5, True)),
    "modes": (lambda e: second_mode(e, 0.15), lambda e: second_mode(e, 0.35)),
    "fly": (lambda e: fly(e, 3), lambda e: fly(e, 8)),
    "blur": (lambda e: blurred(e, 0.5), lambda e: blurred(e, 1)),
    "background": (lambda e: foggy(e, 2, False), lambda e: foggy(e, 20, False)),
    "ring": (lambda e: foggy(e, 5, True), lambda e: foggy(e, 50, True)),
    "saturation": (lambda e: saturated(e, 0.5), lambda e: saturated(e, 0.1)),
    "beam stop": (lambda e: beam_stop(e, 4), lambda e: beam_stop(e, 8)),
    "marked": (lambda e: marked(e, 2.0**16 - 1, False), lambda e: marked(e, 2.0**32 - 1, True)),
    "probe": (lambda e: aberrated(e, 1.5, 1.5), lambda e: aberrated(e, 4, 3, 2, 2)),
}


def quality(result: Reconstruction, exact: RawData) -> float:
    """SSIM of the amplitude."""
    return compare(result, exact.object)["amplitude"]["ssim"]


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


def measure(report: Report, name: str, data: RawData, exact: RawData) -> None:
    """One row: before and now."""
    before = quality(estimate(data, "joint", progress=False), exact)
    began = time.perf_counter()
    result = estimate(data, progress=False)
    report.add(name, before, quality(result, exact), result.info["goodness"]["ratio"], kept(result),
               f"{time.perf_counter() - began:.0f}")


def low_dose(report: Report, quick: bool) -> None:
    """The exact probe and defocused ones."""
    report.head("photons", "defocus / rad", "exact, fixed", "as given, fixed", "joint", "ladder", "rungs kept")
    for nphotons in (1e4,) if quick else (1e3, 1e4, 1e5):
        exact = exact_scan(nphotons)
        best = quality(estimate(as_measured(exact), "fixed", progress=False), exact)
        for defocus in (3.6,) if quick else (0.0, 1.5, 3.6, 6.0):
            data = as_measured(exact, probe=refocused(exact.probe, defocus))
            fixed, joint, ladder = (estimate(data, model, progress=False) for model in ("fixed", "joint", "auto"))
            scores = [quality(found, exact) for found in (fixed, joint, ladder)]
            report.add(f"{nphotons:.0e}", f"{defocus:g}", best, *scores, kept(ladder))


def clean(report: Report, quick: bool) -> None:
    """Scans without a fault."""
    report.head("clean scan", "photons", "fixed", "ladder", "goodness", "± ", "rungs kept that should not be")
    for seed in range(2 if quick else 12):
        nphotons, kind = 10.0 ** (3 + seed % 6), ("siemens_star", "lines")[seed % 2]
        exact = exact_scan(nphotons, kind=kind, seed=10 + seed)
        result = estimate(as_measured(exact), progress=False)
        wrong = [name for name in kept(result).split(", ") if name in CHANGES]
        found = result.info["goodness"]
        scores = [quality(item, exact) for item in (estimate(exact, progress=False), result)]
        report.add(f"{kind} {seed}", f"{nphotons:.0e}", *scores, found["ratio"], found["error"],
                   ", ".join(wrong) or "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"only these faults: {', '.join(FAULTS)}")
    parser.add_argument("--quick", action="store_true", help="small scans, the weaker of each fault")
    parser.add_argument("--low-dose", action="store_true", help="few photons and a defocused guess of the probe")
    parser.add_argument("--clean", action="store_true", help="scans without a fault")
    parser.add_argument("--folder", type=Path, help="scans and truths of another program instead")
    parser.add_argument("--out", type=Path, default=Path("runs/measured"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    report = Report(arguments.out)
    if arguments.names or not (arguments.low_dose or arguments.clean or arguments.folder):
        exact = exact_scan(n=121, size_px=200) if arguments.quick else exact_scan()
        report.head("fault", "joint", "ladder", "goodness", "rungs kept", "seconds")
        measure(report, "none", as_measured(exact), exact)
        for name in arguments.names or FAULTS:
            for strength, spoil in zip(("weak", "strong"), FAULTS[name], strict=True):
                if strength == "weak" or not arguments.quick:
                    measure(report, f"{name}, {strength}", spoil(exact), exact)
    if arguments.folder:
        report.head("scan", "joint", "ladder", "goodness", "rungs kept", "seconds")
        for truth in sorted(arguments.folder.glob("truth_*.npz")):
            with np.load(truth) as stored:
                name, exact = truth.stem.removeprefix("truth_"), replace(exact_scan(n=4), object=stored["object"])
            try:
                measure(report, name, load_data(arguments.folder / f"{name}.npz"), exact)
            except ValueError as refused:  # as it should be for some of them
                report.add(name, "refused", "refused", "", str(refused)[:120], "")
    if arguments.low_dose:
        low_dose(report, arguments.quick)
    if arguments.clean:
        clean(report, arguments.quick)


if __name__ == "__main__":
    main()
