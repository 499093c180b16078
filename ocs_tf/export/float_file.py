"""TensorFlow's converter: a float Keras model as a `.tflite` file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from ocs_tf.export import failures, naming
from ocs_tf.export.new_axes import expanded_new_axes
from ocs_tf.keras_internals import adding_by
from ocs_tf.process import Shared, quiet


def convert_float(model: keras.Model) -> bytes:
    """A float Keras model as the bytes of a `.tflite` file, without the converter's chatter.

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

    with quiet(), _plain_sums(), expanded_new_axes():
        return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def _adding_steps(add: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`add` of Keras, but for the sum of `[B, T, C]` and `[T, 1]`, which is one as others are.

    Keras adds these by a `BiasAdd` whose channels are on axis 1, and the converter transposes what
    goes into that, and through the operators around it, as if it were 4-D.
    """
    import tensorflow as tf

    def adding(x1: Any, x2: Any) -> Any:
        shape, other = (_shape(x) for x in (x1, x2))
        ones = (1,) * (len(other) - 2)
        if len(shape) == 3 and shape[1] != shape[2] and other == (*ones, shape[1], 1):
            terms = [tf.convert_to_tensor(x) for x in (x1, x2)]
            if terms[0].dtype == terms[1].dtype:
                return tf.add(*terms)
        return add(x1, x2)

    return adding


def _shape(value: Any) -> tuple[int | None, ...]:
    """Of a tensor; `()` of numbers, and where even the rank is open."""
    shape = getattr(value, "shape", ())
    return () if getattr(shape, "rank", 0) is None else tuple(shape)


_plain_sums = Shared(lambda: adding_by(_adding_steps))
