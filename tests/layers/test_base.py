"""Quantized layers against the plain Keras layers that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ocs_tf
from ocs_tf.layers import KernelLayer
from ocs_tf.numerics import ActivationGrid, QuantizedKernel, quantize_kernel

Make = Callable[..., keras.layers.Layer]
CASES: dict[str, tuple[Make, dict[str, Any], tuple[int, ...]]] = {
    "dense": (layers.Dense, {"units": 5}, (7,)),
    "dense-3d": (layers.Dense, {"units": 5}, (4, 7)),
    "dense-4d": (layers.Dense, {"units": 5}, (3, 2, 7)),
    "conv": (layers.Conv2D, {"filters": 5, "kernel_size": 3}, (9, 8, 6)),
    "conv-1x1": (layers.Conv2D, {"filters": 5, "kernel_size": 1}, (4, 4, 6)),
    "conv-2x3": (layers.Conv2D, {"filters": 5, "kernel_size": (2, 3)}, (9, 8, 6)),
    "conv-same": (layers.Conv2D, {"filters": 5, "kernel_size": 3, "padding": "same"}, (9, 8, 6)),
    "conv-stride2": (
        layers.Conv2D,
        {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same"},
        (9, 8, 6),
    ),
    "conv-stride2x1": (
        layers.Conv2D,
        {"filters": 5, "kernel_size": 3, "strides": (2, 1)},
        (9, 8, 6),
    ),
    "conv-dilation": (
        layers.Conv2D,
        {"filters": 5, "kernel_size": 3, "dilation_rate": 2, "padding": "same"},
        (9, 8, 6),
    ),
    "conv-groups2": (layers.Conv2D, {"filters": 4, "kernel_size": 3, "groups": 2}, (9, 8, 6)),
    "conv-groups-all": (layers.Conv2D, {"filters": 6, "kernel_size": 3, "groups": 6}, (9, 8, 6)),
    "conv-channels-first": (
        layers.Conv2D,
        {"filters": 5, "kernel_size": 3, "data_format": "channels_first"},
        (6, 9, 8),
    ),
    "depthwise": (layers.DepthwiseConv2D, {"kernel_size": 3}, (9, 8, 6)),
    "depthwise-multiplier": (
        layers.DepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 3, "padding": "same"},
        (9, 8, 6),
    ),
    "depthwise-one-channel": (
        layers.DepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 4},
        (9, 8, 1),
    ),
    "depthwise-stride2": (
        layers.DepthwiseConv2D,
        {"kernel_size": 3, "strides": 2, "padding": "same"},
        (9, 8, 6),
    ),
    "depthwise-dilation": (
        layers.DepthwiseConv2D,
        {"kernel_size": 2, "dilation_rate": 2},
        (9, 8, 6),
    ),
    "conv1d": (layers.Conv1D, {"filters": 5, "kernel_size": 3, "strides": 2}, (9, 6)),
    "conv1d-causal": (
        layers.Conv1D,
        {"filters": 5, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        (9, 6),
    ),
    "conv1d-groups2": (layers.Conv1D, {"filters": 4, "kernel_size": 3, "groups": 2}, (9, 6)),
    "conv3d": (layers.Conv3D, {"filters": 5, "kernel_size": 2}, (4, 5, 3, 6)),
    "depthwise1d": (layers.DepthwiseConv1D, {"kernel_size": 3, "depth_multiplier": 2}, (9, 6)),
    "transposed1d": (layers.Conv1DTranspose, {"filters": 5, "kernel_size": 3}, (9, 6)),
    "transposed": (
        layers.Conv2DTranspose,
        {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same"},
        (5, 4, 6),
    ),
    "transposed-output-padding": (
        layers.Conv2DTranspose,
        {"filters": 5, "kernel_size": 3, "strides": 2, "output_padding": 1},
        (5, 4, 6),
    ),
    "transposed3d": (layers.Conv3DTranspose, {"filters": 5, "kernel_size": 2}, (3, 4, 3, 6)),
    "depthwise-channels-first": (
        layers.DepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2, "data_format": "channels_first"},
        (6, 9, 8),
    ),
    "conv1d-channels-first": (
        layers.Conv1D,
        {"filters": 5, "kernel_size": 3, "data_format": "channels_first"},
        (6, 9),
    ),
    "transposed-channels-first": (
        layers.Conv2DTranspose,
        {"filters": 5, "kernel_size": 3, "strides": 2, "data_format": "channels_first"},
        (6, 5, 4),
    ),
}


def model_of(case: str, **options: Any) -> keras.Model:
    make, fixed, shape = CASES[case]
    model = keras.Sequential([keras.Input(shape), make(**{**fixed, **options}, name="layer")])
    if is_channels_first(model.layers[0]):
        model.compile(jit_compile=True)
    return model


def convert(model: keras.Model, **options: Any) -> keras.Model:
    """Every layer with the same options, first and last included."""
    keep = {"weight_bits", "granularity", "expand_ratio", "weight_clip"}
    override = ocs_tf.Override(lambda _: True, **{k: v for k, v in options.items() if k in keep})
    plain = {"rounding": "nearest", "bias_correction": False}
    rest = {**plain, **{k: v for k, v in options.items() if k not in keep}}
    return ocs_tf.convert(model, overrides=[override], verbose=False, **rest)


def canonical(layer: Any) -> np.ndarray:
    kernel = np.asarray(layer.kernel)
    if is_depthwise(layer):
        return kernel.reshape(*kernel.shape[:-2], 1, -1)
    return kernel.swapaxes(-1, -2) if is_transposed(layer) else kernel


def is_depthwise(layer: Any) -> bool:
    return isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D))


def is_transposed(layer: Any) -> bool:
    return "Transpose" in type(layer).__name__


def is_channels_first(layer: Any) -> bool:
    return getattr(layer, "data_format", None) == "channels_first"


def outputs(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """What `model` computes; by XLA if channels_first, for which not every CPU has kernels."""
    compiled = is_channels_first(model.layers[0])
    return np.asarray(tf.function(model, jit_compile=True)(x) if compiled else model(x))


def with_kernel(layer: Any, kernel: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What a plain Keras layer like `layer` gives with `kernel` in place of its own.

    A channels_first one is computed by a channels_last one.
    """
    config = {**layer.get_config(), "name": "twin"}
    first = is_channels_first(layer)
    if first:
        config["data_format"], x = "channels_last", np.moveaxis(x, 1, -1)
    twin = type(layer).from_config(config)
    twin.build(x.shape)
    bias = [] if layer.bias is None else [np.asarray(layer.bias)]
    kernel = kernel.swapaxes(-1, -2) if is_transposed(layer) else kernel
    twin.set_weights([kernel.reshape(twin.kernel.shape), *bias])
    y = np.asarray(twin(x))
    return np.moveaxis(y, -1, 1) if first else y


