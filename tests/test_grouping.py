"""Groups, their targets, the container and its batches."""
import math
import time
import tracemalloc

import numpy as np
import pytest

from ptycho_nb.config import InputError, ModelConfig, TrainingConfig
from ptycho_nb.data.scan import RawData
from ptycho_nb.network.groups import group_data, held_out_targets
from ptycho_nb.physics.neighbours import group_indices, nearest_neighbours
from ptycho_nb.physics.probes import disk_probe


def scan(n, N=64, side_px=200.0, seed=0, whole=False):
    """Constant patterns, each with its own number; one bright pixel, so that none is too dark to be used."""
    positions = np.random.default_rng(seed).uniform(0, side_px, (n, 2))
    amplitude = np.repeat(np.arange(1, n + 1, dtype=np.float32), N * N).reshape(n, N, N)
    amplitude[:, -1, -1] = 1e6
    return RawData(amplitude, np.round(positions) if whole else positions, disk_probe(N))


def distances(positions, groups):
    return np.linalg.norm(positions[groups] - positions[groups[:, :1]], axis=-1)


# Neighbours and groups

def test_neighbours_equal_brute_force():
    positions = np.random.default_rng(0).uniform(0, 100, (300, 2))
    distance = np.linalg.norm(positions[:, None] - positions, axis=-1)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(nearest_neighbours(positions, 7), np.argsort(distance, axis=1)[:, :7])


def test_no_pattern_is_its_own_neighbour_even_at_shared_positions():
    positions = np.random.default_rng(1).integers(0, 6, (500, 2)).astype(float)  # about 14 patterns at each place
    for count in (1, 3, 20):
        neighbours = nearest_neighbours(positions, count)
        assert neighbours.shape == (500, count)
        assert not (neighbours == np.arange(500)[:, None]).any()
        assert all(len(set(row)) == count for row in neighbours.tolist())


@pytest.mark.parametrize("C", [1, 4, 9])
@pytest.mark.parametrize("n_groups", [None, 17, 60, 61, 500])
def test_groups_are_groups(C, n_groups):
    positions = np.random.default_rng(2).uniform(0, 100, (60, 2))
    groups = group_indices(positions, C, n_groups, seed=3)
    assert groups.shape == (n_groups or 60, C)
    assert all(len(set(group)) == C for group in groups.tolist())
    assert (np.diff(distances(positions, groups), axis=1) >= 0).all(), "members in order of distance"
    seeds = np.bincount(groups[:, 0], minlength=60)
    assert seeds.max() - seeds.min() <= 1, "every pattern leads equally often"
    np.testing.assert_array_equal(groups, group_indices(positions, C, n_groups, seed=3))
    if (n_groups or 60) <= 60:
        np.testing.assert_array_equal(groups[:, 1:], nearest_neighbours(positions, C - 1)[groups[:, 0]])


def test_k_choose_c_draws_all_subsets_alike():
    positions, K, C = np.random.default_rng(4).uniform(0, 100, (40, 2)), 6, 4
    groups = group_indices(positions, C, n_groups=40 * 1000, neighbor_count=K, seed=5)
    near = nearest_neighbours(positions, K)
    rank = (near[groups[:, 0]][:, None, :] == groups[:, 1:, None]).argmax(axis=2)
    assert (near[groups[:, 0]][np.arange(len(groups))[:, None], rank] == groups[:, 1:]).all(), "only the K nearest"
    drawn = rank[groups[:, 0] == 7][1:]
    subsets, times = np.unique(drawn, axis=0, return_counts=True)
    expected = len(drawn) / math.comb(K, C - 1)
    assert len(subsets) == math.comb(K, C - 1)
    assert np.abs(times - expected).max() < 5 * np.sqrt(expected)
    other = group_indices(positions, C, n_groups=40 * 1000, neighbor_count=K, seed=6)
    assert not np.array_equal(groups, other) and np.array_equal(groups[:40], other[:40])


def test_too_few_points_say_so():
    positions = np.zeros((2, 2))
    with pytest.raises(InputError, match=r"2 points.*at least 4"):
        group_indices(positions, 4)
    with pytest.raises(InputError, match=r"5 points.*11 for 10 neighbours"):
        group_indices(np.zeros((5, 2)), 4, n_groups=20, neighbor_count=10)
    with pytest.raises(InputError, match="neighbor_count"):
        group_indices(np.zeros((50, 2)), 4, n_groups=100, neighbor_count=3)
    with pytest.raises(InputError, match=r"4 points.*at least 5.*targets='input'"):
        held_out_targets(np.zeros((4, 2)), np.array([[0, 1, 2, 3]]))


def test_ten_thousand_patterns_are_grouped_within_a_cpu_second():
    positions = np.random.default_rng(7).uniform(0, 3000, (10_000, 2))
    started = time.process_time()
    groups = group_indices(positions, 4)
    targets = held_out_targets(positions, groups)
    assert time.process_time() - started < 1
    assert groups.shape == targets.shape == (10_000, 4)
    started = time.process_time()
    group_indices(positions, 4, n_groups=100_000)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("C", [1, 4])
@pytest.mark.parametrize("n_groups", [None, 400])
def test_held_out_targets_are_the_nearest_that_are_not_inputs(C, n_groups):
    positions = np.random.default_rng(8).uniform(0, 100, (80, 2))
    groups = group_indices(positions, C, n_groups)
    targets = held_out_targets(positions, groups)
    assert targets.shape == (len(groups), C)
    for group, target in zip(groups, targets, strict=True):
        others = np.setdiff1d(np.arange(80), group)
        centre = positions[group].mean(axis=0)
        by_distance = others[np.argsort(np.linalg.norm(positions[others] - centre, axis=1))]
        np.testing.assert_array_equal(target, by_distance[:C])


