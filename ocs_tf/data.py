"""Representative data in every form that users have it, as validated batches of arrays."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf import data_forms
from ocs_tf.data_forms import Batch

BATCH_SIZE = 32
MOST_SAMPLES = 1 << 16  # of data that do not say how many they are; ImageNet has 50,000

# array | mapping | list | tuple | tf.data.Dataset | keras.utils.PyDataset | callable | iterable,
# or a `Source` of one
Dataset = Any


class Source:
    """Representative data that can be read in several passes.

    Arguments:
        dataset: an array (NumPy, TensorFlow, PyTorch, pandas: whatever has `__array__`); a dict of
            arrays by input name, or a list of arrays, one per input; a list of samples; a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or another iterable; or a callable that
            returns any of these, as TFLite's converter takes it. Samples come with or without a
            batch axis. Labels and weights in tuples `(inputs, labels[, weights])` are left out,
            where the dataset itself is such a tuple, too. Where a tuple can be read as one array
            per input, by its length and shapes, it is.
        name: of the argument, for messages.

    A callable is called once per pass. Of an iterator (a generator, say), which can be read only
    once, the elements are kept in memory as they are read.

    Raises:
        ValueError: `dataset` has none of these forms.
    """

    def __init__(self, dataset: Dataset, name: str = "representative_dataset") -> None:
        self.name = name
        self.is_synthetic = data_forms.is_true(dataset, "is_synthetic")
        self._is_iterator = isinstance(dataset, Iterator)
        self._dataset = _Replay(dataset) if self._is_iterator else dataset
        self._was_read = False
        self._may_be_endless = False
        self._iterator: Iterator[Any] | None = None
        if not data_forms.has_a_form(dataset):
            raise ValueError(
                f"`{name}` (a {type(dataset).__name__}) must be an array, a dict or list of arrays,"
                " a tf.data.Dataset, a keras.utils.PyDataset, or a callable that yields samples."
            )

    @classmethod
    def of(cls, dataset: Dataset, name: str = "representative_dataset") -> Source | None:
        """A source of `dataset`, itself if it is one; `None` of `None`."""
        return dataset if dataset is None or isinstance(dataset, cls) else cls(dataset, name)

    @property
    def summary(self) -> str:
        """What synthetic data were made from, in words; no text of real data."""
        return str(getattr(self._dataset, "summary", "")) if self.is_synthetic else ""

    def batches(
        self,
        model: keras.Model,
        *,
        batch_size: int = BATCH_SIZE,
        limit: int | None = None,
        fill: bool = True,
    ) -> Iterator[Batch]:
        """One pass: batches of one array per input of `model`, all of the same length.

        The first batch is read at once, so that data that do not fit fail here.

        Arguments:
            model: gives the names, shapes and dtypes of the inputs. If it has a fixed batch size,
                batches have that.
            batch_size: samples in each batch but the last. Samples of different shapes (of inputs
                of open size) are never in one batch.
            limit: stop after this many samples; `None` reads all, but at most 65,536, with a
                warning, of a generator or another iterable without a length: it may have no end.
            fill: where `model` has a fixed batch size, fill a batch that has fewer samples up by
                repeating them.

        Raises:
            ValueError: no data, a wrong shape, an unknown or missing input name, values that the
                dtype of an input does not hold, NaN or infinity, ragged or sparse tensors, a
                generator that raises, or an endless dataset without a limit; the message says
                where.
        """
        specs = data_forms.specs_of(model)
        fixed = fixed_batch_size(model)
        fitted = self._fitted(specs, limit)
        parts = self._all(fitted) if limit is None else _limited(fitted, limit)
        stream = _grouped(parts, fixed or batch_size)
        if fixed and fill:
            stream = ([_filled(array, fixed) for array in batch] for batch in stream)
        first = next(stream, None)
        if first is None:
            raise ValueError(self._empty())
        self._was_read = True
        return itertools.chain([first], stream)

    def dtypes(self, inputs: Sequence[keras.KerasTensor]) -> list[str]:
        """Of the first sample, for each of symbolic `inputs` in order, before anything is cast.

        Raises:
            ValueError: as `batches`.
        """
        specs = [data_forms.Spec(tensor, str(tensor.name)) for tensor in inputs]
        element = next(self._raw(specs, limit=1), None)
        if element is None:
            raise ValueError(self._empty())
        self._was_read = True
        parts = data_forms.parts_of(element, specs) or data_forms.misfits(
            element, specs, f"`{self.name}` (element 0)"
        )
        found = [np.asarray(part).dtype for part in parts]
        return ["string" if dtype.kind in "OSU" else dtype.name for dtype in found]

    def _fitted(self, specs: Sequence[data_forms.Spec], limit: int | None) -> Iterator[Batch]:
        """The elements of the dataset, as arrays with a batch axis."""
        for index, element in enumerate(self._raw(specs, limit)):
            yield data_forms.fit(element, specs, f"`{self.name}` (element {index})")

    def _all(self, parts: Iterator[Batch]) -> Iterator[Batch]:
        """The samples to their end, or as many as are read where there may be none."""
        left = MOST_SAMPLES
        for arrays in parts:
            yield [a[:left] for a in arrays] if self._may_be_endless else arrays
            left -= len(arrays[0])
            if left <= 0 and self._may_be_endless:
                warnings.warn(
                    f"`{self.name}` does not say how many samples it has: the first"
                    f" {MOST_SAMPLES:,} are used. Give it a length, or an array, to use more.",
                    stacklevel=2,
                )
                return

    def _raw(self, specs: Sequence[data_forms.Spec], limit: int | None) -> Iterator[Any]:
        """The elements of the dataset, as they are."""
        elements = self._elements(self._dataset, specs, limit)
        for index in itertools.count():
            try:
                element = next(elements)
            except StopIteration:
                return
            except Exception as error:
                raise ValueError(
                    f"`{self.name}` raised {error!r} after {index} elements."
                ) from error
            yield element

    def _elements(
        self, dataset: Dataset, specs: Sequence[data_forms.Spec], limit: int | None
    ) -> Iterator[Any]:
        """The dataset as an iterator over samples or batches of them."""
        if data_forms.is_array(dataset) or isinstance(dataset, (Mapping, list, tuple)):
            whole = data_forms.whole(dataset, specs, f"`{self.name}`")
            if whole is not None:
                for array in whole:
                    data_forms.check_unmasked(array, f"`{self.name}`")
                return data_forms.slices(whole, BATCH_SIZE)
            return iter(dataset if isinstance(dataset, (list, tuple)) else [dataset])
        if callable(dataset):
            return self._elements(self._called(dataset), specs, limit)
        if limit is None and data_forms.is_endless(dataset):
            raise ValueError(
                f"`{self.name}` is endless: limit it, by its take() or by a number of samples"
                " (calibration_samples)."
            )
        if isinstance(dataset, Iterable):
            self._may_be_endless = not data_forms.has_length(dataset)
            try:
                iterator = iter(dataset)
            except Exception as error:
                raise ValueError(f"`{self.name}` raised {error!r} when it was read.") from error
            return self._new(iterator, "gives")
        return (dataset[index] for index in data_forms.indices(dataset))

    def _called(self, make: Callable[[], Any]) -> Any:
        try:
            made = make()
        except Exception as error:
            if self.is_synthetic:  # of our own making
                raise
            raise ValueError(f"`{self.name}` raised {error!r} when it was called.") from error
        if callable(made) or not data_forms.has_a_form(made):
            raise ValueError(
                f"`{self.name}` returned {type(made).__name__}, which is not iterable."
            )
        return made

    def _new(self, iterator: Iterator[Any], verb: str) -> Iterator[Any]:
        """`iterator`, if it is not that of the pass before: it would go on there."""
        if iterator is self._iterator:
            raise ValueError(
                f"`{self.name}` {verb} the same iterator each time it is read, which can be read"
                " only once; make a new one each time, or pass the iterator itself."
            )
        self._iterator = iterator
        return iterator

    def _empty(self) -> str:
        if self._is_iterator and not self._was_read:
            return (
                f"`{self.name}` is an iterator with nothing left to read: one can be read only"
                " once. Pass a callable that makes it (the generator function itself, say), or"
                " an array."
            )
        if self._was_read:
            return (
                f"`{self.name}` gave samples when it was read first, and none when it was read"
                " again. Pass a callable that makes new ones each time, or an array."
            )
        return f"`{self.name}` is empty; it must hold at least one sample."


class _Replay:
    """What an iterator gives, kept so that it can be read again."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._kept: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for index in itertools.count():
            if index == len(self._kept):
                try:
                    element = next(self._iterator)
                except StopIteration:
                    return
                self._kept.append(_copied(element))
            yield self._kept[index]


