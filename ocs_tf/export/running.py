"""Runs a written file and compares its outputs with those of the Keras model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ocs_tf.closeness import Closeness, Tally
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import tensor_matching
from ocs_tf.export.errors import VerificationError
from ocs_tf.export.lowering import Lowered
from ocs_tf.graph.analysis.concatenations import output_parts
from ocs_tf.graph.reader import Graph
from ocs_tf.keras_internals import maker
from ocs_tf.layers import unwrapped
from ocs_tf.planning.calibration import observe
from ocs_tf.runtime import NativeLibraryError, runner

# Outputs that are further from the Keras model's than one step must be as close as this. Deep
# networks pass differences of a step on. Inside of recurrent layers and attention only the file
# rounds: where scores reach hundreds of units, 8 bits can leave less, and that is refused, too.
FLOOR_DB = 10.0
_ONE_STEP = 1.01  # to float rounding
_FLOAT_TOLERANCE = 1e-3  # of the largest output, where the model does not round it


def compare(
    content: bytes,
    model: keras.Model,
    samples: Mapping[str, np.ndarray],
    original: bytes,
    lowered: Lowered,
    reason: str = "",
) -> list[Closeness]:
    """Run a file on a few samples, and compare its outputs, by position, with the Keras model's.

    Arguments:
        content: the file.
        model: a flat functional model that it should compute what.
        samples: an array for each of the model's inputs, by name, in order.
        original: the float file that `content` was made of, and
        lowered: the model that this was made of, to find out where file and model part.
        reason: why outputs may be far from each other, for the message; a sentence, or no text.

    Raises:
        VerificationError: the runtime refuses the file; outputs are not finite, or further apart
            than one step of their grid and `FLOOR_DB`. The message names the layer.
    """
    inputs = list(samples.values())
    interpreter = _opened(content, inputs)
    found = _file_outputs(interpreter, inputs)
    steps = [
        of_file or _step(model, tensor)
        for of_file, tensor in zip(_steps(content), model.outputs, strict=True)
    ]
    # All at once is faster; a layer may mix the samples of a batch, or make one of them.
    for size in dict.fromkeys((len(inputs[0]), _batch(interpreter))):
        expected = _observed(model, model.outputs, inputs, size)
        misshapen = _misshapen(model, expected, found)
        if misshapen:
            continue
        closeness = _closeness(model, expected, found)
        apart = [
            close
            for close, wanted, got, step in zip(closeness, expected, found, steps, strict=True)
            if not _close_enough(close, wanted, got, step)
        ]
        if not apart:
            return closeness
    if misshapen:
        raise VerificationError(misshapen)
    where = _first_difference(content, model, samples, original, lowered)
    raise VerificationError(
        f"the file does not compute what the Keras model does: {apart[0]}.{where}"
        f"{' ' if reason else ''}{reason} Nothing was written; verify=False writes it all the same."
    )


def _misshapen(
    model: keras.Model, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> str:
    """What is wrong with the shape of an output; no text if nothing is."""
    for name, wanted, got in zip(model.output_names, expected, found, strict=True):
        if got.shape != wanted.shape:
            return f"output {str(name)!r} of the file has shape {got.shape}, not {wanted.shape}."
    return ""


def _closeness(
    model: keras.Model, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> list[Closeness]:
    parts = output_parts(Graph(model, fold_batch_norm=False, open_quantized=True))
    closeness = []
    for name, indices, wanted, got in zip(model.output_names, parts, expected, found, strict=True):
        tally = Tally(str(name), indices)
        tally.add(wanted, got)
        closeness.append(tally.result())
    return closeness


def _close_enough(
    closeness: Closeness, wanted: np.ndarray, got: np.ndarray, step: float | None
) -> bool:
    if not np.array_equal(np.isfinite(wanted), np.isfinite(got)):
        return False
    if wanted.dtype.kind != "f":
        return True  # which is the largest of numbers that are but a step apart says little
    tolerance = _FLOAT_TOLERANCE * closeness.max_magnitude if step is None else _ONE_STEP * step
    return closeness.max_difference <= tolerance or closeness.sqnr_db >= FLOOR_DB


def _steps(content: bytes) -> list[float | None]:
    """Steps of the grids of a file's outputs, also of outputs that it dequantizes at the end."""
    parsed = fb.read(content)
    graph = parsed.subgraphs[0]
    before = {
        op.outputs[0]: op.inputs[0]
        for op in graph.operators
        if fb.op_name(parsed, op) == "DEQUANTIZE"
    }
    grids = [fb.grid(graph.tensors[before.get(index, index)]) for index in graph.outputs]
    return [None if grid is None else float(grid[0][0]) for grid in grids]


