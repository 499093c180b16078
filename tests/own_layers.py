"""Layers as users write them, most of them with kernels inside."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

UNITS = 8
SHAPE = (6, UNITS)
registered = keras.saving.register_keras_serializable("own_layers")


@registered
class Block(layers.Layer):
    """Keras layers, keras.ops, a variable of its own, a shape of which a part is open."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = layers.Dense(UNITS, activation="relu")
        self.outer = layers.Dense(UNITS)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        self.inner.build(input_shape)
        self.outer.build(input_shape)
        self.shift = self.add_weight(shape=input_shape[1:], initializer="ones", name="shift")

    def call(self, x: Any) -> Any:
        pairs = ops.reshape(self.inner(x), (ops.shape(x)[0], -1, UNITS // 2))
        return self.outer(ops.reshape(pairs, (-1, *x.shape[1:]))) + self.shift


@registered
class TfBlock(layers.Layer):
    """Functions of tf, layers in containers, a model inside, some built only when called."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._first = layers.Dense(UNITS, activation="relu")
        self.rest = [layers.Dense(UNITS), {"norm": layers.LayerNormalization()}]
        self.model = keras.Sequential([layers.Dense(UNITS), layers.ReLU(), layers.Dense(UNITS)])
        self._self_attention = layers.MultiHeadAttention(2, 4)

    def build(self, input_shape: Any) -> None:
        self._first.build(input_shape)
        self.gain = self.add_weight(shape=(UNITS,), initializer="ones", name="gain")

    def call(self, x: Any, training: bool = False) -> Any:
        x = self._first(x, training=training) * self.gain
        x = self.rest[1]["norm"](tf.nn.relu(self.rest[0](x)))
        return self.model(self._self_attention(x, x)) + tf.square(x)


TF_KERNELS = {
    *("own/first", "own/rest_0", "own/model/dense", "own/model/dense_1"),
    *(f"own/self_attention/{name}" for name in ("query", "key", "value", "attention_output")),
}


@registered
class ClassToken(layers.Layer):
    """One more step for each sample: it cannot be traced while the batch size is open."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(UNITS)
        self.positions = layers.Embedding(SHAPE[0] + 1, UNITS)

    def build(self, input_shape: Any) -> None:
        self.positions.build()
        self.dense.build(input_shape)
        self.token = self.add_weight(shape=(1, 1, UNITS), name="token")

    def call(self, x: Any) -> Any:
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, UNITS))
        steps = ops.concatenate([token, self.dense(x)], axis=1)
        return steps + self.positions(np.arange(SHAPE[0] + 1))


class NoConfig(layers.Layer):
    """Without a configuration, around another of the user's layers and a function."""

    def __init__(self, function: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.block = TfBlock()

    def call(self, x: Any) -> Any:
        return self.function(self.block(x))


def model_of(layer: layers.Layer) -> keras.Model:
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, layers.Dense(3, name="last")(layer(inputs)))


def samples(count: int = 16) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, *SHAPE)).astype(np.float32)


@registered
class Forgetful(layers.Layer):
    """Its configuration lacks an argument that decides the shape of a weight."""

    def __init__(self, size: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gain = self.add_weight(shape=(size,), name="gain")

    def call(self, x: Any) -> Any:
        return x * ops.sum(self.gain)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()
