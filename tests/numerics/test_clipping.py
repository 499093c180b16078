"""Clip thresholds against plain re-implementations, defining equations and exhaustive search."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from ocs_tf.numerics import CLIP_METHODS, clip_threshold, clipping, optimal_thresholds
from ocs_tf.numerics.grid import code_limit

quick = settings(deadline=None, max_examples=25)
SEARCHING = [m for m in CLIP_METHODS if m != "none"]
# ACIQ's closed form knows nothing of the largest magnitude and may lie above it.
WITHIN_MAXIMUM = [m for m in CLIP_METHODS if m != "aciq"]
each_side = pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])

DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "student": lambda rng, n: rng.standard_t(3, size=n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, size=n),
    "off-centre": lambda rng, n: rng.normal(0.3, 1.0, size=n),
}
each_distribution = pytest.mark.parametrize("draw", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


def sample(draw, n=3000, one_sided=False, seed=0):
    values = draw(np.random.default_rng(seed), n).astype(np.float32)
    return np.abs(values) if one_sided else values


def squared_error(values, threshold, bits, one_sided=False, weights=1.0):
    """Float64, straight from the definition."""
    limit = 2**bits - 1 if one_sided else 2 ** (bits - 1) - 1
    step = threshold / limit
    x = np.asarray(values, np.float64)
    codes = np.clip(np.round(x / step), 0 if one_sided else -limit, limit)
    return float((weights * (x - codes * step) ** 2).sum())


def dense_scan(values, bits, one_sided=False, weights=1.0):
    """The least squared error of 2000 evenly and 100 geometrically spaced thresholds."""
    fractions = np.concatenate([np.linspace(1 / 2000, 1, 2000), np.geomspace(1e-4, 1, 100)])
    thresholds = np.abs(values).max().astype(np.float64) * fractions
    return min(squared_error(values, t, bits, one_sided, weights) for t in thresholds)


# The methods, one by one


@each_side
def test_none_is_the_largest_magnitude(one_sided) -> None:
    values = [0.0, 2.0, 3.5] if one_sided else [-3.5, 2.0, 0.0]
    assert clip_threshold(values, 4, "none", one_sided=one_sided) == 3.5


@pytest.mark.parametrize("percentile", [0.0, 25.0, 90.0, 99.99, 100.0])
def test_percentile_interpolates_the_sorted_magnitudes(percentile) -> None:
    values = sample(DISTRIBUTIONS["normal"], 101)
    ordered = sorted(abs(float(v)) for v in values)
    position = percentile / 100 * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    expected = ordered[below] + (position - below) * (ordered[above] - ordered[below])
    actual = clip_threshold(values, 4, "percentile", percentile=percentile)
    assert actual == pytest.approx(expected, rel=1e-6)


def test_percentile_that_falls_on_a_zero_clips_nothing() -> None:
    assert clip_threshold([0.0] * 99 + [2.0], 4, "percentile", percentile=50) == 2.0


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@each_side
@each_distribution
def test_mse(draw, one_sided, bits) -> None:
    values = sample(draw, one_sided=one_sided)
    largest = float(np.abs(values).max())
    limit = 2**bits - 1 if one_sided else 2 ** (bits - 1) - 1
    counts, edges = np.histogram(values.astype(np.float64), bins=201)
    centers = [(a + b) / 2 for a, b in itertools.pairwise(edges)]

    def error(threshold: float) -> float:
        step, total = threshold / limit, 0.0
        for count, center in zip(counts, centers, strict=True):
            code = round(center / step)
            code = max(0 if one_sided else -limit, min(limit, code))
            total += count * (center - code * step) ** 2
        return total

    candidates = [i / 100 * largest for i in range(1, 100)]
    errors = [error(t) for t in candidates]
    actual = clip_threshold(values, bits, "mse", one_sided=one_sided)
    nearest = int(np.argmin(np.abs(np.array(candidates) - actual)))
    assert actual == pytest.approx(candidates[nearest], rel=1e-6)
    assert errors[nearest] <= min(errors) * (1 + 1e-4)


@pytest.mark.parametrize("bits", range(2, 10))
def test_aciq_constants_solve_their_equation(bits) -> None:
    """With `a^2 / (3 m)` rounding error, the expected squared error is least at the constants.

    The derivative of the clipping error `2 int_a^inf (x - a)^2 p(x) dx` is there opposite to that
    of the rounding error. `m = 8^(b-1) / (2^(b-1) - 1)` is the paper's adjustment of ACIQ's `4^b`
    to `2^b - 1` levels.
    """
    m = 8 ** (bits - 1) / (2 ** (bits - 1) - 1)
    a = clipping._ACIQ_NORMAL[bits - 2]
    assert 2 * a / (3 * m) == pytest.approx(
        4 * (stats.norm.pdf(a) - a * stats.norm.sf(a)), rel=1e-5
    )
    a = clipping._ACIQ_LAPLACE[bits - 2]
    assert 2 * a / (3 * m) == pytest.approx(2 * np.exp(-a), rel=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@each_side
@each_distribution
def test_aciq(draw, one_sided, bits) -> None:
    values = sample(draw, one_sided=one_sided).astype(np.float64)
    n = len(values)
    # One-sided values are half of a symmetric distribution.
    whole = np.concatenate([-values, values]) if one_sided else values
    gaussian_range = np.ptp(whole) * 0.5 * 0.35 * (1 + np.sqrt(np.pi * np.log(4)))
    sigma = gaussian_range / np.sqrt(2 * np.log(n))
    deviation = np.mean(np.abs(whole - whole.mean()))
    normal = clipping._ACIQ_NORMAL[bits - 2 + one_sided] * sigma
    laplace = clipping._ACIQ_LAPLACE[bits - 2 + one_sided] * deviation
    actual = clip_threshold(values, bits, "aciq", one_sided=one_sided)
    assert min(abs(actual / normal - 1), abs(actual / laplace - 1)) < 1e-9

    # Of the two, the one of less error over a histogram, whose magnitudes beyond it clip to it.
    largest = np.abs(values).max()
    counts, edges = np.histogram(values, bins=101, range=(-largest, largest))
    centers = np.clip(edges[:-1] + largest / 101, 0 if one_sided else -np.inf, None)
    errors = [
        sum(
            n * squared_error([c], t, bits, one_sided) for n, c in zip(counts, centers, strict=True)
        )
        for t in (normal, laplace)
    ]
    chosen = int(abs(actual / laplace - 1) < 1e-9)
    assert errors[chosen] <= min(errors) * (1 + 1e-3)


def kl_divergences(values, bits, one_sided):
    """MXNet's `_get_optimal_threshold`, written bin by bin; `{threshold: divergence}`."""
    counts, edges = np.histogram(
        values, bins=1001, range=(-np.abs(values).max(), np.abs(values).max())
    )
    levels = 2**bits - 1
    if one_sided:
        counts, levels = counts + counts[::-1], 2 * (2**bits - 1) + 1

    def smooth(p):
        zeros, others = (p == 0).sum(), (p != 0).sum()
        if not others or 1e-4 * zeros / others >= 1.0:
            return None
        out = p.astype(np.float32)
        return (
            out
            + 1e-4 * (p == 0).astype(np.float32)
            - 1e-4 * zeros / others * (p != 0).astype(np.float32)
        )

    divergences = {}
    for half in range(levels // 2, 501):
        start, stop = 500 - half, 500 + half + 1
        inner = counts[start:stop]
        p = inner.copy()
        p[0] += counts[:start].sum()
        p[-1] += counts[stop:].sum()
        merged = len(inner) // levels
        q = np.zeros(len(inner))
        for level in range(levels):
            first = level * merged
            last = -1 if level == levels - 1 else first + merged
            total = inner[first:].sum() if level == levels - 1 else inner[first:last].sum()
            occupied = (inner[first:last] != 0).sum()
            if occupied:
                q[first:last] = total / occupied
        q[inner == 0] = 0
        p, q = smooth(p), smooth(q)
        unusable = p is None or q is None
        divergences[float(edges[stop])] = np.inf if unusable else stats.entropy(p, q)
    return divergences


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 6])
@each_side
@each_distribution
def test_kl(draw, one_sided, bits) -> None:
    values = sample(draw, one_sided=one_sided)
    divergences = kl_divergences(values, bits, one_sided)
    actual = clip_threshold(values, bits, "kl", one_sided=one_sided)
    nearest = min(divergences, key=lambda t: abs(t - actual))
    assert actual == pytest.approx(nearest, rel=1e-6)
    assert divergences[nearest] <= min(divergences.values()) * (1 + 1e-5)


