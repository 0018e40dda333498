"""The study notebooks as their users run them: by papermill alone, and by the library's runner; each to its end."""
import ast
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

import ptycho_nb as pt
from ptycho_nb.cli_files import print_arm
from ptycho_nb.config import InputError, derive_seeds
from ptycho_nb.files import read_json, write_json
from ptycho_nb.machine import thread_limits
from ptycho_nb.runs.arms import (
    METRICS,
    Arm,
    ArmError,
    arm_name,
    check_arm,
    check_parameters,
    locked,
    read_arm,
    read_config,
    run_arm,
)
from ptycho_nb.solvers.result import load_reconstructions

STUDIES = Path(__file__).resolve().parent.parent / "studies_nbs"
DOSE = STUDIES / "dose.ipynb"
PROGRAM = Path(sys.executable).with_name("ptycho-nb")
SMALL = {"nphotons": 1e4, "n_train": 64, "n_test": 64, "gridsize": 1, "nepochs": 1}
KILLED = SMALL | {"nepochs": 4}
# What each study is run with here; `make test-long` runs it with its defaults, a quick profile. The tests below run
# dose.ipynb, and test_browser_jupyterlab.py runs explore.ipynb.
BRIEF = {"n_train": 32, "n_test": 64, "nepochs": 1}
GIVEN = {"diagnose": {}, "dose_comparison": BRIEF, "dose_curve": {**BRIEF, "n_seeds": 1},
         "dose_overlap": {"methods": "no_network", "overlaps": "0,0.7", "probes": "disk", "n_seeds": 2, "side_px": 80,
                          "comparison_methods": "no_network", "n_noise_seeds": 2,
                          "design": '{"object_size_px": 320, "n_patterns": 80, "min_groups": 3}'},
         "how_few": {"methods": "no_network", "n_test": 60}, "sim_lines": {}, "overlap_job": {"nepochs": 1},
         "pretrain": {"n_scans": 4, "steps": 4},
         "measured": {"n_patterns": 60, "second_mode": 0.0}, "plan": {},
         "photon_grid": {"n_patterns": 120, "n_train": 16, "nepochs": 1, "doses": "1e4,1e5", "methods": "no_network"},
         "reconstruct": {"n_groups": 48, "nepochs": 1}, "tutorial": {},
         "wrong_probe": {"methods": "no_network", "errors": "right,blur 1 px", "n_seeds": 2, "side_px": 80}}
# Two sweeps of dose.ipynb, whose arms, sweeps and reports have tests of their own, five trainings, and two of which
# tests/test_overlap.py and tests/test_diagnostics.py run what they do:
LONG = {"dose_curve", "dose_comparison", "sim_lines", "overlap_job", "pretrain", "diagnose"}
TIMINGS = {"seconds", "cpu_seconds"}


def without_timings(value):
    if isinstance(value, dict):
        return {key: without_timings(item) for key, item in value.items() if key not in TIMINGS}
    return value


def test_an_unknown_parameter_is_refused_with_the_nearest_known_one(tmp_path):
    with pytest.raises(InputError, match=r"nphotonz.*Did you mean 'nphotons'"):
        run_arm(DOSE, tmp_path / "arm", {"nphotonz": 1e4})
    assert not (tmp_path / "arm").exists()


