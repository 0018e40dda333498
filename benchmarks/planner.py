"""Does a plan come true? `python benchmarks/planner.py run first|second|unseen FILE [--seconds S]`, `... table FILE`.

run: scans of the two calibration sets, or of a third, which shares no family of objects and no probe with them. Each
case is simulated at five doses around what is planned, reconstructed without a network, and scored against its object.
What is in FILE (a JSON value a line) is kept: a run that was stopped goes on.
table: photons that were planned by those that were needed, and how often the intervals hold, by the plans that the
library makes now. They know the spectrum of *another* sample of the same family, or a contrast alone.
factors: photons that were needed by those of the limit, from the files of both calibration sets: 5, 50 and 95 % at the
overlaps of the library's table.
"""
import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from ptycho_nb.analysis.limits import frc_resolution
from ptycho_nb.analysis.metrics import frc
from ptycho_nb.config import SimulationConfig
from ptycho_nb.data.simulation import generate_simulated_data
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import defocused_probe, disk_probe, normalise_probe, probe_diameter_px
from ptycho_nb.physics.scans import make_positions
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.gauge import aligned_pair
from ptycho_nb.solvers.result import covered_region
from ptycho_nb.studies.fidelity import part_of
from ptycho_nb.studies.plan import plan
from ptycho_nb.studies.plan_result import Plan
from ptycho_nb.studies.prediction import PHOTONS, light_of, limit_frc50, why_unknown
from ptycho_nb.studies.spectra import contrast_spectrum, image_spectrum, random_mosaic

N = 64
LEAST_SIDE, SIDE = 64, 96  # px of the field: 40 to some 400 patterns
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the planned photons


def focused_probe(radius_px: float = 5.0) -> np.ndarray:
    "An aperture in focus: a bright spot with rings."
    y, x = np.indices((N, N)) - N // 2
    pupil = np.hypot(y, x) < 0.61 * N / radius_px
    return normalise_probe(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(pupil))))[0]


def gaussian_probe(deviation_px: float) -> np.ndarray:
    "A Gaussian spot of flat phase."
    y, x = np.indices((N, N)) - N // 2
    return normalise_probe(np.exp(-(x**2 + y**2) / (2 * deviation_px**2)).astype(np.complex64))[0]


def speckled_probe(seed: int = 3) -> np.ndarray:
    "A diffuser's light: speckle of 4 px inside a soft disk of 24 px."
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((N, N)) + 1j * rng.standard_normal((N, N))
    field = gaussian_filter(noise.real, 2) + 1j * gaussian_filter(noise.imag, 2)
    return normalise_probe((field * np.abs(disk_probe(N, 12.0))).astype(np.complex64))[0]


def annular_probe() -> np.ndarray:
    "A soft ring of 14 px with a hole of 7 px, curved by a wave and a half."
    light = np.abs(disk_probe(N, 14.0)) - np.abs(disk_probe(N, 7.0))
    curved = np.exp(1j * np.angle(defocused_probe(N, 14.0, 1.5)))
    return normalise_probe((light * curved).astype(np.complex64))[0]


def vortex_probe() -> np.ndarray:
    "A Gaussian ring whose phase turns once around its middle."
    y, x = np.indices((N, N)) - (N - 1) / 2
    field = np.hypot(y, x) * np.exp(-(x**2 + y**2) / (2 * 4.5**2)) * np.exp(1j * np.arctan2(y, x))
    return normalise_probe(field.astype(np.complex64))[0]


def text(size_px: int, rng: np.random.Generator) -> np.ndarray:
    "Lines of letters, of several sizes."
    image = Image.new("L", (size_px, size_px))
    draw, y = ImageDraw.Draw(image), 2
    while y < size_px:
        height = int(rng.integers(9, 22))
        word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz ")) for _ in range(60))
        draw.text((-int(rng.integers(0, 9)), y), word, fill=255, font=ImageFont.load_default(size=height))
        y += height + 3
    return gaussian_filter(np.asarray(image, float) / 255, 0.5)


def disks(size_px: int, rng: np.random.Generator) -> np.ndarray:
    "Disks of one size that lie on each other, as dead leaves do, each of its own grey."
    y, x = np.indices((size_px, size_px))
    image, radius_px = np.zeros((size_px, size_px)), rng.uniform(4, 9)
    for _ in range(int(3 * (size_px / radius_px) ** 2)):
        centre = rng.uniform(0, size_px, 2)
        low, high = (np.clip(centre + shift, 0, size_px).astype(int) for shift in (-radius_px, radius_px + 2))
        part = (slice(low[0], high[0]), slice(low[1], high[1]))
        image[part][np.hypot(y[part] - centre[0], x[part] - centre[1]) < radius_px] = rng.random()
    return gaussian_filter(image, 0.5)


