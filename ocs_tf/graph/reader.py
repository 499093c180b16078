"""Reads a Keras model: its layers in order, their consumers, which batch norms can be folded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from ocs_tf.graph import adapters, composites
from ocs_tf.graph.adapters import KernelAdapter
from ocs_tf.graph.affine import affine, affine_axis
from ocs_tf.graph.substitutions.inlining import flat
from ocs_tf.keras_internals import calls_in_order
from ocs_tf.layers.structure import is_users


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer (or bare Keras operation) in the model."""

    layer: keras.layers.Layer  # or a bare operation, which has neither weights nor options
    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]
    arguments: Any  # Keras' SymbolicArguments; None for an input layer

    @property
    def only_reads(self) -> bool:
        """Whether the call has one input and no options."""
        if self.arguments is None:
            return True
        # Keras records the default of `training`, too.
        options = [v for k, v in self.arguments.kwargs.items() if k != "training" or v]
        return len(self.arguments.args) == 1 and all(value is None for value in options)


@dataclasses.dataclass(frozen=True, eq=False)
class KernelRef:
    """A kernel that can be quantized.

    Attributes:
        layer: the layer or cell that has it.
        adapter: what is known of it.
        batch_norm: what is folded into it, if anything: a batch norm, or another affine layer
            (`graph.affine`).
        owner: the layer of the model that it is in: `layer` itself but in composites.
        part: its path in the owner; see `graph.composites`. Empty if the layer is the owner.
    """

    layer: keras.layers.Layer
    adapter: KernelAdapter
    batch_norm: keras.layers.Layer | None
    owner: keras.layers.Layer
    part: str = ""

    @property
    def name(self) -> str:
        """Name of the layer; `LAYER/PART` in a composite."""
        return f"{self.owner.name}/{self.part}" if self.part else str(self.owner.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel in canonical form, `[..., C, F]`."""
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
    """A flat functional view of a model; see `flat` for what it raises.

    Attributes:
        model: a `keras.Model` with inputs and outputs over the user's own layers, or over layers
            that share their variables.
        nodes: calls in topological order, input layers first.
        kernels_of: `KernelRef`s by layer name; empty for layers without kernels.
        kernels: `KernelRef`s by their own name, in topological order.
    """

    def __init__(
        self,
        model: keras.Model,
        fold_batch_norm: bool = True,
        *,
        open_quantized: bool = False,
        dtypes: Sequence[str] = (),
    ) -> None:
        self.model = flat(model, open_quantized, dtypes)
        self.nodes = list(_nodes(self.model))
        self.producer = {id(t): n for n in self.nodes for t in n.outputs}
        self.consumers: dict[int, list[Node]] = {id(t): [] for n in self.nodes for t in n.outputs}
        for node in self.nodes:
            for tensor in node.inputs:
                self.consumers[id(tensor)].append(node)
        self.output_ids = {id(t) for t in self.model.outputs}
        self.kernels_of: dict[str, list[KernelRef]] = {}
        for node in self.nodes:
            if node.layer.name not in self.kernels_of:
                self.kernels_of[node.layer.name] = list(self._refs_of(node.layer, fold_batch_norm))
        self.kernels = {ref.name: ref for refs in self.kernels_of.values() for ref in refs}
        self.folded = {s.batch_norm.name for s in self.kernels.values() if s.batch_norm is not None}

    def _refs_of(self, layer: keras.layers.Layer, fold_batch_norm: bool) -> Iterator[KernelRef]:
        adapter = adapters.adapter_for(layer)
        if adapter is not None:
            norm = self.foldable_norm(layer) if fold_batch_norm else None
            yield KernelRef(layer, adapter, norm, layer)
            return
        if isinstance(layer, keras.Model) and not is_users(layer):
            return  # one that holds quantized layers stays as it is
        for path, part in composites.parts(layer).items():
            yield KernelRef(part.holder, part.adapter, None, layer, path)

    def calls(self, layer: keras.layers.Layer) -> list[Node]:
        """The calls of `layer`; more than one if it is shared."""
        return [node for node in self.nodes if node.layer is layer]

    def calls_of(self, name: str) -> list[Node]:
        """The calls of the layer of this name."""
        return [node for node in self.nodes if node.layer.name == name]

    def only_consumer(self, tensor: keras.KerasTensor) -> Node | None:
        """The one call that reads `tensor`, if there is just one and it is no model output."""
        readers = self.consumers[id(tensor)]
        return readers[0] if len(readers) == 1 and id(tensor) not in self.output_ids else None

    def tensors_before_kernels(self) -> set[int]:
        """Ids of the tensors that depend on no kernel, the model's inputs first."""
        before: set[int] = set()
        for node in self.nodes:
            if not self.kernels_of[node.layer.name] and _all_in(node.inputs, before):
                before.update(id(t) for t in node.outputs)
        return before

    def tensors_behind_kernels(self) -> set[int]:
        """Ids of the tensors that no kernel depends on, such as the model's outputs."""
        ahead: set[int] = set()  # tensors that a kernel reads, sooner or later
        for node in reversed(self.nodes):
            if self.kernels_of[node.layer.name] or any(id(t) in ahead for t in node.outputs):
                ahead.update(id(t) for t in node.inputs)
        return {id(t) for node in self.nodes for t in node.outputs} - ahead

    def first_kernels(self) -> set[str]:
        """Names of the kernel layers with no kernel layer between them and the model's inputs."""
        before = self.tensors_before_kernels()
        calls = (node for node in self.nodes if _all_in(node.inputs, before))
        return {ref.name for node in calls for ref in self.kernels_of[node.layer.name]}

    def last_kernels(self) -> set[str]:
        """Names of the kernel layers with no kernel layer between them and the model's outputs."""
        behind = self.tensors_behind_kernels()
        calls = (node for node in self.nodes if _all_in(node.outputs, behind))
        return {ref.name for node in calls for ref in self.kernels_of[node.layer.name]}

    def foldable_norm(
        self, layer: keras.layers.Layer, *, may_be_output: bool = False
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


def _all_in(tensors: Sequence[keras.KerasTensor], ids: set[int]) -> bool:
    return all(id(tensor) in ids for tensor in tensors)


def is_chain(model: keras.Model) -> bool:
    """Whether a functional `model` could be Sequential: each layer reads the one before it."""
    nodes = list(_nodes(model))
    before: tuple[keras.KerasTensor, ...] = ()
    for node in nodes:
        plain = isinstance(node.layer, keras.layers.Layer) and len(node.outputs) == 1
        alone = sum(other.layer is node.layer for other in nodes) == 1 and node.only_reads
        if not (plain and alone and node.inputs == before):
            return False
        before = node.outputs
    return tuple(model.outputs) == before


def _nodes(model: keras.Model) -> Iterator[Node]:
    for node in calls_in_order(model):
        arguments = None if node.is_input else node.arguments
        yield Node(node.operation, tuple(node.input_tensors), tuple(node.outputs), arguments)
