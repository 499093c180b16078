"""The benchmark of keras-hub's backbones, with one of our own in their place."""

from __future__ import annotations

import pathlib
import sys

import keras

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import backbones, steps
from tests.own_layers import SHAPE, Block


def test_steps_and_errors_are_told(monkeypatch, tmp_path):
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, Block(name="own")(inputs))
    monkeypatch.setattr(backbones, "model_of", lambda name: model)
    (row,) = backbones.benchmark(tmp_path, quick=True)
    assert (row.kernels, row.in_place) == (2, 0)
    assert float(row.both.removesuffix(" dB")) > 20
    assert row.reloaded == "0"
    assert all(text.endswith(" dB") for text in (row.weights, row.packed, row.int8))
    assert "| ViT | 2 | 0 |" in (tmp_path / "backbones_quick.md").read_text()


def test_a_step_that_fails_is_told():
    assert steps._tried(lambda: {}["absent"]) == "'absent'"
