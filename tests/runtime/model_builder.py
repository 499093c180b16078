"""Small `.tflite` files with the operators of the packed format, written from docs/packed.md.

Nothing of `ocs_tf` is used here, so that tests compare two independent paths.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

CUSTOM = schema.BuiltinOperator.CUSTOM
MISSING = -1  # an optional input that is left out
TENSOR, ROW, COLUMN = 0, 1, 2  # scalings
_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}


class ModelBuilder:
    """Collects the tensors and operators of a graph; tensors are named by their index."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.subgraphs = []
        self.model.buffers = [schema.BufferT()]  # the empty one
        self.model.operatorCodes = []
        self.begin_graph()

    def begin_graph(self) -> None:
        """Begins the main graph, or one more, such as a branch of IF."""
        self.graph = schema.SubGraphT()
        self.graph.name = f"graph{len(self.model.subgraphs)}".encode()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs.append(self.graph)

    def tensor(self, shape: tuple[int, ...], dtype: Any = np.float32, buffer: int = 0) -> int:
        """A tensor; computed, unless it has a buffer."""
        tensor = schema.TensorT()
        tensor.name = f"tensor{len(self.graph.tensors)}".encode()
        tensor.shape = list(shape)
        tensor.type = _TYPES[np.dtype(dtype)]
        tensor.buffer = buffer
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, values: np.ndarray) -> int:
        """A tensor with data of its own."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return self.tensor(values.shape, values.dtype, len(self.model.buffers) - 1)

    def operator(
        self,
        code: int | str,
        inputs: list[int],
        outputs: list[int],
        options: Any = None,
        version: int = 1,
    ) -> None:
        """An operator: of a `BuiltinOperator`, or custom by its name."""
        operator_code = schema.OperatorCodeT()
        if isinstance(code, str):
            operator_code.customCode, code = code.encode(), CUSTOM
        operator_code.builtinCode, operator_code.version = code, version
        operator_code.deprecatedBuiltinCode = min(code, 127)
        self.model.operatorCodes.append(operator_code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = options
        self.graph.operators.append(operator)

    def end_graph(self, inputs: list[int], outputs: list[int]) -> None:
        """States the inputs and outputs of the graph."""
        self.graph.inputs, self.graph.outputs = inputs, outputs

    def build(self, inputs: list[int], outputs: list[int]) -> bytes:
        """The file, at the end of the last graph."""
        self.end_graph(inputs, outputs)
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))


@dataclasses.dataclass
class PackedKernel:
    """Codes as the format has them: `[rows, columns]`, and `[rows, pixels, R]` of the copies."""

    shape: tuple[int, ...]
    bits: int
    scaling: int
    scale: np.ndarray
    codes: np.ndarray
    copies: np.ndarray
    copy_codes: np.ndarray

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        shape: tuple[int, ...],
        bits: int,
        scaling: int,
        copies: int = 0,
        rows: int | None = None,
    ) -> PackedKernel:
        """Any codes; a row is the first dimension, unless `rows` says otherwise."""
        rows, channels = rows or shape[0], shape[-1]
        columns = int(np.prod(shape)) // rows
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
        return cls(
            shape=shape,
            bits=bits,
            scaling=scaling,
            scale=rng.uniform(0.01, 0.1, (1, rows, columns)[scaling]).astype(np.float32),
            codes=rng.integers(low, high, (rows, columns)),
            copies=rng.integers(0, channels, copies).astype(np.int32),
            copy_codes=rng.integers(low, high, (rows, columns // channels, copies)),
        )

    @property
    def meta(self) -> np.ndarray:
        """`meta` of OcsDequantize."""
        return np.array([1, self.bits, self.scaling, len(self.codes), *self.shape], np.int32)

    def packed(self) -> np.ndarray:
        """The codes and those of copies, bit by bit."""
        rows = len(self.codes)
        codes = np.concatenate([self.codes, self.copy_codes.reshape(rows, -1)], axis=1)
        bits = codes[..., None] >> np.arange(self.bits) & 1
        packed = np.packbits(bits.astype(bool).reshape(rows, -1), axis=1, bitorder="little")
        return packed.reshape(-1)

    def effective(self) -> np.ndarray:
        """The float32 kernel: copies added to their channels, then scaled."""
        rows, pixels, _ = self.copy_codes.shape
        sums = self.codes.reshape(rows, pixels, -1).copy()
        for copy, channel in enumerate(self.copies):
            sums[:, :, channel] += self.copy_codes[:, :, copy]
        scale = self.scale[:, None] if self.scaling == ROW else self.scale
        return (sums.reshape(rows, -1).astype(np.float32) * scale).reshape(self.shape)

    def add_to(self, builder: ModelBuilder, folded: bool = True) -> int:
        """The tensor of the kernel: of OcsDequantize, or float32 constants."""
        if not folded:
            return builder.constant(self.effective())
        inputs = [builder.constant(values) for values in (self.packed(), self.scale, self.meta)]
        if len(self.copies):
            inputs.append(builder.constant(self.copies))
        output = builder.tensor(self.shape)
        builder.operator("OcsDequantize", inputs, [output])
        return output


def round_codes(
    x: np.ndarray,
    inv_scale: np.ndarray,
    low: int,
    high: int,
    zero_point: int,
    copies: np.ndarray | None = None,
) -> np.ndarray:
    """The codes of OcsQuantize and OcsFakeQuantize; expanded by copies of channels."""
    if copies is not None:
        x = np.concatenate([x, x[..., copies]], axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.nan_to_num(np.rint(x * inv_scale), nan=0.0, posinf=1e9, neginf=-1e9)
    return np.clip(rounded.astype(np.float64) + zero_point, low, high).astype(np.int32)


# Whole files.


def _convolution(options: Any, **fields: Any) -> Any:
    options.strideW = options.strideH = 1
    for name, value in fields.items():
        setattr(options, name, value)
    return options


def network(bits: int, scaling: int, copies: int, folded: bool = True) -> bytes:
    """Convolution, depthwise convolution and dense layer in a row; all are outputs.

    The input is `[batch, 6, 7, 4]`. Weights are made by OcsDequantize, or if not `folded` float32.
    """
    rng = np.random.default_rng(bits)
    per_filter = COLUMN if scaling == ROW else TENSOR
    kernels = [
        PackedKernel.random(rng, (5, 3, 3, 4), bits, scaling, copies),
        PackedKernel.random(rng, (1, 3, 3, 5), bits, per_filter, rows=9),
        PackedKernel.random(rng, (7, 5), bits, scaling, copies),
    ]
    builder = ModelBuilder()
    x = builder.tensor((1, 6, 7, 4))
    outputs = [builder.tensor((1, 6, 7, channels)) for channels in (5, 5, 7)]
    weights = [kernel.add_to(builder, folded) for kernel in kernels]
    biases = [builder.constant(rng.normal(size=count).astype(np.float32)) for count in (5, 5, 7)]
    operators = schema.BuiltinOperator
    builder.operator(
        operators.CONV_2D,
        [x, weights[0], biases[0]],
        [outputs[0]],
        _convolution(schema.Conv2DOptionsT()),
    )
    builder.operator(
        operators.DEPTHWISE_CONV_2D,
        [outputs[0], weights[1], biases[1]],
        [outputs[1]],
        _convolution(schema.DepthwiseConv2DOptionsT(), depthMultiplier=1),
    )
    dense = schema.FullyConnectedOptionsT()
    dense.keepNumDims = True
    builder.operator(
        operators.FULLY_CONNECTED, [outputs[1], weights[2], biases[2]], [outputs[2]], dense, 5
    )
    return builder.build([x], outputs)


def only_weights(kernel: PackedKernel) -> bytes:
    """A graph without inputs, whose one output is a kernel."""
    builder = ModelBuilder()
    return builder.build([], [kernel.add_to(builder)])


def transposed(kernel: PackedKernel, folded: bool = True) -> bytes:
    """A transposed convolution of one picture [1, 4, 4, channels]."""
    builder = ModelBuilder()
    x = builder.tensor((1, 4, 4, kernel.shape[-1]))
    shape = (1, 8, 8, kernel.shape[0])
    output = builder.tensor(shape)
    options = _convolution(schema.TransposeConvOptionsT(), strideW=2, strideH=2)
    sizes = builder.constant(np.array(shape, np.int32))
    builder.operator(
        schema.BuiltinOperator.TRANSPOSE_CONV,
        [sizes, kernel.add_to(builder, folded), x],
        [output],
        options,
    )
    return builder.build([x], [output])


def rounding(
    name: str,
    channels: int,
    inv_scale: np.ndarray,
    scale: np.ndarray,
    meta: tuple[int, ...],
    copies: np.ndarray | None = None,
) -> bytes:
    """A graph of one OcsQuantize or OcsFakeQuantize, for [batch, 2, channels]."""
    builder = ModelBuilder()
    x = builder.tensor((1, 2, channels))
    width = channels + (0 if copies is None else len(copies))
    is_int8 = name == "OcsQuantize"
    output = builder.tensor((1, 2, width), np.int8 if is_int8 else np.float32)
    constants = [inv_scale, *([] if is_int8 else [scale]), np.array((1, *meta), np.int32)]
    inputs = [x, *map(builder.constant, constants)]
    if copies is not None:
        inputs.append(builder.constant(copies))
    builder.operator(name, inputs, [output])
    return builder.build([x], [output])


def connected(
    kernel: PackedKernel, bias: np.ndarray | None, activation: int, explicit: bool = False
) -> bytes:
    """A graph of one OcsFullyConnected; `explicit` lists inputs that are left out as -1."""
    builder = ModelBuilder()
    rows, channels = kernel.shape
    x = builder.tensor((1, channels))
    output = builder.tensor((1, rows))
    meta = np.array([1, kernel.bits, kernel.scaling, activation, rows, channels], np.int32)
    inputs = [x, *map(builder.constant, (kernel.packed(), kernel.scale, meta))]
    if bias is not None:
        inputs.append(builder.constant(bias))
    elif explicit or len(kernel.copies):
        inputs.append(MISSING)
    if len(kernel.copies):
        inputs.append(builder.constant(kernel.copies))
    elif explicit:
        inputs.append(MISSING)
    builder.operator("OcsFullyConnected", inputs, [output])
    return builder.build([x], [output])


def chain(kernel: PackedKernel) -> bytes:
    """Negation, OcsFakeQuantize, OcsFullyConnected, then OcsQuantize, and another negation.

    Activations are rounded to multiples of 1/8, codes -127 .. 127. The outputs are the codes of the
    sums, and the sums, negated in the end.
    """
    inv_scale, scale = np.float32([8]), np.float32([1 / 8])
    meta = np.array([1, -127, 127, 0], np.int32)
    rows, channels = kernel.shape
    weights_meta = np.array([1, kernel.bits, kernel.scaling, 0, rows, channels], np.int32)
    builder = ModelBuilder()
    x, negative, rounded = (builder.tensor((1, channels)) for _ in range(3))
    sums, last = (builder.tensor((1, rows)) for _ in range(2))
    codes = builder.tensor((1, rows), np.int8)
    constants = [builder.constant(values) for values in (inv_scale, scale, meta)]
    weights = [builder.constant(values) for values in (kernel.packed(), kernel.scale, weights_meta)]
    negate = schema.BuiltinOperator.NEG
    builder.operator(negate, [x], [negative])
    builder.operator("OcsFakeQuantize", [negative, *constants], [rounded])
    builder.operator("OcsFullyConnected", [rounded, *weights], [sums])
    builder.operator("OcsQuantize", [sums, constants[0], constants[2]], [codes])
    builder.operator(negate, [sums], [last])
    return builder.build([x], [codes, last])


def branches(kernels: list[PackedKernel], folded: bool = True) -> bytes:
    """`IF(condition, x)`: a dense layer in each of two graphs, with a kernel for each."""
    rows, channels = kernels[0].shape
    builder = ModelBuilder()
    condition = builder.tensor((1,), np.bool_)
    x, y = builder.tensor((1, channels)), builder.tensor((1, rows))
    options = schema.IfOptionsT()
    options.thenSubgraphIndex, options.elseSubgraphIndex = 1, 2
    builder.operator(schema.BuiltinOperator.IF, [condition, x], [y], options)
    builder.end_graph([condition, x], [y])
    for kernel in kernels:
        builder.begin_graph()
        x, y = builder.tensor((1, channels)), builder.tensor((1, rows))
        inputs = [x, kernel.add_to(builder, folded), builder.constant(np.zeros(rows, np.float32))]
        dense = schema.FullyConnectedOptionsT()
        builder.operator(schema.BuiltinOperator.FULLY_CONNECTED, inputs, [y], dense)
        builder.end_graph([x], [y])
    return builder.build([x], [y])
