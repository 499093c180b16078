"""Which layers duplicate channels, and which batch norms are taken up by the layer before them."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.export.form import Form
from ocs_tf.export.lowering.kernels import adapter_of, quantized, with_copies_in_order
from ocs_tf.graph.analysis import channels
from ocs_tf.graph.reader import Graph, Node


@dataclasses.dataclass
class Decisions:
    """What a lowering does, by layer name.

    Attributes:
        expanded: the channel map of an input that has its copies as channels.
        fed: layers whose copies the layer in front makes.
        ahead: the layer that reads the copies, by the padding that they are made in front of.
        repeated: how the output channels of a layer are repeated for its reader.
        norms: the batch norm that a layer takes up.
        notes: what a user should know of these, in plain words.
    """

    expanded: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fed: set[str] = dataclasses.field(default_factory=set)
    ahead: dict[str, str] = dataclasses.field(default_factory=dict)
    repeated: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    norms: dict[str, keras.layers.Layer] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def beside(self) -> set[str]:
        """Names of the layers right in front of which copies are made."""
        return self.expanded.keys() - self.fed - set(self.ahead.values())

    @property
    def dropped(self) -> set[str]:
        """Names of the batch norms that are taken up."""
        return {norm.name for norm in self.norms.values()}


def decide(graph: Graph, form: Form, merge_copies: bool) -> Decisions:
    """The decisions for a quantized model.

    Raises:
        ValueError: copies must be channels, but the layer reads several axes.
    """
    decisions = Decisions()
    for node in graph.nodes:
        if isinstance(node.layer, layers.KernelLayer):
            _choose_expansion(decisions, graph, node, form, merge_copies)
            norm = graph.foldable_norm(node.layer, may_be_output=True)
            if norm is not None and node.layer.output_grid is None:
                decisions.norms[node.layer.name] = norm
    return decisions


def _choose_expansion(
    decisions: Decisions, graph: Graph, node: Node, form: Form, merge_copies: bool
) -> None:
    layer = node.layer
    if not layer.copies or layer.name in decisions.expanded:
        return
    kernel = with_copies_in_order(quantized(layer, form)[0])
    limit = form.code_limit(layer.weight_bits, adapter_of(layer).kind)
    fits = limit is None or np.abs(kernel.effective_codes()).max(initial=0) <= limit
    if merge_copies and fits:
        return
    adapter = adapter_of(layer)
    if not adapter.is_direct(layer):
        raise ValueError(
            f"layer {layer.name!r} has split channels whose codes do not add up to int8, over"
            " several axes of its input. Convert it with expand_ratio=0 or fewer bits, or"
            " export with merge_copies=True or target='packed'."
        )
    decisions.expanded[layer.name] = mapping = adapter.input_map(layer, kernel.channel_map)
    try:
        chain = channels.producers(graph, node)
    except channels.NoProducer as reason:
        decisions.notes.append(
            f"{layer.name}: no layer in front can repeat channels for it ({reason}), so a"
            f" Concatenation of slices duplicates {layer.copies} channels."
        )
        padding = channels.padding_in_front(graph, node)
        if padding is not None:
            decisions.ahead[padding.layer.name] = layer.name
    else:
        decisions.fed.add(layer.name)
        decisions.repeated |= {producer.layer.name: mapping for producer in chain}
