"""Layers that keep state outside of their weights come through conversion with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ocs_tf
from ocs_tf.graph.cloning import clone_layer, copy_weights
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.scaling import scale_channels

COLORS = np.array([["red"], ["green"], ["blue"], ["red"], ["black"], ["blue"]])
IDS = np.array([[101], [104], [100], [104], [102], [101]])
FLOATS = np.array([[0.5], [-3.0], [20.0], [7.0], [11.0], [2.0]], np.float32)
TEXTS = np.array([["a cat sat"], ["the dog"], ["a dog ran"], ["cat cat"], ["ran"], ["sat a"]])

ADAPTED = {
    "StringLookup": (lambda: layers.StringLookup(), COLORS),
    "StringLookup-one_hot": (lambda: layers.StringLookup(output_mode="one_hot"), COLORS),
    "IntegerLookup": (lambda: layers.IntegerLookup(), IDS),
    "IntegerLookup-one_hot": (lambda: layers.IntegerLookup(output_mode="one_hot"), IDS),
    "IntegerLookup-multi_hot": (lambda: layers.IntegerLookup(output_mode="multi_hot"), IDS),
    "IntegerLookup-count": (lambda: layers.IntegerLookup(output_mode="count"), IDS),
    "TextVectorization": (lambda: layers.TextVectorization(output_sequence_length=4), TEXTS),
    "TextVectorization-tf_idf": (lambda: layers.TextVectorization(output_mode="tf_idf"), TEXTS),
    "Discretization": (lambda: layers.Discretization(num_bins=3), FLOATS),
    "Discretization-one_hot": (
        lambda: layers.Discretization(num_bins=3, output_mode="one_hot"),
        FLOATS,
    ),
    "Normalization": (lambda: layers.Normalization(), FLOATS),
    "Hashing": (lambda: layers.Hashing(7, output_mode="one_hot"), IDS),
    "CategoryEncoding": (lambda: layers.CategoryEncoding(110, output_mode="multi_hot"), IDS),
}
each_layer = pytest.mark.parametrize(("make", "values"), ADAPTED.values(), ids=ADAPTED)


def read_by_dense(make: Callable[[], Any], values: np.ndarray) -> keras.Model:
    """The layer, adapted; a lookup of what it makes, if those are ids; and a dense layer."""
    layer = make()
    if hasattr(layer, "adapt"):
        layer.adapt(values)
    dtype = "string" if values.dtype.kind == "U" else values.dtype
    inputs = keras.Input(values.shape[1:], dtype=dtype)
    x = layer(inputs)
    if x.shape[1:] != layer(tf.constant(values)).shape[1:]:
        name = type(layer).__name__
        pytest.skip(f"Keras {keras.__version__} gives the outputs of {name} another shape")
    if getattr(layer, "output_mode", None) == "int":
        x = layers.Flatten()(layers.Embedding(20, 4)(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def outputs(model: keras.Model, values: np.ndarray) -> np.ndarray:
    return np.asarray(model(tf.constant(values)))


@each_layer
def test_state_is_kept(make: Callable[[], Any], values: np.ndarray, randomize: Any) -> None:
    keras.utils.set_random_seed(0)
    model = read_by_dense(make, values)
    before = outputs(model, values)
    assert len(np.unique(before.round(4), axis=0)) > 2  # or state would make no difference
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    np.testing.assert_allclose(outputs(quantized, values), before, atol=0.05)
    np.testing.assert_array_equal(outputs(model, values), before)


@each_layer
def test_what_is_not_float_is_not_rounded(make: Callable[[], Any], values: np.ndarray) -> None:
    if values.dtype.kind == "U":
        pytest.skip("calibration data are numbers")
    keras.utils.set_random_seed(0)
    model = read_by_dense(make, values)
    plan = ocs_tf.plan(model, weight_bits=8, representative_dataset=values, verbose=False)
    layer = model.layers[1]
    whole = np.asarray(layer(tf.constant(values))).dtype.kind != "f"
    assert (layer.name in plan.activations) != whole
    quantized = ocs_tf.apply(model, plan, representative_dataset=values, verbose=False)
    assert np.isfinite(outputs(quantized, values)).all()
    if whole:
        before = np.asarray(layer(tf.constant(values)))
        np.testing.assert_array_equal(quantized.get_layer(layer.name)(values), before)


def test_a_file_keeps_it_in_another_process(tmp_path: Any) -> None:
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((1,), dtype="string"), keras.Input((1,), dtype="int64")]
    parts = []
    for tensor, (make, values) in zip(
        inputs, (ADAPTED["StringLookup-one_hot"], ADAPTED["IntegerLookup-one_hot"]), strict=True
    ):
        layer = make()
        layer.adapt(values)
        parts.append(keras.ops.cast(layer(tensor), "float32"))
    model = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(parts)))
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    quantized.save(tmp_path / "model.keras")
    script = (
        "import sys, keras, numpy, tensorflow as tf, ocs_tf\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        f"x = [tf.constant({COLORS.tolist()}), tf.constant({IDS.tolist()}, 'int64')]\n"
        "numpy.save(sys.argv[2], model(x))\n"
    )
    arguments = [str(tmp_path / "model.keras"), str(tmp_path / "outputs.npy")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    expected = np.asarray(quantized([tf.constant(COLORS), tf.constant(IDS)]))
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, rtol=1e-6)


# Layers of users ------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Table(layers.Layer):
    """Its state is set by `adapt`: a number, an array, dictionaries and a lookup table."""

    def __init__(self, weighted: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weighted = weighted
        self.shift = 0.0
        self.table: Any = None
        self.calls: list[int] = []

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(shape[-1],), name="gain") if self.weighted else 1.0

    def adapt(self) -> None:
        self.shift = 3.0
        self.offsets = np.arange(4, dtype=np.float32)
        self.options = {"factor": 2.0, "nested": {"power": 2}}
        pairs = tf.lookup.KeyValueTensorInitializer([0, 1, 2, 3], [5.0, 6.0, 7.0, 8.0])
        self.table = tf.lookup.StaticHashTable(pairs, 0.0)

    def call(self, x: Any) -> Any:
        self.calls.append(1)
        looked_up = self.table.lookup(tf.constant([3, 1, 0, 2]))
        x = (x + self.shift + self.offsets) ** self.options["nested"]["power"]
        return x * self.options["factor"] * self.gain + looked_up

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weighted": self.weighted}


@keras.saving.register_keras_serializable("tests")
class Holder(layers.Layer):
    """A layer with a weight, and layers inside that have state."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = Table()
        self.more = [layers.StringLookup(), Table(weighted=True)]

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(), initializer="ones")
        self.built = True

    def call(self, x: Any) -> Any:
        index = keras.ops.cast(self.more[0](tf.constant(["green", "red"])), "float32")
        return self.more[1](self.table(x)) * self.gain + keras.ops.sum(index * [1.0, 10.0])

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


