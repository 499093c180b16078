"""What an export is refused for, and what becomes of the file."""

from __future__ import annotations

import errno
import itertools
import os

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf.export import exporter
from tests.export.networks import (
    MODELS,
    quantized_model,
    samples,
    single,
)


def test_data_that_int8_cannot_hold_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,), name="in"), layers.Dense(2)])
    quantized = ocs_tf.convert(model, verbose=False)
    data = np.full((8, 4), 1e-41, np.float32)
    with pytest.raises(ValueError, match=r"the measured range at 'in' has steps of .*'packed'"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", representative_dataset=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "int7"},
            r"`target` \(='int7'\) must be one of 'int8', 'int4', 'packed', 'float'",
        ),
        (
            {"io_dtype": "int16"},
            r"`io_dtype` \(='int16'\) must be one of 'int8', 'uint8', 'float32'",
        ),
    ],
    ids=["target", "io_dtype"],
)
def test_unknown_options(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ocs_tf.export_tflite(quantized_model(), tmp_path / "model.tflite", **options)


def test_missing_ranges_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"have no grid at 'x'.*pass representative_dataset"):
        ocs_tf.export_tflite(quantized_model(activation_bits=None), tmp_path / "model.tflite")


def test_data_without_an_end_that_can_be_read_once(tmp_path):
    """1,024 samples are used: the next one would stretch the range."""
    inputs = keras.Input((2,), name="x")
    quantized = ocs_tf.convert(keras.Model(inputs, layers.Dense(2)(inputs)), verbose=False)
    rows = (np.full(2, min(count, 1026), np.float32) for count in itertools.count(1))
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=rows)
    (detail,) = ocs_tf.tflite.Interpreter(path).get_input_details()
    scale, zero_point = detail["quantization"]
    assert scale * (127 - zero_point) == pytest.approx(1024, rel=1e-3)


def test_ranges_inside_of_a_layer_are_named(tmp_path):
    model = single(
        lambda x: layers.Activation("hard_sigmoid")(layers.ReLU()(layers.Conv2D(4, 3)(x)))
    )
    quantized = ocs_tf.convert(model, representative_dataset=samples(model), verbose=False)
    message = r"^the range of \S+( \(and of [1-9].*\))? is not known; pass"
    with pytest.raises(ValueError, match=message):
        ocs_tf.export_tflite(quantized, tmp_path / "model.tflite")


def test_operator_without_integer_form_is_refused_if_strict(tmp_path):
    model = single(lambda x: ops.floor(layers.Conv2D(4, 3, name="c")(x)))
    data = samples(model)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "m.tflite"
    with pytest.raises(exporter.VerificationError, match=r"FLOOR has no int8 form: floor"):
        ocs_tf.export_tflite(quantized, path, representative_dataset=data, strict=True)
    assert list(tmp_path.iterdir()) == []


def test_layers_in_float_are_named_and_need_no_ranges(tmp_path):
    model = MODELS["layer-norm"]()
    quantized = ocs_tf.convert(model, representative_dataset=samples(model), verbose=False)
    result = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite")
    (note,) = result.notes
    reason = "ranges inside are not known (pass representative_dataset)"
    assert note == f"1 layer is computed in float, since {reason}: norm."


def test_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"precious")
    model = quantized_model()
    with pytest.raises(FileExistsError, match="exists; pass overwrite=True"):
        ocs_tf.export_tflite(model, path)
    assert path.read_bytes() == b"precious"
    result = ocs_tf.export_tflite(model, path, overwrite=True)
    assert path.stat().st_size == result.size


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of `path` .* does not exist"):
        ocs_tf.export_tflite(quantized_model(), tmp_path / "nowhere" / "model.tflite")


def test_folder_as_path_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        ocs_tf.export_tflite(quantized_model(), tmp_path, overwrite=True)


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"precious")

    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.tflite"):
        ocs_tf.export_tflite(quantized_model(), path, target="float", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
    assert path.read_bytes() == b"precious"


def test_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    converted = exporter.convert_float

    def slow(model):
        path.write_bytes(b"of another program")
        return converted(model)

    monkeypatch.setattr(exporter, "convert_float", slow)
    with pytest.raises(FileExistsError, match=r"model\.tflite exists; pass overwrite=True"):
        ocs_tf.export_tflite(quantized_model(), path, target="float")
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
    assert path.read_bytes() == b"of another program"


def test_result_says_what_was_written(tmp_path):
    result = ocs_tf.export_tflite(quantized_model(), tmp_path / "model.tflite")
    text = str(result)
    assert f"{result.size:,} bytes" in text
    assert f"Edge TPU: {len(result.ops)} of {len(result.ops)} operators" in text


def test_what_the_converter_cannot_do_names_the_layers(randomize, tmp_path):
    x = keras.Input((4, 1))
    y = layers.Dense(3, name="after")(layers.Dense(2, name="of_one_channel")(x))
    quantized = ocs_tf.convert(randomize(keras.Model(x, y)), verbose=False)
    with pytest.raises(ValueError, match=r"converter fails at 'of_one_channel', 'after'.*Conv1D"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", target="float")
    assert not list(tmp_path.iterdir())
