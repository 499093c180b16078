"""Forms that users have data in, and what of an element each input of a model takes.

An element is a sample or a batch: an array, a dict or a list of them, with or without labels.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.keras_internals import maker

Batch = list[NDArray[Any]]


class Spec:
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


def specs_of(model: keras.Model) -> list[Spec]:
    # Keras names an input's layer, its tensor and, in a dict of inputs, its key; as a rule alike.
    keys = {}
    if isinstance(model.input, Mapping):
        keys = {id(tensor): str(key) for key, tensor in model.input.items()}
    layers = [maker(tensor).name for tensor in model.inputs]
    return [
        Spec(tensor, layer, str(tensor.name), keys.get(id(tensor), layer))
        for layer, tensor in zip(layers, model.inputs, strict=True)
    ]


# Forms of datasets ------------------------------------------------------------------------------


def has_a_form(dataset: Any) -> bool:
    if isinstance(dataset, (str, bytes, numbers.Number)) or dataset is None:
        return False
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return is_array(dataset) or callable(dataset) or isinstance(dataset, Iterable) or indexed


def is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or _has_no_rows(value)


def _has_no_rows(value: Any) -> bool:
    return _is_ragged(value) or _is_sparse(value)


def _is_ragged(value: Any) -> bool:
    return hasattr(value, "row_splits") and hasattr(value, "to_tensor")


def _is_sparse(value: Any) -> bool:
    # TensorFlow's, SciPy's and PyTorch's, which have no common base.
    return hasattr(value, "dense_shape") or hasattr(value, "tocsr") or is_true(value, "is_sparse")


def _is_masked(value: Any) -> bool:
    """Whether `value` is a masked array that masks something, or a list that holds one."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_masked, value))
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.is_masked(value))


def is_true(value: Any, attribute: str) -> bool:
    return getattr(value, attribute, False) is True


def _is_table(value: Any) -> bool:
    """Whether `value` is a data frame."""
    return hasattr(value, "columns") and hasattr(value, "__array__")


def is_endless(dataset: Any) -> bool:
    if isinstance(dataset, keras.utils.PyDataset):
        return dataset.num_batches is None
    cardinality = getattr(dataset, "cardinality", None)  # of a tf.data.Dataset; -1 if infinite
    return callable(cardinality) and int(cardinality()) == -1


def has_length(dataset: Any) -> bool:
    try:
        return len(dataset) >= 0
    except TypeError:  # as a tf.data.Dataset raises that does not know
        return False


def indices(dataset: Any) -> Iterable[int]:
    """Of what is read by index: a PyDataset, or another object with a length."""
    if not isinstance(dataset, keras.utils.PyDataset):
        return range(len(dataset))
    return itertools.count() if dataset.num_batches is None else range(dataset.num_batches)


def whole(dataset: Any, specs: Sequence[Spec], where: str) -> list[Any] | None:
    """One array of all samples per input; `None` if `dataset` is one sample, or holds them."""
    arrays: Sequence[Any] | None
    if isinstance(dataset, Mapping) or (_is_table(dataset) and len(specs) > 1):
        arrays = _by_name(dataset, specs)
    elif not isinstance(dataset, (list, tuple)):
        arrays = [dataset]
    elif _is_nested(dataset, specs):
        return whole(dataset[0], specs, where)
    elif _are_parts(dataset, specs) and all(
        spec.takes_whole(part) for spec, part in zip(specs, dataset, strict=True)
    ):
        arrays = dataset
    elif _may_have_labels(dataset) and len(specs) == 1 and specs[0].takes_whole(dataset[0]):
        arrays = dataset[:1]
    else:
        return None
    if arrays is None or len(arrays) != len(specs) or any(map(_has_no_rows, arrays)):
        return None  # an error that `fit` describes
    lengths = set()
    for spec, array in zip(specs, arrays, strict=True):
        shape = _shape(array)
        if shape is None or not (spec.takes_whole(array) or len(shape) == len(spec.shape) + 1):
            return None
        lengths.add(shape[0])
    if None in lengths:
        return None
    _check_lengths(lengths, where)
    return list(arrays)


def _check_lengths(lengths: set[Any], where: str) -> None:
    if len(lengths) > 1:
        raise ValueError(f"{where} has inputs of different lengths: {sorted(lengths)}.")


