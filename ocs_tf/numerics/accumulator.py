"""How many bits the sums of a layer need, whatever its inputs are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLOAT_BITS = 25  # float32 has all integers of up to 24 bits and a sign
INTEGER_BITS = 32  # of the accumulators of TFLite's int8 kernels


def accumulator_bits(
    codes: NDArray[np.integer],
    lowest: int,
    highest: int,
    bias: NDArray[np.floating] | None = None,
    *,
    axes: tuple[int, ...] | None = None,
) -> int:
    """Bits of a signed accumulator that no sum of products overflows, in whatever order.

    The bound is exact: inputs that reach it are the lowest code where a weight is negative, the
    highest where it is positive, or the other way round.

    Arguments:
        codes: of the kernel, copies of split channels included.
        lowest, highest: codes of the input without its zero point; 0 is among them.
        bias: in steps of the products, one for each output channel.
        axes: those of `codes` that are summed over; `None`: all but the last one.

    Returns:
        2 or more.
    """
    axes = tuple(range(codes.ndim - 1)) if axes is None else axes
    wide = codes.astype(np.int64)
    positive, negative = (np.clip(wide, *ends).sum(axes) for ends in ((0, None), (None, 0)))
    most = positive * highest + negative * lowest
    least = positive * lowest + negative * highest
    if bias is not None:
        # It may be added first or last: a bias of the other sign does not make up for products.
        whole = np.rint(bias).astype(np.int64).reshape(most.shape)
        most, least = most + whole.clip(0), least + whole.clip(None, 0)
    largest = max(int(most.max(initial=0)), -int(least.min(initial=0)) - 1)
    return max(2, largest.bit_length() + 1)
