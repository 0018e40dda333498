"""The tools of the documentation, on small examples, and that the whole site builds."""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import build  # noqa: E402
import chapters  # noqa: E402
import gallery  # noqa: E402


def notebook(*cells, **metadata) -> dict:
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def text_cell(source: str) -> dict:
    return {"cell_type": "markdown", "id": "a", "metadata": {}, "source": source}


def code_cell(source: str, *outputs, tags=()) -> dict:
    return {
        "cell_type": "code",
        "id": "b",
        "metadata": {"tags": list(tags)} if tags else {},
        "source": source,
        "execution_count": 3,
        "outputs": list(outputs),
    }


def stored(path: Path, *cells) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook(*cells)), encoding="utf-8")
    return path


def png(side: int, dpi: int | None = None, noisy: bool = False) -> bytes:
    image = Image.effect_noise((side, side), 80) if noisy else Image.linear_gradient("L").resize((side, side))
    image.convert("RGB").save(buffer := io.BytesIO(), "PNG", **({"dpi": (dpi, dpi)} if dpi else {}))
    return buffer.getvalue()


def picture(data: bytes, **more) -> dict:
    return {
        "output_type": "display_data",
        "metadata": {},
        "data": {"image/png": base64.b64encode(data).decode(), **more},
    }


# What becomes of a notebook


def test_folders_and_notebooks_are_found_in_order_of_their_numbers(tmp_path):
    for name in ("10_cli/10_cli", "9_explorers/20_b", "9_explorers/5_a", "0_base/10_config", "index"):
        stored(tmp_path / "nbs" / f"{name}.ipynb", text_cell("# T\n> s"))
    parts = chapters.find_parts(tmp_path)
    assert [part.name for part in parts] == ["base", "explorers", "cli"]
    assert [chapter.page for chapter in parts[1].chapters] == ["chapters/9_explorers/5_a", "chapters/9_explorers/20_b"]


def test_a_chapter_has_a_title_a_summary_and_a_module(tmp_path):
    path = stored(
        tmp_path / "a.ipynb",
        text_cell("# The title\n\n> What it is about.\n\nMore."),
        code_cell("#| default_exp physics.forward"),
    )
    chapter = chapters.Chapter(path, "a")
    assert (chapter.title, chapter.summary, chapter.module) == ("The title", "What it is about.", "physics.forward")
    untitled = chapters.Chapter(stored(tmp_path / "b.ipynb", text_cell("no title")), "b")
    with pytest.raises(chapters.PageError, match=r"b\.ipynb.*# Title"):
        _ = untitled.title


def test_directives_hidden_cells_widgets_and_standard_error_are_left_out():
    widget = picture(png(4), **{"application/vnd.jupyter.widget-view+json": {"model_id": "x"}})
    said = [{"output_type": "stream", "name": name, "text": name} for name in ("stdout", "stderr")]
    readable = chapters.readable_notebook(
        notebook(
            text_cell("# T"),
            code_cell("#| default_exp a.b"),
            code_cell("#| hide\nsecret()"),
            code_cell("#| export\ndef f(): return '# | kept'", *said),
            code_cell("f()", widget),
            widgets={"state": 1},
        )
    )
    assert [cell["source"] for cell in readable["cells"]] == ["# T", "def f(): return '# | kept'", "f()"]
    assert readable["cells"][1]["metadata"]["tags"] == ["library"] and readable["cells"][2]["metadata"]["tags"] == []
    assert [output["text"] for output in readable["cells"][1]["outputs"]] == ["stdout"]
    assert list(readable["cells"][2]["outputs"][0]["data"]) == ["image/png"]
    assert "widgets" not in readable["metadata"]


