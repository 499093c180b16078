"""Cross-layer equalization (CLE): the factors of the channels of a model's chains.

By the weights alone (`choose_scales`), or by what activations are on data: of channels that share a
grid with those of other layers (`joined_scales`), and of the others (`outlier_scales`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.graph.analysis.chains import Chain, Place, chains
from ocs_tf.graph.reader import Graph
from ocs_tf.numerics.activation_equalization import (
    ReadingKernel,
    RoundedChannels,
    threshold_factors,
)
from ocs_tf.numerics.cross_layer_equalization import (
    LIMIT,
    equalizing_scales,
    input_factors,
    input_ranges,
    scale_in_place,
)
from ocs_tf.numerics.grid import code_limit
from ocs_tf.planning.calibration import ChannelRanges

_ROUNDS = 20
_SETTLED = 0.01  # relative change of a scale
# What a channel's magnitude counts for, against its share in the kernels that read it.
_JOINED_BALANCE = 0.75


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
    known = {name: chain for name, chain in chains(graph).items() if chain.joined is None}
    folded = {s.batch_norm: name for name, s in graph.kernels.items() if s.batch_norm is not None}
    makers = {name: folded.get(chain.layer, name) for name, chain in known.items()}
    sizes: dict[str, NDArray[np.floating]] = {}
    biases: dict[str, NDArray[Any] | None] = {}
    for name, ref in graph.kernels.items():
        kernel, biases[name] = ref.weights()
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
            scale_in_place(sizes[makers[name]], 1 / factors)
            for reader, channels in chain.readers.items():
                outputs = sizes[reader].shape[-1]
                rows = input_factors(factors[channels], _groups(graph, reader), outputs)
                scale_in_place(sizes[reader], rows)
        if all(np.allclose(scales[name], before[name], rtol=_SETTLED) for name in known):
            break
    return scales


def joined_scales(
    graph: Graph, ranges: Mapping[int, ChannelRanges], granularity: str
) -> dict[str, NDArray[np.float64]]:
    """What channels that are concatenated are to be divided by, `[C]`, by the name of their layer.

    What is concatenated shares one grid, in which a channel of small values has few codes. The
    factors are those of SmoothQuant (Xiao et al., ICML 2023, equation 4) with alpha = 0.75, but for
    the channels of all layers together: they bring the magnitudes close to each other, and leave
    some of the differences for the sake of the kernels that take the inverse. A batch norm that
    reads the channels takes it at no cost.

    Arguments:
        ranges: of the channels of the tensors that are concatenated (`Chain.joined`), by the id of
            the tensor.
    """
    known = {name: chain for name, chain in chains(graph).items() if chain.joined is not None}
    if not known:
        return {}
    made, read = [], []
    for chain in known.values():
        place = chain.joined
        assert place is not None
        made.append(np.zeros(chain.size))
        np.fmax.at(
            made[-1], place.channels[place.own], ranges[id(place.tensor)].magnitudes[place.own]
        )
        read.append(_shares(graph, chain, granularity))
    scales = equalizing_scales(np.concatenate(made), np.concatenate(read), _JOINED_BALANCE)
    ends = np.cumsum([chain.size for chain in known.values()])
    return dict(zip(known, np.split(scales, ends[:-1]), strict=True))


def scalable(graph: Graph, kernels: Collection[str]) -> dict[str, Chain]:
    """Chains whose channels `outlier_scales` may scale: they share their grids with no others.

    Arguments:
        kernels: names of those that are quantized.
    """
    return {
        name: chain
        for name, chain in chains(graph).items()
        if chain.joined is None and set(chain.readers) <= set(kernels)
    }


def outlier_scales(
    graph: Graph,
    known: Mapping[str, Chain],
    ranges: Mapping[int, ChannelRanges],
    activation_bits: Mapping[int, int],
    weight_bits: Mapping[str, int | None],
) -> dict[str, NDArray[np.float64]]:
    """What channels of chains are to be divided by, `[C]`, by the name of their layer.

    For scales per output channel. See `numerics.activation_equalization`.

    Arguments:
        known: the chains.
        ranges: of all tensors of the chains that are rounded, by their id.
        activation_bits: of these tensors, by id.
        weight_bits: of each kernel that reads channels, by name; `None` for float.
    """
    found = {}
    for name, chain in known.items():
        tensors = [
            _rounded_channels(chain, place, ranges[key], activation_bits[key])
            for place in chain.places
            if (key := id(place.tensor)) in activation_bits
        ]
        readers = [
            _reading_kernel(graph, reader, channels, weight_bits[reader])
            for reader, channels in chain.readers.items()
        ]
        factors = threshold_factors(tensors, readers) if tensors else None
        if factors is not None and np.isfinite(factors).all():
            found[name] = factors
    return found


def _rounded_channels(
    chain: Chain, place: Place, seen: ChannelRanges, bits: int
) -> RoundedChannels:
    """By channel of the chain: behind a Flatten, several channels of the tensor are one of it."""
    low, high = np.zeros((2, chain.size))
    np.minimum.at(low, place.channels, seen.minima)
    np.maximum.at(high, place.channels, seen.maxima)
    squares, count = np.zeros((2, chain.size))
    np.add.at(squares, place.channels, seen.mean_squares)
    np.add.at(count, place.channels, 1)
    return RoundedChannels(low, high, squares / np.maximum(count, 1), bits)


def _reading_kernel(
    graph: Graph, name: str, channels: NDArray[np.intp], bits: int | None
) -> ReadingKernel:
    kernel, _ = graph.kernels[name].weights()
    taps = kernel.reshape(-1, *kernel.shape[-2:])
    squares = np.square(taps, dtype=np.float64).sum(0)
    limit = 0 if bits is None else code_limit(bits)
    return ReadingKernel(_sizes(kernel), squares, len(taps), _groups(graph, name), channels, limit)


def _shares(graph: Graph, chain: Chain, granularity: str) -> NDArray[np.float64]:
    """The largest share of each channel in the grids of the kernels that read it, 0..1 `[C]`."""
    kernels = [name for name in chain.readers if name in graph.kernels]
    read = np.zeros(chain.size) if kernels else np.ones(chain.size)
    for name in kernels:
        kernel, _ = graph.kernels[name].weights()
        shares = input_ranges(_sizes(kernel), _groups(graph, name), granularity)
        channels = chain.readers[name]
        np.fmax.at(read, channels[channels >= 0], shares[channels >= 0])
    return read


def _sizes(kernel: NDArray[Any]) -> NDArray[np.floating]:
    """The largest magnitude over the taps of a canonical kernel, `[C / groups, F]`."""
    taps = kernel.reshape(-1, *kernel.shape[-2:])
    return np.maximum(taps.max(0), -taps.min(0))


def _norm_sizes(norm: keras.layers.Layer) -> tuple[NDArray[np.floating], NDArray[Any] | None]:
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


def _groups(graph: Graph, name: str) -> int:
    ref = graph.kernels[name]
    return ref.adapter.groups(ref.layer)
