"""Ranges of synthetic data hold what batch norms promise, and twice those of the last layers."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from ocs_tf.graph.analysis.activation_sites import all_sites
from ocs_tf.graph.reader import Graph
from ocs_tf.planning.calibration import Statistics
from ocs_tf.planning.synthetic_ranges import widened


def test_what_is_widened() -> None:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(5, 3, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(4, name="dense")(layers.GlobalAveragePooling2D(name="mean")(x))
    model = keras.Model(inputs, layers.Softmax(name="softmax")(x))
    beta, gamma = np.array([0.0, 1, -8, 2, 3]), np.array([1.0, 2, 1, 0.5, 1])
    model.get_layer("norm").set_weights([gamma, beta, np.zeros(5), np.ones(5)])
    graph = Graph(model)
    sites = all_sites(graph, set(graph.kernels))
    seen = Statistics.of(np.float32([0, 1.5]), histogram=False)
    measured = {site.key: [seen] for site in sites if not site.fixed}
    found = {key: each[0] for key, each in widened(graph, sites, measured).items()}
    # beta + 4 gamma: 1 + 8 is the largest; the variance is a little less than 1, by epsilon.
    (relu,) = [key for key in found if key in ("conv", "norm", "relu")]
    np.testing.assert_allclose(found[relu].maximum, 1 + 4 * 2 / np.sqrt(1 + 1e-3), rtol=1e-5)
    assert found[relu].minimum == 0
    assert (found["dense"].minimum, found["dense"].maximum) == (0, 3.0)
    assert found["input_layer" if "input_layer" in found else inputs.name] == seen
    assert "softmax" not in found


def test_nothing_is_known_without_batch_norms() -> None:
    inputs = keras.Input((4,))
    x = layers.Dense(5, activation="relu", name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    graph = Graph(model)
    sites = all_sites(graph, set(graph.kernels))
    seen = Statistics.of(np.float32([-1, 2]), histogram=False)
    found = widened(graph, sites, {site.key: [seen] for site in sites})
    assert found["first"] == [seen]
    assert (found["last"][0].minimum, found["last"][0].maximum) == (-2, 4)
