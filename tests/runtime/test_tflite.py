"""Interpreters for packed and ordinary files, by either runtime."""

from __future__ import annotations

import importlib
import pathlib
import shutil
import sys
import warnings
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st

from ocs_tf.runtime import (
    LIBRARY_VERSION,
    NativeLibraryError,
    compatibility,
    library,
    library_path,
    self_test,
    tflite,
)
from tests.runtime.model_builder import ModelBuilder

RUNTIMES = ["ai_edge_litert", "tensorflow"]
PACKED = self_test.model(schema)  # OcsFakeQuantize(x) + OcsDequantize(), float32 [2, 2]


def plain_file() -> bytes:
    """A `.tflite` file of one builtin operator: float32 [3] + itself."""
    builder = ModelBuilder()
    x, y = builder.tensor((3,)), builder.tensor((3,))
    builder.operator(schema.BuiltinOperator.ADD, [x, x], [y], schema.AddOptionsT())
    return builder.build([x], [y])


PLAIN = plain_file()


def run(interpreter: Any, x: np.ndarray) -> np.ndarray:
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.fixture(params=["path", "string", "bytes", "bytearray"])
def given_as(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Any:
    """A function that puts content into the form that an `Interpreter` is given."""

    def put(content: bytes) -> Any:
        path = tmp_path / "file.tflite"
        path.write_bytes(content)
        forms = {"path": path, "string": str(path), "bytes": content}
        return forms.get(request.param, bytearray(content))

    return put


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is as if no library had been built."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "FILE_NAME", "not_built.so")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_packed_file_runs(runtime: str, given_as: Any) -> None:
    interpreter = tflite.Interpreter(given_as(PACKED), runtime=runtime, num_threads=2)
    assert type(interpreter).__module__.split(".")[0] == runtime
    # On the grid of step 0.5, from (-8 - 1) * 0.5 to (7 - 1) * 0.5, plus codes times scales.
    x = [[0.3, -100], [100, -1.6]]
    expected = [[0.5 + -4 * 0.5, -4.5 + 3 * 0.5], [3.0 + 2 * 2.0, -1.5 + -1 * 2.0]]
    np.testing.assert_array_equal(run(interpreter, np.array(x, np.float32)), expected)


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_file_does_not_need_the_library(runtime: str, given_as: Any) -> None:
    interpreter = tflite.Interpreter(given_as(PLAIN), runtime=runtime)
    x = np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(run(interpreter, x), x + x)


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_packed_file_without_the_library(runtime: str) -> None:
    with pytest.raises(NativeLibraryError, match=r"missing in .*apt-get install g\+\+"):
        tflite.Interpreter(PACKED, runtime=runtime)


@pytest.mark.filterwarnings("ignore::UserWarning")  # tf.lite is deprecated
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_without_the_delegate_runtimes_name_the_operator(runtime: str) -> None:
    """What docs/packed.md says of programs that do not load the delegate."""
    module, _ = tflite._import(runtime)
    interpreter = module.Interpreter(model_content=PACKED)
    with pytest.raises(RuntimeError, match="unresolved custom op: OcsFakeQuantize"):
        interpreter.allocate_tensors()


@pytest.mark.filterwarnings("ignore::UserWarning")  # tf.lite is deprecated
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_programs_may_load_the_delegate_themselves(runtime: str) -> None:
    module, _ = tflite._import(runtime)
    x = np.zeros((2, 2), np.float32)
    outputs = [run(tflite.Interpreter(PACKED, runtime=runtime), x)]
    for delegate in (
        tflite.load_delegate(runtime),
        module.load_delegate(tflite.delegate_path()),
    ):
        interpreter = module.Interpreter(model_content=PACKED, experimental_delegates=[delegate])
        interpreter.allocate_tensors()
        outputs.append(run(interpreter, x))
    np.testing.assert_array_equal(outputs[1], outputs[0])
    np.testing.assert_array_equal(outputs[2], outputs[0])


def test_the_delegate_is_the_library() -> None:
    assert tflite.delegate_path() == str(library_path())


def test_the_delegates_version_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY_VERSION", LIBRARY_VERSION + 1)
    message = f"is version {LIBRARY_VERSION}, but this ocs_tf needs version"
    with pytest.raises(NativeLibraryError, match=message):
        tflite.delegate_path()
    with pytest.raises(NativeLibraryError, match=message):
        tflite.Interpreter(PACKED)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_that_fails_the_self_test_is_not_used(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*arguments: Any) -> NoReturn:
        asked.append(arguments)
        raise NativeLibraryError("it does not work")

    monkeypatch.setattr(compatibility, "check_runtime", refuse)
    with pytest.raises(NativeLibraryError, match="it does not work"):
        tflite.Interpreter(PACKED, runtime=runtime)
    version = importlib.import_module(runtime).__version__
    assert asked == [(runtime, version, library_path())]
    tflite.Interpreter(PLAIN, runtime=runtime)
    assert len(asked) == 1


def test_delegates_of_the_caller_stay_and_come_second(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Interpreter:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def allocate_tensors(self) -> None:
            pass

    module = SimpleNamespace(Interpreter=Interpreter, load_delegate=lambda path: "ours")
    monkeypatch.setattr(tflite, "_import", lambda runtime: (module, "ai_edge_litert"))
    monkeypatch.setattr(compatibility, "check_runtime", lambda *arguments: None)
    theirs = ["theirs"]
    tflite.Interpreter(PACKED, experimental_delegates=theirs, experimental_option=1)
    tflite.Interpreter(PLAIN, experimental_delegates=theirs)
    tflite.Interpreter(PACKED, experimental_delegates=None)
    given = [options["experimental_delegates"] for options in made]
    assert given == [["ours", "theirs"], ["theirs"], ["ours"]]
    assert theirs == ["theirs"]
    assert made[0]["experimental_option"] == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_warning_of_a_deprecated_runtime(runtime: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tflite.Interpreter(PLAIN, runtime=runtime)


def test_other_warnings_reach_the_caller() -> None:
    with pytest.warns(UserWarning, match="experimental_preserve_all_tensors"):
        tflite.Interpreter(PLAIN, runtime="tensorflow", experimental_preserve_all_tensors=True)


def test_litert_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(tflite.Interpreter(PLAIN)).__module__ == "ai_edge_litert.interpreter"
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    assert type(tflite.Interpreter(PLAIN)).__module__ == "tensorflow.lite.python.interpreter"


def test_a_missing_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow.lite.python.interpreter", None)
    with pytest.raises(ImportError, match=r"^tensorflow is not installed .*pip install tensorflow"):
        tflite.Interpreter(PLAIN, runtime="tensorflow")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r"a TFLite runtime is not .*pip install ai-edge-litert"):
        tflite.Interpreter(PLAIN)


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`runtime` \(='tf'\).*ai_edge_litert, tensorflow"):
        tflite.Interpreter(PLAIN, runtime="tf")


def test_a_missing_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.tflite"):
        tflite.Interpreter(tmp_path / "missing.tflite")


@pytest.mark.parametrize("content", [b"no model", b"    TFL4" + bytes(64)], ids=["text", "TFL4"])
def test_what_is_not_tflite_is_refused(content: bytes, given_as: Any) -> None:
    with pytest.raises(ValueError, match="not a TFLite file"):
        tflite.Interpreter(given_as(content))


def test_an_empty_file_is_refused(given_as: Any) -> None:
    with pytest.raises(ValueError, match="not a TFLite file"):
        tflite.Interpreter(given_as(b""))


def test_a_bad_file_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bad.tflite"
    path.write_bytes(PACKED[:20])
    with pytest.raises(ValueError, match=r"bad\.tflite: .*a damaged one"):
        tflite.Interpreter(path)


def test_custom_operators_are_found_by_name() -> None:
    assert tflite.custom_operators(PACKED) == {"OcsFakeQuantize", "OcsDequantize"}
    assert tflite.custom_operators(PLAIN) == set()


def test_an_offset_that_points_before_the_file() -> None:
    content = bytearray(PACKED)
    root = int.from_bytes(content[:4], "little")
    content[root : root + 4] = (root + 246).to_bytes(4, "little", signed=True)
    with pytest.raises(ValueError, match="a damaged one: bad number -246"):
        tflite.custom_operators(bytes(content))


@given(st.data())
def test_damaged_files_end_in_names_or_an_error(data: st.DataObject) -> None:
    content = bytearray(PACKED)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        names = tflite.custom_operators(bytes(content))
    except ValueError:
        return
    assert all(isinstance(name, str) for name in names)


def test_a_file_may_be_replaced_after_it_was_read(tmp_path: pathlib.Path) -> None:
    """Reading the operators leaves no mapping behind, which would hold the file on Windows."""
    path = tmp_path / "file.tflite"
    path.write_bytes(PACKED)
    assert "OcsDequantize" in tflite._custom_operators_of_file(path)
    shutil.copy(__file__, path)
    assert path.read_bytes() == pathlib.Path(__file__).read_bytes()
