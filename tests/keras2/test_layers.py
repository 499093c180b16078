"""Layers of Keras 2 as layers of Keras 3, against tf_keras itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from ocs_tf.keras2 import keras3_model

tf_keras = pytest.importorskip("tf_keras")
tf = pytest.importorskip("tensorflow")
layers = tf_keras.layers

IMAGE, SERIES = (8, 8, 4), (4, 5)


def randomized(model: Any) -> Any:
    rng = np.random.default_rng(0)
    for weight in model.weights:
        positive = any(part in weight.name for part in ("variance", "gamma"))
        drawn = rng.uniform(0.5, 2, weight.shape) if positive else rng.normal(0, 0.3, weight.shape)
        weight.assign(drawn)
    return model


def sequential(shape: tuple[int, ...], *parts: Any, **options: Any) -> Any:
    return tf_keras.Sequential([tf_keras.Input(shape, **options), *parts])


def adapted(layer: Any, data: Any) -> Any:
    layer.adapt(np.asarray(data))
    return layer


def convolutions() -> Any:
    return sequential(
        IMAGE,
        layers.Conv2D(4, 3, groups=2, activation="relu", kernel_regularizer="l2"),
        layers.DepthwiseConv2D(3, depth_multiplier=2, depthwise_constraint="max_norm"),
        layers.BatchNormalization(axis=[3]),
        layers.SeparableConv2D(5, 2, activation="hard_sigmoid"),
        layers.Conv2DTranspose(3, 3, strides=2, output_padding=1),
        layers.Reshape((-1, 3)),
        layers.Conv1D(3, 3, padding="causal", dilation_rate=2),
        layers.DepthwiseConv1D(2),
    )


def activations() -> Any:
    return sequential(
        IMAGE,
        layers.LeakyReLU(),
        layers.ThresholdedReLU(0.1),
        layers.PReLU(shared_axes=[1, 2]),
        layers.ReLU(6.0, negative_slope=0.1, threshold=0.2),
        *(layers.Dense(4, activation=name) for name in ("hard_sigmoid", "gelu", "mish")),
        *(layers.Dense(4, activation=function) for function in (tf.nn.relu6, tf.nn.swish, tf.sin)),
        layers.Dense(4, activation=layers.LeakyReLU(0.2)),
        layers.Lambda(lambda x: x + tf_keras.backend.mean(x, axis=1, keepdims=True)),
        layers.Softmax(axis=1),
    )


def normalizations() -> Any:
    return sequential(
        IMAGE,
        layers.LayerNormalization(axis=[1, 2, 3], epsilon=1e-6),
        layers.GroupNormalization(2),
        layers.UnitNormalization(),
        layers.experimental.SyncBatchNormalization(scale=False),
        adapted(layers.Normalization(axis=(1, 3)), np.random.rand(9, *IMAGE)),
        layers.Rescaling([0.5, 1.0, 2.0, 3.0], offset=-1.0),
        layers.RandomFlip(),
        layers.RandomHeight(0.2),
        layers.RandomCrop(6, 5),
        layers.SpatialDropout2D(0.1),
    )


def recurrent() -> Any:
    return sequential(
        SERIES,
        layers.Masking(),
        layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid"),
        layers.GRU(3, return_sequences=True, reset_after=False),
        layers.Bidirectional(
            layers.SimpleRNN(3, return_sequences=True),
            backward_layer=layers.SimpleRNN(3, **BACKWARD),
        ),
        layers.TimeDistributed(sequential((6,), layers.Dense(3), layers.BatchNormalization())),
        layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)], return_sequences=True),
        layers.Reshape((2, 2, 4)),
        layers.ConvLSTM1D(3, 2),
    )


BACKWARD = {"go_backwards": True, "return_sequences": True, "activation": "relu"}


def stateful() -> Any:
    inputs = tf_keras.Input(batch_shape=(3, *SERIES))
    model = tf_keras.Sequential([inputs, layers.LSTM(4, stateful=True, name="lstm")])
    model(np.ones((3, *SERIES), np.float32))  # its states are no longer zero
    return model


def states_and_attention() -> Any:
    first, second = tf_keras.Input(SERIES), tf_keras.Input(SERIES)
    one, *states = layers.LSTM(4, return_state=True)(first)
    both = layers.Bidirectional(layers.SimpleRNN(4, return_state=True))(first)
    outputs = [
        layers.LSTM(4)(second, initial_state=states),
        layers.Bidirectional(layers.SimpleRNN(4))(second, initial_state=both[1:]),
        *layers.MultiHeadAttention(2, 3)(first, second, return_attention_scores=True),
        layers.Attention(use_scale=True)([first, second]),
        layers.Dot(2, normalize=True)([first, second]),
        one,
    ]
    return tf_keras.Model([first, second], outputs)


def words() -> Any:
    text = adapted(layers.TextVectorization(output_sequence_length=4), ["a b c", "b c"])
    return sequential((1,), text, layers.Embedding(9, 3, mask_zero=True), dtype="string")


def weighted_words() -> Any:
    options = {"output_mode": "tf_idf", "max_tokens": 9, "pad_to_max_tokens": True}
    text = adapted(layers.TextVectorization(**options), ["a b c", "b c"])
    return sequential((1,), text, dtype="string")


def tables() -> Any:
    numbers = tf_keras.Input((3,))
    integers, strings = (tf_keras.Input((3,), dtype=dtype) for dtype in ("int64", "string"))
    edges = adapted(layers.Discretization(num_bins=4), np.random.rand(20, 3))
    outputs = [
        layers.CategoryEncoding(5, output_mode="count")(edges(numbers)),
        layers.IntegerLookup(vocabulary=[0, 4, 9], output_mode="multi_hot")(integers),
        layers.StringLookup(vocabulary=["a", "b"])(strings),
        layers.Hashing(5, salt=3)(strings),
    ]
    return tf_keras.Model([numbers, integers, strings], outputs)


def half() -> Any:
    return sequential(IMAGE, layers.Conv2D(3, 3, dtype="mixed_float16"), layers.Flatten())


CASES: list[Callable[[], Any]] = [convolutions, activations, normalizations, recurrent, stateful]
CASES += [states_and_attention, words, weighted_words, tables, half]


def states(model: Any) -> list[Any]:
    """What stateful layers keep."""
    kept = [layer for layer in model.layers if getattr(layer, "stateful", False)]
    return [state.numpy() for layer in kept for state in getattr(layer, "states", [])]


def drawn(tensor: Any) -> Any:
    rng = np.random.default_rng(7)
    shape = [size or 3 for size in tensor.shape]
    if tensor.dtype == tf.string:
        return tf.constant(rng.choice(["a", "b c", "zz"], shape))
    if tensor.dtype.is_integer:
        return tf.constant(rng.integers(0, 10, shape))
    return tf.constant(rng.normal(0, 1, shape), tf.float32)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_same_outputs(make: Callable[[], Any]) -> None:
    tf_keras.utils.set_random_seed(0)
    model = make()
    if make not in (words, weighted_words, tables):
        model = randomized(model)
    before = states(model)
    result = keras3_model(model)
    assert isinstance(result, keras.Model)
    assert [layer.name for layer in result.layers if "input" not in layer.name] == [
        layer.name for layer in model.layers if "input" not in layer.name
    ]
    np.testing.assert_array_equal(states(model), before)
    inputs = [drawn(tensor) for tensor in model.inputs]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_states()
    expected = keras.tree.flatten(model(inputs, training=False))
    found = keras.tree.flatten(result(inputs, training=False))
    for ours, theirs in zip(found, expected, strict=True):
        theirs = np.asarray(theirs)
        if theirs.dtype.kind == "f":
            tolerance = (2e-6 if theirs.dtype == np.float32 else 1e-2) * np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
        else:
            np.testing.assert_array_equal(ours, theirs)
