"""Runs `.tflite` files, packed ones included, by whichever TFLite runtime is installed."""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import pathlib
import struct
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from ocs_tf.paths import existing_file
from ocs_tf.process import ignored_warnings
from ocs_tf.runtime import compatibility, micro, operators
from ocs_tf.runtime.choices import MICRO, RUNTIMES
from ocs_tf.runtime.library import library_path

# In the order of preference.
_MODULES = {
    "ai_edge_litert": "ai_edge_litert.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}


def Interpreter(
    path_or_content: str | os.PathLike[str] | bytes,
    *,
    num_threads: int | None = None,
    runtime: str | None = None,
    **options: Any,
) -> Any:
    """A TFLite interpreter that is ready to be invoked; its tensors are allocated.

    The delegate is loaded only if the file has operators that need it, and is applied before
    delegates that the caller gives.

    Arguments:
        path_or_content: the path of a `.tflite` file, or its bytes.
        num_threads: of the runtime; `None` leaves it its default.
        runtime: `"ai_edge_litert"` or `"tensorflow"`; `None`: the first of them that is installed.
            `"tflite_micro"`: TFLite Micro, which computes as microcontrollers do, in one thread.
        **options: of the runtime's `Interpreter`, for example `experimental_delegates`; of TFLite
            Micro `arena_size`, in bytes.

    Returns:
        An `ai_edge_litert.interpreter.Interpreter` or `tf.lite.Interpreter`; for TFLite Micro, an
        object with their methods for inputs, outputs and signatures, whose shapes are fixed.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, or is a folder.
        ValueError: it is not a TFLite file, or neither a path nor bytes; or `runtime` is none of
            the three; or TFLite Micro is to read packed kernels, or its arena is too small.
        ImportError: the runtime is not installed.
        NativeLibraryError: the file needs the delegate, which is missing or does not work here.
        RuntimeError: the runtime refuses the file.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise ValueError(f"`runtime` (={runtime!r}) must be None or one of {', '.join(RUNTIMES)}.")
    if runtime == MICRO:
        return _micro_interpreter(path_or_content, **options)
    module, name = _import(runtime)
    source: dict[str, Any]
    if isinstance(path_or_content, str | os.PathLike):
        path = existing_file(path_or_content, "path_or_content")
        source = {"model_path": os.fspath(path)}
        names = _custom_operators_of_file(path)
    else:
        source = {"model_content": _checked_bytes(path_or_content)}
        names = custom_operators(source["model_content"])
    delegates = list(options.pop("experimental_delegates", None) or ())
    if not names.isdisjoint(operators.CUSTOM_OPERATORS):
        # The first one: to those that follow, unpacked weights are constants.
        delegates.insert(0, load_delegate(name))
    with ignored_warnings(r"\s*Warning: tf.lite.Interpreter is deprecated"):
        interpreter = module.Interpreter(
            num_threads=num_threads, experimental_delegates=delegates, **source, **options
        )
    interpreter.allocate_tensors()
    return interpreter


def _checked_bytes(content: Any) -> bytes:
    if not isinstance(content, bytes | bytearray | memoryview):
        raise ValueError(
            "`path_or_content` must be the path of a .tflite file or its bytes, but is a"
            f" {type(content).__name__}."
        )
    return bytes(content)


def _micro_interpreter(path_or_content: Any, **options: Any) -> micro.MicroInterpreter:
    if not micro.installed():
        raise ImportError('tflite_micro is not installed: pip install "ocs_tf[micro]"')
    if isinstance(path_or_content, str | os.PathLike):
        path = existing_file(path_or_content, "path_or_content")
        names, content = _custom_operators_of_file(path), path.read_bytes()
    else:
        content = _checked_bytes(path_or_content)
        names = custom_operators(content)
    ours = sorted(names.intersection(operators.CUSTOM_OPERATORS))
    if ours:
        raise ValueError(
            f"TFLite Micro has no delegates, and so not the operator {ours[0]} of packed files;"
            " export with target='int8'."
        )
    return micro.MicroInterpreter(content, **options)


def load_delegate(runtime: str | None = None) -> Any:
    """The delegate, as a runtime's own `load_delegate` returns it.

    Arguments:
        runtime: as of `Interpreter`, but not TFLite Micro, which has no delegates.

    Raises:
        ValueError, ImportError, NativeLibraryError: as `Interpreter`.
    """
    module, name = _import(runtime)
    library = library_path()
    compatibility.check_runtime(name, _version(name), library)
    return module.load_delegate(os.fspath(library))


def delegate_path() -> str:
    """The delegate's library, for programs that load it themselves; its version is checked.

    Raises:
        NativeLibraryError: it is missing, cannot be loaded, or is of another version.
    """
    return os.fspath(library_path())


def custom_operators(content: bytes | mmap.mmap) -> set[str]:
    """Names of the custom operators that a `.tflite` file uses.

    Raises:
        ValueError: it is not a TFLite file.
    """
    if content[4:8] != b"TFL3":
        raise ValueError("this is not a TFLite file: it does not have 'TFL3' at bytes 4 to 7.")
    try:
        model = schema.Model.GetRootAs(content)
        codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
        names = {code.CustomCode() for code in codes}
    except (struct.error, TypeError) as error:  # offsets behind the end, or before the start
        raise ValueError(f"this is not a TFLite file, or a damaged one: {error}.") from error
    return {name.decode(errors="replace") for name in names if name}


def _custom_operators_of_file(path: pathlib.Path) -> set[str]:
    if not path.stat().st_size:  # which cannot be mapped
        raise ValueError(f"{path} is not a TFLite file: it is empty.")
    with (
        path.open("rb") as file,
        contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content,
    ):
        try:
            return custom_operators(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _import(runtime: str | None) -> tuple[Any, str]:
    """The runtime's interpreter module, and the runtime's name."""
    if runtime is not None and runtime not in _MODULES:
        raise ValueError(f"`runtime` (={runtime!r}) must be None or one of {', '.join(_MODULES)}.")
    errors = []
    for name in [runtime] if runtime else _MODULES:
        try:
            return importlib.import_module(_MODULES[name]), name
        except ImportError as error:
            errors.append(str(error))
    raise ImportError(
        f"{runtime or 'a TFLite runtime'} is not installed ({'; '.join(errors)}): pip install"
        f" {(runtime or 'ai_edge_litert').replace('_', '-')}"
    )


def _version(runtime: str) -> str:
    return str(getattr(importlib.import_module(runtime), "__version__", "of unknown version"))
