"""Finding the native library, and what is said of a wrong one."""

from __future__ import annotations

import ctypes
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import pytest

from ocs_tf.runtime import LIBRARY_VERSION, NativeLibraryError, library, library_path


@pytest.fixture
def empty_package(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """The real library's path; the package is as if no library had been built."""
    real = library_path()
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    monkeypatch.setattr(library, "FILE_NAME", "not_built.so")
    return real


def compile_library(path: pathlib.Path, source: str) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    command = [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)


def exported_symbols(path: pathlib.Path) -> set[str]:
    """What a library for 64-bit Linux (ELF) offers to others, without what the compiler adds.

    Templates of the C++ library are among the latter: it declares them visible.
    """
    content = path.read_bytes()
    assert content[:5] == b"\x7fELF\x02"
    start, size, count = struct.unpack_from("=40xQ10xHH", content)
    # (type, offset, size, index of the section of names) of each section.
    sections = [
        struct.unpack_from("=4xI16xQQI", content, at)
        for at in range(start, start + size * count, size)
    ]
    ((_, offset, size, link),) = [section for section in sections if section[0] == 11]  # DYNSYM
    names = set()
    for at in range(offset, offset + size, 24):
        name, info, visibility, section = struct.unpack_from("=IBBH", content, at)
        is_local, is_defined = info >> 4 == 0, section != 0
        if is_defined and not is_local and visibility & 3 == 0:
            text = content[sections[link][1] + name :]
            names.add(text[: text.index(b"\0")].decode())
    return {name for name in names if not name.startswith("_") or "3ocs" in name}


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads libraries of Linux")


@on_linux
def test_only_what_others_look_for_is_exported() -> None:
    assert exported_symbols(library_path()) == {
        "ocs_instruction_sets",
        "ocs_library_version",
        "tflite_plugin_create_delegate",
        "tflite_plugin_destroy_delegate",
    }


@on_linux
def test_whatever_else_was_exported_would_be_seen(tmp_path: pathlib.Path) -> None:
    source = """
        #include <vector>
        extern "C" int ocs_other() { return 1; }
        namespace ocs { int Other(std::vector<int>* x) { x->resize(9); return 2; } }
        extern "C" __attribute__((visibility("hidden"))) int ocs_hidden() { return 3; }
        static int ocs_local() { return 4; }
        int (*used)() = ocs_local;
    """
    compile_library(tmp_path / "other.so", source)
    mangled = "_ZN3ocs5OtherEPSt6vectorIiSaIiEE"
    assert exported_symbols(tmp_path / "other.so") == {"ocs_other", mangled, "used"}


def test_the_library_is_in_its_place_and_of_this_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(library.VARIABLE, raising=False)
    assert library_path().name == library.FILE_NAME
    assert ctypes.CDLL(str(library_path())).ocs_library_version() == LIBRARY_VERSION


def test_the_package_folder_is_looked_in(empty_package: pathlib.Path) -> None:
    shutil.copy(empty_package, library._FOLDER / library.FILE_NAME)
    assert library_path() == library._FOLDER / library.FILE_NAME


@pytest.mark.usefixtures("empty_package")
def test_a_missing_library_says_what_to_install() -> None:
    with pytest.raises(
        NativeLibraryError, match=r"not_built.so is missing in .*apt-get install g\+\+.*pip install"
    ):
        library_path()


def test_the_runfiles_of_bazel_are_looked_in(
    empty_package: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "program.runfiles" / "_main" / "ocs_tf" / "runtime"
    folder.mkdir(parents=True)
    shutil.copy(empty_package, folder / library.FILE_NAME)
    monkeypatch.syspath_prepend(tmp_path / "program.runfiles" / "_main")
    assert library_path() == folder / library.FILE_NAME


def test_the_environment_variable_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other.so"
    shutil.copy(library_path(), other)
    monkeypatch.setenv(library.VARIABLE, str(other))
    assert library_path() == other
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(library.VARIABLE, "other.so")
    assert library_path() == other


def test_the_environment_variable_must_name_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv(library.VARIABLE, str(tmp_path))
    with pytest.raises(NativeLibraryError, match=r"OCS_TF_LIBRARY names .* which is not a file"):
        library_path()


def test_what_is_not_a_library_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    text = tmp_path / "text.so"
    text.write_text("This is not a library.", encoding="utf-8")
    monkeypatch.setenv(library.VARIABLE, str(text))
    with pytest.raises(NativeLibraryError, match=r"text.so cannot be loaded .*Build it again"):
        library_path()


def test_a_library_of_others_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    compile_library(tmp_path / "other.so", "int other;")
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "other.so"))
    with pytest.raises(NativeLibraryError, match=r"cannot be loaded .*ocs_library_version"):
        library_path()


@pytest.mark.parametrize("version", [LIBRARY_VERSION - 1, LIBRARY_VERSION + 1])
def test_another_version_is_refused(
    version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    source = f'extern "C" int ocs_library_version() {{ return {version}; }}'
    compile_library(tmp_path / "other.so", source)
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "other.so"))
    message = f"is version {version}, but this ocs_tf needs version {LIBRARY_VERSION}"
    with pytest.raises(NativeLibraryError, match=message):
        library_path()
