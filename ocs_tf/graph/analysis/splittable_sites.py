"""Where channels of activations can be split: who reads them, and who makes them.

Whoever reads a split channel must have weights to repeat for the copies: a quantized layer with a
kernel over channels. Where activations are rounded once, for all readers (scope `"all"`), that goes
for each reader, and the copies are to come from the layer that makes the tensor, so that an integer
runtime needs no further operator: a kernel that repeats an output channel at `1/k` of its scale,
with a ReLU behind it or nothing. Both pass `x/k` on as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import keras

from ocs_tf.graph import adapters
from ocs_tf.graph.analysis.activation_sites import Site, is_relu, is_relu6, moves_values
from ocs_tf.graph.analysis.channels import can_repeat_outputs, is_channelwise
from ocs_tf.graph.reader import Graph, Node


class NotSplittable(Exception):
    """Why the channels at a site cannot be split."""


def splittable_sites(
    graph: Graph, sites: Sequence[Site], quantized: set[str]
) -> tuple[set[str], dict[str, str]]:
    """The sites of which channels can be split, and the others.

    Arguments:
        sites: of activations, all of one scope.
        quantized: names of the layers whose kernels are quantized.

    Returns:
        The keys of sites of which channels can be split; of the others, why not, by key.
    """
    sizes = Counter(site.group for site in sites)
    reasons: dict[str, str] = {}
    for site in sites:
        try:
            if sizes[site.group] > 1:
                raise NotSplittable("it shares its grid with other tensors")
            _check_site(graph, site, quantized)
        except NotSplittable as reason:
            reasons[site.key] = str(reason)
    return {site.key for site in sites} - set(reasons), reasons


def _check_site(graph: Graph, site: Site, quantized: set[str]) -> None:
    name, _, kind = site.key.rpartition(":")
    if kind == "input" and name in graph.kernels:
        _check_reader(graph, name, quantized)
        return
    if site.fixed or site.through or site.span or len(site.tensors) != 1:
        raise NotSplittable("it is not the output of one layer that repeats channels")
    (tensor,) = site.tensors
    _check_producer(graph, tensor, quantized)
    _check_readers(graph, tensor, quantized)


def _check_reader(graph: Graph, name: str, quantized: set[str]) -> None:
    reader = graph.kernels[name]
    why_not = reader.adapter.why_not_split(reader.layer)
    if name not in quantized:
        raise NotSplittable(f"{name!r} reads it, which stays in float")
    if why_not:
        raise NotSplittable(f"{name!r} reads it, but {why_not}")
    if name in graph.first_kernels():
        raise NotSplittable(f"{name!r} reads it, a first layer, which has few channels")
    if adapters.channel_axis(reader.layer) != -1:
        raise NotSplittable(f"{name!r} reads it, which is channels_first")
    if reader.adapter.groups(reader.layer) > 1:
        raise NotSplittable(f"{name!r} reads it, in groups of channels")
    if not reader.adapter.is_direct(reader.layer):
        raise NotSplittable(f"{name!r} reads it, whose kernel sums over other axes, too")


def _check_readers(graph: Graph, tensor: keras.KerasTensor, quantized: set[str]) -> None:
    """Check who reads `tensor`, also through layers that only move its channels' values."""
    if id(tensor) in graph.output_ids:
        raise NotSplittable("it is an output of the model")
    for node in graph.consumers[id(tensor)]:
        if node.layer.name in graph.kernels:
            if len(graph.calls(node.layer)) != 1:
                raise NotSplittable(f"{node.layer.name!r} reads it, which is called several times")
            _check_reader(graph, node.layer.name, quantized)
        elif moves_values(node.layer) and is_channelwise(node):
            _check_readers(graph, node.outputs[0], quantized)
        else:
            raise NotSplittable(f"{node.layer.name!r} reads it, which has no weights to repeat")


def _check_producer(graph: Graph, tensor: keras.KerasTensor, quantized: set[str]) -> None:
    node: Node = graph.producer[id(tensor)]
    if is_relu(node.layer):
        _check_unbounded(node.layer, is_relu6(node.layer))
        if graph.only_consumer(node.inputs[0]) is None:
            raise NotSplittable(f"what {node.layer.name!r} reads has other readers")
        node = graph.producer[id(node.inputs[0])]
    if node.layer.name in graph.folded:
        node = graph.producer[id(node.inputs[0])]
    layer = node.layer
    if layer.name not in quantized or not can_repeat_outputs(layer):
        raise NotSplittable(f"{layer.name!r} makes it, which cannot repeat single channels")
    if len(graph.calls(layer)) != 1:
        raise NotSplittable(f"{layer.name!r} makes it, which is called several times")
    function = layer.activation
    _check_unbounded(layer, function is keras.activations.relu6)
    if not adapters.is_linear(function) and function is not keras.activations.relu:
        raise NotSplittable(f"{layer.name!r} makes it, whose activation function is not a ReLU")


def _check_unbounded(layer: keras.layers.Layer, bounded: bool) -> None:
    if bounded:
        raise NotSplittable(f"{layer.name!r} makes it, a ReLU that ends at 6 for each copy, too")
