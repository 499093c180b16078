"""Plans that do not fit a model are refused before any work."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import pytest

import ocs_tf
from ocs_tf import LayerPlan, Plan
from tests.planning.networks import network, split_plan


@pytest.fixture
def model(randomize: Any) -> keras.Model:
    return randomize(network())


@pytest.mark.parametrize(
    ("layer_plan", "message"),
    [
        (LayerPlan(4, [1.0, 2.0]), "plan has 2 thresholds for 'middle', which has 20"),
        (LayerPlan(4, 1.0, [10]), r"splits channel 10 of 'middle', whose channels are 0 \.\. 9"),
    ],
    ids=["thresholds", "copies"],
)
def test_a_plan_that_does_not_fit(layer_plan: LayerPlan, message: str, model: keras.Model) -> None:
    with pytest.raises(ValueError, match=message):
        ocs_tf.apply(model, Plan({"middle": layer_plan}), verbose=False)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (Plan({"conv9": LayerPlan(4, 1.0)}), "quantizes layer 'conv9', which .* 'network' does"),
        (Plan({"relu": LayerPlan(4, 1.0)}), "layers with a kernel: stem, depthwise, middle"),
        ("plan.json", "`plan` must be an ocs_tf.Plan, but is a str"),
    ],
    ids=["unknown-layer", "no-kernel", "path"],
)
def test_a_plan_of_another_model(result: Any, message: str, model: keras.Model) -> None:
    with pytest.raises(ValueError, match=message):
        ocs_tf.apply(model, result, verbose=False)


@pytest.mark.parametrize("key", ["nowhere", "norm", "relu:input", "stem:preactivation"])
def test_a_grid_that_would_not_be_used_is_refused(key: str, model: keras.Model) -> None:
    grid = ocs_tf.numerics.ActivationGrid(8, 0.1)
    with pytest.raises(ValueError, match=f"rounds activations at '{key}', which .* not"):
        ocs_tf.apply(model, Plan({}, activations={key: grid}), verbose=False)


GRID = ocs_tf.numerics.ActivationGrid(8, 0.1, copies=(4,))
BAD_SPLITS: dict[str, tuple[str, Any, str]] = {
    "a sum of pixels": (
        "pool",
        GRID,
        "which cannot be split: 'pool' makes it, which cannot repeat",
    ),
    "nowhere": ("stem", GRID, "which cannot be split: activations are not rounded there"),
    "no channel": (
        "relu",
        dataclasses.replace(GRID, copies=(4, 10)),
        r"it has 10 channels, so not all of the copies \[4, 10\]",
    ),
    "an oracle": ("relu", ocs_tf.numerics.OracleGrid(8, 1), "an oracle is for what single layers"),
}


@pytest.mark.parametrize(("key", "grid", "message"), BAD_SPLITS.values(), ids=BAD_SPLITS)
def test_a_plan_that_splits_what_cannot_be(
    key: str, grid: Any, message: str, randomize: Any
) -> None:
    model, result = split_plan(randomize)
    result = dataclasses.replace(result, activations={**result.activations, key: grid})
    with pytest.raises(ValueError, match=f"the plan splits activations at .*{message}"):
        ocs_tf.apply(model, result, verbose=False)
