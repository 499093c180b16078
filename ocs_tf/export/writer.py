"""Full-integer int8 .tflite files that hold exactly the codes and scales they are given.

ai-edge-quantizer does the rewriting (https://github.com/google-ai-edge/ai-edge-quantizer). It
derives `scale = max / 127` for a kernel and `(max - min) / 255` for an activation from a float64
range per tensor; handing it the range that belongs to a known scale returns that scale exactly once
it is rounded to float32. Nothing is taken on trust: `write_int8` reads its own file back.

Which grid an activation may have is not free (https://ai.google.dev/edge/litert/conversion/
tensorflow/quantization/quantization_spec): see `grid_rule` and `fixed_output_grid`.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

from ocs_tf.export import _flatbuffer as fb

KINDS = ("conv", "dense", "depthwise")

_CODE_MAX = 127  # int8 kernels are symmetric and leave -128 out
_ACT_MIN, _ACT_MAX = -128, 127
_SMALLEST_RANGE = 1e-9  # ai-edge-quantizer widens anything narrower
_KERNEL_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_BORDER_OPS = ("QUANTIZE", "DEQUANTIZE")

_FIXED_OUTPUT = {
    "SOFTMAX": (1.0 / 256, -128),
    "LOGISTIC": (1.0 / 256, -128),
    "TANH": (1.0 / 128, 0),
}
_INPUT_GRID = """
    AVERAGE_POOL_2D BROADCAST_TO GATHER GATHER_ND MAX_POOL_2D MIRROR_PAD PAD REDUCE_MIN RESHAPE
    RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE SPACE_TO_DEPTH SPLIT STRIDED_SLICE TRANSPOSE
    UNPACK
"""
_OUTPUT_GRID = "CONCATENATION DYNAMIC_UPDATE_SLICE MAXIMUM PACK PADV2 SELECT SELECT_V2"
_RULES = {
    **dict.fromkeys(_FIXED_OUTPUT, "fixed"),
    **dict.fromkeys(_INPUT_GRID.split(), "input"),
    **dict.fromkeys(_OUTPUT_GRID.split(), "output"),
}
# Operator versions that brought the int8 kernels (tensorflow/lite/tools/versioning/op_version.cc).
# ai-edge-quantizer leaves the float versions in place: too low for a strict compiler.
_INT8_VERSION_2 = """
    ADD AVERAGE_POOL_2D CONCATENATION DEQUANTIZE LOGISTIC MAX_POOL_2D MEAN MUL PAD RELU SLICE
    SOFTMAX SPLIT STRIDED_SLICE SUB SUM TANH TRANSPOSE
