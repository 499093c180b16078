"""Names for the types of what goes into Keras' layers and comes out of them."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import keras
import tensorflow as tf

# What a layer computes with: symbolic in a model that is built, else with values.
Tensor: TypeAlias = keras.KerasTensor | tf.Tensor

OperationT = TypeVar("OperationT", bound=keras.Operation)
LayerT = TypeVar("LayerT", bound=keras.layers.Layer)
