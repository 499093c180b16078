"""Functions of TensorFlow that Keras 2 models call on tensors, as operations of Keras 3.

`tf_keras` records `x + 1` or `tf.reshape(x, shape)` on symbolic tensors as layers of its own
(`TFOpLambda`, `SlicingOpLambda`). What `tf.shape` gives is a list of sizes here; where a size is
not known before the model runs, it is `OPEN`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


class _Open:
    """The size of an axis that is known only when the model runs."""

    def __repr__(self) -> str:
        return "an open size"


OPEN = _Open()


class NotTranslatedError(ValueError):
    """The operation, or an argument of it, that Keras 3 does not have; the message says which."""


def operation(symbol: str, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What `function(*args, **kwargs)` is in Keras 3.

    Arguments:
        symbol: the public name of `function`, without `tf.`.
        args, kwargs: of the call, with tensors of Keras 3.

    Raises:
        NotTranslatedError: the function or an argument has no counterpart.
    """
    if symbol == "__operators__.getitem":
        return _getitem(*args, **kwargs)
    named = _arguments(function, args, kwargs)
    leaves = keras.tree.flatten(list(named.values()))
    if not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
        return _constant(symbol, function, args, kwargs)
    if symbol not in _TRANSLATIONS:
        raise NotTranslatedError("which has no counterpart in Keras 3")
    if symbol not in _TAKE_OPEN_SIZES and any(leaf is OPEN for leaf in leaves):
        raise NotTranslatedError("with a size that is known only when the model runs")
    translation = _TRANSLATIONS[symbol]
    try:
        inspect.signature(translation).bind(**named)
    except TypeError as error:
        unknown = sorted(set(named) - set(inspect.signature(translation).parameters))
        raise NotTranslatedError(
            f"whose argument {', '.join(unknown)} has no counterpart in Keras 3"
        ) from error
    return translation(**named)


def _arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, without those that have their default."""
    signature = inspect.signature(function)
    named: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        default = signature.parameters[name].default
        if name != "name" and not (value is default or (_is_plain(value) and value == default)):
            named[name] = value
    return named


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _constant(symbol: str, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function gives that depends on no input: computed now, or a list with open sizes."""
    leaves = keras.tree.flatten((list(args), dict(kwargs)))
    if not any(leaf is OPEN for leaf in leaves):
        computed = function(*args, **kwargs)
        return keras.tree.map_structure(np.asarray, computed)
    if symbol in ("stack", "convert_to_tensor"):
        return list(args[0] if args else next(iter(kwargs.values())))
    if symbol == "concat":
        named = _arguments(function, args, kwargs)
        return [size for part in named["values"] for size in part]
    if symbol == "cast":
        return args[0]
    raise NotTranslatedError("with a size that is known only when the model runs")


def _getitem(tensor: Any, slice_spec: Any = None, **_: Any) -> Any:
    spec = slice_spec
    key = tuple(map(_slice, spec)) if isinstance(spec, (list, tuple)) else _slice(spec)
    if any(part is OPEN for part in keras.tree.flatten([spec])):
        raise NotTranslatedError("with a size that is known only when the model runs")
    if isinstance(tensor, list):
        (index,) = key if isinstance(key, tuple) else (key,)
        return tensor[index]
    if any(isinstance(part, keras.KerasTensor) for part in keras.tree.flatten([spec])):
        raise NotTranslatedError("with an index that the model computes; tf.gather has such")
    return tensor[key]


def _slice(part: Any) -> Any:
    """A part of an index; tf_keras keeps slices as dicts."""
    if isinstance(part, Mapping):
        return slice(*(_integer(part[name]) for name in ("start", "stop", "step")))
    return _integer(part)


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, (np.ndarray, np.generic)) else value


def _integers(values: Any) -> list[Any]:
    return [_integer(value) for value in values]


def _as(tensor: Any, other: Any) -> Any:
    """A constant in the dtype of the tensor that it meets, as TensorFlow takes it."""
    if isinstance(other, keras.KerasTensor) or not isinstance(tensor, keras.KerasTensor):
        return other
    return np.asarray(other).astype(tensor.dtype) if isinstance(other, np.ndarray) else other


def _shape(input: Any, out_type: Any = None) -> list[Any]:
    return [OPEN if size is None else size for size in input.shape]


