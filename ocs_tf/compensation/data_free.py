"""Data-free rounding (similar to SQuant) and bias correction (DFQ) of one layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ocs_tf._plan import LayerPlan
from ocs_tf.compensation.statistics import relative_weights
from ocs_tf.compensation.weights import encoded
from ocs_tf.graph.analysis.batch_norm_moments import Moments, weighted_sums
from ocs_tf.graph.reader import KernelRef
from ocs_tf.numerics.gptq import (
    assumed_moments,
)
from ocs_tf.numerics.quantized_kernel import QuantizedKernel

_ASSUMED_ROWS = 256


def compensate_data_free(
    ref: KernelRef,
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
    known = [ref.adapter.by_input_channel(ref.layer, values) for values in moments or ()]
    of_channels = [values for values in known if values is not None]
    kernel, bias = ref.weights()
    groups = ref.adapter.groups(ref.layer)
    if not (rounding and plan.quantization_aware) or ref.adapter.is_lookup:
        quantized = plan.quantize(kernel, ref.name)
    else:
        channels = groups * kernel.shape[-2]
        mean, variance = of_channels or (np.zeros(channels), np.ones(channels))

        def assumed(block: slice) -> tuple[NDArray[np.float64], None]:
            of_block = [v.reshape(groups, -1)[:, block] for v in (mean, variance)]
            return assumed_moments(kernel.shape[:-2], of_block[0], of_block[1]), None

        quantized = encoded(ref, kernel, plan, assumed, _ASSUMED_ROWS)
    if bias_correction and bias is not None and of_channels:
        error = kernel - quantized.effective_kernel()
        bias = (bias + weighted_sums(error, of_channels[0], groups)).astype(np.float32)
    return quantized, bias


def moments_of_calls(calls: Sequence[Moments | None]) -> Moments | None:
    """Of what all calls of a layer read; `None` if those of a call are not known.

    Each call counts by its errors relative to what it reads, as on data.
    """
    if len(calls) == 1:
        return calls[0]
    known = [moments for moments in calls if moments is not None]
    if not calls or len(known) < len(calls):
        return None
    means, variances = (np.stack(values) for values in zip(*known, strict=True))
    squares = np.square(means) + variances
    shares = np.square(relative_weights([float(power) for power in squares.mean(1)]))
    shares = shares / (shares.sum() or 1)
    mean = shares @ means
    return mean, np.maximum(shares @ squares - np.square(mean), 0)
