"""Mutated files for every reader: each has to be read, or refused by an `InputError`. `make fuzz` runs it at length.

A finding is whatever else happens: another exception, more than ten seconds, or (but for the networks) more than 4 GB.
An input that never lets Python speak again ends the run after a minute, with a traceback; its file stays in the
temporary folder.
"""
import argparse
import faulthandler
import io
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np

from ptycho_nb.config import InputError, SimulationConfig
from ptycho_nb.data.formats import load_data, save_data
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.data.tables import read_table
from ptycho_nb.files import read_json, write_arrays, write_json
from ptycho_nb.physics.geometry import Geometry
from ptycho_nb.physics.probes import load_probe
from ptycho_nb.runs.arms import finish_arm, read_arm, start_arm
from ptycho_nb.runs.progress import ArmState, table_html
from ptycho_nb.solvers.result import Reconstruction, load_reconstructions, save_reconstructions
from ptycho_nb.studies.photon_grid import GridConfig, grid_lines, photon_grid
from ptycho_nb.studies.sweep import read_arms_table

ODD = [None, True, -1, 0, 2**63, 1e308, -1e-300, "", "\0", "../../outside", [], {}, [[]], {"": None}, "9" * 50,
       float("nan")]
TYPES = ["|O", "|V0", "<U0", "<f8", ">i4", "<c16", "|b1", "<M8[s]", "|S3", "<f2", "[('y', '<f8')]", "<U5"]


# mutations


def of_bytes(content: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, lost, doubled or moved, as by a bad disk or a broken copy."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(max(1, len(changed)))
        length = chance.choice((1, 4, 64))
        kind = chance.randrange(6)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + length] = chance.randbytes(length)
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            changed[at:at] = changed[at : at + length]
        elif kind == 4:
            del changed[at : at + length]
        else:
            changed[at : at + length] = b"\xff" * length
    return bytes(changed)


def of_json(text: str, chance: random.Random) -> str:
    """A value that is something else, missing or somewhere else, or a text that is broken."""
    if chance.random() < 0.2:
        return of_bytes(text.encode(), chance).decode("latin1")
    value = json.loads(text)
    for _ in range(chance.choice((1, 1, 2))):
        place, key, inner = None, None, value
        while isinstance(inner, dict | list) and inner and chance.random() < 0.8:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            place, key = inner, chance.choice(keys)
            inner = inner[key]
        if place is None:
            value = deepcopy(chance.choice(ODD))  # a list among them may be changed in its turn
        elif chance.random() < 0.3:
            del place[key]
        else:
            place[key] = deepcopy(chance.choice(ODD))
        if not isinstance(value, dict | list):
            break
    return json.dumps(value)


def of_npy(content: bytes, chance: random.Random) -> bytes:
    """Another header, other numbers, or broken bytes."""
    kind = chance.randrange(4)
    if kind == 0:
        return of_bytes(content[:128], chance) + content[128:]
    if kind == 1:
        return of_bytes(content, chance)
    array = np.load(io.BytesIO(content))
    file = io.BytesIO()
    if kind == 2:
        shapes = ["()", "(0,)", "(-1,)", "(2, 3)", "(1000000000000,)", "(4611686018427387904, 4)", "3", "(True,)"]
        shape, kind = chance.choice([*shapes, str(array.shape)]), chance.choice(TYPES)
        header = f"{{'descr': {kind!r}, 'fortran_order': {chance.random() < 0.3}, 'shape': {shape}, }}"
        text = header.encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content[128:]
    if array.dtype.kind == "U":
        array = np.array(of_json(str(array), chance))
    else:
        odd = [np.nan, np.inf, 1e300, -1, 0, 2**40]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            others = [array.ravel(), array[:1] if array.ndim else array, array.astype("U8"), array.T, array[..., None],
                      np.zeros(0),
                      np.full_like(array, chance.choice(odd[:3]) if array.dtype.kind in "fc" else 1),
                      array.astype(np.int64), array.astype(np.complex64), array != 0]
        array = chance.choice(others)
    np.save(file, array)
    return file.getvalue()


