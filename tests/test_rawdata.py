"""The data contract: what is refused, what is put right, and files that are whole or absent."""

import bz2
import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

import ptycho_nb as pt
from ptycho_nb.config import InputError
from ptycho_nb.data.formats import load_data, read_tike
from ptycho_nb.data.scan import RawData

M, N = 10, 64


def contract() -> dict[str, np.ndarray]:
    """Arrays that keep the contract."""
    rng = np.random.default_rng(0)
    return {
        "xcoords": rng.uniform(32, 96, M),
        "ycoords": rng.uniform(32, 96, M),
        "diff3d": rng.uniform(0, 9, (M, N, N)).astype(np.float32),
        "probeGuess": np.ones((N, N), np.complex64),
        "objectGuess": np.ones((130, 130), np.complex64),
        "scan_index": np.zeros(M, np.int64),
        "metadata": np.array(json.dumps({"sample": "none"})),
    }


def with_value(array: np.ndarray, index: tuple, value: float) -> np.ndarray:
    changed = array.copy()
    changed[index] = value
    return changed


GOOD = contract()
REFUSALS = {
    "missing xcoords": ({"xcoords": None}, "'xcoords'", "the keys"),
    "missing ycoords": ({"ycoords": None}, "'ycoords'", "the keys"),
    "missing diff3d": ({"diff3d": None}, "'diff3d'", "the keys"),
    "diff3d of rank 2": ({"diff3d": GOOD["diff3d"][0]}, "'diff3d'", "(64, 64)"),
    "diff3d of rank 4": ({"diff3d": GOOD["diff3d"][..., None]}, "'diff3d'", "(10, 64, 64, 1)"),
    "no patterns": ({"diff3d": GOOD["diff3d"][:0]}, "'diff3d'", "(0, 64, 64)"),
    "positions of rank 2": ({"xcoords": GOOD["xcoords"][:, None]}, "'xcoords'", "(10, 1)"),
    "object of rank 3": ({"objectGuess": GOOD["objectGuess"][None]}, "'objectGuess'", "(1, 130, 130)"),
    "fewer xcoords": ({"xcoords": GOOD["xcoords"][:9]}, "'xcoords'", "(9,)"),
    "fewer ycoords": ({"ycoords": GOOD["ycoords"][:9]}, "'ycoords'", "(9,)"),
    "fewer patterns": ({"diff3d": GOOD["diff3d"][:9]}, "coords'", "(10,)"),
    "longer scan_index": ({"scan_index": np.zeros(11, int)}, "'scan_index'", "(11,)"),
    "scan_index not whole": ({"scan_index": np.full(M, 0.5)}, "'scan_index'", "float64"),
    "shorter start positions": ({"xcoords_start": np.zeros(9)}, "'xcoords_start'", "(9,)"),
    "truth of another size": ({"ground_truth_patches": np.ones((M, 32, 32))}, "'ground_truth_patches'", "(10, 32, 32)"),
    "infinity in diff3d": ({"diff3d": with_value(GOOD["diff3d"], (4, 0, 0), np.inf)}, "'diff3d'", "first at 4"),
    "NaN in xcoords": ({"xcoords": with_value(GOOD["xcoords"], (2,), np.nan)}, "'xcoords'", "first at 2"),
    "infinity in ycoords": ({"ycoords": with_value(GOOD["ycoords"], (1,), -np.inf)}, "'ycoords'", "first at 1"),
    "NaN in the probe": ({"probeGuess": with_value(GOOD["probeGuess"], (5, 5), np.nan)}, "'probeGuess'", "NaN"),
    "NaN in the object": ({"objectGuess": with_value(GOOD["objectGuess"], (5, 5), np.nan)}, "'objectGuess'", "NaN"),
    "too large for float32": ({"diff3d": GOOD["diff3d"].astype(float) * 1e300}, "'diff3d'", "infinity"),
    "negative amplitudes": ({"diff3d": with_value(GOOD["diff3d"], (7, 1, 1), -0.5)}, "'diff3d'", "negative"),
    "complex amplitudes": ({"diff3d": GOOD["diff3d"] + 1j}, "'diff3d'", "complex"),
    "text for numbers": ({"xcoords": np.full(M, "left")}, "'xcoords'", "<U4"),
    "a probe of another size": ({"probeGuess": np.ones((128, 128), np.complex64)}, "'probeGuess'", "(128, 128)"),
    "a patch above the object": ({"ycoords": with_value(GOOD["ycoords"], (6,), 31.4)}, "'ycoords'", "first pattern 6"),
    "a patch right of the object": ({"xcoords": with_value(GOOD["xcoords"], (8,), 98.6)}, "xcoords", "first pattern 8"),
    "metadata that is no JSON": ({"metadata": np.array("{")}, "'metadata'", "line 1"),
    "metadata that is a list": ({"metadata": np.array("[1]")}, "'metadata'", "list"),
    "an unknown quantity": ({"metadata": np.array('{"diff3d_quantity": "counts"}')}, "diff3d_quantity", "counts"),
    "an object array": ({"diff3d": np.array([{"a": 1}] * M, dtype=object)}, "'diff3d'", "pickle"),
    "pickled metadata": ({"metadata": np.array({"a": 1}, dtype=object)}, "'metadata'", "pickle"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("case", REFUSALS)
def test_a_breach_of_the_contract_is_refused(case, tmp_path):
    changes, key, fault = REFUSALS[case]
    path = tmp_path / "scan.npz"
    np.savez(path, **{name: array for name, array in {**contract(), **changes}.items() if array is not None})
    with pytest.raises(InputError) as refused:
        RawData.load(path)
    error = refused.value
    assert str(path) in error.what and key in error.what
    assert fault in str(error.found)
    assert str(error.expected) and error.remedy.endswith((".", "?"))
    assert os.listdir(tmp_path) == ["scan.npz"]


@pytest.mark.parametrize(
    "content",
    [b"", b"not a zip at all", b"\x80\x04]q\x00.", b"PK\x03\x04 cut short", b"BZh91AY&SY cut short"],
    ids=["empty", "text", "pickle", "damaged zip", "damaged bzip2"],
)
def test_a_file_that_is_no_npz_is_refused(content, tmp_path):
    path = tmp_path / "scan.npz"
    path.write_bytes(content)
    for read in (RawData.load, load_data, read_tike):
        with pytest.raises(InputError, match=r"scan\.npz"):
            read(path)


@pytest.mark.parametrize("read", [RawData.load, load_data])
def test_a_mask_without_a_good_pixel_names_its_file(read, tmp_path):
    scan, _ = pt.simulate_halves(pt.SimulationConfig(object_size_px=128, n_train=3, n_test=1))
    np.savez(tmp_path / "scan.npz", **scan.to_arrays(), mask=np.zeros((64, 64), bool))
    with pytest.raises(InputError, match=r"scan\.npz, .*0 good pixels"):
        read(tmp_path / "scan.npz")


def test_a_truncated_npz_is_refused(tmp_path):
    whole = tmp_path / "whole.npz"
    RawData.from_arrays(contract()).save(whole)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut\.npz"):
        RawData.load(cut)


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "scan.npy", np.ones(3))
    with pytest.raises(InputError, match=r"scan\.npy"):
        RawData.load(tmp_path / "scan.npy")


def test_a_missing_file_is_refused(tmp_path):
    for read in (RawData.load, load_data, read_tike):
        with pytest.raises(InputError, match=r"nowhere\.npz.*no such file"):
            read(tmp_path / "nowhere.npz")


def test_a_pickle_is_never_run(tmp_path):
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return (open, (str(trap), "w"))

    np.savez(tmp_path / "scan.npz", **{**contract(), "metadata": np.array(Trap(), dtype=object)})
    with pytest.raises(InputError):
        RawData.load(tmp_path / "scan.npz")
    assert not trap.exists()


def test_data_made_in_memory_are_checked_as_well():
    good = RawData.from_arrays(contract())
    with pytest.raises(InputError, match="probeGuess"):
        dataclasses.replace(good, probe=np.ones((32, 32), np.complex64))
    with pytest.raises(InputError, match="positions_px"):
        dataclasses.replace(good, positions_px=np.ones((M, 3)))


def test_round_trip(tmp_path):
    arrays = {**contract(), "xcoords_start": np.arange(M, dtype=float), "ycoords_start": np.arange(M) + 0.5,
              "ground_truth_patches": np.ones((M, N, N, 1), np.complex64)}
    data = RawData.from_arrays(arrays)
    again = RawData.load(data.save(tmp_path / "new folder" / "scan.npz"))
    assert again.checksums() == data.checksums()
    assert again.metadata == {"sample": "none"}
    np.testing.assert_array_equal(again.positions_start_px, np.stack([np.arange(M) + 0.5, np.arange(M)], axis=1))
    assert again.ground_truth_patches.shape == (M, N, N)
    assert (again.diff3d.dtype, again.positions_px.dtype, again.probe.dtype) == (np.float32, np.float64, np.complex64)


def test_defaults_of_what_is_optional():
    arrays = contract()
    required = {key: arrays[key] for key in ("xcoords", "ycoords", "diff3d", "probeGuess")}
    data = RawData.from_arrays(required)
    assert data.object is None and data.metadata == {} and not data.scan_index.any()
    np.testing.assert_array_equal(data.positions_start_px, data.positions_px)
    np.testing.assert_array_equal(data.positions_px[:, 0], arrays["ycoords"])  # (y, x), not (x, y)


def test_the_probe_is_kept_as_given():
    arrays = {**contract(), "probeGuess": 1e4 * np.ones((N, N), np.complex128)}
    np.testing.assert_array_equal(RawData.from_arrays(arrays).probe, arrays["probeGuess"])


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    data = RawData.from_arrays(contract())
    path = data.save(tmp_path / "scan.npz")
    before = path.read_bytes()

    def cut_off(file, **arrays):
        Path(file).write_bytes(b"half of it")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "savez_compressed", cut_off)
    with pytest.raises(OSError, match="disk is full"):
        dataclasses.replace(data, metadata={"new": True}).save(path)
    assert os.listdir(tmp_path) == ["scan.npz"] and path.read_bytes() == before


