"""Other programs' files: each layout comes back as the scan that it was, in its units; faults are named."""
import dataclasses
import logging
import tracemalloc
import warnings

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings

import ptycho_nb as pt
from ptycho_nb.cli import main
from ptycho_nb.config import InputError
from ptycho_nb.data.formats import FORMATS, files_written, load_data, save_data
from ptycho_nb.data.windows import bin_patterns, take_window
from ptycho_nb.data.writers import write_product, write_product_npz
from ptycho_nb.diagnosis.reading import read_data
from ptycho_nb.physics.detector import Detector
from ptycho_nb.solvers.rungs import orientations

BEAMLINE = pt.Geometry(energy_ev=8800, distance_m=1.9, detector_pixel_m=75e-6)
PIXEL_M = BEAMLINE.pixel_size_m(64)
GOOD = np.ones((64, 64), bool)
GOOD[20:22] = False
_, SCAN = pt.simulate_halves(pt.SimulationConfig(nphotons=1e4, object_size_px=192, n_train=1, n_test=21, seed=3))
SCAN = dataclasses.replace(SCAN, positions_px=SCAN.positions_px + np.random.default_rng(4).uniform(0.1, 0.9, (21, 2)),
                           object=None, metadata={})
COUNTS = np.round(SCAN.diff3d**2).astype(np.uint16)
THERE_M = PIXEL_M * SCAN.positions_px


def cxi(folder, basis=((0, -75e-6), (-75e-6, 0), (0, 0)), chunked=False):
    """CXI, the translation being that of the sample: the beam goes the other way along each basis vector."""
    basis = np.array(basis, float)
    units = basis / np.linalg.norm(basis, axis=0)
    with h5py.File(folder / "scan.cxi", "w") as file:
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector.create_dataset("data", data=COUNTS, chunks=(5, 64, 64) if chunked else None)
        detector.update({"distance": 1.9, "x_pixel_size": 75e-6, "y_pixel_size": 75e-6, "basis_vectors": basis})
        detector["mask"] = np.where(GOOD, 0x1000, 1).astype(np.uint32)
        file["entry_1/instrument_1/source_1/energy"] = 8800 * 1.602176634e-19
        file["entry_1/instrument_1/source_1/illumination"] = np.stack([SCAN.probe, 0.1 * SCAN.probe])
        file["entry_1/sample_1/geometry_1/translation"] = -THERE_M @ units.T
    return folder / "scan.cxi"


def ptyd(folder):
    """ptypy's prepared data in two chunks."""
    with h5py.File(folder / "scan.ptyd", "w") as file:
        file.update({"meta/energy": 8.8, "meta/distance": 1.9, "meta/psize": [75e-6, 75e-6]})
        for k, part in enumerate((slice(0, 12), slice(12, None))):
            file.update({f"chunks/{k}/data": COUNTS[part].astype(np.int32), f"chunks/{k}/positions": THERE_M[part],
                         f"chunks/{k}/weights": np.broadcast_to(GOOD, COUNTS[part].shape).astype(float)})
    return folder / "scan.ptyd"


def pair(folder, given="scan_dp.hdf5"):
    """PtychoShelves and pty-chi: patterns in one file, positions and probe in another."""
    with h5py.File(folder / "scan_dp.hdf5", "w") as dp, h5py.File(folder / "scan_para.hdf5", "w") as rest:
        dp["dp"] = COUNTS
        rest.update({"probe": np.stack([SCAN.probe, 0.1 * SCAN.probe])[None], "probe_position_y_m": THERE_M[:, 0],
                     "probe_position_x_m": THERE_M[:, 1]})
        rest["probe"].attrs.update({"pixel_width_m": PIXEL_M, "pixel_height_m": PIXEL_M})
    return folder / given


def ptylab(folder):
    """PtyLab."""
    with h5py.File(folder / "scan.hdf5", "w") as file:
        file.update({"ptychogram": COUNTS.astype(np.float32), "encoder": THERE_M, "dxd": 75e-6, "zo": 1.9,
                     "wavelength": BEAMLINE.wavelength_m})
    return folder / "scan.hdf5"


def hxn(folder):
    """NSLS-II HXN: amplitudes, zero frequency in the corner, units in the names."""
    with h5py.File(folder / "hxn.h5", "w") as file:
        file.update({"diffamp": np.fft.ifftshift(np.sqrt(COUNTS), axes=(1, 2)), "points": 1e6 * THERE_M.T[::-1],
                     "z_m": 1.9, "lambda_nm": 1e9 * BEAMLINE.wavelength_m, "ccd_pixel_um": 75.0})
    return folder / "hxn.h5"


def product_npz(folder):
    """A product in NPZ, its attributes under prefixes, with the patterns beside it."""
    np.savez(folder / "scan_product.npz", name="scan", comments="", probe_energy_eV=8800.0,
             detector_object_distance_m=1.9, probe=np.stack([SCAN.probe, 0.1 * SCAN.probe])[None],
             probe_pixel_width_m=PIXEL_M, probe_pixel_height_m=PIXEL_M, probe_position_indexes=np.arange(len(THERE_M)),
             probe_position_y_m=THERE_M[:, 0], probe_position_x_m=THERE_M[:, 1])
    with h5py.File(folder / "scan_dp.hdf5", "w") as file:
        file["dp"] = COUNTS
    return folder / "scan_product.npz"


def diamond(folder):
    """Diamond, as ptypy reads it: the groups of CXI with other data sets."""
    with h5py.File(folder / "diamond.nxs", "w") as file:
        file.update({"entry_1/data/data": COUNTS.reshape(3, -1, 64, 64),
                     "entry_1/data/x": 1e3 * THERE_M[:, 1].reshape(3, -1),
                     "entry_1/data/y": THERE_M[:, 0].reshape(3, -1),
                     "entry_1/instrument_1/beam_1/energy": 8.8})
        file["entry_1/data/x"].attrs["units"], file["entry_1/data/y"].attrs["units"] = "mm", "m"
        detector = file.create_group("entry_1/instrument_1/detector_1")
        detector.update({"distance": 1.9, "x_pixel_size": 75e-6, "y_pixel_size": 75e-6, "mask": (~GOOD).astype(int)})
    return folder / "diamond.nxs"


LAYOUTS = {"CXI": (cxi, True), "Diamond": (diamond, True), "ptypy": (ptyd, True), "patterns of a pair": (pair, False),
           "product": (lambda folder: pair(folder, "scan_para.hdf5"), False), "product in NPZ": (product_npz, False),
           "PtyLab": (ptylab, False),
           "NSLS-II HXN": (hxn, False)}


def assert_positions(data, pixels=1.0):
    """The positions up to a common shift."""
    shift = data.positions_px - pixels * SCAN.positions_px
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-9)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_comes_back(name, tmp_path):
    write, has_mask = LAYOUTS[name]
    data = load_data(write(tmp_path))
    assert_positions(data)
    assert data.pixel_size_m == pytest.approx(PIXEL_M, rel=1e-9)
    assert np.array_equal(data.detector.good, GOOD) if has_mask else data.detector is None
    np.testing.assert_allclose(data.diff3d**2, COUNTS, atol=1e-2)
    assert np.all(data.positions_px.min(axis=0) >= 32) and np.all(data.positions_px.min(axis=0) < 33)
    if name not in ("patterns of a pair", "product"):
        known = (data.geometry.energy_ev, data.geometry.distance_m, data.geometry.detector_pixel_m)
        assert known == pytest.approx((8800, 1.9, 75e-6), rel=1e-8)


