"""`pt.amortised(scan)` with its defaults, at another revision and as it stands, in turn in one run.

Every process simulates 1000 patterns of 64² at 1e4 photons, times its first call (which loads the network and all
machine code) and then further ones: the fastest counts, of all processes. Importing is not counted; the other
revision comes from git. Run it on a machine that does nothing else, or compare processor seconds. About two minutes.
"""
import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "b96ba8a"  # eight passes of the network layer by layer in float32, the splits one after the other


def measure(calls: int, n_patterns: int) -> dict:
    """Seconds of the clock and of all processors, of the first call and of those after it, and the SSIM."""
    import ptycho_nb as pt

    _, scan = pt.simulate_halves(pt.SimulationConfig(nphotons=1e4, n_train=1, n_test=n_patterns))
    pt.amortised  # noqa: B018  a name of the package is imported when it is first used
    spent = []
    for _ in range(1 + calls):
        wall, cpu = time.perf_counter(), time.process_time()
        image = pt.amortised(scan, progress=False)
        spent.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {"first": spent[0], "next": spent[1:], "ssim": pt.compare(image, scan.truth)["amplitude"]["ssim"]}


def in_a_process(package: Path, calls: int, n_patterns: int) -> dict:
    """The same in a fresh process, with the package that lies in this folder."""
    command = [sys.executable, __file__, "--calls", str(calls), "--patterns", str(n_patterns), "--one"]
    settings = os.environ | {"PYTHONPATH": str(package), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return json.loads(subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout)


def unpack(revision: str, folder: Path) -> None:
    """The package as it was."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision, "ptycho_nb"], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as file:
        file.extractall(folder, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=BEFORE, help="revision to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each")
    parser.add_argument("--calls", type=int, default=5, help="calls after the first in each process")
    parser.add_argument("--patterns", type=int, default=1000)
    parser.add_argument("--one", action="store_true", help="measure the installed package in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.calls, arguments.patterns)))
        return
    with tempfile.TemporaryDirectory() as folder:
        unpack(arguments.before, Path(folder))
        packages, timed = {arguments.before: Path(folder), "now": ROOT}, {}
        for package in packages.values():  # compiles, where that has not been done before
            in_a_process(package, 0, 200)
        for _ in range(arguments.rounds):
            for name, package in packages.items():
                timed.setdefault(name, []).append(in_a_process(package, arguments.calls, arguments.patterns))
    rows = {name: [[min(call[clock] for run in runs for call in calls(run)) for clock in (0, 1)]
                   for calls in (lambda run: [run["first"]], lambda run: run["next"])] for name, runs in timed.items()}
    print("| | first call, s | CPU s | next, s | CPU s | patterns/s | SSIM |", "| --- " * 7 + "|", sep="\n")
    for name, (first, following) in rows.items():
        print(f"| {name} | {first[0]:.2f} | {first[1]:.2f} | {following[0]:.2f} | {following[1]:.2f} | "
              f"{arguments.patterns / following[0]:.0f} | {timed[name][0]['ssim']:.4f} |")
    before, now = rows.values()
    ratios = [a / b for one, other in zip(before, now, strict=True) for a, b in zip(one, other, strict=True)]
    print("times as fast: first call {:.2f} (CPU {:.2f}), next {:.2f} (CPU {:.2f})".format(*ratios))


if __name__ == "__main__":
    main()
