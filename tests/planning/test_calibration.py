"""Statistics: exact merging, one pass, clipping by the histogram."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from ocs_tf.numerics import clip_threshold
from ocs_tf.planning.calibration import (
    HALF_BINS,
    ChannelStatistics,
    Statistics,
    calibrate,
    channel_ranges,
    merge,
    observe,
    together,
)

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


def measure(*arguments: Any, **options: Any) -> dict[str, Statistics]:
    """Of all tensors of a key together."""
    return together(calibrate(*arguments, **options))


def equal(a: Statistics, b: Statistics) -> bool:
    same = (a.minimum, a.maximum, a.exponent) == (b.minimum, b.maximum, b.exponent)
    return same and np.array_equal(a.counts, b.counts)


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=2, max_size=40), st.data())
def test_two_halves_give_the_whole(values: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    x = np.array(values, np.float32)
    whole = Statistics.of(x)
    first, second = Statistics.of(x[:cut]), Statistics.of(x[cut:])
    assert equal(first.merge(second), whole)
    assert equal(second.merge(first), whole)


def test_a_negative_value_far_below_the_width_of_a_bin() -> None:
    """It is below 0, though the quotient would vanish in float32."""
    x = np.float32([2.0**41, -1.9e-36])
    assert equal(Statistics.of(x[:1]).merge(Statistics.of(x[1:])), Statistics.of(x))


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e5, 1e30])
def test_many_parts_in_any_order(scale: float, rng: np.random.Generator) -> None:
    x = (rng.standard_cauchy(10_000) * scale).clip(-3e38, 3e38).astype(np.float32)
    parts = [Statistics.of(part) for part in np.split(x, 10)]
    merged = parts[0]
    for i in rng.permutation(np.arange(1, 10)):
        merged = merged.merge(parts[i])
    assert equal(merged, Statistics.of(x))


@pytest.mark.parametrize("size", [1, 1000, 100_000], ids="{}-values".format)
def test_counts_are_those_of_numpy(size: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=size).astype(np.float32)
    statistics = Statistics.of(x)
    span = 2.0**statistics.exponent
    assert span / 2 <= np.abs(x).max() < span
    want, _ = np.histogram(x.astype(np.float64), bins=2 * HALF_BINS, range=(-span, span))
    np.testing.assert_array_equal(statistics.counts, want)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 2.0**-130, 3e38])
def test_a_constant(value: float) -> None:
    statistics = Statistics.of(np.full((3, 4), value, np.float32))
    assert (statistics.minimum, statistics.maximum) == (np.float32(value), np.float32(value))
    assert statistics.counts is not None
    assert statistics.counts.sum() == 12
    for method in ("none", "mse", "kl", "percentile", "optimal"):
        assert statistics.clip_range(8, method, 99.9) == (np.float32(value), np.float32(value))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("histogram", [True, False], ids=["histogram", "range-only"])
def test_refuses_what_is_not_finite(value: float, histogram: bool) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        Statistics.of(np.array([1.0, value, 2.0]), histogram)


def test_range_only(rng: np.random.Generator) -> None:
    x = rng.normal(size=1000).astype(np.float32)
    first, second = (Statistics.of(part, histogram=False) for part in (x[:500], x[500:]))
    merged = first.merge(second)
    assert merged.counts is None
    assert merged.clip_range(8, "none", 99) == (x.min(), x.max())
    with pytest.raises(ValueError, match="only the range was measured"):
        merged.clip_range(8, "mse", 99)
    assert first.merge(Statistics.of(x)).counts is None


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("method", ["mse", "aciq", "kl", "percentile", "optimal"])
@pytest.mark.parametrize("kind", ["signed", "positive"])
def test_clip_range_is_near_that_of_the_values(
    kind: str, method: str, bits: int, rng: np.random.Generator
) -> None:
    x = rng.laplace(size=50_000).astype(np.float32)
    x = np.maximum(x, 0) if kind == "positive" else x
    low, high = Statistics.of(x).clip_range(bits, method, 99.9)
    want = clip_threshold(x, bits, method, one_sided=kind == "positive", percentile=99.9)
    assert high == pytest.approx(min(want, x.max()), rel=0.15)
    assert low == pytest.approx(0 if kind == "positive" else max(-want, x.min()), rel=0.15)


def test_a_symmetric_grid_is_clipped_two_sided(rng: np.random.Generator) -> None:
    x = np.maximum(rng.laplace(size=50_000), 0).astype(np.float32)
    statistics = Statistics.of(x)
    _, high = statistics.clip_range(4, "mse", 99.9, symmetric=True)
    assert high == pytest.approx(clip_threshold(x, 4, "mse"), rel=0.15)
    # Seven steps instead of fifteen ask for a smaller range.
    assert high < statistics.clip_range(4, "mse", 99.9)[1]


def test_clip_range_of_more_values_than_are_sampled(rng: np.random.Generator) -> None:
    x = rng.normal(size=400_000).astype(np.float32)
    _, high = Statistics.of(x).clip_range(8, "percentile", 99.0)
    assert high == pytest.approx(np.percentile(np.abs(x), 99.0), rel=0.02)


def test_merge_by_key(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 100)).astype(np.float32)
    a, b, c = map(Statistics.of, x)
    merged = merge({"one": a, "two": b}, {"two": c})
    assert equal(merged["one"], a)
    assert equal(merged["two"], Statistics.of(x[1:]))


def test_ranges_of_channels(model: keras.Model, rng: np.random.Generator) -> None:
    x = rng.normal(size=(64, 6)).astype(np.float32)
    hidden = model.get_layer("a").output
    wanted = {1: (model.inputs[0], 1), 2: (hidden, 1)}
    found = channel_ranges(model, wanted, ([part] for part in np.split(x, 4)))
    np.testing.assert_array_equal(found[1].magnitudes, np.abs(x).max(0))
    np.testing.assert_array_equal([found[1].minima, found[1].maxima], [x.min(0), x.max(0)])
    np.testing.assert_allclose(found[1].mean_squares, np.square(x).mean(0), rtol=1e-6)
    values = keras.Model(model.inputs, hidden).predict_on_batch(x)
    np.testing.assert_allclose(found[2].magnitudes, values.max(0), rtol=1e-5)


def test_ranges_of_channels_on_another_axis(rng: np.random.Generator) -> None:
    inputs = keras.Input((3, 4, 5))
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    model = keras.Model(inputs, layers.ReLU()(inputs))
    found = channel_ranges(model, {7: (inputs, 1)}, [[x], [-2 * x]])[7]
    np.testing.assert_array_equal(found.magnitudes, 2 * np.abs(x).max((0, 2, 3)))
    both = np.concatenate([x, -2 * x])
    np.testing.assert_allclose(found.mean_squares, np.square(both).mean((0, 2, 3)), rtol=1e-6)


@pytest.fixture
def model(randomize: Any) -> keras.Model:
    inputs = keras.Input((6,))
    x = layers.Dense(5, activation="relu", name="a")(inputs)
    return randomize(keras.Model(inputs, layers.Dense(3, name="b")(x)))


def tensors(model: keras.Model) -> dict[str, list[Any]]:
    return {"in": model.inputs, "a": [model.get_layer("a").output], "b": model.outputs}


def test_calibrate_measures_each_tensor(model: keras.Model, rng: np.random.Generator) -> None:
    x = rng.normal(size=(64, 6)).astype(np.float32)
    found = measure(model, tensors(model), ([part] for part in np.split(x, 4)))
    hidden = np.maximum(x @ model.get_layer("a").get_weights()[0] + model.get_layer("a").bias, 0)
    assert (found["in"].minimum, found["in"].maximum) == (x.min(), x.max())
    assert found["a"].maximum == pytest.approx(hidden.max(), rel=1e-5)
    assert found["a"].minimum == 0
    assert found["b"].counts is not None
    assert found["b"].counts.sum() == 64 * 3


def test_calibrate_in_two_halves(model: keras.Model, rng: np.random.Generator) -> None:
    parts = [[part] for part in np.split(rng.normal(size=(64, 6)).astype(np.float32), 4)]
    whole = measure(model, tensors(model), parts)
    halves = (measure(model, tensors(model), half) for half in (parts[:2], parts[2:]))
    merged = merge(*halves)
    assert list(merged) == list(whole)
    assert all(equal(merged[key], whole[key]) for key in whole)


def test_calibrate_goes_over_the_data_once(model: keras.Model) -> None:
    taken = []

    def parts() -> Iterator[list[np.ndarray]]:
        for i in range(3):
            taken.append(i)
            yield [np.full((2, 6), i, np.float32)]

    measure(model, tensors(model), parts())
    assert taken == [0, 1, 2]


def test_calls_of_one_key_are_taken_together(rng: np.random.Generator) -> None:
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], layers.Add()([a, b]))
    x, y = rng.normal(size=(2, 10, 3)).astype(np.float32)
    found = measure(model, {"both": [a, b]}, [[x, y]])
    assert equal(found["both"], Statistics.of(np.stack([x, y])))
    each = calibrate(model, {"both": [a, b]}, [[x, y]], spans={"both": (0, 9)})
    first, second = each["both"]
    assert (first.minimum, first.maximum) == (x.min(), 9)
    assert (second.minimum, second.maximum) == (y.min(), 9)


def test_values_can_go_through_a_layer_first(model: keras.Model) -> None:
    x = np.array([[1, -2, 3, -4, 5, -6]], np.float32)
    found = measure(model, {"in": model.inputs}, [[x]], through={"in": lambda v: -10 * v})
    assert (found["in"].minimum, found["in"].maximum) == (-50, 60)


def test_grouped_convolutions_are_not_warned_of(
    rng: np.random.Generator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras traces each of their calls anew, of which TensorFlow warns at the fifth."""
    x = keras.Input((4, 4))
    model = keras.Model(x, layers.Conv1D(2, 1, groups=2)(x))
    logger = logging.getLogger("tensorflow")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    batches = rng.normal(size=(7, 1, 1, 4, 4))
    assert len(list(observe(model, model.outputs, batches))) == 7
    assert not caplog.records
    assert not logger.filters


