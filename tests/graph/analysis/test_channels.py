"""Following channels to the layer that makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.analysis.channels import (
    NoProducer,
    can_repeat_outputs,
    is_channelwise,
    producers,
    repeat_weights,
)
from ocs_tf.graph.reader import Graph

SHAPE = (6, 6, 4)


def graph_of(build: Callable[[Any], Any], shape: tuple[int, ...] = SHAPE) -> Graph:
    inputs = keras.Input(shape, name="x")
    return Graph(keras.Model(inputs, build(inputs)), fold_batch_norm=False)


def conv(name: str, **options: Any) -> layers.Layer:
    return layers.Conv2D(4, 3, padding="same", name=name, **options)


def test_the_chain_goes_back_to_the_kernel() -> None:
    def build(x: Any) -> Any:
        x = layers.ReLU(name="relu")(conv("a")(x))
        return conv("b")(layers.MaxPooling2D(2, name="pool")(x))

    graph = graph_of(build)
    (node,) = graph.calls_of("b")
    assert [call.layer.name for call in producers(graph, node)] == ["pool", "relu", "a"]


def two_readers(x: Any) -> Any:
    x = conv("a")(x)
    return conv("b")(x), layers.ReLU()(x)


def called_twice(x: Any) -> Any:
    b = conv("b")
    return b(b(conv("a")(x)))


def maker_called_twice(x: Any) -> Any:
    a = conv("a")
    return conv("b")(a(a(x)))


NONE = {
    "an input": (lambda x: conv("b")(x), "'x' is an input of the model"),
    "a sum": (lambda x: conv("b")(layers.Add(name="add")([conv("a")(x), x])), "'add' does not"),
    "two readers": (two_readers, "what 'a' makes has other readers"),
    "called twice": (called_twice, "it is called several times"),
    "maker called twice": (maker_called_twice, "'a' is called several times"),
    "softmax": (lambda x: conv("b")(layers.Softmax(name="s")(conv("a")(x))), "'s' does not make"),
}


@pytest.mark.parametrize(("build", "reason"), NONE.values(), ids=NONE)
def test_why_there_is_none(build: Callable[[Any], Any], reason: str) -> None:
    graph = graph_of(build)
    with pytest.raises(NoProducer, match=reason):
        producers(graph, graph.calls_of("b")[0])


@pytest.mark.parametrize(
    ("layer", "can"),
    [
        (layers.Conv2D(4, 3), True),
        (layers.Conv2D(4, 3, activation="relu"), True),
        (layers.Conv2D(4, 3, activation="softmax"), False),
        (layers.Conv2D(4, 3, groups=2), False),
        (layers.DepthwiseConv2D(3), False),
        (layers.Dense(4), True),
        (layers.ReLU(), False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_who_can_make_channels_twice(layer: Any, can: bool) -> None:
    assert can_repeat_outputs(layer) is can


@pytest.mark.parametrize(
    ("layer", "shape", "channelwise"),
    [
        (layers.BatchNormalization(), SHAPE, True),
        (layers.BatchNormalization(axis=1), SHAPE, False),
        (layers.Flatten(), (1, 1, 4), True),
        (layers.Flatten(), (2, 1, 4), False),
        (layers.AveragePooling2D(2), SHAPE, True),
        (layers.AveragePooling2D(2, data_format="channels_first"), SHAPE, False),
        (layers.LayerNormalization(), SHAPE, False),
    ],
)
def test_who_keeps_channels_apart(layer: Any, shape: tuple[int, ...], channelwise: bool) -> None:
    node = graph_of(lambda x: layer(x), shape).nodes[-1]
    assert is_channelwise(node) is channelwise


def test_weights_of_repeated_channels(rng: np.random.Generator) -> None:
    """A channelwise layer with repeated weights makes repeated channels of repeated channels."""
    mapping = np.array([0, 1, 2, 2, 0])
    x = rng.normal(size=(2, 5, 5, 3)).astype(np.float32)
    for layer, twin in (
        (layers.DepthwiseConv2D(3, depth_multiplier=1), layers.DepthwiseConv2D(3)),
        (layers.BatchNormalization(), layers.BatchNormalization()),
        (layers.PReLU(shared_axes=[1, 2]), layers.PReLU(shared_axes=[1, 2])),
    ):
        layer.build(x.shape)
        layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.weights])
        twin.build((*x.shape[:-1], 5))
        twin.set_weights(repeat_weights(layer, layer.get_weights(), mapping))
        np.testing.assert_allclose(twin(x[..., mapping]), np.asarray(layer(x))[..., mapping])


def test_weights_that_all_channels_share_stay() -> None:
    shared = [np.array(0.5), np.ones((1, 1, 1))]
    found = repeat_weights(layers.PReLU(), shared, np.array([0, 1, 1]))
    assert [array is kept for array, kept in zip(found, shared, strict=True)] == [True, True]