"""
_INT8_VERSION = {
    **dict.fromkeys(_INT8_VERSION_2.split(), 2),
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
}


@dataclasses.dataclass(frozen=True)
class ExportKernel:
    """The integer kernel of one layer of the float graph.

    Attributes:
        layer: name of the Keras layer, for error messages and to tell equal kernels apart.
        codes: int8, in -127..127, in the layout of the Keras layer: `[h, w, in / groups, out]` for
            Conv2D, `[in, out]` for Dense, `[h, w, C, M]` for DepthwiseConv2D.
        scale: float32, the step: `()` per tensor or `[out]` per output channel (`[C * M]` for
            depthwise, channel by channel).
        kind: `"conv"`, `"dense"` or `"depthwise"`.

    Raises:
        ValueError: if a field breaks these rules.
    """

    layer: str
    codes: np.ndarray
    scale: np.ndarray
    kind: str

    def __post_init__(self) -> None:
        def refuse(field: str, value: object, rule: str) -> None:
            raise ValueError(f"{field} of layer {self.layer!r} (={value}) must be {rule}")

        if self.kind not in KINDS:
            refuse("kind", repr(self.kind), "one of " + ", ".join(map(repr, KINDS)))
        rank = 2 if self.kind == "dense" else 4
        if self.codes.dtype != np.int8 or self.codes.ndim != rank:
            found = f"{self.codes.dtype} {list(self.codes.shape)}"
            refuse("codes", found, f"int8 of rank {rank} for kind {self.kind!r}")
        if self.codes.size and self.codes.min() < -_CODE_MAX:
            rule = "in -127..127: TFLite kernels have no -128"
            refuse("codes", f"minimum {self.codes.min()}", rule)
        if self.scale.dtype != np.float32 or self.scale.shape not in ((), (self.channels,)):
            found = f"{self.scale.dtype} {list(self.scale.shape)}"
            refuse("scale", found, f"float32 of shape [] or [{self.channels}]")
        smallest = _SMALLEST_RANGE / _CODE_MAX
        if not np.all(np.isfinite(self.scale) & (self.scale >= smallest)):
            refuse("scale", f"minimum {np.min(self.scale)}", f"finite and at least {smallest:.3g}")

    @property
    def channels(self) -> int:
        """Number of output channels."""
        if self.kind == "depthwise":
            return int(self.codes.shape[2] * self.codes.shape[3])
        return int(self.codes.shape[-1])


class Grid(Protocol):
    """The grid of an activation: `value = scale * (code - zero_point)`."""

    @property
    def scale(self) -> float:
        """Step, exactly representable in float32."""

    @property
    def zero_point(self) -> int:
        """Code of the value 0, in -128..127."""

    @property
    def bits(self) -> int:
        """8: an int8 tensor saturates at -128 and 127, nowhere else."""


class VerificationError(RuntimeError):
    """The written file is not what was asked for; no file is returned."""


def fixed_output_grid(op_name: str) -> tuple[float, int] | None:
    """`(scale, zero_point)` that TFLite's int8 kernel of `op_name` demands of its output, or None.

    `"SOFTMAX"` and `"LOGISTIC"` give 1/256 and -128, `"TANH"` 1/128 and 0
    (tensorflow/lite/kernels/activations.cc).
    """
    return _FIXED_OUTPUT.get(op_name)


def grid_rule(op_name: str) -> str:
    """Whose grid the tensors of a TFLite op have.

    Returns:
        `"fixed"`: the output's is a constant, see `fixed_output_grid`;
        `"input"`: the output has the input's (pooling, reshape, pad, slice, ...);
        `"output"`: every input has the output's; an input that also serves others, or whose own
        producer follows one of these rules, is requantized first (concatenation, maximum, ...);
        `"own"`: every tensor has its own.
    """
    return _RULES.get(op_name, "own")


def write_int8(
    float_model: bytes,
    kernels: Sequence[ExportKernel],
    grids: Mapping[str, Grid],
    ranges: Mapping[str, tuple[float, float]],
    *,
    float_io: bool,
) -> bytes:
    """Rewrite a float .tflite file as a full-integer int8 one with the given codes and grids.

    Kernels that no entry of `kernels` describes become int8 per output channel from their own
    minimum and maximum. Kernels of 2 to 8 bits all live in int8 tensors, with their own step. A
    per-tensor step is repeated for each output channel of a convolution, whose int8 form is defined
    per channel, and is written once for a dense kernel, which older runtimes only take so.

    Arguments:
        float_model: what `tf.lite.TFLiteConverter` makes of a float Keras model whose kernels are
            exactly `codes * scale`, with a fixed batch size.
        kernels: the integer kernels. Each must equal the weights of at least one operator.
        grids: grid per float activation tensor, by its name in `float_model`.
        ranges: `(min, max)` of other activation tensors, by name; an entry of `grids` wins. Tensors
            whose grid follows from others (see `grid_rule`) need no entry.
        float_io: keep float32 inputs and outputs, quantized inside; otherwise they are int8.

    Returns:
        The bytes of the .tflite file.

    Raises:
        ValueError: if a name in `grids` or `ranges` is no activation of `float_model`, an
            activation has neither, a grid or range is malformed, or a kernel is not found in
            `float_model`.
        VerificationError: if the file read back has other codes, scales or zero points than given,
            a bias that overflows, or an operator left in float.
    """
    model = fb.read(float_model)
    _check_activations(model, grids, ranges)
    assigned = _assign(model, kernels)
    if _separate(model, assigned):
        float_model = fb.write(model)
    with fb.quiet():
        quantized = fb.read(_quantize(float_model, model, assigned, grids, ranges, float_io))
    _read_shapes_off_codes(quantized)
    _raise_versions(quantized)
    written = fb.write(quantized)
    _verify(model, fb.read(written), assigned, grids, float_io)
    return written


def _check_activations(
    model: Any, grids: Mapping[str, Grid], ranges: Mapping[str, tuple[float, float]]
) -> None:
    """Refuse unknown names and malformed values: ai-edge-quantizer would ignore them in silence."""
    known = fb.float_activations(model)
    for argument, names in (("grids", grids), ("ranges", ranges)):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(
                f"{argument} names {unknown}, which are no float activation tensors of the model;"
                f" it has {sorted(known)}"
            )
    for name, grid in grids.items():
        if grid.bits != 8:
            raise ValueError(
                f"grids[{name!r}].bits (={grid.bits}) must be 8: an int8 tensor saturates at -128"
                " and 127, so the file could not clip where the grid does"
            )
        smallest = _SMALLEST_RANGE / (_ACT_MAX - _ACT_MIN)
        if not (smallest <= grid.scale < np.inf and float(np.float32(grid.scale)) == grid.scale):
            raise ValueError(
                f"grids[{name!r}].scale (={grid.scale!r}) must be finite, at least {smallest:.3g}"
                " and exactly representable in float32"
            )
        if not _ACT_MIN <= grid.zero_point <= _ACT_MAX:
            raise ValueError(
                f"grids[{name!r}].zero_point (={grid.zero_point}) must be in {_ACT_MIN}..{_ACT_MAX}"
            )
    for name, (low, high) in ranges.items():
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise ValueError(f"ranges[{name!r}] (={(low, high)}) must be finite with min <= max")
    missing = sorted(_needed(model) - set(grids) - set(ranges))
    if missing:
        raise ValueError(f"activation tensors {missing} are in neither grids nor ranges")


def needed_activations(float_model: bytes) -> set[str]:
    """Names of the activations that `write_int8` needs a grid or range for.

    The grids of the others follow from the operators that compute them; see `grid_rule`.
    """
    return _needed(fb.read(float_model))


def _needed(model: Any) -> set[str]:
    graph = model.subgraphs[0]
    derived = {
        fb.name(graph.tensors[index])
        for op in graph.operators
        if grid_rule(fb.op_name(model, op)) in ("input", "fixed")
        for index in op.outputs
    }
    return set(fb.float_activations(model)) - derived


# Which kernel belongs to which operator ---------------------------------------------------------


def _assign(model: Any, kernels: Sequence[ExportKernel]) -> dict[int, ExportKernel]:
    """Operator index -> its kernel, found by content; the name decides between equal contents."""
    ops = [
        index
        for index, op in enumerate(model.subgraphs[0].operators)
        if fb.op_name(model, op) in _KERNEL_OPS
    ]
    matches: dict[int, list[int]] = collections.defaultdict(list)
    for number, kernel in enumerate(kernels):
        found = [index for index in ops if _equals(model, index, kernel)]
        if not found:
            raise ValueError(
                f"kernel of layer {kernel.layer!r} ({kernel.kind} {list(kernel.codes.shape)})"
                " equals no weight tensor of the float model; the converter must not change it"
                " (fold batch normalization first) and the layer must be in use"
            )
        for index in found:
            matches[index].append(number)
    groups: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for index in ops:
        if index in matches:
            groups[tuple(matches[index])].append(index)
    assigned: dict[int, ExportKernel] = {}
    for numbers, indices in groups.items():
        assigned.update(_share_out(model, indices, [kernels[number] for number in numbers]))
    return assigned


def _equals(model: Any, index: int, kernel: ExportKernel) -> bool:
    """Whether the operator's weights are `codes * scale` in the operator's layout."""
    op = model.subgraphs[0].operators[index]
    weights = model.subgraphs[0].tensors[op.inputs[1]]
    expected = _layout(kernel, fb.op_name(model, op))
    if expected is None or fb.shape(weights) != expected[0].shape or weights.type != fb.FLOAT32:
        return False
    if not fb.is_constant(model, weights):
        return False
    codes, scale = expected
    # A rounding difference of float32 is far below half a step; a folded factor is not.
    return bool(np.allclose(fb.constant(model, weights), codes * scale, rtol=1e-6, atol=0))


def _layout(kernel: ExportKernel, op_name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes in the layout of `op_name` and the scale shaped to multiply them, None if impossible.

    A convolution over one channel and a depthwise one are the same: either op may hold either kind.
    """
    codes = kernel.codes
    per_channel = np.broadcast_to(kernel.scale, (kernel.channels,))
    if op_name == "FULLY_CONNECTED":
        return (codes.T, per_channel[:, None]) if kernel.kind == "dense" else None
    if kernel.kind == "dense":
        return None
    if op_name == "DEPTHWISE_CONV_2D":
        if kernel.kind == "conv" and codes.shape[2] != 1:
            return None
        return codes.reshape(1, *codes.shape[:2], -1), per_channel
    if kernel.kind == "depthwise" and codes.shape[2] != 1:
        return None
    return codes.transpose(3, 0, 1, 2), per_channel[:, None, None, None]


