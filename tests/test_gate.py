"""What comes in is refused in one sentence, whatever is wrong with it, and takes no memory before it is believed."""
import bz2
import io
import json
import os
import stat
import struct
import time
import zipfile

import numpy as np
import pytest

from ptycho_nb.config import InputError
from ptycho_nb.data.formats import load_data
from ptycho_nb.files import check_shape, inside, read_arrays, read_json, reading, replacing, write_arrays, write_json
from ptycho_nb.physics.probes import load_probe
from ptycho_nb.runs.arms import finish_arm, literal, read_arm, start_arm
from ptycho_nb.runs.progress import ArmProgress, ArmState, arm_progress, table_html
from ptycho_nb.solvers.result import load_reconstructions, stored_methods
from ptycho_nb.studies.sweep import read_arms_table

READERS = (read_arrays, load_data, load_probe, load_reconstructions, stored_methods)


def npy(array=None, *, header: str | None = None, content: bytes = b"") -> bytes:
    """An NPY, or one with a header of one's own."""
    if header is None:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        return file.getvalue()
    text = header.encode("latin1").ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def packed(content: bytes, name: str = "probe.npy", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def with_flag(content: bytes, *, encrypted: bool = False, method: int | None = None) -> bytes:
    """The ZIP with a flag or a method that its only member does not have."""
    changed = bytearray(content)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.index(mark) + at
        changed[start] |= encrypted
        if method is not None:
            changed[start + 2 : start + 4] = struct.pack("<H", method)
    return bytes(changed)


PROBE = npy(np.ones((64, 64), np.complex64))
HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': %s}"
FAULTS = {
    "no archive": b"PK\x03\x04 and no more", "nothing": b"", "text": b"x,y\n1,2\n",
    "encrypted": with_flag(packed(PROBE), encrypted=True),
    "deflate64": with_flag(packed(PROBE), method=9),
    "an unknown method": with_flag(packed(PROBE), method=77),
    "no lzma at all": with_flag(packed(PROBE), method=14),
    "cut short": packed(PROBE[:-100]),
    "more than it says": packed(PROBE + b"more"),
    "a header that ends": packed(npy(header="{'descr': '<f8', 'fortran_order': (")),
    "a header with another type": packed(npy(header="{'descr': 3, 'fortran_order': False, 'shape': (2,)}")),
    "a header of nothing": packed(npy(header="[]")),
    "a claim of 8 TB": packed(npy(header=HEADER % "(1000000000000,)")),
    "a claim beyond all numbers": packed(npy(header=HEADER % "(4611686018427387904, 4611686018427387904)")),
    "less than nothing": packed(npy(header=HEADER % "(-1,)")),
    "Python objects": packed(npy(np.array([None]))),
    "a structure": packed(npy(np.zeros(3, [("y", "f8"), ("x", "f8")]))),
    "a type without size": packed(npy(np.zeros(3, "V0"))),
    "dates": packed(npy(np.zeros((64, 64), "M8[s]"))),
    "no array": packed(b"print()", "probe.npy"),
    "another member": packed(b"print()", "probe.py"),
    "text for a probe": packed(npy(np.full((4, 4), "light"))),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_every_fault_becomes_one_sentence(read, fault, tmp_path):
    path = tmp_path / "given.npz"
    path.write_bytes(FAULTS[fault])
    if read is read_arrays and fault == "text for a probe":
        assert read(path)["probe"].dtype.kind == "U"
        return
    with pytest.raises(InputError, match=r"given\.npz"):
        read(path)


def test_a_folder_and_a_pipe_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for read in (*READERS, read_json, read_arms_table):
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(InputError, match="a folder or a device"):
                read(path)


@pytest.mark.parametrize("bomb", ["bzip2", "zip of bzip2", "zip of lzma"])
def test_what_unpacks_to_gigabytes_is_refused_at_once(bomb, tmp_path):
    path, n_bytes = tmp_path / "bomb.npz", 3 * 2**30
    if bomb == "bzip2":
        one = bz2.compress(bytes(2**24))
        path.write_bytes(one * (n_bytes // 2**24))
    else:
        method = zipfile.ZIP_BZIP2 if bomb == "zip of bzip2" else zipfile.ZIP_LZMA
        content = npy(header=HEADER % f"({9 * 2**20},)", content=bytes(9 * 2**23))
        path.write_bytes(packed(content, method=method))
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"bomb\.npz.*fill the memory"):
        load_data(path)
    assert time.perf_counter() - began < 10, "refused only after unpacking it"


def test_what_is_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = write_arrays(tmp_path / "scan.npz", diff3d=np.ones((10, 64, 64)))
    monkeypatch.setattr("ptycho_nb.files.free_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"scan\.npz.* which are free"):
        load_data(path)


def test_zeros_are_no_bomb(tmp_path):
    path = write_arrays(tmp_path / "zeros.npz", background=np.zeros((3000, 3000)))
    assert path.stat().st_size * 900 < 72e6
    assert not read_arrays(path)["background"].any()


# JSON, tables, literals

TEXTS = {"no UTF-8": b"\xff\xfe{", "nothing": b"", "half": b'{"epochs": [', "deep": b"[" * 100_000, "long": b"9" * 5000}


@pytest.mark.parametrize("text", TEXTS)
def test_json_that_is_none(text, tmp_path):
    (tmp_path / "history.json").write_bytes(TEXTS[text])
    with pytest.raises(InputError, match=r"history\.json"):
        read_json(tmp_path / "history.json")


def test_json_of_another_shape_is_named_to_the_place(tmp_path):
    shape = {"epochs": [{"epoch": int, "loss?": float | None}], "header?": dict, "files?": {str: str}}
    good = {"epochs": [{"epoch": 1, "loss": None}, {"epoch": 2, "more": []}], "files": {"a": "b"}}
    assert read_json(write_json(tmp_path / "a.json", good), shape) == good
    for change, place in (({"epochs": {}}, "epochs"), ({"epochs": [{"epoch": "1"}]}, r"epochs\[0\], epoch"),
                          ({"epochs": [{}]}, r"epochs\[0\]"), ({"header": 3}, "header"),
                          ({"files": {"a": 1}}, "files, a")):
        with pytest.raises(InputError, match=rf"a\.json, {place}: "):
            read_json(write_json(tmp_path / "a.json", good | change), shape)
    with pytest.raises(InputError, match="no 'epochs'"):
        check_shape({}, shape, "a.json")


def test_a_table_that_is_none(tmp_path):
    (tmp_path / "arms.csv").write_bytes(b"seed,loss\n1,\xff\xfe\n")
    with pytest.raises(InputError, match=r"arms\.csv"):
        read_arms_table(tmp_path / "arms.csv")


def test_a_literal_is_never_an_error():
    for text in ("(" * 5000, "-" * 9000 + "1", "{[]: 1}", "9" * 5000, "1e" * 100_000, "\0"):
        assert literal(text) == text
    assert literal("1e4") == 1e4


def test_the_cause_stays_attached_and_other_errors_get_the_file():
    said = r"^scan\.h5, data set '/entry': found a damaged file \(far too deep\)"
    with pytest.raises(InputError, match=said) as refused, reading("scan.h5", "a scan") as place:
        place.member = "data set '/entry'"
        raise RuntimeError("far too deep")
    assert isinstance(refused.value.__cause__, RuntimeError)
    with pytest.raises(InputError, match=r"^scan\.h5, N: found 7"), reading("scan.h5", "a scan"):
        raise InputError("N", 7, "8", "Say 8.")
    with pytest.raises(KeyboardInterrupt), reading("scan.h5", "a scan"):
        raise KeyboardInterrupt


# names and links


def test_a_name_leads_nowhere_else(tmp_path):
    (tmp_path / "arm" / "figures").mkdir(parents=True)
    (tmp_path / "arm" / "out").symlink_to(tmp_path)
    assert inside(tmp_path / "arm", "figures/a.png", "done.json") == tmp_path / "arm" / "figures" / "a.png"
    for name in ("../a", "/etc/passwd", "out/precious", "figures/../../a", "", "a\0b"):
        with pytest.raises(InputError, match=r"done\.json"):
            inside(tmp_path / "arm", name, "done.json")


def test_a_linked_folder_in_an_arm_loses_nothing(tmp_path):
    outside, arm = tmp_path / "outside", start_arm(tmp_path / "arm", {})
    outside.mkdir()
    (outside / "precious.txt").write_text("precious")
    write_json(arm / "metrics.json", {})
    finish_arm(arm)
    (arm / "elsewhere").symlink_to(outside)
    write_json(arm / "done.json", {"files": {"elsewhere/precious.txt": "0" * 64}})
    with pytest.raises(InputError, match=r"done\.json"):
        start_arm(arm, {})
    assert (outside / "precious.txt").exists()


def test_a_link_at_a_temporary_name_is_not_followed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "metrics.json"
    victim.write_text("precious")
    for name in (f".metrics.{os.getpid()}.json", ".metrics.json"):
        (tmp_path / name).symlink_to(victim)
    write_json(path, {})
    assert victim.read_text() == "precious"
    with replacing(path) as first, replacing(path) as second:
        assert first != second and stat.S_IMODE(os.lstat(first).st_mode) & 0o111 == 0


def test_what_a_dead_writer_left_is_swept_away(tmp_path):
    old, held = tmp_path / ".metrics.new-0123456789abcdef.json", tmp_path / "another.json"
    old.write_text("{ half a fi")
    os.utime(old, (time.time() - 3600,) * 2)
    with replacing(tmp_path / "metrics.json") as alive:
        alive.write_text("1")
        os.utime(alive, (time.time() - 3600,) * 2)
        write_json(tmp_path / "metrics.json", 2)
        assert alive.exists() and not old.exists(), "one whose writer lives was swept away, or the other was not"
    write_json(held, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another.json", "metrics.json"]


# who only looks on


@pytest.mark.parametrize("history", ['{"epochs": 7}', '{"epochs": [3]}', '{"epochs": [{"seconds": 1}]}', "[", '"text"',
                                     '{"epochs": [{"epoch": "x", "seconds": 1}]}', '{"epochs": [{"val_loss": "low"}]}'])
def test_an_odd_history_does_not_end_the_table(history, tmp_path):
    write_json(tmp_path / "config.json", {"training": {"nepochs": 5}})
    (tmp_path / "history.json").write_text(history)
    assert arm_progress(tmp_path) == ArmProgress(nepochs=5)
    assert "seed=1" in table_html([ArmState("seed=1", tmp_path, {}, "running")])


def test_files_of_an_arm_are_checked_against_their_shape(tmp_path):
    arm = start_arm(tmp_path, {})
    write_json(arm / "metrics.json", {})
    finish_arm(arm)
    for name, content in (("config.json", {"parameters": 3}), ("history.json", {"epochs": [1]}), ("metrics.json", [1]),
                          ("done.json", {"files": ["a"]})):
        before = (arm / name).read_text() if (arm / name).exists() else None
        (arm / name).write_text(json.dumps(content))
        with pytest.raises(InputError, match=name):
            read_arm(arm)
        (arm / name).unlink() if before is None else (arm / name).write_text(before)
    assert read_arm(arm).done
