"""Rebuilding models of every structure: copies compute the same, originals stay as they were."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.graph.substitutions.inlining import flat
from ocs_tf.layers import FakeQuantize
from tests.own_layers import Forgetful

SHAPE = (8, 8, 3)
FLOAT = ocs_tf.Config(
    weight_bits=None, first_layer_bits=None, last_layer_bits=None, fold_batch_norm=False
)


@keras.saving.register_keras_serializable("tests")
class Scale(layers.Layer):
    """A user's layer with a weight, a mask argument and an argument of its own."""

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")

    def call(self, x: Any, shift: float = 0.0) -> Any:
        return x * self.gain * self.factor + shift

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("tests")
class FunctionalSubclass(keras.Model):
    pass


def image() -> Any:
    return keras.Input(SHAPE, name="image")


def conv(filters: int = 4, **options: Any) -> keras.layers.Layer:
    return layers.Conv2D(filters, 3, padding="same", **options)


def head(x: Any) -> Any:
    return layers.Dense(3, activation="softmax", name="head")(layers.Flatten()(x))


def residual() -> keras.Model:
    i = image()
    x = conv()(i)
    return keras.Model(i, head(layers.Add()([x, layers.ReLU()(conv()(x))])))


def concatenation() -> keras.Model:
    i = image()
    return keras.Model(i, head(layers.Concatenate()([conv()(i), conv(2)(i), i])))


def shared_conv() -> keras.Model:
    i, both = image(), conv(3)
    return keras.Model(i, head(both(layers.ReLU()(both(i)))))


def siamese() -> keras.Model:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    tower = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.ReLU()])
    return keras.Model([a, b], layers.Dense(1)(layers.Subtract()([tower(a), tower(b)])))


def several_outputs() -> keras.Model:
    i = image()
    x = conv()(i)
    return keras.Model(i, (head(x), layers.Dense(1, name="value")(layers.Flatten()(x)), x))


def nested_outputs() -> keras.Model:
    i = image()
    x = conv()(i)
    return keras.Model(i, {"deep": [head(x), {"features": x}], "input": layers.ReLU()(i)})


def dict_inputs() -> keras.Model:
    i = {"b": keras.Input((4,), name="b"), "a": keras.Input((2,), name="a")}
    x = layers.Concatenate()([layers.Dense(3)(i["a"]), i["b"]])
    return keras.Model(i, {"y": layers.Dense(2, name="y")(x)})


def bare_operations() -> keras.Model:
    i = image()
    x = conv()(i)
    y = keras.ops.concatenate([x[..., :2], keras.ops.relu(x)[..., 1:]], axis=-1)
    z = keras.ops.reshape(2.0 * y + y, (-1, 8 * 8 * 5))
    return keras.Model(i, layers.Dense(2)(keras.ops.where(z > 0, z, 0.1 * z)))


def operation_is_output() -> keras.Model:
    i = keras.Input((4,), name="a")
    return keras.Model(i, layers.Dense(4)(i) + i)


def input_is_output() -> keras.Model:
    i = keras.Input((4,), name="a")
    return keras.Model(i, [layers.Dense(4)(i), i])


def masked() -> keras.Model:
    i = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(10, 4, mask_zero=True)(i)
    x = layers.Dense(5, activation="relu")(x)
    return keras.Model(i, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def recurrent() -> keras.Model:
    i = keras.Input((6, 4), name="a")
    sequence, h, c = layers.LSTM(3, return_sequences=True, return_state=True)(i)
    x = layers.LSTM(3)(sequence, initial_state=[h, c])
    return keras.Model(i, layers.Dense(2)(x))


def attention() -> keras.Model:
    i = keras.Input((6, 4), name="a")
    x = layers.MultiHeadAttention(2, 3)(query=i, value=i, use_causal_mask=True)
    y = layers.MultiHeadAttention(2, 3)(x, i)
    return keras.Model(i, layers.Dense(2)(layers.LayerNormalization()(y)))


def wrappers() -> keras.Model:
    i = keras.Input((6, 4), name="a")
    x = layers.TimeDistributed(layers.Dense(3))(i)
    x = layers.Bidirectional(layers.GRU(2, return_sequences=True))(x)
    return keras.Model(i, layers.Dense(2)(x))


def nested_model() -> keras.Model:
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, layers.Dense(3)(inner_input), name="inner")
    i = keras.Input((4,), name="a")
    return keras.Model(i, layers.Dense(2)(layers.ReLU()(inner(layers.Dense(4)(i)))))


def adapted() -> keras.Model:
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(5, 3, (50, 4)))
    i = keras.Input((4,), name="a")
    return keras.Model(i, layers.Dense(2)(normalization(i)))