def test_a_scan_with_few_patterns_has_fewer_targets():
    positions = np.random.default_rng(9).uniform(0, 9, (6, 2))
    targets = held_out_targets(positions, group_indices(positions, 4))
    assert targets.shape == (6, 2)


# The container

@pytest.mark.parametrize("gridsize", [1, 2])
@pytest.mark.parametrize("targets", ["input", "held_out"])
def test_corner_and_remainder_give_back_the_position(gridsize, targets):
    data = scan(100)
    shifted = RawData(data.diff3d, data.positions_px - 90.5, data.probe)  # some positions below zero, and halves
    container = group_data(shifted, ModelConfig(gridsize=gridsize), targets=targets, n_groups=250)
    rows = np.arange(len(container))
    for patterns in (container.inputs, container.targets):
        corners, remainder = container.corners(patterns, rows), container.remainder(patterns)
        assert corners.dtype == np.int32 and remainder.dtype == np.float32
        assert corners.min() >= 0 and corners.max() + 64 <= container.canvas_px, "no patch leaves its canvas"
        assert (remainder >= -0.5).all() and (remainder <= 0.5).all()
        centre = corners + container.N // 2 + container.canvas_corner_px[:, None]
        np.testing.assert_allclose(centre + remainder.astype(float), shifted.positions_px[patterns], rtol=0, atol=1e-6)
        exact = shifted.positions_px[patterns] - centre
        np.testing.assert_array_equal(exact.astype(np.float32), remainder)
    np.testing.assert_allclose(container.relative_px.mean(axis=1), 0, atol=1e-9)
    assert np.abs(container.anchor_px - container.centre_px).max() <= 0.5
    assert container.subpixel and not group_data(scan(100, whole=True), ModelConfig()).subpixel


def test_excluded_patterns_appear_nowhere():
    data, excluded = scan(60), np.array([0, 7, 8, 59])
    container = group_data(data, ModelConfig(), exclude=excluded, targets="held_out", n_groups=300)
    assert not np.isin([container.inputs, container.targets], excluded).any()
    used = np.setdiff1d(np.arange(60), excluded)
    np.testing.assert_array_equal(np.unique(container.inputs), used)
    power = (data.diff3d[used].astype(float) ** 2).sum((1, 2)).mean()
    assert np.isclose(container.intensity_scale, np.sqrt(power) / 32)


def test_batches_hold_what_they_say():
    data = scan(50)
    container = group_data(data, ModelConfig(), TrainingConfig(targets="held_out"))
    rows = np.array([4, 40, 11])
    batch = container.batch(rows)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {
        "amplitude": ((3, 64, 64, 4), "float32"), "target": ((3, 64, 64, 4), "float32"),
        "input_corners": ((3, 4, 2), "int32"), "target_corners": ((3, 4, 2), "int32"),
        "input_remainder": ((3, 4, 2), "float32"), "target_remainder": ((3, 4, 2), "float32")}
    for name, patterns in (("amplitude", container.inputs[rows]), ("target", container.targets[rows])):
        np.testing.assert_allclose(batch[name][:, 5, 9] * container.intensity_scale, patterns + 1, rtol=1e-6)


def test_streaming_is_complete_and_deterministic():
    container = group_data(scan(50), ModelConfig())

    def passes(**options):
        return [batch["row"].numpy() for batch in container.batches(16, extra=lambda rows: {"row": rows}, **options)]

    np.testing.assert_array_equal(np.concatenate(passes()), np.arange(50))
    shuffled = np.concatenate(passes(shuffle_seed=1))
    np.testing.assert_array_equal(np.sort(shuffled), np.arange(50))
    np.testing.assert_array_equal(shuffled, np.concatenate(passes(shuffle_seed=1)))
    assert not np.array_equal(shuffled, np.concatenate(passes(shuffle_seed=2)))
    assert [len(rows) for rows in passes()] == [16, 16, 16, 2]
    assert len(container.batches(16)) == 4


def test_the_container_holds_numbers_and_not_groups():
    data = scan(500)
    all_groups = 20_000 * 4 * 64 * 64 * 4  # bytes: 1.3 GB
    tracemalloc.start()
    container = group_data(data, ModelConfig(), n_groups=20_000, targets="held_out")
    for first in range(0, 320, 16):
        container.batch(np.arange(first, first + 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert container.amplitude is data.diff3d
    assert peak < all_groups / 30


def test_a_canvas_as_large_as_the_scan_asks_for():
    positions = np.array([[0.0, 0.0], [0.0, 800.0], [800.0, 0.0], [800.0, 800.0]])
    far = RawData(np.ones((4, 64, 64), np.float32), positions, disk_probe(64))
    container = group_data(far, ModelConfig())
    corners = container.corners(container.inputs, np.arange(4))
    assert container.canvas_px >= 64 + 800 and corners.min() >= 0 and corners.max() + 64 <= container.canvas_px


def test_wrong_input_says_so():
    with pytest.raises(InputError, match=r"2 points.*at least 4"):
        group_data(scan(2), ModelConfig())
    with pytest.raises(InputError, match="N = 128"):
        group_data(scan(9), ModelConfig(N=128))
    with pytest.raises(InputError, match="held_out"):
        group_data(scan(9), ModelConfig(), targets="heldout")
    dark = RawData(np.zeros((9, 64, 64), np.float32), scan(9).positions_px, disk_probe(64))
    with pytest.raises(InputError, match="no photons"):
        group_data(dark, ModelConfig())
