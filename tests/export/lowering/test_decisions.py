"""Copies where they belong: made by the layer in front, by slices, or merged."""

from __future__ import annotations

import re
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.export.form import FLOAT
from ocs_tf.export.lowering import lower
from ocs_tf.graph.reader import Graph
from tests.export.lowering.networks import CHAINS, SHAPE, build, chain, names_of_layers, split
from tests.graph import twins


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


def _padded_sum(*paddings):
    def function(x):
        y = layers.Add()([layers.Conv2D(6, 1, name="first")(x), x])
        for padding in paddings:
            y = padding(y)
        return layers.Conv2D(4, 3, name="second")(y)

    return function


@pytest.mark.parametrize(
    "paddings",
    [
        lambda: [layers.ZeroPadding2D(1, name="pad")],
        lambda: [layers.ZeroPadding2D(((1, 0), (0, 2)), name="pad"), layers.ZeroPadding2D(1)],
    ],
    ids=["one", "two"],
)
def test_copies_are_made_in_front_of_padding(paddings, randomize, rng):
    """So that a converter makes padding and convolution one operator, as without copies."""
    quantized = split(randomize(build(_padded_sum(*paddings()))))
    lowered = lower(quantized, FLOAT, merge_copies=False, batch_size=None)
    nodes = {node.layer.name: node for node in Graph(lowered.model).nodes}
    copies = nodes["second_copies"].outputs[0]
    assert nodes["pad"].inputs[0] is copies
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-5
    )


def _padding_with_two_readers(x):
    y = layers.ZeroPadding2D(1, name="pad")(layers.Add()([layers.Conv2D(6, 1, name="first")(x), x]))
    return layers.Conv2D(4, 3, name="second")(y), layers.ReLU()(y)


def _padding_called_twice(x):
    pad = layers.ZeroPadding2D(1, name="pad")
    y = layers.Add()([layers.Conv2D(6, 1, name="first")(x), x])
    return layers.Conv2D(4, 3, name="second")(pad(y)), pad(layers.ReLU()(x))


@pytest.mark.parametrize("function", [_padding_with_two_readers, _padding_called_twice])
def test_padding_that_others_use_has_no_copies_in_front(function, randomize, rng):
    quantized = split(randomize(build(function)))
    lowered = lower(quantized, FLOAT, merge_copies=False, batch_size=None)
    nodes = {node.layer.name: node for node in Graph(lowered.model).nodes}
    assert nodes["pad"].outputs[0].shape[-1] == 6
    assert "second_copies" in nodes
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    expected, got = quantized.predict_on_batch(x), lowered.model.predict_on_batch(x)
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_copies_come_in_the_order_of_their_channels(rng):
    """Whichever was found first: neighbours make one slice."""
    model = build(_sum)
    kernel = rng.uniform(-0.1, 0.1, (1, 1, 6, 4)).astype(np.float32)
    kernel[0, 0, [3, 1, 2], 0] = [9.0, 8.0, 7.0]  # the greedy choice takes them in this order
    model.get_layer("second").kernel.assign(kernel)
    quantized = split(model)
    assert np.asarray(quantized.get_layer("second").channel_map)[6:].tolist() == [3, 1, 2]
    lowered = lower(quantized, FLOAT, merge_copies=False, batch_size=None)
    slices = [o for o in lowered.model.operations if type(o).__name__ == "GetItem"]
    assert len(slices) == 1
    x = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("count", [9, 10, 35, 110])
def test_many_copies_are_joined_in_steps(count, rng):
    """TFLite Micro concatenates up to 10 tensors."""

    def function(x):
        x = layers.Flatten()(layers.Conv1D(12, 1, name="first")(x))
        return layers.Dense(2, name="second")(x)

    model = build(function, (20, 6))
    kernel = rng.uniform(-0.1, 0.1, (240, 2)).astype(np.float32)
    kernel[1 : 2 * count : 2] = rng.uniform(5, 9, (count, 2))  # no neighbours
    model.get_layer("second").kernel.assign(kernel)
    quantized = split(model, expand_ratio=count / 240)
    lowered = lower(quantized, FLOAT, merge_copies=False, batch_size=None)
    joined = [n.inputs for n in Graph(lowered.model).nodes if n.layer.name.startswith("second_cop")]
    assert max(map(len, joined)) <= 10
    assert len(joined) == (1 if count <= 9 else 1 + -(-count // 10) + (count > 90) * 2)
    x = rng.normal(size=(3, 20, 6)).astype(np.float32)
    np.testing.assert_allclose(
        lowered.model.predict_on_batch(x), quantized.predict_on_batch(x), rtol=1e-4, atol=1e-4
    )


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
