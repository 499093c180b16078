"""Networks of a few layers, with split channels."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import layers

import ocs_tf

SHAPE = (8, 8, 6)


def build(function: Callable, shape: tuple[int, ...] = SHAPE) -> keras.Model:
    inputs = keras.Input(shape, name="x")
    return keras.Model(inputs, function(inputs))


def chain(*between: keras.layers.Layer) -> keras.Model:
    """A convolution, layers that keep channels apart, and a split convolution."""

    def function(x):
        x = layers.Conv2D(10, 3, padding="same", name="first")(x)
        for layer in between:
            x = layer(x)
        head = layers.Conv2D if len(x.shape) == 4 else layers.Dense
        return head(4, **({"kernel_size": 1} if len(x.shape) == 4 else {}), name="second")(x)

    return build(function)


CHAINS: dict[str, Callable[[], list]] = {
    "directly": lambda: [],
    "relu": lambda: [layers.ReLU()],
    "leaky-relu": lambda: [layers.LeakyReLU()],
    "prelu": lambda: [layers.PReLU(shared_axes=[1, 2])],
    "activation": lambda: [layers.Activation("tanh")],
    "batch-norm": lambda: [layers.ReLU(), layers.BatchNormalization()],
    "depthwise": lambda: [layers.DepthwiseConv2D(3, activation="relu", name="dw")],
    "padding": lambda: [layers.ZeroPadding2D(1)],
    "max-pool": lambda: [layers.MaxPooling2D(2)],
    "average-pool": lambda: [layers.AveragePooling2D(2)],
    "global-pool": lambda: [layers.GlobalAveragePooling2D()],
    "global-pool-flatten": lambda: [layers.GlobalAveragePooling2D(keepdims=True), layers.Flatten()],
    "dropout": lambda: [layers.Dropout(0.5)],
    "noise": lambda: [layers.GaussianNoise(0.5), layers.GaussianDropout(0.5)],
    "cropping": lambda: [layers.Cropping2D(1), layers.ActivityRegularization(0.1)],
    "bilinear": lambda: [layers.UpSampling2D(2, interpolation="bilinear"), layers.ELU()],
    "resizing": lambda: [layers.Resizing(5, 11)],
}


def split(model: keras.Model, **options) -> keras.Model:
    """Weights only, half of the input channels of `second` copied."""
    defaults = {
        "weight_bits": 8,
        "expand_ratio": 0.5,
        "overrides": {"dw": {"weight_bits": 8}} if "dw" in {v.name for v in model.layers} else {},
    }
    return ocs_tf.convert(model, verbose=False, **{**defaults, **options})


def names_of_layers(model: keras.Model) -> set[str]:
    return {layer.name for layer in model.layers}
