"""Activation outlier channel splitting: which channels of a tensor are split, and their copies.

Zhao, Hu, Dotzel, De Sa, Zhang, "Improving Neural Network Quantization without Retraining using
Outlier Channel Splitting", ICML 2019, Eq. 4: a channel of activations is duplicated and its values
are divided between the copies, while the weights that read it are repeated as they are.

A channel `x` held by `k` codes on a grid of step `s` is split into

    x/k + (2j - k + 1) s / (2k)        j = 0 .. k-1

For `k = 2` these are the quantization-aware halves `x/2 -+ s/4`. Rounded, they add up to `x` as
rounded to the step `s`: `sum_j floor(y + j/k) = floor(k y)` (Hermite's identity); only an exact tie
can go the other way. Clipped, each at the end of the grid, they add up to `x` clipped at `k` times
that. So splitting a channel comes to giving it `k` times as many codes, which is how
`numerics.ActivationGrid` computes it. The grid of the whole tensor ends where the largest of
`maximum / k` lies: the step of all channels becomes finer.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocs_tf.numerics.checks import check_integer, check_switch
from ocs_tf.numerics.grid import ActivationGrid, check_bits, code_counts
from ocs_tf.numerics.quantized_kernel import QuantizedKernel

SPLIT_RULES = ("count", "maximum", "error", "oracle")

OUTLIER_PERCENTILE = 99.0  # of the paper's rule: values above it are outliers
_THRESHOLDS = 128
_POINTS = 8  # per bin of a histogram, where an error is integrated


@dataclasses.dataclass(frozen=True)
class OracleGrid:
    """A grid that is chosen anew for each batch, channels to split included, from the batch itself.

    No integer runtime can have it: it shows in a simulation what a perfect choice would be worth
    (Zhao et al. 2019, Table 4).

    Attributes:
        bits: 2..16.
        count: of copies; they go where `copies_by_maximum` says.
        symmetric: as of `ActivationGrid`.
    """

    bits: int
    count: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_bits(self.bits))
        object.__setattr__(self, "count", check_integer("count", self.count, 0))
        object.__setattr__(self, "symmetric", check_switch("symmetric", self.symmetric))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; `OracleGrid(**grid.to_dict())` is the grid again."""
        return dataclasses.asdict(self)


def split_values(values: ArrayLike, copies: Sequence[int], step: float) -> NDArray[np.float64]:
    """The copies themselves: `[..., C]` as float64 `[..., C + len(copies)]`, not rounded yet.

    The first `C` channels keep their places; see above for what each copy holds.

    Arguments:
        values: floats, channels on the last axis.
        copies: the channel of each copy.
        step: positive, of the grid that the copies are going to be rounded to.

    Raises:
        ValueError: there is a copy of a channel that `values` do not have.
    """
    values = np.asarray(values, np.float64)
    channel_map, gain, offset = copy_parts(copies, values.shape[-1])
    return values[..., channel_map] * gain + offset * step


