"""Functions that TensorFlow's converter writes as one custom operator each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def custom_operator(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function`, of tensors, as custom operator `name` of a `.tflite` file."""
    # Without "tfl_fusable_op" the converter would write the operations of the body instead.
    implements = f'name: "{name}" attr {{ key: "tfl_fusable_op" value {{ b: true }} }}'
    return tf.function(function, experimental_implements=implements, autograph=False)
