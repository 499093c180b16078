"""Representative data in every form that users have it, as validated batches of arrays."""

from __future__ import annotations

import itertools
import numbers
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.keras_internals import maker

BATCH_SIZE = 32
MOST_SAMPLES = 1 << 16  # of data that do not say how many they are; ImageNet has 50,000

# array | mapping | list | tuple | tf.data.Dataset | keras.utils.PyDataset | callable | iterable,
# or a `Source` of one
Dataset = Any
Batch = list[NDArray[Any]]


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
        self.is_synthetic = _is_true(dataset, "is_synthetic")
        self._is_iterator = isinstance(dataset, Iterator)
        self._dataset = _Replay(dataset) if self._is_iterator else dataset
        self._was_read = False
        self._may_be_endless = False
        self._iterator: Iterator[Any] | None = None
        if not _has_a_form(dataset):
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
        specs = _specs(model)
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
        specs = [_Spec(tensor, str(tensor.name)) for tensor in inputs]
        element = next(self._raw(specs, limit=1), None)
        if element is None:
            raise ValueError(self._empty())
        self._was_read = True
        parts = _parts(element, specs) or _misfits(element, specs, f"`{self.name}` (element 0)")
        found = [np.asarray(part).dtype for part in parts]
        return ["string" if dtype.kind in "OSU" else dtype.name for dtype in found]

    def _fitted(self, specs: Sequence[_Spec], limit: int | None) -> Iterator[Batch]:
        """The elements of the dataset, as arrays with a batch axis."""
        for index, element in enumerate(self._raw(specs, limit)):
            yield _fit(element, specs, f"`{self.name}` (element {index})")

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

    def _raw(self, specs: Sequence[_Spec], limit: int | None) -> Iterator[Any]:
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
        self, dataset: Dataset, specs: Sequence[_Spec], limit: int | None
    ) -> Iterator[Any]:
        """The dataset as an iterator over samples or batches of them."""
        if _is_array(dataset) or isinstance(dataset, (Mapping, list, tuple)):
            whole = _whole(dataset, specs)
            if whole is not None:
                for array in whole:
                    _check_unmasked(array, f"`{self.name}`")
                return _slices(whole)
            return iter(dataset if isinstance(dataset, (list, tuple)) else [dataset])
        if callable(dataset):
            return self._elements(self._called(dataset), specs, limit)
        if limit is None and _is_endless(dataset):
            raise ValueError(
                f"`{self.name}` is endless: limit it, by its take() or by a number of samples"
                " (calibration_samples)."
            )
        if isinstance(dataset, Iterable):
            self._may_be_endless = not _has_length(dataset)
            return self._new(iter(dataset), "gives")
        return (dataset[index] for index in _indices(dataset))

    def _called(self, make: Callable[[], Any]) -> Any:
        try:
            made = make()
        except Exception as error:
            if self.is_synthetic:  # of our own making
                raise
            raise ValueError(f"`{self.name}` raised {error!r} when it was called.") from error
        if callable(made) or not _has_a_form(made):
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


