"""Grids against exact rational arithmetic."""

import json
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocs_tf.numerics import grid
from ocs_tf.numerics.grid import ActivationGrid

ALL_BITS = range(2, 17)
FLOAT32_EPS = float(np.finfo(np.float32).eps)
FLOAT32_TINY = float(np.finfo(np.float32).tiny)
FLOAT32_MAX = float(np.finfo(np.float32).max)

quick = settings(deadline=None, max_examples=60)
bit_widths = st.integers(2, 16)
magnitudes = st.floats(1e-30, 1e30)
steps = magnitudes.map(np.float32)
floats = st.floats(-(2.0**100), 2.0**100, width=32)


def exact_code(value: float, step: float, bits: int) -> int:
    """`clip(round(value / step))` in rational arithmetic; Python rounds half to even."""
    limit = 2 ** (bits - 1) - 1
    return max(-limit, min(limit, round(Fraction(float(value)) / Fraction(float(step)))))


# Symmetric grids


@pytest.mark.parametrize("bits", ALL_BITS)
def test_symmetric_grid_has_an_odd_number_of_levels(bits: int) -> None:
    limit = grid.code_limit(bits)
    assert len(range(-limit, limit + 1)) == 2**bits - 1
    assert np.iinfo(grid.code_dtype(bits)).max >= limit
    assert np.dtype(grid.code_dtype(bits)).itemsize == (1 if bits <= 8 else 2)


@pytest.mark.parametrize("bits", [1, 17, 0, -8, 2.0, 4.5, "8", None, True])
@pytest.mark.parametrize("function", [grid.code_limit, grid.code_dtype, grid.check_bits])
def test_bits_out_of_range(function, bits) -> None:
    with pytest.raises(ValueError, match=r"`bits` \(=.*\) must be an integer from 2 to 16\."):
        function(bits)


def test_check_bits_names_argument_and_range() -> None:
    with pytest.raises(ValueError, match=r"`weight_bits` \(=9\) must be an integer from 3 to 8\."):
        grid.check_bits(9, "weight_bits", 3, 8)
    assert type(grid.check_bits(np.int64(4))) is int


@pytest.mark.parametrize("bits", ALL_BITS)
def test_step_ends_the_grid_at_the_threshold(bits: int) -> None:
    thresholds = np.array([1.0, 0.3, 1e30, 1e-30])
    step = grid.symmetric_step(thresholds, bits)
    assert step.dtype == np.float32
    np.testing.assert_allclose(step * (2.0 ** (bits - 1) - 1), thresholds, rtol=FLOAT32_EPS)


def test_step_of_a_zero_threshold_is_one() -> None:
    np.testing.assert_array_equal(grid.symmetric_step([0.0, 7.0], 4), [1.0, 7 / (2**3 - 1)])
    np.testing.assert_array_equal(grid.symmetric_step([0.0, 7.0], 4, power_of_two=True), [1, 1])


def test_step_is_never_denormal() -> None:
    for power_of_two in (False, True):
        assert grid.symmetric_step(1e-45, 8, power_of_two) == FLOAT32_TINY


@quick
@given(magnitudes, bit_widths)
def test_power_of_two_step_is_the_next_one(threshold: float, bits: int) -> None:
    step = float(grid.symmetric_step(threshold, bits, power_of_two=True))
    exact = Fraction(threshold) / (2 ** (bits - 1) - 1)
    numerator, denominator = Fraction(step).numerator, Fraction(step).denominator
    assert min(numerator, denominator) == 1
    assert max(numerator, denominator).bit_count() == 1
    # To the precision of the float64 quotient.
    assert exact * (1 - Fraction(1, 2**50)) <= step < 2 * exact * (1 + Fraction(1, 2**50))


@pytest.mark.parametrize("exponent", [-20, -1, 0, 1, 20])
@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_power_of_two_step_stays(bits: int, exponent: int) -> None:
    threshold = (2 ** (bits - 1) - 1) * 2.0**exponent
    assert grid.symmetric_step(threshold, bits, power_of_two=True) == 2.0**exponent


