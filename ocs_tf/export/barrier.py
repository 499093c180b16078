"""Tensors that the converter must keep as they are: it may not move a constant past them.

TensorFlow's converter turns `(x W1 + b1) W2 + b2` into `(x W1) W2 + (b1 W2 + b2)`. The result is
the same, but the tensor between is another one, and the grid that it was given does not fit it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.custom_operator import custom_operator
from ocs_tf.keras_types import Tensor

_NAME = "OcsBarrier"


class Barrier(keras.layers.Identity):
    """Its input, as a custom operator of a `.tflite` file that `without_barriers` removes."""

    same_function_as = keras.layers.Identity

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._function = barrier_function()

    def call(self, inputs: Tensor) -> Tensor:
        return self._function(inputs)


def barrier_function(function: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """What a `Barrier` computes, for tensors inside of other layers; and behind it `function`."""
    operator = custom_operator(_identity, _NAME)

    def barrier(x: Tensor) -> Tensor:
        x = tf.identity(x) if tf.executing_eagerly() else tf.ensure_shape(operator(x), x.shape)
        return x if function is None else function(x)

    return barrier


def _identity(x: Tensor) -> Tensor:
    return tf.identity(x)


def without_barriers(content: bytes) -> bytes:
    """A `.tflite` file whose barriers are left out: their readers read what they read."""
    model = fb.read(content)
    barriers = [
        (subgraph, op)
        for (subgraph, _), op in fb.operators(model)
        if fb.custom_name(model, op) == _NAME
    ]
    if not barriers:
        return content
    for subgraph, barrier in barriers:
        graph = model.subgraphs[subgraph]
        (before,), (behind,) = barrier.inputs, barrier.outputs
        graph.operators.remove(barrier)
        for op in graph.operators:
            op.inputs = [before if index == behind else index for index in op.inputs]
        fb.replace_output(model, behind, before, subgraph)
    _drop_code(model, barriers[0][1].opcodeIndex)
    return fb.write(model)


def _drop_code(model: Any, dropped: int) -> None:
    """Take an operator that no graph has out of the list that a runtime must know whole."""
    del model.operatorCodes[dropped]
    for _, op in fb.operators(model):
        op.opcodeIndex -= op.opcodeIndex > dropped
