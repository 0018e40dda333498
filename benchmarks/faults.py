"""Scans with one fault each, at two strengths: what `measured.py` tries.

Every fault makes a `Faulty`: the scan as a file would hold it, and where the model of a measurement can hold the fault
exactly (modes, a mask, a background, light, positions) the same scan with the fault known.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from ptycho_nb.config import SimulationConfig
from ptycho_nb.data.scan import RawData
from ptycho_nb.data.simulation import generate_simulated_data
from ptycho_nb.data.windows import with_readout_noise
from ptycho_nb.physics.detector import Detector
from ptycho_nb.physics.forward import Layout, scan_amplitudes
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import defocused_probe, make_probe
from ptycho_nb.physics.scans import make_positions
from ptycho_nb.solvers.fit import orthogonal_modes

N = 64
Y, X = np.indices((N, N)) - N // 2
RADIUS = np.hypot(Y, X)
_MODES = 12  # of a known fault that blurs: the weaker ones hold less than 1e-4 of the light


@dataclass(frozen=True)
class Faulty:
    """A spoiled scan, and the same with its fault known."""

    data: RawData
    known: RawData | None = None


Spoil = Callable[[RawData], Faulty]


def exact_scan(nphotons: float = 1e6, n: int = 289, size_px: int = 256, kind: str = "siemens_star",
               seed: int = 1) -> RawData:
    """A jittered raster over a complex object."""
    return _scan(make_probe("defocused", N), nphotons, n, size_px, kind, seed)


def smaller_scan(nphotons: float = 3e5, n: int = 196, size_px: int = 236, seed: int = 23) -> RawData:
    """Fewer patterns and photons and a smaller, more strongly curved probe."""
    return _scan(defocused_probe(N, 12.0, 2.5), nphotons, n, size_px, "siemens_star", seed)


def _scan(probe: np.ndarray, nphotons: float, n: int, size_px: int, kind: str, seed: int) -> RawData:
    positions = make_positions("jittered", n, (40, size_px - 40, 40, size_px - 40), seed=seed + 1)
    config = SimulationConfig(nphotons=nphotons, probe_kind="defocused", object_phase=True, seed=seed)
    return generate_simulated_data(config, make_object(kind, size_px, seed=seed, phase=True), probe, positions)


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


def with_modes(data: RawData, modes: np.ndarray) -> RawData:
    """A scan that knows its modes."""
    modes = orthogonal_modes(modes.astype(np.complex64))[:_MODES]
    return replace(data, probe=modes[0], weaker_modes=modes[1:])


def with_positions(exact: RawData, positions_px: np.ndarray) -> Faulty:
    """Other positions in the file than those of the counts."""
    return Faulty(as_measured(exact, positions_px=positions_px), as_measured(exact))


def affine(exact: RawData, percent: float, degrees: float) -> Faulty:
    """Positions scaled by some percent, turned by some degrees, and sheared by half the percent."""
    middle, turn = exact.positions_px.mean(axis=0), np.radians(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.array([[1 + percent / 100, percent / 200], [0, 1 + percent / 100]])
    return with_positions(exact, (exact.positions_px - middle) @ matrix.T + middle)


def drift(exact: RawData, px: float) -> Faulty:
    """A stage that drifts by so many pixels, not at one speed."""
    t = np.linspace(0, 1, exact.n_patterns)
    path = px * np.stack([t + 0.4 * np.sin(9 * t), 0.6 * np.cos(2 + 6 * t) - 0.8 * t], axis=1)
    return with_positions(exact, exact.positions_px + path - path.mean(axis=0))


def jitter(exact: RawData, px: float) -> Faulty:
    """Every position wrong by itself (standard deviation along each axis)."""
    errors = np.random.default_rng(5).normal(0, px, exact.positions_px.shape)
    return with_positions(exact, exact.positions_px + errors)


def mirrored(exact: RawData, swapped: bool) -> Faulty:
    """x counted the other way, or x and y exchanged."""
    middle = exact.positions_px.mean(axis=0)
    turned = (exact.positions_px - middle)[:, ::-1] if swapped else (exact.positions_px - middle) * [1, -1]
    return with_positions(exact, turned + middle)


def units(exact: RawData, per_px: float) -> Faulty:
    """Positions in another unit than pixels, and nothing that says so."""
    return with_positions(exact, exact.positions_px * per_px)


def decay(exact: RawData, depth: float, with_top_up: bool) -> Faulty:
    """Light that dwindles by a share of it; refilled in the middle, or flickering as well."""
    t = np.linspace(0, 1, exact.n_patterns)
    light = 1 - depth * ((2 * t) % 1 if with_top_up else t)
    light *= np.random.default_rng(3).normal(1, 0.05, len(t)) if with_top_up else 1
    data = counted(exact, rates(exact) * light[:, None, None])
    return Faulty(data, replace(data, light=light / light.mean()))


def further_modes(exact: RawData, *shares: float) -> Faulty:
    """Light in other modes that are incoherent with the first: each with its share of all."""
    modes, powers = [exact.probe], (1 - sum(shares), *shares)
    for order in range(len(shares)):
        last = modes[order // 2]
        new = np.roll(last, 2, order % 2) - np.roll(last, -2, order % 2)
        for mode in modes:
            new = new - mode * np.vdot(mode, new) / np.vdot(mode, mode)
        modes.append(new)
    every = np.stack([mode * np.sqrt(power) / np.linalg.norm(mode) for mode, power in zip(modes, powers, strict=True)])
    data = counted(exact, rates(exact, every.astype(np.complex64)))
    return Faulty(data, with_modes(data, every))


def fly(exact: RawData, px: float) -> Faulty:
    """A stage that moves along x by so many pixels while it is counted."""
    steps = np.linspace(-0.5, 0.5, 9) * px
    data = counted(exact, np.mean([rates(exact, moved_px=np.array([0, step])) for step in steps], axis=0))
    ramp = np.exp(-2j * np.pi * np.fft.fftfreq(N) * steps[:, None])[:, None]
    return Faulty(data, with_modes(data, np.fft.ifft2(np.fft.fft2(exact.probe) * ramp)))


def blurred(exact: RawData, sigma_px: float) -> Faulty:
    """A detector whose pixels share their charge."""
    data = counted(exact, gaussian_filter(rates(exact), (0, sigma_px, sigma_px)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    ramps = np.exp(2j * np.pi * sigma_px * nodes[:, None] * (np.arange(N) - N // 2) / N) * np.sqrt(weights)[:, None]
    tilted = exact.probe * ramps[:, None, :, None] * ramps[None, :, None]
    return Faulty(data, with_modes(data, tilted.reshape(-1, N, N)))


def foggy(exact: RawData, background: np.ndarray, given: bool = False) -> Faulty:
    """A background (N, N) of so many photons in each pattern, which the file may give."""
    known = counted(exact, rates(exact) + background, detector=Detector(np.ones((N, N), bool), background))
    return Faulty(known if given else replace(known, detector=None), known)


def flat(photons: float) -> np.ndarray:
    """The same everywhere."""
    return np.full((N, N), float(photons))


def ring(photons: float) -> np.ndarray:
    """A ring."""
    return photons * np.exp(-((RADIUS - 18) / 5) ** 2)


def halo(photons: float) -> np.ndarray:
    """Scattering that decays with the angle."""
    return photons / (1 + (RADIUS / 9) ** 2)


def structured(photons: float) -> np.ndarray:
    """A dark frame: an edge that glows, columns that differ, a warm spot."""
    columns = np.random.default_rng(4).uniform(0.3, 1.7, N)
    return photons * (columns * (1 + np.exp(-(X + 32) / 10)) + 3 * np.exp(-((Y - 12) ** 2 + (X - 9) ** 2) / 30)) / 2


def spoiled(exact: RawData, counts: Callable[[np.ndarray], None], good: np.ndarray | None = None) -> Faulty:
    """Counts that a function changes in place, and the pixels that it leaves."""
    changed = np.square(exact.diff3d, dtype=float)
    counts(changed)
    data = as_measured(exact, diff3d=np.sqrt(changed).astype(np.float32))
    return Faulty(data, None if good is None else replace(data, detector=Detector(good)))


def saturated(exact: RawData, share: float, end: float | None = None) -> Faulty:
    """Counts that end at a share of the largest; at 2^16 - 1 if the gain is such that this is the end."""
    counts = np.square(exact.diff3d, dtype=float)
    level = np.rint(share * counts.max())
    if end is not None:  # as many photons as it takes
        rate = rates(exact)
        rate *= end / (share * rate.max())
        counts, level = np.random.default_rng(7).poisson(rate).astype(float), end
    data = as_measured(exact, diff3d=np.sqrt(np.minimum(counts, level)).astype(np.float32))
    return Faulty(data, replace(data, detector=Detector(np.ones((N, N), bool), end=level)))


def beam_stop(exact: RawData, radius_px: int, given: bool) -> Faulty:
    """A disk in the centre that lets nothing through."""
    outside = radius_px <= RADIUS

    def stop(counts: np.ndarray) -> None:
        counts[:, ~outside] = 0
    faulty = spoiled(exact, stop, outside)
    return Faulty(faulty.known, faulty.known) if given else faulty


def marked(exact: RawData, value: float, some: bool) -> Faulty:
    """Pixels that could not be read and hold a value that says so; some of them in some patterns only."""
    rng = np.random.default_rng(2)
    pixels = rng.choice(N * N, 60, replace=False)

    def mark(counts: np.ndarray) -> None:
        flat = counts.reshape(len(counts), -1)
        flat[:, pixels] = np.where(rng.uniform(size=(len(flat), 60)) < (0.2 if some else 1.0), value, flat[:, pixels])
    return spoiled(exact, mark, ~np.isin(np.arange(N * N), pixels).reshape(N, N))


def noisy(exact: RawData, sigma: float, given: bool = False) -> Faulty:
    """An integrating detector: Gaussian noise on the counts, and what falls below zero is stored as zero."""
    noise = np.random.default_rng(9).normal(0, sigma, exact.diff3d.shape)

    def read_out(counts: np.ndarray) -> None:
        np.maximum(counts + noise, 0, out=counts)
    data = spoiled(exact, read_out).data
    known = with_readout_noise(data, sigma)
    return Faulty(known if given else data, known)


def aberrated(exact: RawData, defocus: float, astigmatism: float = 0.0, coma: float = 0.0,
              spherical: float = 0.0) -> Faulty:
    """A probe guess with wrong phases (rad at the Nyquist frequency)."""
    y, x = np.meshgrid(*2 * [2 * np.fft.fftfreq(N)], indexing="ij")
    r2 = y**2 + x**2
    phase = defocus * r2 + astigmatism * (y**2 - x**2 + y * x) + coma * y * r2 + spherical * r2**2
    probe = np.fft.ifft2(np.fft.fft2(exact.probe) * np.exp(1j * phase)).astype(np.complex64)
    return Faulty(as_measured(exact, probe=probe), as_measured(exact))


FAULTS: dict[str, tuple[Spoil, Spoil]] = {  # the weaker first
    "affine": (lambda e: affine(e, 1, 0.5), lambda e: affine(e, 2, -1)),
    "drift": (lambda e: drift(e, 1), lambda e: drift(e, 3)),
    "jitter": (lambda e: jitter(e, 0.5), lambda e: jitter(e, 1.5)),
    "mirrored": (lambda e: mirrored(e, False), lambda e: mirrored(e, True)),
    "units": (lambda e: units(e, 0.25), lambda e: units(e, 0.03)),
    "decay": (lambda e: decay(e, 0.3, False), lambda e: decay(e, 0.5, True)),
    "two modes": (lambda e: further_modes(e, 0.15), lambda e: further_modes(e, 0.35)),
    "three modes": (lambda e: further_modes(e, 0.12, 0.06), lambda e: further_modes(e, 0.25, 0.15)),
    "four modes": (lambda e: further_modes(e, 0.1, 0.06, 0.03), lambda e: further_modes(e, 0.22, 0.15, 0.1)),
    "fly": (lambda e: fly(e, 3), lambda e: fly(e, 8)),
    "blur": (lambda e: blurred(e, 0.6), lambda e: blurred(e, 1.2)),
    "background": (lambda e: foggy(e, flat(1)), lambda e: foggy(e, flat(10))),
    "ring": (lambda e: foggy(e, ring(3)), lambda e: foggy(e, ring(30))),
    "halo": (lambda e: foggy(e, halo(5)), lambda e: foggy(e, halo(50))),
    "dark frame": (lambda e: foggy(e, structured(1)), lambda e: foggy(e, structured(10))),
    "dark frame given": (lambda e: foggy(e, structured(1), True), lambda e: foggy(e, structured(10), True)),
    "saturation": (lambda e: saturated(e, 0.5), lambda e: saturated(e, 0.1)),
    "saturation at 65535": (lambda e: saturated(e, 0.5, 65535.0), lambda e: saturated(e, 0.1, 65535.0)),
    "beam stop": (lambda e: beam_stop(e, 4, False), lambda e: beam_stop(e, 8, False)),
    "beam stop given": (lambda e: beam_stop(e, 4, True), lambda e: beam_stop(e, 8, True)),
    "marked": (lambda e: marked(e, 2.0**16 - 1, False), lambda e: marked(e, 2.0**32 - 1, True)),
    "readout noise": (lambda e: noisy(e, 0.5), lambda e: noisy(e, 2.0)),
    "readout noise given": (lambda e: noisy(e, 0.5, True), lambda e: noisy(e, 2.0, True)),
    "probe": (lambda e: aberrated(e, 1.5, 1.5), lambda e: aberrated(e, 4, 3, 2, 2)),
}
