"""The heart and the pretrained network on the other backend, in a process of their own."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = "test_heart.py", "test_pretrained.py"


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed (extra 'jax')")
def test_the_heart_on_jax():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(str(HERE / name) for name in FILES)],
        env={**os.environ, "KERAS_BACKEND": "jax"}, cwd=HERE.parent, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert "skipped" not in run.stdout and "100%" in run.stdout, run.stdout
