"""TensorFlow's converter: a float Keras model as a `.tflite` file."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import keras

from ocs_tf.export import failures, naming
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.converter_forms import converter_forms
from ocs_tf.export.kernel_matching import bias_input
from ocs_tf.process import quiet

_SAVED = 1 << 20  # bytes of a saved model beside its weights


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
        _check_temporary_folder(model, error)
        raise ValueError(failures.describe(model, error)) from error
    return _with_flat_biases(naming.restore(content, inputs))


def _converted(model: keras.Model) -> bytes:
    """What TensorFlow's converter makes of `model`."""
    import tensorflow as tf

    with quiet(), converter_forms():
        return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def _check_temporary_folder(model: keras.Model, error: Exception) -> None:
    """Raise `OSError` if the folder has no room that the converter writes the model to.

    It says nothing of that: it goes on in another way, which fails.
    """
    size = sum(variable.value.numpy().nbytes for variable in model.variables) + _SAVED
    try:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(size))
    except OSError as full:
        folder = tempfile.gettempdir()
        text = f"{full.strerror}, where TensorFlow's converter writes the model first"
        raise OSError(full.errno, text, folder) from error


def _with_flat_biases(content: bytes) -> bytes:
    """The file with biases `[out]`: TensorFlow 2.17 makes some `[1, 1, 1, out]`."""
    model = fb.read(content)
    changed = [_flatten_bias(model, place[0], op) for place, op in fb.operators(model)]
    return fb.write(model) if any(changed) else content


def _flatten_bias(model: Any, subgraph: int, op: Any) -> bool:
    if fb.op_name(model, op) != "TRANSPOSE_CONV":
        return False
    index, tensors = bias_input(model, op), model.subgraphs[subgraph].tensors
    if index is None or len(fb.shape(tensors[index])) == 1:
        return False
    flat = copy.copy(tensors[index])
    flat.name, flat.shape = f"{fb.name(flat)};flat".encode(), [fb.shape(flat)[-1]]
    flat.shapeSignature = None
    tensors.append(flat)
    op.inputs = [len(tensors) - 1 if i == index else i for i in op.inputs]
    return True