class _Spec:
    """What an input of the model takes."""

    def __init__(self, tensor: keras.KerasTensor, *names: str) -> None:
        self.name = names[0]
        self.names = names  # all that dicts of inputs may call it
        self.shape = tuple(tensor.shape[1:])
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        self.dtype = "float32" if dtype == "bfloat16" else dtype  # which NumPy does not have

    def layout(self, shape: tuple[int | None, ...] | None) -> tuple[str, tuple[Any, ...]] | None:
        """How to read an array of `shape`: as a `"batch"` or a `"sample"`; and its new shape.

        As in Keras, a last axis of size 1 may be missing, or be one too many.
        """
        if shape is None:
            return None
        if _matches(shape, self.shape):
            return "sample", (1, *shape)
        if _matches(shape[1:], self.shape) and shape:
            return "batch", shape
        if self.shape and self.shape[-1] == 1:
            if _matches(shape, self.shape[:-1]):
                return "sample", (1, *shape, 1)
            if _matches(shape[1:], self.shape[:-1]) and shape:
                return "batch", (*shape, 1)
        if len(shape) > 1 and _matches(shape[1:], (*self.shape, 1)):
            return "batch", shape[:-1]
        return None

    def takes(self, value: Any) -> bool:
        """Whether the shape of `value` fits."""
        return self.layout(_shape(value)) is not None

    def takes_whole(self, value: Any) -> bool:
        """Whether the shape of `value` fits, as that of several samples."""
        found = self.layout(_shape(value))
        return found is not None and found[0] == "batch"

    def fit(self, value: Any, where: str) -> NDArray[Any]:
        """`value` as an array with a batch axis, or `ValueError`."""
        array = _array(value, where)
        is_text = self.dtype == "string"
        if not (_holds_text(array) if is_text else array.dtype.kind in "biuf"):
            wanted = "strings" if is_text else "numbers"
            raise ValueError(
                f"{where} must be {wanted}, but has dtype {array.dtype}, for input {self.name!r}."
            )
        found = self.layout(array.shape)
        if found is None:
            wanted = ", ".join("?" if size is None else str(size) for size in self.shape)
            raise ValueError(
                f"{where} has shape {array.shape}, but input {self.name!r} takes"
                f" samples of shape ({wanted})."
            )
        array = array.reshape(found[1])
        return array.astype(object) if is_text else self._cast(array, where)

    def _cast(self, array: NDArray[Any], where: str) -> NDArray[Any]:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{where} holds NaN or infinity, for input {self.name!r}.")
        wanted = np.dtype(self.dtype)
        if array.dtype == wanted or not array.size:
            return array.astype(wanted, copy=False)
        takes = f"but input {self.name!r} takes {self.dtype}"
        if wanted.kind in "iub" and array.dtype.kind == "f":
            odd = array[array != np.rint(array)]
            if odd.size:
                raise ValueError(f"{where} holds {odd[0]}, {takes}: round the values.")
        low, high = _limits(wanted)
        for extreme in (array.min(), array.max()):
            if not low <= extreme.item() <= high:
                raise ValueError(f"{where} holds {extreme}, {takes}, {low} to {high}.")
        return array.astype(wanted)


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The least and the largest number of `dtype`."""
    if dtype.kind == "b":
        return 0, 1
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _matches(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want is None or want == got for want, got in zip(wanted, shape, strict=True)
    )


def _specs(model: keras.Model) -> list[_Spec]:
    # Keras names an input's layer, its tensor and, in a dict of inputs, its key; as a rule alike.
    keys = {}
    if isinstance(model.input, Mapping):
        keys = {id(tensor): str(key) for key, tensor in model.input.items()}
    layers = [maker(tensor).name for tensor in model.inputs]
    return [
        _Spec(tensor, layer, str(tensor.name), keys.get(id(tensor), layer))
        for layer, tensor in zip(layers, model.inputs, strict=True)
    ]


def fixed_batch_size(model: Any) -> int | None:
    """Of the inputs of `model`; `None` if it is open."""
    sizes = {tensor.shape[0] for tensor in model.inputs} - {None}
    return int(sizes.pop()) if sizes else None


# Forms of datasets ------------------------------------------------------------------------------


def _has_a_form(dataset: Any) -> bool:
    if isinstance(dataset, (str, bytes, numbers.Number)) or dataset is None:
        return False
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return _is_array(dataset) or callable(dataset) or isinstance(dataset, Iterable) or indexed


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or _has_no_rows(value)


def _has_no_rows(value: Any) -> bool:
    return _is_ragged(value) or _is_sparse(value)


def _is_ragged(value: Any) -> bool:
    return hasattr(value, "row_splits") and hasattr(value, "to_tensor")


def _is_sparse(value: Any) -> bool:
    # TensorFlow's, SciPy's and PyTorch's, which have no common base.
    return hasattr(value, "dense_shape") or hasattr(value, "tocsr") or _is_true(value, "is_sparse")


def _is_masked(value: Any) -> bool:
    """Whether `value` is a masked array that masks something, or a list that holds one."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_masked, value))
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.is_masked(value))


def _is_true(value: Any, attribute: str) -> bool:
    return getattr(value, attribute, False) is True


def _is_table(value: Any) -> bool:
    """Whether `value` is a data frame."""
    return hasattr(value, "columns") and hasattr(value, "__array__")


