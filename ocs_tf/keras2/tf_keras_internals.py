"""What tf_keras has no public way to tell: every private attribute of it that is used.

A node is its record of one call of a layer, with `layer`, `call_args`, `call_kwargs` and `outputs`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any


def has_graph(model: Any) -> bool:
    """Whether a graph of layers, and not a `call` of the user's, says what `model` computes."""
    definer = next(c for c in type(model).__mro__ if "call" in vars(c))
    return model._is_graph_network and definer.__module__.startswith("tf_keras.")


def nodes_in_order(model: Any) -> list[Any]:
    """The nodes that the outputs of `model` depend on, without those of its inputs, in order."""
    needed = {id(tensor) for tensor in model.outputs}
    found = []
    for depth in sorted(model._nodes_by_depth):  # from the outputs on
        for node in model._nodes_by_depth[depth]:
            if not node.is_input and any(id(t) in needed for t in _flat(node.outputs)):
                needed |= {id(tensor) for tensor in node.keras_inputs}
                found.append(node)
    return found[::-1]


def structures(model: Any) -> tuple[Any, Any]:
    """The inputs and outputs of a functional model, in the structures that its call has."""
    return model._nested_inputs, model._nested_outputs


def layer_names(model: Any) -> set[str]:
    """The names of a model and of all layers in it, at any depth."""
    return {layer.name for layer in model._flatten_layers()}


def maker_name(tensor: Any) -> str:
    """The name of the layer that made a symbolic tensor."""
    return tensor._keras_history.layer.name


def own_variables(layer: Any) -> list[Any]:
    """The weights of a layer without those of the layers in it."""
    return [*layer._trainable_weights, *layer._non_trainable_weights]


def sublayers(layer: Any) -> list[Any]:
    """The layers right inside of a layer."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def outputs(model: Any, arrays: list[Any]) -> Any:
    """What a model gives for one array per input, from states of zero; its states stay."""
    import tensorflow as tf

    stateful = [layer for layer in model._flatten_layers() if getattr(layer, "stateful", False)]
    states = [
        state for layer in stateful for state in tf.nest.flatten(getattr(layer, "states", []))
    ]
    kept = [(state, state.numpy()) for state in states if state is not None]
    for state, value in kept:
        state.assign(tf.zeros_like(value))
    try:
        return model(tf.nest.pack_sequence_as(model._nested_inputs, arrays), training=False)
    finally:
        for state, value in kept:
            state.assign(value)


@contextlib.contextmanager
def safe_mode(on: bool) -> Iterator[None]:
    """Whether what is loaded within may hold lambdas; its loader of HDF5 files does not ask."""
    library = importlib.import_module("tf_keras.src.saving.serialization_lib")
    with library.SafeModeScope(on):
        yield


def symbol(function: Any) -> str | None:
    """The public name of a function of TensorFlow or of tf_keras, without `tf.`."""
    library = importlib.import_module("tf_keras.src.layers.core.tf_op_layer")
    found = (
        library.get_canonical_name_for_symbol(function, api, add_prefix_to_v1_names=True)
        for api in ("tensorflow", "keras")
    )
    return next((name for name in found if name), None)


def _flat(structure: Any) -> list[Any]:
    import tensorflow as tf

    return tf.nest.flatten(structure)
