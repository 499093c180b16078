"""Weight outlier channel splitting (OCS): which channels are split, and what their copies hold.

Zhao, Hu, Dotzel, De Sa, Zhang, "Improving Neural Network Quantization without Retraining using
Outlier Channel Splitting", ICML 2019, section 3. An input channel is duplicated and its weights
are divided between the copies, always in the channel that holds the largest magnitude; copies can
be split again. A plain split halves (`w -> w/2, w/2`); a quantization-aware split on a grid of
step `D` shifts the halves apart (`w -> w/2 - D/4, w/2 + D/4`), and then the copies' codes add up
to the code of `w` (Hermite's identity).

Every copy is an affine function of its original channel, `gain * w + offset * step`, with dyadic
`gain` and `offset`, so its largest magnitude follows from the channel's smallest and largest
weight. Choosing splits costs one look at the kernel for those, and one heap operation per split.

A channel whose weights are all zero is never split: its copies would hold nothing but the shifts.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

# Of a channel. A copy that holds so little of it is not split again: no weight is large enough for
# it to hold more than a shift, and offsets and codes stay exact in float64.
SMALLEST_GAIN = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Split:
    """A kernel with split channels.

    Attributes:
        kernel: the expanded kernel, `C' = C + copies` long along the input channel axis.
        channel_map: int32 `[C']`, the original channel that each expanded channel reads;
            `channel_map[:C] = 0 .. C-1`, copies appended in the order they were made.
    """

    kernel: NDArray[Any]
    channel_map: NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class SplitMap:
    """Expanded channels as affine functions of the original ones: `gain * w + offset * step`.

    Attributes:
        channel_map: int32 `[C']`, see `Split`.
        gain: float64 `[C']`, powers of two; the gains of one channel's copies add up to 1.
        offset: float64 `[C']`, in steps; the offsets of one channel's copies add up to 0.
    """

    channel_map: NDArray[np.int32]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]

    @property
    def changed(self) -> NDArray[np.intp]:
        """Indices of the expanded channels that are not simply the original channel."""
        return np.flatnonzero(self.gain != 1)


def copy_count(ratio: float, channels: int) -> int:
    """Copies a layer of `channels` gets at expand ratio `ratio`: `ceil(ratio * channels)`.

    Raises:
        ValueError: `ratio` is not within 0..1.
    """
    if not (isinstance(ratio, (int, float, np.number)) and 0 <= ratio <= 1):
        raise ValueError(f"`expand_ratio` (={ratio!r}) must be a number from 0 to 1.")
    # 0.07 * 100 is 7.000000000000001 in binary; that is 7 copies, not 8.
    return math.ceil(round(ratio * channels, 9))


def check_shape(kernel: NDArray[Any], name: str = "kernel") -> None:
    """Raise `ValueError` if `kernel` is empty or has fewer than two axes."""
    if kernel.ndim < 2 or not kernel.size:
        raise ValueError(
            f"`{name}` must have at least 2 axes and not be empty, but its shape is {kernel.shape}."
        )


def check_finite(kernel: NDArray[Any], name: str = "kernel") -> None:
    """Raise `ValueError` naming the first NaN or infinite element of `kernel`, if there is one."""
    if kernel.size and not (np.isfinite(kernel.min()) and np.isfinite(kernel.max())):
        where = np.argwhere(~np.isfinite(kernel))
        first = tuple(int(i) for i in where[0])
        raise ValueError(
            f"`{name}` must be finite, but holds {kernel[first]} at index {first}"
            f" ({len(where)} such value{'s' if len(where) > 1 else ''} in shape {kernel.shape})."
        )


def channel_ranges(kernel: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest weight of each input channel (axis -2) of `kernel`, float64 `[C]`."""
    axes = tuple(i for i in range(kernel.ndim) if i != kernel.ndim - 2)
    return kernel.min(axes).astype(np.float64), kernel.max(axes).astype(np.float64)


