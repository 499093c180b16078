"""Tensors whose zeros a function makes infinite: divisors, and what logarithms are taken of.

Where rounding makes such a number 0, what was finite would not stay so.
"""

from __future__ import annotations

from collections.abc import Iterator

import keras

from ocs_tf.graph.analysis.activation_sites import is_operation, moves_values
from ocs_tf.graph.reader import Graph, Node

_DIVISIONS = ("Divide", "TrueDivide")
_INFINITE_AT_0 = ("Reciprocal", "Rsqrt", "Log", "Log2", "Log10")
_KEEP_0 = ("Sqrt", "Square", "Abs", "Absolute", "Negative")


def divisors(graph: Graph) -> set[int]:
    """Ids of the tensors of a graph that must not become 0 where they are not."""
    found: set[int] = set()
    for node in reversed(graph.nodes):
        found.update(id(tensor) for tensor in _divisors_of(node))
        keeps = is_operation(node.layer, _KEEP_0) or moves_values(node.layer)
        if keeps and any(id(tensor) in found for tensor in node.outputs):
            found.update(id(tensor) for tensor in node.inputs)
    return found


def _divisors_of(node: Node) -> Iterator[keras.KerasTensor]:
    """Those of the tensors that a call reads."""
    if is_operation(node.layer, _INFINITE_AT_0):
        yield from node.inputs
    elif is_operation(node.layer, _DIVISIONS):
        arguments = node.arguments
        divisor = arguments.kwargs.get("x2", arguments.args[-1])
        yield from (tensor for tensor in node.inputs if tensor is divisor)
