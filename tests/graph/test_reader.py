"""Reading models: the order of calls, first and last kernels, what batch norms can be folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.graph.reader import Graph, is_chain

SHAPE = (6, 6, 4)


def norm(**options: Any) -> keras.layers.BatchNormalization:
    return layers.BatchNormalization(name="norm", **options)


def chain(*steps: Any, shape: tuple[int, ...] = SHAPE) -> keras.Model:
    inputs = x = keras.Input(shape)
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


def compiled(*steps: Any, shape: tuple[int, ...]) -> keras.Model:
    """A chain for XLA, which computes channels_first on every CPU."""
    model = chain(*steps, shape=shape)
    model.compile(jit_compile=True)
    return model


def conv(name: str = "conv", **options: Any) -> keras.layers.Layer:
    return layers.Conv2D(options.pop("filters", 8), 3, name=name, **options)


FOLDED: dict[str, Callable[[], keras.Model]] = {
    "conv": lambda: chain(conv(), norm(), layers.ReLU()),
    "conv-no-bias": lambda: chain(conv(use_bias=False), norm(), layers.ReLU()),
    "dense": lambda: chain(layers.Dense(3, name="conv"), norm(), layers.ReLU(), shape=(5,)),
    "dense-3d": lambda: chain(layers.Dense(3, name="conv"), norm(), layers.ReLU(), shape=(2, 5)),
    "grouped": lambda: chain(conv(groups=2), norm(), layers.ReLU()),
    "depthwise": lambda: chain(layers.DepthwiseConv2D(3, name="conv"), norm(), layers.ReLU()),
    "depthwise-multiplier": lambda: chain(
        layers.DepthwiseConv2D(3, depth_multiplier=3, name="conv"), norm(), layers.ReLU()
    ),
    "no-scale": lambda: chain(conv(), norm(scale=False), layers.ReLU()),
    "no-center": lambda: chain(conv(), norm(center=False), layers.ReLU()),
    "neither": lambda: chain(conv(), norm(scale=False, center=False), layers.ReLU()),
    "axis-last-positive": lambda: chain(conv(), norm(axis=3), layers.ReLU()),
    "channels-first": lambda: compiled(
        conv(data_format="channels_first"), norm(axis=1), layers.ReLU(), shape=(4, 6, 6)
    ),
    "linear-by-name": lambda: chain(conv(activation="linear"), norm(), layers.ReLU()),
    "not-training": lambda: chain(conv(), lambda x: norm()(x, training=False), layers.ReLU()),
}


def read_twice() -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = conv()(inputs)
    return keras.Model(inputs, layers.Add()([layers.ReLU()(norm()(x)), x]))


def conv_is_output() -> keras.Model:
    inputs = keras.Input(SHAPE)
    x = conv()(inputs)
    return keras.Model(inputs, [layers.ReLU()(norm()(x)), x])


def shared_norm() -> keras.Model:
    a, b, both = keras.Input(SHAPE), keras.Input(SHAPE), norm()
    return keras.Model([a, b], layers.Add()([both(conv("conv")(a)), both(conv("other")(b))]))


def shared_conv() -> keras.Model:
    a, b, both = keras.Input(SHAPE), keras.Input(SHAPE), conv()
    return keras.Model([a, b], layers.Add()([layers.ReLU()(norm()(both(a))), both(b)]))


class OwnNorm(layers.BatchNormalization):
    """A user's subclass, which may compute anything."""


KEPT: dict[str, Callable[[], keras.Model]] = {
    "read-twice": read_twice,
    "conv-is-output": conv_is_output,
    "norm-is-output": lambda: chain(conv(), norm()),
    "shared-norm": shared_norm,
    "shared-conv": shared_conv,
    "activation-between": lambda: chain(conv(activation="relu"), norm(), layers.ReLU()),
    "layer-between": lambda: chain(conv(), layers.ReLU(), norm(), layers.ReLU()),
    "other-axis": lambda: chain(conv(), norm(axis=1), layers.ReLU()),
    "norm-first": lambda: chain(norm(), conv(), layers.ReLU()),
    "subclass": lambda: chain(conv(), OwnNorm(name="norm"), layers.ReLU()),
    "in-training-mode": lambda: chain(conv(), lambda x: norm()(x, training=True), layers.ReLU()),
}


def inputs_of(model: keras.Model, rng: np.random.Generator) -> Any:
    return [rng.normal(size=(3, *t.shape[1:])).astype(np.float32) for t in model.inputs]


