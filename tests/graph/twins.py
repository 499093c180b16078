"""One network in one, two and three dimensions: all but the first of them of size one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

LENGTH, CHANNELS = 12, 4
RANKS = (1, 2, 3)


def _along(rank: int, value: Any, other: Any = 1) -> Any:
    """An option that is `value` along the first axis and `other` along those of size one."""
    return (value, *[other] * (rank - 1)) if rank > 1 else value


def make(kind: str, rank: int, *args: Any, **options: Any) -> layers.Layer:
    return getattr(layers, kind.format(rank))(*args, **options)


def network(
    rank: int, pool: str = "Average", depthwise: bool = False, maximum: bool = True
) -> keras.Model:
    """Kernels `a`, `b` and `c`, between them layers that treat each channel on its own."""
    inputs = keras.Input(_shape(rank))
    kernel = _along(rank, 3)
    x = make("Conv{}D", rank, 6, kernel, padding="same", name="a")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(x)
    if depthwise:
        x = make("DepthwiseConv{}D", rank, kernel, activation="relu", name="dw")(x)
    x = make("SpatialDropout{}D", rank, 0.5)(x)
    x = make("ZeroPadding{}D", rank, _along(rank, (2, 1), (0, 0)))(x)
    x = make("Cropping{}D", rank, _along(rank, (1, 0), (0, 0)))(x)
    x = make("UpSampling{}D", rank, _along(rank, 2))(x)
    if maximum:
        x = make("MaxPooling{}D", rank, _along(rank, 2))(x)
    x = make("AveragePooling{}D", rank, _along(rank, 2))(x)
    x = make("Conv{}D", rank, 5, kernel, activation="relu", name="b")(x)
    x = make(f"Global{pool}Pooling{{}}D", rank)(x)
    return keras.Model(inputs, layers.Dense(3, name="c")(x))


def _shape(rank: int) -> tuple[int, ...]:
    return (LENGTH, *[1] * (rank - 1), CHANNELS)


def samples(rank: int, count: int = 16) -> NDArray[np.float32]:
    """The same numbers for each rank."""
    values = np.random.default_rng(1).normal(size=(count, *_shape(rank)))
    return values.astype(np.float32)
