"""The command line as a shell sees it: exit codes, one-line errors, and a whole experiment."""
import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ptycho_nb as pt
from ptycho_nb import __version__
from ptycho_nb.cli import _parser, main
from ptycho_nb.data.formats import load_data
from ptycho_nb.physics.probes import probe_diameter_px
from ptycho_nb.solvers.result import load_reconstructions

COMMANDS = ("simulate", "train", "reconstruct", "studies", "run-arm", "sweep", "report", "diagnose", "info",
            "validate", "convert", "how-few", "photon-grid", "snapshot", "plan")
SMALL = ["-p", "n_train", "40", "-p", "n_test", "40", "-p", "object_size_px", "256"]


def test_help_is_quick_and_names_every_command():
    program = Path(sys.executable).with_name("ptycho-nb")
    start = time.perf_counter()
    text = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - start
    assert all(command in text for command in COMMANDS)
    assert seconds < 2  # 0.2 on an idle machine; TensorFlow alone would take 8


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["info", "absent.npz"], ["absent.npz"]),
        (["info", "."], ["config.json"]),
        (["simulate", "out", "-p", "nphotonz", "1e4"], ["'nphotonz'", "Did you mean 'nphotons'?"]),
        (["simulate", "out", "-p", "nphotons", "-1"], ["nphotons", "-1", "> 0"]),
        (["simulate", "out", "-p", "n_train", "many"], ["n_train", "'many'", "an integer"]),
        (["simulate", "out", "-p", "probe_kind", "disc"], ["'disc'", "'disk'"]),
        (["train", "absent.npz", "out"], ["absent.npz"]),
        (["reconstruct", "absent.npz", "out.npz"], ["absent.npz"]),
        (["reconstruct", "absent.npz", "out.txt"], ["out.txt", "'.npz'"]),
        (["reconstruct", "absent.npz", "out.npz", "-p", "n_groups", "9"], ["n_groups", "--network"]),
        (["run-arm", "absent.ipynb", "out"], ["absent.ipynb"]),
        (["run-arm", "doze", "out"], ["'doze'", "Did you mean 'dose'?"]),
        (["run-arm", "doze", "--help"], ["'doze'", "Did you mean 'dose'?"]),
        (["studies", "copy", "out", "doze"], ["'doze'", "Did you mean 'dose'?"]),
        (["studies", "copy"], ["ptycho-nb studies copy my_studies"]),
        (["validate", "absent.cxi"], ["absent.cxi"]),
        (["validate", "absent.cxi", "--centre", "middle"], ["--centre", "'middle'", "Y,X"]),
        (["validate", "absent.cxi", "--keys", "data"], ["--keys", "NAME=PATH"]),
        (["validate", "absent.cxi", "--mask", "absent.npy"], ["absent.npy"]),
        (["validate", "absent.cxi", "--energy-kev", "-8.8"], ["energy_ev", "> 0"]),
        (["plan", "--resolution", "20", "--phase-rad", "0.1", "--step", "wide"], ["--step", "'wide'", "nm"]),
        (["plan", "--resolution", "20nm", "--phase-rad", "0.1"], ["resolution_m", "geometry"]),
        (["plan", "--resolution", "4px", "--phase-rad", "0.1", "--probe", "dsk"], ["'dsk'", "'disk'"]),
        (["convert", "absent.cxi", "out.mat"], ["out.mat", ".cxi"]),
        (["convert", "absent.cxi", "out.npz"], ["absent.cxi"]),
    ],
)
def test_a_wrong_input_is_one_line_and_leaves_nothing(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ptycho-nb: ") and error.count("\n") == 1
    assert all(text in error for text in named)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_that_can_be_parsed(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    text = capsys.readouterr().out
    example = text.partition("example:\n")[2].splitlines()[0].split()
    assert exit_.value.code == 0 and example[:2] == ["ptycho-nb", command]
    assert _parser().parse_args(example[1:]).run


def test_the_help_of_a_study_lists_its_parameters(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "dose", "--help"])
    text = capsys.readouterr().out
    assert "nphotons = 1e9" in text and "mean detected photons per pattern" in text


def test_a_study_is_found_copied_and_named_by_its_path(tmp_path, capsys):
    assert main(["studies", "copy", str(tmp_path / "mine"), "dose"]) == 0
    assert main(["studies", "path", "dose"]) == 0
    copied, original = map(Path, capsys.readouterr().out.splitlines())
    assert copied == tmp_path / "mine" / "dose.ipynb" and copied.read_bytes() == original.read_bytes()
    assert main(["studies", "copy", str(tmp_path / "mine"), "dose"]) == 2
    assert main(["studies", "copy", str(tmp_path / "mine"), "dose", "--again"]) == 0


def test_the_module_is_the_command():
    run = subprocess.run([sys.executable, "-m", "ptycho_nb", "--version"], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == f"ptycho_nb {__version__}"


def test_a_wrong_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["simulatte"])
    assert exit_.value.code == 2
    assert "simulate" in capsys.readouterr().err


def test_simulate_train_reconstruct_info(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "scans", "-p", "nphotons", "1e6", *SMALL]) == 0
    assert main(["info", "scans/test.npz"]) == 0
    assert "patterns: 40 of 64 x 64 px\n" in capsys.readouterr().out
    assert main(["info", "scans/test.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_patterns"] == 40

    settings = ["-p", "gridsize", "1", "-p", "nepochs", "1", "-p", "n_filters", "4"]
    assert main(["train", "scans/train.npz", "network", *settings]) == 0
    assert main(["reconstruct", "scans/test.npz", "object.npz", "--network", "network", "--refine-positions"]) == 0
    with np.load("object.npz", allow_pickle=False) as arrays:
        assert {"object", "coverage", "origin_px", "positions_px", "probe"} <= set(arrays)
        assert np.isfinite(arrays["object"]).all() and arrays["coverage"].max() > 0
    said = capsys.readouterr().out
    assert "object.npz" in said and "positions " in said
    assert {path.name for path in Path("network").iterdir()} >= {"wts.h5.zip", "history.json"}

    assert main(["reconstruct", "scans/test.npz", "best.npz", "--crop", "32"]) == 0
    said = capsys.readouterr().out
    assert said.count("chosen") == 1 and "what photon noise allows" in said and Path("best.png").stat().st_size > 5000
    assert load_reconstructions("best.npz")["best"].N == 32
    with np.load("best.uncertainty.npz", allow_pickle=False) as arrays:
        y0, y1, x0, x1 = arrays["region_px"]
        assert arrays["amplitude"].shape == arrays["phase_rad"].shape == (y1 - y0, x1 - x0)
        assert np.nanmin(arrays["amplitude"]) > 0 and "90 % intervals" in said


def test_a_failing_study_is_exit_code_one(tmp_path, monkeypatch, capsys):
    import nbformat

    monkeypatch.chdir(tmp_path)
    cells = [nbformat.v4.new_code_cell("output_dir: str = ''"), nbformat.v4.new_code_cell("{}['nothing']")]
    cells[0].metadata.tags = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(notebook, "study.ipynb")
    assert main(["run-arm", "study.ipynb", "arm"]) == 1
    error = capsys.readouterr().err
    assert "KeyError" in error and "arm/notebook.ipynb" in error and error.count("\n") == 1


def test_a_reader_who_has_seen_enough_ends_it_quietly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "scans", *SMALL]) == 0
    program = Path(sys.executable).with_name("ptycho-nb")
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([program, "info", "scans/test.npz"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


BEAMLINE = ["--energy-kev", "8.8", "--distance-m", "1.9", "--detector-pixel-um", "75"]


@pytest.fixture(scope="module")
def small_scan(tmp_path_factory):
    """A scan that nothing is known of, in the contract's own format."""
    _, scan = pt.simulate_halves(pt.SimulationConfig(nphotons=1e5, object_size_px=192, n_train=1, n_test=40, seed=3))
    scan = dataclasses.replace(scan, metadata={}, object=None)
    return scan, scan.save(tmp_path_factory.mktemp("scan") / "scan.npz")


def test_convert_there_and_back(small_scan, tmp_path, monkeypatch, capsys):
    scan, path = small_scan
    monkeypatch.chdir(tmp_path)
    good = np.ones((64, 64), bool)
    good[20] = False
    np.save("good.npy", good)
    assert main(["convert", str(path), "a.cxi", "--mask", "good.npy", *BEAMLINE]) == 0
    assert main(["convert", "a.cxi", "b.h5"]) == 0
    capsys.readouterr()
    assert main(["convert", "b.h5", "c.npz", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["written"] == ["c.npz"] and said["facts"]["pixels left out"] == "64 of 4096"
    again = pt.load_data("c.npz")
    np.testing.assert_allclose(again.diff3d[:, good], scan.diff3d[:, good], rtol=1e-6)
    np.testing.assert_allclose(np.diff(again.positions_px, axis=0), np.diff(scan.positions_px, axis=0), atol=1e-9)
    np.testing.assert_array_equal(again.probe, scan.probe)
    assert np.array_equal(again.detector.good, good) and again.pixel_size_m == pytest.approx(55.77e-9, rel=1e-4)
    part_of_it = ["--crop", "32", "--centre", "auto", "--bin", "2", "--distance-m", "3.8"]
    assert main(["convert", "a.cxi", "d.npz", *part_of_it]) == 0
    part = pt.load_data("d.npz")
    assert part.N == 16 and part.pixel_size_m == pytest.approx(4 * again.pixel_size_m)


def test_convert_replaces_nothing_and_leaves_nothing_half_written(small_scan, tmp_path, monkeypatch, capsys):
    _, path = small_scan
    monkeypatch.chdir(tmp_path)
    Path("b_dp.hdf5").write_text("somebody's patterns")
    assert main(["convert", str(path), "b.h5", *BEAMLINE]) == 2
    assert "b_dp.hdf5" in capsys.readouterr().err and Path("b_dp.hdf5").read_text() == "somebody's patterns"
    assert main(["convert", str(path), "b.h5"]) == 2  # no geometry
    assert main(["convert", str(path), "b.h5", *BEAMLINE, "--again"]) == 0
    monkeypatch.setattr("ptycho_nb.data.writers._write_counts", lambda *_: 1 / 0)  # after its file was opened
    for name in ("b.h5", "c.cxi"):
        assert main(["convert", str(path), name, *BEAMLINE, "--again"]) == 70
    assert sorted(item.name for item in tmp_path.iterdir()) == ["b.h5", "b_dp.hdf5"]
    assert pt.load_data("b.h5").n_patterns == 40


def test_what_validate_says(small_scan, tmp_path, monkeypatch, capsys):
    scan, path = small_scan
    monkeypatch.chdir(tmp_path)
    assert main(["validate", str(path), *BEAMLINE]) == 0
    said = capsys.readouterr().out
    field_px2 = np.prod(np.ptp(scan.positions_px, axis=0) + probe_diameter_px(scan.probe))
    per_px = scan.nphotons_mean * 40 / field_px2
    assert f"detected photons on the sample: {per_px:.3g} per px, {per_px / 0.0557694**2:.3g} per µm²" in said
    for fact in ("patterns: 40 of 64 x 64 px", "energy: 8.8 keV", "pixel on the sample: 55.77 nm", "µm (y, x)"):
        assert fact in said
    dataclasses.replace(scan, positions_px=0.03 * scan.positions_px).save("micrometres.npz")
    dataclasses.replace(scan, light=np.ones(40)).save("refused.npz")
    with np.load("refused.npz") as arrays:
        np.savez("refused.npz", **{**arrays, "light": np.ones(3)})
    for name, where in (("micrometres.npz", "pixels"), ("refused.npz", "light")):
        assert main(["validate", name, "--json"]) == 3
        said = json.loads(capsys.readouterr().out)
        (wrong,) = [item for item in said["findings"] if item["severity"] == "error"]
        assert not said["sound"] and where in str(wrong) and wrong["remedy"]


def test_a_geometry_that_is_not_far_field_is_named(small_scan, tmp_path, capsys):
    scan, _ = small_scan
    known = dataclasses.replace(scan, positions_px=20 * scan.positions_px, object=None)
    path = known.save(tmp_path / "near.npz")
    assert main(["validate", str(path), *BEAMLINE]) == 3
    assert "A near-field scan, or wrong lengths" in capsys.readouterr().out
    assert main(["info", str(path), *BEAMLINE]) == 0
    assert "A near-field scan, or wrong lengths" in capsys.readouterr().err
    measured = dataclasses.replace(known, metadata={"probe": "estimated"}, geometry=pt.Geometry(object_pixel_m=3e-8))
    path = measured.save(tmp_path / "measured.npz")
    assert main(["diagnose", str(path), "--out", str(tmp_path / "report")]) == 3
    assert "A near-field scan, or wrong lengths" in capsys.readouterr().out
    with pytest.raises(pt.InputError, match=r"px from one position to the next, and no probe; .*near-field scan"):
        pt.estimate(load_data(path))


@pytest.mark.parametrize(("command", "said"), [("sweep", "continues where it stopped"), ("how-few", "begins anew")])
def test_a_stop_says_how_to_go_on(command, said, monkeypatch, capsys):
    def stopped(_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("ptycho_nb.cli._parsed", lambda _words: argparse.Namespace(run=stopped, settings=[]))
    assert main([command]) == 130
    assert said in capsys.readouterr().err
