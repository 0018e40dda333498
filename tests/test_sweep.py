"""Sweeps with the real papermill and the real dask: what is refused, what fails, what is killed, who else is there."""
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from distributed import Client

import ptycho_nb.studies.sweep
import ptycho_nb.studies.workers
from ptycho_nb.cli import main
from ptycho_nb.config import InputError
from ptycho_nb.files import read_json, sha256_of, write_json
from ptycho_nb.runs.arms import ArmBusy, locked, read_arm, run_arm, start_arm
from ptycho_nb.studies.sweep import read_arms_table, sweep

PROGRAM = Path(sys.executable).with_name("ptycho-nb")
DASK = Path(sys.executable).with_name("dask")
PARAMETERS = "dose: float = 1.0\nloss: str = 'nll'\nseed: int = 0\nlog_path: str = ''\noutput_dir: str = ''"
WORK = """
import os, time
from contextlib import suppress
from pathlib import Path
from ptycho_nb.runs.arms import finish_arm, start_arm, write_json
from ptycho_nb.machine import cores
parameters = dict(dose=dose, loss=loss, seed=seed, log_path=log_path, output_dir=output_dir)
folder = start_arm(output_dir, parameters, seeds={"noise_seed": seed}, training={"nepochs": 2})
if log_path:
    with open(log_path, "a") as log:
        log.write(f"{dose:g} {os.getpid()}\\n")
rows = [{"epoch": k, "train_loss": 1 / (k + 1), "val_loss": None, "seconds": 0.1} for k in range(3)]
write_json(folder / "history.json", {"epochs": rows})
"""
FAIL = "if dose == 0:\n    raise ValueError('no photons at all')"
FINISH = """
names = "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"
limits = {name: os.environ.get(name) for name in names}
write_json(folder / "metrics.json", {"network": {"seconds": dose}, "limits": limits, "cores": cores()})
finish_arm(folder)
"""


def make_study(folder: Path, *more: str, tagged: bool = True, name: str = "study.ipynb") -> Path:
    """A study that takes no time; `more` is run between its beginning and its end."""
    sources = [PARAMETERS, WORK, FAIL, *more, FINISH]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    if tagged:
        notebook.cells[0].metadata.tags = ["parameters"]
    nbformat.write(notebook, folder / name)
    return folder / name