def test_links_between_files_become_links_between_pages(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("setup.py", "docs/scaling.png"):
        (tmp_path / name).touch()
    pages = {
        "nbs/1_physics/50_forward.ipynb": "chapters/1_physics/50_forward.ipynb",
        "docs/decisions.md": "decisions.md",
    }

    def relinked(text: str, file: str, page: str) -> str:
        return chapters.relink(text, file, page, pages, tmp_path)

    assert (
        relinked("[a](../nbs/1_physics/50_forward.ipynb)", "docs/start.md", "start.md")
        == "[a](chapters/1_physics/50_forward.ipynb)"
    )
    assert relinked("[d](docs/decisions.md#x)", "CONTRIBUTING.md", "contributing.md") == "[d](decisions.md#x)"
    assert (
        relinked("![s](../docs/scaling.png)", "benchmarks/RESULTS.md", "benchmarks/index.md") == "![s](../scaling.png)"
    )
    assert (
        relinked("[s](setup.py) [w](https://example.org/a.md)", "README.md", "a.md")
        == "s [w](https://example.org/a.md)"
    )
    for broken in ("[x](gone.md)", "![x](gone.png)"):
        with pytest.raises(chapters.PageError, match="gone"):
            relinked(broken, "docs/start.md", "start.md")


def test_every_notebook_of_this_checkout_can_be_a_chapter():
    parts = chapters.find_parts()
    assert sum(len(part.chapters) for part in parts) == len(
        [
            path
            for path in (ROOT / "nbs").rglob("*.ipynb")
            if path.stem != "index" and ".ipynb_checkpoints" not in path.parts
        ]
    )
    for chapter in (chapter for part in parts for chapter in part.chapters):
        assert chapter.title and chapter.summary and chapter.module, chapter.path
        shown = [
            cell["source"]
            for cell in chapters.readable_notebook(chapter.notebook)["cells"]
            if cell["cell_type"] == "code"
        ]
        assert shown and not any(line.startswith("#|") for source in shown for line in source.splitlines()), (
            chapter.path
        )


@pytest.mark.parametrize("page", ["detector_mask", "probe_mode"])
def test_places_that_a_page_names_exist(page):
    """Pages that say where something would go name functions of a chapter: they have to be there."""
    known = chapters.chapter_of_module()
    text = (ROOT / "docs" / "howto" / f"{page}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \{chapter\}`([\w.]+)` \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) >= 8
    for module, text in rows:
        code = "\n".join(cell["source"] for cell in known[module].notebook["cells"] if cell["cell_type"] == "code")
        for name in re.findall(r"`([\w.]+)`", text):
            assert name.split(".")[-1] in code, f"{module} has no {name}"


# What is checked on the built site


def test_what_a_page_loads_from_elsewhere_is_a_fault_and_a_link_is_none():
    good = "<h1>T</h1><a href='https://example.org'>x</a><img src='a.png'><script src='../_static/a.js'></script>"
    assert build.faults_of_page(good) == []
    for bad in (
        "<script src='https://cdn.example.org/a.js'></script>",
        "<link rel=stylesheet href='//fonts.example.org/a.css'>",
        "<img src='http://example.org/a.png'>",
        "<script>load('https://cdn.example.org/a.js')</script>",
    ):
        assert any("example.org" in fault for fault in build.faults_of_page(good + bad)), bad
    assert build.faults_of_style("/* http://example.org */ a { background: url(a.png) }") == []
    assert build.faults_of_style("@import url('https://example.org/a.css');") == ["loads https://example.org/a.css"]


def test_a_page_has_one_title_and_shows_no_directive():
    assert build.faults_of_page("<p>none</p>") == ["has 0 titles"]
    assert build.faults_of_page("<h1>a</h1><h1>b</h1>") == ["has 2 titles"]
    assert build.faults_of_page("<h1>a</h1><pre><span>#|</span> export\nf()</pre>") == [
        "shows a directive of nbdev (#|)"
    ]


# What the gallery keeps


@pytest.mark.parametrize("path", sorted((gallery.ROOT / "studies_nbs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_gallery_shows_the_study_as_it_is(path):
    study, copy = (json.loads(place.read_text(encoding="utf-8"))
                   for place in (path, gallery.ROOT / "docs" / "gallery" / path.name))
    assert not gallery.stale(study, copy), f"make gallery NAMES={path.stem}, or python docs/gallery.py --text"


def test_changed_text_goes_into_an_executed_copy_and_changed_code_does_not(tmp_path):
    study = {"cells": [{"cell_type": "markdown", "source": ["new"], "metadata": {"tags": ["x"]}},
                       {"cell_type": "code", "source": ["1 + 1"], "metadata": {}, "outputs": []},
                       {"cell_type": "markdown", "source": ["more"], "metadata": {}}]}
    executed = {"cell_type": "code", "source": ["1 + ", "1"], "metadata": {}, "outputs": ["2"]}
    copy = {"cells": [{"cell_type": "markdown", "source": ["old"], "metadata": {}}, executed], "nbformat": 4}
    (tmp_path / "out").mkdir()
    for path, notebook in ((tmp_path / "a.ipynb", study), (tmp_path / "out" / "a.ipynb", copy)):
        path.write_text(json.dumps(notebook))
    assert gallery.stale(study, copy) == "markdown" and gallery.put_text([tmp_path / "a.ipynb"], tmp_path / "out") == 0
    kept = json.loads((tmp_path / "out" / "a.ipynb").read_text())
    assert not gallery.stale(study, kept) and kept["cells"][1] == executed and kept["cells"][0]["metadata"] == {}
    (tmp_path / "new.ipynb").write_text(json.dumps(study))
    assert gallery.put_text([tmp_path / "new.ipynb"], tmp_path / "out") == 1  # it was never run
    study["cells"][1]["source"] = ["2 + 2"]
    (tmp_path / "a.ipynb").write_text(json.dumps(study))
    assert gallery.put_text([tmp_path / "a.ipynb"], tmp_path / "out") == 1
    assert json.loads((tmp_path / "out" / "a.ipynb").read_text()) == kept


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "gallery").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_study_shows_tables_and_sentences_and_no_raw_dictionary(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            said = "".join(output.get("text", [])) + "".join(output.get("data", {}).get("text/plain", []))
            assert not re.search(r"^\{'|^\[\{", said, re.MULTILINE), said[:300]
            assert not re.search(r"\d\.\d{8}", said), said[:300]


def test_the_gallery_keeps_nothing_of_this_machine():
    result = {
        "output_type": "execute_result",
        "execution_count": 1,
        "metadata": {},
        "data": {"text/plain": "<A at 0x7f2a11b0c0>"},
    }
    kept = gallery.kept_notebook(
        notebook(
            code_cell("x = 1", tags=["parameters"]),
            code_cell("x = 2", tags=["injected-parameters"]),
            code_cell(
                "run()",
                {"output_type": "stream", "name": "stdout", "text": ["\x1b[1min /scratch/a/b/arm and /scratch/a\n"]},
                {"output_type": "stream", "name": "stderr", "text": "noise"},
                result,
                {
                    "output_type": "display_data",
                    "metadata": {},
                    "data": {"text/plain": "Slider()", "application/vnd.jupyter.widget-view+json": {}},
                },
                picture(png(4), **{"text/plain": "<Figure>"}),
            ),
            papermill={"duration": 1},
            widgets={},
        ),
        {"/scratch/a/b/": "", "/scratch/a": "."},
    )
    assert list(kept["metadata"]) == ["kernelspec"] and [cell["source"] for cell in kept["cells"]] == ["x = 1", "run()"]
    outputs = kept["cells"][1]["outputs"]
    assert [output.get("text") or sorted(output["data"]) for output in outputs] == [
        "in arm and .\n",
        ["text/plain"],
        ["image/png"],
    ]
    assert outputs[1]["data"]["text/plain"] == "<A>" and kept["cells"][1]["execution_count"] is None


def test_temporary_folders_lose_their_chance_names(tmp_path):
    for name in ("explore-a1b2c3d4", "tmpa1b2c3d_", "standard_error", "explore.ipynb"):
        (tmp_path / name).touch()
    text = f"everything is in {tmp_path}/explore-a1b2c3d4, {tmp_path}/tmpa1b2c3d_/x and {gallery.ROOT}/runs"
    assert gallery.without_places(text, gallery.places(tmp_path)) == "everything is in explore, scratch/x and runs"


def test_pictures_become_smaller_until_the_notebook_fits():
    assert Image.open(io.BytesIO(gallery.smaller_png(png(200, dpi=200)))).size == (100, 100)
    small = png(16)
    assert len(gallery.smaller_png(small)) <= len(small)
    content = notebook(code_cell("a", picture(png(500, noisy=True))), code_cell("b", picture(png(500, noisy=True))))
    text = gallery.fitted(content, 200_000)
    assert len(text.encode()) <= 200_000
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(cell["outputs"][0]["data"]["image/png"]))).size
        for cell in json.loads(text)["cells"]
    ]
    assert sizes[0] == sizes[1] and 200 <= sizes[0][0] < 500
    with pytest.raises(ValueError, match="fewer or simpler"):
        gallery.fitted(content, 2_000)


@pytest.mark.xdist_group("site")
def test_the_whole_site_builds_and_warnings_are_errors(tmp_path):
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert (tmp_path / "html" / "index.html").is_file()
