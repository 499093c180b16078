"""Activation functions that Keras 3 has under the same name, but not as Keras 2 computes them."""

from __future__ import annotations

import keras

from ocs_tf.keras_types import Tensor


@keras.saving.register_keras_serializable("ocs_tf", "keras2_hard_sigmoid")
def keras2_hard_sigmoid(x: Tensor) -> Tensor:
    """The `hard_sigmoid` of Keras 2, `clip(0.2 x + 0.5, 0, 1)`; Keras 3 has 1/6, not 0.2."""
    return keras.ops.hard_sigmoid(1.2 * x)
