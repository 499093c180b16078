"""A `.tflite` file as a model that takes and returns floats."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.paths import existing_file
from ocs_tf.runtime import NativeLibraryError, runner

Array = NDArray[Any]


class TFLiteModel:
    """A `.tflite` file that takes and returns floats, as its Keras model does.

    Attributes:
        inputs: `keras.KerasTensor`s, in order; integer inputs with a grid are float32 here.
        input_names, output_names: in order.
    """

    def __init__(self, path: str | os.PathLike[str], *, runtime: str | None = None) -> None:
        """Open the file at `path`.

        Arguments:
            runtime: as of `ocs_tf.tflite.Interpreter`.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read, or is a folder.
            ValueError: not a TFLite file, or one with an operator that the runtime lacks; or
                `path` is none.
            ImportError: the runtime is not installed.
            NativeLibraryError: the file has packed kernels, and the delegate is not there.
        """
        path = existing_file(path)
        try:
            self._interpreter = runner.opened(path, num_threads=os.cpu_count(), runtime=runtime)
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
            self._run([padded(array[i : i + batch], batch) for array in arrays])
            for i in range(0, size, batch)
        ]
        outputs = [np.concatenate(column)[:size] for column in zip(*parts, strict=True)]
        return outputs if len(outputs) > 1 else outputs[0]

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        given, made = list(self._inputs.values()), list(self._outputs.values())
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            indices = (detail["index"] for detail in given)
            runner.resize(self._interpreter, dict(zip(indices, shapes, strict=True)))
            self._shapes = shapes
        codes = [runner.to_codes(array, d) for array, d in zip(arrays, given, strict=True)]
        runner.run(self._interpreter, codes, given)
        found = runner.outputs(self._interpreter, made)
        return [runner.to_floats(array, d) for array, d in zip(found, made, strict=True)]

    def _details(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs in order, by their Keras names where the file has a signature."""
        given = self._interpreter.get_input_details()
        if not self._interpreter.get_signature_list():
            made = self._interpreter.get_output_details()
            return {d["name"]: d for d in given}, {d["name"]: d for d in made}
        signature = self._interpreter.get_signature_runner()
        order = [detail["index"] for detail in given]
        inputs, outputs = signature.get_input_details(), signature.get_output_details()
        by_position = sorted(inputs, key=lambda name: order.index(inputs[name]["index"]))
        return (
            {name: inputs[name] for name in by_position},
            {name: outputs[name] for name in sorted(outputs, key=_number_last)},
        )


def _number_last(name: str) -> tuple[str, int]:
    """Sorts `output_2`, as TensorFlow's converter names the third output, before `output_10`."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem == "output" and number.isdecimal() else (name, 0)


def _float_tensor(name: str, detail: dict[str, Any]) -> keras.KerasTensor:
    shape = [None if size < 0 else int(size) for size in detail["shape_signature"]]
    dtype = "float32" if runner.has_grid(detail) else np.dtype(detail["dtype"]).name
    return keras.KerasTensor((None, *shape[1:]), dtype, name=name)


def _batch_size(detail: dict[str, Any]) -> int | None:
    """The fixed batch size, or `None` if it is open."""
    size = int(detail["shape_signature"][0])
    return None if size < 0 else size


def padded(array: Array, size: int) -> Array:
    """A batch filled up to `size` samples with its last one."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