@pytest.mark.parametrize("threshold", [-1.0, np.nan, np.inf, [1.0, -0.5]], ids=str)
def test_step_refuses(threshold) -> None:
    with pytest.raises(ValueError, match=r"`threshold` \(=.*\) must be finite and not negative\."):
        grid.symmetric_step(threshold, 8)


@pytest.mark.parametrize(
    ("threshold", "bits", "power_of_two"), [(1e300, 8, False), (FLOAT32_MAX, 2, True)]
)
def test_step_refuses_what_float32_cannot_hold(threshold, bits, power_of_two) -> None:
    with pytest.raises(ValueError, match=r"`threshold` \(=.*\) is too large for a float32 step\."):
        grid.symmetric_step(threshold, bits, power_of_two)


def test_halves_round_to_even_codes() -> None:
    values = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    np.testing.assert_array_equal(grid.quantize(values, 1.0, 8), [-2, -2, 0, 0, 2, 2, 4])


@quick
@given(st.lists(floats, min_size=1, max_size=20), bit_widths, st.integers(-90, 90))
def test_codes_equal_rational_arithmetic(values: list[float], bits: int, exponent: int) -> None:
    # A power of two divides exactly, so that no rounding precedes that of the code.
    step = np.float32(2.0**exponent)
    expected = [exact_code(v, step, bits) for v in values]
    np.testing.assert_array_equal(grid.quantize(np.float32(values), step, bits), expected)


@quick
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), bit_widths, steps)
def test_codes_are_the_nearest(fractions: list[float], bits: int, step: np.float32) -> None:
    limit = 2 ** (bits - 1) - 1
    values = np.array(fractions) * float(step) * limit  # nothing clips
    error = grid.quantize(values, np.float64(step), bits) * np.float64(step) - values
    assert np.all(np.abs(error) <= float(step) * (0.5 + limit * 1e-15))


