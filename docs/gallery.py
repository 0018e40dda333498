"""Run the study notebooks with their defaults, keep the executed copies: `python docs/gallery.py`, or `make gallery`.

The defaults of every study are a quick profile that writes to a temporary folder. What is kept in docs/gallery/ holds
text and small pictures: nothing of this machine's folders, no standard error, no state of widgets (each has a picture
beside it).
"""
import argparse
import base64
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
LARGEST_BYTES = 300_000  # of a notebook in the gallery
DPI = 100  # of its pictures, at most
_IDENTITY = re.compile(r" at 0x[0-9a-f]{6,}")  # the place of an object in memory
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def smaller_png(png: bytes, factor: float = 1.0, colours: int = 256) -> bytes:
    "A picture of at most `DPI`, reduced by `factor`, with a palette of `colours`; itself where that is no gain."
    with Image.open(io.BytesIO(png)) as image:
        dpi = max(image.info.get("dpi", (DPI,))[0], 1)
        factor = factor * min(1.0, DPI / dpi)
        size = tuple(max(1, round(side * factor)) for side in image.size)
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image.convert("RGB"), mask=image.convert("RGBA").getchannel("A"))
    if size != flat.size:
        flat = flat.resize(size, Image.Resampling.LANCZOS)
    palette = flat.quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # keeps rare ones
    palette.save(buffer := io.BytesIO(), "PNG", optimize=True)
    return png if factor == 1 and len(png) <= len(buffer.getvalue()) else buffer.getvalue()


def places(scratch: str | Path) -> dict[str, str]:
    "What names this run and this machine, and what is written instead, in the order in which it is to be replaced."
    folders = {str(scratch), os.path.realpath(scratch), str(ROOT), str(Path.home())} - {"/"}
    folders = sorted(folders, key=len, reverse=True)
    of_tempfile = (re.fullmatch(r"(?:(.+)-|tmp)[a-z0-9_]{8}", name) for name in sorted(os.listdir(scratch)))
    names = {match[0]: match[1] or "scratch" for match in of_tempfile if match}
    return {f"{folder}/": "" for folder in folders} | dict.fromkeys(folders, ".") | names


def without_places(text: str, replaced: Mapping[str, str]) -> str:
    "Text without what `places` lists, the colours of a terminal, and the place of objects in memory."
    for place, written in replaced.items():
        text = text.replace(place, written)
    return _IDENTITY.sub("", _ESCAPES.sub("", text))


def _kept_output(output: dict[str, Any], replaced: Mapping[str, str]) -> dict[str, Any] | None:
    if output["output_type"] == "error" or output.get("name") == "stderr":
        return None
    output = {key: value for key, value in output.items() if key not in ("metadata", "execution_count")}
    if output["output_type"] == "stream":
        return output | {"text": without_places("".join(output["text"]), replaced)}
    data = {kind: value if kind == "image/png" else without_places("".join(value), replaced)
            for kind, value in output["data"].items() if isinstance(value, str | list) and "widget" not in kind}
    had_widget = any("widget" in kind for kind in output["data"])
    if "image/png" in data or had_widget:
        data.pop("text/plain", None)  # the name of the object, which the picture shows
    if not data:
        return None
    count = {"execution_count": None} if output["output_type"] == "execute_result" else {}
    return output | {"data": data, "metadata": {}} | count


def kept_notebook(notebook: dict[str, Any], replaced: Mapping[str, str]) -> dict[str, Any]:
    "An executed notebook without what belongs to this run and this machine."
    cells = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:
            continue
        cell = dict(cell, metadata={"tags": tags} if tags else {})
        if cell["cell_type"] == "code":
            outputs = (_kept_output(output, replaced) for output in cell["outputs"])
            cell |= {"execution_count": None, "outputs": [output for output in outputs if output is not None]}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    minor = notebook.get("nbformat_minor", 5)
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": minor}


