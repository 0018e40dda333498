"""Dose and overlap: views of one scan, the scans of the study and their validator, arms of equal fluence."""
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from ptycho_nb.cli import main
from ptycho_nb.config import InputError, ModelConfig, TrainingConfig
from ptycho_nb.data.scan import RawData
from ptycho_nb.files import read_arrays, read_json, write_arrays
from ptycho_nb.network.groups import group_data
from ptycho_nb.network.supervised import train_supervised
from ptycho_nb.physics.scans import make_positions, nearest_pixel
from ptycho_nb.studies.equal_fluence import (
    FluenceArm,
    fluence_arms,
    fluence_summary,
    fluence_table,
    run_arms,
    simulate_arm,
)
from ptycho_nb.studies.overlap_data import MANIFEST, SKIPPED, build_data, validate_data, view_violations
from ptycho_nb.studies.overlap_views import (
    OverlapDesign,
    OverlapView,
    SkippedView,
    centre_overlap,
    design_view,
    image_overlap,
    keep_distance,
    make_view,
    overlap_report,
    seed_overlap,
)

QUICK = OverlapDesign.quick()
SCAN = make_positions("fermat", 400, (352, 608, 32, 608), seed=1)


@pytest.mark.parametrize("d, linear, area", [(0.0, 1.0, 1.0), (15.0, 0.5, 0.391), (30.0, 0.0, 0.0), (80.0, 0.0, 0.0)])
def test_overlap_of_two_disks(d, linear, area):
    places = np.array([[0.0, 0.0], [0.0, d]])
    pair = OverlapView("pair", places, np.array([[0, 1]]), np.arange(2), 0.0, 1)
    overlap = seed_overlap(pair, 30.0)
    assert overlap == pytest.approx({"linear": linear, "area": area}, abs=5e-4)
    overlap = centre_overlap(places, 30.0)
    assert overlap == pytest.approx({"linear": linear, "area": area, "partners": float(d < 30)}, abs=5e-4)
    if d:
        assert image_overlap(places, 30.0, 1) == pytest.approx({"linear": linear, "area": area, "removed": 0}, abs=5e-4)


def test_a_place_visited_again_counts_once():
    again = np.concatenate([SCAN, SCAN[::3], SCAN[::5]])
    view, doubled = (make_view("all", at, QUICK, gridsize=1) for at in (SCAN, again))
    assert len(doubled.groups) == len(SCAN) and len(np.unique(again[doubled.patterns], axis=0)) == len(SCAN)
    overlap, expected = image_overlap(again, 25.0), image_overlap(SCAN, 25.0)
    assert overlap["removed"] == len(again) - len(SCAN) and overlap["area"] == pytest.approx(expected["area"])
    assert overlap_report(view, 25.0)["seed_to_members"] is None


@pytest.mark.parametrize("spacing", [1e-9, 10.0, 40.0, 1e4])
@pytest.mark.parametrize("seed", [0, 7])
def test_centres_keep_their_distance_and_none_is_lost_without_need(spacing, seed):
    kept = keep_distance(SCAN, spacing, seed)
    distance = np.linalg.norm(SCAN[:, None] - SCAN[kept][None], axis=-1)
    assert np.array_equal(kept, keep_distance(SCAN, spacing, seed)) and len(np.unique(kept)) == len(kept)
    among = distance[kept] + np.diag(np.full(len(kept), np.inf))
    assert among.min(initial=np.inf) >= spacing
    assert np.all(distance.min(axis=1) < spacing), "each of the others lies too close to one that stays"


def test_exactly_at_the_spacing_is_far_enough():
    line = np.stack([np.zeros(5), 10.0 * np.arange(5)], axis=1)
    assert len(keep_distance(line, 10.0)) == 5 and len(keep_distance(line, 10.001)) < 5


def test_controls_are_what_they_say():
    view = make_view("some", SCAN, QUICK, s_img=0.5, n_groups=500)
    assert (len(view.images), len(view.groups), view.offered) == (200, 500, 500)
    assert np.isin(view.groups, view.images).all() and view.groups.shape[1] == 4
    fewer = make_view("some", SCAN, QUICK, gridsize=1, n_groups=50)
    assert fewer.groups.shape == (50, 1)
    for wrong in ({"s_img": 0.0}, {"s_img": 1.5}, {"n_groups": 0}):
        with pytest.raises(InputError):
            make_view("wrong", SCAN, QUICK, **wrong)
    with pytest.raises(InputError, match=r"sprase.*Did you mean 'sparse'"):
        design_view("sprase", SCAN, QUICK)


