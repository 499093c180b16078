"""Channel splitting against the direct algorithm, which re-scans every channel after each split."""

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ocs_tf.numerics import copy_count, split_channels, splitting
from ocs_tf.numerics.splitting import choose_copies, copies_of_map, expand, merge

quick = settings(deadline=None, max_examples=60)
# Multiples of 1/16 up to 4: with a power-of-two step, float64 computes every copy exactly.
dyadic = st.integers(-64, 64).map(lambda i: i / 16)
shapes = st.one_of(
    st.tuples(st.integers(1, 7), st.integers(1, 4)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 3)),
)
kernels = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=dyadic))
any_kernels = shapes.flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32))
)
ratios = st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 1.0])
dyadic_steps = st.sampled_from([None, 0.25, 1.0, 4.0])


def direct_split(kernel, count, step):
    """Split the largest channel `count` times, on arrays: float64 copies and their origins.

    None of a channel that is all zero.
    """
    shift = 0.0 if step is None else step / 4
    channels = [kernel[..., c, :].astype(np.float64) for c in range(kernel.shape[-2])]
    origins = list(range(len(channels)))
    dead = [not c.any() for c in channels]
    for _ in range(0 if all(dead) else count):
        sizes = [np.abs(c).max() for c in channels]
        largest = int(
            np.argmax([-1 if dead[o] else s for s, o in zip(sizes, origins, strict=True)])
        )
        half = channels[largest] / 2
        channels[largest] = half - shift
        channels.append(half + shift)
        origins.append(origins[largest])
    return np.stack(channels, axis=-2), origins


