"""Error-compensated (GPTQ-style) rounding of one kernel.

The output error of a layer with kernel `W` `[K, F]`, rounded to `Q`, over calibration inputs `X`
`[N, K]` is `tr((W - Q)^T H (W - Q))` with the Hessian `H = X^T X`. The algorithm:

1. Damp `H` and compute the Cholesky factor of its inverse.
2. Round row k of `W`, the weights of one input channel, to the nearest codes.
3. Subtract from each later row its share of the rounding error, by the Cholesky factor. This is the
   optimal update in closed form (Hassibi & Stork, "Second order derivatives for network
   pruning", NIPS 1992; Frantar & Alistarh, "Optimal Brain Compression", NeurIPS 2022).
4. Go on with row k + 1. All output channels are rounded together (Frantar et al., "GPTQ", ICLR
   2023, algorithm 1).

With outlier channel splitting, a channel with copies has a wider range of codes, and a code
determines those of its copies. So whole channels are rounded, each within the range of its copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from ocs_tf.numerics import grid
from ocs_tf.numerics.splitting import SplitMap

DAMPING = 0.01  # of the mean of the diagonal, added to it
NEIGHBOUR_CORRELATION = 0.7  # of activations, as data-free rounding assumes it
_BLOCK = 64  # rows whose errors are passed on together


def code_ranges(
    copies: SplitMap, bits: int, full_range: bool = False
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Smallest and largest effective code of each channel that its copies can make up.

    Quantization-aware copies only: their codes `rint(gain * code + offset)` add up to the code.

    Returns:
        int32 `[C]` each.
    """
    limit = grid.code_limit(bits)
    lowest = -limit - (1 if full_range else 0)
    channels = int(copies.channel_map.max()) + 1
    least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    low, high = np.full(channels, least), np.full(channels, most)
    ends = {end: _last_fitting(copies, end) for end in (lowest, limit)}
    np.maximum.at(low, copies.channel_map, ends[lowest].clip(least, most).astype(np.int32))
    np.minimum.at(high, copies.channel_map, ends[limit].clip(least, most).astype(np.int32))
    return low, high


def _last_fitting(copies: SplitMap, end: int) -> NDArray[np.float64]:
    """The code farthest from 0 that each copy rounds to `end` at most, in magnitude, `[C']`."""
    sign = np.sign(end)
    codes = np.trunc((end + sign * 0.5 - copies.offset) / copies.gain)
    # A tie between two codes of the copy goes to the even one, which may be the one beyond.
    beyond = sign * (np.rint(copies.gain * codes + copies.offset) - end) > 0
    return codes - sign * beyond


def compensated_codes(
    kernel: NDArray[np.floating],
    step: NDArray[np.floating],
    low: NDArray[np.int32],
    high: NDArray[np.int32],
    hessian: NDArray[np.floating],
    lost: NDArray[np.floating] | None = None,
    damping: float = DAMPING,
) -> NDArray[np.int32]:
    """Codes of a kernel, of little error in the layer's output.

    Rows are rounded in the order of their inputs' energy, largest first ("act order").

    Inputs that differ from those of the float network, `X` from `X + D`, are compensated: it is
    the kernel of least squared error against `(X + D) W`, `W + H^-1 X^T D W`, that is rounded. (Li
    et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", ICML 2025,
    match these outputs row by row instead.)

    Arguments:
        kernel: finite `[G, K, F]`: groups of output channels, each with K inputs of its own.
        step: positive, broadcasts against `[G, F]`.
        low, high: `[K]`, the smallest and largest code of each input.
        hessian: `[G, K, K]`, symmetric: the sums of products of inputs over calibration data.
        lost: `[G, K, F]`, the sums of products of inputs with what outputs lose by their errors,
            `X^T D W`; `None` if inputs are those of the float network.
        damping: share of the mean of the diagonal that is added to it; above 0.

    Returns:
        int32 `[G, K, F]`, each within `low .. high`.

    Raises:
        ValueError: shapes do not match, or `hessian` or `lost` is not finite.
    """
    groups, rows, columns = kernel.shape
    shapes = {"hessian": (groups, rows, rows), "lost": kernel.shape}
    for name, sums in {"hessian": hessian, "lost": lost}.items():
        if sums is None:
            continue
        if sums.shape != shapes[name]:
            raise ValueError(
                f"`{name}` has shape {sums.shape}; a kernel of {kernel.shape} needs {shapes[name]}."
            )
        if not np.isfinite(sums).all():
            raise ValueError(f"`{name}` must be finite, but holds NaN or infinity.")
    step = np.broadcast_to(np.asarray(step, np.float64), (groups, columns))
    codes = np.empty(kernel.shape, np.int32)
    for g in range(groups):
        damped = _damped(hessian[g], damping)
        order = np.argsort(-hessian[g].diagonal(), kind="stable")
        codes[g][order] = _round_rows(
            np.asarray(kernel[g], np.float64)[order] / step[g],
            low[order],
            high[order],
            damped[np.ix_(order, order)],
            None if lost is None else lost[g][order] / step[g],
        )
    return codes


