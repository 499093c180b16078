"""Barriers between kernels and what the converter might fold into them (`export.folding`)."""

from __future__ import annotations

from typing import Any

import keras

from ocs_tf import layers
from ocs_tf.export.barrier import Barrier
from ocs_tf.export.folding import (
    ends_in_sum,
    function_may_multiply,
    may_begin_with_product,
    may_end_in_product,
)
from ocs_tf.export.form import Form
from ocs_tf.export.lowering.kernels import adapter_of, inside
from ocs_tf.graph.reader import Graph


class Apart:
    """Keeps the kernels of a graph as they are.

    Arguments:
        graph: the quantized model.
        form: files of form `"float"` have no kernels to keep.
    """

    def __init__(self, graph: Graph, form: Form) -> None:
        self._graph = graph
        self._form = form
        self._barriers: dict[str, Any] = {}  # by name; a layer may be called more than once

    def from_makers(self, layer: keras.layers.Layer, given: Any) -> Any:
        """The arguments of a layer with kernels, apart from it: nothing is folded into them."""
        if self._form.kernels == "float" or not has_kernels(layer):
            return given
        dense = isinstance(layer, layers.KernelLayer) and adapter_of(layer).kind == "dense"
        tensors = [tensor for call in self._graph.calls_of(layer.name) for tensor in call.inputs]
        adds = dense and self._form.integer and any(ends_in_sum(self._graph, t) for t in tensors)
        if adds or any(may_end_in_product(self._graph, tensor) for tensor in tensors):
            return self._behind_barriers(given, f"{layer.name}_barrier")
        return given

    def from_readers(self, layer: keras.layers.Layer, made: Any, function: Any) -> Any:
        """The output of a layer with kernels, apart from what the converter might fold into them.

        Arguments:
            made: before its activation `function`, if that is a step of its own.
        """
        if self._form.kernels == "float" or not has_kernels(layer):
            return made
        if function is not None:
            multiplied = function_may_multiply(layers.unwrapped(layer))
        else:
            read = [t for call in self._graph.calls_of(layer.name) for t in call.outputs]
            multiplied = any(may_begin_with_product(self._graph, tensor) for tensor in read)
        return self._behind_barriers(made, f"{layer.name}_behind") if multiplied else made

    def _behind_barriers(self, tensors: Any, name: str) -> Any:
        """The floats of a structure of tensors, behind barriers."""
        barrier = self._barriers.setdefault(name, Barrier(name=name))
        return keras.tree.map_structure(
            lambda t: barrier(t) if keras.backend.is_keras_tensor(t) and "float" in t.dtype else t,
            tensors,
        )


def has_kernels(layer: keras.layers.Layer) -> bool:
    """Whether a layer of a quantized model has quantized kernels."""
    return isinstance(layer, layers.KernelLayer) or bool(inside(layer))