def mosaic(size_px: int, rng: np.random.Generator) -> np.ndarray:
    "Cells of either of two materials, softened."
    return gaussian_filter(random_mosaic(size_px, rng.uniform(5, 15), rng).astype(float), 0.5)


def grains(size_px: int, rng: np.random.Generator) -> np.ndarray:
    "A random field through a threshold, softened."
    smooth = gaussian_filter(rng.standard_normal((size_px, size_px)), rng.uniform(1.5, 4), mode="wrap")
    return gaussian_filter((smooth > 0).astype(float), 0.6)


def cracks(size_px: int, rng: np.random.Generator) -> np.ndarray:
    "The borders between cells, a pixel or two wide."
    seeds = rng.uniform(0, size_px, (int((size_px / rng.uniform(10, 20)) ** 2), 2))
    pixels = np.stack(np.indices((size_px, size_px)), axis=-1).reshape(-1, 2)
    near = cKDTree(seeds).query(pixels, 2)[0]
    return gaussian_filter((np.diff(near, axis=1) < 1.5).reshape(size_px, size_px).astype(float), 0.6)


def labyrinth(size_px: int, rng: np.random.Generator) -> np.ndarray:
    "Winding bands of one width."
    noise, width = rng.standard_normal((size_px, size_px)), rng.uniform(1.5, 3)
    band = gaussian_filter(noise, width, mode="wrap") - gaussian_filter(noise, 1.6 * width, mode="wrap")
    return 0.5 + 0.5 * np.tanh(2 * band / band.std())


def blocks(size_px: int, rng: np.random.Generator) -> np.ndarray:
    "Rectangles of many sizes that lie on each other, each of its own grey."
    image = np.zeros((size_px, size_px))
    for _ in range(int((size_px / 5) ** 2)):
        (y, x), (high, wide) = rng.integers(-20, size_px, 2), np.exp(rng.uniform(1, 3.3, 2)).astype(int)
        image[max(y, 0) : max(y + high, 0), max(x, 0) : max(x + wide, 0)] = rng.random()
    return gaussian_filter(image, 0.4)


def bubbles(size_px: int, rng: np.random.Generator) -> np.ndarray:
    "Thin round walls of many sizes."
    y, x = np.indices((size_px, size_px))
    image = np.zeros((size_px, size_px))
    for _ in range(int((size_px / 12) ** 2)):
        (v, u), radius_px = rng.uniform(0, size_px, 2), np.exp(rng.uniform(1.2, 2.8))
        image = np.maximum(image, np.exp(-((np.hypot(y - v, x - u) - radius_px) ** 2)))
    return image


def sample(case: dict, other: bool = False) -> np.ndarray:
    """The complex transmission of a sample, or of another region of it, SIDE + N + 8 px wide.

    The phase spans 1.6 rad times the contrast.
    """
    family, contrast, size_px = case["family"], case["contrast"], SIDE + N + 8
    seed, whole_px = case["seed"], 2 * size_px
    if family in MADE:
        amplitude, phase = (MADE[family](whole_px, rng) for rng in np.random.default_rng(seed).spawn(2))
        amplitude, phase = 0.5 + 0.5 * amplitude, 1.6 * phase - 0.8
    else:
        image = make_object(family, whole_px, seed, phase=True)
        amplitude, phase = np.abs(image), np.angle(image)
    whole = ((1 - contrast * (1 - amplitude)) * np.exp(1j * contrast * phase)).astype(np.complex64)
    return whole[-size_px:, -size_px:] if other else whole[:size_px, :size_px]


MADE = {"text": text, "grains": grains, "disks": disks, "mosaic": mosaic, "cracks": cracks, "labyrinth": labyrinth,
        "blocks": blocks, "bubbles": bubbles}
SETS = {  # families, probes, overlaps, contrasts, seed
    "first": (("shapes", "random_field", "grains", "disks", "mosaic"),
            {"defocused 14 px, 2 waves": defocused_probe(N), "disk 14 px": disk_probe(N),
             "defocused 10 px, 1 wave": defocused_probe(N, 10.0, 1.0), "Gaussian 7 px": gaussian_probe(7.0),
             "defocused 16 px, 3.5 waves": defocused_probe(N, 16.0, 3.5)},
            (0.8, 0.7, 0.6, 0.45), (1.0, 0.3), 100),
    "second": (("lines", "siemens_star", "points", "text"),
             {"defocused 12 px, 2.5 waves": defocused_probe(N, 12.0, 2.5), "focused 5 px": focused_probe(),
              "speckled 12 px": speckled_probe(), "disk 10 px": disk_probe(N, 10.0)},
             (0.85, 0.75, 0.65, 0.58, 0.45), (0.7, 0.2), 200),
    "unseen": (("cracks", "labyrinth", "blocks", "bubbles"),
               {"defocused 18 px, 3 waves": defocused_probe(N, 18.0, 3.0), "focused 8 px": focused_probe(8.0),
                "annular 14 px": annular_probe(), "vortex": vortex_probe()},
               (0.86, 0.78, 0.68, 0.6), (0.9, 0.4, 0.15), 300)}


