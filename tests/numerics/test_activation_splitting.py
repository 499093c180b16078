"""Split activations: copies that add up, the rules that choose them, and kernels to suit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocs_tf.numerics import ActivationGrid, OracleGrid, QuantizedKernel, split_values
from ocs_tf.numerics.activation_splitting import (
    copies_by_count,
    copies_by_error,
    copies_by_maximum,
    copy_parts,
    outlier_counts,
    repeat_inputs,
    split_outputs,
)

COPIES = st.lists(st.integers(0, 3), max_size=9)


def gathered(copies: list[int], expanded: np.ndarray) -> np.ndarray:
    """What belongs to each of four channels, added up."""
    totals = np.zeros((*expanded.shape[:-1], 4), expanded.dtype)
    for column, channel in enumerate([0, 1, 2, 3, *copies]):
        totals[..., channel] += expanded[..., column]
    return totals


# Copies ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    COPIES,
    st.integers(2, 8),
    st.booleans(),
    st.integers(-8, 7),
    st.lists(st.integers(-600, 600), min_size=4, max_size=4),
    st.lists(st.integers(-31, 31), min_size=4, max_size=4),
)
def test_codes_of_copies_add_up(
    copies: list[int],
    bits: int,
    symmetric: bool,
    zero_point: int,
    whole: list[int],
    part: list[int],
) -> None:
    """Hermite's identity, against integers: values lie less than half a step from a known code."""
    zero_point = 0 if symmetric else max(zero_point, -(2 ** (bits - 1)))
    zero_point = min(zero_point, 2 ** (bits - 1) - 1)
    each = ActivationGrid(bits, 0.25, zero_point, symmetric)
    values = (np.array(whole) + np.array(part) / 64) * 0.25
    codes = each.quantize(split_values(values, copies, 0.25)).astype(int) - zero_point
    k = [1 + copies.count(channel) for channel in range(4)]
    limits = [(n * (each.code_min - zero_point), n * (each.code_max - zero_point)) for n in k]
    expected = [min(max(w, low), high) for w, (low, high) in zip(whole, limits, strict=True)]
    np.testing.assert_array_equal(gathered(copies, codes), expected)
    # And that is how the grid itself computes it.
    together = ActivationGrid(bits, 0.25, zero_point, symmetric, tuple(copies))
    np.testing.assert_array_equal(together.quantize(values).astype(int) - zero_point, expected)


@settings(deadline=None)
@given(COPIES, st.lists(st.integers(-40, 40), min_size=4, max_size=4))
def test_a_tie_may_go_either_way(copies: list[int], halves: list[int]) -> None:
    grid = ActivationGrid(8, 1.0)
    values = np.array(halves) / 2
    sums = gathered(copies, grid.fake_quantize(split_values(values, copies, 1.0)))
    assert np.abs(sums - values).max() <= 0.5


@settings(deadline=None)
@given(COPIES, st.floats(1e-3, 1e3))
def test_copies_add_up_to_the_whole(copies: list[int], step: float) -> None:
    values = np.linspace(-7, 9, 12).reshape(3, 4)
    expanded = split_values(values, copies, step)
    assert expanded.shape == (3, 4 + len(copies))
    atol = 1e-12 * max(step, 1)
    np.testing.assert_allclose(gathered(copies, expanded), values, rtol=0, atol=atol)


def test_halves_are_those_of_the_paper() -> None:
    x, step = 3.7, 0.2
    expected = [x / 2 - step / 4, 1.0, x / 2 + step / 4]
    np.testing.assert_allclose(split_values([x, 1.0], [0], step), expected)


# Rules ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 4))
def test_no_choice_has_a_smaller_maximum(magnitudes: list[int], count: int) -> None:
    def largest(copies: Any) -> float:
        return max(m / (1 + list(copies).count(c)) for c, m in enumerate(magnitudes))

    copies = copies_by_maximum(magnitudes, count)
    assert len(copies) == (count if any(magnitudes) else 0)  # zeros gain nothing from copies
    every = itertools.combinations_with_replacement(range(len(magnitudes)), count)
    assert largest(copies) == min(map(largest, every))


def test_one_channel_may_be_split_again() -> None:
    assert copies_by_maximum([1.0, 100.0, 20.0], 4) == [1, 1, 1, 1]
    assert copies_by_maximum([1.0, 100.0, 60.0], 4) == [1, 2, 1, 1]  # 100, 60, 50, 33 > 30


def test_most_outliers_come_first() -> None:
    assert copies_by_count([3, 0, 7, 3, 9], [1] * 5, 3) == [4, 2, 0]
    assert copies_by_count([3, 0], [1, 1], 0) == []


