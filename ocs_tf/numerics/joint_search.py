"""Splits and clip thresholds searched together, for the least error of the effective kernel.

The paper (Zhao et al., ICML 2019) splits the channel that holds the largest weight, then clips.
With quantization-aware splits there is more to know: the codes of a channel's copies add up to one
code of the whole weight, so a split leaves each weight's rounding as it was and doubles the range
of its channel's codes. The gain of a split is thus the clipping error that it takes from one
input channel, over all steps the output channels might have then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocs_tf.numerics import clipping
from ocs_tf.numerics.grid import code_limit, normalized

_STEPS = np.geomspace(0.05, 1.0, 24)  # thresholds to consider, over the largest magnitude
_MULTIPLES = (1, 2, 4)  # of the reach of a whole weight's code, that splits lead to
_ROUNDS = 2
_SMALLEST = np.float32(2.0**-80)  # magnitude of a column, over the largest one of the kernel
_GAINS = 1 << 24  # numbers held: they bound the channels that are looked at


def search_splits(
    kernel: NDArray[np.floating],
    bits: int,
    count: int,
    granularity: str,
    weights: ArrayLike | None = None,
) -> tuple[list[int], NDArray[np.float64]]:
    """The input channels to split, so that the squared error is least.

    Given the steps, the best splits are known, and given the splits, the best steps; the two are
    chosen in turn, from several starts.

    Arguments:
        kernel: finite `[..., C, F]`.
        bits: 2..8.
        count: of copies, at most; those that would not lower the error are not made.
        granularity: `"tensor"` or `"channel"`.
        weights: non-negative `[C]`, of the squared errors in each input channel; ones if None.

    Returns:
        The channels, one per copy, in order; and float64 `[copies + 1]`, the estimated error
        without copies, with the first one, with the first two, ...
    """
    values, exponent = normalized(kernel.reshape(-1, *kernel.shape[-2:]))
    values = values.astype(np.float32)
    weight = np.ones(values.shape[1]) if weights is None else np.asarray(weights, np.float64)
    limit = code_limit(bits)
    largest = np.abs(values).max((0, 1))
    if granularity == "tensor":
        largest = largest.max(keepdims=True)
    steps = np.multiply.outer(_STEPS, np.maximum(largest, _SMALLEST)) / limit
    total = sum(
        _errors(values[:, block], weight[block], steps, limit).sum(0, dtype=np.float64)
        for block in _blocks(values.shape[1])
    )
    candidates = _candidates(values, weight, steps, total, limit, count)
    # What doubling the reach of a channel takes from the error, and again: [levels, C, J, F].
    gains = -np.diff(
        [
            _errors(values[:, candidates], weight[candidates], steps, limit * multiple)
            for multiple in _MULTIPLES
        ],
        axis=0,
    )
    best: tuple[list[int], NDArray[np.float64]] = ([], total.min(0).sum()[None])
    columns = np.arange(total.shape[1])
    # One split may only pay together with others, so the start is where several would lead to:
    # steps that are finer by this much, everywhere.
    for finer in range(len(_STEPS)):
        at = np.maximum(total.argmin(0) - finer, 0)
        for _ in range(_ROUNDS):
            picked = _pick(gains[:, :, at, columns].sum(-1), count)
            left = [total]
            for level, channel in picked:
                left.append(left[-1] - gains[level, channel])
            path = np.array([errors.min(0).sum() for errors in left])
            if path[-1] < best[1][-1]:
                best = _as_copies(picked, candidates, path)
            at = left[-1].argmin(0)
    channels, path = best
    return channels, np.ldexp(path, 2 * exponent)


def fit_thresholds(
    kernel: NDArray[np.floating],
    bits: int,
    channels: Sequence[int],
    granularity: str,
    weights: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Thresholds of least squared error of the effective kernel, given the channel of each copy.

    Arguments: as for `search_splits`, which chooses `channels`.

    Returns:
        float64, shape `()` for granularity `"tensor"`, `[F]` for `"channel"`.
    """
    copies = np.bincount(np.asarray(channels, np.int64), minlength=kernel.shape[-2]) + 1
    columns = kernel.shape[-1] if granularity == "channel" else 1

    def rows(per_channel: ArrayLike) -> NDArray[Any]:
        every = np.broadcast_to(np.asarray(per_channel)[:, None], kernel.shape)
        return every.reshape(-1, columns)[:, 0]

    thresholds = clipping.optimal_thresholds(
        kernel.reshape(-1, columns),
        bits,
        weights=None if weights is None else rows(weights),
        # The copy that was split least says how far they reach: twice as far for each halving.
        reach=rows(2 ** np.floor(np.log2(copies))),
    )
    return thresholds if granularity == "channel" else thresholds[0]


def _pick(gains: NDArray[np.float64], count: int) -> list[tuple[int, int]]:
    """Splits of most gain per copy, given gains `[levels, C]`: `(level, channel)` of each.

    Doubling the reach of a channel once takes one copy, twice two more, and so on.
    """
    price = 2 ** np.arange(len(gains))
    worth = gains / price[:, None]
    level = np.zeros(gains.shape[1], int)
    picked = []
    while count > 0:
        channels = np.flatnonzero((level < len(gains)) & (2**level <= count))
        if not channels.size:
            break
        best = int(channels[worth[level[channels], channels].argmax()])
        if worth[level[best], best] <= 0:
            break
        picked.append((int(level[best]), best))
        count -= 2 ** int(level[best])
        level[best] += 1
    return picked


def _as_copies(
    picked: list[tuple[int, int]], candidates: NDArray[np.int64], path: NDArray[np.float64]
) -> tuple[list[int], NDArray[np.float64]]:
    """The channel of each copy, and the error with so many; copies that do nothing left out."""
    channels: list[int] = []
    errors = [path[0]]
    for (level, channel), error in zip(picked, path[1:], strict=True):
        if errors[-1] == path[-1]:
            break
        channels += [int(candidates[channel])] * 2**level
        errors += [errors[-1]] * (2**level - 1) + [error]
    return channels, np.array(errors)


def _blocks(channels: int, size: int = 64) -> list[slice]:
    return [slice(start, start + size) for start in range(0, channels, size)]


def _errors(
    values: NDArray[np.float32],
    weight: NDArray[np.float64],
    steps: NDArray[np.float64],
    limit: int,
) -> NDArray[np.float64]:
    """Squared errors `[C, J, F]` (or `[C, J, 1]`) for codes up to `limit` of each of the steps."""
    errors = np.empty((values.shape[1], *steps.shape), np.float32)
    for j, step in enumerate(steps):
        in_steps = values / step.astype(np.float32)
        error = np.square(in_steps - np.clip(np.rint(in_steps), -limit, limit)).sum(0)
        if len(step) == 1:
            error = error.sum(1, keepdims=True)
        errors[:, j] = error * np.square(step) * weight[:, None]
    return errors


def _candidates(
    values: NDArray[np.float32],
    weight: NDArray[np.float64],
    steps: NDArray[np.float64],
    total: NDArray[np.float64],
    limit: int,
    count: int,
) -> NDArray[np.int64]:
    """The channels that clip most, at steps finer than what is best without splits."""
    finer = np.take_along_axis(steps, np.maximum(total.argmin(0) - 3, 0)[None], 0)[0]
    clipped = np.maximum(np.abs(values) - (limit + 0.5) * finer, 0)
    potential = np.square(clipped).sum((0, 2)) * weight
    few = max(count, _GAINS // (len(_MULTIPLES) * steps.size))
    return np.sort(np.argsort(-potential, kind="stable")[:few])
