"""What is said of a model that TensorFlow's converter cannot do."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf
from keras import layers, ops

from ocs_tf.export.tflite import convert_float


def _clipped() -> keras.Model:
    ids = keras.Input((), dtype="int32", name="ids")
    return keras.Model(ids, layers.Embedding(7, 2)(ops.clip(ids, 0, 6)))


def _bicubic() -> keras.Model:
    image = keras.Input((4, 4, 2), name="image")
    return keras.Model(image, layers.UpSampling2D(interpolation="bicubic", name="up 2")(image))


class OnlyEager(layers.Layer):
    def call(self, inputs):
        if tf.inside_function() and not isinstance(inputs, keras.KerasTensor):
            raise KeyError("only eager")
        return inputs

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def _untraceable() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, OnlyEager()(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            _clipped,
            r"fails at 'clip\w*': TFLite has no operator for TensorFlow's Relu6 on int32\.$",
        ),
        (_bicubic, r"fails at 'up 2': TFLite .* ResizeBicubic on float32\.$"),
        (_untraceable, r"fails on the model: KeyError: .*only eager"),
    ],
)
def test_layer_operator_and_type_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_float(make())