def of_zip(content: bytes, chance: random.Random) -> bytes:
    """Broken bytes, or a sound archive whose members are something else."""
    if chance.random() < 0.3:
        return of_bytes(content, chance)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = chance.randrange(len(members))
    name, inner = members[at]
    kind = chance.randrange(10)
    if kind == 0:
        del members[at]
    elif kind == 1:
        members[at] = (chance.choice(("a/", "a.txt", "../a.npy", "x" * 300 + ".npy", "\u202e.npy")), inner)
    elif kind == 2:
        members[at] = (name, chance.choice(members)[1])
    else:
        mutate = of_npy if name.endswith(".npy") else lambda text, dice: of_json(text.decode("latin1"), dice).encode() \
            if name.endswith(".json") else of_bytes(text, dice)
        members[at] = (name, mutate(inner, chance))
    file = io.BytesIO()
    method = chance.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, inner in members:
            archive.writestr(name, inner)
    changed = bytearray(file.getvalue())
    if chance.random() < 0.2:  # flags and methods: encrypted, deflate64, unknown
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = changed.find(mark) + offset
            changed[start + chance.choice((0, 2))] ^= chance.choice((1, 9, 77))
    return bytes(changed)


# what is read


def make_scan(folder: Path):
    scan, _ = simulate_halves(SimulationConfig(object_size_px=128, n_train=4, n_test=1))
    return scan.save(folder / "scan.npz")


def make_hdf5(folder: Path, name: str):
    scan, _ = simulate_halves(SimulationConfig(N=32, object_size_px=128, n_train=4, n_test=1))
    geometry = Geometry(energy_ev=8800, distance_m=1.9, detector_pixel_m=75e-6)
    return save_data(folder / name, replace(scan, object=None, geometry=geometry))


def make_layout(folder: Path, name: str):
    """A scan of four patterns as other programs lay it out."""
    import h5py
    import scipy.io

    scan, _ = simulate_halves(SimulationConfig(N=32, object_size_px=128, n_train=4, n_test=1))
    counts, there_m = np.round(scan.diff3d**2).astype(np.uint16), 5e-8 * scan.positions_px
    ptylab = {"ptychogram": counts, "encoder": there_m, "wavelength": 1.4e-10, "zo": 1.9, "dxd": 75e-6}
    if name == "scan.mat":
        scipy.io.savemat(folder / name, ptylab | {"ptychogram": counts.transpose(1, 2, 0)})
        return folder / name
    if name == "product.npz":
        with h5py.File(folder / "product_dp.hdf5", "w") as file:
            file["dp"] = counts
        np.savez(folder / name, name=json.dumps({"text": "scan"}), probe_energy_eV=8800.0,
                 detector_object_distance_m=1.9,
                 probe=scan.probe[None], probe_pixel_width_m=5e-8, probe_pixel_height_m=5e-8,
                 object=np.ones((1, 160, 160)) + 0.1j * np.eye(160), object_center_x_m=there_m[:, 1].mean(),
                 object_center_y_m=there_m[:, 0].mean(), probe_position_x_m=there_m[:, 1],
                 probe_position_y_m=there_m[:, 0])
        return folder / name
    if name == "master.h5":
        with h5py.File(folder / "master_data_000001.h5", "w") as file:
            file["entry/data/data"] = counts
        with h5py.File(folder / name, "w") as file:
            file["entry/data/data_000001"] = h5py.ExternalLink("master_data_000001.h5", "/entry/data/data")
            file.update({f"entry/instrument/detector/{key}": value for key, value in {
                "detector_distance": 1.9, "x_pixel_size": 75e-6, "y_pixel_size": 75e-6, "beam_center_x": 16.0,
                "beam_center_y": 15.0, "detectorSpecific/photon_energy": 8800.0,
                "detectorSpecific/pixel_mask": np.zeros((32, 32), np.uint32)}.items()})
        return folder / name
    if name == "scan.raw":
        np.ones((4, 130, 128), "<f4").tofile(folder / name)
        return folder / name
    layouts = {
        "ptylab.h5": ptylab,
        "scan.ptyd": {"meta/energy": 8.8, "meta/distance": 1.9, "meta/psize": 75e-6, "chunks/0/data": counts,
                      "chunks/0/positions": there_m, "chunks/0/weights": np.ones(counts.shape)},
        "scan_dp.hdf5": {"dp": counts, "ppX": there_m[:, 1], "ppY": there_m[:, 0]},
        "scan.emd": {"root/cube/data": counts.reshape(2, 2, 32, 32),
                     "root/metadatabundle/calibration/R_pixel_size": 2.5,
                     "root/metadatabundle/calibration/R_pixel_units": "A",
                     "root/metadatabundle/calibration/Q_pixel_size": 0.05,
                     "root/metadatabundle/calibration/Q_pixel_units": "A^-1"}}
    with h5py.File(folder / name, "w") as file:
        file.update(layouts[name])
    return folder / name