def choose_copies(kernel: NDArray[Any], count: int, step: ArrayLike | None = None) -> SplitMap:
    """Split `count` times the channel that holds the largest magnitude at that moment.

    Channels that are all zero are not split; where there are no others, nothing is.

    Arguments:
        kernel: finite floats, input channels on axis -2, output channels on axis -1.
        count: number of splits, >= 0.
        step: positive step, a scalar or one per output channel, for quantization-aware splits;
            `None` for plain halves. Steps per output channel do not sway the choice, which is
            that of plain halves: their thresholds count on it, and an outlier left whole by
            another choice would clip.
    """
    state = _CopyState(kernel, step)
    if count:
        heap = [state.entry(i) for i in range(kernel.shape[-2]) if not state.is_zero(i)]
        heapq.heapify(heap)
        for _ in range(count if heap else 0):
            _, largest = heapq.heappop(heap)
            for entry in state.split(largest):
                heapq.heappush(heap, entry)
    return state.copies()


def copies_of_map(
    kernel: NDArray[Any], channel_map: ArrayLike, step: ArrayLike | None = None
) -> SplitMap:
    """The copies that `channel_map` asks for, each made from its channel's largest copy so far.

    For a map that `choose_copies` chose on the same kernel and step, the same copies come out.

    Raises:
        ValueError: `channel_map` does not start with `0 .. C-1`, or names a channel out of range.
    """
    channels = kernel.shape[-2]
    mapping = check_channel_map(channel_map, channels)
    state = _CopyState(kernel, step)
    heaps: dict[int, list[tuple[float, int]]] = {}
    for channel in mapping[channels:].tolist():
        heap = heaps.setdefault(channel, [state.entry(channel)])
        _, largest = heapq.heappop(heap)
        for entry in state.split(largest):
            heapq.heappush(heap, entry)
    return state.copies()


def check_channel_map(channel_map: ArrayLike, channels: int) -> NDArray[np.int32]:
    """`channel_map` as int32 `[C']` if it is one for `channels` channels, else `ValueError`."""
    mapping = np.asarray(channel_map)
    if mapping.ndim != 1 or not np.array_equal(mapping[:channels], np.arange(channels)):
        raise ValueError(
            f"`channel_map` must start with 0 .. {channels - 1}, the original channels."
        )
    if not np.all(np.isin(mapping, np.arange(channels))):
        raise ValueError(f"`channel_map` names a channel outside 0 .. {channels - 1}.")
    return mapping.astype(np.int32)


def split_channels(
    kernel: ArrayLike, ratio: float, step: ArrayLike | None = None, axis: int = -2
) -> Split:
    """Expand `kernel` by `ceil(ratio * C)` copies of its outlier channels.

    Arguments:
        kernel: float array; NaN and infinity are refused. Integers become float64.
        ratio: expand ratio, 0..1. A kernel that is all zero gets no copies.
        step: `None` for plain halves; a positive step (a scalar, or `[F]`, one per output
            channel) for quantization-aware splits on that grid.
        axis: the input channel axis; -2 in Keras kernels. A step per output channel needs the
            output channels on the last axis.

    Returns:
        The expanded kernel (same dtype) and the channel map. The copies of every channel add up
        to it: exactly for plain splits, unless halves fall below the dtype's smallest normal
        number; to float rounding for quantization-aware ones.

    Raises:
        ValueError: `kernel` is not finite, is empty or has fewer than two axes, `ratio` is not
            within 0..1, or `step` is not positive or has the wrong shape.
    """
    kernel = np.asarray(kernel)
    if kernel.dtype.kind in "iub":
        kernel = kernel.astype(np.float64)
    check_shape(kernel)
    check_finite(kernel)
    moved = np.moveaxis(kernel, axis, -2)
    if step is not None:
        _check_step(step, moved.shape[-1])
    copies = choose_copies(moved, copy_count(ratio, moved.shape[-2]), step)
    return Split(np.moveaxis(expand(moved, copies, step), -2, axis), copies.channel_map)


