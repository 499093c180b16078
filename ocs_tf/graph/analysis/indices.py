"""Which float tensors hold indices: rows of tables, category ids. Rounded, they are wrong.

So are numbers that stand for "no number here", such as -1 in front of a `Masking(-1)`, and columns
of a table of very different sizes in front of a normalization, of which one grid holds the largest:
they are rounded behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ocs_tf.graph import adapters
from ocs_tf.graph.reader import Graph, Node
from ocs_tf.graph.substitutions.tracing import UntraceableError
from ocs_tf.layers.structure import is_users

_LOOKS_UP = (
    keras.layers.CategoryEncoding,
    keras.layers.Discretization,
    keras.layers.HashedCrossing,
    keras.layers.Hashing,
    keras.layers.IntegerLookup,
)
# Bare operations whose second argument holds indices, by class name.
_TAKES = ("Take", "TakeAlongAxis")
_ENCODES = ("OneHot", "MultiHot")
_CODES = 16  # the fewest of a grid of 256 that leave something of a channel's numbers
_SPREAD = 4  # standard deviations on each side of the mean
_COMPARES = ("Equal", "NotEqual")
# TensorFlow's operations that leave whole numbers as they are, or read no numbers.
_MOVES = (
    *("Ceil", "ConcatV2", "ExpandDims", "Floor", "Identity", "Pack", "Reshape", "Rint", "Round"),
    *("Squeeze", "StridedSlice", "Transpose"),
)
# Operations and layers that leave indices as they are.
_KEEPS = ("Cast", "ExpandDims", "Flatten", "GetItem", "Identity", "Reshape", "Squeeze", "Transpose")


def index_tensors(graph: Graph) -> set[int]:
    """Ids of float tensors that a lookup reads, or only what makes integers or booleans of them.

    So are those of which a slice is looked up: the numbers beside it are rounded where they are cut
    out. Whatever is computed by a layer with a kernel is a number, not an index.
    """
    computed = _behind_kernels(graph)
    found: set[int] = set()
    looked_up: set[int] = set()
    for node in reversed(graph.nodes):
        for tensor in node.outputs:
            readers = graph.consumers[id(tensor)]
            is_free = id(tensor) not in computed | graph.output_ids
            is_looked_up = any(_looks_up(r, tensor, looked_up) for r in readers)
            if is_looked_up:
                looked_up.add(id(tensor))
            only = bool(readers) and all(_reads_index(r, tensor, found) for r in readers)
            if is_free and (is_looked_up or only):
                found.add(id(tensor))
    return {i for i in found if "float" in str(_tensor(graph, i).dtype)}


def graph_on(model: keras.Model, fold_batch_norm: bool, dtypes: Sequence[str]) -> Graph:
    """The graph of a model with a `call` of its own, given the dtypes of the data for it.

    Integers are taken as such where they say which, and where nothing else will do. Otherwise they
    are numbers like others, and the input is float32.

    Arguments:
        dtypes: of the inputs, flattened.

    Raises:
        ValueError: as `flat`.
    """
    taken = ["float32" if "float" in dtype else dtype for dtype in dtypes]
    try:
        graph = Graph(model, fold_batch_norm)
    except UntraceableError:
        if set(taken) == {"float32"}:
            raise
        return Graph(model, fold_batch_norm, dtypes=taken)
    indices = index_tensors(graph)
    tensors = graph.model.inputs
    exact = [
        dtype if id(tensor) in indices else "float32"
        for tensor, dtype in zip(tensors, taken, strict=True)
    ]
    if exact == [str(tensor.dtype) for tensor in tensors]:
        return graph
    return Graph(model, fold_batch_norm, dtypes=exact)


def table_rows(graph: Graph, tensor: keras.KerasTensor) -> int | None:
    """Rows of the smallest table in which the numbers of `tensor`, unchanged, are looked up."""
    found: list[int | None] = []
    for reader in graph.consumers[id(tensor)]:
        layer = reader.layer
        adapter = adapters.any_adapter(layer)
        if adapter is not None and adapter.is_lookup:
            found.append(int(layer.input_dim))
        elif type(layer).__name__ in _KEEPS:
            found.append(table_rows(graph, reader.outputs[0]))
    return min((rows for rows in found if rows is not None), default=None)


def _reads_index(reader: Node, tensor: keras.KerasTensor, found: set[int]) -> bool:
    """Whether `reader` needs `tensor` exactly: its numbers say which, not how much."""
    if _looks_up(reader, tensor, set()):
        return True
    if type(reader.layer).__name__ in _TAKES:
        return False
    if isinstance(reader.layer, keras.layers.Lambda) or is_users(reader.layer):
        return _makes_integers(reader, tensor)
    exact = [id(out) in found or "float" not in str(out.dtype) for out in reader.outputs]
    return bool(exact) and all(exact)


def _looks_up(reader: Node, tensor: keras.KerasTensor, looked_up: set[int]) -> bool:
    """Whether `reader` looks `tensor` up, or passes it on to what does (`looked_up`)."""
    layer = reader.layer
    adapter = adapters.any_adapter(layer)
    if (adapter is not None and adapter.is_lookup) or isinstance(layer, _LOOKS_UP):
        return True
    if isinstance(layer, keras.layers.Masking):
        # The number 0 is on every grid, but of one channel, other numbers may be rounded to it.
        return bool(layer.mask_value != 0) or tensor.shape[-1] == 1
    if isinstance(layer, keras.layers.Normalization) and not layer.invert:
        return _fewest_codes(layer.mean, layer.variance) < _CODES
    if isinstance(layer, keras.layers.BatchNormalization):
        return _fewest_codes(layer.moving_mean, layer.moving_variance) < _CODES
    kind = type(layer).__name__
    if not isinstance(layer, keras.layers.Layer):
        if kind in _ENCODES:
            return True
        if kind in _COMPARES:
            return any(np.any(np.asarray(c) != 0) for c in _constants(reader))
        if kind in _TAKES:
            return all(value is not tensor for value in reader.arguments.args[:1])
    return kind in _KEEPS and any(id(out) in looked_up for out in reader.outputs)


def _fewest_codes(means: Any, variances: Any) -> float:
    """Of a grid for all channels of these statistics: how many the smallest one spans."""
    mean, deviation = np.asarray(means), np.sqrt(np.asarray(variances))
    low, high = mean - _SPREAD * deviation, mean + _SPREAD * deviation
    span = max(high.max(), 0.0) - min(low.min(), 0.0)
    spans = (high - low)[deviation > 0]  # what is always the same has no numbers to lose
    return 256 * float(spans.min(initial=np.inf)) / max(span, np.finfo(np.float32).tiny)


def _constants(node: Node) -> list[Any]:
    return [v for v in node.arguments.args if not isinstance(v, keras.KerasTensor)]


def _makes_integers(node: Node, tensor: Any) -> bool:
    """Whether the first that a layer does with `tensor` is to make integers or booleans of it."""
    specs = [tf.TensorSpec(t.shape, t.dtype) for t in node.inputs]

    def call(*tensors: Any) -> Any:
        given = {id(t): value for t, value in zip(node.inputs, tensors, strict=True)}
        args, kwargs = keras.tree.map_structure(
            lambda value: given.get(id(value), value), (node.arguments.args, node.arguments.kwargs)
        )
        return node.layer(*args, **kwargs)

    try:
        traced = tf.function(call, autograph=False).get_concrete_function(*specs)
    except Exception:  # it is the user's code
        return False
    position = next(i for i, t in enumerate(node.inputs) if t is tensor)
    waiting, made = [traced.inputs[position]], False
    while waiting:
        for operation in waiting.pop().consumers():
            if operation.type in _MOVES:
                waiting.extend(operation.outputs)
            elif any(output.dtype.is_floating for output in operation.outputs):
                return False
            elif operation.type != "Shape":
                made = True
    return made


def _behind_kernels(graph: Graph) -> set[int]:
    """Ids of the tensors that depend on a kernel."""
    reached: set[int] = set()
    for node in graph.nodes:
        if graph.kernels_of.get(node.layer.name) or any(id(t) in reached for t in node.inputs):
            reached.update(id(tensor) for tensor in node.outputs)
    return reached


def _tensor(graph: Graph, key: int) -> keras.KerasTensor:
    return next(tensor for tensor in graph.producer[key].outputs if id(tensor) == key)
