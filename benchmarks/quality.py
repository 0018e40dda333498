"""The quality rows: every solver on one simulated scan after the other. Run by `bench.py`."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from skimage.metrics import structural_similarity
from table import Table

from ptycho_nb.analysis.limits import frc_resolution, photon_limit
from ptycho_nb.analysis.metrics import frc, image_metrics
from ptycho_nb.config import ModelConfig, SimulationConfig, TrainingConfig, loss_weights
from ptycho_nb.data.formats import load_data
from ptycho_nb.data.scan import RawData
from ptycho_nb.data.simulation import generate_simulated_data, simulate_halves
from ptycho_nb.network.candidates import reconstruct
from ptycho_nb.network.pretrained import amortised
from ptycho_nb.network.supervised import train_supervised
from ptycho_nb.network.training import train as train_network
from ptycho_nb.physics.objects import make_object
from ptycho_nb.physics.probes import crop_probe_fourier, make_probe, probe_diameter_px, twin_ambiguity
from ptycho_nb.physics.scans import half_regions, validation_indices
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.fit import prepare
from ptycho_nb.solvers.gauge import aligned_pair
from ptycho_nb.solvers.held_out import HeldOut, hold_out
from ptycho_nb.solvers.lsqml import lsqml_epochs, ptychi_installed
from ptycho_nb.solvers.named import Measurement
from ptycho_nb.solvers.result import Reconstruction
from ptycho_nb.solvers.steps import solve

N = 64
ONE_SPLIT = "amortised, one split"  # judged by the patterns that judge the other rows


@dataclass(frozen=True)
class Profile:
    """What is run, and for how long."""

    doses: tuple[float, ...] = (1e3, 1e4, 1e5, 1e9)  # photons per pattern
    noise_seeds: tuple[int, ...] = (1, 2, 3)  # of the fast rows below 1e6 photons; the slow rows take the first
    n_train: int = 512
    n_test: int = 957
    nepochs: tuple[int, int] = (6, 3)  # at gridsize 1 and 2, where an epoch costs twice as much
    cnn_epochs: int = 2
    scan_doses: tuple[float, ...] = (1e4,)  # of the network on the whole scan's estimate
    mae_doses: tuple[float, ...] = (1e4,)
    supervised_doses: tuple[tuple[float, ...], ...] = ((1e4,), ())  # for each probe, as below
    cnn_doses: tuple[tuple[float, ...], ...] = ((1e9,), (1e4,))
    lsqml_epochs: tuple[int, ...] = (5, 20, 100)
    lsqml_all_doses: tuple[tuple[float, ...], ...] = ((1e4,), ())  # all of these epochs
    lsqml_some_doses: tuple[tuple[float, ...], ...] = ((1e9,), (1e4, 1e9))  # all but the last; elsewhere the first
    other_objects: tuple[str, ...] = ("siemens_star", "random_field")  # that no network was trained on, at 1e4 photons
    overlap_free_doses: tuple[float, ...] = (1e4, 1e9)
    overlap_free_size_px: int = 784
    n_probes: int = 2
    converged: int = 100  # most LSQML epochs on the way to SSIM .999
    repeats: int = 2  # of the runs to SSIM .999


QUICK = Profile(doses=(1e4,), noise_seeds=(1,), n_train=48, n_test=150, nepochs=(1, 1), scan_doses=(), mae_doses=(),
                supervised_doses=((), ()), cnn_doses=((), ()), lsqml_epochs=(2,), other_objects=("siemens_star",),
                overlap_free_doses=(1e9,), overlap_free_size_px=288, n_probes=1, converged=2, repeats=1)


@dataclass(frozen=True)
class Case:
    """A probe, a dose and an object, and whether the patterns overlap."""

    probe: str
    rank: int  # 0: the idealised probe, 1: the other one
    nphotons: float
    overlap: bool = True
    object: str = "lines"

    def __str__(self) -> str:
        others = [self.object] * (self.object != "lines") + ["overlap-free"] * (not self.overlap)
        return ", ".join([self.probe, f"{self.nphotons:.0e}", *others])


Score = Callable[[Reconstruction], dict[str, float]]


def share_of_limit(frc50: float, limit: float) -> dict[str, float]:
    """Nothing, where the photons allow no resolution at all."""
    return {"of_limit": frc50 / limit} if limit > 0 else {}


def amplitude_score(scan: RawData) -> Score:
    """SSIM, PSNR and FRC50 of the amplitude on the bounding box of the patch centres, raw and smoothed."""
    limit = photon_limit(scan).amplitude.value

    def score(result: Reconstruction) -> dict[str, float]:
        aligned, truth, _ = aligned_pair(result, scan.truth)
        image, truth = np.abs(aligned), np.abs(truth)
        metrics, smooth = image_metrics(image, truth), frc_resolution(frc(image, truth), draws=200)
        return {name: metrics[name] for name in ("ssim", "psnr", "frc50")} | {
            "frc50_smoothed": smooth.value, "frc50_low": smooth.low, "frc50_high": smooth.high,
            **share_of_limit(smooth.value, limit)}

    return score


def lit_score(scan: RawData, coverage: Reconstruction) -> Score:
    """SSIM and PSNR of the amplitude where light fell, for scans that leave gaps."""
    part = coverage.crop_to(aligned_region(coverage, scan))
    lit = part.coverage > 0.1 * part.coverage.max()

    def score(result: Reconstruction) -> dict[str, float]:
        aligned, truth, _ = aligned_pair(result, scan.truth, part.region)
        image, truth = np.abs(aligned).astype(float), np.abs(truth).astype(float)
        similarity = structural_similarity(truth, image, data_range=np.ptp(truth), full=True)[1]
        squared_error = np.mean((image - truth)[lit] ** 2)
        return {"ssim": float(similarity[lit].mean()), "psnr": float(10 * np.log10(np.ptp(truth) ** 2 / squared_error))}

    return score


def aligned_region(result: Reconstruction, scan: RawData) -> tuple[int, int, int, int]:
    """The bounding box of the patch centres."""
    low, high = scan.positions_px.min(axis=0).astype(int), scan.positions_px.max(axis=0).astype(int) + 1
    return low[0], high[0], low[1], high[1]


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    """Over the noise seeds that have a number."""
    names = dict.fromkeys(name for one in scores for name in one)
    return {name: float(np.mean([one[name] for one in scores if name in one])) for name in names}


def add(table: Table, case: Case, method: str, results: list[Reconstruction], scores: list[dict], **more) -> None:
    """A row: means over the noise seeds, and the spread of the SSIM."""
    means = mean_scores(scores)
    spread = {"ssim_std": float(np.std([score["ssim"] for score in scores]))} if len(scores) > 1 else {}
    table.add("quality", str(case), method, *(float(np.mean([getattr(result, name) for result in results]))
                                         for name in ("seconds", "cpu_seconds")), **means, **spread, **more)


def fast_methods(overlap: bool) -> dict[str, Callable[[RawData, HeldOut], Reconstruction]]:
    """Rows without any training on this scan, by name; called with a scan and the counts held out of it."""
    if overlap:
        methods = {"estimate, not smoothed": lambda scan, held: estimate(scan, held=held, smoothing_px=(0.0,))}
    else:
        methods = {"estimate, 20 steps": lambda scan, _: estimate(scan, held=hold_out(scan, []), iterations=20)}
    return methods | {
        "estimate": lambda scan, held: estimate(scan, held=held),
        "estimate, amplitude": lambda scan, held: estimate(scan, held=held, likelihood="amplitude"),
        "estimate, with a prior": lambda scan, held: estimate(scan, Measurement(probe="given", prior=True), held=held),
        "amortised": lambda scan, _: amortised(scan),
        "the one call": lambda scan, _: reconstruct(scan)}


def held_out(case: Case, scan: RawData, seed: int) -> np.ndarray | None:
    """The validation patterns; None where patterns stand alone and some of the photons of each are held out instead."""
    return validation_indices(scan.n_patterns, seed=seed) if case.overlap else None


def networks(profile: Profile, case: Case) -> Iterator[tuple[str, ModelConfig, TrainingConfig, Callable]]:
    """The networks that are trained on the other half of this object: name, configurations, and what trains them."""
    overlap = case.overlap
    training = TrainingConfig(nepochs=profile.nepochs[1], targets="held_out" if overlap else "input")
    longer, cnn = replace(training, nepochs=profile.nepochs[0]), replace(training, nepochs=profile.cnn_epochs)
    unet, plain = ModelConfig(N=N), ModelConfig(N=N, generator="cnn")
    alone, mae = replace(unet, gridsize=1), loss_weights("mae")
    yield "residual_unet, gridsize 1, NLL", alone, longer, train_network
    with_cnn = case.nphotons in profile.cnn_doses[case.rank]
    if with_cnn:
        yield "cnn, gridsize 1, NLL", replace(plain, gridsize=1), cnn, train_network
    supervised = case.nphotons in profile.supervised_doses[case.rank]
    if not overlap:
        if supervised:
            yield "supervised residual_unet, gridsize 1", alone, longer, train_supervised
        return
    yield "residual_unet, gridsize 2, NLL", unet, training, train_network
    if with_cnn:
        yield "cnn, gridsize 2, NLL", plain, cnn, train_network
    if supervised:
        yield "supervised residual_unet, gridsize 2", unet, training, train_supervised
    if case.nphotons in profile.scan_doses:
        yield "residual_unet, scan, NLL", replace(unet, estimate_scope="scan"), training, train_network
        yield "residual_unet, pretrained, NLL", replace(unet, estimate_scope="pretrained"), training, train_network
    if case.nphotons in profile.mae_doses:
        yield "residual_unet, gridsize 1, MAE", alone, replace(longer, **mae), train_network
        yield "residual_unet, gridsize 2, MAE", unet, replace(training, **mae), train_network


Halves = Callable[[int], tuple[RawData, RawData]]  # of a noise seed: the training and the test half


def measure_fast(table: Table, profile: Profile, case: Case, halves: Halves) -> dict[str, Reconstruction]:
    """The rows that need no training on this scan; the reconstructions of the first noise seed."""
    seeds = profile.noise_seeds if case.nphotons < 1e6 else profile.noise_seeds[:1]
    methods, runs, scores = fast_methods(case.overlap), {}, {}
    for seed in seeds:
        scan = halves(seed)[1]
        validation = held_out(case, scan, seed)
        for name, method in methods.items():
            result = method(scan, hold_out(scan, validation))
            if name == next(iter(methods)):
                score = amplitude_score(scan) if case.overlap else lit_score(scan, result)
            runs.setdefault(name, []).append(result)
            scores.setdefault(name, []).append(score(result))
    for name in methods:
        add(table, case, name, runs[name], scores[name])
    return {name: results[0] for name, results in runs.items()}


def measure_case(table: Table, profile: Profile, case: Case, halves: Halves) -> None:
    """All rows of one probe and dose."""
    fast = measure_fast(table, profile, case, halves)
    train, test = halves(profile.noise_seeds[0])
    validation = held_out(case, test, profile.noise_seeds[0])
    score = amplitude_score(test) if case.overlap else lit_score(test, next(iter(fast.values())))

    def refine(name: str, result: Reconstruction) -> None:
        refined = estimate(test, held=hold_out(test, validation), start=result)
        add(table, case, f"{name} + refine", [refined], [score(refined)], note="seconds of the refinement alone")

    once = amortised(test, held=hold_out(test, validation), splits=1)
    add(table, case, ONE_SPLIT, [once], [score(once)])
    refine(ONE_SPLIT, once)
    if case.nphotons == 1e3:
        return  # only the rows that the doses between 1e3 and 1e9 are asked of
    for name, model_config, training_config, train_with in networks(profile, case):
        model, history = train_with(train, model_config, training_config, progress=False)
        if name in ("residual_unet, gridsize 1, NLL", "residual_unet, gridsize 2, NLL"):
            group = reconstruct(test, model.untrained(), exclude=validation)
            add(table, case, f"no network, gridsize {model_config.gridsize}", [group], [score(group)],
                note="each group's own estimate, stitched")
        header, image = history["header"], reconstruct(test, model, exclude=validation)
        image = replace(image, seconds=image.seconds + header["seconds"],
                        cpu_seconds=image.cpu_seconds + header["cpu_seconds"])
        add(table, case, name, [image], [score(image)], note=f"{header['seconds']:.0f} s of them training")
        refine(name, image)
    if ptychi_installed():
        measure_lsqml(table, profile, case, test, validation, score)


def measure_lsqml(table: Table, profile: Profile, case: Case, scan: RawData, validation: np.ndarray | None,
                  score: Score) -> None:
    """LSQML after several numbers of epochs, from one run for each noise model."""
    wanted = profile.lsqml_epochs[:1]
    if case.overlap and case.nphotons in profile.lsqml_all_doses[case.rank]:
        wanted = profile.lsqml_epochs
    elif case.overlap and case.nphotons in profile.lsqml_some_doses[case.rank]:
        wanted = profile.lsqml_epochs[:-1] or wanted
    for noise_model in ("poisson", "gaussian"):
        held = hold_out(scan, np.array([], int) if validation is None else validation)
        for result in lsqml_epochs(scan, wanted[-1], noise_model, held=held):
            if (epoch := result.info["epochs"]) in wanted:
                add(table, case, f"LSQML {noise_model}, {epoch} epochs", [result], [score(result)])


def warm_up(profile: Profile, probe: np.ndarray) -> None:
    """Every fast method and two epochs of LSQML on a small scan: loading and compiling are in no row."""
    _, scan = simulate_halves(SimulationConfig(nphotons=1e4, n_train=1, n_test=min(200, profile.n_test)), probe)
    held = hold_out(scan)
    for method in fast_methods(overlap=True).values():
        method(scan, held)
    if ptychi_installed():
        for noise_model in ("poisson", "gaussian"):
            for _ in lsqml_epochs(scan, 2, noise_model, held=held):
                pass


def time_to_999(table: Table, profile: Profile, case: Case, scan: RawData) -> None:
    """Seconds to an SSIM of .999, methods in turn and each the best of some runs, everything but scoring included.

    LSQML has as many threads as PyTorch takes, and one, which on small patterns may be as fast.
    """
    held, score = hold_out(scan, validation_indices(scan.n_patterns, seed=1)), amplitude_score(scan)
    course, fit = estimate(scan, held=held), prepare(scan, held)
    iterations = next((step.iteration for step in solve(fit.problem, 60)
                       if score(replace(course, object=step.object))["ssim"] >= 0.999), 60)

    def ours() -> Reconstruction:
        return estimate(scan, held=held, iterations=iterations)

    def theirs(noise_model: str) -> Reconstruction:
        import torch

        usual, results = torch.get_num_threads(), []
        for threads in sorted({usual, 1}):
            torch.set_num_threads(threads)
            for result in lsqml_epochs(scan, profile.converged, noise_model, held=held):
                if score(result)["ssim"] >= 0.999:
                    break
            results.append(replace(result, info=result.info | {"threads": threads}))
        torch.set_num_threads(usual)
        return min(results, key=lambda result: result.seconds)

    methods = {"estimate to SSIM .999": ours}
    if ptychi_installed():
        methods |= {f"LSQML {name} to SSIM .999": partial(theirs, name) for name in ("poisson", "gaussian")}
    runs = [{name: method() for name, method in methods.items()} for _ in range(profile.repeats)]
    for name in methods:
        best = min((run[name] for run in runs), key=lambda result: result.seconds)
        steps = best.info["epochs"] if "epochs" in best.info else len(best.info["history"])
        reached = score(best)
        note = f"{steps} passes over the patterns, warmed up"
        note += f", threads: {best.info['threads']}" if "threads" in best.info else ""
        note += "" if reached["ssim"] >= 0.999 else "; not reached"
        add(table, case, name, [best], [reached], note=note)


def overlap_free_halves(config: SimulationConfig, probe: np.ndarray) -> tuple[RawData, RawData]:
    """Two halves whose patterns lie farther apart than the probe's diameter, on a square grid of whole pixels."""
    step = int(np.ceil(1.02 * probe_diameter_px(probe)))
    sample = make_object(config.object_kind, config.object_size_px, config.seeds()["object_seed"])
    scans = []
    for half, (y0, y1, x0, x1) in zip(("train", "test"), half_regions(config.object_size_px, N), strict=True):
        positions = np.stack(np.meshgrid(np.arange(y0, y1 + 1, step), np.arange(x0, x1 + 1, step), indexing="ij"), -1)
        scans.append(generate_simulated_data(config, sample, probe, positions.reshape(-1, 2).astype(float), half))
    return tuple(scans)


