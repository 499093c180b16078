"""Cross-layer equalization of a model: which channels can be scaled, by what, and the scaled model.

A chain leads from a layer that makes channels, and can make them larger or smaller, over steps that
treat each channel on its own and let positive factors through, to the layers with kernels that take
the inverse. Whatever else reads such a tensor rules the chain out: sums and concatenations with
other tensors, functions that are bent at a fixed value (ReLU6, sigmoid), outputs of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.graph import adapters
from ocs_tf.graph.reader import Graph, Node
from ocs_tf.graph.rewrite import check_copied, clone, clone_layer
from ocs_tf.numerics.equalization import LIMIT, equalizing_scales, input_factors, input_ranges

_LAYERS = keras.layers
_POOLS = (
    _LAYERS.MaxPooling1D,
    _LAYERS.MaxPooling2D,
    _LAYERS.MaxPooling3D,
    _LAYERS.AveragePooling1D,
    _LAYERS.AveragePooling2D,
    _LAYERS.AveragePooling3D,
)
_GLOBAL_POOLS = (
    _LAYERS.GlobalMaxPooling1D,
    _LAYERS.GlobalMaxPooling2D,
    _LAYERS.GlobalMaxPooling3D,
    _LAYERS.GlobalAveragePooling1D,
    _LAYERS.GlobalAveragePooling2D,
    _LAYERS.GlobalAveragePooling3D,
)
_SPATIAL = (
    *_POOLS,
    *_GLOBAL_POOLS,
    _LAYERS.ZeroPadding2D,
    _LAYERS.Cropping2D,
    _LAYERS.UpSampling2D,
)
_POINTWISE = (
    _LAYERS.LeakyReLU,
    _LAYERS.PReLU,
    _LAYERS.Dropout,
    _LAYERS.SpatialDropout1D,
    _LAYERS.SpatialDropout2D,
    _LAYERS.Identity,
)
_HOMOGENEOUS = (
    None,
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.leaky_relu,
)


_ROUNDS = 20
_SETTLED = 0.01  # relative change of a scale


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Channels that can be scaled.

    Attributes:
        layer: what makes them: a layer with a kernel, or a batch norm.
        tensor: its output.
        size: how many channels there are.
        readers: by the name of each layer that reads them: which of the channels each of its input
            channels is, int `[C_in]` (several are the same one behind a Flatten).
    """

    layer: Any
    tensor: Any
    size: int
    readers: dict[str, NDArray[np.intp]]


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


def choose_scales(graph: Graph, granularity: str) -> dict[str, NDArray[np.float64]]:
    """What channels are to be divided by, `[C]`, by the name of the layer that makes them.

    With one step per kernel (`granularity="tensor"`), a channel's precision is its share of the
    range of both kernels, the one that makes it and the one that reads it; the product of the
    shares is largest where both are the same (Nagel et al., equation 9). With one step per output
    channel, scales cancel out of the kernel that makes the channels, and only shares in the kernel
    that reads them count: all are made the same. Chains that have a kernel in common are gone
    through in turns until scales settle.

    No bias is made larger than the largest one of its layer: a channel of small weights and a large
    bias would otherwise take the grid of the activations for itself.
    """
    known = chains(graph)
    folded = {s.batch_norm: name for name, s in graph.kernels.items() if s.batch_norm is not None}
    makers = {name: folded.get(chain.layer, name) for name, chain in known.items()}
    sizes: dict[str, NDArray[np.floating]] = {}
    biases: dict[str, NDArray[Any] | None] = {}
    for name, site in graph.kernels.items():
        kernel, biases[name] = site.weights()
        sizes[name] = _sizes(kernel)
    for name, maker in makers.items():
        if maker not in sizes:
            sizes[maker], biases[maker] = _norm_sizes(known[name].layer)
    scales = {name: np.ones(chain.size) for name, chain in known.items()}
    least = {name: _least_scales(biases[maker]) for name, maker in makers.items()}
    balance = 0.5 if granularity == "tensor" else 0.0
    for _ in range(_ROUNDS):
        before = dict(scales)
        for name, chain in known.items():
            read = np.zeros(chain.size)
            for reader, channels in chain.readers.items():
                shares = input_ranges(sizes[reader], _groups(graph, reader), granularity)
                np.fmax.at(read, channels, shares)
            # From the ranges before scaling: what the limits hold back must not push the others.
            made, read = sizes[makers[name]].max(0) * scales[name], read / scales[name]
            scales[name] = equalizing_scales(made, read, balance).clip(least[name], LIMIT)
            factors = scales[name] / before[name]
            _multiply(sizes[makers[name]], 1 / factors)
            for reader, channels in chain.readers.items():
                outputs = sizes[reader].shape[-1]
                rows = input_factors(factors[channels], _groups(graph, reader), outputs)
                _multiply(sizes[reader], rows)
        if all(np.allclose(scales[name], before[name], rtol=_SETTLED) for name in known):
            break
    return scales


