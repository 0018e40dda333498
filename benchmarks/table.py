"""Rows of measurements: printed and written as they come, and shown as one table for each part of the benchmark."""
import csv
import math
import time
from collections.abc import Callable
from pathlib import Path

from summary import key_figures

from ptycho_nb.files import replacing, write_json

COLUMNS = {  # name: title and format, in the order of the table
    "ssim": ("SSIM", ".4f"), "ssim_std": ("±", ".4f"), "psnr": ("PSNR (dB)", ".1f"), "frc50": ("FRC50", ".3f"),
    "frc50_smoothed": ("smoothed", ".3f"), "frc50_low": ("from", ".3f"), "frc50_high": ("to", ".3f"),
    "of_limit": ("of the limit", ".2f"),
    "pearson": ("Pearson of the phase", ".4f"), "relative_squared_error": ("relative squared error", ".4f"),
    "rate": ("rate", ".4g"), "unit": ("unit", "s"), "fraction": ("of the possible", ".3f"),
    "seconds": ("seconds", ".2f"), "cpu_seconds": ("CPU seconds", ".2f"), "peak_mb": ("peak MB", ".0f"),
    "note": ("", "s"),
}


class Table:
    """Rows of measurements, printed and written as they come, with seconds by the clock and of all cores."""

    def __init__(self, out: Path | None = None, about: dict | None = None) -> None:
        self.rows: list[dict] = []
        self.out, self.about, self.began = out, about or {}, time.perf_counter()

    def add(self, part: str, case: str, method: str, seconds: float | None, cpu_seconds: float | None,
            **numbers) -> None:
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
