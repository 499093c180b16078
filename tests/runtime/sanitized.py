"""The library and its C++ tests with AddressSanitizer and UBSan, built by g++."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
HEADERS = CHECKOUT / "ocs_tf" / "runtime" / "cc"
SOURCES = sorted(HEADERS.glob("*.cc"))
TESTS = CHECKOUT / "tests" / "runtime" / "cc"
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",  # lines, which is all that stack traces show
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-pthread",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    f"-I{HEADERS}",
]
# To compile takes longer than to run.
PLAIN = {"delegate_test": "-O0"}


def missing() -> str:
    """What building needs and is not here; "" if nothing."""
    if shutil.which("g++") is None:
        return "needs g++"
    return "" if SOURCES else f"needs the sources of the library, in {HEADERS}"


def objects(folder: pathlib.Path) -> list[pathlib.Path]:
    """The library's object files."""

    def compile_one(source: pathlib.Path) -> pathlib.Path:
        output = folder / f"{source.stem}.o"
        _compile("-c", source, "-o", output)
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, SOURCES))


def library(folder: pathlib.Path, objects: list[pathlib.Path]) -> pathlib.Path:
    """The shared library; processes that load it need `environment()`."""
    output = folder / "libocs_delegate.so"
    _compile("-shared", *objects, "-o", output)
    return output


def program(name: str, folder: pathlib.Path, objects: list[pathlib.Path]) -> pathlib.Path:
    """A C++ test, by the name of its source without ".cc"; fuzzers get a main of their own."""
    output = folder / name
    _compile(
        PLAIN.get(name, "-O1"), "-DOCS_FUZZ_MAIN", TESTS / f"{name}.cc", *objects, "-o", output
    )
    return output


def environment() -> dict[str, str]:
    """For a program without sanitizers, such as Python, that loads the library."""
    # The second one is for the first to find what throws exceptions.
    libraries = [_output(f"-print-file-name={name}") for name in ("libasan.so", "libstdc++.so")]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python leaks
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _compile(*arguments: object) -> None:
    subprocess.run(["g++", *FLAGS, *map(str, arguments)], check=True)


def _output(argument: str) -> str:
    done = subprocess.run(["g++", argument], check=True, capture_output=True, text=True)
    return done.stdout.strip()