def fixed_batch_size(model: Any) -> int | None:
    """Of the inputs of `model`; `None` if it is open."""
    sizes = {tensor.shape[0] for tensor in model.inputs} - {None}
    return int(sizes.pop()) if sizes else None


def _copied(element: Any) -> Any:
    """`element` with copies of its arrays, which their owner may write to."""
    if isinstance(element, Mapping):
        return {key: _copied(value) for key, value in element.items()}
    if type(element) in (list, tuple):
        return type(element)(map(_copied, element))
    return element.copy() if isinstance(element, np.ndarray) else element


# Batches ----------------------------------------------------------------------------------------


def _limited(parts: Iterator[Batch], limit: int) -> Iterator[Batch]:
    """The first `limit` samples; nothing behind them is read."""
    for arrays in parts:
        yield [a[:limit] for a in arrays]
        limit -= len(arrays[0])
        if limit <= 0:
            return


def _grouped(parts: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Batches of `size` samples, fewer at the end and where shapes change."""
    waiting: list[Batch] = []
    count = 0
    for arrays in parts:
        if waiting and [a.shape[1:] for a in arrays] != [a.shape[1:] for a in waiting[0]]:
            yield _joined(waiting)
            waiting, count = [], 0
        start = 0
        while start < len(arrays[0]):
            stop = start + size - count
            # Copies: whoever made the array may write the next samples into it.
            waiting.append([a[start:stop].copy() for a in arrays])
            count += len(waiting[-1][0])
            start = stop
            if count == size:
                yield _joined(waiting)
                waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Batch]) -> Batch:
    return [
        np.concatenate(column) if len(column) > 1 else column[0]
        for column in zip(*parts, strict=True)
    ]


def _filled(array: NDArray[Any], size: int) -> NDArray[Any]:
    return array if len(array) == size else array[np.arange(size) % len(array)]