def test_every_format_of_the_table_is_tested():
    assert set(FORMATS) == {"tike", "ptycho_nb", "py4DSTEM", "EMPAD", "Eiger master", *LAYOUTS}


def eiger(folder):
    """A master of a detector of 66 x 80 pixels that links to two files, as DECTRIS writes it."""
    with h5py.File(folder / "scan_master.h5", "w") as file:
        for k, part in enumerate((slice(0, 12), slice(12, None)), start=1):
            wide = np.full((len(COUNTS[part]), 66, 80), 2**32 - 1, np.uint32)
            wide[:, 1:65, 8:72] = COUNTS[part]
            with h5py.File(folder / f"scan_data_{k:06}.h5", "w") as data:
                data["entry/data/data"] = wide
            file[f"entry/data/data_{k:06}"] = h5py.ExternalLink(f"scan_data_{k:06}.h5", "/entry/data/data")
        detector = file.create_group("entry/instrument/detector")
        detector.update({"detector_distance": 1.9, "x_pixel_size": 75e-6, "y_pixel_size": 75e-6, "beam_center_x": 40.2,
                         "beam_center_y": 33.0, "detectorSpecific/photon_energy": 8800.0,
                         "detectorSpecific/pixel_mask": np.pad(~GOOD, ((1, 1), (8, 8)), constant_values=True) * 1})
    return folder / "scan_master.h5"


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_master_of_an_eiger_and_its_table(on_disk, tmp_path, caplog):
    path = eiger(tmp_path)
    with pytest.raises(InputError, match=r"positions.*none"):
        load_data(path)
    rows = "\n".join(f"{k},{x!r},{y!r}" for k, (y, x) in enumerate((1e9 * THERE_M).tolist()))
    (tmp_path / "scan.csv").write_text("#trigger,x_nm,y_nm\n" + rows)
    data = load_data(path, positions=tmp_path / "scan.csv", crop=64, on_disk=on_disk)
    moved = np.diff(data.positions_px, axis=0) - np.diff(SCAN.positions_px, axis=0)
    np.testing.assert_allclose(moved, 0, atol=1e-9)
    assert data.pixel_size_m == pytest.approx(PIXEL_M, rel=1e-9) and np.array_equal(data.detector.good, GOOD)
    np.testing.assert_allclose(np.asarray(data.diff3d)[:, GOOD] ** 2, COUNTS[:, GOOD], atol=1e-2)
    assert "centre=(33, 33)" in caplog.text
    (tmp_path / "scan_data_000002.h5").unlink()
    with pytest.raises(InputError, match=r"scan_data_000002\.h5, which is not there"):
        load_data(path, positions=tmp_path / "scan.csv")


@pytest.mark.parametrize(("first_line", "keys"), [
    ("k x_nm y_nm", None), ("k, x (nm), y (nm)", None), ("k;x [nm];y [nm]", None),
    ("#k\tpiezo_x_nm\tpiezo_y_nm", "piezo_"),
    ("", "numbers"), ("number across_nm along_nm", "numbers")])
def test_columns_of_a_table_by_name_and_unit(first_line, keys, tmp_path):
    np.save(tmp_path / "dp.npy", COUNTS)
    rows = [f"{k} {x!r} {y!r}" for k, (y, x) in enumerate((1e9 * THERE_M).tolist())]
    (tmp_path / "scan.txt").write_text("\n".join(filter(None, [first_line, *rows])))
    keys = {"numbers": {"x": "1", "y": "2"}, "piezo_": {"x": "piezo_x", "y": "piezo_y"}}.get(keys)
    how = {"geometry": BEAMLINE, "keys": keys, "unit": "nm" if keys and "1" in keys.values() else None}
    assert_positions(load_data(tmp_path / "dp.npy", positions=tmp_path / "scan.txt", **how))
    with pytest.raises(InputError, match=r"scan\.txt, columns.*\['stage_y', 'x'\]"):
        load_data(tmp_path / "dp.npy", positions=tmp_path / "scan.txt", **how | {"keys": {"y": "stage_y"}})


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(("centre", "by"), [
    ((35, 28), (3, -4)), ((31.5, 31.5), (0, 0)), (32, (0, 0)), ("fftshift", (0, 0)), (40.0, (8, 8))])
def test_the_centre_of_ptypy_becomes_the_middle(centre, by, on_disk, tmp_path, caplog):
    path = ptyd(tmp_path)
    with h5py.File(path, "r+") as file:
        file["meta/center"] = centre
        for k in "01":
            file[f"chunks/{k}/data"][()] = np.roll(file[f"chunks/{k}/data"][()], by, axis=(1, 2))
            file[f"chunks/{k}/weights"][()] = np.roll(file[f"chunks/{k}/weights"][()], by, axis=(1, 2))
    data = load_data(path, on_disk=on_disk)
    beyond = np.ones((64, 64), bool)
    for axis, step in enumerate(by):
        beyond &= np.indices((64, 64))[axis] + step < 64
        beyond &= np.indices((64, 64))[axis] + step >= 0
    assert np.array_equal(data.detector.good, GOOD & beyond)
    np.testing.assert_allclose(np.asarray(data.diff3d)[:, beyond] ** 2, COUNTS[:, beyond], atol=1e-2)
    assert_positions(data)
    assert ("zero frequency is at pixel (" in caplog.text) == (by != (0, 0))


@pytest.mark.parametrize("centre", [(0, 0), "fft"])
def test_a_centre_of_ptypy_in_the_corner(centre, tmp_path):
    path = ptyd(tmp_path)
    with h5py.File(path, "r+") as file:
        file["meta/center"] = centre
        for k in "01":
            for name in ("data", "weights"):
                file[f"chunks/{k}/{name}"][()] = np.fft.ifftshift(file[f"chunks/{k}/{name}"][()], axes=(1, 2))
    data = load_data(path)
    np.testing.assert_allclose(data.diff3d**2, COUNTS, atol=1e-2)
    assert np.array_equal(data.detector.good, GOOD)
    with h5py.File(path, "r+") as file:
        del file["meta/center"]
        file["meta/center"] = [70, 3]
    with pytest.raises(InputError, match=r"centre.*70, 3"):
        load_data(path)


@pytest.mark.parametrize(("energy", "unit"), [
    (8.8, None), (8800.0, None), (8800 * 1.602176634e-19, None), (8800, "eV")])
def test_the_energy_of_diamond_in_any_unit(energy, unit, tmp_path, caplog):
    path = diamond(tmp_path)
    with h5py.File(path, "r+") as file:
        file["entry_1/instrument_1/beam_1/energy"][()] = energy
        if unit:
            file["entry_1/instrument_1/beam_1/energy"].attrs["units"] = unit
        file["entry_1/instrument_1/detector_1/darkfield"] = np.full((64, 64), 0.5)
    data = load_data(path)
    assert data.geometry.energy_ev == pytest.approx(8800) and np.all(data.detector.background == 0.5)
    assert ("no unit stands beside" in caplog.text) == (unit is None)