def _is_endless(dataset: Any) -> bool:
    if isinstance(dataset, keras.utils.PyDataset):
        return dataset.num_batches is None
    cardinality = getattr(dataset, "cardinality", None)  # of a tf.data.Dataset; -1 if infinite
    return callable(cardinality) and int(cardinality()) == -1


def _has_length(dataset: Any) -> bool:
    try:
        return len(dataset) >= 0
    except TypeError:  # as a tf.data.Dataset raises that does not know
        return False


def _indices(dataset: Any) -> Iterable[int]:
    """Of what is read by index: a PyDataset, or another object with a length."""
    if not isinstance(dataset, keras.utils.PyDataset):
        return range(len(dataset))
    return itertools.count() if dataset.num_batches is None else range(dataset.num_batches)


def _whole(dataset: Any, specs: Sequence[_Spec]) -> list[Any] | None:
    """One array of all samples per input; `None` if `dataset` is one sample, or holds them."""
    arrays: Sequence[Any] | None
    if isinstance(dataset, Mapping) or (_is_table(dataset) and len(specs) > 1):
        arrays = _by_name(dataset, specs)
    elif not isinstance(dataset, (list, tuple)):
        arrays = [dataset]
    elif _is_nested(dataset, specs):
        return _whole(dataset[0], specs)
    elif _are_parts(dataset, specs) and all(
        spec.takes_whole(part) for spec, part in zip(specs, dataset, strict=True)
    ):
        arrays = dataset
    elif _may_have_labels(dataset) and len(specs) == 1 and specs[0].takes_whole(dataset[0]):
        arrays = dataset[:1]
    else:
        return None
    if arrays is None or len(arrays) != len(specs) or any(map(_has_no_rows, arrays)):
        return None  # an error that `_fit` describes
    lengths = set()
    for spec, array in zip(specs, arrays, strict=True):
        shape = _shape(array)
        if shape is None or not (spec.takes_whole(array) or len(shape) == len(spec.shape) + 1):
            return None
        lengths.add(shape[0])
    return list(arrays) if len(lengths) == 1 and None not in lengths else None


def _slices(arrays: Sequence[Any]) -> Iterator[list[Any]]:
    """A batch of each array at a time: no more is converted and checked at once."""
    (length, *_) = _shape(arrays[0]) or (0,)
    for start in range(0, length or 0, BATCH_SIZE):
        # A pandas object is sliced by its labels, if not asked otherwise.
        yield [getattr(a, "iloc", a)[start : start + BATCH_SIZE] for a in arrays]


# Elements ---------------------------------------------------------------------------------------


def _may_have_labels(value: Any) -> bool:
    """Whether `value` has the form of `(inputs, labels[, weights])`, as Keras' `fit` takes it."""
    return isinstance(value, tuple) and 2 <= len(value) <= 3


def _is_nested(value: Any, specs: Sequence[_Spec]) -> bool:
    """Whether `value` is `(inputs, ...)` with a dict of inputs, or a list of arrays."""
    if not _may_have_labels(value):
        return False
    inputs = value[0]
    if not isinstance(inputs, Mapping):
        # A list of numbers may be the only input itself.
        listed = _are_parts(inputs, specs) and (len(specs) > 1 or _is_array(inputs[0]))
        if not listed:
            return False
    return _parts(inputs, specs) is not None


