"""Finding the native library, and what is said of a wrong one."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

from ocs_tf.runtime import LIBRARY_VERSION, NativeLibraryError, library, library_path, load_library


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


def test_the_library_is_in_its_place_and_of_this_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(library.VARIABLE, raising=False)
    assert library_path().name == library.FILE_NAME
    assert load_library().ocs_library_version() == LIBRARY_VERSION


def test_the_package_folder_is_looked_in(empty_package: pathlib.Path) -> None:
    shutil.copy(empty_package, library._FOLDER / library.FILE_NAME)
    assert library_path() == library._FOLDER / library.FILE_NAME


@pytest.mark.usefixtures("empty_package")
def test_a_missing_library_says_what_to_install() -> None:
    with pytest.raises(
        NativeLibraryError, match=r"not_built.so is missing in .*apt-get install g\+\+.*pip install"
    ):
        library_path()
    with pytest.raises(NativeLibraryError, match="missing"):
        load_library()


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
