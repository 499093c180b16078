"""Quantized .tflite files that hold exactly the codes and scales they are given.

`write_int8` makes full-integer files, `write_weights` files whose activations stay float.

ai-edge-quantizer does the rewriting (https://github.com/google-ai-edge/ai-edge-quantizer). It
derives `scale = max / 127` for a kernel and `(max - min) / 255` for an activation from a float64
range per tensor; handing it the range that belongs to a known scale returns that scale exactly once
it is rounded to float32. All kernels are first written in INT8, which it does for every operator;
those of 4 bits are packed afterwards. Nothing is taken on trust: what is written is read back.

Which grid an activation may have is not free (https://ai.google.dev/edge/litert/conversion/
tensorflow/quantization/quantization_spec): see `grid_rule` and `fixed_output_grid`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import float_regions, int4, integer_forms, signature
from ocs_tf.export.biases import wider_steps
from ocs_tf.export.grid_rules import (
    ACTIVATION_MAX,
    ACTIVATION_MIN,
    Grid,
    data_input,
    grid_rule,
    int8_version,
)
from ocs_tf.export.kernel_matching import (
    CODE_MAX,
    SMALLEST_RANGE,
    ExportKernel,
    assign,
    computing_operators,
    kernel_input,
    layout,
    separate,
)
from ocs_tf.export.verification import verify, verify_weights
from ocs_tf.process import one_quantizer, quiet

_PARTS = ("SPLIT", "SPLIT_V", "TOPK_V2", "UNPACK")  # operators that make parts of their input
# Operator versions that brought the integer kernels (tensorflow/lite/tools/versioning/
# op_version.cc; those of other operators are in `grid_rules`). ai-edge-quantizer leaves the float
# versions in place: too low for a strict compiler.
# By types of activations and weights. op_version.cc names no version for float32 with int4: it is
# the one that brought int4.
_KERNEL_VERSION = {
    "CONV_2D": {"int8 int8": 3, "int8 int4": 7, "float32 int8": 5, "float32 int4": 7},
    "DEPTHWISE_CONV_2D": {"int8 int8": 3, "int8 int4": 7, "float32 int8": 6},
    "FULLY_CONNECTED": {"int8 int8": 4, "int8 int4": 10, "float32 int8": 3, "float32 int4": 10},
    "TRANSPOSE_CONV": {"int32 int8": 3},
}
_DYNAMIC_DENSE_PER_CHANNEL = 12
# Operators with kernels for which ai-edge-quantizer has no form with float activations.
_QUANTIZER_LACKS = ("CONV_3D", "CONV_3D_TRANSPOSE", "GATHER")


def write_int8(
    float_model: bytes,
    kernels: Sequence[ExportKernel],
    grids: Mapping[str, Grid],
    ranges: Mapping[str, tuple[float, float]],
    *,
    float_io: bool,
    left_float: Collection[int] = (),
    unrounded: Collection[str] = (),
) -> bytes:
    """Rewrite a float .tflite file as a full-integer one with the given codes and grids.

    Kernels that no entry of `kernels` describes become int8 per output channel from their own
    minimum and maximum. A per-tensor step is repeated for each output channel of a convolution,
    whose int8 form is defined per channel, and is written once for a dense kernel, which older
    runtimes only take so.

    Arguments:
        float_model: what `tf.lite.TFLiteConverter` makes of a float Keras model whose kernels are
            exactly `codes * scale`, with a fixed batch size.
        kernels: the integer kernels. Each must equal the weights of at least one operator.
        grids: grid per float activation tensor, by its name in `float_model`.
        ranges: `(min, max)` of other activation tensors, by name; an entry of `grids` wins. Tensors
            whose grid follows from others (see `grid_rule`) need no entry.
        float_io: keep float32 inputs and outputs, quantized inside; otherwise they are int8.
        left_float: indices of operators that stay in float; see `float_regions`. What is inside of
            them needs no range.
        unrounded: names of inputs and outputs that stay float32 whatever `float_io` says.

    Returns:
        The bytes of the .tflite file.

    Raises:
        ValueError: if a name in `grids` or `ranges` is no activation of `float_model`, an
            activation has neither, a grid or range is malformed, or a kernel is not found in
            `float_model`.
        VerificationError: if the file read back has other codes, scales or zero points than given,
            a bias that overflows, or an operator left in float.
    """
    model = fb.read_straight(float_model)
    _check_activations(model, grids, ranges, left_float, unrounded)
    assigned = _assign(model, kernels, "int8")
    # The others of `left_float` read floats, which are codes times steps all the same.
    assigned = {
        (subgraph, index): kernel
        for (subgraph, index), kernel in assigned.items()
        if index not in left_float or _dequantizes_kernel(model, index)
    }
    quantized = _integers(model, assigned, grids, ranges, left_float, float_io)
    in_integers = {place: k for place, k in assigned.items() if place[1] not in left_float}
    wider = wider_steps(model, quantized, in_integers)
    if wider:
        assigned |= wider
        quantized = _integers(model, assigned, grids, ranges, left_float, float_io)
    _read_shapes_off_codes(quantized)
    _type_unread_parts(quantized)
    float_regions.integer_outputs(model, quantized, unrounded)
    float_regions.free_ends(model, quantized, unrounded)
    if left_float:
        float_regions.round_between(quantized, grids)
    if float_io:
        float_regions.dequantize_outputs(quantized)
    signature.follow(quantized, model)
    result = _finish(quantized, assigned)
    verify(model, fb.read(result), assigned, grids, float_io, left_float, unrounded)
    return result


def write_weights(
    float_model: bytes, kernels: Sequence[ExportKernel], *, dynamic: bool = False
) -> bytes:
    """Rewrite a float .tflite file with the given codes for kernels; all else stays float.

    Steps are written as by `write_int8`.

    Arguments:
        float_model: as for `write_int8`.
        kernels: the integer kernels. Each must equal the weights of at least one operator.
        dynamic: operators multiply integers: the runtime quantizes their input to 8 bits each time,
            to its own range. Otherwise, and for those of `_QUANTIZER_LACKS` always, a DEQUANTIZE
            turns the codes into floats again, and the file computes what `float_model` does, to
            float rounding.

    Returns:
        The bytes of the .tflite file.

    Raises:
        ValueError: if there is no kernel, one is not found in `float_model`, or runtimes cannot
            compute with it (`int4.check_operators`).
        VerificationError: if the file read back has other codes or scales than given, or anything
            else has changed.
    """
    if not kernels:
        raise ValueError("kernels is empty: the file would be `float_model`, so use that")
    model = fb.read(float_model)
    _name_apart(model)
    activations = "dynamic" if dynamic else "float"
    assigned = _assign(model, kernels, activations)
    engine = quantizer.Quantizer(fb.write(model))
    known = {p: k for p, k in assigned.items() if _has_recipe(model, p)}
    statistics = _kernel_recipes(engine, model, known, activations)
    quantized = _quantize(engine, statistics) if known else fb.read(fb.write(model))
    _dequantize_others(quantized, {p: k for p, k in assigned.items() if p not in known})
    result = _finish(quantized, assigned)
    verify_weights(model, fb.read(result), assigned, dynamic)
    return result


def _name_apart(model: Any) -> None:
    """Give tensors inside of loops and branches names of their own; ai-edge-quantizer 0.10 asks."""
    seen = {fb.name(tensor) for tensor in model.subgraphs[0].tensors}
    for number, graph in enumerate(model.subgraphs[1:], 1):
        for index, tensor in enumerate(graph.tensors):
            if fb.name(tensor) in seen:
                tensor.name = f"{fb.name(tensor)};{number}.{index}".encode()
            seen.add(fb.name(tensor))


def _has_recipe(model: Any, place: fb.Place) -> bool:
    return fb.op_name(model, fb.operator(model, place)) not in _QUANTIZER_LACKS


def _dequantize_others(quantized: Any, kernels: Mapping[fb.Place, ExportKernel]) -> None:
    """Store kernels as codes, and put a DEQUANTIZE behind them: of a table, behind its rows."""
    computing = [computing_operators(graph, quantized) for graph in quantized.subgraphs]
    stored: dict[tuple[int, int], int] = {}  # what a DEQUANTIZE makes of a tensor
    for (subgraph, place), kernel in kernels.items():
        graph, op = quantized.subgraphs[subgraph], computing[subgraph][place]
        kind, index = fb.op_name(quantized, op), kernel_input(quantized, op)
        if kind == "GATHER":
            _store_codes(quantized, graph.tensors[index], kernel, kind)
            rows = float_regions.twin(graph, op.outputs[0], "codes")
            rows.type, rows.quantization = schema.TensorType.INT8, graph.tensors[index].quantization
            made, op.outputs = op.outputs[0], [len(graph.tensors) - 1]
            border = float_regions.border_operator(quantized, "DEQUANTIZE", op.outputs[0], made)
            graph.operators.insert(_position(graph, op) + 1, border)
            continue
        if (subgraph, index) not in stored:
            numbers = float_regions.twin(graph, index, "numbers")
            numbers.buffer = 0
            made = stored[subgraph, index] = len(graph.tensors) - 1
            _store_codes(quantized, graph.tensors[index], kernel, kind)
            border = float_regions.border_operator(quantized, "DEQUANTIZE", index, made)
            graph.operators.insert(_position(graph, op), border)
        op.inputs = [stored[subgraph, index] if i == index else i for i in op.inputs]


def _position(graph: Any, op: Any) -> int:
    return next(i for i, other in enumerate(graph.operators) if other is op)


def _store_codes(model: Any, tensor: Any, kernel: ExportKernel, op_name: str) -> None:
    placed = layout(kernel, op_name)
    assert placed is not None  # it was assigned
    if tensor.type == schema.TensorType.INT8:
        return  # another operator reads it, too
    tensor.type = schema.TensorType.INT8
    model.buffers[tensor.buffer].data = placed[0].astype(np.int8).view(np.uint8).reshape(-1)
    scale = np.atleast_1d(kernel.scale)
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = scale
    tensor.quantization.zeroPoint = np.zeros(scale.size, np.int64)
    axis = placed[0].ndim - placed[1].ndim
    tensor.quantization.quantizedDimension = axis if scale.size > 1 else 0


def _assign(
    model: Any, kernels: Sequence[ExportKernel], activations: str
) -> dict[fb.Place, ExportKernel]:
    """Kernels by operator, each in a buffer of its own, and runtimes can compute with them."""
    assigned = assign(model, kernels)
    int4.check_operators(model, assigned, activations)
    separate(model, assigned)
    return assigned


def _check_activations(
    model: Any,
    grids: Mapping[str, Grid],
    ranges: Mapping[str, tuple[float, float]],
    left_float: Collection[int],
    unrounded: Collection[str],
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
        smallest = SMALLEST_RANGE / (ACTIVATION_MAX - ACTIVATION_MIN)
        if not (smallest <= grid.scale < np.inf and float(np.float32(grid.scale)) == grid.scale):
            raise ValueError(
                f"grids[{name!r}].scale (={grid.scale!r}) must be finite, at least {smallest:.3g}"
                " and exactly representable in float32"
            )
        if not ACTIVATION_MIN <= grid.zero_point <= ACTIVATION_MAX:
            raise ValueError(
                f"grids[{name!r}].zero_point (={grid.zero_point}) must be in"
                f" {ACTIVATION_MIN}..{ACTIVATION_MAX}"
            )
    for name, (low, high) in ranges.items():
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise ValueError(f"ranges[{name!r}] (={(low, high)}) must be finite with min <= max")
    inside = float_regions.inside(model, left_float, grids, unrounded)
    missing = sorted(needed_activations(model) - set(grids) - set(ranges) - inside)
    if missing:
        raise ValueError(f"activation tensors {missing} are in neither grids nor ranges")


class _Quantizer(quantizer.Quantizer):
    """One that does not prepare the model, whose operators may have the names of others."""

    def _ensure_model_qsv_sufficient(self, calibration_result: Any) -> None:
        """Every tensor has a range; see `_check_activations`."""


def _integers(
    model: Any,
    assigned: Mapping[fb.Place, ExportKernel],
    grids: Mapping[str, Grid],
    ranges: Mapping[str, tuple[float, float]],
    left_float: Collection[int],
    float_io: bool,
) -> Any:
    """What ai-edge-quantizer makes of `model`, with kernels `assigned`."""
    known = integer_forms.known_to_quantizer(model)
    engine = _Quantizer(fb.write(known))
    engine.update_quantization_recipe(
        ".*", qtyping.TFLOperationName.ALL_SUPPORTED, _recipe("int8", per_channel=True)
    )
    statistics = _activation_statistics(model, grids, ranges)
    _leave_float(engine, known, set(left_float) - {index for _, index in assigned})
    for activations, in_float in (("int8", False), ("float", True)):
        chosen = {p: k for p, k in assigned.items() if (p[1] in left_float) == in_float}
        statistics |= _kernel_recipes(engine, model, chosen, activations)
    if float_io:
        engine.update_quantization_recipe(
            ".*",
            qtyping.TFLOperationName.INPUT,
            algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE,
        )
    quantized = _quantize(engine, statistics)
    integer_forms.restore(quantized, model)
    return quantized


def _dequantizes_kernel(model: Any, index: int) -> bool:
    """Whether the kernel of an operator in float can be codes, with a DEQUANTIZE behind them."""
    graph = model.subgraphs[0]
    return fb.op_name(model, graph.operators[index]) in _KERNEL_VERSION


def needed_activations(model: Any) -> set[str]:
    """Names of the activations of a float model that `write_int8` needs a grid or range for.

    The grids of the others follow from the operators that compute them; see `grid_rule`.
    """
    graph = model.subgraphs[0]
    derived = {
        fb.name(graph.tensors[index])
        for op in graph.operators
        if grid_rule(fb.op_name(model, op)) in ("input", "fixed")
        for index in op.outputs
    }
    read = {index for op in graph.operators for index in op.inputs}
    unread = {fb.name(graph.tensors[index]) for index in graph.inputs if index not in read}
    return set(fb.float_activations(model)) - derived - unread


def _kernel_recipes(
    engine: quantizer.Quantizer,
    model: Any,
    assigned: Mapping[fb.Place, ExportKernel],
    activations: str,
) -> dict[str, dict[str, np.ndarray]]:
    """Tell ai-edge-quantizer which operators have kernels; the ranges that belong to the scales."""
    statistics = {}
    for place, kernel in assigned.items():
        op, tensors = fb.operator(model, place), model.subgraphs[place[0]].tensors
        weights = tensors[kernel_input(model, op)]
        bound = _kernel_bound(kernel, fb.op_name(model, op), len(fb.shape(weights)))
        low = -bound
        if fb.op_name(model, op) == "GATHER" and activations == "int8":
            low = low * (ACTIVATION_MIN / -CODE_MAX)  # a table is an activation, as far as it goes
        statistics[fb.name(weights)] = {"min": low, "max": bound}
        engine.update_quantization_recipe(
            f"^{re.escape(fb.name(tensors[op.outputs[0]]))};$",
            qtyping.TFLOperationName(_quantizer_name(fb.op_name(model, op))),
            _recipe(activations, per_channel=bound.size > 1),
        )
    return statistics


def _activation_statistics(
    model: Any, grids: Mapping[str, Grid], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, dict[str, np.ndarray]]:
    """The ranges of activations, as ai-edge-quantizer wants them."""
    statistics = {}
    fixed = integer_forms.fixed_grids(model)
    for name, index in fb.float_activations(model).items():
        low, high = _activation_range(name, grids, ranges)
        if name in fixed:
            low, high = _ends(*fixed[name])
        ones = [1] * len(fb.shape(model.subgraphs[0].tensors[index]))
        statistics[name] = {"min": np.full(ones, low), "max": np.full(ones, high)}
    return statistics


def _quantizer_name(op_name: str) -> str:
    """Name of an operator in ai-edge-quantizer."""
    return "CONV_2D_TRANSPOSE" if op_name == "TRANSPOSE_CONV" else op_name


def _leave_float(engine: quantizer.Quantizer, model: Any, left_float: Collection[int]) -> None:
    """Tell ai-edge-quantizer which operators not to touch."""
    graph = model.subgraphs[0]
    for index in left_float:
        op = graph.operators[index]
        kind = _quantizer_name(fb.op_name(model, op))
        if kind in {name.value for name in qtyping.TFLOperationName}:
            scope = "".join(f"{fb.name(graph.tensors[i])};" for i in op.outputs)
            engine.update_quantization_recipe(
                f"^{re.escape(scope)}$",
                qtyping.TFLOperationName(kind),
                algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE,
            )


def _recipe(activations: str, per_channel: bool) -> qtyping.OpQuantizationConfig:
    """Symmetric INT8 kernels, and what becomes of the activations."""
    precision, granularity = qtyping.ComputePrecision, qtyping.QuantGranularity
    on_grids = qtyping.TensorQuantizationConfig(num_bits=8, symmetric=False)
    to_float = activations == "float"
    return qtyping.OpQuantizationConfig(
        compute_precision=precision.FLOAT if to_float else precision.INTEGER,
        explicit_dequantize=to_float,
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=8,
            symmetric=True,
            granularity=granularity.CHANNELWISE if per_channel else granularity.TENSORWISE,
        ),
        activation_tensor_config=on_grids if activations == "int8" else None,
    )


def _quantize(engine: quantizer.Quantizer, statistics: dict[str, dict[str, np.ndarray]]) -> Any:
    """The model that ai-edge-quantizer makes."""
    with one_quantizer, quiet():
        result = engine.quantize(
            calibration_result=statistics, enable_progress_bar=False, enable_progress_report=False
        )
    return fb.read(bytes(result.quantized_model))


def _finish(quantized: Any, assigned: Mapping[fb.Place, ExportKernel]) -> bytes:
    """Add what ai-edge-quantizer does not: INT4 tensors and operator versions."""
    int4.store(quantized, assigned)
    _raise_versions(quantized)
    return fb.write(quantized)


def _activation_range(
    name: str, grids: Mapping[str, Grid], ranges: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    """Range whose division into 255 steps is the grid. A derived tensor's is never looked at."""
    if name in grids:
        return _ends(grids[name].scale, grids[name].zero_point)
    return ranges.get(name, (0.0, 0.0))


