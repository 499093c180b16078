"""What a model's first layers say of its inputs: their mean, covariance and range.

Behind a kernel `W` with bias `b`, the batch norm has the mean `mu` and the variance `sigma^2` of
each output channel. For inputs of mean `e` and covariance `C` over channels, whose values at places
`p` and `q` are correlated by `rho^|p-q|`,

    mu_k      = b_k + sum_c e_c sum_p W_pck
    sigma_k^2 = sum_cc' C_cc' sum_pq W_pck W_qc'k rho^|p-q|.

Both are linear in `e` and in `C`, and solved by least squares; `rho` is taken from a grid.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.graph.affine import affine, affine_axis
from ocs_tf.graph.reader import Graph

_CORRELATIONS = 1 - np.geomspace(0.02, 0.6, 24)
_PICTURE = 0.95  # correlation of neighbours where nothing tells
# Ranges of pixels: as they are, scaled, centred, and standardized by the statistics of ImageNet.
_RANGES = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0), (-2.12, 2.64), (-128.0, 151.0))
_MEAN, _DEVIATION = 0.46, 0.26  # of natural pictures, in units of their range
_REACH = 4.0  # deviations that inputs without a known range extend to
_PASS_ON = tuple(getattr(keras.layers, f"ZeroPadding{n}D") for n in (1, 2, 3))


@dataclasses.dataclass(frozen=True)
class InputMoments:
    """What is known of one input.

    Attributes:
        mean: of each channel, `[C]`.
        covariance: of the channels, `[C, C]`.
        correlation: of neighbours, 0..1.
        low, high: the range of values.
        source: where it is known from, in words.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    correlation: float
    low: float
    high: float
    source: str

    @property
    def deviation(self) -> float:
        """Standard deviation of all values, about the mean of their channel."""
        return float(np.sqrt(np.trace(self.covariance) / len(self.mean)))


def input_moments(
    graph: Graph, tensor: Any, given_range: tuple[float, float] | None = None
) -> InputMoments:
    """What the layers behind input `tensor` of `graph.model` say of it.

    Arguments:
        given_range: the lowest and the highest value, where the user knows them.
    """
    channels = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    is_picture = _is_picture(tensor)
    found, gain, shift = _told(graph, tensor, channels)
    if found is not None and found[0].shape == (channels,) and gain.all():
        mean, covariance, correlation, source = found
        mean, covariance = (mean - shift) / gain, covariance / np.outer(gain, gain)
        low, high = given_range or _range(mean, covariance, is_picture)
        return InputMoments(mean, covariance, correlation, low, high, source)
    low, high, source = _assumed_range(gain, shift, is_picture)
    if given_range is not None:
        (low, high), source = given_range, "the range that was given"
    # Colours of pictures are alike.
    center, spread, share = (_MEAN, _DEVIATION, 0.9) if is_picture else (0.5, 0.5 / _REACH, 0.0)
    mean = np.full(channels, low + center * (high - low))
    covariance = (spread * (high - low)) ** 2 * (share + (1 - share) * np.eye(channels))
    return InputMoments(mean, covariance, _PICTURE, low, high, source)


def _told(
    graph: Graph, tensor: Any, channels: int
) -> tuple[tuple[Any, ...] | None, NDArray[np.float64], NDArray[np.float64]]:
    """What the first normalization behind `tensor` tells, and the factors and shifts before it."""
    gain, shift = np.ones(channels), np.zeros(channels)
    while len(readers := graph.consumers[id(tensor)]) == 1:
        (node,) = readers
        layer = node.layer
        if isinstance(layer, keras.layers.Normalization):
            return _of_normalization(layer, channels), gain, shift
        if isinstance(layer, keras.layers.BatchNormalization):
            return _of_norm(layer, channels), gain, shift
        if layer.name in graph.kernels:
            return _of_first_kernel(graph, node), gain, shift
        if affine_axis(layer) is not None:
            factor, offset = affine(layer, channels)
            gain, shift = gain * factor, shift * factor + offset
        elif not isinstance(layer, _PASS_ON):
            break
        tensor = node.outputs[0]
    return None, gain, shift


def _is_picture(tensor: Any) -> bool:
    return len(tensor.shape) == 4 and tensor.shape[-1] in (1, 3, 4)


def _of_normalization(layer: Any, channels: int) -> tuple[Any, ...] | None:
    if layer.mean is None or layer.invert:
        return None
    values = (
        keras.ops.convert_to_numpy(v).astype(np.float64) for v in (layer.mean, layer.variance)
    )
    mean, variance = (np.broadcast_to(v.reshape(-1), (channels,)) for v in values)
    return mean, np.diag(variance), _PICTURE, f"the normalization {layer.name!r}"


def _of_norm(layer: Any, channels: int) -> tuple[Any, ...] | None:
    if layer.moving_mean.shape != (channels,):
        return None
    mean, variance = (np.asarray(v, np.float64) for v in (layer.moving_mean, layer.moving_variance))
    return mean, np.diag(variance), _PICTURE, f"the batch norm {layer.name!r}"


