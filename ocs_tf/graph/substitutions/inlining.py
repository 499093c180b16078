"""One functional model without models inside, over the weights of a model of any kind.

Models nested in a model are put in their places, to any depth, and so are users' layers that
kernels are inside of; what has a `call` of its own is traced; separable convolutions become the two
convolutions that they consist of, and products with constants a layer. The graph is made anew by
calling shallow copies of the user's layers, which share their variables: nothing is copied but
small objects, and the user's model is not touched.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

from ocs_tf.graph.adapters import adapter_for
from ocs_tf.graph.cloning import shallow_copy
from ocs_tf.graph.composites import parts
from ocs_tf.graph.substitutions import scaled_sum, separable
from ocs_tf.graph.substitutions.constants import rescaling
from ocs_tf.graph.substitutions.reshaping import open_shape, settled
from ocs_tf.graph.substitutions.reversible_embedding import (
    is_product,
    is_reversible,
    lookup,
    product,
)
from ocs_tf.graph.substitutions.sameness import computes_the_same
from ocs_tf.graph.substitutions.tracing import (
    Trace,
    UntraceableError,
    has_graph,
    inputs_of,
    nodes_behind,
    trace,
    untraceable,
)
from ocs_tf.keras_internals import (
    KerasCall,
    calls_in_order,
    context_arguments,
    is_made,
    is_variable,
    layers_within,
    maker,
    mask_of,
)
from ocs_tf.keras_types import Tensor
from ocs_tf.layers import KernelLayer, QuantizedCell
from ocs_tf.layers.structure import is_users

Path = tuple[str, ...]  # names of the models that a layer is in, from the outside in


def flat(
    model: keras.Model, open_quantized: bool = True, dtypes: Sequence[str] = ()
) -> keras.Model:
    """A functional model without models inside that computes what `model` does, on its variables.

    A functional model that has nothing to be put in its place is returned as it is. Names of
    layers stay; only where one of a nested model collides with another it becomes `OUTER.INNER`.
    An output that a nested model makes keeps the name of that model, by an `Identity`. A nested
    model that cannot be traced stays in one piece.

    Arguments:
        open_quantized: also put nested models in their places that hold quantized layers.
        dtypes: of the inputs of a model with a `call` of its own, flattened; float32 by default.

    Raises:
        ValueError: not a Keras 3 model, not built, or it cannot be traced; the message says what
            to do.
    """
    check_model(model)
    if not has_graph(model):
        result = _Flattener(open_quantized).traced(model, dtypes)
        if not computes_the_same(model, result):
            raise untraceable(model, "what was traced does not compute the same")
        return result
    whole = _functional(model)
    if not any(_is_replaced(node) for node in calls_in_order(whole) if not node.is_input):
        return whole
    for open_traced in (True, False):
        flattener = _Flattener(open_quantized, open_traced)
        result = flattener.functional(whole)
        if not flattener.opened:
            return whole
        if not flattener.has_traced or computes_the_same(whole, result):
            break
    return result


def check_model(model: Any) -> None:
    """Raise `ValueError` if `model` is not a Keras 3 model that is built."""
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        hint = (
            " It is a tf_keras (Keras 2) model: ocs_tf.load_model makes one of Keras 3 of it."
            if kind.startswith("tf_keras")
            else ""
        )
        raise ValueError(f"`model` must be a Keras 3 keras.Model, but is a {kind}.{hint}")
    if isinstance(model, keras.Sequential) and not (model.built and getattr(model, "inputs", None)):
        raise ValueError(
            f"`model` {model.name!r} is not built, so it has no weights yet. Give it a"
            " keras.Input as its first layer, or call it on data once."
        )


def _functional(model: keras.Model) -> keras.Model:
    """`model` itself if it is functional, or a functional view of a Sequential model."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs, name=model.name)
    return model


def _is_replaced(node: KerasCall) -> bool:
    """Whether something else comes in the place of what is called there."""
    operation, args = node.operation, node.arguments.args
    consists_of = (separable.is_separable, scaled_sum.is_scaled_sum, is_reversible)
    made_of = any(test(operation) for test in consists_of)
    return made_of or _has_layers(operation) or rescaling(operation, args) is not None


@dataclasses.dataclass
class _Made:
    """A layer or operation of the new model, still to be named."""

    operation: keras.Operation
    name: str
    path: Path


