"""Small networks of each structure, with weights and batch norms as training might leave them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import keras
import numpy as np
from keras import layers

import ocs_tf


def randomize(model: keras.Model, outlier: float = 4.0) -> keras.Model:
    """Give batch norms real statistics and kernels an outlier channel."""
    rng = np.random.default_rng(3)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape),
                    rng.normal(0, 0.2, shape),
                    rng.normal(0, 0.2, shape),
                    rng.uniform(0.5, 1.5, shape),
                ]
            )
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.2, layer.bias.shape))
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and kernel.shape[-2] > 1:
            scaled = np.asarray(kernel).copy()
            scaled[..., kernel.shape[-2] // 2, :] *= outlier
            kernel.assign(scaled)
    return model


def single(build: Callable, shape: tuple[int, ...] = (8, 8, 6)) -> keras.Model:
    inputs = keras.Input(shape, name="x")
    return randomize(keras.Model(inputs, build(inputs)))


def _residual(x):
    a = layers.Conv2D(6, 3, padding="same", name="a")(x)
    a = layers.ReLU()(layers.BatchNormalization()(a))
    b = layers.Conv2D(6, 3, padding="same", name="b")(a)
    b = layers.ReLU()(layers.Add()([layers.BatchNormalization()(b), x]))
    return layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(b))


def _dense_block(x):
    for i in range(3):
        y = layers.Conv2D(4, 3, padding="same", name=f"c{i}")(layers.ReLU()(x))
        x = layers.Concatenate()([x, y])
    x = layers.ReLU()(layers.BatchNormalization()(layers.AveragePooling2D(2)(x)))
    return layers.Dense(4, name="head")(layers.Flatten()(x))


def _mobile(x):
    for i in range(2):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"dw{i}")(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.Conv2D(8, 1, use_bias=False, name=f"pw{i}")(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Softmax()(layers.Flatten()(layers.Conv2D(5, 1, name="head")(x)))


def _shared(x):
    conv = layers.Conv2D(6, 3, padding="same", activation="relu", name="shared")
    return layers.Dense(3, name="head")(layers.Flatten()(conv(conv(x))))


def _gated(x):
    y = layers.Activation("hard_swish", name="swish")(layers.Conv2D(6, 3, name="a")(x))
    gate = layers.Conv2D(6, 1, name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(y))
    gate = layers.ReLU(6.0)(gate + 3.0) * (1 / 6)  # a hard sigmoid, as MobileNetV3 has it
    return layers.Conv2D(4, 3, name="b")(layers.Multiply()([y, gate]))


def _normed(x):
    y = layers.LayerNormalization(name="norm")(layers.Conv2D(6, 3, padding="same", name="a")(x))
    y = layers.Dense(6, name="c")(layers.Dense(12, activation="gelu", name="b")(y))
    return layers.Conv2D(4, 3, name="d")(layers.Rescaling(0.5)(y) + x)


MODELS: dict[str, Callable[[], keras.Model]] = {
    "residual": lambda: single(_residual),
    "dense-block": lambda: single(_dense_block),
    "mobile": lambda: single(_mobile),
    "shared-layer": lambda: single(_shared),
    "softmax-in-dense": lambda: single(
        lambda x: layers.Dense(5, activation="softmax", name="head")(
            layers.Flatten()(layers.Conv2D(4, 3, strides=2, activation="relu", name="c")(x))
        )
    ),
    "swish": lambda: single(
        lambda x: layers.Conv2D(4, 3, name="d")(
            layers.Conv2D(6, 3, dilation_rate=2, activation="silu", name="c")(x)
        )
    ),
    "groups-and-multiplier": lambda: single(
        lambda x: layers.Conv2D(6, 3, groups=3, name="g")(
            layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw", activation="relu")(x)
        )
    ),
    "gated": lambda: single(_gated),
    "layer-norm": lambda: single(_normed),
    "rescaled": lambda: single(
        lambda x: layers.Conv2D(4, 3, padding="same", name="c")(
            layers.ZeroPadding2D()(layers.Rescaling(0.25, 0.5)(x))
        )
    ),
    "normalized": lambda: single(
        lambda x: layers.Conv2D(4, 3, name="c")(
            layers.Normalization(mean=[0, 1, 2, 3, 4, 5], variance=[6, 5, 4, 3, 2, 1])(x)
        )
    ),
    "float-between": lambda: single(
        lambda x: layers.Conv2D(4, 3, name="c")(
            layers.ELU(name="e")(layers.LeakyReLU(name="l")(layers.Conv2D(6, 3, name="b")(x)))
        )
    ),
    "relu6-alone": lambda: single(
        lambda x: layers.Conv2D(4, 3, name="c")(
            layers.ReLU(6.0)(layers.Concatenate()([x, layers.Conv2D(3, 1, name="b")(x)]))
        )
    ),
    "padding-and-max-pool": lambda: single(
        lambda x: layers.Conv2D(4, 3, name="d")(
            layers.ZeroPadding2D(2)(
                layers.MaxPooling2D()(layers.Conv2D(6, 3, name="c", activation="relu")(x))
            )
        )
    ),
    "relus-inside": lambda: single(
        lambda x: layers.Dense(4, name="c")(
            layers.Flatten()(
                layers.Conv2D(5, 3, activation="relu6", name="b")(
                    layers.Conv2D(6, 3, activation="relu", name="a")(x)
                )
            )
        )
    ),
    "dense-on-3d": lambda: single(
        lambda x: layers.Dense(3, name="e")(layers.Dense(5, activation="relu", name="d")(x)),
        (4, 6),
    ),
    "norm-of-vectors": lambda: single(
        lambda x: layers.Dense(4, name="d")(
            layers.BatchNormalization()(layers.Dense(6, activation="relu", name="c")(x))
        ),
        (5,),
    ),
    "norms-of-sequences": lambda: single(
        lambda x: layers.Dense(4, name="d")(
            layers.BatchNormalization()(layers.Rescaling(0.5, 0.25)(x))
        ),
        (4, 5),
    ),
    "sliced": lambda: single(
        lambda x: layers.Conv2D(3, 3, name="c")(x[..., 1:4] + x[..., 2:5]),
    ),
}


# Codes without compensation: as good as any where a file is compared with its model.
FAST: dict[str, Any] = {"rounding": "nearest", "bias_correction": False}

WIDTHS = range(2, 9)
EACH_WIDTH: dict[str, Any] = {
    f"{kind}{bits}": {"weight_bits": bits} for bits in WIDTHS for kind in ("dw", "pw")
}


def of_each_width() -> keras.Model:
    """A depthwise and a pointwise convolution for each width; `EACH_WIDTH` are the overrides."""

    def network(x):
        for bits in WIDTHS:
            x = layers.DepthwiseConv2D(3, padding="same", name=f"dw{bits}")(x)
            x = layers.Conv2D(6, 1, activation="relu", name=f"pw{bits}")(x)
        return x

    return single(network)


def samples(model: keras.Model, count: int = 24) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {t.name: rng.normal(size=(count, *t.shape[1:])).astype(np.float32) for t in model.inputs}


def covering(options: Collection[str], shifts: Collection[int] = (0, 1)) -> list[tuple[str, str]]:
    """Each network with as many of the named options as there are shifts, and each option with as
    many networks as the others; those of other shifts are others."""
    names = list(options)
    return [
        (network, names[(index + shift) % len(names)])
        for index, network in enumerate(MODELS)
        for shift in shifts
    ]


def linear() -> keras.Model:
    """Signed activations, whose zero point lies inside of the grid."""
    inputs = keras.Input((6, 6, 5), name="x")
    x = layers.Conv2D(10, 3, name="b")(layers.Conv2D(16, 1, name="a")(inputs))
    x = layers.GlobalAveragePooling2D()(x)
    return randomize(keras.Model(inputs, layers.Dense(4, name="head")(x)))


@functools.cache
def quantized_model(**options) -> keras.Model:
    model = MODELS["mobile"]()
    data = None if options.get("activation_bits", 8) is None else samples(model)
    return ocs_tf.convert(model, representative_dataset=data, verbose=False, **FAST, **options)
