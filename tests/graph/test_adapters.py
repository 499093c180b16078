"""What the adapters say of each layer type."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph import adapters
from ocs_tf.numerics import quantize_kernel

LAYERS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    # layer, input shape, canonical kernel shape [..., C, F]
    "dense": (layers.Dense(5), (None, 7), (7, 5)),
    "conv": (layers.Conv2D(5, (2, 3)), (None, 8, 8, 4), (2, 3, 4, 5)),
    "grouped-conv": (layers.Conv2D(6, 3, groups=2), (None, 8, 8, 4), (3, 3, 2, 6)),
    "depthwise": (layers.DepthwiseConv2D(3), (None, 8, 8, 4), (3, 3, 1, 4)),
    "depthwise-multiplier": (
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        (None, 8, 8, 4),
        (3, 3, 1, 8),
    ),
}


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
    layer, input_shape, canonical = LAYERS[request.param]
    layer = type(layer).from_config(layer.get_config())
    layer.build(input_shape)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    return layer, canonical


def test_canonical_kernel_and_back(case: tuple[Any, tuple[int, ...]]) -> None:
    layer, canonical = case
    adapter = adapters.adapter_for(layer)
    assert adapter is not None
    kernel, bias = adapter.read(layer)
    assert kernel.shape == canonical
    assert bias is not None
    assert bias.shape == canonical[-1:]
    np.testing.assert_array_equal(adapter.to_keras(kernel, layer), np.asarray(layer.kernel))


def test_output_channels_of_the_canonical_kernel_are_those_of_the_output(
    case: tuple[Any, tuple[int, ...]], rng: np.random.Generator
) -> None:
    layer, canonical = case
    adapter = adapters.adapter_for(layer)
    assert adapter is not None
    kernel, bias = adapter.read(layer)
    x = rng.normal(size=(1, 8, 8, layer.input_spec.axes[-1])).astype(np.float32)
    before = np.asarray(layer(x))
    for channel in range(canonical[-1]):
        changed = kernel.copy()
        changed[..., channel] = 0
        layer.set_weights([adapter.to_keras(changed, layer), bias])
        differs = np.any(np.asarray(layer(x)) != before, axis=(0, 1, 2))
        assert np.flatnonzero(differs).tolist() == [channel]


def test_store_puts_codes_in_the_layout_of_the_layer(case: tuple[Any, tuple[int, ...]]) -> None:
    layer, _ = case
    adapter = adapters.adapter_for(layer)
    assert adapter is not None
    kernel, bias = adapter.read(layer)
    quantized = quantize_kernel(kernel, 8, granularity="channel")
    config = adapter.quantized_config(layer, use_bias=True)
    target = adapter.quantized_class.from_config(
        {**config, "weight_bits": 8, "granularity": "channel"}
    )
    target.build(layer.get_build_config()["input_shape"])
    adapter.store(target, quantized, bias)
    expected = adapter.to_keras(quantized.effective_kernel(), layer)
    np.testing.assert_array_equal(np.asarray(target.kernel), expected)
    assert adapters.adapter_of_quantized(target) is adapter
    assert adapters.any_adapter(target) is adapters.any_adapter(layer) is adapter


@pytest.mark.parametrize("adapter", adapters.ADAPTERS, ids=lambda a: a.layer_class.__name__)
def test_training_options_do_not_reach_the_quantized_layer(
    adapter: adapters.KernelAdapter,
) -> None:
    size = {"units": 3} if adapter.layer_class is layers.Dense else {"kernel_size": 2}
    size |= {"filters": 3} if adapter.layer_class is layers.Conv2D else {}
    kernel = "depthwise" if adapter.layer_class is layers.DepthwiseConv2D else "kernel"
    layer = adapter.layer_class(
        **size,
        bias_regularizer="l2",
        activity_regularizer="l1",
        **{f"{kernel}_regularizer": "l2", f"{kernel}_constraint": "non_neg"},
    )
    config = adapter.quantized_config(layer, use_bias=True)
    kept = {k: v for k, v in config.items() if k.endswith(("_regularizer", "_constraint")) and v}
    assert kept == {}
    assert config["trainable"] is False


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Conv2D(4, 1, groups=2), r"groups=2"),
        (layers.DepthwiseConv2D(1), "depthwise convolution is quantized without splitting"),
        (layers.Conv2D(4, 1), None),
        (layers.Dense(4), None),
    ],
    ids=["grouped", "depthwise", "conv", "dense"],
)
def test_why_not_split(layer: Any, reason: str | None) -> None:
    adapter = adapters.adapter_for(layer)
    assert adapter is not None
    got = adapter.why_not_split(layer)
    assert (got is None) == (reason is None)
    assert reason is None or reason in str(got)


class OwnDense(layers.Dense):
    """A user's subclass, which may compute anything."""


def built(layer: Any, *shape: int | None) -> Any:
    layer.build(shape)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: built(layers.ReLU(), None, 3), None),
        (lambda: built(layers.Dropout(0.1), None, 3), None),
        (lambda: built(layers.BatchNormalization(), None, 3), "batch norm that is not folded"),
        (lambda: built(layers.LSTM(2), None, 3, 4), "LSTM has no quantized form; .* Dense, Conv2D"),
        (lambda: built(OwnDense(2), None, 3), "OwnDense has no quantized form"),
        (lambda: built(layers.Conv1D(2, 1), None, 3, 4), "Conv1D has no quantized form"),
        (
            lambda: keras.Sequential([keras.Input((3,)), layers.Dense(2)]),
            "nested model is kept as it is; quantize it on its own",
        ),
    ],
    ids=["relu", "dropout", "batch-norm", "lstm", "subclass", "conv1d", "nested"],
)
def test_why_float(layer: Any, reason: str | None) -> None:
    made = layer()
    assert adapters.adapter_for(made) is None
    got = adapters.why_float(made)
    assert (got is None) == (reason is None)
    assert reason is None or re.search(reason, str(got))


def test_a_layer_that_keras_quantized_is_left_alone() -> None:
    layer = built(layers.Dense(3), None, 4)
    layer.quantize("int8")
    assert adapters.adapter_for(layer) is None
    assert "Keras has quantized it already" in str(adapters.why_float(layer))


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (layers.Dense(2), -1),
        (layers.Conv2D(2, 1), -1),
        (layers.Conv2D(2, 1, data_format="channels_first"), 1),
    ],
    ids=["dense", "conv", "channels-first"],
)
def test_channel_axis(layer: Any, axis: int) -> None:
    assert adapters.channel_axis(layer) == axis
