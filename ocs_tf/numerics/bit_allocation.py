"""Allocation of bit widths and copies to layers under a budget.

What the quantization of each layer adds to a network's output error adds up (Lin, Talathi,
Annapureddy, "Fixed Point Quantization of Deep Convolutional Networks", ICML 2016, section 3: the
inverse of the output's signal to noise ratio is the sum of those of all quantizers). So the widths
of least error for a given size are those of a knapsack problem: one choice per layer.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

KAPPA = 3.0  # dB that a bit gives, as Lin et al. assume


def closed_form_bits(
    counts: ArrayLike,
    average_bits: float,
    *,
    kappa: float = KAPPA,
    smallest: int = 2,
    largest: int = 8,
) -> NDArray[np.int32]:
    """Widths by Lin et al.'s rule (section 3.2): `bits_i = c - 10 log10(counts_i) / kappa`.

    A tensor of more numbers gets fewer bits. The bit widths are rounded and kept within bounds, and
    `c` is the largest for which they do not exceed `average_bits` on average.

    Arguments:
        counts: positive `[L]`, the numbers in each tensor, or what is computed with each.
        average_bits: of all numbers, `smallest` or more.
        kappa: dB of SQNR per bit, above 0; the paper takes 3.

    Returns:
        int32 `[L]`.

    Raises:
        ValueError: `counts` is not positive or `average_bits` is less than `smallest`.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 1 or not counts.size or not np.all(counts > 0):
        raise ValueError("`counts` must be a list of positive numbers.")
    if not average_bits >= smallest:
        raise ValueError(f"`average_bits` (={average_bits}) must be {smallest} or more.")
    offsets = -10 * np.log10(counts) / kappa
    # The rounded bit widths only change where one of them passes a half.
    steps = np.unique(np.arange(smallest, largest)[:, None] + 0.5 - offsets)
    bits = np.clip(np.floor(steps[:, None] + offsets + 0.5), smallest, largest)
    fits = bits @ counts <= average_bits * counts.sum() * (1 + 1e-12)
    chosen = bits[fits][-1] if fits.any() else np.full(counts.size, smallest)
    return np.asarray(chosen, np.int32)


def allocate(errors: ArrayLike, costs: ArrayLike, budget: float) -> NDArray[np.int64]:
    """The option of each layer, so that errors add up to the least within a budget.

    An integer program, solved to optimality by HiGHS (`scipy.optimize.milp`).

    Arguments:
        errors: finite, >= 0, `[L, O]`: what each option of each layer adds to the output's error.
        costs: finite, >= 0, `[L, O]`.
        budget: that the costs of the chosen options must not exceed together.

    Returns:
        int64 `[L]`, the index of the option of each layer.

    Raises:
        ValueError: even the cheapest options exceed the budget, or shapes or values are no good.
    """
    errors, costs = np.asarray(errors, np.float64), np.asarray(costs, np.float64)
    if errors.ndim != 2 or errors.shape != costs.shape or not errors.size:
        raise ValueError(
            f"`errors` {errors.shape} and `costs` {costs.shape} must be of one shape [L, O]."
        )
    if not (np.isfinite(errors).all() and np.isfinite(costs).all()):
        raise ValueError("`errors` and `costs` must be finite.")
    least = costs.min(1).sum()
    if least > budget:
        raise ValueError(f"`budget` (={budget:g}) is below the least possible cost, {least:g}.")
    count, options = errors.shape
    one_each = np.kron(np.eye(count), np.ones(options))
    scale = errors.min(1).max() or errors.max() or 1.0
    solution = milp(
        (errors / scale).ravel(),
        integrality=np.ones(errors.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs.reshape(1, -1) / max(budget, 1e-300), 0, 1),
        ],
        options={"mip_rel_gap": 1e-6},
    )
    if solution.x is None:
        raise RuntimeError(f"the solver found no allocation: {solution.message}")
    return np.asarray(solution.x.reshape(errors.shape).argmax(1), np.int64)


def share_copies(
    errors: Sequence[NDArray[np.floating]], prices: Sequence[float], budget: float
) -> list[int]:
    """How many copies each layer gets, each where it lowers the total error most for its price.

    Greedy, on a heap: one operation per step. A step takes as many copies of one layer as lower the
    error most per copy, for some lower it only together.

    Arguments:
        errors: of each layer, its error without copies, with one, with two, ...; not increasing.
        prices: of a copy in each layer, above 0.
        budget: that all copies together must not exceed.

    Returns:
        A count per layer, less than the length of its errors.
    """
    counts = [0] * len(errors)

    def best_step(layer: int, left: float) -> tuple[float, int, int]:
        """`(-error per price, layer, copies)` of the best step, or `(0, layer, 0)`."""
        path, price = errors[layer][counts[layer] :], prices[layer]
        most = min(len(path) - 1, int(left / price))
        if most < 1:
            return 0.0, layer, 0
        rates = (path[0] - path[1 : most + 1]) / (price * np.arange(1, most + 1))
        best = int(rates.argmax())
        return -float(rates[best]), layer, best + 1

    heap = [best_step(layer, budget) for layer in range(len(errors))]
    heapq.heapify(heap)
    while heap:
        gain, layer, copies = heapq.heappop(heap)
        if not gain:
            break
        if copies * prices[layer] <= budget:
            counts[layer] += copies
            budget -= copies * prices[layer]
        heapq.heappush(heap, best_step(layer, budget))
    return counts