def wait_for(condition, seconds: float = 120):
    """The first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain")


def states(folder: Path) -> dict[str, str]:
    return {line["name"]: line["state"] for line in read_json(folder / "manifest.json")["arms"]}


# what is refused, before anything is written

GRID = {"dose": [1, 2]}
WRONG = {
    "an unknown parameter": ({"grid": {"doze": [1, 2]}}, r"study.ipynb: found 'doze'.*Did you mean 'dose'"),
    "an unknown common parameter": ({"grid": GRID, "parameters": {"sead": 1}}, r"'sead'.*Did you mean 'seed'"),
    "two equal arms": ({"grid": {"dose": [1e4, 10_000]}}, r"dose=1e4: found twice"),
    "a path in a name": ({"grid": {"log_path": ["a/b", "c/d"]}}, "leave paths out"),
    "a value that is no word": ({"grid": {"dose": [[1], [2]]}}, r"dose: found \[1\]"),
    "a dose that is not finite": ({"grid": {"dose": [float("inf")]}}, r"dose: found inf"),
    "a name that no disk holds": ({"grid": {"loss": ["x" * 300]}}, "305 characters"),
    "a text for a list": ({"grid": {"loss": "nll"}}, r"loss: found 'nll'"),
    "no values": ({"grid": {"dose": []}}, r"dose: found \[\]"),
    "no arms": ({"arms": []}, "found none"),
    "no grid and no arms": ({}, "found neither"),
    "a grid and arms": ({"grid": GRID, "arms": [{"dose": 3}]}, "found both"),
    "a value for all beside one that varies": (
        {"grid": GRID, "parameters": {"dose": 1}}, "dose: found a value for all"),
    "the folder of each arm": ({"grid": GRID, "parameters": {"output_dir": "x"}}, "output_dir"),
    "no workers": ({"grid": GRID, "n_workers": 0}, "n_workers: found 0"),
    "workers and a scheduler": ({"grid": GRID, "n_workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "and a scheduler"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_refused_and_nothing_is_written(case, tmp_path):
    settings, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        sweep(make_study(tmp_path), tmp_path / "out", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["study.ipynb"]


def test_a_notebook_without_the_tag_is_refused(tmp_path):
    with pytest.raises(InputError, match="tagged 'parameters'"):
        sweep(make_study(tmp_path, tagged=False), tmp_path / "out", grid=GRID)
    assert not (tmp_path / "out").exists()


def test_another_configuration_or_study_is_refused(tmp_path):
    study, out = make_study(tmp_path), tmp_path / "out"
    start_arm(out / "dose=1", {"dose": 1, "loss": "mae", "seed": 0, "log_path": "", "output_dir": "x"})
    write_json(out / "dose=1" / "history.json", {})
    with pytest.raises(InputError, match=r"dose=1: found another configuration \(loss = 'mae' there and 'nll' here"):
        sweep(study, out, grid=GRID)
    write_json(out / "manifest.json", {"notebook": "/elsewhere/other.ipynb", "arms": []})
    with pytest.raises(InputError, match=r"a sweep of other\.ipynb"):
        sweep(study, out, grid={"dose": [2]})
    assert not (out / "dose=2").exists()


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(tmp_path, capsys):
    study = make_study(tmp_path)
    with pytest.raises(InputError, match="expected a place that can be written to"):
        sweep(study, "/proc/sweep", grid=GRID)
    assert main(["sweep", str(study), "--set", "dose=1", "--out", str(study / "inside")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_disk_that_is_too_full_is_said_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(ptycho_nb.studies.sweep, "_SPARE_BYTES", 1e18)
    with pytest.raises(InputError, match=r"MB free; expected 1000000000000 MB"):
        sweep(make_study(tmp_path), tmp_path / "out", grid=GRID)
    assert not (tmp_path / "out" / "dose=1").exists()


def test_a_table_of_arms_is_read(tmp_path):
    path = tmp_path / "arms.csv"
    path.write_text("\ufeffdose, loss\n1e4, mae\n\n2,\n", encoding="utf-8")
    assert read_arms_table(path) == [{"dose": 1e4, "loss": "mae"}, {"dose": 2}]
    path.write_text("dose,loss\n1e4\n")
    with pytest.raises(InputError, match=r"arm 1: found 1 values; expected 2"):
        read_arms_table(path)


# one that fails beside three that finish


@pytest.fixture(scope="module")
def half_failed(tmp_path_factory):
    """A sweep typed in a terminal, one of whose four arms fails by design."""
    folder = tmp_path_factory.mktemp("sweep")
    study = make_study(folder)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    command = [PROGRAM, "sweep", study, "--set", "dose=1,0,2,1e4", "-p", "seed", "7", "--out", "out", "--workers", "2"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        while part := _read_terminal(ours):
            shown += part
        text = process.stdout.read()
    os.close(ours)
    return folder, process.returncode, text, shown.decode(errors="replace")


def _read_terminal(number: int) -> bytes:
    try:
        return os.read(number, 4096)
    except OSError:  # the other side was closed
        return b""


def test_a_failing_arm_stops_no_other(half_failed):
    folder, returncode, text, shown = half_failed
    out = folder / "out"
    assert returncode == 1
    assert states(out) == {"dose=1": "done", "dose=0": "failed", "dose=2": "done", "dose=1e4": "done"}
    assert "out: 3 of 4 arms done, 1 failed:" in text and "no photons at all" in text
    assert "4/4" in shown and "3 done, 1 failed" in shown, "a bar in the terminal"
    assert all(read_arm(out / name).done for name in ("dose=1", "dose=2", "dose=1e4"))


def test_a_failed_arm_keeps_its_notebook_and_its_traceback(half_failed):
    arm = half_failed[0] / "out" / "dose=0"
    text = (arm / "error.txt").read_text()
    assert "ValueError: no photons at all" in text and "Traceback" in text and "\x1b" not in text
    outputs = [output for cell in nbformat.read(arm / "notebook.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert any(output.get("ename") == "ValueError" for output in outputs)
    assert not (arm / "done.json").exists()
    assert not list((half_failed[0] / "out").glob("*1/error.txt"))


def test_the_manifest_says_what_was_asked_for_and_what_came_of_it(half_failed):
    folder = half_failed[0]
    manifest = read_json(folder / "out" / "manifest.json")
    done, failed = manifest["arms"][0], manifest["arms"][1]
    assert manifest["notebook"] == str(folder / "study.ipynb")
    assert {"python", "ptycho_nb", "numpy", "tensorflow", "keras"} <= manifest["versions"].keys()
    assert done["parameters"] == {"dose": 1, "seed": 7} and done["seeds"] == {"noise_seed": 7} and done["seconds"] > 0
    assert done["inputs"] == {str(folder / "study.ipynb"): sha256_of(folder / "study.ipynb")}
    assert done["outputs"] == read_json(folder / "out" / "dose=1" / "done.json")["files"]
    assert {"config.json", "history.json", "metrics.json"} == done["outputs"].keys()
    assert "no photons" in failed["error"] and failed["outputs"] == {}


def test_what_is_done_is_not_run_again_and_what_is_altered_is(half_failed, tmp_path, capsys):
    folder = shutil.copytree(half_failed[0] / "out", tmp_path / "out").parent
    study = shutil.copy(half_failed[0] / "study.ipynb", folder)
    names = "dose=1", "dose=2", "dose=1e4"
    before = {name: (folder / "out" / name / "done.json").stat().st_mtime_ns for name in names}
    (folder / "out" / "dose=2" / "metrics.json").write_text("{}")
    (folder / "arms.csv").write_text("dose\n1\n2\n1e4\n")
    words = ["--arms", str(folder / "arms.csv"), "-p", "seed", "7", "--out", str(folder / "out")]
    assert main(["sweep", str(study), *words]) == 0
    assert "3 of 3 arms done, 2 of them before" in capsys.readouterr().out
    after = {name: (folder / "out" / name / "done.json").stat().st_mtime_ns for name in before}
    assert [name for name in before if after[name] != before[name]] == ["dose=2"]
    assert states(folder / "out")["dose=0"] == "failed", "the line of an arm that this sweep did not ask for stays"
    assert main(["info", str(folder / "out")]) == 0
    assert "3 done, 1 failed of 4 arms" in capsys.readouterr().out


# workers


def test_workers_share_the_cores_unless_told_otherwise(tmp_path, monkeypatch):
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    study, cores = make_study(tmp_path), len(os.sched_getaffinity(0))
    assert sweep(study, tmp_path / "one", grid={"dose": [1]}, n_workers=1).ok
    metrics = read_arm(tmp_path / "one" / "dose=1").metrics
    assert metrics["limits"] == dict.fromkeys(names, str(cores)) and metrics["cores"] == cores
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert sweep(study, tmp_path / "many", grid={"dose": [1]}, n_workers=cores + 1).ok
    metrics = read_arm(tmp_path / "many" / "dose=1").metrics
    assert metrics["limits"] == dict.fromkeys(names, "3") and metrics["cores"] == 3
    assert os.environ["OMP_NUM_THREADS"] == "3" and "TF_NUM_INTRAOP_THREADS" not in os.environ


def test_an_arm_whose_worker_dies_goes_to_another(tmp_path):
    kill = "if dose == 2 and not Path(output_dir, 'once').exists():\n    Path(output_dir, 'once').touch()\n"
    study = make_study(tmp_path, kill + "    os.kill(os.getppid(), 9)\n    time.sleep(60)")
    result = sweep(study, tmp_path / "out", grid=GRID, n_workers=1)
    assert result.ok and (tmp_path / "out" / "dose=2" / "once").exists()


@pytest.fixture
def scheduler(tmp_path):
    """A running scheduler and a way to give it workers, as somebody would start them."""
    file, processes = tmp_path / "scheduler.json", []

    def start(*words: str) -> None:
        log = open(tmp_path / "dask.log", "ab")  # noqa: SIM115
        command = [DASK, *words, "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path))

    def workers(n: int, threads: int = 1) -> None:
        for _ in range(n):
            start("worker", "--nthreads", str(threads))
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(len(processes) - 1, timeout=120)

    def announced() -> str | None:
        with suppress(FileNotFoundError, json.JSONDecodeError):  # it is created empty, then written
            return json.loads(file.read_text())["address"]

    try:
        start("scheduler", "--port", "0")
        address = wait_for(announced)
        yield address, workers
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(30)


def test_arms_run_on_the_workers_of_a_scheduler(scheduler, tmp_path):
    address, start_workers = scheduler
    start_workers(2)
    study = make_study(tmp_path)
    log = tmp_path / "log.txt"
    result = sweep(study, tmp_path / "out", grid={"dose": [0, 1, 2, 3]}, parameters={"log_path": log},
                   scheduler=address)
    assert [arm["state"] for arm in result.arms] == ["failed", "done", "done", "done"]
    assert len(log.read_text().splitlines()) == 4
    metrics = read_arm(tmp_path / "out" / "dose=1").metrics
    assert metrics["limits"]["TF_NUM_INTRAOP_THREADS"] == os.environ.get(
        "TF_NUM_INTRAOP_THREADS", str(max(1, len(os.sched_getaffinity(0)) // 2)))

    start_workers(1, threads=2)
    with pytest.raises(InputError, match=r"worker tcp.*found 2 threads.*dask worker --nthreads 1"):
        sweep(study, tmp_path / "other", grid=GRID, scheduler=address)
    assert not (tmp_path / "other" / "dose=1").exists()


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ptycho_nb.studies.workers, "_ANSWER_S", 1)
    with pytest.raises(InputError, match=r"scheduler tcp://127.0.0.1:9.*dask scheduler"):
        sweep(make_study(tmp_path), tmp_path / "out", grid=GRID, scheduler="tcp://127.0.0.1:9")


# killed, and not alone


def test_two_sweeps_at_once_run_each_arm_once(tmp_path):
    study, log = make_study(tmp_path, "time.sleep(1)"), tmp_path / "log.txt"
    command = [PROGRAM, "sweep", study, "--set", "dose=1,2", "-p", "log_path", log, "--out", "out", "--workers", "1"]
    sweeps = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate(timeout=120)[0] for process in sweeps]
    assert [process.returncode for process in sweeps] == [0, 0], texts
    assert sorted(line.split()[0] for line in log.read_text().splitlines()) == ["1", "2"]
    assert set(states(tmp_path / "out").values()) == {"done"}
    assert all(read_arm(tmp_path / "out" / f"dose={dose}").done for dose in (1, 2))


def test_an_arm_that_somebody_runs_is_not_run_beside(tmp_path):
    study = make_study(tmp_path)
    (tmp_path / "arm").mkdir()
    with locked(tmp_path / "arm" / ".lock"), pytest.raises(ArmBusy, match="another process is running"):
        run_arm(study, tmp_path / "arm", {"dose": 1})
    assert not (tmp_path / "arm" / "config.json").exists()
    assert run_arm(study, tmp_path / "arm", {"dose": 1}).done


@pytest.mark.parametrize("moment_s", [pytest.param(0.2, marks=pytest.mark.long), 3.0])
def test_killed_at_any_moment_it_leaves_nobody_behind_and_goes_on(moment_s, tmp_path):
    study, out = make_study(tmp_path, "time.sleep(1)"), tmp_path / "out"
    command = [PROGRAM, "sweep", study, "--set", "dose=1,2", "--out", out, "--workers", "2"]
    process = subprocess.Popen(command)
    wait_for(lambda: out.exists())
    time.sleep(moment_s)
    process.kill()
    process.wait()
    for lock in out.glob("*/.lock"):
        with locked(lock, patience_s=10):  # neither its worker nor its kernel holds it any more
            pass
    result = sweep(study, out, grid=GRID, n_workers=2)
    assert result.ok and set(states(out).values()) == {"done"}


@pytest.mark.long
def test_killed_at_twenty_moments_it_still_ends(tmp_path):
    """Each time the next one goes on: no arm is lost, and none that was done is run again."""
    study, out, log = make_study(tmp_path, "time.sleep(0.5)"), tmp_path / "out", tmp_path / "log"
    grid, chance = {"dose": list(range(1, 25))}, random.Random(0)
    words = ["--set", f"dose={','.join(map(str, grid['dose']))}", "-p", "log_path", log, "--out", out, "--workers", "2"]
    done: set[str] = set()
    for _ in range(20):
        process = subprocess.Popen([PROGRAM, "sweep", study, *words])
        wait_for(lambda: (out / "manifest.json").exists())
        time.sleep(chance.uniform(0, 9))
        process.kill()
        process.wait()
        for lock in out.glob("*/.lock"):
            with locked(lock, patience_s=20):
                pass
        read_json(out / "manifest.json")
        was_done, done = done, {path.parent.name for path in out.glob("*/done.json")}
        assert was_done <= done and all(read_arm(out / name).done for name in done)
    result = sweep(study, out, grid=grid, parameters={"log_path": str(log)}, n_workers=2)
    assert result.ok and set(states(out).values()) == {"done"}
    assert len(list(out.glob("*/done.json"))) == 24


# what is seen


def test_a_table_for_a_person_and_nothing_for_papermill(tmp_path):
    from jupyter_client.manager import start_new_kernel

    code = "from ptycho_nb.studies.sweep import sweep\n"
    code += f"sweep({str(make_study(tmp_path))!r}, {str(tmp_path)!r} + out, grid={{'dose': [1, 0]}}, n_workers=1).ok"
    manager, client = start_new_kernel()
    try:
        shown = {}
        for asks in (True, False):
            messages = []
            client.execute_interactive(
                f"out = '/{asks}'\n{code}", allow_stdin=asks, output_hook=messages.append, timeout=120,
                stdin_hook=lambda message: None,
            )
            shown[asks] = [message["content"]["data"].get("text/html", "") for message in messages
                           if message["msg_type"] in ("display_data", "update_display_data")]
            results = [message["content"]["data"]["text/plain"] for message in messages
                       if message["msg_type"] == "execute_result"]
            assert "False" in results
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert shown[False] == []
    text = re.sub(r"<[^>]*>", " ", shown[True][-1])
    assert "1 done, 1 failed" in text and "2 of 2" in text and "0.33333" in text
    assert len(shown[True]) > 1, "the table renews itself"


@pytest.mark.long
def test_stopped_in_a_notebook_it_says_one_sentence(tmp_path):
    """As JupyterLab interrupts: the kernel and all its processes; the arms are free for the next call."""
    notebook, log, out = make_study(tmp_path, "time.sleep(60)"), tmp_path / "log", tmp_path / "out"
    script = tmp_path / "kernel.py"
    script.write_text(f"""
if __name__ == "__main__":
    import signal
    from IPython.core.interactiveshell import InteractiveShell
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs this may have it ignored
    InteractiveShell.instance().run_cell('''import ptycho_nb as pt
pt.sweep({str(notebook)!r}, {str(out)!r}, grid={{"dose": [1.0, 2.0]}},
         parameters={{"log_path": {str(log)!r}}}, n_workers=2)
''')
""")
    command = [sys.executable, script]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:
        wait_for(log.exists)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert said.strip() == "Stopped: the arms that are done are kept; the same call continues where it stopped."
    assert {arm["state"] for arm in read_json(out / "manifest.json")["arms"]} == {"waiting"}
