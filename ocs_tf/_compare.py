"""Closeness of the outputs of two models (Keras or TFLite) on the same inputs; no labels needed."""

from __future__ import annotations

import os
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
from ocs_tf.paths import existing_file
from ocs_tf.process import no_tracing_warnings, quiet
from ocs_tf.runtime import NativeLibraryError, tflite

Array = NDArray[Any]


class TFLiteModel:
    """A `.tflite` file that takes and returns floats, as its Keras model does.

    Attributes:
        inputs: `keras.KerasTensor`s, in order; integer inputs with a grid are float32 here.
        input_names, output_names: in order.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file at `path`.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read, or is a folder.
            ValueError: not a TFLite file, or one with an operator that the runtime lacks; or
                `path` is none.
            NativeLibraryError: the file has packed kernels, and the delegate is not there.
        """
        path = existing_file(path)
        try:
            with quiet():
                self._interpreter = tflite.Interpreter(path, num_threads=os.cpu_count())
        except NativeLibraryError:
            raise
        except RuntimeError as error:
            raise ValueError(f"the TFLite runtime refuses {path}: {error}") from error
        self._inputs, self._outputs = self._details()
        self._shapes = [tuple(detail["shape"].tolist()) for detail in self._inputs.values()]
        self.input_names, self.output_names = list(self._inputs), list(self._outputs)
        self.inputs = [_float_tensor(name, detail) for name, detail in self._inputs.items()]

    def predict_on_batch(self, x: Array | Sequence[Array]) -> Array | list[Array]:
        """Outputs for one batch: an array for one input or output, else lists, as in Keras."""
        arrays = [x] if isinstance(x, np.ndarray) else x
        size = len(arrays[0])
        batch = _batch_size(next(iter(self._inputs.values()))) or size
        parts = [
            self._run([_padded(array[i : i + batch], batch) for array in arrays])
            for i in range(0, size, batch)
        ]
        outputs = [np.concatenate(column)[:size] for column in zip(*parts, strict=True)]
        return outputs if len(outputs) > 1 else outputs[0]

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        details = self._inputs.values()
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            for shape, detail in zip(shapes, details, strict=True):
                self._interpreter.resize_tensor_input(detail["index"], shape)
            with quiet():
                self._interpreter.allocate_tensors()
            self._shapes = shapes
        for array, detail in zip(arrays, details, strict=True):
            self._interpreter.set_tensor(detail["index"], tflite.to_codes(array, detail))
        self._interpreter.invoke()
        return [
            tflite.to_floats(self._interpreter.get_tensor(detail["index"]), detail)
            for detail in self._outputs.values()
        ]

    def _details(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs in order, by their Keras names where the file has a signature."""
        given = self._interpreter.get_input_details()
        if not self._interpreter.get_signature_list():
            made = self._interpreter.get_output_details()
            return {d["name"]: d for d in given}, {d["name"]: d for d in made}
        runner = self._interpreter.get_signature_runner()
        order = [detail["index"] for detail in given]
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        by_position = sorted(inputs, key=lambda name: order.index(inputs[name]["index"]))
        return (
            {name: inputs[name] for name in by_position},
            {name: outputs[name] for name in sorted(outputs, key=_number_last)},
        )


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
        _predicted(model, [_padded(array[i : i + batch], batch) for array in arrays])
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


def _number_last(name: str) -> tuple[str, int]:
    """Sorts `output_2`, as TensorFlow's converter names the third output, before `output_10`."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem == "output" and number.isdecimal() else (name, 0)


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


def _float_tensor(name: str, detail: dict[str, Any]) -> keras.KerasTensor:
    shape = [None if size < 0 else int(size) for size in detail["shape_signature"]]
    dtype = "float32" if tflite.has_grid(detail) else np.dtype(detail["dtype"]).name
    return keras.KerasTensor((None, *shape[1:]), dtype, name=name)


def _batch_size(detail: dict[str, Any]) -> int | None:
    """The fixed batch size, or `None` if it is open."""
    size = int(detail["shape_signature"][0])
    return None if size < 0 else size


def _padded(array: Array, size: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
