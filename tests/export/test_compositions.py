"""Layers of several operators, of which some are written by us, in integers or in float."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf._compare import compare
from ocs_tf.export import flatbuffer as fb
from ocs_tf.runtime.model import TFLiteModel


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Layers beside each other in one file: its result, the Keras model, its data."""
    x, wide = keras.Input((4, 6), name="x"), keras.Input((4, 6), name="wide")
    kernel = layers.Dense(8)(x)
    outputs = [
        layers.LayerNormalization(name="norm")(kernel),
        layers.GroupNormalization(2, name="group")(kernel),
        layers.LayerNormalization(name="coarse")(layers.Dense(8)(wide)),
    ]
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 60, 4, 6)).astype("float32")
    # Variances that no grid of 8 bits holds.
    second *= np.float32([0.01, 1, 100, 1])[:, np.newaxis]
    data = {"x": first, "wide": second}
    model = keras.Model([x, wide], outputs)
    quantized = ocs_tf.convert(model, representative_dataset=data, activation_bits=8, verbose=False)
    path = tmp_path_factory.mktemp("compositions") / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    return result, quantized, data


def test_what_8_bits_are_enough_for_is_in_integers(exported):
    result, quantized, data = exported
    (note,) = result.notes
    assert note.startswith(
        "1 layer is computed in float, since 8 bits inside leave less than 30 dB: coarse ("
    )
    closeness = {c.name: c for c in compare(quantized, TFLiteModel(result.path), data)}
    assert all(c.sqnr_db >= 30 for c in closeness.values())
    model = fb.read(result.path.read_bytes())
    graph = model.subgraphs[0]
    kinds = {
        fb.op_name(model, op)
        for op in graph.operators
        if any(fb.type_name(graph.tensors[i]) == "int8" for i in op.outputs)
    }
    assert {"RSQRT", "SQUARED_DIFFERENCE"} <= kinds


def test_the_largest_of_scores_is_looked_up(tmp_path):
    """The last operator of a composition is a lookup, whose own file has no signature."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype("float32")
    inputs = keras.Input((5,))
    scores = layers.Dense(300, name="scores")(inputs)
    rows = layers.Embedding(300, 8, name="table")(keras.ops.argmax(scores, -1))
    model = keras.Model(inputs, [layers.Dense(3, name="row")(rows), scores])
    quantized = ocs_tf.convert(model, representative_dataset=x, activation_bits=8, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=x)
    for close in compare(quantized, TFLiteModel(path), x):
        assert close.max_difference <= 1e-6


def test_what_they_are_too_few_for_is_as_in_keras(exported):
    result, quantized, data = exported
    *_, coarse = compare(quantized, TFLiteModel(result.path), data)
    assert coarse.max_difference <= 1.01 * quantized.get_layer("coarse").grid.scale


def test_without_data_they_are_in_float(exported, tmp_path):
    _, quantized, _ = exported
    result = ocs_tf.export_tflite(quantized, tmp_path / "model.tflite")
    reason = "ranges inside are not known (pass representative_dataset)"
    (note,) = result.notes
    start = f"3 layers are computed in float, since {reason}: "
    names = note.removeprefix(start).rstrip(".").split(", ")
    assert set(names) == {"norm", "group", "coarse"}
