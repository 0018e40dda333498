"""The study notebooks as their users run them: by papermill alone, and by the library's runner."""
import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ptycho_nb.config import InputError
from ptycho_nb.files import write_json
from ptycho_nb.runs.arms import METRICS, ArmError, check_arm, check_parameters, read_arm, read_config, run_arm
from ptycho_nb.solvers.result import load_reconstructions

STUDIES = Path(__file__).resolve().parent.parent / "studies_nbs"
DOSE = STUDIES / "dose.ipynb"
SMALL = {"n_train": 60, "n_test": 80, "nepochs": 1, "precision": "float32"}  # "auto" is measured, in each run
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


def up_to_start_arm(notebook: Path, given: dict) -> dict:
    """Run a study notebook up to its call of `start_arm`, with parameters as papermill inserts them; its names."""
    first, *cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    assert first.metadata.tags == ["parameters"]
    names: dict = {}
    exec(first.source, names)
    names.update(given)
    for statement in (statement for cell in cells for statement in ast.parse(cell.source).body):
        exec(compile(ast.Module([statement], []), notebook.name, "exec"), names)
        if isinstance(statement, ast.Assign) and "start_arm(output_dir, parameters" in ast.unparse(statement):
            return names
    raise AssertionError("the notebook starts no arm")


@pytest.mark.parametrize("notebook", sorted(STUDIES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_an_arm_is_known_by_every_parameter(notebook, tmp_path):
    given = {"seed": 7} if "seed" in check_parameters(notebook, {}) else {"object_seed": 7}
    up_to_start_arm(notebook, given | {"output_dir": str(tmp_path)})
    expected = check_parameters(notebook, {}) | given | {"output_dir": str(tmp_path)}
    assert read_config(tmp_path)["parameters"] == expected
    write_json(tmp_path / METRICS, {})
    check_arm(notebook, tmp_path, given)
    for name in expected.keys() - {"output_dir"}:
        other = "other" if isinstance(expected[name], str) else expected[name] + 1
        with pytest.raises(InputError, match=f"another configuration .*{name} = "):
            check_arm(notebook, tmp_path, given | {name: other})


@pytest.fixture(scope="module")
def by_papermill(tmp_path_factory):
    """An arm run by papermill alone, as a user types it."""
    folder = tmp_path_factory.mktemp("papermill")
    words = [word for name, value in SMALL.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", "dose.ipynb", str(folder / "out.ipynb"), "--no-progress-bar",
               "-p", "nphotons", "1e4", "-p", "output_dir", str(folder / "arm"), *words]
    run = subprocess.run(command, cwd=STUDIES, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode == 0, run.stderr[-3000:]
    return read_arm(folder / "arm")


def test_papermill_alone_leaves_a_whole_arm(by_papermill):
    folder = by_papermill.folder
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert by_papermill.done
    assert {"config.json", "history.json", "metrics.json", "reconstruction.npz", "wts.h5.zip", "wts.h5.zip.sha256",
            "done.json", "figures/comparison.png", "figures/training.png"} <= names
    metrics, simulation = by_papermill.metrics, by_papermill.config["simulation"]
    assert {"network", "no_network", "refined", "data_fit"} <= metrics.keys()
    assert set(metrics["data_fit"]["network"]) == {"nll_per_pixel", "r_factor", "relative_squared_error"}
    assert simulation["nphotons"] == 1e4 and simulation["n_train"] == 60
    stated = {"nphotons": 1e4, "output_dir": str(folder), **SMALL}
    assert by_papermill.config["parameters"] == check_parameters(DOSE, {}) | stated
    assert set(load_reconstructions(folder / "reconstruction.npz")) >= {"network", "no_network", "refined"}


def test_the_same_seed_gives_the_same_metrics_and_weights(by_papermill, tmp_path):
    again = run_arm(DOSE, tmp_path / "again", {"nphotons": 1e4, **SMALL})
    assert without_timings(again.metrics) == without_timings(by_papermill.metrics)
    checksums = [(arm.folder / "wts.h5.zip.sha256").read_text() for arm in (again, by_papermill)]
    assert checksums[0] == checksums[1], "the same training gives the same bytes"


def test_a_wrong_value_names_the_parameter_and_leaves_no_done_json(tmp_path):
    with pytest.raises(ArmError, match=r"nphotons.*-1"):
        run_arm(DOSE, tmp_path / "arm", {"nphotons": -1.0, **SMALL})
    assert not (tmp_path / "arm" / "done.json").exists()
