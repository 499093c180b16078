"""What the command says of a machine."""

from __future__ import annotations

import importlib.metadata
import platform
import re

import pytest

import ocs_tf
from ocs_tf.cli import command as cli
from ocs_tf.cli import doctor
from ocs_tf.runtime import NativeLibraryError, library


def lines() -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in doctor.diagnosis().splitlines())
    return {name.strip(): text.strip() for name, text in pairs}


def test_every_line(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("ocs_tf ")
    found = lines()
    assert found["ocs_tf"] == ocs_tf.__version__
    assert found["Python"].startswith(platform.python_version())
    assert found["keras"] == importlib.metadata.version("keras")
    assert set(found) >= {"delegate", "channels_first", "cache"}


def test_a_missing_library(monkeypatch):
    """As where there was no compiler: what to install, and how to build the library then."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "FILE_NAME", "not_built.so")
    found = lines()
    assert "so packed files cannot be run: the native library not_built.so" in found["delegate"]
    for place in ("delegate", "delegate in ai-edge-litert", "delegate in tensorflow"):
        assert re.search(r"apt-get install g\+\+.*pip install .*--no-binary ocs_tf", found[place])
    assert found["delegate in tensorflow"].startswith("no: ")


@pytest.mark.parametrize(("computed", "text"), [(True, "computes it here"), (False, "cannot")])
def test_channels_first(monkeypatch, computed, text):
    monkeypatch.setattr(doctor, "is_computed", lambda *arguments: computed)
    monkeypatch.setattr(library, "_find", lambda: (_ for _ in ()).throw(NativeLibraryError("none")))
    assert text in lines()["channels_first"]


def test_packages_that_are_not_installed(monkeypatch):
    def missing(package: str) -> None:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    found = lines()
    assert found["keras"] == 'not installed: pip install "keras"'
    assert found["pillow"] == 'not installed: pip install "ocs_tf[images]"'
    assert found["scikit-learn"] == 'not installed: pip install "ocs_tf[demo]"'
