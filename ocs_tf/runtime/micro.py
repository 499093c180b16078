"""TFLite Micro, the runtime for microcontrollers, with the methods of a TFLite interpreter."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ocs_tf.runtime.choices import MICRO

_ARENA = pathlib.Path(__file__).with_name("micro_arena.py")
_SECONDS = 300
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}
# What the runtime keeps of a tensor or an operator takes less; so does what it needs besides.
_BYTES_EACH = 4096
_BYTES_MORE = 1 << 16


def installed() -> bool:
    """Whether the package `tflite-micro` is there."""
    return importlib.util.find_spec(MICRO) is not None


@dataclasses.dataclass(frozen=True)
class Arena:
    """What a model needs of a microcontroller's memory.

    Attributes:
        size: the fewest bytes in which TFLite Micro opens the model on this machine; `None` if it
            does not. Pointers are half as long on a microcontroller, so that less is enough there.
        refusal: why not; no text if it does.
    """

    size: int | None
    refusal: str = ""


def find_arena(content: bytes) -> Arena:
    """The smallest arena for a `.tflite` file, tried in a process of its own.

    Raises:
        OSError: the process cannot be started.
        ValueError: the file is damaged.
    """
    command = [sys.executable, os.fspath(_ARENA), str(_enough(content))]
    try:
        process = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            input=content,
            capture_output=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Arena(None, f"it does not open the file within {_SECONDS} s")
    if not process.returncode:
        return Arena(int(process.stdout))
    return Arena(None, _reason(process.stderr.decode(errors="replace"), process.returncode))


def _reason(said: str, code: int) -> str:
    """What TFLite Micro wrote before a Python error, in one line."""
    lines = said.partition("Traceback (most recent call last)")[0].splitlines()
    told = [line.strip() for line in lines if line.strip()]
    return "; ".join(told) or f"it ended with exit code {code}"


class MicroInterpreter:
    """TFLite Micro with those methods of a TFLite interpreter that have a meaning there.

    Shapes are those of the file, and only inputs and outputs can be read. There is one thread.
    """

    def __init__(self, content: bytes, *, arena_size: int | None = None) -> None:
        """Open a `.tflite` file.

        Arguments:
            content: of the file.
            arena_size: bytes; `None`: as many as are surely enough.

        Raises:
            ImportError: `tflite-micro` is not installed.
            ValueError: the arena is too small, or the file damaged.
            RuntimeError: TFLite Micro refuses the file; the message has its reason.
        """
        module = importlib.import_module(MICRO).runtime
        arena = find_arena(content)  # with an arena that is too small, this process would crash
        if arena.size is None:
            raise RuntimeError(f"TFLite Micro refuses the file: {arena.refusal}")
        if arena_size is not None and arena_size < arena.size:
            raise ValueError(f"`arena_size` (={arena_size}) must be at least {arena.size}.")
        size = _enough(content) if arena_size is None else arena_size
        self._interpreter = module.Interpreter.from_bytes(content, arena_size=size)
        model = schema.Model.GetRootAs(content)
        graph = model.Subgraphs(0)
        self._inputs = [_detail(graph, i) for i in graph.InputsAsNumpy()]
        self._outputs = [_detail(graph, i) for i in graph.OutputsAsNumpy()]
        self._signatures = dict(_signatures(model, [*self._inputs, *self._outputs]))

    def allocate_tensors(self) -> None:
        """They are: the arena is laid out when the file is opened."""

    def get_input_details(self) -> list[dict[str, Any]]:
        """Name, index, shape, dtype and quantization of each input."""
        return [dict(detail) for detail in self._inputs]

    def get_output_details(self) -> list[dict[str, Any]]:
        """The same of each output."""
        return [dict(detail) for detail in self._outputs]

    def get_signature_list(self) -> dict[str, dict[str, list[str]]]:
        """Names of inputs and outputs of each signature."""
        return {
            key: {"inputs": list(found.inputs), "outputs": list(found.outputs)}
            for key, found in self._signatures.items()
        }

    def get_signature_runner(self, signature_key: str | None = None) -> Signature:
        """Details of inputs and outputs by their names in a signature; `None`: the only one."""
        if signature_key is None and len(self._signatures) == 1:
            return next(iter(self._signatures.values()))
        if signature_key not in self._signatures:
            raise ValueError(
                f"`signature_key` (={signature_key!r}) must be one of {list(self._signatures)}."
            )
        return self._signatures[signature_key]

    def resize_tensor_input(self, index: int, shape: Sequence[int], strict: bool = False) -> None:
        """Refuse another shape than that of the file.

        Raises:
            RuntimeError: it is another one.
        """
        (detail,) = (detail for detail in self._inputs if detail["index"] == index)
        if list(shape) != detail["shape"].tolist():
            raise RuntimeError(
                f"TFLite Micro has the shapes of the file: input {detail['name']!r} takes"
                f" {detail['shape'].tolist()}, not {list(shape)}."
            )

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        """Give an input its value.

        Raises:
            ValueError: the tensor is no input, or `value` has another shape or dtype.
        """
        self._interpreter.set_input(value, _position(self._inputs, index, "an input"))

    def invoke(self) -> None:
        """Compute the outputs.

        Raises:
            RuntimeError: an operator fails.
        """
        self._interpreter.invoke()

    def get_tensor(self, index: int) -> np.ndarray:
        """The value of an output.

        Raises:
            ValueError: the tensor is no output.
        """
        return self._interpreter.get_output(_position(self._outputs, index, "an output"))


@dataclasses.dataclass(frozen=True)
class Signature:
    """Details of inputs and outputs by name."""

    inputs: Mapping[str, dict[str, Any]]
    outputs: Mapping[str, dict[str, Any]]

    def get_input_details(self) -> dict[str, dict[str, Any]]:
        """As a TFLite interpreter's signature runner gives them."""
        return dict(self.inputs)

    def get_output_details(self) -> dict[str, dict[str, Any]]:
        """The same of outputs."""
        return dict(self.outputs)


