"""What has to work with the lowest versions that setup.py declares as with the newest.

`make floor` runs these, and the examples of README.md, on the package as it is installed there.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import ocs_tf
from ocs_tf.runtime.model import TFLiteModel

SHAPE = (8, 8, 3)
LOAD = """
import sys, keras, numpy as np, ocs_tf

folder = sys.argv[1]
model = keras.models.load_model(f"{folder}/quantized.keras")
np.save(f"{folder}/outputs.npy", model.predict(np.load(f"{folder}/images.npy"), verbose=0))
"""


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16, *SHAPE)).astype(np.float32)


@pytest.fixture
def model() -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    y = layers.Conv2D(8, 3, padding="same", dilation_rate=2, name="b")(y)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([x, y])))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x))


def converted(model: keras.Model, images: np.ndarray | None) -> keras.Model:
    return ocs_tf.convert(
        model,
        weight_bits=4,
        first_layer_bits=4,
        last_layer_bits=4,
        expand_ratio=0.0,
        representative_dataset=images,
        verbose=False,
    )


@pytest.mark.parametrize("target", ["int8", "int4", "packed", "float"])
def test_a_file_computes_what_keras_does(
    target: str, model: keras.Model, images: np.ndarray, tmp_path: pathlib.Path
) -> None:
    # A float file rounds no activations.
    quantized = converted(model, None if target == "float" else images)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target=target)
    got = np.concatenate([TFLiteModel(path).predict_on_batch(image[None]) for image in images])
    step = 1e-5 if target == "float" else 1 / 256  # softmax has steps of 1/256
    np.testing.assert_allclose(got, quantized.predict(images, verbose=0), atol=1.001 * step)


def test_an_int8_file_is_for_accelerators(
    model: keras.Model, images: np.ndarray, tmp_path: pathlib.Path
) -> None:
    quantized = converted(model, images)
    result = ocs_tf.export_tflite(quantized, tmp_path / "fixed.tflite")
    assert result.ops
    assert [op.reason for op in result.ops if not op.supported] == []
    (given,) = Interpreter(str(result.path)).get_input_details()
    assert given["shape_signature"].tolist() == [1, *SHAPE]
    opened = ocs_tf.export_tflite(quantized, tmp_path / "open.tflite", dynamic_batch=True)
    (given,) = Interpreter(str(opened.path)).get_input_details()
    assert given["shape_signature"].tolist() == [-1, *SHAPE]


def test_a_report_is_written(model: keras.Model, tmp_path: pathlib.Path) -> None:
    quantized = ocs_tf.convert(model, average_bits=5, verbose=False)
    ocs_tf.report(quantized).save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"<td>{name}</td>" in text for name in ("a", "b", "head")), text


def test_a_saved_model_is_loaded_in_a_new_process(
    model: keras.Model, images: np.ndarray, tmp_path: pathlib.Path
) -> None:
    quantized = converted(model, images)
    quantized.save(tmp_path / "quantized.keras")
    np.save(tmp_path / "images.npy", images)
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True)
    got = np.load(tmp_path / "outputs.npy")
    np.testing.assert_array_equal(got, quantized.predict(images, verbose=0))
