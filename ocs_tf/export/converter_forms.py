"""Operations in forms that TensorFlow's converter has operators for.

They are in the place of Keras' and TensorFlow's own while functions are traced for the converter:

- `x[:, None]` is one operator of TensorFlow. The converter makes it a reshape, and refuses it where
  more than one size of `x` is open, since the new shape is not known then.
- The sum of `[B, T, C]` and `[T, 1]` is a `BiasAdd` to Keras, with channels on axis 1. The
  converter transposes what goes into that, and through the operators around it, as if it were 4-D.
- `argmax` and `argmin` of Keras tell 0.0 from -0.0 by the bits of numbers, for which TFLite has no
  operators; to those here they are ties.
- `einsum` of two tensors that adds up nothing is a matrix product to TensorFlow. The converter
  gives it a wrong shape, or makes a product of numbers of it. Here, it is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ocs_tf.keras_internals import computing_by
from ocs_tf.process import Shared


@contextlib.contextmanager
def _in_forms() -> Iterator[None]:
    import tensorflow as tf

    extremes = {
        "argmax": lambda _: _position(tf.argmax),
        "argmin": lambda _: _position(tf.argmin),
    }
    with computing_by(add=_adding_steps, einsum=_multiplying, **extremes), _slicing():
        yield


converter_forms = Shared(_in_forms)


@contextlib.contextmanager
def _slicing() -> Iterator[None]:
    """A slice, and its new axes apart, where several sizes are open."""
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


def _position(function: Callable[..., Any]) -> Callable[..., Any]:
    """`argmax` or `argmin` of Keras, by that of TensorFlow."""
    import tensorflow as tf

    def position(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        x = tf.convert_to_tensor(x)
        if axis is None:
            found = function(tf.reshape(x, [-1]), axis=0, output_type=tf.int32)
            return tf.reshape(found, [1] * x.shape.rank) if keepdims else found
        found = function(x, axis=axis, output_type=tf.int32)
        return tf.expand_dims(found, axis) if keepdims else found

    return position


def _adding_steps(add: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`add` of Keras, but for the sum of `[B, T, C]` and `[T, 1]`, which is one as others are."""
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


def _multiplying(einsum: Callable[..., Any]) -> Callable[..., Any]:
    """`einsum` of Keras, but for those of two operands that only multiply numbers."""
    import tensorflow as tf

    def multiplying(subscripts: str, *operands: Any, **options: Any) -> Any:
        left, _, result = subscripts.replace(" ", "").partition("->")
        terms = left.split(",")
        plain = result.isalpha() and all(
            term.isalpha() and len(set(term)) == len(term) and set(term) <= set(result)
            for term in terms
        )
        if len(operands) != 2 or not plain:
            return einsum(subscripts, *operands, **options)
        factors = []
        for term, operand in zip(terms, operands, strict=True):
            kept = [letter for letter in result if letter in term]
            moved = tf.transpose(operand, [term.index(letter) for letter in kept])
            for axis, letter in enumerate(result):
                moved = moved if letter in term else tf.expand_dims(moved, axis)
            factors.append(moved)
        return tf.multiply(*factors)

    return multiplying


def _shape(value: Any) -> tuple[int | None, ...]:
    """Of a tensor; `()` of numbers, and where even the rank is open."""
    shape = getattr(value, "shape", ())
    return () if getattr(shape, "rank", 0) is None else tuple(shape)
