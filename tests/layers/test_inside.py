"""Kernels inside of users' layers: quantized, saved, exported, refused."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import ocs_tf
from ocs_tf.layers import KernelLayer, QuantizedInside
from tests.own_layers import TF_KERNELS, Block, ClassToken, NoConfig, TfBlock, model_of, samples


def sqnr_db(expected: np.ndarray, got: np.ndarray) -> float:
    noise = np.square(expected.astype(np.float64) - got).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / noise))


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(model(x, training=False))


@pytest.mark.parametrize("with_data", [False, True], ids=["W8", "W8A8"])
def test_each_kernel_is_quantized_in_place(with_data: bool, randomize: Any) -> None:
    model = randomize(model_of(TfBlock(name="own")))
    x = samples()
    before = [np.asarray(weight) for weight in model.weights]
    data = x if with_data else None
    quantized = ocs_tf.convert(model, weight_bits=8, representative_dataset=data, verbose=False)
    assert {layer.name for layer in ocs_tf.report(quantized).layers} >= TF_KERNELS
    assert sqnr_db(predict(model, x), predict(quantized, x)) > 30
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), value)
    inside = [layer for layer in quantized._flatten_layers() if isinstance(layer, KernelLayer)]
    assert len(inside) == len(TF_KERNELS) + 1


def test_codes_inside_are_chosen_on_data(randomize: Any) -> None:
    model, x = randomize(model_of(TfBlock(name="own"))), samples(64)
    options: dict[str, Any] = {"weight_bits": 3, "activation_bits": None, "verbose": False}
    options |= {"representative_dataset": x, "first_layer_bits": "same", "last_layer_bits": "same"}
    found = {
        rounding: sqnr_db(
            predict(model, x), predict(ocs_tf.convert(model, rounding=rounding, **options), x)
        )
        for rounding in ("nearest", "error_compensated")
    }
    assert found["error_compensated"] > found["nearest"] + 1


@pytest.mark.parametrize("with_data", [False, True], ids=["W8", "W8A8"])
def test_it_is_saved_and_loaded(with_data: bool, randomize: Any, tmp_path: pathlib.Path) -> None:
    model, x = randomize(model_of(TfBlock(name="own"))), samples()
    data = x if with_data else None
    quantized = ocs_tf.convert(model, weight_bits=4, representative_dataset=data, verbose=False)
    model.save(tmp_path / "float.keras")
    if np.any(predict(keras.models.load_model(tmp_path / "float.keras"), x) != predict(model, x)):
        pytest.skip(f"Keras {keras.__version__} does not save layers in a dict in a list")
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, x), predict(quantized, x))
    assert ocs_tf.report(loaded).to_dict() == ocs_tf.report(quantized).to_dict()


def test_without_a_configuration_it_works_but_cannot_be_loaded(randomize: Any) -> None:
    model, x = randomize(model_of(NoConfig(tf.tanh, name="own"))), samples()
    with pytest.warns(UserWarning, match=r"'own' \(NoConfig\) works as it is, but a .keras file"):
        quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    assert sqnr_db(predict(model, x), predict(quantized, x)) > 30
    names = {layer.name for layer in ocs_tf.report(quantized).layers}
    assert {"own/block/first", "own/block/model/dense_1"} <= names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "target"),
    [(TfBlock, "float"), (TfBlock, "packed"), (TfBlock, "int8"), (ClassToken, "packed")],
)
def test_it_is_exported(layer: Any, target: Any, randomize: Any, tmp_path: pathlib.Path) -> None:
    model, x = randomize(model_of(layer(name="own"))), samples()
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    data = {"representative_dataset": x} if target == "int8" else {}
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target=target, **data)
    (closeness,) = ocs_tf.compare(quantized, ocs_tf.TFLiteModel(path), x)
    assert closeness.sqnr_db > 25


def test_what_can_be_traced_is_opened(randomize: Any) -> None:
    model, x = randomize(model_of(Block(name="own"))), samples()
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    assert sum(isinstance(layer, KernelLayer) for layer in quantized.layers) == 3
    assert not any(isinstance(layer, QuantizedInside) for layer in quantized.layers)
    assert sqnr_db(predict(model, x), predict(quantized, x)) > 25


class Lengths(layers.Layer):
    """Traced with an open length, it would take all rows of its table."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)
        self.table = self.add_weight(shape=(9, 4), name="table")

    def call(self, x: Any) -> Any:
        rows = ops.convert_to_tensor(self.table)[: ops.shape(x)[1]]
        return self.dense(x) + ops.sum(rows, axis=0)


class Noisy(layers.Layer):
    """Traced, it would add the same numbers each time."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, x: Any) -> Any:
        return self.dense(x) + keras.random.normal((4,))


@pytest.mark.parametrize("layer", [Lengths, Noisy])
def test_what_would_not_compute_the_same_is_not_opened(layer: Any) -> None:
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, layers.Dense(2)(layer(name="own")(inputs)))
    assert "own/dense" in ocs_tf.plan(model, verbose=False).layers


@pytest.mark.parametrize("parts", [3, {"d": 1}, {"d": {"layer": {}}}])
def test_damaged_configurations_are_refused(parts: Any) -> None:
    with pytest.raises(ValueError, match="layer 'own': `parts` must have 'layer' and 'build'"):
        QuantizedInside(Block(name="own"), parts)


def test_parts_that_the_layer_does_not_have_are_named() -> None:
    config = keras.saving.serialize_keras_object(layers.Dense(4))
    layer = QuantizedInside(Block(name="own"), {"other": {"layer": config, "build": None}})
    with pytest.raises(ValueError, match="its Block has no layer 'other' inside"):
        layer(np.zeros((2, 6, 8), np.float32))
