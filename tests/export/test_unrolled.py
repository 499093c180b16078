"""Ranges inside of unrolled loops."""

from __future__ import annotations

import pathlib
import re
import types
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import unrolled

LENGTH, ROWS = 6, 20
NOTHING: Any = types.SimpleNamespace(
    subgraphs=[types.SimpleNamespace(tensors=[], operators=[])]
)  # a file without operators


def ids(rng: np.random.Generator, longest: int) -> np.ndarray:
    """Sentences of 2 to `longest` words."""
    found = rng.integers(1, ROWS, (120, LENGTH)).astype("int32")
    for sentence in found:
        sentence[rng.integers(2, longest + 1) :] = 0
    return found


def stack(first: type, second: type, **options: Any) -> keras.Model:
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(ROWS, 4, mask_zero=True)(inputs)
    x = first(5, return_sequences=True, name="first", **options)(x)
    return with_weights(keras.Model(inputs, layers.Dense(3)(second(4, name="second")(x))))


def with_weights(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.7, w.shape) for w in model.get_weights()])
    return model


def export(model: keras.Model, path: pathlib.Path, data: np.ndarray) -> ocs_tf.ExportResult:
    return ocs_tf.export_tflite(model, path / "m.tflite", representative_dataset=data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [(layers.LSTM, layers.GRU), (layers.SimpleRNN, layers.SimpleRNN)],
    ids=["LSTM-GRU", "SimpleRNN"],
)
def test_sequences_longer_than_those_of_the_data(
    first: type, second: type, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    """Steps that are padding in all calibration data had ranges of next to nothing: 6 dB."""
    short, long = ids(rng, 4), ids(rng, LENGTH)
    quantized = ocs_tf.convert(stack(first, second), representative_dataset=short, verbose=False)
    export(quantized, tmp_path, short)
    file = ocs_tf.TFLiteModel(tmp_path / "m.tflite")
    (seen,), (close,) = (ocs_tf.compare(quantized, file, data) for data in (short, long))
    assert close.sqnr_db > max(20, seen.sqnr_db - 6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"go_backwards": True}], ids=["forward", "backward"])
def test_a_stack_is_in_integers(
    options: dict[str, Any], tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    """The grid between two layers stood under the name of a barrier: both were in float32."""
    data = ids(rng, LENGTH)
    model = stack(layers.LSTM, layers.GRU, **options)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    assert not export(quantized, tmp_path, data).notes
    content = fb.read((tmp_path / "m.tflite").read_bytes())
    assert not fb.float_activations(content)
    (close,) = ocs_tf.compare(quantized, ocs_tf.TFLiteModel(tmp_path / "m.tflite"), data)
    assert close.sqnr_db > 20
    # What the same operator of a cell makes in each step is on one grid.
    steps: dict[str, set[tuple[float, int]]] = {}
    for tensor in content.subgraphs[0].tensors:
        if re.search(r"/gru_cell_?\d*/add_3$", fb.name(tensor)):
            ((scale,), (zero_point,)) = fb.grid(tensor)
            steps.setdefault("add_3", set()).add((scale, zero_point))
    assert len(steps["add_3"]) == 1


def test_cells() -> None:
    cells = [layers.GRUCell(2, name="a"), layers.GRUCell(2, name="b")]
    inputs = keras.Input((3, 2))
    x = layers.RNN(cells, return_sequences=True, name="stack")(inputs)
    both = layers.Bidirectional(layers.LSTM(2, name="lstm"), name="both")(x)
    model = keras.Model(inputs, layers.Dense(1, name="head")(both))
    found = unrolled.cell_names(model)
    assert {"a", "b", "lstm_cell"} <= found
    assert not {"stack", "both", "lstm", "head"} & found


def test_ranges_are_those_of_all_steps() -> None:
    ranges = {
        "m/rnn/cell_1/add": (0.0, 1.0),
        "m/rnn/cell_3/add": (-2.0, 0.5),
        "m/rnn/cell_3/mul": (-5.0, 5.0),
        "m/other/cell_1/add": (-9.0, 9.0),
        "m/rnn/cellar_1/add": (-7.0, 7.0),
    }
    found = unrolled.over_steps(NOTHING, {"cell"}, {}, ranges)
    together = (-2.0, 1.0)
    assert found == ranges | {"m/rnn/cell_1/add": together, "m/rnn/cell_3/add": together}
    assert unrolled.over_steps(NOTHING, set(), {}, ranges) == ranges


def test_a_step_with_a_grid_counts() -> None:
    """The last step of a layer may be what the Keras model rounds."""
    grid = ocs_tf.numerics.ActivationGrid.from_range(-4.0, 4.0, 8)
    ranges = {"m/rnn/cell_1/add": (0.0, 1.0)}
    found = unrolled.over_steps(NOTHING, {"cell"}, {"m/rnn/cell/add": grid}, ranges)
    assert list(found) == list(ranges)
    np.testing.assert_allclose(found["m/rnn/cell_1/add"], (-4.0, 4.0), atol=grid.scale)


@pytest.mark.slow
def test_a_concatenation_of_masks_is_no_activation(
    tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    """Keras joins the masks of what a model concatenates: notes called that float."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(ROWS, 4, mask_zero=True)(inputs)
    both = layers.Concatenate()([x, layers.Dense(3)(x)])
    model = with_weights(keras.Model(inputs, layers.Dense(3)(layers.LSTM(4)(both))))
    data = ids(rng, LENGTH)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    assert not export(quantized, tmp_path, data).notes