def _damped(hessian: NDArray[np.floating], damping: float) -> NDArray[np.float64]:
    """`hessian` [K, K], with a share of the mean of its diagonal added to that."""
    damped = np.array(hessian, np.float64)
    mean = damped.diagonal().mean()
    # Inputs that are always zero: any code is as good; with 1 they are rounded to the nearest.
    damped[np.diag_indices(len(damped))] += damping * mean if mean > 0 else 1.0
    return damped


def reproducible_share(
    hessians: Sequence[NDArray[np.float64]],
    losses: Sequence[NDArray[np.float64]],
    shown_hessians: Sequence[NDArray[np.float64]],
    shown_losses: Sequence[NDArray[np.float64]],
    damping: float = DAMPING,
) -> float:
    """The share of a correction for earlier layers' errors that other samples confirm, 0..1.

    The correction `C = H^-1 X^T D W` of one half of the samples, times a factor a, leaves on the
    other half an error of `a^2 tr(C^T H C) - 2 a tr(C^T L)`, but for a constant. The best factor of
    both halves is `S / (S + N)`, if a half's correction has the signal S and the noise N. That of
    all samples has half the noise: its share is `S / (S + N / 2)` (the Spearman-Brown formula).

    Arguments:
        hessians, losses: of each half, `[G, K, K]` and `[G, K, F]`, as `compensated_codes` takes
            them.
        shown_hessians, shown_losses: of each half, as it shows them: not shrunk.
    """
    confirmed = power = 0.0
    for mine, other in ((0, 1), (1, 0)):
        for g in range(len(losses[mine])):
            damped = _damped(hessians[mine][g], damping)
            correction = cho_solve(cho_factor(damped), losses[mine][g])
            confirmed += float(np.sum(correction * shown_losses[other][g]))
            power += float(np.sum(correction * (shown_hessians[other][g] @ correction)))
    share = float(np.clip(confirmed / power, 0, 1)) if power > 0 else 0.0
    return 2 * share / (1 + share)


def shrunk_moments(
    moments: NDArray[np.float64], mean: NDArray[np.float64], samples: int
) -> NDArray[np.float64]:
    """Second moments of inputs as more samples would show them.

    Few samples show correlations that are not there. The share `K / (K + samples)` of the
    covariances between inputs is taken away; means and variances stay. (Shrinkage, as of Ledoit &
    Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004, with a
    simpler share.)

    Arguments:
        moments: `[G, K, K]`, the mean of `x x^T`.
        mean: `[G, K]`, the mean of `x`.
        samples: that the means were taken over, >= 1.

    Returns:
        float64 `[G, K, K]`.
    """
    share = _shrinkage(mean, samples)
    shrunk = (1 - share) * moments + share * mean[:, :, None] * mean[:, None, :]
    diagonal = np.arange(mean.shape[-1])
    shrunk[:, diagonal, diagonal] = moments[:, diagonal, diagonal]
    return shrunk


