"""What importing costs: the package loads nothing, and only the wings that need a framework load one."""
import importlib
import pkgutil
import subprocess
import sys

import pytest

import ptycho_nb

HEAVY = {"tensorflow", "keras", "jax", "torch", "matplotlib", "papermill"}
FRAMEWORKS = HEAVY - {"matplotlib"}
WITHOUT_ANY = ("config", "quiet", "files", "rows", "machine", "pictures", "cli", "cli_files", "cli_overlap", "cli_plan",
               "cli_words", "physics", "data", "solvers", "runs")


def modules_of(*places: str) -> list[str]:
    """The modules of wings, and top-level modules as they are."""
    names = []
    for place in places:
        module = importlib.import_module(f"ptycho_nb.{place}")
        inside = pkgutil.iter_modules(getattr(module, "__path__", []), f"ptycho_nb.{place}.")
        names += [item.name for item in inside] or [f"ptycho_nb.{place}"]
    return names


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
    assert microseconds < 100_000


ONE_AFTER_THE_OTHER = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
    if found := set(sys.argv[1].split(",")) & {loaded.partition(".")[0] for loaded in sys.modules}:
        sys.exit(f"{name} loads {found}")
"""


def loads_none_of(heavy: set[str], modules: list[str]) -> None:
    """None of the modules, imported one after the other in a fresh Python, may load any of this; the first is named."""
    assert modules
    command = [sys.executable, "-c", ONE_AFTER_THE_OTHER, ",".join(heavy), *modules]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_what_computes_without_a_network_loads_nothing_heavy():
    modules = [*modules_of(*WITHOUT_ANY), "ptycho_nb.analysis.metrics", "ptycho_nb.studies.sweep"]
    loads_none_of(HEAVY, modules)
    with pytest.raises(AssertionError, match=r"analysis\.plots loads {'matplotlib'}"):
        loads_none_of(HEAVY, [*modules, "ptycho_nb.analysis.plots"])


def test_what_only_runs_arms_loads_no_compiler():
    """A kernel and a worker of a sweep ask for cores and folders; Numba and SciPy would take longer than all of it."""
    loads_none_of({"numba", "scipy"}, ["ptycho_nb.machine", "ptycho_nb.runs.arms", "ptycho_nb.studies.workers"])


def test_only_the_network_loads_a_framework():
    loads_none_of(FRAMEWORKS, modules_of("analysis", "diagnosis", "studies", "explorers"))


def test_every_wing_was_looked_at():
    looked_at = {*WITHOUT_ANY, "network", "analysis", "diagnosis", "studies", "explorers", "_modidx", "__main__"}
    assert {item.name for item in pkgutil.iter_modules(ptycho_nb.__path__)} == looked_at
