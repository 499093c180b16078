"""What an installation builds, with and without a compiler; what Bazel is told agrees with it."""

from __future__ import annotations

import ast
import ctypes
import email
import email.message
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator

import pytest

import ocs_tf
from ocs_tf.runtime import LIBRARY_VERSION, library
from tests.conftest import load_script

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
CC = pathlib.Path("ocs_tf", "runtime", "cc")
LIBRARY = f"ocs_tf/runtime/{library.FILE_NAME}"
NO_COMPILER = {"CC": "/nonexistent", "CXX": "/nonexistent"}
REQUIRED = {"OCS_TF_REQUIRE_NATIVE": "1"}
VERSION_FUNCTION = 'extern "C" __attribute__((visibility("default"))) int ocs_library_version()'


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of what is packaged, with a library that is built in no time."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder)
    ignored = shutil.ignore_patterns("*.cc", "libocs_delegate.*", "__pycache__")
    shutil.copytree(CHECKOUT / "ocs_tf", folder / "ocs_tf", ignore=ignored)
    (folder / CC / "small.cc").write_text(f"{VERSION_FUNCTION} {{ return 7; }}\n")
    return folder


def run_setup(
    folder: pathlib.Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `setup.py`; stderr is in stdout."""
    environment = {key: value for key, value in os.environ.items() if key not in REQUIRED}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=folder,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wheel_of(folder: pathlib.Path) -> zipfile.ZipFile:
    (path,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_library_and_suits_every_python(source: pathlib.Path) -> None:
    result = run_setup(source, "bdist_wheel", **REQUIRED)
    assert not result.returncode, result.stdout
    with wheel_of(source) as wheel:
        assert re.search(r"-py3-none-(?!any)\w+\.whl$", str(wheel.filename))
        assert "ocs_tf/runtime/self_test.py" in wheel.namelist()
        assert not [name for name in wheel.namelist() if name.endswith((".cc", ".h"))]
        built = ctypes.CDLL(wheel.extract(LIBRARY, source))
    assert built.ocs_library_version() == 7


def test_an_editable_installation_builds_in_place(source: pathlib.Path) -> None:
    result = run_setup(source, "build_ext", "--inplace", **REQUIRED)
    assert not result.returncode, result.stdout
    assert ctypes.CDLL(str(source / LIBRARY)).ocs_library_version() == 7


def test_without_a_compiler_all_else_is_installed(source: pathlib.Path) -> None:
    result = run_setup(source, "bdist_wheel", **NO_COMPILER)
    assert not result.returncode, result.stdout
    assert re.search(r'building extension "ocs_tf.runtime.libocs_delegate" failed', result.stdout)
    with wheel_of(source) as wheel:
        assert "ocs_tf/runtime/library.py" in wheel.namelist()
        assert LIBRARY not in wheel.namelist()


def test_an_error_of_the_compiler_does_not_end_the_installation(source: pathlib.Path) -> None:
    (source / CC / "small.cc").write_text("This is not C++.\n")
    result = run_setup(source, "build_ext", "--inplace")
    assert not result.returncode, result.stdout
    assert not (source / LIBRARY).exists()


@pytest.mark.parametrize("variables", [NO_COMPILER, {}], ids=["no compiler", "not C++"])
def test_the_library_may_be_required(source: pathlib.Path, variables: dict[str, str]) -> None:
    (source / CC / "small.cc").write_text("This is not C++.\n")
    result = run_setup(source, "build_ext", "--inplace", **variables, **REQUIRED)
    assert result.returncode
    assert "error: " in result.stdout


def unpacked_sdist(folder: pathlib.Path, into: pathlib.Path) -> pathlib.Path:
    """The folder in the source distribution that `setup.py` in `folder` makes."""
    result = run_setup(folder, "sdist")
    assert not result.returncode, result.stdout
    (path,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(into, filter="data")
    return into / path.name.removesuffix(".tar.gz")


def files_in(folder: pathlib.Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_source_distribution_holds_the_repository(tmp_path: pathlib.Path) -> None:
    """So that it can be tested, and the documentation made, from it; but nothing that was built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    names = [name for name in listed.stdout.split("\0") if (CHECKOUT / name).is_file()]
    if listed.returncode or "setup.py" not in names:
        pytest.skip("this is not a checkout of the repository")
    for name in (*names, LIBRARY, "tests/__pycache__/test_x.cpython-311.pyc", ".venv/pyvenv.cfg"):
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in names:
            shutil.copy(CHECKOUT / name, target)
        else:
            target.touch()
    found = files_in(unpacked_sdist(tmp_path / "source", tmp_path))
    made = {name for name in found if name.startswith("ocs_tf.egg-info/")} | {"PKG-INFO"}
    assert found.keys() - made - {"setup.cfg"} == set(names)


def test_the_wheel_of_a_source_distribution_is_that_of_the_checkout(
    source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copy(CHECKOUT / "MANIFEST.in", source)
    wheels = []
    for folder in (source, unpacked_sdist(source, tmp_path)):
        result = run_setup(folder, "bdist_wheel", **REQUIRED)
        assert not result.returncode, result.stdout
        with wheel_of(folder) as wheel:
            wheels.append({name: wheel.read(name) for name in wheel.namelist()})
    assert LIBRARY in wheels[0]
    assert wheels[1] == wheels[0]


@pytest.fixture
def dist_info(source: pathlib.Path) -> pathlib.Path:
    """The folder of what an installation knows of the package."""
    result = run_setup(source, "dist_info")
    assert not result.returncode, result.stdout
    (path,) = source.glob("*.dist-info")
    return path


def metadata(dist_info: pathlib.Path) -> email.message.Message:
    return email.message_from_string((dist_info / "METADATA").read_text("utf-8"))


def test_what_a_package_index_shows(dist_info: pathlib.Path) -> None:
    shown = metadata(dist_info)
    assert shown["License-Expression"] == "Apache-2.0"
    assert shown["Description-Content-Type"] == "text/markdown"
    assert shown.get_payload().strip() == (CHECKOUT / "README.md").read_text("utf-8").strip()
    assert (dist_info / "licenses" / "LICENSE").read_bytes() == (CHECKOUT / "LICENSE").read_bytes()
    versions = {
        text.rpartition(" ")[2]
        for text in shown.get_all("Classifier")
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", text)
    }
    assert set(shown["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    assert versions == {"3.10", "3.11", "3.12", "3.13"}
    needed = [text for text in shown.get_all("Requires-Dist") if "extra ==" not in text]
    assert [text for text in needed if ">=" not in text] == []


# Modules of the packages whose names differ.
MODULES = {"absl-py": "absl", "pillow": "PIL", "scikit-learn": "sklearn"}
# What parts of the package are optional for, each with an error message that names the extra:
# tests/cli/test_files.py, tests/cli/test_demo.py, tests/test_load.py,
# tests/runtime/test_micro.py.
OPTIONAL = {"PIL": "images", "sklearn": "demo", "tf_keras": "keras2", "tflite_micro": "micro"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level modules that code imports, but not for type checkers only."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        yield str(tree.module).partition(".")[0]
    for child in ast.iter_child_nodes(tree):
        yield from imported(child)


def test_what_is_imported_is_required_or_an_extra(dist_info: pathlib.Path) -> None:
    used = {
        name
        for path in (CHECKOUT / "ocs_tf").rglob("*.py")
        for name in imported(ast.parse(path.read_text("utf-8")))
    }
    named: dict[str, set[str]] = {}
    for text in metadata(dist_info).get_all("Requires-Dist"):
        package, extra = re.fullmatch(r"([\w-]+)[^;]*(?:;.*extra == \W(\w+)\W)?.*", text).groups()
        module = MODULES.get(package, package.replace("-", "_"))
        named.setdefault(module, set()).add(extra or "")
    others = used - {"ocs_tf", "__future__"} - set(sys.stdlib_module_names)
    assert {name for name in others if "" not in named.get(name, ())} == set(OPTIONAL)
    assert all(extra in named[name] for name, extra in OPTIONAL.items())
    assert {name for name, extras in named.items() if "" in extras} <= others


def test_mypy_knows_the_options(tmp_path: pathlib.Path) -> None:
    """Names and values that do not exist are errors before anything runs."""
    lines = {
        "ocs_tf.convert(model, weight_bits=4, rounding='nearest')": "",
        "ocs_tf.convert(model, weight_bitz=4)": 'Unexpected keyword argument "weight_bitz"',
        "ocs_tf.plan(model, rounding='up')": 'Argument "rounding" to "plan" has incompatible type',
        "ocs_tf.Config(granularity='axis')": 'Argument "granularity" to "Config" has incompatible',
        "ocs_tf.Config.paper(strict=1)": 'Argument "strict" to "paper" of "Config" has',
    }
    lines["ocs_tf.export_tflite(model, 'x.tflite', target='int2')"] = 'Argument "target" to'
    source = "\n".join(["from typing import Any", "import ocs_tf", "model: Any = None", *lines])
    (tmp_path / "uses.py").write_text(source)
    command = [sys.executable, "-m", "mypy", "--config-file", str(CHECKOUT / "pyproject.toml")]
    # Where an installed package is; mypy does not follow those that are installed to be edited.
    seen = os.environ | {"MYPYPATH": str(CHECKOUT)}
    found = subprocess.run(
        [*command, "uses.py"], cwd=tmp_path, env=seen, capture_output=True, text=True
    )
    for number, (line, message) in enumerate(lines.items(), 4):
        said = [text for text in found.stdout.splitlines() if text.startswith(f"uses.py:{number}:")]
        assert bool(said) == bool(message), (line, found.stdout, found.stderr)
        assert all(message in text for text in said if " error: " in text), said


def test_the_reference_is_built_without_warnings(tmp_path: pathlib.Path) -> None:
    """Every public name is on a page that pdoc makes of the docstrings."""
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    (found,) = re.findall(r"-m pdoc (.*?) -o \S+", makefile)
    command = [sys.executable, "-m", "pdoc", *found.split(), "-o", str(tmp_path)]
    allowed = os.environ | {"PDOC_ALLOW_EXEC": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=allowed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warn:" not in done.stderr, done.stderr  # as pdoc tells its warnings
    page = (tmp_path / "ocs_tf.html").read_text(encoding="utf-8")
    for name in ocs_tf.__all__:
        assert f'id="{name}"' in page or f"ocs_tf/{name}.html" in page, name


def test_changelog_and_citation_have_the_version() -> None:
    changes = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {ocs_tf.__version__}\n" in changes
    citation = (CHECKOUT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {ocs_tf.__version__}\n" in citation


def test_bazel_has_the_same_version() -> None:
    text = (CHECKOUT / "MODULE.bazel").read_text(encoding="utf-8")
    assert re.findall(r'^    version = "(.*)",$', text, re.MULTILINE) == [ocs_tf.__version__]


def test_bazel_and_the_library_of_microkernels_have_the_same_flags() -> None:
    flags = [
        re.findall(r'"(-.*)"', re.search(pattern, text, re.DOTALL)[1])
        for pattern, text in (
            (r'"unix": \[(.*?)\]', (CHECKOUT / "setup.py").read_text(encoding="utf-8")),
            (r"COPTS = \[(.*?)\]", (CHECKOUT / "BUILD").read_text(encoding="utf-8")),
        )
    ]
    assert [flag for flag in flags[0] if flag != "-g0"] == flags[1]
    assert flags[0] == load_script("tests/runtime/microkernel_library.py").FLAGS


def test_python_expects_the_version_of_the_sources() -> None:
    text = (CHECKOUT / CC / "exports.h").read_text(encoding="utf-8")
    assert re.findall(r"kLibraryVersion = (\d+);", text) == [str(LIBRARY_VERSION)]
