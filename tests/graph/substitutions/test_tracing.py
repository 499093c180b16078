"""Tracing a `call`: what is found, that nothing is left behind, and what cannot be traced."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from ocs_tf.graph.substitutions.tracing import (
    UntraceableError,
    has_graph,
    inputs_of,
    trace,
)
from ocs_tf.keras_internals import calls_in_order

X = np.zeros((2, 4), np.float32)


class Subclassed(keras.Model):
    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__(name="mine", **options)
        self.dense = layers.Dense(4)
        self.dropout = layers.Dropout(0.5)
        self.function = function

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.function(self, inputs)


class SequentialOverridesCall(keras.Sequential):
    def call(self, inputs: Any, **kwargs: Any) -> Any:
        return 2 * super().call(inputs, **kwargs)


class FunctionalSubclass(keras.Model):
    def __init__(self) -> None:
        inputs = keras.Input((4,), name="x")
        super().__init__(inputs, layers.Dense(2)(inputs))


class OverridesCall(FunctionalSubclass):
    def call(self, inputs: Any, **kwargs: Any) -> Any:
        return 2 * super().call(inputs, **kwargs)


def called(function: Callable[..., Any], x: Any = X) -> Subclassed:
    model = Subclassed(function)
    model(x)
    return model


def traced(model: keras.Model) -> Any:
    inputs = inputs_of(model)
    return trace(model, (inputs,), {}, lambda op: isinstance(op, layers.InputLayer))


def names(nodes: Any) -> list[str]:
    return [type(node.operation).__name__ for node in nodes]


def test_calls_are_found_in_order() -> None:
    model = called(lambda m, x: m.dense(ops.relu(m.dense(x)) + x))
    found = traced(model)
    assert names(found.nodes) == ["Dense", "Relu", "Add", "Dense"]
    assert found.outputs is found.nodes[-1].outputs[0]
    assert found.created == {id(node.operation) for node in found.nodes[1:3]}


def test_nothing_is_left_with_the_layers() -> None:
    model = called(lambda m, x: m.dropout(m.dense(m.dense(x))))
    before = keras.Model(i := keras.Input((4,)), model.dense(i))
    traced(model)
    assert [len(layer._inbound_nodes) for layer in (model.dense, model.dropout)] == [1, 0]
    assert model.dense._outbound_nodes == []
    assert model.dense.output is before.output


def test_nothing_is_left_where_tracing_fails() -> None:
    model = called(lambda m, x: tf.nn.relu(m.dense(x)))
    with pytest.raises(UntraceableError):
        traced(model)
    assert len(model.dense._inbound_nodes) == 0


def test_training_is_not_decided() -> None:
    class Trains(Subclassed):
        def call(self, inputs: Any, training: bool = True) -> Any:
            return self.dropout(inputs, training=training)

    model = Trains(lambda m, x: x)
    model(X)
    (node,) = traced(model).nodes
    assert node.arguments.kwargs == {"training": None}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: tf.nn.relu(m.dense(x)), "KerasTensor cannot be used .*use Keras layers and"),
        (lambda m, x: np.tanh(m.dense(x)), "numpy"),
        (lambda m, x: m.dense(x) if ops.sum(x) >= 0 else x, "boolean"),
        (lambda m, x: layers.Dense(3)(x), "makes layers with new weights"),
        (lambda m, x: None, "returns something other than tensors"),
        (lambda m, x: [m.dense(x), 3.0], "returns something other than tensors"),
    ],
    ids=["tf", "numpy", "condition", "new-layer", "nothing", "number"],
)
def test_what_cannot_be_traced(function: Callable[..., Any], message: str) -> None:
    model = Subclassed(function)
    try:
        model(X)
    except Exception:
        model.built = True  # Keras cannot take it, either
    model._build_shapes_dict = {"input_shape": (2, 4)}
    with pytest.raises(ValueError, match=rf"'mine' is a subclassed .*\(Subclassed\).*{message}"):
        traced(model)


def test_what_was_never_called() -> None:
    with pytest.raises(UntraceableError, match=r"not been called.*Call it on data once"):
        inputs_of(Subclassed(lambda m, x: m.dense(x)))


@pytest.mark.parametrize(
    ("data", "function"),
    [
        (X, lambda m, x: m.dense(x)),
        ({"a": X, "b": X}, lambda m, x: m.dense(x["a"]) + m.dense(x["b"])),
        ([X, X], lambda m, x: m.dense(x[0]) + m.dense(x[1])),
        ((X, {"c": X}), lambda m, x: m.dense(x[0]) + m.dense(x[1]["c"])),
    ],
    ids=["single", "dict", "list", "deep"],
)
def test_inputs_are_those_of_the_last_call(data: Any, function: Callable[..., Any]) -> None:
    inputs = inputs_of(called(function, data))
    assert len(keras.tree.flatten(inputs)) == len(keras.tree.flatten(data))
    assert all(tensor.shape == (None, 4) for tensor in keras.tree.flatten(inputs))
    if isinstance(data, dict):
        assert {key: tensor.name for key, tensor in inputs.items()} == {"a": "a", "b": "b"}


def test_inputs_after_saving_and_loading(tmp_path: Any) -> None:
    @keras.saving.register_keras_serializable("test_tracing")
    class Saved(keras.Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.dense = layers.Dense(4)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs[0]) + self.dense(inputs[1])

    model = Saved()
    model([X, X])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [tensor.shape for tensor in inputs_of(loaded)] == [(None, 4), (None, 4)]


def test_inputs_of_a_functional_model_with_a_call_of_its_own() -> None:
    inputs = inputs_of(OverridesCall())
    assert (inputs.name, inputs.shape) == ("x", (None, 4))
    sequential = SequentialOverridesCall([keras.Input((3,), name="y"), layers.Dense(2)])
    assert (inputs_of(sequential).name, inputs_of(sequential).shape) == ("y", (None, 3))


def test_threads_may_trace_one_model() -> None:
    half_way = threading.Event()

    def step(model: Any, x: Any) -> Any:
        x = model.dense(x)
        half_way.set()
        time.sleep(0.1)  # the other thread must not come in between
        return model.dense(x)

    model = called(step)
    half_way.clear()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(traced, model)
        half_way.wait(10)
        second = pool.submit(traced, model)
        assert names(first.result().nodes) == names(second.result().nodes) == ["Dense", "Dense"]
    assert not model.dense._inbound_nodes


def test_who_has_a_graph() -> None:
    assert has_graph(FunctionalSubclass())
    assert has_graph(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    assert not has_graph(keras.Sequential([layers.Dense(2)]))  # not yet
    assert not has_graph(OverridesCall())
    assert not has_graph(SequentialOverridesCall([keras.Input((3,)), layers.Dense(2)]))
    assert not has_graph(Subclassed(lambda m, x: x))


def test_nodes_are_in_order() -> None:
    x = inputs = keras.Input((4,))
    for _ in range(3):
        x = layers.Add()([layers.Dense(4)(x), x])
    nodes = list(calls_in_order(keras.Model(inputs, x)))
    assert names(nodes) == ["InputLayer", *["Dense", "Add"] * 3]