def normal_kernel(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


# How many copies


@pytest.mark.parametrize("channels", [1, 3, 7, 30, 64, 100, 300, 512, 1280, 25088])
def test_copy_count_is_the_ceiling_of_the_decimal_product(channels) -> None:
    for thousandths in range(1001):
        expected = math.ceil(Fraction(thousandths, 1000) * channels)
        assert copy_count(thousandths / 1000, channels) == expected, thousandths


@pytest.mark.parametrize(
    ("ratio", "channels", "count"),
    [(0.07, 100, 7), (0.1, 30, 3), (0.01, 1, 1), (0, 64, 0), (1, 64, 64), (0.02, 64, 2)],
)
def test_copy_count(ratio, channels, count) -> None:
    assert copy_count(ratio, channels) == count
    assert copy_count(np.float64(ratio), channels) == count


@pytest.mark.parametrize("ratio", [-0.01, 1.01, np.nan, np.inf, "0.1", None])
def test_copy_count_refuses(ratio) -> None:
    with pytest.raises(ValueError, match=r"`expand_ratio` \(=.*\) must be a number from 0 to 1\."):
        copy_count(ratio, 10)


# Which copies, and what they hold


@quick
@given(kernels, ratios, dyadic_steps)
def test_same_as_the_direct_algorithm(kernel, ratio, step) -> None:
    expected, origins = direct_split(kernel, copy_count(ratio, kernel.shape[-2]), step)
    split = split_channels(kernel, ratio, step)
    assert split.channel_map.tolist() == origins
    assert split.kernel.dtype == np.float32
    np.testing.assert_array_equal(split.kernel, expected.astype(np.float32))


def test_splits_a_channel_again_when_it_is_still_the_largest() -> None:
    split = split_channels([[1.0], [16.0], [3.0]], 1.0)
    # 16 -> 8, 8; the older 8 -> 4, 4; the other 8 -> 4, 4.
    assert split.channel_map.tolist() == [0, 1, 2, 1, 1, 1]
    np.testing.assert_array_equal(split.kernel.ravel(), [1, 4, 3, 4, 4, 4])


def test_quantization_aware_halves_differ_by_half_a_step() -> None:
    split = split_channels([[1.0], [-9.0]], 0.5, step=0.8)
    expected = [1.0, -9 / 2 - 0.8 / 4, -9 / 2 + 0.8 / 4]
    np.testing.assert_allclose(split.kernel.ravel(), expected, rtol=1e-15)


@quick
@given(any_kernels, ratios)
def test_plain_copies_add_up_exactly(kernel, ratio) -> None:
    kernel = np.where(np.abs(kernel) < 1e-30, 0, kernel)  # halves of denormals may round
    split = split_channels(kernel, ratio)
    whole = merge(split.kernel.astype(np.float64), split.channel_map, kernel.shape[-2])
    np.testing.assert_array_equal(whole, kernel)


@quick
@given(any_kernels, ratios, st.floats(1e-3, 1e3))
def test_quantization_aware_copies_add_up(kernel, ratio, step) -> None:
    split = split_channels(kernel, ratio, step)
    whole = merge(split.kernel.astype(np.float64), split.channel_map, kernel.shape[-2])
    copies = len(split.channel_map)
    rounding = np.finfo(np.float32).eps * (np.abs(kernel) + step * copies)
    assert np.all(np.abs(whole - kernel) <= rounding)


@quick
@given(any_kernels, st.integers(0, 12), st.one_of(st.none(), st.floats(1e-3, 1e3)))
def test_gains_and_offsets_are_exact(kernel, count, step) -> None:
    copies = choose_copies(kernel, count, step)
    for channel in range(kernel.shape[-2]):
        own = copies.channel_map == channel
        assert sum(map(Fraction, copies.gain[own])) == 1
        assert sum(map(Fraction, copies.offset[own])) == 0
    assert np.all(np.frexp(copies.gain)[0] == 0.5)
    assert np.all(np.abs(copies.offset) < 0.5)
    if step is None:
        assert not copies.offset.any()
    unsplit = np.flatnonzero(np.bincount(copies.channel_map) == 1)
    assert not set(copies.changed) & set(unsplit)
    assert len(copies.changed) + len(unsplit) == len(copies.gain)


@quick
@given(any_kernels, st.integers(0, 12), st.sampled_from([0.125, 1.0, 7.0]))
def test_half_up_codes_of_the_copies_add_up_to_the_code(kernel, count, step) -> None:
    """Hermite's identity, in rational arithmetic, exact ties included."""
    kernel = np.round(kernel[..., :1] * 8) / 8  # some of them ties
    copies = choose_copies(kernel, count, step)
    for channel in range(kernel.shape[-2]):
        own = np.flatnonzero(copies.channel_map == channel)
        for w in kernel[..., channel, :].ravel():
            exact = Fraction(float(w)) / Fraction(step)
            codes = [
                math.floor(
                    exact * Fraction(copies.gain[i]) + Fraction(copies.offset[i]) + Fraction(1, 2)
                )
                for i in own
            ]
            assert sum(codes) == math.floor(exact + Fraction(1, 2))


@quick
@given(any_kernels, st.integers(0, 12))
def test_every_split_lowers_the_largest_magnitude_or_keeps_it(kernel, count) -> None:
    before, after = (
        np.abs(expand(kernel, choose_copies(kernel, n))).max() for n in (count, count + 1)
    )
    assert after <= before
    assert np.abs(expand(kernel, choose_copies(kernel, count))).max() <= np.abs(kernel).max()


@quick
@given(any_kernels, st.integers(0, 12), st.integers(-10, 10), st.booleans())
def test_scaling_by_a_power_of_two_changes_no_choice(kernel, count, exponent, aware) -> None:
    kernel = np.where(np.abs(kernel) < 1e-30, 0, kernel)
    scale = np.float32(2.0**exponent)
    step = 0.3 if aware else None
    copies = choose_copies(kernel, count, step)
    scaled = choose_copies(kernel * scale, count, step and step * float(scale))
    for field in ("channel_map", "gain", "offset"):
        np.testing.assert_array_equal(getattr(copies, field), getattr(scaled, field))


@quick
@given(any_kernels, st.integers(0, 12), st.randoms(use_true_random=False), st.booleans())
def test_order_of_channels_does_not_matter(kernel, count, random, aware) -> None:
    maxima = np.abs(kernel).max(tuple(i for i in range(kernel.ndim) if i != kernel.ndim - 2))
    # Different mantissas, so that no halved channel ties with another.
    mantissas = np.frexp(maxima)[0]
    if len(set(mantissas)) < len(mantissas) or not maxima.all():
        return
    order = list(range(kernel.shape[-2]))
    random.shuffle(order)
    step = 1e-3 if aware else None
    copies = choose_copies(kernel, count, step)
    shuffled = choose_copies(kernel[..., order, :], count, step)
    back = np.array(order)[shuffled.channel_map]
    assert sorted(zip(copies.channel_map, copies.gain, strict=True)) == sorted(
        zip(back, shuffled.gain, strict=True)
    )


@quick
@given(any_kernels, ratios, st.sampled_from([None, 0.3, 100.0]))
def test_channel_map_starts_with_the_originals(kernel, ratio, step) -> None:
    channels = kernel.shape[-2]
    mapping = split_channels(kernel, ratio, step).channel_map
    assert mapping.dtype == np.int32
    assert len(mapping) == channels + (math.ceil(ratio * channels) if kernel.any() else 0)
    assert mapping[:channels].tolist() == list(range(channels))
    np.testing.assert_array_equal(splitting.check_channel_map(mapping, channels), mapping)


@quick
@given(any_kernels, st.integers(0, 12), st.sampled_from([None, 0.3, 100.0, "columns"]))
def test_copies_come_out_of_the_map_again(kernel, count, step) -> None:
    step = np.linspace(0.1, 10, kernel.shape[-1]) if step == "columns" else step
    copies = choose_copies(kernel, count, step)
    again = copies_of_map(kernel, copies.channel_map.tolist(), step)
    for field in ("channel_map", "gain", "offset"):
        np.testing.assert_array_equal(getattr(copies, field), getattr(again, field))


def test_a_map_may_ask_for_channels_that_are_not_the_largest() -> None:
    kernel = np.array([[1.0], [16.0]])
    copies = copies_of_map(kernel, [0, 1, 0, 0])
    np.testing.assert_array_equal(expand(kernel, copies).ravel(), [0.25, 16, 0.5, 0.25])


@quick
@given(any_kernels, st.integers(0, 12))
def test_steps_per_column_take_the_channels_of_plain_halves(kernel, count) -> None:
    """Their thresholds rely on it; see `test_kernel.py` for what clips otherwise."""
    step = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(0) + 1
    plain, aware = choose_copies(kernel, count), choose_copies(kernel, count, step)
    np.testing.assert_array_equal(plain.channel_map, aware.channel_map)
    np.testing.assert_array_equal(plain.gain, aware.gain)
    for copy, expected in zip(
        np.moveaxis(expand(kernel.astype(np.float64), aware, step), -2, 0),
        np.moveaxis(expand(kernel.astype(np.float64), plain), -2, 0),
        strict=True,
    ):
        assert np.all(np.abs(copy - expected) < step / 2)


# Inputs of every kind


@pytest.mark.parametrize("step", [None, 0.5], ids=["plain", "aware"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
def test_axis(axis, step) -> None:
    kernel = normal_kernel(3, 4, 5, 6)
    moved = np.moveaxis(kernel, axis, 0)
    flat = moved.reshape(len(moved), -1)
    split, expected = split_channels(kernel, 0.5, step, axis), split_channels(flat, 0.5, step)
    np.testing.assert_array_equal(split.channel_map, expected.channel_map)
    assert split.kernel.ndim == 4
    np.testing.assert_array_equal(
        np.moveaxis(split.kernel, axis, 0).reshape(expected.kernel.shape), expected.kernel
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept(dtype) -> None:
    kernel = normal_kernel(8, 3, dtype=dtype)
    for step in (None, 0.1, np.float32(0.1), np.full(3, 0.1)):
        assert split_channels(kernel, 0.5, step).kernel.dtype == dtype


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, bool])
def test_integers_become_float64(dtype) -> None:
    split = split_channels(np.array([[1, 0], [0, 1]], dtype), 1.0)
    assert split.kernel.dtype == np.float64
    np.testing.assert_array_equal(split.kernel, [[0.5, 0], [0, 0.5], [0.5, 0], [0, 0.5]])


def test_layout_does_not_matter() -> None:
    kernel = normal_kernel(3, 3, 8, 6)
    expected = split_channels(kernel, 0.5)
    for view in (
        np.asfortranarray(kernel),
        np.repeat(kernel, 2, axis=-1)[..., ::2],
        kernel[::-1][::-1],
    ):
        split = split_channels(view, 0.5)
        np.testing.assert_array_equal(split.kernel, expected.kernel)
        np.testing.assert_array_equal(split.channel_map, expected.channel_map)


def test_the_input_is_not_modified_nor_shared() -> None:
    kernel = normal_kernel(8, 3)
    before = kernel.copy()
    for ratio in (0.0, 0.5):
        split_channels(kernel, ratio, 0.1).kernel[:] = 7
        np.testing.assert_array_equal(kernel, before)


@pytest.mark.parametrize("value", [-2.0, 1e30, 1e-30, 3e38], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2, 3, 1)], ids=str)
@pytest.mark.parametrize("step", [None, 1e-3], ids=["plain", "aware"])
def test_constant_kernels(step, shape, value) -> None:
    kernel = np.full(shape, value, np.float32)
    split = split_channels(kernel, 1.0, step)
    # Each channel once, in order: ties go to the first.
    if step is None:
        assert split.channel_map.tolist() == [*range(shape[-2])] * 2
        np.testing.assert_array_equal(split.kernel, np.float32(value) / 2)
    assert np.all(np.isfinite(split.kernel))


