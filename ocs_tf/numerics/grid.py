"""Quantization grids: what a code of `b` bits stands for.

Symmetric grids hold weights and signed activations: codes `-L .. L` with `L = 2^(b-1) - 1`,
`value = code * step`, so `2^b - 1` levels and an exact zero (Zhao et al. 2019, Eq. 1; the TFLite
quantization specification uses the same one). Asymmetric grids hold activations:
`value = (code - zero_point) * scale` with codes `-2^(b-1) .. 2^(b-1) - 1` and an exact zero.
Rounding is half to even everywhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocs_tf.numerics.checks import (
    LARGEST_INT32,
    check_integer,
    check_switch,
    is_integer,
    is_number,
    shown,
)

MIN_BITS, MAX_BITS = 2, 16
# Below this a float32 step would be denormal, and its reciprocal infinite.
_SMALLEST_STEP = float(np.finfo(np.float32).tiny)
_LARGEST_STEP = float(np.finfo(np.float32).max)


def normalized(values: NDArray[np.floating]) -> tuple[NDArray[np.floating], int]:
    """`values * 2^-exponent` with the largest magnitude in 0.5 .. 1, and the exponent.

    Squares and products of such values neither overflow nor vanish; powers of two change no
    rounding. All zeros stay as they are, with exponent 0.
    """
    largest = max(-float(values.min()), float(values.max()))
    exponent = math.frexp(largest)[1]
    return np.ldexp(values, -exponent), exponent


def check_bits(
    bits: int, name: str = "bits", smallest: int = MIN_BITS, largest: int = MAX_BITS
) -> int:
    """Return `bits` if it is an integer in `smallest .. largest`, else raise `ValueError`."""
    return check_integer(name, bits, smallest, largest)


def code_limit(bits: int) -> int:
    """Largest code of the symmetric grid of `bits` (2..16): `2^(bits-1) - 1`."""
    return 2 ** (check_bits(bits) - 1) - 1


def code_dtype(bits: int) -> type[np.int8] | type[np.int16]:
    """The smallest signed NumPy integer type that holds the codes of `bits` (2..16)."""
    return np.int8 if check_bits(bits) <= 8 else np.int16


def symmetric_step(
    threshold: ArrayLike, bits: int, power_of_two: bool = False
) -> NDArray[np.float32]:
    """Step of the symmetric grid that ends at `threshold`: `threshold / (2^(bits-1) - 1)`.

    Arguments:
        threshold: non-negative clip threshold(s), any shape. Where it is 0 (an all-zero tensor)
            the step is 1, so that every code is 0.
        bits: 2..16.
        power_of_two: round the step up to the next power of two; the grid then still covers the
            threshold, and rescaling is a shift.

    Returns:
        float32 steps of the threshold's shape, positive and not denormal. The largest code times
        its step is finite, but for a power of two.

    Raises:
        ValueError: a threshold is negative, NaN, infinite or too large for a float32 step, or
            `bits` is out of range.
    """
    threshold = np.asarray(threshold, np.float64)
    if not np.all(np.isfinite(threshold)) or np.any(threshold < 0):
        raise ValueError(f"`threshold` (={threshold}) must be finite and not negative.")
    limit = code_limit(bits)
    step = np.where(threshold == 0, 1.0, np.maximum(threshold / limit, _SMALLEST_STEP))
    if power_of_two:
        step = _power_of_two_from(step)
    if np.any(step > _LARGEST_STEP):
        raise ValueError(f"`threshold` (={threshold}) is too large for a float32 step.")
    step = step.astype(np.float32)
    # Rounded up, the step of a threshold of about 3.4e38 would make the largest code infinite.
    rounded_up = (step.astype(np.float64) * limit > _LARGEST_STEP) & (threshold <= _LARGEST_STEP)
    return np.where(rounded_up & (not power_of_two), np.nextafter(step, np.float32(0)), step)


def quantize(
    values: ArrayLike, step: ArrayLike, bits: int, full_range: bool = False
) -> NDArray[Any]:
    """Codes of `values` on the symmetric grid: `clip(rint(values / step), -L, L)`.

    Arguments:
        values: finite floats of any shape.
        step: positive step(s) that broadcast against `values`.
        bits: 2..16.
        full_range: allow the code `-L - 1`, too, which two's complement has room for.

    Returns:
        int8 codes (int16 above 8 bits) of the broadcast shape.
    """
    limit = code_limit(bits)
    with np.errstate(over="ignore"):  # an infinite quotient clips like any other
        codes = np.asarray(np.divide(values, step))
    np.rint(codes, out=codes)
    return np.clip(codes, -limit - full_range, limit, out=codes).astype(code_dtype(bits))


def dequantize(codes: ArrayLike, step: ArrayLike) -> NDArray[np.float32]:
    """`codes * step` as float32."""
    return np.asarray(codes, np.float32) * np.asarray(step, np.float32)


def fake_quantize(values: ArrayLike, step: ArrayLike, bits: int) -> NDArray[np.float32]:
    """Quantize and dequantize on the symmetric grid, in floating point."""
    return dequantize(quantize(values, step, bits), step)


def check_copies(copies: Any) -> tuple[int, ...]:
    """`copies` as a tuple of channel numbers, else `ValueError`."""
    given = tuple(copies) if isinstance(copies, (list, tuple, np.ndarray)) else (None,)
    if not all(is_integer(c) and 0 <= c <= LARGEST_INT32 for c in given):
        raise ValueError(
            f"`copies` (={shown(copies)}) must be channel numbers: integers from 0 to"
            f" {LARGEST_INT32}."
        )
    return tuple(int(c) for c in given)


def smallest_threshold(bits: int) -> float:
    """The smallest clip threshold but 0 whose step is a normal float32."""
    return _SMALLEST_STEP * code_limit(bits)


def check_threshold(threshold: Any, bits: int, power_of_two: bool = False) -> float | list[float]:
    """A clip threshold, or a list of one per output channel, as plain numbers.

    Raises:
        ValueError: it holds something else than numbers, or none; or one of them is negative, NaN,
            infinite, or not 0 and has no step that is a normal float32.
    """
    several = isinstance(threshold, (list, tuple)) or np.ndim(threshold) == 1
    values = list(threshold) if several else [threshold]
    if not values or not all(map(is_number, values)):
        raise ValueError(
            f"`threshold` (={shown(threshold)}) must be a number, or a list of one per output"
            " channel."
        )
    for value in values:
        if not 0 <= value < np.inf:
            raise ValueError(f"`threshold` (={shown(value)}) must be finite and not negative.")
        if 0 < value < smallest_threshold(bits) or value > _LARGEST_STEP * code_limit(bits):
            raise ValueError(
                f"`threshold` (={shown(value)}) must be 0, or from {smallest_threshold(bits):.4g}"
                f" to {_LARGEST_STEP * code_limit(bits):.4g} at {bits} bits, so that the step is a"
                " normal float32."
            )
    plain = [float(value) for value in values]
    symmetric_step(plain, bits, power_of_two)  # rounded up to a power of two, it may be too large
    return plain if several else plain[0]


def code_counts(copies: Sequence[int], channels: int) -> NDArray[np.int64]:
    """How many codes hold each of `channels`: 1, and 1 more for each of its `copies`.

    Raises:
        ValueError: there is a copy of a channel that `channels` do not include.
    """
    if max(copies, default=0) >= channels:
        raise ValueError(
            f"`copies` (={tuple(copies)!r}) must be of channels from 0 to {channels - 1}."
        )
    return 1 + np.bincount(np.asarray(copies, np.intp), minlength=channels)


def _power_of_two_from(step: ArrayLike) -> NDArray[np.float64]:
    """The smallest powers of two that are not below positive `step`."""
    mantissa, exponent = np.frexp(step)  # step = mantissa * 2^exponent, 0.5 <= mantissa < 1
    return np.ldexp(1.0, exponent - (mantissa == 0.5))


@dataclasses.dataclass(frozen=True)
class ActivationGrid:
    """The grid of one activation tensor: `value = (code - zero_point) * scale`.

    Attributes:
        bits: 2..16.
        scale: the step, positive, exactly a float32.
        zero_point: the code of 0.0, within `code_min .. code_max`.
        symmetric: codes are `-L .. L` (zero point 0) instead of `-2^(b-1) .. 2^(b-1) - 1`.
        copies: the channel (of the tensor's last axis) that each copy duplicates. A channel that is
            named `k - 1` times is held by `k` codes, which add up: its range is `k` times that of
            the others. See `numerics.activation_splitting`.
    """

    bits: int
    scale: float
    zero_point: int = 0
    symmetric: bool = False
    copies: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", check_bits(self.bits))
        if not (is_number(self.scale) and _SMALLEST_STEP <= self.scale <= _LARGEST_STEP):
            raise ValueError(
                f"`scale` (={shown(self.scale)}) must be finite and positive, in float32."
            )
        object.__setattr__(self, "scale", float(np.float32(self.scale)))
        object.__setattr__(self, "symmetric", check_switch("symmetric", self.symmetric))
        low, high = (0, 0) if self.symmetric else (self.code_min, self.code_max)
        zero = self.zero_point
        if not (is_number(zero) and low <= zero <= high and zero == int(zero)):
            raise ValueError(
                f"`zero_point` (={shown(zero)}) must be an integer from {low} to {high}."
            )
        object.__setattr__(self, "zero_point", int(self.zero_point))
        object.__setattr__(self, "copies", check_copies(self.copies))

    @classmethod
    def from_range(
        cls,
        minimum: float,
        maximum: float,
        bits: int,
        symmetric: bool = False,
        power_of_two: bool = False,
        copies: Sequence[int] = (),
    ) -> ActivationGrid:
        """The grid that covers `minimum .. maximum`, widened to hold 0 exactly.

        An asymmetric grid is as wide as the range, but 0 falls on a code: the grid lies up to half
        a step to one side of the range. With `copies`, the range is that of channels without.

        Raises:
            ValueError: a bound is not finite, `minimum > maximum`, the range is too wide for a
                float32 scale, or a copy is not one of a channel.
        """
        if not (np.isfinite(minimum) and np.isfinite(maximum)) or minimum > maximum:
            raise ValueError(
                f"`minimum` (={minimum}) and `maximum` (={maximum}) must be finite and ordered."
            )
        low, high = min(float(minimum), 0.0), max(float(maximum), 0.0)
        if symmetric:
            step = float(symmetric_step(max(-low, high), bits, power_of_two))
            return cls(bits, step, 0, symmetric=True, copies=tuple(copies))
        levels = 2 ** check_bits(bits) - 1
        if max(-low, high) <= _LARGEST_STEP:
            # Zero on a code moves the ends outwards: they must stay finite in float32.
            end = _LARGEST_STEP * (1 - 2.0 ** (1 - bits))
            low, high = max(low, -end), min(high, end)
        scale = max((high - low) / levels, _SMALLEST_STEP) if high > low else 1.0
        if power_of_two:
            scale = float(_power_of_two_from(scale))
        if scale > _LARGEST_STEP:
            raise ValueError(
                f"`minimum` (={minimum}) .. `maximum` (={maximum}) is too wide for a float32 scale."
            )
        scale = float(np.float32(scale))
        smallest = -(2 ** (bits - 1))
        zero_point = int(np.clip(np.rint(smallest - low / scale), smallest, smallest + levels))
        return cls(bits, scale, zero_point, copies=tuple(copies))

    @property
    def code_min(self) -> int:
        return -code_limit(self.bits) - (not self.symmetric)

    @property
    def code_max(self) -> int:
        return code_limit(self.bits)

    @property
    def minimum(self) -> float:
        """The smallest value that one code stands for, exact in float64."""
        return (self.code_min - self.zero_point) * self.scale

    @property
    def maximum(self) -> float:
        """The largest value that one code stands for, exact in float64."""
        return (self.code_max - self.zero_point) * self.scale

    def code_bounds(self, channels: int) -> tuple[Any, Any]:
        """Smallest and largest code: integers, or with `copies` int64 `[channels]` each.

        What the codes of a channel's copies lie above the zero point adds up to one code, so that
        `value = (code - zero_point) * scale` holds for split channels, too.

        Raises:
            ValueError: there is a copy of a channel that `channels` do not include.
        """
        if not self.copies:
            return self.code_min, self.code_max
        held_by = code_counts(self.copies, channels)
        low, high = self.code_min - self.zero_point, self.code_max - self.zero_point
        return self.zero_point + held_by * low, self.zero_point + held_by * high

    def quantize(self, values: ArrayLike) -> NDArray[Any]:
        """Codes of finite `values`, int8 or, above 8 bits, int16.

        Of any shape without `copies`; with them, channels are on the last axis and codes are int32.
        """
        with np.errstate(over="ignore"):  # an infinite quotient clips like any other
            codes = np.asarray(np.rint(np.divide(values, np.float32(self.scale))) + self.zero_point)
        low, high = self.code_bounds(codes.shape[-1] if self.copies else 1)
        return np.clip(codes, low, high).astype(np.int32 if self.copies else code_dtype(self.bits))

    def dequantize(self, codes: ArrayLike) -> NDArray[np.float32]:
        """float32 values of integer `codes`."""
        return (np.asarray(codes, np.float32) - np.float32(self.zero_point)) * np.float32(
            self.scale
        )

    def fake_quantize(self, values: ArrayLike) -> NDArray[np.float32]:
        """Quantize and dequantize, in floating point."""
        return self.dequantize(self.quantize(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; `ActivationGrid(**grid.to_dict())` is the grid again."""
        return {**dataclasses.asdict(self), "copies": list(self.copies)}
