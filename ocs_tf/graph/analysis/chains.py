"""Channels that can be scaled: who makes them, who reads them, and what is in between.

A chain leads from a layer that makes channels, and can make them larger or smaller, over steps that
treat each channel on its own and let positive factors through, to the layers that take the inverse:
those with kernels, and batch norms. Whatever else reads such a tensor rules the chain out: sums
with other tensors, functions that are bent at a fixed value (ReLU6, sigmoid), outputs of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.graph import adapters
from ocs_tf.graph.analysis.activation_sites import concatenates
from ocs_tf.graph.layer_traits import holds, holds_for, is_homogeneous, is_training, keras_class
from ocs_tf.graph.reader import Graph, Node

_LAYERS = keras.layers


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where a tensor holds channels of a chain.

    Attributes:
        tensor: the symbolic tensor.
        axis: of its channels.
        channels: which of the chain's channels each of them is, or -1, int `[C_in]`.
    """

    tensor: keras.KerasTensor
    axis: int
    channels: NDArray[np.intp]

    @property
    def own(self) -> NDArray[np.bool_]:
        """Which of the channels are the chain's."""
        return self.channels >= 0


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Channels that can be scaled.

    Attributes:
        layer: what makes them: a layer with a kernel, or a batch norm.
        size: how many channels there are.
        readers: by the name of each layer that reads them: which of the channels each of its input
            channels is, int `[C_in]` (several are the same one behind a Flatten); -1 for channels
            of others that they were concatenated with.
        joined: what is first concatenated with channels of others, with which it then shares a
            grid; or `None`.
        places: all tensors that hold the channels, from the one that is made on.
    """

    layer: keras.layers.Layer
    size: int
    readers: dict[str, NDArray[np.intp]]
    joined: Place | None = None
    places: tuple[Place, ...] = ()


def chains(graph: Graph) -> dict[str, Chain]:
    """All chains of a model, by the name of the layer that makes the channels, in order."""
    found = {}
    for index, node in enumerate(graph.nodes):
        axis = _made_axis(graph, node)
        if axis is not None:
            chain = _follow(graph, index, axis)
            if chain is not None:
                found[str(node.layer.name)] = chain
    return found


def _made_axis(graph: Graph, node: Node) -> int | None:
    """The axis of the channels that the call makes by weights of its own, used nowhere else."""
    layer = node.layer
    if len(graph.calls(layer)) != 1:
        return None
    rank = len(node.outputs[0].shape)
    if type(layer) is _LAYERS.BatchNormalization:
        return None if is_training(node) else layer.axis % rank
    if not _has_kernel(layer) or not is_homogeneous(layer.activation):
        return None
    return adapters.channel_axis(layer) % rank


def _has_kernel(layer: keras.layers.Layer) -> bool:
    """Whether the layer multiplies channels by a kernel and adds a bias, no more (as LoRA does)."""
    adapter = adapters.adapter_for(layer)
    if adapter is None or not adapter.is_direct(layer):
        return False
    return len(layer.weights) == 1 + (layer.bias is not None)


def _follow(graph: Graph, index: int, axis: int) -> Chain | None:
    """The chain that starts at a call; `None` if something reads it that cannot be scaled."""
    start = graph.nodes[index]
    (tensor,) = start.outputs
    size = tensor.shape[axis]
    places = {id(tensor): Place(tensor, axis, np.arange(size))}
    readers = {}
    joined = None
    for node in graph.nodes[index + 1 :]:
        held = [places[id(t)] for t in node.inputs if id(t) in places]
        if not held:
            continue
        if _has_kernel(node.layer) or _is_lone_norm(graph, node):
            if not _reads_channels(graph, node, held[0]):
                return None
            readers[str(node.layer.name)] = held[0].channels
            continue
        carried = _joined(node, places) if concatenates(node.layer) else _carried(node, held[0])
        if carried is None:
            return None
        if concatenates(node.layer) and joined is None:
            joined = held[0]
        places[id(carried.tensor)] = carried
    if not readers or any(key in graph.output_ids for key in places):
        return None
    if joined is None and any(name not in graph.kernels for name in readers):
        return None  # from a tensor of its own to a batch norm: nothing to gain
    return Chain(start.layer, size, readers, joined, tuple(places.values()))


def _is_lone_norm(graph: Graph, node: Node) -> bool:
    """Whether the call is a batch norm of fixed statistics that is not folded into a kernel."""
    alone = type(node.layer) is _LAYERS.BatchNormalization and node.layer.name not in graph.folded
    return alone and not is_training(node)


def _reads_channels(graph: Graph, node: Node, place: Place) -> bool:
    """Whether the call has factors of its own for the channels of its input."""
    if len(graph.calls(node.layer)) != 1:
        return False
    kernel = _has_kernel(node.layer)
    axis = adapters.channel_axis(node.layer) if kernel else node.layer.axis
    return axis % len(place.tensor.shape) == place.axis


def _joined(node: Node, places: Mapping[int, Place]) -> Place | None:
    """Where a concatenation holds the channels; `None` if it is not one of channels."""
    (output,) = node.outputs
    axis = node.layer.axis % len(output.shape)
    held = [places.get(id(t)) for t in node.inputs]
    if any(place is not None and place.axis != axis for place in held):
        return None
    others = [np.full(tensor.shape[axis], -1) for tensor in node.inputs]
    parts = [o if place is None else place.channels for place, o in zip(held, others, strict=True)]
    return Place(output, axis, np.concatenate(parts))


def _carried(node: Node, place: Place) -> Place | None:
    """Where the output of a call holds the channels; `None` if factors do not go through it."""
    layer = node.layer
    if len(node.inputs) != 1:
        return None
    output = node.outputs[0]
    if keras_class(layer) is _LAYERS.Flatten:
        return _flattened(layer, place, output)
    if not holds_for(node, "homogeneous"):
        return None
    if holds(layer, "elementwise"):
        return dataclasses.replace(place, tensor=output)
    axis = adapters.channel_axis(layer)
    if not holds(layer, "channelwise") or place.axis != axis % len(place.tensor.shape):
        return None
    return Place(output, axis % len(output.shape), place.channels)


def _flattened(layer: keras.layers.Layer, place: Place, output: keras.KerasTensor) -> Place | None:
    sizes = place.tensor.shape[1:]
    if None in sizes or layer.data_format != "channels_last":
        return None
    shape = [1] * len(sizes)
    shape[place.axis - 1] = len(place.channels)
    channels = np.broadcast_to(place.channels.reshape(shape), sizes).reshape(-1)
    return Place(output, 1, channels)
