"""TensorFlow's converter: a float Keras model as a `.tflite` file."""

from __future__ import annotations

import keras

from ocs_tf.export import failures, naming
from ocs_tf.export.converter_forms import converter_forms
from ocs_tf.process import quiet


def convert_float(model: keras.Model) -> bytes:
    """A float Keras model as the bytes of a `.tflite` file, without the converter's messages.

    Arguments:
        model: functional or Sequential, of any structure of inputs and outputs; they are in the
            file in the order of `model.inputs` and `model.outputs`.

    Raises:
        ValueError: TensorFlow's converter does not know an operator, or makes a wrong graph.
    """
    if not isinstance(model, keras.Sequential) and not (
        isinstance(model.input, keras.KerasTensor) and isinstance(model.output, keras.KerasTensor)
    ):
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    try:
        with naming.identifiers(model) as inputs:
            content = _converted(model)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of any kind
        raise ValueError(failures.describe(model, error)) from error
    return naming.restore(content, inputs)


def _converted(model: keras.Model) -> bytes:
    """What TensorFlow's converter makes of `model`."""
    import tensorflow as tf

    with quiet(), converter_forms():
        return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