def _reshape(tensor: Any, shape: Any) -> Any:
    shape = _integers(shape)
    if any(isinstance(size, keras.KerasTensor) for size in shape):
        raise NotTranslatedError("with a size that the model computes")
    sizes = [size for size in tensor.shape if size is not None]
    left = [i for i, size in enumerate(shape) if size == -1]
    opened = [i for i, size in enumerate(shape) if size is OPEN]
    if opened and left and len(opened) == len(tensor.shape) - len(sizes):
        # The open sizes go through, and the known ones share the rest.
        known = math.prod(size for size in shape if size is not OPEN and size != -1)
        shape[left[0]] = math.prod(sizes) // known
    if len(opened) > 1:
        raise NotTranslatedError("with several sizes that are known only when the model runs")
    return ops.reshape(tensor, tuple(-1 if size is OPEN else size for size in shape))


def _broadcast_to(input: Any, shape: Any) -> Any:
    return ops.broadcast_to(input, tuple(_integers(shape)))


def _cast(x: Any, dtype: Any) -> Any:
    return ops.cast(x, dtype if isinstance(dtype, str) else dtype.name)


def _transpose(a: Any, perm: Any = None, conjugate: bool = False) -> Any:
    return ops.transpose(a, None if perm is None else _integers(perm))


def _squeeze(input: Any, axis: Any = None) -> Any:
    return ops.squeeze(input, tuple(_integers(axis)) if isinstance(axis, (list, tuple)) else axis)


def _split(value: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    sizes = num_or_size_splits
    if isinstance(sizes, (list, tuple, np.ndarray)) and np.ndim(sizes):
        total = value.shape[axis]
        known = sum(size for size in _integers(sizes) if size >= 0)
        sizes = [total - known if size < 0 else size for size in _integers(sizes)]
        return ops.split(value, np.cumsum(sizes)[:-1].tolist(), axis)
    return ops.split(value, _integer(sizes), axis)


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0) -> Any:
    widths = np.asarray(paddings).tolist()
    if mode.upper() == "CONSTANT":
        return ops.pad(tensor, widths, "constant", constant_values=constant_values)
    return ops.pad(tensor, widths, mode.lower())


def _concat(values: Any, axis: Any) -> Any:
    return ops.concatenate(list(values), _integer(axis))


def _stack(values: Any, axis: int = 0) -> Any:
    return ops.stack(list(values), axis)


def _unstack(value: Any, num: Any = None, axis: int = 0) -> Any:
    return ops.unstack(value, num, axis)


def _tile(input: Any, multiples: Any) -> Any:
    return ops.tile(input, _integers(multiples))


def _clip(t: Any, clip_value_min: Any, clip_value_max: Any) -> Any:
    return ops.clip(t, _integer_or_float(clip_value_min), _integer_or_float(clip_value_max))


def _integer_or_float(value: Any) -> Any:
    return value.item() if isinstance(value, (np.ndarray, np.generic)) else value


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    b = ops.swapaxes(b, -1, -2) if transpose_b else b
    return ops.matmul(a, b)


def _einsum(equation: str, inputs: Any) -> Any:
    return ops.einsum(equation, *inputs)


def _l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Any:
    total = ops.sum(ops.square(x), axis, keepdims=True)
    return ops.multiply(x, ops.rsqrt(ops.maximum(total, epsilon)))


def _gather(
    params: Any, indices: Any, validate_indices: Any = None, axis: Any = None, batch_dims: int = 0
) -> Any:
    if batch_dims:
        raise NotTranslatedError("whose argument batch_dims has no counterpart in Keras 3")
    return ops.take(params, indices, 0 if axis is None else _integer(axis))


def _where(condition: Any, x: Any, y: Any) -> Any:
    return ops.where(condition, _as(y, x), _as(x, y))


def _one_hot(indices: Any, depth: Any) -> Any:
    return ops.one_hot(indices, _integer(depth), dtype="float32")


def _arg(function: Callable[..., Any]) -> Callable[..., Any]:
    def translation(input: Any, axis: Any = 0, output_type: Any = "int64") -> Any:
        return _cast(function(input, axis), output_type)

    return translation


def _resize(images: Any, size: Any, method: str = "bilinear", antialias: bool = False) -> Any:
    return ops.image.resize(
        images,
        tuple(_integers(size)),
        interpolation=method,
        antialias=antialias,
        data_format="channels_last",
    )


