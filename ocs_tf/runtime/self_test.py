"""Runs a tiny packed model by a runtime and the delegate: `python self_test.py RUNTIME LIBRARY`.

A runtime whose structures are not those that the delegate expects makes the process crash; that is
why this is a process of its own. It must not import ocs_tf, which would import TensorFlow.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import numpy as np

CODES = np.array([[-4, 3], [2, -1]], np.int8)
BITS = 3
PACKED = np.array([0b011_100, 0b111_010], np.uint8)  # the first code in the lowest bits
ROW_SCALES = np.array([0.5, 2.0], np.float32)

X = np.array([[0.5, 0.75], [-9.0, 9.0]], np.float32)
STEP = 0.5
LOWEST, HIGHEST, ZERO_POINT = -8, 7, 1


def main(runtime: str, library: str) -> None:
    """Run the model.

    Raises:
        RuntimeError: the numbers are wrong.
        Exception: whatever the runtime raises.
    """
    interpreter_module, schema_module = {
        "ai_edge_litert": ("ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated"),
        "tensorflow": (
            "tensorflow.lite.python.interpreter",
            "tensorflow.lite.python.schema_py_generated",
        ),
    }[runtime]
    module = importlib.import_module(interpreter_module)
    content = model(importlib.import_module(schema_module))
    warnings.simplefilter("ignore")  # the runtime's own, of being deprecated
    interpreter = module.Interpreter(
        model_content=content, experimental_delegates=[module.load_delegate(library)]
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], X)
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    codes = np.clip(np.rint(X / STEP) + ZERO_POINT, LOWEST, HIGHEST)
    expected = (codes - ZERO_POINT) * STEP + CODES * ROW_SCALES[:, None]
    if not np.array_equal(got, expected):
        raise RuntimeError(f"the outputs are {got.tolist()} instead of {expected.tolist()}")


def model(schema: Any) -> bytes:
    """A .tflite file that computes `OcsFakeQuantize(x) + OcsDequantize()`, float32 [2, 2]."""
    flatbuffers = importlib.import_module("flatbuffers")
    float32, int32, uint8 = (
        schema.TensorType.FLOAT32,
        schema.TensorType.INT32,
        schema.TensorType.UINT8,
    )
    dequantize_meta = np.array([1, BITS, 1, 2, *CODES.shape], np.int32)
    quantize_meta = np.array([1, LOWEST, HIGHEST, ZERO_POINT], np.int32)
    tensors: list[tuple[int, Any]] = [  # the type; the value, or the shape of what is computed
        (float32, X.shape),
        (float32, np.array([1 / STEP], np.float32)),
        (float32, np.array([STEP], np.float32)),
        (int32, quantize_meta),
        (float32, X.shape),
        (uint8, PACKED),
        (float32, ROW_SCALES),
        (int32, dequantize_meta),
        (float32, X.shape),
        (float32, X.shape),
    ]
    add = schema.BuiltinOperator.ADD
    custom = schema.BuiltinOperator.CUSTOM
    operators: list[tuple[int, str | None, list[int], int]] = [
        (custom, "OcsFakeQuantize", [0, 1, 2, 3], 4),
        (custom, "OcsDequantize", [5, 6, 7], 8),
        (add, None, [4, 8], 9),
    ]

    result = schema.ModelT()
    result.version = 3
    result.buffers = [schema.BufferT()]  # the first one is empty, by convention
    result.operatorCodes = []
    graph = schema.SubGraphT()
    graph.inputs, graph.outputs = [0], [9]
    graph.tensors, graph.operators = [], []
    for index, (kind, value) in enumerate(tensors):
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = f"tensor_{index}", kind, 0
        tensor.shape = list(getattr(value, "shape", value))
        if isinstance(value, np.ndarray):
            tensor.buffer = len(result.buffers)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(value.tobytes(), np.uint8)
            result.buffers.append(buffer)
        graph.tensors.append(tensor)
    for index, (kind, name, inputs, output) in enumerate(operators):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.customCode, code.version = name, 1
        result.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = index, inputs, [output]
        if kind == add:
            operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
            operator.builtinOptions = schema.AddOptionsT()
        graph.operators.append(operator)
    result.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(result.Pack(builder), b"TFL3")
    return bytes(builder.Output())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        print(f"{type(error).__name__}: {error}")  # on stderr, runtimes write whatever they like
        sys.exit(1)