def as_text(notebook: dict[str, Any]) -> str:
    return json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def fitted(notebook: dict[str, Any], largest_bytes: int = LARGEST_BYTES) -> str:
    "A notebook's text, its pictures as large as its size allows; `ValueError` if they would become unreadable."
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])
               if "image/png" in output.get("data", {})]
    originals = [base64.b64decode("".join(output["data"]["image/png"])) for output in outputs]
    steps = ((1.0, 256), (1.0, 128), (1.0, 64), (1.0, 32), (0.85, 64), (0.85, 32), (0.7, 32), (0.6, 32), (0.5, 32),
             (0.4, 32))
    for factor, colours in steps:
        for output, png in zip(outputs, originals, strict=True):
            output["data"]["image/png"] = base64.b64encode(smaller_png(png, factor, colours)).decode()
        if len((text := as_text(notebook)).encode()) <= largest_bytes:
            return text
    raise ValueError(f"{len(text.encode())} bytes with its pictures at two fifths of their size, where {largest_bytes} "
                     "are allowed: show fewer or simpler pictures")


def run_study(path: Path, scratch: Path) -> dict[str, Any]:
    "The executed notebook, with its defaults, its temporary files inside `scratch`."
    import papermill

    from ptycho_nb.quiet import standard_error_to

    output = scratch / path.name
    before, os.environ["TMPDIR"] = os.environ.get("TMPDIR"), str(scratch)
    try:
        with open(scratch / "standard_error", "wb") as said, standard_error_to(said):
            papermill.execute_notebook(str(path), str(output), cwd=str(path.parent), progress_bar=False,
                                       start_timeout=300, extra_arguments=["--log-level=ERROR"])
    finally:
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
    return json.loads(output.read_text(encoding="utf-8"))


def sources(notebook: dict[str, Any], kind: str) -> list[str]:
    "The text of all cells of a kind."
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def stale(study: dict[str, Any], copy: dict[str, Any]) -> str:
    "In which kind of cells an executed copy is not the study: 'code', 'markdown', or neither."
    return next((kind for kind in ("code", "markdown") if sources(study, kind) != sources(copy, kind)), "")


def with_text_of(study: dict[str, Any], copy: dict[str, Any]) -> dict[str, Any]:
    "An executed copy with the Markdown cells of its study, whose code is the same."
    executed = iter([cell for cell in copy["cells"] if cell["cell_type"] == "code"])
    cells = [dict(cell, metadata={}) if cell["cell_type"] == "markdown" else next(executed) for cell in study["cells"]]
    return copy | {"cells": cells}


def put_text(studies: list[Path], out: Path) -> int:
    "The studies' Markdown into their copies; the number of those that have to be run."
    to_run = 0
    for path in studies:
        study = json.loads(path.read_text(encoding="utf-8"))
        kept = out / path.name
        copy = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"cells": []}
        if stale(study, copy) == "code":
            print(f"{path.stem}: its code has changed: make gallery NAMES={path.stem}")
            to_run += 1
        elif stale(study, copy):
            kept.write_text(as_text(with_text_of(study, copy)), encoding="utf-8")
            print(f"{path.stem}: text put in")
    return to_run


def main() -> int:
    studies = sorted((ROOT / "studies_nbs").glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ", ".join(path.stem for path in studies)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"studies to run (default: all): {names}")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gallery", help="where the executed copies go")
    parser.add_argument("--text", action="store_true", help="run nothing: put changed Markdown cells into the copies")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - {path.stem for path in studies}):
        parser.error(f"no study {unknown[0]!r} in studies_nbs")
    studies = [path for path in studies if not arguments.names or path.stem in arguments.names]
    if arguments.text:
        return 1 if put_text(studies, arguments.out) else 0
    failures = []
    for path in studies:
        began = time.perf_counter()
        print(f"{path.stem} … ", end="", flush=True)
        try:
            with tempfile.TemporaryDirectory(prefix="gallery-") as folder:
                executed = run_study(path, Path(folder))
                text = fitted(kept_notebook(executed, places(folder)))
        except Exception as error:  # the others still run; the copy of an earlier run stays
            what = str(error) or type(error).__name__
            if hasattr(error, "ename"):
                what = f"cell {error.cell_index} raised {error.ename}: {error.evalue}"
            print(f"FAILED after {time.perf_counter() - began:.0f} s: {what}")
            failures.append(path.stem)
            continue
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / path.name).write_text(text, encoding="utf-8")
        print(f"{time.perf_counter() - began:.0f} s, {len(text.encode()) / 1000:.0f} kB")
    if failures:
        print(f"failed: {', '.join(failures)}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