def cases(which: str) -> list[dict]:
    "The cases of a set: every family with every probe and overlap, part, contrast and target drawn for each."
    families, probes, overlaps, contrasts, seed = SETS[which]
    rng, designs = np.random.default_rng(seed), []
    for family, probe, overlap in itertools.product(families, probes, overlaps):
        designs.append({"family": family, "probe": probe, "overlap": overlap, "seed": seed + len(designs),
                        "contrast": float(rng.choice(contrasts)), "part": str(rng.choice(["amplitude", "phase"])),
                        "target": round(float(rng.uniform(0.25, 0.8)), 2)})
    order = rng.permutation(len(designs))
    return [designs[k] for k in order]


def middle(image: np.ndarray) -> np.ndarray:
    "The part of a sample that a scan covers."
    return image[N // 2 + 4 : -N // 2 - 4, N // 2 + 4 : -N // 2 - 4]


def looks(case: dict, image: np.ndarray) -> dict:
    "What somebody would say of a sample who knows a contrast alone: its extent, and how wide the features are."
    part = part_of(image, case["part"])
    low, high = np.quantile(part, (0.02, 0.98))
    bright = part > (low + high) / 2
    feature_px = part.size / max(np.sum(bright[:, 1:] != bright[:, :-1]), 1)
    contrast = {"phase_rad": high - low} if case["part"] == "phase" else {"absorption": 1 - (low / high) ** 2}
    return {"feature_px": float(feature_px), **{name: float(value) for name, value in contrast.items()}}


def reached(case: dict, image: np.ndarray, probe: np.ndarray, step_px: float, photons: float) -> float:
    "FRC50 of the part against the object, after a scan with so many photons a pattern."
    side = min(SIDE, max(LEAST_SIDE, 15 * step_px))
    low, high = image.shape[0] / 2 - side / 2, image.shape[0] / 2 + side / 2
    n = max(9, round((side / step_px) ** 2))
    positions = make_positions("jittered", n, (low, high, low, high), case["seed"])
    config = SimulationConfig(N=N, nphotons=photons, seed=case["seed"], n_train=1, n_test=1)
    scan = generate_simulated_data(config, image, probe, positions)
    result = estimate(scan, model="fixed", progress=False)
    aligned, truth, _ = aligned_pair(result, image, covered_region(result))
    return frc_resolution(frc(part_of(aligned, case["part"]), part_of(truth, case["part"])), draws=1).value


def needed(photons: list[float], frc50: list[float], target: float) -> float:
    "The photons at which the target is reached, between those tried; infinite or 0 where it lies outside."
    rising = np.maximum.accumulate(frc50)
    if rising[0] >= target or rising[-1] < target:
        return 0.0 if rising[0] >= target else np.inf
    k = int(np.argmax(rising >= target))
    part = (target - rising[k - 1]) / (rising[k] - rising[k - 1])
    return float(photons[k - 1] * (photons[k] / photons[k - 1]) ** part)


def plans(row: dict) -> dict[str, Plan]:
    "What the library plans from the sample itself, from another region of it, and from its contrast."
    image, other = (middle(sample(row, other)) for other in (False, True))
    asked = {"probe": SETS[row["set"]][1][row["probe"]], "step_px": row["step_px"], "part": row["part"]}
    asked |= {"frc50": row["target"]}
    return {"itself": plan(sample=image, **asked), "another region": plan(sample=other, **asked),
            "contrast": plan(**looks(row, other), **asked)}


def measure(which: str, case: dict) -> dict:
    "Plan a case from another sample of its family, and see."
    probe, image = SETS[which][1][case["probe"]], sample(case)
    case = case | {"set": which, "step_px": (1 - case["overlap"]) * probe_diameter_px(probe)}
    planned = plans(case)["another region"].photons_per_pattern.value
    curve = [[factor * planned, reached(case, image, probe, case["step_px"], factor * planned)] for factor in FACTORS]
    return case | {"seen": curve, "needed": needed(*map(list, zip(*curve, strict=True)), case["target"])}


def run(which: str, path: Path, seconds: float) -> None:
    "Measure what is not in the file yet, until the time is over."
    began, key = time.perf_counter(), ("family", "probe", "overlap")
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {tuple(row[name] for name in key) for row in done}
    for case in cases(which):
        if tuple(case[name] for name in key) in known:
            continue
        if time.perf_counter() - began > seconds:
            print("not finished: run it again")
            return
        start = time.perf_counter()
        row = measure(which, case)
        row["seconds"] = time.perf_counter() - start
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{row['family']:14} {row['probe']:24} {row['overlap']:.2f} {row['part']:9} FRC50 {row['target']:.2f} "
              f"planned {row['seen'][2][0]:.2g} needed {row['needed']:.2g}, {row['seconds']:.0f} s", flush=True)
    print("finished")


