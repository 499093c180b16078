"""Measures the table of docs/export.md: do TFLite's runtimes compute what the Keras model does?

    OCS_TF_ZOO=folder python docs/measure_runtimes.py

Converts and exports the image networks of the zoo (see `benchmarks/common.py`), runs the files with
and without XNNPACK, and compares the codes of the output with the Keras model's. Minutes.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import ocs_tf
from benchmarks import common

PICTURES = {"resnet20_cifar10": 300, "densenet40_cifar10": 100, "mobilenet_v1_075_imagenet": 60}
CALIBRATION = 64
BITS = (8, 5)
RUNTIMES = {
    "XNNPACK": OpResolverType.AUTO,
    "without": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}
Codes = np.ndarray[Any, np.dtype[np.int64]]


def output_grid(path: pathlib.Path) -> tuple[float, int]:
    scale, zero_point = Interpreter(str(path)).get_output_details()[0]["quantization"]
    return scale, zero_point


def keras_codes(model: keras.Model, images: np.ndarray, grid: tuple[float, int]) -> Codes:
    """What `model` computes for each image, flat, as codes on `grid`."""
    batches = np.array_split(images, -(-len(images) // 20))
    outputs = np.concatenate([np.asarray(model.predict_on_batch(batch)) for batch in batches])
    return (np.rint(outputs / grid[0]) + grid[1]).astype(int).reshape(len(images), -1)


def file_codes(path: pathlib.Path, images: np.ndarray, resolver: OpResolverType) -> Codes:
    """What the file computes for each image, flat."""
    interpreter = Interpreter(str(path), experimental_op_resolver_type=resolver, num_threads=2)
    interpreter.allocate_tensors()
    (reads,), (makes,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = reads["quantization"]
    rows = []
    for image in np.clip(np.rint(images / np.float32(scale)) + zero_point, -128, 127):
        interpreter.set_tensor(reads["index"], image[None].astype(np.int8))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(makes["index"]).ravel().astype(int))
    return np.array(rows)


def main() -> None:
    zoo = common.load_zoo()
    header = ["network", "weight bits", "pictures", "runtime", "codes that differ", "by at most"]
    rows = []
    for name, pictures in PICTURES.items():
        entry = zoo.load(name, limit=pictures)
        for bits in BITS:
            model = ocs_tf.convert(
                entry.model,
                weight_bits=bits,
                representative_dataset=entry.calibration[:CALIBRATION],
                verbose=False,
            )
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "model.tflite"
                ocs_tf.export_tflite(model, path)
                want = keras_codes(model, entry.inputs, output_grid(path))
                for runtime, resolver in RUNTIMES.items():
                    got = file_codes(path, entry.inputs, resolver)
                    differs = f"{100 * np.mean(got != want):.2f} %"
                    same = f"{100 * np.mean(got.argmax(-1) == want.argmax(-1)):.1f} %"
                    steps = np.abs(got - want).max()
                    rows.append([name, bits, len(got), runtime, differs, steps, same])
    for line in [[*header, "same class"], ["---"] * 7, *rows]:
        print("| " + " | ".join(map(str, line)) + " |")


if __name__ == "__main__":
    main()
