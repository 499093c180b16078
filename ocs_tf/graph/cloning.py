"""Copies of layers with all of their state: weights, and what Keras layers and users' own keep
outside of them, such as vocabularies, lookup tables, arrays and dictionaries.

A layer without variables cannot be trained, so its copy is another object over the same state. Any
other layer is made anew from its configuration and then given the state: by Keras' own protocol for
saving (`save_own_variables`, `save_assets`), and by the attributes of users' layers.
"""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import keras
import numpy as np

from ocs_tf.graph import adapters
from ocs_tf.keras_internals import is_variable, layers_within
from ocs_tf.keras_types import OperationT
from ocs_tf.layers import unwrapped
from ocs_tf.layers.structure import copied, is_users, leaves, mapped, own_attributes

_GET_CONFIG = "Give the class a get_config() that returns every argument of __init__."


def shallow_copy(layer: OperationT) -> OperationT:
    """A layer (or operation) of the same variables and sublayers that was never called."""
    # Keras makes `copy.copy` save and load the layer, and tracks what is assigned to attributes.
    copy: Any = object.__new__(type(layer))
    copy.__dict__.update(vars(layer))
    fresh: dict[str, Any] = {
        "_inbound_nodes": [],
        "_outbound_nodes": [],
        "_losses": [],
        "_loss_ids": set(),
    }
    copy.__dict__.update({name: value for name, value in fresh.items() if name in vars(layer)})
    for bound in ("build", "quantize"):  # Keras' wrappers of the methods of `layer`
        copy.__dict__.pop(bound, None)
    return copy


def clone_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A new layer (or operation) that computes the same, but for weights still to be copied.

    Once it has been called, and so built, `copy_weights` completes it.

    Raises:
        ValueError: the layer has weights and cannot be made from its configuration.
    """
    if type(layer) is keras.layers.Identity:  # Keras cannot save one made with a policy object
        return keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy.name)
    if not getattr(layer, "variables", None):
        copy = shallow_copy(layer)
        _copy_attributes(layer, copy)
        return copy
    if is_users(layer):
        return copied(layer, lambda _, part: built_clone(part))
    try:
        copy = type(layer).from_config(adapters.config_of(layer))
    except Exception as error:
        if any(is_users(part) for part in layers_within(layer)):
            return copied(layer, lambda _, part: built_clone(part))
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be copied from its"
            f" configuration: {error}. {_GET_CONFIG}"
        ) from error
    _copy_state(layer, copy)
    return copy


def built_clone(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A new layer with the weights of `layer`, which is inside of another.

    Raises:
        ValueError: it has weights and cannot be made from its configuration.
    """
    if isinstance(layer, keras.Model) and not is_users(layer):
        copy = keras.models.clone_model(layer, clone_function=clone_layer)
    else:
        copy = clone_layer(layer)
    if layer.built and not copy.built and (config := layer.get_build_config()):
        copy.build_from_config(config)
    if layer.built:
        copy_weights(layer, copy)
        check_copied(layer, copy)
    return copy


def copy_weights(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Give the built layer `new` the weights of `old`, if it has weights of those shapes.

    A layer of the same class gets all other state, too. Either may be in a `QuantizedOutput`.
    """
    if _shapes(old) != _shapes(new):
        return
    new.set_weights(old.get_weights())
    old, new = unwrapped(old), unwrapped(new)
    if type(old) is type(new):
        _copy_state(old, new)  # building may have made some of it anew


def check_copied(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Raise `ValueError` if the weights of `old` did not fit `new`, made in its place."""
    if isinstance(old, keras.layers.Layer) and _shapes(old) != _shapes(new):
        raise ValueError(
            f"layer {old.name!r} ({type(old).__name__}) cannot be copied: made from its"
            f" configuration it has weights of shapes {_shapes(new)}, not {_shapes(old)}."
            f" {_GET_CONFIG}"
        )


def why_not_loaded(layer: keras.layers.Layer) -> str | None:
    """Why `layer` cannot be made from its configuration, as loading a file does; else `None`."""
    try:
        with warnings.catch_warnings():  # Keras warns of what this function tells
            warnings.simplefilter("ignore")
            copy = type(layer).from_config(layer.get_config())
        if is_users(layer) and layer.weights and layer.get_build_config():
            copy.build_from_config(layer.get_build_config())
            if len(copy.weights) == len(layer.weights):  # else some are made by its first call
                check_copied(layer, copy)
    except Exception as error:
        lines = str(error).split("\n")
        return next((line.strip() for line in lines if line.strip()), type(error).__name__)
    return None


def _shapes(layer: keras.layers.Layer) -> list[tuple[int, ...]]:
    return [tuple(w.shape) for w in layer.weights]


def _copy_state(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Give `new`, of the class of `old`, what `old` and the layers in it keep besides weights."""
    for name, value in vars(old).items():
        for part, twin in zip(_layers(value), _layers(vars(new).get(name)), strict=False):
            if type(part) is type(twin) and part is not twin:
                _copy_state(part, twin)
    if not isinstance(old, keras.layers.Layer):
        return
    _copy_attributes(old, new)
    if _overrides(old, "load_own_variables") and new.built and not adapters.adapter_for(old):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables({key: np.asarray(value) for key, value in store.items()})
    if hasattr(old, "save_assets") and hasattr(old, "load_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def _overrides(layer: keras.layers.Layer, method: str) -> bool:
    return getattr(type(layer), method) is not getattr(keras.layers.Layer, method)


def _copy_attributes(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Give `new` the attributes that a user's layer `old` keeps, but for variables and layers."""
    if not is_users(old):
        return
    for name, value in own_attributes(old).items():
        if not any(_belongs(old, v) for v in leaves(value)):
            setattr(new, name, mapped(value, old, new, {}))


def _belongs(layer: keras.layers.Layer, value: Any) -> bool:
    """Whether `value` is a part of `layer` that its copy has to have one of its own of."""
    parts = (keras.layers.Layer, keras.random.SeedGenerator, keras.KerasTensor)
    bound = getattr(value, "__self__", None) is layer
    return is_variable(value) or isinstance(value, parts) or bound


def _layers(value: Any) -> list[keras.layers.Layer]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, keras.layers.Layer)]
