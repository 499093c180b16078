"""Clip thresholds and copies of each kernel, and the layers that stay in float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ocs_tf._plan import LayerPlan, Plan
from ocs_tf.config import Config, Override
from ocs_tf.graph import adapters
from ocs_tf.graph.reader import Graph, KernelSite
from ocs_tf.numerics import (
    copy_count,
)
from ocs_tf.numerics.grid import smallest_threshold
from ocs_tf.numerics.quantized_kernel import check_kernel, choose_splits
from ocs_tf.numerics.splitting import check_finite
from ocs_tf.planning.layer_options import split_ratio
from ocs_tf.progress import progress_bar

_ON_PURPOSE = "left in float by the configuration"
SMALLEST_CHANNEL = 2.0**-13  # of the largest threshold in a kernel


def plan_kernels(
    graph: Graph, config: Config, options: Mapping[str, Override], verbose: bool = True
) -> Plan:
    """A plan without activations, given the options of each layer with a kernel.

    Raises:
        ValueError: a kernel holds NaN or infinity; with `config.strict`, a layer would stay in
            float unasked.
    """
    float_layers = _unsupported(graph, config)
    if config.strict:
        _refuse_skipped(graph, float_layers)
    float_layers |= {name: _ON_PURPOSE for name, o in options.items() if o.weight_bits is None}
    chosen = [name for name, o in options.items() if o.weight_bits is not None]
    layers = {
        name: plan_layer(graph.kernels[name], options[name], config)
        for name in progress_bar(chosen, "Planning", verbose, leave=False)
    }
    return Plan(
        layers,
        float_layers,
        fold_batch_norm=config.fold_batch_norm,
        rounding=config.rounding,
        bias_correction=config.bias_correction,
    )


def plan_layer(site: KernelSite, options: Override, config: Config) -> LayerPlan:
    """The plan of one layer with a given bit width."""
    kernel, bias = site.weights()
    kernel = check_kernel(kernel, f"kernel of layer {site.name}")
    if bias is not None:
        check_finite(bias, f"bias of layer {site.name}")
    try:
        return plan_kernel(kernel, options, config)
    except ValueError as error:
        raise ValueError(f"kernel of layer {site.name}: {error}") from error


def plan_kernel(kernel: np.ndarray, options: Override, config: Config) -> LayerPlan:
    """The plan for a finite kernel `[..., C, F]`."""
    bits, clip, granularity = options.weight_bits, options.weight_clip, options.granularity
    assert isinstance(bits, int)
    assert clip is not None
    assert granularity is not None
    count = copy_count(split_ratio(options), kernel.shape[-2])
    threshold, channels = choose_splits(
        kernel,
        bits,
        count,
        clip,
        granularity,
        percentile=config.percentile,
        power_of_two=config.power_of_two,
        quantization_aware=config.quantization_aware,
        # A channel that is all but dead would get a step so small that its int32 bias overflows.
        smallest=SMALLEST_CHANNEL,
    )
    # Of weights below it, no step is a normal float32.
    threshold = np.where(threshold == 0, 0, np.maximum(threshold, smallest_threshold(bits)))
    return LayerPlan(
        bits,
        threshold.tolist(),
        channels,
        config.power_of_two,
        config.quantization_aware,
        config.full_range,
    )


def _unsupported(graph: Graph, config: Config) -> dict[str, str]:
    """Layers with weights that have no quantized form, and why."""
    reasons = {}
    for node in graph.nodes:
        name = node.layer.name
        reason = adapters.why_float(node.layer)
        if reason and not graph.sites[name] and name not in graph.folded:
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
