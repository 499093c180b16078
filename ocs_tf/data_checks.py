"""Warnings about suspicious representative data; errors about indices that no table has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.data import Batch
from ocs_tf.graph import adapters
from ocs_tf.graph.affine import affine_axis
from ocs_tf.graph.analysis.batch_norm_moments import trained_on
from ocs_tf.graph.analysis.indices import table_rows
from ocs_tf.graph.layer_traits import is_homogeneous
from ocs_tf.graph.reader import Graph, Node
from ocs_tf.keras_internals import maker
from ocs_tf.planning.calibration import observe

FEW = 8
# Between deviations of data and those that a model was trained on. Eight images scaled as in
# training are within 1.2 on known networks; 0..255 for 0..1 is 255, and 0..1 for -1..1, which
# cannot be told from a low contrast, is 2.
_FACTOR = 4.0
_PICTURES = 4  # axes
_VALUES = 32  # of each channel; the deviation of fewer says little

_LAYERS = keras.layers
# What passes the scale of its input on.
_PASS_ON = (
    *(getattr(_LAYERS, f"{kind}{n}D") for kind in ("ZeroPadding", "Cropping") for n in (1, 2, 3)),
    *(getattr(_LAYERS, f"{kind}Pooling{n}D") for kind in ("Max", "Average") for n in (1, 2, 3)),
    _LAYERS.Dropout,
    _LAYERS.Flatten,
    _LAYERS.Identity,
    _LAYERS.InputLayer,
    _LAYERS.LeakyReLU,
    _LAYERS.Permute,
    _LAYERS.ReLU,
    _LAYERS.Reshape,
)


def watched(graph: Graph, batches: Iterator[Batch], name: str) -> Iterator[Batch]:
    """The `batches` of inputs of the float model, as they are.

    Warns of inputs whose scale is not that of the training data, as batch norms and normalizations
    tell (by the first batch), and at the end of inputs that are the same in all samples and of
    fewer than 8 samples.

    Arguments:
        name: of the argument that the batches come from.

    Raises:
        ValueError: an index is not in its table.
    """
    count = 0
    rows = [table_rows(graph, tensor) for tensor in graph.model.inputs]
    firsts: Batch = []
    equal: list[bool] = []
    for batch in batches:
        _check_rows(graph, batch, rows, name)
        if not count:
            _check_scale(graph, batch, name)
            firsts, equal = [array[:1] for array in batch], [True] * len(batch)
        for i, (first, array) in enumerate(zip(firsts, batch, strict=True)):
            equal[i] = equal[i] and first.shape[1:] == array.shape[1:] and (array == first).all()
        count += len(batch[0])
        yield batch
    if not count:
        return
    if count < FEW:
        _warn(
            f"`{name}` holds {count} samples only: ranges of activations that are measured on fewer"
            f" than {FEW} are unreliable. Give some hundreds of samples, as various as those that"
            " the model is going to see."
        )
    for i, (tensor, first) in enumerate(zip(graph.model.inputs, firsts, strict=True)):
        # Masks and types of tokens are the same often, for good reasons.
        is_meant = first.dtype.kind != "f" and not all(equal)
        zero = first.dtype.kind in "biuf" and not first.any()
        if equal[i] and not is_meant and (zero or count > 1):
            what = "zero" if zero else "the same"
            _warn(
                f"all {count} samples of `{name}` are {what} at input {_name(tensor)!r}. Give the"
                " inputs that the model is going to see, as various as they are."
            )


def _check_rows(graph: Graph, batch: Batch, rows: Sequence[int | None], name: str) -> None:
    for tensor, array, count in zip(graph.model.inputs, batch, rows, strict=True):
        if count is not None and array.size and array.max() >= count:
            raise ValueError(
                f"`{name}` holds {array.max():g} at input {_name(tensor)!r}, but the table in which"
                f" it is looked up has rows 0 to {count - 1}."
            )


def _check_scale(graph: Graph, batch: Batch, name: str) -> None:
    found = [
        (node, source, known)
        for node, source in _first_norms(graph)
        if (known := trained_on(node.layer)) is not None
    ]
    if not found:
        return
    model = graph.model
    (outputs,) = observe(model, [node.inputs[0] for node, _, _ in found], [batch])
    told = set()
    for (node, source, known), values in zip(found, outputs, strict=True):
        ratio = _ratio(values, node.layer, *known)
        array = batch[source]
        # Single images may have little contrast, and neighboring rows of a table may be alike.
        least = 1 / _FACTOR if len(values) >= FEW and np.ndim(values) >= _PICTURES else 0
        if source in told or ratio is None or least <= ratio <= _FACTOR:
            continue
        if len(array) > 1 and (array == array[:1]).all():
            continue  # which is told at the end
        told.add(source)
        often = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
        _warn(
            f"`{name}` holds values from {array.min():.4g} to {array.max():.4g} at input"
            f" {_name(model.inputs[source])!r}, which do not seem to be scaled like the training"
            f" data: after it, at {node.layer.name!r}, their standard deviation is"
            f" {often} that of the training data. Preprocess them as in training (pixels of"
            " 0 .. 255 are often divided by 255, or by 127.5 minus 1)."
        )


def _first_norms(graph: Graph) -> Iterator[tuple[Node, int]]:
    """Normalizations with statistics to which a single input's scale gets, and that input."""
    sources = {id(tensor): i for i, tensor in enumerate(graph.model.inputs)}
    for node in graph.nodes:
        source = sources.get(id(node.inputs[0])) if len(node.inputs) == 1 else None
        if source is None:
            continue
        layer = node.layer
        if isinstance(layer, (_LAYERS.BatchNormalization, _LAYERS.Normalization)):
            yield node, source
        elif _passes_on(layer):
            sources.update({id(tensor): source for tensor in node.outputs})


def _passes_on(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, _PASS_ON):
        return True
    adapter = adapters.adapter_for(layer)
    if adapter is None:
        return affine_axis(layer) is not None
    return adapter.is_direct(layer) and is_homogeneous(getattr(layer, "activation", None))


def _ratio(
    values: NDArray[Any],
    norm: keras.layers.Layer,
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
) -> float | None:
    """How many times the deviation of training `values` have, median of channels."""
    axis = norm.axis[0] if isinstance(norm.axis, (list, tuple)) else norm.axis
    channels = np.moveaxis(np.asarray(values, np.float64), axis, -1)
    channels = channels.reshape(-1, channels.shape[-1])
    alive = variance > 1e-3 * np.median(variance)
    if len(channels) < _VALUES or channels.shape[1] != len(mean) or not alive.any():
        return None
    deviations = channels.std(0)[alive]
    if not deviations.any():
        return None  # one sample's worth: told otherwise
    return float(np.median(deviations / np.sqrt(variance[alive])))


def _name(tensor: keras.KerasTensor) -> str:
    return str(maker(tensor).name)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)