def _share_out(
    model: Any, indices: Sequence[int], candidates: Sequence[ExportKernel]
) -> dict[int, ExportKernel]:
    """Give each operator one of the kernels, all of which equal its weights.

    The codes may differ all the same: 2 steps of 0.5 weigh as much as 1 step of 1. Operators take
    the kernel whose layer they are named after, the rest what is left in order of the graph; any
    choice computes the same function.
    """
    if all(_same(candidates[0], other) for other in candidates):
        return dict.fromkeys(indices, candidates[0])
    graph = model.subgraphs[0]
    left = list(candidates)
    chosen: dict[int, ExportKernel] = {}
    for index in indices:
        op = graph.operators[index]
        names = [fb.name(graph.tensors[i]) for i in (op.inputs[1], op.outputs[0])]
        clarity = [max(fb.name_affinity(name, k.layer) for name in names) for k in candidates]
        if clarity.count(max(clarity)) == 1:
            chosen[index] = candidates[clarity.index(max(clarity))]
            left = [kernel for kernel in left if kernel is not chosen[index]]
    for index in indices:
        if index not in chosen:
            chosen[index] = left.pop(0) if left else candidates[-1]
    return chosen


def _same(one: ExportKernel, other: ExportKernel) -> bool:
    """Whether two kernels are written alike."""
    return (
        one.kind == other.kind
        and np.array_equal(one.codes, other.codes)
        and np.array_equal(one.scale, other.scale)
    )


