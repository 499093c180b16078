"""Functions of TensorFlow in models of Keras 2 as operations of Keras 3, against tf_keras."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from ocs_tf.keras2 import keras3_model, operations

tf_keras = pytest.importorskip("tf_keras")
tf = pytest.importorskip("tensorflow")

IMAGE = (8, 8, 4)
FOUR = np.linspace(-1, 1, 4)


def arithmetic(x: Any) -> list[Any]:
    y = x[:, ::-1]
    constants = [x + 1, 1 - x, x / 3, -x, abs(x), x**2, x % 2, x // 2, FOUR * x]
    two = [x + y, tf.maximum(x, y), tf.minimum(x, 0.0), tf.matmul(x, y, transpose_b=True)]
    two += [tf.math.squared_difference(x, y), tf.einsum("abcd,abce->abde", x, y), tf.add_n([x, y])]
    return [*constants, tf.constant(3.0) - x, *two, tf.where(x > y, x, 0.0), x >= y, tf.equal(x, y)]


def functions(x: Any) -> list[Any]:
    nn, backend = tf.nn, tf_keras.backend
    one = [nn.relu, nn.relu6, nn.swish, nn.gelu, nn.elu, nn.softplus, tf.tanh, nn.softmax]
    one += [nn.log_softmax, tf.exp, tf.square, tf.round, nn.leaky_relu, tf.identity, tf.ones_like]
    one += [backend.hard_sigmoid, backend.batch_flatten, tf_keras.activations.mish]
    return [function(x) for function in one] + [backend.mean(x, axis=[1, 2])]


def reductions(x: Any) -> list[Any]:
    found = [tf.reduce_mean(x, [1, 2]), tf.reduce_sum(x, -1, keepdims=True), tf.reduce_max(x, 1)]
    found += [tf.math.reduce_std(x, -1), tf.math.l2_normalize(x, -1), tf.norm(x, axis=-1)]
    return [*found, tf.argmax(x, -1), tf.argmin(x, 1, output_type=tf.int32), tf.cumsum(x, 1)]


def shapes(x: Any) -> list[Any]:
    size = tf.shape(x)
    reshaped = [tf.reshape(x, [-1, 64, 4]), tf.reshape(x, (size[0], -1))]
    reshaped += [tf.reshape(x, tf.stack([size[0], size[1] * size[2], 4]))]
    reshaped += [tf.reshape(x, tf.concat([size[:-1], [2, 2]], 0)), tf.transpose(x, [0, 3, 1, 2])]
    split = [*tf.split(x, 2, -1), *tf.split(x, [3, -1, 4], 1), *tf.unstack(x, axis=-1)]
    paddings = [[0, 0], [1, 2], [0, 1], [0, 0]]
    padded = [tf.pad(x, paddings), tf.pad(x, paddings, "REFLECT"), tf.tile(x, [1, 2, 1, 1])]
    sliced = [x[:, 1:-1], x[..., 0], x[:, ::2, ::2], x[:, None], x[:, : size[1] - 2]]
    other = [tf.expand_dims(x, 1), tf.squeeze(x[:, :1], 1), tf.concat([x, x], -1), tf.stack([x, x])]
    other += [tf.reverse(x, [1]), tf.roll(x, 1, 2), tf.repeat(x, 2, axis=1)]
    other += [tf.gather(x, [0, 2], axis=3), tf.cast(x, "int32"), tf.clip_by_value(x, 0, 6)]
    return [*reshaped, *split, *padded, *sliced, *other]


def images(x: Any) -> list[Any]:
    resize, nn = tf.image.resize, tf.nn
    found = [resize(x, (16, 12)), resize(x, [4, 4], "nearest"), resize(x, tf.shape(x)[1:3] * 2)]
    found += [nn.max_pool2d(x, 2, 2, "SAME"), nn.avg_pool2d(x, [1, 2, 2, 1], [1, 1, 1, 1], "VALID")]
    found += [nn.depth_to_space(x, 2), nn.space_to_depth(x, 2)]
    kernel = np.ones((3, 3, 4, 2), np.float32)
    return [*found, nn.conv2d(x, kernel, [1, 2, 2, 1], "SAME"), nn.bias_add(x, FOUR)]


def of_integers(x: Any) -> list[Any]:
    x = tf.cast(x, tf.int32) % 3
    table = tf.constant(np.eye(5, 3, dtype=np.float32))
    return [tf.one_hot(x, 5), tf.gather(table, x), x + 1, tf.cast(x, tf.float32) / 2]


GROUPS = [arithmetic, functions, reductions, shapes, images, of_integers]


def model_of(function: Callable[[Any], Any], shape: tuple[Any, ...] = IMAGE) -> Any:
    inputs = tf_keras.Input(shape)
    return tf_keras.Model(inputs, function(inputs))


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_same_outputs(group: Callable[[Any], Any], rng: np.random.Generator) -> None:
    model = model_of(group)
    result = keras3_model(model)
    assert result.output_names[0] == model.output_names[0]
    x = rng.normal(size=(3, *IMAGE)).astype("float32")
    for ours, theirs in zip(result(x), model(x), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)


def test_arguments_have_the_names_of_tensorflow() -> None:
    """What a translation takes, the function of TensorFlow takes, too."""
    special = ("__operators__.", "keras.")
    for symbol, translation in operations._TRANSLATIONS.items():
        if not symbol.startswith(special) and symbol not in operations._ONE:
            function = functools.reduce(getattr, symbol.split("."), tf)
            known = set(inspect.signature(function).parameters)
            assert set(inspect.signature(translation).parameters) <= known, symbol


REFUSED = {
    "function": (
        lambda x: tf.math.lgamma(x),
        "calls tf.math.lgamma, which has no",
    ),
    "argument": (lambda x: tf.cumsum(x, 1, exclusive=True), "whose argument exclusive has no"),
    "open size": (
        lambda x: tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1] * 2, 2]),
        "with a size that is known only when the model runs",
    ),
    "index": (
        lambda x: x[:, tf.cast(tf.reduce_max(x) * 0, "int32")],
        "with an index that the model computes",
    ),
}


@pytest.mark.parametrize(("function", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_and_their_remedy(function: Callable[[Any], Any], message: str) -> None:
    model = model_of(function, (None, 4))
    with pytest.raises(ValueError, match=message) as error:
        keras3_model(model)
    name = str(error.value).split("custom_objects={'")[1].split("'")[0]
    assert name.startswith("tf.")
    theirs = next(layer.function for layer in model.layers if layer.name.startswith(name))

    def of_keras(*args: Any, **kwargs: Any) -> Any:
        return keras.layers.Lambda(lambda x: theirs(x, *args[1:], **kwargs))(args[0])

    if "lgamma" in name or "exclusive" in message:
        assert keras3_model(model, {name: of_keras}).built
