"""The layer `x + scale * y` of InceptionResNetV2 in keras.applications, in two steps.

The factor can then be folded into the layer that makes `y`, as converters do.
"""

from __future__ import annotations

import keras

from ocs_tf.keras_internals import is_hidden_class


def is_scaled_sum(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is that layer (and no subclass of it)."""
    return is_hidden_class(layer, "applications.inception_resnet_v2", "CustomScaleLayer")


def parts(layer: keras.layers.Layer) -> tuple[keras.layers.Rescaling, keras.layers.Add]:
    """The factor and the sum of `layer`."""
    scale = keras.layers.Rescaling(
        layer.scale, name=f"{layer.name}_scale", dtype=layer.dtype_policy
    )
    return scale, keras.layers.Add(name=layer.name, dtype=layer.dtype_policy)