def _separate(model: Any, assigned: Mapping[int, ExportKernel]) -> bool:
    """Give operators with different kernels different weight buffers; whether any was shared.

    The converter merges equal constants, and ai-edge-quantizer quantizes a buffer once.
    """
    graph = model.subgraphs[0]
    owners: dict[int, ExportKernel] = {}  # by buffer
    changed = False
    for index, kernel in assigned.items():
        op = graph.operators[index]
        tensor = graph.tensors[op.inputs[1]]
        if _same(owners.setdefault(tensor.buffer, kernel), kernel):
            continue
        twin = copy.copy(tensor)
        twin.name = f"{fb.name(tensor)};{kernel.layer};{index}".encode()
        twin.buffer = len(model.buffers)
        model.buffers.append(copy.copy(model.buffers[tensor.buffer]))
        graph.tensors.append(twin)
        op.inputs = [op.inputs[0], len(graph.tensors) - 1, *op.inputs[2:]]
        owners[twin.buffer] = kernel
        changed = True
    return changed


# Handing the scales over ------------------------------------------------------------------------


def _quantize(
    float_model: bytes,
    model: Any,
    assigned: Mapping[int, ExportKernel],
    grids: Mapping[str, Grid],
    ranges: Mapping[str, tuple[float, float]],
    float_io: bool,
) -> bytes:
    """Run ai-edge-quantizer with the ranges that belong to the scales."""
    graph = model.subgraphs[0]
    statistics: dict[str, dict[str, np.ndarray]] = {}
    for name, index in fb.float_activations(model).items():
        low, high = _activation_range(name, grids, ranges)
        ones = [1] * len(fb.shape(graph.tensors[index]))
        statistics[name] = {"min": np.full(ones, low), "max": np.full(ones, high)}
    engine = quantizer.Quantizer(float_model)
    engine.update_quantization_recipe(
        ".*", qtyping.TFLOperationName.ALL_SUPPORTED, _recipe(qtyping.QuantGranularity.CHANNELWISE)
    )
    for index, kernel in assigned.items():
        op = graph.operators[index]
        weights = graph.tensors[op.inputs[1]]
        bound = _kernel_bound(kernel, fb.op_name(model, op), len(fb.shape(weights)))
        statistics[fb.name(weights)] = {"min": -bound, "max": bound}
        if bound.size == 1:
            engine.update_quantization_recipe(
                f"^{re.escape(fb.name(graph.tensors[op.outputs[0]]))};$",
                qtyping.TFLOperationName(fb.op_name(model, op)),
                _recipe(qtyping.QuantGranularity.TENSORWISE),
            )
    if float_io:
        for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            engine.update_quantization_recipe(
                ".*", border, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
            )
    result = engine.quantize(
        calibration_result=statistics, enable_progress_bar=False, enable_progress_report=False
    )
    return bytes(result.quantized_model)


def _recipe(granularity: qtyping.QuantGranularity) -> qtyping.OpQuantizationConfig:
    """Static int8: symmetric kernels of this granularity, asymmetric activations."""
    return qtyping.OpQuantizationConfig(
        compute_precision=qtyping.ComputePrecision.INTEGER,
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=8, symmetric=True, granularity=granularity
        ),
        activation_tensor_config=qtyping.TensorQuantizationConfig(num_bits=8, symmetric=False),
    )


