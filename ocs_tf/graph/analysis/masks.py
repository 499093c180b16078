"""Masks that a model computes by bare operations: `scores + (1 - mask) * -1e9`.

A grid that holds -1e9 has no steps left for the scores. What a softmax reads therefore needs to
reach down only as far as 8 bits tell from 0 behind it; what a maximum over steps reads, as far as
what is not masked. And whether calibration data have anything masked or not, a mask may be 0 as
well as 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.graph.layer_traits import keras_class
from ocs_tf.graph.reader import Graph, Node
from ocs_tf.graph.substitutions.constants import MASKED, MOVES

# Layers that do what bare operations do, by the class names of those.
_LAYERS = {
    keras.layers.Add: "Add",
    keras.layers.Permute: "Transpose",
    keras.layers.RepeatVector: "Repeat",
    keras.layers.Reshape: "Reshape",
}
_ARITHMETIC = {"Add": np.add, "Subtract": np.subtract, "Multiply": np.multiply}
_MAXIMA = tuple(getattr(keras.layers, f"GlobalMaxPooling{n}D") for n in (1, 2, 3))
_PASSES = (*_ARITHMETIC, *MOVES, "Where")


def negligible(scores: int) -> float:
    """How far below the largest of a row of `scores` the others add up to nothing in 8 bits.

    Each is worth `exp(-x)` of the largest; all together are worth less than half a step of 1/256.
    """
    return math.log(512.0 * max(scores, 1))


def softmax_floor(rows: NDArray[Any]) -> float:
    """How far below 0 a grid must reach for the scores of which a softmax leaves anything.

    Arguments:
        rows: what the softmax reads; a row is the last axis. Finite.
    """
    return float(rows.max(-1).min()) - negligible(rows.shape[-1])


def masked_floor(rows: NDArray[Any], masked_below: float) -> float:
    """The score that a grid needs for those that are masked, so that a softmax leaves nothing.

    Any of a row's scores may be the only one that is not masked, so it lies that far below the
    least of them; but below the largest of a row no more than twice as far. Rows that are masked
    as a whole do not count: they come out even, however low their scores are.

    Arguments:
        rows: what the softmax reads; a row is the last axis. Finite.
        masked_below: what lies below is masked.
    """
    margin = negligible(rows.shape[-1])
    least = float(rows.min(initial=0, where=rows > masked_below))
    largest = rows.max(-1)
    floor = float(largest.min(initial=0, where=largest > masked_below)) - margin
    return max(least, floor) - margin


def mask_ranges(graph: Graph) -> dict[int, tuple[float, float]]:
    """What tensors that are made of masks and constants alone may range over, by tensor id.

    A mask is what is cast from booleans, or what a mask of scores is made of: 0 or 1.
    """
    masks = _masks(graph)
    ranges: dict[int, tuple[float, float]] = {}
    for node in graph.nodes:
        kind = _operation(node)
        if any(id(tensor) in masks for tensor in node.outputs):
            ends: Any = (0.0, 1.0)
        elif kind in MOVES and node.inputs:
            ends = ranges.get(id(node.inputs[0]))
        elif kind in _ARITHMETIC and any(id(tensor) in ranges for tensor in node.inputs):
            ends = _combined(_ARITHMETIC[kind], node, ranges)
        else:
            continue
        if ends is not None and "float" in str(node.outputs[0].dtype):
            ranges[id(node.outputs[0])] = ends
    return ranges


def _masks(graph: Graph) -> set[int]:
    """Ids of the tensors that are 0 or 1."""
    found = {
        id(node.outputs[0])
        for node in graph.nodes
        if _operation(node) == "Cast" and str(node.inputs[0].dtype) == "bool"
    }
    softmaxes = [node for node in graph.nodes if _is_softmax(node)]
    for maker in (maker for node in softmaxes for maker in _makers(graph, node.inputs[0])):
        if _operation(maker) == "Multiply" and _has_mask(maker):
            behind = [
                graph.producer[id(t)] for m in _makers(graph, maker.inputs[0]) for t in m.inputs
            ]
            for node in (graph.producer[id(maker.inputs[0])], *behind):
                if _operation(node) == "Cast" or node.arguments is None:
                    found.add(id(node.outputs[0]))
    return found


def masked_scores(graph: Graph) -> set[int]:
    """Ids of the tensors that softmaxes read, to which bare operations put or add masks."""
    return {
        id(node.inputs[0])
        for node in graph.nodes
        if _is_softmax(node) and any(_has_mask(maker) for maker in _makers(graph, node.inputs[0]))
    }


def given_masks(graph: Graph) -> set[int]:
    """Ids of the inputs that may be masks: nothing is done but to add them to scores."""
    return {
        id(tensor)
        for tensor in graph.model.inputs
        if "float" in str(tensor.dtype) and _is_added_to_scores(graph, tensor)
    }


def scores_with_given_masks(graph: Graph) -> set[int]:
    """As `masked_scores`, of those to which `given_masks` are added."""
    given = given_masks(graph)
    return {
        id(node.inputs[0])
        for node in graph.nodes
        if _is_softmax(node)
        and any(id(t) in given for maker in _makers(graph, node.inputs[0]) for t in maker.inputs)
    }


def _is_added_to_scores(graph: Graph, tensor: keras.KerasTensor, added: bool = False) -> bool:
    """Whether softmaxes alone read `tensor`, through sums and what moves numbers.

    Arguments:
        added: there was a sum on the way.
    """
    readers = graph.consumers[id(tensor)]
    if not readers or any(tensor is output for output in graph.model.outputs):
        return False
    return all(
        added
        if _is_softmax(reader)
        else _operation(reader) in (*MOVES, "Add")
        and _is_added_to_scores(graph, reader.outputs[0], added or _operation(reader) == "Add")
        for reader in readers
    )


def masked_maxima(graph: Graph) -> set[int]:
    """As `masked_scores`, of what only maxima read."""
    found: set[int] = set()
    for node in graph.nodes:
        tensor = node.outputs[0]
        readers = graph.consumers[id(tensor)]
        if readers and all(map(_is_maximum, readers)):
            found.update({id(tensor)} if any(map(_has_mask, _makers(graph, tensor))) else ())
    return found


def only_unmasked(values: Any) -> NDArray[Any]:
    """The numbers that are not masked; all of them if all are."""
    values = np.asarray(values)
    kept = values[values > -MASKED / 2]
    return kept if kept.size else np.zeros_like(values)


def without_masked(scores: Any) -> NDArray[Any]:
    """The numbers of `scores`, last axis a row, that a softmax tells from 0; and the floor."""
    values = np.asarray(scores)
    floor = masked_floor(values, -MASKED / 2)
    return np.append(np.maximum(values, floor), np.float32(floor))


def limited_mask(values: Any) -> NDArray[Any]:
    """A mask that is given, as far as it matters: integers cannot add -1e38 to a score."""
    return np.maximum(np.asarray(values), np.float32(-MASKED))


def without_given_masks(scores: Any) -> NDArray[Any]:
    """`without_masked`, where anything is masked."""
    values = np.asarray(scores)
    return without_masked(values) if values.min(initial=0) <= -MASKED / 2 else values


def _operation(node: Node) -> str:
    """The class name of a bare operation, also for a layer that does the same; else empty."""
    layer = node.layer
    if not isinstance(layer, keras.layers.Layer):
        return type(layer).__name__
    return _LAYERS.get(keras_class(layer), "")  # type: ignore[arg-type]


def _operands(node: Node) -> list[Any]:
    """What a bare operation is given, or a layer in a list."""
    args = node.arguments.args
    return list(args[0]) if args and isinstance(args[0], (list, tuple)) else list(args)


def _combined(
    operation: Callable[[Any, Any], Any], node: Node, ranges: dict[int, tuple[float, float]]
) -> tuple[float, float] | None:
    sides = []
    for value in _operands(node)[:2]:
        if isinstance(value, keras.KerasTensor):
            if id(value) not in ranges:
                return None
            sides.append(ranges[id(value)])
        else:
            array = np.asarray(value, np.float64)
            sides.append((float(array.min()), float(array.max())))
    results = [float(operation(a, b)) for a in sides[0] for b in sides[1]]
    return min(results), max(results)


def _is_softmax(node: Node) -> bool:
    if isinstance(node.layer, keras.layers.Layer):
        function = getattr(node.layer, "activation", None)
        alone = keras_class(node.layer) in (keras.layers.Softmax, keras.layers.Activation)
        return alone and (function is keras.activations.softmax or function is None)
    return _operation(node) == "Softmax"


def _is_maximum(node: Node) -> bool:
    """Whether a call takes the largest of several numbers, and does nothing else with them."""
    return isinstance(node.layer, _MAXIMA) or _operation(node) in ("Amax", "Max")


def _makers(graph: Graph, tensor: keras.KerasTensor) -> Iterator[Node]:
    """The operations that a score comes from without leaving its size."""
    waiting, seen = [tensor], set()
    while waiting:
        tensor = waiting.pop()
        node = graph.producer.get(id(tensor))
        if (
            node is None
            or id(node) in seen
            or _operation(node) not in (*_ARITHMETIC, *MOVES, "Where")
        ):
            continue
        seen.add(id(node))
        yield node
        waiting.extend(node.inputs)


def _has_mask(node: Node) -> bool:
    """Whether `node` combines a tensor with a constant that only masks are as large as."""
    constants = [v for v in _operands(node) if not isinstance(v, keras.KerasTensor)]
    numbers = [np.asarray(v) for v in constants if np.asarray(v).dtype.kind in "fiu"]
    return any(np.abs(array).max(initial=0) >= MASKED for array in numbers)
