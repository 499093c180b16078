"""Flat models: the same function on the same variables, names, and an untouched user's model."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import ocs_tf
from ocs_tf.graph.substitutions.inlining import flat
from ocs_tf.graph.substitutions.tracing import has_graph

SHAPE = (8, 8, 3)


def functional(function: Callable[[Any], Any], *shape: int, **options: Any) -> keras.Model:
    """A functional model of one input."""
    inputs = keras.Input(shape or SHAPE)
    return keras.Model(inputs, function(inputs), **options)


def block(name: str, filters: int = 4, shape: tuple[int, ...] = SHAPE) -> keras.Model:
    def residual(x: Any) -> Any:
        y = layers.BatchNormalization(name="norm")(conv(filters, name="conv")(x))
        return layers.ReLU(name="relu")(layers.Add(name="add")([y, conv(filters)(x)]))

    return functional(residual, *shape, name=name)


def conv(filters: int = 4, **options: Any) -> keras.layers.Layer:
    return layers.Conv2D(filters, 3, padding="same", **options)


def dense(units: int, **options: Any) -> keras.layers.Layer:
    return layers.Dense(units, **options)


class Residual(keras.Model):
    """With a `call` of its own, a layer, an operation and a nested model in it."""

    def __init__(self, filters: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.conv = conv(filters, name="conv")
        self.norm = layers.BatchNormalization(name="norm")
        self.tail = keras.Sequential([conv(filters, name="conv"), layers.ReLU(name="relu")])

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = ops.relu(self.norm(self.conv(inputs), training=training))
        return layers.ReLU()(self.tail(ops.relu(x)) + inputs)


class OwnCall(keras.Model):
    """A functional model whose `call` does more."""

    def call(self, inputs: Any, **options: Any) -> Any:
        return 2 * super().call(inputs, **options)


@keras.saving.register_keras_serializable("test_flat")
class TfCall(keras.Model):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.conv = conv(3)

    def call(self, inputs: Any) -> Any:
        return tf.nn.relu(self.conv(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


class Masked(keras.Model):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lstm = layers.LSTM(3)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return self.lstm(inputs, mask=mask)


class Text(keras.Model):
    """Of integers, with masks inside and several outputs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.embedding = layers.Embedding(10, 4, mask_zero=True)
        self.recurrent = keras.Sequential([layers.LSTM(3)])
        self.top = dense(2)

    def call(self, tokens: Any, training: Any = None) -> Any:
        x = self.recurrent(self.embedding(tokens), training=training)
        return {"top": self.top(x), "features": x}


