"""Writes operators.md: which operators runtimes have int8 kernels for, and what our files hold.

python docs/make_operators.py

Each operator is run alone, in LiteRT with its reference kernels, with XNNPACK, and in TFLite Micro
(`pip install tflite-micro`; without it, the page's former column stays).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from scipy import special

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.grid_rules import (
    INTEGER_FORMS,
    PRODUCTS,
    fixed_output_grid,
    grid_rule,
    int8_version,
)
from ocs_tf.numerics import ActivationGrid
from ocs_tf.process import quiet
from ocs_tf.runtime import runner

PAGE = pathlib.Path(__file__).with_name("operators.md")
TYPES = {
    np.dtype(name): getattr(schema.TensorType, name.upper())
    for name in ("float32", "int8", "int32", "int64", "bool")
}
_RNG = np.random.default_rng(0)
X, Y = _RNG.normal(size=(2, 1, 4, 4, 6))
POSITIVE, DIVISOR = _RNG.uniform(0.05, 3, (2, 1, 4, 4, 6)) + [[[[[0]]]], [[[[0.5]]]]]
# Its zero point is 0, as in all our files: XNNPACK in tf.lite of TensorFlow 2.21 assumes so.
FACTOR = np.clip(Y[0].transpose(0, 2, 1), -1.28, 1.27)
MASK = _RNG.random((1, 4, 4, 6)) > 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator alone.

    Attributes:
        kind: its name in the schema.
        inputs: float arrays, which are activations but for those in `constants`; other arrays, of
            which integers are constants.
        function: what it computes of them: an array, or a list.
        settings: its options.
        options: the name of their class, where it is not that of the operator.
        constants: which float inputs are constant.
    """

    kind: str
    inputs: tuple[Any, ...]
    function: Callable[..., Any]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: str = ""
    constants: tuple[int, ...] = ()

    @property
    def rule(self) -> str:
        """Whose grid its tensors have; of those that our files hold in float, each its own."""
        return grid_rule(self.kind)

    def arrays(self) -> list[np.ndarray]:
        """Its inputs."""
        return [np.asarray(value) for value in self.inputs]

    def outputs(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What it computes."""
        found = self.function(*inputs)
        return [np.asarray(v) for v in (found if isinstance(found, list) else [found])]


def unary(kind: str, function: Callable[..., Any], x: np.ndarray = X, **settings: Any) -> Case:
    return Case(kind, (x,), function, settings)


def binary(kind: str, function: Callable[..., Any], y: np.ndarray = Y, options: str = "") -> Case:
    return Case(kind, (X, y), function, options=options)


def ints(*values: Any) -> np.ndarray:
    return np.asarray(values, np.int32)


def axis(value: int) -> np.ndarray:
    return np.asarray(value, np.int32)


def reduction(kind: str, function: Callable[..., Any], x: np.ndarray = X) -> Case:
    def reduce(a: np.ndarray, axes: np.ndarray) -> np.ndarray:
        return function(a, tuple(axes))

    return Case(kind, (x, ints(1, 2)), reduce, options="ReducerOptions")


def at_least(low: float, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of its argument, or of `low` where that is smaller."""
    return lambda a: function(np.maximum(a, low))


def to_depth(a: np.ndarray) -> np.ndarray:
    n, h, w, c = a.shape
    blocks = a.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, h // 2, w // 2, 4 * c)


def to_space(a: np.ndarray) -> np.ndarray:
    n, h, w, c = a.shape
    blocks = a.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, 2 * h, 2 * w, c // 4)


def to_batch(a: np.ndarray) -> np.ndarray:
    return np.concatenate([a[:, i::2, j::2] for i in range(2) for j in range(2)])


def from_batch(a: np.ndarray) -> np.ndarray:
    found = np.zeros((1, 4, 4, a.shape[3]))
    for index, part in enumerate(a):
        found[0, index // 2 :: 2, index % 2 :: 2] = part
    return found


def pooled(function: Callable[..., Any]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: function(a.reshape(1, 2, 2, 2, 2, 6), (2, 4))


def bilinear(a: np.ndarray) -> np.ndarray:
    """Twice as large, half-pixel centers."""
    places = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    low = np.floor(places).astype(int)
    weights = np.zeros((8, 4))
    for row, (place, below) in enumerate(zip(places, low, strict=True)):
        weights[row, below] += 1 - (place - below)
        weights[row, min(below + 1, 3)] += place - below
    return np.einsum("ih,jw,bhwc->bijc", weights, weights, a)


def updated(a: np.ndarray, part: np.ndarray, start: np.ndarray) -> np.ndarray:
    found = a.copy()
    found[tuple(slice(s, s + n) for s, n in zip(start, part.shape, strict=True))] = part
    return found


def largest(a: np.ndarray, count: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(-a, -1, kind="stable")[..., : int(count)]
    return [np.take_along_axis(a, order, -1), order.astype(np.int32)]


def padded(a: np.ndarray, sizes: np.ndarray, value: Any = 0.0, **mode: Any) -> np.ndarray:
    return np.pad(a, sizes, constant_values=float(value)) if not mode else np.pad(a, sizes, **mode)


POOL = {"strideW": 2, "strideH": 2, "filterWidth": 2, "filterHeight": 2, "padding": 1}
SIZES = ints([0, 0], [1, 2], [0, 1], [0, 0])
INT32 = {"outputType": schema.TensorType.INT32}
_I = np.eye(4)

CASES = [
    unary("ABS", np.abs),
    binary("ADD", np.add),
    Case("ADD_N", (X, Y), np.add),
    Case("ARG_MAX", (X, axis(3)), lambda a, _: a.argmax(3).astype(np.int32), INT32),
    Case("ARG_MIN", (X, axis(3)), lambda a, _: a.argmin(3).astype(np.int32), INT32),
    binary("ATAN2", np.arctan2, options="ATan2Options"),
    unary("AVERAGE_POOL_2D", pooled(np.mean)),
    Case("BATCH_MATMUL", (X[0], FACTOR), np.matmul, options="BatchMatMulOptions"),
    Case(
        "BATCH_TO_SPACE_ND",
        (X.reshape(4, 2, 2, 6), ints(2, 2), ints([0, 0], [0, 0])),
        lambda a, *_: from_batch(a),
        options="BatchToSpaceNDOptions",
    ),
    Case("BROADCAST_TO", (X[:, :1], ints(1, 3, 4, 6)), np.broadcast_to),
    Case("CAST", (MASK,), lambda a: a.astype(np.float64)),
    unary("CEIL", np.ceil, 3 * X),
    Case("CONCATENATION", (X, Y), lambda a, b: np.concatenate([a, b], 3), {"axis": 3}),
    unary("COS", np.cos),
    Case("CUMSUM", (X, axis(2)), lambda a, _: np.cumsum(a, 2)),
    unary("DEPTH_TO_SPACE", to_space, np.concatenate([X, Y], 3), blockSize=2),
    Case("DIV", (X, DIVISOR), lambda a, b: a / np.maximum(b, 0.1)),
    Case("DYNAMIC_UPDATE_SLICE", (X[0, 0], Y[0, 0, :2, :3], ints(1, 2)), updated),
    unary("ELU", lambda a: np.where(a > 0, a, np.expm1(a))),
    binary("EQUAL", np.equal),
    unary("EXP", np.exp),
    Case("EXPAND_DIMS", (X, axis(1)), lambda a, _: a[:, None]),
    unary("FLOOR", np.floor, 3 * X),
    Case("FLOOR_DIV", (3 * X, DIVISOR), lambda a, b: np.floor(a / np.maximum(b, 0.1))),
    Case("FLOOR_MOD", (3 * X, DIVISOR), lambda a, b: np.mod(a, np.maximum(b, 0.1))),
    Case("GATHER", (X, ints(3, 0, 3)), lambda a, i: a[..., i], {"axis": 3}),
    Case("GATHER_ND", (X[0, 0], ints([1, 2], [3, 0])), lambda a, i: a[i[:, 0], i[:, 1]]),
    unary("GELU", lambda a: a / 2 * (1 + special.erf(a / math.sqrt(2)))),
    binary("GREATER", np.greater),
    binary("GREATER_EQUAL", np.greater_equal),
    unary("HARD_SWISH", lambda a: a * np.clip(a + 3, 0, 6) / 6, 3 * X),
    Case(
        "L2_NORMALIZATION",
        (X,),
        lambda a: a / np.sqrt(np.square(a).sum(-1, keepdims=True)),
        options="L2NormOptions",
    ),
    Case(
        "L2_POOL_2D",
        (X,),
        pooled(lambda a, axes: np.sqrt(np.square(a).mean(axes))),
        POOL,
        "Pool2DOptions",
    ),
    unary("LEAKY_RELU", lambda a: np.where(a > 0, a, 0.2 * a), alpha=0.2),
    binary("LESS", np.less),
    binary("LESS_EQUAL", np.less_equal),
    Case(
        "LOCAL_RESPONSE_NORMALIZATION",
        (X,),
        lambda a: a,
        {"radius": 0, "bias": 1.0, "alpha": 0.0, "beta": 1.0},
    ),
    unary("LOG", at_least(1e-3, np.log), POSITIVE),
    unary("LOGISTIC", special.expit),
    unary("LOG_SOFTMAX", lambda a: special.log_softmax(a, -1)),
    Case("MATRIX_DIAG", (X[0, 0],), lambda a: a[..., None] * np.eye(6)),
    Case(
        "MATRIX_SET_DIAG",
        (X[0, ..., :4], Y[0, 0, :, :4]),
        lambda a, d: a * (1 - _I) + d[..., None] * _I,
    ),
    binary("MAXIMUM", np.maximum, options="MaximumMinimumOptions"),
    unary("MAX_POOL_2D", pooled(np.max)),
    reduction("MEAN", np.mean),
    binary("MINIMUM", np.minimum, options="MaximumMinimumOptions"),
    Case(
        "MIRROR_PAD",
        (X, ints([0, 0], [1, 1], [1, 1], [0, 0])),
        lambda a, s: np.pad(a, s, "reflect"),
    ),
    binary("MUL", np.multiply),
    unary("NEG", np.negative),
    binary("NOT_EQUAL", np.not_equal),
    Case(
        "ONE_HOT",
        (ints(1, 0, 2), axis(3), np.array(1.0), np.array(0.0)),
        lambda i, *_: np.eye(3)[i],
        {"axis": -1},
        constants=(2, 3),
    ),
    Case("PACK", (X, Y), lambda a, b: np.stack([a, b], 1), {"axis": 1, "valuesCount": 2}),
    Case("PAD", (X, SIZES), padded),
    Case("PADV2", (X, SIZES, np.array(-0.5)), padded, options="PadV2Options", constants=(2,)),
    Case("POW", (POSITIVE, DIVISOR), lambda a, b: np.maximum(a, 0) ** b),
    Case(
        "PRELU",
        (X, _RNG.uniform(0.1, 0.4, (1, 1, 6))),
        lambda a, s: np.where(a > 0, a, s * a),
        constants=(1,),
    ),
    reduction("REDUCE_MAX", np.max),
    reduction("REDUCE_MIN", np.min),
    reduction("REDUCE_PROD", np.prod, POSITIVE[:, :2, :2]),
    unary("RELU", lambda a: np.maximum(a, 0)),
    unary("RELU6", lambda a: np.clip(a, 0, 6), 4 * X),
    unary("RELU_0_TO_1", lambda a: np.clip(a, 0, 1)),
    unary("RELU_N1_TO_1", lambda a: np.clip(a, -1, 1)),
    Case("RESHAPE", (X, ints(1, 16, 6)), np.reshape, {"newShape": [1, 16, 6]}),
    Case("RESIZE_BILINEAR", (X, ints(8, 8)), lambda a, _: bilinear(a), {"halfPixelCenters": True}),
    Case("RESIZE_NEAREST_NEIGHBOR", (X, ints(8, 8)), lambda a, _: a.repeat(2, 1).repeat(2, 2)),
    Case("REVERSE_SEQUENCE", (X[0], ints(4, 4, 4, 4)), lambda a, _: a[:, ::-1], {"seqDim": 1}),
    Case("REVERSE_V2", (X, ints(2)), lambda a, _: a[:, :, ::-1], options="ReverseV2Options"),
    unary("ROUND", np.round, 3 * X),
    unary("RSQRT", at_least(0.02, lambda a: 1 / np.sqrt(a)), POSITIVE),
    Case(
        "SCATTER_ND",
        (ints([1], [3]), X[0, 0, :2], ints(5, 6)),
        lambda i, u, _: np.insert(np.zeros((3, 6)), [1, 2], u, 0),
    ),
    Case("SELECT", (MASK, X, Y), np.where),
    Case("SELECT_V2", (MASK, X, Y), np.where, options="SelectV2Options"),
    unary("SIGN", np.sign),
    unary("SIN", np.sin),
    Case("SLICE", (X, ints(0, 1, 0, 2), ints(1, 2, 4, 3)), lambda a, *_: a[:, 1:3, :, 2:5]),
    unary("SOFTMAX", lambda a: special.softmax(a, -1), beta=1.0),
    Case(
        "SPACE_TO_BATCH_ND",
        (X, ints(2, 2), ints([0, 0], [0, 0])),
        lambda a, *_: to_batch(a),
        options="SpaceToBatchNDOptions",
    ),
    unary("SPACE_TO_DEPTH", to_depth, blockSize=2),
    Case("SPLIT", (axis(3), X), lambda _, a: np.split(a, 3, 3), {"numSplits": 3}),
    Case(
        "SPLIT_V",
        (X, ints(1, 5), axis(3)),
        lambda a, *_: np.split(a, [1], 3),
        {"numSplits": 2},
        "SplitVOptions",
    ),
    unary("SQRT", at_least(0, np.sqrt), POSITIVE),
    unary("SQUARE", np.square),
    binary("SQUARED_DIFFERENCE", lambda a, b: np.square(a - b)),
    unary("SQUEEZE", lambda a: a[:, :, 0], X[:, :, :1], squeezeDims=[2]),
    Case(
        "STRIDED_SLICE",
        (X, ints(0, 1, 0, 0), ints(1, 4, 4, 6), ints(1, 2, 1, 3)),
        lambda a, *_: a[:, 1:4:2, :, ::3],
    ),
    binary("SUB", np.subtract),
    reduction("SUM", np.sum),
    unary("TANH", np.tanh),
    Case("TILE", (X, ints(1, 2, 1, 3)), np.tile),
    Case("TOPK_V2", (X, axis(2)), largest, options="TopKV2Options"),
    Case("TRANSPOSE", (X, ints(0, 3, 1, 2)), np.transpose),
    Case("UNPACK", (X,), lambda a: list(np.moveaxis(a, 1, 0)), {"axis": 1, "num": 4}),
]


def grid_of(*arrays: np.ndarray) -> ActivationGrid:
    """The 8-bit grid of what these hold."""
    return ActivationGrid.from_range(min(a.min() for a in arrays), max(a.max() for a in arrays), 8)


def codes(values: np.ndarray, grid: ActivationGrid | None) -> np.ndarray:
    """Numbers as int8 codes; what has no grid stays as it is."""
    if grid is None:
        return values
    return np.clip(np.rint(values / grid.scale) + grid.zero_point, -128, 127).astype(np.int8)


def numbers(values: np.ndarray, grid: ActivationGrid | None) -> np.ndarray:
    """Codes as float64 numbers."""
    return values if grid is None else (values.astype(np.float64) - grid.zero_point) * grid.scale


Grids = list["ActivationGrid | None"]


def grids_of(case: Case) -> tuple[Grids, Grids]:
    """The grids of inputs and outputs, by the operator's rule; None of what is no number."""
    inputs, outputs = case.arrays(), case.outputs(case.arrays())
    floats = [a for a in (*inputs, *outputs) if a.dtype.kind == "f"]
    fixed = fixed_output_grid(case.kind)
    shared = {"output": grid_of(*floats)} if case.rule == "output" else {}
    if case.rule == "input":
        given = next(a for a in inputs if a.dtype.kind == "f")
        shared = {"input": grid_of(given)}
    if fixed is not None:
        shared = {"fixed": ActivationGrid(8, *fixed)}

    def grid(array: np.ndarray, *rules: str) -> ActivationGrid | None:
        if array.dtype.kind != "f":
            return None
        return next((shared[rule] for rule in rules if rule in shared), grid_of(array))

    made = [grid(a, "output", "input", "fixed") for a in outputs]
    return [grid(a, "output", "input") for a in inputs], made


def file_of(case: Case, integer: bool) -> bytes:
    """A `.tflite` file of the operator alone, in int8 or in float32; tensors are `i0`, `o0`, ..."""
    model, graph, op = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, case.kind)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = max(int8_version(case.kind) if integer else 1, 2 * (case.kind == "BROADCAST_TO"))
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers, graph.tensors, graph.operators = [schema.BufferT()], [], [op]

    def tensor(name: str, array: np.ndarray, grid: ActivationGrid | None, constant: bool) -> int:
        made = schema.TensorT()
        stored = codes(array, grid) if integer else array
        if stored.dtype == np.float64:
            stored = stored.astype(np.float32)
        made.name, made.shape, made.type = name.encode(), list(array.shape), TYPES[stored.dtype]
        made.buffer = 0
        if integer and grid is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = [grid.scale]
            made.quantization.zeroPoint = [grid.zero_point]
        if constant:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(stored).tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    given, made = grids_of(case)
    arrays = case.arrays()
    op.inputs = [
        tensor(f"i{n}", array, grid, array.dtype == np.int32 or n in case.constants)
        for n, (array, grid) in enumerate(zip(arrays, given, strict=True))
    ]
    results = zip(case.outputs(arrays), made, strict=True)
    op.outputs = [tensor(f"o{n}", array, grid, False) for n, (array, grid) in enumerate(results)]
    graph.inputs = [i for i in op.inputs if graph.tensors[i].buffer == 0]
    graph.outputs = list(op.outputs)
    pools = case.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D")
    name = "Pool2DOptions" if pools else case.options
    name = name or "".join(word.capitalize() for word in case.kind.split("_")) + "Options"
    if hasattr(schema.BuiltinOptions, name):
        op.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        op.builtinOptions = getattr(schema, f"{name}T")()
        for key, value in (POOL if pools else case.settings).items():
            setattr(op.builtinOptions, key, value)
    return fb.write(model)


def feeds(case: Case) -> list[np.ndarray]:
    """The codes, or other numbers, that an int8 file of the operator is given."""
    pairs = zip(case.arrays(), grids_of(case)[0], strict=True)
    return [
        codes(array, grid)
        for n, (array, grid) in enumerate(pairs)
        if array.dtype != np.int32 and n not in case.constants
    ]


def expected(case: Case) -> list[np.ndarray]:
    """What the operator makes of the numbers that the codes stand for, as codes."""
    given, made = grids_of(case)
    pairs = zip(case.arrays(), given, strict=True)
    results = case.outputs([numbers(codes(array, grid), grid) for array, grid in pairs])
    return [codes(result, grid) for result, grid in zip(results, made, strict=True)]


def differs_by(case: Case, found: Sequence[np.ndarray]) -> int:
    """The largest difference of codes (or indices, or truths) from those expected."""
    pairs = zip(expected(case), found, strict=True)
    return max(int(np.abs(a.astype(int) - b.astype(int)).max(initial=0)) for a, b in pairs)


RESOLVERS = {
    "LiteRT": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
    "XNNPACK": "AUTO",
}


def run_litert(
    content: bytes, inputs: Sequence[np.ndarray], kernels: str
) -> tuple[list[Any], bool]:
    """The outputs, and whether a delegate computed them."""
    resolver = getattr(litert.OpResolverType, RESOLVERS[kernels])
    with quiet():
        interpreter = litert.Interpreter(
            model_content=content, experimental_op_resolver_type=resolver
        )
        interpreter.allocate_tensors()
        runner.run(interpreter, inputs)
    delegated = any(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details())
    return runner.outputs(interpreter), delegated


def run_micro(content: bytes, inputs: Sequence[np.ndarray]) -> list[Any]:
    """The outputs in TFLite Micro."""
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content)
    for index, array in enumerate(inputs):
        interpreter.set_input(array, index)
    interpreter.invoke()
    return [interpreter.get_output(n) for n in range(len(fb.read(content).subgraphs[0].outputs))]


def verdict(case: Case, run: Callable[[], list[Any]]) -> str:
    """`yes`, `wrong`, or `no`: whether a runtime computes the operator, to within 1 LSB."""
    try:
        return "yes" if differs_by(case, run()) <= 1 else "wrong"
    except (RuntimeError, ValueError):
        return "no"


def in_our_file(kind: str) -> str:
    """What an int8 file of ours holds."""
    return "`MUL`" if kind in PRODUCTS else "int8" if kind in INTEGER_FORMS else "float32"


COLUMNS = ("operator", "LiteRT", "its reference kernels", "XNNPACK", "TFLite Micro", "our file")
_HEADER = f"| {' | '.join(COLUMNS)} |\n"


def row(case: Case, micro: str | None = None) -> tuple[str, ...]:
    """The columns of an operator; `micro`: what is known of TFLite Micro, which is not run."""
    content, inputs = file_of(case, integer=True), feeds(case)
    runs = [
        lambda k=kernels: run_litert(content, inputs, k)[0] for kernels in ("LiteRT", "reference")
    ]
    plain, reference = (verdict(case, run) for run in runs)
    fast = verdict(case, lambda: run_litert(content, inputs, "XNNPACK")[0])
    delegated = fast != "no" and run_litert(content, inputs, "XNNPACK")[1]
    if micro is None:
        micro = verdict(case, lambda: run_micro(content, inputs))
    return case.kind, plain, reference, fast if delegated else "no", micro, in_our_file(case.kind)


def former_micro() -> dict[str, str]:
    """The column of TFLite Micro, by operator, that the page has."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    cells = [re.split(r" *\| *", line.strip("| \n")) for line in text.splitlines()]
    return {line[0].strip("`"): line[4] for line in cells if len(line) == len(COLUMNS)}


def table(micro: bool) -> str:
    """The table as Markdown."""
    known = {} if micro else former_micro()
    rows = [row(case, None if micro else known.get(case.kind, "")) for case in CASES]
    lines = [f"| `{first}` | {' | '.join(rest)} |\n" for first, *rest in rows]
    return _HEADER + f"|{' --- |' * len(COLUMNS)}\n" + "".join(lines)


def page(micro: bool) -> str:
    """`operators.md` with the table of today."""
    text = PAGE.read_text(encoding="utf-8")
    (former,) = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return text.replace(former, table(micro))


if __name__ == "__main__":
    installed = importlib.util.find_spec("tflite_micro") is not None
    PAGE.write_text(page(installed), encoding="utf-8")
