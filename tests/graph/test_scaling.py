"""A model with scaled channels computes what it did."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.analysis.chains import chains
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.scaling import scale_channels
from ocs_tf.planning.calibration import observe
from tests.graph.chain_models import (
    SHAPE,
    check_same,
    conv,
    dense,
    filled,
    in_between,
    model_of,
    norm,
    parametrize_cases,
    random_scales,
)
from tests.own_layers import Forgetful


@parametrize_cases
@pytest.mark.parametrize("fold", [False, True], ids=["unfolded", "folded"])
def test_the_function_stays_the_same(name: str, fold: bool, randomize: Any) -> None:
    model = model_of(name, randomize)
    weights = [np.array(w) for w in model.weights]
    graph = Graph(model, fold)
    scales = random_scales(graph)
    other = scale_channels(graph, scales)
    check_same(model, other)
    assert [type(a) for a in graph.model.layers] == [type(b) for b in other.layers]
    assert Graph(other, fold).folded == graph.folded
    for weight, before in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(weight, before)
    x = np.random.default_rng(3).normal(size=(2, *SHAPE)).astype(np.float32)
    for maker, chain in chains(graph).items():
        (before,), (after,) = (
            next(iter(observe(m, [m.get_layer(maker).output], [[x]]))) for m in (graph.model, other)
        )
        want = before / scales[maker]
        np.testing.assert_allclose(after, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
        assert chain.size == before.shape[-1]


def test_channels_first(randomize: Any) -> None:
    """Which convolution Keras computes on a CPU is another matter: weights tell."""
    options = {"data_format": "channels_first"}
    inputs = keras.Input((4, 6, 6))
    x = layers.Conv2D(5, 3, name="a", **options)(inputs)
    x = layers.MaxPooling2D(**options)(layers.ReLU()(norm("n", axis=1)(x)))
    x = layers.GlobalAveragePooling2D(**options)(layers.DepthwiseConv2D(1, name="d", **options)(x))
    model = filled(keras.Model(inputs, dense("b")(x)), randomize)
    graph = Graph(model)
    assert {k: set(c.readers) for k, c in chains(graph).items()} == {"n": {"d"}, "d": {"b"}}
    scales = random_scales(graph)
    other = scale_channels(graph, scales)
    depthwise = [np.asarray(m.get_layer("d").kernel)[..., 0] for m in (model, other)]
    np.testing.assert_allclose(depthwise[1], depthwise[0] * scales["n"] / scales["d"], rtol=1e-5)
    heads = [np.asarray(m.get_layer("b").kernel) for m in (model, other)]
    np.testing.assert_allclose(heads[1], heads[0] * scales["d"][:, None], rtol=1e-5)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"z": [1.0]}, "channels of layer 'z', which .* does not have, .*; those are: a$"),
        ({"b": np.ones(3)}, "channels of layer 'b', which .* cannot be scaled; those are: a$"),
        ({"a": np.ones(4)}, "channels of layer 'a' by 4 numbers; it must be 5 positive ones"),
        ({"a": [1, 1, 1, 1, 0]}, "must be 5 positive ones"),
        ({"a": [1, 1, 1, 1, np.nan]}, "must be 5 positive ones"),
        ({"a": [1, 1, 1, 1, np.inf]}, "must be 5 positive ones"),
    ],
    ids=["unknown", "last", "size", "zero", "nan", "infinite"],
)
def test_scales_that_do_not_fit(scales: Any, message: str, randomize: Any) -> None:
    with pytest.raises(ValueError, match=message.replace("a$", r"a\.$")):
        scale_channels(Graph(model_of("relu", randomize)), scales)


def test_a_layer_whose_configuration_lacks_something_is_copied() -> None:
    inputs = keras.Input(SHAPE)
    x = Forgetful(3, name="forgetful")(inputs)
    model = keras.Model(inputs, in_between(layers.ReLU())(x))
    scaled = scale_channels(Graph(model), {"a": np.full(5, 2.0)})
    data = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(scaled(data), model(data), rtol=1e-4, atol=1e-5)


def test_outputs_of_the_model_keep_their_scale(randomize: Any) -> None:
    inputs = keras.Input(SHAPE)
    x = conv("a")(inputs)
    y = layers.ReLU(name="relu")(x)
    z = conv("b", activation="relu")(y)
    outputs = {"middle": y, "end": conv("c")(z)}
    model = filled(keras.Model(inputs, outputs), randomize)
    assert list(chains(Graph(model))) == ["b"]
    other = scale_channels(Graph(model), random_scales(Graph(model)))
    assert set(other.output) == {"middle", "end"}
    check_same(model, other)