def test_a_name_without_npz_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"\.npz"):
        RawData.from_arrays(contract()).save(tmp_path / "scan.h5")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "logged"),
    [
        ({"diff3d": None, "diffraction": GOOD["diff3d"]}, "'diffraction' read as 'diff3d'"),
        ({"diff3d": np.moveaxis(GOOD["diff3d"], 0, -1)}, "(64, 64, 10) has its patterns last"),
        ({"diff3d": GOOD["diff3d"] ** 2, "metadata": np.array('{"diff3d_quantity": "intensity"}')}, "square root"),
    ],
    ids=["diffraction", "patterns last", "intensities"],
)
def test_other_habits_are_put_right_and_logged(changes, logged, tmp_path, caplog):
    path = tmp_path / "scan.npz"
    np.savez(path, **{name: array for name, array in {**contract(), **changes}.items() if array is not None})
    with caplog.at_level(logging.WARNING):
        data = RawData.load(path)
    assert [logged in record.getMessage() and str(path) in record.getMessage() for record in caplog.records] == [True]
    np.testing.assert_allclose(data.diff3d, contract()["diff3d"], rtol=1e-6)


def test_as_many_patterns_as_pixels_are_left_in_the_order_of_the_contract(caplog):
    rng = np.random.default_rng(1)
    cube = rng.uniform(size=(N, N, N)).astype(np.float32)
    arrays = {"diff3d": cube, "xcoords": np.zeros(N), "ycoords": np.zeros(N), "probeGuess": np.ones((N, N))}
    data = RawData.from_arrays(arrays)
    np.testing.assert_array_equal(data.diff3d, cube)  # flat patterns tell nothing
    assert "along the first axis" in caplog.text


