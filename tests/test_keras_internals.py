"""What Keras keeps to itself is what we take it for; other versions may have changed it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf import keras_internals as internals


def model() -> keras.Model:
    inputs = keras.Input((3,), name="x")
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="deep")], name="inner")
    return keras.Model(inputs, layers.ReLU(name="relu")(inner(inputs)), name="outer")


def test_layers_at_any_depth_and_right_inside() -> None:
    outer = model()
    names = [layer.name for layer in internals.layers_within(outer)]
    assert names[0] == "outer"
    assert {"inner", "deep", "relu"} < set(names)
    assert "outer" not in [v.name for v in internals.layers_within(outer, include_self=False)]
    right_inside = {layer.name for layer in internals.layers_right_within(outer)}
    assert "inner" in right_inside
    assert "deep" not in right_inside


def test_own_variables_are_not_those_of_parts() -> None:
    norm = layers.BatchNormalization()
    norm.build((None, 3))
    wrapper = layers.TimeDistributed(norm)
    wrapper.build((None, 4, 3))
    assert internals.own_variables(wrapper) == []
    assert {v.name for v in internals.own_variables(norm)} == {
        *("gamma", "beta", "moving_mean", "moving_variance")
    }


def test_calls_and_what_made_a_tensor() -> None:
    outer = model()
    (output,) = outer.outputs
    relu = outer.get_layer("relu")
    assert internals.maker(output) is relu
    call = internals.making_call(output)
    assert call.operation is relu
    assert [t is output for t in call.outputs] == [True]
    assert internals.maker(call.input_tensors[0]) is outer.get_layer("inner")
    assert internals.calls_of(relu) == [call]
    assert [c.operation.name for c in internals.calls_in_order(outer)] == ["x", "inner", "relu"]
    assert [c.is_input for c in internals.calls_in_order(outer)] == [True, False, False]


def test_what_is_no_symbolic_tensor_is_not_made() -> None:
    assert internals.is_made(model().outputs[0])
    assert not any(map(internals.is_made, (np.zeros(2), None, keras.ops.zeros(2))))


def test_records_are_keras_own_lists() -> None:
    relu = layers.ReLU()
    made, read = internals.records_of(relu)
    assert (len(made), len(read)) == (0, 0)
    layers.ReLU()(relu(keras.Input((2,))))
    assert (len(made), len(read)) == (1, 1)


@pytest.mark.parametrize(
    ("made", "has"),
    [
        (model, True),
        (lambda: keras.Sequential([keras.Input((3,)), layers.Dense(2)]), True),
        (lambda: keras.Sequential([layers.Dense(2)]), False),
    ],
    ids=["functional", "sequential", "not built"],
)
def test_who_has_calls(made: Any, has: bool) -> None:
    assert internals.has_calls(made()) is has
    assert bool(internals.operations_of(made())) is has


def test_masks() -> None:
    embedded = layers.Embedding(4, 2, mask_zero=True)(keras.Input((3,), dtype="int32"))
    mask = internals.mask_of(embedded)
    assert mask is not None
    assert tuple(mask.shape) == (None, 3)
    assert internals.mask_of(keras.Input((3,))) is None


def test_arguments_that_are_passed_on() -> None:
    assert "training" in internals.context_arguments(layers.Dropout(0.5))


def test_hidden_classes_and_those_of_keras() -> None:
    assert internals.is_hidden_class(layers.Dense(1), "layers.core.dense", "Dense")
    assert not internals.is_hidden_class(layers.ReLU(), "layers.core.dense", "Dense")
    own = type("Own", (layers.Dense,), {})
    classes = (layers.Dense, layers.Layer, own)
    assert [internals.is_keras_layer_class(cls) for cls in classes] == [True, False, False]


def test_what_is_tracked_can_be_put_and_taken_away() -> None:
    layer, part = layers.Layer(), layers.Dense(2)
    with internals.unlocked(layer):
        internals.track(layer, "layers", part)
    assert internals.tracked(layer)["layers"] == [part]
    with internals.unlocked(layer):
        internals.untrack(layer, part)
    assert internals.tracked(layer)["layers"] == []


def test_a_complete_layer_takes_nothing_more() -> None:
    layer = layers.Layer()
    internals.complete(layer)
    assert layer.built
    with pytest.raises(ValueError, match="cannot add"):
        layer.late = layers.Dense(2)
    with internals.unlocked(layer):
        layer.late = layers.Dense(2)


def test_variables_of_the_same_value() -> None:
    variable = keras.Variable([1.0, 2.0], trainable=False, name="v")
    other = internals.variable_like(variable)
    assert internals.is_variable(other)
    assert not internals.is_variable(np.zeros(2))
    variable.assign([3.0, 4.0])
    assert np.asarray(other).tolist() == [1, 2]
    assert (other.trainable, other.dtype) == (False, "float32")


def test_functions_are_put_in_place_for_a_while() -> None:
    doubled = {"square": lambda square: lambda x: 2 * square(x)}
    with internals.computing_by(**doubled):
        assert float(keras.ops.square(3.0)) == 18
    assert float(keras.ops.square(3.0)) == 9
    with pytest.raises(ZeroDivisionError), internals.computing_by(**doubled):
        _ = 1 / 0
    assert float(keras.ops.square(3.0)) == 9


def test_automatic_names() -> None:
    assert {"dense", "conv2d", "batch_normalization"} < internals.automatic_names()
