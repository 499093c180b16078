"""Activation functions that files compute otherwise than Keras where numbers are large.

TensorFlow's converter makes log(exp(x) + 1) of a softplus, and exp(x) is beyond float32 above 88.
"""

from __future__ import annotations

import keras
from keras import ops

from ocs_tf.keras_types import Tensor
from ocs_tf.numerics import ActivationGrid

_LARGE = 20.0  # from where on softplus(x) is x in float32: log(1 + exp(-20)) is 2e-9


def _softplus(x: Tensor) -> Tensor:
    return ops.maximum(x, ops.softplus(ops.minimum(x, _LARGE)))


def _log_sigmoid(x: Tensor) -> Tensor:
    return ops.negative(_softplus(ops.negative(x)))


_FUNCTIONS = {
    keras.activations.softplus: _softplus,
    getattr(keras.activations, "log_sigmoid", None): _log_sigmoid,  # of newer versions of Keras
}
_OPERATIONS = {"Softplus": _softplus, "LogSigmoid": _log_sigmoid}  # they have no public classes


def may_be_large(grid: ActivationGrid) -> bool:
    """Whether an output on `grid` tells of numbers near those whose exponential is not finite.

    Where these functions are large, they are as large as their inputs.
    """
    return grid.scale * (2 ** (grid.bits - 1) + abs(grid.zero_point)) > 2 * _LARGE


def with_large_numbers(layer: keras.Operation) -> keras.Operation:
    """`layer` (or operation), never called yet, in a form that files compute for all numbers."""
    if not isinstance(layer, keras.layers.Layer):
        function = _OPERATIONS.get(type(layer).__name__)
        return layer if function is None else keras.layers.Activation(function, name=layer.name)
    function = getattr(layer, "activation", None)
    for known, made in _FUNCTIONS.items():
        if function is known and function is not None:
            layer.activation = made
    return layer
