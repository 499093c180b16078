"""Warnings of data that look wrong, and none of data that do not."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.data import Source
from ocs_tf.data_checks import watched
from ocs_tf.graph.reader import Graph


def found(model: keras.Model, data: Any) -> list[str]:
    """Messages of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(watched(Graph(model), Source(data).batches(model), "data"))
    return [str(warning.message) for warning in caught if warning.category is UserWarning]


def with_norm(*front: keras.layers.Layer, batch_norm: bool = True) -> keras.Model:
    """A model whose batch norm knows the statistics of pixels of 0 .. 1."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = inputs
    for layer in front:
        x = layer(x)
    x = layers.Conv2D(4, 3, name="conv")(x)
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(x))
    if batch_norm:
        values = np.asarray(keras.Model(inputs, x)(pixels() / 255 if not front else pixels()))
        model.get_layer("norm").moving_mean.assign(values.mean((0, 1, 2)))
        model.get_layer("norm").moving_variance.assign(values.var((0, 1, 2)))
    return model


def pixels(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(np.float32)


def test_data_as_in_training() -> None:
    assert found(with_norm(), pixels() / 255) == []
    assert found(with_norm(layers.Rescaling(1 / 255)), pixels()) == []
    assert found(with_norm(layers.ZeroPadding2D()), pixels() * 0.8) == []
    assert found(with_norm(batch_norm=False), pixels()) == []  # never trained


def test_data_of_another_scale() -> None:
    (message,) = found(with_norm(), pixels())
    assert "`data` holds values from 0 to 255 at input 'image'" in message
    assert "at 'norm', their standard deviation is 255 times that" in message
    assert "Preprocess them as in training" in message
    (message,) = found(with_norm(layers.Rescaling(1 / 255)), pixels() / 255)
    assert "1/255 of that" in message
    # A single picture may have little contrast.
    (message,) = found(with_norm(layers.Rescaling(1 / 255)), pixels(1) / 255)
    assert "1 samples only" in message


def test_data_of_another_scale_than_a_normalization() -> None:
    inputs = keras.Input((8, 8, 3))
    norm = layers.Normalization(mean=[120.0] * 3, variance=[4000.0] * 3)
    model = keras.Model(inputs, layers.Conv2D(2, 3)(norm(inputs)))
    assert found(model, pixels()) == []
    (message,) = found(model, pixels() / 255)
    assert "at 'normalization'" in message


@pytest.mark.parametrize(("rows", "factor", "warned"), [(10, 9, 0), (40, 9, 1), (40, 1 / 99, 0)])
def test_rows_of_a_table(rows: int, factor: float, warned: int) -> None:
    """A few say nothing of the scale; many that are alike may follow each other."""
    inputs = keras.Input((3,))
    norm = layers.BatchNormalization()
    model = keras.Model(inputs, norm(layers.Dense(4, kernel_initializer="ones")(inputs)))
    norm.moving_variance.assign([3.0] * 4)  # of the sum of three
    data = factor * np.random.default_rng(0).normal(size=(rows, 3))
    assert ["scaled like the training data" in message for message in found(model, data)] == [
        True
    ] * warned


@pytest.mark.parametrize("value", [0, 3.5])
def test_samples_that_are_all_the_same(value: float) -> None:
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    (message,) = found(model, np.full((40, 3), value, np.float32))
    what = "the same" if value else "zero"
    assert f"all 40 samples of `data` are {what} at input 'x'" in message
    data = np.full((40, 3), value, np.float32)
    data[39, 2] = 1
    assert found(model, data) == []


def test_masks_may_be_the_same() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((3,), dtype="int32", name="mask")
    model = keras.Model([a, b], layers.Multiply()([a, b]))
    various, ones = np.random.default_rng(0).normal(size=(9, 3)), np.ones((9, 3))
    assert found(model, [various, ones]) == []
    assert len(found(model, [various * 0, ones])) == 2


@pytest.mark.parametrize(("count", "warned"), [(7, True), (8, False)])
def test_few_samples(count: int, warned: bool) -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    messages = found(model, np.random.default_rng(0).normal(size=(count, 3)))
    assert messages == [m for m in messages if "`data` holds 7 samples only" in m]
    assert bool(messages) == warned


@pytest.mark.parametrize("bits", [8, None])
def test_convert_warns_once(bits: int | None) -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ocs_tf.convert(
            model,
            activation_bits=bits,
            weight_bits=4,
            representative_dataset=np.zeros((9, 3)),
            verbose=False,
        )
    messages = [str(w.message) for w in caught if w.category is UserWarning]
    assert len(messages) == 1
    assert "all 9 samples of `representative_dataset` are zero" in messages[0]


def test_pictures_of_a_trained_network(zoo: ModuleType) -> None:
    entry = zoo.load("resnet20_cifar10", limit=1)
    right = entry.calibration[:8]
    assert found(entry.model, right) == []
    assert found(entry.model, right[..., ::-1]) == []
    raw = (right * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255
    for wrong in (raw, raw / 255, right / 255, right * 255):
        assert "scaled like the training data" in found(entry.model, wrong)[0]


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_indices_that_no_table_has(dtype: str) -> None:
    """They ended in an error of TensorFlow's that names no input."""
    ids = keras.Input((3,), dtype=dtype, name="ids")
    numbers = keras.Input((3,), name="numbers")
    x = layers.Flatten()(layers.Embedding(50, 2)(layers.Reshape((3, 1))(ids)))
    model = keras.Model([ids, numbers], layers.Dense(2)(layers.Concatenate()([x, numbers])))
    data = [np.full((9, 3), 49, dtype), np.full((9, 3), 99, np.float32)]
    data[0][0] = 0
    data[1][0] = 0
    assert found(model, data) == []
    data[0][8, 2] = 50
    with pytest.raises(ValueError, match=r"`data` holds 50 at input 'ids', .* has rows 0 to 49"):
        found(model, data)
    with pytest.raises(ValueError, match=r"^`representative_dataset` holds 50 at input 'ids'"):
        ocs_tf.convert(model, representative_dataset=data, verbose=False)
