"""The photon grid: equal bytes from equal seeds, each file of the dose it states, and folders that are not as left."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from ptycho_nb.cli import main
from ptycho_nb.config import InputError
from ptycho_nb.data.formats import load_data
from ptycho_nb.files import read_json
from ptycho_nb.studies.photon_grid import SUMS, GridConfig, damaged_sets, photon_grid, read_grid

WORDS = ["photon-grid", "--doses", "1e3,1e6", "--patterns", "40", "--seed", "3", "--out"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid") / "first"
    assert main([*WORDS, str(folder)]) == 0
    return folder


def sums(folder):
    return dict(reversed(line.split()) for line in (folder / SUMS).read_text().splitlines())


def test_made_twice_it_has_the_same_bytes(grid, tmp_path, capsys):
    assert main([*WORDS, str(tmp_path / "again")]) == 0
    for name in (SUMS, "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (grid / name).read_bytes()
    for name, stated in sums(grid).items():
        assert hashlib.sha256((grid / name).read_bytes()).hexdigest() == stated
    assert main(["info", str(grid)]) == 0
    assert capsys.readouterr().out.count("as it should be") == 2
    assert main([*WORDS[:-2], "4", "--out", str(tmp_path / "seed")]) == 0
    assert not set(sums(tmp_path / "seed").values()) & set(sums(grid).values())


def test_each_is_a_scan_of_its_dose_and_nothing_else_differs(grid):
    scans = {item["nphotons"]: (load_data(grid / item["file"]), item) for item in read_grid(grid)["data_sets"]}
    assert set(scans) == {1e3, 1e6}
    for nphotons, (scan, item) in scans.items():
        assert scan.is_simulated and scan.n_patterns == 40 and scan.object.shape == (232, 232)
        assert abs(scan.nphotons_mean - nphotons) < 5 * np.sqrt(nphotons / 40)
        np.testing.assert_allclose(scan.nphotons_mean, item["photons_measured"], rtol=1e-9)
        counts = np.square(scan.diff3d, dtype=float)
        np.testing.assert_allclose(counts, np.rint(counts), rtol=1e-6)
    dim, bright = (scan.checksums() for scan, _ in scans.values())
    assert {key for key in dim if dim[key] != bright[key]} == {"diff3d", "metadata"}
    with zipfile.ZipFile(grid / "photons_1e3.npz") as archive:  # nothing in it depends on clock or machine
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_noise_is_that_of_photons(tmp_path):
    photon_grid(tmp_path, (1e4, 1e9), GridConfig(n_patterns=40))
    names = ("photons_1e4.npz", "photons_1e9.npz")
    dim, bright = (np.square(load_data(tmp_path / name).diff3d, dtype=float) for name in names)
    expected = bright * 1e-5  # its own noise is negligible
    lit = expected > 0.05
    chi_squared = np.mean((dim - expected)[lit] ** 2 / expected[lit])
    assert abs(chi_squared - 1) < 0.06


def test_a_dose_does_not_depend_on_its_neighbours_or_on_threads(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    done = photon_grid(tmp_path, (1e6,), GridConfig(n_patterns=40, seed=3))
    assert done == {"photons_1e6.npz": "made"} and sums(tmp_path)["photons_1e6.npz"] == sums(grid)["photons_1e6.npz"]


def test_many_blocks_are_one_array(tmp_path, monkeypatch):
    config = GridConfig(n_patterns=30)
    photon_grid(tmp_path / "one", (1e3,), config)
    monkeypatch.setattr("ptycho_nb.studies.photon_grid._BLOCK_PIXELS", 4 * 64**2)
    photon_grid(tmp_path / "many", (1e3,), config)
    one, many = (load_data(tmp_path / name / "photons_1e3.npz") for name in ("one", "many"))
    np.testing.assert_array_equal(one.ground_truth_patches, many.ground_truth_patches)
    assert many.n_patterns == 30 and abs(many.nphotons_mean / one.nphotons_mean - 1) < 0.01


def test_what_is_missing_or_damaged_is_made_again_as_it_was(grid, tmp_path, capsys):
    folder = tmp_path / "grid"
    assert main([*WORDS, str(folder)]) == 0
    with open(folder / "photons_1e3.npz", "r+b") as file:
        file.seek(5000)
        file.write(b"?")
    (folder / "photons_1e6.npz").unlink()
    (folder / SUMS).unlink()
    assert damaged_sets(folder) == {"photons_1e3.npz": "another checksum", "photons_1e6.npz": "missing"}
    capsys.readouterr()
    assert main(["info", str(folder)]) == 0
    assert "another checksum" in capsys.readouterr().out
    assert main([*WORDS, str(folder)]) == 0
    said = capsys.readouterr().out
    assert "made again: another checksum" in said and "made again: missing" in said and sums(folder) == sums(grid)
    assert main([*WORDS, str(folder)]) == 0
    assert capsys.readouterr().out.count("kept") == 2


def test_a_killed_run_leaves_whole_files_and_the_next_one_ends_it(grid, tmp_path):
    folder = tmp_path / "grid"
    words = [sys.executable, "-m", "ptycho_nb", *WORDS[:-1], "--out", str(folder)]
    words[words.index("40")] = "4000"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(folder.glob(".photons_*.new-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(folder.glob("photons_*.npz")) and read_grid(folder)["data_sets"] == []
    assert main([*WORDS, str(folder)]) == 2  # another number of patterns
    settings = read_json(folder / "manifest.json")
    settings["grid"]["n_patterns"] = 40
    (folder / "manifest.json").write_text(json.dumps(settings))
    assert main([*WORDS, str(folder)]) == 0 and sums(folder) == sums(grid)


@pytest.mark.parametrize(("words", "named"), [
    (["--doses", "1e3,many"], "'many'"), (["--doses", "0.5"], "0.5"), (["--doses", "1e3,"], "''"),
    (["--patterns", "0"], "n_patterns"), (["--seed", "-1"], "seed")])
def test_a_wrong_wish_is_one_line_and_leaves_nothing(words, named, tmp_path, capsys):
    assert main(["photon-grid", "--out", str(tmp_path / "out"), *words]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "photons_1e3.npz").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"without manifest\.json"):
        photon_grid(tmp_path, (1e3,), GridConfig(n_patterns=40))
    (tmp_path / "manifest.json").write_text('{"arms": []}')  # of a sweep
    with pytest.raises(InputError, match=r"manifest\.json"):
        photon_grid(tmp_path, (1e3,), GridConfig(n_patterns=40))
    assert (tmp_path / "photons_1e3.npz").read_bytes() == b"mine"


@pytest.mark.parametrize("lie", [{"file": "../other.npz"}, {"nphotons": 0.0}, {"by_chance": 0.0}, {"nphotons": 1e6}])
def test_a_manifest_that_lies_is_refused(grid, tmp_path, lie, capsys):
    manifest = read_json(grid / "manifest.json")
    manifest["data_sets"][0] |= lie
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for words in (["info", str(tmp_path)], [*WORDS, str(tmp_path)]):
        assert main(words) == 2
        assert "manifest.json" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
