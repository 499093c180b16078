"""Graphs of Keras 2 as graphs of Keras 3; what is refused, and whether the remedies help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from ocs_tf.keras2 import is_keras2, keras3_model

tf_keras = pytest.importorskip("tf_keras")
tf = pytest.importorskip("tensorflow")
layers = tf_keras.layers
SHAPE = (4,)


def functional(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Any:
    inputs = [tf_keras.Input(shape) for shape in shapes or (SHAPE,)]
    return tf_keras.Model(inputs if len(inputs) > 1 else inputs[0], function(*inputs))


def assert_same(result: keras.Model, model: Any, inputs: Any) -> None:
    expected, found = model(inputs), result(inputs)
    keras.tree.assert_same_structure(found, keras.tree.map_structure(np.asarray, expected))
    for ours, theirs in zip(*map(keras.tree.flatten, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_nested_shared_and_renamed(rng: np.random.Generator) -> None:
    dense = layers.Dense(4, name="block/dense")
    inner = functional(lambda x: tf.nn.relu(dense(x) * 2.0))
    block = tf_keras.Sequential([layers.Dense(4, name="block_dense")], name="block")
    model = functional(lambda x, y: block(inner(x)) - inner(dense(y)), SHAPE, SHAPE)
    model.compile(tf_keras.optimizers.legacy.Adam(), "mse")
    result = keras3_model(model)
    assert is_keras2(model)
    assert not is_keras2(result)
    names = [layer.name for layer in result.layers]
    assert "block_dense_" in names  # `block_dense` is another layer
    assert result.output_names == model.output_names
    assert_same(result, model, list(rng.normal(size=(2, 3, 4)).astype("float32")))
    shared = result.get_layer("block_dense_")
    assert result.get_layer(inner.name).get_layer("block_dense_") is shared


def test_dicts(rng: np.random.Generator) -> None:
    inputs = {name: tf_keras.Input(SHAPE, name=name) for name in ("b", "a")}
    outputs = {"s": layers.Dense(3)(inputs["b"]), "r": inputs["a"] * 2.0}
    model = tf_keras.Model(inputs, outputs)
    data = {name: rng.normal(size=(3, 4)).astype("float32") for name in inputs}
    assert_same(keras3_model(model), model, data)


def test_what_only_training_needs_is_left_out() -> None:
    model = functional(layers.Dense(4, kernel_initializer=lambda shape, dtype: tf.ones(shape)))
    model.add_loss(tf.reduce_mean(tf.math.lgamma(model.output)))
    result = keras3_model(model)
    assert [type(layer).__name__ for layer in result.layers] == ["InputLayer", "Dense"]


def test_the_callers_model_stays() -> None:
    model = functional(lambda x: layers.BatchNormalization(trainable=False)(x))
    weights = model.get_weights()
    result = keras3_model(model)
    for weight in result.weights:
        weight.assign(weight + 1)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not result.layers[-1].trainable


class Scale(layers.Layer):
    """A user's layer of Keras 2."""

    def __init__(self, factor: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight("gain", (shape[-1],), initializer="ones")

    def call(self, x: Any, shift: float = 0.0) -> Any:
        return x * self.gain * self.factor + shift

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


class NoConfig(Scale):
    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError


class Scale3(keras.layers.Layer):
    """The same in Keras 3."""

    def __init__(self, factor: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight((shape[-1],), name="gain")

    def call(self, x: Any, shift: float = 0.0) -> Any:
        return x * self.gain * self.factor + shift


class OtherShape(Scale3):
    def build(self, shape: Any) -> None:
        self.gain = self.add_weight((1,), name="gain")


class OtherValue(Scale3):
    def call(self, x: Any) -> Any:
        return x * self.gain


class OtherCall(Scale3):
    def call(self, x: Any) -> Any:
        return super().call(x)


class Local3(keras.layers.Layer):
    """`LocallyConnected1D` of a kernel of one step."""

    def __init__(self, filters: int, **options: Any) -> None:
        super().__init__(name=options["name"])
        self.filters = filters

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight((shape[1], shape[2], self.filters), name="kernel")
        self.bias = self.add_weight((shape[1], self.filters), name="bias")

    def call(self, x: Any) -> Any:
        return keras.ops.einsum("abc,bcd->abd", x, self.kernel) + self.bias


class Subclassed(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__(name="mine")
        self.dense = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return tf.nn.relu(self.dense(x))


def subclassed() -> Any:
    model = Subclassed()
    model(np.ones((1, 4), np.float32))
    return model


def built(model: Any) -> Any:
    model(np.ones((1, 4), np.float32))
    return model


def ragged() -> Any:
    inputs = tf_keras.Input((None, 3), ragged=True, name="words")
    return tf_keras.Model(inputs, tf_keras.layers.LSTM(2)(inputs))


def unbuilt() -> Any:
    return tf_keras.Sequential([layers.Dense(2)], name="raw")


def of_input(model: Any) -> Any:
    inputs = tf_keras.Input(SHAPE)
    return tf_keras.Model(inputs, model.call(inputs))


SERIES = (4, 3)
LOCAL = "'local' is a LocallyConnected1D, which Keras 3 does not have. .*custom_objects={'Locally"
# Message, a model that is refused, and what the message tells to do.
Refusal = tuple[str, Callable[[], Any], Callable[[], Any] | None, dict[str, Any]]
REFUSED: dict[str, Refusal] = {
    "unbuilt": ("'raw' is not built.* Call it on data", unbuilt, lambda: built(unbuilt()), {}),
    "subclassed": (
        r"'mine' is a subclassed.*\(Subclassed\).*tf_keras.Model\(inputs, model.call\(inputs\)\)",
        subclassed,
        lambda: of_input(subclassed()),
        {},
    ),
    "ragged": (
        "'words' is ragged.*with dense inputs",
        ragged,
        lambda: functional(layers.LSTM(2), SERIES),
        {},
    ),
    "class that is gone": (
        LOCAL,
        lambda: functional(layers.LocallyConnected1D(2, 1, name="local"), SERIES),
        lambda: functional(layers.LocallyConnected1D(2, 1, name="local"), SERIES),
        {"LocallyConnected1D": Local3},
    ),
    "own class": (
        "'own' is a Scale, which is no class of Keras.*custom_objects={'Scale': THE_CLASS}",
        lambda: functional(Scale(name="own")),
        lambda: functional(Scale(name="own")),
        {"Scale": Scale3},
    ),
    "no configuration": (
        "'own' .NoConfig. has no configuration: give its class a get_config",
        lambda: functional(NoConfig(name="own")),
        None,
        {"NoConfig": Scale3},
    ),
    "other weights": (
        r"'own' \(Scale\) has weights of shapes \[\(4,\)\], but in Keras 3 of \[\(1,\)\]",
        lambda: functional(Scale(name="own")),
        None,
        {"Scale": OtherShape},
    ),
    "other outputs": (
        "its output 'own' differs from that of tf_keras by 0.5 of its largest value",
        lambda: functional(Scale(name="own")),
        None,
        {"Scale": OtherValue},
    ),
    "other arguments": (
        r"'own' \(Scale\) is called with shift, which Keras 3 does not have. Build the model with",
        lambda: functional(lambda x: Scale(name="own")(x, shift=1.0)),
        lambda: functional(Scale(name="own")),
        {"Scale": OtherCall},
    ),
    "option": (
        r"'rnn' \(LSTM\) has time_major=True, which Keras 3 does not have. Build the model without",
        lambda: functional(layers.LSTM(2, time_major=True, name="rnn"), SERIES),
        lambda: functional(layers.LSTM(2, name="rnn"), SERIES),
        {},
    ),
    "axes": (
        r"'bn' \(BatchNormalization\) has axis=\[1, 2\].*with one",
        lambda: functional(layers.BatchNormalization([1, 2], name="bn"), SERIES),
        lambda: functional(layers.BatchNormalization(2, name="bn"), SERIES),
        {},
    ),
}


@pytest.mark.parametrize(("message", "make", "remedy", "custom"), REFUSED.values(), ids=REFUSED)
def test_refusals_and_their_remedies(
    message: str, make: Callable[[], Any], remedy: Callable[[], Any] | None, custom: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        keras3_model(make(), custom if remedy is None or "shift" in message else None)
    if remedy is not None:
        assert isinstance(keras3_model(remedy(), custom), keras.Model)
