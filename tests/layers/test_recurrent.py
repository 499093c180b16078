"""Recurrent layers of which one kernel is quantized and the other is not."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import ocs_tf


@pytest.mark.slow
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