def test_groups_of_cxi_without_its_patterns_ask_where_they_are(tmp_path):
    path = diamond(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["entry_1/data/x"]
    with pytest.raises(InputError, match="keys="):
        load_data(path)


@pytest.mark.parametrize("other", ["scan.h5", "scan_para.hdf5", "scan.hdf5"])
def test_an_unrelated_file_beside_the_patterns_is_not_used(other, tmp_path, caplog):
    path = pair(tmp_path)
    rest = (tmp_path / "scan_para.hdf5").rename(tmp_path / "Niter.hdf5")
    with h5py.File(tmp_path / other, "w") as file:
        file["something"] = np.arange(3)
    with pytest.raises(InputError, match=r"positions.*none"):
        load_data(path, geometry=BEAMLINE)
    assert f"{other}: by its name it may hold the positions" in caplog.text
    assert_positions(load_data(path, positions=rest))
    assert_positions(load_data(path, positions=THERE_M, geometry=BEAMLINE))
    (tmp_path / other).write_bytes(b"no HDF5")
    assert_positions(load_data(path, positions=THERE_M, geometry=BEAMLINE))
    assert "it cannot be read" in caplog.text
    rest.rename(tmp_path / "scan_product.h5")  # the next name is looked for
    assert_positions(load_data(path))


@pytest.mark.parametrize(("layout", "name"), [("PtyLab", "encoder"), ("NSLS-II HXN", "points")])
def test_positions_that_lie_the_other_way(layout, name, tmp_path):
    path = LAYOUTS[layout][0](tmp_path)
    with h5py.File(path, "r+") as file:
        there = file[name][()].T
        del file[name]
        file[name] = there
    assert_positions(load_data(path))


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_ptylab_in_matlab_has_its_patterns_last(version, tmp_path):
    parts = {"ptychogram": COUNTS.transpose(1, 2, 0), "encoder": THERE_M, "dxd": 75e-6, "zo": 1.9,
             "wavelength": BEAMLINE.wavelength_m}
    if version == "5":
        scipy.io.savemat(tmp_path / "scan.mat", parts)
    else:
        with h5py.File(tmp_path / "scan.mat", "w", userblock_size=512) as file:
            file.update({name: np.atleast_2d(value).T for name, value in parts.items()})
    data = load_data(tmp_path / "scan.mat")
    assert_positions(data)
    assert data.pixel_size_m == pytest.approx(PIXEL_M, rel=1e-9)
    np.testing.assert_allclose(data.diff3d**2, COUNTS, atol=1e-2)


@pytest.mark.parametrize("name", ["scan_para.mat", "Niter100.mat"])
def test_results_of_fold_slice_beside_the_patterns(name, tmp_path):
    """Found by its usual name, or given."""
    pair(tmp_path)
    (tmp_path / "scan_para.hdf5").unlink()
    modes = np.stack([SCAN.probe, 0.1 * SCAN.probe], axis=-1)[..., None]
    scipy.io.savemat(tmp_path / name, {
        "outputs": {"probe_positions": SCAN.positions_px[:, ::-1] - 77.5}, "probe": modes.astype(np.complex64),
        "p": {"dx_spec": [PIXEL_M, PIXEL_M], "lambda": BEAMLINE.wavelength_m}})
    data = load_data(tmp_path / "scan_dp.hdf5", positions=None if "para" in name else tmp_path / name)
    assert_positions(data)
    assert data.pixel_size_m == pytest.approx(PIXEL_M) and data.geometry.particle == "photon"
    np.testing.assert_allclose(data.weaker_modes, 0.1 * SCAN.probe[None], rtol=1e-5)


def cube(folder, unit="mrad", pixel=0.4, step_unit="A"):
    """A raster of 3 x 7 patterns in the tree of py4DSTEM, calibrated."""
    calibration = {"R_pixel_size": 2.5, "R_pixel_units": step_unit, "Q_pixel_size": pixel, "Q_pixel_units": unit}
    with h5py.File(folder / "scan.h5", "w") as file:
        file["datacube_root/datacube/data"] = COUNTS.reshape(3, 7, 64, 64)
        for name, value in calibration.items():
            file[f"datacube_root/metadatabundle/calibration/{name}"] = value
    return folder / "scan.h5"


def assert_raster(data, step_px):
    """A raster of 3 x 7 points, row by row."""
    np.testing.assert_allclose(np.diff(data.positions_px[:7, 1]), step_px)
    np.testing.assert_allclose(data.positions_px[::7, 0] - data.positions_px[0, 0], step_px * np.arange(3), atol=1e-9)


def test_a_cube_of_py4dstem_has_its_step_and_its_pixel(tmp_path):
    data = load_data(cube(tmp_path, "A^-1", 1 / (64 * 0.5)))
    assert data.pixel_size_m == pytest.approx(0.5e-10)
    assert_raster(data, 5)
    np.testing.assert_allclose(data.diff3d**2, COUNTS, atol=1e-2)


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize("unit", ["", "_degrees"])
def test_a_raster_that_lies_askew_on_the_detector(unit, is_flipped, tmp_path, caplog):
    """A slope of the sample's phase says the same along either axes, as py4DSTEM turns vectors of the detector."""
    path = cube(tmp_path, "A^-1", 1 / (64 * 0.5))
    straight, angle = load_data(path).positions_px, 0.3
    there = "datacube_root/metadatabundle/calibration"
    with h5py.File(path, "r+") as file:
        file[f"{there}/QR_rotation{unit}"] = np.degrees(angle) if unit else angle
        file[f"{there}/QR_flip"] = is_flipped
    askew = load_data(path).positions_px
    on_detector = np.array([0.7, -0.2])
    in_order = on_detector[::-1] if is_flipped else on_detector
    on_sample = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ in_order
    phases = [positions @ slope for positions, slope in ((askew, on_detector), (straight, on_sample))]
    np.testing.assert_allclose(np.diff(phases[0]), np.diff(phases[1]), atol=1e-9)
    assert "turned by 17.19 degrees" in caplog.text and ("QR_flip" in caplog.text) == is_flipped


def test_a_cube_in_angles_needs_the_energy(tmp_path):
    with pytest.raises(InputError, match=r"geometry.*no size of a pixel"):
        load_data(cube(tmp_path))
    data = load_data(cube(tmp_path), geometry=pt.Geometry(energy_ev=300e3, particle="electron"))
    assert data.pixel_size_m == pytest.approx(1.9687e-12 / (64 * 0.4e-3), rel=1e-4)


def test_a_raster_that_nobody_calibrated_is_told_its_step(tmp_path):
    path = cube(tmp_path, "pixels", 1.0, "pixels")
    with pytest.raises(InputError, match=r"positions.*none"):
        load_data(path)
    data = load_data(path, step=4.0, geometry=pt.Geometry(object_pixel_m=2e-10, particle="electron"))  # in Å
    assert_raster(data, 2)
    np.save(tmp_path / "scan.npy", COUNTS)
    assert_raster(load_data(tmp_path / "scan.npy", step=(3, 3), raster=(3, 7), unit="px"), 3)
    with pytest.raises(InputError, match="21 patterns for a square"):
        load_data(tmp_path / "scan.npy", step=3.0, unit="px")
    with pytest.raises(InputError, match=r"raster.*without a step"):
        load_data(tmp_path / "scan.npy", raster=(3, 7))
    with pytest.raises(InputError, match=r"step.*one of the two"):
        load_data(tmp_path / "scan.npy", step=3.0, positions=THERE_M)


def test_an_empad_loses_its_footer(tmp_path):
    frames = np.zeros((21, 130, 128), "<f4")
    frames[:, 32:96, 32:96], frames[:, 128:] = COUNTS, 1e20
    frames.tofile(tmp_path / "scan.raw")
    data = load_data(tmp_path / "scan.raw", step=4.0, raster=(3, 7), geometry=pt.Geometry(object_pixel_m=2e-10))
    assert_raster(data, 2)
    np.testing.assert_allclose(data.diff3d[:, 32:96, 32:96] ** 2, COUNTS, atol=1e-2)
    with pytest.raises(InputError, match=r"positions.*none"):
        load_data(tmp_path / "scan.raw")


def test_ours_keeps_units_and_mask_of_theirs(tmp_path):
    data = load_data(cxi(tmp_path))
    again = load_data(data.save(tmp_path / "ours.npz"))
    assert again.checksums() == data.checksums()
    assert again.geometry == data.geometry and again.weaker_modes.shape == (1, 64, 64)
    assert np.array_equal(again.detector.good, GOOD)
    assert again.summary()["pixel_size_nm"] == pytest.approx(1e9 * PIXEL_M)


@pytest.mark.parametrize("basis", [((0, 1), (1, 0), (0, 0)), ((0, -1), (1, 0), (0, 0)), ((1, 0), (0, 1), (0, 0))])
def test_basis_vectors_decide_the_orientation(basis, tmp_path):
    basis = 75e-6 * np.array(basis)
    path = cxi(tmp_path, basis)
    assert_positions(load_data(path))
    with h5py.File(path, "r+") as file:  # the other way round, as the format's own page has them
        del file["entry_1/instrument_1/detector_1/basis_vectors"]
        file["entry_1/instrument_1/detector_1/basis_vectors"] = basis.T
    assert_positions(load_data(path))
    with h5py.File(path, "r+") as file:
        file["entry_1/instrument_1/detector_1/basis_vectors"][0] = 0
    with pytest.raises(InputError, match="basis vectors"):
        load_data(path)


# eight orientations


def turned(positions, k):
    """The positions counted in one of eight ways."""
    positions = positions[:, ::-1] if k & 4 else positions
    return positions * [-1 if k & 1 else 1, -1 if k & 2 else 1]


def tike(folder, positions_px):
    np.savez(folder / "tike.npz", data=np.fft.ifftshift(COUNTS, axes=(1, 2))[None], scan=positions_px[None] - 32,
             probe=SCAN.probe[None, None, None])
    return load_data(folder / "tike.npz")


def patterns_last(folder, positions_px):
    np.savez(folder / "last.npz", diffraction=np.moveaxis(SCAN.diff3d, 0, -1), probeGuess=SCAN.probe,
             xcoords_start=positions_px[:, 1], ycoords_start=positions_px[:, 0])
    return load_data(folder / "last.npz")


def with_table(folder, positions_px, name):
    np.savetxt(folder / "scan.txt", PIXEL_M * positions_px, header="y_m x_m", fmt="%.17g")
    if name == "npy":
        np.save(folder / "dp.npy", COUNTS)
    elif name == "raw":
        np.pad(COUNTS.astype("<f4"), ((0, 0), (33, 33), (32, 32))).tofile(folder / "dp.raw")
    path = folder / f"dp.{name}" if name != "h5" else eiger(folder)
    return load_data(path, positions=folder / "scan.txt", geometry=pt.Geometry(object_pixel_m=PIXEL_M), crop=64)


WITH_POSITIONS = {
    **{name: lambda folder, _, name=name: load_data(LAYOUTS[name][0](folder)) for name in LAYOUTS},
    "tike": tike, "ptycho_nb": lambda folder, positions_px: load_data(
        dataclasses.replace(SCAN, positions_px=positions_px).save(folder / "ours.npz")),
    "PtychoPINN": patterns_last, "NumPy and a table": lambda *given: with_table(*given, "npy"),
    "Eiger master and a table": lambda *given: with_table(*given, "h5"),
    "EMPAD and a table": lambda *given: with_table(*given, "raw"),
    "py4DSTEM and an array": lambda folder, positions_px: load_data(
        cube(folder), positions=PIXEL_M * positions_px, unit="m", geometry=pt.Geometry(object_pixel_m=PIXEL_M))}


@pytest.mark.parametrize("k", range(8))
@pytest.mark.parametrize("name", WITH_POSITIONS)
def test_a_reader_takes_positions_as_its_format_has_them(name, k, tmp_path, monkeypatch):
    """And the right one is among those that the ladder tries."""
    given = turned(SCAN.positions_px, k) + 200
    monkeypatch.setattr("test_formats.THERE_M", PIXEL_M * given)
    data = WITH_POSITIONS[name](tmp_path, given)
    pixels = 1 if data.pixel_size_m is None else data.pixel_size_m / PIXEL_M  # larger ones where a detector was cropped
    read_px = pixels * data.positions_px
    shift = read_px - given
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-9)
    moved = [np.diff(positions_px - SCAN.positions_px, axis=0) for _, positions_px in orientations(read_px)]
    assert sum(np.abs(each).max() < 1e-9 for each in moved) == 1


