"""The same graph from other layers: structures, shapes, dtypes, weights and masks."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.cloning import clone_layer
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.rebuild import rebuild, used
from ocs_tf.keras_internals import mask_of


def call(layer: Any, twin: Any, *args: Any, **kwargs: Any) -> Any:
    return twin(*args, **kwargs)


def two_and_two() -> keras.Model:
    """Two inputs and two outputs in dicts, a layer that is called twice, and a bare operation."""
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    shared = layers.Dense(2, name="shared")
    x, y = shared(a), shared(b)
    outputs = {"sum": keras.ops.add(x, y), "relu": layers.ReLU(name="relu")(y)}
    return keras.Model({"b": b, "a": a}, outputs, name="two")


def test_copies_compute_the_same_with_variables_of_their_own() -> None:
    model = two_and_two()
    made, twins = rebuild(Graph(model), clone_layer, call)
    assert made.name == "two"
    assert {"shared", "relu"} <= set(twins)
    data = {name: np.random.default_rng(0).normal(size=(2, 3)) for name in "ab"}
    before = model(data)
    for name, output in made(data).items():
        np.testing.assert_array_equal(output, before[name])
    assert twins["shared"].kernel is not model.get_layer("shared").kernel


def test_each_layer_is_replaced_once_and_called_as_often_as_before() -> None:
    replaced, called = [], []

    def replace(layer: Any) -> Any:
        replaced.append(layer.name)
        return clone_layer(layer)

    def noted(layer: Any, twin: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(layer.name)
        return twin(*args, **kwargs)

    rebuild(Graph(two_and_two()), replace, noted)
    assert sorted(n for n in replaced if "add" not in n) == ["relu", "shared"]
    assert sorted(n for n in called if "add" not in n) == ["a", "b", "relu", "shared", "shared"]


def test_other_layers_in_their_place() -> None:
    """A layer whose weights have other shapes keeps its own."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2, name="d", kernel_initializer="ones")(inputs))

    def wider(layer: Any) -> Any:
        return layers.Dense(4, name="d", kernel_initializer="zeros")

    made, twins = rebuild(Graph(model), wider, call)
    assert tuple(made.outputs[0].shape) == (None, 4)
    assert not np.asarray(twins["d"].kernel).any()


def test_batch_size_and_dtypes_of_the_inputs() -> None:
    inputs = keras.Input((3,), dtype="float16", name="x")
    model = keras.Model(inputs, layers.Flatten()(inputs))
    made, _ = rebuild(Graph(model), clone_layer, call, batch_size=5, input_dtype=lambda _: "int8")
    (tensor,) = made.inputs
    assert (tuple(tensor.shape), tensor.dtype, tensor.name) == ((5, 3), "int8", "x")


@pytest.mark.parametrize("forgets", [False, True])
def test_masks_are_those_of_the_old_tensors(forgets: bool) -> None:
    """Also behind a replacement that passes no mask on."""
    inputs = keras.Input((4,), dtype="int32")
    embedded = layers.Embedding(5, 3, mask_zero=True)(inputs)
    outputs = layers.LSTM(2)(layers.Dropout(0.1, name="between")(embedded))
    model = keras.Model(inputs, outputs)

    def without_mask(layer: Any, twin: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = twin(*args, **kwargs)
        if forgets and layer.name == "between":
            outputs = keras.ops.add(outputs, 0.0)
            assert mask_of(outputs) is None
        return outputs

    made, _ = rebuild(Graph(model), clone_layer, without_mask)
    ids = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 3, 4]])
    np.testing.assert_allclose(made(ids), model(ids), atol=1e-6)


def test_arguments_that_were_not_given_are_left_out() -> None:
    assert used({"mask": None, "training": False, "axis": 0}) == {"training": False, "axis": 0}
