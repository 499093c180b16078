"""Compatibility of TFLite runtimes with the delegate: the structures they share have no version.

A runtime of another layout would crash the process. So the versions that were tested are listed
here; another one has to pass `self_test.py` in a process of its own before it is used in this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import platform
import subprocess
import sys

from ocs_tf.runtime.library import NativeLibraryError
from ocs_tf.writing import write

# Versions that passed the self-test on TESTED_PLATFORM.
TESTED: dict[str, tuple[str, ...]] = {
    "ai_edge_litert": (
        *("2.0.2", "2.0.3"),
        *("2.1.0", "2.1.1", "2.1.2", "2.1.3", "2.1.4", "2.1.5", "2.1.6"),
        *("2.2.0", "2.3.0"),
    ),
    "tensorflow": (
        *("2.17.0", "2.17.1", "2.18.0", "2.18.1", "2.19.0", "2.19.1"),
        *("2.20.0", "2.21.0"),
    ),
}
TESTED_PLATFORM = ("Linux", "x86_64")

_SELF_TEST = pathlib.Path(__file__).with_name("self_test.py")
_SECONDS = 300


def check_runtime(runtime: str, version: str, library: pathlib.Path) -> None:
    """Make sure that `library` works with a runtime, before it is used in this process.

    An untested version is tested in a process of its own, which takes some seconds, once: a
    success is remembered in the user's cache folder.

    Arguments:
        runtime: `"ai_edge_litert"` or `"tensorflow"`.
        version: of the runtime.
        library: the native library.

    Raises:
        NativeLibraryError: the self-test failed.
    """
    if version in TESTED[runtime] and (platform.system(), platform.machine()) == TESTED_PLATFORM:
        return
    key = " ".join(
        (
            runtime,
            version,
            platform.system(),
            platform.machine(),
            hashlib.sha256(library.read_bytes()).hexdigest(),
        )
    )
    if key in _passed():
        return
    failure = self_test(runtime, library)
    if failure:
        raise NativeLibraryError(
            f"the native library {library} does not work with {runtime} {version}: {failure}. It"
            f" was tested with {', '.join(TESTED[runtime])} on {' '.join(TESTED_PLATFORM)};"
            f" install one of these: pip install"
            f" {runtime.replace('_', '-')}=={TESTED[runtime][-1]}"
        )
    _remember(key)


def self_test(runtime: str, library: pathlib.Path) -> str | None:
    """Run a tiny model in a process of its own; `None`, or what went wrong.

    Arguments:
        runtime: `"ai_edge_litert"` or `"tensorflow"`; the one that this process would import.
        library: the native library.
    """
    command = [sys.executable, os.fspath(_SELF_TEST), runtime, os.fspath(library)]
    try:
        process = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its self-test did not run ({error})"
    if not process.returncode:
        return None
    said = (process.stdout or process.stderr).strip().splitlines()[-1:]
    return ": ".join([f"its self-test ended with exit code {process.returncode}", *said])


def cache_file() -> pathlib.Path:
    """Where passed self-tests are remembered.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if sys.platform == "win32":
        folder = os.environ.get("LOCALAPPDATA") or pathlib.Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        folder = pathlib.Path.home() / "Library" / "Caches"
    else:
        folder = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(folder) / "ocs_tf" / "runtimes.json"


def _passed() -> list[str]:
    """What `_remember` kept; nothing where the file is missing or is not ours."""
    try:
        keys = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):
        return []
    return keys if isinstance(keys, list) else []


def _remember(key: str) -> None:
    """Keep `key`; two processes at once may lose one of their keys, which costs one more test."""
    try:
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps([*_passed(), key], indent=1))
    except (OSError, RuntimeError):
        pass  # it is tested again next time
