"""Building the quantized model: the same graph with quantized layers in place of float ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.graph.reader import Graph
from ocs_tf.numerics import ActivationGrid, QuantizedKernel


@dataclasses.dataclass(frozen=True)
class Replacement:
    """What stands in for a layer with a kernel.

    Attributes:
        kernel: canonical quantized kernel.
        bias: float32 `[F]` or `None`.
        sqnr_db: of the effective kernel against the float one.
    """

    kernel: QuantizedKernel
    bias: np.ndarray | None
    sqnr_db: float


def rewrite(
    graph: Graph, kernels: Mapping[str, Replacement], grids: Mapping[str, ActivationGrid]
) -> keras.Model:
    """A new model with quantized kernels and rounded activations; `graph.model` stays as it is.

    Arguments:
        kernels: by layer name.
        grids: by site; see `graph.activations`.
    """

    def replace(layer: Any) -> Any:
        name = layer.name
        if name in kernels:
            return _quantized_layer(graph, layer, kernels[name], grids)
        if name in graph.kernels and graph.kernels[name].batch_norm is not None:
            adapter = graph.kernels[name].adapter
            return type(layer).from_config(adapter.quantized_config(layer, use_bias=True))
        twin = clone_layer(layer)
        wrappable = isinstance(layer, keras.layers.Layer) and len(graph.calls(layer)) > 0
        if name in grids and wrappable and not isinstance(layer, keras.layers.InputLayer):
            return layers.QuantizedOutput(twin, grids[name], name=name)
        return twin

    def call(layer: Any, twin: Any, *args: Any, **kwargs: Any) -> Any:
        name = layer.name
        if name in graph.folded:
            return args[0]
        if f"{name}:input" in grids:
            quantizer = layers.FakeQuantize(grids[f"{name}:input"], name=f"{name}_input_quantizer")
            args = (quantizer(args[0]), *args[1:])
        outputs = twin(*args, **kwargs)
        if name in grids and not isinstance(twin, (layers.KernelLayer, layers.QuantizedOutput)):
            outputs = layers.FakeQuantize(grids[name], name=f"{name}_quantizer")(outputs)
        return outputs

    model, twins = clone(graph, replace, call)
    for name, site in graph.kernels.items():
        if name in kernels:
            site.adapter.store(twins[name], kernels[name].kernel, kernels[name].bias)
        elif site.batch_norm is not None:
            kernel, bias = site.weights()
            inner = getattr(twins[name], "layer", twins[name])
            inner.set_weights([site.adapter.to_keras(kernel, site.layer), bias])
    return model


def clone(
    graph: Graph, replace: Callable[[Any], Any], call: Callable[..., Any]
) -> tuple[keras.Model, dict[str, Any]]:
    """Build the graph anew from other layers.

    Arguments:
        replace: from a layer to the new layer in its place; called once per layer. New layers
            whose weights have the old ones' shapes get their values.
        call: `call(layer, new_layer, *args, **kwargs)` for each call of `layer`; for an input it
            gets an identity as the new layer.

    Returns:
        The new model, compiled as the old one is, and its layers by the old layers' names.
    """
    twins: dict[str, Any] = {}
    tensors: dict[int, Any] = {}
    inputs: dict[int, Any] = {}
    for node in graph.nodes:
        if node.arguments is None:
            for old in node.outputs:
                new = keras.Input(batch_shape=old.shape, dtype=old.dtype, name=node.layer.name)
                inputs[id(old)] = new
                tensors[id(old)] = call(node.layer, _identity, new)
            continue
        if node.layer.name not in twins:
            twins[node.layer.name] = replace(node.layer)
        args, kwargs = node.arguments.fill_in(tensors)
        outputs = call(node.layer, twins[node.layer.name], *args, **kwargs)
        for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
            tensors[id(old)] = new
    old_model = graph.model
    model = keras.Model(
        keras.tree.map_structure(lambda t: inputs[id(t)], old_model.input),
        keras.tree.map_structure(lambda t: tensors[id(t)], old_model.output),
        name=old_model.name,
    )
    for node in graph.nodes:
        twin = twins.get(node.layer.name)
        if twin is not None and getattr(node.layer, "weights", None) and twin is not node.layer:
            _copy_weights(node.layer, twin)
    if old_model.compiled:
        model.compile_from_config(old_model.get_compile_config())
    return model, twins


def clone_layer(layer: Any) -> Any:
    """A new layer (or operation) of the same configuration.

    Raises:
        ValueError: the layer cannot be made from its configuration.
    """
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be copied from its"
            f" configuration: {error}. Give the class a get_config() that returns every argument"
            " of __init__."
        ) from error


def _copy_weights(old: Any, new: Any) -> None:
    values = old.get_weights()
    if [v.shape for v in values] == [w.shape for w in new.weights]:
        new.set_weights(values)


def _quantized_layer(
    graph: Graph, layer: Any, replacement: Replacement, grids: Mapping[str, ActivationGrid]
) -> layers.KernelLayer:
    adapter, kernel = graph.kernels[layer.name].adapter, replacement.kernel
    return adapter.quantized_class.from_config(
        {
            **adapter.quantized_config(layer, replacement.bias is not None),
            "weight_bits": kernel.bits,
            "granularity": kernel.granularity,
            "copies": kernel.splits,
            "output_grid": grids.get(layer.name),
            "preactivation_grid": grids.get(f"{layer.name}:preactivation"),
            "kernel_sqnr_db": replacement.sqnr_db,
        }
    )


def _identity(x: Any) -> Any:
    return x