def test_outliers_are_above_the_99th_percentile(rng: np.random.Generator) -> None:
    values = np.abs(rng.normal(size=(20_000, 3)) * [1.0, 2.0, 3.0])
    edges = np.linspace(0, 16, 513)
    counts = np.stack([np.histogram(column, edges)[0] for column in values.T])
    threshold = np.percentile(values, 99)
    upper = edges[np.searchsorted(edges, threshold)]  # of the bin that holds it
    np.testing.assert_array_equal(outlier_counts(counts), (values >= upper).sum(0))
    assert outlier_counts(counts).sum() == pytest.approx(600, abs=60)


def histogram_error(
    counts: np.ndarray, width: float, threshold: float, levels: float, k: list[int]
) -> float:
    """Squared error of rounding what lies evenly in bins, and of clipping their centers."""
    total = 0.0
    step = threshold / levels
    for row, codes in zip(counts, k, strict=True):
        for index, n in enumerate(row):
            points = width * (index + (np.arange(8) + 0.5) / 8) if index else np.zeros(8)
            rounded = step * np.round(points / step)
            clipped = max(width * (index + 0.5) - codes * threshold, 0.0)
            total += n * (np.mean((points - rounded) ** 2) + clipped**2)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("levels", [3, 7.5])
def test_least_error_of_all_choices(count: int, levels: float, rng: np.random.Generator) -> None:
    counts = rng.poisson(np.outer([400, 90, 30], 0.7 ** np.arange(24)))
    counts[1, 20] += 12
    width = 0.125
    copies, threshold = copies_by_error(counts, width, count, levels)

    def error(at: float, chosen: Any) -> float:
        k = [1 + list(chosen).count(channel) for channel in range(3)]
        return histogram_error(counts, width, at, levels, k)

    span = width * (1 + max(np.flatnonzero(counts.sum(0))))
    every = itertools.combinations_with_replacement(range(3), count)
    choices = itertools.product(span * np.arange(1, 129) / 128, every)
    least = min(error(at, chosen) for at, chosen in choices)
    assert error(threshold, copies) == pytest.approx(least, rel=1e-9)


def test_the_error_of_real_values_falls(rng: np.random.Generator) -> None:
    """Against a search over grids of the values themselves, without and with two copies."""
    values = np.maximum(rng.laplace(size=(4000, 6)) * [1, 1, 1, 1, 1, 9], 0)
    counts = np.stack([np.histogram(column, 512, (0, 128))[0] for column in values.T])
    levels = 15

    def error(threshold: float, copies: list[int]) -> float:
        grid = ActivationGrid.from_range(0, threshold, 4, copies=copies)
        return float(np.square(grid.fake_quantize(values) - values).sum())

    def best(copies: list[int]) -> float:
        return min(error(t, copies) for t in np.linspace(1, values.max(), 300))

    copies, threshold = copies_by_error(counts, 0.25, 2, levels)
    assert copies == [5, 5]
    assert error(threshold, copies) < 1.05 * best([5, 5])
    assert error(threshold, copies) < 0.6 * best([])


def test_no_copies_where_nothing_is_clipped() -> None:
    counts = np.zeros((3, 16), np.int64)
    counts[:, 0] = 100
    assert copies_by_error(counts, 1.0, 3, 15)[0] == []


# Kernels --------------------------------------------------------------------------------------


def make_kernel(channel_map: list[int], per_channel: bool = True) -> QuantizedKernel:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (3, len(channel_map), 4)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, 4) if per_channel else np.array(0.05)
    return QuantizedKernel(codes, scale.astype(np.float32), np.array(channel_map, np.int32), 8)


@settings(deadline=None)
@given(COPIES, st.lists(st.integers(0, 3), max_size=4))
def test_a_reader_of_copies_computes_the_same(copies: list[int], splits: list[int]) -> None:
    kernel = make_kernel([0, 1, 2, 3, *splits])
    repeated = repeat_inputs(kernel, copies)
    assert repeated.channels == 4 + len(copies)
    parts = np.arange(1, 5 + len(copies))  # codes of the copies, as integers
    expected = np.einsum("c,kcf->kf", gathered(copies, parts), kernel.effective_codes())
    got = np.einsum("c,kcf->kf", parts, repeated.effective_codes())
    np.testing.assert_array_equal(got, expected)


