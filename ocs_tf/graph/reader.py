"""Reading a Keras model: its layers in order, who reads whom, which batch norms can be folded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from ocs_tf.graph import adapters, composites
from ocs_tf.graph.adapters import KernelAdapter
from ocs_tf.graph.affine import affine, affine_axis


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer (or bare Keras operation) in the model."""

    layer: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    arguments: Any  # Keras' SymbolicArguments; None for an input layer


@dataclasses.dataclass(frozen=True, eq=False)
class KernelSite:
    """A kernel that can be quantized.

    Attributes:
        layer: the layer or cell that has it.
        adapter: what is known of it.
        batch_norm: what is folded into it, if anything: a batch norm, or another affine layer
            (`graph.affine`).
        owner: the layer of the model that it is in: `layer` itself but in composites.
        part: its path in the owner; see `graph.composites`. Empty if the layer is the owner.
    """

    layer: Any
    adapter: KernelAdapter
    batch_norm: keras.layers.Layer | None
    owner: Any
    part: str = ""

    @property
    def name(self) -> str:
        """Of the layer; `LAYER/PART` in a composite."""
        return f"{self.owner.name}/{self.part}" if self.part else str(self.owner.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel in canonical form, `[..., C, F]`."""
        return self.adapter.read(self.layer)[0].shape

    def weights(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Float32 kernel `[..., C, F]` in canonical form and bias `[F]`, batch norm folded."""
        kernel, bias = self.adapter.read(self.layer)
        if self.batch_norm is None:
            return kernel, bias
        gain, shift = affine(self.batch_norm, kernel.shape[-1])
        folded = np.empty(kernel.shape, np.float32)
        np.multiply(kernel, gain, out=folded, casting="same_kind")  # in float64, piece by piece
        return folded, (shift + gain * (0 if bias is None else bias)).astype(np.float32)


class Graph:
    """A functional view of a model.

    Attributes:
        model: a `keras.Model` with inputs and outputs over the user's own layers.
        nodes: calls in topological order, input layers first.
        sites: `KernelSite`s by layer name; empty for layers without kernels.
        kernels: `KernelSite`s by their own name, in topological order.
    """

    def __init__(self, model: Any, fold_batch_norm: bool = True) -> None:
        self.model = as_functional(model)
        self.nodes = list(_nodes(self.model))
        self.producer = {id(t): n for n in self.nodes for t in n.outputs}
        self.consumers: dict[int, list[Node]] = {id(t): [] for n in self.nodes for t in n.outputs}
        for node in self.nodes:
            for tensor in node.inputs:
                self.consumers[id(tensor)].append(node)
        self.output_ids = {id(t) for t in self.model.outputs}
        self.sites: dict[str, list[KernelSite]] = {}
        for node in self.nodes:
            if node.layer.name not in self.sites:
                self.sites[node.layer.name] = list(self._sites_of(node.layer, fold_batch_norm))
        self.kernels = {site.name: site for sites in self.sites.values() for site in sites}
        self.folded = {s.batch_norm.name for s in self.kernels.values() if s.batch_norm is not None}

    def _sites_of(self, layer: Any, fold_batch_norm: bool) -> Iterator[KernelSite]:
        adapter = adapters.adapter_for(layer)
        if adapter is not None:
            norm = self.foldable_norm(layer) if fold_batch_norm else None
            yield KernelSite(layer, adapter, norm, layer)
            return
        for path, part in composites.parts(layer).items():
            yield KernelSite(part.holder, part.adapter, None, layer, path)

    def calls(self, layer: Any) -> list[Node]:
        """The calls of `layer`; more than one if it is shared."""
        return [node for node in self.nodes if node.layer is layer]

    def calls_of(self, name: str) -> list[Node]:
        """The calls of the layer of this name."""
        return [node for node in self.nodes if node.layer.name == name]

    def only_consumer(self, tensor: Any) -> Node | None:
        """The one call that reads `tensor`, if there is just one and it is no model output."""
        readers = self.consumers[id(tensor)]
        return readers[0] if len(readers) == 1 and id(tensor) not in self.output_ids else None

    def first_kernels(self) -> set[str]:
        """Names of the kernel layers with no kernel layer between them and the model's inputs."""
        reached: set[int] = set()  # outputs that depend on a kernel
        first: set[str] = set()
        for node in self.nodes:
            behind = any(id(t) in reached for t in node.inputs)
            sites = self.sites[node.layer.name]
            if not behind:
                first.update(site.name for site in sites)
            if behind or sites:
                reached.update(id(t) for t in node.outputs)
        return first

    def last_kernels(self) -> set[str]:
        """Names of the kernel layers with no kernel layer between them and the model's outputs."""
        ahead: set[int] = set()  # tensors that a kernel reads, sooner or later
        last: set[str] = set()
        for node in reversed(self.nodes):
            later = any(id(t) in ahead for t in node.outputs)
            sites = self.sites[node.layer.name]
            if not later:
                last.update(site.name for site in sites)
            if later or sites:
                ahead.update(id(t) for t in node.inputs)
        return last

    def foldable_norm(
        self, layer: Any, *, may_be_output: bool = False
    ) -> keras.layers.Layer | None:
        """The batch norm, or other affine layer, directly behind `layer` (float or quantized).

        `None` if something else reads what is between them. One that is an output of the model
        keeps its name there, unless `may_be_output`.
        """
        calls = self.calls(layer)
        adapter = adapters.any_adapter(layer)
        direct = adapter is not None and adapter.is_direct(layer)
        if len(calls) != 1 or not direct or not adapters.is_linear(layer.activation):
            return None
        reader = self.only_consumer(calls[0].outputs[0])
        axis = None if reader is None else affine_axis(reader.layer)
        if reader is None or axis is None:
            return None
        if len(self.calls(reader.layer)) != 1:
            return None
        if id(reader.outputs[0]) in self.output_ids and not may_be_output:
            return None
        if reader.arguments.kwargs.get("training"):
            return None  # it normalizes by each batch's own statistics
        rank = len(reader.outputs[0].shape)
        on_channels = axis % rank == adapters.channel_axis(layer) % rank
        return reader.layer if on_channels else None


def as_functional(model: Any) -> keras.Model:
    """`model` itself if it is functional, or a functional view of a Sequential model.

    Raises:
        ValueError: not a Keras 3 model, not built, or subclassed; the message says what to do.
    """
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        hint = (
            " It is a tf_keras (Keras 2) model: save it as .keras or .h5 and load it with"
            " keras.models.load_model of Keras 3."
            if kind.startswith("tf_keras")
            else ""
        )
        raise ValueError(f"`model` must be a Keras 3 keras.Model, but is a {kind}.{hint}")
    if not _has_graph(model):
        raise ValueError(
            f"`model` {model.name!r} is a subclassed keras.Model ({type(model).__name__}), whose"
            " layer graph cannot be read. Make it functional first: `inputs = keras.Input(...);"
            " model = keras.Model(inputs, model.call(inputs))`."
        )
    if isinstance(model, keras.Sequential):
        if not model.built or not model.inputs:
            raise ValueError(
                f"`model` {model.name!r} is not built, so it has no weights yet. Give it a"
                " keras.Input as its first layer, or call it on data once."
            )
        return keras.Model(model.inputs, model.outputs, name=model.name)
    return model


def _has_graph(model: keras.Model) -> bool:
    """Whether a graph of layers, and not a `call` of the user's, says what `model` computes."""
    definer = next(c for c in type(model).__mro__ if "call" in vars(c))
    known = isinstance(model, keras.Sequential) or hasattr(model, "_nodes_by_depth")
    return known and definer.__module__.startswith("keras.")


def _nodes(model: keras.Model) -> Iterator[Node]:
    # Keras has no public way to walk a functional model's calls in order; this attribute is as
    # old as Keras 3, and what Functional itself runs by.
    by_depth = model._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            arguments = None if node.is_input else node.arguments
            yield Node(node.operation, tuple(node.input_tensors), tuple(node.outputs), arguments)