@quick
@given(bit_widths, steps)
def test_every_code_round_trips(bits: int, step: np.float32) -> None:
    codes = np.arange(-grid.code_limit(bits), grid.code_limit(bits) + 1)
    values = grid.dequantize(codes, step)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(grid.quantize(values, step, bits), codes)
    np.testing.assert_array_equal(grid.fake_quantize(values, step, bits), values)
    np.testing.assert_array_equal(values, -values[::-1])
    assert values[len(values) // 2] == 0


@quick
@given(st.lists(floats, min_size=1, max_size=20), bit_widths, steps, st.integers(-10, 10))
def test_codes_do_not_change_when_all_is_scaled(values, bits, step, exponent) -> None:
    scale = np.float32(2.0**exponent)
    codes = grid.quantize(np.float64(values), np.float64(step), bits)
    scaled = grid.quantize(np.float64(values) * scale, np.float64(step) * scale, bits)
    np.testing.assert_array_equal(codes, scaled)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_outliers_clip_symmetrically(bits: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = grid.quantize(np.float32([-3e38, -2, 0, 2, 3e38]), np.float32(1e-5), bits)
    limit = 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(codes, [-limit, -limit, 0, limit, limit])
    assert codes.dtype == (np.int8 if bits <= 8 else np.int16)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_full_range_has_one_more_negative_code(bits: int) -> None:
    limit = 2 ** (bits - 1) - 1
    values = np.array([-1e9, -limit - 1, -limit, limit, limit + 1])
    codes = grid.quantize(values, 1.0, bits, full_range=True)
    np.testing.assert_array_equal(codes, [-limit - 1, -limit - 1, -limit, limit, limit])
    assert codes.dtype == grid.code_dtype(bits)


def test_one_step_per_column() -> None:
    codes = grid.quantize([[1.0, 1.0], [2.0, 2.0]], np.float32([1.0, 0.5]), 8)
    np.testing.assert_array_equal(codes, [[1, 2], [2, 4]])


def test_scalars_integers_and_empty_arrays() -> None:
    assert grid.quantize(3.0, 1.0, 8) == 3
    assert grid.quantize(3.0, 1.0, 8).shape == ()
    np.testing.assert_array_equal(grid.quantize(np.array([4, -4]), 2, 8), [2, -2])
    assert grid.quantize(np.empty((0, 3)), 1.0, 8).shape == (0, 3)


# Activation grids

RANGES = {
    "both": (-1.0, 3.0),
    "from-zero": (0.0, 6.0),
    "positive": (2.0, 6.0),
    "negative": (-6.0, -2.0),
    "to-zero": (-6.0, 0.0),
    "lopsided": (-3.0, 1e-3),
    "empty": (0.0, 0.0),
    "constant": (5.0, 5.0),
    "huge": (-1e30, 2e30),
    "denormal": (-1e-42, 1e-40),
}
each_range = pytest.mark.parametrize(("low", "high"), RANGES.values(), ids=RANGES)
each_kind = pytest.mark.parametrize(
    ("symmetric", "power_of_two"),
    [(False, False), (False, True), (True, False), (True, True)],
    ids=["asymmetric", "asymmetric-shift", "symmetric", "symmetric-shift"],
)


@each_range
@each_kind
@pytest.mark.parametrize("bits", ALL_BITS)
def test_activation_grid(bits, symmetric, power_of_two, low, high) -> None:
    g = ActivationGrid.from_range(low, high, bits, symmetric, power_of_two)
    assert g.code_max - g.code_min == 2**bits - 1 - symmetric
    assert g.scale == float(np.float32(g.scale)) >= FLOAT32_TINY

    # Zero is exact.
    assert g.quantize(0.0) == g.zero_point
    assert g.dequantize(g.zero_point) == g.fake_quantize(0.0) == 0.0

    # The range, widened to zero, is covered.
    wide_low, wide_high = min(low, 0.0), max(high, 0.0)
    slack = g.scale * (2**bits * FLOAT32_EPS + (0 if symmetric else 0.5))
    assert g.minimum <= wide_low + slack
    assert g.maximum >= wide_high - slack

    # And the grid is not wider than it must be.
    levels = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    width = max(-wide_low, wide_high) if symmetric else wide_high - wide_low
    wanted = max(width / levels, FLOAT32_TINY) if width else 1.0
    if power_of_two:
        assert np.frexp(g.scale)[0] == 0.5
        assert wanted <= g.scale < 2 * wanted
    else:
        assert g.scale == pytest.approx(wanted, rel=FLOAT32_EPS)

    # Every code stands for one value.
    codes = np.arange(g.code_min, g.code_max + 1)
    values = g.dequantize(codes)
    np.testing.assert_array_equal(g.quantize(values), codes)
    np.testing.assert_array_equal(g.fake_quantize(values), values)
    np.testing.assert_allclose([g.minimum, g.maximum], values[[0, -1]], rtol=FLOAT32_EPS)

    # What lies outside clips.
    outside = g.quantize(np.float32([-3e38, 3e38]))
    np.testing.assert_array_equal(outside, [g.code_min, g.code_max])
    assert outside.dtype == grid.code_dtype(bits)


@each_kind
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_activations_move_by_half_a_step_at_most(bits, symmetric, power_of_two) -> None:
    g = ActivationGrid.from_range(-1.0, 3.0, bits, symmetric, power_of_two)
    values = np.linspace(g.minimum, g.maximum, 10001)
    error = np.abs(g.fake_quantize(values) - values)
    assert error.max() <= g.scale / 2 + 4 * FLOAT32_EPS


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_activation_codes_in_any_dtype(dtype) -> None:
    g = ActivationGrid.from_range(0.0, 2040.0, 8)  # a scale of 8
    values = np.arange(0, 2041, 3).astype(dtype)
    expected = [round(Fraction(int(v), 8)) - 128 for v in values]
    np.testing.assert_array_equal(g.quantize(values), expected)


def test_half_precision_activations_get_full_precision_codes() -> None:
    g = ActivationGrid.from_range(0.0, 2000.0, 16)
    values = np.arange(0, 2001, 7).astype(np.float16)  # exact, but 2^16 codes are not
    exact = [float(Fraction(float(v)) / Fraction(g.scale)) - 2**15 for v in values]
    assert np.abs(g.quantize(values) - np.array(exact)).max() <= 0.51


def test_zero_point_of_the_tflite_formula() -> None:
    g = ActivationGrid.from_range(-1.0, 3.0, 8)
    assert g.scale == np.float32((3 - -1) / (2**8 - 1))
    assert g.zero_point == round(-128 + 1 / (4 / 255))


@pytest.mark.parametrize("bits", ALL_BITS)
def test_zero_point_of_one_sided_ranges_is_an_end(bits: int) -> None:
    assert ActivationGrid.from_range(1.0, 6.0, bits).zero_point == -(2 ** (bits - 1))
    assert ActivationGrid.from_range(-6.0, -1.0, bits).zero_point == 2 ** (bits - 1) - 1


@quick
@given(floats, floats, bit_widths, st.booleans(), st.booleans())
def test_activation_grid_survives_json(a, b, bits, symmetric, power_of_two) -> None:
    low, high = np.float32(min(a, b)), np.float32(max(a, b))
    g = ActivationGrid.from_range(low, high, bits, symmetric, power_of_two)
    assert ActivationGrid(**json.loads(json.dumps(g.to_dict()))) == g


def test_numpy_numbers_become_plain_ones() -> None:
    g = ActivationGrid(np.int64(8), np.float32(0.1), np.int8(-3))
    assert g == ActivationGrid(8, float(np.float32(0.1)), -3)
    assert [type(v) for v in g.to_dict().values()] == [int, float, int, bool, list]


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e300, 1e-50])
def test_activation_grid_refuses_scale(scale: float) -> None:
    with pytest.raises(ValueError, match=r"`scale` \(=.*\) must be finite and positive"):
        ActivationGrid(8, scale)