@pytest.mark.long
@pytest.mark.parametrize("k", range(8))
@pytest.mark.parametrize("name", LAYOUTS)
def test_eight_orientations_end_in_the_same_object(name, k, tmp_path, monkeypatch):
    """Or in a word that it cannot be told: an estimated probe may take half a turn upon itself."""
    config = pt.SimulationConfig(nphotons=3e5, object_size_px=176, n_train=1, n_test=120, probe_kind="defocused",
                                 object_kind="siemens_star", object_phase=True, seed=5)
    exact = pt.simulate_halves(config)[1]
    for what, value in (("SCAN", exact), ("COUNTS", np.round(exact.diff3d**2).astype(np.uint16)),
                        ("THERE_M", PIXEL_M * turned(exact.positions_px, k)), ("GOOD", np.ones((64, 64), bool))):
        monkeypatch.setattr(f"test_formats.{what}", value)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = load_data(LAYOUTS[name][0](tmp_path))
        result = pt.estimate(dataclasses.replace(data, probe=exact.probe, weaker_modes=None, metadata={}))
    moved = np.diff(result.positions_px - exact.positions_px, axis=0)
    is_told = any("orientation" in str(warning.message) or "positions" in str(warning.message) for warning in said)
    assert np.abs(moved).max() < 0.3 and is_told == (k > 0), [str(each.message) for each in said]


