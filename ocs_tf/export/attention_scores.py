"""Attention in int8 files: ranges of masked scores, symmetric factors.

Keras masks a score by adding -1e9 or putting something like -1e38 in its place. An int8 grid that
reaches so far has no steps left for the scores; and behind a softmax, what lies far enough below a
row's largest score is 0 in 8 bits all the same (`graph.analysis.masks`). So that is how far the
grids of scores reach, whether the calibration data have anything masked or not. Masks of -256 take
the place of those of Keras, or of a power of two that is larger where scores are large.

The XNNPACK kernels that tf.lite of TensorFlow 2.21 comes with multiply two activations as if the
second one's zero point were 0, and say nothing. So it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.grid_rules import ACTIVATION_MAX, ACTIVATION_MIN, grid_rule
from ocs_tf.graph.analysis.masks import masked_floor, softmax_floor
from ocs_tf.graph.substitutions.constants import MASKED

_MASK = 256.0  # the least magnitude of masks in int8 files
_COARSE_STEP = 1.0
_TIMES = 8  # what masks are larger than scores, at least
_PASSES = ("ADD", "SUB", "MUL", "SELECT", "SELECT_V2", "RESHAPE", "TRANSPOSE", "BROADCAST_TO")
_MOVES = (
    "BROADCAST_TO",
    "EXPAND_DIMS",
    "RESHAPE",
    "SLICE",
    "SQUEEZE",
    "STRIDED_SLICE",
    "TILE",
    "TRANSPOSE",
)
_ARITHMETIC = {"ADD": np.add, "SUB": np.subtract, "MUL": np.multiply}


def limit_masks(float_model: bytes, largest: float) -> bytes:
    """The file with masks of -256 (or 256, subtracted), which leaves nothing of a score either.

    Arguments:
        largest: magnitude of the scores that are not masked; masks are at least 8 times as large.
    """
    model = fb.read(float_model)
    limit = np.float32(max(_MASK, 2.0 ** math.ceil(math.log2(_TIMES * max(largest, 1.0)))))
    changed = False
    for index in [i for softmax in _softmaxes(model) for i in _sources(model, softmax.inputs[0])]:
        tensor = model.subgraphs[0].tensors[index]
        if _is_mask(model, tensor, MASKED):
            values = fb.constant(model, tensor)
            masks = np.clip(values, -limit, limit)
            _store(model, tensor, np.where(np.abs(values) >= MASKED, masks, values))
            changed = True
    return fb.write(model) if changed else float_model


@dataclasses.dataclass(frozen=True)
class Scores:
    """A tensor that is read for a softmax alone, through operators that move numbers at most.

    Attributes:
        softmax: name of the tensor that the SOFTMAX reads: a row is its last axis.
        mask: magnitude of the masks that are put or added to it, 0 if there are none.
    """

    softmax: str
    mask: float

    def low(self, values: Mapping[str, np.ndarray], low: float) -> float:
        """Lowest value that an int8 grid must hold, given the tensors' values and least `low`."""
        rows = values[self.softmax]
        return masked_floor(rows, -self.mask / 2) if self.mask else max(low, softmax_floor(rows))

    def largest(self, values: Mapping[str, np.ndarray]) -> float:
        """Magnitude of the scores that are not masked."""
        rows = values[self.softmax]
        return float(np.abs(rows).max(initial=0, where=rows > -self.mask / 2))


def scores(model: Any) -> dict[str, Scores]:
    """The tensors that softmaxes read, and nothing else, by name."""
    graph = model.subgraphs[0]
    makers = {i: op for op in graph.operators for i in op.outputs}
    found = {}
    for softmax in _softmaxes(model):
        index = softmax.inputs[0]
        name = fb.name(graph.tensors[index])
        sources = [graph.tensors[i] for i in _sources(model, index)]
        masks = [fb.constant(model, tensor) for tensor in sources if _is_mask(model, tensor)]
        mask = min((float(np.abs(values).max()) for values in masks), default=0.0)
        while _readers(model, index) == 1 and index not in list(graph.outputs):
            found[fb.name(graph.tensors[index])] = Scores(name, mask)
            if index not in makers or grid_rule(fb.op_name(model, makers[index])) != "input":
                break
            index = makers[index].inputs[0]
    return found


