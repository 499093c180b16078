"""Concatenations of many tensors in steps: TFLite Micro takes up to ten tensors at once."""

from __future__ import annotations

import copy
from typing import Any

from ocs_tf.export import flatbuffer as fb

MOST = 10  # kMaxInputNum of TFLite Micro's concatenation.cc


def in_steps(content: bytes) -> bytes:
    """A `.tflite` file that computes the same with concatenations of at most `MOST` tensors.

    The codes are moved once more, and stay what they are: inputs and outputs share a grid.
    """
    model = fb.read(content)
    long = [
        (graph, op)
        for graph in model.subgraphs
        for op in graph.operators
        if fb.op_name(model, op) == "CONCATENATION" and len(op.inputs) > MOST
    ]
    if not long:
        return content
    for graph, op in long:
        while len(op.inputs) > MOST:
            _shorten(graph, op)
    for graph in model.subgraphs:
        fb.sort(graph)
    return fb.write(model)


def _shorten(graph: Any, op: Any) -> None:
    """Join the inputs of `op` in groups of up to `MOST`."""
    inputs = list(op.inputs)
    groups = [inputs[i : i + MOST] for i in range(0, len(inputs), MOST)]
    op.inputs = [group[0] if len(group) == 1 else _joined(graph, op, group) for group in groups]


def _joined(graph: Any, op: Any, group: list[int]) -> int:
    """The index of a new tensor: the tensors of `group` in a row, as `op` joins them."""
    output = graph.tensors[op.outputs[0]]
    axis = op.builtinOptions.axis % len(output.shape)
    tensor = copy.copy(output)
    shapes = [fb.shape(graph.tensors[index]) for index in group]
    tensor.shape = list(shapes[0])
    tensor.shape[axis] = sum(shape[axis] for shape in shapes)
    if output.shapeSignature is not None:
        tensor.shapeSignature = list(output.shapeSignature)
        tensor.shapeSignature[axis] = tensor.shape[axis]
    tensor.name = output.name + f"_of_{len(graph.tensors)}".encode()
    graph.tensors.append(tensor)
    step = copy.copy(op)
    step.inputs, step.outputs = group, [len(graph.tensors) - 1]
    graph.operators.append(step)
    return step.outputs[0]
