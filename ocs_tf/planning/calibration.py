"""Statistics of activations: streamed over the data once, in bounded memory, mergeable."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.numerics import clip_threshold
from ocs_tf.numerics.grid import code_counts
from ocs_tf.process import no_tracing_warnings

HALF_BINS = 1024
_LEAST_EXPONENT = -148
_NOT_FLOAT = "biuOSU"  # kinds of NumPy's dtypes
_CHUNK = 1 << 15  # values of a histogram at a time: they stay in the cache
# Histograms of channels share this many bins, 8 bytes each: the more channels, the wider the bins.
_CHANNEL_BINS = 1 << 19


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of each channel (last axis) of one tensor.

    The histograms have equal bins over `-2^exponent .. 2^exponent`, the same for all channels. They
    nest and merge like those of `Statistics`.

    Attributes:
        minima, maxima: float32 `[C]`.
        exponent: of the histograms' span; the smallest power of two that holds all magnitudes.
        signed_counts: int64 `[C, 2 * bins]`; 16 to `HALF_BINS` bins on each side, the more channels
            the fewer.
    """

    minima: NDArray[np.float32]
    maxima: NDArray[np.float32]
    exponent: int
    signed_counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[Any]) -> ChannelStatistics:
        """Statistics of finite `values` `[..., C]`, not empty."""
        flat = np.asarray(values, np.float32).reshape(-1, np.shape(values)[-1])
        minima, maxima = flat.min(0), flat.max(0)
        exponent = _exponent(float(np.maximum(-minima, maxima).max()))
        return cls(minima, maxima, exponent, _channel_histograms(flat, exponent))

    @property
    def bins(self) -> int:
        """Bins of the histograms on either side of 0."""
        return self.signed_counts.shape[1] // 2

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self.exponent / self.bins

    @property
    def centers(self) -> NDArray[np.float64]:
        """Centers of the bins, `[2 * bins]`."""
        return np.arange(0.5 - self.bins, self.bins) * np.float64(self.width)

    @property
    def counts(self) -> NDArray[np.int64]:
        """The histograms of magnitudes, `[C, bins]`."""
        return self.signed_counts[:, self.bins :] + self.signed_counts[:, self.bins - 1 :: -1]

    @property
    def magnitudes(self) -> NDArray[np.float32]:
        """The largest magnitude in each channel, `[C]`."""
        return np.maximum(-self.minima, self.maxima)

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """The statistics of both data sets together; of the same channels."""
        exponent = max(self.exponent, other.exponent)
        return ChannelStatistics(
            np.minimum(self.minima, other.minima),
            np.maximum(self.maxima, other.maxima),
            exponent,
            self._counts_at(exponent) + other._counts_at(exponent),
        )

    def _counts_at(self, exponent: int) -> NDArray[np.int64]:
        """The histograms over a wider span."""
        counts = self.signed_counts
        for _ in range(min(exponent - self.exponent, self.bins.bit_length())):
            pairs = counts.reshape(len(counts), -1, 2).sum(2)
            nothing = np.zeros_like(pairs[:, : self.bins // 2])
            counts = np.concatenate([nothing, pairs, nothing], axis=1)
        return counts


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of one tensor.

    The histogram spans `-2^exponent .. 2^exponent` in `2 * HALF_BINS` equal bins, and doubles its
    span by adding neighbouring bins when a larger value comes. Since the edges nest, the result
    does not depend on the order of the data: the statistics of two halves, merged, are those of
    the whole, bit for bit.

    Attributes:
        minimum, maximum: of all values.
        exponent: of the histogram's span; the smallest power of two that holds all magnitudes.
        counts: int64 `[2 * HALF_BINS]`, or `None` where only the range was measured.
        channels: of each channel, or `None` where they were not told apart.
    """

    minimum: float
    maximum: float
    exponent: int
    counts: NDArray[np.int64] | None = None
    channels: ChannelStatistics | None = None

    @classmethod
    def of(cls, values: NDArray[Any], histogram: bool = True, channels: bool = False) -> Statistics:
        """Statistics of finite `values`, any shape, not empty.

        `histogram=False` measures the range only, which costs far less; `channels=True` measures
        each channel of the last axis, too.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        values = np.asarray(values, np.float32)
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("the activations hold NaN or infinity")
        largest = max(-low, high)
        exponent = _exponent(largest)
        return cls(
            low,
            high,
            exponent,
            _histogram(values, exponent) if histogram else None,
            ChannelStatistics.of(values) if channels else None,
        )

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both data sets together."""
        exponent = max(self.exponent, other.exponent)
        return Statistics(
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            exponent,
            _add(self._counts_at(exponent), other._counts_at(exponent)),
            self._merged_channels(other.channels),
        )

    def _merged_channels(self, other: ChannelStatistics | None) -> ChannelStatistics | None:
        """`None` where channels were not told apart, or are not as many."""
        mine = self.channels
        if mine is None or other is None or len(mine.minima) != len(other.minima):
            return None
        return mine.merge(other)

    def clip_range(
        self,
        bits: int,
        method: str,
        percentile: float,
        symmetric: bool = False,
        copies: Sequence[int] = (),
    ) -> tuple[float, float]:
        """Minimum and maximum after clipping by `method` (one of `numerics.CLIP_METHODS`).

        The methods see the histogram's bin centers. A tensor that is never negative is clipped
        one-sided, unless its grid is going to be `symmetric`; another one at the same magnitude on
        both sides, where it reaches that far. With `copies` (the channel of each), it is the tensor
        of split channels that is clipped; `channels` must have been measured.
        """
        low, high = self._range(copies)
        if method == "none" or low == high:
            return low, high
        one_sided = self.minimum >= 0 and not symmetric
        sample = self._split_sample(copies) if copies else self._sample()
        threshold = clip_threshold(sample, bits, method, one_sided=one_sided, percentile=percentile)
        if threshold <= max(low, -high):  # values far from 0: all would be the same
            return low, high
        return max(low, -threshold), min(high, threshold)

    def _range(self, copies: Sequence[int]) -> tuple[float, float]:
        """Minimum and maximum of the tensor with split channels."""
        if not copies:
            return self.minimum, self.maximum
        seen = self._told_apart()
        k = code_counts(copies, len(seen.maxima))
        return float((seen.minima / k).min()), float((seen.maxima / k).max())

    def _told_apart(self) -> ChannelStatistics:
        if self.channels is None:
            raise ValueError("channels were not told apart; splitting needs their statistics.")
        return self.channels

    def _counts_at(self, exponent: int) -> NDArray[np.int64] | None:
        """The histogram over a wider span."""
        counts = self.counts
        if counts is None:
            return None
        for _ in range(min(exponent - self.exponent, HALF_BINS.bit_length())):
            half = HALF_BINS // 2
            pairs = counts.reshape(-1, 2).sum(1)
            counts = np.concatenate([np.zeros(half, np.int64), pairs, np.zeros(half, np.int64)])
        return counts

    def _sample(self, size: int = 100_000) -> NDArray[np.float32]:
        """About `size` values distributed like the histogram, the extremes among them."""
        width = 2.0**self.exponent / HALF_BINS
        centers = (np.arange(2 * HALF_BINS) - HALF_BINS + 0.5) * width
        centers = np.clip(centers, self.minimum, self.maximum)
        if self.counts is None:
            raise ValueError("only the range was measured; clipping needs the histogram.")
        values = _repeated(centers, self.counts, size)
        return np.concatenate([values, [self.minimum, self.maximum]]).astype(np.float32)

    def _split_sample(self, copies: Sequence[int], size: int = 100_000) -> NDArray[np.float32]:
        """Likewise for the tensor with split channels; its signs are taken to be equally likely."""
        seen = self._told_apart()
        k = code_counts(copies, len(seen.maxima))
        counts = np.stack([n * seen.counts[k == n].sum(0) for n in range(1, k.max() + 1)])
        centers = (np.arange(seen.counts.shape[1]) + 0.5) * seen.width
        parts = centers / np.arange(1, k.max() + 1)[:, None]
        low, high = self._range(copies)
        values = _repeated(np.minimum(parts, max(-low, high)).reshape(-1), counts.reshape(-1), size)
        if low < 0:
            values = np.concatenate([values, -values])
        return np.concatenate([values, [low, high]]).astype(np.float32)


def _repeated(
    values: NDArray[np.float64], counts: NDArray[np.int64], size: int
) -> NDArray[np.float64]:
    """Each of `values` as often as `counts` says, or in that proportion: about `size` in all."""
    total = int(counts.sum())
    kept = counts if total <= size else np.ceil(counts * (size / total))
    return np.repeat(values, kept.astype(np.int64))


def _exponent(largest: float) -> int:
    """Exponent of the smallest power of two above a magnitude, or of float32's least for 0."""
    # frexp: largest = m * 2^e with m in [0.5, 1), so 2^e lies above every magnitude.
    return math.frexp(largest)[1] if largest else _LEAST_EXPONENT


def _channel_histograms(values: NDArray[np.float32], exponent: int) -> NDArray[np.int64]:
    """Counts of `values` `[N, C]` in equal bins over `-2^exponent .. 2^exponent`."""
    channels = values.shape[1]
    bins = min(max(1 << (_CHANNEL_BINS // channels).bit_length() - 1, 16), HALF_BINS)
    factor = np.float64(bins * 2.0**-exponent)
    counts = np.zeros(channels * 2 * bins, np.int64)
    rows = max(1, counts.size // channels)
    first = (2 * np.arange(channels) + 1) * bins
    for start in range(0, len(values), rows):
        found = np.floor(values[start : start + rows] * factor).astype(np.intp) + first
        counts += np.bincount(found.reshape(-1), minlength=counts.size)
    return counts.reshape(channels, 2 * bins)


def _histogram(values: NDArray[np.float32], exponent: int) -> NDArray[np.int64]:
    """Counts in `2 * HALF_BINS` equal bins over `-2^exponent .. 2^exponent`."""
    flat = values.reshape(-1)
    # In float64, where the product with a power of two is exact even for the least of values.
    factor = np.float64(HALF_BINS * 2.0**-exponent)
    counts = np.zeros(2 * HALF_BINS, np.int64)
    for start in range(0, flat.size, _CHUNK):
        bins = np.floor(flat[start : start + _CHUNK] * factor).astype(np.intp)
        bins += HALF_BINS
        counts += np.bincount(bins, minlength=2 * HALF_BINS)
    return counts


def _add(
    first: NDArray[np.int64] | None, second: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    return None if first is None or second is None else first + second


def merge(
    first: Mapping[str, Statistics], second: Mapping[str, Statistics]
) -> dict[str, Statistics]:
    """The statistics of two data sets together, key by key."""
    merged = dict(first)
    for key, statistics in second.items():
        merged[key] = merged[key].merge(statistics) if key in merged else statistics
    return merged


def observe(
    model: keras.Model, tensors: Sequence[Any], batches: Iterable[Sequence[NDArray[Any]]]
) -> Iterator[Sequence[NDArray[Any]]]:
    """The values of symbolic `tensors` of `model`, for each of the `batches` of inputs."""
    observer = keras.Model(model.inputs, list(tensors))
    for batch in batches:
        # Called, not predicted: TensorFlow's graph optimizer (oneDNN, 2.21) crashes the process on
        # some networks without batch norms when it is asked for what lies between their layers.
        with no_tracing_warnings():
            outputs = observer(list(batch), training=False)
        yield [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]


@dataclasses.dataclass(frozen=True)
class ChannelRanges:
    """The range and the mean square of each channel of a tensor, float64 `[C]`.

    NaN where NaN was seen.
    """

    minima: NDArray[np.float64]
    maxima: NDArray[np.float64]
    squares: NDArray[np.float64]  # summed
    count: int

    @classmethod
    def of(cls, values: NDArray[Any], axis: int) -> ChannelRanges:
        """Of `values` with channels on `axis`."""
        others = tuple(i for i in range(values.ndim) if i != axis)
        squares = np.square(values, dtype=np.float64).sum(others)
        low, high = values.min(others), values.max(others)
        count = values.size // len(squares)
        return cls(low.astype(np.float64), high.astype(np.float64), squares, count)

    def merge(self, other: ChannelRanges) -> ChannelRanges:
        """Of both data sets together."""
        return ChannelRanges(
            np.minimum(self.minima, other.minima),
            np.maximum(self.maxima, other.maxima),
            self.squares + other.squares,
            self.count + other.count,
        )

    @property
    def magnitudes(self) -> NDArray[np.float64]:
        """The largest magnitude in each channel."""
        return np.maximum(-self.minima, self.maxima)

    @property
    def mean_squares(self) -> NDArray[np.float64]:
        return self.squares / self.count


def channel_ranges(
    model: keras.Model,
    tensors: Mapping[int, tuple[Any, int]],
    batches: Iterable[Sequence[NDArray[Any]]],
) -> dict[int, ChannelRanges]:
    """Ranges of the channels of symbolic tensors, by key, over all `batches` of inputs.

    Arguments:
        tensors: each with the axis of its channels, by a key.
    """
    found: dict[int, ChannelRanges] = {}
    if not tensors:
        return found
    for outputs in observe(model, [tensor for tensor, _ in tensors.values()], batches):
        for (key, (_, axis)), values in zip(tensors.items(), outputs, strict=True):
            seen = ChannelRanges.of(values, axis)
            found[key] = found[key].merge(seen) if key in found else seen
    return found


def together(statistics: Mapping[str, Sequence[Statistics]]) -> dict[str, Statistics]:
    """The statistics of all tensors of a key together, by key."""
    return {key: functools.reduce(Statistics.merge, each) for key, each in statistics.items()}


def calibrate(
    model: keras.Model,
    tensors: Mapping[str, Sequence[Any]],
    batches: Iterable[Sequence[NDArray[Any]]],
    *,
    through: Mapping[str, Callable[[Any], Any]] | None = None,
    spans: Mapping[str, tuple[float, float]] | None = None,
    histogram: bool = True,
    channels: Collection[str] = (),
) -> dict[str, list[Statistics]]:
    """Statistics of each of symbolic `tensors` of `model`, by key, over all `batches` of inputs.

    One batch of activations is held at a time. A key whose values are not floats gets no
    statistics: some Keras layers, such as lookups of one-hot vectors, make other numbers than their
    symbolic outputs say.

    Arguments:
        through: by key, a layer that the values go through before they are measured. (Calling it
            on the symbolic tensors instead would leave traces in the user's model.)
        spans: by key, two numbers that count as seen in each tensor, whatever the data.
        histogram: whether to measure more than the range.
        channels: the keys of those tensors of which each channel (last axis) is measured, too.

    Raises:
        ValueError: an activation is NaN or infinite; the message names its key.
    """
    flat = [(key, tensor) for key, group in tensors.items() for tensor in group]
    through = through or {}
    if not flat:
        return {}
    seen: list[Statistics | None] = [None] * len(flat)
    for outputs in observe(model, [tensor for _, tensor in flat], batches):
        for index, ((key, _), values) in enumerate(zip(flat, outputs, strict=True)):
            if values.dtype.kind in _NOT_FLOAT:
                continue
            if key in through:
                values = keras.ops.convert_to_numpy(through[key](values))
            try:
                statistics = Statistics.of(values, histogram, key in channels)
            except ValueError as error:
                raise ValueError(f"{error} at {key!r}, on the calibration data.") from None
            before = seen[index]
            seen[index] = statistics if before is None else before.merge(statistics)
    spanned = {key: Statistics.of(np.array(s), histogram) for key, s in (spans or {}).items()}
    found: dict[str, list[Statistics]] = {}
    for (key, _), one in zip(flat, seen, strict=True):
        if one is not None:
            one = one.merge(spanned[key]) if key in spanned else one
            found.setdefault(key, []).append(one)
    return found
