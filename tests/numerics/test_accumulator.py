"""Bits of accumulators, against all orders of all inputs of small kernels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ocs_tf.numerics.accumulator import accumulator_bits


def fits(value: int, bits: int) -> bool:
    return -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)


@pytest.mark.parametrize(
    ("codes", "low", "high", "expected"),
    [
        ([[1]], 0, 127, 8),  # 127
        ([[1]], 0, 128, 9),  # 128
        ([[1]], -128, 127, 8),  # -128
        ([[-1]], -128, 127, 9),  # 128
        ([[127]] * 9, 0, 255, 20),  # 291,465 < 2^19
        ([[1, 0], [-1, 3]], -2, 5, 5),  # columns: 5 + 2 = 7 and 15
        ([[0]], -5, 5, 2),
    ],
)
def test_by_hand(codes: list[list[int]], low: int, high: int, expected: int) -> None:
    assert accumulator_bits(np.array(codes, np.int8), low, high) == expected


def test_bias() -> None:
    codes = np.array([[1, -1]], np.int8)
    assert accumulator_bits(codes, 0, 100, np.array([27.4, 0.0])) == 8  # 127
    assert accumulator_bits(codes, 0, 100, np.array([28.0, 0.0])) == 9  # 128
    assert accumulator_bits(codes, 0, 100, np.array([0.0, -28.0])) == 8  # -128
    # Of the other sign: the sum without it still has to fit.
    assert accumulator_bits(codes, 0, 200, np.array([-100.0, 0.0])) == 9


@given(
    arrays.arrays(np.int8, (3, 2), elements=st.integers(-3, 3)),
    st.integers(-4, 0),
    st.integers(0, 4),
    arrays.arrays(np.int64, (2,), elements=st.integers(-20, 20)),
)
def test_no_order_of_any_inputs_overflows(codes, low, high, bias) -> None:
    bits = accumulator_bits(codes, low, high, bias.astype(float))
    reached = set()
    for x in itertools.product((low, high), repeat=3):
        products = (np.array(x)[:, None] * codes).T
        for column, offset in zip(products, bias, strict=True):
            for order in itertools.permutations([*column, offset]):
                reached |= set(np.cumsum(order).tolist())
    assert all(fits(value, bits) for value in reached)
    assert bits == 2 or not all(fits(value, bits - 1) for value in reached)


def test_depthwise_kernels_sum_over_places() -> None:
    codes = np.full((3, 3, 4, 2), 7, np.int8)
    assert accumulator_bits(codes, 0, 255, axes=(0, 1)) == (9 * 7 * 255).bit_length() + 1
    bias = np.arange(8.0)
    assert accumulator_bits(codes, 0, 255, bias, axes=(0, 1)) == 15
