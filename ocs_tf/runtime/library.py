"""Finds the native library and checks that it is the one that this package expects."""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys

# What `ocs_library_version()` of the library returns; counts incompatible changes.
LIBRARY_VERSION = 1
# The environment variable that names another library than the package's own.
VARIABLE = "OCS_TF_LIBRARY"

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
FILE_NAME = f"libocs_delegate{_SUFFIX}"
_FOLDER = pathlib.Path(__file__).parent
# Not from pip's cache, which keeps what it built, even without the library.
_REBUILD = (
    "pip install --verbose --force-reinstall --no-deps --no-cache-dir --no-binary ocs_tf ocs_tf"
    " (instead of the last word, the folder of its sources if you have them)"
)


class NativeLibraryError(RuntimeError):
    """The native library is missing, cannot be loaded or used, or is of another version."""


def library_path() -> pathlib.Path:
    """The native library, checked: it exists, can be loaded, and has the right version.

    It is the file that the environment variable `OCS_TF_LIBRARY` names, else the one in this
    package's folder, where the installation builds it, or where Bazel does.

    Raises:
        NativeLibraryError: none is there, or it is not the one that this package expects.
    """
    path = _find()
    _check(path)
    return path


def _find() -> pathlib.Path:
    named = os.environ.get(VARIABLE)
    if named:
        if not os.path.isfile(named):
            raise NativeLibraryError(
                f"the environment variable {VARIABLE} names {named!r}, which is not a file. Unset"
                " it to use the library of the package."
            )
        return pathlib.Path(named).absolute()
    # Bazel puts the folder of its runfiles, where the library is, on the path; but a script in the
    # source tree imports the package from there.
    folders = [_FOLDER, *(pathlib.Path(entry, "ocs_tf", "runtime") for entry in sys.path)]
    for path in (folder / FILE_NAME for folder in folders):
        if path.is_file():
            return path.absolute()
    raise NativeLibraryError(
        f"the native library {FILE_NAME} is missing in {_FOLDER}: there was no C++ compiler when"
        " ocs_tf was installed, or it failed. Install a compiler for C++17 (Debian, Ubuntu:"
        " apt-get install g++; macOS: xcode-select --install; Windows: Visual Studio Build Tools),"
        f" then run: {_REBUILD}"
    )


def _check(path: pathlib.Path) -> None:
    try:
        version = ctypes.CDLL(os.fspath(path)).ocs_library_version
    except (OSError, AttributeError) as error:
        raise NativeLibraryError(
            f"the native library {path} cannot be loaded ({error}). Build it again for this"
            f" machine: {_REBUILD}"
        ) from error
    version.restype = ctypes.c_int32
    if version() != LIBRARY_VERSION:
        raise NativeLibraryError(
            f"the native library {path} is version {version()}, but this ocs_tf needs version"
            f" {LIBRARY_VERSION}. Build it again: {_REBUILD}"
        )
