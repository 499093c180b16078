"""Factors for channels by which activations and the kernels behind them lose least by rounding.

A channel that is divided by `t` in front of a kernel, whose row is multiplied by `t`, leaves the
network's function as it is (see `cross_layer_equalization`). With one scale per output channel, the
kernel that makes the channels loses nothing. A channel of outliers no longer stretches the grid of
the others; its row takes a greater share of the grid of the kernel that reads it. Only channels
beyond a threshold are touched (Wei et al., "Outlier Suppression+", EMNLP 2023, equation 9); the
threshold is that of the least error of both kinds, in closed form.

Rounding errors are taken to be uniform and independent: `step^2 / 12` of each value.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ocs_tf.numerics.cross_layer_equalization import input_factors

_WORTH = 0.95  # of the error without factors: what more would leave is no gain
_SHARES = 2.0 ** -np.arange(0, 4.5, 0.5)  # of a tensor's range that channels are brought into


@dataclasses.dataclass(frozen=True)
class RoundedChannels:
    """An activation tensor that is rounded to one grid.

    Attributes:
        low, high: the range of each channel, `[C]`.
        mean_square: of each channel, `[C]`.
        bits: of the grid.
    """

    low: NDArray[np.floating]
    high: NDArray[np.floating]
    mean_square: NDArray[np.floating]
    bits: int

    def step(self, factors: NDArray[np.floating]) -> float:
        """Of the grid of the channels divided by `factors` `[C]`."""
        low, high = min(0.0, (self.low / factors).min()), max(0.0, (self.high / factors).max())
        return float(high - low) / (2**self.bits - 1)


@dataclasses.dataclass(frozen=True)
class ReadingKernel:
    """A kernel that reads the channels.

    Attributes:
        sizes: `[C_in / groups, F]`, the largest magnitude over the taps.
        squares: `[C_in / groups, F]`, sums of squares over the taps.
        taps: how many there are.
        groups: of output channels that read inputs of their own.
        channels: which of the channels each input channel is, `[C_in]`.
        largest_code: of its weights; 0 if they are not rounded.
    """

    sizes: NDArray[np.floating]
    squares: NDArray[np.floating]
    taps: int
    groups: int
    channels: NDArray[np.intp]
    largest_code: int

    def of_inputs(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """`values` `[C]` of the channels, for each weight, `[C_in / groups, F]`."""
        return input_factors(values[self.channels], self.groups, self.sizes.shape[1])


def threshold_factors(
    tensors: Sequence[RoundedChannels], kernels: Sequence[ReadingKernel]
) -> NDArray[np.float64] | None:
    """What channels are to be divided by, `[C]`, at least 1; `None` if nothing is gained.

    Arguments:
        tensors: that hold the channels, in order; the last one is what the kernels read.
        kernels: one or more.
    """
    first, last = tensors[0], tensors[-1]
    low, high = np.maximum(-first.low, 0.0), np.maximum(first.high, 0.0)
    gains = _gains(tensors, kernels)
    factors = np.ones(len(low))
    least = none = _error(factors, tensors, gains, kernels, last.mean_square)
    chosen = None
    for shares in itertools.product(*(_SHARES if side.any() else [1.0] for side in (low, high))):
        factors = np.ones(len(low))
        for side, share in zip((low, high), shares, strict=True):
            if side.any():
                factors = np.maximum(factors, side / (side.max() * share))
        error = _error(factors, tensors, gains, kernels, last.mean_square)
        if error < least:
            least, chosen = error, factors
    return chosen if least < _WORTH * none else None


def _gains(
    tensors: Sequence[RoundedChannels], kernels: Sequence[ReadingKernel]
) -> list[NDArray[np.float64]]:
    """What the kernels make of a squared error in each channel of each tensor, `[C]`.

    A function between a tensor and the kernels, such as a leaky ReLU, damps errors as it damps
    values.
    """
    power = tensors[-1].mean_square
    rows = np.zeros(len(power))
    for kernel in kernels:
        of_rows = kernel.squares.reshape(len(kernel.squares), kernel.groups, -1).sum(-1)
        np.add.at(rows, kernel.channels, of_rows.T.reshape(-1))
    return [
        rows * np.minimum(1.0, power / np.where(t.mean_square > 0, t.mean_square, 1))
        for t in tensors
    ]


def _error(
    factors: NDArray[np.float64],
    tensors: Sequence[RoundedChannels],
    gains: Sequence[NDArray[np.float64]],
    kernels: Sequence[ReadingKernel],
    power: NDArray[np.floating],
) -> float:
    """The squared error of the kernels' outputs, times 12, with channels divided by `factors`."""
    of_tensors = (
        tensor.step(factors) ** 2 * float(np.sum(np.square(factors) * gain))
        for tensor, gain in zip(tensors, gains, strict=True)
    )
    error = sum(of_tensors)
    for kernel in kernels:
        if kernel.largest_code:
            steps = (kernel.sizes * kernel.of_inputs(factors)).max(0) / kernel.largest_code
            read = kernel.of_inputs(power / np.square(factors)).sum(0)
            error += kernel.taps * float(np.sum(np.square(steps) * read))
    return error
