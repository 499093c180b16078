"""Arrays into interpreters and out of them: grids by hand, files of one operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from ocs_tf.runtime import runner
from tests.runtime.model_builder import ModelBuilder


def detail(dtype: Any, scale: float = 0.0, zero_point: int = 0) -> dict[str, Any]:
    """What an interpreter says of a tensor; a scale of 0 is none."""
    return {"dtype": dtype, "quantization": (scale, zero_point)}


def difference(shape: tuple[int, ...], signature: tuple[int, ...] = ()) -> bytes:
    """A file that computes `x - y`; with a `signature`, sizes of -1 there are open."""
    builder = ModelBuilder()
    x, y, z = (builder.tensor(shape) for _ in range(3))
    for tensor in builder.graph.tensors:
        tensor.shapeSignature = list(signature) or None
    builder.operator(schema.BuiltinOperator.SUB, [x, y], [z], schema.SubOptionsT())
    return builder.build([x, y], [z])


def test_codes_are_the_nearest_ones_within_the_dtype() -> None:
    x = np.array([-100, -0.3, 0, 0.24, 0.26, 100], np.float32)
    codes = runner.to_codes(x, detail(np.int8, 0.5, -3))
    assert codes.dtype == np.int8
    assert codes.tolist() == [-128, -1 - 3, -3, 0 - 3, 1 - 3, 127]
    assert runner.to_codes(x, detail(np.uint8, 0.5, 3)).tolist() == [0, 2, 3, 3, 4, 203]


def test_numbers_of_codes() -> None:
    codes = np.array([-128, -3, 7], np.int8)
    found = runner.to_floats(codes, detail(np.int8, 0.5, -3))
    assert found.dtype == np.float32
    assert found.tolist() == [(-128 + 3) * 0.5, 0, (7 + 3) * 0.5]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_without_a_grid_only_the_dtype_changes(dtype: Any) -> None:
    given = np.array([1, 2, 3], np.int64)
    assert not runner.has_grid(detail(dtype))
    assert runner.to_codes(given, detail(dtype)).dtype == dtype
    assert runner.to_floats(given, detail(dtype)) is given


def test_a_scale_of_floats_is_no_grid() -> None:
    assert not runner.has_grid(detail(np.float32, 0.5, 3))
    assert runner.has_grid(detail(np.int16, 0.5, 0))


def test_arrays_in_the_order_of_the_file_or_of_given_details() -> None:
    interpreter = runner.opened(difference((2,)))
    x, y = np.array([5, 7], np.float32), np.array([1, 2], np.float32)
    runner.run(interpreter, [x, y])
    assert [found.tolist() for found in runner.outputs(interpreter)] == [[4, 5]]
    runner.run(interpreter, [x, y], interpreter.get_input_details()[::-1])
    (made,) = interpreter.get_output_details()
    first, second = runner.outputs(interpreter, [made, made])
    assert first.tolist() == second.tolist() == [-4, -5]


def test_open_sizes_are_those_of_the_arrays() -> None:
    """But for the first one, which is a batch size."""
    interpreter = runner.opened(difference((1, 1), (-1, -1)))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    runner.allocate_for(interpreter, [x, x])
    assert [d["shape"].tolist() for d in interpreter.get_input_details()] == [[1, 3], [1, 3]]
    runner.run(interpreter, [x[:1], x[1:]])
    assert runner.outputs(interpreter)[0].tolist() == [[-3, -3, -3]]


def test_resizes_by_index() -> None:
    interpreter = runner.opened(difference((1, 2), (-1, 2)))
    indices = [d["index"] for d in interpreter.get_input_details()]
    runner.resize(interpreter, dict.fromkeys(indices, (4, 2)))
    x = np.ones((4, 2), np.float32)
    runner.run(interpreter, [3 * x, x])
    assert runner.outputs(interpreter)[0].tolist() == (2 * x).tolist()


def test_opens_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    runner.opened(difference((2,)))
    assert capfd.readouterr().err == ""