def shrunk_losses(
    products: NDArray[np.float64],
    kernel: NDArray[np.floating],
    mean: NDArray[np.float64],
    lacking: NDArray[np.float64],
    own: NDArray[np.float64],
    samples: int,
) -> NDArray[np.float64]:
    """Products of inputs with what outputs lose, as more samples would show them.

    Of the covariances of an input with what other inputs lack, the same share is taken away.

    Arguments:
        products: `[G, K, F]`, the mean of `x d^T W`, where inputs `x` lack `d`.
        kernel: `[G, K, F]`, W.
        mean, lacking: `[G, K]`, the means of `x` and `d`.
        own: `[G, K]`, the mean of `x d`, of each input by itself.
        samples: that the means were taken over, >= 1.

    Returns:
        float64 `[G, K, F]`.
    """
    share = _shrinkage(mean, samples)
    of_means = mean[:, :, None] * np.matmul(lacking[:, None], kernel)
    of_own = (own - mean * lacking)[:, :, None] * kernel
    return (1 - share) * products + share * (of_means + of_own)


def _shrinkage(mean: NDArray[np.float64], samples: int) -> float:
    """The share of covariances of K inputs that is taken away; `mean` is `[G, K]`."""
    return mean.shape[-1] / (mean.shape[-1] + samples)


def assumed_moments(
    taps: Sequence[int],
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    correlation: float = NEIGHBOUR_CORRELATION,
) -> NDArray[np.float64]:
    """Second moments of a kernel's inputs, where only those of each channel are known.

    Different channels are taken to be independent, and places of one channel to be correlated, by
    `correlation` for each place between them. With these moments compensated codes balance the
    errors of each two-dimensional kernel and, weighted by means, those of each output channel, as
    SQuant does by flipping codes (Guo et al., "SQuant: On-the-Fly Data-Free Quantization via
    Diagonal Hessian Approximation", ICLR 2022).

    Arguments:
        taps: size of the kernel along each spatial axis; empty for a dense kernel.
        mean, variance: `[G, C]`, of the channels that each group of outputs reads.

    Returns:
        float64 `[G, K, K]`, K = product of `taps` times C, channels varying fastest.
    """
    places = np.stack([axis.ravel() for axis in np.indices(taps)], -1) if taps else np.zeros((1, 1))
    distance = np.abs(places[:, None] - places).sum(-1)
    moments = [np.kron(correlation**distance, np.diag(v)) for v in variance]
    means = np.tile(mean, len(places))
    return np.stack(moments) + means[:, :, None] * means[:, None, :]


def _round_rows(
    weights: NDArray[np.float64],
    low: NDArray[np.int32],
    high: NDArray[np.int32],
    hessian: NDArray[np.float64],
    lost: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """`weights` [K, F], in steps, rounded row by row; they are overwritten."""
    # Upper triangular U with H^-1 = U^T U; its row k says how later rows compensate the error of k.
    # It is the inverse of the upper triangular R with H = R R^T.
    root = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    factor = solve_triangular(root, np.eye(len(root)))
    if lost is not None:
        weights += factor.T @ (factor @ lost)
    codes = np.empty_like(weights)
    rows = len(weights)
    for start in range(0, rows, _BLOCK):
        end = min(start + _BLOCK, rows)
        errors = np.empty((end - start, weights.shape[1]))
        for k in range(start, end):
            codes[k] = np.clip(np.rint(weights[k]), low[k], high[k])
            errors[k - start] = (weights[k] - codes[k]) / factor[k, k]
            weights[k + 1 : end] -= np.outer(factor[k, k + 1 : end], errors[k - start])
        weights[end:] -= factor[start:end, end:].T @ errors
    return codes
