"""Results put side by side and trainings watched, without a browser: every control, its bounds, bad folders, speed."""
import asyncio
import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptycho_nb.config import InputError, ModelConfig, SimulationConfig, TrainingConfig
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.explorers.browser import DIFFERENCES, ReconstructionBrowser
from ptycho_nb.explorers.dose import DoseExplorer
from ptycho_nb.explorers.monitor import TrainingMonitor
from ptycho_nb.explorers.panels import Place
from ptycho_nb.explorers.plan import PlanExplorer
from ptycho_nb.explorers.probe import ProbeExplorer
from ptycho_nb.files import write_json
from ptycho_nb.runs.arm_scan import truth_of_arm
from ptycho_nb.runs.arms import arm_name, check_parameters, finish_arm, start_arm
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.gauge import align
from ptycho_nb.solvers.result import save_reconstructions
from ptycho_nb.studies.pairs import find_arms, pair_up, show_arm, view_of

EXPLORE = Path(__file__).resolve().parent.parent / "studies_nbs" / "explore.ipynb"
SIMULATION = SimulationConfig(nphotons=1e6, object_size_px=192, object_phase=True, n_train=40, n_test=90, seed=5)


def simulation(**changes) -> SimulationConfig:
    return SimulationConfig.from_dict(SIMULATION.to_dict() | changes)


def make_arm(folder: Path, config: SimulationConfig, methods: dict, measured: bool = False) -> Path:
    """A finished arm; as a measured one it says nothing of a simulation."""
    source = {"data": {"n_patterns": 90}} if measured else {"simulation": config}
    start_arm(folder, {"nphotons": config.nphotons, "output_dir": str(folder)}, **source)
    scores = {name: {"amplitude": {"ssim": 0.5}, "seconds": 1.0} for name in methods}
    write_json(folder / "metrics.json", scores | {"data_fit": {name: {"r_factor": 0.25} for name in methods}})
    save_reconstructions(folder / "reconstruction.npz", **methods)
    finish_arm(folder)
    return folder


@pytest.fixture(scope="module")
def scans():
    """The same test half at two doses."""
    return {dose: simulate_halves(simulation(nphotons=dose))[1] for dose in (1e4, 1e6)}


