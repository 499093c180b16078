"""Gradient descent on inputs, against statistics that NumPy computes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.reader import Graph
from ocs_tf.synthesis.matching import Range, match, norms_of
from tests.synthesis.test_input_moments import convolutional, pictures, trained


def relative_error(model: keras.Model, x: np.ndarray) -> float:
    """Of means and deviations at the batch norm, over those of training."""
    norm = model.get_layer("norm")
    values = np.asarray(keras.Model(model.inputs, norm.input)(x), np.float64)
    values = values.reshape(-1, values.shape[-1])
    mean, deviation = np.asarray(norm.moving_mean), np.sqrt(np.asarray(norm.moving_variance))
    of_means = np.square((values.mean(0) - mean) / deviation).mean()
    return float(of_means + np.square(values.std(0) / deviation - 1).mean())


@pytest.fixture
def model(rng: np.random.Generator) -> keras.Model:
    keras.utils.set_random_seed(0)
    return trained(convolutional(), "norm", pictures(rng, 0, 255))


def test_statistics_come_closer_to_those_of_training(
    model: keras.Model, rng: np.random.Generator
) -> None:
    graph = Graph(model)
    (norm,) = norms_of(graph)
    start = rng.uniform(0, 255, (24, 16, 16, 3)).astype(np.float32)
    (made,), before, after = match(
        graph, [norm], [start], [Range(0, 255, 65)], steps=30, batch_size=8, rng=rng
    )
    assert before == pytest.approx(relative_error(model, start), rel=1e-3)
    assert relative_error(model, made) < 0.2 * before
    assert after < 0.2 * before
    assert made.shape == start.shape
    assert made.min() >= -1e-3
    assert made.max() <= 255.001


def test_it_ends_where_real_data_are(model: keras.Model, rng: np.random.Generator) -> None:
    graph = Graph(model)
    x = pictures(rng, 0, 255)
    steps = []

    def counted(numbers: range) -> Any:
        for number in numbers:
            steps.append(number)
            yield number

    match(graph, norms_of(graph), [x], [Range(0, 255, 65)], 50, 50, rng, counted)
    assert len(steps) <= 3


def test_only_trained_norms_tell() -> None:
    assert norms_of(Graph(convolutional())) == []


def test_ids_stay_as_they_are(rng: np.random.Generator) -> None:
    ids, numbers = keras.Input((4,), dtype="int32", name="ids"), keras.Input((4,), name="numbers")
    x = layers.Concatenate()([layers.Flatten()(layers.Embedding(9, 3)(ids)), numbers])
    x = layers.BatchNormalization(name="norm")(layers.Dense(8)(x))
    model = keras.Model([ids, numbers], layers.Dense(2)(x))
    *kept, mean, variance = model.get_layer("norm").get_weights()
    model.get_layer("norm").set_weights([*kept, mean + 1, 4 * variance])
    graph = Graph(model)
    drawn = rng.integers(0, 9, (16, 4)).astype(np.int32)
    start = rng.normal(size=(16, 4)).astype(np.float32)
    (same, made), before, after = match(
        graph, norms_of(graph), [drawn, start], [None, Range(-9, 9, 1)], 20, 16, rng
    )
    np.testing.assert_array_equal(same, drawn)
    assert same.dtype == np.int32
    assert (made != start).all()
    assert after < before
