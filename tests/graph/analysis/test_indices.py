"""Which float tensors hold indices, and that nothing rounds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf.graph.analysis.indices import index_tensors, table_rows
from ocs_tf.graph.reader import Graph

ROWS = 5000


def ids(name: str = "ids", **options: Any) -> Any:
    return keras.Input((6,), name=name, **options)


def embedded(x: Any) -> Any:
    return layers.Flatten()(layers.Embedding(ROWS, 4, name="table")(x))


def indices(model: keras.Model) -> set[str]:
    graph = Graph(model)
    return {graph.producer[key].layer.name for key in index_tensors(graph)}


class Categories(layers.Layer):
    """A user's layer that makes integers of its input."""

    def call(self, inputs: Any) -> Any:
        whole = ops.cast(ops.round(ops.reshape(inputs, (-1, 6, 1))), "int32")
        return layers.Flatten()(ops.one_hot(whole, 3))


class Weighted(layers.Layer):
    """One that multiplies by its input, too."""

    def call(self, inputs: Any) -> Any:
        return ops.cast(ops.cast(inputs, "int32"), "float32") * inputs


def normalized(x: Any, sizes: Any) -> Any:
    return layers.Normalization(mean=np.full(6, 3.0), variance=np.square(sizes))(x)


def batch_normalized(x: Any, sizes: Any) -> Any:
    norm = layers.BatchNormalization()
    norm.build((None, 6))
    norm.moving_variance.assign(np.square(sizes))
    return norm(x)


SIZES = np.array([1, 100, 0.1, 1, 1, 1], "float32")


def sequence(x: Any) -> Any:
    return layers.Reshape((3, 2), name="shaped")(x)


READ_AS_INDICES: dict[str, Callable[[Any], Any]] = {
    "lookup": embedded,
    "reshaped": lambda x: embedded(layers.Reshape((3, 2), name="shaped")(x)),
    "cast": lambda x: embedded(ops.cast(x, "int32")),
    "computed": lambda x: embedded(layers.Rescaling(2.0, name="doubled")(x)),
    "one-hot": lambda x: layers.Flatten()(ops.one_hot(ops.cast(x, "int32"), 3)),
    "category": lambda x: layers.CategoryEncoding(9, "multi_hot")(x),
    "taken": lambda x: layers.Flatten()(ops.take(np.ones((ROWS, 2), "float32"), x, axis=0)),
    "compared": lambda x: ops.cast(ops.equal(x, 3.0), "float32"),
    "beside": lambda x: layers.Concatenate()([embedded(x[:, :2]), x[:, 2:]]),
    "both": lambda x: layers.Concatenate()([embedded(x), x]),
    "both-in-another-shape": lambda x: layers.Concatenate()(
        [embedded(layers.Reshape((3, 2), name="shaped")(x)), layers.Dense(2, name="numbers")(x)]
    ),
    "marked": lambda x: layers.GRU(2)(layers.Masking(-1.0)(sequence(x))),
    "marked-by-0": lambda x: layers.GRU(2)(layers.Masking()(layers.Reshape((6, 1))(x))),
    "marked-itself": lambda x: x * ops.cast(ops.not_equal(x, -1.0), "float32"),
    "columns": lambda x: normalized(x, SIZES),
    "columns-of-a-batch": lambda x: batch_normalized(x, SIZES),
    "own": lambda x: Categories()(x),
    "lambda": lambda x: layers.Lambda(lambda t: ops.cast(ops.cast(t, "int32"), "float32"))(x),
    "bucket": lambda x: layers.Discretization([1.0, 2.0], output_mode="one_hot")(x[:, :1]),
}


@pytest.mark.parametrize("name", READ_AS_INDICES)
def test_read_as_indices(name: str) -> None:
    x = ids()
    found = indices(keras.Model(x, layers.Dense(2, name="head")(READ_AS_INDICES[name](x))))
    assert "ids" in found
    assert not found & {"head", "table", "numbers"}


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "dense": lambda x: x,
    "kernel-in-front": lambda x: embedded(ops.round(layers.Dense(6)(x))),
    "output": lambda x: x * 1.5,
    "alike": lambda x: normalized(x, SIZES**0.25),
    "alike-in-a-batch": lambda x: batch_normalized(x, SIZES**0.25),
    "padded-by-0": lambda x: layers.GRU(2)(layers.Masking()(sequence(x))),
    "own": lambda x: Weighted()(x),
    "lambda": lambda x: layers.Lambda(lambda t: t * 2)(x),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_read_as_numbers(name: str) -> None:
    x = ids()
    assert not indices(keras.Model(x, layers.Dense(2)(NUMBERS[name](x))))


def test_integers_are_no_concern() -> None:
    x = ids(dtype="int32")
    assert not indices(keras.Model(x, layers.Dense(2)(embedded(x))))


