"""What the site shows besides its hand-written pages: notebooks as chapters, the public names, the executed studies.

Everything is discovered, no list is kept by hand. `assemble` writes a source tree for Sphinx; nothing is executed.
"""
import base64
import importlib
import inspect
import io
import json
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ptycho_nb"
PAGE_OF = {  # files outside docs/ that are pages of the site
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "benchmarks/index.md",
    "benchmarks/LOG.md": "benchmarks/log.md",
}
_DIRECTIVE = re.compile(r"^#\|[ ]*(\S*).*\n?", re.MULTILINE)
_CONTINUED = ("benchmarks", "chapters", "gallery", "index.md", "reference")  # their pages end in what is discovered
_LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")


class PageError(Exception):
    "A page that cannot be made: says which file, and what it should hold."


def read_notebook(path: Path) -> dict[str, Any]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


@dataclass(frozen=True)
class Chapter:
    "A notebook, and where it stands on the site."

    path: Path  # of the notebook
    page: str  # of the site, without suffix

    @cached_property
    def notebook(self) -> dict[str, Any]:
        return read_notebook(self.path)

    @cached_property
    def heading(self) -> tuple[str, str]:  # title, and the one line that follows it as a quotation
        first = self.notebook["cells"][0] if self.notebook["cells"] else {"cell_type": "", "source": ""}
        match = re.match(r"#[ ]+(?P<title>.+)\n?(?:\s*>[ ]*(?P<summary>.+))?", first["source"])
        if first["cell_type"] != "markdown" or not match:
            raise PageError(f"{self.path}: the first cell should begin with '# Title' and a line '> what it is about'")
        return match["title"].strip(), (match["summary"] or "").strip()

    @property
    def title(self) -> str:
        return self.heading[0]

    @property
    def summary(self) -> str:
        return self.heading[1]

    @cached_property
    def module(self) -> str:  # what it exports to, inside the package; empty if nothing
        for cell in self.notebook["cells"]:
            match = re.search(r"^#\|\s*default_exp\s+(\S+)", cell["source"], re.MULTILINE)
            if match and cell["cell_type"] == "code":
                return match[1]
        return ""


@dataclass(frozen=True)
class Part:
    "A folder of notebooks, or those that lie directly in nbs/."

    name: str  # without its number; empty for notebooks outside folders
    page: str
    chapters: tuple[Chapter, ...]


def _number(path: Path) -> tuple[int, str]:
    match = re.match(r"\d+", path.name)
    return (int(match[0]) if match else 10**6, path.name)


def find_parts(root: Path = ROOT) -> list[Part]:
    "The chapters of nbs/ in order of their numbers; README's notebook `index` is none."
    def chapters(folder: Path, page: str) -> tuple[Chapter, ...]:
        paths = sorted((path for path in folder.glob("*.ipynb") if path.stem != "index"), key=_number)
        return tuple(Chapter(path, f"{page}/{path.stem}") for path in paths)

    parts = [Part("", "chapters", chapters(root / "nbs", "chapters"))]
    for folder in sorted((path for path in (root / "nbs").iterdir() if re.match(r"\d+_", path.name)), key=_number):
        page = f"chapters/{folder.name}"
        parts.append(Part(re.sub(r"^\d+_", "", folder.name), page, chapters(folder, page)))
    return [part for part in parts if part.chapters]


def find_studies(root: Path = ROOT) -> list[Chapter]:
    "The executed study notebooks of the gallery."
    return [Chapter(path, f"gallery/{path.stem}") for path in sorted((root / "docs" / "gallery").glob("*.ipynb"))]


def pages_of_files(root: Path) -> dict[str, str]:
    "Every file of the repository that is a page: its path, and the page with its suffix."
    pages = {file: page for file, page in PAGE_OF.items() if (root / file).exists()}
    pages |= {path.relative_to(root).as_posix(): path.relative_to(root / "docs").as_posix()
              for path in (root / "docs").rglob("*.md")}
    pages |= {chapter.path.relative_to(root).as_posix(): f"{chapter.page}.ipynb"
              for part in find_parts(root) for chapter in part.chapters}
    for study in find_studies(root):  # a study without outputs is shown as its executed copy
        pages |= {f"{folder}/{study.path.name}": f"{study.page}.ipynb" for folder in ("docs/gallery", "studies_nbs")}
    return pages | {"README.md": "index.md", "nbs/index.ipynb": "index.md"}


