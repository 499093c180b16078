"""The options of each layer, from overrides and defaults; which layers stay in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import keras

from ocs_tf.config import AUTO_EXPAND_RATIO, Config, Granularity, Override, WeightClip
from ocs_tf.graph import adapters, composites
from ocs_tf.graph.adapters import is_keras_quantized
from ocs_tf.graph.reader import Graph, KernelRef
from ocs_tf.numerics import copy_count

_ON_PURPOSE = "left in float by the configuration"


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """How one kernel is quantized, but for its bit width.

    Attributes:
        granularity, weight_clip: as in `Config`.
        expand_ratio: share of the input channels that get a copy; `"auto"`: by the bit width.
        channel_multiple: as in `Config`.
    """

    granularity: Granularity
    expand_ratio: float | Literal["auto"]
    weight_clip: WeightClip
    channel_multiple: int = 1

    def room(self, channels: int) -> int:
        """The most copies that `channels` have room for: one each, up to the multiple."""
        return channels if self.channel_multiple == 1 else -channels % self.channel_multiple

    def copies(self, bits: int, channels: int) -> int:
        """How many of `channels` get a copy at this bit width."""
        ratio = self.expand_ratio
        if ratio == "auto":
            ratio = AUTO_EXPAND_RATIO if bits != 8 else 0.0
        return min(copy_count(ratio, channels), self.room(channels))


@dataclasses.dataclass(frozen=True)
class Selection:
    """What becomes of the layers of a model.

    Attributes:
        options: of each kernel that is to be quantized, by name.
        bits: the bit widths that are given; those of the other kernels are to be allocated.
        float_layers: why the other layers with weights stay in float32.
    """

    options: dict[str, LayerOptions]
    bits: dict[str, int]
    float_layers: dict[str, str]


def select(graph: Graph, config: Config) -> Selection:
    """What becomes of the layers of a float model.

    Raises:
        ValueError: an override matches no layer; there is no layer to quantize; with
            `config.strict`, a layer would stay in float unasked.
    """
    check_not_quantized(graph)
    _check_overrides(graph, config)
    if not graph.kernels:
        raise ValueError(_nothing_to_quantize(graph))
    float_layers = _unsupported(graph, config)
    if config.strict:
        _refuse_skipped(graph, float_layers)
    first, last = graph.first_kernels(), graph.last_kernels()
    options, bits = {}, {}
    for name, ref in graph.kernels.items():
        override = config.override_for(ref.owner, ref.name) or Override(ref.name)
        chosen = _bits(override, config, name in first, name in last)
        if chosen is None:
            float_layers[name] = _ON_PURPOSE
            continue
        if isinstance(chosen, int):
            bits[name] = chosen
        options[name] = _options(ref, override, config, name in first)
    return Selection(options, bits, float_layers)


def _bits(override: Override, config: Config, first: bool, last: bool) -> int | str | None:
    """The bit width of one kernel: overrides before first and last before the rest."""
    if override.weight_bits != "unset":
        return override.weight_bits
    if first and config.first_layer_bits != "same":
        return config.first_layer_bits
    if last and config.last_layer_bits != "same":
        return config.last_layer_bits
    return "unset" if config.allocates else config.weight_bits


def _options(ref: KernelRef, override: Override, config: Config, first: bool) -> LayerOptions:
    ratio = 0.0 if first else config.expand_ratio
    if override.expand_ratio is not None:
        ratio = override.expand_ratio
    if ref.adapter.why_not_split(ref.layer):
        ratio = 0.0
    elif ratio == "auto" and ref.adapter.groups(ref.layer) > 1:
        ratio = 0.0  # a copy would be one in each group, far more than a small share
    # Runtimes look rows up in tables of one step.
    default = "tensor" if ref.adapter.is_lookup else config.granularity
    return LayerOptions(
        override.granularity or default,
        ratio,
        override.weight_clip or config.weight_clip,
        config.channel_multiple,
    )


def _nothing_to_quantize(graph: Graph) -> str:
    quantized = [repr(n.layer.name) for n in graph.nodes if is_keras_quantized(n.layer)]
    if quantized:
        return (
            f"Keras has quantized {', '.join(quantized)} already, and `model` has no other"
            " layer that can be quantized. Convert the float model."
        )
    known = ", ".join(c.__name__ for c in composites.quantizable_classes())
    found = ", ".join(
        f"{node.layer.name!r} ({_kind(node.layer)})"
        for node in graph.nodes
        if getattr(node.layer, "weights", None)
    )
    return (
        f"`model` has no layer that can be quantized; those are: {known}."
        f" Its layers with weights: {found or 'none'}."
    )


def check_not_quantized(graph: Graph) -> None:
    """Raise `ValueError` if a layer of the model is quantized already."""
    for node in graph.nodes:
        nested = isinstance(node.layer, keras.Model)  # it stays as it is
        stored = not nested and composites.stored_parts(node.layer)
        if stored or adapters.adapter_of_quantized(node.layer) is not None:
            raise ValueError(
                f"`model` {graph.model.name!r} is quantized already: layer {node.layer.name!r} is"
                f" a {type(node.layer).__name__}. Convert the float model instead."
            )


def _check_overrides(graph: Graph, config: Config) -> None:
    layers = [(node.layer, "") for node in graph.nodes]
    kernels = [(ref.owner, ref.name) for ref in graph.kernels.values()]
    for override in config.unused_overrides([*layers, *kernels]):
        raise ValueError(
            f"`overrides` has an entry for {override.describe()}, which matches no layer;"
            f" layers with a kernel: {', '.join(graph.kernels)}."
        )


def _kind(layer: keras.layers.Layer) -> str:
    """The class of a layer and, if it is a wrapper, of what it wraps."""
    inside = getattr(layer, "layer", None)
    name = type(layer).__name__
    return f"{name} of {_kind(inside)}" if isinstance(inside, keras.layers.Layer) else name


def _unsupported(graph: Graph, config: Config) -> dict[str, str]:
    """Layers with weights that have no quantized form, and why."""
    reasons = {}
    for node in graph.nodes:
        name = node.layer.name
        reason = adapters.why_float(node.layer)
        if reason and not graph.kernels_of[name] and name not in graph.folded:
            override = config.override_for(node.layer)
            on_purpose = override is not None and override.weight_bits is None
            reasons[name] = _ON_PURPOSE if on_purpose else reason
    return reasons


def _refuse_skipped(graph: Graph, float_layers: Mapping[str, str]) -> None:
    for name, reason in float_layers.items():
        # A normalization has no kernel: where it cannot be folded, there is nothing to quantize.
        weights = graph.calls_of(name)[0].layer.weights
        if reason != _ON_PURPOSE and any(len(weight.shape) > 1 for weight in weights):
            raise ValueError(
                f"layer {name!r} would stay in float: {reason}. Leave it in float on purpose with"
                " an override (weight_bits=None), or set strict=False."
            )
