"""Slices that add an axis, in a form that TensorFlow's converter has an operator for.

`x[:, None]` is one operator of TensorFlow. The converter makes it a reshape, and refuses it where
more than one size of `x` is open, since the new shape is not known then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ocs_tf.process import Shared


@contextlib.contextmanager
def _expanded() -> Iterator[None]:
    import tensorflow as tf

    original = tf.Tensor.__getitem__

    def getitem(tensor: Any, key: Any, var: Any = None) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        rank = tensor.shape.rank
        if rank is None or not any(item is None for item in keys):
            return original(tensor, key, var)
        if list(tensor.shape).count(None) < 2:
            return original(tensor, key, var)
        sliced = tuple(item for item in keys if item is not None)
        result = original(tensor, sliced, var) if sliced else tensor
        for axis in _new_axes(keys, rank):
            result = tf.expand_dims(result, axis)
        return result

    tf.Tensor.__getitem__ = getitem
    try:
        yield
    finally:
        tf.Tensor.__getitem__ = original


# While functions are traced: a slice, and the new axes apart, where several sizes are open.
expanded_new_axes = Shared(_expanded)


def _new_axes(keys: tuple[Any, ...], rank: int) -> list[int]:
    """Where the result of `x[keys]` has axes that `x`, of this rank, does not have, ascending."""
    axes, position = [], 0
    read = sum(item is not None and item is not Ellipsis for item in keys)
    for item in keys:
        if item is None:
            axes.append(position)
        if item is Ellipsis:
            position += rank - read
        elif item is None or isinstance(item, slice):
            position += 1
    return axes
