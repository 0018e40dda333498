"""JupyterLab in chromium, for the browser test and benchmarks/latency.py."""
import base64
import io
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
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


@contextmanager
def jupyterlab(folder: Path, *notebooks: Path) -> Iterator[str]:
    """The address of the first notebook in a JupyterLab of its own, which writes nothing outside a folder."""
    root = folder / "notebooks"
    root.mkdir()
    for notebook in notebooks:
        shutil.copy(notebook, root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    kept_out = ("JUPYTER", "IPYTHON", "TF_CPP_MIN_LOG_LEVEL")  # the package itself has to keep TensorFlow quiet
    environment = {name: value for name, value in os.environ.items() if not name.startswith(kept_out)}
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR",
               "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")
    environment |= {name: str(folder / name.lower()) for name in folders}
    environment |= {"HOME": str(folder), "JUPYTER_TOKEN": token}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    # A fresh JupyterLab asks whether it may fetch news, in front of what is to be seen.
    silent = Path(environment["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension"
    silent.mkdir(parents=True)
    (silent / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    said = folder / "jupyterlab.log"
    with open(said, "w") as log:
        server = subprocess.Popen(command, env=environment, cwd=root, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_MS / 1000
    try:
        while not is_up(f"{address}/api?token={token}"):
            assert server.poll() is None and time.monotonic() < deadline, said.read_text()[-3000:]
            time.sleep(0.25)
        yield f"{address}/lab/tree/{notebooks[0].name}?reset&token={token}"
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
        url = self.page.evaluate(  # as text: a hundred thousand numbers would be packed one by one
            """async image => { const blob = await (await fetch(image.src)).blob();
                                return new Promise((resolve, reject) => {
                                    const reader = new FileReader();
                                    reader.onload = () => resolve(reader.result);
                                    reader.onerror = () => reject(reader.error);
                                    reader.readAsDataURL(blob); }); }""", self.image.element_handle())
        return decoded(base64.b64decode(url.partition(",")[2]))

    def settled(self) -> np.ndarray:
        """The picture once it stays the same for as long as a preview takes to be completed, and a little more."""
        before, deadline = self.pixels(), time.monotonic() + PATIENCE_MS / 1000
        while True:
            self.page.wait_for_timeout(600)
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

    def point(self, across: float, down: float) -> None:
        """Move the mouse to a place of the picture, given as shares of its width and height."""
        box = self.image.bounding_box()
        self.page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=5)

    def click(self, across: float, down: float) -> None:
        """Click a place of the picture."""
        self.image.scroll_into_view_if_needed()
        self.point(across, down)
        self.page.mouse.down()
        self.page.mouse.up()

    def drag(self, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a rectangle from one place of the picture to another."""
        self.point(*begin)
        self.page.mouse.down()
        self.point(*end)
        self.page.mouse.up()

    def screenshot(self, path: Path) -> None:
        """Keep what a person would see."""
        self.box.scroll_into_view_if_needed()
        self.box.screenshot(path=path)


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
