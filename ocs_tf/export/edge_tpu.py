"""Would the Edge TPU compiler map this .tflite file? A check of what Coral documents, no more.

The compiler and the device decide; this reads the operator list, element types, shapes and options.
Source of every rule, in our words: https://coral.ai/docs/edgetpu/models-intro/, sections "Model
requirements" and "Supported operations" (a table with known limitations); the Axis page for the
same chip agrees (https://developer.axis.com, ARTPEC-7).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ocs_tf.export import flatbuffer as fb

_SOFTMAX_LIMIT = 16_000
_BORDER = "converts a float input or output, which the CPU does"


@dataclasses.dataclass(frozen=True)
class OpReport:
    """The documented rules for one operator.

    Attributes:
        op: TFLite name, for example `"CONV_2D"`.
        inputs: element type and shape of each input, for example `"int8[1, 8, 8, 4]"`.
        outputs: the same for each output.
        supported: whether no documented rule is broken.
        reason: the rule that is broken and how; empty if supported.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    supported: bool
    reason: str


def check(tflite: bytes) -> list[OpReport]:
    """Check every operator of a .tflite file, in order of execution.

    Raises:
        ValueError: if the file has more than one subgraph.
    """
    model = fb.read(tflite)
    return [_report(_Op(model, op)) for op in model.subgraphs[0].operators]


def summary(reports: Sequence[OpReport]) -> str:
    """The reports as text: a count, what maps, and each unsupported operator with its reason.

    The compiler maps one leading subgraph: from the first unsupported operator on, everything runs
    on the CPU, supported operators included (models-intro, section "Compiling"). Conversions of
    float inputs and outputs stay outside of it (section "Float input and output tensors").
    """
    supported = sum(report.supported for report in reports)
    text = f"Edge TPU: {supported} of {len(reports)} operators are supported"
    failed = [(index, report) for index, report in enumerate(reports) if not report.supported]
    stop = next((index for index, report in failed if report.reason != _BORDER), None)
    if stop is None:
        lines = [f"{text}; they map"]
    else:
        mapped = sum(report.supported for report in reports[:stop])
        lines = [f"{text}; {mapped} map, the CPU runs the rest from operator {stop} on"]
    return "\n".join([*lines, *(f"  {index} {r.op}: {r.reason}" for index, r in failed)])


class _Op:
    """One operator with its tensors, as the rules want to see it."""

    def __init__(self, model: Any, op: Any) -> None:
        graph = model.subgraphs[0]
        self.model = model
        self.name = fb.op_name(model, op)
        self.options = op.builtinOptions
        self.fused = fb.fused_activation(op)
        self.inputs = [graph.tensors[i] for i in op.inputs if i >= 0]
        self.outputs = [graph.tensors[i] for i in op.outputs]
        self.reads_input = not set(op.inputs).isdisjoint(graph.inputs)
        self.writes_output = not set(op.outputs).isdisjoint(graph.outputs)

    def is_constant(self, position: int) -> bool:
        return fb.is_constant(self.model, self.inputs[position])

    def constant(self, position: int) -> np.ndarray:
        return fb.constant(self.model, self.inputs[position])

    def shape(self, position: int = 0) -> tuple[int, ...]:
        return fb.shape(self.inputs[position])


def _report(op: _Op) -> OpReport:
    reason = _border(op) or _general(op)
    if not reason and op.name not in _RULES:
        reason = "not in the table of supported operations"
    if not reason:
        reason = next(filter(None, (rule(op) for rule in _RULES[op.name])), "")
    return OpReport(
        op=op.name,
        inputs=tuple(map(_describe, op.inputs)),
        outputs=tuple(map(_describe, op.outputs)),
        supported=not reason,
        reason=reason,
    )


def _describe(tensor: Any) -> str:
    return f"{fb.type_name(tensor)}{list(fb.shape(tensor))}"


def _border(op: _Op) -> str:
    """Whether the operator stands between a float input or output and the 8-bit graph."""
    # "Float input and output tensors": allowed, at the price of this operator.
    quantizes = op.name == "QUANTIZE" and op.reads_input
    dequantizes = op.name == "DEQUANTIZE" and op.writes_output
    types = [fb.type_name(tensor) for tensor in (op.inputs[0], op.outputs[0])]
    return _BORDER if (quantizes or dequantizes) and "float32" in types else ""


def _general(op: _Op) -> str:
    """How a rule for every operator ("Model requirements") is broken, or ""."""
    for tensor in (*op.inputs, *op.outputs):
        constant = fb.is_constant(op.model, tensor)
        # Requirement: 8-bit tensors, int8 or uint8. Biases and shape arguments are int32.
        allowed = ("int8", "uint8", "int32") if constant else ("int8", "uint8")
        if fb.type_name(tensor) not in allowed:
            return f"tensor {fb.name(tensor)!r} is {fb.type_name(tensor)}, not 8-bit"
        # Requirement: sizes known at compile time.
        signature = tensor.shapeSignature
        if signature is not None and any(n < 0 for n in signature):
            return f"tensor {fb.name(tensor)!r} has the dynamic shape {list(map(int, signature))}"
        # Requirement: at most 3 dimensions, the innermost, with a size above 1. Not of parameters:
        # the compiler lays them out.
        if not constant and any(n > 1 for n in fb.shape(tensor)[:-3]):
            shape = list(fb.shape(tensor))
            return f"tensor {fb.name(tensor)!r} {shape} has a size above 1 outside the innermost 3"
    return ""