def adapted(weighted: bool) -> Table:
    layer = Table(weighted)
    layer.adapt()
    return layer


def holder() -> Holder:
    layer = Holder()
    layer.table.adapt()
    layer.more[0].adapt(COLORS)
    layer.more[1].adapt()
    return layer


def functional(layer: Any) -> keras.Model:
    i = keras.Input((4,))
    return keras.Model(i, layers.Dense(3)(layer(i)))


def sequential(layer: Any) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), layer, layers.Dense(3)])


def nested(layer: Any) -> keras.Model:
    i = keras.Input((4,))
    return keras.Model(i, layers.Dense(3)(keras.Sequential([keras.Input((4,)), layer])(i)))


class Subclassed(keras.Model):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.inner, self.dense = layer, layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(self.inner(x))


def subclassed(layer: Any) -> keras.Model:
    model = Subclassed(layer)
    model(np.zeros((1, 4), np.float32))
    return model


@pytest.mark.parametrize("bits", [None, 8], ids=["W8", "W8A8"])
@pytest.mark.parametrize("build", [functional, sequential, nested, subclassed])
@pytest.mark.parametrize(
    "layer",
    [lambda: adapted(False), lambda: adapted(True), holder],
    ids=["plain", "weighted", "holder"],
)
def test_state_of_own_layers_is_kept(
    layer: Callable[[], Any],
    build: Callable[[Any], keras.Model],
    bits: int | None,
    randomize: Any,
    rng: np.random.Generator,
) -> None:
    model = randomize(build(layer()))
    x = rng.normal(size=(30, 4)).astype(np.float32)
    before = np.asarray(model(x))
    data = None if bits is None else x
    quantized = ocs_tf.convert(model, weight_bits=8, representative_dataset=data, verbose=False)
    got = np.asarray(quantized(x))
    assert ocs_tf.numerics.sqnr_db(before, got) > 20
    np.testing.assert_array_equal(np.asarray(model(x)), before)


