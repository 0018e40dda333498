"""What is decided once for the files of all other programs: order of pixels, parts of a detector, sizes."""
import numpy as np
import pytest

import ptycho_nb as pt
from ptycho_nb.config import InputError
from ptycho_nb.data.assembly import Recording, assemble
from ptycho_nb.data.formats import load_data
from ptycho_nb.data.tables import read_table

BEAMLINE = pt.Geometry(energy_ev=8800, distance_m=1.9, detector_pixel_m=75e-6)
POSITIONS_M = np.random.default_rng(0).uniform(0, 2e-6, (30, 2))


def light(height: int, width: int, centre: tuple[int, int]) -> np.ndarray:
    """Thirty patterns with a spot of light about a pixel."""
    y, x = np.indices((height, width))
    spot = 900 * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 60)
    return np.random.default_rng(1).poisson(spot, (30, height, width)).astype(np.uint16)


@pytest.mark.parametrize("told", [True, False])
def test_mask_and_dark_move_with_patterns_that_begin_in_the_corner(told):
    good, dark = np.ones((48, 48), bool), np.zeros((48, 48))
    good[30:32], dark[10, 5] = False, 3
    files = [np.fft.ifftshift(image, axes=(-2, -1)) for image in (light(48, 48, (24, 24)), good, dark)]
    data = assemble(Recording("example", "scan", files[0], POSITIONS_M, geometry=BEAMLINE, good=files[1], dark=files[2],
                              in_corner=told))
    assert np.array_equal(data.detector.good, good) and np.array_equal(data.detector.background, dark)
    assert data.diff3d[:, 20:28, 20:28].mean() > 4 * data.diff3d.mean()


@pytest.mark.parametrize("shape", [(48, 60), (60, 48)])
def test_pixels_of_a_wide_detector_are_those_of_its_shorter_side(shape):
    counts = light(*shape, (shape[0] // 2, shape[1] // 2))
    for unit, positions in (("m", POSITIONS_M), ("px", POSITIONS_M / 5e-8)):
        recording = Recording("example", "scan", counts, positions, unit, geometry=pt.Geometry(object_pixel_m=5e-8))
        data = assemble(recording)
        assert data.N == 48 and data.pixel_size_m == pytest.approx(5e-8)
        np.testing.assert_allclose(np.ptp(data.positions_px, axis=0), np.ptp(POSITIONS_M, axis=0) / 5e-8)


@pytest.mark.parametrize("centre", ["auto", (22, 50)])
def test_a_crop_about_a_far_centre_uses_the_whole_detector(centre, tmp_path):
    np.save(tmp_path / "scan.npy", light(48, 72, (22, 50)))
    data = load_data(tmp_path / "scan.npy", crop=40, centre=centre, positions=POSITIONS_M, unit="m", geometry=BEAMLINE)
    assert data.detector is None or data.detector.good.all()
    assert load_data(data.save(tmp_path / "scan.npz"), centre=(20, 20)).N == 40 and "window_px" not in data.metadata
    y, x = np.indices((40, 40))
    mean = (data.diff3d**2).mean(axis=0)
    assert abs((mean * y).sum() / mean.sum() - 20) < 1 and abs((mean * x).sum() / mean.sum() - 20) < 1


def test_patterns_without_any_count_are_refused():
    with pytest.raises(InputError, match="counts >= 0"):
        assemble(Recording("example", "scan", np.full((30, 48, 48), -1.0), POSITIONS_M, geometry=BEAMLINE))


@pytest.mark.parametrize("factor", [0, -2])
def test_binning_by_nothing_is_refused(factor, tmp_path):
    np.save(tmp_path / "scan.npy", light(48, 48, (24, 24)))
    with pytest.raises(InputError, match="bin: found"):
        load_data(tmp_path / "scan.npy", bin=factor, positions=POSITIONS_M, unit="m", geometry=BEAMLINE)


def test_an_estimated_probe_says_nothing_of_the_overlap():
    data = assemble(Recording("example", "scan", light(48, 48, (24, 24)), POSITIONS_M * 40, geometry=BEAMLINE))
    assert data.is_probe_estimated and pt.hold_out(data).share == 1


@pytest.mark.parametrize("text", ["up across\n1 2\n", "x_a x_b y\n1 1 2\n", "x (furlong) y (furlong)\n1 2\n", "3\n4\n"])
def test_a_table_whose_columns_nobody_understands_is_refused(text, tmp_path):
    (tmp_path / "scan.csv").write_text(text)
    with pytest.raises(InputError, match=r"scan\.csv"):
        read_table(tmp_path / "scan.csv")


def test_positions_from_an_array_in_a_file(tmp_path):
    np.save(tmp_path / "scan.npy", light(48, 48, (24, 24)))
    np.save(tmp_path / "there.npy", POSITIONS_M)
    given, read = (load_data(tmp_path / "scan.npy", positions=where, unit="m", geometry=BEAMLINE).positions_px
                   for where in (POSITIONS_M, tmp_path / "there.npy"))
    np.testing.assert_array_equal(given, read)