# Optimal thresholds


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("n", [9, 64, 2000])
@each_side
@pytest.mark.parametrize("draw", list(DISTRIBUTIONS.values())[:3], ids=list(DISTRIBUTIONS)[:3])
def test_optimal_is_as_good_as_a_dense_scan(draw, one_sided, n, bits) -> None:
    values = sample(draw, n, one_sided, seed=bits)
    threshold = optimal_thresholds(values[:, None], bits, one_sided=one_sided)[0]
    assert threshold == clip_threshold(values, bits, "optimal", one_sided=one_sided)
    error = squared_error(values, threshold, bits, one_sided)
    # Few values can be hit exactly, to float32's rounding of their own squares.
    rounding = (values.astype(np.float64) ** 2).sum() * 1e-12
    assert error <= 1.005 * dense_scan(values, bits, one_sided) + rounding


@pytest.mark.parametrize(("n", "seed"), [(3000, 3), (5000, 10), (8000, 10)])
def test_optimal_looks_between_the_thresholds_it_scanned_first(n, seed) -> None:
    """At 8 bits the error is rugged even for thousands of values."""
    values = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    thresholds = np.abs(values).max().astype(np.float64) * np.linspace(0.3, 1, 700)
    best = min(squared_error(values, t, 8) for t in thresholds)
    assert squared_error(values, optimal_thresholds(values[:, None], 8)[0], 8) <= 1.005 * best


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
@each_side
def test_optimal_of_weighted_columns(one_sided, bits) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(300, 4)) * [1, 1e-3, 1e3, 1]
    values = (np.abs(values) if one_sided else values).astype(np.float32)
    per_row = rng.exponential(size=300)
    per_value = rng.exponential(size=(300, 4))
    for weights in (per_row, per_value):
        thresholds = optimal_thresholds(values, bits, weights=weights, one_sided=one_sided)
        assert thresholds.shape == (4,)
        for column, threshold in enumerate(thresholds):
            x, w = values[:, column], np.broadcast_to(weights.T, (4, 300))[column]
            error = squared_error(x, threshold, bits, one_sided, w)
            assert error <= 1.005 * dense_scan(x, bits, one_sided, w)


