"""Masks between layers, and how much of a model fits into memory.

What else is computed is tested where it is used.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.graph import execution
from ocs_tf.graph.reader import Graph
from tests.compensation.test_calibrated import LAYERS


def test_samples_are_limited_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LAYERS["conv"]()
    graph = Graph(model)
    assert execution.sample_limit(graph) == 1024
    # Input and output of the convolution are held together: 8 x 9 x 4 and 6 x 7 x 5 floats, of
    # the float model and of the quantized one.
    monkeypatch.setattr(execution, "_BYTES", 10 * 2 * 4 * (8 * 9 * 4 + 6 * 7 * 5) + 1)
    assert execution.sample_limit(graph) == 10
    monkeypatch.setattr(execution, "_BYTES", 1)
    assert execution.sample_limit(graph) == 1


def _attention(x: Any) -> Any:
    return layers.GlobalMaxPooling1D()(layers.Attention(score_mode="concat")([x, x]))


def _recurrent(x: Any) -> Any:
    return layers.GRU(4)(layers.Dropout(0.5)(layers.LSTM(5, return_sequences=True)(x)))


def _multi_head(x: Any) -> Any:
    return layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 4)(x, x))


MASKED = {
    "average": layers.GlobalAveragePooling1D(),
    "attention": _attention,
    "multi-head": _multi_head,
    "recurrent": _recurrent,
}


def _masked(name: str) -> tuple[keras.Model, np.ndarray]:
    """A dense layer behind what reads a mask, and sequences of 1 to 5 steps."""
    ids = keras.Input((6,), dtype="int32")
    table = layers.Embedding(30, 8, mask_zero=True, embeddings_initializer="random_normal")
    read = MASKED[name](table(ids))
    model = keras.Model(ids, layers.Dense(3, name="dense")(read))
    table.embeddings.assign(20 * np.asarray(table.embeddings))
    x = np.random.default_rng(0).integers(1, 30, (40, 6)).astype("int32")
    for sample, row in enumerate(x):
        row[1 + sample % 5 :] = 0
    return model, x


@pytest.mark.parametrize("name", MASKED)
def test_layers_get_the_masks_of_those_before_them(name: str) -> None:
    model, x = _masked(name)
    batches = [[x[:30]], [x[30:]]]
    ((_, call),) = execution.run_by_layer(Graph(model), {"dense"}, batches)
    before = keras.Model(model.input, model.get_layer("dense").input)
    np.testing.assert_allclose(np.concatenate(call.inputs), before(x), rtol=1e-5, atol=1e-6)
    made = np.concatenate([results[0] for results in call.run(None)])
    np.testing.assert_allclose(made, model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MASKED)
def test_codes_and_biases_are_chosen_on_masked_steps_only(name: str) -> None:
    model, x = _masked(name)
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    wanted, found = np.asarray(model(x)), np.asarray(quantized(x))
    assert np.square(wanted).sum() > 10**2 * np.square(wanted - found).sum()  # 20 dB


def test_layers_that_take_masks_off_what_they_read() -> None:
    """A call is run again for each of the kernels inside of a layer: it had its masks once."""
    model, x = _masked("multi-head")
    (name,) = [layer.name for layer in model.layers if "multi" in layer.name]
    ((_, call),) = execution.run_by_layer(Graph(model), {name}, [[x]])
    once, again = call.run(None), call.run(None)
    np.testing.assert_array_equal(once[0][0], again[0][0])