def copy_parts(
    copies: Sequence[int], channels: int
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Expanded channels as affine functions of the original ones: `gain * x + offset * step`.

    Returns:
        `channel_map` int32 `[C']`, the original channel of each, `0 .. C-1` first; `gain` and
        `offset` float64 `[C']`: the gains of one channel's copies add up to 1, the offsets to 0.

    Raises:
        ValueError: there is a copy of a channel that `channels` do not include.
    """
    k = code_counts(copies, channels)
    channel_map = np.array([*range(channels), *copies], np.int32)
    place = np.zeros(len(channel_map))  # j in the formula above
    made = np.zeros(channels, np.int64)
    for i, channel in enumerate(channel_map):
        place[i] = made[channel]
        made[channel] += 1
    count = k[channel_map]
    return channel_map, 1 / count, (2 * place - count + 1) / (2 * count)


def repeat_inputs(kernel: QuantizedKernel, copies: Sequence[int]) -> QuantizedKernel:
    """`kernel` for an input of split channels: what reads a channel is repeated for its copies.

    Weights that are split themselves are repeated with their copies.

    Raises:
        ValueError: there is a copy of a channel that `kernel` does not read.
    """
    channels = kernel.channels
    inputs, _, _ = copy_parts(copies, channels)
    places = {c: np.flatnonzero(inputs == c) for c in set(kernel.channel_map[channels:].tolist())}
    rows, channel_map = inputs.tolist(), list(range(len(inputs)))
    for row, channel in enumerate(kernel.channel_map[channels:].tolist(), start=channels):
        rows += [row] * len(places[channel])
        channel_map += places[channel].tolist()
    return dataclasses.replace(
        kernel, codes=kernel.codes[..., rows, :], channel_map=np.array(channel_map, np.int32)
    )


def split_outputs(
    kernel: QuantizedKernel,
    bias: NDArray[np.float32] | None,
    copies: Sequence[int],
    grid: ActivationGrid,
) -> tuple[QuantizedKernel, NDArray[np.float32]]:
    """`kernel` and `bias` (`None`: none) that make the copies of a split output on `grid`.

    The codes are the same for all copies; the step is `1/k` of the channel's.

    Raises:
        ValueError: there is a copy of a channel that `kernel` does not make.
    """
    outputs = kernel.codes.shape[-1]
    channel_map, gain, offset = copy_parts(copies, outputs)
    scale = np.broadcast_to(kernel.scale, (outputs,))[channel_map] * gain
    before = 0.0 if bias is None else bias[channel_map].astype(np.float64)
    split = dataclasses.replace(
        kernel, codes=kernel.codes[..., channel_map], scale=scale.astype(np.float32)
    )
    return split, (before * gain + offset * grid.scale).astype(np.float32)


def copies_by_maximum(magnitudes: ArrayLike, count: int) -> list[int]:
    """Copies that make the largest `magnitude / codes` of all channels as small as can be.

    One after the other, each to the channel where that quotient is largest (the lowest of equal
    ones): no other choice of `count` copies does better. Channels that are all zero get none.

    Arguments:
        magnitudes: `[C]`, the largest magnitude in each channel.
        count: number of copies, >= 0.
    """
    wholes = np.asarray(magnitudes, np.float64).tolist()
    heap = [(-whole, channel, 1) for channel, whole in enumerate(wholes) if whole]
    heapq.heapify(heap)
    copies: list[int] = []
    for _ in range(count if heap else 0):
        _, channel, k = heap[0]
        heapq.heapreplace(heap, (-wholes[channel] / (k + 1), channel, k + 1))
        copies.append(channel)
    return copies


def copies_by_count(outliers: ArrayLike, magnitudes: ArrayLike, count: int) -> list[int]:
    """The paper's static rule: the `count` channels with the most outliers, each split once.

    Arguments:
        outliers: `[C]`, how many values of each channel lie above the 99th percentile of the
            tensor's magnitudes. Of equal channels the lower one is split.
        magnitudes: `[C]`, the largest magnitude in each channel. One that is all zero is not split.
        count: number of copies, 0 .. C.
    """
    order = np.argsort(-np.asarray(outliers), kind="stable")
    return order[np.asarray(magnitudes)[order] > 0][:count].tolist()


def outlier_counts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many values of each channel lie above the 99th percentile of all, int64 `[C]`.

    Arguments:
        counts: `[C, B]`, histograms of the channels' magnitudes over the same equal bins from 0.
            The percentile is taken to be the upper edge of the bin that holds it.
    """
    below = counts.sum(0).cumsum()
    edge = int(np.searchsorted(below, below[-1] * OUTLIER_PERCENTILE / 100))
    return counts[:, edge + 1 :].sum(1)


def copies_by_error(
    counts: NDArray[np.int64],
    width: float,
    count: int,
    levels: float,
) -> tuple[list[int], float]:
    """Copies and clip threshold that together leave the least squared error.

    For each of 128 thresholds `t`, `count` copies are given one after the other to the channel
    whose clipping error falls most by it. A channel with `k` codes is clipped at `k t`, and what is
    not clipped is rounded to the step `t / levels`. Since the clipping error is convex in `k`, that
    is the best choice for this threshold. The threshold of the least total is returned.

    Arguments:
        counts: `[C, B]`, histograms of the channels' magnitudes over the same equal bins from 0.
            What lies in the first bin counts as 0, as most of what ReLUs make is.
        width: of a bin, positive.
        count: number of copies, >= 0; fewer are made if nothing is clipped any more.
        levels: steps from 0 to the threshold.

    Returns:
        The channel of each copy, in order, and the threshold.
    """
    total = counts.sum(0)
    filled = np.flatnonzero(total)
    largest = width * (filled[-1] + 1) if filled.size else width
    thresholds = largest * np.arange(1, _THRESHOLDS + 1) / _THRESHOLDS
    rounding = total @ _rounding_errors(len(total), width, thresholds / levels)
    tails = _Tails(counts, width)
    best: tuple[float, list[int], float] = (np.inf, [], float(largest))
    for threshold, rounded in zip(thresholds.tolist(), rounding.tolist(), strict=True):
        copies, clipped = _best_copies(tails, threshold, count)
        if rounded + clipped <= best[0]:  # of equal ones the widest
            best = rounded + clipped, copies, threshold
    return best[1], best[2]


def _rounding_errors(bins: int, width: float, steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared error of rounding what lies in each bin, `[bins, len(steps)]`."""
    points = width * (np.arange(bins)[:, None] + (np.arange(_POINTS) + 0.5) / _POINTS)
    points[0] = 0
    quotients = points[..., None] / steps
    return np.square((quotients - np.rint(quotients)) * steps).mean(1)


class _Tails:
    """Squared clipping error of each channel at any threshold, by sums over histogram tails."""

    def __init__(self, counts: NDArray[np.int64], width: float) -> None:
        self.width = width
        self.bins = counts.shape[1]
        centers = width * (np.arange(self.bins) + 0.5)
        centers[0] = 0
        zero = np.zeros((len(counts), 1))

        def tail(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate([values[:, ::-1].cumsum(1)[:, ::-1], zero], axis=1)

        self.sums = [tail(counts * centers**power) for power in range(3)]

    def error(self, channels: Any, threshold: float) -> Any:
        """`sum (x - threshold)^2` over the channels' `x > threshold`; any index of channels."""
        # The first bin whose center lies above the threshold.
        first = min(int(threshold / self.width + 0.5), self.bins)
        n, x, xx = (s[channels, first] for s in self.sums)
        return np.maximum(xx - 2 * threshold * x + threshold**2 * n, 0)


def _best_copies(tails: _Tails, threshold: float, count: int) -> tuple[list[int], float]:
    """The copies that leave the least clipping error, and that error."""

    def change(channels: Any, k: int) -> Any:
        """Change of the error of channels with `k` codes from one more code; never positive."""
        errors = [tails.error(channels, n * threshold) for n in (k, k + 1)]
        return errors[1] - errors[0]

    every = slice(None)
    heap = [(drop, channel, 1) for channel, drop in enumerate(change(every, 1).tolist())]
    heapq.heapify(heap)
    total = float(tails.error(every, threshold).sum())
    copies = []
    for _ in range(count):
        drop, channel, k = heap[0]
        if drop >= 0:
            break  # nothing is clipped any more
        total += drop
        copies.append(channel)
        heapq.heapreplace(heap, (float(change(channel, k + 1)), channel, k + 1))
    return copies, total
