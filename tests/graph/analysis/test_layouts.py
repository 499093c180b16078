"""Layers that are channels_first where TensorFlow computes them, and where it does not."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import ocs_tf
from ocs_tf.graph.analysis import layouts
from ocs_tf.graph.analysis.layouts import check_layouts
from ocs_tf.graph.reader import Graph

FIRST = {"data_format": "channels_first"}
SHAPES = {1: (2, 5), 2: (2, 5, 4), 3: (2, 5, 4, 3)}
REFUSED = "channels_first, which TensorFlow cannot compute on this machine.*TF_ENABLE_ONEDNN_OPTS=1"


def bare_conv(x: Any) -> Any:
    return ops.conv(x, np.ones((2, 2, 2, 3), np.float32), **FIRST)


KINDS: dict[str, tuple[int, Callable[[], Any]]] = {
    "conv1d": (1, lambda: layers.Conv1D(3, 2, **FIRST)),
    "conv2d": (2, lambda: layers.Conv2D(3, 2, **FIRST)),
    "conv2d-strides": (2, lambda: layers.Conv2D(3, 2, strides=2, padding="same", **FIRST)),
    "conv2d-dilation": (2, lambda: layers.Conv2D(3, 2, dilation_rate=2, **FIRST)),
    "conv2d-groups": (2, lambda: layers.Conv2D(4, 2, groups=2, **FIRST)),
    "conv3d": (3, lambda: layers.Conv3D(3, 2, **FIRST)),
    "transposed1d": (1, lambda: layers.Conv1DTranspose(3, 2, **FIRST)),
    "transposed2d": (2, lambda: layers.Conv2DTranspose(3, 2, **FIRST)),
    "transposed3d": (3, lambda: layers.Conv3DTranspose(3, 2, **FIRST)),
    "depthwise1d": (1, lambda: layers.DepthwiseConv1D(2, **FIRST)),
    "depthwise2d": (2, lambda: layers.DepthwiseConv2D(2, **FIRST)),
    "max-pool": (2, lambda: layers.MaxPooling2D(2, **FIRST)),
    "average-pool": (3, lambda: layers.AveragePooling3D(2, **FIRST)),
    "global-pool": (2, lambda: layers.GlobalAveragePooling2D(**FIRST)),
    "batch-norm": (2, lambda: layers.BatchNormalization(axis=1)),
    "recurrent": (2, lambda: layers.ConvLSTM1D(3, 2, **FIRST)),
    "in-a-wrapper": (2, lambda: layers.TimeDistributed(layers.Conv1D(3, 1, **FIRST))),
    "bare-conv": (2, lambda: bare_conv),
    "bare-pool": (2, lambda: lambda x: ops.max_pool(x, 2, **FIRST)),
}


def model_of(*steps: Any, shape: tuple[int, ...] = SHAPES[2]) -> keras.Model:
    inputs = x = keras.Input(shape)
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without oneDNN."""
    monkeypatch.setattr(layouts, "is_computed", lambda *arguments: False)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_is_what_tensorflow_cannot_compute(kind: str) -> None:
    rank, make = KINDS[kind]
    shape = (3, *SHAPES[1]) if kind in ("recurrent", "in-a-wrapper") else SHAPES[rank]
    model = model_of(make(), shape=shape)
    try:
        model(np.zeros((1, *shape), np.float32))
        computed = True
    except tf.errors.OpError:
        computed = False
    try:
        check_layouts(Graph(model))
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == computed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_float16"])
@pytest.mark.parametrize("kind", ["conv2d", "transposed2d", "depthwise2d", "max-pool"])
def test_what_is_refused_in_other_dtypes(kind: str, dtype: str) -> None:
    """oneDNN computes most of them in float32 only."""
    config = KINDS[kind][1]().get_config()
    layer = type(KINDS[kind][1]()).from_config({**config, "dtype": dtype})
    model = model_of(layer)
    try:
        model(np.zeros((1, *SHAPES[2]), np.float32))
    except tf.errors.OpError:
        computed = dtype.removeprefix("mixed_")
        match = rf"channels_first in {computed}.* have it in float32 at most.*channels_last"
        with pytest.raises(ValueError, match=match):
            check_layouts(Graph(model))
    else:
        check_layouts(Graph(model))


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("batch-norm", "global-pool")]
)
def test_each_kind_is_found(kind: str) -> None:
    rank, make = KINDS[kind]
    shape = (3, *SHAPES[1]) if kind in ("recurrent", "in-a-wrapper") else SHAPES[rank]
    with pytest.raises(ValueError, match=REFUSED):
        check_layouts(Graph(model_of(make(), shape=shape)))


