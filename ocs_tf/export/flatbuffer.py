"""Reading a .tflite file as plain Python objects: the few questions that the exporters ask of it.

The objects are those of the generated TFLite schema (`ModelT`, `SubGraphT`, `TensorT`, ...):
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

from __future__ import annotations

import copy
import keyword
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

FLOAT32 = schema.TensorType.FLOAT32

_OP_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
_TYPE_NAMES = {
    code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()
}
_ACTIVATIONS = {
    code: name for name, code in vars(schema.ActivationFunctionType).items() if name.isupper()
}


Place = tuple[int, int]  # of an operator: subgraph, position in it


def read(model: bytes) -> Any:
    """The `ModelT` of a .tflite file."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(model))


def read_straight(model: bytes) -> Any:
    """The `ModelT` of a .tflite file without control flow.

    Raises:
        ValueError: if the model has more than one subgraph.
    """
    parsed = read(model)
    if len(parsed.subgraphs) != 1:
        raise ValueError(
            f"the model has {len(parsed.subgraphs)} subgraphs; integer activations need exactly 1"
            " (no control flow: unroll loops and recurrent layers)"
        )
    return parsed


def replace_output(model: Any, old: int, new: int, subgraph: int = 0) -> None:
    """Let a graph return another tensor in the place of `old`."""
    graph = model.subgraphs[subgraph]
    graph.outputs = [new if i == old else i for i in graph.outputs]
    for signature in model.signatureDefs or ():
        for output in signature.outputs if signature.subgraphIndex == subgraph else ():
            output.tensorIndex = new if output.tensorIndex == old else output.tensorIndex


def sort(graph: Any) -> None:
    """Put operators behind those that make what they read; others keep their order."""
    makers = {i: op for op in graph.operators for i in op.outputs}
    placed: dict[int, Any] = {}
    for last in graph.operators:
        waiting = [last]
        while waiting:
            op = waiting[-1]
            before = [makers[i] for i in op.inputs if i in makers and id(makers[i]) not in placed]
            waiting.extend(before)
            if not before:
                placed[id(waiting.pop())] = op
    graph.operators = list(placed.values())


def extracted(
    model: Any, operators: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int]
) -> Any:
    """A model of some operators of the first graph alone, with these tensors as its ends."""
    given = model.subgraphs[0]
    used = dict.fromkeys((*inputs, *(i for op in operators for i in (*op.inputs, *op.outputs))))
    used.pop(-1, None)
    places = {old: new for new, old in enumerate(used)} | {-1: -1}
    part, graph = copy.copy(model), copy.copy(given)
    part.subgraphs, part.signatureDefs, part.buffers = [graph], [], [schema.BufferT()]
    part.operatorCodes = [copy.copy(code) for code in model.operatorCodes]
    part.metadata = part.metadataBuffer = None
    graph.tensors = [copy.copy(given.tensors[i]) for i in used]
    for tensor in graph.tensors:
        if is_constant(model, tensor):
            part.buffers.append(model.buffers[tensor.buffer])
            tensor.buffer = len(part.buffers) - 1
        else:
            tensor.buffer = 0
    graph.operators = [copy.copy(op) for op in operators]
    for op in graph.operators:
        op.inputs, op.outputs = ([places[i] for i in ends] for ends in (op.inputs, op.outputs))
    graph.inputs, graph.outputs = ([places[i] for i in ends] for ends in (inputs, outputs))
    return part


def operators(model: Any) -> Iterator[tuple[Place, Any]]:
    """All operators, those of loops and branches included, and where they are."""
    for subgraph, graph in enumerate(model.subgraphs):
        for index, op in enumerate(graph.operators):
            yield (subgraph, index), op


def operator(model: Any, place: Place) -> Any:
    """The operator at a place."""
    return model.subgraphs[place[0]].operators[place[1]]


def write(model: Any) -> bytes:
    """The bytes of a `ModelT`."""
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def op_name(model: Any, op: Any) -> str:
    """Name of an operator as the schema spells it, for example `"CONV_2D"`."""
    return code_name(model.operatorCodes[op.opcodeIndex])


