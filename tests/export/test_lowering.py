"""The lowered graph: same function, plain layers, copies where they belong."""

from __future__ import annotations

import re
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export.form import FLOAT
from ocs_tf.export.lowering import lower
from tests.graph import twins

SHAPE = (8, 8, 6)


def build(function: Callable, shape: tuple[int, ...] = SHAPE) -> keras.Model:
    inputs = keras.Input(shape, name="x")
    return keras.Model(inputs, function(inputs))


def chain(*between: keras.layers.Layer) -> keras.Model:
    """A convolution, layers that keep channels apart, and a split convolution."""

    def function(x):
        x = layers.Conv2D(10, 3, padding="same", name="first")(x)
        for layer in between:
            x = layer(x)
        head = layers.Conv2D if len(x.shape) == 4 else layers.Dense
        return head(4, **({"kernel_size": 1} if len(x.shape) == 4 else {}), name="second")(x)

    return build(function)


CHAINS: dict[str, Callable[[], list]] = {
    "directly": lambda: [],
    "relu": lambda: [layers.ReLU()],
    "leaky-relu": lambda: [layers.LeakyReLU()],
    "prelu": lambda: [layers.PReLU(shared_axes=[1, 2])],
    "activation": lambda: [layers.Activation("tanh")],
    "batch-norm": lambda: [layers.ReLU(), layers.BatchNormalization()],
    "depthwise": lambda: [layers.DepthwiseConv2D(3, activation="relu", name="dw")],
    "padding": lambda: [layers.ZeroPadding2D(1)],
    "max-pool": lambda: [layers.MaxPooling2D(2)],
    "average-pool": lambda: [layers.AveragePooling2D(2)],
    "global-pool": lambda: [layers.GlobalAveragePooling2D()],
    "global-pool-flatten": lambda: [layers.GlobalAveragePooling2D(keepdims=True), layers.Flatten()],
    "dropout": lambda: [layers.Dropout(0.5)],
    "noise": lambda: [layers.GaussianNoise(0.5), layers.GaussianDropout(0.5)],
    "cropping": lambda: [layers.Cropping2D(1), layers.ActivityRegularization(0.1)],
    "bilinear": lambda: [layers.UpSampling2D(2, interpolation="bilinear"), layers.ELU()],
    "resizing": lambda: [layers.Resizing(5, 11)],
}


def split(model: keras.Model, **options) -> keras.Model:
    """Weights only, half of the input channels of `second` copied."""
    defaults = {
        "weight_bits": 8,
        "expand_ratio": 0.5,
        "overrides": {"dw": {"weight_bits": 8}} if "dw" in {v.name for v in model.layers} else {},
    }
    return ocs_tf.convert(model, verbose=False, **{**defaults, **options})


def names_of_layers(model: keras.Model) -> set[str]:
    return {layer.name for layer in model.layers}


@pytest.mark.parametrize("name", CHAINS)
def test_layer_in_front_produces_the_copies(name, randomize, rng):
    model = randomize(chain(*CHAINS[name]()))
    quantized = split(model)
    lowered = lower(quantized, FLOAT, merge_copies=False, batch_size=None)
    first, second = lowered.model.get_layer("first"), lowered.model.get_layer("second")
    assert first.filters == 10 + 5
    assert second.kernel.shape[-2] == 10 + 5
    assert "second_copies" not in names_of_layers(lowered.model)
    assert lowered.notes == []
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-5
    )


def test_vectors_that_are_repeated_have_copies(randomize, rng):
    def function(x):
        x = layers.RepeatVector(4)(layers.Dense(10, name="first")(x))
        return layers.Conv1D(4, 2, name="second")(x)

    quantized = split(randomize(build(function, (6,))))
    lowered = lower(quantized, FLOAT, merge_copies=False, batch_size=None)
    assert lowered.model.get_layer("first").units == 10 + 5
    x = rng.normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-5
    )


DIMENSIONS = [(rank, pool, rank < 3) for rank in twins.RANKS for pool in ("Average", "Max")]


@pytest.mark.parametrize(("rank", "pool", "depthwise"), DIMENSIONS)
def test_layers_in_front_produce_the_copies_in_any_number_of_dimensions(
    rank, pool, depthwise, randomize
):
    quantized = split(randomize(twins.network(rank, pool, depthwise)))
    lowered = lower(quantized, FLOAT, merge_copies=False, batch_size=None)
    assert lowered.notes == []
    assert not {name for name in names_of_layers(lowered.model) if name.endswith("_copies")}
    read = {name: lowered.model.get_layer(name).kernel.shape[-2] for name in "bc"}
    assert read == {"b": 6 + 3, "c": 5 + 3}
    x = twins.samples(rank, 3)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-5
    )