def relink(text: str, file: str, page: str, pages: dict[str, str], root: Path = ROOT) -> str:
    "Links between files of the repository made links between pages; what is no page stays as text, pictures are kept."
    def replaced(match: re.Match) -> str:
        picture, label, target = match.groups()
        path, mark, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        here = posixpath.dirname(page)
        if picture:
            if not (root / there).is_file():
                raise PageError(f"{file}: the picture {target} does not exist")
            return f"![{label}]({posixpath.relpath(_picture_page(there), here or '.')})"
        if there in pages:
            return f"[{label}]({posixpath.relpath(pages[there], here or '.')}{mark}{anchor})"
        if (root / there).exists():
            return label
        if re.search(r"\.(md|ipynb|py|rst)$", there):
            raise PageError(f"{file}: the link to {target} leads nowhere")
        return match[0]  # no path at all: code such as x[0](y)

    return _LINK.sub(replaced, text)


def _picture_page(file: str) -> str:
    return file.removeprefix("docs/") if file.startswith("docs/") else f"pictures/{file.replace('/', '_')}"


def readable_notebook(notebook: dict[str, Any], note: str = "") -> dict[str, Any]:
    "A notebook for reading: without directives, hidden cells, widgets and what was said on standard error."
    cells = []
    for cell in notebook["cells"]:
        cell, source = dict(cell), cell["source"]
        if cell["cell_type"] == "code":
            directives = _DIRECTIVE.findall(source)
            cell["source"] = _DIRECTIVE.sub("", source).strip("\n")
            if not cell["source"].strip() or "hide" in directives:
                continue
            cell["outputs"] = [shown for output in cell["outputs"] if (shown := _readable_output(output))]
            tags = list(cell["metadata"].get("tags", []))
            cell["metadata"] = {"tags": tags + ["library"] * any(name.startswith("export") for name in directives)}
        cells.append(cell)
    if note:
        cells.insert(1, {"cell_type": "markdown", "metadata": {}, "source": note})
        if "id" in cells[0]:
            cells[1]["id"] = "module-note"
    language = {"name": "python", "pygments_lexer": "ipython3"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {**notebook, "cells": cells, "metadata": {"kernelspec": kernel, "language_info": language}}


def _readable_output(output: dict[str, Any]) -> dict[str, Any] | None:
    if output.get("name") == "stderr":
        return None
    if "data" not in output:
        return output
    data = {kind: value for kind, value in output["data"].items() if "widget" not in kind}
    if "text/markdown" in data:  # headings inside an output are no sections of the chapter
        text = "".join(data["text/markdown"])
        data["text/markdown"] = re.sub(r"^#+[ ]+(.+)$", r"**\1**", text, flags=re.MULTILINE)
    return {**output, "data": data} if data.keys() - {"text/plain"} or "text/plain" in output["data"] else None


def _write(path: Path, text: str) -> None:
    "Write only what changed, so that Sphinx reads only that again."
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        shutil.copyfile(source, target)


def _toctree(pages: list[str], *options: str) -> str:
    return "\n".join(["```{toctree}", *(f":{option}:" for option in ("hidden", *options)), "", *pages, "```", ""])


def _listing(chapters: tuple[Chapter, ...], here: str) -> str:
    lines = []
    for chapter in chapters:
        module = f" (`{chapter.module}`)" if chapter.module else ""
        link = posixpath.relpath(f"{chapter.page}.ipynb", here)
        lines.append(f"- [{chapter.title}]({link}){module}: {chapter.summary}")
    return "\n".join(lines)


class Assembly:
    "The source tree of one build."

    def __init__(self, root: Path, source: Path):
        self.root, self.source = root, source
        self.pages = pages_of_files(root)
        self.written: set[Path] = set()

    def write(self, page: str, text: str) -> None:
        _write(self.source / page, text)
        self.written.add(self.source / page)

    def copy(self, path: Path, page: str) -> None:
        _copy(path, self.source / page)
        self.written.add(self.source / page)

    def text_of(self, file: str, page: str) -> str:
        text = (self.root / file).read_text(encoding="utf-8")
        for _, _, target in _LINK.findall(text):
            self._take_picture(posixpath.normpath(posixpath.join(posixpath.dirname(file), target)))
        return relink(text, file, page, self.pages, self.root)

    def _take_picture(self, file: str) -> None:
        if file.endswith((".png", ".svg", ".jpg")) and (self.root / file).is_file():
            self.copy(self.root / file, _picture_page(file))

    def hand_written(self) -> None:
        folder = self.root / "docs"
        for path in sorted(folder.rglob("*.md")):
            page = path.relative_to(folder).as_posix()
            if page.partition("/")[0] not in _CONTINUED:
                self.write(page, self.text_of(path.relative_to(self.root).as_posix(), page))
        for path in sorted([*(folder / "_static").glob("*"), *folder.glob("*.png")]):
            self.copy(path, path.relative_to(folder).as_posix())

    def more(self, page: str, text: str) -> None:
        "A hand-written page, and at its end what was discovered."
        written = self.text_of(f"docs/{page}", page)
        self.write(page, f"{written.rstrip()}\n\n{text}")

    def outside_docs(self) -> None:
        there = {page: file for file, page in PAGE_OF.items() if (self.root / file).exists()}
        for page, file in there.items():
            text = self.text_of(file, page)
            if page == "benchmarks/index.md":
                about, mark, results = text.partition("\n## ")  # the machine goes to the end
                about = re.sub(r"^# .*\n", "", about, count=1).strip()
                results = f"{mark.lstrip()}{results.rstrip()}\n\n## machine and versions\n\n{about}"
                self.more(page, f"{results}\n\n{_toctree(['log'])}")
            else:
                self.write(page, text)
        self.more("index.md", _toctree([page for page in there if "/" not in page]))

    def notebook(self, chapter: Chapter, note: str = "") -> None:
        notebook = readable_notebook(chapter.notebook, note)
        file = chapter.path.relative_to(self.root).as_posix()
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relink(cell["source"], file, chapter.page, self.pages, self.root)
        self.write(f"{chapter.page}.ipynb", json.dumps(notebook, ensure_ascii=False, indent=1))

    def chapters(self) -> None:
        parts = find_parts(self.root)
        introductions = {path.stem for path in (self.root / "docs" / "chapters").glob("*.md")} - {"index"}
        names = {part.name for part in parts if part.name}
        if missing := sorted(names - introductions):
            raise PageError(f"docs/chapters/{missing[0]}.md should introduce the notebooks of the folder that ends in "
                            f"_{missing[0]}: a title and one paragraph")
        if names and (left := sorted(introductions - names)):
            raise PageError(f"docs/chapters/{left[0]}.md introduces a folder of nbs/ that does not exist")
        rows, tree = [], []
        for part in parts:
            for chapter in part.chapters:
                file = chapter.path.relative_to(self.root).as_posix()
                exports = f"Module `{PACKAGE}.{chapter.module}`, written in" if chapter.module else "Written in"
                self.notebook(chapter, f"{{.module-note}}\n{exports} `{file}`.")
            if not part.name:
                rows.append(_listing(part.chapters, "chapters"))
                tree += [posixpath.relpath(chapter.page, "chapters") for chapter in part.chapters]
                continue
            page = f"{part.page}/index.md"
            introduction = self.text_of(f"docs/chapters/{part.name}.md", page)
            title, _, paragraph = introduction.strip().partition("\n")
            if not title.startswith("# ") or not paragraph.strip():
                raise PageError(f"docs/chapters/{part.name}.md should hold a title and one paragraph")
            listing = _listing(part.chapters, part.page)
            own_tree = _toctree([posixpath.basename(chapter.page) for chapter in part.chapters])
            self.write(page, f"{introduction.rstrip()}\n\n{listing}\n\n{own_tree}")
            folder = posixpath.basename(part.page)
            rows.append(f"## [{title[2:].strip()}]({folder}/index.md)\n\n{paragraph.strip()}\n")
            tree.append(f"{folder}/index")
        self.more("chapters/index.md", "\n".join(rows) + "\n\n" + _toctree(tree))

    def gallery(self) -> None:
        studies = find_studies(self.root)
        cards = []
        for study in studies:
            self.notebook(study)
            picture = _thumbnail(study.notebook)
            image = ""
            if picture:
                path = self.source / "gallery" / "thumbnails" / f"{study.path.stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists() or path.read_bytes() != picture:
                    path.write_bytes(picture)
                self.written.add(path)
                image = f"[![{study.title}](thumbnails/{path.name})]({study.path.name})\n\n  "
            cards.append(f"- {image}[{study.title}]({study.path.name})\n\n  {study.summary}")
        listing = "{.cards}\n" + "\n".join(cards) if cards else "No study has been run yet: `make gallery` runs them."
        self.more("gallery/index.md", f"{listing}\n\n{_toctree([study.path.stem for study in studies])}")

    def reference(self) -> None:
        groups: dict[str, list[str]] = {}
        chapters = chapter_of_module(self.root)
        for name, kind, value in public_names():
            groups.setdefault(kind, []).append(name)
            chapter = chapters.get(value.__module__.removeprefix(f"{PACKAGE}."))
            self.write(f"reference/{name}.rst", _reference_page(name, value, chapter))
        parts = []
        for kind in (kind for kind in _KINDS if kind in groups):
            rows = "\n".join(f"   ~{PACKAGE}.{name}" for name in groups[kind])
            parts.append(f"## {kind}\n\n```{{eval-rst}}\n.. autosummary::\n\n{rows}\n```\n")
        names = [name for kind in _KINDS for name in groups.get(kind, [])]
        self.more("reference/index.md", "\n".join(parts) + "\n" + _toctree(names))

    def finish(self) -> None:
        "Remove what an earlier build left and this one has not made."
        for path in sorted(self.source.rglob("*"), reverse=True):
            if path.is_file() and path not in self.written:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()


_KINDS = ("Functions", "Data", "Configurations", "Errors")


def public_names() -> Iterator[tuple[str, str, Any]]:
    "Each name of the package's `__all__`, what kind of thing it is, and the thing itself."
    package = importlib.import_module(PACKAGE)
    if not getattr(package, "__all__", ()):
        raise PageError(f"{PACKAGE}.__all__ names nothing that the reference could show")
    standard_error_to = importlib.import_module(f"{PACKAGE}.runs.arms").standard_error_to
    with open(os.devnull, "wb") as nowhere, standard_error_to(nowhere):
        importlib.import_module("keras")  # TensorFlow greets at length
    for name in package.__all__:
        if name.startswith("__"):
            continue
        value = getattr(package, name)
        if not inspect.isclass(value):
            kind = "Functions"
        elif issubclass(value, BaseException):
            kind = "Errors"
        else:
            kind = "Configurations" if name.endswith("Config") else "Data"
        yield name, kind, value


def _reference_page(name: str, value: Any, chapter: Chapter | None) -> str:
    lines = [name, "=" * len(name), ""]
    if inspect.isclass(value):
        lines += [f".. autoclass:: {PACKAGE}.{name}", "   :members:", ""]
    else:
        lines += [f".. autofunction:: {PACKAGE}.{name}", ""]
    if chapter:
        lines += [".. rst-class:: module-note", "", f"Explained in the chapter :doc:`/{chapter.page}`.", ""]
    return "\n".join(lines)


def _thumbnail(notebook: dict[str, Any], width: int = 480) -> bytes:
    "The picture of a notebook that holds most, made small; empty if it has none."
    from PIL import Image

    encoded = [output["data"]["image/png"] for cell in notebook["cells"] for output in cell.get("outputs", [])
               if "image/png" in output.get("data", {})]
    if not encoded:
        return b""
    richest = max(("".join(text) for text in encoded), key=len)
    small = Image.open(io.BytesIO(base64.b64decode(richest))).convert("RGB")
    small.thumbnail((width, width))
    small.save(buffer := io.BytesIO(), "PNG", optimize=True)
    return buffer.getvalue()


def assemble(source: Path, root: Path = ROOT) -> None:
    "Write the source tree of the site; `PageError` says which file is not as it should be."
    assembly = Assembly(root, source)
    assembly.hand_written()
    assembly.outside_docs()
    assembly.chapters()
    assembly.gallery()
    assembly.reference()
    assembly.finish()


def chapter_of_module(root: Path = ROOT) -> dict[str, Chapter]:
    "The chapter that each module of the package is written in."
    return {chapter.module: chapter for part in find_parts(root) for chapter in part.chapters if chapter.module}