def test_modes_of_the_probe_are_kept(tmp_path):
    data = load_data(cxi(tmp_path))
    np.testing.assert_allclose(data.weaker_modes[0], 0.1 * data.probe, rtol=1e-6)
    assert load_data(pair(tmp_path)).weaker_modes.shape == (1, 64, 64)


def test_without_a_probe_one_is_estimated_and_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert load_data(ptylab(tmp_path)).probe.shape == (64, 64)
    assert any("estimated from the mean pattern" in line for line in caplog.messages)


@pytest.mark.parametrize("where", ["sample_1/geometry_1/translation", "instrument_1/detector_1/distance",
                                   "instrument_1/detector_1/data"])
def test_what_is_missing_is_named_with_a_remedy(where, tmp_path):
    path = cxi(tmp_path)
    with h5py.File(path, "r+") as file:
        del file[f"entry_1/{where}"]
    named = {"translation": "positions", "distance": "geometry", "data": "entry_1/data_1/data"}[where.rsplit("/", 1)[1]]
    with pytest.raises(InputError, match=named) as refused:
        load_data(path)
    assert "scan.cxi" in refused.value.what and refused.value.remedy


def test_a_product_alone_says_that_it_has_no_patterns(tmp_path):
    path = pair(tmp_path, "scan_para.hdf5")
    (tmp_path / "scan_dp.hdf5").unlink()
    with pytest.raises(InputError, match="no diffraction patterns"):
        load_data(path)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("given", ["scan_dp.hdf5", "scan_para.hdf5", "positions"])
@pytest.mark.parametrize("n", [21, 13])
def test_the_indexes_of_a_product_say_which_pattern_has_which_position(n, given, on_disk, tmp_path, caplog):
    """Permuted ones, and a part of them, whichever half of the pair is given."""
    path, indexes = pair(tmp_path, "scan_para.hdf5"), np.random.default_rng(2).permutation(21)[:n]
    with h5py.File(path, "r+") as file:
        file["probe_position_indexes"] = indexes
        for axis, there in zip("yx", THERE_M[indexes].T, strict=True):
            del file[f"probe_position_{axis}_m"]
            file[f"probe_position_{axis}_m"] = there
    if given == "positions":
        data = load_data(tmp_path / "scan_dp.hdf5", positions=path.rename(tmp_path / "other.h5"), on_disk=on_disk)
    else:
        data = load_data(tmp_path / given, on_disk=on_disk)
    used = np.sort(indexes)
    moved = np.diff(data.positions_px, axis=0) - np.diff(SCAN.positions_px[used], axis=0)
    np.testing.assert_allclose(moved, 0, atol=1e-9)
    np.testing.assert_allclose(np.asarray(data.diff3d) ** 2, COUNTS[used], atol=1e-2)
    assert ("of 21 patterns those 13 are used" in caplog.text) == (n == 13)


@pytest.mark.parametrize("fault", ["beyond", "twice", "negative", "few"])
def test_indexes_of_no_pattern_are_refused_by_name(fault, tmp_path):
    path, indexes = pair(tmp_path, "scan_para.hdf5"), np.arange(21)
    indexes[3] = {"beyond": 21, "twice": 4, "negative": -1, "few": 3}[fault]
    with h5py.File(path, "r+") as file:
        file["probe_position_indexes"] = indexes[: 20 if fault == "few" else None]
    with pytest.raises(InputError, match="probe_position_indexes"):
        load_data(path)


def test_any_hdf5_by_the_paths_of_its_data_sets(tmp_path):
    with h5py.File(tmp_path / "nexus.nxs", "w") as file:
        file.update({"entry/frames": COUNTS.reshape(3, 7, 64, 64), "entry/x": 1e3 * THERE_M[:, 1].reshape(3, 7),
                     "entry/y": 1e3 * THERE_M[:, 0].reshape(3, 7), "entry/energy": 8.8, "entry/z": 1900.0,
                     "entry/pixel": 75e-6})
        for name, unit in (("x", "mm"), ("y", "mm"), ("energy", "keV"), ("z", "mm")):
            file[f"entry/{name}"].attrs["units"] = unit
    keys = {"data": "entry/frames", "x": "entry/x", "y": "entry/y", "energy": "entry/energy", "distance": "entry/z",
            "pixel": "entry/pixel"}
    data = load_data(tmp_path / "nexus.nxs", keys=keys)
    assert_positions(data)
    assert data.pixel_size_m == pytest.approx(PIXEL_M)
    with pytest.raises(InputError, match=r"entry.*keys="):
        load_data(tmp_path / "nexus.nxs")


def nexus(folder, units, scale=(1.0, 1.0)):
    """Positions, each axis in a unit of its own."""
    with h5py.File(folder / "nexus.nxs", "w") as file:
        file.update({"frames": COUNTS, "y": scale[0] * THERE_M[:, 0], "x": scale[1] * THERE_M[:, 1]})
        for axis, unit in zip("yx", units, strict=True):
            if unit is not None:
                file[axis].attrs["units"] = unit
    return folder / "nexus.nxs", {"keys": {"data": "frames", "x": "x", "y": "y"}, "geometry": BEAMLINE}


@pytest.mark.parametrize(("units", "scale"), [
    (("mm", "um"), (1e3, 1e6)), (("millimeter", "Micrometers"), (1e3, 1e6)), (("metre", "nanometres"), (1, 1e9)),
    (("angstroms", "μm"), (1e10, 1e6)), ((b"meters", "Meter"), (1, 1)), ((None, "mm"), (1e3, 1e3))])
def test_each_axis_has_its_own_unit(units, scale, tmp_path, caplog):
    path, known = nexus(tmp_path, units, scale)
    assert_positions(load_data(path, **known))
    assert ("beside one of 'y' and 'x' only" in caplog.text) == (units[0] is None)
    given = load_data(path, **known, unit="m")  # what the caller says counts for both
    np.testing.assert_allclose(np.ptp(given.positions_px, axis=0), np.ptp(SCAN.positions_px, axis=0) * scale)


def test_a_unit_that_nobody_knows_is_named(tmp_path, caplog):
    path, known = nexus(tmp_path, ("furlong", "m"))
    assert_positions(load_data(path, **known))
    assert caplog.text.count("the unit 'furlong' of '/y' is not known; m is assumed") == 1
    path = cxi(tmp_path)
    with h5py.File(path, "r+") as file:
        file["entry_1/instrument_1/detector_1/distance"].attrs["units"] = "cubits"
        file["entry_1/sample_1/geometry_1/translation"][()] *= 1e3
        file["entry_1/sample_1/geometry_1/translation"].attrs["units"] = "millimeters"
    assert_positions(load_data(path))
    assert "the unit 'cubits' of '/entry_1/instrument_1/detector_1/distance' is not known; m is assumed" in caplog.text


def test_positions_in_pixels_by_their_unit(tmp_path):
    path, known = nexus(tmp_path, ("pixel", "px"), (1 / PIXEL_M, 1 / PIXEL_M))
    assert_positions(load_data(path, **known))


