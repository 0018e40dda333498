"""Reports: what arms of every state become in tables, words and figures."""
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ptycho_nb.analysis.metrics import compare, data_fit
from ptycho_nb.config import InputError, ModelConfig, SimulationConfig, derive_seeds
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.files import read_json, write_arrays, write_json
from ptycho_nb.physics.scans import validation_indices
from ptycho_nb.runs.arms import arm_name, finish_arm, read_arm, start_arm
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.gauge import aligned_pair
from ptycho_nb.solvers.held_out import hold_out
from ptycho_nb.solvers.result import covered_region, load_reconstructions, save_reconstructions
from ptycho_nb.studies.dose_images import certainty_table, dark_pixel_table, draw_dose_study, halves_of
from ptycho_nb.studies.dose_statistics import (
    difference_sentence,
    discuss,
    dose_efficiency,
    dose_needed,
    efficiency_sentences,
    expectation_sentence,
    paired_difference,
    spread,
)
from ptycho_nb.studies.reports import (
    certainty_sentences,
    method_scores,
    report,
    settings_of,
    training_sentences,
    why_sentences,
)
from ptycho_nb.studies.results import results_table

DOSES, LOSSES, SEEDS = (1e6, 1e4), ("nll", "mae"), (1, 2)


def make_arm(folder: Path, finished: bool = True, **parameters) -> Path:
    """An arm as dose.ipynb leaves it, but for the network: the likelihood solver, sharp or smooth, plays its part."""
    parameters = {"nphotons": 1e4, "loss": "nll", "seed": 1, "probe_path": ""} | parameters
    simulation = SimulationConfig(nphotons=parameters["nphotons"], seed=parameters["seed"], object_seed=7, scan_seed=8,
                                  object_size_px=200, n_train=5, n_test=120)
    seeds = derive_seeds(parameters["seed"], object_seed=7, scan_seed=8)
    arm = start_arm(folder / arm_name({name: parameters[name] for name in ("nphotons", "loss", "seed")}),
                    parameters | {"output_dir": str(folder)}, simulation=simulation, model=ModelConfig(), seeds=seeds)
    epochs = [{"epoch": k, "train_loss": 0.5 - 0.1 * k if k else None, "val_loss": 0.5 - 0.1 * k,
               "intensity_scale": 2.0 - 0.01 * k, "nan_count": 0, "seconds": 1.0} for k in range(3)]
    write_json(arm / "history.json", {"header": {"kept_epoch": 2}, "epochs": epochs})
    if not finished:
        return arm
    _, test = simulate_halves(simulation)
    validation = validation_indices(test.n_patterns, 0.1, seeds["validation_seed"])
    smoothing_px = (2.0 if parameters["loss"] == "mae" else 0.7,)
    results = {"network": estimate(test, held=hold_out(test, validation), smoothing_px=smoothing_px, iterations=8),
               "no_network": estimate(test, held=hold_out(test, validation), iterations=8)}
    metrics = {name: compare(item, test.truth) | {"seconds": item.seconds} for name, item in results.items()}
    metrics["network"]["training"] = {"kept_epoch": 2, "precision": "float32"}
    metrics["data_fit"] = {name: data_fit(item, test, validation) for name, item in results.items()}
    write_json(arm / "metrics.json", metrics)
    save_reconstructions(arm / "reconstruction.npz", **results)
    finish_arm(arm)
    return arm


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Eight finished arms and their report."""
    folder = tmp_path_factory.mktemp("sweep")
    for nphotons in DOSES:
        for loss in LOSSES:
            for seed in SEEDS:
                make_arm(folder, nphotons=nphotons, loss=loss, seed=seed)
    report(folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the arms, to be harmed."""
    return Path(shutil.copytree(finished, tmp_path / "sweep", ignore=shutil.ignore_patterns("report")))


@pytest.fixture
def few(finished, tmp_path):
    """A copy of the four arms of one loss: most of what a report takes is the drawing of figures."""
    return Path(shutil.copytree(finished, tmp_path / "few", ignore=shutil.ignore_patterns("report", "*loss=mae*")))


# tables