def custom() -> keras.Model:
    i = keras.Input((4,), name="a")
    x = Scale(2.0)(layers.Dense(3)(i), shift=0.5)
    return keras.Model(i, layers.Dense(2)(Scale(3.0)(x)))


def subclass() -> keras.Model:
    i = keras.Input((4,), name="a")
    return FunctionalSubclass(i, layers.Dense(2)(layers.Dense(3)(i)))


def odd_names() -> keras.Model:
    i = keras.Input((4,), name="serving_default_x:0")
    x = layers.Dense(3, name="dense_input_quantizer")(i)
    return keras.Model(i, layers.Dense(2, name="dense")(x), name="a model, renamed")


def training_only() -> keras.Model:
    i = image()
    x = layers.GaussianNoise(0.1)(i)
    x = layers.SpatialDropout2D(0.2)(conv(activity_regularizer="l2")(x))
    return keras.Model(i, head(layers.Dropout(0.5)(x)))


def normed() -> keras.Model:
    i = image()
    x = layers.ReLU()(layers.BatchNormalization()(conv()(i)))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, depth_multiplier=2)(x))
    return keras.Model(i, head(x))


def sequential() -> keras.Model:
    steps = [conv(), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dense(3)]
    return keras.Sequential([keras.Input(SHAPE, name="image"), *steps], name="steps")