def _of_first_kernel(graph: Graph, node: Any) -> tuple[Any, ...] | None:
    """Mean, covariance, correlation and source from the batch norm behind a first kernel."""
    ref = graph.kernels[node.layer.name]
    readers = graph.consumers[id(node.outputs[0])]
    norm = readers[0].layer if len(readers) == 1 else None
    if norm is None or not isinstance(norm, keras.layers.BatchNormalization):
        return None
    if not ref.adapter.is_direct(ref.layer) or ref.adapter.groups(ref.layer) != 1:
        return None
    kernel, bias = ref.adapter.read(ref.layer)
    if len(np.asarray(norm.moving_mean)) != kernel.shape[-1]:
        return None
    mean = np.asarray(norm.moving_mean, np.float64) - (0 if bias is None else bias)
    variance = np.asarray(norm.moving_variance, np.float64)
    solved = solve_moments(kernel.astype(np.float64), mean, variance)
    return *solved, f"the batch norm {norm.name!r}, behind {ref.name!r}"


def solve_moments(
    kernel: NDArray[np.float64], mean: NDArray[np.float64], variance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mean `[C]`, covariance `[C, C]` and correlation of neighbours of a kernel's inputs.

    Arguments:
        kernel: `[..., C, F]`.
        mean, variance: of its outputs without bias, `[F]`.
    """
    taps = kernel.shape[:-2]
    by_place = kernel.reshape(-1, *kernel.shape[-2:])
    alive = np.maximum(variance, 1e-6 * variance.max() + 1e-30)
    weights = 1 / np.sqrt(alive)
    sums = by_place.sum(0)
    solved_mean = np.linalg.lstsq(sums.T * weights[:, None], mean * weights, rcond=1e-6)[0]
    places = np.stack([axis.ravel() for axis in np.indices(taps)], -1) if taps else np.zeros((1, 1))
    distance = np.sqrt(np.square(places[:, None] - places).sum(-1))
    best: tuple[float, NDArray[np.float64], float] | None = None
    for correlation in _CORRELATIONS if taps else _CORRELATIONS[:1]:
        mixed = np.einsum("pcf,pq,qdf->cdf", by_place, correlation**distance, by_place)
        covariance = _solved_covariance(mixed, variance, 1 / alive)
        told = np.einsum("cdf,cd->f", mixed, covariance)
        seen = (told > 0) & (variance > 0)
        if not seen.any():
            continue
        error = float(np.square(np.log(told[seen] / variance[seen])).mean())
        if best is None or error < best[0]:
            best = error, covariance, float(correlation)
    if best is None:
        return solved_mean, np.eye(kernel.shape[-2]), _PICTURE
    return solved_mean, best[1], best[2]


def _solved_covariance(
    mixed: NDArray[np.float64], variance: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The covariance `C` of least weighted error of `variance = sum_cd C_cd mixed_cd`."""
    channels = len(mixed)
    pairs = list(itertools.combinations_with_replacement(range(channels), 2))
    columns = [mixed[c, d] * (1 if c == d else 2) for c, d in pairs]
    equations = np.stack(columns, -1) * weights[:, None]
    found = np.linalg.lstsq(equations, variance * weights, rcond=1e-6)[0]
    covariance = np.zeros((channels, channels))
    for (c, d), value in zip(pairs, found, strict=True):
        covariance[c, d] = covariance[d, c] = value
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.maximum(values, 1e-4 * max(values.max(), 0))) @ vectors.T)


def _range(
    mean: NDArray[np.float64], covariance: NDArray[np.float64], is_picture: bool
) -> tuple[float, float]:
    """The usual range of pixels that such a mean and deviation suit best, or some deviations."""
    deviation = float(np.sqrt(np.diag(covariance).mean()))
    center = float(mean.mean())
    if not is_picture or deviation <= 0:
        return center - _REACH * deviation, center + _REACH * deviation

    def misfit(ends: tuple[float, float]) -> float:
        span = ends[1] - ends[0]
        return abs(np.log(deviation / span / _DEVIATION)) + 2 * abs(
            (center - ends[0]) / span - _MEAN
        )

    return min(_RANGES, key=misfit)


def _assumed_range(
    gain: NDArray[np.float64], shift: NDArray[np.float64], is_picture: bool
) -> tuple[float, float, str]:
    """A range where no normalization tells, and what tells it."""
    if gain.all() and is_picture:
        for low, high in ((0.0, 1.0), (-1.0, 1.0)):
            ends = np.sort([((low - shift) / gain).mean(), ((high - shift) / gain).mean()])
            if np.allclose(ends, (0, 255), atol=1.0):
                return 0.0, 255.0, "a rescaling of the inputs"
    if is_picture:
        return 0.0, 1.0, ""
    return -_REACH, _REACH, ""
