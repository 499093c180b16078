"""Recurrent layers: cells with one float kernel; unrolled ones."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf.layers.recurrent import UnrolledRNN


@pytest.mark.parametrize("left", ["kernel", "recurrent_kernel"])
@pytest.mark.parametrize("with_data", [False, True])
def test_a_kernel_of_a_cell_may_stay_in_float(left, with_data):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, keras.layers.LSTM(3, name="memory")(inputs))
    x = np.random.default_rng(0).normal(size=(16, 5, 4)).astype("float32")
    quantized = ocs_tf.convert(
        model,
        weight_bits=8,
        activation_bits=None,
        overrides={f"memory/{left}": {"weight_bits": None}},
        representative_dataset=x if with_data else None,
    )
    cell, exact = quantized.get_layer("memory").cell, model.get_layer("memory").cell
    assert set(cell.stored_kernels()) == {"kernel", "recurrent_kernel"} - {left}
    np.testing.assert_array_equal(getattr(cell, left), getattr(exact, left))
    np.testing.assert_allclose(quantized.predict(x), model.predict(x), atol=0.02)


@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("zero_output_for_mask", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("cell", [keras.layers.LSTMCell, keras.layers.GRUCell])
def test_unrolled_ones_compute_what_loops_do(
    cell, go_backwards, zero_output_for_mask, return_sequences, rng
):
    options = {
        "go_backwards": go_backwards,
        "zero_output_for_mask": zero_output_for_mask,
        "return_sequences": return_sequences,
        "return_state": True,
    }
    loop = keras.layers.RNN(cell(3), **options)
    x = rng.normal(size=(5, 4, 2)).astype("float32")
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)
    wanted = loop(x, mask=mask)
    unrolled = UnrolledRNN(cell(3), **options, unroll=True)
    unrolled.build(x.shape)
    unrolled.set_weights(loop.get_weights())
    for found, exact in zip(unrolled(x, mask=mask), wanted, strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-6)