def benchmark_probes(profile: Profile, star: Path | None) -> dict[str, np.ndarray]:
    """The idealised probe, and the measured one or another that is curved."""
    second = crop_probe_fourier(load_data(star).probe, N) if star else make_probe("defocused", N)
    probes = {"disk": make_probe("disk", N), "experimental" if star else "defocused": second}
    return dict(list(probes.items())[: profile.n_probes])


def benchmark_halves(profile: Profile, probe: np.ndarray, nphotons: float, object_kind: str,
                     seed: int) -> tuple[RawData, RawData]:
    """Training and test half of a simulated scan with overlap."""
    return simulate_halves(SimulationConfig(nphotons=nphotons, object_kind=object_kind, n_train=profile.n_train,
                                            n_test=profile.n_test, noise_seed=seed), probe)


def measure(table: Table, quick: bool, star: Path | None) -> None:
    """All quality rows."""
    profile = QUICK if quick else Profile()
    table.about["trained on"] = (f"{profile.n_train} patterns, {profile.nepochs[0]} epochs at gridsize 1, "
                                 f"{profile.nepochs[1]} at gridsize 2, {profile.cnn_epochs} of the cnn")
    table.about["warmed up"] = "solvers, LSQML and the pretrained network, on a small scan, before the clock starts"
    probes = benchmark_probes(profile, star)
    warm_up(profile, probes["disk"])
    for rank, (kind, probe) in enumerate(probes.items()):
        table.about[f"{kind} probe"] = f"correlation with its twin {twin_ambiguity(probe)['correlation']:.2f}"

        def halves(seed: int, nphotons: float, object_kind: str = "lines", probe=probe) -> tuple[RawData, RawData]:
            return benchmark_halves(profile, probe, nphotons, object_kind, seed)

        def apart(seed: int, nphotons: float, probe=probe) -> tuple[RawData, RawData]:
            return overlap_free_halves(SimulationConfig(
                nphotons=nphotons, object_size_px=profile.overlap_free_size_px, noise_seed=seed), probe)

        for nphotons in profile.doses:
            measure_case(table, profile, Case(kind, rank, nphotons), partial(halves, nphotons=nphotons))
        for other in profile.other_objects:
            measure_fast(table, profile, Case(kind, rank, 1e4, object=other),
                         partial(halves, nphotons=1e4, object_kind=other))
        time_to_999(table, profile, Case(kind, rank, 1e9), halves(1, 1e9)[1])
        for nphotons in profile.overlap_free_doses:
            measure_case(table, profile, Case(kind, rank, nphotons, overlap=False), partial(apart, nphotons=nphotons))
