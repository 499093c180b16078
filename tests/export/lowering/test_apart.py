"""Barriers stand where the converter might change a kernel, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export.form import FLOAT, INT8, PACKED, Form
from ocs_tf.export.lowering import lower
from tests.export.lowering.networks import build


def barriers(function: Callable[[Any], Any], form: Form) -> set[str]:
    """Names of the barriers in the lowered network."""
    quantized = ocs_tf.convert(build(function), verbose=False)
    found = {layer.name for layer in lower(quantized, form).model.layers}
    return {name for name in found if name.endswith(("_barrier", "_behind"))}


def dense_behind_a_sum(x: Any) -> Any:
    """`(x W1 + b1) W2`: the converter would move b1."""
    return layers.Dense(3, name="second")(layers.Dense(4, name="first")(x))


def relu_between(x: Any) -> Any:
    x = layers.Dense(4, activation="relu", name="first")(x)
    return layers.Dense(3, name="second")(x)


@pytest.mark.parametrize(
    ("function", "form", "expected"),
    [
        (dense_behind_a_sum, INT8, {"second_barrier"}),
        (dense_behind_a_sum, FLOAT, set()),
        (relu_between, INT8, set()),
        (relu_between, PACKED, set()),
    ],
)
def test_where_a_barrier_stands(
    function: Callable[[Any], Any], form: Form, expected: set[str]
) -> None:
    assert barriers(function, form) == expected


@pytest.mark.parametrize("form", [INT8, PACKED])
def test_a_factor_is_not_multiplied_into_a_kernel(form: Form) -> None:
    """As behind a reshape; right behind the kernel, lowering takes it up."""

    def function(x: Any) -> Any:
        x = layers.Reshape((64, 4))(layers.Dense(4, name="only")(x))
        return keras.ops.multiply(x, 3.0)

    assert barriers(function, form) == {"only_behind"}
    assert barriers(function, FLOAT) == set()


def test_a_layer_that_is_called_twice_has_one_barrier() -> None:
    def function(x: Any) -> Any:
        twice = layers.Dense(6, name="twice")
        return twice(twice(twice(x)))

    assert barriers(function, INT8) == {"twice_barrier"}
