"""Patterns that stay in their file: the same scan and the same results as in memory, with hardly any of it."""
import dataclasses
import importlib
import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from test_formats import LAYOUTS

import ptycho_nb as pt
from ptycho_nb.config import InputError
from ptycho_nb.data.formats import load_data, save_data
from ptycho_nb.physics.patterns import Patterns

GEOMETRY = pt.Geometry(energy_ev=8800, distance_m=1.9, detector_pixel_m=75e-6)


@pytest.fixture(scope="module")
def scan():
    """Eighty patterns on fractions of pixels, with photons enough to tell an object."""
    _, data = pt.simulate_halves(pt.SimulationConfig(nphotons=1e5, object_size_px=192, n_train=1, n_test=80, seed=5))
    moved = data.positions_px + np.random.default_rng(0).uniform(-0.4, 0.4, data.positions_px.shape)
    return dataclasses.replace(data, positions_px=moved, object=None, metadata={}, geometry=GEOMETRY)


def assert_same(from_disk, expected):
    """Two scans of the same numbers, the first one on disk."""
    assert isinstance(from_disk.diff3d, Patterns) and isinstance(expected.diff3d, np.ndarray)
    np.testing.assert_array_equal(np.asarray(from_disk.diff3d), expected.diff3d)
    np.testing.assert_array_equal(from_disk.good_pixels, expected.good_pixels)
    np.testing.assert_array_equal(from_disk.positions_px, expected.positions_px)
    np.testing.assert_allclose(from_disk.probe, expected.probe, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(from_disk.photons_per_pattern, expected.photons_per_pattern)
    assert from_disk.checksums()["diff3d"] == expected.checksums()["diff3d"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_format_is_the_same_on_disk(name, tmp_path):
    path = LAYOUTS[name][0](tmp_path)
    assert_same(load_data(path, on_disk=True), load_data(path, on_disk=False))


def test_a_matlab_file_may_be_open_twice(scan, tmp_path):
    counts = np.round(scan.diff3d**2).transpose(1, 2, 0)
    scipy.io.savemat(tmp_path / "scan.mat", {"ptychogram": counts, "dxd": 75e-6, "zo": 1.9,
                                             "encoder": 5e-8 * scan.positions_px, "wavelength": 1.4e-10})
    first = load_data(tmp_path / "scan.mat", on_disk=True)
    assert_same(first, load_data(tmp_path / "scan.mat", on_disk=False))
    assert_same(load_data(tmp_path / "scan.mat", on_disk=True), load_data(tmp_path / "scan.mat"))


@pytest.mark.parametrize("suffix", ["npy", "emd", "raw"])
def test_a_raster_is_the_same_on_disk(suffix, tmp_path):
    counts, path = np.random.default_rng(1).poisson(5, (6, 7, 130, 128)).astype(np.float32), tmp_path / f"scan.{suffix}"
    if suffix == "npy":
        np.save(path, counts[..., :64, :64].astype(np.uint8))
    elif suffix == "raw":
        counts.tofile(path)
    else:
        with h5py.File(path, "w") as file:
            file["datacube_root/datacube/data"] = counts[..., :128, :].astype(np.uint16)
    how = {"step": 0.4, "unit": "nm", "raster": (6, 7), "geometry": pt.Geometry(object_pixel_m=2e-11)}
    from_disk, expected = (load_data(path, on_disk=where, **how) for where in (True, False))
    assert_same(from_disk, expected)
    np.testing.assert_array_equal(from_disk.diff3d[[40, 8, 6, 9]], expected.diff3d[[40, 8, 6, 9]])


@pytest.mark.parametrize("how", ["amplitudes", "packed", "intensities", "unread", "patterns last"])
def test_an_npz_is_the_same_on_disk(how, scan, tmp_path):
    arrays, save = scan.to_arrays(), np.savez_compressed if how == "packed" else np.savez
    counts = np.round(scan.diff3d**2)
    if how == "intensities":
        arrays |= {"diff3d": counts.astype(np.uint16), "metadata": np.array('{"diff3d_quantity": "intensity"}')}
    elif how == "unread":
        arrays["diff3d"] = scan.diff3d.copy()
        arrays["diff3d"][:, 7, 9] = -1
        arrays["diff3d"][3, 7, 8] = np.nan
    elif how == "patterns last":
        arrays["diff3d"] = np.moveaxis(scan.diff3d, 0, -1)
    save(tmp_path / "scan.npz", **arrays)
    from_disk, expected = (load_data(tmp_path / "scan.npz", on_disk=where) for where in (True, False))
    if how == "patterns last":  # they have to be read for that
        np.testing.assert_array_equal(from_disk.diff3d, expected.diff3d)
    else:
        assert_same(from_disk, expected)


@pytest.mark.parametrize("spoil", ["negative", "not a number"])
def test_what_is_refused_in_memory_is_refused_on_disk(spoil, scan, tmp_path):
    arrays = scan.to_arrays()
    arrays["diff3d"] = scan.diff3d.copy()
    arrays["diff3d"][5:30:2, ::2] = -3 if spoil == "negative" else np.inf
    np.savez(tmp_path / "scan.npz", **arrays)
    for where in (True, False):
        with pytest.raises(InputError, match=r"diff3d.* in 13 of 80 .*first (at|in) 5"):
            load_data(tmp_path / "scan.npz", on_disk=where)


def test_patterns_of_another_rank_are_refused_by_their_shape(scan, tmp_path):
    np.savez(tmp_path / "scan.npz", **(scan.to_arrays() | {"diff3d": scan.diff3d.reshape(80, -1)}))
    for where in (True, False):
        with pytest.raises(InputError, match=r"shape \(80, 4096\)"):
            load_data(tmp_path / "scan.npz", on_disk=where)


def test_windows_and_noise_are_the_same_on_disk(scan, tmp_path):
    path = save_data(tmp_path / "scan.cxi", scan)
    for how in ({"crop": 48, "centre": "auto"}, {"bin": 2}, {"pad": 80}, {"readout_noise": 2.0, "crop": 32},
                {"rotate": "90", "crop": 48, "centre": (30, 34)}, {"rotate_detector": "mirror-y"}):
        assert_same(load_data(path, on_disk=True, **how), load_data(path, on_disk=False, **how))


@pytest.mark.parametrize("suffix", [".npz", ".cxi", ".h5"])
def test_a_scan_on_disk_is_written_like_any_other(suffix, scan, tmp_path):
    there = load_data(save_data(tmp_path / "scan.npz", scan), on_disk=True)
    again = load_data(save_data(tmp_path / f"again{suffix}", there))
    np.testing.assert_allclose(again.diff3d, scan.diff3d, atol=1e-5)


@pytest.mark.parametrize("model", ["fixed", "joint"])
def test_the_same_object_from_disk(model, scan, tmp_path):
    path = save_data(tmp_path / "scan.cxi", scan)
    from_disk, expected = (pt.estimate(load_data(path, on_disk=where), model, iterations=12) for where in (True, False))
    np.testing.assert_allclose(from_disk.object, expected.object, rtol=1e-4, atol=1e-5)
    assert from_disk.info["chosen"] == pytest.approx(expected.info["chosen"], rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*changed")
def test_the_ladder_decides_the_same_from_disk(scan, tmp_path):
    path = save_data(tmp_path / "scan.cxi", scan)
    from_disk, expected = (pt.estimate(load_data(path, on_disk=where), iterations=20) for where in (True, False))
    assert [rung["kept"] for rung in from_disk.info["rungs"]] == [rung["kept"] for rung in expected.info["rungs"]]
    assert from_disk.info["goodness"]["ratio"] == pytest.approx(expected.info["goodness"]["ratio"], rel=1e-4)


def test_photons_are_dealt_by_the_same_coins(tmp_path):
    _, sparse = pt.simulate_halves(pt.SimulationConfig(nphotons=1e4, object_size_px=320, n_train=1, n_test=12, seed=5))
    there = load_data(save_data(tmp_path / "scan.npz", sparse), on_disk=True)
    held, expected = pt.hold_out(there), pt.hold_out(sparse)
    assert held.share == expected.share < 1 and isinstance(held.amplitude, Patterns)
    np.testing.assert_array_equal(np.asarray(held.amplitude), expected.amplitude)
    np.testing.assert_array_equal(np.asarray(held.fitted_amplitude), expected.fitted_amplitude)


def test_hardly_any_memory(tmp_path):
    _, data = pt.simulate_halves(pt.SimulationConfig(nphotons=1e5, object_size_px=256, n_train=1, n_test=60, seed=5))
    counts, many = np.round(data.diff3d**2).astype(np.uint16), 80
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.create_dataset("data", (60 * many, 64, 64), np.uint16, chunks=(1, 64, 64))
        for k in range(many):
            file["data"][60 * k : 60 * k + 60] = counts
        y, x = np.tile(data.positions_px, (many, 1)).T
        file.update({"y": y, "x": x, "probe": data.probe})
    stored = many * counts.nbytes
    how = {"keys": {name: name for name in ("data", "x", "y", "probe")}, "unit": "px", "on_disk": True}
    pt.estimate(load_data(tmp_path / "scan.h5", **how).subset(np.arange(40)), "fixed", iterations=2)  # compiled
    tracemalloc.start()
    there = load_data(tmp_path / "scan.h5", **how)
    loaded = tracemalloc.get_traced_memory()[1]
    pt.estimate(there, "fixed", iterations=1)
    fitted = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded < 1.2 * stored and fitted < 1.2 * stored, f"{stored} bytes; {loaded} to load, {fitted} to fit them"


@pytest.mark.parametrize("suffix", ["h5", "npy"])
def test_what_would_fill_the_memory_stays_on_disk(suffix, tmp_path, monkeypatch):
    counts = np.random.default_rng(0).poisson(5, (200, 64, 64)).astype(np.uint16)
    there, path = np.random.default_rng(1).uniform(0, 90, (200, 2)), tmp_path / f"scan.{suffix}"
    how = {"positions": there, "unit": "px"}
    if suffix == "h5":
        how = {"keys": {"data": "data", "x": "x", "y": "y"}, "unit": "px"}
        with h5py.File(path, "w") as file:
            file.update({"data": counts, "y": there[:, 0], "x": there[:, 1]})
    else:
        np.save(path, counts)
    in_memory = load_data(path, **how)
    monkeypatch.setattr("ptycho_nb.data.assembly.free_bytes", lambda: 3 * 4 * counts.size)
    assert_same(load_data(path, **how), in_memory)


def test_an_array_is_never_whole_beside_its_amplitudes(tmp_path):
    counts = np.random.default_rng(0).poisson(5, (1600, 64, 64)).astype(np.uint16)
    np.save(tmp_path / "scan.npy", counts)
    there = np.random.default_rng(1).uniform(0, 90, (1600, 2))
    tracemalloc.start()
    load_data(tmp_path / "scan.npy", positions=there, unit="px")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * counts.nbytes + 24e6, f"{peak / counts.nbytes:.2f} times what is stored"


def test_the_benchmark_of_a_large_scan(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    words = ["--gigabytes", "0.01", "--side", "64", "--iterations", "8", "--limit-gib", "1"]
    record = importlib.import_module("large_scan").main(words)
    assert record["ssim"] > 0.6 and record["iterations"] == 8
    assert record["imports_bytes"] < record["peak_bytes"] < 2**30


def test_a_file_that_changes_is_not_half_believed(scan, tmp_path):
    np.savez(tmp_path / "scan.npz", **scan.to_arrays())
    there = load_data(tmp_path / "scan.npz", on_disk=True)
    os.utime(tmp_path / "scan.npz", (0, 0))
    with pytest.raises(InputError, match="changed after it was opened"):
        there.diff3d[0]
