"""Statistics of what layers read: means, and Hessians of GPTQ."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocs_tf.graph.reader import KernelRef
from ocs_tf.numerics.gptq import (
    shrunk_losses,
    shrunk_moments,
)

# Output positions that products of inputs are summed over: as many as this, and for each input.
_POSITIONS = 1 << 14
_POSITIONS_PER_INPUT = 4
_LARGEST_WEIGHT = 1e6

Calls = list[list[NDArray[Any]]]  # of each call of a layer: of each batch what it reads


def call_weights(calls: Calls) -> list[float]:
    """Factors that make the inputs of all calls of a shared layer equally large; 1 for one call."""
    if len(calls) == 1:
        return [1.0]
    return relative_weights(
        [float(np.mean([np.square(b, dtype=np.float64).mean() for b in call])) for call in calls]
    )


def relative_weights(powers: list[float]) -> list[float]:
    """The factors for calls whose inputs have these mean squares.

    So a call counts by its errors relative to what it reads, not by how large that is. The factors
    are at most `_LARGEST_WEIGHT`.
    """
    largest = max(powers)
    least = largest / _LARGEST_WEIGHT**2
    return [math.sqrt(largest / max(power, least)) if power else 0.0 for power in powers]


def weighted(calls: Calls, weights: list[float]) -> list[NDArray[Any]]:
    """The batches of all calls, times the weights of these."""
    pairs = zip(calls, weights, strict=True)
    return [batch if w == 1 else batch * w for call, w in pairs for batch in call]


def mean_outputs(
    ref: KernelRef, calls: Calls, kernel: NDArray[Any], weights: list[float]
) -> NDArray[np.float64]:
    """Mean of each output channel, without bias, over the calls by their squared `weights`."""
    means = [_mean_output(ref, _mean_input(inputs), kernel) for inputs in calls]
    shares = np.square(weights)
    return np.asarray(np.tensordot(shares, means, 1) / (shares.sum() or 1))


def _mean_input(inputs: list[NDArray[Any]]) -> NDArray[np.float64]:
    """The mean over all samples of all batches."""
    total = np.sum([batch.sum(0, dtype=np.float64) for batch in inputs], axis=0)
    return np.asarray(total / sum(map(len, inputs)))


def _mean_output(
    ref: KernelRef, mean: NDArray[np.float64], kernel: NDArray[Any]
) -> NDArray[np.float64]:
    """Mean of each output channel, without bias, for inputs of this mean."""
    patches = ref.adapter.patches(ref.layer, mean[None]).mean(0)
    weights = grouped(kernel, len(patches))
    return np.matmul(patches[:, None], weights).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums of products over output positions, for G groups of K inputs and F outputs.

    Inputs are taken times a power of two that brings the largest near 1, so that no product of
    float32 numbers overflows or vanishes. It changes no code.

    Attributes:
        count: of positions.
        inputs: `[G, K]`, of inputs `x`.
        products: `[G, K, K]`, of `x x^T`.
        lost: `[G, K, F]`, of `x d^T W`: inputs with what outputs lose by what inputs lack, `d`.
        lacking: `[G, K]`, of `d`.
        own: `[G, K]`, of `x d`.
    """

    count: int
    inputs: NDArray[np.float64]
    products: NDArray[np.float64]
    lost: NDArray[np.float64]
    lacking: NDArray[np.float64]
    own: NDArray[np.float64]

    def __add__(self, other: Sums) -> Sums:
        fields = (field.name for field in dataclasses.fields(self))
        return Sums(*(getattr(self, name) + getattr(other, name) for name in fields))

    def moments(self) -> NDArray[np.float64]:
        """Means of `x x^T`, as more samples would show them, `[G, K, K]`."""
        return shrunk_moments(self.products / self.count, self.inputs / self.count, self.count)

    def losses(self, kernel: NDArray[Any]) -> NDArray[np.float64]:
        """Means of `x d^T W`, as more samples would show them, `[G, K, F]`."""
        means = (self.lost, self.inputs, self.lacking, self.own)
        lost, inputs, lacking, own = (sums / self.count for sums in means)
        return shrunk_losses(lost, kernel, inputs, lacking, own, self.count)


def input_sums(
    ref: KernelRef,
    kernel: NDArray[Any],
    inputs: list[NDArray[Any]],
    exact: list[NDArray[Any]] | None = None,
    block: slice = slice(None),
) -> tuple[Sums, Sums]:
    """Sums over the even and over the odd samples.

    Arguments:
        kernel: `[G, K, F]`.
        exact: what `inputs` should be; if not given, nothing is lost.
        block: the input channels of each group to look at.
    """
    positions = [ref.adapter.positions(ref.layer, batch.shape) for batch in inputs]
    *taps, channels, _ = ref.shape
    wanted = max(_POSITIONS, _POSITIONS_PER_INPUT * math.prod(taps) * channels)
    found = sum(len(b) * math.prod(sizes) for b, sizes in zip(inputs, positions, strict=True))
    share = found / wanted
    rng = np.random.default_rng(0)
    largest = max(float(np.abs(batch).max(initial=0)) for batch in (*inputs, *(exact or ())))
    exponent = -math.frexp(largest)[1]

    def read(batch: NDArray[Any], every: int, start: list[int]) -> NDArray[np.float32]:
        patches = ref.adapter.patches(ref.layer, batch, every, start)
        by_channel = patches.reshape(*patches.shape[:2], -1, channels)[..., block]
        patches = by_channel.reshape(*patches.shape[:2], -1).astype(np.float32)
        return np.ascontiguousarray(np.ldexp(patches, exponent).swapaxes(0, 1))

    def of_samples(parity: int) -> Sums:
        groups, rows, _ = kernel.shape
        products, lost = np.zeros((groups, rows, rows)), np.zeros(kernel.shape)
        of_batch = np.empty(products.shape, np.float32)
        sums, lacking, own = np.zeros((3, groups, rows))
        count = 0
        for index, batch in enumerate(inputs):
            sizes = positions[index]
            every = max(1, math.ceil(share ** (1 / len(sizes)))) if sizes else 1
            start = [int(rng.integers(min(every, size))) for size in sizes]
            if len(batch) <= parity:
                continue
            seen = read(batch[parity::2], every, start)
            products += np.matmul(seen.swapaxes(1, 2), seen, out=of_batch)
            sums += seen.sum(1, dtype=np.float64)
            count += seen.shape[1]
            if exact is not None:
                missing = read(exact[index][parity::2], every, start) - seen
                lost += np.matmul(seen.swapaxes(1, 2), np.matmul(missing, kernel))
                lacking += missing.sum(1, dtype=np.float64)
                own += (seen * missing).sum(1, dtype=np.float64)
        return Sums(count, sums, products, lost, lacking, own)

    return of_samples(0), of_samples(1)


def grouped(kernel: NDArray[Any], groups: int) -> NDArray[Any]:
    """Canonical kernel `[..., C, F]` as `[G, K, F / G]`."""
    rows = math.prod(kernel.shape[:-1])
    return kernel.reshape(rows, groups, -1).swapaxes(0, 1)
