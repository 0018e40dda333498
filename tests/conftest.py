"""What several test files share, in what order tests start, and which of them may be skipped where."""
import gc
import os
from pathlib import Path

import pytest

gc.disable()  # until all is imported: half a million objects of TensorFlow, through which it would look again and again

STAR = "siemens-star-small.npz.bz2"

# Where CI is set everything is there that a test can ask for, and a skipped test is an error, with one exception:
MAY_BE_SKIPPED = (f"the measured scan {STAR} is not here",)  # a file that somebody has to put there

# The workers (`pytest -n 3 --dist loadgroup`) take one group after the other, each a file unless a test names its own
# (`xdist_group`). Those that take longest start first, so that all workers end at about the same time.
LONGEST_FIRST = ("sweep", "studies", "measured", "training", "jax_backend", "bench", "widgets",
                 "browser_jupyterlab", "sizes", "diagnostics", "pretrained", "reports", "browsers", "baselines",
                 "docs", "surface", "health", "diagnose", "reconstruct", "tutorial",
                 "pretrain")


def _group(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    return mark.args[0] if mark else item.path.stem.removeprefix("test_")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(_group(item), len(order)))  # stable: inside a group as written
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _look_once(phase: str, info: dict) -> None:
    """What one full collection of garbage has left, half a million objects of TensorFlow, the next need not look at."""
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without its groups every fixture of a file would be made by both workers, and nobody would notice."""
    gc.callbacks.append(_look_once)
    gc.enable()
    gc.collect()
    if session.config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("these versions of pytest and pytest-xdist do not group tests: pytest<9.2 does")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in MAY_BE_SKIPPED):
            report.outcome, report.longrepr = "failed", f"in CI nothing is skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(scope="session")
def measured_star() -> Path:
    """The measured scan: in the folder PTYCHO_NB_DATA, in `data/` of this checkout or of a folder beside it."""
    root = Path(__file__).resolve().parents[1]
    folders = [Path(os.environ.get("PTYCHO_NB_DATA", "/nowhere")), root / "data", *sorted(root.parent.glob("*/data"))]
    paths = [folder / STAR for folder in folders if (folder / STAR).is_file()]
    if not paths:
        pytest.skip(f"{MAY_BE_SKIPPED[0]}: set PTYCHO_NB_DATA to its folder")
    return paths[0]
