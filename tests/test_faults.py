"""A kill, a full disk, a folder without permission, other people's links: the old file is left, or the new one."""
import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ptycho_nb.analysis.plots import plot_object, save_figure
from ptycho_nb.cli import main
from ptycho_nb.config import InputError, ModelConfig, SimulationConfig
from ptycho_nb.data.formats import load_data, save_data
from ptycho_nb.data.scan import RawData
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.data.writers import patterns_beside
from ptycho_nb.diagnosis.report import findings_text
from ptycho_nb.files import read_arrays, read_json, write_arrays, write_json
from ptycho_nb.network.bundle import load_bundle, save_bundle
from ptycho_nb.network.model import PtychoModel
from ptycho_nb.network.training import _read_checkpoint
from ptycho_nb.physics.geometry import Geometry
from ptycho_nb.physics.probes import disk_probe
from ptycho_nb.runs.arms import finish_arm, locked, start_arm
from ptycho_nb.solvers.result import Reconstruction, save_reconstructions
from ptycho_nb.studies.reports import report
from ptycho_nb.studies.results import results_table
from ptycho_nb.studies.workers import local_workers


def write_for_ever(folder: Path) -> None:
    for number in range(10**9):
        write_json(folder / "metrics.json", {"number": number, "text": "x" * 20_000})
        write_arrays(folder / "object.npz", object=np.full((60, 60), number), again=np.full((60, 60), number))