def load_with_pixel(path: Path):
    return load_data(path, step=4.0 if path.suffix == ".raw" or path.stem == "master" else None,
                     geometry=Geometry(object_pixel_m=2e-10))


def make_probe(folder: Path):
    return write_arrays(folder / "probe.npz", probe=np.ones((64, 64), np.complex64))


def make_array(folder: Path):
    np.save(folder / "probe.npy", np.ones((64, 64), np.complex64))
    return folder / "probe.npy"


def make_reconstruction(folder: Path):
    image = Reconstruction(object=np.ones((80, 90)), coverage=np.ones((80, 90)), origin_px=[10, 20],
                           positions_px=[[42, 52], [50, 60]], probe=np.ones((64, 64)), method="ones")
    return save_reconstructions(folder / "reconstruction.npz", network=image, no_network=image)


def make_an_arm(folder: Path, name: str):
    start_arm(folder, {"seed": 1}, training={"nepochs": 3})
    rows = [{"epoch": epoch, "train_loss": 1.0, "val_loss": None, "seconds": 0.1} for epoch in range(3)]
    write_json(folder / "history.json", {"header": {"ended": ""}, "epochs": rows})
    write_json(folder / "metrics.json", {"network": {"amplitude": {"ssim": 0.5}}})
    finish_arm(folder)
    return folder / name


def make_grid(folder: Path):
    photon_grid(folder, (1e3, 1e5), GridConfig(n_patterns=3))
    return folder / "manifest.json"


def make_table(folder: Path):
    (folder / "arms.csv").write_text("nphotons,loss,seed\n1e9,nll,1\n1e4,mae,2\n")
    return folder / "arms.csv"


def make_positions_table(folder: Path):
    (folder / "scan.csv").write_text("k,x_um,y_um\n" + "".join(f"{k},{0.1 * k},{2e-3 * k}\n" for k in range(9)))
    return folder / "scan.csv"


def make_bundle(folder: Path):
    from ptycho_nb.config import ModelConfig
    from ptycho_nb.network.bundle import save_bundle
    from ptycho_nb.network.model import PtychoModel
    from ptycho_nb.physics.probes import disk_probe

    model = PtychoModel(ModelConfig(n_filters=1, gridsize=1), disk_probe(64), 12.5, 88, seed=3)
    save_bundle(folder / "wts.h5.zip", model)
    (folder / "wts.h5.zip.sha256").unlink()  # it would refuse everything
    return folder / "wts.h5.zip"


def load_bundle_believed(path: Path):
    """The bundle, its checksums made true again, or nothing behind them would ever be read."""
    import hashlib

    from ptycho_nb.network.bundle import load_bundle

    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(members["manifest.json"])
        manifest["sha256"] = {name: hashlib.sha256(inner).hexdigest() for name, inner in members.items()}
        members["manifest.json"] = json.dumps(manifest).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, inner in members.items():
                archive.writestr(name, inner)
    except Exception:  # broken so thoroughly that it is given as it is
        return load_bundle(path)
    return load_bundle(path)


def make_weights(folder: Path):
    from ptycho_nb.network.pretrained import Pretrained, build_corrector, save_pretrained

    about = {"n_filters": 2, "depth": 1}
    return save_pretrained(folder / "weights.npz", Pretrained(build_corrector(2, 1), about))


def load_weights(path: Path):
    from ptycho_nb.network.pretrained import load_pretrained

    return load_pretrained(path)


def look_on(path: Path):
    """The table of a sweep, which must never fail."""
    try:
        table_html([ArmState("seed=1", path.parent, {}, "running")])
    except InputError as error:
        raise AssertionError("an arm ended the table") from error


def as_text(mutate: Callable) -> Callable:
    return lambda content, chance: mutate(content.decode(), chance).encode("utf-8", "surrogatepass")


