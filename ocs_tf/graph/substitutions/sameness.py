"""Whether a traced model computes what the user's does, by running both on two random samples.

Tracing cannot see all that a `call` may do: Python state, or a size that is open when it is traced.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

_SAMPLES = 2
_OPEN_SIZE = 7
_TOLERANCE = 1e-3  # of the largest output; tracing changes no arithmetic but the order of sums


def computes_the_same(model: keras.Model, traced: keras.Model) -> bool:
    """Whether outputs are the same; also if `model` cannot be run on such samples.

    Arguments:
        traced: a functional model with inputs of the structure of those of `model`.
    """
    rng = np.random.default_rng(0)
    samples = [_sample(rng, tensor) for tensor in traced.inputs]
    if any(sample is None for sample in samples):
        return True
    inputs = keras.tree.pack_sequence_as(traced.input, samples)
    try:
        expected = keras.tree.flatten(model(inputs, training=False))
    except Exception:  # open sizes are not any sizes, and not all layers run on all machines
        return True
    try:
        found = keras.tree.flatten(traced(inputs, training=False))
    except Exception:
        return False
    return all(map(_close, expected, found))


def _sample(rng: np.random.Generator, tensor: keras.KerasTensor) -> Any:
    """Random numbers for an input, or indices and masks of 0 and 1; `None` for strings."""
    shape = [_OPEN_SIZE if size is None else size for size in tensor.shape[1:]]
    shape.insert(0, tensor.shape[0] or _SAMPLES)
    if "float" in tensor.dtype:
        return keras.ops.cast(rng.normal(size=shape), tensor.dtype)
    if "int" in tensor.dtype or tensor.dtype == "bool":
        return keras.ops.cast(rng.integers(0, 2, shape), tensor.dtype)
    return None


def _close(expected: Any, found: Any) -> bool:
    a, b = (np.asarray(keras.ops.convert_to_numpy(x)) for x in (expected, found))
    if a.shape != b.shape:
        return False
    if a.dtype.kind not in "fV":
        return bool(np.array_equal(a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    largest = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return bool(np.allclose(a, b, rtol=0, atol=_TOLERANCE * largest, equal_nan=True))
