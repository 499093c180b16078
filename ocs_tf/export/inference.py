"""Layers in inference form for a float file: no dropout, float32.

A converter traces a layer for inference, where dropout does nothing. All the same a layer with
dropout inside brings along the state of its generator of random numbers, draws masks that nobody
reads, or takes a slower path: attention, one that multiplies the scale into the query's kernel.
That path alone gives 0 to queries that may read nothing, which is padding; the other one a mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from ocs_tf.keras_internals import is_keras_layer_class, layers_within
from ocs_tf.keras_types import OperationT

# Attributes of Keras' layers and cells; recurrent layers read those of their cells.
_RATES = ("dropout", "recurrent_dropout", "_dropout")
_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
_OTHER_FLOATS = ("float16", "bfloat16", "float64")


def without_dropout(layer: OperationT) -> OperationT:
    """`layer`, never called yet, with all rates of dropout inside of Keras' own layers at 0."""
    if isinstance(layer, keras.layers.Layer):
        for part in layers_within(layer):
            for name in _RATES:
                if _is_rate(part, name):
                    setattr(part, name, 0.0)
                    if isinstance(part, _ATTENTION):
                        compute = _padding_is_zero(part._compute_attention)
                        part._compute_attention = compute  # type: ignore[method-assign]
                    if name == "recurrent_dropout" and hasattr(part, "implementation"):
                        part.implementation = 2  # Keras has left it: one product for all gates
    return layer


def _padding_is_zero(compute: Callable[..., Any]) -> Callable[..., Any]:
    """`_compute_attention` of a layer, with zeros for queries whose mask has nothing to read."""

    def computed(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        outputs, scores = compute(query, key, value, *args, **kwargs)
        mask = kwargs.get("attention_mask", args[0] if args else None)
        if mask is None or scores is not None:
            return outputs, scores
        reads = ops.any(ops.cast(mask, "bool"), axis=-1)  # [B, T] or [B, N, T]
        by_head = reads[:, None] if len(reads.shape) == 2 else reads
        of_outputs = ops.transpose(by_head, (0, 2, 1))[..., None]  # [B, T, N, H]
        return ops.where(of_outputs, outputs, ops.zeros((), outputs.dtype)), scores

    return computed


def _is_rate(layer: keras.layers.Layer, name: str) -> bool:
    """Whether the attribute `name` of `layer` is a rate that Keras' own class sets and reads."""
    if isinstance(getattr(type(layer), name, None), property):
        return False
    of_keras = any(map(is_keras_layer_class, type(layer).__mro__))
    rate = getattr(layer, name, None)
    return of_keras and isinstance(rate, int | float) and rate > 0


def in_float32(layer: OperationT) -> OperationT:
    """`layer` (or operation), never called yet, in float32 where it was in other floats."""
    if isinstance(layer, keras.layers.Layer):
        for part in layers_within(layer):
            if part.compute_dtype in _OTHER_FLOATS or part.variable_dtype in _OTHER_FLOATS:
                part.dtype_policy = "float32"
    elif getattr(layer, "dtype", None) in _OTHER_FLOATS:
        layer.dtype = "float32"  # type: ignore[attr-defined]  # what it casts to, or makes
    return layer


def constants_in_float32(arguments: Any) -> Any:
    """A structure of a call's arguments with arrays of other floats as float32."""

    def single(value: Any) -> Any:
        if isinstance(value, keras.KerasTensor) or not hasattr(value, "dtype"):
            return value
        other = keras.backend.standardize_dtype(value.dtype) in _OTHER_FLOATS
        return np.asarray(value).astype(np.float32) if other else value

    return keras.tree.map_structure(single, arguments)


def float32_input(dtype: str) -> str:
    """The dtype of an input in a float file, that of the model being `dtype`."""
    return "float32" if dtype in _OTHER_FLOATS else dtype
