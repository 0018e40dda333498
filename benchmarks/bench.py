"""What the solvers reach and what they cost, in one run and one table: `python benchmarks/bench.py [--quick]`.

quality   every solver on simulated scans with known truth: probes × doses, with overlap and without
limits    what the photons allow on these scans, and a yardstick; nothing of it is timed
speed     how fast each part is, beside the matrix products of the same run
scaling   seconds and peak memory against the number and the size of the patterns
star      the measured Siemens star, if its file is at hand: agreement with a converged LSQML

Let nothing else run beside it: under 25 minutes on two cores (`--quick`: 4 minutes). Writes results.md, results.csv and
results.json after every row, so that an interrupted run leaves what it has measured, and scaling.png. Exits with 1 if a
part left no rows, or a row a number that is not finite. All choices are made by validation patterns; the truth of the
test half only scores. `publish.py` puts the results into the repository. With KERAS_BACKEND=jax the part `speed` needs
no TensorFlow.
"""
import argparse
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from table import Table, write_results

from ptycho_nb.config import check_choice
from ptycho_nb.machine import processors, versions

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("speed", "quality", "limits", "scaling", "star")  # rates first, in a fresh process
STAR_FILE = "siemens-star-small.npz.bz2"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _accelerator() -> str:
    """What the network's framework computes on, by name."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return f"{jax.devices()[0].device_kind} ({jax.devices()[0].platform})"
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(devices[0])["device_name"] if devices else "none"


def about_this_run(profile: str) -> dict:
    """The machine, the versions and the state of the code."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    software = versions(("ptycho_nb", "numpy", "scipy", "keras", "tensorflow", "jax", "ptychi", "torch"))
    return {
        "profile": profile, "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": software.pop("git", "unknown"), "processor": _processor(),
        "cores": len(processors()),
        "memory": f"{memory:.0f} GiB", "load at the start": f"{os.getloadavg()[0]:.1f}",
        "backend": os.environ.get("KERAS_BACKEND", "tensorflow"), "accelerator": _accelerator(),
        "versions": ", ".join(f"{name} {version}" for name, version in software.items()),
    }


def find_star() -> Path | None:
    """The measured scan, where it lies in `data/` of this checkout or in a folder beside it."""
    places = [ROOT / "data", *sorted(ROOT.parent.glob("data")), *sorted(ROOT.parent.glob("*/data"))]
    return next((place / STAR_FILE for place in places if (place / STAR_FILE).is_file()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work?")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", default="runs/benchmarks", help="folder for the results")
    parser.add_argument("--star", help=f"the measured scan; default: {STAR_FILE} in data/ here or beside this folder")
    arguments = parser.parse_args()
    for part in arguments.parts:
        check_choice("--parts", part, PARTS)
    star = Path(arguments.star) if arguments.star else find_star()
    about = about_this_run("quick" if arguments.quick else "full")
    about["measured scan"] = star.name if star else "not at hand: a defocused probe in place of the measured one"
    table = Table(Path(arguments.out), about)
    parts = [part for part in arguments.parts if part != "star" or star is not None]
    for part in parts:
        if part == "quality":
            import quality

            quality.measure(table, arguments.quick, star)
        elif part == "limits":
            import references

            references.measure(table, arguments.quick, star)
        elif part == "speed":
            import speed

            speed.measure(table, arguments.quick)
        elif part == "scaling":
            import scaling

            scaling.measure(table, arguments.quick, table.out)
        else:
            import star as measured_star

            measured_star.measure(table, arguments.quick, star)
    faults = table.faults(parts)
    about["complete"] = "no" if faults or set(arguments.parts) != set(PARTS) else "yes"
    write_results(table.out, about, table.rows)
    print(f"{about['minutes']} minutes; written to {table.out}/results.md, .csv and .json", *faults, sep="\n")
    sys.exit(len(faults) > 0)


if __name__ == "__main__":
    main()