@pytest.mark.parametrize("notebook", sorted(STUDIES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_parameters_are_plain_and_no_function_is_defined(notebook):
    defaults = check_parameters(notebook, {})
    assert defaults["output_dir"] == "", "a run with the defaults writes to a temporary folder"
    assert all(isinstance(value, str | bool | int | float) for value in defaults.values())
    sources = [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    assert not any(line.startswith(("def ", "class ")) for source in sources for line in source.splitlines())


def run_here(notebook: Path, given: dict, until: Callable[[str], bool] = lambda statement: False) -> None:
    """Run the cells of a study in this process, with parameters as papermill inserts them, until a statement."""
    first, *cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    assert first.metadata.tags == ["parameters"]
    names: dict = {}
    exec(first.source, names)
    names.update(given)
    for cell in cells:
        for statement in ast.parse(cell.source).body:
            exec(compile(ast.Module([statement], []), notebook.name, "exec"), names)
            if until(ast.unparse(statement)):
                return
        plt.close("all")  # as in a notebook


@pytest.mark.parametrize("notebook", sorted(STUDIES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_an_arm_is_known_by_every_parameter(notebook, tmp_path):
    given = {"seed": 7} if "seed" in check_parameters(notebook, {}) else {"object_seed": 7}
    run_here(notebook, given | {"output_dir": str(tmp_path)}, lambda line: "= start_arm(output_dir, parameters" in line)
    expected = check_parameters(notebook, {}) | given | {"output_dir": str(tmp_path)}
    assert read_config(tmp_path)["parameters"] == expected
    write_json(tmp_path / METRICS, {})
    check_arm(notebook, tmp_path, given)
    for name in expected.keys() - {"output_dir"}:
        other = "other" if isinstance(expected[name], str) else expected[name] + 1
        with pytest.raises(InputError, match=f"another configuration .*{name} = "):
            check_arm(notebook, tmp_path, given | {name: other})


def by_papermill_alone(notebook: Path, folder: Path, **given):
    """An arm run as a user types it, without the library's runner."""
    given |= {"output_dir": folder / "arm"}
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", notebook.name, str(folder / "out.ipynb"), "--no-progress-bar", *words]
    run = subprocess.run(command, cwd=STUDIES, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode == 0, run.stderr[-3000:]
    return read_arm(folder / "arm")


@pytest.fixture(scope="module")
def by_papermill(tmp_path_factory):
    return by_papermill_alone(DOSE, tmp_path_factory.mktemp("papermill"), **SMALL)


def test_papermill_alone_leaves_a_whole_arm(by_papermill):
    folder = by_papermill.folder
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert by_papermill.done
    assert {"config.json", "history.json", "metrics.json", "reconstruction.npz", "wts.h5.zip", "wts.h5.zip.sha256",
            "done.json", "figures/comparison.png", "figures/training.png"} <= names
    metrics, simulation = by_papermill.metrics, by_papermill.config["simulation"]
    assert {"network", "no_network", "refined", "data_fit"} <= metrics.keys()
    assert set(metrics["data_fit"]["network"]) == {"nll_per_pixel", "r_factor", "relative_squared_error"}
    assert simulation["nphotons"] == 1e4 and simulation["n_train"] == 64
    stated = {"output_dir": str(folder), **SMALL}
    assert by_papermill.config["parameters"] == check_parameters(DOSE, {}) | stated
    assert set(load_reconstructions(folder / "reconstruction.npz")) >= {"network", "no_network", "refined"}


@pytest.mark.long  # test_training.py and test_sweep.py kill each in a few seconds
def test_killed_in_training_it_goes_on_to_the_same_metrics(tmp_path, request):
    """Two arms of the same training, its seed once derived and once stated: one is done before, one killed."""
    out, seed = tmp_path / "out", derive_seeds(0)["train_seed"]
    whole = by_papermill_alone(DOSE, tmp_path, **KILLED)
    shutil.copytree(whole.folder, out / "train_seed=-1")
    words = [word for name, value in KILLED.items() for word in ("-p", name, str(value))]
    command = [PROGRAM, "sweep", DOSE, "--set", f"train_seed=-1,{seed}", "--out", out, "--workers", "1", *words]
    process = subprocess.Popen(command, env=os.environ | thread_limits(1), stdout=subprocess.DEVNULL)
    request.addfinalizer(process.kill)
    first, second = out / "train_seed=-1", out / f"train_seed={seed}"
    history, deadline = second / "history.json", time.monotonic() + 400
    while not history.exists() or len(read_json(history)["epochs"]) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = (first / "done.json").stat().st_mtime_ns
    with locked(second / ".lock", patience_s=10):
        before = read_json(history)["epochs"]
        assert 2 <= before[-1]["epoch"] < KILLED["nepochs"], "killed in the middle of its training"
        assert (second / ".checkpoint.npz").exists() and not (second / "done.json").exists()

    again = subprocess.run(command, env=os.environ | thread_limits(1), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 arms done, 1 of them before" in again.stdout
    assert (first / "done.json").stat().st_mtime_ns == done, "no arm is run twice"
    resumed = read_arm(second)
    kept = len(before) - 1  # the last one may have been killed between its history and its checkpoint
    assert resumed.history["epochs"][:kept] == before[:kept], "epochs that were done are not trained again"
    assert resumed.history["epochs"][-1]["epoch"] == KILLED["nepochs"]

    assert without_timings(resumed.metrics) == without_timings(whole.metrics)
    checksums = {(arm.folder / "wts.h5.zip.sha256").read_text().split()[0] for arm in (whole, resumed)}
    assert len(checksums) == 1, "the same training gives the same bytes"


def test_a_wrong_value_names_the_parameter_and_leaves_no_done_json(tmp_path):
    with pytest.raises(ArmError, match=r"nphotons.*-1"):  # of a study that loads no framework, which would take longest
        run_arm(STUDIES / "measured.ipynb", tmp_path / "arm", {**GIVEN["measured"], "nphotons": -1.0})
    assert not (tmp_path / "arm" / "done.json").exists()


def _finished_here(notebook: Path, folder: Path, given: dict) -> Arm:
    """An arm without a process of its own: most of the time that a small one takes is spent on loading libraries."""
    run_here(notebook, given | {"output_dir": str(folder)})
    return read_arm(folder)


def _arms_beforehand(study: dict, folder: Path) -> list[Path]:
    """The arms that `dose_comparison` asks for, in small, which its sweep then finds done."""
    names = "n_train", "n_test", "nepochs", "gridsize", "estimate_scope", "probe", "object_kind", "seed", "precision"
    shared, folders = {name: study[name] for name in names}, []
    for dose, loss in itertools.product((study["high_dose"], study["low_dose"]), ("nll", "mae")):
        varied = {"nphotons": dose, "loss": loss}
        folders.append(_finished_here(DOSE, folder / arm_name(varied), shared | varied).folder)
    return folders


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xdist_group(name)] + [pytest.mark.long] * (name in LONG)


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in GIVEN])
def test_a_study_runs_to_its_end(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(STUDIES)
    notebook, given, arms = STUDIES / f"{name}.ipynb", GIVEN[name], []
    if name == "dose_comparison":
        arms = _arms_beforehand(check_parameters(notebook, {}) | given, tmp_path / "arms")
    before = [(arm / "done.json").stat().st_mtime_ns for arm in arms]
    arm = _finished_here(notebook, tmp_path, given)
    assert arm.done and arm.metrics
    capsys.readouterr()
    print_arm(str(arm.folder))
    assert capsys.readouterr().out.endswith(f"{arm.folder}: done\n"), "what `run-arm` and `info` show of it"
    assert [(arm / "done.json").stat().st_mtime_ns for arm in arms] == before, "no arm is run twice"


@pytest.mark.xdist_group("tutorial")
@pytest.mark.long
def test_the_hidden_answers_of_the_tutorial_run_and_are_right(tmp_path, monkeypatch, capsys):
    """Each stands behind its exercise, and needs nothing but what the tutorial has made by then."""
    monkeypatch.chdir(tmp_path)
    cells = nbformat.read(STUDIES / "tutorial.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    hidden = r"<details><summary>Answer</summary>.*?```python\n(.*?)```.*?</details>"
    dose, stage, counts = re.findall(hidden, text, re.DOTALL)
    scan = pt.example_scan(nphotons=1e5, seed=0)
    made = {"pt": pt, "np": np, "scan": scan}
    exec(dose, made)
    scores = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert scores[0] < 0.9 < scores[-1], "between 1e4 and 1e6"
    exec(stage, made)
    images = (pt.estimate(made[name]) for name in ("wrong", "better"))
    wrong, better = (pt.compare(image, scan.truth)["amplitude"]["ssim"] for image in images)
    assert better > wrong + 0.1, "most of the fine detail comes back"
    *lines, last = counts.strip().splitlines()
    exec("\n".join(lines), made)
    assert eval(last, made).startswith("Counts are stored as intensity")


@pytest.mark.long  # a process, a kernel and TensorFlow's start for each; dose.ipynb is always run like this
@pytest.mark.parametrize("name", [name for name in GIVEN if name not in LONG])
def test_papermill_alone_runs_a_study_to_its_end(name, tmp_path):
    arm = by_papermill_alone(STUDIES / f"{name}.ipynb", tmp_path, **GIVEN[name])
    assert arm.done and arm.metrics


def test_every_study_is_run_by_some_test():
    assert {path.stem for path in STUDIES.glob("*.ipynb")} == {*GIVEN, "dose", "explore"}
