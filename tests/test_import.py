"""What importing costs: the package loads nothing, and the light rooms load no deep-learning framework."""
import subprocess
import sys

import pytest

HEAVY = {"tensorflow", "keras", "jax", "torch", "matplotlib", "papermill"}
LIGHT_ROOMS = (
    "config", "files", "surroundings", "compiled", "fourier", "objects", "probes", "scans", "photons", "reconstruction",
    "solver", "rawdata", "formats", "simulate", "estimate", "positions", "baselines", "metrics", "scan_checks",
    "model_checks", "subjects", "pairs", "watching", "arms", "sweep", "cli",
)
DRAWING_ROOMS = ("check_figures", "diagnostics")  # matplotlib besides


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after `code`."""
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_package_loads_nothing():
    assert not modules_after("import ptycho_nb") & (HEAVY | {"numpy"})


def test_the_package_imports_at_once():
    command = [sys.executable, "-X", "importtime", "-c", "import ptycho_nb"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    (microseconds,) = (int(line.split("|")[1]) for line in lines if line.split("|")[-1].strip() == "ptycho_nb")
    assert microseconds < 300_000


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_a_light_room_loads_no_framework(room):
    assert not modules_after(f"import ptycho_nb.{room}") & HEAVY


@pytest.mark.parametrize("room", DRAWING_ROOMS)
def test_a_room_that_draws_loads_nothing_heavy_but_matplotlib(room):
    assert modules_after(f"import ptycho_nb.{room}") & HEAVY == {"matplotlib"}