def slices(arrays: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """`size` samples of each array at a time: no more is converted and checked at once."""
    (length, *_) = _shape(arrays[0]) or (0,)
    for start in range(0, length or 0, size):
        # A pandas object is sliced by its labels, if not asked otherwise.
        yield [getattr(a, "iloc", a)[start : start + size] for a in arrays]


# Elements ---------------------------------------------------------------------------------------


def _may_have_labels(value: Any) -> bool:
    """Whether `value` has the form of `(inputs, labels[, weights])`, as Keras' `fit` takes it."""
    return isinstance(value, tuple) and 2 <= len(value) <= 3


def _is_nested(value: Any, specs: Sequence[Spec]) -> bool:
    """Whether `value` is `(inputs, ...)` with a dict of inputs, or a list of arrays."""
    if not _may_have_labels(value):
        return False
    inputs = value[0]
    if not isinstance(inputs, Mapping):
        # A list of numbers may be the only input itself.
        listed = _are_parts(inputs, specs) and (len(specs) > 1 or is_array(inputs[0]))
        if not listed:
            return False
    return parts_of(inputs, specs) is not None


def _are_parts(value: Any, specs: Sequence[Spec]) -> bool:
    """Whether `value` holds as many things as there are inputs, which can be arrays."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == len(specs)
        and not any(isinstance(part, (tuple, Mapping)) for part in value)
    )


def parts_of(value: Any, specs: Sequence[Spec]) -> list[Any] | None:
    """The part of an element for each input, without labels; `None` if it does not fit."""
    if isinstance(value, Mapping) or (_is_table(value) and len(specs) > 1):
        return _by_name(value, specs)
    if not isinstance(value, (list, tuple)):
        return [value] if len(specs) == 1 and specs[0].takes(value) else None
    if _is_nested(value, specs):
        return parts_of(value[0], specs)
    if _are_parts(value, specs) and all(
        spec.takes(part) for spec, part in zip(specs, value, strict=True)
    ):
        return list(value)
    inputs = parts_of(value[0], specs) if _may_have_labels(value) else None
    if inputs is None and len(specs) == 1 and specs[0].takes(value):
        return [value]  # of plain numbers
    if inputs is None and isinstance(value, list) and 2 <= len(value) <= 3:
        # PyTorch's loaders give [inputs, labels].
        inputs = None if parts_of(value[1], specs) else parts_of(value[0], specs)
    return inputs


def _by_name(values: Any, specs: Sequence[Spec]) -> list[Any] | None:
    """The values of a dict of inputs in the order of `specs`; `None` if the names do not fit."""
    for names in zip(*(spec.names for spec in specs), strict=True):
        if set(names) <= set(values):
            return [values[name] for name in names]
    return None


def fit(element: Any, specs: Sequence[Spec], where: str) -> Batch:
    """One array per input, of equal lengths."""
    parts = parts_of(element, specs)
    if parts is None:
        parts = misfits(element, specs, where)
    arrays = [spec.fit(part, where) for spec, part in zip(specs, parts, strict=True)]
    _check_lengths({len(a) for a in arrays}, where)
    return arrays


def misfits(element: Any, specs: Sequence[Spec], where: str) -> list[Any]:
    """What `Spec.fit` says more of than that it does not fit, or `ValueError`."""
    if isinstance(element, Mapping) or (_is_table(element) and len(specs) > 1):
        raise ValueError(
            f"{where} has the keys {sorted(map(str, element))}, but the inputs are"
            f" {[spec.name for spec in specs]}."
        )
    if _may_have_labels(element) and len(element) != len(specs):
        return misfits(element[0], specs, where)
    if isinstance(element, (list, tuple)) and len(element) == len(specs):
        return list(element)
    if isinstance(element, (list, tuple)) and (len(specs) > 1 or any(map(is_array, element))):
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
    check_unmasked(value, where)
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


def check_unmasked(value: Any, where: str) -> None:
    if _is_masked(value):
        raise ValueError(
            f"{where} is a masked array, whose mask models do not see: give its filled(...), with"
            " the value that stands for missing ones in training."
        )


def _holds_text(array: NDArray[Any]) -> bool:
    if array.dtype.kind == "O":
        return all(isinstance(value, (str, bytes)) for value in array.ravel())
    return array.dtype.kind in "US"
