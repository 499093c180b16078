"""What is inside of users' layers is found and copied by attributes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.cloning import built_clone
from ocs_tf.layers.structure import copied, is_users, put, sublayers
from tests import own_layers


class Everything(layers.Layer):
    """What attributes of a layer may be; no configuration leads back to it."""

    def __init__(self, function: Any) -> None:
        super().__init__(name="everything")
        self.function = function
        self.bound = self.double
        self.seeds = keras.random.SeedGenerator(3)
        self.dense = layers.Dense(4)
        self.also_dense = self.dense
        self.by_key = {"a": layers.Dense(4), "b": [layers.ReLU(), np.arange(3)]}
        self.pair = (layers.Dropout(0.5), "text")

    def build(self, input_shape: Any) -> None:
        self.frozen = self.add_weight(shape=(4,), trainable=False, name="frozen")
        self.dense.build(input_shape)
        self.by_key["a"].build(input_shape)

    def double(self, x: Any) -> Any:
        return 2 * x + self.frozen

    def call(self, x: Any) -> Any:
        return self.function(self.bound(self.by_key["a"](self.also_dense(x))))


def clone(layer: layers.Layer) -> Any:
    return copied(layer, lambda _, part: built_clone(part))


@pytest.fixture
def everything() -> Everything:
    layer = Everything(lambda x: x - 1)
    layer(np.zeros((1, 4), np.float32))
    return layer


def test_sublayers_are_named_by_where_they_are(everything: Everything) -> None:
    assert list(sublayers(everything)) == ["dense", "by_key_a", "by_key_b_0", "pair_0"]


def test_layers_of_a_model_have_their_names_and_automatic_ones_a_count_of_their_own() -> None:
    layers.Dense(1)  # the automatic names begin with dense_1 here
    model = keras.Sequential([layers.Dense(1), layers.Dense(1, name="head_2"), layers.Dense(1)])
    assert list(sublayers(model)) == ["dense", "head_2", "dense_1"]


def test_a_copy_computes_the_same_with_variables_of_its_own(everything: Everything) -> None:
    copy = clone(everything)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    expected = np.asarray(everything(x))
    np.testing.assert_array_equal(np.asarray(copy(x)), expected)
    for variable in everything.variables:
        variable.assign(variable * 0 + 7)
    np.testing.assert_array_equal(np.asarray(copy(x)), expected)
    names = [(v.name, v.trainable, tuple(v.shape)) for v in everything.variables]
    assert [(v.name, v.trainable, tuple(v.shape)) for v in copy.variables] == names


def test_a_copy_shares_no_layers_and_no_containers(everything: Everything) -> None:
    copy = clone(everything)
    assert copy.also_dense is copy.dense is not everything.dense
    assert copy.bound.__self__ is copy
    assert copy.function is everything.function
    copy.by_key["b"][1][0] = 9
    assert everything.by_key["b"][1][0] == 0
    assert copy.seeds is not everything.seeds
    assert int(copy.seeds.state[0]) == int(everything.seeds.state[0])


def test_a_copy_trains(everything: Everything) -> None:
    copy = clone(everything)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, copy(inputs))
    before = np.asarray(copy.dense.kernel)
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 4)), np.zeros((4, 4)), verbose=0)
    assert not np.array_equal(before, np.asarray(copy.dense.kernel))


def test_put_replaces_a_layer_wherever_it_is(everything: Everything) -> None:
    new = layers.Dense(4, kernel_initializer="zeros", bias_initializer="ones")
    new.build((None, 4))
    put(everything, everything.dense, new)
    assert everything.dense is everything.also_dense is new
    assert [layer for layer in sublayers(everything).values() if layer is new] == [new]
    frozen = np.asarray(everything.frozen)
    everything.by_key["a"].kernel.assign(np.eye(4))
    got = np.asarray(everything(np.zeros((1, 4), np.float32)))
    np.testing.assert_allclose(got, [2 * np.ones(4) + frozen - 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("layer", "users"),
    [
        (lambda: own_layers.Block(), True),
        (lambda: layers.Dense(1), False),
        (lambda: keras.Sequential([layers.Dense(1)]), False),
    ],
)
def test_whose_class_a_layer_is_of(layer: Any, users: bool) -> None:
    assert is_users(layer()) == users
