"""Configurations: types, ranges, names, and the same value in every process."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from ptycho_nb.config import (
    InferenceConfig,
    InputError,
    ModelConfig,
    SimulationConfig,
    TrainingConfig,
    check_choice,
    derive_seeds,
)

CONFIGS = (ModelConfig, SimulationConfig, TrainingConfig, InferenceConfig)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (SimulationConfig, "N", 101),
        (SimulationConfig, "N", 30),
        (ModelConfig, "N", 1026),
        (SimulationConfig, "N", "64"),
        (SimulationConfig, "N", True),
        (ModelConfig, "N", 64.5),
        (ModelConfig, "gridsize", 0),
        (ModelConfig, "gridsize", True),
        (ModelConfig, "gridsize", None),
        (ModelConfig, "generator", 3),
        (ModelConfig, "estimate_scope", "groups"),
        (ModelConfig, "probe_trainable", 1),
        (ModelConfig, "probe_trainable", "true"),
        (SimulationConfig, "nphotons", 0),
        (SimulationConfig, "nphotons", -1e4),
        (SimulationConfig, "nphotons", float("nan")),
        (SimulationConfig, "nphotons", float("inf")),
        (SimulationConfig, "nphotons", "1e4"),
        (SimulationConfig, "nphotons", True),
        (SimulationConfig, "n_train", 0),
        (SimulationConfig, "seed", -1),
        (SimulationConfig, "seed", 1.5),
        (SimulationConfig, "seed", float("nan")),
        (SimulationConfig, "scan_seed", "0"),
        (SimulationConfig, "object_size_px", 100),
        (TrainingConfig, "learning_rate", 0.0),
        (TrainingConfig, "mae_weight", -1),
        (TrainingConfig, "validation_fraction", 0.6),
        (TrainingConfig, "targets", "heldout"),
        (TrainingConfig, "precision", "float16"),
        (TrainingConfig, "nepochs", 0),
        (InferenceConfig, "batch_size", 0),
    ],
)
def test_a_wrong_value_is_refused_by_name(cls, name, value):
    with pytest.raises(InputError) as refused:
        cls(**{name: value})
    assert name in refused.value.what
    assert str(value) in str(refused.value.found)
    assert refused.value.expected and refused.value.remedy


def test_papermill_numbers_are_put_right():
    config = SimulationConfig(nphotons=10_000, seed=1e3, n_train=np.float64(7), N=np.int64(128), scan_seed=5.0)
    assert (config.nphotons, config.seed, config.n_train, config.N, config.scan_seed) == (1e4, 1000, 7, 128, 5)
    assert [type(value) for value in (config.nphotons, config.seed, config.n_train, config.N)] == [float, int, int, int]


@pytest.mark.parametrize(
    ("cls", "key", "near"),
    [
        (SimulationConfig, "nphotonz", "nphotons"),
        (ModelConfig, "grid_size", "gridsize"),
        (TrainingConfig, "nll_wieght", "nll_weight"),
        (InferenceConfig, "batchsize", "batch_size"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(cls, key, near):
    with pytest.raises(InputError, match=rf"{key}.*Did you mean '{near}'"):
        cls.from_dict({key: 1})


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(InputError, match=r"one of 'cnn', 'residual_unet'\. Choose one of the known ones"):
        check_choice("generator", "xyzzy", ("cnn", "residual_unet"))


@pytest.mark.parametrize("cls", CONFIGS)
def test_json_round_trip(cls):
    config = cls()
    assert cls.from_json(config.to_json()) == config
    assert cls.from_dict(json.loads(config.to_json())).stable_hash() == config.stable_hash()


def test_round_trip_keeps_every_changed_field():
    changed = TrainingConfig(nepochs=7, learning_rate=1 / 3, mae_weight=1, n_groups=5, neighbor_count=9, train_seed=2)
    assert TrainingConfig.from_json(changed.to_json()) == changed


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", '{"nphotons": NaN}'])
def test_what_is_not_a_configuration_is_refused(text):
    with pytest.raises(InputError):
        SimulationConfig.from_json(text)


def test_frozen_and_replaced():
    config = ModelConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.N = 128
    assert dataclasses.replace(config, N=128).N == 128 and config.N == 64
    with pytest.raises(InputError):
        dataclasses.replace(config, N=65)


def test_every_field_counts_in_the_hash():
    for cls in CONFIGS:
        changes = {"int": 128, "float": 0.5, "str": "other", "bool": None}
        hashes = {cls().stable_hash()}
        for item in dataclasses.fields(cls):
            kind, choices = item.type.split(" ")[0], item.metadata["choices"]
            value = not item.default if kind == "bool" else changes[kind]
            if choices:
                value = next(choice for choice in choices if choice != item.default)
            maximum = item.metadata["maximum"]
            if maximum is not None:
                value = min(value, maximum)
            value = max(value, item.metadata["minimum"]) if item.metadata["minimum"] is not None else value
            hashes.add(dataclasses.replace(cls(), **{item.name: value}).stable_hash())
        assert len(hashes) == 1 + len(dataclasses.fields(cls)), cls


def test_hash_is_stable_across_processes():
    expected = [cls().stable_hash() for cls in CONFIGS]
    names = ", ".join(cls.__name__ for cls in CONFIGS)
    program = f"from ptycho_nb.config import {names}\nfor cls in ({names}): print(cls().stable_hash())"
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt}
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert result.stdout.split() == expected


def test_equal_settings_have_equal_hashes_whatever_their_spelling():
    assert SimulationConfig(nphotons=10**9).stable_hash() == SimulationConfig(nphotons=1e9).stable_hash()


@pytest.mark.parametrize("cls", [TrainingConfig, InferenceConfig])
def test_neighbours_must_suffice_for_a_group(cls):
    cls(neighbor_count=4).check_against(ModelConfig(gridsize=2))
    cls().check_against(ModelConfig(gridsize=3))
    with pytest.raises(InputError, match=r"neighbor_count.*found 3.*4"):
        cls(neighbor_count=3).check_against(ModelConfig(gridsize=2))


def test_a_loss_without_data_term_is_refused():
    with pytest.raises(InputError, match="nll_weight"):
        TrainingConfig(nll_weight=0, tv_weight=1)


def test_an_object_too_small_for_two_halves_is_refused():
    with pytest.raises(InputError, match="object_size_px"):
        SimulationConfig(N=128, object_size_px=200)


def test_seeds_derive_and_given_ones_win():
    seeds = derive_seeds(3)
    assert seeds == derive_seeds(3) != derive_seeds(4)
    assert derive_seeds(3, scan_seed=0) == {**seeds, "scan_seed": 0}
    assert SimulationConfig(seed=3, noise_seed=0).seeds() == {**seeds, "noise_seed": 0}
    with pytest.raises(InputError, match="Did you mean 'scan_seed'"):
        derive_seeds(3, scanseed=1)


def test_errors_survive_a_process_boundary():
    error = InputError("scan.npz", "nothing", "something", "Look again.")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.remedy == "Look again."
