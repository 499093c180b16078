"""TFLite Micro as an interpreter: inputs, outputs, arenas, and what it refuses."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from ocs_tf.runtime import micro, runner, self_test, tflite
from ocs_tf.runtime.model import TFLiteModel
from tests.runtime.model_builder import ModelBuilder

pytestmark = pytest.mark.skipif(
    not micro.installed(), reason='needs tflite-micro: pip install "ocs_tf[micro]"'
)

X, Y = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[5.0, -7.0, 0.5]], np.float32)


def file_of(operator: str = "SUB", options: Any = None, shape: tuple[int, ...] = (1, 3)) -> bytes:
    """A `.tflite` file of one operator with two inputs and one output, float32."""
    builder = ModelBuilder()
    x, y, z = (builder.tensor(shape) for _ in range(3))
    code = getattr(schema.BuiltinOperator, operator)
    builder.operator(code, [x, y], [z], options or schema.SubOptionsT())
    return builder.build([x, y], [z])


FILE = file_of()


@pytest.fixture(scope="module")
def interpreter() -> Any:
    return tflite.Interpreter(FILE, runtime="tflite_micro")


def test_inputs_and_outputs_are_those_of_litert(interpreter: Any) -> None:
    other = tflite.Interpreter(FILE, runtime="ai_edge_litert")
    for getter in ("get_input_details", "get_output_details"):
        found, expected = getattr(interpreter, getter)(), getattr(other, getter)()
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() <= theirs.keys()
            for key in ("name", "index", "dtype", "quantization"):
                assert ours[key] == theirs[key]
            for key in ("shape", "shape_signature"):
                np.testing.assert_array_equal(ours[key], theirs[key])
    runner.run(interpreter, [X, Y])
    (found,) = runner.outputs(interpreter)
    np.testing.assert_array_equal(found, X - Y)


def test_only_inputs_are_set_and_outputs_read(interpreter: Any) -> None:
    (x, _), (z,) = interpreter.get_input_details(), interpreter.get_output_details()
    with pytest.raises(ValueError, match="is not an input; TFLite Micro gives no others"):
        interpreter.set_tensor(z["index"], X)
    with pytest.raises(ValueError, match="is not an output"):
        interpreter.get_tensor(x["index"])
    with pytest.raises(ValueError, match="Dimension mismatch"):
        interpreter.set_tensor(x["index"], X[:, :2])


def test_shapes_are_fixed(interpreter: Any) -> None:
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, [1, 3])
    with pytest.raises(RuntimeError, match=r"takes \[1, 3\], not \[2, 3\]"):
        interpreter.resize_tensor_input(index, [2, 3])


def test_the_arena_is_the_smallest(tmp_path: pathlib.Path) -> None:
    """Of two tensors that live at once, at least; and it grows by what tensors do."""
    small, large = (micro.find_arena(file_of(shape=(1, size))).size for size in (4, 4004))
    assert small is not None
    assert small >= 3 * 16
    assert large is not None
    # What it needs while it lays tensors out has room in those of the large file.
    assert 3 * 4000 * 4 - 1024 <= large - small <= 3 * 4000 * 4
    enough = micro.MicroInterpreter(FILE, arena_size=micro.find_arena(FILE).size)
    runner.run(enough, [X, Y])
    np.testing.assert_array_equal(runner.outputs(enough)[0], X - Y)
    with pytest.raises(ValueError, match=r"`arena_size` \(=64\) must be at least \d+"):
        tflite.Interpreter(FILE, runtime="tflite_micro", arena_size=64)


def test_an_operator_that_it_lacks_is_named() -> None:
    file = file_of("POW", schema.PowOptionsT())
    assert micro.find_arena(file).size is None
    with pytest.raises(RuntimeError, match=r"TFLite Micro refuses the file: .*opcode 'POW'"):
        tflite.Interpreter(file, runtime="tflite_micro")


def test_packed_kernels_need_a_delegate_which_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="has no delegates, and so not the operator Ocs"):
        tflite.Interpreter(self_test.model(schema), runtime="tflite_micro")


def test_damaged_files_are_errors(tmp_path: pathlib.Path) -> None:
    """TFLite Micro itself would crash."""
    for content in (FILE[: len(FILE) // 2], FILE[:24]):
        with pytest.raises(ValueError, match="a damaged one"):
            tflite.Interpreter(content, runtime="tflite_micro")
    path = tmp_path / "bad.tflite"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"bad\.tflite: this is not a TFLite file"):
        tflite.Interpreter(path, runtime="tflite_micro")


def test_a_crash_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "_enough", lambda content: 64)  # in which it crashes or fails
    assert micro.find_arena(FILE).size is None
    assert micro.find_arena(FILE).refusal


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "installed", lambda: False)
    with pytest.raises(ImportError, match=r'pip install "ocs_tf\[micro\]"'):
        tflite.Interpreter(FILE, runtime="tflite_micro")


def test_a_file_as_a_model(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(FILE)
    model = TFLiteModel(path, runtime="tflite_micro")
    batch = [np.repeat(X, 3, axis=0), np.repeat(Y, 3, axis=0)]
    np.testing.assert_array_equal(model.predict_on_batch(batch), batch[0] - batch[1])
