"""The C++ microkernels as a library of their own, by name, for tests and benchmarks.

The library of the package does not export them. This one is compiled by the C++ compiler (`CXX`, or
`c++`) into `dist/native`, and again once the sources have changed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

CHECKOUT = pathlib.Path(__file__).absolute().parents[2]
CC = CHECKOUT / "ocs_tf" / "runtime" / "cc"
C_API = CHECKOUT / "tests" / "runtime" / "cc" / "microkernels_c_api.cc"
FOLDER = CHECKOUT / "dist" / "native" / "microkernels"
# As in setup.py: what is measured and tested is what is shipped.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
]


def missing() -> str:
    """What building needs and is not here; "" if nothing."""
    if _compiler() is None:
        return "needs a C++ compiler (Debian, Ubuntu: apt-get install g++), or CXX to name one"
    return "" if _sources() else f"needs the sources of the library, in {CC}"


def build() -> pathlib.Path:
    """The library's file; compiling takes half a minute.

    Raises:
        RuntimeError: there is no compiler, or no source.
        subprocess.CalledProcessError: the compiler failed.
    """
    if missing():
        raise RuntimeError(f"the library of microkernels {missing()}.")
    digest = hashlib.sha256(repr([_compiler(), *FLAGS]).encode())
    for path in [*sorted(CC.glob("*.h")), *_sources()]:
        digest.update(path.read_bytes())
    library = FOLDER / f"{digest.hexdigest()[:16]}.so"
    if not library.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            output = pathlib.Path(folder, library.name)
            command = [_compiler(), *FLAGS, "-fPIC", "-shared", f"-I{CC}", *_sources()]
            subprocess.run([*map(str, command), "-o", output], check=True)
            output.replace(library)  # as a whole: another process may have the same in mind
    return library


@functools.cache
def load() -> ctypes.CDLL:
    """The library, built and loaded; errors are those of `build`."""
    library = ctypes.CDLL(os.fspath(build()))
    library.ocs_instruction_sets.restype = ctypes.c_char_p
    return library


def instruction_sets() -> list[str]:
    """Those that this processor runs, slowest first."""
    names: bytes = load().ocs_instruction_sets()
    return names.decode().split()


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def _sources() -> list[pathlib.Path]:
    own = sorted(CC.glob("microkernels*.cc"))
    return [*own, C_API] if own else []
