"""Models whose names are no identifiers."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import ocs_tf
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import naming

NAMES = ["in", "1st", "my input", "a:b", "d,e", "<d>(1)", "-d", "_d", "é日", "a;b"]


@pytest.mark.parametrize("target", ["int8", "packed", "float"])
def test_inputs_keep_their_names(target: str, tmp_path: pathlib.Path, rng) -> None:
    inputs = [keras.Input((6,), name=name) for name in NAMES]
    dense = [
        layers.Dense(3, name=f"{name} ", activation="relu")(x)
        for name, x in zip(NAMES, inputs, strict=True)
    ]
    model = keras.Model(
        inputs, layers.Dense(2, name="end!")(layers.Concatenate()(dense)), name="my model"
    )
    x = [rng.normal(size=(8, 6)).astype(np.float32) for _ in NAMES]
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    quantized.save(tmp_path / "model.keras")
    quantized = keras.models.load_model(tmp_path / "model.keras")
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(
        quantized, path, target=target, **({"io_dtype": "float32"} if target == "int8" else {})
    )
    interpreter = ocs_tf.tflite.Interpreter(path)
    runner = interpreter.get_signature_runner()
    assert set(runner.get_input_details()) == set(NAMES)
    tensors = {detail["name"] for detail in interpreter.get_input_details()}
    assert tensors == {f"serving_default_{name}:0".replace(";", "_") for name in NAMES}
    want = np.asarray(quantized(x))[:1]
    (got,) = runner(**{name: values[:1] for name, values in zip(NAMES, x, strict=True)}).values()
    # Files of target "float" do not round activations.
    steps = {"int8": 1.01, "packed": 0.01, "float": 5}[target]
    np.testing.assert_allclose(got, want, atol=steps / 255 * np.ptp(quantized(x)))
    assert quantized.name == "my model"
    assert [tensor.name for tensor in quantized.inputs] == NAMES


def test_identifiers_are_unique_and_given_back() -> None:
    inputs = keras.Input((2,), name="a b")
    model = keras.Model(inputs, layers.Dense(2, name="a:b")(layers.Dense(2, name="a_b")(inputs)))
    before = [layer.name for layer in model.layers], model.weights[0].value.name
    with naming.identifiers(model) as given:
        found = [layer.name for layer in model.layers]
        assert len(set(found)) == 3
        assert all(name.isidentifier() for name in found)
        assert list(given.values()) == ["a b"]
    assert before == ([layer.name for layer in model.layers], model.weights[0].value.name)


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("a-b.c", "a_b_c"),
        ("class", "class_"),
        ("_x", "x_x"),
        ("1", "x1"),
        ("é", "x_"),
        ("ok", "ok"),
    ],
)
def test_names_in_tensors(name: str, scope: str) -> None:
    assert fb.scope_name(name) == scope
    assert fb.name_affinity(f"model_1/{scope}_1/MatMul", name) == 2


def test_dicts_of_inputs_and_outputs(tmp_path: pathlib.Path, rng) -> None:
    inputs = {"ids": keras.Input((3,), name="ids"), "mask": keras.Input((3,), name="mask")}
    x = layers.Dense(4, name="shared", activation="relu")(inputs["ids"])
    outputs = {
        "a": layers.Dense(2, name="first")(x),
        "b": layers.Add()([x, layers.Dense(4)(inputs["mask"])]),
    }
    data = {name: rng.normal(size=(8, 3)).astype(np.float32) for name in inputs}
    quantized = ocs_tf.convert(
        keras.Model(inputs, outputs), weight_bits=8, representative_dataset=data, verbose=False
    )
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, io_dtype="float32")
    interpreter = Interpreter(str(path))
    got = interpreter.get_signature_runner()(**{name: values[:1] for name, values in data.items()})
    want = quantized(data)
    for values in want.values():
        values = np.asarray(values)
        close = [v for v in got.values() if v.shape == values[:1].shape]
        np.testing.assert_allclose(close[0], values[:1], atol=1.01 / 255 * np.ptp(values))


def test_signatures_name_outputs_that_are_read_too(tmp_path: pathlib.Path, rng) -> None:
    """The output in the middle is a tensor of its own in an integer file."""
    x = keras.Input((4,), name="x")
    middle = layers.Reshape((2, 2))(x)
    joined = layers.Concatenate()([middle, middle])
    model = keras.Model(x, [layers.Dense(3)(layers.Flatten()(joined)), joined, middle])
    data = rng.normal(size=(16, 4)).astype(np.float32)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    interpreter = Interpreter(str(path))
    outputs = interpreter.get_signature_runner().get_output_details()
    by_name = [outputs[f"output_{number}"]["index"] for number in range(3)]
    assert by_name == [detail["index"] for detail in interpreter.get_output_details()]