def test_checksums_name_what_changed():
    data = RawData.from_arrays(contract())
    moved = dataclasses.replace(data, positions_px=data.positions_px + np.array([0, 0.5]))
    before, after = data.checksums(), moved.checksums()
    assert {key for key in before if before[key] != after[key]} == {"xcoords"}


def test_the_measured_star_plain_and_compressed(measured_star, tmp_path):
    path = measured_star
    plain = tmp_path / "star.npz"
    plain.write_bytes(bz2.decompress(path.read_bytes()))
    data, again = load_data(path), read_tike(plain)
    assert data.checksums() == again.checksums()
    assert (data.n_patterns, data.N) == (516, 128)
    assert 4.4e5 < data.nphotons_mean < 4.8e5 and round(data.summary()["counts_per_pixel_max"]) == 963
    with np.load(plain) as stored:
        corners_px = stored["scan"][0].astype(np.float64)
    origin_px = np.array(data.metadata["origin_px"])
    np.testing.assert_allclose(data.positions_px - 64 + origin_px, corners_px, atol=1e-9)
    assert np.all(origin_px % 1 == 0) and np.all(data.positions_px.min(axis=0) // 1 == 64)
    mean = (data.diff3d**2).mean(axis=0)
    y, x = np.indices(mean.shape)
    centre = np.array([(mean * y).sum(), (mean * x).sum()]) / mean.sum()
    assert np.all(np.abs(centre - 64) < 4)  # the beam is in the centre of the detector


def test_tike_files_of_other_shapes_are_refused(tmp_path):
    path = tmp_path / "theirs.npz"
    np.savez(path, data=np.ones((2, 5, 64, 64)), scan=np.ones((2, 5, 2)), probe=np.ones((64, 64)))
    with pytest.raises(InputError, match=r"theirs\.npz.*data \(2, 5, 64, 64\)"):
        load_data(path)
    np.savez(path, data=np.ones((1, 5, 64, 64)), scan=np.ones((1, 5, 2)))
    with pytest.raises(InputError, match="missing key 'probe'"):
        read_tike(path)
    np.savez(path, data=-np.ones((1, 5, 64, 64)), scan=np.ones((1, 5, 2)), probe=np.ones((64, 64)))
    with pytest.raises(InputError, match="counts >= 0"):
        load_data(path)


@pytest.mark.parametrize("n", [40, 64])
def test_a_file_of_ptychopinn_has_its_patterns_last(n, tmp_path, caplog):
    _, scan = pt.simulate_halves(pt.SimulationConfig(nphotons=1e5, object_size_px=192, n_train=1, n_test=n, seed=3))
    theirs = {"diffraction": np.moveaxis(scan.diff3d, 0, -1), "probeGuess": scan.probe, "objectGuess": scan.object,
              "xcoords_start": scan.positions_px[:, 1], "ycoords_start": scan.positions_px[:, 0]}
    np.savez(tmp_path / "theirs.npz", **theirs)
    data = pt.load_data(tmp_path / "theirs.npz")
    np.testing.assert_array_equal(data.diff3d, scan.diff3d)
    np.testing.assert_array_equal(data.positions_px, scan.positions_px)
    assert "'xcoords_start', 'ycoords_start' read as the positions" in caplog.text
    assert ("the light tells: patterns lie along the last axis" in caplog.text) == (n == 64)
    caplog.clear()
    ours = pt.load_data(scan.save(tmp_path / "ours.npz"))
    np.testing.assert_array_equal(ours.diff3d, scan.diff3d)
    assert ("the light tells: patterns lie along the first axis" in caplog.text) == (n == 64)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_detector_that_is_not_square_is_cut_and_masked(on_disk, tmp_path, caplog):
    rng = np.random.default_rng(4)
    wide = np.abs(rng.normal(size=(5, 70, 58))).astype(np.float32)
    wide[2, 40, 30] = np.nan
    arrays = contract() | {"diff3d": wide, "xcoords": np.linspace(32, 60, 5), "ycoords": np.linspace(32, 60, 5),
                           "probeGuess": np.ones((64, 64), np.complex64)}
    np.savez(tmp_path / "wide.npz", **{key: arrays[key] for key in ("diff3d", "xcoords", "ycoords", "probeGuess")})
    with caplog.at_level(logging.WARNING):
        data = load_data(tmp_path / "wide.npz", on_disk=on_disk)
    assert "70 x 58 px" in caplog.text
    good = np.zeros((64, 64), bool)
    good[:, 3:61] = True
    good[37, 33] = False
    np.testing.assert_array_equal(data.detector.good, good)
    np.testing.assert_array_equal(np.asarray(data.diff3d)[:, good], wide[:, 3:67][:, good[:, 3:61]])


def test_what_an_npz_lacks_is_estimated_or_given(tmp_path, caplog):
    scan, _ = pt.simulate_halves(pt.SimulationConfig(object_size_px=160, n_train=40, n_test=1, nphotons=1e5))
    np.savez(tmp_path / "scan.npz", diff3d=scan.diff3d)
    with pytest.raises(InputError, match="'xcoords'"):
        load_data(tmp_path / "scan.npz")
    with caplog.at_level(logging.WARNING):
        data = load_data(tmp_path / "scan.npz", positions=scan.positions_px, unit="px")
    assert "no probe" in caplog.text and data.is_probe_estimated
    np.testing.assert_allclose(np.ptp(data.positions_px - scan.positions_px, axis=0), 0, atol=1e-9)
    y, x = scan.positions_px.T
    np.savez(tmp_path / "scan.npz", diff3d=scan.diff3d, xcoords=x, ycoords=y, probeGuess=scan.probe[None, None])
    assert np.array_equal(load_data(tmp_path / "scan.npz").probe, scan.probe)


def test_a_mask_in_the_other_sense_is_turned(tmp_path, caplog):
    arrays = contract()
    light = np.hypot(*(np.indices((N, N)) - N // 2)) < 12
    good = np.ones((N, N), bool)
    good[20:23] = False
    arrays["diff3d"] = np.where(light & good, 3, 0) + np.zeros((M, 1, 1), np.float32)
    for mask in (~good, np.uint8(~good), good):
        np.savez(tmp_path / "scan.npz", **arrays, mask=mask)
        np.testing.assert_array_equal(load_data(tmp_path / "scan.npz").detector.good, good)
    np.savez(tmp_path / "scan.npz", **arrays)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(load_data(tmp_path / "scan.npz", mask=~good).detector.good, good)
    assert "other sense" in caplog.text


@pytest.mark.parametrize(("unit", "metres"), [("m", 1.0), ("mm", 1e-3), ("um", 1e-6)])
def test_positions_in_another_unit_are_converted_where_the_geometry_is_known(unit, metres, tmp_path, caplog):
    scan, _ = pt.simulate_halves(pt.SimulationConfig(object_size_px=160, n_train=40, n_test=1, nphotons=1e5))
    arrays, pixel_m = scan.to_arrays(), 5.6e-8
    for axis in "xy":
        arrays[f"{axis}coords"] = arrays[f"{axis}coords"] * pixel_m / metres
        del arrays[f"{axis}coords_start"]
    del arrays["objectGuess"]
    np.savez(tmp_path / "scan.npz", **arrays)
    with caplog.at_level(logging.WARNING):
        data = load_data(tmp_path / "scan.npz", geometry=pt.Geometry(object_pixel_m=pixel_m))
    np.testing.assert_allclose(np.ptp(data.positions_px - scan.positions_px, axis=0), 0, atol=1e-9)
    assert f"one in {unit}" in caplog.text and "no probe" not in caplog.text


def test_tike_files_hold_pixels_that_could_not_be_read(tmp_path):
    counts = np.ones((1, 6, 40, 48), np.float32)
    counts[..., :8, :8] += 50
    counts[0, 2, 5, 2] = np.nan
    np.savez(tmp_path / "scan.npz", data=counts, scan=np.random.default_rng(0).uniform(0, 30, (1, 6, 2)),
             probe=np.ones((1, 1, 1, 1, 40, 40), np.complex64))
    data = load_data(tmp_path / "scan.npz")
    assert data.N == 40 and np.count_nonzero(~data.detector.good) == 1


def test_the_order_of_memory_changes_nothing(tmp_path):
    scan, _ = pt.simulate_halves(pt.SimulationConfig(object_size_px=160, n_train=60, n_test=1, nphotons=1e5))
    arrays = scan.to_arrays()
    columns_first = {key: np.asfortranarray(array) if array.ndim > 1 else array for key, array in arrays.items()}
    np.savez(tmp_path / "scan.npz", **columns_first)
    assert not columns_first["probeGuess"].flags["C_CONTIGUOUS"]
    images = [pt.estimate(data, model="joint", iterations=8, progress=False).object
              for data in (scan, load_data(tmp_path / "scan.npz"))]
    assert np.array_equal(*images)