def load_on_disk(path: Path) -> None:
    """Load a scan whose patterns stay in the file, and go through them once more."""
    for _ in load_data(path, on_disk=True).diff3d:
        pass


READERS = {
    "scan": (make_scan, of_zip, load_data),
    "scan on disk": (make_scan, of_zip, load_on_disk),
    "cxi": (lambda folder: make_hdf5(folder, "scan.cxi"), of_bytes, load_data),
    "cxi on disk": (lambda folder: make_hdf5(folder, "scan.cxi"), of_bytes, load_on_disk),
    "product": (lambda folder: make_hdf5(folder, "scan.h5"), of_bytes, load_data),
    **{name: (lambda folder, name=name: make_layout(folder, name), of_bytes, load_data)
       for name in ("ptylab.h5", "scan.ptyd", "scan.emd", "scan.mat")},
    **{name: (lambda folder, name=name: make_layout(folder, name), of_bytes, load_with_pixel)
       for name in ("scan_dp.hdf5", "scan.raw", "master.h5")},
    "product.npz": (lambda folder: make_layout(folder, "product.npz"), of_zip, load_data),
    "positions": (make_positions_table, of_bytes, read_table),
    "probe": (make_probe, of_zip, load_probe),
    "array": (make_array, of_npy, load_probe),
    "reconstruction": (make_reconstruction, of_zip, load_reconstructions),
    **{name: (lambda folder, name=name: make_an_arm(folder, name), as_text(of_json), lambda path: read_arm(path.parent))
       for name in ("config.json", "history.json", "metrics.json", "done.json")},
    "progress": (lambda folder: make_an_arm(folder, "history.json"), as_text(of_json), look_on),
    "json": (lambda folder: make_an_arm(folder, "config.json"), of_bytes, read_json),
    "table": (make_table, of_bytes, read_arms_table),
    "grid": (make_grid, as_text(of_json), lambda path: grid_lines(path.parent)),
}
SLOW = {"scan.mat": 20, "bundle": 20, "weights": 20}  # a process or a network each: this part of the inputs
WITH_NETWORKS = {"bundle": (make_bundle, of_zip, load_bundle_believed), "weights": (make_weights, of_zip, load_weights)}


def _too_long(*_) -> None:
    raise TimeoutError("more than ten seconds")


def fuzz(name: str, n: int, seed: int, keep: Path | None = None) -> tuple[Counter, Counter]:
    """What became of n inputs of a reader, and the findings among them."""
    make, mutate, read = (READERS | WITH_NETWORKS)[name]
    became, findings = Counter(), Counter()
    alarm = signal.alarm if threading.current_thread() is threading.main_thread() else lambda seconds: None
    if alarm is signal.alarm:
        signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(make(Path(folder)))
        good = path.read_bytes()
        for number in range(n):
            content = mutate(good, random.Random(f"{name} {seed} {number}"))
            path.write_bytes(content)
            alarm(10)
            faulthandler.dump_traceback_later(60, exit=True)
            try:
                read(path)
                became["read"] += 1
            except InputError as error:
                if str(path.parent) in str(error):
                    became["refused"] += 1
                else:
                    findings["an error without its file"] += 1
            except Exception as error:
                findings[type(error).__name__] += 1
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, keep / f"{type(error).__name__}-{name}-{seed}-{number}{path.suffix}")
            finally:
                alarm(0)
                faulthandler.cancel_dump_traceback_later()
    return became, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10_000, help="inputs of a reader; a twentieth of it of the slow ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that are findings")
    parser.add_argument("names", nargs="*", help="only these readers")
    arguments = parser.parse_args()
    total = 0
    for name in arguments.names or [*READERS, *WITH_NETWORKS]:
        if name in READERS:
            resource.setrlimit(resource.RLIMIT_AS, (2**32, resource.getrlimit(resource.RLIMIT_AS)[1]))
        else:
            resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
        n = max(1, arguments.n // SLOW.get(name, 1))
        became, findings = fuzz(name, n, arguments.seed, arguments.keep)
        total += findings.total()
        print(f"{name}: {n} inputs, {became['read']} read, {became['refused']} refused, {findings.total()} findings",
              dict(findings.most_common()) or "", flush=True)
    return 1 if total else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    sys.exit(main())
