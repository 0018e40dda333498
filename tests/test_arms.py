"""Arms run by the real papermill: what is refused, what a failure leaves, and what a reader may believe."""
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest

from ptycho_nb.config import InputError
from ptycho_nb.files import replacing, write_arrays, write_json
from ptycho_nb.runs.arms import ArmError, arm_name, check_parameters, finish_arm, read_arm, run_arm, start_arm

PARAMETERS = "nphotons: float = 1e9  # photons per pattern\nseed: int = 1\ndata_path: str = ''\noutput_dir: str = ''"
WORK = """
from pathlib import Path
from ptycho_nb.runs.arms import finish_arm, start_arm, write_json
parameters = dict(nphotons=nphotons, seed=int(seed), data_path=data_path, output_dir=output_dir)
folder = start_arm(output_dir, parameters)
write_json(folder / "metrics.json", {"network": {"amplitude": {"ssim": 0.5}}, "here": {"seconds": 0.0}})
(folder / "figures" / "a.png").write_bytes(b"picture")
"""
FINISH = "finish_arm(folder)"


def make_notebook(folder: Path, *sources: str, tagged: bool = True) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    if tagged:
        notebook.cells[0].metadata.tags = ["parameters"]
    path = folder / "study.ipynb"
    nbformat.write(notebook, path)
    return path


def make_arm(folder: Path, **parameters) -> Path:
    """A finished arm without a notebook."""
    start_arm(folder, parameters)
    write_json(folder / "metrics.json", {"network": {"seconds": 1.0}})
    write_arrays(folder / "reconstruction.npz", coverage=np.ones((4, 4), np.float32))
    finish_arm(folder)
    return folder


# names and files


def test_equal_numbers_give_the_same_name():
    names = {arm_name({"nphotons": value}) for value in (10_000, 1e4, np.float32(1e4), np.int64(10_000))}
    assert names == {"nphotons=1e4"}


def test_a_name_holds_no_path():
    with pytest.raises(InputError, match="leave paths out"):
        arm_name({"data_path": "../scan.npz"})


def test_different_numbers_give_different_names():
    values = [1e4, 1.00001e4, 1e-4, 10001, 0.1, 0.10000001, 12000, 1.2e5]
    assert len({arm_name({"x": value}) for value in values}) == len(values)


def test_not_a_number_becomes_null_and_is_named(tmp_path, caplog):
    write_json(tmp_path / "history.json", {"val_loss": [1.0, np.nan], "scale": np.float64(np.inf)})
    assert json.loads((tmp_path / "history.json").read_text()) == {"val_loss": [1.0, None], "scale": None}
    assert "history.json.val_loss[1] = nan" in caplog.text


def test_what_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.json\.probe"):
        write_json(tmp_path / "metrics.json", {"probe": np.ones(2, complex)})
    with pytest.raises(InputError, match="Python objects"):
        write_arrays(tmp_path / "a.npz", ragged=np.array([[1], None], dtype=object))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = write_json(tmp_path / "metrics.json", {"ssim": 1.0})
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError
    assert json.loads(path.read_text()) == {"ssim": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


# folders


def test_an_arm_is_read_back(tmp_path):
    arm = read_arm(make_arm(tmp_path / "arm", nphotons=1e4))
    assert arm.done
    assert arm.config["parameters"] == {"nphotons": 1e4}
    assert arm.metrics["network"]["seconds"] == 1.0
    assert arm.history is None


@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"other"), Path.unlink])
def test_a_changed_or_missing_file_is_named(tmp_path, harm):
    folder = make_arm(tmp_path / "arm")
    harm(folder / "reconstruction.npz")
    arm = read_arm(folder)
    assert arm.finished and not arm.done
    assert arm.altered == ("reconstruction.npz",)


def test_another_configuration_is_not_overwritten(tmp_path):
    folder = make_arm(tmp_path / "arm", nphotons=1e4, seed=1)
    with pytest.raises(InputError, match=r"nphotons = 10000.0 there and 1000.0 here"):
        start_arm(folder, {"nphotons": 1e3, "seed": 1})
    assert read_arm(folder).done


def test_starting_the_same_arm_again_removes_its_results_only(tmp_path):
    folder = make_arm(tmp_path / "arm", seed=1)
    (folder / "notes.txt").write_text("mine")
    start_arm(folder, {"seed": 1})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "figures", "notes.txt"]


def test_finishing_needs_results(tmp_path):
    start_arm(tmp_path / "arm", {})
    with pytest.raises(InputError, match=r"no metrics.json"):
        finish_arm(tmp_path / "arm")
    assert not (tmp_path / "arm" / "done.json").exists()


