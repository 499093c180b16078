"""Clip thresholds and copies of each kernel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ocs_tf._plan import LayerPlan
from ocs_tf.config import Config
from ocs_tf.graph.reader import Graph, KernelRef
from ocs_tf.numerics.grid import smallest_threshold
from ocs_tf.numerics.quantized_kernel import check_kernel, choose_splits
from ocs_tf.numerics.splitting import check_finite
from ocs_tf.planning.layer_options import LayerOptions
from ocs_tf.progress import progress_bar

SMALLEST_CHANNEL = 2.0**-13  # of the largest threshold in a kernel


def plan_kernels(
    graph: Graph,
    config: Config,
    options: Mapping[str, LayerOptions],
    bits: Mapping[str, int],
    verbose: bool = True,
) -> dict[str, LayerPlan]:
    """Plans of kernels, given their options and bit widths.

    Raises:
        ValueError: a kernel holds NaN or infinity.
    """
    return {
        name: plan_layer(graph.kernels[name], bits[name], options[name], config)
        for name in progress_bar(list(options), "Planning", verbose, leave=False)
    }


def plan_layer(ref: KernelRef, bits: int, options: LayerOptions, config: Config) -> LayerPlan:
    """The plan of one kernel."""
    kernel, bias = ref.weights()
    kernel = check_kernel(kernel, f"kernel of layer {ref.name}")
    if bias is not None:
        check_finite(bias, f"bias of layer {ref.name}")
    try:
        return plan_kernel(kernel, bits, options, config)
    except ValueError as error:
        raise ValueError(f"kernel of layer {ref.name}: {error}") from error


def plan_kernel(kernel: np.ndarray, bits: int, options: LayerOptions, config: Config) -> LayerPlan:
    """The plan for a finite kernel `[..., C, F]`."""
    threshold, channels = choose_splits(
        kernel,
        bits,
        options.copies(bits, kernel.shape[-2]),
        options.weight_clip,
        options.granularity,
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
        bits == 2 if config.full_range == "auto" else config.full_range,
    )