def test_a_view_with_too_few_groups_says_why():
    few = make_view("few", SCAN, QUICK, spacing_px=200.0)
    assert isinstance(few, SkippedView) and "of 400 groups accepted at a spacing of 200 px, fewer than 20" in few.reason
    none = make_view("none", SCAN, QUICK, s_img=0.01)
    assert isinstance(none, SkippedView) and none.reason.startswith("4 images, too few")


def test_the_design_is_that_of_the_study():
    design = OverlapDesign()
    assert design.doses == (1e3, 1e4, 1e5) and (design.N, design.gridsize, design.neighbor_count) == (128, 2, 7)
    assert (design.simulation_seed, design.grouping_seed, design.subsampling_seed) == (42, 123, 456)
    assert [design.spacing_px(f) for f in (design.dense, design.sparse)] == pytest.approx([38.4, 102.4])
    assert OverlapDesign.from_json(QUICK.to_json()) == QUICK


SMALL = OverlapDesign.quick(object_size_px=320, n_patterns=80, min_groups=3, first_dose=1e3, last_dose=1e4, n_doses=2)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap") / "scans"
    build_data(folder, SMALL)
    return folder


def test_the_scans_of_the_study_are_valid_and_made_once(scans):
    assert validate_data(scans) == []
    before = {path: path.stat().st_mtime_ns for path in scans.rglob("*")}
    manifest = build_data(scans, SMALL)
    assert {path: path.stat().st_mtime_ns for path in scans.rglob("*")} == before
    wanted = {"seed_to_members", "image_to_neighbours", "centre_to_centres", "spacing"}
    assert wanted <= set(manifest["overlap"]["test"]["sparse"])
    assert read_json(scans / SKIPPED, dict)["skipped_count"] == 0
    with pytest.raises(InputError, match="n_patterns differ"):
        build_data(scans, replace(SMALL, n_patterns=90))


def test_a_build_that_was_stopped_is_no_study_and_is_made_again(scans, tmp_path):
    stopped = tmp_path / "stopped"
    build_data(stopped, SMALL)
    (stopped / MANIFEST).unlink()
    (stopped / "nphotons=1e4" / "test.npz").write_bytes(b"half of a file")
    with pytest.raises(InputError):
        validate_data(stopped)
    assert build_data(stopped, SMALL)["files"] == read_json(scans / MANIFEST, dict)["files"]
    assert validate_data(stopped) == []


@pytest.mark.parametrize("spoil, said", [
    (lambda a: {k: v for k, v in a.items() if k != "ycoords"}, "key ycoords is missing"),
    (lambda a: a | {"diff3d": a["diff3d"].astype(np.float64)}, "diff3d is float64, not float32"),
    (lambda a: a | {"diff3d": np.square(a["diff3d"])}, "it holds intensities, not amplitudes"),
    (lambda a: a | {"diff3d": 1.1 * a["diff3d"]}, "its squares are not whole"),
    (lambda a: a | {"diff3d": a["diff3d"][:-1]}, "diff3d has the shape"),
    (lambda a: a | {"ycoords": a["ycoords"][:-1]}, "diff3d has the shape"),
    (lambda a: a | {"xcoords": a["xcoords"] + 1}, "other positions than at the lowest dose"),
    (lambda a: a | {"ycoords": a["ycoords"] - 80}, "other positions than at the lowest dose"),
])
def test_each_violation_has_its_sentence(spoil, said, scans, tmp_path):
    folder = tmp_path / "spoilt"
    build_data(folder, SMALL)
    path = folder / "nphotons=1e4" / "test.npz"
    write_arrays(path, **{k: np.asarray(v, np.float32) if k == "diff3d" and v.dtype == np.float32 else v
                          for k, v in spoil(read_arrays(path)).items()})
    violations = validate_data(folder)
    assert any("its checksum differs" in text for text in violations)
    assert any(said in text and "nphotons=1e4/test.npz" in text for text in violations), violations


