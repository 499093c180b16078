"""GPTQ-style codes of one kernel, by the Hessian of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocs_tf._plan import LayerPlan
from ocs_tf.compensation.statistics import grouped, input_sums
from ocs_tf.graph.reader import KernelRef
from ocs_tf.numerics.gptq import (
    code_ranges,
    compensated_codes,
    reproducible_share,
)
from ocs_tf.numerics.grid import normalized
from ocs_tf.numerics.quantized_kernel import QuantizedKernel, split_codes

# Rows of a kernel that compensate each other: time and memory grow with their square.
_ROWS = 4608


def compensated_kernel(
    ref: KernelRef,
    kernel: NDArray[Any],
    plan: LayerPlan,
    inputs: list[NDArray[Any]],
    exact: list[NDArray[Any]] | None = None,
) -> QuantizedKernel:
    """`kernel`, with codes chosen for `inputs` of the layer; the nearest ones, for a lookup.

    Arguments:
        exact: what the float model has in the place of `inputs`, if that is not the same.
    """
    if ref.adapter.is_lookup:
        return plan.quantize(kernel)

    def moments(block: slice) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        weights, exponent = normalized(
            grouped(kernel[..., block, :], ref.adapter.groups(ref.layer))
        )
        halves = input_sums(ref, weights, inputs, exact, block)
        both = halves[0] + halves[1]
        if exact is None:
            return both.moments(), None
        share = 1.0
        if all(half.count for half in halves):
            share = reproducible_share(
                [half.moments() for half in halves],
                [half.losses(weights) for half in halves],
                [half.products / half.count for half in halves],
                [half.lost / half.count for half in halves],
            )
        return both.moments(), np.ldexp(share * both.losses(weights), exponent)

    return encoded(ref, kernel, plan, moments, _ROWS)


def encoded(
    ref: KernelRef,
    kernel: NDArray[Any],
    plan: LayerPlan,
    moments: Callable[[slice], tuple[NDArray[np.float64], NDArray[np.float64] | None]],
    rows: int,
) -> QuantizedKernel:
    """`kernel`, with compensated codes.

    Arguments:
        moments: from a slice of the input channels of each group to the means of products, of
            what they read `[G, K, K]`, and of that with what outputs lose `[G, K, F]`, if anything.
        rows: largest K; channels beyond it are rounded by themselves.
    """
    step, copies = plan.step(), plan.expansion(kernel)
    low, high = code_ranges(copies, plan.bits, plan.full_range)
    *spatial, channels, _ = kernel.shape
    taps = math.prod(spatial)
    groups = ref.adapter.groups(ref.layer)
    # Codes of many copies may take more than 16 bits.
    wide = max(-int(low.min()), int(high.max())) > np.iinfo(np.int16).max
    effective = np.empty(kernel.shape, np.int32 if wide else np.int16)
    size = max(1, rows // taps)
    for start in range(0, channels, size):
        block = slice(start, start + size)
        part = kernel[..., block, :]
        codes = compensated_codes(
            grouped(part, groups),
            step.reshape(groups, -1) if step.ndim else step,
            np.tile(low[block], taps),
            np.tile(high[block], taps),
            *moments(block),
        )
        effective[..., block, :] = codes.swapaxes(0, 1).reshape(part.shape)
    return split_codes(effective, plan.bits, step, copies)
