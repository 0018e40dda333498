"""Eight small arms on two workers of one thread each, against one such worker: how much faster, with nothing beside it?

`python benchmarks/workers.py` prints the two times and their ratio, and exits 1 if the ratio is below 1.6. It exits 2
if something else was running: the sweeps come one after the other, and a load that changes meanwhile is in the ratio.
"""
import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from ptycho_nb.machine import thread_limits
from ptycho_nb.studies.sweep import sweep

DOSE = Path(__file__).resolve().parent.parent / "studies_nbs" / "dose.ipynb"
ASKED = 1.6
POSSIBLE = 2.1  # two workers are not more than twice as fast as one; a tenth for luck
BUSY = 0.5  # load average before anything is started


def seconds_of(n_workers: int, n_arms: int, parameters: dict) -> float:
    """How long a sweep takes, from its call to its return: workers, kernels and imports included."""
    with tempfile.TemporaryDirectory(prefix="workers-") as folder:
        began = time.perf_counter()
        result = sweep(DOSE, folder, grid={"seed": range(1, n_arms + 1)}, parameters=parameters, n_workers=n_workers)
        seconds = time.perf_counter() - began
    if not result.ok:
        sys.exit(str(result))
    each = ", ".join(f"{arm['seconds']:.0f}" for arm in result.arms)
    print(f"{n_arms} arms on {n_workers} worker{'s' * (n_workers > 1)}: {seconds:6.1f} s (each {each} s)", flush=True)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", type=int, default=8)
    parser.add_argument("--n-train", type=int, default=256, help="training patterns of each arm")
    parser.add_argument("--nepochs", type=int, default=4)
    arguments = parser.parse_args()
    parameters = {"n_train": arguments.n_train, "n_test": 128, "nepochs": arguments.nepochs, "precision": "float32"}
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.update(thread_limits(1))
    busy = os.getloadavg()[0]
    seconds_of(1, 1, parameters)  # the first one reads everything from the disk
    two, one = (seconds_of(n_workers, arguments.arms, parameters) for n_workers in (2, 1))
    print(f"one worker / two workers: {one / two:.2f} (asked: at least {ASKED}); load average at the start: {busy:.2f}")
    if busy > BUSY or one / two > POSSIBLE:
        print("the machine was not quiet: this ratio says nothing, in either direction")
        return 2
    return 0 if one / two >= ASKED else 1


if __name__ == "__main__":
    sys.exit(main())
