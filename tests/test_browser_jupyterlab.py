"""The explorers in JupyterLab, in a real browser: sliders are moved by keyboard, and the pictures have to follow.

Without chromium the test skips on a user's machine; where CI is set it fails. Screenshots are kept in the folder
that PTYCHO_NB_ARTIFACTS names, runs/browser otherwise.
"""
import io
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptycho_nb.explorers.dose import DoseExplorer

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "studies_nbs" / "explore.ipynb"
ARTIFACTS = Path(os.environ.get("PTYCHO_NB_ARTIFACTS", ROOT / "runs" / "browser"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")
PATIENCE_MS = 180_000  # a busy machine is not a failure


def is_up(url: str) -> bool:
    """Whether the server answers."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def lab(tmp_path) -> Iterator[str]:
    """The address of the notebook in a JupyterLab that serves this test alone and writes nothing outside its folder."""
    root = tmp_path / "notebooks"
    root.mkdir()
    shutil.copy(NOTEBOOK, root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR",
               "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")
    environment |= {name: str(tmp_path / name.lower()) for name in folders}
    environment |= {"HOME": str(tmp_path), "JUPYTER_TOKEN": token, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    # A fresh JupyterLab asks whether it may fetch news, in front of what is to be seen.
    silent = Path(environment["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension"
    silent.mkdir(parents=True)
    (silent / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    said = tmp_path / "jupyterlab.log"
    with open(said, "w") as log:
        server = subprocess.Popen(command, env=environment, cwd=root, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_MS / 1000
    try:
        while not is_up(f"{address}/api?token={token}"):
            assert server.poll() is None and time.monotonic() < deadline, said.read_text()[-3000:]
            time.sleep(0.25)
        yield f"{address}/lab/tree/{NOTEBOOK.name}?reset&token={token}"
    finally:
        server.terminate()  # takes its kernels with it
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def decoded(png: bytes) -> np.ndarray:
    """The pixels of a picture: uint8 (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


class Explorer:
    """One explorer in the page."""

    def __init__(self, page, prefix: str) -> None:
        self.page, self.prefix = page, prefix
        self.box = page.locator(f".jp-OutputArea .ptycho-nb-{prefix}").first
        self.image = self.box.locator("img").first

    def pixels(self) -> np.ndarray:
        """What is seen of the picture: uint8 (height, width, 3)."""
        png = self.page.evaluate(
            """async image => { const blob = await (await fetch(image.src)).blob();
                                return [...new Uint8Array(await blob.arrayBuffer())]; }""", self.image.element_handle())
        return decoded(bytes(png))

    def settled(self) -> np.ndarray:
        """The picture once it stays the same for a second."""
        before, deadline = self.pixels(), time.monotonic() + PATIENCE_MS / 1000
        while True:
            self.page.wait_for_timeout(1000)
            now = self.pixels()
            if np.array_equal(now, before) and "| Idle" in self.page.locator("#jp-main-statusbar").inner_text():
                return now
            assert time.monotonic() < deadline, f"the picture of {self.prefix} does not come to rest"
            before = now

    def press(self, setting: str, key: str, times: int) -> tuple[str, str]:
        """Move a slider by keyboard; its readout before and after."""
        control = self.box.locator(f".ptycho-nb-{self.prefix}-{setting}")
        readout = control.locator(".widget-readout")
        handle = control.locator(".noUi-handle")
        handle.scroll_into_view_if_needed()
        before = readout.inner_text()
        handle.focus()
        for _ in range(times):
            self.page.keyboard.press(key)
        return before, readout.inner_text()

    def screenshot(self, name: str) -> None:
        """Keep what a person would see."""
        self.box.scroll_into_view_if_needed()
        self.box.screenshot(path=ARTIFACTS / f"{name}.png")


def changed(before: np.ndarray, after: np.ndarray) -> float:
    """The share of pixels that differ visibly."""
    assert before.shape == after.shape
    return float(np.mean(np.abs(before.astype(int) - after).max(axis=-1) > 40))


def run_all(page) -> None:
    """Run the notebook; before the kernel is connected, the menu would open a dialog instead."""
    from playwright.sync_api import expect

    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=PATIENCE_MS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def narrow_and_wide(page, explorer: Explorer) -> None:
    """Beside the picture where there is room, above it where there is not."""
    last = explorer.box.locator(f".ptycho-nb-{explorer.prefix}-step_px")
    wide = page.viewport_size
    assert last.bounding_box()["x"] + last.bounding_box()["width"] <= explorer.image.bounding_box()["x"]
    page.set_viewport_size({"width": 1000, "height": 900})
    page.wait_for_timeout(1000)
    explorer.screenshot(f"{explorer.prefix}_1000")
    control, picture = last.bounding_box(), explorer.image.bounding_box()
    assert control["y"] + control["height"] <= picture["y"] and picture["width"] > 540
    page.set_viewport_size(wide)
    page.wait_for_timeout(500)


def walk_through(page, address: str) -> None:
    """Open, run, turn and look."""
    from playwright.sync_api import expect

    page.goto(address)
    page.locator(".jp-NotebookPanel:visible .jp-Notebook").wait_for()
    run_all(page)
    probe, dose, monitor = (Explorer(page, prefix) for prefix in ("probe", "dose", "monitor"))
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    finished = page.locator(".jp-OutputArea").filter(has_text="everything is in")
    monitor.image.or_(errors).first.wait_for()
    seen, deadline = set(), time.monotonic() + PATIENCE_MS / 1000
    while finished.count() == errors.count() == 0:
        seen.add(monitor.pixels().tobytes())
        page.wait_for_timeout(500)
        assert time.monotonic() < deadline, "the notebook does not come to its end"
    assert errors.count() == 0, errors.first.inner_text()
    assert len(seen) > 1, "the monitor showed nothing new while the cell below it was training"

    said = page.locator("[data-mime-type='application/vnd.jupyter.stderr']")
    assert said.count() == 0, said.first.inner_text()
    twins = page.locator(".jp-OutputArea:has(.ptycho-nb-probe) .jp-RenderedImage")
    assert twins.count() == 1 and not twins.first.is_visible(), "a live explorer hides the picture that is kept"
    narrow_and_wide(page, probe)

    probe_before, dose_before = probe.settled(), dose.settled()
    probe.screenshot("probe_before")
    shown, now = probe.press("probe_scale", "ArrowRight", 15)
    assert float(now) > float(shown)
    probe_after = probe.settled()
    probe.screenshot("probe_after")
    assert changed(probe_before, probe_after) > 0.002, f"probe scale {shown} and {now} look the same"
    assert np.array_equal(dose.pixels(), dose_before), "the probe's slider moved the dose explorer's picture"

    dose.screenshot("dose_before")
    shown, now = dose.press("log10_nphotons", "ArrowLeft", 20)
    assert float(now) < float(shown) - 1
    dose_after = dose.settled()
    dose.screenshot("dose_after")
    assert changed(dose_before, dose_after) > 0.01, f"10^{shown} and 10^{now} photons look the same"
    alone = DoseExplorer(log10_nphotons=float(now))
    assert changed(dose_after, decoded(alone.panels.png())) == 0, "the way to a state must not show in it"

    dose.box.get_by_role("button", name="copy as parameters").click()
    line = re.compile(r"papermill explore\.ipynb .* -p dose_log10_nphotons 3(\.0)? ")
    expect(dose.box.locator("input[type=text]").last).to_have_value(line, timeout=PATIENCE_MS)

    probe.press("probe_scale", "ArrowLeft", 15)
    assert np.array_equal(probe.settled(), probe_before), "the same scale, another picture"
    for prefix in ("intensity", "browser", "monitor"):
        Explorer(page, prefix).screenshot(prefix)


def test_moving_a_slider_changes_the_picture(lab):
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed; .ci/run installs it")
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.set_default_timeout(PATIENCE_MS)
        try:
            walk_through(page, lab)
        except BaseException:
            page.screenshot(path=ARTIFACTS / "failure.png")
            raise
        finally:
            browser.close()
