"""The explorers in JupyterLab, in a real browser: sliders are moved, the map clicked, and the pictures have to follow.

Without chromium the test skips on a user's machine; where CI is set it fails. Screenshots are kept in the folder
that PTYCHO_NB_ARTIFACTS names, runs/browser otherwise.
"""
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from in_browser import CHROMIUM, PATIENCE_MS, QUIET, ROOT, Explorer, changed, decoded, jupyterlab, run_all

from ptycho_nb.config import SimulationConfig
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.explorers.dose import DoseExplorer
from ptycho_nb.explorers.scan import ScanExplorer, parsed_region

NOTEBOOK = ROOT / "studies_nbs" / "explore.ipynb"
ARTIFACTS = Path(os.environ.get("PTYCHO_NB_ARTIFACTS", ROOT / "runs" / "browser"))
RED_BOX = "[data-mime-type='application/vnd.jupyter.stderr']"  # errors, and what is written to standard error


def narrow_and_wide(page, explorer: Explorer) -> None:
    """Beside the picture where there is room, above it where there is not."""
    last = explorer.box.locator(f".ptycho-nb-{explorer.prefix}-step_px")
    wide = page.viewport_size
    assert last.bounding_box()["x"] + last.bounding_box()["width"] <= explorer.image.bounding_box()["x"]
    page.set_viewport_size({"width": 1000, "height": 900})
    page.wait_for_timeout(1000)
    explorer.screenshot(ARTIFACTS / f"{explorer.prefix}_1000.png")
    control, picture = last.bounding_box(), explorer.image.bounding_box()
    assert control["y"] + control["height"] <= picture["y"] and picture["width"] > 540
    page.set_viewport_size(wide)
    page.wait_for_timeout(500)


def click_on_the_map(dose: Explorer, alone: DoseExplorer) -> None:
    """A click on a position shows its pattern and names it; `alone` is the same explorer outside the browser."""
    from playwright.sync_api import expect

    panels, pattern, before = alone.panels, 9, dose.settled()
    right, up = panels.places.dots.axes.transData.transform(alone.state.places_px[pattern][::-1])
    dose.click(right / panels.bbox.width, 1 - up / panels.bbox.height)
    expect(dose.box.locator(".ptycho-nb-dose-pattern .widget-readout")).to_have_text(str(pattern), timeout=PATIENCE_MS)
    expect(dose.box).to_contain_text(panels.places.words(pattern))
    after = dose.settled()
    alone.set(pattern=pattern)
    assert np.any(after != before) and changed(after, decoded(alone.panels.png())) == 0
    dose.screenshot(ARTIFACTS / "dose_clicked.png")


def look_at_a_part_of_the_scan(scan: Explorer, alone: ScanExplorer, folder: Path) -> None:
    """The map reads under the pointer, a rectangle drawn on it chooses a part, a button saves the picture."""
    from playwright.sync_api import expect

    panels, (y, x), before = alone.panels, alone.data.positions_px[7], scan.settled()
    scan.image.scroll_into_view_if_needed()

    def place(y: float, x: float) -> tuple[float, float]:
        right, up = panels.places.dots.axes.transData.transform((x, y))
        return right / panels.bbox.width, 1 - up / panels.bbox.height

    scan.point(*place(y, x))
    expect(scan.box).to_contain_text(panels.places.words(7))
    top, left = alone.data.positions_px.mean(axis=0) - 20
    scan.drag(place(top, left), place(top + 30, left + 40))
    region = scan.box.locator(".ptycho-nb-scan-region input")
    expect(region).not_to_have_value("", timeout=PATIENCE_MS)
    found = parsed_region(region.input_value())
    assert np.allclose(found, (top, top + 30, left, left + 40), atol=2), found
    assert np.any(scan.settled() != before)
    scan.screenshot(ARTIFACTS / "scan_part.png")
    scan.box.get_by_role("button", name="save figure").click()
    expect(scan.box).to_contain_text("written to", timeout=PATIENCE_MS)
    assert all((folder / name).stat().st_size > 5000 for name in ("scan.png", "scan.pdf"))


def interrupt_a_training(page) -> None:
    """One sentence: what is kept, and how to go on."""
    page.locator(".jp-Notebook .jp-Cell").last.click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.keyboard.insert_text("long = TrainingConfig(nepochs=5000, batch_size=8, patience=5000)\n"
                              "train(patterns, model_config, long, output_dir=Path(output_dir) / 'stopped')")
    page.keyboard.press("Control+Enter")
    bar = page.locator(".jp-Notebook .jp-Cell").last.locator(".ptycho-nb-bar")
    bar.filter(has_text=re.compile(r"[1-9]\d+/\d+\s+\[")).last.wait_for()  # ten steps: more than an epoch
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Interrupt Kernel").click()
    page.locator(RED_BOX).wait_for()
    page.screenshot(path=ARTIFACTS / "interrupted.png")
    said = page.locator(RED_BOX).inner_text().strip()
    assert re.match(r"Stopped: [1-9]\d* of 5000 epochs (is|are) kept in ", said), said
    assert "\n" not in said and len(said) < 250, said


