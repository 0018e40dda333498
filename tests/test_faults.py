"""A kill, a full disk, a folder without permission, other people's links: the old file is left, or the new one."""
import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ptycho_nb.cli import main
from ptycho_nb.config import InputError, ModelConfig
from ptycho_nb.data.scan import RawData
from ptycho_nb.diagnosis.report import findings_text
from ptycho_nb.files import read_arrays, read_json, write_arrays, write_json
from ptycho_nb.network.bundle import load_bundle, save_bundle
from ptycho_nb.network.model import PtychoModel
from ptycho_nb.network.training import _read_checkpoint
from ptycho_nb.physics.probes import disk_probe
from ptycho_nb.runs.arms import locked, start_arm
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
    return RawData(patterns, positions_px, np.ones((64, 64), np.complex64))


WRITERS = {
    "metrics.json": lambda path: write_json(path, ["x" * 5000]),
    "object.npz": lambda path: write_arrays(path, object=np.random.default_rng(0).random(5000)),
    "scan.npz": lambda path: a_scan().save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_the_old_one(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"the old one")
    with files_no_larger_than(2000), pytest.raises(OSError, match=name) as refused:
        WRITERS[name](path)
    assert refused.value.filename == str(path)
    assert path.read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 1


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
        os.chmod(folder, 0o555)
        child = os.fork()
        if child == 0:  # root may write everywhere, so as somebody else
            code = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                WRITERS[name](Path(folder) / name)
            except PermissionError as error:
                code = 0 if error.filename == f"{folder}/{name}" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.chmod(folder, 0o755)


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
