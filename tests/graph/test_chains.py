"""Which channels can be scaled: who makes them, and who reads them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from ocs_tf.graph.chains import chains
from ocs_tf.graph.reader import Graph
from tests.graph.chain_models import CASES, dense, model_of, parametrize_cases


@parametrize_cases
def test_chains(name: str, randomize: Any) -> None:
    graph = Graph(model_of(name, randomize))
    found = {maker: set(chain.readers) for maker, chain in chains(graph).items()}
    assert found == CASES[name][1]


def test_where_channels_of_several_layers_are_concatenated(randomize: Any) -> None:
    found = chains(Graph(model_of("dense block", randomize)))
    places = {name: chain.readers["n"] for name, chain in found.items() if "n" in chain.readers}
    others = np.full(5, -1)
    np.testing.assert_array_equal(places["a"], [*range(5), *others])
    np.testing.assert_array_equal(places["b"], [*others, *range(3), -1, -1])
    np.testing.assert_array_equal(places["c"], [*others, -1, -1, -1, 0, 1])
    joined = {name: chain.joined is not None for name, chain in found.items()}
    assert joined == {"a": True, "b": True, "c": True, "n": False}


def test_pooling_over_another_axis_than_the_channels_ends_a_chain() -> None:
    inputs = keras.Input((4, 6, 6))
    x = layers.Conv2D(6, 3, padding="same", name="a", data_format="channels_first")(inputs)
    x = layers.MaxPooling2D(data_format="channels_last")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="b", data_format="channels_first")(x))
    assert chains(Graph(model)) == {}


def test_a_flattened_tensor_has_each_channel_at_every_place(randomize: Any) -> None:
    graph = Graph(model_of("flatten", randomize))
    channels = chains(graph)["a"].readers["b"]
    np.testing.assert_array_equal(channels, np.arange(3 * 3 * 5) % 5)


def test_a_layer_with_more_weights_than_its_kernel_is_left_alone() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, dense("c")(dense("b")(dense("a")(inputs))))
    model.get_layer("b").enable_lora(2)
    assert chains(Graph(model)) == {}