def _position(details: Sequence[dict[str, Any]], index: int, what: str) -> int:
    """Where a tensor stands among inputs or outputs."""
    for position, detail in enumerate(details):
        if detail["index"] == index:
            return position
    raise ValueError(f"tensor {index} is not {what}; TFLite Micro gives no others.")


def _detail(graph: Any, index: int) -> dict[str, Any]:
    tensor = graph.Tensors(index)
    shape = _numbers(tensor.ShapeAsNumpy(), np.int32)
    signature = _numbers(tensor.ShapeSignatureAsNumpy(), np.int32)
    scales, zero_points = np.empty(0, np.float32), np.empty(0, np.int32)
    quantization = tensor.Quantization()
    if quantization is not None:
        scales = _numbers(quantization.ScaleAsNumpy(), np.float32)
        zero_points = _numbers(quantization.ZeroPointAsNumpy(), np.int32)
    one = len(scales) == 1
    return {
        "name": (tensor.Name() or b"").decode(errors="replace"),
        "index": int(index),
        "shape": shape,
        "shape_signature": signature if len(signature) else shape,
        "dtype": np.dtype(_TYPES[tensor.Type()]).type,
        "quantization": (float(scales[0]), int(zero_points[0])) if one else (0.0, 0),
        "quantization_parameters": {
            "scales": scales,
            "zero_points": zero_points,
            "quantized_dimension": quantization.QuantizedDimension() if quantization else 0,
        },
    }


def _numbers(array: Any, dtype: Any) -> np.ndarray:
    """A vector of a flatbuffer, which gives 0 for one that is not there."""
    return np.array(array if isinstance(array, np.ndarray) else [], dtype)


def _signatures(model: Any, details: Sequence[dict[str, Any]]) -> Any:
    """Pairs of key and `Signature`."""
    by_index = {detail["index"]: detail for detail in details}
    for number in range(model.SignatureDefsLength()):
        found = model.SignatureDefs(number)
        ends = []
        for length, get in (
            (found.InputsLength(), found.Inputs),
            (found.OutputsLength(), found.Outputs),
        ):
            entries = [get(i) for i in range(length)]
            ends.append({e.Name().decode(): by_index[e.TensorIndex()] for e in entries})
        yield found.SignatureKey().decode(), Signature(*ends)


def _enough(content: bytes) -> int:
    """Bytes of an arena in which any model of these tensors and operators has room.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return _room(schema.Model.GetRootAs(content))
    except (struct.error, TypeError, AttributeError) as error:
        raise ValueError(f"this is not a TFLite file, or a damaged one: {error}.") from error


def _room(model: Any) -> int:
    size = _BYTES_MORE
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        size += _BYTES_EACH * (graph.TensorsLength() + graph.OperatorsLength())
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            shape = _numbers(tensor.ShapeAsNumpy(), np.int64).clip(1).tolist()
            constant = model.Buffers(tensor.Buffer()).DataLength()
            # Of a constant, factors for each channel; of others values, twice: some operators
            # need as much besides.
            size += 16 * (max(shape, default=1) if constant else math.prod(shape))
    return size