def coarse_scores(model: Any, steps: Mapping[str, float], layers: Collection[str]) -> str:
    """A note that names the softmaxes whose input has steps of 1 or more; or no text.

    Such a step changes a weight by a factor of e: which scores are largest is all that is left.

    Arguments:
        model: a float file.
        steps: of the grids of its tensors, by name.
        layers: names of all layers.
    """
    graph = model.subgraphs[0]
    found: dict[str, float] = {}
    for softmax in _softmaxes(model):
        step = steps.get(fb.name(graph.tensors[softmax.inputs[0]]), 0.0)
        tensor = fb.name(graph.tensors[softmax.outputs[0]])
        clear = max(layers, key=lambda layer: fb.name_affinity(tensor, layer), default=tensor)
        if step >= _COARSE_STEP:
            found[clear if fb.name_affinity(tensor, clear) else tensor] = step
    if not found:
        return ""
    each = ", ".join(f"{name!r} in steps of {step:.2g}" for name, step in found.items())
    return (
        f"Softmaxes read scores that range so far that 8 bits tell few of them apart: {each}."
        " activations='float' keeps them exact."
    )


def mask_ranges(model: Any) -> dict[str, tuple[float, float]]:
    """Possible ranges of tensors made of masks and constants alone, by name.

    A mask is 0 or 1, whatever the calibration data have of it.
    """
    graph = model.subgraphs[0]
    ranges = dict.fromkeys(_masks(model), (0.0, 1.0))

    def of(index: int) -> tuple[float, float] | None:
        tensor = graph.tensors[index]
        if index not in ranges and tensor.type == fb.FLOAT32 and fb.is_constant(model, tensor):
            values = fb.constant(model, tensor)
            return float(values.min(initial=0)), float(values.max(initial=0))
        return ranges.get(index)

    for op in graph.operators:
        kind = fb.op_name(model, op)
        output = op.outputs[0]
        if output in ranges:
            continue
        if kind in _MOVES and op.inputs[0] in ranges:
            ranges[output] = ranges[op.inputs[0]]
        elif kind in _ARITHMETIC and any(i in ranges for i in op.inputs):
            first, second = (of(i) for i in op.inputs)
            if first is not None and second is not None:
                results = [_ARITHMETIC[kind](a, b) for a in first for b in second]
                ranges[output] = (float(min(results)), float(max(results)))
    return {fb.name(graph.tensors[index]): ends for index, ends in ranges.items()}


def _masks(model: Any) -> set[int]:
    """The float tensors that are 0 or 1: cast from booleans, or what masks scores."""
    graph = model.subgraphs[0]
    makers = {i: op for op in graph.operators for i in op.outputs}
    casts = {i: op for i, op in makers.items() if fb.op_name(model, op) == "CAST"}
    found = {i for i, op in casts.items() if fb.type_name(graph.tensors[op.inputs[0]]) == "bool"}
    for index in [i for softmax in _softmaxes(model) for i in _sources(model, softmax.inputs[0])]:
        maker = makers.get(index)
        if maker is None or fb.op_name(model, maker) != "MUL":
            continue
        if any(_is_mask(model, graph.tensors[i]) for i in maker.inputs):
            behind = {i for factor in maker.inputs for i in _sources(model, factor)}
            found |= behind & {*casts, *graph.inputs}
    return {i for i in found if graph.tensors[i].type == fb.FLOAT32}


def _softmaxes(model: Any) -> list[Any]:
    graph = model.subgraphs[0]
    return [op for op in graph.operators if fb.op_name(model, op) == "SOFTMAX"]


def _readers(model: Any, index: int) -> int:
    return sum(list(op.inputs).count(index) for op in model.subgraphs[0].operators)


def _sources(model: Any, index: int) -> Iterator[int]:
    """The tensors that a score is computed from without leaving its size, constants included."""
    makers = {i: op for op in model.subgraphs[0].operators for i in op.outputs}
    waiting, seen = [index], {-1}
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        yield index
        if index in makers and fb.op_name(model, makers[index]) in _PASSES:
            waiting.extend(makers[index].inputs)


def _is_mask(model: Any, tensor: Any, magnitude: float = _MASK) -> bool:
    """Whether a constant is as large as only masks are: by `limit_masks`, or of this magnitude."""
    if tensor.type != fb.FLOAT32 or not fb.is_constant(model, tensor):
        return False
    return bool(np.abs(fb.constant(model, tensor)).max(initial=0) >= magnitude)


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
