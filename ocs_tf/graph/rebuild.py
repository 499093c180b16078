"""The same graph from other layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from ocs_tf.graph.cloning import copy_weights
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.substitutions.inlining import WithMask
from ocs_tf.keras_internals import mask_of
from ocs_tf.keras_types import Tensor


def rebuild(
    graph: Graph,
    replace: Callable[[keras.layers.Layer], Callable[..., Any]],
    call: Callable[..., Any],
    batch_size: int | None = None,
    input_dtype: Callable[[str], str] = str,
) -> tuple[keras.Model, dict[str, Any]]:
    """Build the graph anew from other layers.

    Arguments:
        replace: from a layer to the new layer in its place; called once per layer. New layers
            whose weights have the old ones' shapes get their values.
        call: `call(layer, new_layer, *args, **kwargs)` for each call of `layer`; for an input it
            gets an identity as the new layer.
        batch_size: of the new inputs, if it is to be fixed.
        input_dtype: from the dtype of an input to that of the new one.

    Returns:
        The new model, not compiled, and its layers by the old layers' names.
    """
    twins: dict[str, Any] = {}
    tensors: dict[int, keras.KerasTensor] = {}
    inputs: dict[int, keras.KerasTensor] = {}
    for node in graph.nodes:
        if node.arguments is None:
            for old in node.outputs:
                shape = old.shape if batch_size is None else (batch_size, *old.shape[1:])
                changed = {"batch_shape": shape, "dtype": input_dtype(old.dtype)}
                new = keras.Input(**{**node.layer.get_config(), **changed})
                inputs[id(old)] = new
                tensors[id(old)] = call(node.layer, identity, new)
            continue
        if node.layer.name not in twins:
            twins[node.layer.name] = replace(node.layer)
        args, kwargs = node.arguments.fill_in(tensors)
        outputs = call(node.layer, twins[node.layer.name], *args, **used(kwargs))
        for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
            tensors[id(old)] = _masked_like(old, new, args)
    old_model = graph.model
    model = keras.Model(
        keras.tree.map_structure(lambda t: inputs[id(t)], old_model.input),
        keras.tree.map_structure(lambda t: tensors[id(t)], old_model.output),
        name=old_model.name,
    )
    for node in graph.nodes:
        twin = twins.get(node.layer.name)
        if twin is not None and getattr(node.layer, "weights", None):
            copy_weights(node.layer, twin)
    return model, twins


def _masked_like(old: keras.KerasTensor, new: keras.KerasTensor, args: Any) -> keras.KerasTensor:
    """`new`, with the mask of what it is made of where `old` has one and `new` has lost it."""
    if mask_of(old) is None or mask_of(new) is not None:
        return new
    masks = (mask_of(tensor) for tensor in keras.tree.flatten(args))
    mask = next((found for found in masks if found is not None), None)
    return new if mask is None else WithMask()(new, mask=mask)


def used(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without arguments that were not given, which another layer may not have."""
    return {name: value for name, value in kwargs.items() if value is not None}


def identity(x: Tensor) -> Tensor:
    return x
