"""The range of an activation tensor whose rounding error the next kernels can undo best.

Of a channel `x` that is rounded to `q`, a kernel with compensated weights and bias takes the best
gain and offset of `q`. What is left of each channel is `var(x) (1 - corr(x, q)^2)`, the residual
of a linear regression. A clipped channel is mostly shrunk, which a gain undoes. So more is clipped
than for the least squared error of `q` itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ocs_tf.numerics.grid import ActivationGrid

# Of the largest magnitude: the thresholds that are tried.
_FRACTIONS = np.geomspace(1, 0.05, 60)

# Histograms of channels, `[C, bins]`, and the centers of their bins.
Histograms = tuple[NDArray[np.integer], NDArray[np.float64]]


def regression_range(
    histograms: Sequence[Histograms], low: float, high: float, bits: int, symmetric: bool = False
) -> tuple[float, float]:
    """The clipped range of the least residual, summed over the channels of all tensors of a grid.

    Arguments:
        histograms: of each tensor: counts of its values `[C, bins]`, and the bins' centers.
        low, high: the whole range of the values.
        bits, symmetric: of the grid.

    Returns:
        The range, clipped at the same magnitude on both sides; it holds 0, as that of a grid.

    Example:
        >>> counts, centers = np.array([[90, 9, 1]]), np.array([1.0, 2.0, 30.0])
        >>> regression_range([(counts, centers)], 0.0, 30.0, bits=8)
        (0.0, 30.0)
    """
    if low == high:
        return low, high
    low, high = min(low, 0.0), max(high, 0.0)
    largest = max(-low, high)
    ranges = [(max(low, -f * largest), min(high, f * largest)) for f in _FRACTIONS]
    residuals = [
        sum(
            _residual(*each, ActivationGrid.from_range(*ends, bits, symmetric))
            for each in histograms
        )
        for ends in ranges
    ]
    return ranges[int(np.argmin(residuals))]


def _residual(
    counts: NDArray[np.integer], centers: NDArray[np.float64], grid: ActivationGrid
) -> float:
    """What regressions of the channels on their rounded values leave of their variances, summed."""
    codes = np.rint(centers / grid.scale) + grid.zero_point
    rounded = (np.clip(codes, grid.code_min, grid.code_max) - grid.zero_point) * grid.scale
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mean, rounded_mean = shares @ centers, shares @ rounded
    variance = np.maximum(shares @ centers**2 - mean**2, 0)
    of_rounded = np.maximum(shares @ rounded**2 - rounded_mean**2, 0)
    covariance = shares @ (centers * rounded) - mean * rounded_mean
    # A channel of one code tells nothing.
    alive = of_rounded > 1e-12 * grid.scale**2
    explained = np.divide(covariance**2, of_rounded, out=np.zeros_like(mean), where=alive)
    return float(np.maximum(variance - explained, 0).sum())
