"""Tensors that share a grid although their ranges differ: what is left of the small ones.

All that is concatenated, or of which the largest is taken, shares one grid. So does what is cut out
of a tensor. A sum has a grid that holds the largest of its terms. All calls of a shared layer have
one. A part, or a call, that spans few of the grid's codes has lost its numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras

from ocs_tf.graph.analysis.activation_sites import (
    Site,
    concatenates,
    fuses_into_producer,
    is_operation,
    is_relu,
    moves_values,
)
from ocs_tf.graph.layer_traits import holds
from ocs_tf.graph.reader import Graph, Node
from ocs_tf.layers import FakeQuantize, QuantizedOutput, unwrapped
from ocs_tf.numerics import ActivationGrid, OracleGrid

FEWEST_CODES = 16
_LAYERS = keras.layers

Range = tuple[float, float]
Ranges = Mapping[int, Range]  # by tensor id


def coarse_parts(
    graph: Graph, ranges: Ranges, grids: Mapping[str, ActivationGrid | OracleGrid]
) -> dict[str, dict[str, float]]:
    """The parts that get fewer than `FEWEST_CODES` codes of the grid that they share.

    Arguments:
        ranges: minimum and maximum of the tensors that were measured.
        grids: by site.

    Returns:
        By the site of the grid: the codes that a part spans, by the name of the layer that makes
        it. Constant parts are left out.
    """
    found: dict[str, dict[str, float]] = {}
    for node in graph.nodes:
        if not holds(node.layer, "joins"):
            continue
        site = _rounding_site(graph, node)
        grid = grids.get(site)
        if not isinstance(grid, ActivationGrid):
            continue
        for tensor in node.inputs:
            codes = _span(graph, tensor, ranges) / grid.scale
            if 0 < codes < _fewest(grid):
                part = str(graph.producer[id(tensor)].layer.name)
                found.setdefault(site, {})[part] = codes
    return found


def slices(graph: Graph, sites: Collection[str]) -> dict[str, Any]:
    """Tensors that are cut out of those of `sites`, by the name of what does it and a number."""
    return {
        f"{node.layer.name}[{number}]": tensor
        for node in graph.nodes
        if is_operation(node.layer, ("GetItem", "Split")) and len(node.inputs) == 1
        if _rounding_site(graph, _maker(graph, node.inputs[0])) in sites
        for number, tensor in enumerate(node.outputs)
    }


def coarse_slices(
    graph: Graph,
    ranges: Mapping[str, Range],
    grids: Mapping[str, ActivationGrid | OracleGrid],
) -> dict[str, dict[str, float]]:
    """The `slices` that get fewer than `FEWEST_CODES` codes of the grid of the whole.

    Arguments:
        ranges: minimum and maximum of the slices, by name.
        grids: by site.

    Returns:
        As `coarse_parts`, slices by name. Those of which all numbers are the same are left out.
    """
    found: dict[str, dict[str, float]] = {}
    for name, tensor in slices(graph, grids).items():
        whole = _maker(graph, graph.producer[id(tensor)].inputs[0])
        site = _rounding_site(graph, whole)
        grid = grids.get(site)
        if isinstance(grid, ActivationGrid) and name in ranges:
            low, high = ranges[name]
            codes = (high - low) / grid.scale
            if 0 < codes < _fewest(grid):
                found.setdefault(site, {})[name.removesuffix("[0]")] = codes
    return found


def coarse_calls(
    graph: Graph,
    sites: Sequence[Site],
    ranges: Mapping[str, Sequence[Range]],
    grids: Mapping[str, ActivationGrid | OracleGrid],
) -> dict[str, dict[str, float]]:
    """The calls of shared layers that get fewer than `FEWEST_CODES` codes of the layer's grid.

    Arguments:
        ranges: by site, minimum and maximum of each of its tensors, where they were measured.
        grids: by site.

    Returns:
        By the site of the grid: the codes that a call spans, by the call: `LAYER(INPUTS)`. Calls
        whose values are all the same are left out.
    """
    found: dict[str, dict[str, float]] = {}
    for site in sites:
        seen, grid = ranges.get(site.key, ()), grids[site.key]
        if len(seen) < 2 or not isinstance(grid, ActivationGrid):
            continue
        for tensor, (low, high) in zip(site.tensors, seen, strict=True):
            codes = (high - low) / grid.scale
            if 0 < codes < _fewest(grid):
                found.setdefault(site.key, {})[_call(graph, site, tensor)] = codes
    return found


def _fewest(grid: ActivationGrid) -> float:
    """`FEWEST_CODES`; on grids of less than 8 bits, the same share of theirs."""
    return min(FEWEST_CODES, FEWEST_CODES * 2.0 ** (grid.bits - 8))


def _call(graph: Graph, site: Site, tensor: keras.KerasTensor) -> str:
    """The call of a layer that makes `tensor`, or reads it where the site is in front of it."""
    makes = graph.producer[id(tensor)].inputs if site.is_output else (tensor,)
    inputs = ", ".join(str(graph.producer[id(read)].layer.name) for read in makes)
    return f"{site.layer}({inputs})"


def _is_joined(layer: Any) -> bool:
    """Whether `layer` puts parts beside each other."""
    return concatenates(layer) or is_operation(layer, ("Hstack", "Stack"))


def with_readers(graph: Graph, names: Collection[str]) -> set[str]:
    """These concatenations, and those that concatenate what they make."""
    found = set(names)
    for node in graph.nodes:  # in order
        if _is_joined(node.layer):
            makers = {str(_maker(graph, tensor).layer.name) for tensor in node.inputs}
            found.update({str(node.layer.name)} if makers & found else ())
    return found


def _maker(graph: Graph, tensor: Any) -> Node:
    """What makes `tensor`, before it is moved about."""
    node = graph.producer[id(tensor)]
    while node.inputs and moves_values(node.layer):
        node = graph.producer[id(node.inputs[0])]
    return node


def output_concatenations(graph: Graph) -> set[str]:
    """Names of the concatenations that are outputs of the model, and nothing else.

    Or parts of such, as boxes beside scores are in each of several sizes.
    """
    return {
        str(node.layer.name)
        for node in graph.nodes
        if _is_joined(node.layer)
        if _ends(graph, node.outputs[0])
    }


def output_parts(graph: Graph) -> list[dict[str, Any]]:
    """For each output of the model that is a concatenation, the index of each of its parts by name.

    Empty for other outputs. A part is named after the layer that makes it.
    """
    found = []
    for output in graph.model.outputs:
        node = graph.producer[id(output)]
        if isinstance(node.layer, QuantizedOutput | FakeQuantize) and len(node.inputs) == 1:
            node = graph.producer[id(node.inputs[0])]
        found.append(_part_indices(graph, node, len(output.shape)))
    return found


def _part_indices(graph: Graph, node: Node, rank: int) -> dict[str, Any]:
    layer = unwrapped(node.layer)
    if not _is_joined(layer):
        return {}
    axis, start, indices = getattr(layer, "axis", 1) % rank, 0, {}  # that of a hstack is 1
    for number, tensor in enumerate(node.inputs):
        size = tensor.shape[axis] if len(tensor.shape) == rank else 1  # of a stack
        if size is None or axis == 0:
            return {}
        name = str(graph.producer[id(tensor)].layer.name)
        name = name if name not in indices else f"{name} ({number})"
        indices[name] = (*(slice(None),) * axis, slice(start, start + size))
        start += size
    return indices


def exact_concatenations(graph: Graph, grids: Collection[str]) -> set[str]:
    """The `output_concatenations` without a grid, though a part has one: they are not rounded.

    Arguments:
        grids: names of the layers whose outputs are on grids.
    """
    ends = output_concatenations(graph) - set(grids)
    innermost = {
        name
        for name in ends
        for tensor in graph.calls_of(name)[0].inputs
        if _maker(graph, tensor).layer.name in grids
    }
    return with_readers(graph, innermost) & ends


def ends_of(graph: Graph, names: Collection[str]) -> set[int]:
    """Ids of the model's outputs that these layers make, moved about at most."""
    found = set()
    for tensor in graph.model.outputs:
        node = graph.producer[id(tensor)]
        while node.layer.name not in names and node.inputs and moves_values(node.layer):
            node = graph.producer[id(node.inputs[0])]
        if node.layer.name in names:
            found.add(id(tensor))
    return found


