"""Splits searched together with thresholds, against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocs_tf.numerics import GRANULARITIES, quantize_kernel
from ocs_tf.numerics.joint_search import fit_thresholds, search_splits

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


def kernel_of(rng: np.random.Generator, shape: tuple[int, ...] = (3, 8, 4)) -> NDArray[np.float32]:
    """Input channels of different size, with outliers."""
    kernel = rng.laplace(size=shape) * rng.lognormal(0, 0.7, (shape[-2], 1))
    return kernel.astype(np.float32)


def error(kernel: NDArray[np.float32], approximation: NDArray[np.float32]) -> float:
    return float(np.square(kernel.astype(np.float64) - approximation).sum())


def least_error(
    kernel: NDArray[np.float32], bits: int, channels: list[int], granularity: str
) -> float:
    """By trying steps: weights of a channel of `n` copies, `n` a power of two, reach n times."""
    limit = 2 ** (bits - 1) - 1
    copies = np.bincount(channels, minlength=kernel.shape[-2]) + 1
    reach = (2 ** np.floor(np.log2(copies)))[:, None] * limit
    largest = np.abs(kernel).max((0, 1) if granularity == "channel" else None)
    best: NDArray[np.float64] | float = np.inf
    for share in np.linspace(0.005, 1, 1500):
        step = np.where(largest == 0, 1, largest) * share / limit
        codes = np.clip(np.rint(kernel / step), -reach, reach)
        squares = np.square(kernel - codes * step)
        best = np.minimum(best, squares.sum((0, 1) if granularity == "channel" else None))
    return float(np.sum(best))


@each_granularity
@settings(max_examples=25, deadline=None)
@given(rng=seeds, bits=st.integers(2, 6), count=st.integers(0, 4))
def test_the_path_is_the_error_of_the_effective_kernel(
    granularity: str, rng: np.random.Generator, bits: int, count: int
) -> None:
    kernel = kernel_of(rng)
    channels, path = search_splits(kernel, bits, count, granularity)
    assert len(channels) <= count
    assert len(path) == len(channels) + 1
    assert np.all(np.diff(path) <= 0)
    # Steps are searched coarsely there, and more finely here.
    least = least_error(kernel, bits, channels, granularity)
    assert least * 0.99 <= path[-1] <= least * 2


@each_granularity
@settings(max_examples=10, deadline=None)
@given(rng=seeds, bits=st.integers(2, 5))
def test_no_other_first_split_is_much_better(
    granularity: str, rng: np.random.Generator, bits: int
) -> None:
    kernel = kernel_of(rng)
    channels, _ = search_splits(kernel, bits, 1, granularity)
    others = [least_error(kernel, bits, [c], granularity) for c in range(kernel.shape[-2])]
    assert least_error(kernel, bits, channels, granularity) <= min(others) * 1.2


@each_granularity
def test_thresholds_are_the_best_for_the_splits(granularity: str) -> None:
    rng = np.random.default_rng(0)
    for bits, channels in itertools.product((2, 4, 8), ([], [3], [3, 3, 3, 0])):
        kernel = kernel_of(rng)
        threshold = fit_thresholds(kernel, bits, channels, granularity)
        assert threshold.shape == ((4,) if granularity == "channel" else ())
        limit = 2 ** (bits - 1) - 1
        reach = np.full((8, 1), limit)
        reach[channels] = limit * (len(channels) if len(channels) == 4 else 2)
        if len(channels) == 4:  # three copies of 3 make four of them; one of 0 makes two
            reach[3], reach[0] = 4 * limit, 2 * limit
        step = threshold / limit
        codes = np.clip(np.rint(kernel / step), -reach, reach)
        want = least_error(kernel, bits, channels, granularity)
        assert error(kernel, codes * step) <= want * 1.02


@each_granularity
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rng=seeds, bits=st.integers(3, 7), ratio=st.floats(0, 0.2))
def test_joint_is_no_worse_than_one_after_the_other(
    granularity: str, rng: np.random.Generator, bits: int, ratio: float
) -> None:
    kernel = kernel_of(rng, (9, 16, 8))
    joint = quantize_kernel(kernel, bits, ratio, "joint", granularity)
    one_by_one = quantize_kernel(kernel, bits, ratio, "optimal", granularity)
    # Of three copies, the third helps a little beyond the reach of two; the search ignores that.
    assume(np.bincount(one_by_one.channel_map).max() <= 2)
    # Mostly it is better. In a kernel of a thousand weights it may end up to a fifth worse.
    assert error(kernel, joint.effective_kernel()) <= 1.25 * error(
        kernel, one_by_one.effective_kernel()
    )
    assert joint.splits <= one_by_one.splits


def test_weights_say_which_channel_matters() -> None:
    kernel = np.ones((1, 4, 1), np.float32) * 0.1
    kernel[0, 1], kernel[0, 2] = 4.0, 4.1
    assert search_splits(kernel, 3, 2, "tensor")[0] == [2, 1]
    heavy = [1.0, 1e4, 1e-4, 1.0]
    assert search_splits(kernel, 3, 1, "tensor", heavy)[0][:1] != [2]


def test_nothing_to_gain_makes_no_copies() -> None:
    zeros = np.zeros((3, 3, 5, 2), np.float32)
    channels, path = search_splits(zeros, 4, 3, "channel")
    assert channels == []
    np.testing.assert_array_equal(path, [0])
    exact = quantize_kernel(np.array([[1.0, -1], [0, 1]]), 2, 1.0, "joint", "channel")
    assert exact.splits == 0
    np.testing.assert_array_equal(exact.effective_kernel(), [[1, -1], [0, 1]])


def test_plain_halves_are_not_searched() -> None:
    kernel = kernel_of(np.random.default_rng(1))
    got = quantize_kernel(kernel, 4, 0.3, "joint", "channel", quantization_aware=False)
    want = quantize_kernel(kernel, 4, 0.3, "optimal", "channel", quantization_aware=False)
    np.testing.assert_array_equal(got.codes, want.codes)


def test_an_unknown_clip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`clip` \(='best'\) must be one of none.*joint"):
        quantize_kernel(np.ones((2, 2)), 4, 0.5, "best")


@pytest.mark.parametrize("exponent", [-140, -120, -70, 70, 100])
@each_granularity
def test_a_power_of_two_changes_no_choice(granularity: str, exponent: int) -> None:
    kernel = np.rint(kernel_of(np.random.default_rng(3)) * 64)  # denormals hold whole numbers
    channels, path = search_splits(kernel, 4, 5, granularity)
    scaled, scaled_path = search_splits(np.ldexp(kernel, exponent), 4, 5, granularity)
    assert channels == scaled
    assert channels
    np.testing.assert_array_equal(np.ldexp(path, 2 * exponent), scaled_path)


@each_granularity
def test_zeros_get_no_copies(granularity: str) -> None:
    channels, path = search_splits(np.zeros((6, 2), np.float32), 4, 5, granularity)
    assert channels == []
    np.testing.assert_array_equal(path, [0.0])


@pytest.mark.filterwarnings("error")
@each_granularity
def test_columns_of_very_different_size(granularity: str) -> None:
    kernel = kernel_of(np.random.default_rng(3)) * np.float32([1, 1e-38, 0, 1e-44])
    channels, path = search_splits(kernel, 4, 3, granularity)
    assert channels
    assert np.isfinite(path).all()
