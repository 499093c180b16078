"""Calibration inputs for a model that nobody has data for."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.config import SYNTHETIC, check_count
from ocs_tf.data import Dataset, Source
from ocs_tf.graph.analysis.indices import index_tensors, table_rows
from ocs_tf.graph.reader import Graph
from ocs_tf.keras2 import takes_keras2
from ocs_tf.keras_internals import maker
from ocs_tf.keras_state import restores_state
from ocs_tf.numerics.checks import check_choice, check_integer, check_switch, is_number, shown
from ocs_tf.numerics.random_fields import coloured, dead_leaves, noise_fields
from ocs_tf.progress import progress_bar
from ocs_tf.synthesis.input_moments import InputMoments, input_moments
from ocs_tf.synthesis.matching import Range, match, norms_of

Method = Literal["auto", "match", "noise"]
_OPEN_SIZE = 64  # of an axis without a size
_SMALL = 64 * 64  # places of an input of which many samples are made
_MANY, _FEW = 256, 48
_STEPS = {_MANY: 60, _FEW: 36}
_BATCH = {_MANY: 64, _FEW: 16}
_RARE = 1.0  # exponent of Zipf's law


class SyntheticData(Mapping[str, NDArray[Any]]):
    """Inputs that `synthesize` made: arrays by the name of the input, for `representative_dataset`.

    Attributes:
        summary: what they were made from, in words.
        mismatch: the relative squared error of the means and deviations that batch norms see,
            against those of training, before and after matching; `None` without batch norms.
    """

    is_synthetic = True

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        summary: str = "",
        mismatch: tuple[float, float] | None = None,
    ) -> None:
        self._arrays = dict(arrays)
        self.summary = summary
        self.mismatch = mismatch

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {array.shape}" for name, array in self._arrays.items())
        return f"SyntheticData({shapes})"


class OnDemand:
    """Synthetic data that are made when they are first read: a form that `data.Source` takes."""

    is_synthetic = True

    def __init__(self, make: Callable[[], SyntheticData]) -> None:
        self._make = make

    @functools.cached_property
    def made(self) -> SyntheticData:
        """The data; the first time takes as long as `synthesize` does."""
        return self._make()

    @property
    def summary(self) -> str:
        """Of the data, in words."""
        return self.made.summary

    def __call__(self) -> SyntheticData:
        return self.made


def is_word(dataset: Dataset) -> bool:
    """Whether `dataset` is the word that stands for synthetic data."""
    return isinstance(dataset, str) and dataset == SYNTHETIC


def source_of(graph: Graph, **options: Any) -> Source:
    """Synthetic data of the model of a graph, made when they are read; `options` of `of_graph`."""
    return Source(OnDemand(functools.partial(of_graph, graph, **options)))


@takes_keras2
@restores_state
def synthesize(
    model: keras.Model,
    samples: int | None = None,
    *,
    method: Method = "auto",
    input_range: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    steps: int | None = None,
    verbose: bool = True,
) -> SyntheticData:
    """Calibration inputs made from what a model's batch norms know of its training data.

    Inputs start as noise with natural spectra and, of pictures, as dead leaves (discs that hide
    each other), with the mean, covariance and range that the first batch norm tells. Gradient
    descent then changes them until the statistics at all batch norms are those of training. Inputs
    that only lookups read are drawn by Zipf's law.

    Arguments:
        model: a built `keras.Model`; it is not modified.
        samples: how many; `None`: 256 of small inputs, 48 of large ones (over 64 x 64).
        method: `"noise"`: no gradient descent; `"match"`: with it; `"auto"`: where there are batch
            norms.
        input_range: the lowest and highest value of float inputs, or of each by its name; `None`:
            guessed from the first batch norm, or from a Rescaling or Normalization layer.
        seed: same seed, same inputs.
        steps: of gradient descent on each batch; `None`: 60 for small inputs, 36 for large ones.
        verbose: show progress.

    Returns:
        A mapping from input names to arrays, which `representative_dataset` takes. `convert` then
        widens the ranges of activations as far as batch norms tell, and of the last layers, which
        synthetic inputs excite less than real ones.

    Raises:
        ValueError: an argument is out of range; an input takes strings; `method="match"` without
            batch norms.

    Example:
        >>> data = ocs_tf.synthesize(model)
        >>> quantized = ocs_tf.convert(model, representative_dataset=data, weight_bits=4)
    """
    check_switch("verbose", verbose)
    check_choice("method", method, get_args(Method))
    check_integer("seed", seed, 0, 2**32 - 1)
    for name, value in (("samples", samples), ("steps", steps)):
        if value is not None:
            check_count(name, value)
    return of_graph(Graph(model), samples, method, input_range, seed, steps, verbose)


def of_graph(
    graph: Graph,
    samples: int | None = None,
    method: Method = "auto",
    input_range: Any = None,
    seed: int = 0,
    steps: int | None = None,
    verbose: bool = True,
) -> SyntheticData:
    """As `synthesize`, for the model of a graph."""
    rng = np.random.default_rng(seed)
    tensors = graph.model.inputs
    largest = max(int(np.prod(_shape(tensor)[:-1] or (1,))) for tensor in tensors)
    usual = _MANY if largest <= _SMALL else _FEW
    count = samples or usual
    norms = norms_of(graph)
    if method == "match" and not norms:
        raise ValueError(
            "`method` (='match') needs batch norms with the statistics of training, which the model"
            " does not have; choose 'noise' or 'auto'."
        )
    lookups = index_tensors(graph)
    arrays, ranges, words = [], [], []
    for tensor in tensors:
        name = str(maker(tensor).name)
        array, seen, told = _drawn(graph, tensor, name, lookups, count, input_range, rng)
        arrays.append(array)
        ranges.append(seen)
        words.append(f"input {name!r}: {told}")
    mismatch = None
    if norms and method != "noise" and any(seen is not None for seen in ranges):
        arrays, *losses = match(
            graph,
            norms,
            arrays,
            ranges,
            steps or _STEPS[usual],
            _BATCH[usual],
            rng,
            lambda numbers: progress_bar(numbers, "Synthesizing", verbose, unit="step"),
        )
        mismatch = losses[0], losses[1]
        words.append(
            f"error of the statistics at {len(norms)} batch norms: {losses[0]:.3f} before"
            f" matching, {losses[1]:.3f} after"
        )
    names = [str(maker(tensor).name) for tensor in tensors]
    summary = f"{count} synthetic samples; " + "; ".join(words) + "."
    return SyntheticData(dict(zip(names, arrays, strict=True)), summary, mismatch)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(_OPEN_SIZE if size is None else int(size) for size in tensor.shape[1:])


def _drawn(
    graph: Graph,
    tensor: Any,
    name: str,
    lookups: set[int],
    count: int,
    input_range: Any,
    rng: np.random.Generator,
) -> tuple[NDArray[Any], Range | None, str]:
    """Samples of one input; the range within which they may be changed; and what they are."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    shape = _shape(tensor)
    rows = table_rows(graph, tensor)
    if dtype == "string":
        raise ValueError(
            f"input {name!r} takes strings, which cannot be synthesized; give"
            " `representative_dataset`."
        )
    if rows is not None:
        chances = 1 / (1 + np.arange(rows)) ** _RARE
        ids = rng.choice(rows, (count, *shape), p=chances / chances.sum())
        return ids.astype(dtype), None, f"ids below {rows}, by Zipf's law"
    if "float" not in dtype or id(tensor) in lookups:
        return np.ones((count, *shape), dtype), None, "ones"
    given = input_range.get(name) if isinstance(input_range, Mapping) else input_range
    if given is not None:
        given = _checked_range(given)
    moments = input_moments(graph, tensor, given)
    if not moments.source:
        warnings.warn(
            f"nothing tells the range of input {name!r}: it is taken to be {moments.low:g} to"
            f" {moments.high:g}. Give `input_range` to ocs_tf.synthesize.",
            stacklevel=4,
        )
    array = _field(moments, count, shape, rng).clip(moments.low, moments.high)
    seen = Range(moments.low, moments.high, moments.deviation)
    told = f"{moments.low:.4g} to {moments.high:.4g}, by {moments.source or 'assumption'}"
    return array.astype(np.float32), seen, told


def _field(
    moments: InputMoments, count: int, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Half noise and, of pictures, half dead leaves."""
    if not shape:
        shape = (1,)
    *sizes, channels = shape
    leaves = count // 2 if len(sizes) == 2 and min(sizes) > 1 else 0
    places = [size for size in sizes if size > 1]
    noise = noise_fields(count - leaves, places, channels, moments.correlation, rng)
    fields = noise.reshape(count - leaves, *shape)
    if leaves:
        fields = np.concatenate([fields, dead_leaves(leaves, sizes[0], sizes[1], channels, rng)])
        fields = fields[rng.permutation(count)]
    return coloured(fields, moments.mean, moments.covariance)


def _checked_range(value: Any) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(is_number(end) for end in pair) or not pair[0] < pair[1]:
        raise ValueError(
            f"`input_range` (={shown(value)}) must be the lowest and the highest value, such as"
            " (0, 255), or a dict of those by input name."
        )
    return float(pair[0]), float(pair[1])
