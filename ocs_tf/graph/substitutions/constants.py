"""A tensor times constants, or plus one for each channel, as the layer that Keras has for it.

Models say so by bare operations: `x / 255`, `(x - mean) / deviation`. As a layer, it can be folded
into one in front, as converters do, and its constants reach a file exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.keras_internals import maker, making_call

# By class name: the operations have no public classes.
_EITHER_WAY = ("Multiply", "Add")
_KINDS = (*_EITHER_WAY, "Divide", "TrueDivide", "Subtract")
MOVES = (
    *("BroadcastTo", "ExpandDims", "GetItem", "Repeat"),
    *("Reshape", "Squeeze", "Tile", "Transpose"),
)
MASKED = 1e4  # factors as large as this make masks of scores: -1e9, as a rule


def rescaling(
    operation: keras.Operation, args: Sequence[Any]
) -> tuple[keras.layers.Rescaling, keras.KerasTensor] | None:
    """The layer that does what `operation` does with `args`, and the tensor that it reads.

    `None` if it is nothing of the kind, or changes the dtype. A sum with one number is left alone:
    runtimes take it up in the layer in front.
    """
    kind = type(operation).__name__
    if isinstance(operation, keras.layers.Layer) or kind not in _KINDS or len(args) != 2:
        return None
    tensor, constant = args
    if kind in _EITHER_WAY and keras.backend.is_keras_tensor(constant):
        tensor, constant = constant, tensor
    if not keras.backend.is_keras_tensor(tensor) or "float" not in tensor.dtype:
        return None
    values = _by_channel(constant, tensor)
    if values is None or operation.output.dtype != tensor.dtype:
        return None
    adds = kind in ("Add", "Subtract")
    if not (values.ndim if adds else values.all()):
        return None
    options: dict[str, Any] = {"name": operation.name, "dtype": tensor.dtype}
    if adds:
        offset = values if kind == "Add" else -values
        return keras.layers.Rescaling(1.0, offset.tolist(), **options), tensor
    if values.min() <= -MASKED or (values.max() >= MASKED and is_mask(tensor)):
        return None
    scale = values if kind == "Multiply" else 1 / values
    return keras.layers.Rescaling(scale.tolist(), **options), tensor


def is_mask(tensor: keras.KerasTensor) -> bool:
    """Whether `tensor` is made of booleans and constants by bare operations."""
    operation = maker(tensor)
    kind = type(operation).__name__
    if isinstance(operation, keras.layers.Layer):
        return False
    inputs = making_call(tensor).input_tensors
    if kind == "Cast":
        return str(inputs[0].dtype) == "bool"
    return kind in (*_KINDS, *MOVES) and bool(inputs) and all(map(is_mask, inputs))


def _by_channel(constant: Any, tensor: keras.KerasTensor) -> NDArray[np.float64] | None:
    """`constant` as numbers `[]` or `[C]` (last axis of `tensor`), finite; `None` if it is not."""
    if not isinstance(constant, (int, float, np.number, np.ndarray)) or isinstance(constant, bool):
        return None
    values = np.asarray(constant, np.float64)
    if values.ndim > len(tensor.shape) or not np.isfinite(values).all():
        return None
    if values.size == 1:
        return values.reshape(())
    by_channel = values.shape[-1:] == (values.size,) == tensor.shape[-1:]
    return values.reshape(-1) if by_channel else None