def _ends(graph: Graph, tensor: keras.KerasTensor) -> bool:
    """Whether `tensor`, moved about or joined at most, is an output that nothing else reads."""
    readers = graph.consumers[id(tensor)]
    if id(tensor) in graph.output_ids:
        return not readers
    passes = bool(readers) and (moves_values(readers[0].layer) or _is_joined(readers[0].layer))
    # A concatenation may read it twice.
    return passes and len(set(map(id, readers))) == 1 and _ends(graph, readers[0].outputs[0])


def describe(site: str, parts: Mapping[str, float], levels: int = 256) -> str:
    """A sentence on the parts of `site`, or the calls, that are short of codes."""
    each = ", ".join(f"{name!r} spans {codes:.2g}" for name, codes in parts.items())
    calls = sum(name.endswith(")") for name in parts)
    what = "parts" if not calls else "calls" if calls == len(parts) else "parts and calls"
    return f"the {what} of {site!r} share one grid of {levels} codes, of which {each}"


def describe_all(found: Mapping[str, Mapping[str, float]], levels: int = 256) -> str:
    """A sentence on several sites: of the first what is short of codes, of others the layers."""
    sites: dict[str, str] = {}  # by layer: one of a layer says it
    for site in sorted(found, key=lambda site: ":" in site):
        sites.setdefault(site.partition(":")[0], site)
    first, *others = sites
    likewise = f"; likewise of {', '.join(map(repr, others))}" if others else ""
    return describe(sites[first], found[sites[first]], levels) + likewise


def _rounding_site(graph: Graph, node: Node) -> str:
    """The site at which what `node` computes is rounded: its own, or that of the ReLU behind it."""
    reader = graph.only_consumer(node.outputs[0])
    fused = reader is not None and is_relu(reader.layer) and fuses_into_producer(graph, reader)
    return str(reader.layer.name if reader is not None and fused else node.layer.name)


def _span(graph: Graph, tensor: keras.KerasTensor, ranges: Ranges) -> float:
    """Maximum less minimum of `tensor`, or of what only moves its numbers; 0 where unknown."""
    while id(tensor) not in ranges:
        node = graph.producer[id(tensor)]
        if not (node.inputs and moves_values(node.layer)):
            return 0.0
        tensor = node.inputs[0]
    low, high = ranges[id(tensor)]
    return high - low