def test_weights_matter() -> None:
    values = np.array([1.0] * 50 + [10.0], np.float32)[:, None]
    ignored, kept = np.r_[np.ones(50), 0.0], np.r_[np.ones(50), 1e6]
    assert optimal_thresholds(values, 2, weights=ignored)[0] == pytest.approx(1.0)
    assert optimal_thresholds(values, 2, weights=kept)[0] == pytest.approx(10.0, rel=1e-3)


@pytest.mark.parametrize("outlier", [30, 120, 200])
@pytest.mark.parametrize("bits", [2, 4])
def test_optimal_clips_a_lone_outlier_far_away(bits, outlier) -> None:
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    values[7] = outlier
    threshold = optimal_thresholds(values[:, None], bits)[0]
    thresholds = np.geomspace(1.0, outlier, 200)
    best = min(squared_error(values, t, bits) for t in thresholds)
    assert squared_error(values, threshold, bits) <= 1.005 * best


def test_optimal_columns_are_independent_and_zeros_stay_zero() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    values[:, 1] = 0
    thresholds = optimal_thresholds(values, 4)
    assert thresholds[1] == 0
    for column in (0, 2):
        assert thresholds[column] == optimal_thresholds(values[:, [column]], 4)[0]


def test_optimal_reads_large_inputs_in_blocks() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(clipping._BLOCK_SIZE // 2 + 5, 5)).astype(np.float32)
    values[-1] = 9.0  # only the last block knows the maxima
    thresholds = optimal_thresholds(values, 3)
    for column, threshold in zip(values.T, thresholds, strict=True):
        best = min(squared_error(column, t, 3) for t in np.linspace(1, 9, 200))
        assert squared_error(column, threshold, 3) <= 1.001 * best


@pytest.mark.slow
@quick
@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32)),
    st.integers(2, 8),
    st.booleans(),
)
def test_optimal_is_never_worse_than_another_method(values, bits, one_sided) -> None:
    values = np.abs(values) if one_sided else values
    values[np.abs(values) < 1e-20] = 0  # whose squares are denormal
    if not values.any():
        return
    largest = np.abs(values).max()
    thresholds = {m: clip_threshold(values, bits, m, one_sided=one_sided) for m in CLIP_METHODS}
    errors = {
        method: squared_error(values, threshold, bits, one_sided)
        for method, threshold in thresholds.items()
        if threshold <= largest  # a wider grid may happen to hit a few values better
    }
    rounding = (values.astype(np.float64) ** 2).sum() * 1e-12
    assert errors["optimal"] <= 1.005 * min(errors.values()) + rounding, errors


