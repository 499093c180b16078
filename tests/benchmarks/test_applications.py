"""The benchmark of keras.applications, with a stand-in for what takes long."""

from __future__ import annotations

import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import layers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import applications
from benchmarks.applications import Row


def tiny(name: str = "tiny") -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(20, 3, name="conv")(inputs))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = keras.Model(inputs, layers.Dense(4, name="head")(x), name=name)
    applications.randomize(model)
    return model


def test_every_family_has_a_size_that_is_measured():
    """A new family shows here: choose its smallest size, or it is measured with all sizes."""
    families = {applications.family(name) for name in applications.networks()}
    assert {applications.family(name) for name in applications.SMALL} == families
    assert set(applications.chosen("all", [])) == set(applications.networks())


def test_unknown_network_is_named():
    with pytest.raises(ValueError, match=r"keras.applications has no 'LeNet', but ConvNeXtBase"):
        applications.chosen("one", ["LeNet"])


def test_batch_norms_normalize_what_goes_into_them():
    model = tiny()
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    before = keras.Model(model.inputs, model.get_layer("conv").output)
    images = applications.pictures(model, applications.NORMALIZING, seed=1)
    values = np.asarray(before.predict_on_batch(images)).reshape(-1, 20)
    np.testing.assert_allclose(norm.moving_mean, values.mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, values.var(0), rtol=1e-3)
    assert norm.momentum == layers.BatchNormalization().momentum


def test_split_channels_change_nothing(rng: np.random.Generator):
    model = tiny()
    split = applications.split_only(model)
    # One channel more for each begun 5 %, in kernels and in front of them.
    assert split.get_layer("conv").kernel.shape == (3, 3, 3 + 1, 20)
    assert split.get_layer("head").kernel.shape == (20 + 1, 4)
    images = applications.pictures(model, 4, seed=0)
    np.testing.assert_allclose(split(images), model(images), rtol=1e-4, atol=1e-5)


def test_all_steps_with_a_small_network(tmp_path: pathlib.Path):
    fields = {}
    model = tiny()
    applications.measure(model, lambda **values: fields.update(values), tmp_path)
    row = Row("tiny", **fields)
    assert row.error is None
    assert (row.quantized, row.left_float) == (2, 0)
    assert row.split_difference < 1e-4
    assert row.reload_difference == 0
    assert set(row.steps) == set(applications.RUNTIMES)
    assert max(row.steps.values()) <= 1
    assert min(row.sqnr, row.file_sqnr) > 20
    assert row.float_operators == []
    assert min(row.float_size, row.keras_size, row.file_size) > 724  # parameters


def test_a_step_that_fails_does_not_stop_the_others(tmp_path: pathlib.Path, monkeypatch):
    def fail(*_):
        raise RuntimeError("not today\nat all")

    monkeypatch.setattr(applications, "reloaded", fail)
    noted = []
    applications.measure(tiny(), lambda **values: noted.append(values), tmp_path)
    assert {"error": "save and load: RuntimeError: not today"} in noted
    assert any("steps" in values for values in noted)


def test_a_process_that_dies_is_a_row(monkeypatch):
    monkeypatch.setattr(applications, "_WORK", "import os; os.abort()")
    row = applications.measured_apart("VGG16")
    assert row == Row("VGG16", error="the process ended with -6")


def test_results_are_kept_but_for_failures(tmp_path: pathlib.Path):
    failing = {"b"}

    def measured(name: str) -> Row:
        calls.append(name)
        return Row(name, error="no luck" if name in failing else None)

    calls: list[str] = []
    applications.benchmark(tmp_path, ["a", "b"], measured)
    assert "- b: no luck" in (tmp_path / "applications.md").read_text()
    failing.clear()
    applications.benchmark(tmp_path, ["a", "b"], measured)
    assert calls == ["a", "b", "b"]
    assert "no luck" not in (tmp_path / "applications.md").read_text()
    assert len(json.loads((tmp_path / "applications.json").read_text())["rows"]) == 2


def test_first_line():
    assert applications.first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert applications.first_line(KeyError()) == "KeyError: "
