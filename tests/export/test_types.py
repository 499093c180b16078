"""Files of models whose inputs or outputs are no floats."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf._compare import compare
from ocs_tf.runtime import tflite
from ocs_tf.runtime.library import library_path
from ocs_tf.runtime.model import TFLiteModel

NATIVE = pytest.param(
    "packed", marks=pytest.mark.skipif(not library_path().exists(), reason="no native library")
)
SHAPE = (6, 6, 3)


def seen(x: Any) -> Any:
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(x)))


def normalized(x: Any) -> Any:
    return layers.Normalization(mean=[100.0, 120, 130], variance=[900.0, 1000, 800])(x)


IMAGES: dict[str, Callable[[Any], Any]] = {
    "scaled": lambda x: seen(layers.Rescaling(1 / 255)(x)),
    "shifted": lambda x: seen(layers.Rescaling(1 / 127.5, offset=-1)(x)),
    "normalized": lambda x: seen(normalized(x)),
    "cast": lambda x: seen(ops.cast(x, "float32") / 255),
    "vector": lambda x: layers.Dense(3)(layers.Flatten()(layers.Rescaling(1 / 255)(x))),
}


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize("target", ["int8", NATIVE])
@pytest.mark.parametrize("name", IMAGES)
def test_integer_images(
    name: str, target: str, dtype: str, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    x = keras.Input(SHAPE, dtype=dtype, name="image")
    model = keras.Model(x, IMAGES[name](x))
    data = rng.integers(0, 256, (20, *SHAPE)).astype(dtype)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    ocs_tf.export_tflite(
        quantized, tmp_path / "m.tflite", target=target, representative_dataset=data
    )
    (detail,) = tflite.Interpreter(tmp_path / "m.tflite").get_input_details()
    assert detail["dtype"] == np.dtype(dtype)
    (close,) = compare(model, TFLiteModel(tmp_path / "m.tflite"), data)
    assert close.sqnr_db > 28


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "uint8"])
@pytest.mark.parametrize("io_dtype", ["int8", "uint8", "float32"])
def test_what_is_no_float_keeps_its_type(
    dtype: str, io_dtype: str, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    x, gate = keras.Input((12,), name="x"), keras.Input((12,), dtype=dtype, name="gate")
    opened = ops.where(gate, layers.Dense(12)(x), 0.0) if dtype == "bool" else None
    if opened is None:
        opened = layers.Dense(12)(x) + ops.cast(gate, "float32") * 0.02
    model = keras.Model([x, gate], [layers.Dense(3)(opened), layers.Dense(4)(x) > 0])
    data = [rng.normal(size=(40, 12)).astype("float32"), rng.integers(0, 50, (40, 12))]
    data[1] = (data[1] % 2 if dtype == "bool" else data[1]).astype(dtype)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    ocs_tf.export_tflite(
        quantized, tmp_path / "m.tflite", io_dtype=io_dtype, representative_dataset=data
    )
    file = tflite.Interpreter(tmp_path / "m.tflite")
    assert [d["dtype"] for d in file.get_input_details()] == [np.dtype(io_dtype), np.dtype(dtype)]
    assert [d["dtype"] for d in file.get_output_details()] == [np.dtype(io_dtype), np.dtype(bool)]
    number, _ = compare(model, TFLiteModel(tmp_path / "m.tflite"), data)
    assert number.sqnr_db > 28
