"""Networks for tables, points and graphs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from benchmarks.networks.registry import WORDS, network


def numbers(size: int = 12) -> Any:
    return keras.Input((size,), name="numbers")


@network
def tabular() -> keras.Model:
    inputs, kind = numbers(), keras.Input((1,), dtype="int32", name="kind")
    normal = layers.Normalization(mean=np.zeros(12), variance=np.full(12, 2.0))
    known = layers.IntegerLookup(vocabulary=list(range(0, WORDS, 2)))(kind)
    looked_up = layers.Flatten()(layers.Embedding(WORDS // 2 + 1, 4)(known))
    x = layers.Concatenate()([normal(inputs), looked_up])
    x = layers.Dense(16, activation="relu")(x)
    return keras.Model([inputs, kind], layers.Dense(1)(layers.BatchNormalization()(x)))


@network
def wide_and_deep() -> keras.Model:
    inputs = numbers()
    deep = layers.Dense(8, activation="relu")(layers.Dense(16, activation="relu")(inputs))
    x = layers.Concatenate()([inputs, deep])
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@network
def deep_and_cross() -> keras.Model:
    x = inputs = numbers()
    for _ in range(2):
        x = inputs * layers.Dense(12)(x) + x
    return keras.Model(inputs, layers.Dense(1)(x))


@network
def factorization_machine() -> keras.Model:
    fields = keras.Input((6,), dtype="int32", name="fields")
    v = layers.Embedding(WORDS, 4)(fields)
    pairs = 0.5 * (ops.square(ops.sum(v, axis=1)) - ops.sum(ops.square(v), axis=1))
    return keras.Model(fields, layers.Dense(1)(pairs))


@network
def two_towers() -> keras.Model:
    sides = [keras.Input((1,), dtype="int32", name=name) for name in ("user", "item")]
    towers = []
    for side in sides:
        x = layers.Flatten()(layers.Embedding(WORDS, 8)(side))
        towers.append(layers.Dense(8)(layers.Dense(16, activation="relu")(x)))
    return keras.Model(sides, layers.Dot(axes=1, normalize=True)(towers))


@network
def mixture_of_experts() -> keras.Model:
    inputs = numbers()
    gates = layers.Reshape((4, 1))(layers.Dense(4, activation="softmax")(inputs))
    experts = ops.stack([layers.Dense(6, activation="relu")(inputs) for _ in range(4)], axis=1)
    return keras.Model(inputs, layers.Dense(2)(ops.sum(experts * gates, axis=1)))


@network
def self_normalizing() -> keras.Model:
    x = inputs = numbers()
    for _ in range(3):
        x = layers.AlphaDropout(0.1)(layers.Dense(16, activation="selu")(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@network
def controller() -> keras.Model:
    """As in reinforcement learning: the values of actions, and the action of the largest."""
    inputs = numbers()
    x = layers.Dense(16, activation="mish")(inputs)
    value, gain = layers.Dense(1)(x), layers.Dense(4)(x)
    values = value + gain - ops.mean(gain, axis=1, keepdims=True)
    return keras.Model(inputs, [values, ops.argmax(values, axis=1)])


@network
def einsum_layers() -> keras.Model:
    inputs = keras.Input((6, 8), name="numbers")
    x = layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de", activation="relu")(inputs)
    x = layers.EinsumDense("abde,dec->abc", (None, 5), bias_axes="c")(x)
    return keras.Model(inputs, x)


@network
def point_cloud() -> keras.Model:
    inputs = keras.Input((32, 3), name="points")
    turn = layers.GlobalMaxPooling1D()(layers.Conv1D(8, 1, activation="relu")(inputs))
    turn = layers.Reshape((3, 3))(layers.Dense(9)(turn))
    x = layers.Conv1D(16, 1, activation="relu")(ops.matmul(inputs, turn))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalMaxPooling1D()(x)))


@network
def graph_convolution() -> keras.Model:
    nodes, edges = keras.Input((10, 6), name="nodes"), keras.Input((10, 10), name="edges")
    x = nodes
    for units in (8, 4):
        x = layers.ReLU()(ops.matmul(edges, layers.Dense(units)(x)))
    return keras.Model([nodes, edges], layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


@network
def voxels() -> keras.Model:
    inputs = keras.Input((8, 8, 8, 1), name="volume")
    x = layers.Conv3D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.GlobalAveragePooling3D()(layers.MaxPooling3D()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@network
def video() -> keras.Model:
    inputs = keras.Input((5, 12, 12, 3), name="frames")
    x = layers.TimeDistributed(layers.Conv2D(4, 3, activation="relu"))(inputs)
    x = layers.TimeDistributed(layers.GlobalAveragePooling2D())(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(6)(x)))
