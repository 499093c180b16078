"""Where activations are rounded, and which places share a grid."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.graph.analysis.activation_sites import all_sites, fixed_grid, input_sites
from ocs_tf.graph.reader import Graph
from tests.graph import twins

SHAPE = (8, 8, 4)


def chain(*steps: Any, shape: tuple[int, ...] = SHAPE) -> keras.Model:
    inputs = x = keras.Input(shape, name="in")
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


def conv(name: str, **options: Any) -> keras.layers.Layer:
    return layers.Conv2D(4, 3, padding="same", name=name, **options)


def residual() -> keras.Model:
    inputs = keras.Input(SHAPE, name="in")
    x = conv("a")(inputs)
    y = layers.ReLU(name="relu")(x)
    return keras.Model(inputs, layers.Add(name="sum")([conv("b")(y), x]))


def concatenated(*names: str, join: Any = layers.Concatenate) -> keras.Model:
    inputs = keras.Input(SHAPE, name="in")
    parts = [conv(name, activation="relu")(inputs) for name in names]
    return keras.Model(inputs, conv("last")(join(name="cat")(parts)))


def dense_block() -> keras.Model:
    inputs = keras.Input(SHAPE, name="in")
    first = layers.Concatenate(name="cat1")([conv("a")(inputs), conv("b")(inputs)])
    second = layers.Concatenate(name="cat2")([first, conv("c")(first)])
    return keras.Model(inputs, conv("last")(layers.MaxPooling2D(name="pool")(second)))


def concatenated_gate() -> keras.Model:
    inputs = keras.Input(SHAPE, name="in")
    parts = [conv("a")(inputs), conv("gate", activation="sigmoid")(inputs)]
    return keras.Model(inputs, layers.Concatenate(name="cat")(parts))


def bare_operations() -> keras.Model:
    inputs = keras.Input(SHAPE, name="in")
    x = conv("a")(inputs)
    return keras.Model(inputs, conv("b")(keras.ops.concatenate([x[..., :2], x[..., 2:]])))


def shared() -> keras.Model:
    a, b, both = keras.Input(SHAPE, name="a"), keras.Input(SHAPE, name="b"), conv("both")
    return keras.Model([a, b], layers.Add(name="sum")([both(a), both(b)]))


def relu(name: str) -> keras.layers.Layer:
    return layers.ReLU(name=name)


def shared_before(first: Any, second: Any) -> keras.Model:
    inputs, a = keras.Input(SHAPE, name="in"), conv("a")
    return keras.Model(inputs, [first(a(inputs)), second(a(inputs))])


def shared_pool() -> keras.Model:
    inputs, pool = keras.Input(SHAPE, name="in"), layers.AveragePooling2D(2, name="p")
    return keras.Model(inputs, [pool(conv("a")(inputs)), pool(conv("b")(inputs))])


# Expected: sites as "key" where a site has a grid of its own, "key=group" where it shares the grid
# of another one, "key!" where the grid is prescribed.
SITES: dict[str, tuple[Callable[[], keras.Model], str]] = {
    "linear": (lambda: chain(conv("a"), conv("b")), "in a b"),
    "relu-inside": (lambda: chain(conv("a", activation="relu")), "in a"),
    "relu-behind": (lambda: chain(conv("a"), layers.ReLU(name="r")), "in r"),
    "relu6-behind": (lambda: chain(conv("a"), layers.ReLU(6, name="r")), "in r"),
    "activation-behind": (lambda: chain(conv("a"), layers.Activation("relu", name="r")), "in r"),
    "constant-added-and-relu6": (
        lambda: chain(conv("a"), lambda x: x + 3.0, layers.ReLU(6, name="r"), conv("b")),
        "in r b",
    ),
    "constant-added": (lambda: chain(conv("a"), lambda x: 3.0 + x, conv("b")), "in add b"),
    "constant-subtracted": (lambda: chain(conv("a"), lambda x: x - 3.0), "in subtract"),
    "subtracted-from-constant": (lambda: chain(conv("a"), lambda x: 3.0 - x), "in a subtract"),
    "linear-activation": (
        lambda: chain(conv("a"), layers.Activation("linear", name="l"), conv("b")),
        "in a b",
    ),
    "folded-rescaling": (
        lambda: chain(conv("a"), layers.Rescaling(0.5, name="s"), conv("b")),
        "in a b",
    ),
    "rescaling-and-relu": (
        lambda: chain(layers.Rescaling(0.5, 1, name="s"), layers.ReLU(name="r"), conv("b")),
        "in r b",
    ),
    "leaky-relu-behind": (
        lambda: chain(conv("a"), layers.ReLU(negative_slope=0.1, name="r")),
        "in a r",
    ),
    "folded-norm": (
        lambda: chain(conv("a"), layers.BatchNormalization(name="n"), conv("b")),
        "in a b",
    ),
    "folded-norm-and-relu": (
        lambda: chain(conv("a"), layers.BatchNormalization(name="n"), layers.ReLU(name="r")),
        "in r",
    ),
    "swish-inside": (lambda: chain(conv("a", activation="swish")), "in a:preactivation a"),
    "softmax-inside": (
        lambda: chain(layers.Dense(3, activation="softmax", name="a"), shape=(4,)),
        "in a:preactivation a!",
    ),
    "softmax-layer": (
        lambda: chain(layers.Dense(3, name="a"), layers.Softmax(name="s"), shape=(4,)),
        "in a s!",
    ),
    "sigmoid-layer": (
        lambda: chain(
            layers.Dense(3, name="a"), layers.Activation("sigmoid", name="s"), shape=(4,)
        ),
        "in a s!",
    ),
    "tanh-layer": (
        lambda: chain(layers.Dense(3, name="a"), layers.Activation("tanh", name="s"), shape=(4,)),
        "in a s!",
    ),
    "moves": (
        lambda: chain(
            conv("a"),
            layers.ZeroPadding2D(name="p"),
            layers.MaxPooling2D(name="m"),
            layers.Dropout(0.1, name="d"),
            layers.Flatten(name="f"),
            layers.Dense(3, name="b"),
        ),
        "in a b",
    ),
    "average-pool": (
        lambda: chain(conv("a"), layers.AveragePooling2D(2, name="p"), conv("b")),
        "in a p=a b",
    ),
    "global-pool": (
        lambda: chain(
            conv("a"), layers.GlobalAveragePooling2D(name="p"), layers.Dense(2, name="b")
        ),
        "in a p b",
    ),
    "residual": (residual, "in a relu b sum"),
    "concatenation": (lambda: concatenated("a", "b"), "in a=cat b=cat cat last"),
    "maximum": (
        lambda: concatenated("a", "b", join=layers.Maximum),
        "in a=cat b=cat cat last",
    ),
    "nested-concatenations": (dense_block, "in a=cat2 b=cat2 cat1=cat2 c=cat2 cat2 last"),
    "concatenated-gate": (concatenated_gate, "in a=cat gate:preactivation gate! cat"),
    "bare-operations": (bare_operations, "in a=concatenate concatenate b"),
    "shared": (shared, "a b both sum"),
    "shared-before-relus": (lambda: shared_before(relu("r1"), relu("r2")), "in r1 r2"),
    # What has a grid for one of its calls has it for all; their ReLUs are on it, too.
    "shared-before-a-relu": (lambda: shared_before(relu("r1"), lambda y: y), "in a r1=a"),
    "shared-before-a-shift": (lambda: shared_before(lambda y: y + 1.0, relu("r")), "in a add r=a"),
    "shared-average-pool": (shared_pool, "in a=p b=p p"),
    "integer-input": (
        lambda: keras.Sequential(
            [
                keras.Input((5,), dtype="int32", name="in"),
                layers.Embedding(9, 4, name="e"),
                layers.Dense(2, name="d"),
            ]
        ),
        "e d",
    ),
}


@pytest.mark.parametrize(("make", "expected"), SITES.values(), ids=SITES)
def test_sites(make: Callable[[], keras.Model], expected: str) -> None:
    sites = all_sites(Graph(make()))
    members: dict[str, list[str]] = {}
    for site in sites:
        members.setdefault(site.group, []).append(site.key)
    owners = {word.partition("=")[2] for word in expected.split()}
    got = []
    for site in sites:
        # A group is called by the site that the expectation names, whatever its inner name is.
        owner = next((k for k in members[site.group] if k in owners), site.key)
        name = site.key if owner == site.key else f"{site.key}={owner}"
        got.append(site.key + "!" if site.fixed else name)
    assert sorted(got) == sorted(expected.split())


@pytest.mark.parametrize(("make", "expected"), SITES.values(), ids=SITES)
def test_every_site_is_applied_and_survives_saving(
    make: Callable[[], keras.Model],
    expected: str,
    randomize: Any,
    rng: np.random.Generator,
    tmp_path: Any,
) -> None:
    model = randomize(make())
    x: Any = [rng.uniform(0, 3, (4, *t.shape[1:])).astype(t.dtype) for t in model.inputs]
    data = lambda: iter([x])  # noqa: E731
    x_call = x if len(x) > 1 else x[0]
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    got, want = (np.asarray(m.predict_on_batch(x_call)) for m in (quantized, model))
    assert np.abs(got - want).max() <= 0.1 * np.abs(want).max()
    quantized.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(x_call), got)


def test_layers_left_in_float_are_not_rounded_inside() -> None:
    model = chain(conv("a", activation="swish"), conv("b", activation="swish"))
    keys = {site.key for site in all_sites(Graph(model), quantized={"b"})}
    assert keys == {"in", "a", "b:preactivation", "b"}


def test_input_sites_are_what_quantized_layers_read() -> None:
    graph = Graph(residual())
    sites = input_sites(graph, {"b", "a"})
    assert [site.key for site in sites] == ["a:input", "b:input"]
    assert sites[1].tensors[0] is graph.calls_of("relu")[0].outputs[0]


def test_input_sites_are_in_the_order_of_the_model() -> None:
    names = [f"layer{i}" for i in range(12)]  # a set of so many is never in order by chance
    model = chain(*(layers.Dense(4, name=name) for name in names), shape=(4,))
    sites = input_sites(Graph(model), set(names))
    assert [site.key for site in sites] == [f"{name}:input" for name in names]


def test_input_site_of_a_shared_layer_has_all_its_inputs() -> None:
    graph = Graph(shared())
    (site,) = input_sites(graph, {"both"})
    assert [id(t) for t in site.tensors] == [id(t) for t in graph.model.inputs]


@pytest.mark.parametrize(
    ("function", "bits", "scale", "zero_point"),
    [
        ("softmax", 8, 1 / 256, -128),  # TFLite quantization specification
        ("sigmoid", 8, 1 / 256, -128),
        ("tanh", 8, 1 / 128, 0),
        ("softmax", 16, 1 / 32768, 0),
        ("sigmoid", 16, 1 / 32768, 0),
        ("tanh", 16, 1 / 32768, 0),
        ("softmax", 4, 1 / 16, -8),
        ("tanh", 4, 1 / 8, 0),
    ],
)
def test_fixed_grid(function: str, bits: int, scale: float, zero_point: int) -> None:
    grid = fixed_grid(function, bits)
    assert (grid.bits, grid.scale, grid.zero_point) == (bits, scale, zero_point)


def test_preactivation_is_what_goes_into_the_activation_function(
    randomize: Any, rng: np.random.Generator
) -> None:
    model = randomize(chain(layers.Dense(5, activation="swish", name="a"), shape=(4,)))
    site = next(s for s in all_sites(Graph(model)) if s.key == "a:preactivation")
    x = rng.normal(size=(3, 4)).astype(np.float32)
    kernel, bias = model.get_layer("a").get_weights()
    np.testing.assert_allclose(np.asarray(site.through(x)), x @ kernel + bias, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_sites_in_any_number_of_dimensions(rank: int) -> None:
    def sites(of: int) -> list[tuple[str, str]]:
        graph = Graph(twins.network(of))
        return [(_plain(site.key), _plain(site.group)) for site in all_sites(graph)]

    assert sites(rank) == sites(2)


def _plain(name: str) -> str:
    """The name of a layer without its dimensions."""
    return re.sub(r"[123]d", "", name).rstrip("_0123456789")


class Scaled(layers.Activation):
    """Reaches beyond what its activation function does."""

    def call(self, inputs: Any) -> Any:
        return 5 * super().call(inputs)


class ScaledSoftmax(layers.Softmax):
    def call(self, inputs: Any) -> Any:
        return 5 * super().call(inputs)


class Gate(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation = keras.activations.sigmoid

    def call(self, inputs: Any) -> Any:
        return 5 * self.activation(inputs)


@pytest.mark.parametrize("layer", [Scaled("tanh"), ScaledSoftmax(), Gate()], ids=lambda v: v.name)
def test_a_layer_with_a_function_of_its_own_has_no_prescribed_grid(layer: Any) -> None:
    graph = Graph(chain(layer))
    (site,) = (site for site in all_sites(graph) if site.key == layer.name)
    assert site.fixed is None


class OwnKernel(layers.Dense):
    def call(self, inputs: Any) -> Any:
        return keras.ops.tanh(super().call(inputs))


class OwnReLU(layers.ReLU):
    def call(self, inputs: Any) -> Any:
        return super().call(inputs) - 1.0


@pytest.mark.parametrize(
    "steps",
    [(OwnKernel(4, name="a"), layers.ReLU()), (layers.Dense(4, name="a"), OwnReLU())],
    ids=["kernel", "relu"],
)
def test_a_layer_with_a_function_of_its_own_fuses_no_relu(steps: Any) -> None:
    assert "a" in {site.key for site in all_sites(Graph(chain(*steps, shape=(4,))))}


@pytest.mark.parametrize(
    ("layer", "fixed"),
    [
        (lambda: layers.SimpleRNN(2), "tanh"),
        (lambda: layers.LSTM(2), None),  # a product of a gate and a tanh
        (lambda: layers.GRU(2), None),
        (lambda: layers.RNN(layers.LSTMCell(2)), None),
    ],
)
def test_recurrent_layers_end_in_what_their_cell_does(layer: Any, fixed: str | None) -> None:
    x = keras.Input((4, 3))
    graph = Graph(keras.Model(x, layer()(x)))
    assert all_sites(graph)[-1].fixed == fixed
