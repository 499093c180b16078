"""What Keras has no public way to tell: every private attribute of it that is used, in one place.

All are as old as Keras 3.5. An operation is a layer or a bare operation (`keras.ops`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

import keras
import numpy as np
from keras.src import backend
from keras.src.backend.common import global_state
from keras.src.utils import naming


class KerasCall(Protocol):
    """Keras' record of a call."""

    operation: keras.layers.Layer  # or a bare operation
    arguments: Any  # Keras' SymbolicArguments
    input_tensors: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]
    is_input: bool


def layers_within(layer: keras.layers.Layer, include_self: bool = True) -> list[keras.layers.Layer]:
    """A model or layer, and all layers inside of it at any depth."""
    return list(layer._flatten_layers(include_self=include_self))


def layers_right_within(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers right inside of a layer."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights of a layer without those of the layers in it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def maker(tensor: keras.KerasTensor) -> keras.Operation:
    """The operation that made a symbolic tensor."""
    return tensor._keras_history[0]  # type: ignore[attr-defined]


def is_made(tensor: Any) -> bool:
    """Whether something is a symbolic tensor that an operation made."""
    history = getattr(tensor, "_keras_history", None)
    return history is not None and history[0] is not None


def making_call(tensor: keras.KerasTensor) -> KerasCall:
    """The call that made a symbolic tensor."""
    operation, index, _ = tensor._keras_history  # type: ignore[attr-defined]
    return operation._inbound_nodes[index]


def calls_of(operation: keras.Operation) -> list[KerasCall]:
    """All calls of an operation, in whatever model, in order."""
    return list(operation._inbound_nodes)


def records_of(operation: keras.Operation) -> tuple[list[KerasCall], list[KerasCall]]:
    """Keras' own lists of the calls of an operation, and of those that read it."""
    return operation._inbound_nodes, operation._outbound_nodes


def has_calls(model: keras.Model) -> bool:
    """Whether Keras has the calls that `model` is made of."""
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None) is not None
    return hasattr(model, "_nodes_by_depth")


def calls_in_order(model: keras.Model) -> Iterator[KerasCall]:
    """The calls in a functional model, inputs first; what Functional itself runs by."""
    by_depth = model._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        yield from by_depth[depth]


def operations_of(layer: keras.layers.Layer) -> list[keras.Operation]:
    """The layers and bare operations that a functional model is made of; none of other layers."""
    return list(getattr(getattr(layer, "_functional", None) or layer, "operations", ()))


def has_input_structure(model: keras.Model) -> bool:
    """Whether `model.input` has the structure in which the model takes its inputs."""
    return hasattr(model, "_inputs_struct")


def shapes_built_on(model: keras.Model) -> dict[str, Any]:
    """The shapes of what a model with its own `call` was called on, by argument."""
    return model._build_shapes_dict or {}


def mask_of(tensor: keras.KerasTensor) -> keras.KerasTensor | None:
    """The mask that comes with a tensor, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(values: Any, mask: Any) -> Any:
    """`values` as a tensor with a mask, as the output of a layer has; itself if there is none."""
    if mask is None:
        return values
    tensor = keras.ops.copy(values)  # not the tensor that the user may have
    tensor._keras_mask = mask
    return tensor


def context_arguments(operation: keras.Operation) -> Collection[str]:
    """Arguments of a call that Keras passes on to the calls within, such as `training`."""
    return getattr(operation, "_call_context_args", ())


def is_hidden_class(layer: keras.layers.Layer, module: str, name: str) -> bool:
    """Whether `layer` is of a class in `keras.src` that has no public name."""
    return (type(layer).__module__, type(layer).__name__) == (f"keras.src.{module}", name)


def is_keras_layer_class(cls: type) -> bool:
    """Whether a class is one of the layers that come with Keras."""
    return cls.__module__.startswith("keras.src.layers.") and cls is not keras.layers.Layer


def tracked(layer: keras.layers.Layer) -> dict[str, list[Any]]:
    """Variables, layers, metrics and generators of random numbers of a layer, by kind."""
    return {kind: list(store) for kind, (_, store) in layer._tracker.config.items()}


def track(layer: keras.layers.Layer, kind: str, item: Any) -> None:
    """Make `item` one of what `tracked` finds."""
    layer._tracker.add_to_store(kind, item)


def untrack(layer: keras.layers.Layer, item: Any) -> None:
    """Make `item` none of what `tracked` finds."""
    layer._tracker.untrack(item)


@contextlib.contextmanager
def unlocked(layer: keras.layers.Layer) -> Iterator[None]:
    """Within this context, `layer` takes other variables and layers, though it is built."""
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        if locked:
            layer._tracker.lock()


def complete(layer: keras.layers.Layer) -> None:
    """Say that `layer` is built; it takes no more variables and layers."""
    layer.built = True
    layer._lock_state()


def is_variable(value: Any) -> bool:
    """Whether it is a variable; those of older versions of Keras are no `keras.Variable`."""
    return isinstance(value, backend.Variable)


def variable_like(variable: keras.Variable) -> keras.Variable:
    """A variable of the same value and options."""
    return backend.Variable(
        np.array(variable),  # a copy: a view would change with the variable
        dtype=variable.dtype,
        trainable=variable.trainable,
        name=variable.name,
        autocast=variable._autocast,
    )


def take_signature(layer: keras.layers.Layer, other: keras.layers.Layer) -> None:
    """Let Keras call `layer` with the arguments that it calls `other` with."""
    names = ("_call_signature", "call_signature_parameters", "_call_context_args")
    flags = ("_call_has_training_arg", "_call_has_mask_arg", "_call_has_context_arg")
    for name in (*names, *flags, "_convert_input_args", "_allow_non_tensor_positional_args"):
        if name in vars(other):
            layer.__dict__[name] = vars(other)[name]


# What Keras keeps in a layer of its own that its constructor is not told.
PLAIN_ATTRIBUTES = (
    *("_supports_masking", "_build_shapes_dict", "_auto_config", "_auto_config_error_args"),
    *("autocast", "_convert_input_args", "_allow_non_tensor_positional_args", "_input_spec"),
    *("activity_regularizer", "_called"),
)

# What TensorFlow keeps in a layer that a checkpoint or SavedModel has been made of.
TENSORFLOW_ATTRIBUTES = (
    *("_self_setattr_tracking", "_self_unconditional_checkpoint_dependencies"),
    *("_self_unconditional_dependency_names", "_self_unconditional_deferred_dependencies"),
    *("_self_update_uid", "_self_name_based_restores", "_self_saveable_object_factories"),
    *("train_function", "test_function", "predict_function"),
)


@functools.cache
def automatic_names() -> frozenset[str]:
    """The names that Keras gives layers of its own classes, without numbers."""
    classes = [c for c in vars(keras.layers).values() if isinstance(c, type)]
    return frozenset(naming.to_snake_case(c.__name__) for c in classes)


@contextlib.contextmanager
def computing_by(**made: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within this context, `keras.ops` compute what `made` makes of functions of their backend.

    Arguments:
        made: by the name of a function, takes it and returns what is in its place.
    """
    before = {name: getattr(backend.numpy, name) for name in made}
    for name, function in before.items():
        setattr(backend.numpy, name, made[name](function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(backend.numpy, name, function)


def thread_state(name: str) -> Any:
    """What Keras keeps for each thread under this name."""
    return global_state.get_global_attribute(name)


def set_thread_state(name: str, value: Any) -> None:
    """Set what Keras keeps for this thread."""
    global_state.set_global_attribute(name, value)
