"""Closeness of the outputs of two models (Keras or TFLite) on the same inputs; no labels needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf import data
from ocs_tf.closeness import Closeness, Tally
from ocs_tf.graph.analysis.concatenations import output_parts
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.substitutions.inlining import flat
from ocs_tf.keras2 import is_keras2, keras3_model
from ocs_tf.keras_state import restores_state
from ocs_tf.process import no_tracing_warnings
from ocs_tf.runtime.model import TFLiteModel, padded

Array = NDArray[Any]


@restores_state
def compare(reference: Any, other: Any, dataset: data.Dataset) -> list[Closeness]:
    """Run two models on `dataset` and compare their outputs.

    Arguments:
        reference, other: a `keras.Model`, `tf_keras.Model` or `TFLiteModel` each.
        dataset: inputs of `reference`, in any form that `convert` takes. All are used; of a
            generator, or other data without a length, at most 65,536 samples.

    Returns:
        One `Closeness` per output. Outputs of the two are paired by name if the names are the
        same, else by order.

    Raises:
        ValueError: one of the two is no built model; the data do not fit, or the models' inputs or
            outputs differ.
    """
    reference, other = _with_names(reference, "reference"), _with_names(other, "other")
    _check_inputs(reference, other)
    input_order = _order(_input_names(reference), _input_names(other))
    names = list(reference.output_names)
    output_order = _order(list(other.output_names), names)
    if len(output_order) != len(names):
        raise ValueError(f"the models have {len(names)} and {len(output_order)} outputs.")
    tallies = [Tally(*pair) for pair in zip(names, _parts(reference), strict=True)]
    for batch in data.Source(dataset, "data").batches(reference, fill=False):
        expected = _outputs(reference, batch)
        got = _outputs(other, [batch[i] for i in input_order])
        for tally, first, i in zip(tallies, expected, output_order, strict=True):
            tally.add(first, got[i])
    return [tally.result() for tally in tallies]


def _parts(model: Any) -> list[dict[str, Any]]:
    """The parts of each output that is a concatenation, where that is known."""
    if isinstance(model, TFLiteModel):
        return [{} for _ in model.output_names]
    return output_parts(Graph(model, fold_batch_norm=False, open_quantized=True))


def _outputs(model: Any, arrays: Sequence[Array]) -> list[Array]:
    size = len(arrays[0])
    batch = data.fixed_batch_size(model) or size
    parts = [
        _predicted(model, [padded(array[i : i + batch], batch) for array in arrays])
        for i in range(0, size, batch)
    ]
    return [np.concatenate(column)[:size] for column in zip(*parts, strict=True)]


def _predicted(model: Any, arrays: list[Array]) -> list[Array]:
    if isinstance(model, TFLiteModel):
        outputs = model.predict_on_batch(arrays)
    else:
        # Not traced: within functions TensorFlow does not take every name of a layer.
        with no_tracing_warnings():
            outputs = model(arrays, training=False)
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def _with_names(model: Any, name: str) -> Any:
    """`model`, as a functional one that takes a list if it is from Keras."""
    if isinstance(model, TFLiteModel):
        return model
    if is_keras2(model):
        model = keras3_model(model)
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"`{name}` must be a keras.Model or an ocs_tf.TFLiteModel, but is a"
            f" {type(model).__name__}; load files with ocs_tf.load_model or ocs_tf.TFLiteModel."
        )
    functional = flat(model)  # others have no output names
    return keras.Model(functional.inputs, functional.outputs)


def _input_names(model: Any) -> list[str]:
    return [str(tensor.name) for tensor in model.inputs]


def _check_inputs(reference: Any, other: Any) -> None:
    shapes = [[tuple(tensor.shape[1:]) for tensor in model.inputs] for model in (reference, other)]
    if len(shapes[0]) != len(shapes[1]):
        raise ValueError(f"the models have {len(shapes[0])} and {len(shapes[1])} inputs.")
    order = _order(_input_names(reference), _input_names(other))
    for shape, index in zip(shapes[1], order, strict=True):
        if shape != shapes[0][index]:
            raise ValueError(f"the models take inputs of shapes {shapes[0][index]} and {shape}.")


def _order(names: list[str], wanted: list[str]) -> list[int]:
    """Positions in `names` of the `wanted` ones; just `0..n-1` if the names differ.

    Several outputs of one layer have its name; they keep their order.
    """
    if sorted(names) != sorted(wanted):
        return list(range(len(names)))
    positions: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        positions.setdefault(name, []).append(index)
    return [positions[name].pop(0) for name in wanted]