def test_zeros_stay_zeros() -> None:
    split = split_channels(np.zeros((4, 2)), 0.5)
    assert split.kernel.shape == (4, 2)
    assert not split.kernel.any()


def test_denormals_that_cannot_be_halved_lose_less_than_the_smallest_number() -> None:
    tiny = np.finfo(np.float16).smallest_subnormal
    split = split_channels(np.array([[3 * tiny, 1.0]], np.float16), 1.0)
    np.testing.assert_array_equal(split.kernel[:, 1], [0.5, 0.5])
    whole = split.kernel[:, 0].astype(np.float64).sum()
    assert abs(whole - 3 * float(tiny)) <= float(tiny)


def test_peak_memory_is_the_expanded_kernel() -> None:
    kernel = normal_kernel(3, 3, 200, 256)
    for step in (None, 0.01):
        tracemalloc.start()
        split = split_channels(kernel, 0.1, step)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert split.kernel.nbytes == pytest.approx(1.1 * kernel.nbytes)
        assert peak <= 1.15 * kernel.nbytes


# Errors


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (4, 0), (3, 3, 0, 2)], ids=str)
def test_refuses_shape(shape) -> None:
    with pytest.raises(
        ValueError, match=r"`kernel` must have at least 2 axes and not be empty, but its shape is"
    ):
        split_channels(np.zeros(shape), 0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite_and_says_where(bad) -> None:
    kernel = normal_kernel(3, 3, 4, 5)
    kernel[1, 2, 0, 4] = bad
    with pytest.raises(
        ValueError,
        match=rf"`kernel` must be finite, but holds {bad} at index \(1, 2, 0, 4\)"
        r" \(1 such value in shape \(3, 3, 4, 5\)\)\.",
    ):
        split_channels(kernel, 0.1)
    kernel[2, 2, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"2 such values in shape"):
        split_channels(kernel, 0.1)


@pytest.mark.parametrize("ratio", [-1, 2, np.nan])
def test_refuses_ratio(ratio) -> None:
    with pytest.raises(ValueError, match=r"`expand_ratio` \(=.*\) must be a number from 0 to 1\."):
        split_channels(normal_kernel(3, 2), ratio)


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf, [1.0, 0.0]], ids=str)
def test_refuses_step(step) -> None:
    with pytest.raises(ValueError, match=r"`step` \(=.*\) must be positive and finite\."):
        split_channels(normal_kernel(3, 2), 0.5, step)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2)], ids=str)
