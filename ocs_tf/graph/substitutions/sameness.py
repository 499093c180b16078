"""Whether a traced model computes what the user's does, by running both on two random samples.

Tracing cannot see all that a `call` may do: Python state, or a size that is open when it is traced.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ocs_tf import drawing

_SAMPLES = 2
_OPEN_SIZES = (7, 32, 64, 128, 256)  # the first is odd: no size that a table would be made for
_TOLERANCE = 1e-3  # of the largest output; tracing changes no arithmetic but the order of sums


def computes_the_same(model: keras.Model, traced: keras.Model) -> bool:
    """Whether outputs are the same; also if `model` cannot be run on such samples.

    Arguments:
        traced: a functional model with inputs of the structure of those of `model`.
    """
    is_open = any(None in tensor.shape[1:] for tensor in traced.inputs)

    def run(size: int) -> Any:
        inputs = _samples(traced, size)
        return inputs, keras.tree.flatten(model(inputs, training=False))

    try:
        _, (inputs, expected) = drawing.first_that_works(_OPEN_SIZES if is_open else (1,), run)
    except Exception:  # not all layers run on all machines
        return True
    try:
        found = keras.tree.flatten(traced(inputs, training=False))
    except Exception:
        return False
    return all(map(_close, expected, found))


def _samples(model: keras.Model, size: int) -> Any:
    """Random inputs, open axes of this size."""
    rng = np.random.default_rng(0)
    samples = []
    for tensor in model.inputs:
        shape = tensor.shape[0] or _SAMPLES, *drawing.sized(tensor.shape[1:], size)
        values = drawing.drawn(rng, shape, str(tensor.dtype))
        samples.append(keras.ops.convert_to_tensor(values, tensor.dtype))
    return keras.tree.pack_sequence_as(model.input, samples)


def _close(expected: Any, found: Any) -> bool:
    a, b = (np.asarray(keras.ops.convert_to_numpy(x)) for x in (expected, found))
    if a.shape != b.shape:
        return False
    if a.dtype.kind not in "fV":
        return bool(np.array_equal(a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    largest = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return bool(np.allclose(a, b, rtol=0, atol=_TOLERANCE * largest, equal_nan=True))
