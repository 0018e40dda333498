"""Faults are planted, and the diagnosis has to name them; a sound scan has to stay unsuspected."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ptycho_nb.config import InputError, ModelConfig, SimulationConfig, TrainingConfig
from ptycho_nb.data.formats import load_data, save_data
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.diagnosis import measurement
from ptycho_nb.diagnosis.measurement import judge_results
from ptycho_nb.diagnosis.model_checks import canvas_findings, canvas_report, lost_share
from ptycho_nb.diagnosis.reading import read_subject
from ptycho_nb.diagnosis.report import diagnose, examine, write_report
from ptycho_nb.diagnosis.scan_checks import scan_and_dose, scan_findings, scan_verdict, stored_quantity
from ptycho_nb.explorers.intensity import read_predictions
from ptycho_nb.files import read_json, write_json
from ptycho_nb.physics.detector import Detector
from ptycho_nb.physics.noise import intensity_scale
from ptycho_nb.physics.scans import validation_indices
from ptycho_nb.runs.arm_scan import scan_of_arm
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.held_out import hold_out
from ptycho_nb.solvers.residuals import residual_maps
from ptycho_nb.solvers.result import load_reconstructions, save_reconstructions

CONFIG = SimulationConfig(nphotons=1e5, probe_kind="defocused", object_size_px=192, object_phase=True, n_train=80,
                          n_test=100, seed=3)


@pytest.fixture(scope="module")
def scans():
    return simulate_halves(CONFIG)


@pytest.fixture(scope="module")
def arrays(scans):
    return scans[1].to_arrays()


def named(report: dict, severity: str | None = None) -> str:
    """What the findings of a report say, in one text."""
    return "\n".join(f"{item['section']}: {item['what']} ({item['number']}) {item['remedy']}"
                     for item in report["findings"] if severity in (None, item["severity"]))


def diagnosed(arrays: dict, folder: Path, **changes) -> dict:
    """The report on a file with some of its arrays changed."""
    return diagnose(written(arrays, folder, **changes), folder / "report")


def written(arrays: dict, folder: Path, **changes) -> Path:
    """A file with some of these arrays changed, or left out where they are None."""
    merged = {key: array for key, array in {**arrays, **changes}.items() if array is not None}
    np.savez(folder / "scan.npz", **merged)
    return folder / "scan.npz"


def told_of(path: Path, out: Path) -> dict:
    """The report without its pictures, whose writing takes longer than all that is examined."""
    examination = examine(read_subject(path))
    assert examination.figures
    examination.figures.clear()
    return write_report(examination, out)


@pytest.fixture(scope="module")
def sound(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return diagnosed(arrays, folder), folder / "report"


def test_a_sound_scan_is_not_suspected(sound):
    report, _ = sound
    assert not [item for item in report["findings"] if item["severity"] == "error"], named(report)
    sections = {"patterns", "scan", "probe", "grouping", "canvas", "axes", "intensity", "measurement"}
    assert set(report["sections"]) == sections and report["believable"]
    assert "nothing stands against" in report["verdict"] and "agree" in report["sections"]["measurement"]["verdict"]


def test_the_report_is_written_in_three_forms(sound):
    report, out = sound
    assert read_json(out / "report.json") == report
    text = (out / "report.md").read_text()
    assert text.index("## Findings") < text.index("## Scan") and "probe diameter" in text
    assert {path.stem for path in (out / "figures").iterdir()} == set(report["figures"])
    assert all((out / path).stat().st_size > 2000 for path in report["figures"].values())


def test_its_numbers_are_those_of_the_simulation(sound, scans):
    scan, data = sound[0]["sections"]["scan"], scans[1]
    distances = np.linalg.norm(data.positions_px[:, None] - data.positions_px, axis=2) + 1e9 * np.eye(data.n_patterns)
    np.testing.assert_allclose(scan["step_mean_px"], distances.min(axis=1).mean(), rtol=1e-9)
    assert abs(scan["photons_per_pattern_mean"] / 1e5 - 1) < 0.01
    overlaps = []
    for d in np.sort(distances, axis=1)[:, :3].ravel():  # two disks of that diameter, counted on a fine grid
        D = scan["probe_diameter_px"]
        y, x = np.indices((200, 400)) * D / 100 - D
        first, second = np.hypot(y, x) < D / 2, np.hypot(y, x - d) < D / 2
        overlaps.append(np.sum(first & second) / np.sum(first))
    assert abs(scan["area_overlap_of_neighbours"] - np.mean(overlaps)) < 0.01


def test_a_second_report_leaves_no_figures_of_the_first(sound, arrays, tmp_path):
    shutil.copytree(sound[1], tmp_path / "report")
    report = diagnosed(arrays, tmp_path, xcoords=np.full(100, 50.0), ycoords=np.full(100, 50.0))
    assert "scan" not in report["figures"] and not (tmp_path / "report" / "figures" / "scan.png").exists()


def test_a_probe_12_times_too_weak(arrays, tmp_path):
    report = told_of(written(arrays, tmp_path, probeGuess=arrays["probeGuess"] / 12), tmp_path / "report")
    assert "12.0 times too weak" in named(report, "warning")
    assert 0.8 < report["sections"]["intensity"]["prediction"]["too_dark"] < 1.25  # the library scales it on entry


def test_counts_stored_as_intensity(arrays, tmp_path):
    stored = written(arrays, tmp_path, diff3d=arrays["diff3d"] ** 2, metadata=None, objectGuess=None)
    report = told_of(stored, tmp_path / "report")
    assert "Counts are stored as intensity" in named(report, "error")


@pytest.mark.parametrize("nphotons", [3e2, 1e4, 1e7, 1e9])
@pytest.mark.parametrize("probe", ["disk", "defocused"])
@pytest.mark.parametrize("gain", [1.0, 0.37, 2.7])
def test_the_stored_quantity_is_known_at_every_dose_and_gain(nphotons, probe, gain):
    config = dataclasses.replace(CONFIG, nphotons=nphotons, probe_kind=probe, n_train=1, n_test=60)
    counts = np.rint(simulate_halves(config)[1].diff3d.astype(float) ** 2)
    if gain != 1:
        counts *= gain * (1 + 0.05 * np.random.default_rng(0).normal(size=(64, 64)))
    for stored, said in ((counts, "counts"), (np.sqrt(counts), "amplitude"), (counts**0.25, "fourth root of counts")):
        assert stored_quantity(stored.astype(np.float32)).quantity == said


def test_a_background_hides_the_photons_and_that_is_said(arrays, tmp_path):
    report = told_of(written(arrays, tmp_path, diff3d=np.sqrt(arrays["diff3d"] ** 2 + 0.13)), tmp_path / "report")
    assert "Whether amplitudes or counts are stored cannot be told" in named(report, "note")
    assert "stored as intensity" not in named(report)


def test_swapped_axes(arrays, tmp_path):
    swapped = {"xcoords": arrays["ycoords"], "ycoords": arrays["xcoords"], "xcoords_start": None, "ycoords_start": None,
               "objectGuess": None}
    report = told_of(written(arrays, tmp_path, **swapped), tmp_path / "report")
    assert "x and y are swapped" in named(report, "error") and "Exchange xcoords" in named(report, "error")


def test_swapped_axes_whose_patches_leave_the_object(arrays, tmp_path):
    path = written(arrays, tmp_path, xcoords=arrays["ycoords"], ycoords=arrays["xcoords"], xcoords_start=None,
                   ycoords_start=None, objectGuess=arrays["objectGuess"][:, :150])
    report = told_of(path, tmp_path / "report")
    assert "objectGuess" in named(report, "error") and "x and y are swapped" in named(report, "error")


@pytest.mark.parametrize("dose", [1e3, 1e6])
def test_right_axes_are_not_suspected(dose, tmp_path):
    data = simulate_halves(dataclasses.replace(CONFIG, nphotons=dose, probe_kind="disk"))[1]
    report = told_of(written(data.to_arrays(), tmp_path), tmp_path / "report")
    assert "swapped" not in named(report) and "axes" not in named(report)


@pytest.mark.parametrize("value, reason", [(np.inf, "infinity"), (-3.0, "negative")])
def test_one_pattern_that_cannot_be_used(arrays, value, reason, tmp_path):
    patterns = arrays["diff3d"].copy()
    patterns[41, 5, 6] = value
    report = told_of(written(arrays, tmp_path, diff3d=patterns), tmp_path / "report")
    (finding,) = (item for item in report["findings"] if item["severity"] == "error")
    assert "41" in finding["what"] and reason in finding["what"] and "Drop" in finding["remedy"]
    assert not report["believable"]
    assert report["sections"]["scan"]["n_patterns"] == 99 and "intensity" in report["sections"]


def test_one_position_that_is_not_a_number_and_patterns_last(arrays, tmp_path):
    x = arrays["xcoords"].copy()
    x[7] = np.nan
    path = written(arrays, tmp_path, xcoords=x, diff3d=np.moveaxis(arrays["diff3d"], 0, -1))
    report = told_of(path, tmp_path / "report")
    assert "Pattern 7 has NaN" in named(report, "error") and report["sections"]["scan"]["n_patterns"] == 99


def test_positions_in_metres(arrays, tmp_path):
    scaled = {key: arrays[key] * 9e-9 for key in ("xcoords", "ycoords", "xcoords_start", "ycoords_start")}
    report = diagnosed(arrays, tmp_path, **scaled)
    assert "positions look like metres" in named(report, "error") and "pixel size" in named(report, "error")
    assert "metres" in report["verdict"]


def test_positions_in_micrometres(arrays, tmp_path):
    scaled = {key: arrays[key] * 9e-3 for key in ("xcoords", "ycoords", "xcoords_start", "ycoords_start")}
    report = diagnosed(arrays, tmp_path, objectGuess=None, **scaled)
    assert "micrometres" in named(report) or "in another unit" in named(report)


def test_positions_in_nanometres_do_not_fill_the_memory(arrays, tmp_path):
    scaled = {key: arrays[key] * 1e4 for key in ("xcoords", "ycoords", "xcoords_start", "ycoords_start")}
    report = diagnosed(arrays, tmp_path, objectGuess=None, **scaled)
    assert "nanometres" in named(report, "error") and "grouping" in report["sections"]


def test_all_positions_alike(arrays, tmp_path):
    report = diagnosed(arrays, tmp_path, xcoords=np.full(100, 60.0), ycoords=np.full(100, 60.0))
    assert "All positions are alike" in named(report, "error") and "one place" in named(report, "warning")


def test_two_patterns_are_too_few_for_gridsize_2(arrays, tmp_path):
    per_pattern = ("xcoords", "ycoords", "diff3d", "scan_index", "xcoords_start", "ycoords_start")
    report = diagnosed(arrays, tmp_path, **{key: arrays[key][:2] for key in per_pattern})
    assert "2 points" in named(report) and "at least 4" in named(report)


def test_no_light_at_all(arrays, tmp_path):
    report = diagnosed(arrays, tmp_path, diff3d=0 * arrays["diff3d"])
    assert "without a photon" in named(report, "error")


def test_hardly_any_overlap(scans):
    data = scans[1].subset(np.array([0, 1, 2, 3, 4]))
    positions_px = np.array([[100.0, 100], [100, 124], [124, 100], [124, 124], [124, 148]])
    data = dataclasses.replace(data, positions_px=positions_px, object=None)
    numbers = scan_and_dose(data)
    verdict = scan_verdict(numbers, scan_findings(numbers, gridsize=2))
    overlap = f"area overlap of 3 neighbours {numbers.area_overlap_of_neighbours:.0%}"
    assert verdict.startswith(f"{overlap}: too little for gridsize 2")
    whole = scan_verdict(scan_and_dose(scans[1]), [])
    assert whole.startswith(f"overlap of nearest neighbours {scans[1].facts()['overlap of nearest neighbours']}, ")


def test_other_refusals_become_findings(arrays, tmp_path):
    report = diagnosed(arrays, tmp_path, xcoords=None)
    assert "xcoords" in named(report, "error") and report["sections"] == {}
    (tmp_path / "scan.npz").write_bytes(b"no npz")
    assert "damaged" in named(diagnose(tmp_path / "scan.npz", tmp_path / "report"), "error")
    with pytest.raises(InputError, match="no such file"):
        diagnose(tmp_path / "nowhere.npz", tmp_path / "report")
    with pytest.raises(InputError, match=r"no config\.json"):
        diagnose(tmp_path, tmp_path / "report")


def test_an_estimated_probe_says_nothing_of_the_overlap(arrays, tmp_path):
    report = diagnosed(arrays, tmp_path, probeGuess=None)
    assert "overlap cannot be told" in named(report, "note") and "holes" not in named(report, "warning")
    assert "probe_diameter_px" not in report["sections"]["scan"]


def test_a_canvas_of_78_px_loses_what_is_counted_pixel_by_pixel():
    rng = np.random.default_rng(0)
    offsets_px = rng.integers(-25, 26, (40, 4, 2)).astype(float)
    power = rng.random((64, 64))
    kept = 0.0
    for y, x in offsets_px.reshape(-1, 2).astype(int):
        canvas = np.zeros((300, 300))
        canvas[150 + y - 32 : 150 + y + 32, 150 + x - 32 : 150 + x + 32] = power
        kept += canvas[150 - 39 : 150 + 39, 150 - 39 : 150 + 39].sum()
    np.testing.assert_allclose(lost_share(offsets_px, 78, power), 1 - kept / (160 * power.sum()), rtol=1e-9)
    report = canvas_report(offsets_px, np.sqrt(power), 78)
    assert report.needed_px == 64 + 2 * 25 and not report.fits and "78 px" in canvas_findings(report)[0].what
    assert not canvas_findings(canvas_report(offsets_px, np.sqrt(power), 114))


@pytest.fixture(scope="module")
def arm(scans, tmp_path_factory):
    """The folder of an arm, with what a study leaves behind except a trained network."""
    folder = tmp_path_factory.mktemp("arm")
    train, test = scans
    seeds = {"train_seed": 5, "validation_seed": 6}
    training = TrainingConfig(train_seed=5)
    write_json(folder / "config.json", {"parameters": {}, "simulation": CONFIG, "model": ModelConfig(gridsize=2),
                                        "training": training, "seeds": seeds})
    s = intensity_scale(train.diff3d)
    row = {"train_loss": 0.1, "val_loss": 0.1, "intensity_scale": s, "nan_count": 0}
    epochs = [{"epoch": k, **row} for k in (0, 1)]
    write_json(folder / "history.json", {"header": {"canvas_px": 136, "kept_epoch": 1}, "epochs": epochs})
    validation = validation_indices(test.n_patterns, 0.1, 6)
    save_reconstructions(folder / "reconstruction.npz", no_network=estimate(test, held=hold_out(test, validation)))
    return folder


def changed(arm: Path, folder: Path) -> Path:
    shutil.copytree(arm, folder)
    return folder


def test_a_sound_arm_is_not_suspected(arm, tmp_path):
    report = diagnose(arm, tmp_path / "report")
    assert not [item for item in report["findings"] if item["severity"] == "error"], named(report)
    assert {"scan", "canvas", "intensity", "bias", "training"} <= set(report["sections"]) and report["kind"] == "arm"
    assert report["sections"]["bias"]["no_network"]["pearson"] > 0.9
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report


def test_the_patterns_that_judge_are_those_that_the_arm_held_out(arm, tmp_path):
    """A study may hold out another share than a tenth: judged by that tenth, some of the patterns were fitted."""
    np.testing.assert_array_equal(read_subject(arm).validation, validation_indices(CONFIG.n_test, 0.1, 6))
    other = changed(arm, tmp_path / "arm")
    config = read_json(other / "config.json")
    write_json(other / "config.json", {**config, "training": {**config["training"], "validation_fraction": 0.3}})
    subject = read_subject(other)
    np.testing.assert_array_equal(subject.validation, validation_indices(CONFIG.n_test, 0.3, 6))
    assert len(subject.validation) == 30 and "scan" in examine(subject).figures


def test_an_arm_whose_positions_were_refined_keeps_its_scan(arm, tmp_path):
    other = changed(arm, tmp_path / "arm")
    result = load_reconstructions(other / "reconstruction.npz")["no_network"]
    middle_px = result.positions_px.mean(axis=0)
    shifted = dataclasses.replace(result, positions_px=middle_px + 0.95 * (result.positions_px - middle_px))
    save_reconstructions(other / "reconstruction.npz", no_network=shifted)
    assert scan_of_arm(other).name_for(shifted) == "test" and len(read_predictions(other).measured) == 64


def test_an_arm_with_a_canvas_of_78_px(arm, tmp_path):
    faulty = changed(arm, tmp_path / "arm")
    history = read_json(faulty / "history.json")
    write_json(faulty / "history.json", {**history, "header": {**history["header"], "canvas_px": 78}})
    report = told_of(faulty, tmp_path / "report")
    assert "A canvas of 78 px is too small" in named(report, "error") and "of the pixels" in named(report, "error")
    assert 0 < report["sections"]["canvas"]["groups"]["lost"]["78"]["pixels"] < 1


def test_an_arm_whose_probe_is_12_times_too_weak(arm, tmp_path):
    faulty = changed(arm, tmp_path / "arm")
    result = load_reconstructions(faulty / "reconstruction.npz")["no_network"]
    save_reconstructions(faulty / "reconstruction.npz", no_network=dataclasses.replace(result, probe=result.probe / 12))
    report = told_of(faulty, tmp_path / "report")
    assert "12.0 times too dark" in named(report, "error") and "one constant explains it" in named(report, "error")


def test_an_arm_with_the_scale_of_another_dose(arm, tmp_path):
    faulty = changed(arm, tmp_path / "arm")
    history = read_json(faulty / "history.json")
    epochs = [{**row, "intensity_scale": 988.21} for row in history["epochs"]]
    write_json(faulty / "history.json", {**history, "epochs": epochs})
    assert "another intensity scale" in named(told_of(faulty, tmp_path / "report"), "warning")


def test_arms_that_are_not_whole(arm, tmp_path):
    faulty = changed(arm, tmp_path / "arm")
    (faulty / "reconstruction.npz").unlink()
    report = diagnose(faulty, tmp_path / "report")
    assert "no reconstruction" in named(report, "warning") and "quick_estimate" in report["figures"]
    config = read_json(faulty / "config.json")
    write_json(faulty / "config.json", {key: value for key, value in config.items() if key != "simulation"})
    report = diagnose(faulty, tmp_path / "report")
    assert "cannot be made again" in named(report) and set(report["sections"]) == {"training"}
    write_json(faulty / "config.json", {**config, "parameters": {"data_path": "/nowhere/scan.npz"}})
    assert "no such file" in named(diagnose(faulty, tmp_path / "report"), "error")


def test_an_arm_whose_reconstruction_is_of_another_scan(arm, tmp_path):
    faulty = changed(arm, tmp_path / "arm")
    config = read_json(faulty / "config.json")
    write_json(faulty / "config.json", {**config, "simulation": {**config["simulation"], "n_test": 40}})
    assert "belongs to another scan" in named(told_of(faulty, tmp_path / "report"), "error")


def only_a_hot_pixel(report):
    """One pixel of its detector counts too much, and nothing else is wrong."""
    warned = named(report, "warning")
    return not named(report, "error") and warned.count("measurement:") == 1 and "left out: 1 hot (" in warned


@pytest.mark.long
def test_the_measured_star(measured_star, tmp_path):
    report = diagnose(measured_star, tmp_path)
    scan = report["sections"]["scan"]
    assert only_a_hot_pixel(report)
    assert 4.6e5 < scan["photons_per_pattern_mean"] < 4.62e5 and scan["counts_per_pixel_max"] == pytest.approx(963)
    assert 55 < scan["probe_diameter_px"] < 57 and 8.1 < scan["step_mean_px"] < 8.3
    assert report["sections"]["axes"]["best"] == "as given"


@pytest.mark.long
def test_the_middle_of_the_measured_star(measured_star, tmp_path):
    whole = load_data(measured_star)
    distance_px = np.linalg.norm(whole.positions_px - np.median(whole.positions_px, axis=0), axis=1)
    part = whole.subset(np.sort(np.argsort(distance_px)[:48]))
    report = diagnose(save_data(tmp_path / "part.npz", part), tmp_path)
    scan = report["sections"]["scan"]
    assert not named(report, "error")
    assert 55 < scan["probe_diameter_px"] < 57 and 8.4 < scan["step_mean_px"] < 8.8
    assert report["sections"]["axes"]["best"] == "as given"
    assert report["sections"]["patterns"]["quantity"] == "amplitude"
    assert 0.9 < report["sections"]["intensity"]["prediction"]["too_dark"] < 1.1


def test_a_scan_that_is_not_to_be_believed_fails_the_command(arrays, tmp_path, capsys):
    from ptycho_nb.cli import main

    faulty = arrays["diff3d"].copy()
    faulty[:, 20, 41] = 60  # in a scan that says that it was simulated, so that nothing is mended
    np.savez(tmp_path / "hot.npz", **{**arrays, "diff3d": faulty})
    assert main(["diagnose", str(tmp_path / "hot.npz"), "--out", str(tmp_path / "hot")]) == 3
    said = capsys.readouterr().out
    assert "not to be believed" in said and "(20, 41)" in said and "nothing stands against" not in said


def test_a_fault_names_itself_after_a_training_as_well(scans, arm, tmp_path, monkeypatch):
    """The results of an arm are judged as they are: one was spoilt by a hot pixel, both by a mixed-up pattern."""
    test = scans[1]
    faulty = test.diff3d.copy()
    faulty[:, 20, 41], faulty[30] = 60, faulty[70]
    faulty = dataclasses.replace(test, diff3d=faulty)
    good = np.ones((64, 64), bool)
    good[20, 41] = False
    masked = dataclasses.replace(faulty, detector=Detector(good))
    held = hold_out(faulty, read_subject(arm).validation)
    results = {"network": estimate(faulty, held=held, iterations=20),
               "no_network": estimate(masked, held=held, iterations=40)}
    judged = judge_results(results, faulty, held.patterns)
    told = named({"findings": [finding.to_dict() for finding in judged.findings]})
    assert "network: The fit is not to be believed" in told and "no network: The fit" not in told
    assert re.search(r"residuals sit in \d+ pixels? of the detector: \(y, x\) = \(20, 41\)", told)
    assert judged.numbers["no_network"]["ratio"] < 1.6 < judged.numbers["network"]["ratio"]
    mapped = []
    monkeypatch.setattr(measurement, "residual_maps",
                        lambda result, *others: mapped.append(result) or residual_maps(result, *others))
    judge_results(dict(reversed(results.items())), faulty, held.patterns)
    assert mapped[-1] is results["network"]  # its remedy comes from its own residuals
    monkeypatch.undo()
    other = judge_results({"no_network": results["no_network"]}, faulty, held.patterns)
    assert any(re.search(r"strongest at patterns?.* 30\b", finding.what) for finding in other.findings), other.findings
    save_reconstructions(changed(arm, tmp_path / "arm") / "reconstruction.npz", network=results["network"])
    report = diagnose(tmp_path / "arm", tmp_path / "report")
    assert "residuals_of_results" in report["figures"] and report["sections"]["results"]["network"]["ratio"] > 1.1
