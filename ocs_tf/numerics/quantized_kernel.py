"""Quantized kernels: the one place where integer codes and their scale are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocs_tf.numerics import clipping, grid, joint_search, splitting
from ocs_tf.numerics.checks import check_switch

MAX_WEIGHT_BITS = 8
WEIGHT_CLIPS = (*clipping.CLIP_METHODS, "joint")
GRANULARITIES = ("tensor", "channel")
_BLOCK = 1 << 20  # weights looked at together, where a whole kernel would take much memory
_BLOCK_SIZE = 2**16


@dataclasses.dataclass(frozen=True)
class QuantizedKernel:
    """Integer codes of an expanded kernel, and what turns them back into numbers.

    Attributes:
        codes: int8 `[..., C', F]`, within `-(2^(bits-1) - 1) .. 2^(bits-1) - 1` (one less with
            `full_range`).
        scale: float32 step, shape `()` per tensor or `[F]` per output channel.
        channel_map: int32 `[C']`, the original input channel that each expanded one reads.
        bits: 2..8.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    channel_map: NDArray[np.int32]
    bits: int

    @property
    def channels(self) -> int:
        """Original input channels `C`."""
        return int(self.channel_map.max()) + 1 if self.channel_map.size else 0

    @property
    def splits(self) -> int:
        """Copies that were added, `C' - C`."""
        return len(self.channel_map) - self.channels

    @property
    def granularity(self) -> str:
        return "channel" if self.scale.ndim else "tensor"

    @property
    def threshold(self) -> NDArray[np.float32]:
        """The largest magnitude the grid represents, of the scale's shape."""
        return np.asarray(self.scale * np.float32(grid.code_limit(self.bits)))

    def effective_codes(self) -> NDArray[np.int32]:
        """Copies summed back: int32 `[..., C, F]`, what the layer computes with."""
        return splitting.merge(self.codes, self.channel_map, self.channels, np.int32)

    def dequantize(self) -> NDArray[np.float32]:
        """float32 expanded kernel `[..., C', F]`."""
        return grid.dequantize(self.codes, self.scale)

    def effective_kernel(self) -> NDArray[np.float32]:
        """float32 kernel `[..., C, F]` on the original channels."""
        return grid.dequantize(self.effective_codes(), self.scale)

    def sqnr_db(self, kernel: NDArray[Any]) -> float:
        """Signal to quantization noise ratio of the effective kernel against float `kernel`.

        Some output channels at a time: no copy of the whole kernel is made.
        """
        columns = max(1, _BLOCK * kernel.shape[-1] // kernel.size)
        parts = (slice(i, i + columns) for i in range(0, kernel.shape[-1], columns))
        return _sqnr_db((kernel[..., part], self._outputs(part)) for part in parts)

    def _outputs(self, part: slice) -> NDArray[np.float32]:
        scale = self.scale[part] if self.scale.ndim else self.scale
        outputs = dataclasses.replace(self, codes=self.codes[..., part], scale=scale)
        return outputs.effective_kernel()


def quantize_kernel(
    kernel: ArrayLike,
    bits: int,
    expand_ratio: float = 0.0,
    clip: str = "none",
    granularity: str = "tensor",
    *,
    percentile: float = clipping.DEFAULT_PERCENTILE,
    power_of_two: bool = False,
    quantization_aware: bool = True,
    full_range: bool = False,
) -> QuantizedKernel:
    """Split the outlier channels of `kernel`, clip what is left, and round to integer codes.

    Arguments:
        kernel: finite floats `[..., C, F]` in Keras order, e.g. `[h, w, in, out]`.
        bits: 2..8.
        expand_ratio: 0..1; `ceil(expand_ratio * C)` copies are added.
        clip: one of `numerics.WEIGHT_CLIPS`, see `choose_threshold` and `choose_splits`.
        granularity: `"tensor"`, or `"channel"` for one scale per output channel.
        percentile: for clip `"percentile"`.
        power_of_two: steps are powers of two.
        quantization_aware: the copies' codes add up to the code of the whole weight (Zhao et al.,
            section 3.3); False halves weights plainly.
        full_range: allow the code `-2^(bits-1)`, too, as the paper's released code does. Only
            clipped weights reach it.

    Raises:
        ValueError: an argument is out of range, or `kernel` has fewer than two axes, is empty, or
            holds NaN or infinity (the message says where).
    """
    kernel = check_kernel(kernel)
    power_of_two = check_switch("power_of_two", power_of_two)
    quantization_aware = check_switch("quantization_aware", quantization_aware)
    full_range = check_switch("full_range", full_range)
    count = splitting.copy_count(expand_ratio, kernel.shape[-2])
    threshold, channels = choose_splits(
        kernel,
        bits,
        count,
        clip,
        granularity,
        percentile=percentile,
        power_of_two=power_of_two,
        quantization_aware=quantization_aware,
    )
    step = grid.symmetric_step(threshold, bits, power_of_two)
    copies = splitting.copies_of_map(
        kernel, [*range(kernel.shape[-2]), *channels], step if quantization_aware else None
    )
    return encode(kernel, bits, step, copies, full_range)


def choose_splits(
    kernel: NDArray[Any],
    bits: int,
    count: int,
    clip: str,
    granularity: str,
    *,
    percentile: float = clipping.DEFAULT_PERCENTILE,
    power_of_two: bool = False,
    quantization_aware: bool = True,
    smallest: float = 0.0,
) -> tuple[NDArray[np.float64], list[int]]:
    """Clip threshold(s) of a kernel, and the input channels to split.

    Arguments:
        count: of copies; `"joint"` may find that fewer do better.
        clip: one of `WEIGHT_CLIPS`. `"joint"` looks for splits and thresholds together, for the
            least squared error of the effective kernel (`numerics.joint_search`); without
            quantization-aware splits it is `"optimal"`.
        smallest: lower bound of thresholds, over the largest of them.

    Returns:
        float64 threshold, `()` for granularity `"tensor"`, `[F]` for `"channel"`; and the channel
        of each copy, in the order they are made.
    """
    if clip not in WEIGHT_CLIPS:
        raise ValueError(f"`clip` (={clip!r}) must be one of {', '.join(WEIGHT_CLIPS)}.")
    joint = clip == "joint" and quantization_aware and count > 0
    clip = "optimal" if clip == "joint" else clip
    if joint:
        _check_grid(bits, granularity)
        channels, _ = joint_search.search_splits(kernel, bits, count, granularity)
        threshold = joint_search.fit_thresholds(kernel, bits, channels, granularity)
    else:
        threshold = choose_threshold(kernel, bits, count, clip, granularity, percentile=percentile)
    threshold = np.maximum(threshold, np.max(threshold) * smallest)
    if not joint:
        step = grid.symmetric_step(threshold, bits, power_of_two) if quantization_aware else None
        mapping = splitting.choose_copies(kernel, count, step).channel_map
        channels = mapping[kernel.shape[-2] :].tolist()
    return threshold, channels


def choose_threshold(
    kernel: NDArray[Any],
    bits: int,
    count: int,
    clip: str,
    granularity: str,
    *,
    percentile: float = clipping.DEFAULT_PERCENTILE,
) -> NDArray[np.float64]:
    """Clip threshold(s) of a kernel that is going to get `count` copies.

    The order is the paper's: split, then clip. `"none"` is the largest magnitude left after
    `count` plain splits, and `"optimal"` and `"percentile"` look at the plainly split kernel;
    `"mse"`, `"aciq"` and `"kl"` look at the kernel before splitting, as the paper's code does.

    Returns:
        float64, shape `()` for granularity `"tensor"`, `[F]` for `"channel"`.
    """
    _check_grid(bits, granularity)
    clipping.check_method(clip, bits, "clip")
    columns = kernel.shape[-1] if granularity == "channel" else 1
    if clip in ("mse", "aciq", "kl"):
        values = kernel
    else:
        copies = splitting.choose_copies(kernel, count)
        if clip == "none":
            thresholds = _plain_maxima(kernel, copies, columns)
            return thresholds if granularity == "channel" else thresholds[0]
        values = splitting.expand(kernel, copies)
    values = values.reshape(-1, columns)
    if clip == "optimal":
        thresholds = clipping.optimal_thresholds(values, bits)
    else:
        thresholds = np.array(
            [clipping.clip_threshold(v, bits, clip, percentile=percentile) for v in values.T]
        )
    return thresholds if granularity == "channel" else thresholds[0]


def encode(
    kernel: NDArray[Any],
    bits: int,
    step: NDArray[np.float32],
    copies: splitting.SplitMap,
    full_range: bool = False,
) -> QuantizedKernel:
    """Round the copies of `kernel` to codes on the grid of `step`.

    Codes are `rint(gain * w / step + offset)`, so the expanded float kernel is never made.
    """
    channels = kernel.shape[-2]
    shape = (*kernel.shape[:-2], len(copies.channel_map), kernel.shape[-1])
    codes = np.empty(shape, np.int8)
    rows = max(1, _BLOCK_SIZE // kernel.shape[-1])
    for where in np.ndindex(kernel.shape[:-2]):
        for start in range(0, channels, rows):
            block = slice(start, min(start + rows, channels))
            codes[where][block] = grid.quantize(kernel[where][block], step, bits, full_range)
    for i in copies.changed:
        values = splitting.copy_values(kernel, copies, i, step if copies.offset[i] else None)
        codes[..., i, :] = grid.quantize(values, step.astype(np.float64), bits, full_range)
    return QuantizedKernel(codes, step, copies.channel_map, bits)


def split_codes(
    effective: NDArray[np.integer], bits: int, step: NDArray[np.float32], copies: splitting.SplitMap
) -> QuantizedKernel:
    """The quantized kernel of effective codes `[..., C, F]`, which the copies' codes add up to.

    Quantization-aware copies only, and codes within their reach (`rounding.code_ranges`).
    """
    *spatial, channels, columns = effective.shape
    codes = np.empty((*spatial, len(copies.channel_map), columns), np.int8)
    codes[..., :channels, :] = effective
    for i in copies.changed:
        whole = effective[..., copies.channel_map[i], :]
        codes[..., i, :] = np.rint(copies.gain[i] * whole + copies.offset[i])
    return QuantizedKernel(codes, step, copies.channel_map, bits)


def check_kernel(kernel: ArrayLike, name: str = "kernel") -> NDArray[Any]:
    """`kernel` as a float array `[..., C, F]`, or `ValueError`."""
    array = np.asarray(kernel)
    if array.dtype != np.float64:
        array = array.astype(np.float32, copy=False)
    splitting.check_shape(array, name)
    splitting.check_finite(array, name)
    return array


def sqnr_db(reference: ArrayLike, approximation: ArrayLike) -> float:
    """Signal to quantization noise ratio in dB: `10 log10(sum(x^2) / sum((x - y)^2))`.

    Infinite where the two are equal.
    """
    return _sqnr_db([(np.asarray(reference), np.asarray(approximation))])


def _sqnr_db(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    signal = noise = 0.0
    for reference, approximation in pairs:
        x = reference.astype(np.float64)
        signal += float(np.square(x).sum())
        noise += float(np.square(x - approximation).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def _check_grid(bits: int, granularity: str) -> None:
    grid.check_bits(bits, "bits", largest=MAX_WEIGHT_BITS)
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"`granularity` (={granularity!r}) must be one of {', '.join(GRANULARITIES)}."
        )


def _plain_maxima(
    kernel: NDArray[Any], copies: splitting.SplitMap, columns: int
) -> NDArray[np.float64]:
    """Largest magnitude per output channel (or overall) of the plainly split kernel."""
    largest_gain = np.zeros(kernel.shape[-2])
    np.maximum.at(largest_gain, copies.channel_map, copies.gain)
    if columns == 1:
        minima, maxima = splitting.channel_ranges(kernel)
        return np.array([(np.maximum(-minima, maxima) * largest_gain).max()])
    maxima = np.zeros(columns)
    for where in np.ndindex(kernel.shape[:-1]):
        np.maximum(maxima, np.abs(kernel[where]) * largest_gain[where[-1]], out=maxima)
    return maxima
