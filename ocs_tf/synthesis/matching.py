"""Inputs whose batch-norm statistics are those that a model was trained on, by gradient descent.

The loss is the mean over all batch norms of

    mean_c ((m - mu) / sigma)^2 + mean_c ((s - sigma) / sigma)^2

where the inputs of the batch norm have the means `m` and deviations `s` over the whole set. Of the
other batches the sums are kept, as in "Data Generation for Hardware-Friendly Post-Training
Quantization" (Dikstein et al., WACV 2025), whose terms are not relative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ocs_tf.graph.analysis.batch_norm_moments import trained_on
from ocs_tf.graph.layer_traits import is_training
from ocs_tf.graph.reader import Graph

_LEARNING_RATE = 0.1  # in deviations of the input
_ENOUGH = 0.02  # mismatch of real pictures: less would fit the batch norms too closely
_SHIFT = 1 / 16  # of a picture's size, in each step
_LEAST = 1e-3  # of the median deviation: channels below it are dead


@dataclasses.dataclass(frozen=True)
class Norm:
    """What a batch norm was trained on: of its input `tensor`, `[C]` each."""

    tensor: Any
    axis: int
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Range:
    """Of the values of an input, and the standard deviation of its training data."""

    low: float
    high: float
    deviation: float


def norms_of(graph: Graph) -> list[Norm]:
    """The trained batch norms of `graph.model`."""
    found = []
    for node in graph.nodes:
        layer = node.layer
        if not isinstance(layer, keras.layers.BatchNormalization) or is_training(node):
            continue
        known = trained_on(layer)
        if known is None:
            continue
        mean, variance = (values.astype(np.float32) for values in known)
        deviation = np.sqrt(np.maximum(variance, 0))
        deviation = np.maximum(deviation, _LEAST * max(float(np.median(deviation)), 1e-6))
        (tensor,) = node.inputs
        found.append(Norm(tensor, layer.axis % len(tensor.shape), mean, deviation))
    return found


def match(
    graph: Graph,
    norms: Sequence[Norm],
    arrays: Sequence[NDArray[Any]],
    ranges: Sequence[Range | None],
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    progress: Callable[[range], Iterable[int]] = iter,
) -> tuple[list[NDArray[Any]], float, float]:
    """`arrays`, one per input, changed so that batch norms see what they were trained on.

    Arguments:
        ranges: of the inputs that are changed; `None` for those that stay as they are (ids, masks).
        steps: at most, of gradient descent (Adam) on each batch. It ends earlier once the set is
            as near as real pictures are.
        batch_size: samples that are changed together.

    Returns:
        The arrays, and the loss before and after.
    """
    observer = keras.Model(graph.model.inputs, [norm.tensor for norm in norms])
    count = len(arrays[0])
    starts = range(0, count, batch_size)
    batches = [[array[i : i + batch_size] for array in arrays] for i in starts]
    shares = [len(batch[0]) / count for batch in batches]
    moments = [_moments(observer, norms, batch) for batch in batches]
    first = last = _loss_of(norms, _mixed(moments, shares))
    optimizers = [keras.optimizers.Adam(beta_1=0.5) for _ in batches]
    changed = {i: seen for i, seen in enumerate(ranges) if seen is not None}
    # In deviations of each input, so that one learning rate suits all.
    variables = [
        {i: tf.Variable(batch[i] / seen.deviation) for i, seen in changed.items()}
        for batch in batches
    ]

    def inputs(index: int) -> list[Any]:
        own = variables[index]
        return [
            own[i] * changed[i].deviation if i in own else array
            for i, array in enumerate(batches[index])
        ]

    for step in progress(range(steps)):
        if last <= _ENOUGH and step:
            break
        rate = 0.5 * (1 + np.cos(np.pi * step / steps)) * _LEARNING_RATE
        for index, own in enumerate(variables):
            others = _mixed(moments, shares, without=index)
            with tf.GradientTape() as tape:
                seen = _moments(observer, norms, _augmented(inputs(index), changed, rng))
                loss = _loss(norms, others, seen, shares[index])
            optimizers[index].learning_rate = rate
            gradients = tape.gradient(loss, list(own.values()), unconnected_gradients="zero")
            optimizers[index].apply(gradients, list(own.values()))
            for i, variable in own.items():
                low, high = (
                    end / changed[i].deviation for end in (changed[i].low, changed[i].high)
                )
                variable.assign(tf.clip_by_value(variable, low, high))
            moments[index] = [tuple(v.numpy() for v in pair) for pair in seen]
        last = _loss_of(norms, _mixed(moments, shares))
    made = zip(*(inputs(index) for index in range(len(batches))), strict=True)
    return [np.concatenate([np.asarray(part) for part in parts]) for parts in made], first, last


def _moments(observer: keras.Model, norms: Sequence[Norm], batch: Sequence[Any]) -> list[Any]:
    """Means of the values and of their squares, `[C]`, at each norm."""
    outputs = keras.tree.flatten(observer(list(batch), training=False))
    found = []
    for norm, values in zip(norms, outputs, strict=True):
        axes = [i for i in range(len(values.shape)) if i != norm.axis]
        found.append((tf.reduce_mean(values, axes), tf.reduce_mean(tf.square(values), axes)))
    return found


def _mixed(
    moments: Sequence[list[Any]], shares: Sequence[float], without: int | None = None
) -> list[tuple[Any, Any]]:
    """The moments of all batches but one, each times its share."""
    kept = [i for i in range(len(moments)) if i != without]
    if not kept:
        return [(0.0, 0.0) for _ in moments[0]]
    return [
        tuple(sum(shares[i] * np.asarray(moments[i][n][k]) for i in kept) for k in (0, 1))  # type: ignore[misc]
        for n in range(len(moments[0]))
    ]


def _loss(
    norms: Sequence[Norm], others: Sequence[tuple[Any, Any]], own: Sequence[Any], share: float
) -> Any:
    total = 0.0
    for norm, rest, mine in zip(norms, others, own, strict=True):
        mean, square = (a + share * b for a, b in zip(rest, mine, strict=True))
        deviation = tf.sqrt(tf.maximum(square - tf.square(mean), 1e-12))
        total += tf.reduce_mean(tf.square((mean - norm.mean) / norm.deviation))
        total += tf.reduce_mean(tf.square(deviation / norm.deviation - 1))
    return total / len(norms)


def _loss_of(norms: Sequence[Norm], moments: Sequence[tuple[Any, Any]]) -> float:
    nothing = [(0.0, 0.0)] * len(norms)
    return float(_loss(norms, nothing, moments, 1.0))


def _augmented(
    batch: Sequence[Any], changed: Collection[int], rng: np.random.Generator
) -> list[Any]:
    """Pictures moved by some pixels, and half of the time mirrored, as in training."""
    made = []
    for i, array in enumerate(batch):
        value = tf.convert_to_tensor(array)
        if i in changed and len(value.shape) == 4:
            most = [max(1, int(_SHIFT * size)) for size in value.shape[1:3]]
            value = tf.roll(value, [int(rng.integers(-m, m + 1)) for m in most], [1, 2])
            if rng.random() < 0.5:
                value = tf.reverse(value, [2])
        made.append(value)
    return made
