"""Representative data in every form that users have it, as validated batches of arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 32

Dataset = Any  # array | mapping | tf.data.Dataset | keras.utils.PyDataset | callable | iterable


def batches(
    dataset: Dataset,
    model: keras.Model,
    *,
    batch_size: int = BATCH_SIZE,
    limit: int | None = None,
    name: str = "representative_dataset",
) -> Iterator[list[NDArray[Any]]]:
    """Batches of `dataset`: one array per input of `model`, all of the same length.

    Arguments:
        dataset: an array; a dict of arrays by input name, or a list of arrays, one per input; a
            `tf.data.Dataset` or `keras.utils.PyDataset` (labels, in tuples, are left out); or a
            callable that returns an iterable of lists or dicts, as TFLite's converter takes it.
            Samples come with or without a batch axis.
        model: gives the names, shapes and dtypes of the inputs.
        batch_size: at most this many samples a batch.
        limit: stop after this many samples.
        name: of the argument, for messages.

    Raises:
        ValueError: no data, a wrong shape, an unknown or missing input name, NaN or infinity, or a
            generator that raises; the message says where.
    """
    specs = _specs(model)
    left = float("inf") if limit is None else limit
    seen = 0
    elements = _elements(dataset, specs, batch_size, name)
    for arrays in _grouped(elements, batch_size, specs, name):
        arrays = [a[: int(min(left, len(a)))] for a in arrays]
        left -= len(arrays[0])
        seen += len(arrays[0])
        yield arrays
        if left <= 0:
            break
    if not seen:
        raise ValueError(f"`{name}` is empty; it must hold at least one sample.")


class _Spec:
    """What an input of the model takes."""

    def __init__(self, tensor: Any, *names: str) -> None:
        self.name = names[0]
        self.names = names  # all that dicts of inputs may call it
        self.shape = tuple(tensor.shape[1:])
        self.dtype = keras.backend.standardize_dtype(tensor.dtype)

    def fit(self, value: Any, where: str) -> NDArray[Any]:
        """`value` as an array with a batch axis, or `ValueError`."""
        array = np.asarray(value)
        if array.dtype == object or array.dtype.kind in "USV":
            raise ValueError(f"{where} must be numbers, but has dtype {array.dtype}.")
        if array.ndim == len(self.shape):
            array = array[None]
        fits = array.ndim == len(self.shape) + 1 and all(
            want is None or want == got
            for want, got in zip(self.shape, array.shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join("?" if size is None else str(size) for size in self.shape)
            raise ValueError(
                f"{where} has shape {array.shape}, but input {self.name!r} takes"
                f" samples of shape ({wanted})."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{where} holds NaN or infinity, for input {self.name!r}.")
        return array.astype(self.dtype, copy=False)


def _specs(model: keras.Model) -> list[_Spec]:
    # Keras names an input's layer, its tensor and, in a dict of inputs, its key; as a rule alike.
    keys = {}
    if isinstance(model.input, Mapping):
        keys = {id(tensor): str(key) for key, tensor in model.input.items()}
    layers = [tensor._keras_history.operation.name for tensor in model.inputs]
    return [
        _Spec(tensor, layer, str(tensor.name), keys.get(id(tensor), layer))
        for layer, tensor in zip(layers, model.inputs, strict=True)
    ]


def _in_order(values: Mapping[str, Any], specs: Sequence[_Spec]) -> list[Any] | None:
    """The values of a dict of inputs in the order of `specs`; `None` if the names do not fit."""
    for names in zip(*(spec.names for spec in specs), strict=True):
        if set(values) == set(names):
            return [values[name] for name in names]
    return None


def _grouped(
    elements: Iterator[Any], batch_size: int, specs: Sequence[_Spec], name: str
) -> Iterator[list[NDArray[Any]]]:
    """Elements as batches: large ones cut, small ones joined."""
    waiting: list[list[NDArray[Any]]] = []
    for index in itertools.count():
        try:
            element = next(elements)
        except StopIteration:
            break
        except Exception as error:
            raise ValueError(f"`{name}` raised {error!r} after {index} elements.") from error
        arrays = _fit(element, specs, f"`{name}` (element {index})")
        for start in range(0, len(arrays[0]), batch_size):
            waiting.append([a[start : start + batch_size] for a in arrays])
            if sum(len(part[0]) for part in waiting) >= batch_size:
                yield _join(waiting)
                waiting = []
    if waiting:
        yield _join(waiting)


def _join(parts: list[list[NDArray[Any]]]) -> list[NDArray[Any]]:
    return [
        np.concatenate(column) if len(column) > 1 else column[0]
        for column in zip(*parts, strict=True)
    ]


def _fit(element: Any, specs: Sequence[_Spec], where: str) -> list[NDArray[Any]]:
    """One array per input, of equal lengths."""
    if isinstance(element, Mapping):
        by_name = _in_order(element, specs)
        if by_name is None:
            raise ValueError(
                f"{where} has the keys {sorted(map(str, element))}, but the inputs are"
                f" {[spec.name for spec in specs]}."
            )
        values = by_name
    elif isinstance(element, (list, tuple)):
        values = list(element)
        if len(values) != len(specs):
            raise ValueError(f"{where} holds {len(values)} arrays for {len(specs)} inputs.")
    else:
        values = [element]
        if len(specs) != 1:
            raise ValueError(f"{where} is one array, but the model has {len(specs)} inputs.")
    arrays = [spec.fit(value, where) for spec, value in zip(specs, values, strict=True)]
    lengths = {len(a) for a in arrays}
    if len(lengths) > 1:
        raise ValueError(f"{where} has inputs of different lengths: {sorted(lengths)}.")
    return arrays


def _elements(
    dataset: Dataset, specs: Sequence[_Spec], batch_size: int, name: str
) -> Iterator[Any]:
    """The dataset as an iterator over arrays, lists of arrays or dicts of arrays."""
    if isinstance(dataset, Mapping) or hasattr(dataset, "__array__"):
        return _slices(dataset, specs, batch_size)
    if isinstance(dataset, (list, tuple)):
        # One array per input, or simply a list of samples.
        per_input = len(specs) == len(dataset) and all(
            np.ndim(a) == len(s.shape) + 1 for a, s in zip(dataset, specs, strict=True)
        )
        return _slices(dataset, specs, batch_size) if per_input else iter(dataset)
    if isinstance(dataset, keras.utils.PyDataset):
        return (_without_labels(dataset[i], specs) for i in range(len(dataset)))
    if callable(dataset):
        return _elements_of_call(dataset, name)
    if isinstance(dataset, Iterable):  # tf.data.Dataset, a generator
        return (_without_labels(_to_numpy(element), specs) for element in dataset)
    raise ValueError(
        f"`{name}` (a {type(dataset).__name__}) must be an array, a dict or list of arrays, a"
        " tf.data.Dataset, a keras.utils.PyDataset, or a callable that yields samples."
    )


def _slices(whole: Any, specs: Sequence[_Spec], batch_size: int) -> Iterator[Any]:
    """A batch of each array at a time: no more is converted and checked at once."""
    arrays: Sequence[Any] = whole if isinstance(whole, (list, tuple)) else [whole]
    if isinstance(whole, Mapping):
        arrays = _in_order(whole, specs) or []
    lengths = {
        len(array)
        for array, spec in zip(arrays, specs, strict=False)
        if np.ndim(array) == len(spec.shape) + 1
    }
    if len(arrays) != len(specs) or len(lengths) != 1:
        yield whole  # a single sample, or an error that `_fit` describes
        return
    for start in range(0, lengths.pop(), batch_size):
        yield [array[start : start + batch_size] for array in arrays]


def _elements_of_call(dataset: Callable[[], Any], name: str) -> Iterator[Any]:
    produced = dataset()
    if not isinstance(produced, Iterable):
        raise ValueError(f"`{name}` returned {type(produced).__name__}, which is not iterable.")
    yield from (_to_numpy(element) for element in produced)


def _to_numpy(element: Any) -> Any:
    if isinstance(element, Mapping):
        return {key: np.asarray(value) for key, value in element.items()}
    if isinstance(element, (list, tuple)):
        return tuple(_to_numpy(value) for value in element)
    return np.asarray(element)


def _without_labels(element: Any, specs: Sequence[_Spec]) -> Any:
    """Inputs of an `(inputs, labels[, weights])` tuple, as Keras' `fit` takes it."""
    if not isinstance(element, tuple) or len(element) > 3:
        return element
    nested = isinstance(element[0], (tuple, list, Mapping))
    return element[0] if nested or len(element) != len(specs) else element