def _step(model: keras.Model, tensor: keras.KerasTensor) -> float | None:
    """Step of the grid that an output of the model is rounded to."""
    layer = maker(tensor)
    grid = getattr(layer, "grid", None) or getattr(layer, "output_grid", None)
    return None if grid is None else float(grid.scale)


def _file_outputs(interpreter: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    details = interpreter.get_output_details()
    outputs = []
    for index in range(0, len(inputs[0]), _batch(interpreter)):
        _run(interpreter, inputs, index)
        found = runner.outputs(interpreter, details)
        outputs.append(
            [runner.to_floats(array, d) for array, d in zip(found, details, strict=True)]
        )
    return [np.concatenate(column) for column in zip(*outputs, strict=True)]


def _opened(content: bytes, inputs: Sequence[np.ndarray], **options: Any) -> Any:
    try:
        interpreter = runner.opened(content, num_threads=os.cpu_count(), **options)
        runner.allocate_for(interpreter, inputs)
        return interpreter
    except NativeLibraryError:  # nothing is wrong with the file
        raise
    except (RuntimeError, ValueError) as error:
        raise VerificationError(f"the TFLite runtime refuses the file: {error}.") from error


def _batch(interpreter: Any) -> int:
    return int(interpreter.get_input_details()[0]["shape"][0])


def _run(interpreter: Any, inputs: Sequence[np.ndarray], index: int) -> None:
    """Run the samples from `index` on, as many as the file takes."""
    details = interpreter.get_input_details()
    codes = [
        runner.to_codes(array[index : index + int(detail["shape"][0])], detail)
        for array, detail in zip(inputs, details, strict=True)
    ]
    try:
        runner.run(interpreter, codes, details)
    except RuntimeError as error:
        raise VerificationError(f"the TFLite runtime cannot run the file: {error}.") from error


def _first_difference(
    content: bytes,
    model: keras.Model,
    samples: Mapping[str, np.ndarray],
    original: bytes,
    lowered: Lowered,
) -> str:
    """A sentence that names the first layer at which file and model differ, if there is one."""
    layers = _computed(model)
    nodes = Graph(lowered.model).nodes
    known = {n.layer.name: n.outputs[0] for n in nodes if n.layer.name in layers}
    inputs = list(samples.values())
    interpreter = _opened(content, inputs, experimental_preserve_all_tensors=True)
    size = _batch(interpreter)
    values_known = _observed(lowered.model, list(known.values()), inputs, size)
    given = dict(zip(known, values_known, strict=True))
    matches = tensor_matching.match_tensors(original, samples, given)
    values: dict[str, list[np.ndarray]] = {name: [] for name in matches}
    details = {d["name"].split(";")[0]: d for d in interpreter.get_tensor_details()}
    for index in range(0, len(inputs[0]), size):
        _run(interpreter, inputs, index)
        for name, found in values.items():
            detail = details.get(name.split(";")[0])
            if detail is not None:
                (value,) = runner.outputs(interpreter, [detail])
                found.append(runner.to_floats(value, detail).ravel())
    expected = _observed(model, [layers[key] for key in matches.values()], inputs, size)
    for (name, key), wanted in zip(matches.items(), expected, strict=True):
        if values[name] and _parts(wanted.ravel(), np.concatenate(values[name])):
            return f" They part at layer {key!r}."
    return ""


def _observed(
    model: keras.Model,
    tensors: Sequence[keras.KerasTensor],
    inputs: Sequence[np.ndarray],
    size: int,
) -> list[np.ndarray]:
    """Values of symbolic tensors, in batches of the model's own size, if it has one, or `size`."""
    size = model.inputs[0].shape[0] or size
    batches = (
        [array[start : start + size] for array in inputs]
        for start in range(0, len(inputs[0]), size)
    )
    columns = zip(*observe(model, tensors, batches), strict=True)
    return [np.concatenate([np.asarray(v) for v in column]) for column in columns]


def _parts(wanted: np.ndarray, got: np.ndarray) -> bool:
    """Whether what a file computes for a layer is far from what the model does."""
    if wanted.shape != got.shape:
        return False
    tally = Tally("")
    tally.add(wanted, got)
    return tally.result().sqnr_db < FLOOR_DB


def _computed(model: keras.Model) -> Mapping[str, keras.KerasTensor]:
    """What the layers of a quantized model compute, by their names in the lowered model."""
    found: dict[str, keras.KerasTensor] = {}
    for node in Graph(model, fold_batch_norm=False, open_quantized=True).nodes:
        name = unwrapped(node.layer).name
        found[name] = node.outputs[0]
        grid = getattr(node.layer, "grid", None)
        if grid is not None and node.inputs and not hasattr(node.layer, "layer"):
            found[maker(node.inputs[0]).name] = node.outputs[0]  # a FakeQuantize behind
    return found
