"""How many bits each activation tensor gets: overrides of layers, the ends of the model, the rest.

Published results keep a network's inputs and outputs at 8 bits where the other activations get
fewer (Zhao et al., ICML 2019; Nagel et al., arXiv:2106.08295).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras

from ocs_tf.config import Config, Override
from ocs_tf.graph.analysis.activation_sites import Site, all_sites, moves_values
from ocs_tf.graph.reader import Graph, Node

_FLOAT_BITS = 32  # more than any grid has
_Wish = tuple[int, int]  # how specific (an override before the ends of the model), and the bits


def activation_bits(graph: Graph, sites: Sequence[Site], config: Config) -> dict[str, int]:
    """The bit width of each site that is rounded, by key; the others stay in float32.

    All sites of a group share a grid: they get the most bits that is asked for one of them, an
    override counting before what is asked for all.

    Arguments:
        sites: of `graph`.
        config: resolved.
    """
    before, behind = graph.tensors_before_kernels(), graph.tensors_behind_kernels()
    read = _read_by_kernels(graph)
    main = {
        site.group
        for site in sites
        if not site.is_preactivation and any(id(tensor) in read for tensor in site.tensors)
    }
    rounded = {site.key: _rounded_tensors(graph, site) for site in sites}
    ends = {site.group for site in sites if rounded[site.key] & (before | behind)}
    makers = _makers(graph, sites)
    wishes: dict[str, _Wish] = {}
    for site in sites:
        bits = _overridden(makers[site.key], config)
        tensors = rounded[site.key]
        if bits != "unset":
            wish = 2, _comparable(bits)
        elif tensors & behind and config.last_activation_bits != "same":
            wish = 1, _comparable(config.last_activation_bits)
        elif tensors & before and config.first_activation_bits != "same":
            wish = 1, _comparable(config.first_activation_bits)
        elif site.group not in main | ends and config.intermediate_activation_bits != "same":
            wish = 0, _comparable(config.intermediate_activation_bits)
        else:
            wish = 0, _comparable(config.activation_bits)
        wishes[site.group] = max(wish, wishes.get(site.group, wish))
    found = {site.key: wishes[site.group][1] for site in sites}
    return {key: bits for key, bits in found.items() if bits != _FLOAT_BITS}


def table_bits(graph: Graph, name: str, config: Config) -> int | None:
    """The bit width of what a lookup finds; `None` for float32."""
    bits = _overridden([graph.kernels[name].owner], config)
    chosen = config.activation_bits if bits == "unset" else bits
    assert not isinstance(chosen, str)
    return chosen


def check_overrides(graph: Graph, config: Config, quantized: set[str]) -> None:
    """Raise `ValueError` if an override by name gives bits to activations that are not rounded.

    Arguments:
        quantized: names of the layers whose kernels are quantized.
    """
    named = [
        override
        for override in config.checked_overrides
        if override.activation_bits != "unset" and isinstance(override.select, str)
    ]
    if not named:
        return
    sites = all_sites(graph, quantized)
    makers = {layer.name for layers in _makers(graph, sites).values() for layer in layers}
    for override in named:
        if override.select not in makers:
            raise ValueError(
                f"`overrides` gives `activation_bits` (={override.activation_bits}) to"
                f" {override.select!r}, whose output has no grid of its own. Name the layer that"
                f" makes the values: {', '.join(sorted(makers))}."
            )


def _overridden(layers: Sequence[keras.layers.Layer], config: Config) -> int | str | None:
    """The bits that overrides give to what `layers` make together, or `"unset"`."""
    given = [config.override_for(layer) or Override("") for layer in layers]
    bits = [override.activation_bits for override in given]
    wanted = [b for b in bits if b != "unset"]
    return max(wanted, key=_comparable) if wanted else "unset"


def _comparable(bits: int | str | None) -> int:
    assert not isinstance(bits, str)
    return _FLOAT_BITS if bits is None else bits


def _rounded_tensors(graph: Graph, site: Site) -> set[int]:
    """Ids of the tensors that a site rounds; a preactivation counts as what is made of it."""
    if site.is_preactivation:
        return {id(t) for node in graph.calls_of(site.layer) for t in node.outputs}
    return {id(tensor) for tensor in site.tensors}


def _read_by_kernels(graph: Graph) -> set[int]:
    """Ids of the tensors that a kernel reads, those that are only moved before that included."""
    found: set[int] = set()
    for node in reversed(graph.nodes):
        moved = moves_values(node.layer) and any(id(tensor) in found for tensor in node.outputs)
        if moved or graph.kernels_of[node.layer.name]:
            found.update(id(tensor) for tensor in node.inputs)
    return found


def _makers(graph: Graph, sites: Sequence[Site]) -> Mapping[str, list[keras.layers.Layer]]:
    """By site, the layers that compute what it rounds: a layer, and what is fused with it."""
    own = {site.layer for site in sites if site.is_output}
    makers: dict[str, list[keras.layers.Layer]] = {}
    for site in sites:
        nodes = graph.calls_of(site.layer)
        found = {node.layer.name: node.layer for node in nodes}
        for node in nodes if site.is_output else ():
            found |= {layer.name: layer for layer in _fused(graph, node, own)}
        makers[site.key] = list(found.values())
    return makers


def _fused(graph: Graph, node: Node, own: set[str]) -> list[keras.layers.Layer]:
    """The layers in front of `node` whose outputs exist only inside of one kernel with it."""
    found: list[keras.layers.Layer] = []
    while len(node.inputs) == 1 and not graph.kernels_of[node.layer.name]:
        node = graph.producer[id(node.inputs[0])]
        if node.layer.name in own or moves_values(node.layer):
            break
        found.append(node.layer)
    return found
