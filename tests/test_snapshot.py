"""The snapshot of an arm: what it says is what is in the files, and it leaves the arm as it was."""
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from ptycho_nb.analysis.metrics import compare
from ptycho_nb.cli import main
from ptycho_nb.config import InputError, ModelConfig, TrainingConfig
from ptycho_nb.data.formats import load_data
from ptycho_nb.files import read_json, write_json
from ptycho_nb.runs.arms import finish_arm, read_arm, start_arm
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.result import save_reconstructions
from ptycho_nb.studies.photon_grid import GridConfig, photon_grid, read_grid
from ptycho_nb.studies.snapshot import dose_check, implied_dose, snapshot, write_snapshot

GRID = GridConfig(n_patterns=120)


def make_arm(folder, recorded=1e5, learned=9.9):
    facts = {"study": {"name": "photon_grid"}, "grid": GRID, "data": {"file": "grid/photons_1e5.npz"},
             "model": ModelConfig(gridsize=1), "training": TrainingConfig(nepochs=2)}
    arm = start_arm(folder, {"nphotons": recorded, "seed": 0}, **facts)
    photon_grid(arm / "grid", (1e3, 1e5), GRID)
    scan = load_data(arm / "grid" / "photons_1e5.npz")
    result = estimate(scan, iterations=5)
    other = replace(result, method="other", probe=result.probe * np.linspace(0.5, 1, 64).astype(np.float32))
    scales = (9.88, learned, 12.0)
    rows = [{"epoch": k, "val_loss": 1.0 - 0.1 * k, "intensity_scale": scale} for k, scale in enumerate(scales)]
    write_json(arm / "history.json", {"header": {"kept_epoch": 1, "generator": "cnn"}, "epochs": rows})
    write_json(arm / "metrics.json", {"no_network": compare(result, scan.truth) | {"seconds": 1.0}})
    save_reconstructions(arm / "reconstruction.npz", no_network=result, other=other)
    finish_arm(arm)
    return arm


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    return make_arm(tmp_path_factory.mktemp("arms") / "arm")


def test_from_the_shell_it_says_what_is_in_the_files_and_leaves_the_arm_as_it_was(arm, tmp_path, capsys):
    assert main(["snapshot", str(arm)]) == 0
    assert "summary.md" in capsys.readouterr().out and read_arm(arm).done
    said, page = read_json(arm / "summary.json"), (arm / "summary.md").read_text()
    assert said["done"] and {row["state"] for row in said["artefacts"]} == {"as it was left"}
    for row in said["artefacts"]:
        assert hashlib.sha256((arm / row["file"]).read_bytes()).hexdigest() == row["sha256"] and row["sha256"] in page
    stated = {item["file"]: item["sha256"] for item in read_grid(arm / "grid")["data_sets"]}
    assert {row["file"]: row["sha256"] for row in said["grid"]} == stated and len(stated) == 2
    assert said["data"][0]["sha256"] == load_data(arm / "grid" / "photons_1e5.npz").checksums()
    assert {"name": "model.probe_trainable", "value": False, "legacy": "probe.trainable"} in said["parameters"]
    assert said["commands"][0].startswith("ptycho-nb run-arm photon_grid arm") and "`photon_grid`" in page
    assert said["training"]["learned_intensity_scale"] == 9.9 and said["training"]["kept_epoch"] == 1
    assert f"{said['metrics']['no_network']['amplitude']['ssim']:.4f}" in page
    assert main(["snapshot", str(arm), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.md", "summary.json"}


def test_a_probe_that_was_changed_is_told_from_a_frozen_one(arm):
    changed = snapshot(arm)["probe"]["changed"]
    assert changed["no_network"] < 1e-6 < 0.05 < changed["other"]


def test_a_record_of_another_dose_is_seen(tmp_path):
    wrong = make_arm(tmp_path / "wrong", recorded=1e9, learned=988.21)
    dose = snapshot(wrong)["dose"]
    assert dose["agrees"] is False and "wrong by a factor of 100" in dose["sentence"]
    rows = {row["name"]: row for row in dose["rows"]}
    np.testing.assert_allclose(rows["implied by the learned intensity scale"]["times_counted"], 1e4, rtol=0.3)
    np.testing.assert_allclose(rows["counted in the data"]["scale"], 9.88, rtol=0.01)


def test_the_published_scale_is_the_closed_form_of_its_record():
    assert abs(implied_dose(988.21, 64) / 1e9 - 1) < 1e-5
    np.testing.assert_allclose(implied_dose(2 * np.sqrt(1e5) / 64, 64), 1e5)
    assert dose_check(500.0, 10, 64, recorded=520.0)["agrees"] is True  # counting scatters
    assert dose_check(500.0, 10, 64, recorded=800.0)["agrees"] is False
    assert dose_check(500.0, 10, 64)["agrees"] is None


def test_what_was_changed_or_removed_afterwards_is_named(tmp_path):
    arm = make_arm(tmp_path / "arm")
    (arm / "history.json").write_text('{"header": {}, "epochs": []}')
    (arm / "grid" / "photons_1e3.npz").unlink()
    said = snapshot(arm)
    states = {row["file"]: row["state"] for row in said["artefacts"]}
    assert not said["done"] and states["history.json"] == "altered" and states["grid/photons_1e3.npz"] == "missing"
    assert {row["file"]: row["state"] for row in said["grid"]} == {
        "photons_1e3.npz": "missing", "photons_1e5.npz": "as it should be"}
    (arm / "grid" / "photons_1e5.npz").unlink()
    said = snapshot(arm)
    assert said["data"] == [] and said["probe"] == {} and said["dose"] == {}
    assert write_snapshot(arm).is_file()


def test_what_is_no_arm_is_refused(tmp_path, capsys):
    assert main(["snapshot", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="summary"):
        write_snapshot(tmp_path, name="page")