def test_every_number_of_metrics_json_is_in_the_table(finished):
    csv, parquet = (read(finished / "report" / f"results.{kind}")
                    for kind, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)))
    assert len(csv) == len(parquet) == 8 and set(csv["state"]) == {"done"}
    for table in (csv, parquet):
        for _, row in table.iterrows():
            arm = read_arm(finished / row["arm"])
            numbers = 0
            for method in ("network", "no_network"):
                for part in ("amplitude", "phase"):
                    for name, value in arm.metrics[method][part].items():
                        assert row[f"{method}.{part}.{name}"] == value  # to the last digit
                        numbers += 1
                assert row[f"data_fit.{method}.nll_per_pixel"] == arm.metrics["data_fit"][method]["nll_per_pixel"]
                assert row[f"{method}.gauge.shift_px.1"] == arm.metrics[method]["gauge"]["shift_px"][1]
            assert numbers >= 16
            assert row["nphotons"] == arm.config["parameters"]["nphotons"] and row["loss"] in LOSSES
            assert row["seeds.noise_seed"] == arm.config["seeds"]["noise_seed"]
            assert row["training.last_val_loss"] == arm.history["epochs"][-1]["val_loss"]
            assert "output_dir" not in row.index


def test_the_same_arms_give_the_same_bytes(finished, tmp_path):
    again = report(finished, out=tmp_path / "again")
    for name in ("results.csv", "summary.md"):
        assert (again / name).read_bytes() == (finished / "report" / name).read_bytes()


def test_arms_are_in_the_order_of_their_doses(finished):
    assert list(results_table(finished)["nphotons"]) == [1e4] * 4 + [1e6] * 4


def test_what_no_training_touched_is_counted_once(finished):
    scores = method_scores(results_table(finished))
    assert len(scores[scores["method"] == "network"]) == 8
    assert list(scores[scores["method"] == "no_network"]["loss"]) == [""] * 4


def test_other_parameters_are_never_averaged_over(few):
    for nphotons in DOSES:  # the same arms with another grid size beside them
        for arm in sorted(few.glob(f"{arm_name({'nphotons': nphotons})}*")):
            other = Path(shutil.copytree(arm, few / f"{arm.name}_gridsize=1"))
            config = read_json(other / "config.json")
            config["parameters"]["gridsize"] = 1
            write_json(other / "config.json", config)
            finish_arm(other)
            config["parameters"]["gridsize"] = 2
            write_json(arm / "config.json", config)
            finish_arm(arm)
    settings = settings_of(results_table(few))
    assert {name: len(arms) for name, arms in settings.items()} == {"gridsize=1": 4, "gridsize=2": 4}
    written = report(few)
    names = {path.name for path in (written / "figures").iterdir()}
    assert {"dose_curve_gridsize=1.png", "dose_curve_gridsize=2.png"} <= names
    assert "## gridsize=1" in (written / "summary.md").read_text()


# states


def test_a_finished_sweep_says_so(finished):
    summary = (finished / "report" / "summary.md").read_text()
    assert "8 arms: 8 done." in summary and "left out" not in summary and "Not everything" not in summary
    means = spread(method_scores(results_table(finished)), "ssim")
    mean = means.query("method == 'network' and loss == 'nll' and nphotons == 1e4")
    shown = f"{mean['mean'].item():.3f} ± {mean['std'].item():.3f}"
    assert f"| 1e4 | network, NLL | 2 | **{shown}** |" in summary, "the best of a dose is bold"
    answer = summary.splitlines()[2]
    assert answer.startswith("**Answer.** Best by amplitude SSIM: at 1e4 photons per pattern **network, NLL** with ")
    assert f"{mean['mean'].item():.3f} (95 % interval " in answer and "2 seeds" in answer
    for name in re.findall(r"!\[.*\]\((.*)\)", summary):
        assert (finished / "report" / name).is_file()