def inputs_for(case: str, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(3, *CASES[case][2])).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("case", CASES)
def test_is_the_keras_layer_with_the_effective_kernel(
    case: str, granularity: str, use_bias: bool, rng: np.random.Generator, randomize: Any
) -> None:
    model = randomize(model_of(case, use_bias=use_bias))
    layer, x = model.layers[0], inputs_for(case, rng)
    splits = not ("groups-all" in case or "depthwise" in case)
    quantized = convert(
        model, weight_bits=4, expand_ratio=0.3, weight_clip="none", granularity=granularity
    )
    expected = quantize_kernel(
        canonical(layer), 4, 0.3 if splits else 0.0, "none", granularity
    ).effective_kernel()
    want = with_kernel(layer, expected, x)
    np.testing.assert_allclose(outputs(quantized, x), want, atol=1e-5)
    channels = canonical(layer).shape[-2]
    assert quantized.layers[0].copies == (np.ceil(0.3 * channels) if splits else 0)


@pytest.mark.parametrize("bits", range(2, 9), ids=lambda b: f"{b}bit")
@pytest.mark.parametrize("case", ["dense", "conv", "depthwise-multiplier"])
def test_every_number_of_bits(
    case: str, bits: int, rng: np.random.Generator, randomize: Any
) -> None:
    model = randomize(model_of(case))
    layer, x = model.layers[0], inputs_for(case, rng)
    quantized = convert(model, weight_bits=bits, expand_ratio=0.0, weight_clip="mse")
    kernel = quantize_kernel(canonical(layer), bits, 0.0, "mse", "channel", full_range=bits == 2)
    want = with_kernel(layer, kernel.effective_kernel(), x)
    np.testing.assert_allclose(outputs(quantized, x), want, atol=1e-5)
    codes, limit = np.asarray(quantized.layers[0].codes, np.int32), 2 ** (bits - 1) - 1
    assert -limit - (bits == 2) <= codes.min() <= codes.max() <= limit


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if not ("groups-all" in c or "depth" in c)])
def test_is_the_expanded_layer_on_a_gathered_input(
    case: str, rng: np.random.Generator, randomize: Any
) -> None:
    model = randomize(model_of(case))
    layer, x = model.layers[0], inputs_for(case, rng)
    quantized = convert(model, weight_bits=3, expand_ratio=0.5)
    kernel = quantized.layers[0].quantized_kernel()
    channels = canonical(layer).shape[-2]
    assert kernel.splits == int(np.ceil(0.5 * channels))
    axis = 1 if is_channels_first(layer) else -1
    # A copy is one in each group.
    groups = getattr(layer, "groups", 1)
    read = np.concatenate([kernel.channel_map + group * channels for group in range(groups)])
    want = with_kernel(layer, kernel.dequantize(), x.take(read, axis))
    np.testing.assert_allclose(outputs(quantized, x), want, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "relu6", "softmax", "swish", "tanh"])
