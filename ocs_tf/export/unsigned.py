"""uint8 inputs and outputs of int8 files: the same scales, codes and zero points 128 higher."""

from __future__ import annotations

import copy
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import signature
from ocs_tf.export.float_regions import border_operator, twin

_UINT8 = schema.TensorType.UINT8
_OFFSET = 128


def unsigned_borders(content: bytes) -> bytes:
    """An int8 file with uint8 inputs and outputs, between QUANTIZE operators.

    Inputs and outputs of other types, and integers without a scale, stay as they are.
    """
    model, before = fb.read(content), fb.read(content)
    graph = model.subgraphs[0]
    for position, index in enumerate(list(graph.inputs)):
        if _holds_codes(graph.tensors[index]):
            graph.inputs[position] = _unsigned_twin(graph, index)
            given = border_operator(model, "QUANTIZE", graph.inputs[position], index)
            graph.operators.insert(0, given)
    for index in dict.fromkeys(graph.outputs):
        if _holds_codes(graph.tensors[index]):
            made = _unsigned_twin(graph, index)
            graph.operators.append(border_operator(model, "QUANTIZE", index, made))
            fb.replace_output(model, index, made)
    signature.follow(model, before)
    return fb.write(model)


def _holds_codes(tensor: Any) -> bool:
    quantization = tensor.quantization
    has_scale = quantization is not None and quantization.scale is not None
    return fb.type_name(tensor) == "int8" and has_scale and len(quantization.scale) == 1


def _unsigned_twin(graph: Any, index: int) -> int:
    """A new tensor for the numbers of `index`, whose name it takes; its own index."""
    signed, unsigned = graph.tensors[index], twin(graph, index, "int8")
    signed.name, unsigned.name = unsigned.name, signed.name
    unsigned.type = _UINT8
    unsigned.quantization = copy.copy(signed.quantization)
    unsigned.quantization.zeroPoint = [int(signed.quantization.zeroPoint[0]) + _OFFSET]
    return len(graph.tensors) - 1
