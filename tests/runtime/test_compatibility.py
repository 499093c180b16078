"""Which runtimes are trusted, and the self-test of those that are not."""

from __future__ import annotations

import json
import pathlib
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest
from ai_edge_litert import schema_py_generated as schema

from ocs_tf.runtime import NativeLibraryError, compatibility, library_path, self_test

RUNTIMES = ["ai_edge_litert", "tensorflow"]
UNTESTED = "99.0"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """The file that remembers, in an empty folder of its own."""
    monkeypatch.setattr(compatibility.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ocs_tf" / "runtimes.json"


@pytest.fixture
def count_tests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the self-test by one that passes, and lists the runtimes it was asked about."""
    asked: list[str] = []

    def passed(runtime: str, library: pathlib.Path) -> None:
        asked.append(runtime)

    monkeypatch.setattr(compatibility, "self_test", passed)
    return asked


def forbid_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        pytest.fail("a self-test was started")

    monkeypatch.setattr(compatibility.subprocess, "run", fail)


def script(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, source: str) -> None:
    """Let `source` be the self-test."""
    path = tmp_path / "script.py"
    path.write_text(source, encoding="utf-8")
    monkeypatch.setattr(compatibility, "_SELF_TEST", path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_tested_version_is_trusted(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "TESTED_PLATFORM", (platform.system(), platform.machine()))
    forbid_self_test(monkeypatch)
    for version in compatibility.TESTED[runtime]:
        compatibility.check_runtime(runtime, version, library_path())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_untested_version_is_tested_once(
    runtime: str, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compatibility.check_runtime(runtime, UNTESTED, library_path())
    assert f"{runtime} {UNTESTED} " in cache.read_text(encoding="utf-8")
    forbid_self_test(monkeypatch)
    compatibility.check_runtime(runtime, UNTESTED, library_path())


def test_another_platform_is_tested(
    count_tests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compatibility, "TESTED_PLATFORM", ("Plan 9", "vax"))
    version = compatibility.TESTED["tensorflow"][0]
    compatibility.check_runtime("tensorflow", version, library_path())
    assert count_tests == ["tensorflow"]


def test_each_runtime_version_and_library_is_tested(
    count_tests: list[str], tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other.so"
    shutil.copy(library_path(), other)
    with other.open("ab") as file:
        file.write(b"\0")
    for _ in range(2):
        compatibility.check_runtime("tensorflow", UNTESTED, library_path())
        compatibility.check_runtime("ai_edge_litert", UNTESTED, library_path())
        compatibility.check_runtime("tensorflow", "99.1", library_path())
        compatibility.check_runtime("tensorflow", "99.1", other)
    assert count_tests == ["tensorflow", "ai_edge_litert", "tensorflow", "tensorflow"]


def test_a_failure_names_versions_and_is_not_remembered(
    cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    text = tmp_path / "text.so"
    text.write_text("This is not a library.", encoding="utf-8")
    tested = ", ".join(compatibility.TESTED["ai_edge_litert"])
    with pytest.raises(NativeLibraryError) as caught:
        compatibility.check_runtime("ai_edge_litert", UNTESTED, text)
    message = str(caught.value)
    assert f"{text} does not work with ai_edge_litert {UNTESTED}" in message
    assert "its self-test ended with exit code 1: OSError" in message
    assert f"It was tested with {tested} on Linux x86_64" in message
    assert "pip install ai-edge-litert==" in message
    assert not cache.exists()


def test_a_crash_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    script(monkeypatch, tmp_path, "import os\nos.abort()\n")
    with pytest.raises(NativeLibraryError, match=r"tensorflow 99.0: its self-test ended with exit"):
        compatibility.check_runtime("tensorflow", UNTESTED, library_path())


def test_a_self_test_without_end_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    script(monkeypatch, tmp_path, "import time\ntime.sleep(60)\n")
    monkeypatch.setattr(compatibility, "_SECONDS", 0.1)
    with pytest.raises(NativeLibraryError, match=r"its self-test did not run \(.*timed out"):
        compatibility.check_runtime("tensorflow", UNTESTED, library_path())


def test_the_self_test_finds_what_this_process_finds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "only_there.py").touch()
    monkeypatch.syspath_prepend(folder)
    script(monkeypatch, tmp_path, "import only_there\n")
    assert compatibility.self_test("tensorflow", library_path()) is None


def test_wrong_numbers_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    content = self_test.model(schema)
    monkeypatch.setattr(self_test, "model", lambda schema: content)
    self_test.main("ai_edge_litert", str(library_path()))
    monkeypatch.setattr(self_test, "ROW_SCALES", 2 * self_test.ROW_SCALES)
    with pytest.raises(RuntimeError, match=r"the outputs are .* instead of"):
        self_test.main("ai_edge_litert", str(library_path()))


def test_the_self_test_does_without_ocs_tf(tmp_path: pathlib.Path) -> None:
    """Importing ocs_tf would import TensorFlow."""
    source = (
        f"import sys; sys.path.insert(0, {str(compatibility._SELF_TEST.parent)!r});"
        " import self_test;"
        f" self_test.main('ai_edge_litert', {str(library_path())!r});"
        " assert not {'ocs_tf', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", source], check=True, cwd=tmp_path)


def test_a_folder_that_cannot_be_written_is_no_error(
    count_tests: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        compatibility.check_runtime("tensorflow", UNTESTED, library_path())
    assert len(count_tests) == 2


def test_a_user_without_a_home_is_no_error(
    count_tests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compatibility.pathlib.Path, "home", no_home)
    compatibility.check_runtime("tensorflow", UNTESTED, library_path())
    assert count_tests == ["tensorflow"]


@pytest.mark.parametrize("content", [b"", b"[", b"{}", b"3", b"\xff\xfe", b"[1, null]"])
def test_a_damaged_file_is_written_anew(
    content: bytes, cache: pathlib.Path, count_tests: list[str]
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    for _ in range(2):
        compatibility.check_runtime("tensorflow", UNTESTED, library_path())
    assert count_tests == ["tensorflow"]


def test_concurrent_writers_leave_a_whole_file(cache: pathlib.Path, count_tests: list[str]) -> None:
    library = library_path()

    def check(number: int) -> None:
        compatibility.check_runtime("tensorflow", f"99.{number}", library)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(64)))
    keys = json.loads(cache.read_text(encoding="utf-8"))
    versions = {key.split()[1] for key in keys}
    assert versions <= {f"99.{number}" for number in range(64)}
    assert versions
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/there"}, "/there/ocs_tf"),
        ("linux", {}, "/home/me/.cache/ocs_tf"),
        ("darwin", {}, "/home/me/Library/Caches/ocs_tf"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/ocs_tf"),
        ("win32", {}, "/home/me/AppData/Local/ocs_tf"),
    ],
    ids=["XDG", "Linux", "macOS", "Windows", "Windows without LOCALAPPDATA"],
)
def test_the_cache_folder_is_the_platforms(
    system: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(compatibility.sys, "platform", system)
    monkeypatch.setattr(compatibility.pathlib.Path, "home", lambda: pathlib.Path("/home/me"))
    assert compatibility.cache_file() == pathlib.Path(expected) / "runtimes.json"