def test_scans_without_positions_at_every_dose_are_named(tmp_path):
    build_data(tmp_path / "spoilt", SMALL)
    for path in (tmp_path / "spoilt").glob("nphotons=*/test.npz"):
        write_arrays(path, **{key: values for key, values in read_arrays(path).items() if key != "xcoords"})
    told = "\n".join(validate_data(tmp_path / "spoilt"))
    assert all(f"nphotons={dose}/test.npz: key xcoords is missing" in told for dose in ("1e3", "1e4"))


def test_a_view_that_lies_about_its_groups_is_found(scans):
    places = RawData.load(scans / "nphotons=1e3" / "train.npz").positions_px
    groups = read_arrays(scans / "views.npz")["train_dense"]
    assert view_violations(groups, places, 19.2, SMALL) == []
    assert "less than its spacing of 51.2 px" in view_violations(groups, places, 51.2, SMALL)[0]
    twice = groups.copy()
    twice[0, 1] = twice[0, 0]
    assert "a group holds a pattern twice" in view_violations(twice, places, 0.0, SMALL)
    assert "fewer than 3" in view_violations(groups[:2], places, 0.0, SMALL)[0]
    assert "of 80" in view_violations(groups + 40, places, 0.0, SMALL)[0]
    nine = make_view("nine", places, replace(SMALL, neighbor_count=11, gridsize=3)).groups
    assert "K = 7 neighbours, fewer than the C = 9 members of a group" in view_violations(nine, places, 0.0, SMALL)


def test_nothing_leaks_from_the_test_half(scans):
    train, test = (RawData.load(scans / "nphotons=1e4" / f"{half}.npz") for half in ("train", "test"))
    painted = np.zeros((2, 320, 320), bool)
    for which, scan in enumerate((train, test)):
        for y, x in nearest_pixel(scan.positions_px) - 32:
            painted[which, y : y + 64, x : x + 64] = True
    assert not np.any(painted[0] & painted[1]) and painted.any(axis=(1, 2)).all()

    rng = np.random.default_rng(0)
    lower = slice(np.flatnonzero(painted[1].any(axis=1))[0], None)
    shuffled = train.object.copy()
    shuffled[lower] = rng.permutation(shuffled[lower].ravel()).reshape(shuffled[lower].shape)
    assert not np.array_equal(shuffled, train.object)
    batches = []
    for truth in (train.object, shuffled):
        groups = group_data(replace(train, object=truth), ModelConfig(N=64, gridsize=2), seed=1)
        labels = np.stack([truth[y : y + 64, x : x + 64] for y, x in nearest_pixel(train.positions_px) - 32])
        batches.append({**groups.batch(np.arange(len(groups))), "labels": labels})
    assert all(np.array_equal(batches[0][name], batches[1][name]) for name in batches[0])


@pytest.mark.long
def test_labels_of_the_test_half_change_no_metric_of_a_training(scans):
    train = RawData.load(scans / "nphotons=1e4" / "train.npz")
    rng, shuffled = np.random.default_rng(0), train.object.copy()
    shuffled[160:] = rng.permutation(shuffled[160:].ravel()).reshape(shuffled[160:].shape)
    training = TrainingConfig(nepochs=2, precision="float32")
    trained = [train_supervised(replace(train, object=truth), ModelConfig(N=64), training, progress=False)
               for truth in (train.object, shuffled)]
    losses = [[(row["train_loss"], row["val_loss"]) for row in each.history["epochs"]] for each in trained]
    assert losses[0] == losses[1] and losses[0][-1] != losses[0][0]


ARMS = fluence_arms((0.0, 0.4, 0.7), range(3), (50.0,), side_px=80)


def test_every_arm_gets_the_same_light():
    for overlap in (0.0, 0.5, 0.9):
        arm = FluenceArm(overlap=overlap, side_px=96)
        scan, region = simulate_arm(arm)
        assert scan.n_patterns * scan.nphotons_mean / 96**2 == pytest.approx(arm.fluence, rel=0.01)
        assert region == simulate_arm(replace(arm, overlap=0.2))[1]
    for wrong in ({"overlap": 1.0}, {"fluence": 0.0}, {"side_px": 10}):
        with pytest.raises(InputError):
            FluenceArm(**wrong)
    with pytest.raises(InputError, match="two probes"):
        simulate_arm(FluenceArm(N=128, side_px=64))
    with pytest.raises(InputError, match="base object"):
        simulate_arm(FluenceArm(), np.ones((100, 100)))


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key not in ("seconds", "cpu_seconds")}
    return value


