"""Networks that make pictures of pictures: segmentation, detection, restoration, generation."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from benchmarks.networks.classifiers import conv, depthwise, picture
from benchmarks.networks.registry import network


def _up(x: Any, filters: int) -> Any:
    return layers.Conv2DTranspose(filters, 2, strides=2, activation="relu")(x)


@network
def unet() -> keras.Model:
    inputs = picture()
    a = conv(inputs, 8)
    b = conv(layers.MaxPooling2D()(a), 16)
    c = conv(layers.MaxPooling2D()(b), 16)
    x = conv(layers.Concatenate()([_up(c, 8), b]), 8)
    x = conv(layers.Concatenate()([_up(x, 8), a]), 8)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


@network
def unet_with_gates() -> keras.Model:
    inputs = picture()
    a = conv(inputs, 8)
    b = conv(layers.MaxPooling2D()(a), 8)
    up = layers.UpSampling2D(interpolation="bilinear")(b)
    gate = layers.ReLU()(layers.Conv2D(4, 1)(a) + layers.Conv2D(4, 1)(up))
    gate = layers.Conv2D(1, 1, activation="sigmoid")(gate)
    x = layers.Concatenate()([layers.Multiply()([a, gate]), up])
    return keras.Model(inputs, layers.Conv2D(2, 1)(x))


@network
def deeplab_head() -> keras.Model:
    inputs = picture()
    x = conv(inputs, 8, strides=2)
    pooled = conv(layers.GlobalAveragePooling2D(keepdims=True)(x), 8, 1)
    branches = [conv(x, 8, 1), *(conv(x, 8, 3, dilation_rate=rate) for rate in (2, 4))]
    branches.append(layers.UpSampling2D(12)(pooled))
    x = conv(layers.Concatenate()(branches), 8, 1)
    x = layers.Resizing(24, 24)(layers.Conv2D(4, 1)(x))
    return keras.Model(inputs, layers.Softmax()(x))


@network
def segmentation_with_argmax() -> keras.Model:
    inputs = picture()
    x = layers.Conv2DTranspose(5, 4, strides=2, padding="same")(conv(inputs, 8, strides=2))
    return keras.Model(inputs, ops.argmax(x, axis=-1))


@network
def feature_pyramid() -> keras.Model:
    inputs = picture()
    c1 = conv(inputs, 8, strides=2)
    c2 = conv(c1, 16, strides=2)
    c3 = conv(c2, 16, strides=2)
    p3 = layers.Conv2D(8, 1)(c3)
    p2 = layers.Add()([layers.Conv2D(8, 1)(c2), layers.UpSampling2D()(p3)])
    p1 = layers.Add()([layers.Conv2D(8, 1)(c1), layers.UpSampling2D()(p2)])
    smooth = layers.Conv2D(4, 3, padding="same")
    return keras.Model(inputs, [smooth(p) for p in (p1, p2, p3)])


@network
def yolo_head() -> keras.Model:
    inputs = picture()
    x = conv(conv(inputs, 8, activation="leaky_relu", strides=2), 16, strides=2)
    x = layers.Reshape((6, 6, 2, 7))(layers.Conv2D(14, 1)(x))
    where, size, score = x[..., :2], x[..., 2:4], x[..., 4:]
    boxes = [ops.sigmoid(where), ops.exp(size), ops.sigmoid(score)]
    return keras.Model(inputs, layers.Concatenate(name="boxes")(boxes))


@network
def ssd_head() -> keras.Model:
    inputs = picture()
    maps = [conv(inputs, 8, strides=4)]
    maps.append(conv(maps[0], 16, strides=2))
    boxes = [layers.Reshape((-1, 4))(layers.Conv2D(8, 3, padding="same")(m)) for m in maps]
    kinds = [layers.Reshape((-1, 3))(layers.Conv2D(6, 3, padding="same")(m)) for m in maps]
    kind = layers.Softmax(name="kinds")(layers.Concatenate(axis=1)(kinds))
    return keras.Model(inputs, [layers.Concatenate(axis=1, name="boxes")(boxes), kind])


@network
def hourglass() -> keras.Model:
    inputs = picture()
    x = conv(inputs, 8)
    y = conv(layers.MaxPooling2D()(x), 8)
    y = layers.UpSampling2D()(conv(y, 8))
    return keras.Model(inputs, layers.Conv2D(5, 1)(layers.Add()([x, y])))


@network
def super_resolution() -> keras.Model:
    inputs = picture()
    x = layers.Conv2D(16, 5, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(12, 3, padding="same")(x)
    x = layers.Reshape((24, 24, 2, 2, 3))(x)
    x = layers.Reshape((48, 48, 3))(layers.Permute((1, 3, 2, 4, 5))(x))
    return keras.Model(inputs, x + layers.UpSampling2D(interpolation="bilinear")(inputs))


@network
def srcnn_prelu() -> keras.Model:
    x = inputs = picture()
    for filters in (8, 4):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.PReLU(shared_axes=[1, 2])(x)
    return keras.Model(inputs, layers.Conv2D(3, 3, padding="same")(x))


@network
def autoencoder() -> keras.Model:
    inputs = picture()
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Dense(12, name="code")(layers.Flatten()(x))
    x = layers.Reshape((6, 6, 4))(layers.Dense(144, activation="relu")(x))
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(3, 3, strides=2, padding="same", activation="sigmoid")(x)
    return keras.Model(inputs, x)


@network
def variational_autoencoder() -> keras.Model:
    inputs = picture()
    x = layers.Flatten()(layers.Conv2D(8, 3, strides=4, activation="relu")(inputs))
    mean, spread = layers.Dense(4)(x), layers.Dense(4)(x)
    x = mean + ops.exp(0.5 * spread) * 0.1
    return keras.Model(inputs, [layers.Dense(32, activation="relu")(x), mean, spread])


@network
def gan_generator() -> keras.Model:
    inputs = keras.Input((16,), name="noise")
    x = layers.Reshape((3, 3, 16))(layers.Dense(144, use_bias=False)(inputs))
    for filters in (8, 4):
        x = layers.LeakyReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2DTranspose(filters, 4, strides=2, padding="same", use_bias=False)(x)
    x = layers.Conv2D(3, 3, padding="same", activation="tanh")(layers.LeakyReLU()(x))
    return keras.Model(inputs, x)


@network
def style_transfer() -> keras.Model:
    inputs = picture()
    x = layers.Conv2D(8, 3, padding="same")(layers.ZeroPadding2D(1)(inputs))
    x = layers.ReLU()(layers.GroupNormalization(groups=-1)(x))
    y = layers.GroupNormalization(groups=2)(layers.Conv2D(8, 3, padding="same")(x))
    x = layers.Cropping2D(1)(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Conv2D(3, 3, padding="same", activation="tanh")(x))


@network
def coordinates() -> keras.Model:
    """Convolutions that are told where they are."""
    inputs = picture()
    rows = ops.broadcast_to(ops.reshape(ops.linspace(-1.0, 1.0, 24), (1, 24, 1, 1)), (1, 24, 24, 1))
    x = inputs * 1.0
    x = layers.Concatenate()([x, ops.zeros_like(x[..., :1]) + rows])
    return keras.Model(inputs, layers.Conv2D(4, 3, activation="relu")(x))


@network
def depth_estimation() -> keras.Model:
    inputs = picture()
    x = depthwise(conv(inputs, 8, strides=2), "relu6")
    x = layers.Conv2D(1, 3, padding="same", activation="softplus")(layers.UpSampling2D()(x))
    return keras.Model(inputs, 1.0 / (x + 0.5))