@pytest.mark.parametrize("make", FOLDED.values(), ids=FOLDED)
def test_folded_batch_norm_changes_no_output(
    make: Callable[[], keras.Model], randomize: Any, rng: np.random.Generator
) -> None:
    model = randomize(make())
    graph = Graph(model)
    assert graph.folded == {"norm"}
    floats = ocs_tf.apply(model, ocs_tf.Plan({}), verbose=False)  # folds, quantizes nothing
    assert "norm" not in [layer.name for layer in floats.layers]
    (x,) = inputs_of(model, rng)
    got, want = (
        m.predict(x, verbose=0) if m.compiled else np.asarray(m(x)) for m in (floats, model)
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_batch_norm_that_cannot_be_folded_stays(
    make: Callable[[], keras.Model], randomize: Any, rng: np.random.Generator
) -> None:
    model = randomize(make())
    assert Graph(model).folded == set()
    plan = ocs_tf.plan(model, weight_bits=8, verbose=False)
    assert "batch norm" in plan.float_layers["norm"]
    quantized = ocs_tf.apply(model, plan, verbose=False)
    assert "norm" in [layer.name for layer in quantized.layers]
    x = inputs_of(model, rng)
    x = x if len(x) > 1 else x[0]
    for got, want in zip(*(keras.tree.flatten(m(x)) for m in (quantized, model)), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=0.2)


def test_folding_can_be_switched_off() -> None:
    assert Graph(FOLDED["conv"](), fold_batch_norm=False).folded == set()


def test_nodes_are_in_topological_order() -> None:
    graph = Graph(read_twice())
    seen: set[int] = set()
    for node in graph.nodes:
        assert all(id(t) in seen for t in node.inputs)
        seen |= {id(t) for t in node.outputs}
    assert [n.layer.name for n in graph.nodes if not n.inputs] == [graph.model.layers[0].name]


def test_a_shared_layer_has_several_calls() -> None:
    graph = Graph(shared_conv())
    assert len(graph.calls(graph.kernels["conv"].layer)) == len(graph.calls_of("conv")) == 2
    assert list(graph.kernels) == ["conv"]


def branches() -> keras.Model:
    #  a ─ stem ─┬─ left ──┬─ add ─ head ─ out        b ─ other ─ side
    #            └─ right ─┘
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    stem = layers.Dense(4, name="stem")(a)
    left, right = (layers.Dense(4, name=n)(layers.ReLU()(stem)) for n in ("left", "right"))
    head = layers.Dense(2, name="head")(layers.Add()([left, right]))
    side = layers.Dense(2, name="side")(layers.Dense(3, name="other")(b))
    return keras.Model([a, b], [head, side])


def test_first_and_last_kernels() -> None:
    graph = Graph(branches())
    assert graph.first_kernels() == {"stem", "other"}
    assert graph.last_kernels() == {"head", "side"}


def test_first_and_last_of_one_layer() -> None:
    graph = Graph(chain(layers.Dense(3, name="only"), layers.ReLU(), shape=(4,)))
    assert graph.first_kernels() == graph.last_kernels() == {"only"}


def test_a_chain_is_what_a_sequential_model_can_be() -> None:
    steps = [layers.Dense(4), layers.ReLU(), layers.Dropout(0.5)]
    assert is_chain(Graph(keras.Sequential([keras.Input((4,)), *steps])).model)
    assert is_chain(Graph(chain(layers.Dense(4), layers.ReLU(), shape=(4,))).model)


@pytest.mark.parametrize(
    "make",
    [
        lambda: chain(layers.Dense(4), keras.ops.relu, shape=(4,)),
        lambda: chain(layers.Dense(4), lambda x: x + 1, shape=(4,)),
        lambda: chain(lambda x: layers.Dropout(0.5)(x, training=True), shape=(4,)),
        lambda: chain(lambda x: layers.Add()([x, x]), shape=(4,)),
        branches,
        conv_is_output,
        shared_conv,
        lambda: keras.Sequential([keras.Input((4,)), twice(layers.Dense(4))]),
    ],
    ids=[
        "op",
        "constant",
        "option",
        "reads-twice",
        "branches",
        "outputs",
        "shared",
        "called-twice",
    ],
)
def test_what_is_no_chain(make: Callable[[], keras.Model]) -> None:
    assert not is_chain(Graph(make()).model)


def twice(layer: Any) -> keras.Model:
    return chain(layer, layers.ReLU(), layer, shape=(4,))


def test_sequential_built_by_data_is_read() -> None:
    model = keras.Sequential([layers.Dense(2), layers.Dense(3)])
    model(np.zeros((1, 4), np.float32))
    assert len(Graph(model).kernels) == 2


def test_a_nested_quantized_model_is_opened_on_demand(randomize: Any) -> None:
    inner = ocs_tf.convert(randomize(chain(layers.Dense(3, name="inside"), shape=(4,))))
    outer = chain(inner, layers.Dense(2, name="outside"), shape=(4,))
    names = [node.layer.name for node in Graph(outer).nodes]
    assert inner.name in names
    assert Graph(outer).model is outer
    opened = [node.layer.name for node in Graph(outer, open_quantized=True).nodes]
    assert opened == [name if name != inner.name else "inside" for name in names]
