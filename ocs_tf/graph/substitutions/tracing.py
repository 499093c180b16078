"""Tracing of models with their own `call`, by calling them on symbolic tensors.

Keras records each call of a layer on symbolic tensors. The records are read, and then taken away
from the user's layers again, which stay as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ocs_tf.graph.substitutions.reshaping import open_shape, settled
from ocs_tf.keras_internals import (
    KerasCall,
    has_calls,
    has_input_structure,
    is_made,
    layers_within,
    maker,
    making_call,
    mask_of,
    records_of,
    shapes_built_on,
    thread_state,
)

_REMEDY = (
    " In `call`, use Keras layers and keras.ops, neither functions of tf or numpy nor Python"
    " conditions on values; or build the model functionally: `keras.Model(inputs, outputs)`."
)


_FIXED = " Give inputs a fixed shape."


class UntraceableError(ValueError):
    """A `call` that symbolic tensors cannot go through; the message says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a `call` did.

    Attributes:
        nodes: Keras' records of the calls of layers and operations, in order.
        outputs: what it returned, as symbolic tensors in any structure.
        created: ids of the layers and operations that `call` itself made. Their automatic names
            differ from one time to the next.
    """

    nodes: list[KerasCall]
    outputs: Any
    created: set[int]


def has_graph(model: keras.Model) -> bool:
    """Whether a graph of layers, and not a `call` of the user's, says what `model` computes."""
    definer = next(c for c in type(model).__mro__ if "call" in vars(c))
    return has_calls(model) and definer.__module__.startswith("keras.")


def nodes_behind(
    tensors: Iterable[keras.KerasTensor], stop: Callable[[keras.Operation], bool]
) -> list[KerasCall]:
    """Keras' records of the calls that lead to `tensors`, in order, from behind `stop` on."""
    ordered: list[KerasCall] = []
    seen: set[int] = set()
    stack = [(_node_of(tensor), False) for tensor in tensors]
    while stack:
        node, behind_done = stack.pop()
        if node is None:
            continue
        if behind_done:
            ordered.append(node)
        elif id(node) not in seen and not stop(node.operation):
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((_node_of(tensor), False) for tensor in reversed(node.input_tensors))
    return ordered


def trace(
    model: keras.layers.Layer,
    args: Any,
    kwargs: Mapping[str, Any],
    stop: Callable[[keras.Operation], bool],
) -> Trace:
    """Call `model.call` on symbolic tensors; no layer keeps a record of it.

    Arguments:
        model: or another layer that calls layers.
        args, kwargs: of the call.
        stop: whether an operation made tensors that were there before the call.

    Raises:
        UntraceableError: `call` fails, returns something other than tensors, makes new weights or
            draws random numbers; or it is to act as in training, which only Keras knows how to
            pass on.
    """
    if kwargs.get("training"):
        raise untraceable(model, "it is called with training=True")
    layers = layers_within(model)
    given = [t for t in keras.tree.flatten((args, dict(kwargs))) if is_made(t)]
    watched = [*layers, *map(maker, given)]
    weights = {id(weight) for weight in model.weights}
    seeds = _seeds(model)
    with _untouched(watched):
        try:
            outputs = model.call(*args, **_all_arguments(model, args, kwargs))
            flat = keras.tree.flatten(outputs)
            if not flat or not all(isinstance(t, keras.KerasTensor) for t in flat):
                raise TypeError("it returns something other than tensors")
        except Exception as error:
            raise untraceable(model, _first_line(error)) from error
        nodes = nodes_behind(flat, stop)
    if any(_is_open(node) for node in nodes):
        raise untraceable(model, "a shape in its `call` has open sizes", _FIXED)
    known = {id(layer) for layer in layers}
    made = [node.operation for node in nodes if id(node.operation) not in known]
    made_weights = [w for op in made for w in getattr(op, "weights", ())]
    if any(id(weight) not in weights for weight in (*model.weights, *made_weights)):
        raise untraceable(model, "its `call` makes layers with new weights")
    if _seeds(model) != seeds:
        raise untraceable(model, "its `call` draws random numbers", " Use a Keras layer for them.")
    return Trace(nodes, outputs, {id(operation) for operation in made})


