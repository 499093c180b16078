"""Quantized kernels against exact codes, their own guarantees and plain re-implementations."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ocs_tf.numerics import (
    CLIP_METHODS,
    GRANULARITIES,
    QuantizedKernel,
    clip_threshold,
    copy_count,
    quantize_kernel,
    split_channels,
    sqnr_db,
)
from ocs_tf.numerics.quantized_kernel import WEIGHT_CLIPS, check_kernel, choose_threshold, encode
from ocs_tf.numerics.splitting import choose_copies, copies_of_map

quick = settings(deadline=None, max_examples=50)
bit_widths = st.integers(2, 8)
ratios = st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0])
kernels = st.one_of(
    st.tuples(st.integers(1, 7), st.integers(1, 4)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 3)),
).flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)))
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)
each_bits = pytest.mark.parametrize("bits", range(2, 9))

# Float32 rounding of `w / step`, where a code of 127 is the largest.
ROUNDING = 127 * 4 * float(np.finfo(np.float32).eps)


def outlier_kernel(seed=0, shape=(3, 3, 32, 16)):
    """Laplace weights whose input channels differ in scale: what splitting is for."""
    rng = np.random.default_rng(seed)
    spread = np.exp(0.5 * rng.normal(size=(shape[-2], 1)))
    return (rng.laplace(size=shape) * spread).astype(np.float32)


def in_steps(q: QuantizedKernel, kernel):
    return kernel.astype(np.float64) / q.scale.astype(np.float64)


# Quantization-aware kernels


@quick
@given(kernels, bit_widths, ratios, st.sampled_from(GRANULARITIES), st.booleans())
def test_split_weights_keep_the_error_of_one_step(kernel, bits, ratio, granularity, shift) -> None:
    """Unclipped, `|effective value - w| <= step / 2`, however often a channel was split."""
    kernel = np.where(np.abs(kernel) < 1e-30, 0, kernel)
    q = quantize_kernel(kernel, bits, ratio, granularity=granularity, power_of_two=shift)
    error = q.effective_codes() - in_steps(q, kernel)
    assert np.abs(error).max() <= 0.5 + ROUNDING


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3, 1.0])
@each_bits
@each_granularity
def test_nothing_clips_without_a_clip_method(granularity, bits, ratio) -> None:
    for seed in range(5):
        kernel = outlier_kernel(seed)
        q = quantize_kernel(kernel, bits, ratio, granularity=granularity)
        assert np.abs(q.effective_codes() - in_steps(q, kernel)).max() <= 0.5 + ROUNDING


@quick
@given(kernels, bit_widths, st.integers(0, 10), st.sampled_from([0.25, 1.0, 7.0, 0.1]))
def test_effective_codes_are_codes_of_the_whole_weight(kernel, bits, count, step) -> None:
    """On the widened grid: rounded to nearest, but for exact ties (and float rounding)."""
    step = np.float32(step)
    q = encode(kernel, bits, np.asarray(step), choose_copies(kernel, count, step))
    limit = 2 ** (bits - 1) - 1
    effective, codes = q.effective_codes(), np.abs(q.codes.astype(int))
    at_limit = {
        int(c)
        for c, code in zip(q.channel_map, codes.swapaxes(0, -2), strict=True)
        if code.max() == limit
    }
    for index, w in np.ndenumerate(kernel):
        if index[-2] in at_limit:  # may have clipped
            continue
        exact = Fraction(float(w)) / Fraction(float(step))
        distance_to_tie = abs(exact - Fraction(1, 2) - round(exact - Fraction(1, 2)))
        if distance_to_tie > ROUNDING:
            assert effective[index] == round(exact)
        else:
            assert abs(effective[index] - exact) <= Fraction(1, 2) + Fraction(ROUNDING)


@quick
@given(
    kernels,
    bit_widths,
    ratios,
    st.sampled_from(GRANULARITIES),
    st.sampled_from(CLIP_METHODS),
    st.booleans(),
)
def test_form(kernel, bits, ratio, granularity, clip, aware) -> None:
    q = quantize_kernel(kernel, bits, ratio, clip, granularity, quantization_aware=aware)
    *spatial, channels, columns = kernel.shape
    copies = copy_count(ratio, channels) if kernel.any() else 0
    assert q.codes.dtype == np.int8
    assert q.codes.shape == (*spatial, channels + copies, columns)
    assert np.abs(q.codes.astype(int)).max() <= 2 ** (bits - 1) - 1
    assert q.scale.dtype == np.float32
    assert q.scale.shape == ((columns,) if granularity == "channel" else ())
    assert np.all(q.scale > 0)
    assert q.channel_map.dtype == np.int32
    assert (q.channels, q.splits, q.granularity, q.bits) == (channels, copies, granularity, bits)
    np.testing.assert_array_equal(q.threshold, q.scale * np.float32(2 ** (bits - 1) - 1))

    # Copies summed one by one, in float64.
    summed = np.zeros(kernel.shape)
    for i, channel in enumerate(q.channel_map):
        summed[..., channel, :] += q.codes[..., i, :]
    np.testing.assert_array_equal(q.effective_codes(), summed)
    assert q.effective_codes().dtype == np.int32
    np.testing.assert_allclose(q.effective_kernel(), summed * q.scale, rtol=1e-6)
    np.testing.assert_allclose(q.dequantize(), q.codes * q.scale.astype(float), rtol=1e-6)
    assert q.effective_kernel().dtype == q.dequantize().dtype == np.float32


@each_bits
def test_without_splits_it_is_the_base_quantizer(bits) -> None:
    """Zhao et al., Eq. 1, in float64."""
    kernel = outlier_kernel()
    limit = 2 ** (bits - 1) - 1
    largest = np.abs(kernel.astype(np.float64)).max()
    expected = np.round(kernel * (limit / largest)) * (largest / limit)
    q = quantize_kernel(kernel, bits)
    np.testing.assert_allclose(q.effective_kernel(), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 8])
def test_channel_granularity_is_one_quantizer_per_output_channel(bits) -> None:
    kernel = outlier_kernel()
    for clip in CLIP_METHODS:
        q = quantize_kernel(kernel, bits, 0.0, clip, "channel")
        for f in range(kernel.shape[-1]):
            alone = quantize_kernel(kernel[..., f : f + 1], bits, 0.0, clip)
            assert q.scale[f] == alone.scale
            np.testing.assert_array_equal(q.codes[..., f : f + 1], alone.codes)


@each_granularity
def test_a_plan_replays_to_the_same_codes(granularity) -> None:
    kernel = outlier_kernel()
    for bits in (2, 4, 8):
        q = quantize_kernel(kernel, bits, 0.3, granularity=granularity)
        again = encode(kernel, bits, q.scale, copies_of_map(kernel, q.channel_map, q.scale))
        np.testing.assert_array_equal(q.codes, again.codes)


@each_granularity
@pytest.mark.parametrize("clip", CLIP_METHODS)
def test_scaling_by_a_power_of_two_changes_no_code(clip, granularity) -> None:
    kernel = outlier_kernel(shape=(3, 3, 8, 4))
    q = quantize_kernel(kernel, 4, 0.2, clip, granularity)
    for exponent in (-60, 5, 80):
        scaled = quantize_kernel(kernel * np.float32(2.0**exponent), 4, 0.2, clip, granularity)
        np.testing.assert_array_equal(scaled.codes, q.codes)
        np.testing.assert_array_equal(scaled.channel_map, q.channel_map)
        np.testing.assert_array_equal(scaled.scale, q.scale * np.float32(2.0**exponent))


@pytest.mark.slow
def test_order_of_input_channels_does_not_matter() -> None:
    kernel = outlier_kernel()
    order = np.random.default_rng(1).permutation(kernel.shape[-2])
    for granularity in GRANULARITIES:
        for clip in ("none", "mse", "kl", "percentile"):
            q = quantize_kernel(kernel, 4, 0.2, clip, granularity)
            shuffled = quantize_kernel(kernel[:, :, order], 4, 0.2, clip, granularity)
            np.testing.assert_array_equal(
                shuffled.effective_codes(), q.effective_codes()[:, :, order]
            )


def test_splitting_makes_the_step_finer() -> None:
    kernel = outlier_kernel()
    quality = [
        sqnr_db(kernel, quantize_kernel(kernel, 4, r).effective_kernel()) for r in (0, 0.1, 0.3)
    ]
    assert quality[0] + 1 < quality[1] < quality[2]


def test_quantization_aware_splits_beat_plain_halves() -> None:
    kernel = outlier_kernel()
    for bits in (3, 4, 5):
        aware, plain = (
            sqnr_db(
                kernel,
                quantize_kernel(kernel, bits, 0.3, quantization_aware=aware).effective_kernel(),
            )
            for aware in (True, False)
        )
        assert aware > plain + 1


@each_bits
def test_plain_halves_are_rounded_alike(bits) -> None:
    kernel = outlier_kernel()
    q = quantize_kernel(kernel, bits, 0.2, quantization_aware=False)
    split = split_channels(kernel, 0.2)
    np.testing.assert_array_equal(q.channel_map, split.channel_map)
    limit = 2 ** (bits - 1) - 1
    exact = split.kernel / q.scale.astype(np.float64)
    off_tie = np.abs(exact - np.floor(exact) - 0.5) > ROUNDING
    np.testing.assert_array_equal(
        q.codes[off_tie], np.clip(np.round(exact), -limit, limit)[off_tie]
    )


@each_bits
@each_granularity
def test_power_of_two_steps(granularity, bits) -> None:
    kernel = outlier_kernel()
    q = quantize_kernel(kernel, bits, 0.1, granularity=granularity, power_of_two=True)
    assert np.all(np.frexp(q.scale)[0] == 0.5)
    free = quantize_kernel(kernel, bits, 0.1, granularity=granularity).scale
    assert np.all((free <= q.scale) & (q.scale < 2 * free))


@each_bits
def test_only_clipped_weights_reach_the_code_of_the_full_range(bits) -> None:
    kernel = outlier_kernel()
    limit = 2 ** (bits - 1) - 1
    for clip in ("none", "percentile"):
        symmetric, full = (
            quantize_kernel(kernel, bits, clip=clip, percentile=99.0, full_range=full_range)
            for full_range in (False, True)
        )
        np.testing.assert_array_equal(np.maximum(full.codes, -limit), symmetric.codes)
        extra = full.codes == -limit - 1
        assert extra.any() == (clip == "percentile")
        assert np.all(in_steps(full, kernel)[extra] < -limit)


# Thresholds


def columns_of(kernel, granularity):
    return kernel.reshape(-1, kernel.shape[-1] if granularity == "channel" else 1).T


@pytest.mark.parametrize("count", [0, 1, 5, 40])
@each_granularity
def test_threshold_none_is_what_plain_splits_leave(granularity, count) -> None:
    kernel = outlier_kernel()
    split = kernel.astype(np.float64)
    for _ in range(count):  # the direct algorithm
        largest = np.argmax(np.abs(split).max((0, 1, 3)))
        split[:, :, largest] /= 2
        split = np.concatenate([split, split[:, :, [largest]]], axis=2)
    expected = [np.abs(v).max() for v in columns_of(split, granularity)]
    threshold = choose_threshold(kernel, 4, count, "none", granularity)
    assert np.shape(threshold) == ((16,) if granularity == "channel" else ())
    np.testing.assert_array_equal(np.ravel(threshold), expected)


@pytest.mark.parametrize("clip", [c for c in CLIP_METHODS if c != "none"])
@each_granularity
def test_thresholds_look_at_the_kernel_the_paper_looks_at(granularity, clip) -> None:
    kernel = outlier_kernel()
    seen = kernel if clip in ("mse", "aciq", "kl") else split_channels(kernel, 0.2).kernel
    threshold = choose_threshold(
        kernel, 4, copy_count(0.2, kernel.shape[-2]), clip, granularity, percentile=99.0
    )
    expected = [clip_threshold(v, 4, clip, percentile=99.0) for v in columns_of(seen, granularity)]
    assert np.shape(threshold) == ((16,) if granularity == "channel" else ())
    np.testing.assert_array_equal(np.ravel(threshold), expected)


# Inputs of every kind


@pytest.mark.parametrize("clip", CLIP_METHODS)
@each_granularity
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (3, 3, 2, 2)], ids=str)
def test_zeros(shape, granularity, clip) -> None:
    q = quantize_kernel(np.zeros(shape), 4, 0.5, clip, granularity)
    assert not q.codes.any()
    np.testing.assert_array_equal(q.scale, np.ones_like(q.scale))
    assert not q.splits


@pytest.mark.parametrize("value", [1.0, -0.3, 1e30, 1e-30, 3e38, 1e-40], ids=str)
@each_bits
@each_granularity
def test_constants_are_represented(granularity, bits, value) -> None:
    kernel = np.full((3, 3, 4, 2), value, np.float32)
    for ratio in (0.0, 0.25, 1.0):
        q = quantize_kernel(kernel, bits, ratio, granularity=granularity)
        error = np.abs(q.effective_codes() - in_steps(q, kernel))
        assert error.max() <= 0.5 + ROUNDING
        if ratio != 0.25 and abs(value) > 1e-37:  # the threshold is the value, or half of it
            np.testing.assert_allclose(q.effective_kernel(), kernel, rtol=1e-6)


@pytest.mark.parametrize("clip", CLIP_METHODS)
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_extreme_magnitudes(scale, clip) -> None:
    kernel = outlier_kernel() * np.float32(scale)
    quality = sqnr_db(kernel, quantize_kernel(kernel, 6, 0.1, clip).effective_kernel())
    assert quality > 10


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64])
def test_any_dtype(dtype) -> None:
    kernel = (outlier_kernel() * 4).round().astype(dtype)
    expected = quantize_kernel(kernel.astype(np.float32), 5, 0.1, "mse", "channel")
    q = quantize_kernel(kernel, 5, 0.1, "mse", "channel")
    np.testing.assert_array_equal(q.codes, expected.codes)
    np.testing.assert_array_equal(q.scale, expected.scale)


def test_layout_does_not_matter_and_the_input_stays() -> None:
    kernel = outlier_kernel()
    before, expected = kernel.copy(), quantize_kernel(kernel, 4, 0.2, "optimal")
    np.testing.assert_array_equal(kernel, before)
    views = np.asfortranarray(kernel), np.repeat(kernel, 2, axis=2)[:, :, ::2]
    for view in views:
        q = quantize_kernel(view, 4, 0.2, "optimal")
        np.testing.assert_array_equal(q.codes, expected.codes)


def test_large_kernels_are_encoded_in_blocks() -> None:
    kernel = outlier_kernel(shape=(300, 500))
    q = quantize_kernel(kernel, 8)
    error = q.codes - in_steps(q, kernel)
    assert np.abs(error).max() <= 0.5 + ROUNDING


def test_codes_of_many_copies_do_not_overflow() -> None:
    q = quantize_kernel([[1000.0], [1.0], [1.0], [1.0]], 8, 1.0)
    assert q.effective_codes().max() > 127
    np.testing.assert_allclose(q.effective_kernel().ravel(), [1000, 1, 1, 1], atol=q.scale / 2)


# Errors


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 0)], ids=str)
def test_refuses_shape(shape) -> None:
    with pytest.raises(
        ValueError, match=r"`kernel` must have at least 2 axes and not be empty, but its shape is"
    ):
        quantize_kernel(np.zeros(shape), 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_what_is_not_finite(bad) -> None:
    kernel = np.zeros((3, 4))
    kernel[2, 1] = bad
    with pytest.raises(ValueError, match=rf"`kernel` must be finite, but holds {bad} at index \(2"):
        quantize_kernel(kernel, 4)
    with pytest.raises(ValueError, match=r"`kernel of layer a` must be finite, but holds"):
        check_kernel(kernel, "kernel of layer a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, r"`bits` \(=1\) must be an integer from 2 to 8\."),
        ({"bits": 9}, r"`bits` \(=9\) must be an integer from 2 to 8\."),
        ({"expand_ratio": 1.5}, r"`expand_ratio` \(=1.5\) must be a number from 0 to 1\."),
        ({"clip": "best"}, r"`clip` \(='best'\) must be one of none, mse, aciq, kl, perc"),
        ({"granularity": "row"}, r"`granularity` \(='row'\) must be one of tensor, channel\."),
        ({"clip": "percentile", "percentile": 101}, r"`percentile` \(=101\) must lie in 0 \.\."),
    ],
    ids=["bits-low", "bits-high", "expand_ratio", "clip", "granularity", "percentile"],
)
def test_refuses_argument(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_kernel(**{"kernel": np.ones((3, 2)), "bits": 4, **arguments})


def test_refuses_what_no_float32_step_can_hold() -> None:
    with pytest.raises(ValueError, match=r"is too large for a float32 step\."):
        quantize_kernel(np.full((2, 2), 1e300), 4)


# Signal to noise


def test_sqnr_db() -> None:
    # Signal 3^2 + 4^2, noise 0.3^2 + 0.4^2: 1 in 100, which is 20 dB.
    assert sqnr_db([3.0, 4.0], [3.3, 4.4]) == pytest.approx(10 * np.log10(25 / 0.25))
    assert sqnr_db([3, 4], [0, 0]) == 0
    assert sqnr_db([1.0, 2.0], [1.0, 2.0]) == np.inf
    assert sqnr_db([0.0], [0.0]) == np.inf
    assert sqnr_db([0.0], [1.0]) == -np.inf
    assert type(sqnr_db([1.0], [2.0])) is float


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_sqnr_of_a_uniform_signal_is_six_db_per_bit(bits) -> None:
    kernel = np.random.default_rng(0).uniform(-1, 1, size=(200, 200))
    # Variance 1/3 over step^2 / 12, step = 2 / (2^bits - 2).
    expected = 10 * np.log10((1 / 3) / ((2 / (2**bits - 2)) ** 2 / 12))
    actual = sqnr_db(kernel, quantize_kernel(kernel, bits).effective_kernel())
    assert actual == pytest.approx(expected, abs=0.1)


# Sizes of every kind, and channels that are all zero


extremes = st.builds(
    lambda seed, shape, size, zeros, spread: (
        np.random.default_rng(seed).normal(size=shape)
        * np.where(np.arange(shape[-2])[:, None] < zeros, 0, size)
        * np.where(np.arange(shape[-1]) % 2, 1, spread)
    ).astype(np.float32),
    st.integers(0, 99),
    st.sampled_from([(1, 1), (6, 3), (1, 4), (2, 2, 5, 2), (9, 1)]),
    st.sampled_from([1e-44, 1e-42, 1e-38, 1e-30, 1.0, 1e20, 1e37]),
    st.integers(0, 9),
    st.sampled_from([1.0, 1e-38, 1e-20]),
)


@settings(deadline=None, max_examples=50)
@given(
    extremes,
    st.sampled_from([2, 4, 8]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(WEIGHT_CLIPS),
    st.sampled_from(GRANULARITIES),
    st.booleans(),
)
def test_any_finite_kernel(kernel, bits, ratio, clip, granularity, aware) -> None:
    q = quantize_kernel(kernel, bits, ratio, clip, granularity, quantization_aware=aware)
    channels = kernel.shape[-2]
    split = set(q.channel_map[channels:].tolist())
    assert all(kernel[..., c, :].any() for c in split)
    tiny = np.finfo(np.float32).tiny
    assert np.all(np.isfinite(q.scale) & (q.scale >= tiny))
    error = np.abs(q.effective_kernel().astype(np.float64) - kernel)
    assert np.isfinite(error).all()
    # A step may not be smaller than the least normal number; nor may clipping lose it all.
    largest = float(np.abs(kernel).max(initial=0))
    assert error.max() <= max(largest * (1 if clip in ("mse", "aciq", "kl") else 0.75), tiny)
