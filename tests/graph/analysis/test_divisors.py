"""Numbers whose zeros become infinite: found, and not rounded where rounding would make zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf.graph.analysis.divisors import divisors
from ocs_tf.graph.reader import Graph


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda a, b: a / b, "b"),
        (lambda a, b: ops.divide(a, x2=b), "b"),
        (lambda a, b: 1.0 / ops.sqrt(ops.reshape(b, (-1, 4, 1))) + a[..., None], "b"),
        (lambda a, b: ops.log(a) + ops.rsqrt(b), "ab"),
        (lambda a, b: a / 2.0 + ops.reciprocal(b + 1.0), ""),
        (lambda a, b: ops.divide_no_nan(a, b), ""),
    ],
)
def test_divisors_of_the_inputs(function: Callable[[Any, Any], Any], found: str) -> None:
    inputs = [keras.Input((4,), name=name) for name in "ab"]
    graph = Graph(keras.Model(inputs, function(*inputs)))
    ids = divisors(graph)
    assert [t.name for t in graph.model.inputs if id(t) in ids] == list(found)


def normalized(x: Any) -> Any:
    squared = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x / ops.sqrt(squared + 1e-7)


@pytest.mark.parametrize(
    ("function", "in_float"),
    [
        (normalized, {"add", "sqrt"}),
        (lambda x: ops.log(ops.softmax(x)), {"softmax"}),
        (lambda x: 1.0 / (2.0 + ops.tanh(x)), set()),
    ],
)
def test_what_is_finite_stays_finite(
    function: Callable[[Any], Any], in_float: set[str], rng: np.random.Generator
) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(3)(function(layers.Dense(6, name="first")(inputs))))
    x = (rng.normal(size=(64, 8)) * np.logspace(-1.5, 0, 64)[:, None]).astype(np.float32)
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    (close,) = ocs_tf.compare(model, quantized, x)
    assert close.sqnr_db > 5  # NaN is not
    plan = ocs_tf.plan(model, representative_dataset=x, verbose=False)
    names = {node.layer.name for node in Graph(model).nodes}
    left = {name for name in names - set(plan.activations) if name.split("_")[0] in in_float}
    assert {name.split("_")[0] for name in left} == in_float