@settings(deadline=None)
@given(COPIES, st.booleans(), st.booleans())
def test_a_maker_of_copies(copies: list[int], per_channel: bool, with_bias: bool) -> None:
    kernel = make_kernel([0, 1, 2], per_channel)
    bias = np.float32([0.3, -2, 5, 0]) if with_bias else None
    grid = ActivationGrid(8, 0.25, copies=tuple(copies))
    split, biases = split_outputs(kernel, bias, copies, grid)
    x = np.float64([1.5, -0.25, 3])
    whole = np.einsum("c,kcf->f", x, kernel.dequantize()) + (0 if bias is None else bias)
    got = np.einsum("c,kcf->f", x, split.dequantize()) + biases
    np.testing.assert_allclose(got, split_values(whole, copies, 0.25), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(split.codes, kernel.codes[..., [0, 1, 2, 3, *copies]])


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_integers_make_the_same_codes_but_near_ties(relu: bool, rng: np.random.Generator) -> None:
    """Copies made by a kernel whose bias is a whole number, as an int32 one is."""
    copies = [0, 0, 1]
    grid = ActivationGrid(8, 0.05, -128 if relu else -3, copies=tuple(copies))
    kernel = QuantizedKernel(
        np.eye(4, dtype=np.int8), np.float32([3e-4, 1e-4, 5e-4, 2e-4]), np.arange(4), 8
    )
    split, biases = split_outputs(kernel, None, copies, grid)
    sums = rng.integers(-100_000, 200_000, (5000, 4))
    channels = [0, 1, 2, 3, *copies]
    bias = np.rint(biases / split.scale.astype(np.float64)).astype(int)
    factor = split.scale.astype(np.float64) / grid.scale
    low = grid.code_min - grid.zero_point
    codes = np.rint((sums[:, channels] + bias) * factor).clip(low, grid.code_max - grid.zero_point)
    exact = sums * kernel.scale.astype(np.float64) / grid.scale
    whole = grid.quantize(exact * grid.scale).astype(int) - grid.zero_point
    differs = gathered(copies, codes.astype(int)) != whole
    # A bias is off by half of an integer at most, which is `factor / 2` of a copy's step.
    near = np.abs(exact - np.floor(exact) - 0.5) < factor[:4] * 3
    assert not (differs & ~near).any()
    assert near.mean() < 0.05


# Errors ---------------------------------------------------------------------------------------

BAD = {
    "values": lambda: split_values(np.zeros((2, 3)), [3], 0.1),
    "parts": lambda: copy_parts([1, 3], 3),
    "reader": lambda: repeat_inputs(make_kernel([0, 1, 2]), [3]),
    "grid": lambda: ActivationGrid(8, 0.1, copies=(3,)).quantize(np.zeros((2, 3))),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
def test_a_copy_of_no_channel(call: Any) -> None:
    with pytest.raises(
        ValueError, match=r"`copies` \(=\(.*3,?\)\) must be of channels from 0 to 2"
    ):
        call()


def test_a_maker_of_no_such_channel() -> None:
    with pytest.raises(ValueError, match=r"`copies` \(=\(4,\)\) must be of channels from 0 to 3"):
        split_outputs(make_kernel([0, 1, 2]), None, [4], ActivationGrid(8, 0.1))


@pytest.mark.parametrize("copies", [(-1,), (0.5,), (True,), ("a",)])
def test_what_is_no_channel(copies: Any) -> None:
    with pytest.raises(ValueError, match=r"`copies` .* must be channel numbers: integers from 0"):
        ActivationGrid(8, 0.1, copies=copies)


def test_grids_as_plain_numbers() -> None:
    grid = ActivationGrid(4, 0.1, -8, copies=(2, 2, 0))
    assert grid.to_dict()["copies"] == [2, 2, 0]
    assert ActivationGrid(**grid.to_dict()) == grid
    oracle = OracleGrid(4, 2, symmetric=True)
    assert OracleGrid(**oracle.to_dict()) == oracle


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1, "count": 0}, r"`bits` \(=1\)"),
        ({"bits": 4, "count": -1}, r"`count` \(=-1\) must be an integer from 0"),
        ({"bits": 4, "count": 0.5}, r"`count` \(=0.5\) must be an integer from 0"),
    ],
)
def test_bad_oracles(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OracleGrid(**options)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_zero_channels_get_no_copies(count: int) -> None:
    magnitudes = [0.0, 2.0, 0.0, 1.0]
    assert not set(copies_by_maximum(magnitudes, count)) & {0, 2}
    assert copies_by_count([0, 0, 0, 0], magnitudes, count) == [1, 3][:count]
    assert copies_by_maximum([0.0, 0.0], count) == copies_by_count([0, 0], [0.0, 0.0], count) == []
    counts = np.zeros((3, 16), np.int64)
    counts[:, 0] = 1000, 10, 0  # zeros
    counts[1:, 1] = 5, 5
    copies, _ = copies_by_error(counts, 1.0, count, 255)
    assert 0 not in copies
