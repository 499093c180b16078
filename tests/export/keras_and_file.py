"""Running a file beside the Keras model it was made of."""

from __future__ import annotations

import pathlib
import warnings

import ai_edge_litert.interpreter as litert
import numpy as np
import tensorflow as tf

INTERPRETERS = {"litert": litert.Interpreter, "tf.lite": tf.lite.Interpreter}


def run(path: pathlib.Path, inputs: dict[str, np.ndarray], runtime: str = "litert") -> list:
    """Outputs of a .tflite file, sample by sample, as float32, in the order of the signature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf.lite.Interpreter announces its retirement
        interpreter = INTERPRETERS[runtime](str(path))
    runner = interpreter.get_signature_runner()
    given, made = runner.get_input_details(), runner.get_output_details()
    rows = []
    for i in range(len(next(iter(inputs.values())))):
        feed = {n: to_codes(inputs[n][i : i + 1], d) for n, d in given.items()}
        rows.append({n: to_values(v, made[n]) for n, v in runner(**feed).items()})
    return [np.concatenate([row[name] for row in rows]) for name in sorted(made)]


def to_codes(x: np.ndarray, detail: dict) -> np.ndarray:
    if detail["dtype"] == np.float32:
        return x
    scale, zero_point = detail["quantization"]
    return np.clip(np.rint(x / scale) + zero_point, -128, 127).astype(np.int8)


def to_values(x: np.ndarray, detail: dict) -> np.ndarray:
    if detail["dtype"] == np.float32:
        return x
    scale, zero_point = detail["quantization"]
    return (x.astype(np.float32) - zero_point) * np.float32(scale)


def worst_step(expected: np.ndarray, got: np.ndarray, step: float) -> tuple[float, float]:
    """Largest difference in output steps, and the share of values that differ at all."""
    difference = np.abs(expected - got) / step
    return float(difference.max()), float((difference > 0.5).mean())


def output_step(path: pathlib.Path) -> float:
    return litert.Interpreter(str(path)).get_output_details()[0]["quantization"][0]
