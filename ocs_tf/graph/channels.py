"""Following channels through layers that treat each channel on its own.

A copy of a channel need not be made where it is read: if everything from the layer that produces
the channel up to the reader works channel by channel, that layer can produce the copy.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.graph import adapters
from ocs_tf.graph.reader import Graph, Node

_LAYERS = keras.layers
_CHANNELWISE = (
    _LAYERS.ReLU,
    _LAYERS.LeakyReLU,
    _LAYERS.ELU,
    _LAYERS.PReLU,
    _LAYERS.Activation,
    _LAYERS.BatchNormalization,
    _LAYERS.Dropout,
    _LAYERS.Identity,
    _LAYERS.ZeroPadding2D,
    _LAYERS.Cropping2D,
    _LAYERS.UpSampling2D,
    _LAYERS.MaxPooling2D,
    _LAYERS.AveragePooling2D,
    _LAYERS.GlobalAveragePooling2D,
    _LAYERS.GlobalMaxPooling2D,
    _LAYERS.DepthwiseConv2D,
    layers.FakeQuantize,
)


def producers(graph: Graph, node: Node) -> list[Node] | None:
    """The calls that must repeat their channels for `node` to read an expanded input.

    The last one is a layer whose output channels can be repeated; before it come the channelwise
    layers between it and `node`. `None` if there is no such chain: the tensor has other readers,
    or is a sum, a concatenation or an input.
    """
    chain = []
    tensor = node.inputs[0]
    while True:
        before = graph.producer[id(tensor)]
        if graph.only_consumer(tensor) is None or len(graph.calls(before.layer)) != 1:
            return None
        chain.append(before)
        if can_repeat_outputs(before.layer):
            return chain
        if not is_channelwise(before) or len(before.inputs) != 1:
            return None
        tensor = before.inputs[0]


def can_repeat_outputs(layer: Any) -> bool:
    """Whether `layer` makes its channels by a kernel, so that it can make some of them twice."""
    adapter = adapters.any_adapter(layer)
    function = getattr(layer, "activation", None)
    return (
        adapter is not None
        and adapter.outputs_option is not None
        and getattr(layer, "groups", 1) == 1
        and function is not keras.activations.softmax
    )


def is_channelwise(node: Node) -> bool:
    """Whether each output channel (last axis) of `node` depends on the same input channel only."""
    layer = layers.unwrapped(node.layer)
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    if isinstance(layer, _LAYERS.DepthwiseConv2D):
        return layer.depth_multiplier == 1
    if isinstance(layer, _LAYERS.Activation):
        return layer.activation is not keras.activations.softmax
    if isinstance(layer, _LAYERS.BatchNormalization):
        return layer.axis in (-1, len(node.inputs[0].shape) - 1)
    if isinstance(layer, _LAYERS.Flatten):
        # One value per channel: nothing but the channels is left to flatten.
        return node.inputs[0].shape[-1] == node.outputs[0].shape[-1]
    return isinstance(layer, _CHANNELWISE)


def repeat_weights(layer: Any, weights: list[np.ndarray], channel_map: np.ndarray) -> list[Any]:
    """Weights of a channelwise `layer` for the channels of `channel_map`."""
    axis = -2 if isinstance(layers.unwrapped(layer), _LAYERS.DepthwiseConv2D) else -1
    channels = int(channel_map.max()) + 1
    return [
        w.take(channel_map, axis if w.ndim > 1 else -1)
        # A parameter shared by all channels (PReLU's, a step) stays as it is.
        if w.ndim and w.shape[axis if w.ndim > 1 else -1] == channels
        else w
        for w in weights
    ]
