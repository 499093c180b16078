"""Graphs of Keras 2 as graphs of Keras 3: every call of a layer once more, on its counterpart."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import keras

from ocs_tf.keras2 import tf_keras_internals
from ocs_tf.keras2.comparison import check_same
from ocs_tf.keras2.layers import NoCounterpartError, copy_weights, keras3_layer, keras3_name
from ocs_tf.keras2.operations import NotTranslatedError, operation
from ocs_tf.keras_internals import maker, making_call
from ocs_tf.keras_state import restores_state

P = ParamSpec("P")
T = TypeVar("T")

_OPERATIONS = ("SlicingOpLambda", "TFOpLambda")
_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)


def is_keras2(model: Any) -> bool:
    """Whether `model` is one of tf_keras, which is not imported to find out."""
    tf_keras = sys.modules.get("tf_keras")
    return tf_keras is not None and isinstance(model, tf_keras.Model)


@restores_state
def keras3_model(model: Any, custom_objects: Mapping[str, Any] | None = None) -> keras.Model:
    """A model of Keras 3 that computes what a model of tf_keras does.

    Layers, inputs and outputs keep their names (`/` becomes `_`). Optimizer, losses and metrics
    are left out. Outputs are compared on drawn inputs.

    Arguments:
        model: functional or Sequential; it is not modified.
        custom_objects: Keras 3 classes of layers by the names of the classes in the model;
            functions of Keras 3 by the names of functions of TensorFlow (`"tf.math.erfinv"`).

    Raises:
        ValueError: the model is not built, has a `call` of its own, or a layer that Keras 3 does
            not have; or the outputs differ.
    """
    result = _Translator(custom_objects or {}).whole(model)
    check_same(model, result)
    return result


def takes_keras2(function: Callable[P, T]) -> Callable[P, T]:
    """Give `function` the counterpart of its first argument, `model`, if that is of tf_keras."""

    @functools.wraps(function)
    def taking(*args: Any, **kwargs: Any) -> T:
        if args and is_keras2(args[0]):
            args = keras3_model(args[0]), *args[1:]
        elif is_keras2(kwargs.get("model")):
            kwargs["model"] = keras3_model(kwargs["model"])
        return function(*args, **kwargs)

    return cast("Callable[P, T]", taking)


class _Translator:
    def __init__(self, custom_objects: Mapping[str, Any]) -> None:
        self.custom_objects = custom_objects
        self.names: set[str] = set()  # of all layers, at any depth
        # By the id of the old one, which is kept.
        self.twins: dict[int, tuple[Any, keras.layers.Layer]] = {}

    def whole(self, model: Any) -> keras.Model:
        self.names = tf_keras_internals.layer_names(model)
        result = self.model(model)
        for old, new in self.twins.values():
            if not isinstance(new, keras.Model):
                copy_weights(old, new)
        return result

    def twin(self, layer: Any) -> keras.layers.Layer:
        """The counterpart of a layer or model; one for all calls of it."""
        if id(layer) not in self.twins:
            custom = type(layer).__name__ in self.custom_objects
            make = self.model if _is_model(layer) and not custom else self.layer
            self.twins[id(layer)] = layer, make(layer)
        return self.twins[id(layer)][1]

    def layer(self, layer: Any) -> keras.layers.Layer:
        return keras3_layer(layer, self.name(layer.name), self.custom_objects, self.twin)

    def name(self, name: str) -> str:
        """The name of the counterpart of a layer; if it must be another one, that of no layer."""
        new = keras3_name(name)
        while new != name and new in self.names:
            new += "_"
        self.names.add(new)
        return new

    def model(self, model: Any) -> keras.Model:
        _check_model(model)
        name = self.name(model.name)
        inputs = {
            id(t): _input(t, self.name(tf_keras_internals.maker_name(t))) for t in model.inputs
        }
        if _is_sequential(model):
            return keras.Sequential([*inputs.values(), *map(self.twin, model.layers)], name=name)
        values: dict[int, Any] = dict(inputs)
        for node in tf_keras_internals.nodes_in_order(model):
            results = self.call(node, values)
            made = _flat(node.outputs)
            results = [results] if len(made) == 1 else keras.tree.flatten(results)
            values.update(zip(map(id, made), results, strict=True))
        structures = tf_keras_internals.structures(model)
        given, made = (_mapped(structure, values) for structure in structures)
        return keras.Model(given, made, name=name)

    def call(self, node: Any, values: Mapping[int, Any]) -> Any:
        args, kwargs = _mapped((list(node.call_args), dict(node.call_kwargs)), values)
        if type(node.layer).__name__ in _OPERATIONS:
            return self.operation(node.layer, args, kwargs)
        twin = self.twin(node.layer)
        if isinstance(twin, _RECURRENT) and isinstance(args[0], list):
            args, kwargs = _with_states(args[0], kwargs)
        return twin(*args, **_taken(node.layer, twin, kwargs))

    def operation(self, layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        symbol = tf_keras_internals.symbol(layer.function)
        kwargs = {key: value for key, value in kwargs.items() if key != "name"}
        name = f"tf.{symbol or layer.function.__name__}"
        try:
            if name in self.custom_objects:
                result = self.custom_objects[name](*args, **kwargs)
            else:
                result = operation(symbol or "", layer.function, args, kwargs)
        except NotTranslatedError as error:
            raise NoCounterpartError(
                f"layer {layer.name!r} calls {name}, {error}. Give custom_objects={{{name!r}:"
                " FUNCTION}, where FUNCTION has the same arguments and is made of keras.ops."
            ) from error
        _give_name(layer.name, result, keras.tree.flatten((list(args), dict(kwargs))))
        return result


def _check_model(model: Any) -> None:
    name = f"`model` {model.name!r}"
    if not model.built or (_is_sequential(model) and not getattr(model, "inputs", None)):
        raise NoCounterpartError(
            f"{name} is not built, so it has no weights yet. Call it on data once."
        )
    if not tf_keras_internals.has_graph(model):
        raise NoCounterpartError(
            f"{name} is a subclassed tf_keras model ({type(model).__name__}), whose `call` only"
            " tf_keras can run. Build it functionally: inputs = tf_keras.Input(SHAPE);"
            " tf_keras.Model(inputs, model.call(inputs))."
        )


def _input(tensor: Any, name: str) -> keras.KerasTensor:
    """A symbolic input like one of tf_keras."""
    sparse = "Sparse" in type(tensor).__name__
    if "Ragged" in type(tensor).__name__:
        raise NoCounterpartError(
            f"input {tensor.name!r} is ragged, which Keras 3 does not have. Build the model with"
            " dense inputs, padded to one length."
        )
    return keras.Input(
        batch_shape=tuple(tensor.shape),
        dtype=tensor.dtype.name,
        name=name,
        sparse=sparse,
    )


def _give_name(name: str, result: Any, arguments: Sequence[Any]) -> None:
    """Name what was made of `arguments` after the layer of tf_keras; a model has each name once."""
    behind = {id(argument) for argument in arguments}
    tensors = keras.tree.flatten(result)
    operations: dict[int, keras.Operation] = {}
    while tensors:
        tensor = tensors.pop()
        if isinstance(tensor, keras.KerasTensor) and id(tensor) not in behind:
            operations[id(maker(tensor))] = maker(tensor)
            tensors += making_call(tensor).input_tensors
    for number, made in enumerate(operations.values()):
        made.name = f"{name}_{number}_" if number else name


def _mapped(structure: Any, values: Mapping[int, Any]) -> Any:
    """`structure` with tensors of Keras 3, and with arrays in the place of other tensors."""

    def one(value: Any) -> Any:
        if id(value) in values:
            return values[id(value)]
        if hasattr(value, "numpy"):
            return value.numpy()
        return value.as_list() if hasattr(value, "as_list") else value

    return keras.tree.map_structure(one, structure)


def _with_states(arguments: Any, kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a recurrent layer; tf_keras has the states behind the sequence."""
    sequence, *states = arguments
    return [sequence], {**kwargs, "initial_state": states} if states else dict(kwargs)


def _taken(layer: Any, twin: keras.layers.Layer, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that are not as they would be without."""
    parameters = inspect.signature(twin.call).parameters
    given = {key: value for key, value in kwargs.items() if value is not None}
    unknown = [key for key, value in given.items() if key not in parameters and value is not False]
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if unknown and not takes_all:
        raise NoCounterpartError(
            f"layer {layer.name!r} ({type(layer).__name__}) is called with {unknown[0]}, which"
            " Keras 3 does not have. Build the model without it."
        )
    return {key: value for key, value in given.items() if takes_all or key in parameters}


def _is_model(layer: Any) -> bool:
    import tf_keras

    return isinstance(layer, tf_keras.Model)


def _is_sequential(layer: Any) -> bool:
    import tf_keras

    return isinstance(layer, tf_keras.Sequential)


def _flat(structure: Any) -> list[Any]:
    return keras.tree.flatten(structure)