def test_killed_and_started_again_nothing_is_done_twice(tmp_path, request):
    work = ("import sys; from ptycho_nb.studies.equal_fluence import fluence_arms, run_arms\n"
            "run_arms(fluence_arms((0.0, 0.4, 0.7), range(3), (50.0,), side_px=80), sys.argv[1], ['no_network'])")
    process = subprocess.Popen([sys.executable, "-c", work, str(tmp_path / "killed")])
    request.addfinalizer(process.kill)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/[!.]*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/[!.]*.json")}
    assert 2 <= len(before) < len(ARMS), "killed on its way"
    rows = run_arms(ARMS, tmp_path / "killed", ["no_network"])
    assert {path: path.stat().st_mtime_ns for path in before} == before, "no arm is run twice"
    expected = run_arms(ARMS, tmp_path / "whole", ["no_network"])
    assert [without_seconds(row) for row in rows] == [without_seconds(row) for row in expected]
    killed, whole = ({path.name for path in tmp_path.glob(f"{name}/[!.]*.json")} for name in ("killed", "whole"))
    assert killed == whole
    with pytest.raises(InputError, match="another study"):
        run_arms(ARMS, tmp_path / "whole", ["no_network", "amortised"])

    summary = fluence_summary(fluence_table(rows))
    assert set(summary["seeds"]) == {3} and summary.query("overlap == 0.7")["loss"].abs().max() == 0
    with pytest.raises(InputError, match="the reference 0"):
        fluence_summary(fluence_table(rows), reference=0.5)


def run_cells(notebook, **given):
    """A study in this process: a small training in a process of its own mostly loads libraries."""
    first, *cells = [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    names = {}
    exec(first, names)
    names.update(given)
    for source in cells:
        exec(compile(source, notebook.name, "exec"), names)


JOB = Path(__file__).resolve().parent.parent / "studies_nbs" / "overlap_job.ipynb"


def test_the_steps_from_the_shell(tmp_path, capsys):
    study = str(tmp_path / "study")
    small = [word for name, value in (("object_size_px", 320), ("n_patterns", 80), ("min_groups", 3))
             for word in ("-p", name, str(value))]
    assert main(["overlap", "build", study, *small]) == 0
    assert {path.name for path in Path(study).glob("*.png")} == {"spacings_train.png", "spacings_test.png"}
    training = ["overlap", "train", study, "--view", "sparse", "-p", "nepochs", "1"]
    job = tmp_path / "study" / "jobs" / "nphotons=1e4_method=network_sparse"
    run_cells(JOB, output_dir=str(job), nphotons=1e4, method="network_sparse", nepochs=1)
    before = {path.name: path.stat().st_mtime_ns for path in job.iterdir()}
    capsys.readouterr()
    assert main(training) == 0 and "1 of 1 arms done, 1 of them before" in (said := capsys.readouterr().out)
    assert {path.name: path.stat().st_mtime_ns for path in job.iterdir()} == before
    trained = read_json(job / "metrics.json", dict)["training"]
    assert trained["targets"] == "input" and trained["weights_sha256"] in said and "wts.h5.zip: " in said
    assert main([*training[:-1], "2"]) == 2 and "nepochs = 1 there and 2" in capsys.readouterr().err
    assert main([*training[:-2], "nepoch", "2"]) == 2 and "Did you mean 'nepochs'" in capsys.readouterr().err
    assert main([*training, "--scheduler", "tcp://127.0.0.1:1"]) == 0, "nobody is asked for what is done"
    assert main(["overlap", "check-loss", "--reference", str(job), "--candidate", str(job)]) == 0
    assert main(["overlap", "check-loss", "--reference", str(job), "--candidate", study]) == 1

    assert main(["overlap", "reconstruct", study, "--methods", "no_network,networks"]) == 0
    said = capsys.readouterr().out
    assert "no_network, network_sparse, refined_sparse" in said and "supervised absent: not trained yet" in said
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("study/nphotons=1e4/made/*")}
    assert main(["overlap", "reconstruct", study, "--methods", "no_network,networks"]) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert main(["overlap", "reconstruct", study, "--methods", "no_network"]) == 0
    record = read_json(tmp_path / "study" / "nphotons=1e4" / "reconstructions.json", dict)
    assert record["made"] == ["no_network", "network_sparse", "refined_sparse"] and "supervised" in record["absent"]
    (job / "wts.h5.zip").touch()  # trained again: what was made of it is made again, and nothing else
    assert main(["overlap", "reconstruct", study, "--methods", "no_network,networks"]) == 0
    changed = {path.stem for path in written if path.stat().st_mtime_ns != written[path]}
    assert changed == {"network_sparse", "refined_sparse"}
    assert main(["overlap", "compare", study]) == 0
    manifest = read_json(tmp_path / "study" / "comparison_manifest.json", dict)
    assert (manifest["n_success"], manifest["n_failed"], len(manifest["weights_sha256"])) == (3, 0, 1)
    table = pd.read_csv(tmp_path / "study" / "comparison_metrics.csv")
    assert len(table) == 6 and table["ms_ssim"].between(0, 1).all() and table["seconds"].gt(0).all()
    assert len(pd.read_csv(tmp_path / "study" / "nphotons=1e4" / "frc_curves.csv")) > 6 * 20

    assert set(table.columns) >= {"ms_ssim", "ssim", "frc", "mae", "mse", "psnr", "limit", "training_cpu_seconds"}
    assert table.set_index("method")["training_cpu_seconds"].notna().to_dict() == {
        "no_network": False, "network_sparse": True, "refined_sparse": True}
    assert main(["overlap", "pool", study]) == 0 and "nobody can tell" in capsys.readouterr().out
    assert "| network, sparse groups, refined | " in (tmp_path / "study" / "pooled.md").read_text()
    assert main(["overlap", "pool", study, study]) == 2 and "noise seed alone" in capsys.readouterr().err

    for words, wrong in ((["train", study, "--dose", "7"], "dose: found 7"), (["build"], "no folder"),
                         (["compare", str(tmp_path)], "no run_manifest.json"),
                         (["build", study, "-p", "sprase", "0.1"], "Did you mean 'sparse'")):
        assert main(["overlap", *words]) == 2 and wrong in capsys.readouterr().err
    assert main(["overlap", "train", study, "--dry-run"]) == 0
    assert capsys.readouterr().out.split()[-1] == "nphotons=1e4_method=supervised"


