"""The options of each layer with a kernel: overrides, first and last layers, defaults."""

from __future__ import annotations

from typing import Any

import keras

from ocs_tf.config import AUTO_EXPAND_RATIO, Config, Override
from ocs_tf.graph import adapters, composites
from ocs_tf.graph.adapters import is_keras_quantized
from ocs_tf.graph.reader import Graph, KernelSite


def layer_options(graph: Graph, config: Config) -> dict[str, Override]:
    """The options of each layer with a kernel, all resolved except bit widths to be allocated.

    Raises:
        ValueError: an override matches no layer; there is no layer to quantize.
    """
    check_not_quantized(graph)
    _check_overrides(graph, config)
    first, last = graph.first_kernels(), graph.last_kernels()
    options = {
        name: _options(site, config, name in first, name in last)
        for name, site in graph.kernels.items()
    }
    if not options:
        quantized = [repr(n.layer.name) for n in graph.nodes if is_keras_quantized(n.layer)]
        if quantized:
            raise ValueError(
                f"Keras has quantized {', '.join(quantized)} already, and `model` has no other"
                " layer that can be quantized. Convert the float model."
            )
        known = ", ".join(c.__name__ for c in composites.quantizable_classes())
        found = ", ".join(
            f"{node.layer.name!r} ({_kind(node.layer)})"
            for node in graph.nodes
            if getattr(node.layer, "weights", None)
        )
        raise ValueError(
            f"`model` has no layer that can be quantized; those are: {known}."
            f" Its layers with weights: {found or 'none'}."
        )
    return options


def _options(site: KernelSite, config: Config, first: bool, last: bool) -> Override:
    """Every option of one layer: overrides before first and last before the rest."""
    override = config.override_for(site.owner, site.name) or Override(site.name)
    bits: Any = "unset" if config.allocates else config.weight_bits
    ratio = config.expand_ratio
    if last and config.last_layer_bits != "same":
        bits = config.last_layer_bits
    if first:
        bits = bits if config.first_layer_bits == "same" else config.first_layer_bits
        ratio = 0.0
    if override.weight_bits != "unset":
        bits = override.weight_bits
    if override.expand_ratio is not None:
        ratio = override.expand_ratio
    if site.adapter.why_not_split(site.layer):
        ratio = 0.0
    elif ratio == "auto" and site.adapter.groups(site.layer) > 1:
        ratio = 0.0  # a copy would be one in each group, far more than a small share
    return Override(
        site.name,
        weight_bits=bits,
        # Runtimes look rows up in tables of one step.
        granularity=override.granularity
        or ("tensor" if site.adapter.is_lookup else config.granularity),
        expand_ratio=ratio,
        weight_clip=override.weight_clip or config.weight_clip,
    )


def split_ratio(options: Override) -> float:
    """The expand ratio of a layer with a given bit width."""
    if options.expand_ratio != "auto":
        return float(options.expand_ratio or 0)
    return AUTO_EXPAND_RATIO if options.weight_bits != 8 else 0.0


def check_not_quantized(graph: Graph) -> None:
    """Raise `ValueError` if a layer of the model is quantized already."""
    for node in graph.nodes:
        stored = composites.stored_parts(node.layer)
        if stored or adapters.adapter_of_quantized(node.layer) is not None:
            raise ValueError(
                f"`model` {graph.model.name!r} is quantized already: layer {node.layer.name!r} is"
                f" a {type(node.layer).__name__}. Convert the float model instead."
            )


def _check_overrides(graph: Graph, config: Config) -> None:
    layers = [(node.layer, "") for node in graph.nodes]
    kernels = [(site.owner, site.name) for site in graph.kernels.values()]
    for override in config.unused_overrides([*layers, *kernels]):
        raise ValueError(
            f"`overrides` has an entry for {override.describe()}, which matches no layer;"
            f" layers with a kernel: {', '.join(graph.kernels)}."
        )


def _kind(layer: Any) -> str:
    """The class of a layer and, if it is a wrapper, of what it wraps."""
    inside = getattr(layer, "layer", None)
    name = type(layer).__name__
    return f"{name} of {_kind(inside)}" if isinstance(inside, keras.layers.Layer) else name
