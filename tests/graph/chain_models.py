"""Networks whose channels can be scaled, and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.graph.analysis.chains import chains
from ocs_tf.graph.reader import Graph

SHAPE = (6, 6, 4)


def conv(name: str, filters: int = 5, **options: Any) -> layers.Layer:
    return layers.Conv2D(filters, 3, padding="same", name=name, **options)


def dense(name: str, units: int = 5, **options: Any) -> layers.Layer:
    return layers.Dense(units, name=name, **options)


def norm(name: str, **options: Any) -> layers.Layer:
    return layers.BatchNormalization(name=name, **options)


def mix(x: Any) -> Any:
    """A sum of neighbours, which no factor of one channel goes through."""
    return layers.Add()([x, layers.Permute((2, 1, 3))(x)])


def in_between(*steps: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A kernel, some steps (layers are copied, for each model to have its own), another kernel."""

    def build(x: Any) -> Any:
        x = conv("a")(x)
        for step in steps:
            own = isinstance(step, layers.Layer)
            x = (type(step).from_config(step.get_config()) if own else step)(x)
        return conv("b", 3)(x)

    return build


def two_readers(x: Any) -> Any:
    x = conv("a", activation="relu")(x)
    return layers.Add()([conv("b")(x), conv("c")(layers.MaxPooling2D(1)(x))])


def two_readers_of_different_tensors(x: Any) -> Any:
    x = conv("a")(x)
    return layers.Add()([conv("b")(x), conv("c")(layers.ReLU()(x))])


def in_a_row(x: Any) -> Any:
    for name in "abc":
        x = conv(name, activation="relu")(x)
    return x


def mobile(x: Any) -> Any:
    x = layers.ReLU()(norm("n1")(conv("a", use_bias=False)(x)))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="d")(x)
    return conv("b")(layers.ReLU()(norm("n2")(x)))


def grouped(x: Any) -> Any:
    x = conv("a", 6, activation="relu")(x)
    x = conv("g", 8, groups=2, activation="leaky_relu")(x)
    return conv("b")(x)


def lone_norms(x: Any) -> Any:
    x = layers.Add()([conv("a", 4)(x), x])
    x = conv("b", 4)(layers.ReLU()(norm("n1")(x)))
    return conv("c")(layers.ReLU()(norm("n2", scale=False)(mix(x))))


def head(pool: layers.Layer) -> Callable[[Any], Any]:
    """A kernel and a pooling in front of a Dense layer."""

    def build(x: Any) -> Any:
        own = type(pool).from_config(pool.get_config())
        return dense("b")(layers.Flatten()(own(conv("a", activation="relu")(x))))

    return build


def sum_of_readers(x: Any) -> Any:
    x = conv("a")(x)
    return conv("c")(layers.Add()([x, conv("b")(x)]))


def shared_reader(x: Any) -> Any:
    both = conv("b", 4)
    return both(both(conv("a", 4)(x)))


def shared_maker(x: Any) -> Any:
    both = conv("a", 4)
    return conv("c")(layers.ReLU()(layers.Maximum()([both(x), conv("b", 4)(both(x))])))


def nested(x: Any) -> Any:
    inner_input = keras.Input((6, 6, 5))
    inner = keras.Model(inner_input, conv("inside")(layers.ReLU()(inner_input)), name="inner")
    return conv("c")(conv("b")(inner(conv("a")(x))))


def twice(x: Any) -> Any:
    x = conv("a")(x)
    return conv("b")(layers.Concatenate()([x, x]))


def dense_block(x: Any) -> Any:
    """Each kernel reads what all before it made; so does a norm, behind a pooling."""
    first = conv("a")(x)
    second = conv("b", 3)(layers.ReLU()(first))
    both = layers.Concatenate()([first, second])
    third = conv("c", 2)(layers.ReLU()(both))
    every = keras.ops.concatenate([first, second, third], axis=-1)
    return conv("d")(layers.ReLU()(norm("n")(layers.AveragePooling2D(2)(every))))


def inception(x: Any) -> Any:
    """Branches of kernels, norms and ReLUs; one brings channels that cannot be scaled."""
    one = layers.ReLU()(norm("n1")(conv("a")(x)))
    two = layers.MaxPooling2D(1)(layers.ReLU()(norm("n2")(conv("b", 3)(x))))
    x = layers.Concatenate()([one, two, layers.ReLU(6.0)(conv("c")(x))])
    return dense("head")(layers.GlobalAveragePooling2D()(x))


def joined_in_space(x: Any) -> Any:
    return conv("c")(layers.Concatenate(axis=1)([conv("a")(x), conv("b")(x)]))


def joined_and_summed(x: Any) -> Any:
    one = conv("a", 2)(x)
    both = layers.Concatenate()([one, conv("b", 2)(x)])
    return conv("c")(layers.Add()([both, x]))


def dense_3d(x: Any) -> Any:
    x = dense("b")(dense("a", activation="relu")(x))
    return dense("c")(layers.Flatten()(layers.Softmax()(x)))


