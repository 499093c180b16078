"""Kernels by themselves: what is stored is what comes back, and what does not fit is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from ocs_tf.layers.storage import StoredKernel, effective_codes
from ocs_tf.numerics import QuantizedKernel

CODES = np.array([[1, -2, 3], [4, 5, -6], [-7, 7, 0], [2, 2, 2]], np.int8)
MAP = np.array([0, 1, 2, 1], np.int32)  # the last row is a copy of channel 1
KERNEL = QuantizedKernel(CODES, np.array([0.5, 1.0, 2.0], np.float32), MAP, bits=4)
EFFECTIVE = np.array([[1, -2, 3], [4 + 2, 5 + 2, -6 + 2], [-7, 7, 0]])


def stored(**options) -> StoredKernel:
    options = {"weight_bits": 4, "granularity": "channel", "copies": 1, **options}
    layer = StoredKernel((3, 3), **options)
    layer.build()
    return layer


def test_copies_are_summed() -> None:
    np.testing.assert_array_equal(effective_codes(CODES, MAP, 1), EFFECTIVE)
    np.testing.assert_array_equal(effective_codes(CODES[:3], None, 0), CODES[:3])


def test_several_copies_of_a_channel_in_a_kernel_with_places() -> None:
    codes = np.arange(2 * 4 * 1).reshape(2, 4, 1)
    found = effective_codes(codes, np.array([0, 1, 1, 1]), 2)
    np.testing.assert_array_equal(found, [[[0], [1 + 2 + 3]], [[4], [5 + 6 + 7]]])


def test_what_is_assigned_comes_back() -> None:
    layer = stored()
    layer.assign(KERNEL)
    found = layer.quantized_kernel()
    np.testing.assert_array_equal(found.codes, CODES)
    np.testing.assert_array_equal(found.scale, KERNEL.scale)
    np.testing.assert_array_equal(found.channel_map, MAP)
    assert found.bits == 4
    np.testing.assert_array_equal(layer.kernel, EFFECTIVE * KERNEL.scale)
    layer.check_state()


def test_a_layer_of_the_same_configuration_takes_the_weights() -> None:
    layer = stored(kernel_sqnr_db=12.5)
    layer.assign(KERNEL)
    again = StoredKernel.from_config(layer.get_config())
    again.build()
    assert again.get_config() == layer.get_config()
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again.kernel, layer.kernel)


def test_weights_are_neither_trained_nor_cast() -> None:
    layer = stored(dtype="mixed_float16")
    assert not layer.trainable_weights
    assert {keras.backend.standardize_dtype(w.dtype) for w in layer.weights} == {
        *("int8", "int32", "float32")
    }


def test_kernels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="codes"):
        stored(copies=0).assign(KERNEL)
    with pytest.raises(ValueError, match=r"codes. are from -7 to 7; 3 bits hold"):
        stored(weight_bits=3).assign(KERNEL)


@pytest.mark.parametrize("shape", [(3,), (3, 3, 3), "33", (3, 0), (3.5, 3)])
def test_shapes_that_are_none(shape) -> None:
    with pytest.raises(ValueError, match="shape"):
        StoredKernel(shape, weight_bits=4)