def expand(kernel: NDArray[Any], copies: SplitMap, step: ArrayLike | None = None) -> NDArray[Any]:
    """The expanded kernel `[..., C', F]` of `kernel` `[..., C, F]`, in its dtype."""
    channels = kernel.shape[-2]
    shape = (*kernel.shape[:-2], len(copies.channel_map), kernel.shape[-1])
    expanded = np.empty(shape, kernel.dtype)
    expanded[..., :channels, :] = kernel
    for i in copies.changed:
        expanded[..., i, :] = copy_values(kernel, copies, i, step)
    return expanded


def copy_values(
    kernel: NDArray[Any], copies: SplitMap, index: int, step: ArrayLike | None
) -> NDArray[np.float64]:
    """Values of expanded channel `index`, float64 `[..., F]`."""
    values = kernel[..., copies.channel_map[index], :].astype(np.float64)
    values *= copies.gain[index]
    if step is not None:
        values += copies.offset[index] * np.asarray(step, np.float64)
    return values


def merge(
    expanded: NDArray[Any], channel_map: ArrayLike, channels: int, dtype: DTypeLike | None = None
) -> NDArray[Any]:
    """Copies summed back: `[..., C', F]` to `[..., C, F]`, in `dtype` (that of `expanded`)."""
    merged = expanded[..., :channels, :].astype(dtype or expanded.dtype)
    for i, channel in enumerate(np.asarray(channel_map)[channels:], start=channels):
        merged[..., channel, :] += expanded[..., i, :]
    return merged


def _check_step(step: ArrayLike, columns: int) -> None:
    step = np.asarray(step)
    if step.shape not in ((), (columns,)):
        raise ValueError(f"`step` must be a scalar or of shape ({columns},), not {step.shape}.")
    if not np.all((step > 0) & np.isfinite(step)):
        raise ValueError(f"`step` (={step}) must be positive and finite.")


class _CopyState:
    """The copies made so far, and how to split one more."""

    def __init__(self, kernel: NDArray[Any], step: ArrayLike | None) -> None:
        self.minima, self.maxima = (m.tolist() for m in channel_ranges(kernel))
        self.shift = 0.0 if step is None else 0.25
        self.step = 0.0 if step is None or np.ndim(step) else float(np.asarray(step))
        channels = kernel.shape[-2]
        self.origin = list(range(channels))
        self.gain = [1.0] * channels
        self.offset = [0.0] * channels

    def is_zero(self, index: int) -> bool:
        """Whether copy `index` is of a channel that is all zero."""
        origin = self.origin[index]
        return self.minima[origin] == 0 == self.maxima[origin]

    def entry(self, index: int) -> tuple[float, int]:
        """`(-largest magnitude, index)` of copy `index`: the least is the next to split."""
        if self.gain[index] <= SMALLEST_GAIN:
            return 1.0, index  # behind all others
        gain, shift = self.gain[index], self.offset[index] * self.step
        smallest = gain * self.minima[self.origin[index]] + shift
        largest = gain * self.maxima[self.origin[index]] + shift
        return min(smallest, -largest), index

    def split(self, index: int) -> Iterator[tuple[float, int]]:
        """Split copy `index`; yield the entries of its two halves."""
        self.gain[index] /= 2
        self.offset[index] /= 2
        self.origin.append(self.origin[index])
        self.gain.append(self.gain[index])
        self.offset.append(self.offset[index] + self.shift)
        self.offset[index] -= self.shift
        yield self.entry(index)
        yield self.entry(len(self.origin) - 1)

    def copies(self) -> SplitMap:
        return SplitMap(np.array(self.origin, np.int32), _floats(self.gain), _floats(self.offset))


def _floats(values: Iterable[float]) -> NDArray[np.float64]:
    return np.array(list(values), np.float64)
