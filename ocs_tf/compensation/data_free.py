"""Data-free rounding (similar to SQuant) and bias correction (DFQ) of one layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ocs_tf._plan import LayerPlan
from ocs_tf.compensation.weights import encoded
from ocs_tf.graph.analysis.batch_norm_moments import Moments, weighted_sums
from ocs_tf.graph.reader import KernelSite
from ocs_tf.numerics.gptq import (
    assumed_moments,
)
from ocs_tf.numerics.quantized_kernel import QuantizedKernel

_ASSUMED_ROWS = 256


def compensate_data_free(
    site: KernelSite,
    plan: LayerPlan,
    moments: Moments | None,
    *,
    rounding: bool = True,
    bias_correction: bool = True,
) -> tuple[QuantizedKernel, NDArray[np.float32] | None]:
    """Kernel and bias of one layer, chosen without data.

    Arguments:
        moments: mean and variance of each element of the input's last axis, if they are known.
            Without them, or where that axis does not hold input channels, codes are balanced as for
            inputs of mean 0, and the bias stays as it is.
        rounding: balance errors; else codes are the nearest.
        bias_correction: correct the bias for the mean.
    """
    known = [site.adapter.by_input_channel(site.layer, values) for values in moments or ()]
    of_channels = [values for values in known if values is not None]
    kernel, bias = site.weights()
    groups = site.adapter.groups(site.layer)
    if not (rounding and plan.quantization_aware) or site.adapter.is_lookup:
        quantized = plan.quantize(kernel, site.name)
    else:
        channels = groups * kernel.shape[-2]
        mean, variance = of_channels or (np.zeros(channels), np.ones(channels))

        def assumed(block: slice) -> tuple[NDArray[np.float64], None]:
            of_block = [v.reshape(groups, -1)[:, block] for v in (mean, variance)]
            return assumed_moments(kernel.shape[:-2], of_block[0], of_block[1]), None

        quantized = encoded(site, kernel, plan, assumed, _ASSUMED_ROWS)
    if bias_correction and bias is not None and of_channels:
        error = kernel - quantized.effective_kernel()
        bias = (bias + weighted_sums(error, of_channels[0], groups)).astype(np.float32)
    return quantized, bias