def test_refuses_step_of_another_shape(shape) -> None:
    with pytest.raises(ValueError, match=r"`step` must be a scalar or of shape \(2,\), not \("):
        split_channels(normal_kernel(3, 2), 0.5, np.ones(shape))


def test_refuses_axis() -> None:
    with pytest.raises(ValueError, match="axis 2 is out of bounds"):
        split_channels(normal_kernel(3, 2), 0.5, axis=2)


@pytest.mark.parametrize(
    "mapping",
    [[1, 0, 2], [0, 1], [0, 1, 3], [[0, 1, 2]], []],
    ids=["order", "short", "gap", "2d", "empty"],
)
def test_channel_map_must_start_with_the_originals(mapping) -> None:
    for use in (
        lambda: splitting.check_channel_map(mapping, 3),
        lambda: copies_of_map(normal_kernel(3, 2), mapping),
    ):
        with pytest.raises(ValueError, match=r"`channel_map` must start with 0 \.\. 2, the orig"):
            use()


@pytest.mark.parametrize("channel", [3, -1, 2**32, 0.5])
def test_channel_map_must_name_channels(channel) -> None:
    with pytest.raises(ValueError, match=r"`channel_map` names a channel outside 0 \.\. 2\."):
        splitting.check_channel_map([0, 1, 2, channel], 3)


