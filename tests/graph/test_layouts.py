"""Models that TensorFlow cannot compute on this machine are refused before work, with a remedy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf.graph import layouts
from ocs_tf.graph.layouts import check_layouts
from ocs_tf.graph.reader import Graph

FIRST = {"data_format": "channels_first"}
MODELS: dict[str, tuple[tuple[int, ...], Any]] = {
    "conv": ((4, 6, 6), layers.Conv2D(3, 2, name="it", **FIRST)),
    "conv-1d": ((4, 6), layers.Conv1D(3, 2, name="it", **FIRST)),
    "conv-3d": ((4, 6, 6, 6), layers.Conv3D(3, 2, name="it", **FIRST)),
    "grouped": ((4, 6, 6), layers.Conv2D(4, 2, groups=2, name="it", **FIRST)),
    "depthwise": ((4, 6, 6), layers.DepthwiseConv2D(2, name="it", **FIRST)),
    "transposed": ((4, 6, 6), layers.Conv2DTranspose(3, 2, name="it", **FIRST)),
    "separable": ((4, 6, 6), layers.SeparableConv2D(3, 2, name="it", **FIRST)),
    "max-pool": ((4, 6, 6), layers.MaxPooling2D(name="it", **FIRST)),
    "average-pool": ((4, 6, 6), layers.AveragePooling2D(2, name="it", **FIRST)),
    "bare": ((4, 6, 6), lambda x: ops.max_pool(x, 2, **FIRST)),
    "nested": ((4, 6, 6), keras.Sequential([layers.Conv2D(3, 2, name="it", **FIRST)])),
}


def model_of(name: str) -> keras.Model:
    shape, layer = MODELS[name]
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layer(inputs))))


def runs(model: keras.Model) -> bool:
    """Whether TensorFlow computes the model here, without XLA."""
    try:
        model(np.zeros((1, *model.inputs[0].shape[1:]), "float32"))
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_what_cannot_be_computed_is_refused_and_nothing_else(name: str) -> None:
    """What is going to be converted is tried; it depends on the processor what comes out."""
    graph = Graph(model_of(name))
    if runs(graph.model):
        check_layouts(graph)
    else:
        with pytest.raises(ValueError, match="TF_ENABLE_ONEDNN_OPTS=1 before TensorFlow"):
            check_layouts(graph)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor for which TensorFlow has none."""
    monkeypatch.setattr(layouts, "_is_computed", lambda *arguments: False)


@pytest.mark.parametrize("with_data", [True, False])
def test_the_error_comes_before_work(without_kernels: None, with_data: bool) -> None:
    model = model_of("conv")
    data = np.zeros((8, 4, 6, 6), "float32") if with_data else None
    message = r"layer 'it' \(Conv2D\) is channels_first, which TensorFlow cannot compute"
    with pytest.raises(ValueError, match=message):
        ocs_tf.convert(model, representative_dataset=data, verbose=False)
    with pytest.raises(ValueError, match=message):
        ocs_tf.apply(model, ocs_tf.Plan({}), verbose=False)


def test_what_is_compiled_is_converted(without_kernels: None, rng: np.random.Generator) -> None:
    """XLA computes any layout, in `predict`; the quantized model is compiled alike."""
    model = model_of("conv")
    model.compile(jit_compile=True)
    x = rng.normal(size=(8, 4, 6, 6)).astype("float32")
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    wanted, found = model.predict(x, verbose=0), quantized.predict(x, verbose=0)
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


def test_channels_last_needs_nothing(without_kernels: None) -> None:
    inputs = keras.Input((6, 6, 4))
    check_layouts(Graph(keras.Model(inputs, layers.Conv2D(3, 2)(inputs))))


CONVERT = """
import os; os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
import keras, numpy as np, ocs_tf
x = keras.Input((4, 6, 6))
y = keras.layers.Conv2D(3, 2, data_format="channels_first")(x)
y = keras.layers.MaxPooling2D(data_format="channels_first")(y)
y = keras.layers.DepthwiseConv2D(2, data_format="channels_first")(y)
data = np.random.default_rng(0).normal(size=(8, 4, 6, 6)).astype("float32")
ocs_tf.convert(keras.Model(x, y), representative_dataset=data, verbose=False)(data)
"""


def test_the_remedy() -> None:
    done = subprocess.run([sys.executable, "-c", CONVERT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