# What holds for every method


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("method", CLIP_METHODS)
@each_side
@each_distribution
def test_threshold_bounds(draw, one_sided, method, bits) -> None:
    values = sample(draw, one_sided=one_sided)
    threshold = clip_threshold(values, bits, method, one_sided=one_sided)
    assert type(threshold) is float
    assert threshold > 0
    if method in WITHIN_MAXIMUM:
        assert threshold <= np.abs(values).max() * (1 + 1e-6)


@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("method", [m for m in CLIP_METHODS if m != "aciq"])
@each_side
def test_wide_grids(method, one_sided, bits) -> None:
    values = sample(DISTRIBUTIONS["normal"], 500, one_sided)
    threshold = clip_threshold(values, bits, method, one_sided=one_sided)
    assert 0.5 * values.max() < threshold <= np.abs(values).max() * (1 + 1e-6)


@pytest.mark.parametrize("method", CLIP_METHODS)
@each_side
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 4)], ids=str)
def test_zeros_have_threshold_zero(shape, one_sided, method) -> None:
    assert clip_threshold(np.zeros(shape), 4, method, one_sided=one_sided) == 0.0


@pytest.mark.parametrize("method", CLIP_METHODS)
@each_side
@pytest.mark.parametrize("value", [0.1, 3.0, 1e30, 1e-30, 1e-37])
@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_constants_survive(sign, n, value, one_sided, method) -> None:
    if one_sided and sign < 0:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threshold = clip_threshold(np.full(n, sign * value), 4, method, one_sided=one_sided)
    # The histogram behind `mse` knows 0.99 of the maximum at most; ACIQ sees a half distribution.
    lowest, highest = {"mse": (0.9, 1), "aciq": (0.5, 8)}.get(method, (1, 1))
    assert lowest * (1 - 1e-6) <= threshold / value <= highest * (1 + 1e-6)


@pytest.mark.parametrize("exponent", [-100, -3, 1, 90])
@pytest.mark.parametrize("method", CLIP_METHODS)
@each_side
def test_scaling_by_a_power_of_two_scales_the_threshold(one_sided, method, exponent) -> None:
    values = sample(DISTRIBUTIONS["laplace"], one_sided=one_sided)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threshold = clip_threshold(values, 4, method, one_sided=one_sided)
        scaled = clip_threshold(values * np.float32(2.0**exponent), 4, method, one_sided=one_sided)
    assert scaled == threshold * 2.0**exponent


@pytest.mark.parametrize("method", CLIP_METHODS)
def test_float64_range(method) -> None:
    values = sample(DISTRIBUTIONS["laplace"]).astype(np.float64)
    threshold = clip_threshold(values, 4, method)
    assert clip_threshold(values * 2.0**900, 4, method) == threshold * 2.0**900


@pytest.mark.parametrize("method", CLIP_METHODS)
def test_order_and_layout_do_not_matter(method) -> None:
    values = sample(DISTRIBUTIONS["laplace"], 600)
    threshold = clip_threshold(values, 4, method)
    shuffled = np.random.default_rng(1).permutation(values).reshape(20, 30).T
    assert clip_threshold(shuffled, 4, method) == pytest.approx(threshold, rel=1e-6)


