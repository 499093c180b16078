"""Cross-layer equalization: factors for channels that one kernel makes and others read.

A positively homogeneous step between two kernels, `f(a / s) = f(a) / s` for `s > 0`, lets channels
be scaled without changing what a network computes: `1 / s_i` on output channel `i` of the first
kernel, `s_i` on input channel `i` of those that read it (Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1; Meller et al., "Same, Same
But Different", ICML 2019).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LIMIT = 1e3  # scales are within 1 / LIMIT .. LIMIT
# Magnitudes that stay normal float32 numbers when they are scaled, and scaled back.
_SMALLEST, _LARGEST = 1e-33, 1e33


def equalizing_scales(
    made: ArrayLike, read: ArrayLike, balance: float = 0.5
) -> NDArray[np.float64]:
    """Scales `s = made^balance / read^(1 - balance)` of channels.

    With `balance=0.5` it is `sqrt(made * read) / read`, equation 11 of Nagel et al.: after it,
    `made / s` is `read * s` but for a common factor. With 0, all `read * s` are equal.

    Arguments:
        made: non-negative `[C]`: the range of each channel in the kernel that makes it.
        read: non-negative `[C]`: its range in the kernels that read it.
        balance: 0..1.

    Returns:
        float64 `[C]`, within `1 / LIMIT .. LIMIT`; before that the median of their logarithms is 0,
        so that activations keep their size on the whole. 1 for channels of a range that is zero
        (dead ones), not finite, or so small or large that scaling might leave float32.
    """
    made, read = np.asarray(made, np.float64), np.asarray(read, np.float64)
    alive = (made > _SMALLEST) & (made < _LARGEST) & (read > 0) & np.isfinite(read)
    logs = np.zeros(made.shape)
    logs[alive] = balance * np.log(made[alive]) - (1 - balance) * np.log(read[alive])
    if alive.any():
        logs[alive] -= np.median(logs[alive])
    return np.exp(logs).clip(1 / LIMIT, LIMIT)


def input_factors(channel_factors: ArrayLike, groups: int, outputs: int) -> NDArray[np.float64]:
    """What the rows of a canonical kernel are multiplied by, `[C / groups, F]`.

    Arguments:
        channel_factors: `[C]`, of each channel that the layer reads.
        groups: of output channels that read inputs of their own; C of them in a depthwise kernel.
        outputs: output channels `F`.
    """
    by_group = np.asarray(channel_factors, np.float64).reshape(groups, -1)
    shape = (groups, outputs // groups, by_group.shape[1])
    # In a plain kernel this repeats nothing: all output channels share one column.
    return np.broadcast_to(by_group[:, None], shape).reshape(outputs, -1).T


def input_ranges(sizes: NDArray[np.floating], groups: int, granularity: str) -> NDArray[np.float64]:
    """The largest share of its grid that each input channel of a kernel uses, 0..1, `[C]`.

    Arguments:
        sizes: `[C / groups, F]`, the largest magnitude over the taps of a canonical kernel.
        groups: as above.
        granularity: `"tensor"`: in units of the kernel's largest magnitude; `"channel"`: of that of
            the output channel, whose step is its own.

    Returns:
        Infinity where the kernel is so large that scaling might leave float32.
    """
    largest = sizes.max() if granularity == "tensor" else sizes.max(0)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity / infinity: not finite either
        shares = sizes / np.where(largest == 0, 1, largest).astype(sizes.dtype)
    if sizes.max() >= _LARGEST:
        shares = np.full_like(shares, np.inf)
    return shares.reshape(len(sizes), groups, -1).max(-1).T.reshape(-1)


def scale_in_place(values: NDArray[np.floating], factors: NDArray[np.float64]) -> None:
    """Multiply `values` by `factors` in place, in float64 piece by piece."""
    np.multiply(values, factors, out=values, casting="same_kind")
