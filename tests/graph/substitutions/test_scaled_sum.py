"""InceptionResNetV2's scaled sums, against what Keras computes."""

from __future__ import annotations

import importlib
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.substitutions import scaled_sum
from ocs_tf.runtime.model import TFLiteModel

CustomScaleLayer = importlib.import_module(
    "keras.src.applications.inception_resnet_v2"
).CustomScaleLayer


def network() -> keras.Model:
    inputs = keras.Input((8, 8, 4))
    branch = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.ReLU(name="relu")(CustomScaleLayer(0.25, name="sum")([inputs, branch]))
    return keras.Model(inputs, layers.Conv2D(3, 1, name="head")(x))


def test_only_that_layer_is_one() -> None:
    assert scaled_sum.is_scaled_sum(CustomScaleLayer(0.5))
    assert not scaled_sum.is_scaled_sum(layers.Add())


def test_the_factor_goes_into_the_layer_in_front(randomize: Any, rng: np.random.Generator) -> None:
    model = randomize(network())
    graph = Graph(model)
    x = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(graph.model(x), model(x), rtol=1e-5, atol=1e-6)
    assert graph.folded == {"sum_scale"}
    kernel, bias = graph.kernels["conv"].weights()
    original = model.get_layer("conv")
    np.testing.assert_allclose(kernel, 0.25 * np.asarray(original.kernel), rtol=1e-6)
    np.testing.assert_allclose(bias, 0.25 * np.asarray(original.bias), rtol=1e-6)


@pytest.mark.slow
def test_the_file_computes_what_the_keras_model_does(
    randomize: Any, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    x = rng.normal(size=(16, 8, 8, 4)).astype(np.float32)
    quantized = ocs_tf.convert(randomize(network()), representative_dataset=x, verbose=False)
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path)
    assert [op.op for op in result.ops] == ["CONV_2D", "ADD", "CONV_2D"]
    difference = np.abs(TFLiteModel(path).predict_on_batch(x) - np.asarray(quantized(x)))
    assert difference.max() <= 1.01 * quantized.get_layer("head").output_grid.scale