@pytest.mark.long  # every start loads the libraries, every training starts a kernel
def test_the_comparison_killed_at_random_moments_goes_on_to_the_same_table(tmp_path, request):
    work = ("import sys; from ptycho_nb.studies.overlap_comparison import run_comparison\n"
            "from ptycho_nb.studies.overlap_views import OverlapDesign\n"
            "if __name__ == '__main__':\n"
            "    design = OverlapDesign.quick(object_size_px=320, n_patterns=80, min_groups=3)\n"
            "    run_comparison(sys.argv[1], design, methods=['no_network', 'networks'],\n"
            "                   settings={'nepochs': 2}, n_workers=2)\n")
    (tmp_path / "work.py").write_text(work)

    def start(name: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, str(tmp_path / "work.py"), str(tmp_path / name)])
        request.addfinalizer(process.kill)
        return process

    began = time.monotonic()
    assert start("whole").wait() == 0
    duration, seed = time.monotonic() - began, time.time_ns() % 2**32
    print(f"seed of the moments: {seed}")
    finished: dict[Path, int] = {}
    for share in np.random.default_rng(seed).uniform(0.1, 0.8, 3):
        process = start("killed")
        time.sleep(share * duration)
        process.send_signal(signal.SIGKILL)
        process.wait()
        names = ("run_manifest.json", "jobs/*/done.json", "nphotons=1e4/made/[!.]*.npz")
        there = {path: path.stat().st_mtime_ns for name in names for path in (tmp_path / "killed").glob(name)}
        assert finished.items() <= there.items(), "what was done is neither lost nor made again"
        finished = there
    assert start("killed").wait() == 0
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    timings = ["seconds", "cpu_seconds", "training_cpu_seconds"]
    folders = [tmp_path / name for name in ("whole", "killed")]
    tables = [pd.read_csv(folder / "comparison_metrics.csv").drop(columns=timings) for folder in folders]
    pd.testing.assert_frame_equal(*tables)
    bundles = [read_json(folder / "comparison_manifest.json", dict)["weights_sha256"] for folder in folders]
    assert bundles[0] == bundles[1] and len(bundles[0]) == 4
