"""The C++ tests, and a while of fuzzing, with AddressSanitizer and UBSan.

`OCS_TF_FUZZ_SECONDS` is how long each of the two fuzzers runs; `make fuzz` runs them for longer.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import sanitized

pytestmark = pytest.mark.skipif(bool(sanitized.missing()), reason=sanitized.missing())
SECONDS = os.environ.get("OCS_TF_FUZZ_SECONDS", "20")
SEED = "0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("sanitized")


@pytest.fixture(scope="module")
def objects(folder: pathlib.Path) -> list[pathlib.Path]:
    return sanitized.objects(folder)


def check(*command: object) -> None:
    """Runs a command; fails with what it prints."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["microkernels_test", "delegate_test"])
def test_program(name: str, folder: pathlib.Path, objects: list[pathlib.Path]) -> None:
    check(sanitized.program(name, folder, objects))


def test_fuzzed_operators(folder: pathlib.Path, objects: list[pathlib.Path]) -> None:
    check(sanitized.program("fuzz_ops", folder, objects), SECONDS, SEED)


def test_fuzzed_files(folder: pathlib.Path, objects: list[pathlib.Path]) -> None:
    library = sanitized.library(folder, objects)
    script = pathlib.Path(__file__).parent / "fuzz_files.py"
    options = ["--seconds", SECONDS, "--seed", SEED, "--library", library, "--sanitized"]
    check(sys.executable, script, *options)