def _pool(function: Callable[..., Any]) -> Callable[..., Any]:
    def translation(
        input: Any, ksize: Any, strides: Any, padding: str, data_format: Any = "NHWC"
    ) -> Any:
        form = "channels_last" if data_format in (None, "NHWC") else "channels_first"
        return function(
            input, _spatial(ksize, form), _spatial(strides, form), padding.lower(), form
        )

    return translation


def _conv_of_version_1(
    input: Any,
    filter: Any = None,
    strides: Any = 1,
    padding: Any = None,
    dilations: Any = 1,
    filters: Any = None,
) -> Any:
    return _conv(input, filters if filter is None else filter, strides, padding, dilations)


def _conv(input: Any, filters: Any, strides: Any, padding: Any, dilations: Any = 1) -> Any:
    if not isinstance(padding, str):
        raise NotTranslatedError("whose argument padding has no counterpart in Keras 3")
    form = "channels_last"
    return ops.conv(
        input,
        filters,
        _spatial(strides, form),
        padding.lower(),
        form,
        1 if dilations is None else _spatial(dilations, form),
    )


def _spatial(sizes: Any, form: str) -> Any:
    """Sizes of height and width, of a number, a pair or one per axis."""
    if np.ndim(sizes) == 0:
        return _integer(sizes)
    sizes = tuple(_integers(sizes))
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) == 4:
        return sizes[1:3] if form == "channels_last" else sizes[2:]
    return sizes


def _bias_add(value: Any, bias: Any) -> Any:
    return ops.add(value, _as(value, bias))


def _depth_to_space(input: Any, block_size: int) -> Any:
    _, height, width, channels = input.shape
    _check_known(height, width)
    b, depth = block_size, channels // block_size**2
    x = ops.reshape(input, (-1, height, width, b, b, depth))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height * b, width * b, depth))


