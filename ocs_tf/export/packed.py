"""`.tflite` files whose kernels are packed: each code takes as many bits as it was quantized to.

The float file is edited: a constant kernel becomes the output of an `OcsDequantize` that reads the
packed codes, or its FULLY_CONNECTED an `OcsFullyConnected`. docs/packed.md describes the operators.
The file is read back, and every code and scale compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.errors import VerificationError
from ocs_tf.export.kernel_matching import assign, kernel_input, separate
from ocs_tf.numerics import QuantizedKernel, packing
from ocs_tf.numerics.quantized_kernel import MAX_WEIGHT_BITS
from ocs_tf.runtime import operators

# Dense kernels below this do not fill the caches; unpacked, they are faster.
FUSED_CODES = 1 << 20

# What `scale` belongs to, as `meta` says it.
PER_TENSOR, PER_ROW, PER_COLUMN = 0, 1, 2
_FUSED_ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU6": 2}


@dataclasses.dataclass(frozen=True)
class PackedKernel:
    """The quantized kernel of one layer of the float graph, with the copies of split channels.

    Attributes:
        layer: name of the Keras layer.
        kind: as `ExportKernel` has it.
        kernel: in the layout of `ExportKernel`; scales may be negative, and for depthwise are one
            per output channel, channel by channel.
    """

    layer: str
    kind: str
    kernel: QuantizedKernel

    @property
    def codes(self) -> np.ndarray:
        """Effective codes, int32, in the layout of the Keras layer."""
        return self.kernel.effective_codes()

    @property
    def scale(self) -> np.ndarray:
        """float32, `()` or one per output channel."""
        return self.kernel.scale

    @property
    def bits(self) -> int:
        """2..8."""
        return self.kernel.bits

    @property
    def channels(self) -> int:
        """Number of output channels."""
        shape = self.kernel.codes.shape
        return int(shape[2] * shape[3] if self.kind == "depthwise" else shape[-1])


@dataclasses.dataclass(frozen=True)
class Stored:
    """A kernel as a file holds it.

    Attributes:
        codes: int8 `[rows, columns]`: codes of the unexpanded kernel, then those of copies.
        bits: 2..8.
        scaling: `PER_TENSOR`, `PER_ROW` or `PER_COLUMN`.
        scale: float32 `[n]`.
        copies: int32 `[R]`, the channel that each copy reads.
    """

    codes: np.ndarray
    bits: int
    scaling: int
    scale: np.ndarray
    copies: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stored) and all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
        )


def stored(kernel: PackedKernel, op_name: str) -> Stored:
    """`kernel` in the layout of an operator: an output channel is a row.

    The rows of a depthwise kernel are its pixels, with all output channels in each. So are those of
    convolutions in three dimensions and lookups, whose copies are added up: rows have no place for
    them. Transposed convolutions in three dimensions have a row for each output channel and tap.

    Raises:
        ValueError: the sums of copies would need more than 8 bits.
    """
    if op_name in ("CONV_3D", "GATHER"):
        return _stored_by_column(kernel)
    codes, mapping = kernel.kernel.codes, kernel.kernel.channel_map
    channels = kernel.kernel.channels
    if op_name == "CONV_3D_TRANSPOSE":
        codes = codes.swapaxes(-1, -2)
        scale = (
            kernel.scale
            if kernel.scale.ndim == 0
            else np.tile(kernel.scale, math.prod(codes.shape[:-2]))
        )
        scaling = PER_ROW if scale.ndim else PER_TENSOR
        codes = codes.reshape(-1, codes.shape[-1])
        return Stored(codes, kernel.kernel.bits, scaling, scale.reshape(-1), mapping[channels:])
    base, extra = codes[..., :channels, :], codes[..., channels:, :]
    copies = mapping[channels:]
    if op_name == "DEPTHWISE_CONV_2D":
        pixels = codes.shape[0] * codes.shape[1]
        base, extra = base.reshape(pixels, -1), extra.reshape(pixels, -1)
        # Only a convolution over one channel has copies here: of that channel, whole.
        copies = np.tile(np.arange(codes.shape[-1], dtype=np.int32), len(copies))
        scaling = PER_COLUMN
    else:
        rows = codes.shape[-1]
        base, extra = (np.moveaxis(part, -1, 0).reshape(rows, -1) for part in (base, extra))
        scaling = PER_ROW
    scale = kernel.scale.reshape(-1)
    return Stored(
        np.concatenate([base, extra], axis=1),
        kernel.kernel.bits,
        PER_TENSOR if kernel.scale.ndim == 0 else scaling,
        scale,
        copies,
    )


def _stored_by_column(kernel: PackedKernel) -> Stored:
    """A kernel whose last axis is its output channels, copies added up."""
    codes = kernel.codes
    bits = max(kernel.bits, int(np.abs(codes).max(initial=0)).bit_length() + 1)
    if bits > MAX_WEIGHT_BITS:
        raise ValueError(
            f"layer {kernel.layer!r}: the codes of its split channels add up to more than 8 bits,"
            " and its operator has no place for copies; convert it with expand_ratio=0 or fewer"
            " bits."
        )
    return Stored(
        codes.astype(np.int8).reshape(-1, codes.shape[-1]),
        bits,
        PER_COLUMN if kernel.scale.ndim else PER_TENSOR,
        kernel.scale.reshape(-1),
        np.zeros(0, np.int32),
    )


def write_packed(
    float_model: bytes, kernels: Sequence[PackedKernel], *, fused_dense: bool = False
) -> bytes:
    """Replace the kernels of a float .tflite file by packed ones.

    Arguments:
        float_model: what `tf.lite.TFLiteConverter` makes of a float Keras model whose kernels are
            exactly effective `codes * scale`.
        kernels: each must equal the weights of at least one operator.
        fused_dense: let `OcsFullyConnected` multiply by packed codes, for the kernels of at least
            `FUSED_CODES` codes; other kernels are unpacked when the file is loaded.

    Returns:
        The bytes of the .tflite file.

    Raises:
        ValueError: if a kernel is not found in `float_model`.
        VerificationError: if the file read back holds other codes or scales.
    """
    model = fb.read(float_model)
    assigned = assign(model, kernels)
    separate(model, assigned)
    for subgraph, graph in enumerate(model.subgraphs):
        of_graph = {place[1]: k for place, k in assigned.items() if place[0] == subgraph}
        _Editor(model, graph).run(of_graph, fused_dense)
    _drop_unused(model)
    written = fb.write(model)
    verify(fb.read(float_model), fb.read(written), assigned)
    return written


def read_stored(model: Any, graph: Any, op: Any) -> Stored:
    """What `OcsDequantize` or `OcsFullyConnected` of a subgraph holds, read back."""
    tensors = graph.tensors
    dense = fb.custom_name(model, op) == operators.FULLY_CONNECTED
    constants = [fb.constant(model, tensors[i]) for i in (op.inputs[1:] if dense else op.inputs)]
    packed, scale, meta, *rest = constants[:3] + constants[4 if dense else 3 :]
    copies = rest[0] if rest else np.zeros(0, np.int32)
    _, bits, scaling, *numbers = meta.tolist()
    if dense:
        _, rows, columns = numbers
        channels = columns
    else:
        rows, *shape = numbers
        columns, channels = math.prod(shape) // rows, shape[-1]
    columns += columns // channels * len(copies)
    codes = packing.unpack_codes(packed.reshape(rows, -1), bits, columns)
    return Stored(codes, bits, scaling, scale, copies)


def verify(float_model: Any, written: Any, assigned: Mapping[fb.Place, PackedKernel]) -> None:
    """Raise VerificationError unless `written` is `float_model` with these kernels packed."""
    unpacked = [
        {op.outputs[0]: op for op in graph.operators if _unpacks(written, op)}
        for graph in written.subgraphs
    ]
    computing = [
        [op for op in graph.operators if not _unpacks(written, op)] for graph in written.subgraphs
    ]
    counts = [len(graph.operators) for graph in float_model.subgraphs]
    if [len(ops) for ops in computing] != counts:
        raise VerificationError("the written operators are not those of the float model, in order")
    for place, kernel in assigned.items():
        op, float_op = computing[place[0]][place[1]], fb.operator(float_model, place)
        if fb.custom_name(written, op) != operators.FULLY_CONNECTED:
            op = unpacked[place[0]].get(kernel_input(written, op))
        if op is None:
            raise VerificationError(f"kernel of layer {kernel.layer!r} is not packed")
        graph = written.subgraphs[place[0]]
        if read_stored(written, graph, op) != stored(kernel, fb.op_name(float_model, float_op)):
            raise VerificationError(
                f"kernel of layer {kernel.layer!r}: codes, scale or copies in the file differ"
            )


def _unpacks(model: Any, op: Any) -> bool:
    return fb.custom_name(model, op) == operators.DEQUANTIZE


def _drop_unused(model: Any) -> None:
    """Empty the buffers that are not read any more."""
    for graph in model.subgraphs:
        used = {index for op in graph.operators for index in (*op.inputs, *op.outputs)}
        used |= {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            if index not in used:
                tensor.buffer = 0
    kept = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    kept |= {entry.buffer for entry in model.metadata or ()}
    for index, buffer in enumerate(model.buffers):
        if index not in kept:
            buffer.data = None


class _Editor:
    """Puts custom operators and their constants into a graph of a model."""

    def __init__(self, model: Any, graph: Any) -> None:
        self.model = model
        self.graph = graph
        self.constants: dict[bytes, int] = {}

    def run(self, assigned: Mapping[int, PackedKernel], fused_dense: bool) -> None:
        unpacked: dict[int, Any] = {}  # operators by the kernel tensor they write
        for index, kernel in assigned.items():
            op = self.graph.operators[index]
            weights = kernel_input(self.model, op)
            layout = stored(kernel, fb.op_name(self.model, op))
            if fused_dense and self._can_fuse(op, layout):
                self._fuse(op, layout)
            elif weights not in unpacked:
                unpacked[weights] = self._dequantize(weights, layout)
                self.graph.tensors[weights].name = f"{kernel.layer}/kernel".encode()
        self.graph.operators = [*unpacked.values(), *self.graph.operators]
        for weights in unpacked:
            self.graph.tensors[weights].buffer = 0
        for tensor in self.graph.tensors:
            # The converter strings together all that it fused; of a small file that is much.
            tensor.name = tensor.name and tensor.name.split(b";")[0]

    def _dequantize(self, weights: int, layout: Stored) -> Any:
        shape = fb.shape(self.graph.tensors[weights])
        meta = [operators.FORMAT_VERSION, layout.bits, layout.scaling, len(layout.codes), *shape]
        inputs = [*self._kernel_inputs(layout, meta), *self._copies(layout)]
        return self._operator(operators.DEQUANTIZE, inputs, [weights])

    def _can_fuse(self, op: Any, layout: Stored) -> bool:
        if fb.op_name(self.model, op) != "FULLY_CONNECTED" or layout.codes.size < FUSED_CODES:
            return False
        x = self.graph.tensors[op.inputs[0]]
        keeps_shape = op.builtinOptions.keepNumDims or len(fb.shape(x)) == 2
        return keeps_shape and fb.fused_activation(op) in _FUSED_ACTIVATIONS

    def _fuse(self, op: Any, layout: Stored) -> None:
        outputs, columns = layout.codes.shape
        activation = _FUSED_ACTIVATIONS[fb.fused_activation(op)]
        meta = [operators.FORMAT_VERSION, layout.bits, layout.scaling, activation, outputs]
        meta.append(columns - len(layout.copies))
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            bias = op.inputs[2]
        else:
            bias = self._constant(np.zeros(outputs, np.float32))
        inputs = [op.inputs[0], *self._kernel_inputs(layout, meta), bias, *self._copies(layout)]
        fused = self._operator(operators.FULLY_CONNECTED, inputs, op.outputs)
        vars(op).update(vars(fused))

    def _kernel_inputs(self, layout: Stored, meta: list[int]) -> list[int]:
        packed = packing.pack_codes(layout.codes, layout.bits).reshape(-1)
        arrays = (packed, layout.scale, np.array(meta, np.int32))
        return [self._constant(array) for array in arrays]

    def _copies(self, layout: Stored) -> list[int]:
        return [self._constant(layout.copies)] if len(layout.copies) else []

    def _constant(self, array: np.ndarray) -> int:
        """Index of a constant tensor that holds `array`; equal ones are stored once."""
        data = np.frombuffer(array.tobytes(), np.uint8)
        key = array.dtype.char.encode() + data.tobytes()
        if key not in self.constants:
            buffer = schema.BufferT()
            buffer.data = data
            self.model.buffers.append(buffer)
            tensor = schema.TensorT()
            tensor.shape = np.array(array.shape, np.int32)
            tensor.type = _TYPES[array.dtype.name]
            tensor.buffer = len(self.model.buffers) - 1
            self.graph.tensors.append(tensor)
            self.constants[key] = len(self.graph.tensors) - 1
        return self.constants[key]

    def _operator(self, name: str, inputs: list[int], outputs: Sequence[int]) -> Any:
        op = schema.OperatorT()
        op.opcodeIndex = fb.operator_code(self.model, schema.BuiltinOperator.CUSTOM, name)
        op.inputs = np.array(inputs, np.int32)
        op.outputs = np.array(outputs, np.int32)
        return op


_TYPES = {
    "uint8": schema.TensorType.UINT8,
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
}