def _ends(scale: float, zero_point: int) -> tuple[float, float]:
    """The smallest and the largest number of a grid."""
    return (ACTIVATION_MIN - zero_point) * scale, (ACTIVATION_MAX - zero_point) * scale


def _kernel_bound(kernel: ExportKernel, op_name: str, rank: int) -> np.ndarray:
    """Largest representable magnitude, float64 (float32 loses the last bit of some scales).

    One per output channel, on that axis of a rank-`rank` tensor; one in all for a dense kernel with
    one step.
    """
    bound = kernel.scale.astype(np.float64) * CODE_MAX
    if op_name in ("FULLY_CONNECTED", "GATHER") and bound.ndim == 0:
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


def _type_unread_parts(model: Any) -> None:
    """Give those parts that nobody reads, which were left in float, the others' type."""
    tensors = model.subgraphs[0].tensors
    for op in model.subgraphs[0].operators:
        kind = fb.op_name(model, op)
        whole = tensors[op.inputs[data_input(kind)]] if kind in _PARTS else None
        if whole is not None and fb.type_name(whole) == "int8":
            for part in (tensors[i] for i in op.outputs if tensors[i].type == fb.FLOAT32):
                part.type, part.quantization = whole.type, whole.quantization


def _raise_versions(model: Any) -> None:
    """State the operator versions that the integer kernels need."""
    for (subgraph, _), op in fb.operators(model):
        code = model.operatorCodes[op.opcodeIndex]
        code.version = max(code.version, _version(model, model.subgraphs[subgraph], op))


def _version(model: Any, graph: Any, op: Any) -> int:
    """Version that brought an operator's integer kernel; 1 for float."""
    tensors = [graph.tensors[index] for index in op.inputs if index >= 0]
    types = [fb.type_name(tensor) for tensor in tensors]
    kind = fb.op_name(model, op)
    if kind == "DEQUANTIZE":
        return 6 if types[0] == "int4" else 5 if _per_channel(tensors[0]) else 2
    if kind not in _KERNEL_VERSION:
        return int8_version(kind) if "int8" in types else 1
    if kind == "FULLY_CONNECTED" and types[0] == "float32" and _per_channel(tensors[1]):
        return _DYNAMIC_DENSE_PER_CHANNEL
    return _KERNEL_VERSION[kind].get(" ".join(types[:2]), 1)


def _per_channel(tensor: Any) -> bool:
    """Whether a tensor is quantized with several steps."""
    grid = fb.grid(tensor)
    return grid is not None and len(grid[0]) > 1
