"""Whether a model of Keras 3 computes what one of tf_keras does: both on drawn inputs."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ocs_tf import drawing
from ocs_tf.keras2 import tf_keras_internals
from ocs_tf.keras_internals import layers_within
from ocs_tf.process import no_tracing_warnings

Array = NDArray[Any]

_SAMPLES = 2
_OPEN_SIZES = (16, 64, 299)  # of open axes; what is too small is refused by TensorFlow
_STEPS = 8  # of the smallest difference between numbers near the largest output: 1e-6 in float32
_REASON = 300  # characters
_WORDS = ("a", "b c", "")


def check_same(old: Any, new: keras.Model) -> None:
    """Raise `ValueError` if the outputs of two models differ by more than rounding.

    That is 1e-6 of the largest output, or what a change of the weights in their last place does.

    Warns if TensorFlow cannot run the model on this machine.
    """
    try:
        arrays, expected = _run_drawn(old)
    except Exception as error:
        reason = " ".join(str(error).split())[:_REASON] or type(error).__name__
        warnings.warn(
            f"the outputs of {old.name!r} could not be compared with those of tf_keras, which"
            f" cannot run it here: {reason}",
            stacklevel=2,
        )
        return
    found = _outputs(new, arrays)
    tolerance = _STEPS * max(map(_resolution, layers_within(new)))
    differences = list(map(_difference, expected, found))
    if max(differences) <= tolerance:
        return
    rounding = [
        _STEPS * _difference(*pair) for pair in zip(found, _nudged(new, arrays), strict=True)
    ]
    for name, difference, allowed in zip(old.output_names, differences, rounding, strict=True):
        if not difference <= max(tolerance, allowed):
            raise ValueError(
                f"`model` {old.name!r} cannot be translated to Keras 3: its output {name!r} differs"
                f" from that of tf_keras by {difference:.2g} of its largest value."
            )


def _outputs(model: keras.Model, arrays: Sequence[Any]) -> list[Array]:
    sequential = isinstance(model, keras.Sequential)
    inputs = arrays[0] if sequential else keras.tree.pack_sequence_as(model.input, list(arrays))
    with no_tracing_warnings():
        return _arrays(model(inputs, training=False))


def _nudged(model: keras.Model, arrays: Sequence[Any]) -> list[Array]:
    """The outputs with every weight changed in its last place, as rounding changes numbers."""
    rng = np.random.default_rng(0)
    kept = [(weight, weight.numpy()) for weight in model.weights]
    try:
        for weight, values in kept:
            if values.dtype.kind == "f":
                towards = rng.choice(np.array([-np.inf, np.inf], values.dtype), values.shape)
                weight.assign(np.nextafter(values, towards))
        return _outputs(model, arrays)
    finally:
        for weight, values in kept:
            weight.assign(values)


def _run_drawn(model: Any) -> tuple[list[Any], list[Array]]:
    """Inputs that the model takes, and its outputs.

    Floats may stand for indices, which are not negative.
    """
    words = _vocabulary(model)

    def run(tried: tuple[int, float]) -> tuple[list[Any], list[Array]]:
        rng = np.random.default_rng(0)
        arrays = [_drawn(rng, tensor, *tried, words) for tensor in model.inputs]
        return arrays, _arrays(tf_keras_internals.outputs(model, arrays))

    return drawing.first_that_works(itertools.product(_OPEN_SIZES, (-2.0, 0.0)), run)[1]


def _vocabulary(model: Any) -> Sequence[str]:
    """Words that mean something to the model."""
    tables = [layer for layer in model.submodules if hasattr(layer, "get_vocabulary")]
    found = [word for layer in tables for word in layer.get_vocabulary()]
    return [*_WORDS, *(word for word in found if isinstance(word, str))]


def _drawn(
    rng: np.random.Generator, tensor: Any, size: int, lowest: float, words: Sequence[str]
) -> Any:
    """A tensor for a symbolic input."""
    batch, *sizes = tensor.shape
    shape = batch or _SAMPLES, *drawing.sized(sizes, size)
    values = drawing.drawn(rng, shape, tensor.dtype.name, lowest, words=words)
    return tf.constant(values) if tensor.dtype.name == "string" else tf.cast(values, tensor.dtype)


def _arrays(outputs: Any) -> list[Array]:
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def _resolution(layer: Any) -> float:
    """The distance from 1 to the next number in the dtype that a layer computes in."""
    resolutions = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
    return resolutions.get(layer.compute_dtype, 2.0**-23)


def _difference(first: Array, second: Array) -> float:
    """The largest difference, as a share of the largest magnitude; 0 or 1 of strings."""
    if first.shape != second.shape:
        return math.inf
    if first.dtype.kind not in "biufV":
        return float(not np.array_equal(first, second))
    x, y = first.astype(np.float64), second.astype(np.float64)
    if not x.size or np.array_equal(x, y, equal_nan=True):
        return 0.0
    return float(np.abs(x - y).max() / (np.abs(x).max() or 1.0))
