"""Files with uint8 inputs and outputs: the codes of the int8 file, 128 higher, in both runtimes."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.runtime import tflite


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Of a model with two inputs, one of them ids, and two outputs that share a tensor."""
    image, ids = keras.Input((6, 6, 2), name="image"), keras.Input((3,), dtype="int32", name="ids")
    hidden = layers.Dense(4, activation="relu")(layers.Conv2D(3, 3)(image))
    pooled = layers.GlobalAveragePooling2D()(hidden)
    words = layers.Flatten()(layers.Embedding(9, 2)(ids))
    end = layers.Dense(3)(layers.Concatenate()([pooled, words]))
    model = keras.Model([image, ids], [hidden, end])
    rng = np.random.default_rng(0)
    data = {"image": rng.normal(size=(16, 6, 6, 2)), "ids": rng.integers(0, 9, (16, 3))}
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for name in ("int8", "uint8"):
        found[name] = folder / f"{name}.tflite"
        ocs_tf.export_tflite(quantized, found[name], io_dtype=name)
    return found


@pytest.mark.parametrize("runtime", ["ai_edge_litert", "tensorflow"])
def test_codes_are_128_higher(files: dict[str, pathlib.Path], runtime: str) -> None:
    signed, unsigned = (tflite.Interpreter(files[n], runtime=runtime) for n in ("int8", "uint8"))
    rng = np.random.default_rng(1)
    codes = rng.integers(-128, 128, (1, 6, 6, 2), dtype=np.int8)
    ids = rng.integers(0, 9, (1, 3), dtype=np.int32)
    shifted = (codes.astype(np.int16) + 128).astype(np.uint8)
    one = _outputs(signed, [codes, ids])
    other = _outputs(unsigned, [shifted, ids])
    for a, b in zip(one, other, strict=True):
        assert (a.dtype, b.dtype) == (np.int8, np.uint8)
        np.testing.assert_array_equal(a.astype(np.int16) + 128, b)


def test_grids_and_names_stay(files: dict[str, pathlib.Path]) -> None:
    ends = {}
    for name, path in files.items():
        interpreter = tflite.Interpreter(path)
        details = (*interpreter.get_input_details(), *interpreter.get_output_details())
        ends[name] = [(d["name"], d["dtype"], *d["quantization"]) for d in details]
        known = interpreter.get_signature_list()["serving_default"]
        assert sorted(known["inputs"]) == ["ids", "image"]
    for one, other in zip(ends["int8"], ends["uint8"], strict=True):
        shift = 128 if one[1] is np.int8 else 0
        kind = np.uint8 if shift else np.int32
        assert other == (one[0], kind, one[2], one[3] + shift)


def _outputs(interpreter: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]