def look_without_a_kernel(page, address: str, folder: Path) -> None:
    """The saved notebook, whose widgets no kernel knows any more, shows the pictures in their place."""
    from playwright.sync_api import expect

    page.keyboard.press("Control+s")
    expect(page.locator(".jp-mod-dirty")).to_have_count(0)
    shutil.copy(folder / NOTEBOOK.name, folder / "saved.ipynb")
    page.goto(address.replace(NOTEBOOK.name, "saved.ipynb"))
    page.locator(".jp-NotebookPanel:visible .jp-Notebook").wait_for()
    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=PATIENCE_MS)
    kinds = (*(f"{prefix}Explorer" for prefix in ("Scan", "Probe", "Intensity", "Measured", "Dose", "Plan")),
             "ReconstructionBrowser", "TrainingMonitor")
    for kind in kinds:
        picture = page.locator(".jp-Cell").filter(has_text=f"{kind}(").locator(".jp-RenderedImage img").first
        picture.scroll_into_view_if_needed()
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.naturalWidth") > 500, kind
    page.locator(RED_BOX).scroll_into_view_if_needed()  # the last cell; what is not in view may not be drawn
    expect(page.locator(RED_BOX)).to_be_visible()
    page.wait_for_timeout(1000)  # a complaint takes the place of nothing, and a moment to come
    page.screenshot(path=ARTIFACTS / "without_a_kernel.png")
    for complaint in ("Error displaying widget", "Loading widget"):
        expect(page.get_by_text(complaint).filter(visible=True)).to_have_count(0)


def walk_through(page, address: str) -> None:
    """Open, run, turn and look."""
    from playwright.sync_api import expect

    page.goto(address)
    page.locator(".jp-NotebookPanel:visible .jp-Notebook").wait_for()
    page.evaluate("""() => new MutationObserver(() => {
        const live = document.querySelector('.ptycho-nb-live');
        if (live) window.seenLive = Math.max(window.seenLive || 1, live.querySelector('img') ? 2 : 1); })
        .observe(document.body, {childList: true, subtree: true})""")
    run_all(page)
    probe, dose, monitor = (Explorer(page, prefix) for prefix in ("probe", "dose", "monitor"))
    errors = page.locator(RED_BOX)
    finished = page.locator(".jp-OutputArea").filter(has_text="everything is in")
    monitor.image.or_(errors).first.wait_for()
    pictures, deadline = set(), time.monotonic() + PATIENCE_MS / 1000
    while finished.count() == errors.count() == 0:
        pictures.add(monitor.pixels().tobytes())
        page.wait_for_timeout(500)
        assert time.monotonic() < deadline, "the notebook does not come to its end"
    assert errors.count() == 0, errors.first.inner_text()
    assert len(pictures) > 1, "the monitor showed nothing new while the cell below it was training"

    assert page.evaluate("window.seenLive") == 2, "an estimate shows the object that it has so far"
    assert page.locator(".ptycho-nb-live").count() == 0, "and takes it away"
    twins = page.locator(".jp-OutputArea:has(.ptycho-nb-probe) .jp-RenderedImage")
    assert twins.count() == 1 and not twins.first.is_visible(), "a live explorer hides the picture that is kept"
    narrow_and_wide(page, probe)

    probe_before, dose_before = probe.settled(), dose.settled()
    probe.screenshot(ARTIFACTS / "probe_before.png")
    shown, now = probe.press("probe_scale", "ArrowRight", 15)
    assert float(now) > float(shown)
    probe_after = probe.settled()
    probe.screenshot(ARTIFACTS / "probe_after.png")
    assert changed(probe_before, probe_after) > 0.002, f"probe scale {shown} and {now} look the same"
    assert np.array_equal(dose.pixels(), dose_before), "the probe's slider moved the dose explorer's picture"

    dose.screenshot(ARTIFACTS / "dose_before.png")
    shown, now = dose.press("log10_nphotons", "ArrowLeft", 20)
    assert float(now) < float(shown) - 1
    dose_after = dose.settled()
    dose.screenshot(ARTIFACTS / "dose_after.png")
    assert changed(dose_before, dose_after) > 0.01, f"10^{shown} and 10^{now} photons look the same"
    alone = DoseExplorer(log10_nphotons=float(now))
    assert changed(dose_after, decoded(alone.panels.png())) == 0, "the way to a state must not show in it"

    click_on_the_map(dose, alone)
    dose.box.get_by_role("button", name="copy as parameters").click()
    line = re.compile(r"papermill explore\.ipynb .* -p dose_log10_nphotons 3(\.0)? ")
    expect(dose.box.locator("input[type=text]").last).to_have_value(line, timeout=PATIENCE_MS)

    probe.press("probe_scale", "ArrowLeft", 15)
    assert np.array_equal(probe.settled(), probe_before), "the same scale, another picture"
    for prefix in ("intensity", "measured", "browser", "monitor"):
        Explorer(page, prefix).screenshot(ARTIFACTS / f"{prefix}.png")


def test_explorers_in_jupyterlab(tmp_path):
    """One server, one page, one kernel for all of it: they take most of the time."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed; .ci/run installs it")
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with jupyterlab(tmp_path, NOTEBOOK) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.set_default_timeout(PATIENCE_MS)
        try:
            walk_through(page, address)
            shown = SimulationConfig(nphotons=1e6, object_size_px=256, object_seed=0, n_train=60, n_test=160)
            alone = ScanExplorer(simulate_halves(shown)[0])
            alone.panels.png()
            look_at_a_part_of_the_scan(Explorer(page, "scan"), alone, tmp_path / "notebooks")
            interrupt_a_training(page)
            look_without_a_kernel(page, address, tmp_path / "notebooks")
        except BaseException:
            page.screenshot(path=ARTIFACTS / "failure.png")
            raise
        finally:
            browser.close()
