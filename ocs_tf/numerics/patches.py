"""Windows of convolutions (im2col): the inputs that each output position sums up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def output_sizes(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: str,
) -> list[int]:
    """Output positions along each spatial axis, for padding `"same"`, `"causal"` or `"valid"`."""
    if padding != "valid":
        return [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
    return [
        max(0, (n - (k - 1) * d - 1) // s + 1)
        for n, k, s, d in zip(sizes, kernel, strides, dilation, strict=True)
    ]


def windows(
    x: NDArray[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: str,
    *,
    every: int = 1,
    start: Sequence[int] | None = None,
) -> NDArray[Any]:
    """Windows of `x` `[N, spatial..., C]`, padded with zeros as TensorFlow does.

    Arguments:
        kernel, strides, dilation: by spatial axis.
        padding: `"same"`, `"valid"`, or `"causal"`: all of it in front.
        every: take only every so many-th output position along each axis,
        start: from this one on, by axis; `None` is the first.

    Returns:
        `[N, positions..., taps, C]`, the taps in row-major order.
    """
    rank = len(kernel)
    starts = [0] * rank if start is None else list(start)
    sizes = x.shape[1:-1]
    outputs = output_sizes(sizes, kernel, strides, dilation, padding)
    spans = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(outputs, strides, kernel, dilation, strict=True)
    ]
    missing = [max(0, span - n) for span, n in zip(spans, sizes, strict=True)]
    if any(missing):
        before = [m if padding == "causal" else m // 2 for m in missing]
        around = [(b, m - b) for b, m in zip(before, missing, strict=True)]
        x = np.pad(x, [(0, 0), *around, (0, 0)])
    taps = []
    for tap in np.ndindex(*kernel):
        where = [slice(None)]
        for axis in range(rank):
            first = tap[axis] * dilation[axis] + starts[axis] * strides[axis]
            last = tap[axis] * dilation[axis] + (outputs[axis] - 1) * strides[axis] + 1
            where.append(slice(first, last, strides[axis] * every))
        taps.append(x[tuple(where)])
    return np.stack(taps, axis=-2)
