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
    "conv1d": (layers.Conv1D(5, 3), (None, 8, 4), (3, 4, 5)),
    "conv3d": (layers.Conv3D(5, 2), (None, 4, 4, 4, 3), (2, 2, 2, 3, 5)),
    "depthwise1d": (layers.DepthwiseConv1D(3, depth_multiplier=2), (None, 8, 4), (3, 1, 8)),
    "transposed1d": (layers.Conv1DTranspose(5, 3), (None, 8, 4), (3, 4, 5)),
    "transposed": (layers.Conv2DTranspose(5, (2, 3)), (None, 8, 8, 4), (2, 3, 4, 5)),
    "transposed3d": (layers.Conv3DTranspose(5, 2), (None, 4, 4, 4, 3), (2, 2, 2, 3, 5)),
    "einsum": (layers.EinsumDense("...x,xy->...y", 5, bias_axes="y"), (None, 4, 7), (7, 5)),
    "einsum-heads": (
        layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
        (None, 4, 7),
        (7, 6),
    ),
    "einsum-one-head": (
        layers.EinsumDense("abc,cde->abde", (None, 1, 3), bias_axes="de"),
        (None, 4, 7),
        (7, 3),
    ),
    "einsum-joined": (
        layers.EinsumDense("abcd,cde->abe", (None, 5), bias_axes="e"),
        (None, 4, 2, 3),
        (6, 5),
    ),
    "einsum-turned": (
        layers.EinsumDense("abc,ecb->ae", 5, bias_axes="e"),
        (None, 2, 3),
        (6, 5),
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
    x = rng.normal(size=(1, *layer.get_build_config()["input_shape"][1:])).astype(np.float32)
    before = np.asarray(layer(x)).reshape(-1, canonical[-1])
    for channel in range(canonical[-1]):
        changed = kernel.copy()
        changed[..., channel] = 0
        weights = [adapter.to_keras(changed, layer), adapter.bias_to_keras(bias, layer)]
        layer.set_weights(weights)
        differs = np.any(np.asarray(layer(x)).reshape(before.shape) != before, axis=0)
        assert np.flatnonzero(differs).tolist() == [channel]


def test_patches_times_kernel_is_what_the_layer_computes(
    case: tuple[Any, tuple[int, ...]], rng: np.random.Generator
) -> None:
    layer, canonical = case
    if "Transpose" in type(layer).__name__:
        pytest.skip("its patches are contributions, which several places add up")
    adapter = adapters.adapter_for(layer)
    assert adapter is not None
    kernel, bias = adapter.read(layer)
    x = rng.normal(size=(2, *layer.get_build_config()["input_shape"][1:])).astype(np.float32)
    patches = adapter.patches(layer, x)
    groups = patches.shape[1]
    weights = kernel.reshape(-1, groups, canonical[-1] // groups).swapaxes(0, 1)
    sums = np.einsum("ngk,gkf->ngf", patches, weights).reshape(-1, canonical[-1])
    want = np.asarray(layer(x)).reshape(-1, canonical[-1])
    np.testing.assert_allclose(sums + bias, want, atol=1e-4)
    sizes = adapter.positions(layer, x.shape)
    assert len(patches) == 2 * np.prod(sizes)
    every_second = adapter.patches(layer, x, 2, [0] * len(sizes))
    assert len(every_second) == 2 * np.prod([(size + 1) // 2 for size in sizes])


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
    made = [layer for layer, *_ in LAYERS.values() if type(layer) is adapter.layer_class]
    layer = made[0] if made else layers.Embedding(3, 2)
    config = layer.get_config()
    asked = [k for k in config if k.endswith(("_regularizer", "_constraint"))]
    options = {k: "l2" if k.endswith("_regularizer") else "non_neg" for k in asked}
    layer = type(layer).from_config({**config, **options})
    assert asked
    config = adapter.quantized_config(layer, use_bias=True)
    kept = {k: v for k, v in config.items() if k.endswith(("_regularizer", "_constraint")) and v}
    assert kept == {}
    assert config["trainable"] is False


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Conv2D(4, 1, groups=2), None),
        (layers.Conv2D(4, 1, groups=4), "one channel in a group"),
        (layers.Embedding(3, 4), "two lookups"),
        (layers.DepthwiseConv2D(1), "depthwise convolution is quantized without splitting"),
        (layers.Conv2D(4, 1), None),
        (layers.Dense(4), None),
    ],
    ids=["grouped", "one-in-a-group", "lookup", "depthwise", "conv", "dense"],
)
def test_why_not_split(layer: Any, reason: str | None) -> None:
    layer.build((None, 4, 4, 4))
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
        (lambda: built(layers.ConvLSTM1D(2, 1), None, 3, 4, 4), "ConvLSTM1D has no quantized form"),
        (lambda: built(OwnDense(2), None, 3), "OwnDense has no quantized form"),
        (
            lambda: built(layers.EinsumDense("abc,bcd->abd", (4, 5)), None, 4, 6),
            "its kernel is not one matrix: in 'abc,bcd->abd', input, kernel and output share",
        ),
        (
            lambda: built(
                layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="e"), None, 4, 6
            ),
            r"not one matrix: .*bias_axes='e'",
        ),
        (
            lambda: keras.Sequential([keras.Input((3,)), layers.Dense(2)]),
            "nested model is kept as it is; quantize it on its own",
        ),
    ],
    ids=[
        "relu",
        "dropout",
        "batch-norm",
        "conv-lstm",
        "subclass",
        "grouped-einsum",
        "einsum-bias",
        "nested",
    ],
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
