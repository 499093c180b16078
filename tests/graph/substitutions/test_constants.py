"""Products with constants as layers: the same function, and files that hold kernels as they are."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import ai_edge_litert.interpreter as litert
import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf.graph.affine import affine
from ocs_tf.graph.substitutions.constants import rescaling
from ocs_tf.graph.substitutions.inlining import flat
from ocs_tf.runtime import tflite

VECTOR = np.array([2.0, -4.0, 0.5], np.float32)
# Each with what a channel is multiplied by and what is added.
CONSTANTS: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "product": (lambda x: x * 0.25, [0.25] * 3, [0] * 3),
    "product, number first": (lambda x: 3 * x, [3] * 3, [0] * 3),
    "product of NumPy's": (lambda x: ops.multiply(x, np.float32(-2)), [-2] * 3, [0] * 3),
    "product with a zero-dimensional array": (lambda x: x * np.array(2.0, np.float32), [2] * 3, 0),
    "product by channel": (lambda x: x * VECTOR, VECTOR, [0] * 3),
    "product by channel, more axes": (lambda x: x * VECTOR[None, None], VECTOR, [0] * 3),
    "quotient": (lambda x: x / 4, [0.25] * 3, [0] * 3),
    "quotient by operation": (lambda x: ops.divide(x, 4.0), [0.25] * 3, [0] * 3),
    "quotient by channel": (lambda x: x / VECTOR, [0.5, -0.25, 2], [0] * 3),
    "sum by channel": (lambda x: x + VECTOR, [1] * 3, VECTOR),
    "sum by channel, array first": (lambda x: ops.add(VECTOR, x), [1] * 3, VECTOR),
    "difference by channel": (lambda x: x - VECTOR, [1] * 3, -VECTOR),
}
OTHERS: dict[str, Callable[[Any], Any]] = {
    "sum with a number": lambda x: x + 0.5,
    "difference with a number": lambda x: x - 0.5,
    "difference from a vector": lambda x: ops.subtract(VECTOR, x),
    "reciprocal": lambda x: 2.0 / x,
    "product with zero": lambda x: x * 0.0,
    "product with infinity": lambda x: x * float("inf"),
    "a vector with a zero": lambda x: x * np.array([1, 0, 1], np.float32),
    "another axis": lambda x: x * np.ones((8, 1), np.float32),
    "a constant of more axes": lambda x: x * np.ones((1, 1, 1, 1, 3), np.float32),
    "a square": lambda x: x * x,
    "a power": lambda x: x**2,
    "a maximum": lambda x: ops.maximum(x, 0.5),
    "integers": lambda x: ops.cast(x, "int32") * 2,
    "another dtype": lambda x: ops.cast(x, "float16") * np.ones(3, np.float32),
}


def last_call(function: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The last operation of `function`, and what it was called with."""
    output = function(keras.Input((8, 8, 3)))
    operation = output._keras_history.operation
    return operation, operation._inbound_nodes[0].arguments.args


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_of_each_channel(name: str) -> None:
    function, gain, shift = CONSTANTS[name]
    operation, args = last_call(function)
    found = rescaling(operation, args)
    assert found is not None
    layer, tensor = found
    assert layer.name == operation.name
    assert tensor is next(a for a in args if keras.backend.is_keras_tensor(a))
    for got, want in zip(affine(layer, 3), (gain, shift), strict=True):
        np.testing.assert_allclose(got, np.broadcast_to(want, 3))


@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_are_left_alone(name: str) -> None:
    assert rescaling(*last_call(OTHERS[name])) is None


def test_layers_are_left_alone() -> None:
    x = keras.Input((3,))
    assert rescaling(*last_call(lambda _: layers.Multiply()([x, x]))) is None


@pytest.mark.parametrize("name", [*CONSTANTS, *OTHERS])
def test_a_flat_model_computes_the_same(name: str) -> None:
    function = CONSTANTS[name][0] if name in CONSTANTS else OTHERS[name]
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, {"out": function(inputs)})
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    want, got = (m.predict_on_batch(x)["out"] for m in (model, flat(model)))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    made = [isinstance(operation, layers.Rescaling) for operation in flat(model).operations]
    assert sum(made) == (name in CONSTANTS)


def test_names_and_the_users_model_stay() -> None:
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, (inputs / 2.0) * VECTOR)
    before = [operation.name for operation in model.operations]
    other = flat(model)
    assert [operation.name for operation in other.operations] == before
    assert [operation.name for operation in model.operations] == before
    assert not any(isinstance(operation, layers.Rescaling) for operation in model.operations)


def test_a_nested_model_that_is_called_twice_keeps_one_layer(randomize: Any) -> None:
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, layers.Dense(4)(inner_input * 0.5), name="inner")
    inputs = keras.Input((4,))
    model = randomize(keras.Model(inputs, inner(inner(inputs))))
    other = flat(model)
    assert sum(isinstance(layer, layers.Rescaling) for layer in other.layers) == 1
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(other.predict_on_batch(x), model.predict_on_batch(x), rtol=1e-5)


def preprocessed(kind: str) -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    scaled = {
        "-1 .. 1": lambda: inputs / 127.5 - 1.0,
        "0 .. 1": lambda: inputs / 255.0,
        "normalized": lambda: (inputs - 100 * np.abs(VECTOR)) / (20 * VECTOR),
        "between": lambda: layers.ReLU()(layers.Conv2D(3, 1)(inputs)) * 0.3,
        "behind a kernel": lambda: layers.Conv2D(3, 1)(inputs) * 0.3,
    }[kind]()
    x = layers.Conv2D(8, 3, activation="relu")(scaled)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x) * 0.5))


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("-1 .. 1", "int8"),
        ("0 .. 1", "int8"),
        ("normalized", "int8"),
        ("between", "int8"),
        ("behind a kernel", "int8"),
        ("normalized", "packed"),
        ("behind a kernel", "packed"),
        ("normalized", "float"),
        ("behind a kernel", "float"),
    ],
)
def test_kernels_behind_constants_reach_the_file_as_they_are(
    kind: str, target: str, randomize: Any, tmp_path: pathlib.Path
) -> None:
    """TensorFlow's converter multiplies what it can into kernels, which must not happen."""
    model = randomize(preprocessed(kind))
    x = np.random.default_rng(1).uniform(0, 255, (16, 8, 8, 3)).astype(np.float32)
    bits = None if target == "float" else 8  # a float file does not round activations
    quantized = ocs_tf.convert(
        model, weight_bits=6, activation_bits=bits, representative_dataset=x, verbose=False
    )
    path = tmp_path / "model.tflite"
    options = {"io_dtype": "float32"} if target == "int8" else {}
    ocs_tf.export_tflite(quantized, path, target=target, **options)
    open_file = tflite.Interpreter if target == "packed" else litert.Interpreter
    runner = open_file(str(path)).get_signature_runner()
    (key,) = runner.get_input_details()
    got = np.concatenate([next(iter(runner(**{key: image[None]}).values())) for image in x])
    want = quantized.predict_on_batch(x)
    step = 1e-5 * np.abs(want).max() if bits is None else quantized.layers[-1].output_grid.scale
    assert np.abs(got - want).max() <= 1.01 * step
    error = np.square(want - model.predict_on_batch(x)).sum()
    assert error < 1e-3 * np.square(want).sum()
