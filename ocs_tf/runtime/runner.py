"""How arrays go into the interpreter of a `.tflite` file, and come out of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ocs_tf.process import quiet
from ocs_tf.runtime.tflite import Interpreter


def opened(path_or_content: str | os.PathLike[str] | bytes, **options: Any) -> Any:
    """What `Interpreter` returns, without what a runtime writes on stderr.

    Raises:
        OSError, ValueError, NativeLibraryError, RuntimeError: as `Interpreter`.
    """
    with quiet():
        return Interpreter(path_or_content, **options)


def allocate_for(interpreter: Any, arrays: Sequence[np.ndarray]) -> None:
    """Allocate tensors, inputs whose sizes are open (but for the batch size) as in `arrays`."""
    shapes = {}
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        shape = [int(detail["shape"][0]), *array.shape[1:]]
        if -1 in detail["shape_signature"][1:] and detail["shape"].tolist() != shape:
            shapes[detail["index"]] = shape
    resize(interpreter, shapes)


def resize(interpreter: Any, shapes: Mapping[int, Sequence[int]]) -> None:
    """Allocate tensors, inputs in other shapes, by their indices."""
    for index, shape in shapes.items():
        interpreter.resize_tensor_input(index, shape)
    with quiet():
        interpreter.allocate_tensors()


def run(
    interpreter: Any, arrays: Sequence[np.ndarray], details: Sequence[dict[str, Any]] | None = None
) -> None:
    """Compute with `arrays`, which hold codes where an input has a grid.

    Arguments:
        details: of the inputs in the order of `arrays`; `None`: in the file's.
    """
    details = interpreter.get_input_details() if details is None else details
    for detail, array in zip(details, arrays, strict=True):
        interpreter.set_tensor(detail["index"], np.ascontiguousarray(array, detail["dtype"]))
    interpreter.invoke()


def outputs(interpreter: Any, details: Sequence[dict[str, Any]] | None = None) -> list[np.ndarray]:
    """What was computed: codes where an output has a grid.

    Arguments:
        details: of the outputs to read; `None`: of all, in the file's order.
    """
    details = interpreter.get_output_details() if details is None else details
    return [interpreter.get_tensor(detail["index"]) for detail in details]


def has_grid(detail: dict[str, Any]) -> bool:
    """Whether an input or output, as an interpreter describes it, holds codes."""
    return bool(detail["quantization"][0]) and np.dtype(detail["dtype"]).kind in "iu"


def to_codes(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """`array` in the dtype, and on the grid, of an input as an interpreter describes it."""
    if not has_grid(detail):
        return np.ascontiguousarray(array, detail["dtype"])
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    codes = np.rint(array / np.float32(scale)) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(detail["dtype"])


def to_floats(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """The numbers that an output, as an interpreter describes it, stands for."""
    if not has_grid(detail):
        return array
    scale, zero_point = detail["quantization"]
    return (array.astype(np.float32) - zero_point) * np.float32(scale)