def _are_parts(value: Any, specs: Sequence[_Spec]) -> bool:
    """Whether `value` holds as many things as there are inputs, which can be arrays."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == len(specs)
        and not any(isinstance(part, (tuple, Mapping)) for part in value)
    )


def _parts(value: Any, specs: Sequence[_Spec]) -> list[Any] | None:
    """The part of an element for each input, without labels; `None` if it does not fit."""
    if isinstance(value, Mapping) or (_is_table(value) and len(specs) > 1):
        return _by_name(value, specs)
    if not isinstance(value, (list, tuple)):
        return [value] if len(specs) == 1 and specs[0].takes(value) else None
    if _is_nested(value, specs):
        return _parts(value[0], specs)
    if _are_parts(value, specs) and all(
        spec.takes(part) for spec, part in zip(specs, value, strict=True)
    ):
        return list(value)
    inputs = _parts(value[0], specs) if _may_have_labels(value) else None
    if inputs is None and len(specs) == 1 and specs[0].takes(value):
        return [value]  # of plain numbers
    if inputs is None and isinstance(value, list) and 2 <= len(value) <= 3:
        # PyTorch's loaders give [inputs, labels].
        inputs = None if _parts(value[1], specs) else _parts(value[0], specs)
    return inputs


def _by_name(values: Any, specs: Sequence[_Spec]) -> list[Any] | None:
    """The values of a dict of inputs in the order of `specs`; `None` if the names do not fit."""
    for names in zip(*(spec.names for spec in specs), strict=True):
        if set(names) <= set(values):
            return [values[name] for name in names]
    return None


def _fit(element: Any, specs: Sequence[_Spec], where: str) -> Batch:
    """One array per input, of equal lengths."""
    parts = _parts(element, specs)
    if parts is None:
        parts = _misfits(element, specs, where)
    arrays = [spec.fit(part, where) for spec, part in zip(specs, parts, strict=True)]
    lengths = {len(a) for a in arrays}
    if len(lengths) > 1:
        raise ValueError(f"{where} has inputs of different lengths: {sorted(lengths)}.")
    return arrays


def _misfits(element: Any, specs: Sequence[_Spec], where: str) -> list[Any]:
    """What `_Spec.fit` says more of than that it does not fit, or `ValueError`."""
    if isinstance(element, Mapping) or (_is_table(element) and len(specs) > 1):
        raise ValueError(
            f"{where} has the keys {sorted(map(str, element))}, but the inputs are"
            f" {[spec.name for spec in specs]}."
        )
    if _may_have_labels(element) and len(element) != len(specs):
        return _misfits(element[0], specs, where)
    if isinstance(element, (list, tuple)) and len(element) == len(specs):
        return list(element)
    if isinstance(element, (list, tuple)) and (len(specs) > 1 or any(map(_is_array, element))):
        raise ValueError(f"{where} holds {len(element)} arrays for {len(specs)} inputs.")
    if len(specs) > 1:
        raise ValueError(f"{where} is one array, but the model has {len(specs)} inputs.")
    return [element]


# Arrays -----------------------------------------------------------------------------------------


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """Of an array or of nested lists; `None` if those are ragged."""
    if hasattr(value, "shape"):
        return tuple(value.shape)
    try:
        return np.shape(value)
    except ValueError:
        return None


def _array(value: Any, where: str) -> NDArray[Any]:
    """`value` as a NumPy array, of numbers if it holds nothing else."""
    ragged = ValueError(
        f"{where} is ragged: its samples have different lengths. Pad them to one length, with"
        " keras.utils.pad_sequences or the to_tensor() of a tf.RaggedTensor, or give batches of"
        " samples of one length each."
    )
    if _is_ragged(value):
        raise ragged
    if _is_sparse(value):
        raise ValueError(
            f"{where} is sparse; make it dense, with tf.sparse.to_dense or its toarray()."
        )
    _check_unmasked(value, where)
    try:
        array = np.asarray(value)
    except ValueError:
        raise ragged from None
    except Exception as error:
        raise ValueError(f"{where} (a {type(value).__name__}) is no array: {error}") from error
    if array.dtype.kind == "V" and array.dtype.names is None:
        return array.astype(np.float32)  # bfloat16, which is not NumPy's own
    if array.dtype != object:
        return array
    values = array.ravel().tolist()
    if all(isinstance(v, numbers.Number) for v in values):
        return np.array(values).reshape(array.shape)
    if any(isinstance(v, (list, tuple, np.ndarray)) for v in values):
        raise ragged
    return array


def _check_unmasked(value: Any, where: str) -> None:
    if _is_masked(value):
        raise ValueError(
            f"{where} is a masked array, whose mask models do not see: give its filled(...), with"
            " the value that stands for missing ones in training."
        )


def _holds_text(array: NDArray[Any]) -> bool:
    if array.dtype.kind == "O":
        return all(isinstance(value, (str, bytes)) for value in array.ravel())
    return array.dtype.kind in "US"


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