class _Flattener:
    def __init__(self, open_quantized: bool, open_traced: bool = True) -> None:
        self.open_quantized = open_quantized
        self.open_traced = open_traced  # what has a `call` of its own, too
        self.has_traced = False
        self.opened = False  # whether anything was put in its place
        self.made: list[_Made] = []
        # By the id of the user's operation, which is kept, so that the id stays its own.
        self.twins: dict[int, tuple[keras.Operation, Callable[..., Any], list[_Made]]] = {}
        self.own: set[int] = set()  # ids of the new model's operations
        self.created: set[int] = set()  # ids of operations that a `call` made

    def functional(self, model: keras.Model) -> keras.Model:
        """`model`, flat."""
        tensors: dict[int, keras.KerasTensor] = {}
        for node in calls_in_order(model):
            if node.is_input:
                options = node.operation.get_config()
                for old in node.outputs:
                    tensors[id(old)] = keras.Input(**{**options, "batch_shape": old.shape})
                    self._add(maker(tensors[id(old)]), node.operation.name, ())
        inputs = keras.tree.map_structure(lambda t: tensors[id(t)], model.input)
        self._replay(calls_in_order(model), tensors, ())
        outputs = keras.tree.map_structure(
            lambda t: self._named_output(t, tensors[id(t)]), model.output
        )
        return self._finish(inputs, outputs, model.name)

    def traced(self, model: keras.Model, dtypes: Sequence[str]) -> keras.Model:
        """`model`, which has a `call` of its own, flat."""
        inputs = inputs_of(model, dtypes)
        for tensor in keras.tree.flatten(inputs):
            self._add(maker(tensor), maker(tensor).name, ())
        found = trace(model, (inputs,), {}, self._is_own)
        return self._finish(inputs, self._replay_trace(found, ()), model.name)

    def _finish(self, inputs: Any, outputs: Any, name: str) -> keras.Model:
        # Keras computes masks by operations of its own, which layers read as arguments.
        for node in nodes_behind(keras.tree.flatten(outputs), _is_input):
            if not self._is_own(node.operation):
                self._add(node.operation, _without_number(node.operation.name), ("mask",))
        for made, unique in zip(self.made, _names(self.made), strict=True):
            vars(made.operation)["name"] = unique
        return keras.Model(inputs, outputs, name=name)

    # Calls -----------------------------------------------------------------------------------

    def _replay(
        self,
        nodes: Iterable[KerasCall],
        tensors: dict[int, keras.KerasTensor],
        path: Path,
        override: Mapping[str, Any] | None = None,
    ) -> None:
        """Repeat calls on new tensors.

        Arguments:
            tensors: new tensors by the ids of the recorded ones; added to.
            override: context arguments (`training`) that replace those of the single calls, as in
                Keras where a functional model is called with them.
        """
        for node in nodes:
            if node.is_input:
                continue
            takes = context_arguments(node.operation)
            args, kwargs = keras.tree.map_structure(_constant, node.arguments.fill_in(tensors))
            if isinstance(node.operation, keras.Model) and _is_own_mask(node.arguments):
                del kwargs["mask"]
            kwargs |= {k: v for k, v in (override or {}).items() if k in takes}
            outputs = self._call(node.operation, path, args, kwargs)
            for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
                tensors[id(old)] = new

    def _replay_trace(self, found: Trace, path: Path) -> Any:
        """The outputs of a traced `call`."""
        self.opened = True
        self.created |= found.created
        used = [tensor for node in found.nodes for tensor in node.input_tensors]
        used += keras.tree.flatten(found.outputs)
        tensors = {id(t): t for t in used if self._is_own(maker(t))}
        self._replay(found.nodes, tensors, path)
        return keras.tree.map_structure(lambda t: tensors[id(t)], found.outputs)

    def _call(
        self, operation: keras.layers.Layer, path: Path, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if _has_layers(operation) and not self._is_kept(operation):
            within = (*path, str(operation.name))
            if isinstance(operation, keras.Model) and has_graph(operation):
                return self._call_functional(operation, within, args, kwargs)
            try:
                found = self._trace(operation, args, kwargs)
            except UntraceableError:
                pass  # it stays in one piece
            else:
                outputs = self._replay_trace(found, within)
                return self._with_masks(operation, args, kwargs, outputs, within)
        shape = settled(operation, args[0].shape) if open_shape(operation) else None
        if shape is not None:
            remade: Any = type(operation)
            return self._twin(operation, path, remade(shape))(*args, **kwargs)
        scaled = rescaling(operation, args)
        if scaled is not None:
            self.opened = True
            layer, tensor = scaled
            return self._twin(operation, path, layer)(tensor)
        return self._twin(operation, path)(*args, **kwargs)

    def _trace(self, layer: keras.layers.Layer, args: Any, kwargs: Mapping[str, Any]) -> Trace:
        if not self.open_traced:
            raise untraceable(layer, "what was traced does not compute the same")
        found = trace(layer, args, kwargs, self._is_own)
        self.has_traced = True
        return found

    def _with_masks(
        self,
        layer: keras.layers.Layer,
        args: Any,
        kwargs: Mapping[str, Any],
        outputs: Any,
        path: Path,
    ) -> Any:
        """The `outputs` of a traced `layer`, with the masks that Keras gives them after a call."""
        first = next(iter(inspect.signature(layer.call).bind(*args, **kwargs).arguments.values()))
        before = kwargs.get("mask")
        before = keras.tree.map_structure(mask_of, first) if before is None else before
        if not layer.supports_masking or all(mask is None for mask in keras.tree.flatten(before)):
            return outputs
        masks = keras.tree.flatten(layer.compute_mask(first, before))
        flat_outputs = keras.tree.flatten(outputs)
        masks += [None] * (len(flat_outputs) - len(masks))
        masked = [
            tensor if mask_of(tensor) is not None else self._masked(tensor, mask, path)
            for tensor, mask in zip(flat_outputs, masks, strict=False)
        ]
        return keras.tree.pack_sequence_as(outputs, masked)

    def _is_kept(self, model: keras.layers.Layer) -> bool:
        holders = (KernelLayer, QuantizedCell)
        quantized = any(isinstance(layer, holders) for layer in layers_within(model))
        return quantized and not self.open_quantized

    def _call_functional(
        self, model: keras.Model, path: Path, args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        self.opened = True
        context = {**dict(zip(("inputs", "training", "mask"), args, strict=False)), **kwargs}
        inputs, mask = context.pop("inputs"), context.pop("mask", None)
        model = _functional(model)
        masks = [None] * len(model.inputs) if mask is None else keras.tree.flatten(mask)
        tensors: dict[int, keras.KerasTensor] = {}
        for old, new, its_mask in zip(model.inputs, _in_order(model, inputs), masks, strict=True):
            tensors[id(old)] = self._masked(self._fitting(new, old, path), its_mask, path)
        override = {name: value for name, value in context.items() if value is not None}
        self._replay(calls_in_order(model), tensors, path, override)
        return keras.tree.map_structure(lambda t: tensors[id(t)], model.output)

    def _fitting(
        self, tensor: keras.KerasTensor, wanted: keras.KerasTensor, path: Path
    ) -> keras.KerasTensor:
        """`tensor` with the dtype and rank of `wanted`, as Keras makes the inputs of models fit."""
        if tensor is None:
            return None  # an optional input
        steps: list[Callable[[Any], Any]] = []
        if keras.backend.standardize_dtype(tensor.dtype) != wanted.dtype:
            steps.append(lambda x: keras.ops.cast(x, wanted.dtype))
        if len(tensor.shape) == len(wanted.shape) + 1 and tensor.shape[-1] == 1:
            steps.append(lambda x: keras.ops.squeeze(x, -1))
        if len(tensor.shape) == len(wanted.shape) - 1 and wanted.shape[-1] == 1:
            steps.append(lambda x: keras.ops.expand_dims(x, -1))
        for step in steps:
            tensor = step(tensor)
            self._add(maker(tensor), _without_number(maker(tensor).name), path)
        return tensor

    def _masked(
        self, tensor: keras.KerasTensor, mask: keras.KerasTensor | None, path: Path
    ) -> keras.KerasTensor:
        """`tensor` with a mask that a model was given as an argument."""
        if mask is None:
            return tensor
        layer = WithMask()
        self._add(layer, "with_mask", path)
        return layer(tensor, mask=mask)

    def _named_output(self, old: keras.KerasTensor, new: keras.KerasTensor) -> keras.KerasTensor:
        """`new` from an operation of the name that `old` comes from, if that was a nested model."""
        source = maker(old)
        if not isinstance(source, keras.Model) or id(source) in self.twins:
            return new
        key = -id(source)  # a layer in the place of the model, which is not a twin of it
        if key not in self.twins:
            layer = keras.layers.Identity(dtype=new.dtype)
            self.twins[key] = source, layer, [self._add(layer, str(source.name), ())]
        return self.twins[key][1](new)

    # Layers ----------------------------------------------------------------------------------

    def _twin(
        self, operation: keras.layers.Layer, path: Path, layer: keras.Operation | None = None
    ) -> Callable[..., Any]:
        """The replacement of the user's `operation`; the same for all its calls.

        Arguments:
            layer: takes its place; `None` for the layers that it consists of, or a copy.
        """
        if id(operation) not in self.twins:
            self.twins[id(operation)] = operation, *self._make_twin(operation, path, layer)
        _, twin, made = self.twins[id(operation)]
        for part in made:  # its name is that by which it is the nearest to the top
            part.path = min(part.path, path, key=len)
        return twin

    def _make_twin(
        self, operation: keras.layers.Layer, path: Path, layer: keras.Operation | None
    ) -> tuple[Callable[..., Any], list[_Made]]:
        if separable.is_separable(operation):
            self.opened = True
            both = separable.parts(operation)
            made = [self._add(part, str(part.name), path) for part in both]
            return lambda x: both[1](both[0](x)), made
        if scaled_sum.is_scaled_sum(operation):
            self.opened = True
            scale, add = scaled_sum.parts(operation)
            made = [self._add(part, str(part.name), path) for part in (scale, add)]
            return lambda inputs: add([inputs[0], scale(inputs[1])]), made
        if is_reversible(operation):
            self.opened = True
            return self._both_ways(operation, path)
        twin = shallow_copy(operation) if layer is None else layer
        name = str(operation.name)
        name = _without_number(name) if id(operation) in self.created else name
        return twin, [self._add(twin, name, path)]

    def _both_ways(
        self, layer: keras.layers.Layer, path: Path
    ) -> tuple[Callable[..., Any], list[_Made]]:
        """What is in the place of a `ReversibleEmbedding`; only the ways that are called."""
        parts: dict[Any, Any] = {}
        made: list[_Made] = []

        def call(inputs: Tensor, reverse: bool = False) -> Tensor:
            make = (product if is_product(layer) else shallow_copy) if reverse else lookup
            if make not in parts:
                parts[make] = make(layer)
                made.append(self._add(parts[make], str(parts[make].name), path))
            return parts[make](inputs, **({"reverse": True} if make is shallow_copy else {}))

        return call, made

    def _add(self, operation: keras.Operation, name: str, path: Path) -> _Made:
        made = _Made(operation, name, path)
        self.made.append(made)
        self.own.add(id(operation))
        return made

    def _is_own(self, operation: keras.Operation) -> bool:
        return id(operation) in self.own


@keras.saving.register_keras_serializable("ocs_tf")
class WithMask(keras.layers.Layer):
    """Its input, with the mask that it is called with in place of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return keras.ops.copy(inputs)  # a new tensor: others may read the one with its own mask

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def _has_layers(operation: keras.layers.Layer) -> bool:
    """Whether it is a model, or a user's layer that kernels are inside of."""
    if isinstance(operation, keras.Model):
        return True
    if not is_users(operation):
        return False
    inside = layers_within(operation, include_self=False)
    return any(adapter_for(layer) or parts(layer) or is_reversible(layer) for layer in inside)


def _constant(value: Any) -> Any:
    """An array in place of a variable, or of a tensor that a traced `call` computed."""
    if is_variable(value) or (keras.ops.is_tensor(value) and not is_made(value)):
        return keras.ops.convert_to_numpy(value)
    return value


def _is_input(operation: keras.Operation) -> bool:
    return isinstance(operation, keras.layers.InputLayer)


def _is_own_mask(arguments: Any) -> bool:
    """Whether the mask among recorded `arguments` is one that the first of them had itself."""
    mask = arguments.kwargs.get("mask")
    if mask is None or not arguments.args:
        return False
    of_inputs = [mask_of(t) for t in keras.tree.flatten(arguments.args[0])]
    masks = keras.tree.flatten(mask)
    same = [one is other for one, other in zip(masks, of_inputs, strict=False)]
    return len(masks) == len(of_inputs) and all(same)


def _in_order(model: keras.Model, inputs: Tensor) -> list[keras.KerasTensor]:
    """What a functional model is called with, in the order of its inputs."""
    wanted = model.input
    if isinstance(inputs, Mapping) and not isinstance(wanted, Mapping):
        return [inputs[tensor.name] for tensor in model.inputs]
    if isinstance(inputs, Mapping):
        inputs = {key: inputs[key] for key in wanted}
    return keras.tree.flatten(inputs)


def _without_number(name: str) -> str:
    """An automatic name without the count that makes it unique."""
    return re.sub(r"_\d+$", "", name)


def _names(made: list[_Made]) -> list[str]:
    """Unique names: one's own, where nothing else of that name is nearer to the top."""
    often = collections.Counter(m.name for m in made)
    names: dict[int, str] = {}
    taken: set[str] = set()
    for index in sorted(range(len(made)), key=lambda i: len(made[i].path)):
        one = made[index]
        own = not one.path or often[one.name] == 1
        stem = name = one.name if own else ".".join((*one.path, one.name))
        number = 0
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        names[index] = name
    return [names[index] for index in range(len(made))]
