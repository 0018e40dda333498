"""Dose and overlap: views of one scan and how much overlap they have."""
import numpy as np
import pytest

from ptycho_nb.config import InputError
from ptycho_nb.physics.scans import make_positions
from ptycho_nb.studies.overlap_views import (
    OverlapDesign,
    OverlapView,
    SkippedView,
    centre_overlap,
    design_view,
    image_overlap,
    keep_distance,
    make_view,
    overlap_report,
    seed_overlap,
)

QUICK = OverlapDesign.quick()
SCAN = make_positions("fermat", 400, (352, 608, 32, 608), seed=1)


@pytest.mark.parametrize("d, linear, area", [(0.0, 1.0, 1.0), (15.0, 0.5, 0.391), (30.0, 0.0, 0.0), (80.0, 0.0, 0.0)])
def test_overlap_of_two_disks(d, linear, area):
    places = np.array([[0.0, 0.0], [0.0, d]])
    pair = OverlapView("pair", places, np.array([[0, 1]]), np.arange(2), 0.0, 1)
    found = seed_overlap(pair, 30.0)
    assert found == pytest.approx({"linear": linear, "area": area}, abs=5e-4)
    found = centre_overlap(places, 30.0)
    assert found == pytest.approx({"linear": linear, "area": area, "partners": float(d < 30)}, abs=5e-4)
    if d:
        assert image_overlap(places, 30.0, 1) == pytest.approx({"linear": linear, "area": area, "removed": 0}, abs=5e-4)


def test_a_place_visited_again_counts_once():
    again = np.concatenate([SCAN, SCAN[::3], SCAN[::5]])
    view, doubled = (make_view("all", at, QUICK, gridsize=1) for at in (SCAN, again))
    assert len(doubled.groups) == len(SCAN) and len(np.unique(again[doubled.patterns], axis=0)) == len(SCAN)
    found, expected = image_overlap(again, 25.0), image_overlap(SCAN, 25.0)
    assert found["removed"] == len(again) - len(SCAN) and found["area"] == pytest.approx(expected["area"])
    assert overlap_report(view, 25.0)["seed_to_members"] is None


@pytest.mark.parametrize("spacing", [1e-9, 10.0, 40.0, 1e4])
@pytest.mark.parametrize("seed", [0, 7])
def test_centres_keep_their_distance_and_none_is_lost_without_need(spacing, seed):
    kept = keep_distance(SCAN, spacing, seed)
    distance = np.linalg.norm(SCAN[:, None] - SCAN[kept][None], axis=-1)
    assert np.array_equal(kept, keep_distance(SCAN, spacing, seed)) and len(np.unique(kept)) == len(kept)
    among = distance[kept] + np.diag(np.full(len(kept), np.inf))
    assert among.min(initial=np.inf) >= spacing
    assert np.all(distance.min(axis=1) < spacing), "each of the others lies too close to one that stays"


def test_exactly_at_the_spacing_is_far_enough():
    line = np.stack([np.zeros(5), 10.0 * np.arange(5)], axis=1)
    assert len(keep_distance(line, 10.0)) == 5 and len(keep_distance(line, 10.001)) < 5


def test_controls_are_what_they_say():
    view = make_view("some", SCAN, QUICK, s_img=0.5, n_groups=500)
    assert (len(view.images), len(view.groups), view.offered) == (200, 500, 500)
    assert np.isin(view.groups, view.images).all() and view.groups.shape[1] == 4
    fewer = make_view("some", SCAN, QUICK, gridsize=1, n_groups=50)
    assert fewer.groups.shape == (50, 1)
    for wrong in ({"s_img": 0.0}, {"s_img": 1.5}, {"n_groups": 0}):
        with pytest.raises(InputError):
            make_view("wrong", SCAN, QUICK, **wrong)
    with pytest.raises(InputError, match=r"sprase.*Did you mean 'sparse'"):
        design_view("sprase", SCAN, QUICK)


def test_a_view_with_too_few_groups_says_why():
    few = make_view("few", SCAN, QUICK, spacing_px=200.0)
    assert isinstance(few, SkippedView) and "of 400 groups accepted at a spacing of 200 px, fewer than 20" in few.reason
    none = make_view("none", SCAN, QUICK, s_img=0.01)
    assert isinstance(none, SkippedView) and none.reason.startswith("4 images, too few")


def test_the_design_is_that_of_the_study():
    design = OverlapDesign()
    assert design.doses == (1e3, 1e4, 1e5) and (design.N, design.gridsize, design.neighbor_count) == (128, 2, 7)
    assert (design.simulation_seed, design.grouping_seed, design.subsampling_seed) == (42, 123, 456)
    assert [design.spacing_px(f) for f in (design.dense, design.sparse)] == pytest.approx([38.4, 102.4])
    assert OverlapDesign.from_json(QUICK.to_json()) == QUICK
