"""Classifiers of pictures."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from benchmarks.networks.registry import network

SHAPE = (24, 24, 3)


def picture(name: str = "picture") -> Any:
    return keras.Input(SHAPE, name=name)


def conv(x: Any, filters: int, size: int = 3, activation: Any = "relu", **options: Any) -> Any:
    """Convolution, batch norm, activation."""
    x = layers.Conv2D(filters, size, padding="same", use_bias=False, **options)(x)
    x = layers.BatchNormalization()(x)
    return x if activation is None else layers.Activation(activation)(x)


def depthwise(x: Any, activation: Any = "relu", size: int = 3, **options: Any) -> Any:
    x = layers.DepthwiseConv2D(size, padding="same", use_bias=False, **options)(x)
    return layers.Activation(activation)(layers.BatchNormalization()(x))


def head(x: Any) -> Any:
    return layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))


def excited(x: Any, gate: Any = "sigmoid") -> Any:
    """Squeeze and excitation."""
    channels = x.shape[-1]
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(max(2, channels // 4), 1, activation="relu")(s)
    return layers.Multiply()([x, layers.Conv2D(channels, 1, activation=gate)(s)])


@network
def lenet() -> keras.Model:
    inputs = picture()
    x = layers.AveragePooling2D(2)(layers.Conv2D(6, 5, activation="tanh")(inputs))
    x = layers.AveragePooling2D(2)(layers.Conv2D(16, 5, activation="tanh")(x))
    x = layers.Dense(32, activation="tanh")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


@network
def vgg() -> keras.Model:
    x = inputs = picture()
    for filters in (8, 16):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dropout(0.5)(layers.Dense(32, activation="relu")(layers.Flatten()(x)))
    return keras.Model(inputs, layers.Dense(10)(x))


@network
def resnet() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8)
    for filters, stride in ((8, 1), (16, 2)):
        short = x if stride == 1 else conv(x, filters, 1, None, strides=stride)
        y = conv(conv(x, filters, strides=stride), filters, activation=None)
        x = layers.ReLU()(layers.Add()([short, y]))
    return keras.Model(inputs, head(x))


@network
def resnet_preactivated() -> keras.Model:
    x = inputs = picture()
    x = layers.Conv2D(16, 3, padding="same")(x)
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        y = conv(conv(y, 4, 1), 4)
        x = x + layers.Conv2D(16, 1)(y)
    return keras.Model(inputs, head(layers.ReLU()(layers.BatchNormalization()(x))))


@network
def resnext() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 16)
    y = conv(conv(x, 8, 1), 8, groups=4)
    return keras.Model(inputs, head(layers.ReLU()(x + conv(y, 16, 1, None))))


@network
def densenet() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8)
    for _ in range(3):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same")(y)])
    x = layers.AveragePooling2D(2)(layers.Conv2D(8, 1)(layers.ReLU()(x)))
    return keras.Model(inputs, head(x))


@network
def inception() -> keras.Model:
    inputs = picture()
    pooled = layers.MaxPooling2D(3, 1, padding="same")(inputs)
    branches = [
        conv(inputs, 4, 1),
        conv(conv(inputs, 4, 1), 8),
        conv(conv(conv(inputs, 2, 1), 4, (1, 7)), 4, (7, 1)),
        conv(pooled, 4, 1),
    ]
    return keras.Model(inputs, head(layers.Concatenate()(branches)))


@network
def xception() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8)
    y = layers.SeparableConv2D(16, 3, padding="same")(layers.ReLU()(x))
    y = layers.MaxPooling2D(3, 2, padding="same")(layers.BatchNormalization()(y))
    return keras.Model(inputs, head(layers.Add()([y, conv(x, 16, 1, None, strides=2)])))


@network
def mobilenet() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8, activation="relu6", strides=2)
    for filters in (16, 16):
        x = conv(depthwise(x, "relu6"), filters, 1, "relu6")
    return keras.Model(inputs, head(x))


@network
def mobilenet_v2() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8, activation="relu6", strides=2)
    for _ in range(2):
        x = x + conv(depthwise(conv(x, 24, 1, "relu6"), "relu6"), 8, 1, None)
    return keras.Model(inputs, head(conv(x, 32, 1, "relu6")))


@network
def mobilenet_v3() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8, activation="hard_swish", strides=2)
    y = excited(depthwise(conv(x, 24, 1, "hard_swish"), "hard_swish", 5), "hard_sigmoid")
    x = x + conv(y, 8, 1, None)
    x = layers.GlobalAveragePooling2D(keepdims=True)(conv(x, 32, 1, "hard_swish"))
    x = layers.Flatten()(layers.Conv2D(32, 1, activation="hard_swish")(x))
    return keras.Model(inputs, layers.Dense(10)(x))


@network
def efficientnet() -> keras.Model:
    x = inputs = picture()
    x = conv(layers.Rescaling(1 / 4)(x), 8, activation="swish", strides=2)
    x = x + conv(excited(depthwise(conv(x, 24, 1, "swish"), "swish")), 8, 1, None)
    return keras.Model(inputs, head(conv(x, 32, 1, "swish")))


@network
def squeezenet() -> keras.Model:
    x = inputs = picture()
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    for _ in range(2):
        s = layers.Conv2D(4, 1, activation="relu")(x)
        wide = [layers.Conv2D(8, n, padding="same", activation="relu")(s) for n in (1, 3)]
        x = layers.Concatenate()(wide)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(10, 1, activation="relu")(x))
    return keras.Model(inputs, layers.Softmax()(x))


@network
def shufflenet() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 16, strides=2)
    left, right = ops.split(x, 2, axis=-1)
    right = conv(depthwise(conv(right, 8, 1), "linear"), 8, 1)
    x = layers.Concatenate()([left, right])
    x = layers.Reshape((12, 12, 2, 8))(x)
    x = layers.Reshape((12, 12, 16))(layers.Permute((1, 2, 4, 3))(x))
    return keras.Model(inputs, head(conv(x, 16, 1)))


@network
def ghostnet() -> keras.Model:
    x = inputs = picture()
    for filters in (8, 16):
        y = conv(x, filters // 2, 1)
        x = layers.Concatenate()([y, depthwise(y)])
    return keras.Model(inputs, head(x))


@network
def repvgg() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8)
    branches = [conv(x, 8, 3, None), conv(x, 8, 1, None), layers.BatchNormalization()(x)]
    return keras.Model(inputs, head(layers.ReLU()(layers.Add()(branches))))


@network
def darknet() -> keras.Model:
    x = inputs = picture()
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.LeakyReLU(negative_slope=0.1)(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x)
    return keras.Model(inputs, head(x))


@network
def convnext() -> keras.Model:
    x = inputs = picture()
    x = layers.LayerNormalization()(layers.Conv2D(16, 4, strides=4)(x))
    y = layers.LayerNormalization()(layers.DepthwiseConv2D(7, padding="same")(x))
    y = layers.Dense(16)(layers.Dense(64, activation="gelu")(y))
    x = x + y * 0.7
    return keras.Model(inputs, head(x))


@network
def convmixer() -> keras.Model:
    x = inputs = picture()
    x = layers.BatchNormalization()(layers.Conv2D(16, 4, strides=4, activation="gelu")(x))
    y = layers.DepthwiseConv2D(5, padding="same", activation="gelu")(x)
    x = layers.Add()([layers.BatchNormalization()(y), x])
    x = layers.BatchNormalization()(layers.Conv2D(16, 1, activation="gelu")(x))
    return keras.Model(inputs, head(x))


@network
def mlp_mixer() -> keras.Model:
    inputs = picture()
    x = layers.Reshape((36, 16))(layers.Conv2D(16, 4, strides=4)(inputs))
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    y = layers.Dense(36)(layers.Dense(24, activation="gelu")(y))
    x = x + layers.Permute((2, 1))(y)
    x = x + layers.Dense(16)(layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


@network
def vision_transformer() -> keras.Model:
    inputs = picture()
    x = layers.Reshape((36, 16))(layers.Conv2D(16, 4, strides=4)(inputs))
    x = x + layers.Embedding(36, 16)(ops.arange(36))
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 8)(y, y)
    x = x + layers.Dense(16)(layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


@network
def swin_block() -> keras.Model:
    inputs = picture()
    x = layers.Conv2D(16, 4, strides=4)(inputs)  # 6 x 6, in windows of 3 x 3
    y = layers.Reshape((2, 3, 2, 3, 16))(layers.LayerNormalization()(x))
    y = ops.reshape(layers.Permute((1, 3, 2, 4, 5))(y), (-1, 4, 9, 16))
    y = layers.MultiHeadAttention(2, 8, attention_axes=2)(y, y)
    y = layers.Permute((1, 3, 2, 4, 5))(layers.Reshape((2, 2, 3, 3, 16))(y))
    x = x + layers.Reshape((6, 6, 16))(y)
    x = x + layers.Dense(16)(layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(inputs, head(x))


@network
def cbam() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8)
    shared = [layers.Dense(4, activation="relu"), layers.Dense(8)]
    pooled = layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)
    gate = layers.Activation("sigmoid")(sum(shared[1](shared[0](p)) for p in pooled))
    x = layers.Multiply()([x, layers.Reshape((1, 1, 8))(gate)])
    planes = [ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)]
    where = layers.Conv2D(1, 7, padding="same", activation="sigmoid")(layers.Concatenate()(planes))
    return keras.Model(inputs, head(layers.Multiply()([x, where])))


@network
def non_local() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8, strides=4)
    query, key, value = (layers.Reshape((36, 8))(layers.Conv2D(8, 1)(x)) for _ in range(3))
    scores = layers.Softmax()(layers.Dot(axes=2)([query, key]))
    y = layers.Reshape((6, 6, 8))(ops.matmul(scores, value))
    return keras.Model(inputs, head(x + layers.Conv2D(8, 1)(y)))


@network
def maxout() -> keras.Model:
    inputs = picture()
    x = layers.Maximum()([layers.Conv2D(8, 3)(inputs), layers.Conv2D(8, 3)(inputs)])
    x = layers.Minimum()([layers.MaxPooling2D()(x), layers.AveragePooling2D(2)(x)])
    return keras.Model(inputs, head(x))


@network
def highway() -> keras.Model:
    inputs = picture()
    x = layers.Dense(16)(layers.Flatten()(layers.AveragePooling2D(4)(inputs)))
    gate = layers.Dense(16, activation="sigmoid")(x)
    x = gate * layers.Dense(16, activation="elu")(x) + (1.0 - gate) * x
    return keras.Model(inputs, layers.Dense(10)(x))


@network
def pyramid_pooling() -> keras.Model:
    x = inputs = picture()
    x = conv(x, 8)
    pools = [layers.Flatten()(layers.MaxPooling2D(24 // n)(x)) for n in (1, 2, 4)]
    return keras.Model(inputs, layers.Dense(10)(layers.Concatenate()(pools)))


@network
def capsules() -> keras.Model:
    inputs = picture()
    x = layers.Conv2D(16, 5, strides=4, activation="relu")(inputs)
    x = layers.Reshape((50, 8))(x)
    squared = ops.sum(ops.square(x), axis=-1, keepdims=True)
    x = x * squared / (1.0 + squared) / ops.sqrt(squared + 1e-7)
    votes = layers.Reshape((50, 4, 4))(layers.Dense(16)(x))
    agree = layers.Softmax(axis=2)(ops.sum(votes * ops.mean(votes, 1, keepdims=True), axis=-1))
    poses = ops.sum(votes * layers.Reshape((50, 4, 1))(agree), axis=1)
    return keras.Model(inputs, ops.sum(ops.square(poses), axis=-1))


@network
def bilinear_pooling() -> keras.Model:
    inputs = picture()
    a, b = (layers.Reshape((36, 6))(conv(inputs, 6, strides=4)) for _ in range(2))
    x = layers.Flatten()(ops.matmul(layers.Permute((2, 1))(a), b))
    return keras.Model(inputs, layers.Dense(10)(layers.UnitNormalization()(x)))


@network
def two_tasks() -> keras.Model:
    inputs = picture()
    x = layers.GlobalAveragePooling2D()(conv(conv(inputs, 8, strides=2), 16, strides=2))
    kind = layers.Dense(10, activation="softmax", name="kind")(x)
    return keras.Model(inputs, [layers.Dense(1, name="age")(x), kind])


@network
def siamese() -> keras.Model:
    encoder = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(16),
        ]
    )
    one, other = picture("one"), picture("other")
    apart = ops.abs(encoder(one) - encoder(other))
    return keras.Model([one, other], layers.Dense(1, activation="sigmoid")(apart))


@network
def picture_and_facts() -> keras.Model:
    inputs, facts = picture(), keras.Input((5,), name="facts")
    x = layers.GlobalAveragePooling2D()(conv(inputs, 8, strides=2))
    x = layers.Concatenate()([x, layers.Dense(8, activation="relu")(facts)])
    return keras.Model({"picture": inputs, "facts": facts}, layers.Dense(3)(x))
