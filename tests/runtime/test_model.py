"""`.tflite` files as models: they take and return what their Keras models do."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import ocs_tf
from ocs_tf.runtime.model import TFLiteModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 5, 2), name="image")
    x = keras.layers.Conv2D(3, 3, name="conv")(inputs)
    x = keras.layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="head")(x))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(7, 5, 5, 2)).astype(np.float32)


@pytest.mark.parametrize("dynamic_batch", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize("io_dtype", ["int8", "uint8", "float32"])
def test_takes_and_returns_floats(model, images, tmp_path, io_dtype, dynamic_batch):
    quantized = ocs_tf.convert(model, representative_dataset=images)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, io_dtype=io_dtype, dynamic_batch=dynamic_batch)
    runtime = TFLiteModel(path)
    (tensor,) = runtime.inputs
    assert (tuple(tensor.shape), tensor.dtype) == ((None, 5, 5, 2), "float32")
    step = quantized.get_layer("head").output_grid.scale
    for batch in (images, images[:2]):  # resized on the way
        expected = quantized.predict_on_batch(batch)
        np.testing.assert_allclose(runtime.predict_on_batch(batch), expected, atol=2.01 * step)


def test_reads_fixed_batches_of_several(model, images, tmp_path):
    inputs = keras.Input(batch_shape=(3, 5, 5, 2))
    fixed = keras.Model(inputs, model(inputs))
    path = tmp_path / "model.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(fixed).convert())
    outputs = TFLiteModel(path).predict_on_batch(images)  # 7 = 3 + 3 + 1
    np.testing.assert_allclose(outputs, model.predict_on_batch(images), atol=1e-5)


def test_refuses_other_files(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"model\.tflite: this is not a TFLite file"):
        TFLiteModel(path)
