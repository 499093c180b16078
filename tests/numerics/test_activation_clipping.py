"""Clipping by regression, against regressions on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocs_tf.numerics import ActivationGrid
from ocs_tf.numerics.activation_clipping import Histograms, regression_range

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
FRACTIONS = np.geomspace(1, 0.05, 60)


def histograms(values: np.ndarray, bins: int = 4096) -> Histograms:
    """Of the columns of `values`."""
    largest = np.abs(values).max()
    edges = np.linspace(-largest, largest, bins + 1)
    counts = np.stack([np.histogram(column, edges)[0] for column in values.T])
    return counts, (edges[1:] + edges[:-1]) / 2


def residual(values: np.ndarray, low: float, high: float, bits: int) -> float:
    """Of least squares with a constant, column by column."""
    rounded = ActivationGrid.from_range(low, high, bits).fake_quantize(values)
    total = 0.0
    for x, q in zip(values.T, np.asarray(rounded, np.float64).T, strict=True):
        system = np.stack([q, np.ones_like(q)], 1)
        solved = np.linalg.lstsq(system, x, rcond=None)[0]
        total += float(np.square(x - system @ solved).mean())
    return total


@settings(deadline=None, max_examples=20)
@given(rng=seeds, bits=st.integers(2, 6), rectified=st.booleans())
def test_no_threshold_leaves_less(rng: np.random.Generator, bits: int, rectified: bool) -> None:
    values = rng.laplace(size=(4000, 5)) * rng.uniform(0.2, 3, 5)
    values = np.maximum(values, 0) if rectified else values
    low, high = float(values.min()), float(values.max())
    found = regression_range([histograms(values)], low, high, bits)
    largest = max(-low, high)
    tried = [(max(low, -f * largest), min(high, f * largest)) for f in FRACTIONS]
    assert residual(values, *found, bits) <= 1.01 * min(residual(values, *t, bits) for t in tried)


def test_what_a_gain_undoes_is_clipped(rng: np.random.Generator) -> None:
    """A channel of two values is exact at any threshold, once it is scaled."""
    switch = 8.0 * rng.integers(0, 2, 20_000)
    values = np.stack([switch, rng.uniform(0, 1, 20_000)], 1)
    _, found = regression_range([histograms(values)], 0.0, 8.0, 4)
    assert 0.9 < found < 1.1
    assert residual(values, 0, found, 4) < 0.1 * residual(values, 0, 8, 4)
    errors = [
        np.square(ActivationGrid.from_range(0, 8 * f, 4).fake_quantize(values) - values).mean()
        for f in FRACTIONS
    ]
    assert 8 * FRACTIONS[int(np.argmin(errors))] > 7


def test_tensors_of_a_group_count_together(rng: np.random.Generator) -> None:
    small, large = rng.normal(size=(5000, 2)), 6 * rng.normal(size=(5000, 3))
    low = min(small.min(), large.min())
    high = max(small.max(), large.max())
    alone = regression_range([histograms(small)], low, high, 4)
    both = regression_range([histograms(small), histograms(large)], low, high, 4)
    assert alone[1] < 0.5 * both[1]


@pytest.mark.parametrize("sign", [1, -1])
def test_values_far_from_0(sign: int, rng: np.random.Generator) -> None:
    values = sign * rng.uniform(4, 5, (2000, 3))
    low, high = float(values.min()), float(values.max())
    found = regression_range([histograms(values)], low, high, 4)
    assert found[0] <= 0 <= found[1]
    assert residual(values, *found, 4) <= 1.01 * residual(values, low, high, 4)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constants_keep_their_range(value: float) -> None:
    constant = np.array([[7]]), np.array([value])
    assert regression_range([constant], value, value, 4) == (value, value)
