"""The pretrained network: on scans and objects that it has never seen, at every dose, and what it refuses."""
import os
from dataclasses import replace

import numpy as np
import pytest

from ptycho_nb.analysis.metrics import compare
from ptycho_nb.config import InputError, SimulationConfig
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.network import candidates, pretrained
from ptycho_nb.network.pretrained import amortised, build_corrector, correct, load_pretrained, solver_view
from ptycho_nb.physics.probes import make_probe
from ptycho_nb.physics.scans import validation_indices
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.held_out import hold_out
from ptycho_nb.solvers.positions import moved_freely


def small_scan(kind="lines", probe="disk", nphotons=1e4, **settings):
    config = SimulationConfig(nphotons=nphotons, object_kind=kind, n_train=1, n_test=settings.pop("n", 300), seed=11,
                              object_size_px=256, **settings)
    return simulate_halves(config, make_probe(probe, 64))[1]


def ssim(result, scan):
    return compare(result, scan.truth)["amplitude"]["ssim"]


@pytest.fixture(scope="module")
def shipped():
    return load_pretrained()


@pytest.mark.parametrize(("kind", "probe", "gain"), [
    ("lines", "disk", 0.02), ("lines", "defocused", 0.02), ("siemens_star", "disk", 0), ("random_field", "disk", 0)])
def test_it_improves_objects_that_it_has_never_seen(shipped, kind, probe, gain):
    scan = small_scan(kind, probe)
    validation = validation_indices(scan.n_patterns, 0.1, 0)
    result = amortised(scan, shipped, held=hold_out(scan, validation))
    assert ssim(result, scan) > ssim(estimate(scan, held=hold_out(scan, validation)), scan) + gain


@pytest.mark.parametrize("nphotons", [1e3, 1e5, 1e7, 1e9])
def test_it_costs_nothing_at_any_dose(shipped, nphotons):
    scan = small_scan(nphotons=nphotons)
    validation = validation_indices(scan.n_patterns, 0.1, 0)
    result = amortised(scan, shipped, held=hold_out(scan, validation))
    assert ssim(result, scan) > ssim(estimate(scan, held=hold_out(scan, validation)), scan) - 5e-4


def test_every_pattern_is_used_by_some_split(shipped):
    scan = small_scan()
    once, together = (amortised(scan, shipped, splits=splits) for splits in (1, 4))
    assert ssim(together, scan) > ssim(once, scan) and together.info["splits"] == 4
    assert np.all(together.coverage[once.coverage > 0] > 0)
    kept = validation_indices(scan.n_patterns, 0.1, 0)
    assert amortised(scan, shipped, held=hold_out(scan, kept)).info["splits"] == 1, "given patterns are never fitted"


def test_it_starts_the_refinement(shipped):
    scan = small_scan(n=120)
    validation = validation_indices(scan.n_patterns, 0.1, 0)
    result = amortised(scan, shipped, held=hold_out(scan, validation))
    refined = estimate(scan, held=hold_out(scan, validation), start=result)
    kept = refined.info["chosen"]["nll_per_pixel"]
    assert kept <= min(result.info["validation_nll_per_pixel"].values()) + 1e-6


def test_a_turned_scan_gives_the_turned_object(shipped):
    """The mean over eight orientations turns with the canvas, whatever the network has learned."""
    scan = small_scan(n=60)
    view = solver_view(scan, hold_out(scan))
    square = slice(0, 128), slice(0, 128)  # a multiple of eight: nothing has to be padded

    def part(image, turns):
        return np.rot90(image[square], turns)

    straight, turned = (
        replace(view, base=replace(view.base, object=part(view.base.object, k), coverage=part(view.base.coverage, k)),
                steps=tuple(part(step, k) for step in view.steps)) for k in (0, 1))
    corrected = [correct(item, shipped.network) for item in (straight, turned)]
    np.testing.assert_allclose(np.rot90(corrected[1], -1), corrected[0], atol=1e-4)


def test_a_probe_that_is_not_known_is_refined_first(shipped):
    scan = small_scan(n=120, nphotons=1e6)
    wrong = replace(scan, probe=make_probe("defocused", 64), metadata={})
    image = amortised(wrong, shipped)
    assert np.linalg.norm(image.probe / np.linalg.norm(image.probe) - wrong.probe / np.linalg.norm(wrong.probe)) > 0.05


def test_one_graph_computes_what_the_layers_compute():
    exact = load_pretrained(precision="float32")
    for height, width in ((32, 40), (48, 24)):
        features = np.random.default_rng(0).normal(size=(1, height, width, 20)).astype(np.float32)
        np.testing.assert_allclose(np.asarray(exact.apply(features)), np.asarray(exact.network(features)), atol=2e-4)


