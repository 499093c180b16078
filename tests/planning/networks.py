"""Networks that plans are made for."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

import ocs_tf
from ocs_tf import Config, Plan


def network() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(10, 3, name="stem")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2D(20, 1, name="middle")(x)
    x = layers.Conv2D(20, 1, groups=2, name="grouped")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="network")


def plan(model: keras.Model, config: Config | None = None, **options: Any) -> Plan:
    return ocs_tf.plan(model, config, verbose=False, **options)


def bits(plan: Plan) -> dict[str, int]:
    return {name: layer.bits for name, layer in plan.layers.items()}


def split_plan(randomize: Any, **options: Any) -> tuple[keras.Model, Plan]:
    """Of a network of which one tensor can be split, but for what single layers read."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(10, 3, name="stem")(inputs))
    x = layers.Conv2D(10, 1, name="middle")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = randomize(keras.Model(inputs, layers.Dense(5, name="head")(x)))
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3))
    options = {"activation_expand_ratio": 0.2, "rounding": "nearest", **options}
    return model, plan(model, representative_dataset=images, bias_correction=False, **options)