@pytest.mark.parametrize("text", ["y,x\n", "# index x y\n", ""])
def test_an_array_and_a_table(text, tmp_path):
    np.save(tmp_path / "dp.npy", COUNTS)
    there = enumerate((1e6 * THERE_M).tolist())
    rows = [f"{k} {x!r} {y!r}" if "index" in text else f"{y!r}, {x!r}" for k, (y, x) in there]
    (tmp_path / "scan.csv").write_text(text + "\n".join(rows))
    data = load_data(tmp_path / "dp.npy", positions=tmp_path / "scan.csv", unit="um", geometry=BEAMLINE)
    assert_positions(data)
    with pytest.raises(InputError, match="positions"):
        load_data(tmp_path / "dp.npy")


def test_detectors_that_are_no_even_square_are_cropped_and_it_is_said(tmp_path, caplog):
    wide = np.zeros((21, 65, 80), np.uint16)
    wide[:, :64, 8:72] = COUNTS
    np.save(tmp_path / "dp.npy", wide)
    with caplog.at_level(logging.WARNING):
        data = load_data(tmp_path / "dp.npy", positions=THERE_M, geometry=BEAMLINE)
    assert_positions(data)
    assert any("cropped to 64 x 64 px" in line for line in caplog.messages)
    np.testing.assert_allclose(data.diff3d**2, COUNTS, atol=1e-2)


@pytest.mark.parametrize("kind", ["ours", "tike"])
def test_an_odd_side_becomes_even_and_it_is_said(kind, tmp_path, caplog):
    wide, probe = np.zeros((21, 65, 65), np.float32), np.pad(SCAN.probe, ((0, 1), (0, 1)))
    wide[:, :64, :64] = COUNTS
    if kind == "ours":
        arrays = {"diff3d": np.sqrt(wide), "probeGuess": probe, "ycoords": SCAN.positions_px[:, 0],
                  "xcoords": SCAN.positions_px[:, 1]}
    else:
        arrays = {"data": np.fft.ifftshift(wide, axes=(1, 2))[None], "scan": SCAN.positions_px[None],
                  "probe": probe[None, None]}
    np.savez(tmp_path / "odd.npz", **arrays)
    data = load_data(tmp_path / "odd.npz")
    np.testing.assert_allclose(data.diff3d**2, COUNTS, atol=1e-2)
    assert data.probe.shape == (64, 64) and ("patterns of 64 px" in caplog.text or "cropped to 64 x 64" in caplog.text)
    assert_positions(data, 64 / 65)


@pytest.mark.parametrize("value", [65535, "inverted"])
def test_dead_pixels_and_a_mask_in_the_other_sense(value, tmp_path, caplog):
    counts, mask = COUNTS.copy(), None
    if value == "inverted":
        mask = ~np.ones((64, 64), bool)
        mask[20:22] = True
        counts[:, 20:22] = 0
    else:
        counts[:, 20:22] = value
    np.save(tmp_path / "dp.npy", counts)
    data = load_data(tmp_path / "dp.npy", mask, positions=THERE_M, geometry=BEAMLINE)
    assert np.array_equal(data.detector.good, GOOD) and caplog.messages


def test_crop_bin_and_pad_keep_places_and_mask(tmp_path):
    path = cxi(tmp_path)
    whole, cropped, binned = load_data(path), load_data(path, crop=48), load_data(path, bin=2)
    for data in (cropped, binned, load_data(path, pad=80), load_data(path, crop=48, centre=(32, 32))):
        shift_m = data.positions_px * data.pixel_size_m - whole.positions_px * whole.pixel_size_m
        np.testing.assert_allclose(shift_m, 0, atol=1e-18)
    assert cropped.pixel_size_m == pytest.approx(PIXEL_M * 64 / 48) and binned.pixel_size_m == pytest.approx(PIXEL_M)
    assert np.array_equal(cropped.detector.good, GOOD[8:56, 8:56])
    assert np.array_equal(binned.detector.good, GOOD[::2, ::2])
    assert take_window(whole, 64).checksums() == whole.checksums()
    np.testing.assert_allclose(bin_patterns(whole, 2).photons_per_pattern, whole.photons_per_pattern, rtol=1e-5)


def test_a_turned_scan_is_the_same_sample(tmp_path, capsys):
    path, given = cxi(tmp_path), load_data(cxi(tmp_path))
    assert main(["convert", str(path), str(tmp_path / "turned.npz"), "--rotate", "90"]) == 0
    turned = load_data(tmp_path / "turned.npz")
    assert "the scan is turned: 90" in capsys.readouterr().out
    np.testing.assert_array_equal(~turned.detector.good, ~GOOD.T)
    np.testing.assert_allclose(np.ptp(turned.positions_px, axis=0), np.ptp(given.positions_px, axis=0)[::-1])
    back = load_data(tmp_path / "turned.npz", rotate="270")
    np.testing.assert_array_equal(back.diff3d, given.diff3d)
    np.testing.assert_array_equal(back.probe, given.probe)
    assert_positions(back)
    other = load_data(path, rotate_detector="transpose")
    np.testing.assert_array_equal(other.diff3d, given.diff3d.swapaxes(1, 2))
    assert_positions(other)
    with pytest.raises(InputError, match="counterclockwise"):
        load_data(path, rotate="45")


