"""What target="auto" and "smallest" stand for."""

from __future__ import annotations

from typing import NoReturn

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export import choosing
from ocs_tf.runtime import NativeLibraryError
from tests.export.networks import FAST


def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16, 12)).astype(np.float32)


def network(bits: int, **options) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,))
    model = keras.Model(inputs, layers.Dense(7, name="b")(layers.Dense(9, name="a")(inputs)))
    ends = {"first_layer_bits": "same", "last_layer_bits": "same", "expand_ratio": 0}
    return ocs_tf.convert(model, weight_bits=bits, verbose=False, **ends, **FAST, **options)


def rounded(bits: int, **options) -> keras.Model:
    return network(bits, representative_dataset=data(), **options)


@pytest.fixture
def no_delegate(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> NoReturn:
        raise NativeLibraryError("the native library is missing.")

    monkeypatch.setattr(choosing, "library_path", missing)


def chosen(model, target, tmp_path, **options) -> tuple[str, bool, str]:
    result = ocs_tf.export_tflite(model, tmp_path / "model.tflite", target=target, **options)
    note = next(note for note in result.notes if note.startswith("Target"))
    assert note.startswith(f"Target {result.target!r} was chosen: ")
    return result.target, result.integer, note


def test_auto_is_integers_where_activations_are(tmp_path):
    assert chosen(rounded(4), "auto", tmp_path)[:2] == ("int8", True)


def test_auto_is_integers_where_data_are_given(tmp_path):
    found = chosen(network(4), "auto", tmp_path, representative_dataset=data())
    assert found[:2] == ("int8", True)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_auto_without_ranges_is_the_smallest(bits, tmp_path):
    target, integer, note = chosen(network(bits), "auto", tmp_path)
    count = 12 * 9 + 9 * 7
    assert not integer
    if bits == 3:
        assert target == "packed"
        assert f"take {-(-12 * 9 * 3 // 8) + -(-9 * 7 * 3 // 8)} bytes" in note
    elif bits == 8:  # they are equal: the one with builtin operators
        assert target == "int8"
        assert f"take {count} bytes" in note
    else:
        assert target == "int4"


def test_activations_of_other_bits_are_packed(tmp_path):
    model = rounded(3, activation_bits=4)
    assert chosen(model, "auto", tmp_path)[:2] == ("packed", False)


def test_smallest_of_three_bits_is_packed(tmp_path):
    target, _, note = chosen(rounded(3), "smallest", tmp_path)
    assert target == "packed"
    assert "as int8" in note
    assert "as int4" in note


@pytest.mark.usefixtures("no_delegate")
def test_smallest_without_the_delegate(tmp_path):
    target, integer, note = chosen(rounded(3), "smallest", tmp_path)
    assert (target, integer) == ("int4", True)
    assert note.endswith("Packed files were left out: the native library is missing.")
    assert chosen(rounded(5), "smallest", tmp_path, overwrite=True)[0] == "int8"


def test_what_packed_files_have_no_choice_of(tmp_path):
    """A C++ array, and activations."""
    array = {"c_array": tmp_path / "model.cc"}
    assert chosen(rounded(3), "smallest", tmp_path, **array)[0] == "int8"
    options = {"activations": "dynamic", "overwrite": True}
    assert chosen(rounded(3), "smallest", tmp_path, **options)[:2] == ("int4", False)


def test_fused_kernels_are_packed(tmp_path):
    result = ocs_tf.export_tflite(rounded(5), tmp_path / "m", target="auto", fused_dense=True)
    assert result.target == "packed"


def test_int4_that_runtimes_fail_with_is_not_chosen(tmp_path):
    """A depthwise convolution with dynamic activations."""
    inputs = keras.Input((6, 6, 4))
    x = layers.DepthwiseConv2D(3, name="dw")(inputs)
    model = ocs_tf.convert(
        keras.Model(inputs, x), overrides={"dw": {"weight_bits": 4}}, verbose=False, **FAST
    )
    options = {"activations": "dynamic"}
    assert chosen(model, "smallest", tmp_path, **options)[0] == "int8"


def test_asking_for_integers_without_ranges_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="representative_dataset"):
        ocs_tf.export_tflite(network(4), tmp_path / "m", target="auto", activations="int8")