def inputs_of(model: keras.Model, dtypes: Sequence[str] = ()) -> Any:
    """New symbolic inputs, in the structure in which `model`, with its own `call`, takes them.

    Keras remembers the shapes of what a model was called on, but no dtypes.

    Arguments:
        dtypes: of the inputs, flattened; float32 where they are not given.

    Raises:
        UntraceableError: the model was never called.
    """
    if has_input_structure(model):
        return keras.tree.map_structure(_like, model.input)
    if isinstance(model, keras.Sequential) and model.built and model.inputs:
        return _like(model.inputs[0])
    shapes = shapes_built_on(model)
    if not model.built or not shapes:
        reason = "it has not been called, so the shapes of its inputs are not known"
        raise untraceable(model, reason, " Call it on data once.")
    name = next(iter(inspect.signature(model.call).parameters), "inputs")
    inputs = _inputs_from(next(iter(shapes.values())), name)
    if not dtypes:
        return inputs
    made = [
        keras.Input(tensor.shape[1:], dtype=dtype, name=tensor.name)
        for tensor, dtype in zip(keras.tree.flatten(inputs), dtypes, strict=True)
    ]
    return keras.tree.pack_sequence_as(inputs, made)


def untraceable(model: keras.layers.Layer, reason: str, remedy: str = _REMEDY) -> UntraceableError:
    """The error that says why `model` cannot be traced."""
    return UntraceableError(
        f"`model` {model.name!r} is a subclassed keras.Model ({type(model).__name__}) whose layers"
        f" cannot be traced: {reason}.{remedy}"
    )


def _is_open(node: KerasCall) -> bool:
    """Whether a bare operation is called with a shape of which some sizes are not known."""
    operation = node.operation
    if open_shape(operation) is None:
        return False
    return settled(operation, node.input_tensors[0].shape) is None


def _seeds(layer: keras.layers.Layer) -> list[int]:
    """The states of the random number generators that a call of `layer` may use."""
    states = [v for v in layer.non_trainable_variables if v.dtype == "uint32"]
    if (shared := thread_state("global_seed_generator")) is not None:
        states.append(shared.state)
    return [int(seed) for state in states for seed in np.asarray(state).reshape(-1)]


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _all_arguments(
    model: keras.layers.Layer, args: Any, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """`kwargs` and what Keras would add: the masks of the inputs; training as undecided."""
    signature = inspect.signature(model.call)
    given = signature.bind_partial(*args, **kwargs).arguments
    tensors = {k: v for k, v in given.items() if any(map(is_made, keras.tree.flatten(v)))}
    added: dict[str, Any] = {"training": None}  # a default of False would be recorded everywhere
    for name, value in tensors.items():
        mask = "mask" if len(tensors) == 1 else f"{name}_mask"
        added[mask] = keras.tree.map_structure(mask_of, value)
    new = {k: v for k, v in added.items() if k in signature.parameters and given.get(k) is None}
    return {**kwargs, **new}


_tracing = threading.RLock()


@contextlib.contextmanager
def _untouched(operations: Iterable[keras.Operation]) -> Iterator[None]:
    """Takes away what Keras records with operations within the context, which one thread is in."""
    with _tracing:
        lists = [calls for operation in operations for calls in records_of(operation)]
        lengths = [(nodes, len(nodes)) for nodes in lists]
        try:
            yield
        finally:
            for nodes, length in lengths:
                list.__delitem__(nodes, slice(length, None))  # they are Keras' tracked lists


def _node_of(tensor: keras.KerasTensor) -> KerasCall | None:
    return making_call(tensor) if is_made(tensor) else None


def _like(tensor: keras.KerasTensor) -> keras.KerasTensor:
    name = maker(tensor).name
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)


def _inputs_from(shapes: Any, name: str) -> Any:
    if isinstance(shapes, Mapping):
        return {key: _inputs_from(shape, str(key)) for key, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return keras.Input(tuple(shapes[1:]), name=name)  # the batch size was one of many
    return [_inputs_from(shape, f"{name}_{i}") for i, shape in enumerate(shapes)]
