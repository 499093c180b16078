"""Running a model on data, one layer at a time."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.graph.reader import Graph, Node
from ocs_tf.graph.rewrite import Rewritten
from ocs_tf.keras_internals import context_arguments, mask_of, with_mask

Batches = Sequence[Sequence[NDArray[Any]]]
_SAMPLES = 1024
_BYTES = 1 << 31  # of activations of both models


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A call of a layer, with what it reads.

    Attributes:
        inputs: of each batch the first input.
        run: `run(rewritten)`: of each batch the outputs of the layer, or of what takes its place.
    """

    inputs: list[NDArray[Any]]
    run: Callable[[Rewritten | None], list[list[Any]]]


def run_by_layer(
    graph: Graph,
    names: set[str],
    batches: Batches,
    progress: Callable[[list[Node]], Iterable[Node]] = iter,
    rewritten: Rewritten | None = None,
    *,
    every_call: bool = False,
) -> Iterator[tuple[keras.layers.Layer, Call]]:
    """Run a model call by call; yield each layer of `names` before its first call, with that call.

    Arguments:
        progress: wraps the calls that are gone through.
        rewritten: what was made of the model; its layers are run and yielded.
        every_call: yield shared layers before each of their calls.
    """
    inputs = {id(tensor): index for index, tensor in enumerate(graph.model.inputs)}
    last_reads = _last_reads(graph)
    values: dict[int, list[Any]] = {}  # by tensor: of each batch
    masks: dict[int, list[Any]] = {}  # those of steps, where Keras has some
    left = {name: len(graph.calls_of(name)) if every_call else 1 for name in names}
    for node in progress(graph.nodes):
        if node.arguments is None:
            (tensor,) = node.outputs
            arrays = [batch[inputs[id(tensor)]] for batch in batches]
            if rewritten is not None:
                arrays = [np.asarray(rewritten.call(node.layer, x)) for x in arrays]
            values[id(tensor)] = arrays
            continue
        given = {id(t): (values[id(t)], masks.get(id(t))) for t in node.inputs}
        run = functools.partial(_arrays, node, given, len(batches))
        if left.get(node.layer.name):
            left[node.layer.name] -= 1
            layer, read = node.layer, values[id(node.inputs[0])]
            if rewritten is not None:
                read = [rewritten.read(layer, x) for x in read]
                layer = rewritten.layers[layer.name]
            yield layer, Call([np.asarray(x) for x in read], run)
        if not any(left.values()):
            return
        results = zip(*_run(node, given, len(batches), rewritten), strict=True)
        for tensor, made in zip(node.outputs, results, strict=True):
            values[id(tensor)] = [keras.ops.convert_to_numpy(result) for result in made]
            if mask_of(made[0]) is not None:
                masks[id(tensor)] = [mask_of(result) for result in made]
        for key in last_reads[id(node)]:
            del values[key]
            masks.pop(key, None)


def _arrays(*arguments: Any) -> list[list[Any]]:
    """What `_run` returns, as arrays."""
    return [[keras.ops.convert_to_numpy(r) for r in results] for results in _run(*arguments)]


def _run(
    node: Node,
    given: Mapping[int, tuple[list[Any], list[Any] | None]],
    batches: int,
    rewritten: Rewritten | None,
) -> list[list[Any]]:
    """The outputs of a call for each batch, `given` what it reads and the masks of that.

    Attention layers take the masks off what they are called with.
    """
    outputs = []
    for index in range(batches):
        tensors = {
            key: with_mask(values[index], None if masks is None else masks[index])
            for key, (values, masks) in given.items()
        }
        args, kwargs = node.arguments.fill_in(tensors)
        layer = node.layer if rewritten is None else rewritten.layers[node.layer.name]
        if "training" in context_arguments(layer):
            kwargs["training"] = False  # as where the whole model is called so
        call = layer if rewritten is None else functools.partial(rewritten.call, node.layer)
        outputs.append(keras.tree.flatten(call(*args, **kwargs)))
    return outputs


def _last_reads(graph: Graph, *, whole_layers: bool = False) -> dict[int, list[int]]:
    """By the id of each call: the ids of the tensors that are not needed after it.

    With `whole_layers`, what any call of a shared layer reads is needed until its last one.
    """
    indices = {id(node): index for index, node in enumerate(graph.nodes)}
    ends = {node.layer.name: index for index, node in enumerate(graph.nodes)}
    last: dict[int, int] = {}
    for node in graph.nodes:
        end = ends[node.layer.name] if whole_layers else indices[id(node)]
        for tensor in node.inputs:
            last[id(tensor)] = max(end, last.get(id(tensor), 0))
    reads: dict[int, list[int]] = {id(node): [] for node in graph.nodes}
    for key, index in last.items():
        reads[id(graph.nodes[index])].append(key)
    return reads


def calls_by_layer(
    graph: Graph, names: set[str], *options: Any
) -> Iterator[tuple[keras.layers.Layer, list[Call]]]:
    """Run a model as `run_by_layer` does; yield each layer of `names` before its last call.

    With it come all its calls.
    """
    left = {name: len(graph.calls_of(name)) for name in names}
    calls: dict[str, list[Call]] = {name: [] for name in names}
    for layer, call in run_by_layer(graph, names, *options, every_call=True):
        calls[layer.name].append(call)
        left[layer.name] -= 1
        if not left[layer.name]:
            yield layer, calls.pop(layer.name)


def calls_by_name(
    walked: Iterator[tuple[keras.layers.Layer, list[Call]]],
) -> Callable[[str], list[Call]]:
    """What `calls_by_layer` yields, asked for by name, in about the same order."""
    passed: dict[str, list[Call]] = {}

    def calls_of(name: str) -> list[Call]:
        while name not in passed:
            layer, calls = next(walked)
            passed[layer.name] = calls
        return passed.pop(name)

    return calls_of


def sample_limit(graph: Graph) -> int:
    """How many samples `compensate` should be given, by the memory that it is going to take."""
    last_reads = _last_reads(graph, whole_layers=True)
    held: dict[int, int] = {}
    most = 1
    for node in graph.nodes:
        for tensor in node.outputs:
            held[id(tensor)] = 2 * 4 * math.prod(size or 1 for size in tensor.shape[1:])
        most = max(most, sum(held.values()))
        for key in last_reads[id(node)]:
            del held[key]
    return max(1, min(_SAMPLES, _BYTES // most))
