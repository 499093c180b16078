"""Functions of Keras 2, by their definitions."""

from __future__ import annotations

import keras
import numpy as np

from ocs_tf.layers import keras2_hard_sigmoid


def test_hard_sigmoid_of_keras_2() -> None:
    x = np.array([-3.0, -2.5, -1.0, 0.0, 1.0, 2.5, 3.0], np.float32)
    expected = np.clip(0.2 * x + 0.5, 0, 1)
    np.testing.assert_allclose(keras2_hard_sigmoid(x), expected, atol=1e-6)
    assert np.abs(np.asarray(keras.ops.hard_sigmoid(x)) - expected).max() > 0.03


def test_it_is_saved_by_name() -> None:
    layer = keras.layers.Activation(keras2_hard_sigmoid)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.activation is keras2_hard_sigmoid
