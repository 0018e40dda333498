"""A finished run of `bench.py` into the repository: `python benchmarks/publish.py FOLDER`, or `--check`.

Copies results.json, and makes RESULTS.md and the table between the markers of nbs/index.ipynb from it, so that neither
is written by hand. Quick or incomplete runs are refused. `--limits` takes the part `limits` alone, of which nothing is
timed, from a run that may have only that one (`bench.py --parts limits`), and leaves the others as they were published.
`--check` compares, and exits with 1 if something is stale.
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

from summary import readme_table
from table import markdown

from ptycho_nb.files import read_json, replacing, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PLOT = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "scaling.png"
PAGE, NOTEBOOK = ROOT / "benchmarks" / "RESULTS.md", ROOT / "nbs" / "index.ipynb"
BEGIN, END = "<!-- made from benchmarks/results.json: make publish -->", "<!-- end of what is made -->"


def page(results: dict) -> str:
    """RESULTS.md."""
    return markdown(results["about"], results["rows"]).replace("](scaling.png)", f"](../docs/{PLOT.name})")


def with_table(notebook: str, results: dict) -> str:
    """The text of a notebook, with the table in place of what stands between the markers of its Markdown cells."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        lines = "".join(cell["source"]).split("\n")
        if cell["cell_type"] == "markdown" and BEGIN in lines:
            first, last = lines.index(BEGIN), lines.index(END)
            lines[first + 1 : last] = ["", *readme_table(results["rows"]), ""]
            cell["source"] = "\n".join(lines).splitlines(keepends=True)
            return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"  # as nbdev_clean writes it
    raise SystemExit(f"{NOTEBOOK.name} has no Markdown cell with the line {BEGIN}")


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def checked(folder: Path, asked: dict[str, str]) -> dict:
    """The results of a run that says this about itself."""
    results = read_json(folder / "results.json")
    for name, value in asked.items():
        if results["about"].get(name) != value:
            raise SystemExit(f"{folder}: {name} is {results['about'].get(name)!r}, not {value!r}: nothing is published")
    return results


def publish(folder: Path) -> None:
    """Put the results of a full run where readers look for them."""
    results = checked(folder, {"profile": "full", "complete": "yes"})
    text = with_table(NOTEBOOK.read_text(encoding="utf-8"), results)
    for source, target in ((folder / "results.json", RESULTS), (folder / "scaling.png", PLOT)):
        shutil.copyfile(source, target)
    write(PAGE, page(results))
    write(NOTEBOOK, text)


def with_limits(published: dict, results: dict) -> dict:
    """Published results with the limits of another run in place of theirs, after the quality rows."""
    rows = [row for row in published["rows"] if row["part"] != "limits"]
    after = max((k + 1 for k, row in enumerate(rows) if row["part"] == "quality"), default=len(rows))
    limits = [row for row in results["rows"] if row["part"] == "limits"]
    if not limits:
        raise SystemExit("a run without the part 'limits': nothing is published")
    said = f"of another run, started {results['about']['started']}, code {results['about']['code']}"
    return {"about": published["about"] | {"limits": said}, "rows": rows[:after] + limits + rows[after:]}


def publish_limits(folder: Path) -> None:
    """Put the limits alone where readers look for them."""
    results = with_limits(read_json(RESULTS), checked(folder, {"profile": "full"}))
    write_json(RESULTS, results)
    write(PAGE, page(results))


def stale() -> list[str]:
    """What does not follow from results.json; nothing before the first results are published."""
    if not RESULTS.exists():
        return []
    results, text = read_json(RESULTS), NOTEBOOK.read_text(encoding="utf-8")
    pairs = {PAGE.name: (page(results), PAGE.read_text(encoding="utf-8")),
             NOTEBOOK.name: (with_table(text, results), text)}
    return [f"{name} is not what results.json says: make publish"
            for name, (fresh, there) in pairs.items() if fresh != there]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "runs" / "bench", help="of the run")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--limits", action="store_true", help="the part limits alone")
    arguments = parser.parse_args()
    if not arguments.check:
        (publish_limits if arguments.limits else publish)(arguments.folder)
    faults = stale()
    print(*faults, sep="\n")
    sys.exit(len(faults) > 0)


if __name__ == "__main__":
    main()