def _space_to_depth(input: Any, block_size: int) -> Any:
    _, height, width, channels = input.shape
    _check_known(height, width)
    b = block_size
    x = ops.reshape(input, (-1, height // b, b, width // b, b, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height // b, width // b, b * b * channels))


def _check_known(*sizes: Any) -> None:
    if None in sizes:
        raise NotTranslatedError("with a size that is known only when the model runs")


def _cumsum(x: Any, axis: int = 0) -> Any:
    return ops.cumsum(x, axis)


def _norm(tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: Any = False) -> Any:
    order = None if ord == "euclidean" else ord
    if axis is None or np.ndim(axis) or order not in (None, 1, 2, np.inf):
        raise NotTranslatedError("over several axes, or of an order that is no 1, 2 or infinity")
    return ops.norm(tensor, order, axis, bool(keepdims))


def _identity(input: Any) -> Any:
    return keras.layers.Identity()(input)


def _of_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """The translation of a function of one tensor, whatever it is called in TensorFlow."""

    def translation(
        x: Any = None, features: Any = None, input: Any = None, value: Any = None
    ) -> Any:
        return function(next(t for t in (x, features, input, value) if t is not None))

    return translation


def _of_two(function: Callable[..., Any]) -> Callable[..., Any]:
    def translation(x: Any, y: Any) -> Any:
        return function(_as(y, x), _as(x, y))

    return translation


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    def translation(input_tensor: Any, axis: Any = None, keepdims: Any = False) -> Any:
        axes = tuple(_integers(axis)) if np.ndim(axis) else _integer(axis)
        return function(input_tensor, axis=axes, keepdims=bool(keepdims))

    return translation


def _softmax(function: Callable[..., Any]) -> Callable[..., Any]:
    def translation(logits: Any, axis: Any = -1) -> Any:
        return function(logits, axis=-1 if axis is None else axis)

    return translation


_ONE = {
    "math.abs": ops.abs,
    "math.ceil": ops.ceil,
    "math.cos": ops.cos,
    "math.erf": ops.erf,
    "math.exp": ops.exp,
    "math.expm1": ops.expm1,
    "math.floor": ops.floor,
    "math.is_finite": ops.isfinite,
    "math.is_inf": ops.isinf,
    "math.is_nan": ops.isnan,
    "math.log": ops.log,
    "math.log1p": ops.log1p,
    "math.log_sigmoid": ops.log_sigmoid,
    "math.logical_not": ops.logical_not,
    "math.negative": ops.negative,
    "math.reciprocal": ops.reciprocal,
    "math.round": ops.round,
    "math.rsqrt": ops.rsqrt,
    "math.sigmoid": ops.sigmoid,
    "math.sign": ops.sign,
    "math.sin": ops.sin,
    "math.softplus": ops.softplus,
    "math.sqrt": ops.sqrt,
    "math.square": ops.square,
    "math.tanh": ops.tanh,
    "nn.elu": ops.elu,
    "nn.relu": ops.relu,
    "nn.relu6": ops.relu6,
    "nn.selu": ops.selu,
    "nn.softsign": ops.softsign,
    "identity": _identity,
    "stop_gradient": _identity,
    "ones_like": ops.ones_like,
    "zeros_like": ops.zeros_like,
}
_TWO = {
    "__operators__.add": ops.add,
    "__operators__.eq": ops.equal,
    "__operators__.ne": ops.not_equal,
    "compat.v1.floor_div": ops.floor_divide,
    "math.add": ops.add,
    "math.divide": ops.divide,
    "math.equal": ops.equal,
    "math.floordiv": ops.floor_divide,
    "math.floormod": ops.mod,
    "math.greater": ops.greater,
    "math.greater_equal": ops.greater_equal,
    "math.less": ops.less,
    "math.less_equal": ops.less_equal,
    "math.logical_and": ops.logical_and,
    "math.logical_or": ops.logical_or,
    "math.logical_xor": ops.logical_xor,
    "math.maximum": ops.maximum,
    "math.minimum": ops.minimum,
    "math.mod": ops.mod,
    "math.multiply": ops.multiply,
    "math.not_equal": ops.not_equal,
    "math.pow": ops.power,
    "math.squared_difference": lambda x, y: ops.square(ops.subtract(x, y)),
    "math.subtract": ops.subtract,
    "math.truediv": ops.true_divide,
}
_REDUCTIONS = {
    "math.reduce_all": ops.all,
    "math.reduce_any": ops.any,
    "math.reduce_logsumexp": ops.logsumexp,
    "math.reduce_max": ops.max,
    "math.reduce_mean": ops.mean,
    "math.reduce_min": ops.min,
    "math.reduce_prod": ops.prod,
    "math.reduce_std": ops.std,
    "math.reduce_sum": ops.sum,
    "math.reduce_variance": ops.var,
}
_TRANSLATIONS: dict[str, Callable[..., Any]] = {
    **{symbol: _of_one(function) for symbol, function in _ONE.items()},
    **{symbol: _of_two(function) for symbol, function in _TWO.items()},
    **{symbol: _reduction(function) for symbol, function in _REDUCTIONS.items()},
    "broadcast_to": _broadcast_to,
    "cast": _cast,
    "clip_by_value": _clip,
    "compat.v1.gather": _gather,
    "compat.v1.nn.conv2d": _conv_of_version_1,
    "compat.v1.norm": _norm,
    "compat.v1.pad": _pad,
    "compat.v1.shape": _shape,
    "compat.v1.squeeze": _squeeze,
    "compat.v1.transpose": _transpose,
    "concat": _concat,
    "einsum": _einsum,
    "expand_dims": lambda input, axis: ops.expand_dims(input, _integer(axis)),
    "gather": _gather,
    "image.resize": _resize,
    "keras.backend.batch_flatten": lambda x: _reshape(x, [-1, math.prod(x.shape[1:])]),
    "linalg.matmul": _matmul,
    "math.add_n": lambda inputs: functools.reduce(ops.add, inputs),
    "math.argmax": _arg(ops.argmax),
    "math.argmin": _arg(ops.argmin),
    "math.cumsum": _cumsum,
    "math.l2_normalize": _l2_normalize,
    "nn.avg_pool2d": _pool(ops.average_pool),
    "nn.bias_add": _bias_add,
    "nn.conv2d": _conv,
    "nn.depth_to_space": _depth_to_space,
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "nn.log_softmax": _softmax(ops.log_softmax),
    "nn.max_pool2d": _pool(ops.max_pool),
    "nn.silu": lambda features: ops.silu(features),
    "nn.softmax": _softmax(ops.softmax),
    "nn.space_to_depth": _space_to_depth,
    "norm": _norm,
    "one_hot": _one_hot,
    "pad": _pad,
    "repeat": lambda input, repeats, axis: ops.repeat(input, repeats, axis),
    "reshape": _reshape,
    "reverse": lambda tensor, axis: ops.flip(tensor, tuple(_integers(axis))),
    "roll": lambda input, shift, axis: ops.roll(input, shift, axis),
    "shape": _shape,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
    "where": _where,
}
_TAKE_OPEN_SIZES = ("reshape",)
