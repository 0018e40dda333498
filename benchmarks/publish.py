"""A finished run of `bench.py` into the repository: `python benchmarks/publish.py FOLDER`, or `--check`.

Copies results.json, and makes RESULTS.md and the table between the markers of nbs/index.ipynb from it, so that neither
is written by hand. Quick or incomplete runs are refused. `--check` compares, and exits with 1 if something is stale.
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

from summary import readme_table
from table import markdown

from ptycho_nb.files import read_json, replacing

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


def publish(folder: Path) -> None:
    """Put the results of a full run where readers look for them."""
    results = read_json(folder / "results.json")
    for name, asked in {"profile": "full", "complete": "yes"}.items():
        if results["about"].get(name) != asked:
            raise SystemExit(f"{folder}: {name} is {results['about'].get(name)!r}, not {asked!r}: nothing is published")
    text = with_table(NOTEBOOK.read_text(encoding="utf-8"), results)
    for source, target in ((folder / "results.json", RESULTS), (folder / "scaling.png", PLOT)):
        shutil.copyfile(source, target)
    write(PAGE, page(results))
    write(NOTEBOOK, text)


def stale() -> list[str]:
    """What does not follow from results.json; nothing before the first results are published."""
    if not RESULTS.exists():
        return []
    results, found = read_json(RESULTS), NOTEBOOK.read_text(encoding="utf-8")
    pairs = {PAGE.name: (page(results), PAGE.read_text(encoding="utf-8")),
             NOTEBOOK.name: (with_table(found, results), found)}
    return [f"{name} is not what results.json says: make publish"
            for name, (made, there) in pairs.items() if made != there]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "runs" / "bench", help="of the run")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    if not arguments.check:
        publish(arguments.folder)
    faults = stale()
    print(*faults, sep="\n")
    sys.exit(len(faults) > 0)


if __name__ == "__main__":
    main()