def test_links_lead_nowhere_outside_the_folder(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = COUNTS
    for kind in ("external", "virtual"):
        path = cxi(inner)
        with h5py.File(path, "r+") as file:
            del file["entry_1/instrument_1/detector_1/data"]
            if kind == "external":
                file["entry_1/instrument_1/detector_1/data"] = h5py.ExternalLink("../secret.h5", "/data")
            else:
                layout = h5py.VirtualLayout(COUNTS.shape, COUNTS.dtype)
                layout[:] = h5py.VirtualSource("../secret.h5", "data", COUNTS.shape)
                file.create_virtual_dataset("entry_1/instrument_1/detector_1/data", layout)
        with pytest.raises(InputError, match="link"):
            load_data(path)


def test_compressed_as_detectors_do(tmp_path):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    path = cxi(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["entry_1/instrument_1/detector_1/data"]
        file["entry_1/instrument_1/detector_1"].create_dataset("data", data=COUNTS, **hdf5plugin.Bitshuffle())
    np.testing.assert_allclose(load_data(path).diff3d ** 2, COUNTS, atol=1e-2)


def test_a_claim_of_gigabytes_without_a_byte_is_refused(tmp_path):
    path = cxi(tmp_path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("entry_1/instrument_1/detector_1/data_dark", (40_000, 64, 64), np.float32, chunks=True)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"scan\.cxi, .*data_dark.* 0 bytes for an array of 0\.655 GB"):
        load_data(path)
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


@pytest.mark.parametrize("n_bytes", [9, 600, 4000, 20000])
def test_a_file_that_was_cut_short_is_refused_by_name(n_bytes, tmp_path):
    path = cxi(tmp_path, chunked=True)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match=r"scan\.cxi"):
        load_data(path)
    data, findings = read_data(path)
    assert data is None and "scan.cxi" in findings[0].what


def test_damage_anywhere_is_one_sentence(tmp_path):
    whole = cxi(tmp_path, chunked=True).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        bytes_ = bytearray(whole)
        for place in rng.integers(8, len(whole) // 8, 8):
            bytes_[place] = rng.integers(256)
        path = tmp_path / "changed.cxi"
        path.write_bytes(bytes_)
        try:
            load_data(path)
        except InputError as error:
            assert "changed.cxi" in error.what


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(side=st.sampled_from(range(16, 50, 2)), n=st.integers(1, 6), modes=st.integers(1, 3), seed=st.integers(0, 99),
       is_whole=st.booleans(), suffix=st.sampled_from([".npz", ".cxi", ".h5"]))
def test_what_is_written_is_read_back(side, n, modes, seed, is_whole, suffix, tmp_path):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(50, (n, side, side)) * (np.hypot(*(np.indices((side, side)) - side // 2)) < side / 4) + 1.0
    counts = counts if is_whole else counts * 0.7
    waves = (rng.normal(size=(modes, side, side)) + 1j * rng.normal(size=(modes, side, side))).astype(np.complex64)
    good = rng.uniform(size=(side, side)) < 0.9
    data = pt.RawData(np.sqrt(counts), side + rng.uniform(0, 90, (n, 2)), waves[0], geometry=BEAMLINE,
                      weaker_modes=waves[1:] if modes > 1 else None, detector=Detector(good))
    again = load_data(save_data(tmp_path / f"scan{suffix}", data))
    shift = again.positions_px - data.positions_px
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-9)
    np.testing.assert_allclose(again.diff3d[:, good], data.diff3d[:, good], rtol=1e-6)
    np.testing.assert_array_equal(again.probe, data.probe)
    assert again.pixel_size_m == pytest.approx(data.pixel_size_m, rel=1e-12)
    if suffix != ".h5":  # a product has no mask
        assert np.array_equal(again.detector.good, good)


def test_through_every_format_that_is_written(tmp_path):
    data = load_data(pair(tmp_path), geometry=BEAMLINE)
    first = data
    for name in ("a.cxi", "b.h5", "c.npz"):
        data = load_data(save_data(tmp_path / name, data))
    np.testing.assert_allclose(data.diff3d, first.diff3d, rtol=1e-6)
    np.testing.assert_array_equal(data.positions_px, first.positions_px)
    np.testing.assert_allclose(data.probe, first.probe, rtol=1e-6)
    images = [pt.estimate(scan, model="joint", iterations=4, progress=False).object for scan in (first, data)]
    np.testing.assert_allclose(*images, atol=1e-6)


WRITTEN = ("scan.cxi", "scan.h5", "scan.product.npz", "scan.npz")


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("electrons", [
    pt.Geometry(energy_ev=300e3, distance_m=1.5, detector_pixel_m=5e-5, particle="electron"),
    pt.Geometry(energy_ev=60e3, distance_m=0.2, detector_pixel_m=1e-5, particle="electron"), BEAMLINE])
def test_electrons_remain_electrons(electrons, name, tmp_path):
    known = load_data(save_data(tmp_path / name, dataclasses.replace(SCAN, geometry=electrons))).geometry
    assert known.particle == electrons.particle
    for quantity in ("wavelength_m", "energy_ev", "distance_m", "detector_pixel_m"):
        assert getattr(known, quantity) == pytest.approx(getattr(electrons, quantity), rel=1e-9), quantity


def test_a_short_wavelength_of_another_program_is_that_of_electrons(tmp_path):
    path = cxi(tmp_path)
    with h5py.File(path, "r+") as file:
        file["entry_1/instrument_1/source_1/wavelength"] = 1.9687e-12
    known = load_data(path).geometry
    assert known.particle == "electron" and known.energy_ev == pytest.approx(300e3, rel=1e-3)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("is_estimated", [True, False])
def test_an_estimated_probe_remains_one(is_estimated, name, tmp_path):
    data = dataclasses.replace(SCAN, geometry=BEAMLINE, metadata={"probe": "estimated"} if is_estimated else {})
    again = load_data(save_data(tmp_path / name, data))
    assert again.is_probe_estimated == is_estimated
    np.testing.assert_array_equal(again.probe, data.probe)
    result = pt.estimate(data, "fixed", iterations=2)
    assert not load_data(write_product(tmp_path / "result.h5", data, result)).is_probe_estimated


@pytest.mark.parametrize("suffix", [".h5", ".product.npz"])
def test_a_product_keeps_what_it_tells(suffix, tmp_path):
    """Name, comments, exposure and the rest, through this package's own file as well."""
    path = pair(tmp_path, "scan_para.hdf5")
    told = {"name": "star", "comments": "after the beam dump – dimmed", "probe_photon_count": 1234.0,
            "exposure_time_s": 0.25, "mass_attenuation_m2_kg": 0.5, "tomography_angle_deg": 12.5}
    with h5py.File(path, "r+") as file:
        file.attrs.update(told)
        file.update({"loss_epochs": [0, 10, 20], "loss_values": [3.0, np.nan, 1.0]})
    told |= {"loss_epochs": [0.0, 10.0, 20.0], "loss_values": [3.0, None, 1.0]}
    first = load_data(path, geometry=BEAMLINE)
    assert first.metadata["product"] == told
    ours = load_data(first.save(tmp_path / "ours.npz"))
    again = load_data(save_data(tmp_path / f"other{suffix}", ours))
    assert again.metadata["product"] == told
    with h5py.File(write_product(tmp_path / "plain.h5", again)) as file:
        assert file.attrs["tomography_angle_deg"] == 12.5 and file.attrs["name"] == "star"
        np.testing.assert_array_equal(file["loss_values"], [3, np.nan, 1])


def test_a_product_in_npz_has_the_names_of_ptychodus(tmp_path):
    data = dataclasses.replace(SCAN, geometry=BEAMLINE, weaker_modes=0.1 * SCAN.probe[None],
                               detector=Detector(GOOD, 0.5))
    names = ["scan.product.npz", "scan.product_dp.hdf5"]
    assert files_written(tmp_path / names[0]) == [tmp_path / name for name in names]
    path = save_data(tmp_path / "scan.product.npz", data)
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    with np.load(path) as arrays:
        assert arrays["probe"].shape == (1, 2, 64, 64) and arrays["probe_pixel_width_m"] == pytest.approx(PIXEL_M)
        assert arrays["name"] == "scan" and arrays["probe_energy_eV"] == 8800 and arrays["object"].ndim == 3
        assert {"object_center_x_m", "object_pixel_height_m", "object_layer_spacing_m", "loss_values"} <= set(arrays)
    again = load_data(path)
    assert_positions(again)
    assert again.object is None and np.array_equal(again.detector.good, GOOD)
    assert np.all(again.detector.background == 0.5)
    np.testing.assert_array_equal(again.probe_modes, data.probe_modes)
    result = pt.estimate(data, "fixed", iterations=2)
    read = load_data(write_product_npz(tmp_path / "result.npz", data, result))
    np.testing.assert_array_equal(read.object, result.object)


def test_variations_of_the_probe_that_are_left_out_are_said(tmp_path, caplog):
    path = pair(tmp_path)
    with h5py.File(tmp_path / "scan_para.hdf5", "r+") as file:
        pixels = dict(file["probe"].attrs)
        del file["probe"]
        file["probe"] = np.stack([SCAN.probe, 0.1 * SCAN.probe, 0.2 * SCAN.probe])[:, None]
        file["probe"].attrs.update(pixels)
    np.testing.assert_array_equal(load_data(path).probe_modes, SCAN.probe)
    assert caplog.text.count("the first of its 3 variations is used") == 1


def test_a_result_as_a_product(tmp_path):
    """Object, probe, positions and losses go there and back; plain h5py finds them under the documented names."""
    config = pt.SimulationConfig(nphotons=1e5, object_size_px=160, n_train=1, n_test=40, seed=3)
    scan = dataclasses.replace(pt.simulate_halves(config)[1], geometry=BEAMLINE, object=None, metadata={})
    result = pt.estimate(scan, "fixed", iterations=5)
    path = write_product(tmp_path / "result.h5", scan, result)
    with h5py.File(path) as file:
        object, there = file["object"], [file[f"probe_position_{axis}_m"][()] for axis in "yx"]
        middle_m, pixel_m = [object.attrs[f"center_{axis}_m"] for axis in "yx"], object.attrs["pixel_height_m"]
        assert object.shape[0] == 1 and file["probe"].shape == (1, 1, 64, 64) and len(file["loss_values"]) == 5
        assert file.attrs["probe_energy_eV"] == 8800 and file["object_layer_spacing_m"].shape == (0,)
        on_object = [(place - middle) / pixel_m + side / 2 for place, middle, side
                     in zip(there, middle_m, object.shape[1:], strict=True)]
    np.testing.assert_allclose(np.stack(on_object, axis=1), result.positions_px - result.origin_px, atol=1e-6)
    again = load_data(path)
    np.testing.assert_array_equal(again.object, result.object)
    np.testing.assert_allclose(again.positions_px, result.positions_px - result.origin_px, atol=1e-6)
    np.testing.assert_array_equal(again.probe, result.probe)
    blank = load_data(write_product(tmp_path / "blank.h5", scan))
    assert blank.object is None and h5py.File(tmp_path / "blank.h5")["object"][0, 3, 3] == 1
    assert load_data(save_data(tmp_path / "back.cxi", blank)).geometry.detector_pixel_m == pytest.approx(75e-6)


def test_an_object_that_does_not_fit_is_left_out_and_it_is_said(tmp_path, caplog):
    path = pair(tmp_path, "scan_para.hdf5")
    with h5py.File(path, "r+") as file:
        file["object"] = np.full((2, 400, 400), 0.9 + 0.1j)
        file["object"][0, 3] = 1
        middle = THERE_M.mean(axis=0)
        file["object"].attrs.update({"pixel_width_m": PIXEL_M, "pixel_height_m": PIXEL_M, "center_y_m": middle[0],
                                     "center_x_m": middle[1]})
    assert load_data(path).object.shape == (400, 400) and "2 layers, which are multiplied" in caplog.text
    assert load_data(path, crop=48).object is None
    with h5py.File(path, "r+") as file:
        file["object"].attrs["center_y_m"] = middle[0] + 1e-3
    assert load_data(path).object is None and "does not lie below all patterns" in caplog.text


def test_a_probe_of_tike_that_is_smaller_than_the_detector(tmp_path, caplog):
    small = SCAN.probe[None, 16:48, 16:48]
    np.savez(tmp_path / "tike.npz", data=np.fft.ifftshift(COUNTS, axes=(1, 2))[None], scan=SCAN.positions_px[None] - 32,
             probe=small[None, None])
    data = load_data(tmp_path / "tike.npz")
    np.testing.assert_array_equal(data.probe[16:48, 16:48], small[0])
    assert not data.probe[:16].any() and "a probe of 32 px for patterns of 64 px" in caplog.text


def test_what_cannot_be_written_says_why(tmp_path):
    for name, expected in (("scan.cxi", "geometry"), ("scan.h5", "geometry"), ("scan.mat", "ending")):
        with pytest.raises(InputError, match=expected):
            save_data(tmp_path / name, SCAN)
    assert not list(tmp_path.iterdir())


def test_what_a_format_has_no_place_for_is_said(tmp_path, caplog):
    full = dataclasses.replace(load_data(pair(tmp_path), geometry=BEAMLINE), detector=Detector(GOOD, end=100.0))
    for name in ("a.cxi", "b.h5", "c.npz"):
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            again = load_data(save_data(tmp_path / name, full))
        kept = again.detector is not None and again.detector.end == 100.0
        assert kept != any("counts at which a pixel is full" in line for line in caplog.messages), name


def test_counts_below_zero_are_readout_noise_where_it_is_given(tmp_path):
    read = COUNTS + np.random.default_rng(5).normal(0, 2, COUNTS.shape)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file.update({"data": read, "y": SCAN.positions_px[:, 0], "x": SCAN.positions_px[:, 1]})
    known = {"keys": {"data": "data", "y": "y", "x": "x"}, "unit": "px"}
    with pytest.raises(InputError, match="negative"):
        load_data(tmp_path / "scan.h5", **known)
    with pytest.raises(InputError, match="readout_noise"):
        load_data(tmp_path / "scan.h5", readout_noise=-1.0, **known)
    data = load_data(tmp_path / "scan.h5", readout_noise=2.0, **known)
    assert data.detector.good.all() and np.allclose(data.detector.background, 4)
    np.testing.assert_allclose(np.square(data.diff3d), np.maximum(read + 4, 0), rtol=1e-4, atol=1e-3)
    stored = load_data(dataclasses.replace(SCAN, metadata={}).save(tmp_path / "scan.npz"), readout_noise=2.0)
    np.testing.assert_allclose(np.square(stored.diff3d), np.square(SCAN.diff3d) + 4, rtol=1e-4)


def test_the_measured_star_through_every_format_that_is_written(measured_star, tmp_path):
    first = load_data(measured_star, geometry=BEAMLINE)
    from_middle_px = np.linalg.norm(first.positions_px - np.median(first.positions_px, axis=0), axis=1)
    first = first.subset(np.flatnonzero(from_middle_px < 60))  # a part, for the time that packing takes
    image = pt.estimate(first, "joint", iterations=4)
    assert np.abs(image.object).std() > 0.02
    counts, data = np.round(first.diff3d.astype(float) ** 2), first
    for name in ("star.cxi", "star.h5", "star.npz"):
        data = load_data(save_data(tmp_path / name, data))
        moved = np.diff(data.positions_px, axis=0) - np.diff(first.positions_px, axis=0)
        assert np.abs(moved).max() < 1e-9
        np.testing.assert_array_equal(np.round(data.diff3d.astype(float) ** 2), counts)
        np.testing.assert_array_equal(data.probe_modes, first.probe_modes)
        assert data.pixel_size_m == pytest.approx(first.pixel_size_m, rel=1e-12)
        np.testing.assert_allclose(pt.estimate(data, "joint", iterations=4).object, image.object, rtol=0, atol=1e-6)


def test_a_matlab_file_reads_no_other_file(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(8 * 21))
    with h5py.File(tmp_path / "scan.mat", "w", userblock_size=512) as file:
        file.create_dataset("ptychogram", (21,), "f8", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)])
    with pytest.raises(InputError, match=r"scan\.mat.*ptychogram.*in another file"):
        load_data(tmp_path / "scan.mat")