MODELS: dict[str, Callable[[], keras.Model]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        residual,
        concatenation,
        shared_conv,
        siamese,
        several_outputs,
        nested_outputs,
        dict_inputs,
        bare_operations,
        operation_is_output,
        input_is_output,
        masked,
        recurrent,
        attention,
        wrappers,
        nested_model,
        adapted,
        custom,
        subclass,
        odd_names,
        training_only,
        normed,
        sequential,
    )
}
parametrize_models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def structure(model: keras.Model) -> tuple[Any, Any]:
    """Inputs and outputs as the model nests them."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def inputs_for(model: keras.Model, rng: np.random.Generator) -> Any:
    return keras.tree.map_structure(
        lambda t: rng.uniform(0, 5, (4, *t.shape[1:])).astype(t.dtype), structure(model)[0]
    )


def outputs_of(model: keras.Model, x: Any) -> list[np.ndarray]:
    return [np.asarray(y) for y in keras.tree.flatten(model(x))]


def made(make: Callable[[], keras.Model], randomize: Any) -> keras.Model:
    model = make()
    return model if make is adapted else randomize(model)


@parametrize_models
def test_a_float_copy_is_exact(
    make: Callable[[], keras.Model], randomize: Any, rng: np.random.Generator
) -> None:
    model = made(make, randomize)
    x = inputs_for(model, rng)
    copy = ocs_tf.convert(model, FLOAT, verbose=False)
    assert copy is not model
    for got, want in zip(outputs_of(copy, x), outputs_of(model, x), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("name", "scope"),  # weights only; and one of the scopes
    [(name, None) for name in MODELS]
    + list(zip(MODELS, itertools.cycle(["all", "inputs"]), strict=False)),
)
def test_quantized_model_is_near_and_is_the_same_after_loading(
    name: str,
    scope: str | None,
    randomize: Any,
    rng: np.random.Generator,
    tmp_path: pathlib.Path,
) -> None:
    model = made(MODELS[name], randomize)
    x = inputs_for(model, rng)
    data = {} if scope is None else {"representative_dataset": x, "activation_scope": scope}
    quantized = ocs_tf.convert(model, verbose=False, **data)
    results = outputs_of(quantized, x)
    for got, want in zip(results, outputs_of(model, x), strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 0.1 * np.abs(want).max()
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for got, want in zip(outputs_of(loaded, x), results, strict=True):
        np.testing.assert_array_equal(got, want)


@parametrize_models
def test_structure_and_names_are_kept(make: Callable[[], keras.Model], randomize: Any) -> None:
    model = made(make, randomize)
    copy = ocs_tf.convert(model, verbose=False)
    assert copy.name == model.name
    if not isinstance(model, keras.Sequential):
        assert copy.output_names == model.output_names
    assert isinstance(copy, keras.Sequential) == isinstance(model, keras.Sequential)
    for old, new in zip(structure(model), structure(copy), strict=True):
        keras.tree.assert_same_structure(old, new)
        for a, b in zip(keras.tree.flatten(old), keras.tree.flatten(new), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
    # Of nested models, the layers are kept.
    original = flat(model).layers
    norms = {x.name for x in original if isinstance(x, layers.BatchNormalization)}
    inputs = {x.name for x in original if isinstance(x, layers.InputLayer)}
    assert {x.name for x in copy.layers} | norms | inputs == {x.name for x in original}


def snapshot(model: keras.Model) -> tuple[Any, ...]:
    functional = keras.Model(model.inputs, model.outputs)
    return (
        json.dumps(model.get_config(), default=str, sort_keys=True),
        [w.copy() for w in model.get_weights()],
        [(o.name, len(o._inbound_nodes), len(o._outbound_nodes)) for o in functional.operations],
        [(layer.name, layer.trainable) for layer in model._flatten_layers()],
    )


@parametrize_models
def test_the_input_model_is_not_modified(
    make: Callable[[], keras.Model], randomize: Any, rng: np.random.Generator
) -> None:
    model = made(make, randomize)
    x = inputs_for(model, rng)
    before = snapshot(model)
    ocs_tf.convert(model, weight_bits=4, representative_dataset=x, verbose=False)
    after = snapshot(model)
    assert (before[0], *before[2:]) == (after[0], *after[2:])
    for a, b in zip(before[1], after[1], strict=True):
        np.testing.assert_array_equal(a, b)


@parametrize_models
def test_two_conversions_share_nothing(
    make: Callable[[], keras.Model], randomize: Any, rng: np.random.Generator
) -> None:
    model = made(make, randomize)
    x = inputs_for(model, rng)
    first, second = (
        ocs_tf.convert(model, representative_dataset=x, verbose=False) for _ in range(2)
    )
    assert not {id(w) for w in first.weights} & {id(w) for m in (second, model) for w in m.weights}
    for got, want in zip(outputs_of(first, x), outputs_of(second, x), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_quantizer_keeps_out_of_the_way_of_names(rng: np.random.Generator) -> None:
    model = odd_names()
    x = inputs_for(model, rng)
    quantized = ocs_tf.convert(
        model, representative_dataset=x, activation_scope="inputs", verbose=False
    )
    names = [layer.name for layer in quantized.layers]
    assert len(names) == len(set(names))
    assert sum(isinstance(layer, FakeQuantize) for layer in quantized.layers) == 2


def test_a_quantized_model_can_be_part_of_another(randomize: Any, rng: np.random.Generator) -> None:
    inner = ocs_tf.convert(randomize(sequential()), verbose=False)
    i = image()
    outer = keras.Model(i, layers.Dense(2)(inner(i)))
    x = inputs_for(outer, rng)
    quantized = ocs_tf.convert(outer, verbose=False)
    np.testing.assert_allclose(outputs_of(quantized, x)[0], outputs_of(outer, x)[0], atol=0.05)


def test_dropout_still_acts_in_training(rng: np.random.Generator) -> None:
    model = keras.Sequential([keras.Input((100,)), layers.Dense(100), layers.Dropout(0.5)])
    x = rng.normal(size=(8, 100)).astype(np.float32)
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    share = (np.asarray(quantized(x, training=True)) == 0).mean()
    assert 0.4 < share < 0.6


def test_a_configuration_that_lacks_something_matters_for_files_only() -> None:
    i = keras.Input((4,))
    model = keras.Model(i, layers.Dense(2)(Forgetful(size=3, name="odd")(i)))
    with pytest.warns(UserWarning, match=r"'odd' \(Forgetful\) works as it is.*get_config"):
        quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    x = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(quantized(x), model(x), atol=0.05)


class NoConfig(layers.Layer):
    def __init__(self, function: Any, weighted: bool) -> None:
        super().__init__(name="odd")
        self.function = function
        self.gain = self.add_weight((), "ones") if weighted else 1.0

    def call(self, x: Any) -> Any:
        return self.function(x) * self.gain


@pytest.mark.parametrize(
    "layer",
    [
        lambda: NoConfig(lambda x: 2 * x, weighted=False),
        lambda: NoConfig(lambda x: 2 * x, weighted=True),
        lambda: layers.Lambda(lambda x: 2 * x, name="odd"),
        lambda: layers.Activation(lambda x: 2 * x, name="odd"),
    ],
    ids=["own", "own-weighted", "Lambda", "Activation"],
)
@pytest.mark.parametrize("with_data", [False, True], ids=["W8", "W8A8"])
def test_what_a_file_cannot_hold_is_kept_with_a_warning(
    layer: Callable[[], Any], with_data: bool, randomize: Any, rng: np.random.Generator
) -> None:
    i = keras.Input((4,))
    model = randomize(keras.Model(i, layers.Dense(2)(layer()(i))))
    x = inputs_for(model, rng)
    data = x if with_data else None
    with pytest.warns(UserWarning, match="layer 'odd' .* will not load") as warned:
        quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    assert sum("'odd'" in str(warning.message) for warning in warned) == 1
    np.testing.assert_allclose(outputs_of(quantized, x)[0], outputs_of(model, x)[0], atol=0.1)
