"""Paths that are none, folders, missing or too long: errors that name the argument."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf import tflite
from ocs_tf.paths import checked_path, existing_file, writable_file

LONG = "x" * 300
PLAN = ocs_tf.Plan(layers={})
NO_PATHS = [None, 3, b"p.json", "", "a\0b.json", ["p.json"], pathlib]


@pytest.fixture(scope="module")
def quantized() -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    return ocs_tf.convert(model, verbose=False)


@pytest.mark.parametrize("function", [checked_path, existing_file, writable_file])
@pytest.mark.parametrize("path", NO_PATHS)
def test_no_path(function: Callable[..., Any], path: Any) -> None:
    with pytest.raises(ValueError, match=r"`argument` \(=.*\) must be the path of a file"):
        function(path, "argument")


def test_a_path_of_any_form(tmp_path: pathlib.Path) -> None:
    """What has `__fspath__` is as good as a string."""

    class Path:
        def __fspath__(self) -> str:
            return str(tmp_path / "new")

    assert checked_path(str(tmp_path)) == tmp_path
    assert writable_file(Path()) == tmp_path / "new"
    (tmp_path / "new").touch()
    assert existing_file(Path()) == writable_file(Path()) == tmp_path / "new"


WRITERS: dict[str, Callable[[Any, keras.Model], Any]] = {
    "plan": lambda path, model: PLAN.save(path),
    "report": lambda path, model: ocs_tf.report(model).save(path),
    "export": lambda path, model: ocs_tf.export_tflite(model, path, target="float", verify=False),
}
READERS: dict[str, Callable[[Any, keras.Model], Any]] = {
    "plan": lambda path, model: ocs_tf.Plan.load(path),
    "tflite": lambda path, model: ocs_tf.TFLiteModel(path),
    "interpreter": lambda path, model: tflite.Interpreter(path),
}


@pytest.mark.parametrize("use", [*WRITERS.values(), *READERS.values()], ids=[*WRITERS, *READERS])
@pytest.mark.parametrize("path", [None, 3])
def test_none_everywhere(use: Callable[..., Any], path: Any, quantized: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"`path(_or_content)?` .*must be the path of a"):
        use(path, quantized)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_where_nothing_can_be_written(
    write: Callable[..., Any], quantized: keras.Model, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    for name, kind, message in (
        ("folder.json", IsADirectoryError, r"`path` .*folder.json is a folder; name a file in it"),
        ("no/new.json", FileNotFoundError, r"folder of `path` .*new.json does not exist"),
        ("file/new.json", OSError, r"`path` cannot be used: Not a directory"),
        (f"{LONG}.json", OSError, r"`path` cannot be used: File name too long"),
    ):
        with pytest.raises(kind, match=message):
            write(tmp_path / name, quantized)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.json"]


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_where_nothing_can_be_read(
    read: Callable[..., Any], quantized: keras.Model, tmp_path: pathlib.Path
) -> None:
    for path, kind, message in (
        (tmp_path, IsADirectoryError, r"`path(_or_content)?` .* is a folder; name a file in it"),
        (tmp_path / "no", FileNotFoundError, r"`path(_or_content)?` .*no does not exist"),
        (tmp_path / LONG, OSError, r"`path(_or_content)?` cannot be used: File name too long"),
    ):
        with pytest.raises(kind, match=message):
            read(path, quantized)


def test_a_folder_that_cannot_be_written_to(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"folder of `path` .*new cannot be written to"):
        writable_file(tmp_path / "new")
    assert writable_file("/dev/null") == pathlib.Path("/dev/null")


@pytest.mark.parametrize("position", ["reference", "other"])
def test_a_path_where_a_model_is_wanted(position: str, quantized: keras.Model) -> None:
    models = {"reference": quantized, "other": quantized, position: "model.tflite"}
    with pytest.raises(ValueError, match=rf"`{position}` must be a keras.Model or an .* a str; l"):
        ocs_tf.compare(**models, dataset=np.zeros((1, 4)))