@pytest.mark.parametrize("case", ["dense", "conv-same", "depthwise"])
def test_built_in_activation(
    case: str, activation: str, rng: np.random.Generator, randomize: Any
) -> None:
    model = randomize(model_of(case, activation=activation))
    layer, x = model.layers[0], 5 * inputs_for(case, rng)
    quantized = convert(model, weight_bits=8, expand_ratio=0.0)
    kernel = np.asarray(quantized.layers[0].kernel)
    np.testing.assert_allclose(outputs(quantized, x), with_kernel(layer, kernel, x), atol=1e-5)


@pytest.mark.parametrize("quantization_aware", [True, False], ids=["aware", "halves"])
@pytest.mark.parametrize("power_of_two", [True, False], ids=["power-of-two", "any-step"])
def test_splitting_and_step_options(
    quantization_aware: bool, power_of_two: bool, randomize: Any
) -> None:
    model = randomize(model_of("conv"))
    options = {"quantization_aware": quantization_aware, "power_of_two": power_of_two}
    quantized = convert(model, weight_bits=4, expand_ratio=0.3, weight_clip="none", **options)
    want = quantize_kernel(canonical(model.layers[0]), 4, 0.3, "none", "channel", **options)
    got = quantized.layers[0].quantized_kernel()
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.scale, want.scale)
    np.testing.assert_array_equal(got.channel_map, want.channel_map)
    if power_of_two:
        np.testing.assert_array_equal(np.frexp(got.scale)[0], 0.5)


@pytest.mark.parametrize(
    "case", ["dense", "conv-same", "depthwise-multiplier", "conv-groups2", "conv1d", "transposed"]
)
def test_known_input_grid_adds_up_integers(
    case: str, rng: np.random.Generator, randomize: Any
) -> None:
    # With inputs on a grid, the result is an integer times step, the bias rounded to it.
    model = randomize(model_of(case))
    layer, x = model.layers[0], inputs_for(case, rng)
    quantized = convert(
        model, weight_bits=8, activation_bits=8, representative_dataset=x, expand_ratio=0.0
    )
    got = quantized.layers[-1]
    assert isinstance(got, KernelLayer)
    grid, step = got.input_grid, np.asarray(got.scale, np.float64)
    assert grid is not None
    integers = grid.quantize(x).astype(np.float64) - grid.zero_point
    zero_bias = type(layer).from_config({**layer.get_config(), "name": "sum", "use_bias": False})
    zero_bias.build(x.shape)
    codes = np.asarray(got.codes, np.float32)
    zero_bias.set_weights([codes.swapaxes(-1, -2) if is_transposed(layer) else codes])
    sums = np.asarray(zero_bias(integers.astype(np.float32)), np.float64)
    assert np.abs(sums).max() < 2**24
    real = (sums + np.rint(np.asarray(got.bias, np.float64) / (step * grid.scale))) * (
        step * grid.scale
    )
    assert got.output_grid is not None
    want = got.output_grid.fake_quantize(real)
    difference = np.abs(outputs(quantized, x) - want)
    # float32 against float64 may round a tie the other way, rarely.
    assert difference.max() <= got.output_grid.scale * 1.001
    assert (difference > got.output_grid.scale / 2).mean() < 0.01


def quantized_layer(case: str, randomize: Any, **options: Any) -> tuple[keras.Model, Any]:
    model = convert(randomize(model_of(case)), weight_bits=4, expand_ratio=0.3, **options)
    return model, model.layers[0]