# Merging


def test_merge_sums_copies_in_the_dtype_asked_for() -> None:
    codes = np.array([[100], [1], [100], [100]], np.int8)
    np.testing.assert_array_equal(merge(codes, [0, 1, 0, 0], 2, np.int32), [[300], [1]])
    assert merge(codes, [0, 1, 0, 0], 2, np.int32).dtype == np.int32
    kernel = normal_kernel(2, 3)
    assert merge(kernel, [0, 1], 2).dtype == np.float32
    assert not np.shares_memory(merge(kernel, [0, 1], 2), kernel)


# Channels that are all zero, and many copies


zeroed = st.tuples(kernels, st.integers(0, 2**7 - 1)).map(
    lambda pair: np.where(
        [[pair[1] >> c & 1] for c in range(pair[0].shape[-2])], np.float32(0), pair[0]
    )
)


@quick
@given(zeroed, st.integers(0, 40), dyadic_steps)
def test_zero_channels_are_never_split(kernel, count, step) -> None:
    copies = choose_copies(kernel, count, step)
    channels = kernel.shape[-2]
    alive = [c for c in range(channels) if kernel[..., c, :].any()]
    assert set(copies.channel_map[channels:].tolist()) <= set(alive)
    assert len(copies.channel_map) == channels + (count if alive else 0)


@pytest.mark.parametrize("step", [None, 1.0, np.float32([1.0, 0.5])], ids=["plain", "one", "two"])
def test_equal_channels_are_split_in_order(step) -> None:
    kernel = np.full((5, 2), 3.0, np.float32)
    assert choose_copies(kernel, 5, step).channel_map.tolist() == [0, 1, 2, 3, 4] * 2


@quick
@given(st.integers(0, 3000), st.floats(0.01, 200), st.sampled_from([None, 1.0]))
def test_many_copies_of_a_channel_add_up_exactly(count, weight, step) -> None:
    kernel = np.float64([[weight], [-weight / 3]])
    copies = copies_of_map(kernel, [0, 1] + [0] * count, step)
    own = copies.channel_map == 0
    assert sum(map(Fraction, copies.gain[own])) == 1
    assert sum(map(Fraction, copies.offset[own])) == 0
    assert copies.gain.min() >= splitting.SMALLEST_GAIN
    codes = np.rint(copies.gain[own] * 7 + copies.offset[own])
    assert step is None or codes.sum() == 7
