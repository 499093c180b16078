"""Grids of activations from statistics: ranges by group, and split channels by each rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ocs_tf import Config
from ocs_tf.graph.analysis.activation_sites import Site, fixed_grid
from ocs_tf.numerics import ActivationGrid, OracleGrid
from ocs_tf.planning.activation_grids import activation_grids
from ocs_tf.planning.calibration import Statistics
from tests.planning.networks import split_plan

SITES = [Site("a", (), "a"), Site("b", (), "b"), Site("c", (), "b"), Site("p", (), "p", "softmax")]


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    """Ten channels of a ReLU; channel 3 reaches far, channel 6 often lies high."""
    x = np.maximum(rng.normal(size=(3000, 10)), 0)
    x[:, 6] += 2.5
    x[5, 3] = 20
    return x.astype(np.float32)


def grids(values: np.ndarray, split: Any = ("a",), **options: Any) -> dict[str, Any]:
    options = {"activation_clip": "none"} | options
    config = Config(activation_expand_ratio=0.2, activation_bits=4, **options)
    a = Statistics.of(values, channels=True)
    statistics = {"a": a, "b": Statistics.of(values * 2), "c": Statistics.of(-values)}
    bits = dict.fromkeys("abcp", 4)
    return activation_grids(SITES, statistics, config, bits, split)


def error(grid: ActivationGrid, values: np.ndarray) -> float:
    return float(np.square(grid.fake_quantize(values) - values).sum())


def test_one_grid_for_a_group(values: np.ndarray) -> None:
    found = grids(values, split=())
    assert found["a"] == ActivationGrid.from_range(0, values.max(), 4)
    assert found["b"] == found["c"]
    assert found["b"] == ActivationGrid.from_range(-values.max(), 2 * values.max(), 4)
    assert found["p"] == fixed_grid("softmax", 4)


@pytest.mark.parametrize(
    ("rounding", "bits", "method"),
    [
        ("error_compensated", 8, "none"),
        ("error_compensated", 4, "regression"),
        ("nearest", 4, "mse"),
        ("nearest", 16, "none"),
    ],
)
def test_clipping_by_default(rounding: Any, bits: int, method: Any, values: np.ndarray) -> None:
    statistics = {"a": Statistics.of(values, channels=True)}
    grid, same = (
        activation_grids(
            SITES[:1],
            statistics,
            Config(activation_bits=bits, rounding=rounding, activation_clip=clip),
            {"a": bits},
        )["a"]
        for clip in ("auto", method)
    )
    assert grid == same
    assert (grid.maximum < 0.99 * values.max()) == (bits < 8)


def test_tensors_without_channels_are_clipped_by_their_own_error(values: np.ndarray) -> None:
    whole, mse = (grids(values, (), activation_clip=clip)["b"] for clip in ("regression", "mse"))
    assert whole == mse


def test_the_largest_value_is_divided(values: np.ndarray) -> None:
    found = grids(values, activation_split="maximum")
    assert found["a"] == ActivationGrid.from_range(0, 20 / 3, 4, copies=(3, 3))
    assert not found["b"].copies  # ceil(0.2 * 10) copies, and only where they were asked for


def test_the_papers_rule_does_not_see_a_single_outlier(values: np.ndarray) -> None:
    """It counts: the channel that sets the range is the last that it would split."""
    grid = grids(values, activation_split="count")["a"]
    assert 6 in grid.copies
    assert 3 not in grid.copies
    assert grid.maximum == pytest.approx(20, rel=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_least_error_is_less_than_that_of_clipping(symmetric: bool, values: np.ndarray) -> None:
    options: dict[str, Any] = {"activation_symmetric": symmetric}
    ours = grids(values, activation_split="error", **options)["a"]
    clipped = grids(values, (), activation_clip="optimal", **options)["a"]
    other = grids(values, activation_split="maximum", activation_clip="optimal", **options)["a"]
    assert len(ours.copies) == 2
    assert ours.symmetric == symmetric
    assert error(ours, values) < 0.9 * error(clipped, values)
    assert error(ours, values) <= 1.01 * error(other, values)


def test_least_error_of_signed_values(rng: np.random.Generator) -> None:
    x = (rng.laplace(size=(3000, 10)) * [1] * 10).astype(np.float32)
    x[:, 4] *= 5
    ours, clipped = grids(x)["a"], grids(x, (), activation_clip="optimal")["a"]
    assert set(ours.copies) == {4}
    assert ours.minimum < 0 < ours.maximum
    assert error(ours, x) < 0.9 * error(clipped, x)


def test_clipping_comes_after_splitting(values: np.ndarray) -> None:
    found = grids(values, activation_split="maximum", activation_clip="percentile", percentile=99.0)
    k = np.ones(10)
    k[3] = 3
    parts = np.repeat(values / k, k.astype(int), axis=1)
    assert found["a"].maximum == pytest.approx(np.percentile(parts, 99), rel=0.02)


def test_an_oracle_has_no_range(values: np.ndarray) -> None:
    found = grids(values, activation_split="oracle", activation_scope="inputs")
    assert found["a"] == OracleGrid(4, 2)
    assert isinstance(found["b"], ActivationGrid)


@pytest.mark.parametrize("rule", ["count", "maximum", "error"])
def test_a_dead_tensor(rule: str) -> None:
    grid = grids(np.zeros((4, 10), np.float32), activation_split=rule)["a"]
    assert (grid.scale, grid.minimum) == (1.0, 0.0)


@pytest.mark.parametrize("rule", ["count", "maximum", "error"])
def test_powers_of_two_and_16_bits(rule: str, values: np.ndarray) -> None:
    grid = grids(values, activation_split=rule, power_of_two=True)["a"]
    assert np.frexp(grid.scale)[0] == 0.5
    config = Config(activation_expand_ratio=0.2, activation_bits=16, activation_split=rule)
    statistics = {"a": Statistics.of(values, channels=True)}
    (wide,) = activation_grids(SITES[:1], statistics, config, {"a": 16}, {"a"}).values()
    assert isinstance(wide, ActivationGrid)
    assert wide.symmetric
    assert np.abs(wide.fake_quantize(values) - values).max() <= wide.scale


def test_where_activations_are_split_and_why_not_elsewhere(randomize: Any) -> None:
    _, result = split_plan(randomize, activation_split="maximum")
    copies = {key: len(grid.copies) for key, grid in result.activations.items()}
    assert {key: n for key, n in copies.items() if n} == {"relu": 2}
    assert result.unsplit_activations == {
        "image": "'image' makes it, which cannot repeat single channels",
        "middle": "'pool' reads it, which has no weights to repeat",
        "pool": "'pool' makes it, which cannot repeat single channels",
        "head": "it is an output of the model",
    }
    _, result = split_plan(randomize, activation_scope="inputs", activation_split="maximum")
    copies = {key: len(grid.copies) for key, grid in result.activations.items()}
    assert copies == {"stem:input": 0, "middle:input": 2, "head:input": 2}
    assert list(result.unsplit_activations) == ["stem:input"]


def test_nothing_is_split_by_default(randomize: Any) -> None:
    _, result = split_plan(randomize, activation_expand_ratio=0.0)
    assert not any(grid.copies for grid in result.activations.values())
    assert result.unsplit_activations == {}
