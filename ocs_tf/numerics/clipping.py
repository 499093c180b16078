"""Clip thresholds: the largest magnitude a grid should represent.

A smaller threshold clips outliers and makes the step finer for everything else. `mse`, `aciq` and
`kl` are computed as in the code released with Zhao et al. (ICML 2019), on histograms; `percentile`
and `optimal` work on the values themselves. One-sided thresholds are for tensors that are never
negative (after a ReLU), whose grid of `2^bits` levels spends no code below zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocs_tf.numerics.grid import check_bits, code_limit

CLIP_METHODS = ("none", "mse", "aciq", "kl", "percentile", "optimal")
DEFAULT_PERCENTILE = 99.99

# Threshold over scale, for 2..9 bits: the best clip of a normal (times sigma) and of a Laplace
# (times the mean absolute deviation) variable on 2^b - 1 levels. Zhao et al.'s adjustment of
# Banner et al., "ACIQ: Analytical Clipping for Integer Quantization", arXiv:1810.05723.
# The last is for one-sided grids of 8 bits, see `_aciq_threshold`.
_ACIQ_NORMAL = (
    1.47818312, 1.80489289, 2.19227856, 2.57733584, 2.94451183, 3.29076248, 3.61691335, 3.92488300,
)  # fmt: skip
_ACIQ_LAPLACE = (
    2.33152939, 3.04528770, 4.00378631, 5.08252088, 6.23211675, 7.42700429, 8.65265030, 9.90031455,
)  # fmt: skip
# Sigma from the range of n normal values, as ACIQ's code estimates it.
_SIGMA_FROM_RANGE = 0.5 * 0.35 * (1 + np.sqrt(np.pi * np.log(4)))
_KL_BINS = 1001
_KL_SMOOTHING = 1e-4
_ZOOM_STEPS = 33
_REFITS = 8
_BLOCK_SIZE = 2**15


def clip_threshold(
    values: ArrayLike,
    bits: int,
    method: str,
    *,
    one_sided: bool = False,
    percentile: float = DEFAULT_PERCENTILE,
) -> float:
    """Clip threshold of `values` for a grid of `bits`.

    Arguments:
        values: finite floats, any shape, not empty.
        bits: 2..16 (`aciq`: 2..8).
        method: `"none"` (the largest magnitude), `"mse"` (least squared error over a histogram of
            201 bins and 99 thresholds), `"aciq"` (closed form for the better of a normal and a
            Laplace distribution), `"kl"` (least Kullback-Leibler divergence), `"percentile"` (of
            the magnitudes), `"optimal"` (least squared error over the values themselves).
        one_sided: the values are never negative, and the grid's `2^bits` levels are all >= 0.
        percentile: for method `"percentile"`, within 0..100.

    Returns:
        The threshold, >= 0; 0 only if all values are 0.

    Raises:
        ValueError: `values` is empty, not finite or (one-sided) negative; `bits`, `method` or
            `percentile` is out of range.
    """
    values = np.asarray(values)
    grid = _Levels.of(bits, one_sided)
    check_method(method, bits)
    if not 0 <= percentile <= 100:
        raise ValueError(f"`percentile` (={percentile!r}) must lie in 0 .. 100.")
    if not values.size:
        raise ValueError("`values` must not be empty.")
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("`values` must be finite.")
    if one_sided and low < 0:
        raise ValueError(f"`values` must not be negative for a one-sided grid, but holds {low}.")
    largest = max(-low, high)
    if method == "none" or largest == 0:
        return largest
    values = values.ravel().astype(np.result_type(values, np.float32), copy=False)
    if method == "percentile":
        return float(np.percentile(np.abs(values), percentile)) or largest
    if method == "optimal":
        return float(optimal_thresholds(values[:, None], bits, one_sided=one_sided)[0])
    # Magnitudes near 1, so that no square overflows; powers of two change no rounding.
    exponent = math.frexp(largest)[1]
    threshold = _HISTOGRAM_METHODS[method](np.ldexp(values, -exponent), grid)
    return math.ldexp(threshold, exponent) or largest


def check_method(method: str, bits: int | None = None, name: str = "method") -> str:
    """Return `method` if it is one of `CLIP_METHODS` and defined at `bits`, else `ValueError`."""
    if method not in CLIP_METHODS:
        raise ValueError(f"`{name}` (={method!r}) must be one of {', '.join(CLIP_METHODS)}.")
    if method == "aciq" and bits is not None:
        check_bits(bits, "bits of method 'aciq'", 2, 8)
    return method


def optimal_thresholds(
    values: ArrayLike,
    bits: int,
    *,
    weights: ArrayLike | None = None,
    reach: ArrayLike | None = None,
    one_sided: bool = False,
    candidates: int = 96,
) -> NDArray[np.float64]:
    """The threshold of the least squared quantization error for each column of `values` `[n, F]`.

    Scans thresholds up to each column's maximum, then more finely around the best, and improves
    that by the alternating minimisation of Lloyd: with the codes `c` fixed, the best step is
    `sum(c x) / sum(c^2)`; with the step fixed, the best codes are the nearest ones.

    Arguments:
        values: finite floats `[n, F]`.
        weights: non-negative weight of each value's squared error, `[n]` or `[n, F]`; ones if None.
        reach: `[n]`, >= 1: codes of a row reach this many times as far as `bits` has it, as those
            of split channels do; ones if None. The largest threshold scanned is that of each
            column's largest magnitude over its reach.
        one_sided: the values are never negative, and the grid's `2^bits` levels are all >= 0.
        candidates: thresholds to scan, at least.

    Returns:
        float64 thresholds `[F]`; 0 where a column is all zero.

    Raises:
        ValueError: `values` is not `[n, F]`, is empty or not finite, or the shape of `weights`
            does not fit it.
    """
    grid = _Levels.of(bits, one_sided)
    values = np.asarray(values)
    values = values.astype(np.result_type(values, np.float32), copy=False)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"`values` must be [n, F] and not empty, but its shape is {values.shape}.")
    w = np.ones((1, 1), np.float32) if weights is None else np.asarray(weights, np.float32)
    w = w[:, None] if w.ndim == 1 else w
    if weights is not None and w.shape not in ((len(values), 1), values.shape):
        raise ValueError(
            f"`weights` must be of shape ({len(values)},) or {values.shape}, but is {w.shape}."
        )
    maxima = np.maximum(values.max(0), -values.min(0)).astype(np.float64)
    if not np.all(np.isfinite(maxima)):
        raise ValueError("`values` must be finite.")
    multiple = np.ones((1, 1), np.float32)
    if reach is not None:
        multiple = np.asarray(reach, np.float32)[:, None]
        if multiple.shape != (len(values), 1):
            raise ValueError(
                f"`reach` must be of shape ({len(values)},), but is {np.shape(reach)}."
            )
        maxima = np.abs(values / multiple).max(0).astype(np.float64)
    # Magnitudes near 1, so that no square overflows; powers of two change no rounding.
    exponent = np.frexp(maxima)[1]
    base = np.where(maxima == 0, 1.0, np.ldexp(maxima, -exponent)) / grid.limit
    blocks = _Blocks(
        values,
        np.broadcast_to(w, values.shape),
        np.broadcast_to(multiple, (len(values), 1)),
        exponent,
    )
    fractions = _scanned_fractions(len(values), candidates)
    step = grid.best(blocks, base * fractions[:, None])
    zoom = np.linspace(-2 / candidates, 2 / candidates, _ZOOM_STEPS)
    zoomed = np.clip(step + base * zoom[:, None], base * fractions[0], base)
    step = grid.best(blocks, np.concatenate([step[None], zoomed]))
    moved = step
    for _ in range(_REFITS):
        moved = grid.refit(blocks, moved)
        # A grid wider than the data would not clip.
        moved = np.where(moved > 0, np.minimum(moved, base), step)
        step = grid.best(blocks, np.stack([step, moved]))
    return np.where(maxima == 0, 0.0, np.ldexp(step * grid.limit, exponent))


def _scanned_fractions(n: int, candidates: int) -> NDArray[np.float64]:
    """Thresholds to scan, over the largest of `n` magnitudes, increasing to 1."""
    # The error of few values is rugged, and cheap to scan more finely.
    candidates = max(candidates, min(2048, 2**18 // n))
    fractions = np.linspace(1 / candidates, 1.0, candidates)
    # Clipping a single outlier can pay from about sqrt(n) times the others' spread on.
    smallest = 1 / np.sqrt(n)
    if smallest < fractions[0]:
        fractions = np.append(np.geomspace(smallest, fractions[0], 24, endpoint=False), fractions)
    return fractions


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Iterates over blocks of rows of values and weights, small enough for the cache."""

    values: NDArray[np.floating]
    weights: NDArray[np.float32]
    reach: NDArray[np.float32]
    exponent: NDArray[np.integer]

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], ...]]:
        n, columns = self.values.shape
        rows = max(1, _BLOCK_SIZE // columns)
        for start in range(0, n, rows):
            block = slice(start, start + rows)
            x = np.ldexp(self.values[block], -self.exponent).astype(np.float32, copy=False)
            yield x, self.weights[block], self.reach[block]


@dataclasses.dataclass(frozen=True)
class _Levels:
    """The codes of a grid whose step is still sought."""

    smallest: int
    limit: int

    @classmethod
    def of(cls, bits: int, one_sided: bool) -> _Levels:
        if one_sided:
            return cls(0, 2 ** check_bits(bits) - 1)
        return cls(-code_limit(bits), code_limit(bits))

    @property
    def bits(self) -> int:
        return (self.limit + 1).bit_length() - (self.smallest == 0)

    def codes(
        self, x: NDArray[np.floating], step: ArrayLike, reach: ArrayLike = 1
    ) -> NDArray[np.floating]:
        codes = np.divide(x, step, dtype=x.dtype)
        np.rint(codes, out=codes)
        return np.clip(
            codes, np.multiply(reach, self.smallest), np.multiply(reach, self.limit), out=codes
        )

    def squared_error(
        self,
        x: NDArray[np.floating],
        step: ArrayLike,
        weights: ArrayLike = 1,
        reach: ArrayLike = 1,
    ) -> NDArray[np.float64]:
        """Weighted sum over axis 0 of the squared error; `step` broadcasts against `x`."""
        error = self.codes(x, step, reach)
        error *= np.asarray(step, x.dtype)
        error -= x
        np.square(error, out=error)
        error *= np.asarray(weights, x.dtype)
        return error.sum(0, dtype=np.float64)

    def best(self, blocks: _Blocks, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """The step of least squared error in each column of `steps` `[k, F]`."""
        errors = np.zeros(steps.shape)
        for x, w, reach in blocks:
            for error, step in zip(errors, steps, strict=True):
                error += self.squared_error(x, step, w, reach)
        return np.take_along_axis(steps, errors.argmin(0)[None], 0)[0]

    def refit(self, blocks: _Blocks, step: NDArray[np.float64]) -> NDArray[np.float64]:
        """The best step for the codes that `step` gives; 0 where all are 0."""
        projection, power = np.zeros(step.shape), np.zeros(step.shape)
        for x, w, reach in blocks:
            codes = self.codes(x, step, reach)
            weighted = w * codes
            projection += (weighted * x).sum(0, dtype=np.float64)
            power += (weighted * codes).sum(0, dtype=np.float64)
        return projection / np.where(power == 0, 1.0, power)


def _mse_threshold(values: NDArray[np.floating], grid: _Levels) -> float:
    counts, edges = np.histogram(values, bins=201)
    centers = 0.5 * (edges[:-1] + edges[1:])
    thresholds = np.arange(0.01, 1, 0.01) * np.abs(values).max()
    errors = _histogram_error(counts, centers, thresholds, grid)
    return float(thresholds[np.argmin(errors)])


def _histogram_error(
    counts: NDArray[np.integer],
    centers: NDArray[np.floating],
    thresholds: NDArray[np.floating],
    grid: _Levels,
) -> NDArray[np.float64]:
    """Squared error of the histogram per threshold; centers outside a threshold clip to it."""
    x = np.clip(centers[:, None].astype(np.float32), -thresholds, thresholds).astype(np.float64)
    inside = grid.codes(x.astype(np.float32), (thresholds / grid.limit).astype(np.float32))
    quantized = np.where(
        np.abs(centers)[:, None] <= thresholds, inside * (thresholds / grid.limit), x
    )
    return np.asarray(counts @ np.square(centers[:, None] - quantized))


def _aciq_threshold(values: NDArray[np.floating], grid: _Levels) -> float:
    x = values.astype(np.float64)
    one_sided = grid.smallest == 0
    # Never-negative values are half of a symmetric distribution around 0, and 2^b one-sided
    # levels are as fine as 2^(b+1) two-sided ones.
    bits = grid.bits + one_sided
    center = 0.0 if one_sided else x.mean()
    spread = 2 * x.max() if one_sided else x.max() - x.min()
    sigma = spread * _SIGMA_FROM_RANGE / np.sqrt(2 * np.log(max(x.size, 2)))
    deviation = np.abs(x - center).mean()
    if not spread:
        return 0.0  # a constant
    thresholds = np.array([_ACIQ_NORMAL[bits - 2] * sigma, _ACIQ_LAPLACE[bits - 2] * deviation])
    largest = np.abs(x).max()
    counts, edges = np.histogram(values, bins=101, range=(-largest, largest))
    centers = 0.5 * (edges[:-1] + edges[1:])
    errors = _histogram_error(counts, centers, thresholds, grid)
    return float(thresholds[0] if errors[0] < errors[1] else thresholds[1])


def _kl_threshold(values: NDArray[np.floating], grid: _Levels) -> float:
    """Threshold of least KL divergence between the histogram and its quantized version.

    The entropy calibration of TensorRT as MXNet implements it: a symmetric histogram of 1001 bins;
    for every symmetric slice of it, the slice with the outliers added to its ends against the
    slice averaged within `levels` groups of bins, both smoothed.
    """
    largest = np.abs(values).max()
    counts, edges = np.histogram(values, bins=_KL_BINS, range=(-largest, largest))
    if grid.smallest == 0:
        counts = counts + counts[::-1]  # two-sided, so that the slices below grow from zero
    levels = 2 * grid.limit + 1 if grid.smallest == 0 else 2**grid.bits - 1
    middle = _KL_BINS // 2
    halves = np.arange(min(levels // 2, middle), middle + 1)
    divergence = [
        _kl_divergence(counts, middle - half, middle + half + 1, min(levels, _KL_BINS))
        for half in halves
    ]
    if not np.any(np.isfinite(divergence)):
        return 0.0  # a constant
    return float(edges[middle + halves[int(np.argmin(divergence))] + 1])


def _kl_divergence(counts: NDArray[np.integer], start: int, stop: int, levels: int) -> float:
    slice_ = counts[start:stop]
    reference = slice_.astype(np.float64)
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    group = len(slice_) // levels
    bounds = np.arange(levels) * group
    totals = np.add.reduceat(slice_, bounds)
    occupied = slice_ != 0
    # The last group averages without the slice's last bin, as the published implementations do.
    counted = occupied.copy()
    counted[-1] = False
    members = np.add.reduceat(counted.astype(np.int64), bounds)
    lengths = np.diff(np.append(bounds, len(slice_)))
    means = np.divide(totals, members, out=np.zeros(levels), where=members != 0)
    quantized = np.where(counted, np.repeat(means, lengths), 0.0)
    p, q = _smooth(reference), _smooth(quantized)
    if p is None or q is None:
        return np.inf
    from scipy.special import rel_entr  # half a second

    return float(rel_entr(p / p.sum(), q / q.sum()).sum())


def _smooth(distribution: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """Move a little mass from the occupied bins to the empty ones; None where there is none.

    float32 as in the published implementations: the minimum is flat enough for it to matter.
    """
    empty = distribution == 0
    occupied = distribution.size - empty.sum()
    if not occupied or _KL_SMOOTHING * empty.sum() >= occupied:
        return None
    taken = _KL_SMOOTHING * float(empty.sum()) / float(occupied)
    return distribution.astype(np.float32) + (
        _KL_SMOOTHING * empty.astype(np.float32) - taken * (~empty).astype(np.float32)
    )


_HISTOGRAM_METHODS: dict[str, Callable[[NDArray[np.floating], _Levels], float]] = {
    "mse": _mse_threshold,
    "aciq": _aciq_threshold,
    "kl": _kl_threshold,
}