def code_name(code: Any) -> str:
    """Name of the operators of a code."""
    # Files older than schema 3a keep the code in the deprecated field; the larger one is in use.
    return _OP_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]


def operator_code(model: Any, builtin: int, custom: str | None = None) -> int:
    """The index of an operator's code, which is added if the model lacks it."""
    codes = model.operatorCodes
    for index, code in enumerate(codes):
        known = max(code.builtinCode, code.deprecatedBuiltinCode)
        if known == builtin and custom == (code.customCode and code.customCode.decode()):
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.customCode = custom and custom.encode()
    code.version = 1
    codes.append(code)
    return len(codes) - 1


def custom_name(model: Any, op: Any) -> str | None:
    """Name of a custom operator, None for a builtin one."""
    name = model.operatorCodes[op.opcodeIndex].customCode
    return name.decode() if name else None


def op_version(model: Any, op: Any) -> int:
    """Version of an operator, as the file states it."""
    return int(model.operatorCodes[op.opcodeIndex].version)


def type_name(tensor: Any) -> str:
    """Element type of a tensor, for example `"int8"`."""
    return _TYPE_NAMES[tensor.type]


def name(tensor: Any) -> str:
    """Name of a tensor."""
    return tensor.name.decode() if tensor.name else ""


def shape(tensor: Any) -> tuple[int, ...]:
    """Shape of a tensor; `()` for a scalar."""
    return tuple(int(n) for n in tensor.shape) if tensor.shape is not None else ()


def fused_activation(op: Any) -> str:
    """Name of the activation fused into an operator, `"NONE"` without one."""
    return _ACTIVATIONS[getattr(op.builtinOptions, "fusedActivationFunction", 0)]


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether the tensor's values are stored in the file."""
    return model.buffers[tensor.buffer].data is not None


def constant(model: Any, tensor: Any) -> np.ndarray:
    """Values of a constant tensor, in its shape and element type (float32, int8, int32 or int64).

    Raises:
        ValueError: if the tensor is no constant.
    """
    if not is_constant(model, tensor):
        raise ValueError(f"tensor {name(tensor)!r} is no constant")
    data = np.asarray(model.buffers[tensor.buffer].data, dtype=np.uint8)
    return data.view(type_name(tensor)).reshape(shape(tensor))


def grid(tensor: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """`(scale float32 [n], zero_point int64 [n])` of a tensor, None if it is not quantized."""
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) == 0:
        return None
    scale = np.asarray(quantization.scale, np.float32)
    zero_point = quantization.zeroPoint
    if zero_point is None or len(zero_point) == 0:
        zero_point = np.zeros(len(scale))
    return scale, np.asarray(zero_point, np.int64)


def float_activations(model: Any) -> dict[str, int]:
    """Name and index of every float32 tensor the model is given or computes, inputs first."""
    graph = model.subgraphs[0]
    computed = [index for op in graph.operators for index in op.outputs]
    return {
        name(graph.tensors[index]): index
        for index in (*graph.inputs, *computed)
        if graph.tensors[index].type == FLOAT32
    }


def scope_name(name: str) -> str:
    """The identifier by which a layer of this name goes in the names of tensors.

    Anything but ASCII letters, digits and `_` becomes `_`; a `_` is added to a Python keyword, and
    `x` put in front of what does not begin with a letter.
    """
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    text = text if text[:1].isalpha() else f"x{text}"
    return f"{text}_" if keyword.iskeyword(text) else text


def name_affinity(tensor_name: str, layer: str) -> int:
    """How clearly a tensor's name says that it comes from the Keras layer `layer`; 0: not at all.

    The converter joins the names of fused ops with `;`, last op first, each a path such as
    `functional_1/conv_1/convolution`: one segment is the layer's name (see `scope_name`), mostly
    with `_1` appended.
    """
    layer = scope_name(layer)
    paths = [path.split("/") for path in tensor_name.split(";")]
    for rank, segment in ((2, f"{layer}_1"), (1, layer)):
        for position, path in enumerate(paths):
            if segment in path:
                return rank * len(paths) - position
    return 0