@pytest.mark.parametrize("case", ["dense", "conv", "conv-groups2", "depthwise-multiplier"])
def test_weights_are_integers_and_not_trainable(case: str, randomize: Any) -> None:
    model, layer = quantized_layer(case, randomize)
    dtypes = {w.name: keras.backend.standardize_dtype(w.dtype) for w in layer.weights}
    expected = {"codes": "int8", "scale": "float32", "bias": "float32"}
    assert dtypes == expected | ({"channel_map": "int32"} if layer.copies else {})
    model.trainable = True
    assert model.trainable_weights == []


@pytest.mark.parametrize("case", ["dense", "conv", "conv-groups2", "depthwise-multiplier"])
def test_config_round_trip(case: str, randomize: Any, rng: np.random.Generator) -> None:
    _, layer = quantized_layer(case, randomize)
    twin = type(layer).from_config(layer.get_config())
    x = inputs_for(case, rng)
    twin.build(x.shape)
    assert twin.get_config() == layer.get_config()
    twin.assign(layer.quantized_kernel(), np.asarray(layer.bias))
    np.testing.assert_array_equal(np.asarray(twin(x)), np.asarray(layer(x)))


@pytest.mark.parametrize("case", ["dense", "conv", "depthwise"])
def test_is_an_instance_of_the_layer_it_replaces(case: str, randomize: Any) -> None:
    model = model_of(case)
    _, layer = quantized_layer(case, randomize)
    assert isinstance(layer, type(model.layers[0]))
    assert layer.name == "layer"


def test_grids_survive_the_config() -> None:
    grid = ActivationGrid(8, 0.1, -3)
    layer = ocs_tf.layers.QuantizedDense(
        3, weight_bits=4, input_grid=grid, output_grid=grid, preactivation_grid=grid
    )
    twin = type(layer).from_config(layer.get_config())
    assert (twin.input_grid, twin.output_grid, twin.preactivation_grid) == (grid, grid, grid)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("case", ["dense", "conv", "depthwise"])
def test_other_precisions(case: str, policy: str, rng: np.random.Generator, randomize: Any) -> None:
    model = randomize(model_of(case, dtype=policy))
    model.layers[0].kernel.assign(np.asarray(model.layers[0].kernel) * 1e-4)
    x = inputs_for(case, rng)
    quantized = convert(model, weight_bits=8, representative_dataset=x)
    got, want = (np.asarray(m(x), np.float64) for m in (quantized, model))
    assert np.isfinite(got).all()
    assert quantized.layers[-1].compute_dtype == model.layers[-1].compute_dtype
    np.testing.assert_allclose(got, want, atol=0.03 * np.abs(want).max())


def test_steps_too_small_for_half_precision_do_not_vanish(randomize: Any) -> None:
    model = randomize(model_of("dense", dtype="mixed_float16", use_bias=False))
    model.layers[0].kernel.assign(np.asarray(model.layers[0].kernel) * 1e-5)
    quantized = convert(model, weight_bits=8)
    x = np.full((1, 7), 1000.0, np.float32)
    want = 1000 * np.asarray(model.layers[0].kernel).sum(0)
    np.testing.assert_allclose(np.asarray(quantized(x), np.float32)[0], want, rtol=0.02, atol=1e-4)


def test_integer_inputs(randomize: Any) -> None:
    model = keras.Sequential([keras.Input((4,), dtype="int32"), layers.Dense(3)])
    quantized = convert(randomize(model), weight_bits=8)
    x = np.arange(8, dtype=np.int32).reshape(2, 4)
    np.testing.assert_allclose(outputs(quantized, x), np.asarray(model(x)), atol=0.1)


def test_quantized_kernel_is_what_was_assigned(rng: np.random.Generator) -> None:
    kernel = quantize_kernel(rng.normal(size=(7, 5)), 5, 0.4, "none", "channel")
    layer = ocs_tf.layers.QuantizedDense(
        5, weight_bits=5, granularity="channel", copies=kernel.splits, use_bias=False
    )
    layer.build((None, 7))
    layer.assign(kernel, None)
    got = layer.quantized_kernel()
    assert isinstance(got, QuantizedKernel)
    for field in ("codes", "scale", "channel_map"):
        np.testing.assert_array_equal(getattr(got, field), getattr(kernel, field))
    assert got.bits == 5
    np.testing.assert_array_equal(np.asarray(layer.kernel), kernel.effective_kernel())
