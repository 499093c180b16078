"""Layers are registered behind Keras. `test_imports` loads saved models, in new Pythons."""

from __future__ import annotations

import importlib
import pathlib
import sys
import types

import pytest

from ocs_tf import _registration


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the modules that are imported by name; they are not really."""
    names: list[str] = []
    fake = types.SimpleNamespace(**vars(importlib) | {"import_module": names.append})
    monkeypatch.setattr(_registration, "importlib", fake)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    return names


def test_at_once_if_keras_is_there(imported: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", types.ModuleType("keras"))
    finders = [*sys.meta_path]
    _registration.register_layers()
    assert imported == ["ocs_tf.layers"]
    assert sys.meta_path == finders


def test_when_keras_is_imported(
    imported: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "keras.py").write_text("import sys; value = 'of keras'\n")
    (tmp_path / "another.py").write_text("value = 'of another'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delitem(sys.modules, "another", raising=False)
    finders = [*sys.meta_path]
    _registration.register_layers()
    assert __import__("another").value == "of another"
    assert not imported
    assert sys.meta_path[1:] == finders
    assert __import__("keras").value == "of keras"
    assert imported == ["ocs_tf.layers"]
    assert sys.meta_path == finders


def test_without_keras(imported: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "keras")
    _registration.register_layers()
    monkeypatch.setattr(sys, "path", [])  # nothing is found
    with pytest.raises(ModuleNotFoundError, match="No module named 'keras'"):
        __import__("keras")
    assert not imported
