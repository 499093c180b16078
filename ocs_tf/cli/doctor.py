"""What `ocs_tf` finds on this machine: versions, the delegate, what TensorFlow can compute."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
from collections.abc import Iterator

import ocs_tf
from ocs_tf.graph.analysis.layouts import is_computed
from ocs_tf.runtime import NativeLibraryError, compatibility, library_path, tflite

_PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer", "numpy", "scipy")
_EXTRAS = {
    "pillow": "images",
    "scikit-learn": "demo",
    "tf-keras": "keras2",
    "tflite-micro": "micro",
    "ethos-u-vela": "ethos-u",
}  # what a package is optional for
_RUNTIMES = {"ai_edge_litert": "ai-edge-litert", "tensorflow": "tensorflow"}


def diagnosis() -> str:
    """One line for each thing, with what is missing and what to do about it.

    Example:
        >>> print(ocs_tf.doctor.diagnosis())  # doctest: +SKIP
        ocs_tf             0.1.0
        Python             3.12.4, Linux x86_64
        tensorflow         2.21.0
        ...
    """
    lines = [
        ("ocs_tf", ocs_tf.__version__),
        ("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        *((package, _version(package)) for package in (*_PACKAGES, *_EXTRAS)),
        ("delegate", _delegate()),
        *_runtimes(),
        ("channels_first", _channels_first()),
        ("cache", _cache()),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        wanted = f"ocs_tf[{_EXTRAS[package]}]" if package in _EXTRAS else package
        return f'not installed: pip install "{wanted}"'


def _delegate() -> str:
    try:
        path = library_path()
        names = ctypes.CDLL(str(path)).ocs_instruction_sets
        names.restype = ctypes.c_char_p
        return f"{path} (instruction sets: {names().decode()})"
    except NativeLibraryError as error:
        return f"not usable, so packed files cannot be run: {error}"


def _runtimes() -> Iterator[tuple[str, str]]:
    """Whether the delegate works in each of the runtimes."""
    for runtime, package in _RUNTIMES.items():
        try:
            tflite.load_delegate(runtime)
        except ImportError:
            continue
        except NativeLibraryError as error:
            yield f"delegate in {package}", f"no: {error}"
        else:
            yield f"delegate in {package}", "works"


def _channels_first() -> str:
    if is_computed("conv", 2, False):
        return "TensorFlow computes it here"
    return (
        "TensorFlow cannot compute it here: set TF_ENABLE_ONEDNN_OPTS=1 before it is imported (on"
        " x86), or build models with data_format='channels_last'"
    )


def _cache() -> str:
    try:
        path = compatibility.cache_file()
    except RuntimeError as error:
        return f"none: {error}"
    return f"{path}{'' if path.exists() else ' (not there yet)'}"