# Each with the layers whose channels can be scaled, and the layers that read them.
CASES: dict[str, tuple[Callable[[Any], Any], dict[str, set[str]]]] = {
    "linear": (in_between(), {"a": {"b"}}),
    "relu": (in_between(layers.ReLU()), {"a": {"b"}}),
    "relu with a slope": (in_between(layers.ReLU(negative_slope=0.1)), {"a": {"b"}}),
    "leaky relu": (in_between(layers.LeakyReLU()), {"a": {"b"}}),
    "prelu": (in_between(layers.PReLU(shared_axes=(1, 2))), {"a": {"b"}}),
    "activation": (in_between(layers.Activation("relu")), {"a": {"b"}}),
    "max pooling": (in_between(layers.MaxPooling2D()), {"a": {"b"}}),
    "average pooling": (in_between(layers.AveragePooling2D(2)), {"a": {"b"}}),
    "padding": (in_between(layers.ZeroPadding2D(1)), {"a": {"b"}}),
    "cropping": (in_between(layers.Cropping2D(1)), {"a": {"b"}}),
    "upsampling": (in_between(layers.UpSampling2D(interpolation="bilinear")), {"a": {"b"}}),
    "dropout": (in_between(layers.Dropout(0.5), layers.SpatialDropout2D(0.5)), {"a": {"b"}}),
    "norm": (in_between(norm("n"), layers.ReLU()), {"n": {"b"}}),
    "norm, no scale": (in_between(norm("n", scale=False), layers.ReLU()), {"n": {"b"}}),
    "norm, no shift": (in_between(norm("n", center=False), layers.ReLU()), {"n": {"b"}}),
    "norm behind relu": (in_between(layers.ReLU(), norm("n")), {"n": {"b"}}),
    "two readers": (two_readers, {"a": {"b", "c"}}),
    "two readers, two tensors": (two_readers_of_different_tensors, {"a": {"b", "c"}}),
    "in a row": (in_a_row, {"a": {"b"}, "b": {"c"}}),
    "mobile": (mobile, {"n1": {"d"}, "n2": {"b"}}),
    "grouped": (grouped, {"a": {"g"}, "g": {"b"}}),
    "lone norms": (lone_norms, {"n1": {"b"}, "n2": {"c"}}),
    "global pooling": (head(layers.GlobalAveragePooling2D()), {"a": {"b"}}),
    "global pooling, axes kept": (head(layers.GlobalMaxPooling2D(keepdims=True)), {"a": {"b"}}),
    "flatten": (head(layers.MaxPooling2D(2)), {"a": {"b"}}),
    "dense on 3-D": (dense_3d, {"a": {"b"}}),
    "concatenation": (twice, {"a": {"b"}}),
    "dense block": (
        dense_block,
        {"a": {"b", "c", "n"}, "b": {"c", "n"}, "c": {"n"}, "n": {"d"}},
    ),
    "inception": (inception, {"n1": {"head"}, "n2": {"head"}}),
    # What no factor goes through.
    "relu6": (in_between(layers.ReLU(6.0)), {}),
    "relu with a threshold": (in_between(layers.ReLU(threshold=0.5)), {}),
    "sigmoid": (in_between(layers.Activation("sigmoid")), {}),
    "hard swish": (in_between(layers.Activation("hard_silu")), {}),
    "elu": (in_between(layers.ELU()), {}),
    "softmax": (in_between(layers.Softmax()), {}),
    "relu6 in the layer": (lambda x: conv("b")(conv("a", activation="relu6")(x)), {}),
    "layer norm": (in_between(layers.LayerNormalization()), {}),
    "permute": (in_between(layers.Permute((1, 3, 2))), {}),
    "bare operation": (in_between(lambda x: keras.ops.maximum(x, 0.1)), {}),
    "norm in training": (in_between(lambda x: norm("n")(x, training=True)), {}),
    "sum": (sum_of_readers, {}),
    "concatenation in space": (joined_in_space, {}),
    "concatenation in a sum": (joined_and_summed, {}),
    "shared reader": (shared_reader, {}),
    "shared maker": (shared_maker, {}),
    "nested model": (nested, {"a": {"inside"}, "inside": {"b"}, "b": {"c"}}),
    "no reader": (lambda x: conv("a")(x), {}),
}
parametrize_cases = pytest.mark.parametrize("name", CASES)


def filled(model: keras.Model, randomize: Any) -> keras.Model:
    model = randomize(model)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.PReLU):
            layer.alpha.assign(rng.uniform(-1, 1, layer.alpha.shape))
    return model


def model_of(name: str, randomize: Any) -> keras.Model:
    inputs = keras.Input(SHAPE, name="x")
    return filled(keras.Model(inputs, CASES[name][0](inputs)), randomize)


def random_scales(graph: Graph, low: float = 1e-2, high: float = 1e2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    exponents = np.log([low, high])
    return {name: np.exp(rng.uniform(*exponents, c.size)) for name, c in chains(graph).items()}


def check_same(model: keras.Model, other: keras.Model, seed: int = 2) -> None:
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(3, *t.shape[1:])).astype(np.float32) for t in model.inputs]
    x = x[0] if len(x) == 1 else x
    want, got = (keras.tree.flatten(m.predict_on_batch(x)) for m in (model, other))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())
