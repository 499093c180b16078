"""Inputs that a file is run on: of sizes, grids and indices that the model takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf import data
from ocs_tf.export.lowering import lower
from ocs_tf.export.samples import _open_size, sample_inputs


def _open_image(*stack: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((None, None, 3)), *stack])


@pytest.mark.parametrize(
    ("model", "size"),
    [
        # 5 -> 1 of each: (size - 5) // 2 + 1; six times is 1 from 253 on.
        (lambda: _open_image(*(layers.Conv2D(4, 5, strides=2) for _ in range(6))), 256),
        (lambda: _open_image(layers.Cropping2D(40)), 128),  # 2 * 40 and one more
        (lambda: _open_image(layers.MaxPooling2D(40)), 64),
        (lambda: _open_image(layers.Reshape((-1, 8, 3))), 32),
    ],
    ids=["convolutions", "crop", "pool", "reshape"],
)
def test_open_sizes_are_large_enough(model: Callable[[], keras.Model], size: int) -> None:
    assert _open_size(model()) == size


class Positions(layers.Layer):
    """Adds a row of a table for each step."""

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(shape=(12, input_shape[-1]), name="table")

    def call(self, x: Any) -> Any:
        return x + keras.ops.slice(self.table, (0, 0), (keras.ops.shape(x)[1], x.shape[-1]))


def test_open_sizes_are_small_enough_for_a_table_of_positions() -> None:
    x = keras.Input((None, 3))
    assert _open_size(keras.Model(x, layers.Dense(2)(Positions()(x)))) == 8  # 16 are too many


def test_open_sizes_are_large_enough_for_what_cuts_inputs() -> None:
    x = keras.Input((None, 3))
    model = keras.Model(x, layers.Dense(2)(x[:, 100:]))
    assert _open_size(model) == 128  # 64 would leave nothing


def lowered(inputs: Any, outputs: Any, rows: Any = None, **options: Any) -> Any:
    model = keras.Model(inputs, outputs)
    quantized = ocs_tf.convert(model, representative_dataset=rows, verbose=False)
    return lower(quantized, **{"batch_size": None, **options})


def test_drawn_numbers_fill_the_grid_of_an_input() -> None:
    x = keras.Input((50,), name="x")
    rows = np.linspace(-3, 5, 400, dtype=np.float32).reshape(8, 50)
    found = sample_inputs(lowered(x, layers.Dense(2)(x), rows), None)["x"]
    assert found.shape == (3, 50)
    assert found.dtype == np.float32
    assert -3.1 < found.min() < -2.5
    assert 4.5 < found.max() < 5.1


def test_without_a_grid_they_are_from_minus_1_to_1() -> None:
    x = keras.Input((50,), name="x")
    found = sample_inputs(lowered(x, layers.Dense(2)(x)), None)["x"]
    assert -1 <= found.min() < -0.9 < 0.9 < found.max() <= 1


def test_indices_are_rows_of_their_table() -> None:
    ids = keras.Input((40,), dtype="int32", name="ids")
    made = layers.Dense(2)(layers.Embedding(5, 3)(ids))
    found = sample_inputs(lowered(ids, made), None)["ids"]
    assert found.dtype == np.int32
    assert set(found.ravel()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("batch", "count"), [(None, 3), (2, 4), (5, 5)])
def test_they_fill_batches_of_the_models_own_size(batch: int | None, count: int) -> None:
    x = keras.Input((4,), batch_size=batch, name="x")
    assert len(sample_inputs(lowered(x, layers.Dense(2)(x)), None)["x"]) == count


def test_given_data_are_taken_in_order_and_repeated_to_fill_batches() -> None:
    x = keras.Input((1,), batch_size=4, name="x")
    model = lowered(x, layers.Dense(2)(x))
    many = data.Source.of(np.arange(10, dtype=np.float32)[:, None])
    few = data.Source.of(np.arange(2, dtype=np.float32)[:, None])
    assert sample_inputs(model, many)["x"].ravel().tolist() == [0, 1, 2, 3]
    assert sample_inputs(model, few)["x"].ravel().tolist() == [0, 1, 0, 1]


def test_of_sizes_that_differ_those_of_the_first_are_taken() -> None:
    x = keras.Input((None, 1), name="x")
    model = lowered(x, layers.Dense(2)(x))
    rows = [np.full((size, 1), size, np.float32) for size in (3, 2, 3)]
    found = sample_inputs(model, data.Source.of(lambda: iter(rows)))["x"]
    assert found.shape[1:] == (3, 1)
    assert set(found.ravel()) == {3}
