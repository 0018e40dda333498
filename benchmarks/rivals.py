"""pty-chi's engines and a deep image prior beside our methods, warm, on scans by which nothing was chosen.

Ours are `estimate`, the same with a prior in turn with the likelihood (non-local means or total variation of
scikit-image), `amortised` and `reconstruct`. Every engine starts from ones with the exact probe, which it keeps, and
has its own default settings but for what is said in `engines`. It runs so many epochs; beside the last one stands the
epoch that the counts held out like best. Those are the same tenth of the patterns for all, and no engine is fitted to
them; the network and the one call hold out others in turn. Processor seconds are those of all threads, up to the epoch
shown, without looking at held-out counts; before them everything has run once on a small scan (the deep prior makes a
network for every scan, and compiles it). The limit is the FRC50 that the photons allow, the yardstick the truth with
that limit's noise after the best simple denoiser.

Writes rows.json after every scan, goes on from there when it is started again, and rivals.md into `--out`. `--quick`
takes some minutes and shows that everything runs, no more: three epochs are too few for any engine.
"""
import argparse
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from deep_prior import deep_prior

import ptycho_nb as pt
from ptycho_nb.analysis.limits import frc_resolution, photon_limit
from ptycho_nb.analysis.metrics import frc
from ptycho_nb.analysis.yardstick import yardstick
from ptycho_nb.config import InputError
from ptycho_nb.files import read_json, replacing, write_json
from ptycho_nb.physics.forward import Layout
from ptycho_nb.physics.noise import intensity_scale
from ptycho_nb.physics.probes import normalise_probe
from ptycho_nb.solvers.gauge import aligned_pair
from ptycho_nb.solvers.held_out import HeldOut, trimmed_mean
from ptycho_nb.solvers.likelihood import illumination
from ptycho_nb.solvers.lsqml import _import_ptychi, ptychi_installed

OBJECTS, PROBES, DOSES = ("lines", "siemens_star", "random_field", "shapes"), ("disk", "defocused"), (1e3, 1e4, 1e5)
WITH_PHASE = "siemens_star", "shapes"
SEEDS = 41_000, 42_000  # used nowhere else
EPOCHS, BATCH = 30, 50
DEEP_PRIOR, DEEP_STEPS = "deep image prior", 20  # an epoch of it is so many steps
Spent = tuple[float, pt.Reconstruction]  # processor seconds, and what was made in them


def engines(api) -> dict[str, Callable]:
    """Options by name: each of pty-chi's engines as it comes."""
    def lsqml(noise_model: str):
        options = api.LSQMLOptions()
        options.reconstructor_options.noise_model = noise_model
        return options

    def rpie():  # 50 patterns at once diverge within four epochs; at 15 the counts like it less than at 5
        options = api.RPIEOptions()
        options.reconstructor_options.batch_size = 5
        return options

    def in_chunks(options):  # of patterns that are projected at once, by default one by one
        options.reconstructor_options.chunk_length = BATCH
        return options

    def autodiff():  # by default plain gradient descent
        options = api.AutodiffPtychographyOptions()
        options.object_options.optimizer, options.object_options.step_size = api.Optimizers.ADAM, 0.01
        return options

    return {"LSQML, Gaussian": lambda: lsqml("gaussian"), "LSQML, Poisson": lambda: lsqml("poisson"),
            "ePIE": api.EPIEOptions, "rPIE": rpie, "DM": lambda: in_chunks(api.DMOptions()),
            "RAAR": lambda: in_chunks(api.RAAROptions()), "bilinear Hessian": api.BHOptions, "Autodiff, Adam": autodiff}


def engine_epochs(make: Callable, scan: pt.RawData, held: HeldOut, epochs: int) -> Iterator[Spent]:
    """One engine after each epoch."""
    torch, ptychi = _import_ptychi()
    began = time.process_time()
    N, amplitude = scan.N, held.fitted_amplitude[held.fitted]
    scale, layout = intensity_scale(amplitude), Layout.around(scan.positions_px, scan.N, margin_px=2)[held.fitted]
    exact = layout.corners_px if layout.remainder_px is None else layout.corners_px + layout.remainder_px
    probe = (normalise_probe(scan.probe)[0] * scale).astype(np.complex64)
    options = make()
    running, sample = options.reconstructor_options, options.object_options
    running.default_device, running.num_epochs = ptychi.api.Devices.CPU, epochs
    running.batch_size = min(running.batch_size, BATCH)
    if hasattr(running, "rescale_probe_intensity_in_first_epoch"):
        running.rescale_probe_intensity_in_first_epoch = False
    options.probe_options.optimizable = sample.remove_object_probe_ambiguity.enabled = False
    sample.determine_position_origin_coords_by = ptychi.api.ObjectPosOriginCoordsMethods.SPECIFIED
    sample.position_origin_coords = [(N - 1) / 2, (N - 1) / 2]  # so that positions are corners
    torch.manual_seed(0)
    torch.set_num_threads(1)  # several wait for each other by counting, which looks like work
    task = ptychi.api.task.PtychographyTask(
        options, diffraction_data=np.square(amplitude), object_data=np.ones(layout.shape, np.complex64),
        probe_data=probe[None, None] / np.float32(N), probe_position_y_px=exact[:, 0].astype(np.float32),
        probe_position_x_px=exact[:, 1].astype(np.float32))
    spent = time.process_time() - began
    for _ in range(epochs):
        began = time.process_time()
        task.run(1)
        spent += time.process_time() - began
        image = task.get_data_to_cpu("object", as_numpy=True)[0].copy()
        if not np.all(np.isfinite(image)):
            return
        yield spent, pt.Reconstruction(object=image, coverage=illumination(probe / scale, layout)[0],
                                       origin_px=layout.origin_px, positions_px=scan.positions_px,
                                       probe=probe / np.float32(np.sqrt(held.fitted_share)), method="rival")