def equalized(graph: Graph, scales: Mapping[str, Any]) -> keras.Model:
    """A model of the same function with scaled channels; `graph.model` stays as it is.

    Arguments:
        scales: by the name of the layer that makes the channels: they are divided by these
            positive numbers `[C]`.

    Raises:
        ValueError: there is no such chain in the model, or not of this size.
    """
    known = chains(graph)
    made: dict[str, NDArray[np.float64]] = {}
    read: dict[str, NDArray[np.float64]] = {}
    for name, values in scales.items():
        scale = _checked(graph, known, name, values)
        made[name] = 1 / scale
        for reader, channels in known[name].readers.items():
            read[reader] = scale[channels]

    def replace(layer: Any) -> Any:
        if layer.name in made and isinstance(layer, _LAYERS.BatchNormalization):
            return type(layer).from_config({**layer.get_config(), "scale": True})
        return clone_layer(layer)

    def call(layer: Any, twin: Any, *args: Any, **kwargs: Any) -> Any:
        return twin(*args, **kwargs)

    model, twins = clone(graph, replace, call)
    for name, twin in twins.items():
        layer = graph.calls_of(name)[0].layer
        if name in made or name in read:
            twin.set_weights(_scaled_weights(layer, made.get(name), read.get(name)))
        else:
            check_copied(layer, twin)
    return model


def _scaled_weights(
    layer: Any, made: NDArray[np.float64] | None, read: NDArray[np.float64] | None
) -> list[NDArray[np.float32]]:
    """Weights of `layer` with output channels times `made` and input channels times `read`.

    Float32 products of float64 factors, without a copy in float64 of a whole kernel.
    """
    if isinstance(layer, _LAYERS.BatchNormalization):
        return _scaled_norm(layer, made)
    adapter = adapters.adapter_for(layer)
    assert adapter is not None
    kernel, bias = adapter.read(layer)
    factors = np.ones(kernel.shape[-1]) if made is None else made
    scaled = kernel.astype(np.float32)
    _multiply(scaled, factors)
    if read is not None:
        rows = input_factors(read, adapter.groups(layer), kernel.shape[-1])
        _multiply(scaled, rows)
    weights = [adapter.to_keras(scaled, layer)]
    return weights if bias is None else [*weights, (bias * factors).astype(np.float32)]


def _sizes(kernel: NDArray[Any]) -> NDArray[np.floating]:
    """The largest magnitude over the taps of a canonical kernel, `[C / groups, F]`."""
    taps = kernel.reshape(-1, *kernel.shape[-2:])
    return np.maximum(taps.max(0), -taps.min(0))


def _norm_sizes(norm: Any) -> tuple[NDArray[np.floating], NDArray[Any] | None]:
    """Root mean squares of outputs `[1, C]` for inputs as in training, and the shift."""
    gain = np.asarray(norm.gamma, np.float64) if norm.scale else np.ones(norm.moving_mean.shape)
    shift = np.asarray(norm.beta) if norm.center else None
    return np.hypot(gain, 0.0 if shift is None else shift)[None], shift


def _least_scales(bias: NDArray[Any] | None) -> Any:
    """The scales that bring each bias up to the largest one, within the limit."""
    if bias is None:
        return 1 / LIMIT
    sizes = np.abs(bias.astype(np.float64))
    return np.fmax(sizes / (sizes.max() or 1.0), 1 / LIMIT)


def _multiply(values: NDArray[np.floating], factors: NDArray[np.float64]) -> None:
    """In place, in float64 piece by piece."""
    np.multiply(values, factors, out=values, casting="same_kind")