@keras.saving.register_keras_serializable("tests")
def _across_channels(x):
    return x / (1 + keras.ops.sum(keras.ops.abs(x), -1, keepdims=True))


ACROSS: dict[str, Callable] = {
    "log-softmax": lambda: layers.Activation(keras.activations.log_softmax),
    "own": lambda: layers.Activation(_across_channels),
    "depthwise": lambda: layers.DepthwiseConv2D(3, activation=_across_channels, name="dw"),
    "kernel": lambda: layers.Conv2D(10, 1, activation=_across_channels),
}


@pytest.mark.parametrize("name", ACROSS)
def test_functions_across_channels_do_not_see_copies(name, randomize, rng):
    quantized = split(randomize(chain(ACROSS[name]())))
    lowered = lower(quantized, FLOAT, merge_copies=False, batch_size=None)
    assert "second_copies" in names_of_layers(lowered.model)
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-5
    )


def _sum(x):
    y = layers.Add()([layers.Conv2D(6, 1, name="first")(x), x])
    return layers.Conv2D(4, 1, name="second")(y)


def _two_readers(x):
    y = layers.Conv2D(10, 1, name="first")(x)
    return layers.Conv2D(4, 1, name="second")(y), layers.ReLU()(y)


def _concatenation(x):
    y = layers.Concatenate()([layers.Conv2D(4, 1, name="first")(x), x])
    return layers.Conv2D(4, 1, name="second")(y)


def _flattened(x):
    y = layers.Flatten()(layers.Conv2D(3, 3, name="first")(x))
    return layers.Dense(4, name="second")(y)


def _called_twice(x):
    second, y = layers.Conv2D(6, 1, name="second"), layers.Conv2D(6, 1, name="first")(x)
    return second(second(y))


WITHOUT_PRODUCER = {
    _sum: "'add.*' does not make each channel from one",
    _two_readers: "what 'first' makes has other readers",
    _concatenation: "'concatenate.*' does not make each channel from one",
    _flattened: "'flatten.*' does not make each channel from one",
    _called_twice: "it is called several times",
}


@pytest.mark.parametrize(("function", "reason"), WITHOUT_PRODUCER.items())
def test_slices_are_concatenated_where_no_layer_can_produce_copies(
    function, reason, randomize, rng
):
    quantized = split(randomize(build(function)))
    lowered = lower(quantized, FLOAT, merge_copies=False, batch_size=None)
    assert "second_copies" in names_of_layers(lowered.model)
    (note,) = (note for note in lowered.notes if note.startswith("second:"))
    assert re.search(rf"\({reason}.*\), so a Concatenation", note)
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    expected = keras.tree.flatten(quantized.predict_on_batch(x))
    got = keras.tree.flatten(lowered.model.predict_on_batch(x))
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_neighbouring_copies_make_one_slice(rng):
    model = build(_sum)
    kernel = rng.uniform(-0.1, 0.1, (1, 1, 6, 4)).astype(np.float32)
    # Channels 2, 3, 4 hold the outliers in this order: the greedy choice takes them in turn.
    kernel[0, 0, [2, 3, 4], 0] = [9.0, 8.0, 7.0]
    model.get_layer("second").kernel.assign(kernel)
    lowered = lower(split(model), FLOAT, merge_copies=False)
    slices = [o for o in lowered.model.operations if type(o).__name__ == "GetItem"]
    assert len(slices) == 1


@pytest.mark.parametrize(("bits", "merged"), [(8, False), (7, True), (4, True)])
def test_copies_are_merged_where_their_sums_fit_int8(bits, merged, randomize):
    model = randomize(chain())
    # One outlier channel whose code is the largest there is: at 8 bits twice 127 does not fit.
    kernel = np.asarray(model.get_layer("second").kernel).copy()
    kernel[..., 3, :] = 5.0
    model.get_layer("second").kernel.assign(kernel)
    quantized = split(model, weight_bits=bits, expand_ratio=0.1, last_layer_bits="same")
    lowered = lower(quantized)
    channels = lowered.model.get_layer("second").kernel.shape[-2]
    assert channels == (10 if merged else 11)


def test_float_lowering_always_merges(randomize):
    lowered = lower(split(randomize(chain())), FLOAT)
    assert lowered.model.get_layer("second").kernel.shape[-2] == 10