def test_a_folder_without_an_arm_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config.json"):
        read_arm(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    folder = make_arm(tmp_path / "arm")
    (folder / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics.json"):
        read_arm(folder)


def test_checksums_never_lead_out_of_the_folder(tmp_path):
    folder, outside = make_arm(tmp_path / "arm"), tmp_path / "outside.txt"
    outside.write_text("precious")
    write_json(folder / "done.json", {"files": {"../outside.txt": "0" * 64}})
    with pytest.raises(InputError, match=r"done.json"):
        start_arm(folder, {})
    assert outside.exists()


# papermill


def test_an_unknown_parameter_is_named_and_nothing_is_made(tmp_path):
    notebook = make_notebook(tmp_path, PARAMETERS, WORK, FINISH)
    with pytest.raises(InputError, match=r"study.ipynb: found 'nphotonz'.*Did you mean 'nphotons'"):
        run_arm(notebook, tmp_path / "arm", {"nphotonz": 1e4})
    assert not (tmp_path / "arm").exists()


def test_a_notebook_without_the_tag_is_refused(tmp_path):
    with pytest.raises(InputError, match="tagged 'parameters'"):
        check_parameters(make_notebook(tmp_path, PARAMETERS, WORK, tagged=False), {})


def test_a_missing_notebook_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent.ipynb: found no such file"):
        run_arm(tmp_path / "absent.ipynb", tmp_path / "arm")


def test_defaults_are_values(tmp_path):
    defaults = check_parameters(make_notebook(tmp_path, PARAMETERS), {"seed": 2})
    assert defaults == {"nphotons": 1e9, "seed": 1, "data_path": "", "output_dir": ""}


def test_an_arm_runs_once(tmp_path, monkeypatch):
    notebook = make_notebook(tmp_path, PARAMETERS, WORK, FINISH)
    monkeypatch.chdir(tmp_path)
    arm = run_arm("study.ipynb", "runs/arm", {"nphotons": 1e4, "seed": 1e0, "data_path": "scan.npz"})
    assert arm.done and arm.folder == tmp_path / "runs" / "arm"
    # Relative paths are the caller's, although the notebook runs in its own folder.
    assert arm.config["parameters"]["data_path"] == str(tmp_path / "scan.npz")
    assert arm.figures == [arm.folder / "figures" / "a.png"]
    first = (arm.folder / "done.json").stat().st_mtime_ns

    run_arm(notebook, arm.folder, {"nphotons": 1e4, "data_path": tmp_path / "scan.npz"})
    assert (arm.folder / "done.json").stat().st_mtime_ns == first
    with pytest.raises(InputError, match="another configuration"):
        run_arm(notebook, arm.folder, {"nphotons": 1e5, "data_path": "scan.npz"}, again=True)

    again = run_arm(notebook, arm.folder, {"nphotons": 1e4, "data_path": "scan.npz"}, again=True)
    assert again.done and (arm.folder / "done.json").stat().st_mtime_ns > first


def test_a_failing_notebook_keeps_what_it_did(tmp_path):
    notebook = make_notebook(tmp_path, PARAMETERS, WORK, "1 / 0", FINISH)
    with pytest.raises(ArmError, match=r"study.ipynb: cell \d raised ZeroDivisionError: division by zero"):
        run_arm(notebook, tmp_path / "arm")
    partial = nbformat.read(tmp_path / "arm" / "notebook.ipynb", 4)
    outputs = [output for cell in partial.cells for output in cell.get("outputs", [])]
    assert any(output.get("ename") == "ZeroDivisionError" for output in outputs)
    assert not read_arm(tmp_path / "arm").finished


def test_a_notebook_that_never_finishes_its_arm_is_an_error(tmp_path):
    with pytest.raises(ArmError, match=r"without done.json"):
        run_arm(make_notebook(tmp_path, PARAMETERS, WORK), tmp_path / "arm")


def test_a_dying_kernel_is_an_error(tmp_path):
    notebook = make_notebook(tmp_path, PARAMETERS, WORK, "import os; os._exit(9)", FINISH)
    with pytest.raises(ArmError, match="kernel died"):
        run_arm(notebook, tmp_path / "arm")
    assert not read_arm(tmp_path / "arm").finished


def test_a_killed_run_is_not_done_and_runs_again(tmp_path):
    wait = "import time\nif not (Path(output_dir) / 'go').exists(): time.sleep(60)"
    notebook = make_notebook(tmp_path, PARAMETERS, WORK, wait, FINISH)
    folder = tmp_path / "arm"
    code = f"from ptycho_nb.runs.arms import run_arm; run_arm({str(notebook)!r}, {str(folder)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 60
    while not (folder / "figures" / "a.png").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not read_arm(folder).finished

    (folder / "go").touch()
    assert run_arm(notebook, folder).done


def test_papermill_alone_runs_a_study(tmp_path):
    make_notebook(tmp_path, PARAMETERS, WORK, FINISH)
    command = [sys.executable, "-m", "papermill", "study.ipynb", "out.ipynb", "-p", "nphotons", "1e4"]
    subprocess.run([*command, "-p", "output_dir", "arm"], cwd=tmp_path, check=True, capture_output=True)
    arm = read_arm(tmp_path / "arm")
    assert arm.done and arm.config["parameters"]["nphotons"] == 1e4


def test_a_terminal_shows_how_far_the_notebook_is(tmp_path):
    """From another folder than the notebook's, with the folder of the arm as people give it."""
    (tmp_path / "books").mkdir()
    make_notebook(tmp_path / "books", PARAMETERS, WORK, "import time\ntime.sleep(3)", FINISH)
    command = [sys.executable, "-m", "ptycho_nb", "run-arm", "books/study.ipynb", "arm"]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 100))
    with subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 4096):
                said += part
    os.close(ours)
    assert process.returncode == 0 and "preparing …" in said.decode() and "arm: done" in said.decode()
    counts = [int(count) for count in re.findall(r"running: (\d+) of \d+ cells", said.decode())]
    assert any(0 < count < max(counts) for count in counts), "it is told while the notebook runs"


def test_papermill_alone_is_refused_a_misspelt_name_by_the_notebook(tmp_path):
    """Papermill warns of it and goes on; the study looks at what papermill inserted."""
    work = "from ptycho_nb.runs.arms import study_parameters\nprint(study_parameters(globals()))"
    notebook = make_notebook(tmp_path, PARAMETERS, work)
    command = [sys.executable, "-m", "papermill", notebook.name, "out.ipynb", "-p", "nphotonz", "1e4"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode == 1 and "Did you mean 'nphotons'?" in run.stderr
