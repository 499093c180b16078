"""Regions of an int8 file that stay in float32, around operators without an integer form.

The Keras model computes a layer in float and rounds its output. If one operator of a layer has no
integer form, all of the layer is computed like that in the file, too: from a tensor on a grid,
behind a DEQUANTIZE, to the next one, in front of a QUANTIZE.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ai_edge_litert import schema_py_generated as schema

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.grid_rules import INTEGER_FORMS, Grid, data_input, grid_rule, mixes

_READS_NO_NUMBERS = ("SHAPE",)

AnyGrid = TypeVar("AnyGrid", bound=Grid)


def float_operators(
    model: Any,
    on_grids: Iterable[str],
    unrounded: Collection[str] = (),
    others: Collection[int] = (),
) -> set[int]:
    """Indices of the operators of a float model that are to stay in float.

    Arguments:
        model: as `_flatbuffer.read` returns it.
        on_grids: names of the activation tensors that are rounded in any case.
        unrounded: names of the inputs and outputs that are not.
        others: operators that are to stay in float although they have an integer form.
    """
    graph = model.subgraphs[0]
    activations = set(fb.float_activations(model).values())
    ends = border(model, on_grids, unrounded)
    left = {
        index
        for index, op in enumerate(graph.operators)
        if (index in others or fb.op_name(model, op) not in (*INTEGER_FORMS, *_READS_NO_NUMBERS))
        and any(i in activations for i in (*op.inputs, *op.outputs))
    }
    ends_in_float = {*graph.inputs, *graph.outputs} & activations
    exact = {i for i in ends_in_float if fb.name(graph.tensors[i]) in unrounded}
    left |= {
        index
        for index, op in enumerate(graph.operators)
        if exact & {*op.inputs, *op.outputs} and fb.op_name(model, op) not in _READS_NO_NUMBERS
    }
    touching: dict[int, list[int]] = {}
    for index, op in enumerate(graph.operators):
        for i in (*op.inputs, *op.outputs):
            touching.setdefault(i, []).append(index)
    waiting = list(left)
    while waiting:
        op = graph.operators[waiting.pop()]
        inside = {i for i in (*op.inputs, *op.outputs) if i in activations and i not in ends}
        found = {index for i in inside for index in touching[i]} - left
        left |= found
        waiting.extend(found)
    return left


def inside(
    model: Any, left: Collection[int], on_grids: Iterable[str], unrounded: Collection[str] = ()
) -> set[str]:
    """Names of the tensors that only operators in float compute and read."""
    graph = model.subgraphs[0]
    ends = border(model, on_grids, unrounded)
    touched = {
        i
        for index in left
        for i in (*graph.operators[index].inputs, *graph.operators[index].outputs)
    }
    return {
        name for name, i in fb.float_activations(model).items() if i in touched and i not in ends
    }


def border(model: Any, on_grids: Iterable[str], unrounded: Collection[str]) -> set[int]:
    """Indices of tensors that are rounded: as given, or as operators make them from such ones."""
    graph = model.subgraphs[0]
    activations = fb.float_activations(model)
    ends, on_grids = {*graph.inputs, *graph.outputs}, set(on_grids)
    found = {
        i
        for name, i in activations.items()
        if name in on_grids or (i in ends and name not in unrounded)
    }
    for op in graph.operators:
        kind = fb.op_name(model, op)
        if grid_rule(kind) in ("input", "fixed") and op.inputs[data_input(kind)] in found:
            found.update(op.outputs)
        if kind == "GATHER" and fb.is_constant(model, graph.tensors[op.inputs[0]]):
            looked_up = (i for i in op.outputs if i in activations.values())  # on the table's grid
            found.update(i for i in looked_up if fb.name(graph.tensors[i]) not in unrounded)
    return found


def touching(model: Any, names: Collection[str]) -> set[int]:
    """Indices of the operators that compute or read activations of these names."""
    chosen = {i for name, i in fb.float_activations(model).items() if name in names}
    operators = enumerate(model.subgraphs[0].operators)
    return {index for index, op in operators if chosen & {*op.inputs, *op.outputs}}


def index_operators(model: Any, unrounded: Collection[str]) -> set[int]:
    """Indices of the operators that only compute row numbers from inputs that are not rounded."""
    graph = model.subgraphs[0]
    activations = fb.float_activations(model)
    exact = {activations[name] for name in unrounded if activations[name] in list(graph.inputs)}
    found = set()
    for index, op in enumerate(graph.operators):
        read = {i for i in op.inputs if i in activations.values()}
        if read and read <= exact:
            found.add(index)
            exact.update(i for i in op.outputs if i in activations.values())
    return found


def regridding_operators(model: Any, grids: Mapping[str, Grid]) -> set[int]:
    """Indices of the operators between different grids, of which TFLite's have one, left in float.

    What others move is rounded to the other grid afterwards (see `integer_forms`). These would
    round twice: means of numbers (Keras' `ops.average_pool` is rounded to a grid of its own), and
    lookups in a constant table, whose grid comes of its own numbers.
    """
    graph = model.subgraphs[0]
    known = known_grids(model, grids)
    found = set()
    for index, op in enumerate(graph.operators):
        kind, output = fb.op_name(model, op), op.outputs[0]
        if grid_rule(kind) != "input" or output not in known:
            continue
        data = op.inputs[data_input(kind)]
        differs = data in known and differ(known[data], known[output])
        if fb.is_constant(model, graph.tensors[data]) or (mixes(kind) and differs):
            found.add(index)
    return found


def known_grids(model: Any, grids: Mapping[str, AnyGrid]) -> dict[int, AnyGrid]:
    """Grids by index of the tensor: of those in `grids`, and those that operators keep."""
    known = {i: grids[name] for name, i in fb.float_activations(model).items() if name in grids}
    for op in model.subgraphs[0].operators:
        kind = fb.op_name(model, op)
        kept = known.get(op.inputs[data_input(kind)]) if grid_rule(kind) == "input" else None
        if kind == "CONCATENATION":
            parts = [known.get(i) for i in op.inputs]
            kept = parts[0]
            alike = all(p is not None and kept is not None and not differ(p, kept) for p in parts)
            kept = kept if alike else None
        if kept is not None:
            for i in op.outputs:
                known.setdefault(i, kept)
    return known


def differ(one: Grid, other: Grid) -> bool:
    """Whether two grids are not the same."""
    return (one.scale, one.zero_point) != (other.scale, other.zero_point)


def moved(model: Any, grids: Mapping[str, AnyGrid]) -> dict[str, AnyGrid]:
    """The grids of tensors that are not in `grids` but hold the numbers of such as are.

    What is resized inside of a layer (an image that was padded, say) is on the grid of the result;
    what is concatenated of parts with one grid, on that.
    """
    graph = model.subgraphs[0]
    names = {i: name for name, i in fb.float_activations(model).items()}
    known = known_grids(model, grids)
    joined = {op.outputs[0] for op in graph.operators if fb.op_name(model, op) == "CONCATENATION"}
    found = {names[i]: known[i] for i in joined & set(known) if names.get(i, "") not in grids}
    resized: set[int] = set()
    for op in reversed(graph.operators):
        kind = fb.op_name(model, op)
        inside = op.outputs[0] in resized and grid_rule(kind) in ("input", "output")
        for i in op.inputs if kind.startswith("RESIZE_") or inside else ():
            if op.outputs[0] in known and i not in known and i in names:
                known[i] = found[names[i]] = known[op.outputs[0]]
                resized.add(i)
    return found


def describe(
    model: Any,
    left: Collection[int],
    regridding: Collection[int],
    layers: Collection[str],
    matches: Mapping[str, str],
) -> str:
    """A note that names the layers in float, and the reason; or no text.

    Arguments:
        model: as above.
        left: the operators in float, and
        regridding: those because of their grids.
        layers: names of all layers.
        matches: the layers that are known to make tensors, by the tensors' names.
    """
    graph = model.subgraphs[0]
    if not left:
        return ""
    kinds = {fb.op_name(model, graph.operators[index]) for index in left} - INTEGER_FORMS
    one_grid = {fb.op_name(model, graph.operators[index]) for index in left if index in regridding}
    reasons = []
    if kinds:
        reasons.append(f"{_listed(kinds)} {'has' if len(kinds) == 1 else 'have'} no int8 form")
    if one_grid:
        reasons.append(f"inputs and output of {_listed(one_grid)} would have to share a grid")
    reason = " and ".join(reasons) or "they read inputs that are not rounded"
    return in_float(layer_names(model, left, layers, matches), reason)


def in_float(names: Sequence[str], reason: str) -> str:
    """A note that these layers are computed in float."""
    count = "1 layer is" if len(names) == 1 else f"{len(names)} layers are"
    return f"{count} computed in float, since {reason}: {', '.join(names)}."


def layer_names(
    model: Any, indices: Collection[int], layers: Collection[str], matches: Mapping[str, str]
) -> list[str]:
    """Names of the layers that have these operators; arguments as of `describe`."""
    graph = model.subgraphs[0]
    names: dict[str, None] = {}  # in order
    for index in sorted(indices):
        tensor = fb.name(graph.tensors[graph.operators[index].outputs[0]])
        clear = max(layers, key=lambda layer: fb.name_affinity(tensor, layer))
        names[clear if fb.name_affinity(tensor, clear) else matches.get(tensor, tensor)] = None
    return list(names)


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(sorted(kinds))


def round_between(model: Any, grids: Mapping[str, Grid]) -> None:
    """Round to its grid what an operator in float computes for another one, or as an output."""
    graph = model.subgraphs[0]
    for index, tensor in list(enumerate(graph.tensors)):
        grid = grids.get(fb.name(tensor))
        readers = [
            op
            for op in graph.operators
            if index in list(op.inputs) and fb.op_name(model, op) not in ("QUANTIZE", "SHAPE")
        ]
        is_output = index in list(graph.outputs)
        if grid is None or tensor.type != fb.FLOAT32 or not (readers or is_output):
            continue
        if any(
            fb.op_name(model, op) == "DEQUANTIZE" for op in graph.operators if index in op.outputs
        ):
            continue
        codes = twin(graph, index, "codes")
        codes.type = schema.TensorType.INT8
        codes.quantization = schema.QuantizationParametersT()
        codes.quantization.scale, codes.quantization.zeroPoint = [grid.scale], [grid.zero_point]
        twin(graph, index, "rounded")
        rounded = len(graph.tensors) - 1
        for op in readers:
            op.inputs = [rounded if i == index else i for i in op.inputs]
        if is_output:
            fb.replace_output(model, index, rounded)
        where = next((n + 1 for n, op in enumerate(graph.operators) if index in op.outputs), 0)
        graph.operators[where:where] = [
            border_operator(model, "QUANTIZE", index, len(graph.tensors) - 2),
            border_operator(model, "DEQUANTIZE", len(graph.tensors) - 2, len(graph.tensors) - 1),
        ]


def free_ends(model: Any, quantized: Any, unrounded: Collection[str]) -> None:
    """Let these inputs and outputs be float32, without the operators between types at them.

    Arguments:
        model: the float model.
        quantized: the same in integers; it is changed.
        unrounded: names of inputs and outputs of `model`.
    """
    before, graph = model.subgraphs[0], quantized.subgraphs[0]
    for old, index in zip(before.inputs, list(graph.inputs), strict=True):
        if fb.name(before.tensors[old]) in unrounded and graph.tensors[index].type != fb.FLOAT32:
            graph.tensors[index].type, graph.tensors[index].quantization = fb.FLOAT32, None
            for border in [op for op in graph.operators if list(op.inputs) == [index]]:
                if fb.op_name(quantized, border) == "DEQUANTIZE":
                    graph.operators.remove(border)
                    for op in graph.operators:
                        op.inputs = [index if i == border.outputs[0] else i for i in op.inputs]
    for old, index in zip(before.outputs, list(graph.outputs), strict=True):
        if fb.name(before.tensors[old]) in unrounded and graph.tensors[index].type != fb.FLOAT32:
            border = next(op for op in graph.operators if list(op.outputs) == [index])
            graph.operators.remove(border)
            fb.replace_output(quantized, index, int(border.inputs[0]))


def integer_outputs(model: Any, quantized: Any, unrounded: Collection[str]) -> None:
    """Let outputs be codes where they became the floats that operators in float read.

    Arguments: as for `free_ends`.
    """
    before, graph = model.subgraphs[0], quantized.subgraphs[0]
    codes = {
        op.outputs[0]: int(op.inputs[0])
        for op in graph.operators
        if fb.op_name(quantized, op) == "DEQUANTIZE"
    }
    for old, index in zip(before.outputs, list(graph.outputs), strict=True):
        if fb.name(before.tensors[old]) not in unrounded and index in codes:
            fb.replace_output(quantized, index, codes[index])


def dequantize_outputs(model: Any) -> None:
    """Let outputs be float32: ai-edge-quantizer cannot where operators read them, too."""
    graph = model.subgraphs[0]
    for index in dict.fromkeys(graph.outputs):
        if fb.type_name(graph.tensors[index]) == "int8":
            values = twin(graph, index, "values")
            values.type, values.quantization = fb.FLOAT32, None
            made = len(graph.tensors) - 1
            graph.operators.append(border_operator(model, "DEQUANTIZE", index, made))
            fb.replace_output(model, index, made)


def twin(graph: Any, index: int, suffix: str) -> Any:
    """A new tensor like that of `index`, at the end."""
    tensor = copy.copy(graph.tensors[index])
    tensor.name = f"{fb.name(tensor)};{suffix}".encode()
    tensor.buffer = 0
    graph.tensors.append(tensor)
    return tensor


def border_operator(model: Any, kind: str, given: int, made: int) -> Any:
    """A new operator between types."""
    op = schema.OperatorT()
    op.opcodeIndex = fb.operator_code(model, getattr(schema.BuiltinOperator, kind))
    op.inputs, op.outputs = [given], [made]
    op.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind.capitalize()}Options")
    op.builtinOptions = getattr(schema, f"{kind.capitalize()}OptionsT")()
    return op