def test_calls_of_the_result_do_not_change_the_original() -> None:
    layer = adapted(weighted=False)
    model = functional(layer)
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    calls = list(layer.calls)
    copy = quantized.get_layer(layer.name)
    x = np.zeros((1, 4), np.float32)
    quantized(x)
    assert layer.calls == calls
    copy.offsets[0] = 100
    assert layer.offsets[0] == 0
    assert copy._inbound_nodes
    assert not {id(n) for n in copy._inbound_nodes} & {id(n) for n in layer._inbound_nodes}


def test_training_the_result_leaves_the_original_as_it_was(rng: np.random.Generator) -> None:
    model = functional(adapted(weighted=True))
    before = [np.array(w) for w in model.get_weights()]
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    quantized.compile("sgd", "mse")
    quantized.fit(rng.normal(size=(8, 4)), rng.normal(size=(8, 3)), verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_equalized_model_keeps_it(randomize: Any, rng: np.random.Generator) -> None:
    i = keras.Input((4,))
    x = layers.Dense(5, name="a")(adapted(weighted=True)(i))
    x = layers.Dense(3, name="b")(layers.ReLU()(x))
    model = randomize(keras.Model(i, x))
    scaled = scale_channels(Graph(model), {"a": np.array([1.0, 2.0, 0.5, 4.0, 1.0])})
    x = rng.normal(size=(10, 4)).astype(np.float32)
    np.testing.assert_allclose(scaled(x), model(x), rtol=1e-4, atol=1e-4)


@keras.saving.register_keras_serializable("tests")
class Stored(layers.Layer):
    """It saves state of its own by Keras' protocol."""

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")
        self._derived: Any = None

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        store["derived"] = self._derived

    def load_own_variables(self, store: Any) -> None:
        self.gain.assign(store["0"])
        self._derived = np.asarray(store["derived"][()]) + 0

    def call(self, x: Any) -> Any:
        return x * self.gain


def test_the_protocol_of_saving_is_followed() -> None:
    old = Stored()
    old(np.zeros((1, 2)))
    old.gain.assign(4.0)
    old._derived = np.arange(3)
    new = clone_layer(old)
    new(np.zeros((1, 2)))
    copy_weights(old, new)
    assert float(new.gain) == 4
    np.testing.assert_array_equal(new._derived, old._derived)
    assert new.gain is not old.gain


class Sized(layers.Layer):
    """Its configuration lacks what decides the shape of a weight."""

    def __init__(self, size: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(self.size,), name="gain")

    def call(self, x: Any) -> Any:
        return x * keras.ops.sum(self.gain)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


def test_a_configuration_that_makes_other_weights_is_warned_of(rng: np.random.Generator) -> None:
    model = functional(Sized(3, name="sized"))
    with pytest.warns(UserWarning, match=r"'sized' .* will not load: .*shapes \[\(1,\)\]"):
        quantized = ocs_tf.convert(model, verbose=False)
    x = rng.normal(size=(9, 4)).astype(np.float32)
    assert ocs_tf.numerics.sqnr_db(model(x), quantized(x)) > 20


class OwnCell(layers.Layer):
    """A recurrent cell that Keras cannot make of a configuration: it is not registered."""

    state_size = 3

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain, self.dense = gain, layers.Dense(3)

    def build(self, input_shape: Any) -> None:
        self.dense.build((input_shape[0], input_shape[-1] + 3))

    def call(self, x: Any, states: Any) -> Any:
        state = keras.ops.tanh(self.gain * self.dense(keras.ops.concatenate([x, states[0]], -1)))
        return state, [state]


def test_keras_layers_around_layers_of_users(rng: np.random.Generator) -> None:
    inputs = keras.Input((4, 2))
    loop = layers.RNN(OwnCell(0.5), name="loop")
    model = keras.Model(inputs, layers.Dense(2)(loop(inputs)))
    x = rng.normal(size=(5, 4, 2)).astype(np.float32)
    copy = clone_layer(loop)
    copy(x)
    copy_weights(loop, copy)
    np.testing.assert_array_equal(copy(x), loop(x))
    assert not {id(v) for v in copy.variables} & {id(v) for v in loop.variables}
    with pytest.warns(UserWarning, match=r"'loop' \(RNN\) works as it is, but a \.keras file"):
        quantized = ocs_tf.convert(model, verbose=False)
    np.testing.assert_allclose(quantized(x), model(x), atol=0.02)