@pytest.mark.parametrize("method", CLIP_METHODS)
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, np.float64])
def test_any_dtype(dtype, method) -> None:
    values = np.array([-128, 127, 5, 0, -60, 33, 8, -9] * 4).astype(dtype)
    expected = clip_threshold(values.astype(np.float32), 4, method)
    assert clip_threshold(values, 4, method) == pytest.approx(expected, rel=1e-6)
    assert clip_threshold(values, 4, "none") == 128


def test_the_input_is_not_modified() -> None:
    values = sample(DISTRIBUTIONS["normal"], 100)
    before = values.copy()
    for method in CLIP_METHODS:
        clip_threshold(values, 4, method)
    np.testing.assert_array_equal(values, before)


# Errors


@pytest.mark.parametrize("method", CLIP_METHODS)
def test_refuses_values(method) -> None:
    with pytest.raises(ValueError, match=r"`values` must not be empty\."):
        clip_threshold([], 4, method)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=r"`values` must be finite\."):
            clip_threshold([0.0, bad], 4, method)
    with pytest.raises(
        ValueError, match=r"`values` must not be negative for a one-sided grid, but holds -0\.5\."
    ):
        clip_threshold([1.0, -0.5], 4, method, one_sided=True)


@pytest.mark.parametrize("method", CLIP_METHODS)
@pytest.mark.parametrize("bits", [1, 17, 4.0])
@pytest.mark.parametrize("values", [[0.0], [1.0]], ids=["zero", "one"])
def test_refuses_bits(values, bits, method) -> None:
    with pytest.raises(ValueError, match=r"`bits.*` \(=.*\) must be an integer from 2 to"):
        clip_threshold(values, bits, method)


def test_aciq_knows_8_bits_at_most() -> None:
    with pytest.raises(
        ValueError, match=r"`bits of method 'aciq'` \(=9\) must be an integer from 2 to 8\."
    ):
        clip_threshold([1.0], 9, "aciq")


def test_refuses_method() -> None:
    choices = "none, mse, aciq, kl, percentile, optimal"
    with pytest.raises(ValueError, match=rf"`method` \(='best'\) must be one of {choices}\."):
        clip_threshold([1.0], 4, "best")
    with pytest.raises(ValueError, match=rf"`clip` \(='best'\) must be one of {choices}\."):
        clipping.check_method("best", name="clip")


@pytest.mark.parametrize("percentile", [-1, 100.1, np.nan])
def test_refuses_percentile(percentile) -> None:
    with pytest.raises(ValueError, match=r"`percentile` \(=.*\) must lie in 0 \.\. 100\."):
        clip_threshold([1.0], 4, "percentile", percentile=percentile)


def test_optimal_thresholds_refuses() -> None:
    values = np.ones((3, 2))
    for shape in [(3,), (0, 2), (3, 0), (2, 2, 2)]:
        with pytest.raises(ValueError, match=r"`values` must be \[n, F\] and not empty, but its"):
            optimal_thresholds(np.ones(shape), 4)
    with pytest.raises(ValueError, match=r"`values` must be finite\."):
        optimal_thresholds([[np.nan], [1.0]], 4)
    for weights in (np.ones(2), np.ones((2, 3)), np.ones((3, 3)), 1.0):
        with pytest.raises(ValueError, match=r"`weights` must be of shape \(3,\) or \(3, 2\), but"):
            optimal_thresholds(values, 4, weights=weights)
    with pytest.raises(ValueError, match=r"`bits` \(=1\) must be an integer from 2 to 16\."):
        optimal_thresholds(values, 1)


def test_levels_of_a_grid() -> None:
    for bits in range(2, 17):
        two_sided = clipping._Levels.of(bits, one_sided=False)
        assert (two_sided.smallest, two_sided.limit) == (-code_limit(bits), code_limit(bits))
        one_sided = clipping._Levels.of(bits, one_sided=True)
        assert (one_sided.smallest, one_sided.limit) == (0, 2**bits - 1)
        assert two_sided.bits == one_sided.bits == bits