@pytest.fixture(scope="module")
def images(scans):
    """Two reconstructions at each dose."""
    return {dose: {"no_network": estimate(scan), "one_step": estimate(scan, iterations=1)}
            for dose, scan in scans.items()}


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A sweep of two doses; tests that alter it copy it."""
    folder = tmp_path_factory.mktemp("sweep")
    for dose, methods in images.items():
        make_arm(folder / arm_name({"nphotons": dose}), simulation(nphotons=dose), methods)
    return folder


@pytest.fixture
def sweep(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "sweep"))


@pytest.fixture(scope="module")
def browser_of_all(finished):
    return ReconstructionBrowser(finished)


@pytest.fixture
def browser(browser_of_all):
    """A browser at its beginning."""
    browser_of_all.set(left_arm="nphotons=1e4", right_arm="nphotons=1e6", left_method="no_network",
                       right_method="no_network", quantity="amplitude", difference="left - right", zoom=1.0,
                       middle_y=0.5, middle_x=0.5)
    browser_of_all.settle()
    return browser_of_all


def test_a_rectangle_is_looked_at_and_a_click_shows_everything(browser):
    top, bottom, left, right = browser.state.pair.region
    middle_y, middle_x = (top + bottom) / 2, left + (right - left) / 3
    browser.dragged("left", middle_y - 8, middle_y + 8, middle_x - 12, middle_x + 12)
    y0, y1, x0, x1 = browser.state.view
    assert y0 < middle_y < y1 and x0 < middle_x < x1 and x1 - x0 == pytest.approx(24, abs=1)
    browser.dragged("", 0, 1, 0, 1)  # curves and numbers have no rectangle
    assert browser.state.view == (y0, y1, x0, x1)
    browser.clicked(Place("left", None, middle_y, middle_x))
    assert browser.state.zoom == 1


# --- folders ---


def test_arms_that_cannot_be_shown_are_named_with_what_they_lack(sweep, images):
    start_arm(sweep / "stopped", {"nphotons": 1.0}, simulation=SIMULATION)
    for name, damage in {"text": b"not an archive", "short": b"PK\x03\x04", "empty": b""}.items():
        make_arm(sweep / name, SIMULATION, {"network": images[1e6]["no_network"]})
        (sweep / name / "reconstruction.npz").write_bytes(damage)
    (sweep / "report").mkdir()
    arms, lacking = find_arms(sweep)
    assert list(arms) == ["nphotons=1e4", "nphotons=1e6"] and arms["nphotons=1e4"] == sweep / "nphotons=1e4"
    assert lacking.pop("stopped") == "no metrics.json, no reconstruction.npz"
    assert lacking.keys() == {"text", "short", "empty"}
    assert all(text.startswith("reconstruction.npz: a damaged file") for text in lacking.values())
    browser = ReconstructionBrowser(sweep)
    assert browser.controls["left_arm"].options == ("nphotons=1e4", "nphotons=1e6")


def test_one_arm_is_compared_with_itself(finished):
    browser = ReconstructionBrowser(finished / "nphotons=1e4")
    assert browser.state.left_arm == browser.state.right_arm == "nphotons=1e4"
    assert (browser.state.left_method, browser.state.right_method) == ("no_network", "one_step")
    assert browser.state.difference_in_view > 0


def test_a_folder_without_arms_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere: found no such folder"):
        ReconstructionBrowser(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"found 0 arms, none with results; expected arms with metrics.json and"):
        ReconstructionBrowser(tmp_path)
    start_arm(tmp_path / "begun", {"nphotons": 1.0})
    with pytest.raises(InputError, match="1 arms, none with results"):
        find_arms(tmp_path)


def test_a_damaged_array_inside_the_archive_becomes_a_message(sweep):
    path = sweep / "nphotons=1e6" / "reconstruction.npz"
    content = bytearray(path.read_bytes())
    middle = len(content) // 3  # inside the compressed object, away from the list of contents and the records
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"reconstruction.npz, key 'object': found a damaged array"):
        show_arm(path.parent)
    with pytest.raises(InputError, match="damaged array"):
        ReconstructionBrowser(sweep)


def test_an_altered_arm_is_shown_with_a_remark(sweep, images):
    save_reconstructions(sweep / "nphotons=1e6" / "reconstruction.npz", no_network=images[1e4]["no_network"])
    browser = ReconstructionBrowser(sweep)
    assert "nphotons=1e6: altered after it was done: reconstruction.npz" in browser.message
    (sweep / "nphotons=1e6" / "done.json").unlink()
    assert "nphotons=1e6: not done" in ReconstructionBrowser(sweep).message


def test_an_arm_that_breaks_while_it_is_browsed_leaves_the_state(sweep):
    browser = ReconstructionBrowser(sweep, right_arm="nphotons=1e4")
    before = browser.state
    browser._show.cache_clear()
    (sweep / "nphotons=1e6" / "reconstruction.npz").unlink()
    browser.controls["right_arm"].value = "nphotons=1e6"
    assert browser.state is before and "reconstruction.npz" in browser.message


# --- what is compared ---


def test_the_truth_is_the_object_that_was_simulated(finished, scans):
    shown = show_arm(finished / "nphotons=1e4")
    np.testing.assert_array_equal(shown.truth, scans[1e4].truth)
    assert truth_of_arm(replace(shown.arm, config={"simulation": None})) is None
    with pytest.raises(InputError, match="nphotonz"):
        truth_of_arm(replace(shown.arm, config={"simulation": {"nphotonz": 1.0}}))


def test_a_pair_is_in_one_gauge_and_its_preview_nearly(images, scans):
    left, right = images[1e4]["no_network"], images[1e6]["no_network"]
    truth = scans[1e6].truth
    pair, rough = pair_up(left, right, truth, truth), pair_up(left, right, truth, truth, preview=True)
    part = right.crop_to(pair.region)
    expected, _ = align(part.object, pair.right_truth, part.coverage > 0)
    np.testing.assert_array_equal(pair.right, expected)
    assert np.abs(rough.right - pair.right).mean() < 0.05
    alone = pair_up(right, left)
    assert alone.left_truth is None and alone.images().keys() == {"left", "right"}
    assert np.abs(alone.right - alone.left).mean() < 0.1, "without a truth the right one is aligned with the left"


def test_two_scans_of_different_places_are_refused(images, scans):
    other = simulate_halves(simulation(nphotons=1e4))[0]  # the other half of the object
    elsewhere = estimate(other, iterations=1)
    with pytest.raises(InputError, match="at least 16 px in common"):
        pair_up(elsewhere, images[1e6]["no_network"])


def test_arms_of_different_objects_are_called_so(sweep, images):
    make_arm(sweep / "nphotons=1e5", simulation(nphotons=1e5, object_seed=77), images[1e4])
    browser = ReconstructionBrowser(sweep, right_arm="nphotons=1e5")
    assert "different objects" in browser.message
    browser.set(right_arm="nphotons=1e4", right_method="one_step")
    assert browser.message == ""


def test_without_a_truth_the_two_are_compared_with_each_other(images, tmp_path):
    for dose in images:
        make_arm(tmp_path / arm_name({"nphotons": dose}), SIMULATION, images[dose], measured=True)
    browser = ReconstructionBrowser(tmp_path)
    assert list(browser.state.curves) == ["left with right"] and "truth" not in browser.state.images
    assert not browser.panels.shown["truth"].get_visible()
    before = browser.state
    browser.set(difference="left - truth")
    assert browser.state is before and "truth, which is not known" in browser.message
    browser.set(difference="left - right", quantity="phase")
    assert browser.message == "" and np.all(np.abs(browser.state.images["left"]) <= np.pi)


# --- controls ---


def test_choosing_shows_what_was_chosen(browser, images):
    first = browser.state
    for name, value in (("left_arm", "nphotons=1e6"), ("left_method", "one_step"), ("right_method", "one_step"),
                        ("right_arm", "nphotons=1e4")):
        before = browser.state
        browser.controls[name].value = value
        assert getattr(browser.state, name) == value and browser.state.difference_in_view != before.difference_in_view
    browser.settle()
    stored = images[1e6]["one_step"]
    aligned = align(stored.crop_to(browser.state.pair.region).object, browser.state.pair.left_truth)[0]
    assert np.corrcoef(np.abs(aligned).ravel(), browser.state.images["left"].ravel())[0, 1] > 0.999
    assert browser.state.metrics["left"] == {"ssim": 0.5, "r_factor": 0.25}
    assert not first.preview and not browser.state.preview


def test_a_new_pair_is_previewed_and_then_kept(finished):
    browser = ReconstructionBrowser(finished)
    browser.controls["left_method"].value = "one_step"
    assert browser.state.preview and "roughly" in browser.panels.axes_of["difference"].get_title()
    rough = browser.state.images["left"]
    browser.settle()
    assert not browser.state.preview and np.any(browser.state.images["left"] != rough)
    exact = browser.state.pair
    browser.controls["left_method"].value = "no_network"
    browser.controls["left_method"].value = "one_step"
    assert browser.state.pair is exact, "the exact gauge is found once"


@pytest.mark.parametrize("quantity", ["amplitude", "phase"])
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_every_difference_is_that_of_the_images_shown(browser, quantity, difference):
    browser.set(quantity=quantity, difference=difference)
    first, second = difference.split(" - ")
    images = browser.state.images
    np.testing.assert_array_equal(images["difference"], images[first] - images[second])
    assert browser.panels.scale.ax.get_ylabel() == {"amplitude": "amplitude", "phase": "phase / rad"}[quantity]
    assert browser.state.difference_in_view == pytest.approx(np.abs(images["difference"]).mean())


def test_zoom_and_middle_are_the_same_for_all_images(browser):
    browser.set(zoom=4.0, middle_y=0.0, middle_x=1.0)
    y0, y1, x0, x1 = browser.state.view
    top, _, left, right = browser.state.pair.region
    assert (y0, x1) == (top - 0.5, right - 0.5) and x1 - x0 == pytest.approx((right - left) / 4)
    for axes in browser.panels.axes_of.values():
        assert (*reversed(axes.get_ylim()), *axes.get_xlim()) == (y0, y1, x0, x1)
    rows, columns = slice(0, round(y1 - y0)), slice(round(x0 + 0.5) - left, None)
    view = browser.state.images["difference"][rows, columns]
    assert browser.state.difference_in_view == pytest.approx(np.abs(view).mean(), rel=0.05)


@pytest.mark.parametrize("region", [(0, 100, 0, 100), (-5, 28, 3, 200), (10, 400, 7, 40)])
def test_the_view_never_leaves_the_region(region):
    y0, y1, x0, x1 = region
    for zoom in (1.0, 1.7, 16.0):
        for middle in (0.0, 0.31, 1.0):
            top, bottom, left, right = view_of(region, zoom, middle, 1 - middle)
            assert y0 - 0.5 <= top < bottom <= y1 - 0.5 + 1e-9 and x0 - 0.5 <= left < right <= x1 - 0.5 + 1e-9
            assert max(bottom - top, right - left) == pytest.approx(max(y1 - y0, x1 - x0) / zoom)


@pytest.mark.parametrize(("name", "bad"), [
    ("zoom", 0.5), ("zoom", 100), ("zoom", "2"), ("middle_y", -0.1), ("middle_y", 1.1), ("middle_x", 2),
    ("left_arm", "nphotons=1e7"), ("right_arm", 3), ("left_method", "no_net"), ("right_method", ""),
    ("quantity", "intensity"), ("difference", "right - left"), ("zooom", 2.0),
])
def test_a_bad_value_is_refused_and_nothing_moves(browser, finished, name, bad):
    before = browser.state
    with pytest.raises(InputError, match=name):
        browser.set(**{name: bad})
    assert browser.state is before
    with pytest.raises(InputError, match=name):
        ReconstructionBrowser(finished, **{name: bad})


def test_a_method_that_an_arm_lacks_is_answered_with_those_it_has(sweep, images):
    make_arm(sweep / "nphotons=1e5", simulation(nphotons=1e5), {"refined": images[1e4]["no_network"]})
    browser = ReconstructionBrowser(sweep)
    assert set(browser.controls["left_method"].options) == {"no_network", "one_step", "refined"}
    before = browser.state
    browser.controls["left_method"].value = "refined"
    assert browser.state is before
    assert "method of the arm nphotons=1e4: found 'refined'" in browser.message and "'one_step'" in browser.message
    browser.controls["left_arm"].value = "nphotons=1e5"
    assert browser.state.left_method == "refined" and "method of" not in browser.message


@pytest.mark.parametrize(("name", "values"), [
    ("zoom", np.geomspace(1, 16, 12)), ("middle_y", np.linspace(0, 1, 12)), ("middle_x", np.linspace(0, 1, 12))])
def test_the_picture_follows_a_slider_within_150_ms(browser, name, values):
    """Processor time from the event to the new picture: other processes on the machine do not count."""
    browser.set(zoom=8.0)
    picture, seconds, pictures = browser.image, [], set()
    for value in values:
        began = time.process_time()
        browser.controls[name].value = float(value)
        seconds.append(time.process_time() - began)
        assert getattr(browser.state, name) == pytest.approx(value, rel=1e-5)
        pictures.add(bytes(picture.value))
    assert len(pictures) > len(values) / 2 and np.median(seconds) <= 0.150


def test_the_static_twin_stays_when_the_browser_moves_on(browser):
    twin = browser.figure()
    limits = twin.axes_of["left"].get_xlim()
    assert limits == browser.panels.axes_of["left"].get_xlim()
    browser.set(zoom=8.0)
    assert twin.axes_of["left"].get_xlim() == limits != browser.panels.axes_of["left"].get_xlim()


# --- two threads, as in JupyterLab ---


def test_a_full_computation_in_one_thread_does_not_mix_with_events_in_another():
    """JupyterLab sends the first event to the thread of the cells and the others to one of their own."""
    explorer, values = DoseExplorer(), np.linspace(6.0, 2.5, 15)

    def drag():
        for value in values:
            explorer.controls["log10_nphotons"].value = float(value)

    dragging = threading.Thread(target=drag)
    dragging.start()
    while dragging.is_alive():
        explorer.settle()
    explorer.settle()
    fresh = DoseExplorer(log10_nphotons=float(values[-1]))
    assert repr(explorer) == repr(fresh) and not explorer.state.preview
    assert bytes(explorer.image.value) == fresh.panels.png()


# --- the study that shows them ---


def test_every_copied_parameter_is_one_of_the_study(browser, finished, tmp_path):
    write_json(tmp_path / "history.json", {"header": {}, "epochs": []})
    for explorer in (browser, TrainingMonitor(folder=tmp_path), ProbeExplorer(), DoseExplorer(), PlanExplorer()):
        check_parameters(EXPLORE, explorer.parameters())
    browser.set(zoom=2.0, quantity="phase")
    words = browser.command().split()
    assert words[:5] == ["papermill", "explore.ipynb", "out.ipynb", "-p", "sweep_dir"]
    again = {name.removeprefix("browser_"): value for name, value in browser.parameters().items()}
    del again["sweep_dir"]
    assert repr(ReconstructionBrowser(finished, **again)) == repr(browser)


# --- the monitor ---

ROWS = [{"epoch": epoch, "train_loss": None if epoch == 0 else 1 / epoch, "val_loss": 2 / (epoch + 1),
         "intensity_scale": 3.0 + epoch / 100, "nan_count": 0, "seconds": 1.5} for epoch in range(4)]


def test_the_monitor_draws_every_epoch():
    monitor = TrainingMonitor()
    assert monitor.state.epoch is None and monitor.panels.numbers.get_text().startswith("preparing")
    for count in range(1, 5):
        before = bytes(monitor.image.value)
        monitor(ROWS[:count])
        assert monitor.state.epoch == count - 1 and bytes(monitor.image.value) != before
    drawn = monitor.panels.curves["val_loss"].get_xydata()
    np.testing.assert_array_equal(drawn, [(0, 2), (1, 1), (2, 2 / 3), (3, 0.5)])
    assert "best epoch       3" in monitor.panels.numbers.get_text()
    assert monitor.figure().losses.get_yscale() == "log"
    monitor.set(loss_scale="linear")
    assert monitor.panels.losses.get_yscale() == "linear"
    with pytest.raises(InputError, match="loss_scale"):
        monitor.set(loss_scale="cubic")


def test_a_loss_that_is_not_a_number_is_named():
    monitor = TrainingMonitor()
    monitor([*ROWS[:2], {"epoch": 2, "train_loss": None, "val_loss": None, "intensity_scale": None, "nan_count": 3}])
    assert "not a number     in epoch 2" in monitor.panels.numbers.get_text()
    assert np.isnan(monitor.state.values("val_loss")[-1])
    monitor.figure()


def test_a_scan_of_few_patterns_is_refused(scans):
    with pytest.raises(InputError, match="5 patterns; expected at least 9"):
        TrainingMonitor(scans[1e4].subset(np.arange(5)))
    with pytest.raises(InputError, match="n_patterns"):
        TrainingMonitor(scans[1e4], n_patterns=2)


def test_a_growing_history_is_followed(tmp_path):
    monitor = TrainingMonitor(folder=tmp_path / "arm")
    assert "history.json: not there yet" in monitor.message and not monitor.refresh()
    (tmp_path / "arm").mkdir()

    async def grow():
        monitor.start(every_s=0.02)
        for count in range(1, 5):
            ended = "all epochs done" if count == 4 else "still training"
            write_json(tmp_path / "arm" / "history.json", {"header": {"ended": ended}, "epochs": ROWS[:count]})
            for _ in range(500):
                await asyncio.sleep(0.02)
                if len(monitor.state.rows) == count:
                    break
            assert monitor.state.epoch == count - 1
        await asyncio.wait_for(monitor._task, 10)

    asyncio.run(grow())
    assert monitor.message == "" and monitor.state.ended == "all epochs done" and not monitor.refresh()
    assert monitor.parameters()["training_dir"] == str(tmp_path / "arm")


@pytest.mark.parametrize("content", ["[]", "{}", '{"header": {}, "epochs": 3}', '{"header"'])
def test_a_file_that_is_no_history_is_refused_and_does_not_end_the_following(tmp_path, content):
    path = tmp_path / "history.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"history.json"):
        TrainingMonitor(folder=tmp_path)
    path.unlink()
    monitor = TrainingMonitor(folder=tmp_path)
    path.write_text(content)

    async def follow():
        monitor.start(every_s=0.01)
        await asyncio.sleep(0.1)
        assert "history.json" in monitor.message
        path.write_text(json.dumps({"header": {"ended": "done"}, "epochs": ROWS}))
        await asyncio.wait_for(monitor._task, 10)

    asyncio.run(follow())
    assert monitor.state.epoch == 3 and monitor.message == ""


@pytest.fixture(scope="module")
def watched():
    """A small training, once watched and once not."""
    from ptycho_nb.network.training import train as train_network

    train = simulate_halves(simulation(nphotons=1e4))[0]
    model = ModelConfig(gridsize=1, n_filters=8)
    training = TrainingConfig(nepochs=2, batch_size=8, precision="float32")
    monitor = TrainingMonitor(train, n_patterns=16)
    pictures = []
    monitor.image.observe(lambda change: pictures.append(bytes(change["new"])), "value")
    return monitor, pictures, train_network(train, model, training, progress=monitor), train_network(
        train, model, training)


def test_a_training_is_watched_and_is_the_same_training(watched):
    monitor, pictures, result, alone = watched
    assert len(pictures) == 3 == len(set(pictures)), "a picture for the untrained model and one after each epoch"
    assert list(monitor.state.rows) == result.history["epochs"]
    assert all(np.array_equal(a, b) for a, b in zip(result.model.get_weights(), alone.model.get_weights(), strict=True))
    images = monitor.state.images
    assert images.keys() == {"first", "latest", "truth"} and np.any(images["first"] != images["latest"])
    assert images["truth"].shape == images["latest"].shape and monitor.message == ""
    monitor.set(quantity="phase")
    assert np.all(np.abs(monitor.state.images["truth"]) < np.pi)


def test_a_picture_that_cannot_be_made_is_said_and_the_losses_go_on(watched):
    _, _, result, _ = watched
    large = simulate_halves(SimulationConfig(N=128, object_size_px=256, n_train=9, n_test=1))[0]
    monitor = TrainingMonitor(large)
    monitor(result.history["epochs"], result.model)
    assert monitor.state.epoch == 2 and not monitor.state.images
    assert monitor.message.startswith("no picture: ")
