"""What is inside of a layer that a user wrote: found and copied by attributes.

No configuration is read, so it does not matter whether the class has a `get_config`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ocs_tf.keras_internals import (
    PLAIN_ATTRIBUTES,
    TENSORFLOW_ATTRIBUTES,
    automatic_names,
    complete,
    has_calls,
    is_variable,
    track,
    tracked,
    unlocked,
    untrack,
    variable_like,
)
from ocs_tf.keras_types import Tensor


def is_users(layer: keras.layers.Layer) -> bool:
    """Whether a user wrote the class of `layer`, which may be a model with its own `call`."""
    own = type(layer).__module__.split(".")[0] not in ("keras", "ocs_tf")
    graph = isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and has_calls(layer)
    )
    return own and isinstance(layer, keras.layers.Layer) and not graph


def sublayers(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The layers inside of `layer`, each once, by names that are the same in every process.

    Those of a layer that a user wrote are its attributes, alone or in containers: `dense`,
    `blocks_0`. Those of a model have their own names, but for automatic ones, which are counted
    anew in each model.
    """
    found: dict[str, keras.layers.Layer] = {}
    for name, part in _named(layer):
        if all(part is not other for other in found.values()):
            found[_unique(name, found)] = part
    return found


def _named(layer: keras.layers.Layer) -> Iterator[tuple[str, keras.layers.Layer]]:
    if isinstance(layer, keras.Model) and not is_users(layer):
        for part in layer.layers:
            if not isinstance(part, keras.layers.InputLayer):
                stem = re.sub(r"_\d+$", "", part.name)
                yield (stem if stem in automatic_names() else str(part.name)), part
        return
    for attribute, value in own_attributes(layer).items():
        for name, part in _items(attribute.strip("_"), value):
            if isinstance(part, keras.layers.Layer):
                yield name, part


def _items(name: str, value: Any) -> Iterator[tuple[str, keras.layers.Layer]]:
    """The items of nested containers, by their places."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _items(f"{name}_{key}".replace("/", "_"), item)
    else:
        yield name, value


def copied(
    layer: keras.layers.Layer, remake: Callable[[str, keras.layers.Layer], keras.layers.Layer]
) -> keras.layers.Layer:
    """A layer like `layer`, with variables of its own, around other layers.

    Arguments:
        layer: of a class that a user wrote.
        remake: the new layer in place of one of `sublayers`, by its name there.
    """
    new = keras.layers.Layer.__new__(type(layer))
    base = keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer
    base.__init__(new, name=layer.name, dtype=layer.dtype_policy, trainable=layer.trainable)
    twins: dict[int, Any] = {}
    for name, part in sublayers(layer).items():
        twins[id(part)] = remake(name, part)
    for store, items in tracked(layer).items():
        for item in items:
            if isinstance(item, keras.layers.Layer) and id(item) not in twins:
                continue  # one that an attribute no longer has
            twins[id(item)] = twins.get(id(item)) or _twin(item)
            track(new, store, twins[id(item)])
    vars(new).update({k: v for k, v in vars(layer).items() if k in PLAIN_ATTRIBUTES})
    for name, value in own_attributes(layer).items():
        setattr(new, name, mapped(value, layer, new, twins))
    if layer.built:
        complete(new)
    return new


def put(layer: keras.layers.Layer, old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Put the layer `new` in the place of `old`, one of `sublayers`, wherever `layer` has it."""
    with unlocked(layer):
        untrack(layer, old)
        for name, value in own_attributes(layer).items():
            if any(leaf is old for leaf in leaves(value)):
                setattr(layer, name, mapped(value, layer, layer, {id(old): new}))


def leaves(value: Any) -> Iterator[Any]:
    """The items of nested containers."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def mapped(
    value: Any, old: keras.layers.Layer, new: keras.layers.Layer, twins: Mapping[int, Any]
) -> Any:
    """`value`, in containers of its own, with the twins of what is in it."""
    if id(value) in twins:
        return twins[id(value)]
    if getattr(value, "__self__", None) is old:
        return getattr(new, value.__name__)
    if isinstance(value, dict):
        return {key: mapped(item, old, new, twins) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, old, new, twins) for item in value))
    if isinstance(value, (list, tuple)):
        items = [mapped(item, old, new, twins) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, set):
        return {mapped(item, old, new, twins) for item in value}
    return value.copy() if isinstance(value, np.ndarray) else value


def _twin(item: Any) -> Any:
    """A variable or generator of random numbers like `item`."""
    if isinstance(item, keras.random.SeedGenerator):
        twin = keras.random.SeedGenerator.from_config(item.get_config())
        twin.state.assign(item.state)
        return twin
    return variable_like(item) if is_variable(item) else item  # a metric


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    number = 0
    unique = name
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


class _Plain(keras.layers.Layer):
    """A layer that keeps nothing of its own but a weight."""

    def build(self, input_shape: Any) -> None:
        self._of_plain = self.add_weight(())

    def call(self, inputs: Tensor) -> Tensor:
        return inputs


class _PlainModel(keras.Model):
    def call(self, inputs: Tensor) -> Tensor:
        return inputs


def own_attributes(layer: keras.layers.Layer) -> dict[str, Any]:
    """The attributes of `layer` but for those that Keras and TensorFlow keep in every layer."""
    others = _keras_attributes(isinstance(layer, keras.Model))
    return {name: value for name, value in vars(layer).items() if name not in others}


@functools.cache
def _keras_attributes(of_model: bool) -> frozenset[str]:
    """The names of what Keras and TensorFlow keep in a layer of any class that was called."""
    layer = _PlainModel(name="plain") if of_model else _Plain(name="plain")
    layer(keras.KerasTensor((1, 1)))
    others = "_build_shapes_dict", "_path", "_initial_weights", *TENSORFLOW_ATTRIBUTES
    return frozenset((*vars(layer), *others))
