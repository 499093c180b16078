"""What attention needs in int8 files: scores that masks leave their steps, symmetric factors.

Keras masks a score by adding -1e9 or putting something like -1e38 in its place. An int8 grid that
reaches so far has no steps left for the scores; and behind a softmax, what lies 16 below a row's
largest score is 0 in 8 bits all the same.

The XNNPACK kernels that tf.lite of TensorFlow 2.21 comes with multiply two activations as if the
second one's zero point were 0, and say nothing. So it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ocs_tf.export import _flatbuffer as fb
from ocs_tf.export.grid_rules import ACTIVATION_MAX, ACTIVATION_MIN, grid_rule

NEGLIGIBLE = 16.0  # exp(-16) is below 2^-23
_MASKED = -1e4  # no score is so low
_MASK = -256.0
_PASSES = ("ADD", "SUB", "MUL", "SELECT", "SELECT_V2", "RESHAPE", "TRANSPOSE", "BROADCAST_TO")


def limit_masks(float_model: bytes) -> bytes:
    """The file with masks of -256, which leaves nothing of a score either."""
    model = fb.read(float_model)
    graph = model.subgraphs[0]
    makers = {i: op for op in graph.operators for i in op.outputs}
    waiting = [op.inputs[0] for op in graph.operators if fb.op_name(model, op) == "SOFTMAX"]
    seen: set[int] = set()
    changed = False
    while waiting:
        index = waiting.pop()
        if index in seen or index < 0:
            continue
        seen.add(index)
        tensor = graph.tensors[index]
        if index in makers:
            if fb.op_name(model, makers[index]) in _PASSES:
                waiting.extend(makers[index].inputs)
        elif tensor.type == fb.FLOAT32 and fb.is_constant(model, tensor):
            values = fb.constant(model, tensor)
            if values.min(initial=0) <= _MASKED:
                _store(model, tensor, np.where(values <= _MASKED, np.float32(_MASK), values))
                changed = True
    return fb.write(model) if changed else float_model


def softmax_inputs(model: Any) -> set[str]:
    """Names of the tensors that a SOFTMAX reads, and nothing else."""
    graph = model.subgraphs[0]
    readers: dict[int, set[str]] = {}
    for op in graph.operators:
        for index in op.inputs:
            readers.setdefault(index, set()).add(fb.op_name(model, op))
    return {
        fb.name(graph.tensors[index])
        for index, kinds in readers.items()
        if kinds == {"SOFTMAX"} and index not in list(graph.outputs)
    }


def symmetric_factors(model: Any) -> set[str]:
    """Names of the tensors that give the second factor of a BATCH_MATMUL its grid."""
    graph = model.subgraphs[0]
    makers = {i: op for op in graph.operators for i in op.outputs}
    names = set()
    for op in graph.operators:
        if fb.op_name(model, op) != "BATCH_MATMUL":
            continue
        index = op.inputs[1]
        while index in makers and grid_rule(fb.op_name(model, makers[index])) == "input":
            index = makers[index].inputs[0]
        names.add(fb.name(graph.tensors[index]))
    return names


def symmetric(low: float, high: float) -> tuple[float, float]:
    """The least range of an int8 grid with zero point 0 that holds `low .. high`."""
    step = max(low / ACTIVATION_MIN, high / ACTIVATION_MAX)
    return step * ACTIVATION_MIN, step * ACTIVATION_MAX


def _store(model: Any, tensor: Any, values: np.ndarray) -> None:
    """Give a constant other values, in a buffer of its own."""
    buffer = type(model.buffers[tensor.buffer])()
    buffer.data = np.frombuffer(values.astype(np.float32).tobytes(), np.uint8)
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)
