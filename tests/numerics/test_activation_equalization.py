"""Factors for channels of outliers, against errors that are measured on rounded numbers."""

from __future__ import annotations

import numpy as np
import pytest

from ocs_tf.numerics.activation_equalization import (
    ReadingKernel,
    RoundedChannels,
    threshold_factors,
)

CHANNELS, OUTPUTS, TAPS = 12, 30, 3


def outliers(rng: np.random.Generator, size: float = 20.0) -> np.ndarray:
    """Values whose channels 3 and 7 are `size` times as large as the others, `[N, C]`."""
    x = rng.normal(size=(4000, CHANNELS))
    x[:, [3, 7]] *= size
    return x


def of_values(x: np.ndarray, bits: int = 8) -> RoundedChannels:
    return RoundedChannels(x.min(0), x.max(0), np.square(x).mean(0), bits)


def reading(kernel: np.ndarray, largest_code: int = 127) -> ReadingKernel:
    """Of `[TAPS, C, F]`."""
    sizes, squares = np.abs(kernel).max(0), np.square(kernel).sum(0)
    return ReadingKernel(sizes, squares, len(kernel), 1, np.arange(kernel.shape[1]), largest_code)


def measured_error(x: np.ndarray, kernel: np.ndarray, factors: np.ndarray, codes: int) -> float:
    """Mean squared error of all outputs, with inputs and weights rounded to the nearest."""
    scaled, rows = x / factors, kernel * factors[:, None]
    step = (max(scaled.max(), 0) - min(scaled.min(), 0)) / 255
    steps = np.abs(rows).max((0, 1)) / codes
    rounded, weights = np.rint(scaled / step) * step, np.rint(rows / steps) * steps
    return float(
        sum(np.square(rounded @ w - x @ k).mean() for w, k in zip(weights, kernel, strict=True))
    )


@pytest.mark.parametrize("codes", [127, 7])
def test_factors_lessen_the_measured_error(rng: np.random.Generator, codes: int) -> None:
    x, kernel = outliers(rng), rng.normal(size=(TAPS, CHANNELS, OUTPUTS))
    kernel[:, [3, 7]] /= 10  # as in trained networks, what is large counts for less
    before = measured_error(x, kernel, np.ones(CHANNELS), codes)
    factors = threshold_factors([of_values(x)], [reading(kernel, codes)])
    if codes == 7:  # rows of a larger range would cost more than activations gain
        assert factors is None or measured_error(x, kernel, factors, codes) < before
        return
    assert factors is not None
    assert (factors[[3, 7]] > 2).all()
    assert (np.delete(factors, [3, 7]) < 2).all()
    assert measured_error(x, kernel, factors, codes) < 0.6 * before


def test_float_kernels_take_any_factor(rng: np.random.Generator) -> None:
    """Then the least error is where all channels are brought into the range of the smallest."""
    x, kernel = outliers(rng, 10.0), rng.normal(size=(TAPS, CHANNELS, OUTPUTS))
    factors = threshold_factors([of_values(x)], [reading(kernel, 0)])
    assert factors is not None
    assert np.ptp(np.abs(x / factors).max(0)) < 1e-9 + 0.5 * np.abs(x / factors).max()


def test_nothing_is_scaled_where_channels_are_alike(rng: np.random.Generator) -> None:
    x = rng.uniform(-1, 1, (4000, CHANNELS))
    kernel = rng.normal(size=(TAPS, CHANNELS, OUTPUTS))
    assert threshold_factors([of_values(x)], [reading(kernel)]) is None


def test_channels_of_zeros(rng: np.random.Generator) -> None:
    x, kernel = outliers(rng), rng.normal(size=(TAPS, CHANNELS, OUTPUTS))
    x[:, 5] = 0
    factors = threshold_factors([of_values(np.maximum(x, 0))], [reading(kernel / 10)])
    assert factors is not None
    assert factors[5] == 1
    nothing = np.zeros_like(x)
    assert threshold_factors([of_values(nothing)], [reading(kernel)]) is None


def test_groups_read_channels_of_their_own(rng: np.random.Generator) -> None:
    """A depthwise kernel `[1, C]` has a step per channel: factors cost it nothing."""
    x, kernel = outliers(rng), rng.normal(size=(1, CHANNELS))
    own = ReadingKernel(np.abs(kernel), np.square(kernel), 1, CHANNELS, np.arange(CHANNELS), 127)
    factors = threshold_factors([of_values(x)], [own])
    assert factors is not None
    ranges = np.ptp(x, axis=0) / factors
    assert ranges.max() < 2 * ranges.min()


def test_what_is_in_front_of_a_leaky_relu_counts_by_what_is_left_of_it(
    rng: np.random.Generator,
) -> None:
    """Channel 3 is wide on the negative side only, of which 1/10 is left."""
    x = rng.normal(size=(4000, CHANNELS))
    x[:, 3] = 30 * x[:, 3] - 100
    after = np.where(x > 0, x, 0.1 * x)
    kernel = rng.normal(size=(TAPS, CHANNELS, OUTPUTS))
    factors = threshold_factors([of_values(x), of_values(after)], [reading(kernel)])
    assert factors is not None
    assert factors[3] > 4
