"""Windows against the convolutions of Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from ocs_tf.numerics.patches import output_sizes, windows

CASES = {
    "same": ((7, 8), (3, 3), (1, 1), (1, 1), "same"),
    "valid": ((7, 8), (3, 2), (1, 1), (1, 1), "valid"),
    "strides": ((7, 8), (3, 3), (2, 3), (1, 1), "same"),
    "strides, valid": ((7, 9), (2, 3), (2, 2), (1, 1), "valid"),
    "dilation": ((9, 8), (3, 2), (1, 1), (2, 3), "same"),
    "dilation, valid": ((9, 8), (3, 2), (1, 1), (2, 3), "valid"),
    "stride larger than kernel": ((8, 7), (1, 1), (2, 2), (1, 1), "same"),
    "kernel as large": ((3, 4), (3, 4), (1, 1), (1, 1), "valid"),
    "1-D": ((9,), (3,), (2,), (1,), "same"),
    "3-D": ((4, 5, 6), (2, 3, 2), (1, 2, 1), (1, 1, 1), "same"),
}
each_case = pytest.mark.parametrize("case", CASES)


@each_case
def test_weighted_sums_are_the_convolution(case: str, rng: np.random.Generator) -> None:
    sizes, kernel, strides, dilation, padding = CASES[case]
    x = rng.normal(size=(2, *sizes, 3)).astype(np.float32)
    weights = rng.normal(size=(*kernel, 3, 5)).astype(np.float32)
    expected = keras.ops.conv(x, weights, strides, padding, "channels_last", dilation)
    found = windows(x, kernel, strides, dilation, padding)
    assert list(found.shape[1:-2]) == output_sizes(sizes, kernel, strides, dilation, padding)
    flat = found.reshape(*found.shape[:-2], -1) @ weights.reshape(-1, 5)
    np.testing.assert_allclose(flat, expected, rtol=0, atol=1e-5)


@each_case
@pytest.mark.parametrize("every", [2, 3])
def test_some_of_the_positions(case: str, every: int, rng: np.random.Generator) -> None:
    sizes, kernel, strides, dilation, padding = CASES[case]
    x = rng.normal(size=(2, *sizes, 3)).astype(np.float32)
    everywhere = windows(x, kernel, strides, dilation, padding)
    start = [min(1, size - 1) for size in everywhere.shape[1:-2]]
    some = windows(x, kernel, strides, dilation, padding, every=every, start=start)
    where = tuple(slice(first, None, every) for first in start)
    np.testing.assert_array_equal(some, everywhere[(slice(None), *where)])


def test_a_kernel_larger_than_the_input_has_no_position() -> None:
    assert output_sizes((2, 5), (3, 3), (1, 1), (1, 1), "valid") == [0, 3]
