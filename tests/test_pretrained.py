"""The pretrained network: on scans and objects that it has never seen, at every dose, and what it refuses."""
import os
from dataclasses import replace

import numpy as np
import pytest

from ptycho_nb.analysis.metrics import compare
from ptycho_nb.config import InputError, SimulationConfig
from ptycho_nb.data.simulation import simulate_halves
from ptycho_nb.network.pretrained import amortised, build_corrector, correct, load_pretrained, solver_view
from ptycho_nb.physics.probes import make_probe
from ptycho_nb.physics.scans import validation_indices
from ptycho_nb.solvers.estimate import estimate
from ptycho_nb.solvers.held_out import hold_out


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
    found = amortised(scan, shipped, held=hold_out(scan, validation))
    assert ssim(found, scan) > ssim(estimate(scan, held=hold_out(scan, validation)), scan) + gain


@pytest.mark.parametrize("nphotons", [1e3, 1e5, 1e7, 1e9])
def test_it_costs_nothing_at_any_dose(shipped, nphotons):
    scan = small_scan(nphotons=nphotons)
    validation = validation_indices(scan.n_patterns, 0.1, 0)
    found = amortised(scan, shipped, held=hold_out(scan, validation))
    assert ssim(found, scan) > ssim(estimate(scan, held=hold_out(scan, validation)), scan) - 5e-4


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
    found = amortised(scan, shipped, held=hold_out(scan, validation))
    refined = estimate(scan, held=hold_out(scan, validation), start=found)
    kept = refined.info["chosen"]["nll_per_pixel"]
    assert kept <= min(found.info["validation_nll_per_pixel"].values()) + 1e-6


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
    found = [correct(item, shipped.network) for item in (straight, turned)]
    np.testing.assert_allclose(np.rot90(found[1], -1), found[0], atol=1e-4)


def test_a_probe_that_is_not_known_is_refined_first(shipped):
    scan = small_scan(n=120, nphotons=1e6)
    wrong = replace(scan, probe=make_probe("defocused", 64), metadata={})
    found = amortised(wrong, shipped)
    assert np.linalg.norm(found.probe / np.linalg.norm(found.probe) - wrong.probe / np.linalg.norm(wrong.probe)) > 0.05


def test_the_same_scan_gives_the_same_object(shipped):
    scan = small_scan(n=60)
    np.testing.assert_array_equal(amortised(scan, shipped).object, amortised(scan, shipped).object)


def test_refusals(tmp_path, shipped):
    with pytest.raises(InputError, match=r"no such file.*save_pretrained"):
        load_pretrained(tmp_path / "none.npz")
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