def test_twenty_kills_leave_whole_files(tmp_path):
    chance = np.random.default_rng(0)
    for _ in range(20):
        writer = os.fork()
        if writer == 0:
            try:
                write_for_ever(tmp_path)
            finally:
                os._exit(1)
        while not (tmp_path / "object.npz").exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0.02, 0.08))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        assert len(read_json(tmp_path / "metrics.json")["text"]) == 20_000
        arrays = read_arrays(tmp_path / "object.npz")
        assert np.array_equal(arrays["object"], arrays["again"])
    for left in tmp_path.glob(".*"):
        os.utime(left, (time.time() - 3600,) * 2)
    write_json(tmp_path / "metrics.json", {})
    write_arrays(tmp_path / "object.npz", object=np.ones(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "object.npz"]


SAVING = """
import sys
from ptycho_nb.config import ModelConfig
from ptycho_nb.network.bundle import save_bundle
from ptycho_nb.network.model import PtychoModel
from ptycho_nb.physics.probes import disk_probe
while True:
    for seed in (3, 4):
        model = PtychoModel(ModelConfig(n_filters=1, gridsize=1), disk_probe(64), 12.5, 64, seed=seed)
        for _ in range(20):
            save_bundle(sys.argv[1], model)
            print(seed, flush=True)
"""


@pytest.mark.long  # each of the twenty loads TensorFlow
def test_twenty_kills_leave_whole_bundles(tmp_path):
    chance, path = np.random.default_rng(0), tmp_path / "wts.h5.zip"
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", SAVING, path], stdout=subprocess.PIPE)
        assert writer.stdout.readline().strip() == b"3"
        time.sleep(chance.uniform(0, 0.3))
        writer.kill()
        writer.wait()
        assert load_bundle(path).seed in (3, 4)
        with contextlib.suppress(FileNotFoundError):  # between the two files there is none for a moment
            (tmp_path / "wts.h5.zip.sha256").read_text()
    for left in tmp_path.glob(".*"):
        os.utime(left, (time.time() - 3600,) * 2)
    save_bundle(path, load_bundle(path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wts.h5.zip", "wts.h5.zip.sha256"]


TRAINING_RUN = """
import sys
from ptycho_nb.config import ModelConfig, TrainingConfig
from ptycho_nb.data.scan import RawData
from ptycho_nb.network.bundle import save_bundle
from ptycho_nb.network.training import train
path, folder = sys.argv[1:]
print("ready", flush=True)
model, history = train(RawData.load(path), ModelConfig(gridsize=1, n_filters=4), output_dir=folder,
    training=TrainingConfig(nepochs=60, batch_size=8, precision="float32", patience=99),
    callback=lambda row: print(row["epoch"], flush=True))
save_bundle(folder + "/wts.h5.zip", model)
"""


@pytest.mark.long
def test_twenty_kills_of_a_training_change_nothing(tmp_path):
    """Wherever it is killed, the same command goes on, and ends with the numbers of a training that nobody killed."""
    config = SimulationConfig(nphotons=1e4, object_size_px=160, n_train=40, n_test=1)
    simulate_halves(config)[0].save(tmp_path / "scan.npz")
    chance = np.random.default_rng(0)

    def command(name: str) -> list:
        return [sys.executable, "-c", TRAINING_RUN, tmp_path / "scan.npz", str(tmp_path / name)]

    subprocess.run(command("whole"), check=True, stdout=subprocess.DEVNULL)
    for k in range(20):
        process = subprocess.Popen(command("killed"), stdout=subprocess.PIPE)
        for _ in range(1 if k % 4 == 0 else 3):  # right at the start, or after some epochs more
            process.stdout.readline()
        time.sleep(chance.uniform(0, 3) if k % 4 == 0 else chance.exponential(0.1))
        process.kill()
        process.wait()
        if (tmp_path / "killed" / "history.json").exists():
            read_json(tmp_path / "killed" / "history.json")
    subprocess.run(command("killed"), check=True, stdout=subprocess.DEVNULL)
    whole, killed = (read_json(tmp_path / name / "history.json")["epochs"] for name in ("whole", "killed"))
    assert [row["train_loss"] for row in killed] == [row["train_loss"] for row in whole] and len(whole) == 61
    assert [row["val_loss"] for row in killed] == [row["val_loss"] for row in whole]
    checksums = {(tmp_path / name / "wts.h5.zip.sha256").read_text().split()[0] for name in ("whole", "killed")}
    assert len(checksums) == 1


# a full disk, a folder without permission


@contextmanager
def files_no_larger_than(n_bytes: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def a_scan() -> RawData:
    positions_px = 32 + 10.0 * np.arange(8).reshape(4, 2)
    patterns = np.random.default_rng(0).random((4, 64, 64), np.float32)
    return RawData(patterns, positions_px, np.ones((64, 64), np.complex64), geometry=Geometry(9e-10, None, 1.9, 75e-6))


def a_scan_on_disk(folder: Path) -> RawData:
    return load_data(a_scan().save(folder / "before.npz"), on_disk=True)


def a_result() -> Reconstruction:
    noise = np.random.default_rng(0).random((90, 90))
    return Reconstruction(object=noise, coverage=noise, origin_px=[0, 0], positions_px=[[40, 40], [50, 50]],
                          probe=np.ones((64, 64)), method="ones")


WRITERS = {
    "metrics.json": lambda path: write_json(path, ["x" * 50_000]),
    "object.npz": lambda path: write_arrays(path, object=np.random.default_rng(0).random(5000)),
    "scan.npz": lambda path: a_scan().save(path),
    "scan.cxi": lambda path: save_data(path, a_scan()),
    "scan.h5": lambda path: save_data(path, a_scan()),
    "reconstruction.npz": lambda path: save_reconstructions(path, ones=a_result()),
    "object.png": lambda path: save_figure(plot_object(a_result()), path),
}


@pytest.mark.parametrize("most_bytes", [0, 2000, 9000])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_the_old_one(name, most_bytes, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"the old one")
    named = patterns_beside(path) if name == "scan.h5" else path
    with files_no_larger_than(most_bytes), pytest.raises(OSError, match=named.name) as refused:
        WRITERS[name](path)
    assert refused.value.filename == str(named)
    assert path.read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_while_a_scan_on_disk_is_written(tmp_path):
    data = a_scan_on_disk(tmp_path)
    for name in ("scan.npz", "scan.cxi", "scan.h5"):
        with files_no_larger_than(9000), pytest.raises(OSError, match=r"scan(_dp)?\."):
            save_data(tmp_path / name, data)
    assert [path.name for path in tmp_path.iterdir()] == ["before.npz"]


def test_a_full_disk_is_one_sentence_of_the_command(tmp_path, capsys):
    words = ["-p", "n_train", "4", "-p", "n_test", "4", "-p", "object_size_px", "128"]
    assert main(["simulate", str(tmp_path / "before"), *words]) == 0  # what is compiled is kept in files as well
    capsys.readouterr()
    with files_no_larger_than(2000):
        code = main(["simulate", str(tmp_path), *words])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert f"{tmp_path}/train.npz" in error and "make room on this disk" in error


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_without_permission_is_named(name):
    with tempfile.TemporaryDirectory() as folder:
        WRITERS[name](Path(folder) / name)  # imports what it takes, which somebody else may not be allowed to
        for path in Path(folder).iterdir():
            path.unlink()
        os.chmod(folder, 0o555)
        child = os.fork()
        if child == 0:  # root may write everywhere, so as somebody else
            code, named = 1, patterns_beside(name).name if name == "scan.h5" else name
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                WRITERS[name](Path(folder) / name)
            except PermissionError as error:
                code = 0 if error.filename == f"{folder}/{named}" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.chmod(folder, 0o755)


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody can write to: a read-only disk for root, who may write everywhere else."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    is_mounted = os.geteuid() == 0
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", folder]
    if is_mounted and subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root, who may write everywhere, and not allowed to mount a read-only disk")
    folder.chmod(0o555) if not is_mounted else None
    yield folder
    subprocess.run(["umount", folder], check=True) if is_mounted else folder.chmod(0o755)


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    """A sweep with one arm that is done, and a scan beside it."""
    folder = tmp_path_factory.mktemp("sweep")
    arm = start_arm(folder / "seed=1", {"seed": 1})
    write_json(arm / "metrics.json", {"network": {"amplitude": {"ssim": 0.5}}})
    finish_arm(arm)
    write_json(folder / "manifest.json", {"arms": [{"name": "seed=1", "state": "done", "parameters": {"seed": 1}}]})
    config = SimulationConfig(object_size_px=128, n_train=1, n_test=12)
    scan = replace(simulate_halves(config)[1], object=None, metadata={}, geometry=a_scan().geometry)
    scan.save(folder / "scan.npz")
    return folder


COMMANDS = {  # {there}: a folder that nobody can write to
    "convert": "{sweep}/scan.npz {there}/a.cxi", "convert ": "{sweep}/scan.npz {there}/a.h5",
    "simulate": "{there}/sub -p n_train 4 -p n_test 4", "photon-grid": "--out {there}/grid --doses 1e3 --patterns 4",
    "reconstruct": "{sweep}/scan.npz {there}/out.npz", "train": "{sweep}/scan.npz {there}/net",
    "diagnose": "{sweep}/scan.npz --out {there}/report", "how-few": "{sweep}/scan.npz --out {there}/few",
    "plan": "--resolution 4px --phase-rad 0.1 --out {there}/plan", "studies": "copy {there}/studies dose",
    "run-arm": "dose {there}/arm", "sweep": "dose --set seed=1,2 --out {there}/sweep",
    "report": "{sweep} --out {there}/report", "snapshot": "{sweep}/seed=1 --out {there}/page",
    "overlap": "build {there}/study --profile quick",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_at_once_where_it_cannot_write(command, read_only, sweep_folder, monkeypatch, capsys):
    for solver in ("network.candidates.reconstruct", "studies.how_few.how_few"):
        monkeypatch.setattr(f"ptycho_nb.{solver}", lambda *_, **__: pytest.fail("computed before it looked"))
    words = COMMANDS[command].format(there=read_only, sweep=sweep_folder).split()
    assert main([command.strip(), *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(read_only) in error and ("Read-only" in error or "Permission denied" in error)
    assert not list(read_only.iterdir())


# bundles and checkpoints


@pytest.fixture(scope="module")
def model() -> PtychoModel:
    return PtychoModel(ModelConfig(n_filters=1, gridsize=1), disk_probe(64), 12.5, 64, seed=3)


def test_an_empty_checksum_does_not_refuse_a_good_bundle(model, tmp_path, caplog):
    save_bundle(tmp_path / "wts.h5.zip", model)
    (tmp_path / "wts.h5.zip.sha256").write_text("")
    assert load_bundle(tmp_path / "wts.h5.zip").config == model.config
    assert "wts.h5.zip.sha256" in caplog.text


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_old_checksum_goes_when_the_new_bundle_stands(model, tmp_path, monkeypatch):
    path = tmp_path / "wts.h5.zip"
    checksum = save_bundle(path, model)
    with monkeypatch.context() as patch:
        patch.setattr("zipfile.ZipFile.writestr", full)
        with pytest.raises(OSError, match=r"wts\.h5\.zip"):
            save_bundle(path, model)
    with monkeypatch.context() as patch:  # HDF5 would end the whole process
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
        with pytest.raises(OSError, match="No space left"):
            save_bundle(path, model)
    assert (tmp_path / "wts.h5.zip.sha256").read_text().split()[0] == checksum
    load_bundle(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a fi", None])
def test_a_checkpoint_that_cannot_be_read_counts_as_absent(content, tmp_path, caplog):
    path = tmp_path / ".checkpoint.npz"
    write_arrays(path, text=np.array("[]")) if content is None else path.write_bytes(content)
    assert _read_checkpoint(path, "0" * 16) is None
    assert str(path) in caplog.text and "starts anew" in caplog.text
    text = '{"fingerprint": "another", "precision": "float32", "rows": [], "best_epoch": 0}'
    with pytest.raises(InputError, match="another training"):
        _read_checkpoint(write_arrays(path, text=np.array(text)), "0" * 16)


# other people's links, names and words


def test_a_lock_that_is_a_link_empties_nothing(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"\.lock"), locked(tmp_path / ".lock") as file:
        file.truncate(0)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_manifest_brings_no_other_folder_into_a_report(tmp_path):
    start_arm(tmp_path / "outside", {"seed": 1})
    (tmp_path / "sweep").mkdir()
    write_json(tmp_path / "sweep" / "manifest.json", {"arms": [{"name": "../outside", "state": "done"}]})
    with pytest.raises(InputError, match=r"manifest\.json.*outside"):
        results_table(tmp_path / "sweep")
    write_json(tmp_path / "sweep" / "manifest.json", {"arms": [{"state": "done"}]})
    with pytest.raises(InputError, match="no 'name'"):
        report(tmp_path / "sweep")


def test_words_of_others_stay_words_in_markdown():
    words = "<script>alert(1)</script> [here](http://elsewhere) ![a](b) | c"
    text = findings_text({"findings": [dict.fromkeys(("severity", "section", "what", "number", "remedy"), words)]})
    row = text.splitlines()[-1]
    assert "<script>" not in row and "](" not in row.replace("\\](", "")
    assert row.replace("\\|", "").count("|") == 6


# the command, the workers


def test_a_fault_of_the_program_is_one_sentence(monkeypatch, capsys):
    def fail(arguments):
        raise ZeroDivisionError("of zero\nby zero")

    monkeypatch.setattr("ptycho_nb.cli_files.info", fail)
    assert main(["info", "."]) == 70
    error = capsys.readouterr().err
    assert error.startswith("ptycho-nb: ZeroDivisionError: of zero by zero; ") and error.count("\n") == 1
    assert main(["info", ".", "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_who_stops_reading_is_told_nothing():
    program = Path(sys.executable).with_name("ptycho-nb")
    run = subprocess.run(f"{program} --help | head -1", shell=True, capture_output=True, text=True)
    assert run.stdout and not run.stderr


def test_the_workers_of_a_sweep_listen_to_nobody_else():
    from distributed import Client

    with local_workers(1) as (client, _):
        address = client.scheduler_info()["address"]
        assert address.startswith("tls://")
        assert client.submit(abs, -1).result() == 1
        with pytest.raises((OSError, TypeError, ValueError)):  # without the keys
            Client(address, timeout=1, set_as_default=False)