@keras.saving.register_keras_serializable("test_flat")
class Composite(layers.Layer):
    """A layer, not a model, of layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = layers.Dense(3)

    def build(self, input_shape: Any) -> None:
        self.inner.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


def deep() -> keras.Model:
    inner = functional(lambda x: conv(name="c")(x), name="inner")
    middle = functional(lambda x: conv(name="b")(inner(layers.ReLU()(x))), name="middle")
    outer = functional(lambda x: middle(conv(3, name="a")(x)), name="outer")
    return functional(lambda x: layers.Flatten()(outer(x)))


def sequential_in_sequential() -> keras.Model:
    first = keras.Sequential([keras.Input(SHAPE), conv(), layers.ReLU()], name="first")
    return keras.Sequential([first, layers.Flatten(), dense(2, name="end")], name="whole")


def siamese() -> keras.Model:
    a, b, tower = keras.Input(SHAPE, name="a"), keras.Input(SHAPE, name="b"), block("tower")
    return keras.Model([a, b], layers.Flatten()(layers.Subtract()([tower(a), tower(b)])))


def twice_in_a_row() -> keras.Model:
    step = block("step", 3)
    return functional(lambda x: step(step(x)))


def shared_layer() -> keras.Model:
    """One layer outside, inside of one nested model and inside of another."""
    both = conv(3, name="both")
    first = functional(lambda x: both(layers.ReLU()(x)), name="first")
    second = functional(lambda x: layers.ReLU()(both(x)), name="second")
    return functional(lambda x: second(both(first(x))))


def several() -> keras.Model:
    """Several inputs and outputs, in dicts, out of order, called with keywords."""
    p, q = keras.Input((4,), name="p"), keras.Input((2,), name="q")
    sums = {"y": dense(3, name="y")(p), "x": layers.Concatenate()([p, dense(2)(q)])}
    inner = keras.Model({"q": q, "p": p}, sums, name="inner")
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    found = inner(inputs={"p": a, "q": layers.ReLU()(b)})
    return keras.Model({"a": a, "b": b}, {"one": found["y"], "two": [found["x"], dense(2)(a)]})


def list_model_called_with_a_dict() -> keras.Model:
    p, q = keras.Input((4,), name="p"), keras.Input((4,), name="q")
    inner = keras.Model([p, q], layers.Subtract()([p, q]))
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    return keras.Model([a, b], inner({"q": a, "p": b}))


def bare_operations() -> keras.Model:
    inner = functional(lambda x: ops.concatenate([x[..., :1], ops.relu(x) * 2], -1), name="inner")
    return functional(lambda x: inner(x[..., ::-1] + 1) - 1)


def passed_through() -> keras.Model:
    inner = functional(lambda x: {"same": x, "new": conv()(x)}, name="inner")
    return functional(lambda x: inner(x))


def other_size() -> keras.Model:
    inputs = keras.Input((None, None, 3))
    inner = keras.Model(inputs, conv()(inputs))
    return functional(lambda x: dense(2)(layers.Flatten()(inner(x))))


def other_rank() -> keras.Model:
    inner = functional(lambda x: dense(3)(x), 4)
    return functional(lambda x: inner(layers.Reshape((4, 1))(x)), 4)


def other_dtype() -> keras.Model:
    inputs = keras.Input((4,), dtype="float32")
    inner = keras.Model(inputs, dense(3)(inputs))
    tokens = keras.Input((4,), dtype="int32")
    return keras.Model(tokens, inner(tokens))


def wrappers() -> keras.Model:
    inner = functional(lambda x: dense(3)(x), 4, name="inner")
    whole = functional(lambda x: layers.TimeDistributed(inner)(x), 6, 4)
    return functional(lambda x: layers.Bidirectional(layers.GRU(2))(whole(x)), 6, 4)


def composite() -> keras.Model:
    inner = functional(lambda x: layers.ReLU()(Composite()(x)), 4)
    return functional(lambda x: dense(2)(inner(x)), 4)


def masks() -> keras.Model:
    """Made inside of one nested model, in front of another and inside of it."""
    tokens = keras.Input((6,), name="tokens")
    embed = keras.Model(tokens, layers.Embedding(10, 4, mask_zero=True)(tokens), name="embed")
    inner = keras.Sequential([keras.Input((6, 4)), dense(4), layers.LSTM(3)], name="recur")
    own = keras.Sequential([keras.Input((6, 4)), layers.Masking(0.5), layers.GRU(3)], name="own")
    i = keras.Input((6,), name="tokens")
    near = layers.Embedding(10, 4, mask_zero=True)(i)
    outputs = [inner(embed(i)), inner(near), own(near), Masked(name="traced")(near)]
    return keras.Model(i, layers.Concatenate()(outputs))


def explicit_mask() -> keras.Model:
    inner = keras.Sequential([keras.Input((6,)), layers.Reshape((6, 1)), layers.LSTM(3)])
    recur = keras.Sequential([keras.Input((6, 1)), layers.LSTM(3)], name="recur")
    i = keras.Input((6,), name="x")
    return keras.Model(i, [inner(i), recur(layers.Reshape((6, 1))(i), mask=i > 0.3)])


def subclassed_inside() -> keras.Model:
    return functional(lambda x: conv()(Residual(name="res")(conv(3, name="conv")(x))))


def own_call_inside() -> keras.Model:
    inputs = keras.Input(SHAPE)
    inner = OwnCall(inputs, conv(3)(inputs), name="own")
    return functional(lambda x: inner(layers.ReLU()(x)))


def subclassed() -> keras.Model:
    model = Residual(name="res")
    model(np.zeros((1, *SHAPE), np.float32))
    return model


def subclassed_text() -> keras.Model:
    model = Text()
    model(np.ones((2, 6), np.int32))
    return model


def untraceable_inside() -> keras.Model:
    opaque = TfCall(name="opaque")
    return functional(lambda x: block("block")(opaque(x)))


def separable() -> keras.Model:
    inner = functional(lambda x: layers.SeparableConv2D(4, 3, activation="relu", name="sep")(x))
    sequence = layers.SeparableConv1D(5, 2, depth_multiplier=2, use_bias=False, name="one")
    return functional(lambda x: sequence(layers.Reshape((36, 4))(inner(x))))


def shared_separable() -> keras.Model:
    both = layers.SeparableConv2D(3, 3, padding="same", name="sep")
    return functional(lambda x: both(layers.ReLU()(both(x))))


def backbone() -> keras.Model:
    net = keras.applications.MobileNetV2((32, 32, 3), 0.35, include_top=False, weights=None)
    return functional(lambda x: dense(2)(layers.GlobalAveragePooling2D()(net(x))), 32, 32, 3)


MODELS: dict[str, Callable[[], keras.Model]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        deep,
        sequential_in_sequential,
        siamese,
        twice_in_a_row,
        shared_layer,
        several,
        list_model_called_with_a_dict,
        bare_operations,
        passed_through,
        other_size,
        other_rank,
        other_dtype,
        wrappers,
        composite,
        masks,
        explicit_mask,
        subclassed_inside,
        own_call_inside,
        subclassed,
        subclassed_text,
        untraceable_inside,
        separable,
        shared_separable,
        backbone,
    )
}
parametrize_models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def data_for(model: keras.Model, rng: np.random.Generator) -> Any:
    def batch(tensor: Any) -> Any:
        whole = tensor.name.startswith("tokens") or "int" in tensor.dtype
        x = (
            rng.integers(0, 4, (5, *tensor.shape[1:]))
            if whole
            else rng.uniform(-1, 1, (5, *tensor.shape[1:]))
        )
        return x.astype("int32" if "int" in tensor.dtype else "float32")

    return keras.tree.map_structure(batch, flat(model).input)


def compare(got: Any, want: Any, tolerance: float = 1e-6) -> None:
    keras.tree.assert_same_structure(got, want)
    for a, b in zip(keras.tree.flatten(got), keras.tree.flatten(want), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max()))


@parametrize_models
def test_the_function_is_the_same(
    make: Callable[[], keras.Model], randomize: Any, rng: np.random.Generator
) -> None:
    model = randomize(make())
    x = data_for(model, rng)
    result = flat(model)
    compare(result.predict(x, verbose=0), model.predict(x, verbose=0))
    compare(result(x), model(x))


@parametrize_models
def test_there_is_no_model_inside(make: Callable[[], keras.Model]) -> None:
    model = make()
    result = flat(model)
    inside = [layer for layer in result.layers if isinstance(layer, keras.Model)]
    assert [layer.name for layer in inside] == (["opaque"] if make is untraceable_inside else [])
    assert not any(isinstance(layer, layers.SeparableConv2D) for layer in result.layers)
    assert flat(result) is result


@parametrize_models
def test_variables_are_the_users_own(make: Callable[[], keras.Model]) -> None:
    model = make()
    if "separable" in make.__name__:
        return  # of those the weights are copied
    assert {id(w) for w in flat(model).weights} == {id(w) for w in model.weights}


@parametrize_models
def test_inputs_outputs_and_names_are_kept(make: Callable[[], keras.Model]) -> None:
    model = make()
    result = flat(model)
    assert result.name == model.name
    if not has_graph(model):
        return
    whole = keras.Model(model.inputs, model.outputs) if make is sequential_in_sequential else model
    assert result.output_names == whole.output_names
    for old, new in ((whole.input, result.input), (whole.output, result.output)):
        keras.tree.assert_same_structure(old, new)
        for a, b in zip(keras.tree.flatten(old), keras.tree.flatten(new), strict=True):
            assert a.dtype == b.dtype
            # Keras' own shape inference forgets that it squeezes an input.
            assert a.shape[1:] == b.shape[1:] or make is other_rank
    names = [[t._keras_history[0].name for t in m.inputs] for m in (whole, result)]
    assert names[0] == names[1]
    own = {layer.name for layer in whole.layers if not isinstance(layer, keras.Model)}
    assert own <= {layer.name for layer in result.layers}


def state(model: keras.Model) -> Any:
    everything = [
        operation
        for one in model._flatten_layers()
        for operation in (one, *getattr(one, "operations", ()))
    ]
    config = "" if not has_graph(model) else json.dumps(model.get_config(), default=str)
    records = [(op.name, len(op._inbound_nodes), len(op._outbound_nodes)) for op in everything]
    outputs = [id(op._inbound_nodes[0].outputs[0]) for op in everything if op._inbound_nodes]
    return re.sub(r"0x[0-9a-f]+", "", config), records, outputs, [id(w) for w in model.weights]


@parametrize_models
def test_the_users_model_is_not_touched(make: Callable[[], keras.Model]) -> None:
    model = make()
    before = state(model)
    flat(model)
    assert state(model) == before


@parametrize_models
def test_names_are_the_same_every_time(make: Callable[[], keras.Model]) -> None:
    model = make()
    first, second = ([op.name for op in flat(model).operations] for _ in range(2))
    assert first == second


def names_of(model: keras.Model) -> list[str]:
    return [op.name for op in flat(model).operations if not isinstance(op, layers.InputLayer)]


def test_names_that_are_unique_stay() -> None:
    assert {"a", "b", "c", "re_lu", "flatten"} == set(names_of(deep()))


def test_names_that_collide_tell_the_way() -> None:
    inner = functional(lambda x: conv(3, name="a")(x), name="inner")
    middle = functional(lambda x: conv(3, name="a")(inner(x)), name="middle")
    model = functional(lambda x: conv(3, name="a")(middle(x)))
    assert names_of(model) == ["middle.inner.a", "middle.a", "a"]


def test_of_two_nested_layers_of_one_name_both_tell_the_way() -> None:
    model = functional(lambda x: layers.ReLU()(block("two", 4, (8, 8, 4))(block("one")(x))))
    found = set(names_of(model))
    assert {"one.conv", "one.norm", "two.conv", "two.norm"} <= found
    assert not {"conv", "norm"} & found


def test_a_layer_that_is_outside_too_has_its_name_there() -> None:
    model = shared_layer()
    result = flat(model)
    assert [op.name for op in result.operations].count("both") == 1
    assert len(result.get_layer("both")._inbound_nodes) == 3
    assert not any("." in op.name for op in result.operations)


def test_a_nested_model_called_twice_stays_shared() -> None:
    result = flat(siamese())
    assert [len(result.get_layer(n)._inbound_nodes) for n in ("conv", "norm", "relu")] == [2] * 3


def test_an_output_keeps_the_name_of_the_nested_model() -> None:
    head = functional(
        lambda x: [dense(2, name="head")(x), dense(3, name="other")(x)], 4, name="head"
    )
    model = functional(lambda x: head(dense(4, name="first")(x)), 4)
    assert model.output_names == ["head", "head"]
    result = flat(model)
    assert result.output_names == ["head", "head"]
    assert [layer.name for layer in result.layers[1:]] == ["first", "head.head", "other", "head"]


def test_training_is_passed_on() -> None:
    inner = functional(lambda x: layers.Dropout(0.5)(layers.BatchNormalization()(x)), 4)
    innermost = functional(lambda x: inner(x), 4)
    model = functional(lambda x: dense(2)(innermost(x, training=True)), 4)
    for name in ("dropout", "batch_normalization"):
        (node,) = flat(model).get_layer(name)._inbound_nodes
        assert node.arguments.kwargs["training"] is True


def test_masks_matter(rng: np.random.Generator) -> None:
    """The models above would not be the same without them."""
    model = masks()
    x = np.array([[1, 2, 0, 3, 0, 0], [1, 2, 0, 3, 0, 0]])
    x[1, 2] = 4
    a, b = flat(model).predict(x, verbose=0)
    assert (np.abs(a - b) > 1e-4).mean() > 0.5
    assert "with_mask" not in names_of(model)
    assert "with_mask" in names_of(explicit_mask())


def test_what_has_nothing_nested_is_returned_as_it_is() -> None:
    model = block("plain")
    assert flat(model) is model


def test_a_nested_model_that_cannot_be_traced_stays() -> None:
    model = functional(lambda x: TfCall(name="opaque")(conv(3)(x)))
    assert flat(model) is model  # nothing was put in its place
    plan = ocs_tf.plan(model, verbose=False)
    assert "opaque/conv" in plan.layers  # in place
    assert not plan.float_layers


def test_subclassed_models_have_deterministic_names() -> None:
    # Two layers and three operations come from `call`, whose automatic names count up.
    expected = {"inputs", "conv", "norm", "sequential.conv", "sequential.relu", "relu", "relu_1"}
    assert {op.name for op in flat(subclassed()).operations} == expected | {"add", "re_lu"}


def tf_keras_model() -> Any:
    tf_keras = pytest.importorskip("tf_keras")
    return tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])


def with_tf() -> keras.Model:
    model = TfCall(name="mine")
    model(np.zeros((1, *SHAPE), np.float32))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "model.keras", r"`model` must be a Keras 3 keras.Model, but is a builtins.str"),
        (lambda: layers.Dense(2), r"must be a Keras 3 keras.Model, but is a keras.*Dense"),
        (tf_keras_model, r"is a tf_keras.*ocs_tf.load_model makes one of Keras 3 of it"),
        (
            lambda: keras.Sequential([layers.Dense(2)], name="raw"),
            r"'raw' is not built.*keras.Input as its first layer",
        ),
        (lambda: Residual(name="new"), r"'new' .*\(Residual\).*not been called.*Call it on data"),
        (
            with_tf,
            r"'mine' .*\(TfCall\).*KerasTensor cannot be used.*use Keras layers and keras.ops",
        ),
    ],
    ids=["string", "layer", "tf-keras", "unbuilt", "never-called", "tf-function"],
)
def test_what_is_no_readable_model(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flat(make())


CONVERTED = [deep, sequential_in_sequential, siamese, twice_in_a_row, shared_layer, masks]
CONVERTED += [
    subclassed,
    subclassed_inside,
    subclassed_text,
    untraceable_inside,
    separable,
    several,
]


@pytest.mark.parametrize("make", CONVERTED, ids=lambda f: f.__name__)
def test_conversion(
    make: Callable[[], keras.Model],
    randomize: Any,
    rng: np.random.Generator,
    tmp_path: pathlib.Path,
) -> None:
    model = randomize(make())
    x = data_for(model, rng)
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    kernels = (layers.Dense, layers.Conv2D)
    float_kernels = [x for x in flat(model).layers if type(x) in kernels]
    found = {layer.name for layer in ocs_tf.report(quantized).layers if layer.bits}
    assert {layer.name for layer in float_kernels} <= found
    outputs = quantized(x)
    compare(outputs, model(x), 0.05)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    compare(loaded(x), outputs, 0)


EXPORTED = [
    deep,
    sequential_in_sequential,
    twice_in_a_row,
    subclassed,
    shared_separable,
    passed_through,
]


@pytest.mark.parametrize("make", EXPORTED, ids=lambda f: f.__name__)
def test_export(
    make: Callable[[], keras.Model],
    randomize: Any,
    rng: np.random.Generator,
    tmp_path: pathlib.Path,
) -> None:
    model = randomize(make())
    x = data_for(model, rng)
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target="int8", representative_dataset=x)
    for close in ocs_tf.compare(model, ocs_tf.TFLiteModel(path), x):
        assert close.sqnr_db > 20


def test_a_sequential_model_stays_sequential_where_it_can(randomize: Any) -> None:
    assert isinstance(ocs_tf.convert(sequential_in_sequential(), verbose=False), keras.Sequential)
    branched = keras.Sequential([keras.Input(SHAPE), block("block"), layers.Flatten()])
    assert not isinstance(ocs_tf.convert(branched, verbose=False), keras.Sequential)
