"""What the command says of a machine."""

from __future__ import annotations

import importlib.metadata
import platform

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
    def missing() -> None:
        raise NativeLibraryError("the native library is missing")

    monkeypatch.setattr(library, "_find", missing)
    found = lines()
    assert "packed files cannot be run: the native library is missing" in found["delegate"]
    assert found["delegate in tensorflow"] == "no: the native library is missing"


@pytest.mark.parametrize(("computed", "text"), [(True, "computes it here"), (False, "cannot")])
def test_channels_first(monkeypatch, computed, text):
    monkeypatch.setattr(doctor, "is_computed", lambda *arguments: computed)
    monkeypatch.setattr(library, "_find", lambda: (_ for _ in ()).throw(NativeLibraryError("none")))
    assert text in lines()["channels_first"]


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("a package that nobody has",))
    assert {n.strip(): t for n, t in lines().items()}[
        "a package that nobody has"
    ] == "not installed"
