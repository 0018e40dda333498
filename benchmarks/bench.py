"""What the solvers reach and what they cost, in one run and one table: `python benchmarks/bench.py [--quick]`.

quality   every solver on simulated scans with known truth: probes × doses, with overlap and without
speed     how fast each part is, beside the matrix products of the same run
scaling   seconds and peak memory against the number and the size of the patterns
star      the measured Siemens star, if its file is at hand: agreement with a converged LSQML

Let nothing else run beside it: under 25 minutes on two cores (`--quick`: 4 minutes). Writes results.md, results.csv and
results.json after every row, so that an interrupted run leaves what it has measured, and scaling.png. Exits with 1 if a
part left no rows, or a row a number that is not finite. All choices are made by validation patterns; the truth of the
test half only scores. `publish.py` puts the results into the repository. With KERAS_BACKEND=jax the part `speed` needs
no TensorFlow.
"""
import argparse
import csv
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from summary import key_figures

from ptycho_nb.config import check_choice
from ptycho_nb.files import replacing, write_json
from ptycho_nb.machine import processors, versions

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("speed", "quality", "scaling", "star")  # rates first, in a fresh process
STAR_FILE = "siemens-star-small.npz.bz2"
COLUMNS = {  # name: title and format, in the order of the table
    "ssim": ("SSIM", ".4f"), "ssim_std": ("±", ".4f"), "psnr": ("PSNR (dB)", ".1f"), "frc50": ("FRC50", ".3f"),
    "pearson": ("Pearson of the phase", ".4f"), "relative_squared_error": ("relative squared error", ".4f"),
    "rate": ("rate", ".4g"), "unit": ("unit", "s"), "fraction": ("of the possible", ".3f"),
    "seconds": ("seconds", ".2f"), "cpu_seconds": ("CPU seconds", ".2f"), "peak_mb": ("peak MB", ".0f"),
    "note": ("", "s"),
}


class Table:
    """Rows of measurements, printed and written as they come. Every row has seconds by the clock and of all cores."""

    def __init__(self, out: Path | None = None, about: dict | None = None) -> None:
        self.rows: list[dict] = []
        self.out, self.about, self.began = out, about or {}, time.perf_counter()

    def add(self, part: str, case: str, method: str, seconds: float, cpu_seconds: float, **numbers) -> None:
        row = {"part": part, "case": case, "method": method, "seconds": seconds, "cpu_seconds": cpu_seconds, **numbers}
        unknown = set(numbers) - set(COLUMNS)
        assert not unknown, unknown
        self.rows.append(row)
        shown = "  ".join(f"{name} {text}" for name, text in shown_numbers(row).items() if text)
        print(f"{part}: {case}: {method}: {shown}", flush=True)
        if self.out is not None:
            self.about["minutes"] = round((time.perf_counter() - self.began) / 60, 1)
            write_results(self.out, self.about, self.rows)

    def faults(self, parts: list[str]) -> list[str]:
        """What a run of these parts should not leave behind."""
        missing = [f"{part}: no rows" for part in parts if all(row["part"] != part for row in self.rows)]
        return missing + [f"{row['part']}: {row['case']}: {row['method']}: {name} is {number}" for row in self.rows
                          for name, number in row.items() if isinstance(number, float) and not math.isfinite(number)]


def shown_numbers(row: dict) -> dict[str, str]:
    """The numbers of a row as the table shows them, by column."""
    return {name: "" if row.get(name) is None else format(row[name], style)
            for name, (_, style) in COLUMNS.items() if name in row}


def markdown(about: dict, rows: list[dict]) -> str:
    """The key figures and one table for each part."""
    lines = ["# Results", "", *(f"- {name}: {value}" for name, value in about.items())]
    figures = key_figures(rows)
    if figures:
        lines += ["", "## in short", "", "| what | measured |", "| --- | --- |"]
        lines += [f"| {what} | {value} |" for what, value in figures]
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part]
        used = [name for name in COLUMNS if any(row.get(name) is not None for row in own)]
        titles = ["case", "method", *(COLUMNS[name][0] for name in used)]
        lines += ["", f"## {part}", "", f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
        for row in own:
            texts = shown_numbers(row)
            lines.append(f"| {' | '.join([row['case'], row['method'], *(texts.get(name, '') for name in used)])} |")
        if part == "scaling":
            lines += ["", "![seconds and memory against number and size of patterns](scaling.png)"]
    return "\n".join(lines) + "\n"


def write_results(out: Path, about: dict, rows: list[dict]) -> None:
    """results.json, results.csv and results.md."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", {"about": about, "rows": rows})
    columns = ["part", "case", "method", *COLUMNS]
    with replacing(out / "results.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    with replacing(out / "results.md") as temporary:
        temporary.write_text(markdown(about, rows), encoding="utf-8")


def measured(work: Callable[[], object]) -> tuple[object, float, float]:
    """What `work` returns, and its seconds by the clock and of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _accelerator() -> str:
    """What the network's framework computes on, by name."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return f"{jax.devices()[0].device_kind} ({jax.devices()[0].platform})"
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(devices[0])["device_name"] if devices else "none"


def about_this_run(profile: str) -> dict:
    """The machine, the versions and the state of the code."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = versions(("ptycho_nb", "numpy", "scipy", "keras", "tensorflow", "jax", "ptychi", "torch"))
    return {
        "profile": profile, "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": found.pop("git", "unknown"), "processor": _processor(),
        "cores": len(processors()),
        "memory": f"{memory:.0f} GiB", "load at the start": f"{os.getloadavg()[0]:.1f}",
        "backend": os.environ.get("KERAS_BACKEND", "tensorflow"), "accelerator": _accelerator(),
        "versions": ", ".join(f"{name} {version}" for name, version in found.items()),
    }


def find_star() -> Path | None:
    """The measured scan, where it lies in `data/` of this checkout or in a folder beside it."""
    places = [ROOT / "data", *sorted(ROOT.parent.glob("data")), *sorted(ROOT.parent.glob("*/data"))]
    return next((place / STAR_FILE for place in places if (place / STAR_FILE).is_file()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work?")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", default="runs/benchmarks", help="folder for the results")
    parser.add_argument("--star", help=f"the measured scan; default: {STAR_FILE} in data/ here or beside this folder")
    arguments = parser.parse_args()
    for part in arguments.parts:
        check_choice("--parts", part, PARTS)
    star = Path(arguments.star) if arguments.star else find_star()
    about = about_this_run("quick" if arguments.quick else "full")
    about["measured scan"] = star.name if star else "not at hand: a defocused probe in place of the measured one"
    table = Table(Path(arguments.out), about)
    parts = [part for part in arguments.parts if part != "star" or star is not None]
    for part in parts:
        if part == "quality":
            import quality

            quality.measure(table, arguments.quick, star)
        elif part == "speed":
            import speed

            speed.measure(table, arguments.quick)
        elif part == "scaling":
            import scaling

            scaling.measure(table, arguments.quick, table.out)
        else:
            import star as measured_star

            measured_star.measure(table, arguments.quick, star)
    faults = table.faults(parts)
    about["complete"] = "no" if faults or set(arguments.parts) != set(PARTS) else "yes"
    write_results(table.out, about, table.rows)
    print(f"{about['minutes']} minutes; written to {table.out}/results.md, .csv and .json", *faults, sep="\n")
    sys.exit(len(faults) > 0)


if __name__ == "__main__":
    main()