def _groups(graph: Graph, name: str) -> int:
    site = graph.kernels[name]
    return site.adapter.groups(site.layer)


def _scaled_norm(layer: Any, made: Any) -> list[NDArray[np.float32]]:
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
    gamma = np.asarray(layer.gamma) if layer.scale else np.ones(mean.shape)
    weights = [gamma * made]
    if layer.center:
        weights.append(np.asarray(layer.beta) * made)
    return [np.asarray(w, np.float32) for w in (*weights, mean, variance)]


def _checked(
    graph: Graph, known: Mapping[str, Chain], name: str, values: Any
) -> NDArray[np.float64]:
    if name not in known:
        raise ValueError(
            f"the plan scales the channels of layer {name!r}, which `model` {graph.model.name!r}"
            f" does not have, or whose channels cannot be scaled; those are: {', '.join(known)}."
        )
    scale = np.asarray(values, np.float64)
    if scale.shape != (known[name].size,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(
            f"the plan scales the channels of layer {name!r} by {scale.size} numbers; it must be"
            f" {known[name].size} positive ones."
        )
    return scale


def _made_axis(graph: Graph, node: Node) -> int | None:
    """The axis of the channels that the call makes by weights of its own, used nowhere else."""
    layer = node.layer
    if len(graph.calls(layer)) != 1:
        return None
    rank = len(node.outputs[0].shape)
    if type(layer) is _LAYERS.BatchNormalization:
        trains = node.arguments.kwargs.get("training")
        return None if trains else layer.axis % rank
    if not _has_kernel(layer) or layer.activation not in _HOMOGENEOUS:
        return None
    return adapters.channel_axis(layer) % rank


def _has_kernel(layer: Any) -> bool:
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
    # Of each tensor that holds the channels: the axis they are on, and which one is where.
    places = {id(tensor): (axis, np.arange(size))}
    readers = {}
    for node in graph.nodes[index + 1 :]:
        if not any(id(t) in places for t in node.inputs):
            continue
        if _has_kernel(node.layer):
            channels = _read_channels(graph, node, places)
            if channels is None:
                return None
            readers[str(node.layer.name)] = channels
            continue
        carried = _carried(node, places)
        if carried is None:
            return None
        places[id(node.outputs[0])] = carried
    if not readers or any(key in graph.output_ids for key in places):
        return None
    return Chain(start.layer, tensor, size, readers)


Places = Mapping[int, tuple[int, NDArray[np.intp]]]


def _read_channels(graph: Graph, node: Node, places: Places) -> NDArray[np.intp] | None:
    tensor = node.inputs[0]
    axis, channels = places[id(tensor)]
    wanted = adapters.channel_axis(node.layer) % len(tensor.shape)
    return channels if len(graph.calls(node.layer)) == 1 and axis == wanted else None


def _carried(node: Node, places: Places) -> tuple[int, NDArray[np.intp]] | None:
    """Where the output of a call holds the channels; `None` if factors do not go through it."""
    layer = node.layer
    if len(node.inputs) != 1:
        return None
    (tensor,) = node.inputs
    axis, channels = places[id(tensor)]
    if isinstance(layer, _LAYERS.Flatten):
        return _flattened(layer, tensor, axis, channels)
    if isinstance(layer, _SPATIAL):
        rank = len(tensor.shape)
        if axis != adapters.channel_axis(layer) % rank:
            return None
        return min(axis, len(node.outputs[0].shape) - 1), channels
    return (axis, channels) if _commutes(layer) else None


def _commutes(layer: Any) -> bool:
    """Whether `layer` acts on each number alone, and `f(x / s) = f(x) / s` for `s > 0`."""
    if isinstance(layer, _LAYERS.ReLU):
        return layer.max_value is None and not layer.threshold
    if isinstance(layer, _LAYERS.Activation):
        return layer.activation in _HOMOGENEOUS
    return isinstance(layer, _POINTWISE)


def _flattened(
    layer: Any, tensor: Any, axis: int, channels: NDArray[np.intp]
) -> tuple[int, NDArray[np.intp]] | None:
    sizes = tensor.shape[1:]
    if None in sizes or layer.data_format != "channels_last":
        return None
    shape = [1] * len(sizes)
    shape[axis - 1] = len(channels)
    return 1, np.broadcast_to(channels.reshape(shape), sizes).reshape(-1)