def table(path: Path) -> None:
    "How well the plans of the library hold for what was measured."
    rows, checks = [json.loads(line) for line in path.read_text().splitlines()], []
    unsaid = [row for row in rows if "cannot be told" in plans(row)["itself"].sentence]
    print(f"{len(rows)} cases, of which the plan says of {len(unsaid)} that it cannot be told: they are left out below")
    for row in (row for row in rows if row not in unsaid):
        for name, planned in plans(row).items():
            photons = planned.photons_per_pattern
            curve = {key: np.array([item[key] for item in planned.curve]) for key in planned.curve[0]}
            for given, frc50 in row["seen"]:
                if 0.1 < frc50 < 0.97:
                    expected, low, high = (np.interp(np.log(given), np.log(curve["photons_per_pattern"]), curve[key])
                                           for key in ("frc50", "low", "high"))
                    rising = np.arange(len(curve["frc50"])) * 1e-9 + curve["frc50"]
                    asked = np.exp(np.interp(frc50, rising, np.log(curve["photons_per_pattern"])))
                    checks.append((name, "scan", row["overlap"], given / asked, low <= frc50 <= high, frc50 - expected))
            checks.append((name, "target", row["overlap"], row["needed"] / photons.value,
                           photons.low <= row["needed"] <= photons.high, 0.0))
            if name == "another region":
                inside = "" if checks[-1][4] else "outside"
                print(f"{row['family']:14} {row['probe']:26} {row['overlap']:.2f} {row['part']:9} {row['contrast']} "
                      f"FRC50 {row['target']:.2f} needed {row['needed']:8.2g} by planned {checks[-1][3]:5.2f} {inside}")
    for name, what in itertools.product(("itself", "another region", "contrast"), ("target", "scan")):
        for overlap in (None, *sorted({item[2] for item in checks})):
            some = [item for item in checks if item[:2] == (name, what) and overlap in (None, item[2])]
            ratio, error = np.array([item[3] for item in some]), np.array([item[5] for item in some])
            away = abs(np.log(np.clip(ratio, 1e-9, 1e9)))
            close = np.mean(away < np.log(1.5))
            print(f"{name}, {what}, overlap {overlap or 'all'}: {len(some)}; within 1.5: {close:.0%}, "
                  f"2: {np.mean(away < np.log(2)):.0%}; inside {np.mean([item[4] for item in some]):.0%}; 5, 50, 95 %: "
                  f"{np.round(np.quantile(ratio, (0.05, 0.5, 0.95), method='nearest'), 2).tolist()}; FRC50 rms "
                  f"{np.sqrt(np.mean(error**2)):.3f}, mean {error.mean():+.3f}")


def factors(paths: list[Path]) -> None:
    "Photons that were needed by those of the limit, around each overlap of the library's table."
    rows, samples = [json.loads(line) for path in paths for line in path.read_text().splitlines()], []
    for row in rows:
        light, other = light_of(SETS[row["set"]][1][row["probe"]], row["step_px"]), middle(sample(row, True))
        if why_unknown(light):
            continue
        spectra = {"another region": image_spectrum(other, row["part"]),
                   "contrast": contrast_spectrum(**looks(row, other), part=row["part"])}
        limits = {name: limit_frc50(light, spectrum) for name, spectrum in spectra.items()}
        for (name, limit), (given, frc50) in itertools.product(limits.items(), row["seen"]):
            if 0.1 < frc50 < 0.97:
                rising = limit + np.arange(len(limit)) * 1e-9
                least = np.exp(np.interp(frc50, rising, np.log(PHOTONS)))
                samples.append((name, row["overlap"], given / least))
    for name, (middle_of, low, high) in itertools.product(
            ("another region", "contrast"), ((0.6, 0.57, 0.66), (0.7, 0.64, 0.76), (0.8, 0.74, 0.86))):
        some = [item[2] for item in samples if item[0] == name and low <= item[1] <= high]
        print(f"{name}, overlap {middle_of}: {len(some)} scans, 5, 50, 95 %: "
              f"{np.round(np.quantile(some, (0.05, 0.5, 0.95)), 2).tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "factors"))
    parser.add_argument("words", nargs="+", help="run: a set, and the file; table: the file; factors: files")
    parser.add_argument("--seconds", type=float, default=270)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.words[0], Path(arguments.words[1]), arguments.seconds)
    elif arguments.what == "factors":
        factors([Path(word) for word in arguments.words])
    else:
        table(Path(arguments.words[0]))


if __name__ == "__main__":
    main()
