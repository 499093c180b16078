"""Following channels through layers that treat each channel on its own.

A copy of a channel need not be made where it is read: if everything from the layer that produces
the channel up to the reader works channel by channel, that layer can produce the copy.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.graph import adapters
from ocs_tf.graph.layer_traits import acts_elementwise, holds_for, keras_class
from ocs_tf.graph.reader import Graph, Node

_LAYERS = keras.layers
_PADDINGS = (_LAYERS.ZeroPadding1D, _LAYERS.ZeroPadding2D, _LAYERS.ZeroPadding3D)


class NoProducer(Exception):
    """Why no layer in front can repeat channels."""


def producers(graph: Graph, node: Node) -> list[Node]:
    """The calls that must repeat their channels for `node` to read an expanded input.

    The last one is a layer whose output channels can be repeated; before it come the channelwise
    layers between it and `node`.

    Raises:
        NoProducer: there is no such chain: a tensor has other readers, or is a sum, a concatenation
            or an input, or a layer mixes channels.
    """
    if len(graph.calls(node.layer)) != 1:
        raise NoProducer("it is called several times")
    chain: list[Node] = []
    tensor = node.inputs[0]
    while True:
        before = graph.producer[id(tensor)]
        name = before.layer.name
        if not before.inputs:
            raise NoProducer(f"{name!r} is an input of the model")
        if graph.only_consumer(tensor) is None:
            raise NoProducer(f"what {name!r} makes has other readers")
        if len(graph.calls(before.layer)) != 1:
            raise NoProducer(f"{name!r} is called several times")
        chain.append(before)
        if can_repeat_outputs(before.layer):
            return chain
        if not is_channelwise(before) or len(before.inputs) != 1:
            raise NoProducer(f"{name!r} does not make each channel from one, or by a kernel alone")
        tensor = before.inputs[0]


def padding_in_front(graph: Graph, node: Node) -> Node | None:
    """The first of the zero paddings that only `node` reads; `None` if there are none.

    Channels that are duplicated behind a padding would keep a converter from making it a part of
    the convolution.
    """
    found = None
    tensor = node.inputs[0]
    while len(graph.calls(node.layer)) == 1 and graph.only_consumer(tensor) is not None:
        before = graph.producer[id(tensor)]
        padding = keras_class(layers.unwrapped(before.layer)) in _PADDINGS
        if not padding or len(graph.calls(before.layer)) != 1 or not is_channelwise(before):
            break
        found, tensor = before, before.inputs[0]
    return found


def can_repeat_outputs(layer: keras.layers.Layer) -> bool:
    """Whether `layer` makes its channels by a kernel, so that it can make some of them twice."""
    adapter = adapters.any_adapter(layer)
    return (
        adapter is not None
        and adapter.outputs_option is not None
        and getattr(layer, "groups", 1) == 1
        and acts_elementwise(getattr(layer, "activation", None))
    )


def is_channelwise(node: Node) -> bool:
    """Whether each output channel (last axis) of `node` depends on the same input channel only."""
    layer = layers.unwrapped(node.layer)
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    kind = keras_class(layer)
    if kind is _LAYERS.BatchNormalization and layer.axis not in (-1, len(node.inputs[0].shape) - 1):
        return False
    if kind is _LAYERS.Flatten:
        # One value per channel: nothing but the channels is left to flatten.
        return bool(node.inputs[0].shape[-1] == node.outputs[0].shape[-1])
    return holds_for(dataclasses.replace(node, layer=layer), "channelwise")


def repeat_weights(
    layer: keras.layers.Layer, weights: list[np.ndarray], channel_map: np.ndarray
) -> list[np.ndarray]:
    """Weights of a channelwise `layer` for the channels of `channel_map`."""
    adapter = adapters.any_adapter(layers.unwrapped(layer))
    axis = -2 if adapter is not None and adapter.kind == "depthwise" else -1
    channels = int(channel_map.max()) + 1
    return [
        w.take(channel_map, axis if w.ndim > 1 else -1)
        # A parameter shared by all channels (PReLU's, a step) stays as it is.
        if w.ndim and w.shape[axis if w.ndim > 1 else -1] == channels
        else w
        for w in weights
    ]