def scores(result: pt.Reconstruction, scan: pt.RawData) -> dict[str, float]:
    """SSIM of amplitude and, where there is one, phase; FRC50 of the amplitude."""
    metrics = pt.compare(result, scan.truth)
    aligned, truth, _ = aligned_pair(result, scan.truth)
    return ({part: float(metrics[part]["ssim"]) for part in ("amplitude", "phase") if "ssim" in metrics.get(part, {})}
            | {"frc50": float(frc_resolution(frc(np.abs(aligned), np.abs(truth)), draws=1).value)})


def best_and_last(of_epochs: Iterator[Spent], scan: pt.RawData, held: HeldOut) -> dict[str, dict]:
    """Rows of the epoch that the held-out counts like best, and of the last one."""
    best, last = None, None
    for epoch, (spent, result) in enumerate(of_epochs, start=1):
        deviance = trimmed_mean(held.deviances(result))[0]  # patterns at the rim decide nothing
        last = deviance, epoch, spent, result
        if np.isfinite(deviance) and (best is None or deviance < best[0]):
            best = last
    if best is None:
        raise InputError("engine", "numbers that are not finite", "an object", "Nothing to be done here.")
    return {name: scores(result, scan) | {"cpu_seconds": spent, "epochs": epoch}
            for name, (_, epoch, spent, result) in (("best epoch", best), ("last epoch", last))}


def measure(scan: pt.RawData, epochs: int, names: list[str]) -> dict[str, dict]:
    """All rows of a scan, by method."""
    held, rows = pt.hold_out(scan), {}
    with_prior = pt.Measurement(probe="given", prior=True)
    ours = {"estimate": lambda: pt.estimate(scan, held=held, progress=False),
            "estimate, with a prior": lambda: pt.estimate(scan, with_prior, held=held, progress=False),
            "amortised": lambda: pt.amortised(scan, progress=False),
            "reconstruct": lambda: pt.reconstruct(scan, progress=False)}
    for name, method in ours.items():
        result = method()
        rows[name] = scores(result, scan) | {"cpu_seconds": result.cpu_seconds}
    known = {DEEP_PRIOR: lambda: deep_prior(scan, held, epochs * DEEP_STEPS, DEEP_STEPS)}
    if ptychi_installed():
        known |= {name: partial(engine_epochs, make, scan, held, epochs)
                  for name, make in engines(_import_ptychi()[1].api).items()}
    for name in names or known:
        try:
            by_epoch = best_and_last(known[name](), scan, held)
        except Exception as error:  # an engine that fails on a scan is a row too
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
            continue
        rows |= {f"{name}, {when}": row for when, row in by_epoch.items()}
    limit = photon_limit(scan)
    rows["limit and yardstick"] = {"frc50": float(limit.amplitude.value)} | {
        part: float(yardstick(*pair).scores["ssim"]) for part, pair in limit.parts.items()}
    return rows


def table(rows: list[dict]) -> list[str]:
    """Markdown: means over the seeds of every case."""
    lines = ["| object, probe, photons | method | amplitude SSIM | phase SSIM | FRC50 | CPU s | epochs |",
             "| --- " * 7 + "|"]
    for case in dict.fromkeys(row["case"] for row in rows):
        some = [row["methods"] for row in rows if row["case"] == case]
        for method in some[0]:
            results = [methods[method] for methods in some if "failed" not in methods.get(method, {"failed": ""})]

            def cell(name: str, digits: int, results=results) -> str:
                values = [row[name] for row in results if name in row]
                return f"{np.mean(values):.{digits}f}" if values else ""

            cells = [case, method + ("" if results else ", failed"), cell("amplitude", 3), cell("phase", 3),
                     cell("frc50", 3), cell("cpu_seconds", 1), cell("epochs", 0)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def simulated(kind: str, probe: str, nphotons: float, seed: int, n_test: int) -> pt.RawData:
    """The test half."""
    return pt.simulate_halves(pt.SimulationConfig(
        nphotons=nphotons, object_kind=kind, probe_kind=probe, object_phase=kind in WITH_PHASE, object_size_px=300,
        n_train=4, n_test=n_test, seed=seed))[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two objects, one dose, one seed, few patterns and epochs")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--engines", default="", help="names with ; between them; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/rivals"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.out.mkdir(parents=True, exist_ok=True)
    doses, seeds = ((1e4,), SEEDS[:1]) if arguments.quick else (DOSES, SEEDS[: arguments.seeds])
    objects = OBJECTS[:2] if arguments.quick else OBJECTS
    epochs, n_test = (3, 120) if arguments.quick else (arguments.epochs, 500)
    names = [name for name in arguments.engines.split(";") if name]
    record = arguments.out / "rows.json"
    rows = read_json(record) if record.exists() else []
    done = {(row["case"], row["seed"]) for row in rows}
    is_warm = False
    for seed, nphotons, probe, kind in itertools.product(seeds, doses, PROBES, objects):
        case = f"{kind.replace('_', ' ')}, {probe}, {nphotons:.0e}"
        if (case, seed) in done:
            continue
        if not is_warm:
            measure(simulated("lines", "disk", 1e4, 1, 100), 2, names)
            is_warm = True
        number = seed + 20 * DOSES.index(nphotons) + 4 * PROBES.index(probe) + OBJECTS.index(kind)
        rows.append({"case": case, "seed": seed, "methods": measure(simulated(kind, probe, nphotons, number, n_test),
                                                                    epochs, names)})
        write_json(record, rows)
        with replacing(arguments.out / "rivals.md") as temporary:
            temporary.write_text("\n".join(table(rows)) + "\n")
        print(*table(rows[-1:]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