def _activation_range(
    name: str, grids: Mapping[str, Grid], ranges: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    """Range whose division into 255 steps is the grid. A derived tensor's is never looked at."""
    if name in grids:
        grid = grids[name]
        return (_ACT_MIN - grid.zero_point) * grid.scale, (_ACT_MAX - grid.zero_point) * grid.scale
    return ranges.get(name, (0.0, 0.0))


def _kernel_bound(kernel: ExportKernel, op_name: str, rank: int) -> np.ndarray:
    """Largest representable magnitude, float64 (float32 loses the last bit of some scales).

    One per output channel, on that axis of a rank-`rank` tensor; one in all for a dense kernel with
    one step.
    """
    bound = kernel.scale.astype(np.float64) * _CODE_MAX
    if op_name == "FULLY_CONNECTED" and bound.ndim == 0:
        return bound.reshape([1] * rank)
    axis = 3 if op_name == "DEPTHWISE_CONV_2D" else 0
    shape = [kernel.channels if i == axis else 1 for i in range(rank)]
    return np.broadcast_to(bound, (kernel.channels,)).reshape(shape)


def _read_shapes_off_codes(model: Any) -> None:
    """Drop the DEQUANTIZE that ai-edge-quantizer puts before a SHAPE (of an open batch size)."""
    graph = model.subgraphs[0]
    codes = {
        op.outputs[0]: op.inputs[0]
        for op in graph.operators
        if fb.op_name(model, op) == "DEQUANTIZE"
    }
    for op in graph.operators:
        if fb.op_name(model, op) == "SHAPE":
            op.inputs = [codes.get(op.inputs[0], op.inputs[0])]
    used = {index for op in graph.operators for index in op.inputs} | set(graph.outputs)
    graph.operators = [
        op for op in graph.operators if op.outputs[0] not in codes or op.outputs[0] in used
    ]


def _raise_versions(model: Any) -> None:
    """State the operator versions that the int8 kernels need."""
    for op in model.subgraphs[0].operators:
        code = model.operatorCodes[op.opcodeIndex]
        code.version = max(code.version, _INT8_VERSION.get(fb.op_name(model, op), 1))


# Reading back -----------------------------------------------------------------------------------


def _verify(
    model: Any,
    result: Any,
    assigned: Mapping[int, ExportKernel],
    grids: Mapping[str, Grid],
    float_io: bool,
) -> None:
    """Raise VerificationError unless `result` is the float `model` with what was given."""
    float_ops = model.subgraphs[0].operators
    ops = [op for op in result.subgraphs[0].operators if fb.op_name(result, op) not in _BORDER_OPS]
    if [fb.op_name(model, op) for op in float_ops] != [fb.op_name(result, op) for op in ops]:
        raise VerificationError("the written operators are not those of the float model, in order")
    for index, op in enumerate(ops):
        _verify_integer(result, op)
        if index in assigned:
            _verify_kernel(result, op, assigned[index])
        if fb.op_name(result, op) in _KERNEL_OPS:
            _verify_bias(model, float_ops[index], result, op)
    _verify_borders(result, float_io)
    fixed = _fixed(model)
    producers = {
        fb.name(model.subgraphs[0].tensors[i]): fb.op_name(model, op)
        for op in float_ops
        for i in op.outputs
    }
    for name, grid in grids.items():
        _verify_activation(result, name, grid, fixed.get(name), producers.get(name))


def _verify_integer(result: Any, op: Any) -> None:
    """No float tensor may touch a computing operator; a SHAPE computes nothing."""
    tensors = result.subgraphs[0].tensors
    if fb.op_name(result, op) == "SHAPE":
        return
    if any(i >= 0 and tensors[i].type == fb.FLOAT32 for i in (*op.inputs, *op.outputs)):
        raise VerificationError(
            f"operator {fb.op_name(result, op)} computing {fb.name(tensors[op.outputs[0]])!r} is"
            " left in float: ai-edge-quantizer has no int8 form of it"
        )


def _verify_kernel(result: Any, op: Any, kernel: ExportKernel) -> None:
    """The operator's weights are the kernel's codes and scale, bit for bit."""
    weights = result.subgraphs[0].tensors[op.inputs[1]]
    layout = _layout(kernel, fb.op_name(result, op))
    grid = fb.grid(weights)
    assert layout is not None  # it was assigned
    if fb.type_name(weights) != "int8" or grid is None:
        raise VerificationError(
            f"kernel of layer {kernel.layer!r}: tensor {fb.name(weights)!r} is"
            f" {fb.type_name(weights)}, not int8"
        )
    wrong = int(np.count_nonzero(fb.constant(result, weights) != layout[0]))
    if wrong:
        raise VerificationError(
            f"kernel of layer {kernel.layer!r}: {wrong} of {kernel.codes.size} codes differ in"
            f" tensor {fb.name(weights)!r}"
        )
    scale, zero_point = grid
    if not np.array_equal(scale, np.broadcast_to(kernel.scale, scale.shape)) or zero_point.any():
        raise VerificationError(
            f"kernel of layer {kernel.layer!r}: scale {scale} and zero point {zero_point} in tensor"
            f" {fb.name(weights)!r}, given {kernel.scale} and 0"
        )


def _verify_bias(model: Any, float_op: Any, result: Any, op: Any) -> None:
    """The int32 bias holds the float bias to within one of its steps: it has not overflowed."""
    if len(op.inputs) < 3 or op.inputs[2] < 0:
        return
    bias = result.subgraphs[0].tensors[op.inputs[2]]
    grid = fb.grid(bias)
    given = fb.constant(model, model.subgraphs[0].tensors[float_op.inputs[2]]).astype(np.float64)
    step = np.ones(1) if grid is None else grid[0].astype(np.float64)
    if np.any(np.abs(fb.constant(result, bias) * step - given) > step + 1e-6 * np.abs(given)):
        raise VerificationError(
            f"bias {fb.name(bias)!r}: values up to {np.max(np.abs(given)):.6g} do not fit int32 in"
            f" steps of input scale x kernel scale (down to {step.min():.3g}); use larger steps"
        )


def _verify_borders(result: Any, float_io: bool) -> None:
    """Inputs and outputs are float32 or int8, as asked."""
    graph = result.subgraphs[0]
    wanted = "float32" if float_io else "int8"
    for index in (*graph.inputs, *graph.outputs):
        tensor = graph.tensors[index]
        if fb.type_name(tensor) not in (wanted, "int32", "int64"):
            raise VerificationError(
                f"input or output {fb.name(tensor)!r} is {fb.type_name(tensor)}, not {wanted}"
            )


def _fixed(model: Any) -> dict[str, tuple[float, int]]:
    """Grids that TFLite fixes, by tensor name, followed through what only moves the data."""
    tensors = model.subgraphs[0].tensors
    fixed: dict[str, tuple[float, int]] = {}
    for op in model.subgraphs[0].operators:
        kind = fb.op_name(model, op)
        grid = fixed_output_grid(kind)
        if grid is None and grid_rule(kind) == "input":
            inherited = (fixed.get(fb.name(tensors[i])) for i in op.inputs if i >= 0)
            grid = next((g for g in inherited if g is not None), None)
        if grid is not None:
            fixed.update((fb.name(tensors[i]), grid) for i in op.outputs)
    return fixed


def _verify_activation(
    result: Any, name: str, grid: Grid, fixed: tuple[float, int] | None, producer: str | None
) -> None:
    """The tensor has the given grid, or the one that TFLite fixes for it."""
    expected = fixed or (grid.scale, grid.zero_point)
    found = list(_grids_of(result, name))
    if expected in found:
        return
    if grid_rule(producer or "") == "input":
        rule = f"{producer} takes its input's grid"
    else:
        rule = "a CONCATENATION or the like that alone reads it sets its grid"
    raise VerificationError(
        f"activation {name!r}: (scale, zero point) {found[0] if found else 'none'} in the file,"
        f" given {expected} ({rule}; see grid_rule)"
    )


def _grids_of(result: Any, name: str) -> Iterator[tuple[float, int]]:
    """The grid of a tensor; of a float input, those of the QUANTIZE operators that read it."""
    graph = result.subgraphs[0]
    index = next(i for i, tensor in enumerate(graph.tensors) if fb.name(tensor) == name)
    readers = [
        op.outputs[0]
        for op in graph.operators
        if fb.op_name(result, op) == "QUANTIZE" and op.inputs[0] == index
    ]
    for i in [index] if fb.grid(graph.tensors[index]) else readers:
        grid = fb.grid(graph.tensors[i])
        if grid is not None and fb.type_name(graph.tensors[i]) == "int8":
            yield float(grid[0][0]), int(grid[1][0])
