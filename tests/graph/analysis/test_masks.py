"""Masks of attention that are computed by bare operations."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf.graph.analysis.masks import (
    given_masks,
    limited_mask,
    mask_ranges,
    masked_floor,
    masked_maxima,
    masked_scores,
    negligible,
    only_unmasked,
    scores_with_given_masks,
    softmax_floor,
    without_given_masks,
    without_masked,
)
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.substitutions.constants import MASKED

LENGTH, WIDTH = 6, 8


def attention(mask: Any = None) -> keras.Model:
    """Self attention by bare operations, masked where ids are 0."""
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    x = layers.Embedding(30, WIDTH, name="table")(ids)
    q, k = layers.Dense(WIDTH)(x), layers.Dense(WIDTH)(x)
    scores = ops.matmul(q, ops.transpose(k, (0, 2, 1)))
    if mask is not None:
        scores = mask(scores, ops.cast(ops.not_equal(ids, 0), "float32")[:, None, :])
    return keras.Model(ids, layers.Dense(3)(ops.matmul(ops.softmax(scores), x)))


MASKS = {
    "added": lambda scores, mask: scores + (1.0 - mask) * -1e9,
    "subtracted": lambda scores, mask: scores - (1.0 - mask) * 1e4,
    "half-precision": lambda scores, mask: scores + (1.0 - mask) * -1e4,
    "chosen": lambda scores, mask: ops.where(mask > 0, scores, -1e9),
    "none": None,
}


def test_all_that_is_negligible_is_less_than_half_a_step() -> None:
    for scores in (1, 6, 512):
        assert scores * math.exp(-negligible(scores)) == pytest.approx(1 / 512)


def test_floor_of_rows() -> None:
    rows = np.array([[0.0, 3.0], [-9.0, 1.0]])
    assert softmax_floor(rows) == pytest.approx(1 - negligible(2))


def test_floor_of_masks_lies_below_any_score() -> None:
    rows = np.array([[0.0, 3.0, -1e9], [-2.0, 1.0, -1e9], [-1e9, -1e9, -1e9]])
    assert masked_floor(rows, -5e3) == pytest.approx(-2 - negligible(3))
    far = np.array([[0.0, -99.0]])  # a score of which nothing is left needs no place of its own
    assert masked_floor(far, -5e3) == pytest.approx(0 - 2 * negligible(2))


def test_without_masked() -> None:
    rows = np.array([[[2.0, -1e9], [1.0, -1e9]]], np.float32)
    floor = masked_floor(rows, -5e3)
    np.testing.assert_allclose(without_masked(rows), [2.0, floor, 1.0, floor, floor])
    unmasked = without_masked(np.zeros((1, 2, 2), np.float32))
    assert unmasked.min() == pytest.approx(-negligible(2))


@pytest.mark.parametrize("name", MASKS)
def test_what_is_masked_is_found(name: str) -> None:
    assert bool(masked_scores(Graph(attention(MASKS[name])))) == (name != "none")


def added(make: Any) -> keras.Model:
    """Attention with a mask that is given as an input, in a form that `make` gives it."""
    x, mask = keras.Input((LENGTH, WIDTH), name="x"), keras.Input((LENGTH,), name="mask")
    scores = ops.matmul(layers.Dense(WIDTH)(x), ops.transpose(x, (0, 2, 1)))
    return keras.Model([x, mask], layers.Dense(3)(ops.matmul(make(scores, mask), x)))


GIVEN = {
    "operations": lambda scores, mask: ops.softmax(scores + mask[:, None, :]),
    "layers": lambda scores, mask: layers.Softmax()(
        layers.Add()([scores, layers.Reshape((1, LENGTH))(mask)])
    ),
}
NOT_GIVEN = {
    "multiplied": lambda scores, mask: ops.softmax(scores * mask[:, None, :]),
    "also read": lambda scores, mask: ops.softmax(scores + mask[:, None, :]) + mask[:, None, :],
    "scores": lambda scores, mask: ops.softmax(scores),
}


@pytest.mark.parametrize("name", [*GIVEN, *NOT_GIVEN])
def test_masks_that_are_given(name: str) -> None:
    graph = Graph(added((GIVEN | NOT_GIVEN)[name]))
    wanted = {id(graph.model.inputs[1])} if name in GIVEN else set()
    assert given_masks(graph) == wanted
    assert len(scores_with_given_masks(graph)) == len(wanted)


def test_measures_of_given_masks() -> None:
    values = np.array([[0.0, -1e38, -3.0]], np.float32)
    np.testing.assert_array_equal(limited_mask(values), [[0.0, -MASKED, -3.0]])
    np.testing.assert_array_equal(without_given_masks(values), without_masked(values))
    biases = np.array([[0.0, -3.0]], np.float32)  # of positions, say
    np.testing.assert_array_equal(without_given_masks(biases), biases)


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("number", [-1e4, float(np.finfo("float32").min)])
def test_a_given_mask_leaves_scores_their_steps(
    number: float, name: str, tmp_path: Any, rng: np.random.Generator
) -> None:
    """The grid of the sum held the mask: 2 dB. From -1e36 on the export ended the process."""
    lengths = rng.integers(2, LENGTH + 1, (40, 1))
    mask = np.where(np.arange(LENGTH) < lengths, 0.0, number).astype(np.float32)
    data = [rng.normal(size=(40, LENGTH, WIDTH)).astype(np.float32), mask]
    model = added(GIVEN[name])
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    (close,) = ocs_tf.compare(model, quantized, data)
    assert close.sqnr_db > 25
    path = tmp_path / "m.tflite"
    assert not ocs_tf.export_tflite(quantized, path, representative_dataset=data).notes
    (close,) = ocs_tf.compare(quantized, ocs_tf.TFLiteModel(path), data)
    assert close.sqnr_db > 30


def test_what_masks_range_over() -> None:
    graph = Graph(attention(MASKS["added"]))
    ranges = {graph.producer[key].layer.name: ends for key, ends in mask_ranges(graph).items()}
    assert ranges["cast"] == ranges["subtract"] == ranges["get_item"] == (0, 1)
    assert ranges["multiply"] == (-1e9, 0)
    assert set(ranges) == {"cast", "subtract", "get_item", "multiply"}


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_mask_that_is_an_input(dtype: str) -> None:
    mask = keras.Input((LENGTH,), dtype=dtype, name="mask")
    x = keras.Input((LENGTH,), name="x")
    kept = mask if dtype == "float32" else ops.cast(mask, "float32")
    y = layers.Dense(3)(ops.softmax(layers.Dense(LENGTH)(x) + (1.0 - kept) * -1e9))
    graph = Graph(keras.Model([x, mask], y))
    ranges = {graph.producer[key].layer.name: ends for key, ends in mask_ranges(graph).items()}
    assert ranges["subtract"] == (0, 1)
    assert ranges["mask" if dtype == "float32" else "cast"] == (0, 1)
    assert "x" not in ranges


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True], ids=["full-data", "padded-data"])
@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
def test_masks_work_whatever_the_data(name: str, padded: bool, rng: np.random.Generator) -> None:
    model = attention(MASKS[name])
    model.set_weights([3 * weight for weight in model.get_weights()])
    data = rng.integers(1, 30, (60, LENGTH)).astype("int32")
    short = data.copy()
    short[:, 4:] = 0
    quantized = ocs_tf.convert(
        model,
        representative_dataset=np.concatenate([data, short]) if padded else data,
        verbose=False,
    )
    for x in (data, short):
        wanted, found = model.predict_on_batch(x), quantized.predict_on_batch(x)
        assert np.square(wanted).sum() > 10**2 * np.square(wanted - found).sum()  # 20 dB


MAXIMA = {
    "added": lambda x, mask: ops.max(x + (1.0 - mask) * -1e9, 1),
    "chosen": lambda x, mask: ops.max(ops.where(mask > 0, x, -1e9), axis=1),
    "layer": lambda x, mask: layers.GlobalMaxPooling1D()(x - (1.0 - mask) * 1e6),
}


@pytest.mark.parametrize("name", MAXIMA)
def test_the_largest_of_what_is_not_masked(name: str, rng: np.random.Generator) -> None:
    """One grid down to -1e9 would round all numbers to 0."""
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    x = layers.Dense(WIDTH)(layers.Embedding(30, WIDTH, name="table")(ids))
    mask = ops.cast(ops.not_equal(ids, 0), "float32")[:, :, None]
    model = keras.Model(ids, layers.Dense(3)(MAXIMA[name](x, mask)))
    data = rng.integers(1, 30, (64, LENGTH)).astype("int32")
    for sample, row in enumerate(data):
        row[1 + sample % (LENGTH - 1) :] = 0
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    wanted, found = np.asarray(model(data)), np.asarray(quantized(data))
    assert np.square(wanted).sum() > 10**3 * np.square(wanted - found).sum()  # 30 dB


def test_maxima_of_other_numbers_are_left_alone() -> None:
    x = keras.Input((LENGTH, WIDTH))
    assert not masked_maxima(Graph(keras.Model(x, ops.max(layers.Dense(2)(x), 1))))
    assert not masked_maxima(Graph(keras.Model(x, ops.max(x * 1e9, 1) + ops.sum(x, 1))))
    values = np.float32([[1.0, -1e9], [-2.0, -1e9]])
    np.testing.assert_array_equal(only_unmasked(values), [1.0, -2.0])
    np.testing.assert_array_equal(only_unmasked(values[:, 1:]), [[0.0], [0.0]])
