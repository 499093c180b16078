"""Bit allocation against the paper's figures and against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocs_tf.numerics.bit_allocation import allocate, closed_form_bits, share_copies

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def test_twice_the_weights_take_a_bit_less() -> None:
    """Lin et al., section 3.2: 3 dB a bit, and 10 log10(2) = 3.01 dB."""
    counts = np.array([1, 2, 4, 8]) * 1000
    np.testing.assert_array_equal(closed_form_bits(counts, (7 + 12 + 20 + 32) / 15), [7, 6, 5, 4])


@settings(deadline=None)
@given(rng=seeds, layers=st.integers(1, 8), average=st.floats(2, 8), kappa=st.floats(1, 12))
def test_closed_form(rng: np.random.Generator, layers: int, average: float, kappa: float) -> None:
    counts = rng.integers(1, 10**6, layers)
    bits = closed_form_bits(counts, average, kappa=kappa)
    assert bits.min() >= 2
    assert bits.max() <= 8
    assert bits @ counts <= average * counts.sum() * (1 + 1e-9)
    # The rule, for some constant: a number of bits before rounding and bounds that all agree on.
    ideal = -10 * np.log10(counts) / kappa
    lower = np.where(bits > 2, bits - 0.5, -np.inf) - ideal
    upper = np.where(bits < 8, bits + 0.5, np.inf) - ideal
    assert lower.max() <= upper.min() + 1e-9


def test_closed_form_uses_what_it_has() -> None:
    np.testing.assert_array_equal(closed_form_bits([5, 5], 8), [8, 8])
    np.testing.assert_array_equal(closed_form_bits([5, 5], 4), [4, 4])
    np.testing.assert_array_equal(closed_form_bits([7], 5.9), [5])


@pytest.mark.parametrize("counts", [[], [0, 1], [-1], [[1, 2]], [np.nan]])
def test_closed_form_refuses_counts(counts: list[float]) -> None:
    with pytest.raises(ValueError, match="`counts` must be a list of positive numbers"):
        closed_form_bits(counts, 4)


def test_closed_form_refuses_too_few_bits() -> None:
    with pytest.raises(ValueError, match=r"`average_bits` \(=1.5\) must be 2 or more"):
        closed_form_bits([1, 2], 1.5)


@settings(deadline=None)
@given(rng=seeds, layers=st.integers(1, 4), options=st.integers(1, 4), share=st.floats(0, 1.2))
def test_no_other_choice_has_less_error(
    rng: np.random.Generator, layers: int, options: int, share: float
) -> None:
    errors = rng.lognormal(0, 3, (layers, options))
    costs = rng.integers(1, 50, (layers, options)).astype(float)
    least, most = costs.min(1).sum(), costs.max(1).sum()
    budget = least + share * (most - least)
    every = np.array(list(itertools.product(range(options), repeat=layers)))
    rows = np.arange(layers)
    fits = costs[rows, every].sum(1) <= budget + 1e-9
    best = errors[rows, every[fits]].sum(1).min()
    chosen = allocate(errors, costs, budget)
    assert costs[rows, chosen].sum() <= budget + 1e-6
    assert errors[rows, chosen].sum() <= best * (1 + 1e-5) + 1e-6 * errors.min(1).max()


def test_allocate_refuses() -> None:
    with pytest.raises(ValueError, match=r"`budget` \(=2\) is below the least possible cost, 3"):
        allocate([[1.0], [1.0]], [[1.0], [2.0]], 2)
    with pytest.raises(ValueError, match=r"must be of one shape \[L, O\]"):
        allocate([[1.0]], [[1.0, 2.0]], 2)
    with pytest.raises(ValueError, match="must be finite"):
        allocate([[np.nan]], [[1.0]], 2)


@settings(deadline=None)
@given(rng=seeds, layers=st.integers(1, 4), share=st.floats(0, 1))
def test_copies_go_where_they_help_most(
    rng: np.random.Generator, layers: int, share: float
) -> None:
    """Of convex errors and equal prices, no other counts have a smaller sum."""
    drops = [np.sort(rng.exponential(size=rng.integers(0, 5)))[::-1] for _ in range(layers)]
    errors = [10 - np.concatenate([[0], np.cumsum(drop)]) for drop in drops]
    budget = np.floor(share * sum(map(len, drops)))
    counts = share_copies(errors, [1.0] * layers, budget)
    assert sum(counts) <= budget
    best = min(
        sum(path[n] for path, n in zip(errors, chosen, strict=True))
        for chosen in itertools.product(*(range(len(path)) for path in errors))
        if sum(chosen) <= budget
    )
    found = sum(path[n] for path, n in zip(errors, counts, strict=True))
    assert found == pytest.approx(best)


def test_copies_that_only_help_together_are_taken_together() -> None:
    errors = [np.array([9.0, 9, 1]), np.array([9.0, 8, 7])]
    assert share_copies(errors, [1, 1], 2) == [2, 0]
    assert share_copies(errors, [1, 1], 1) == [0, 1]
    assert share_copies(errors, [10, 1], 2) == [0, 2]
    assert share_copies([np.array([3.0, 3, 3])], [1], 5) == [0]
