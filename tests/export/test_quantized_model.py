"""What an int8 file cannot hold is refused before any work, with a remedy that works."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export.quantized_model import activation_grids, has_grids
from tests.export.networks import (
    quantized_model,
)


@pytest.mark.parametrize("bits", [2, 4, 7, 16])
def test_activations_that_int8_cannot_hold_are_refused(bits, tmp_path):
    model = quantized_model(activation_bits=bits)
    with pytest.raises(ValueError, match=f"{bits}-bit activations.*activation_bits=8.*'packed'"):
        ocs_tf.export_tflite(model, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def two_layers(scale: float, key: str) -> keras.Model:
    """A quantized model of which one grid has steps of `scale`."""
    model = keras.Sequential(
        [keras.Input((4,), name="in"), layers.Dense(3, name="first"), layers.Dense(2, name="last")]
    )
    options = {"rounding": "nearest", "bias_correction": False, "verbose": False}
    data = np.eye(4, dtype=np.float32)
    plan = ocs_tf.plan(model, representative_dataset=data, **options)
    grid = dataclasses.replace(plan.activations[key], scale=scale)
    edited = dataclasses.replace(plan, activations={**plan.activations, key: grid})
    return ocs_tf.apply(model, edited, verbose=False)


@pytest.mark.parametrize("key", ["in", "first", "last"])
def test_steps_that_int8_cannot_hold_are_refused(key, tmp_path):
    """Activations around 1e-28 and less."""
    model, path = two_layers(1e-30, key), tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=rf"layer '{key}.*' has steps of 1e-30.*'packed'"):
        ocs_tf.export_tflite(model, path)
    ocs_tf.export_tflite(model, path, target="packed")  # the remedy


@pytest.mark.parametrize(("scale", "key"), [(1e-10, "last"), (1e30, "in")])
def test_factors_that_runtimes_refuse_are_named(scale, key, tmp_path):
    model, path = two_layers(scale, key), tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=r"layer '(first|last)': one product .* less than 256"):
        ocs_tf.export_tflite(model, path)
    ocs_tf.export_tflite(model, path, target="packed")  # the remedy


def test_grids_by_layer() -> None:
    grids = dict(activation_grids(two_layers(0.25, "first")))
    assert set(grids) == {"in_quantizer", "first", "last"}
    assert grids["first"].scale == 0.25
    assert has_grids(two_layers(0.25, "first"))
    assert not has_grids(quantized_model(activation_bits=None))