def test_kernels_are_codes_times_scale_exactly(randomize):
    quantized = split(randomize(chain(*CHAINS["depthwise"]())), granularity="channel")
    lowered = lower(quantized)
    for kernel in lowered.kernels:
        weights = np.asarray(lowered.model.get_layer(kernel.layer).kernel)
        scale = kernel.scale
        if kernel.kind == "depthwise":
            scale = scale.reshape(kernel.codes.shape[-2:])
        np.testing.assert_array_equal(weights, kernel.codes.astype(np.float32) * scale)


@pytest.mark.parametrize("kind", ["conv", "dense", "depthwise"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_batch_norm_behind_goes_into_the_scale(kind, granularity, randomize, rng):
    layer = {
        "conv": layers.Conv2D(5, 3, name="k"),
        "dense": layers.Dense(5, name="k"),
        "depthwise": layers.DepthwiseConv2D(3, name="k"),
    }[kind]
    model = randomize(
        build(lambda x: layers.ReLU()(layers.BatchNormalization(name="bn")(layer(x))))
    )
    norm = model.get_layer("bn")
    norm.gamma.assign(np.asarray(norm.gamma) * rng.choice([-1, 1], norm.gamma.shape))
    quantized = ocs_tf.convert(model, fold_batch_norm=False, granularity=granularity, verbose=False)
    lowered = lower(quantized, batch_size=None)
    assert "bn" not in names_of_layers(lowered.model)
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-4
    )


def test_batch_norm_alone_becomes_a_depthwise_convolution(randomize, rng):
    def function(x):
        return layers.Conv2D(3, 1, name="k")(layers.BatchNormalization(name="bn")(layers.ReLU()(x)))

    quantized = ocs_tf.convert(randomize(build(function)), verbose=False)
    lowered = lower(quantized, batch_size=None)
    assert type(lowered.model.get_layer("bn")) is layers.DepthwiseConv2D
    (kernel,) = [k for k in lowered.kernels if k.layer == "bn"]
    assert set(np.abs(kernel.codes).ravel()) == {127}
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 5)], ids=str)
def test_batch_norm_alone_of_any_rank(shape, randomize, rng):
    """Called twice, and in front of a kernel that the converter must not change."""

    def function(x):
        norm = layers.BatchNormalization(name="n")
        return layers.Dense(4, name="second")(norm(layers.ReLU()(norm(x))))

    quantized = split(randomize(build(function, shape)))
    x = rng.normal(size=(2, *shape)).astype(np.float32)
    lowered = lower(quantized, batch_size=None)
    assert isinstance(lowered.model.get_layer("n"), layers.DepthwiseConv2D)
    np.testing.assert_allclose(lowered.model(x), quantized(x), rtol=1e-5, atol=1e-5)


def test_batch_norm_over_another_axis_stays(randomize, rng):
    norm = layers.BatchNormalization(axis=1, name="n")
    quantized = split(randomize(build(lambda x: layers.Conv2D(4, 1, name="c")(norm(x)), (6, 6, 6))))
    x = rng.normal(size=(2, 6, 6, 6)).astype(np.float32)
    lowered = lower(quantized, batch_size=None)
    np.testing.assert_allclose(lowered.model(x), quantized(x), rtol=1e-5, atol=1e-5)


def test_dead_channel_does_not_get_a_tiny_step(randomize):
    model = randomize(chain())
    kernel = np.asarray(model.get_layer("first").kernel).copy()
    kernel[..., 0] = 1e-20
    model.get_layer("first").kernel.assign(kernel)
    (first, _) = lower(ocs_tf.convert(model, verbose=False)).kernels
    assert first.scale.min() >= first.scale.max() * 2.0**-13 * 0.999
    assert not first.codes[..., 0].any()


def test_shared_layer_with_an_activation_function_apart(randomize, rng):
    layer = layers.Dense(6, activation="softmax", name="twice")
    quantized = split(randomize(build(lambda x: layer(layer(x)))))
    x = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    lowered = lower(quantized, batch_size=None)
    np.testing.assert_allclose(lowered.model(x), quantized(x), atol=1e-6)


def test_input_model_is_left_alone(randomize):
    quantized = split(randomize(chain(layers.ReLU())))
    before = [w.copy() for w in quantized.get_weights()], quantized.get_config()
    lower(quantized)
    assert quantized.get_config() == before[1]
    for old, new in zip(before[0], quantized.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
