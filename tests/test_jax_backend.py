"""The heart and the pretrained network on the other backend, in a process of their own."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = "tests/test_heart.py", "tests/test_pretrained.py"
# What cannot differ between backends is left to TensorFlow: other sizes of a batch, and what solver and held-out counts
# do around the network. `make test-long` runs every case on JAX.
LEFT_OUT = [f"test_heart.py::test_as_many_groups_come_out_as_go_in[{fractional}-{size}-"
            for fractional in (False, True) for size in (2, 15, 16, 64)]
LEFT_OUT += [f"test_pretrained.py::test_{name}" for name in (
    "it_improves_objects_that_it_has_never_seen", "it_costs_nothing", "every_pattern", "it_starts",
    "a_probe_that_is_not_known", "refusals", "the_file", "where_the_first_split_ends_late", "a_split_that_begins_where",
    "whoever_stops", "a_measured_scan_in_one_call")]


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed (extra 'jax')")
def test_the_heart_on_jax():
    left_out = [word for name in LEFT_OUT for word in ("--deselect", f"tests/{name}")]
    # Hardly anything is run twice: compiled without optimisation it takes half the time. `make test-long` optimises.
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    run = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *FILES, *left_out],
                         env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert "skipped" not in run.stdout and "100%" in run.stdout, run.stdout