@pytest.mark.parametrize("scope", ["all", "inputs"])
def test_lookups_of_float_ids_find_their_rows(scope: str, rng: np.random.Generator) -> None:
    """Of 5,000 rows, 256 levels would find the wrong one more often than not."""
    x = ids()
    model = keras.Model(x, layers.Dense(3)(embedded(x)))
    data = rng.integers(0, ROWS, (64, 6)).astype("float32")
    quantized = ocs_tf.convert(
        model, representative_dataset=data, activation_scope=scope, verbose=False
    )
    wanted, found = model.predict_on_batch(data), quantized.predict_on_batch(data)
    assert np.square(wanted - found).sum() < 1e-3 * np.square(wanted).sum()


@pytest.mark.parametrize("norm", [normalized, batch_normalized])
def test_columns_of_every_size_reach_the_network(norm: Any, rng: np.random.Generator) -> None:
    """One grid for all would have steps 10 times as large as the smallest numbers."""
    x = ids()
    model = keras.Model(x, layers.Dense(4)(norm(x, SIZES)))
    data = (3 + rng.normal(size=(64, 6)) * SIZES).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    wanted, found = np.asarray(model(data)), np.asarray(quantized(data))
    assert np.square(wanted - found).sum() < 1e-3 * np.square(wanted).sum()


@pytest.mark.parametrize("mark", [-1.0, 0.0])
def test_padding_stays_padding(mark: float, rng: np.random.Generator) -> None:
    """Grids hold 0, but not every number; the steps behind the last one change no state."""
    x = keras.Input((6, 2))
    model = keras.Model(x, layers.GRU(3)(layers.Masking(mark)(x)))
    data = rng.normal(size=(64, 6, 2)).astype("float32")
    for sample, steps in enumerate(data):
        steps[2 + sample % 4 :] = mark
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    wanted, found = np.asarray(model(data)), np.asarray(quantized(data))
    assert np.square(wanted - found).sum() < 2e-3 * np.square(wanted).sum()


def test_numbers_beside_indices_have_a_grid_of_their_own(rng: np.random.Generator) -> None:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(2)(READ_AS_INDICES["beside"](x)))
    data = rng.normal(size=(64, 4)).astype("float32")
    data[:, :2] = rng.integers(0, ROWS, (64, 2))
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    wanted, found = np.asarray(model(data)), np.asarray(quantized(data))
    assert np.square(wanted - found).sum() < 1e-3 * np.square(wanted).sum()


class Text(keras.Model):
    """Reads rows of a table, as text models do; nothing says that its inputs are integers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = layers.Embedding(ROWS, 8)
        self.head = layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.head(ops.mean(self.table(inputs), 1))


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda x: x,
    "labels": lambda x: (x, np.zeros(len(x))),
    "generator": lambda x: ([row] for row in x),
    "callable": lambda x: lambda: ([row] for row in x),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_lookups_of_a_subclassed_model_find_their_rows(
    dtype: str, form: str, rng: np.random.Generator
) -> None:
    data = rng.integers(0, ROWS, (64, 6)).astype(dtype)
    model = Text()
    wanted = np.asarray(model(data))
    quantized = ocs_tf.convert(model, representative_dataset=FORMS[form](data), verbose=False)
    assert quantized.inputs[0].dtype == dtype
    assert np.square(wanted - quantized(data)).sum() < 1e-3 * np.square(wanted).sum()


class OneHot(keras.Model):
    """Cannot be called on anything but integers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        if "int" not in str(inputs.dtype):
            raise TypeError("these are no categories")
        return self.head(ops.one_hot(ops.mod(inputs, 8), 8))


def test_integers_where_nothing_else_will_do(rng: np.random.Generator) -> None:
    data = rng.integers(0, 100, (64,)).astype("int32")
    model = OneHot()
    wanted = np.asarray(model(data))
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    assert np.square(wanted - quantized(data)).sum() < 1e-3 * np.square(wanted).sum()


class Picture(keras.Model):
    """Reads numbers, which happen to be whole."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = layers.Rescaling(1 / 255)
        self.head = layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.head(self.scale(inputs))


def test_whole_numbers_are_numbers(rng: np.random.Generator) -> None:
    data = rng.integers(0, 256, (64, 5)).astype("uint8")
    model = Picture()
    model(data)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    assert quantized.inputs[0].dtype == "float32"


def test_rows_of_the_smallest_table() -> None:
    x = ids()
    shaped = layers.Reshape((2, 3))(x)
    parts = [layers.Embedding(rows, 2)(y) for rows, y in ((9, x), (7, shaped))]
    model = keras.Model(x, [layers.Flatten()(part) for part in parts])
    graph = Graph(model)
    assert table_rows(graph, graph.model.inputs[0]) == 7


def test_no_table_no_rows() -> None:
    x = ids()
    graph = Graph(keras.Model(x, layers.Dense(2)(x)))
    assert table_rows(graph, graph.model.inputs[0]) is None