def test_nothing_to_measure(model: keras.Model) -> None:
    assert measure(model, {}, [[np.zeros((1, 6), np.float32)]]) == {}


def test_an_activation_that_is_not_finite_is_named(model: keras.Model) -> None:
    model.get_layer("a").bias.assign([np.inf] * 5)
    with pytest.raises(ValueError, match="NaN or infinity at 'a', on the calibration data"):
        measure(model, tensors(model), [[np.zeros((1, 6), np.float32)]], histogram=False)


# Channels -------------------------------------------------------------------------------------


def same_channels(a: ChannelStatistics, b: ChannelStatistics) -> bool:
    arrays = [(getattr(a, n), getattr(b, n)) for n in ("minima", "maxima", "signed_counts")]
    return a.exponent == b.exponent and all(np.array_equal(x, y) for x, y in arrays)


@settings(deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=2, max_size=20), st.data())
def test_two_halves_of_channels_give_the_whole(values: Any, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    x = np.array(values, np.float32)
    first, second = ChannelStatistics.of(x[:cut]), ChannelStatistics.of(x[cut:])
    assert same_channels(first.merge(second), ChannelStatistics.of(x))
    assert same_channels(second.merge(first), ChannelStatistics.of(x))


@pytest.mark.parametrize(("channels", "bins"), [(3, 1024), (1000, 512), (40_000, 16)])
def test_channel_counts_are_those_of_numpy(
    channels: int, bins: int, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(2, 7, channels)).astype(np.float32)
    seen = ChannelStatistics.of(x)
    assert seen.counts.shape == (channels, bins)
    assert seen.width * bins == 2.0**seen.exponent
    np.testing.assert_array_equal(seen.minima, x.min((0, 1)))
    np.testing.assert_array_equal(seen.maxima, x.max((0, 1)))
    np.testing.assert_array_equal(seen.magnitudes, np.abs(x).max((0, 1)))
    for channel in (0, channels - 1):
        edges = np.arange(bins + 1) * seen.width
        want, _ = np.histogram(np.abs(x[..., channel]), edges)
        np.testing.assert_array_equal(seen.counts[channel], want)
        signed, _ = np.histogram(x[..., channel], np.r_[-edges[:0:-1], edges])
        np.testing.assert_array_equal(seen.signed_counts[channel], signed)


def test_calibrate_tells_the_channels_of_a_key_apart(
    model: keras.Model, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(64, 6)).astype(np.float32)
    parts = [[part] for part in np.split(x, 4)]
    found = measure(model, tensors(model), parts, channels={"in"})
    assert found["a"].channels is None
    assert found["in"].channels is not None
    assert same_channels(found["in"].channels, ChannelStatistics.of(x))


@pytest.mark.parametrize("kind", ["signed", "positive"])
@pytest.mark.parametrize("method", ["none", "mse", "percentile", "optimal"])
def test_the_split_tensor_is_clipped(method: str, kind: str, rng: np.random.Generator) -> None:
    x = (rng.laplace(size=(30_000, 3)) * [1, 1, 8]).astype(np.float32)
    x = np.maximum(x, 0) if kind == "positive" else x
    copies = [2, 2, 2, 0]
    k = np.array([2, 1, 4])
    split = np.repeat(x / k.astype(np.float32), k, axis=1)
    found = Statistics.of(x, channels=True).clip_range(4, method, 99.9, copies=copies)
    want = Statistics.of(split).clip_range(4, method, 99.9)
    np.testing.assert_allclose(found, want, rtol=1e-6 if method == "none" else 0.06)


@pytest.mark.parametrize("method", ["none", "mse", "aciq", "kl", "percentile", "optimal"])
@pytest.mark.parametrize("sign", [1, -1])
def test_values_far_from_0_keep_a_range(method: str, sign: int, rng: np.random.Generator) -> None:
    """Their spread says little of their size: thresholds of ACIQ lie below all of them."""
    seen = Statistics.of(sign * rng.normal(100, 1, 5000))
    low, high = seen.clip_range(4, method, 99.9)
    assert low <= high
    assert max(-low, high) > 95


def test_splitting_needs_channels(rng: np.random.Generator) -> None:
    statistics = Statistics.of(rng.normal(size=(9, 3)).astype(np.float32))
    with pytest.raises(ValueError, match="channels were not told apart"):
        statistics.clip_range(8, "none", 99, copies=[0])
