"""How long a picture takes to follow a slider in a real JupyterLab, and what the explorers look like there.

    python benchmarks/latency.py [FOLDER] [--steps 20] [--only scan,probe] [--pictures]

Opens studies_nbs/explore.ipynb (N = 64) in chromium, waits until everything has run, and moves every slider of every
explorer by its keyboard, one step after the other: from the key to the decoded new picture, in the browser's own clock.
With --pictures also photographs every explorer in windows of 1400, 1000 and 700 px, light and dark, into FOLDER.
"""
import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from in_browser import CHROMIUM, PATIENCE_MS, QUIET, Explorer, jupyterlab, run_all  # noqa: E402

NOTEBOOK = ROOT / "studies_nbs" / "explore.ipynb"
EXPLORERS = ("scan", "probe", "intensity", "measured", "dose", "plan", "browser", "monitor")
SIZES = ((1400, 900), (1000, 900), (700, 900))
# A key on a handle, and the time until the picture has another source and that is decoded.
FOLLOW = """([handle, image, key]) => new Promise((resolve) => {
  const began = performance.now();
  setTimeout(() => resolve(null), 5000);  // a step that changes nothing that is shown
  new MutationObserver((_, seen) => {
    seen.disconnect();
    image.decode().then(() => resolve(performance.now() - began));
  }).observe(image, {attributes: true, attributeFilter: ['src']});
  handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
})"""


def latencies(page: Page, explorer: Explorer, steps: int) -> dict[str, list[float]]:
    """Milliseconds of each step of each slider that can be moved."""
    times_of = {}
    sliders, image = explorer.box.locator(".widget-slider"), explorer.image.element_handle()
    own = f"ptycho-nb-{explorer.prefix}-"
    for k in range(sliders.count()):
        slider = sliders.nth(k)
        name = next(part for part in slider.get_attribute("class").split() if part.startswith(own))
        handle = slider.locator(".noUi-handle")
        slider.scroll_into_view_if_needed()
        if slider.locator("[disabled]").count() or not handle.count():
            continue
        key = "ArrowRight"
        times_of[name.removeprefix(own)] = times = []
        for _ in range(steps):
            low, now, high = (float(handle.get_attribute(f"aria-value{end}")) for end in ("min", "now", "max"))
            key = "ArrowLeft" if now >= high else "ArrowRight" if now <= low else key  # back from either end
            times.append(page.evaluate(FOLLOW, [handle.element_handle(), image, key]))
            explorer.settled()  # a preview is completed before the next step
    return times_of


def choose_theme(page: Page, name: str) -> None:
    """Through the menu, as a person would."""
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.locator(".lm-Menu-item").filter(has_text="Theme").first.hover()
    page.locator(".lm-Menu-item").filter(has_text=re.compile(f"^{name}\\s*$")).click()
    page.wait_for_timeout(1500)


def photograph(page: Page, names: list[str], folder: Path) -> None:
    """Every explorer in every size and theme, as far as the window shows it."""
    for theme in ("Light", "Dark"):
        page.set_viewport_size({"width": 1400, "height": 900})
        choose_theme(page, f"JupyterLab {theme}")
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            if width == SIZES[-1][0]:
                page.keyboard.press("Control+b")  # nobody keeps the file browser beside so little
            page.wait_for_timeout(800)
            for name in names:
                explorer = Explorer(page, name)
                explorer.box.evaluate("box => box.scrollIntoView({block: 'start'})")
                page.wait_for_timeout(300)
                page.screenshot(path=folder / f"{name}_{width}_{theme.lower()}.png")
        page.keyboard.press("Control+b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/latency", type=Path, help="for what is made")
    parser.add_argument("--steps", type=int, default=20, help="of each slider (20)")
    parser.add_argument("--only", default=",".join(EXPLORERS), help="explorers, separated by commas")
    parser.add_argument("--pictures", action="store_true", help="photograph the explorers as well")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    names, report = given.only.split(","), {}
    with (tempfile.TemporaryDirectory() as scratch, jupyterlab(Path(scratch), NOTEBOOK) as address,
          sync_playwright() as playwright):
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET)).new_page(
            viewport={"width": 1400, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        page.locator(".jp-NotebookPanel:visible .jp-Notebook").wait_for()
        run_all(page)
        page.locator(".jp-OutputArea").filter(has_text="everything is in").first.wait_for(state="attached")
        names = [name for name in names if Explorer(page, name).box.count()]
        if given.pictures:
            photograph(page, names, given.folder)
        for name in names if given.steps else ():
            report[name] = latencies(page, Explorer(page, name), given.steps)
            for slider, answers in report[name].items():
                times = [answer for answer in answers if answer is not None] or [np.nan]
                still = len(answers) - len(times) if np.isfinite(times[0]) else len(answers)
                said = f"median {np.median(times):5.0f} ms   95 % {np.percentile(times, 95):5.0f} ms"
                said += f"   {still} steps without another picture" if still else ""
                print(f"{name:<10} {slider:<16} {said}", flush=True)
    (given.folder / "latency.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