def test_a_half_finished_sweep_says_what_is_missing(copied):
    names = sorted(path.name for path in copied.iterdir())
    shutil.rmtree(copied / names[0])
    (copied / names[1] / "done.json").unlink()
    (copied / names[2] / "done.json").unlink()
    states = {names[0]: "waiting", names[1]: "failed", names[2]: "running"}
    entries = [{"name": name, "parameters": {"nphotons": 1e4}, "state": states.get(name, "done"), "seconds": 1.5}
               for name in names]
    entries[1]["error"] = "Traceback …\nMemoryError: no | room"
    write_json(copied / "manifest.json", {"notebook": "dose.ipynb", "arms": entries})

    written = report(copied)
    summary, table = (written / "summary.md").read_text(), pd.read_csv(written / "results.csv")
    assert "8 arms: 5 done, 1 failed, 1 running, 1 waiting." in summary
    assert f"| {names[1]} | failed | MemoryError: no \\| room |" in summary and f"| {names[0]} | waiting |" in summary
    assert list(table["arm"]) == names and list(table["state"]) == [states.get(name, "done") for name in names]
    assert table.loc[table["state"] != "done", "network.amplitude.ssim"].isna().all(), "half an arm has no results"
    assert table.loc[table["state"] == "done", "seconds"].eq(1.5).all()
    assert "`dose_comparison` is left out: it needs networks trained with NLL and with MAE at two doses" in summary
    assert not (written / "figures" / "dose_comparison.png").exists()


def test_a_figure_of_an_earlier_report_does_not_stay(few):
    written = report(few)
    assert (written / "figures" / "dose_curve.png").exists()
    for arm in few.glob("nphotons=1e6*"):
        shutil.rmtree(arm)
    report(few)
    assert not (written / "figures" / "dose_curve.png").exists()


@pytest.mark.parametrize(("name", "harm", "state"), [
    ("metrics.json", lambda path: path.write_text(path.read_text().replace("0.", "0.9", 1)), "altered"),
    ("reconstruction.npz", Path.unlink, "altered"),
    ("done.json", Path.unlink, "unfinished"),
    ("config.json", lambda path: path.write_text("{"), "damaged"),
    ("metrics.json", lambda path: path.write_text("{"), "damaged"),
])
def test_a_harmed_arm_is_named_and_does_not_count(copied, name, harm, state):
    arm = copied / "nphotons=1e4_loss=mae_seed=1"
    harm(arm / name)
    table = results_table(copied).set_index("arm")
    assert table.loc[arm.name, "state"] == state and (table["state"] == "done").sum() == 7
    if state != "unfinished":
        assert name in table.loc[arm.name, "error"]
    assert arm.name not in set(method_scores(table.reset_index().query("state == 'done'"))["arm"])


def test_a_damaged_arm_does_not_stop_the_report(few):
    arm = few / "nphotons=1e4_loss=nll_seed=1"
    (arm / "history.json").write_text("[")
    (arm / "metrics.json").write_text("nonsense")
    assert f"| {arm.name} | damaged | " in (report(few) / "summary.md").read_text()


def test_no_arm_done_is_a_report_of_its_own(tmp_path):
    make_arm(tmp_path, finished=False)
    summary = (report(tmp_path) / "summary.md").read_text()
    assert "1 arms: 0 done, 1 unfinished." in summary and "nothing to show" in summary


def test_a_folder_without_arms_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(InputError, match="no arms"):
        report(tmp_path)
    assert not (tmp_path / "report").exists()
    arm = make_arm(tmp_path, finished=False)
    with pytest.raises(InputError, match=r"an arm itself.*the folder above"):
        report(arm)


def test_arms_of_another_study_get_a_table_and_no_dose_figures(tmp_path):
    for name, value in (("one", 1.0), ("two", 2.0)):
        arm = start_arm(tmp_path / name, {"step": value})
        write_json(arm / "metrics.json", {"data_fit": {"no_network": {"nll_per_pixel": value}}})
        finish_arm(arm)
    written = report(tmp_path)
    assert list(pd.read_csv(written / "results.csv")["data_fit.no_network.nll_per_pixel"]) == [1.0, 2.0]
    assert "belong to another study" in (written / "summary.md").read_text()


# figures


