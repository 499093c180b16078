"""Scales of cross-layer equalization, against their definition in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ocs_tf.numerics.cross_layer_equalization import (
    LIMIT,
    equalizing_scales,
    input_factors,
    input_ranges,
)

RANGES = arrays.arrays(np.float64, 6, elements=st.floats(0.05, 20))


@given(RANGES, RANGES)
def test_both_ranges_become_the_same(made: np.ndarray, read: np.ndarray) -> None:
    scales = equalizing_scales(made, read)
    expected = np.sqrt(made * read) / read  # equation 11 of Nagel et al.
    np.testing.assert_allclose(scales, expected / np.exp(np.median(np.log(expected))))
    ratio = (made / scales) / (read * scales)
    np.testing.assert_allclose(ratio, ratio[0])


@given(RANGES, RANGES)
def test_with_balance_0_all_that_is_read_becomes_the_same(
    made: np.ndarray, read: np.ndarray
) -> None:
    scaled = read * equalizing_scales(made, read, balance=0)
    np.testing.assert_allclose(scaled, scaled[0])


@given(RANGES, RANGES, st.floats(0, 1))
def test_half_of_the_channels_grow_and_none_does_when_applied_again(
    made: np.ndarray, read: np.ndarray, balance: float
) -> None:
    scales = equalizing_scales(made, read, balance)
    assert np.median(np.log(scales)) == pytest.approx(0, abs=1e-9)
    again = equalizing_scales(made / scales, read * scales, balance)
    np.testing.assert_allclose(again, 1)


@pytest.mark.parametrize("dead", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("where", ["made", "read"])
def test_dead_channels_keep_their_scale_and_do_not_move_others(where: str, dead: float) -> None:
    ranges = {"made": np.array([4.0, 2.0, 1.0]), "read": np.array([1.0, 2.0, 1.0])}
    ranges[where][1] = dead
    scales = equalizing_scales(**ranges)
    others = np.array([np.sqrt(4.0), 1.0])
    np.testing.assert_allclose(scales, [others[0] / np.sqrt(2), 1, others[1] / np.sqrt(2)])


def test_all_channels_dead() -> None:
    np.testing.assert_array_equal(equalizing_scales(np.zeros(3), np.ones(3)), 1)


def test_scales_are_bounded() -> None:
    scales = equalizing_scales([1e-30, 1.0, 1e30], [1e30, 1.0, 1e-30])
    np.testing.assert_allclose(scales, [1 / LIMIT, 1, LIMIT])


def test_one_channel() -> None:
    np.testing.assert_array_equal(equalizing_scales([3.0], [0.1]), 1)


GROUPS = pytest.mark.parametrize(
    ("groups", "rows", "outputs"),
    [(1, 6, 4), (2, 3, 4), (6, 1, 6), (6, 1, 12)],
    ids=["plain", "grouped", "depthwise", "depthwise, multiplier"],
)


@GROUPS
def test_input_factors(groups: int, rows: int, outputs: int) -> None:
    factors = np.arange(1.0, 1 + groups * rows)
    expected = np.empty((rows, outputs))
    for row in range(rows):
        for output in range(outputs):
            group = output * groups // outputs
            expected[row, output] = factors[group * rows + row]
    np.testing.assert_array_equal(input_factors(factors, groups, outputs), expected)


@GROUPS
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_input_ranges(
    granularity: str, groups: int, rows: int, outputs: int, rng: np.random.Generator
) -> None:
    sizes = np.abs(rng.normal(size=(rows, outputs)))
    sizes[:, -1] = 0  # a dead output channel: nothing to compare with
    expected = np.zeros(groups * rows)
    for row in range(rows):
        for output in range(outputs):
            largest = sizes.max() if granularity == "tensor" else max(sizes[:, output].max(), 1e-99)
            channel = output * groups // outputs * rows + row
            expected[channel] = max(expected[channel], sizes[row, output] / largest)
    np.testing.assert_allclose(input_ranges(sizes, groups, granularity), expected)