@pytest.mark.parametrize("zero_point", [128, -129, 0.5])
def test_activation_grid_refuses_zero_point(zero_point) -> None:
    with pytest.raises(
        ValueError, match=r"`zero_point` \(=.*\) must be an integer from -128 to 127"
    ):
        ActivationGrid(8, 1.0, zero_point)


def test_symmetric_activation_grid_has_no_zero_point() -> None:
    with pytest.raises(ValueError, match=r"`zero_point` \(=1\) must be an integer from 0 to 0"):
        ActivationGrid(8, 1.0, 1, symmetric=True)


def test_activation_grid_refuses_bits() -> None:
    for make in (lambda b: ActivationGrid(b, 1.0), lambda b: ActivationGrid.from_range(0, 1, b)):
        with pytest.raises(ValueError, match=r"`bits` \(=17\) must be an integer from 2 to 16\."):
            make(17)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (np.nan, 1.0), (0.0, np.nan), (0, np.inf)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_activation_grid_refuses_range(low: float, high: float, symmetric: bool) -> None:
    with pytest.raises(
        ValueError, match=r"`minimum` \(=.*\) and `maximum` \(=.*\) must be finite and ordered\."
    ):
        ActivationGrid.from_range(low, high, 8, symmetric)


def test_activation_grid_refuses_what_float32_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"is too wide for a float32 scale\."):
        ActivationGrid.from_range(-1e300, 1e300, 8)
    with pytest.raises(ValueError, match=r"is too large for a float32 step\."):
        ActivationGrid.from_range(-1e300, 1e300, 8, symmetric=True)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("largest", [1e38, 3.3e38, float(np.finfo(np.float32).max)])
def test_the_largest_floats_stay_finite(bits: int, largest: float) -> None:
    values = np.float32([-largest, 0, largest / 3, largest])
    step = grid.symmetric_step(np.float32(largest), bits)
    with np.errstate(over="raise"):
        assert np.isfinite(grid.fake_quantize(values, step, bits)).all()
        for low in (-largest, -largest / 3, 0.0):
            for symmetric in (False, True):
                made = ActivationGrid.from_range(low, largest, bits, symmetric)
                assert np.isfinite(made.fake_quantize(values)).all()