def test_the_figures_are_there_in_print_quality(finished):
    figures = finished / "report" / "figures"
    names = ("dose_comparison", "dose_methods", "dose_curve", "frc", "training", "seed_spread")
    assert {path.name for path in figures.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert (figures / "dose_comparison.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(figures / "dose_comparison.png") as image:
        assert round(image.info["dpi"][0]) == 300 and image.width > 1800


def test_six_panels_show_what_the_arms_hold(finished):
    table = results_table(finished)
    figure = dict(draw_dose_study(table, method_scores(table), finished))["dose_comparison"]
    panels = figure.axes[:6]
    assert [axes.get_title() for axes in panels[:3]] == ["diffraction", "network, MAE", "network, NLL"]
    norms = [axes.images[0].norm for axes in (panels[0], panels[3])]
    assert norms[0] is norms[1], "both doses share the colours of their patterns"
    for row, nphotons in enumerate(DOSES):
        high, low = (panels[3 * row + column].images[0] for column in (1, 2))
        assert high.get_clim() == low.get_clim(), "a row shares its amplitude scale"
        for column, loss in ((1, "mae"), (2, "nll")):
            arm = finished / arm_name({"nphotons": nphotons, "loss": loss, "seed": 1})
            axes = panels[3 * row + column]
            scores = read_json(arm / "metrics.json")["network"]["amplitude"]
            written = axes.texts[0].get_text()
            assert f"SSIM {scores['ssim']:.3f}" in written and f"FRC50 {scores['frc50']:.2f}" in written
            result = load_reconstructions(arm / "reconstruction.npz")["network"]
            aligned = np.abs(aligned_pair(result, halves_of(arm)[1].truth)[0])
            side = axes.images[0].get_array().shape[0]
            top, left = ((length - side) // 2 for length in aligned.shape)
            np.testing.assert_array_equal(axes.images[0].get_array(), aligned[top : top + side, left : left + side])


def test_patterns_are_made_again_to_the_last_bit(finished):
    arm = finished / "nphotons=1e4_loss=nll_seed=2"
    _, test = halves_of(arm)
    _, again = simulate_halves(SimulationConfig(nphotons=1e4, seed=2, object_seed=7, scan_seed=8, object_size_px=200,
                                                n_train=5, n_test=120))
    np.testing.assert_array_equal(test.diff3d, again.diff3d)
    seeds = derive_seeds(2, object_seed=7, scan_seed=8)
    fit = data_fit(load_reconstructions(arm / "reconstruction.npz")["network"], test,
                   validation_indices(120, 0.1, seeds["validation_seed"]))
    assert fit == read_json(arm / "metrics.json")["data_fit"]["network"], "the arm was made from these very patterns"


def test_one_dose_and_one_seed_leave_out_what_they_cannot_show(tmp_path):
    for loss in LOSSES:
        make_arm(tmp_path, loss=loss)
    table = results_table(tmp_path)
    figures = dict(draw_dose_study(table, method_scores(table), tmp_path))
    assert isinstance(figures["frc"], Figure) and isinstance(figures["training"], Figure)
    assert "two doses" in figures["dose_comparison"] and "at least 2" in figures["dose_curve"]
    assert "two seeds" in figures["seed_spread"]
    summary = (report(tmp_path) / "summary.md").read_text()
    assert "cannot be said" in summary and summary.count("one seed") == 1


def test_an_arm_that_loaded_its_scan_has_tables_and_says_why_no_images(few):
    for arm in few.glob("nphotons=*"):
        config = read_json(arm / "config.json")
        del config["simulation"]
        write_json(arm / "config.json", config)
        finish_arm(arm)
    summary = (report(few) / "summary.md").read_text()
    assert "4 arms: 4 done." in summary
    assert "`frc` is left out: config.json of" in summary and "no simulation" in summary


# statistics


NLL, MAE = ("network", "nll"), ("network", "mae")


def study(share: float, luck=(0.0, 0.01, -0.005), chance=0.0) -> pd.DataFrame:
    """Scores of two methods, the second of which needs `share` times the photons; `chance` moves it alone."""
    return pd.DataFrame([
        {"method": "network", "loss": loss, "nphotons": nphotons, "seed": str(seed),
         "frc50": 0.1 + 0.1 * np.log10(nphotons / 100 / factor) + lucky + chance * seed * (loss == "mae")}
        for loss, factor in (("nll", 1.0), ("mae", share)) for nphotons in 10.0 ** np.arange(2, 10)
        for seed, lucky in enumerate(luck)])


@pytest.mark.parametrize("share", [0.2, 1.0, 1.7, 12.0])
def test_a_known_photon_factor_is_found(share):
    rows = dose_efficiency(study(share)).query("bound == '='")
    assert len(rows) >= 6
    np.testing.assert_allclose(rows[["factor", "low", "high"]], share, rtol=1e-9)


def test_the_interval_is_that_of_the_seeds():
    rows = dose_efficiency(study(3.0, luck=(0.0, 0.0, 0.0), chance=0.02)).query("bound == '=' and nphotons > 1e3")
    # A seed's luck of 0.02 is worth a fifth of a decade on a curve of slope 0.1.
    expected = [3 * 10 ** (-0.2 * seed) for seed in (2, 0)]
    np.testing.assert_allclose(rows[["low", "high"]].drop_duplicates().iloc[0], expected, rtol=1e-9)
    np.testing.assert_allclose(rows["factor"], 3 * 10**-0.2, rtol=1e-9)


def test_bounds_are_not_made_into_numbers():
    rows = dose_efficiency(study(1e3))  # three decades worse
    assert list(rows["bound"]) == ["="] * 5 + [">"] * 3 and np.isinf(rows["high"].iloc[-1])
    assert "does not reach it at any dose up to 1e9" in efficiency_sentences(study(1e3), NLL, MAE)[-1]
    rows = dose_efficiency(study(1e-3))
    assert list(rows["bound"])[:3] == ["<="] * 3 and rows["low"].iloc[0] == 0
    assert "more already at the lowest dose, 1e2" in efficiency_sentences(study(1e-3), NLL, MAE)[0]


def test_one_seed_has_no_interval_and_seeds_are_paired():
    scores = study(2.0)
    alone = scores[(scores["loss"] == "nll") | (scores["seed"] == "0")]
    rows = dose_efficiency(alone)
    assert set(rows["n"]) == {1} and rows["low"].isna().all()
    assert dose_efficiency(scores[(scores["loss"] == "nll") == (scores["seed"] == "0")]).empty, "no seed in common"


def test_the_first_crossing_counts():
    assert dose_needed([10, 100, 1000], [0.1, 0.1, 0.3], 0.2) == (pytest.approx(10**2.5), "=")
    assert dose_needed([10, 100, 1000], [0.2, 0.1, 0.3], 0.2) == (10, "=")


def test_beyond_the_spread_needs_one_sign_and_size():
    rows = {"nll": (0.30, 0.31, 0.32), "mae": (0.20, 0.22, 0.21)}

    def scores(**values):
        return pd.DataFrame([{"method": "network", "loss": loss, "nphotons": 1e4, "seed": str(k), "frc50": value}
                             for loss, of in values.items() for k, value in enumerate(of)])

    (row,) = paired_difference(scores(**rows), NLL, MAE).to_dict("records")
    assert row["mean"] == pytest.approx(0.1) and row["std"] == pytest.approx(0.01) and row["beyond"]
    assert not paired_difference(scores(nll=(0.3, 0.3, 0.2), mae=(0.2, 0.2, 0.21)), NLL, MAE)["beyond"].item()
    assert not paired_difference(scores(nll=(0.3,), mae=(0.2,)), NLL, MAE)["beyond"].item()


def test_the_words_follow_the_numbers():
    better, worse = (discuss(study(share))["NLL or MAE?"][0] for share in (3.0, 1 / 3.0))
    assert "*network, NLL* is higher at 1e2" in better and "*network, MAE* is higher at 1e2" in worse
    same, losses = study(1.0), (("network", "nll"), ("network", "mae"))
    assert discuss(same)["NLL or MAE?"][0].startswith("The same to three digits in FRC50, at every dose: ")
    assert "at no dose beyond the spread over 3 seeds" in difference_sentence(same, *losses)


def test_a_network_that_learned_nothing_is_named():
    arms = pd.DataFrame({
        "arm": ["a", "b"], "training.epochs": [3, 3], "training.nan_count": [0, 2],
        "training.first_train_loss": [2.0, 1.0], "training.last_train_loss": [1.0, 1.5],
        "training.first_val_loss": [2.0, 1.0], "training.last_val_loss": [1.0, 1.5],
        "network.training.kept_epoch": [3, 0],
        "training.first_intensity_scale": [1.0, 2.0], "training.last_intensity_scale": [1.1, 2.0]})
    text = " ".join(training_sentences(arms))
    assert "last training loss is below the first in 1 of 2 trainings; not in b." in text
    assert "In 1 of 2 trainings no epoch" in text and "not a number: 2." in text and "1.000 to 1.100" in text


# a study that holds its arms


def test_arms_inside_a_study_vouch_for_themselves(copied, tmp_path):
    folder = start_arm(tmp_path / "study", {"seed": 1})
    shutil.copytree(copied, folder / "arms")
    write_json(folder / "metrics.json", {})
    files = json.loads(finish_arm(folder).read_text())["files"]
    assert set(files) == {"config.json", "metrics.json"}
    start_arm(folder, {"seed": 1})  # again: the study's own files go, its arms stay
    assert not (folder / "metrics.json").exists() and all(read_arm(arm).done for arm in (folder / "arms").iterdir())


def test_what_was_expected_is_confirmed_contradicted_or_open():
    scores = study(3.0)
    assert "confirmed at 1e3" in expectation_sentence(scores) and "left open" not in expectation_sentence(scores)
    assert "contradicted at 1e3" in expectation_sentence(study(1 / 3))
    mixed = scores.copy()
    mixed.loc[(mixed["nphotons"] == 1e4) & (mixed["seed"] == "0") & (mixed["loss"] == "mae"), "frc50"] += 1
    assert re.search(r"confirmed at 1e3 \(.*1e5 \(.*left open at 1e4 \(", expectation_sentence(mixed))
    assert expectation_sentence(scores[scores["nphotons"] > 1e5]) == ""


def test_a_factor_whose_interval_holds_one_may_be_chance():
    rivals = study(1.0, chance=0.02)
    rivals.loc[(rivals["seed"] == "0") & (rivals["loss"] == "mae"), "frc50"] -= 0.01
    assert any("1 among them: this may be chance" in text for text in efficiency_sentences(rivals, NLL, MAE))
    assert not any("chance" in text for text in efficiency_sentences(study(3.0), NLL, MAE))


def test_dark_pixels_pull_the_absolute_error_down(finished):
    table = dark_pixel_table(results_table(finished), finished)
    low, high = table.to_dict("records")
    assert low["nphotons"] == 1e4 and low["dark"] > high["dark"] and low["mae_from_dark"] > high["mae_from_dark"]
    _, test = halves_of(finished / "nphotons=1e4_loss=nll_seed=1")
    assert low["dark"] == pytest.approx(np.mean(test.diff3d == 0), abs=0.005)
    assert low["mae_scale"] < 0.999 < high["mae_scale"] < 1.001
    assert "MAE is smallest for amplitudes of 0.99" in why_sentences(results_table(finished), finished)[0]


def test_halves_of_a_scan_are_compared_with_the_seeds(copied):
    for arm in copied.glob("nphotons=1e4*"):
        result = load_reconstructions(arm / "reconstruction.npz")["no_network"]
        y0, y1, x0, x1 = region = covered_region(result)
        write_arrays(arm / "deviation.npz", amplitude_deviation=np.full((y1 - y0, x1 - x0), 0.02, np.float32) +
                     np.arange(x1 - x0, dtype=np.float32) * 1e-6, region_px=np.array(region))
        finish_arm(arm)
    (row,) = certainty_table(results_table(copied), copied).to_dict("records")
    assert row["nphotons"] == 1e4 and row["n"] == 2 and row["halves"] == pytest.approx(0.02, rel=0.02)
    assert 0 < row["seeds"] < row["error"] and abs(row["with_seeds"]) <= 1
    (sentence,) = certainty_sentences(results_table(copied), copied)
    assert "over 2 seeds" in sentence
    table = results_table(copied)
    figure = dict(draw_dose_study(table, method_scores(table), copied))["seed_spread"]
    assert any(axes.get_title().startswith("halves of one scan") for axes in figure.axes)
