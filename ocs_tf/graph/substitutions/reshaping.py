"""Shapes with open sizes that a `call` reshapes to.

`keras.ops.reshape(x, (keras.ops.shape(x)[0], -1, 8))` has the size `None` when it is traced.
"""

from __future__ import annotations

import math

import keras

Shape = tuple[int | None, ...]


def open_shape(operation: keras.Operation) -> Shape | None:
    """The shape that a bare operation has as an option, if it has open sizes."""
    if isinstance(operation, keras.layers.Layer):
        return None
    options = (vars(operation).get(name) for name in ("newshape", "shape", "repeats"))
    shapes = [tuple(o) for o in options if isinstance(o, (tuple, list))]
    return next((shape for shape in shapes if None in shape), None)


def settled(operation: keras.Operation, inputs: Shape) -> Shape | None:
    """The shape that `operation` reshapes to with one size left open, as -1; `None` if it cannot.

    The one `None` is the number of samples where it stands for the first axis of both.

    Arguments:
        inputs: the shape of what is reshaped.
    """
    shape = open_shape(operation)
    if shape is None or type(operation).__name__ != "Reshape" or shape.count(None) > 1:
        return None
    if -1 not in shape:
        return tuple(-1 if size is None else size for size in shape)
    if shape[0] is not None or None in inputs[1:]:
        return None
    total = math.prod(size for size in inputs[1:] if size is not None)
    known = math.prod(size for size in shape[1:] if size is not None and size != -1)
    if known == 0 or total % known:
        return None
    return (-1, *(total // known if size == -1 else size for size in shape[1:]))
