"""Which channels can be scaled: who makes them, and who reads them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.analysis.chains import chains
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.scaling import scale_channels
from tests.graph import twins
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


@pytest.mark.parametrize("pool", ["Average", "Max"])
@pytest.mark.parametrize("rank", twins.RANKS)
def test_chains_in_any_number_of_dimensions(rank: int, pool: str, randomize: Any) -> None:
    model = randomize(twins.network(rank, pool))
    graph = Graph(model)
    found = {maker: set(chain.readers) for maker, chain in chains(graph).items()}
    assert found == {"norm": {"b"}, "b": {"c"}}
    factors = {"norm": np.linspace(0.2, 5, 6), "b": np.linspace(4, 0.3, 5)}
    scaled, x = scale_channels(graph, factors), twins.samples(rank)
    expected = model.predict_on_batch(x)
    np.testing.assert_allclose(scaled.predict_on_batch(x), expected, rtol=1e-4, atol=1e-5)


def test_repeated_channels_stay_on_the_last_axis(randomize: Any) -> None:
    inputs = keras.Input((4,))
    x = layers.RepeatVector(3)(dense("a")(inputs))
    model = randomize(keras.Model(inputs, layers.Conv1D(2, 1, name="b")(x)))
    (chain,) = chains(Graph(model)).values()
    np.testing.assert_array_equal(chain.readers["b"], np.arange(5))


@pytest.mark.parametrize(
    ("layer", "training", "found"),
    [
        (layers.GaussianNoise(1.0), False, True),
        (layers.GaussianNoise(1.0), True, False),
        (layers.AlphaDropout(0.5), True, False),
        (layers.Dropout(0.5), True, True),
    ],
    ids=["noise", "noise-training", "alpha-training", "dropout-training"],
)
def test_what_is_added_in_training_ends_a_chain(layer: Any, training: bool, found: bool) -> None:
    inputs = keras.Input((4,))
    x = type(layer).from_config(layer.get_config())(dense("a")(inputs), training=training)
    assert bool(chains(Graph(keras.Model(inputs, dense("b")(x))))) is found


class TopTwo(layers.MaxPooling2D):
    """Pools across channels, too."""

    def call(self, inputs: Any) -> Any:
        return super().call(inputs) - keras.ops.max(inputs, axis=(1, 2, 3), keepdims=True)


class Capped(layers.ReLU):
    def call(self, inputs: Any) -> Any:
        return keras.ops.minimum(super().call(inputs), 1.0)


@pytest.mark.parametrize("cls", [TopTwo, Capped])
def test_a_subclass_with_a_function_of_its_own_ends_a_chain(cls: Any) -> None:
    inputs = keras.Input((6, 6, 4))
    x = cls()(layers.Conv2D(5, 3, name="a")(inputs))
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="b")(x))
    assert chains(Graph(model)) == {}
