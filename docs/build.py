"""Build the documentation: `python docs/build.py`, or `make docs`. Warnings are errors; no network is used.

The pages of docs/, the notebooks of nbs/ with their stored outputs, the executed studies of docs/gallery/ and the
results of the benchmark are assembled into a source tree (chapters.py), Sphinx makes a site of it (conf.py), and the
site is checked.
"""
import argparse
import re
import shutil
import sys
import time
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from chapters import ROOT, PageError, assemble

sys.path.insert(0, str(ROOT))  # this checkout is documented, whatever else is installed

MATHJAX = "sphinx-mathjax-offline"  # the package that carries MathJax
_NEEDED = ("/mathjax/tex-chtml.js", "/mathjax/output/chtml/fonts/", "/mathjax/input/tex/extensions/")
_LOADED = dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src")
_LOADED |= {"object": "data", "link": "href"}  # what a browser fetches without being asked
_FOREIGN = re.compile(r"(?:https?:)?//[\w.-]+\.\w+")
_SPAN = re.compile(r"</?span\b[^<>]*>")  # the colours of code, half a million tags in which nothing is loaded


def copy_mathjax(static: Path) -> None:
    "MathJax for TeX input and HTML output with its fonts, a tenth of the whole."
    try:
        paths = [path for path in files(MATHJAX) or () if any(part in f"/{path.as_posix()}" for part in _NEEDED)]
    except PackageNotFoundError:
        paths = []
    if not paths:
        raise PageError(f"the package {MATHJAX} is not installed: pip install -e '.[docs]'")
    for path in paths:
        target = static / "mathjax" / path.as_posix().partition("/mathjax/")[2]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path.locate(), target)


class _Page(HTMLParser):
    "What a page loads by itself, its headings of the first level, and its code."

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.headings = 0
        self.code: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "link" and attributes.get("rel") in ("canonical", "next", "prev", "search", "index"):
            return
        self.headings += tag == "h1"
        if tag in _LOADED:
            self.loaded += [attributes.get(_LOADED[tag]) or "", *(attributes.get("srcset") or "").split()]
        if tag in ("pre", "script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, text):
        if "pre" in self._inside:
            self.code.append(text)
        elif self._inside:  # a script or a style sheet inside the page
            self.loaded += re.findall(r"""["'(](//[^"')\s]+|https?://[^"')\s]+)""", text)


def faults_of_page(text: str) -> list[str]:
    "What a reader without a network, or a reader of code, would stumble over."
    page = _Page()
    page.feed(_SPAN.sub("", text))
    faults = [f"loads {url}" for url in page.loaded if _FOREIGN.match(url)]
    if page.headings != 1:
        faults.append(f"has {page.headings} titles")
    if re.search(r"^\s*#\|", "".join(page.code), re.MULTILINE):
        faults.append("shows a directive of nbdev (#|)")
    return faults


def faults_of_style(text: str) -> list[str]:
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return [f"loads {url}" for url in re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", text)]


def check_site(site: Path) -> list[str]:
    "What is wrong with the built site, a line each."
    faults = []
    for path in sorted(site.rglob("*.html")):
        if "_static" in path.parts or path.name in ("search.html", "genindex.html"):
            continue
        faults += [f"{path.relative_to(site)} {fault}" for fault in faults_of_page(path.read_text(encoding="utf-8"))]
    for path in sorted(site.rglob("*.css")):
        faults += [f"{path.relative_to(site)} {fault}" for fault in faults_of_style(path.read_text(encoding="utf-8"))]
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="folder of source tree and site")
    parser.add_argument("--fresh", action="store_true", help="build everything again, not only what changed")
    out, fresh = (arguments := parser.parse_args()).out.absolute(), arguments.fresh
    began = time.perf_counter()
    if fresh and (out / "html").exists():
        shutil.rmtree(out / "html")
    try:
        from sphinx.cmd.build import main as sphinx_build

        assemble(out / "source")
        copy_mathjax(out / "html" / "_static")
    except PageError as error:
        print(error, file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: pip install -e '.[docs]'", file=sys.stderr)
        return 1
    code = sphinx_build(["-q", "-W", "--keep-going", "-b", "html", *["-E"] * fresh, "-c", str(ROOT / "docs"),
                         "-d", str(out / "doctrees"), str(out / "source"), str(out / "html")])
    if code:  # what was read with a warning is to be read again, or the warning would be gone
        shutil.rmtree(out / "doctrees", ignore_errors=True)
        return code
    faults = check_site(out / "html")
    print(*faults, sep="\n", file=sys.stderr, end="\n" if faults else "")
    if not faults:
        pages = len(list((out / "html").rglob("*.html")))
        where = out / "html" / "index.html"
        shown = where.relative_to(Path.cwd()) if where.is_relative_to(Path.cwd()) else where
        print(f"{shown}: {pages} pages in {time.perf_counter() - began:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