# The limitations in the table, one function each: how it is broken, or "" -----------------------


def _constant_parameters(op: _Op) -> str:
    # Requirement: kernels and biases known at compile time.
    changing = [fb.name(t) for t in op.inputs[1:3] if not fb.is_constant(op.model, t)]
    return f"parameters {changing} are not constant" if changing else ""


def _no_fused_activation(op: _Op) -> str:
    # AveragePool2d, Concatenation: no fused activation.
    return "" if op.fused == "NONE" else f"fused activation {op.fused}: none may be fused"


def _zero_constant(op: _Op) -> str:
    # Concatenation: with a constant input there are exactly 2, and the constant is all zeros.
    for position in (p for p in range(len(op.inputs)) if op.is_constant(p)):
        grid = fb.grid(op.inputs[position])
        zero = 0 if grid is None else grid[1][0]
        if len(op.inputs) != 2 or np.any(op.constant(position) != zero):
            return "a constant input must be all zeros and one of exactly 2 inputs"
    return ""


def _equal_dilation(op: _Op) -> str:
    # Conv2d, DepthwiseConv2d: one dilation for x and y.
    x, y = op.options.dilationWFactor, op.options.dilationHFactor
    return "" if x == y else f"dilation {x} in x and {y} in y must be equal"


def _default_weights(op: _Op) -> str:
    # FullyConnected: weights in the default format.
    return "" if op.options.weightsFormat == 0 else "weights are in the shuffled format"


def _flat_output(op: _Op) -> str:
    # FullyConnected: a one-dimensional output.
    return _one_dimensional("output", fb.shape(op.outputs[0]))


def _flat_input(op: _Op) -> str:
    # Softmax: a one-dimensional input ...
    return _one_dimensional("input", op.shape())


def _one_dimensional(which: str, shape: tuple[int, ...]) -> str:
    if sum(n > 1 for n in shape) <= 1:
        return ""
    return f"{which} {list(shape)} must be one-dimensional"


def _softmax_limit(op: _Op) -> str:
    # ... of at most 16,000 elements.
    size = int(np.prod(op.shape()))
    return "" if size <= _SOFTMAX_LIMIT else f"{size} elements exceed {_SOFTMAX_LIMIT}"


def _mean_axes(op: _Op) -> str:
    # Mean: never over the batch; over z only if its size is a multiple of 4.
    shape = op.shape()
    axes = {int(axis) % len(shape) for axis in op.constant(1).ravel()}
    if 0 in axes:
        return "reduces the batch dimension"
    if len(shape) - 1 in axes and shape[-1] % 4:
        return f"reduces the z-dimension of {shape[-1]}, which is no multiple of 4"
    return ""


def _pack_axis(op: _Op) -> str:
    # Pack: not along the batch.
    return "packs the batch dimension" if op.options.axis == 0 else ""


def _pad_axes(op: _Op) -> str:
    # Pad: not along the batch.
    return "pads the batch dimension" if np.any(op.constant(1)[0]) else ""


def _plain_slice(op: _Op) -> str:
    # StridedSlice: all strides 1, ellipsis mask 0, new-axis mask 0.
    if np.any(op.constant(3) != 1):
        return f"strides {op.constant(3).tolist()} must all be 1"
    masks = {"ellipsis_mask": op.options.ellipsisMask, "new_axis_mask": op.options.newAxisMask}
    wrong = {name: mask for name, mask in masks.items() if mask}
    return f"{wrong} must be 0" if wrong else ""


def _leading_ones(op: _Op) -> str:
    # Squeeze: only leading 1s, so that nothing moves.
    before, after = op.shape(), fb.shape(op.outputs[0])
    dropped = before[: len(before) - len(after)]
    if set(dropped) <= {1} and before[len(dropped) :] == after:
        return ""
    return f"squeezes {list(before)} to {list(after)}: only leading 1s may go"


# Resizing may yet be refused, depending on size and precision; the table says no more.
_UNLIMITED = """
    ADD EXPAND_DIMS L2_NORMALIZATION LOGISTIC MAXIMUM MAX_POOL_2D MINIMUM MUL PRELU QUANTIZE
    REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR
    SLICE SPACE_TO_DEPTH SPLIT SUB SUM TANH TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM
"""

_Rule = Callable[[_Op], str]
_RULES: dict[str, tuple[_Rule, ...]] = {
    **dict.fromkeys(_UNLIMITED.split(), ()),
    "AVERAGE_POOL_2D": (_no_fused_activation,),
    "CONCATENATION": (_no_fused_activation, _zero_constant),
    "CONV_2D": (_constant_parameters, _equal_dilation),
    "DEPTHWISE_CONV_2D": (_constant_parameters, _equal_dilation),
    "FULLY_CONNECTED": (_constant_parameters, _default_weights, _flat_output),
    "MEAN": (_mean_axes,),
    "PACK": (_pack_axis,),
    "PAD": (_pad_axes,),
    "SOFTMAX": (_flat_input, _softmax_limit),
    "SQUEEZE": (_leading_ones,),
    "STRIDED_SLICE": (_plain_slice,),
}