def test_only_what_cannot_be_computed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "is_computed", lambda operation, *_: operation != "conv")
    depthwise = layers.DepthwiseConv2D(2, **FIRST)
    check_layouts(Graph(model_of(depthwise, layers.Conv2D(3, 1, data_format="channels_last"))))
    separable = model_of(layers.SeparableConv2D(3, 2, name="both", **FIRST))
    with pytest.raises(ValueError, match=r"layer 'both' \(Conv2D\) is channels_first"):
        check_layouts(Graph(separable))


def nested() -> keras.Model:
    inner = model_of(layers.Conv2D(3, 2, name="first", **FIRST), layers.ReLU())
    return model_of(inner, layers.Flatten(), layers.Dense(2))


def mixed() -> keras.Model:
    last = layers.Conv2D(3, 1, name="last", data_format="channels_last")
    return model_of(last, layers.Conv2D(3, 2, name="first", **FIRST))


def unread() -> Iterator[Any]:
    raise AssertionError("read before the model was checked")


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("make", [nested, mixed])
def test_it_is_refused_before_any_work(
    make: Callable[[], keras.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, match = make(), f"layer 'first'.*{REFUSED}"
    plan = ocs_tf.plan(model, verbose=False)  # which is numbers, for any machine
    assert "first" in plan.layers
    module = importlib.import_module("ocs_tf._convert")
    monkeypatch.setattr(module, "plan_kernels", unread)
    monkeypatch.setattr(module, "compensate_data_free", unread)
    with pytest.raises(ValueError, match=match):
        ocs_tf.convert(model, verbose=False)
    with pytest.raises(ValueError, match=match):
        ocs_tf.apply(model, plan, verbose=False)
    for function in (ocs_tf.convert, ocs_tf.plan):
        with pytest.raises(ValueError, match=match):
            function(model, representative_dataset=unread, verbose=False)


@pytest.mark.usefixtures("without_kernels")
def test_what_xla_computes_is_converted_without_data(rng: np.random.Generator) -> None:
    model = model_of(layers.Conv2D(3, 2, **FIRST), layers.ReLU())
    model.compile(loss="mse", jit_compile=True)
    x = rng.normal(size=(4, *SHAPES[2])).astype(np.float32)
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    want = model.predict(x, verbose=0)
    np.testing.assert_allclose(quantized.predict(x, verbose=0), want, atol=0.02)
    with pytest.raises(ValueError, match=REFUSED):
        ocs_tf.convert(model, representative_dataset=x, verbose=False)


@pytest.mark.usefixtures("without_kernels")
def test_the_remedy_of_channels_last(rng: np.random.Generator, randomize: Any) -> None:
    def make(data_format: str) -> keras.Model:
        first = data_format == "channels_first"
        return model_of(
            layers.Conv2D(4, 2, data_format=data_format),
            layers.BatchNormalization(axis=1 if first else -1),
            layers.DepthwiseConv2D(2, data_format=data_format),
            layers.GlobalAveragePooling2D(data_format=data_format),
            layers.Dense(3),
            shape=(2, 5, 4) if first else (5, 4, 2),
        )

    model, other = randomize(make("channels_first")), make("channels_last")
    other.set_weights(model.get_weights())
    x = rng.normal(size=(4, 2, 5, 4)).astype(np.float32)
    moved = np.moveaxis(x, 1, -1)
    want = np.asarray(tf.function(model, jit_compile=True)(x))
    np.testing.assert_allclose(np.asarray(other(moved)), want, atol=1e-5)
    quantized = ocs_tf.convert(other, representative_dataset=moved, verbose=False)
    np.testing.assert_allclose(np.asarray(quantized(moved)), want, atol=0.05 * np.ptp(want))


REMEDY = """
import keras, numpy as np, ocs_tf
from keras import layers

keras.utils.set_random_seed(0)
o = {"data_format": "channels_first"}
for shape, steps in {
    (2, 6): [layers.Conv1D(4, 2, **o), layers.Conv1DTranspose(4, 2, **o)],
    (2, 6, 5): [
        layers.Conv2D(4, 2, groups=2, **o),
        layers.BatchNormalization(axis=1),
        layers.DepthwiseConv2D(2, **o),
        layers.Conv2DTranspose(3, 2, strides=2, **o),
        layers.MaxPooling2D(2, **o),
        layers.SeparableConv2D(4, 2, **o),
        layers.AveragePooling2D(2, **o),
    ],
    (2, 4, 4, 3): [layers.Conv3D(4, 2, **o), layers.Conv3DTranspose(3, 2, **o)],
}.items():
    model = keras.Sequential([keras.Input(shape), *steps])
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    got, want = np.asarray(quantized(x)), np.asarray(model(x))
    np.testing.assert_allclose(got, want, atol=0.05 * np.ptp(want))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="TensorFlow has oneDNN so on x86 only"
)
def test_the_remedy_of_onednn() -> None:
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REMEDY], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
