"""The benchmark's machinery: what counts as a fault, and how results reach the README."""
import ast
import importlib
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def quality_rows() -> list[dict]:
    methods = {"estimate": 0.7, "amortised": 0.8, "residual_unet, gridsize 2, NLL": 0.75}
    return [{"part": "quality", "case": f"{probe}, {dose}", "method": method, "seconds": 1.0, "cpu_seconds": 1.0,
             "ssim": ssim} for probe in ("disk", "defocused") for dose in ("1e+04", "1e+09")
            for method, ssim in methods.items()]


def test_no_part_imports_another_in_a_circle():
    files = {path.stem: path.read_text(encoding="utf-8") for path in BENCHMARKS.glob("*.py")}
    statements = {name: [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
                  for name, text in files.items()}
    imports = {name: {getattr(node, "module", None) or node.names[0].name for node in nodes} & files.keys()
               for name, nodes in statements.items()}
    assert imports["bench"] >= {"table", "quality", "references", "speed", "scaling", "star"}
    TopologicalSorter(imports).prepare()  # raises CycleError


def test_a_part_without_rows_and_a_number_that_is_none_are_faults(module, tmp_path):
    table = module("table").Table(tmp_path, {})
    table.add("quality", "disk", "estimate", 1.0, 1.0, ssim=float("nan"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rows"][0]["method"] == "estimate"  # written at once
    assert table.faults(["quality", "speed"]) == ["speed: no rows", "quality: disk: estimate: ssim is nan"]


def test_results_and_readme_are_what_the_published_numbers_say(module):
    assert module("publish").stale() == []


def test_the_table_of_the_readme_replaces_itself_and_nothing_else(module):
    publish = module("publish")
    before = publish.NOTEBOOK.read_text(encoding="utf-8")
    after = publish.with_table(before, {"rows": quality_rows()})
    assert "| 1e4 | " in after and "**0.800** / **0.800**" in after
    assert publish.with_table(after, {"rows": quality_rows()}) == after
    assert before.split(publish.BEGIN)[0] == after.split(publish.BEGIN)[0]
    assert before.split(publish.END)[1] == after.split(publish.END)[1]


def test_a_quick_run_is_not_published(module, tmp_path):
    publish = module("publish")
    module("table").write_results(tmp_path, {"profile": "quick", "complete": "yes"}, quality_rows())
    with pytest.raises(SystemExit, match="profile is 'quick'"):
        publish.publish(tmp_path)


def test_limits_of_another_run_replace_the_published_ones_and_nothing_else(module):
    limits = [{"part": "limits", "case": "disk, 1e+04", "method": "photon limit", "seconds": None,
               "frc50_smoothed": 0.4}]
    run = {"about": {"started": "today", "code": "abc"}, "rows": limits}
    merge, before = module("publish").with_limits, {"about": {}, "rows": [*quality_rows(), {"part": "speed"}]}
    once = merge(before, run)
    assert [row for row in once["rows"] if row["part"] != "limits"] == before["rows"]
    assert [row["part"] for row in once["rows"][-2:]] == ["limits", "speed"] and merge(once, run) == once
    assert "| disk, 1e+04 | photon limit | 0.400 |" in module("table").markdown({}, limits)
    with pytest.raises(SystemExit, match="without the part"):
        merge(before, {"about": run["about"], "rows": quality_rows()})


def test_key_figures_compare_what_the_run_has(module):
    figures = dict(module("summary").key_figures(quality_rows()))
    assert figures["SSIM at 1e+04 photons, disk probe"] == "amortised 0.8000, no network 0.7000"
    assert not any("patterns/s" in what for what in figures)


@pytest.mark.long
@pytest.mark.parametrize("parts", ["scaling,quality", "limits,speed,star"])
def test_every_benchmark_runs_in_quick_sizes(parts, tmp_path):
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--quick", "--out", str(tmp_path),
               "--parts", *parts.split(",")]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    reported = {row["part"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert reported >= set(parts.split(",")) - {"star"}