def test_short_numbers_change_next_to_nothing():
    scan = small_scan(n=60)
    exact, short = (amortised(scan, load_pretrained(precision=precision)) for precision in ("float32", "bfloat16"))
    assert not np.array_equal(exact.object, short.object)
    assert abs(ssim(exact, scan) - ssim(short, scan)) < 5e-4


def test_a_split_that_begins_where_another_ended_finds_its_own_choice():
    scan = small_scan()
    first, second = (hold_out(scan, seed=seed) for seed in (0, 1))
    alone, beside = solver_view(scan, second), solver_view(scan, second, solver_view(scan, first))
    deviances = [view.base.info["chosen"]["nll_per_pixel"] for view in (alone, beside)]
    assert beside.held is second and deviances[1] < deviances[0] * 1.0005
    assert len(beside.base.info["history"]) < len(alone.base.info["history"]) - 4, "first steps are not judged"


def test_where_the_first_split_ends_late_the_others_search_from_the_beginning():
    scan = small_scan(n=60, nphotons=1e7)
    first, second = (hold_out(scan, seed=seed) for seed in (0, 1))
    late, alone = solver_view(scan, first), solver_view(scan, second)
    assert late.base.info["chosen"]["iteration"] > 20
    beside = solver_view(scan, second, late)
    np.testing.assert_array_equal(beside.base.object, alone.base.object)
    assert len(beside.base.info["history"]) == len(alone.base.info["history"]), "every step is judged"


def test_whoever_stops_does_not_wait_for_the_other_splits(shipped, monkeypatch):
    steps, solve = [], pretrained.solve

    def counted(*arguments):
        for step in solve(*arguments):
            steps.append(step.iteration)
            yield step

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "solve", counted)
    monkeypatch.setattr(pretrained, "correct", stopped)  # while the solver is at the next splits
    scan = small_scan(n=60, nphotons=1e9)
    with pytest.raises(KeyboardInterrupt):
        amortised(scan, shipped)
    assert 60 <= len(steps) < 100, "the first split needs all sixty steps, and so would the three others"


def test_the_same_scan_gives_the_same_object(shipped):
    scan = small_scan(n=60)
    np.testing.assert_array_equal(amortised(scan, shipped).object, amortised(scan, shipped).object)


def test_refusals(tmp_path, shipped):
    with pytest.raises(InputError, match=r"no such file.*save_pretrained"):
        load_pretrained(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"precision.*float16"):
        load_pretrained(precision="float16")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="no weights of a corrector"):
        load_pretrained(tmp_path / "other.npz")
    with pytest.raises(InputError, match=r"validation.*no patterns"):
        amortised(small_scan(n=30), shipped, held=hold_out(small_scan(n=30), np.array([], int)))
    with pytest.raises(InputError, match=r"splits.*0.*at least 1"):
        amortised(small_scan(n=30), shipped, splits=0)
    with pytest.raises(InputError, match=r"orientations.*9.*1 to 8"):
        amortised(small_scan(n=30), shipped, orientations=9)


def test_the_file_is_small_enough_to_come_with_the_package():
    import ptycho_nb

    folder = os.path.join(os.path.dirname(ptycho_nb.__file__), "weights")
    assert sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) < 5e6
    assert build_corrector().count_params() < 2e6


def test_what_moved_positions_have_made_is_a_candidate_on_the_canvas_of_the_others():
    _, scan = simulate_halves(SimulationConfig(nphotons=1e4, object_size_px=192, n_train=16, n_test=80))
    held = hold_out(scan, [1, 9, 20])
    moved, _ = moved_freely(scan, held, None, "poisson", False, iterations=6)
    view = solver_view(replace(scan, positions_px=moved.positions_px, object=None), held)
    assert moved.object.shape != view.base.object.shape  # positions that move need a margin
    placed = replace(view.base, object=candidates._under_light_of(view, moved))
    assert held.deviance(placed) == pytest.approx(held.deviance(moved), rel=1e-5)


def test_a_measured_scan_in_one_call():
    _, scan = simulate_halves(SimulationConfig(nphotons=1e4, object_kind="siemens_star", probe_kind="defocused",
                                               object_size_px=192, n_train=16, n_test=80))
    measured = replace(scan, object=None, metadata={})
    image = candidates.reconstruct(measured, splits=2, progress=False)
    alone = estimate(measured, progress=False)
    rows = [row["name"] for row in image.info["candidates"]]
    assert image.method == "best" and image.info["chosen"] in rows
    assert rows[:3] == ["estimate", "network by half", "network"]
    assert ssim(image, scan) > ssim(alone, scan) - 0.01
