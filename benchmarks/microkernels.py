"""How close the C++ microkernels are to the speed of memory, one thread.

    python -m benchmarks.microkernels [--quick] [--output_dir FOLDER]

For each operation: bytes read and written per second, over those of memcpy for the same traffic.
Shapes: 4096 x 4096, larger than the caches; 256 x 1024, which they hold; and all kernels of the
zoo's networks (see `benchmarks.common`), one after the other, as when a file is loaded. Beside the
library's instruction sets: NumPy, TensorFlow, and TFLite's own operators. Everything is measured in
turns, in an order that changes; ratios are medians of the ratios within rounds. Writes
microkernels.json, microkernels.md and microkernels.png. Some 5 minutes; half a minute more for the
C++ compiler, if the sources have changed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import tensorflow as tf
from absl import app, flags
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import common
from ocs_tf.numerics import packing

sys.path.insert(0, str(common.ROOT / "tests" / "runtime"))
import microkernel_library

LARGE, CACHED = (4096, 4096), (256, 1024)
NETWORKS = ("mobilenet_v1_075_imagenet", "resnet20_cifar10")
BITS = range(2, 9)
COPIES = 0.05  # of the channels, where they are expanded
# Rounds of the microkernels, and of what they are compared with, which is slow.
ROUNDS, OTHER_ROUNDS = 101, 7
QUICK_ROUNDS = 3
SAMPLE = 2e-3  # seconds that a measurement takes at least
COMMAND = "python -m benchmarks.microkernels"
FAST = ("dequantize, 4 bits", "dequantize, 5 bits", "dequantize, 8 bits")
Action = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation on arrays.

    Attributes:
        operation: for example `"dequantize, 4 bits"`.
        place: the shape, or the network whose kernels are taken.
        traffic: bytes read and written, of each call.
        written: bytes written, of all calls.
        microkernels: by instruction set.
        others: the same by other libraries.
    """

    operation: str
    place: str
    traffic: tuple[int, ...]
    written: int
    microkernels: dict[str, Action]
    others: dict[str, Action]


@dataclasses.dataclass(frozen=True)
class Row:
    """A case, measured.

    Attributes:
        mebibytes: read and written.
        milliseconds: median of the fastest instruction set.
        over_memcpy: bytes per second over memcpy's, by implementation; "memcpy" is GB/s, "memset"
            what writing the output alone would come to.
    """

    operation: str
    place: str
    mebibytes: float
    milliseconds: float
    over_memcpy: dict[str, float]


class Library:
    """The microkernels; its functions with their arguments bound."""

    def __init__(self) -> None:
        self._library = microkernel_library.load()
        self.instruction_sets = microkernel_library.instruction_sets()

    def bind(self, name: str, *arguments: Any) -> dict[str, Action]:
        """By instruction set; integers are sizes unless they are `ctypes.c_int32`."""
        given = [_argument(argument) for argument in arguments]
        function = getattr(self._library, name)

        def bound(instruction_set: bytes) -> Action:
            # `arguments` keeps the arrays alive.
            return lambda keep=arguments: function(instruction_set, *given)

        return {name: bound(name.encode()) for name in self.instruction_sets}


def _argument(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    return ctypes.c_size_t(argument) if isinstance(argument, int) else argument


def empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array as TFLite and the delegate align them: to 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array: NDArray[Any] = np.ndarray(shape, dtype, memory, start)
    return array


def copying(traffic: Sequence[int]) -> Action:
    """memcpy, which reads a half of the traffic and writes the other."""
    counts = [size // 2 for size in traffic]
    source, target = (empty((max(counts),), np.uint8) for _ in range(2))
    given = [(target.ctypes.data, source.ctypes.data, count) for count in counts]

    def copy(keep: Any = (source, target)) -> None:
        for arguments in given:
            ctypes.memmove(*arguments)

    return copy


def writing(size: int) -> Action:
    """memset: what writing the output takes, were there nothing to read and to compute."""
    target = empty((size,), np.uint8)
    return lambda: ctypes.memset(target.ctypes.data, 1, size)


def dequantizing(
    library: Library, shapes: Sequence[tuple[int, int]], place: str, bits: int, compare: bool
) -> Case:
    """Packed codes [rows, columns], a scale for each row, to float32."""
    rng = np.random.default_rng(0)
    limit = 1 << (bits - 1)
    written, traffic, calls, others = 0, [], [], {}
    for rows, columns in shapes:
        codes = rng.integers(-limit, limit, (rows, columns), np.int8)
        packed = packing.pack_codes(codes, bits)
        scale, out = _scales(rng, rows), empty((rows, columns), np.float32)
        traffic.append(packed.nbytes + scale.nbytes + out.nbytes)
        written += out.nbytes
        arguments = (packed, ctypes.c_int32(bits), rows, columns, columns, scale)
        calls.append(library.bind("ocs_dequantize", *arguments, ctypes.c_int32(1), out))
        if compare:
            others = _other_dequantizers(codes, packed, bits, scale, out)
    return Case(
        f"dequantize, {bits} bits",
        place,
        tuple(traffic),
        written,
        {name: _in_sequence([call[name] for call in calls]) for name in library.instruction_sets},
        others,
    )


def rounding(library: Library, shape: tuple[int, int], place: str, name: str) -> Case:
    """float32 [rows, channels] to int8 with a scale for each channel, or to float32 with one."""
    rng = np.random.default_rng(0)
    rows, channels = shape
    x = empty(shape, np.float32)
    x[:] = rng.normal(0, 30, shape)
    count = round(COPIES * channels) if "expand" in name else 0
    copies = rng.choice(channels, count, replace=False).astype(np.int32)
    fake = name.startswith("fake")
    scale = _scales(rng, 1 if fake else channels + count)
    inverse = (1 / scale).astype(np.float32)
    arguments: list[Any] = [x, rows, channels, inverse]
    out = empty((rows, channels + count), np.float32 if fake else np.int8)
    if fake:
        arguments += [scale, *map(ctypes.c_int32, (0, -7, 7))]
    else:
        arguments += map(ctypes.c_int32, (1, -128, 127, 0))
    function = "ocs_fake_quantize" if fake else "ocs_quantize"
    return Case(
        name,
        place,
        (x.nbytes + inverse.nbytes + copies.nbytes + out.nbytes,),
        out.nbytes,
        library.bind(function, *arguments, copies, count, out),
        _other_rounders(name, x, copies, scale, inverse, out),
    )


def _scales(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return rng.uniform(0.5, 2, count).astype(np.float32)


def _in_sequence(actions: Sequence[Action]) -> Action:
    if len(actions) == 1:
        return actions[0]

    def run() -> None:
        for action in actions:
            action()

    return run


def _other_dequantizers(
    codes: NDArray[np.int8],
    packed: NDArray[np.uint8],
    bits: int,
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> dict[str, Action]:
    by = scale[:, None]

    def unpacked() -> None:
        np.multiply(packing.unpack_codes(packed, bits, codes.shape[1]), by, out=out)

    if bits < 8:
        return {"numpy": unpacked}
    tensors = tf.constant(codes), tf.constant(by)
    bitcast = tf.bitcast(tensors[0], tf.qint8)
    bound = 128 * scale
    return {
        "numpy": lambda: np.multiply(codes, by, out=out),
        "tf: cast, multiply": lambda: tf.cast(tensors[0], tf.float32) * tensors[1],
        "tf.quantization.dequantize": lambda: tf.quantization.dequantize(
            bitcast, -bound, bound, mode="SCALED", axis=0
        ),
        "TFLite DEQUANTIZE": builtin(codes, np.float32, scale, 0),
    }


def _other_rounders(
    name: str,
    x: NDArray[np.float32],
    copies: NDArray[np.int32],
    scale: NDArray[np.float32],
    inverse: NDArray[np.float32],
    out: NDArray[Any],
) -> dict[str, Action]:
    low, high = (-7, 7) if name.startswith("fake") else (-128, 127)
    tensor, factor = tf.constant(x), tf.constant(inverse)
    channels = np.concatenate([np.arange(x.shape[1]), copies])

    def by_numpy() -> None:
        expanded = x[:, channels] if copies.size else x
        codes = np.clip(np.rint(expanded * inverse), low, high)
        out[:] = codes * scale if name.startswith("fake") else codes

    def by_tensorflow() -> Any:
        expanded = tf.gather(tensor, channels, axis=1) if copies.size else tensor
        codes = tf.clip_by_value(tf.round(expanded * factor), low, high)
        return codes * scale if name.startswith("fake") else tf.cast(codes, tf.int8)

    others: dict[str, Action] = {"numpy": by_numpy, "tf: round, clip, cast": by_tensorflow}
    if name.startswith("fake"):
        bound = 7 * float(scale[0])

        def fake() -> Any:
            expanded = tf.gather(tensor, channels, axis=1)
            return tf.quantization.fake_quant_with_min_max_args(
                expanded, -bound, bound, num_bits=4, narrow_range=True
            )

        others["tf.quantization.fake_quant"] = fake
    elif not copies.size:
        bound = 128 * scale
        others["tf.quantization.quantize"] = lambda: tf.quantization.quantize(
            tensor, -bound, bound, tf.qint8, mode="SCALED", axis=1
        )
        others["TFLite QUANTIZE"] = builtin(x, np.int8, scale, 1)
    return others


def builtin(x: NDArray[Any], dtype: Any, scale: NDArray[np.float32], axis: int) -> Action:
    """TFLite's DEQUANTIZE of int8, or QUANTIZE to int8, with a scale for each slice of `axis`."""
    types = {
        np.dtype(np.float32): schema.TensorType.FLOAT32,
        np.dtype(np.int8): schema.TensorType.INT8,
    }
    graph = schema.SubGraphT()
    graph.tensors = []
    for kind in (x.dtype, np.dtype(dtype)):
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(x.shape), types[kind], 0
        tensor.name = str(kind).encode()
        if kind == np.int8:
            grid = schema.QuantizationParametersT()
            grid.scale, grid.quantizedDimension = scale, axis
            grid.zeroPoint = np.zeros(scale.size, np.int64)
            tensor.quantization = grid
        graph.tensors.append(tensor)
    code = schema.OperatorCodeT()
    dequantizes = x.dtype == np.int8
    operators = schema.BuiltinOperator
    code.builtinCode = operators.DEQUANTIZE if dequantizes else operators.QUANTIZE
    code.deprecatedBuiltinCode, code.version = code.builtinCode, 2
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0], [1]
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [1]
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    model.buffers = [schema.BufferT()]
    content = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    interpreter = litert.Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, x)
    action: Action = interpreter.invoke
    return action


def measure(case: Case, rounds: int, other_rounds: int) -> Row:
    """A case against memcpy."""
    memcpy = copying(case.traffic)
    total = sum(case.traffic)
    actions = {"memcpy": memcpy, "memset": writing(case.written), **case.microkernels}
    seconds = common.in_turns(actions, rounds, SAMPLE)
    ratios = {"memcpy": total / float(np.median(seconds["memcpy"])) / 1e9}
    ratios["memset"] = _ratio(seconds, "memset")
    best = list(case.microkernels)[-1]
    ratios |= {name: _ratio(seconds, name) for name in reversed(case.microkernels)}
    if case.others:
        theirs = common.in_turns({"memcpy": memcpy, **case.others}, other_rounds, SAMPLE)
        ratios |= {name: _ratio(theirs, name) for name in case.others}
    milliseconds = 1e3 * float(np.median(seconds[best]))
    return Row(case.operation, case.place, total / 2**20, milliseconds, ratios)


def _ratio(seconds: dict[str, NDArray[np.float64]], name: str) -> float:
    return float(np.median(seconds["memcpy"] / seconds[name]))


def layer_shapes(network: str) -> list[tuple[int, int]]:
    """The kernels of a network of the zoo: rows and columns, as a packed file has them."""
    shapes = []
    for layer in common.load_zoo().load(network, limit=1).model.layers:
        if (kernel := getattr(layer, "kernel", None)) is None:
            continue
        *_, channels, filters = kernel.shape
        size = int(np.prod(kernel.shape))
        rows = size // (channels * filters) if "Depthwise" in type(layer).__name__ else filters
        shapes.append((rows, size // rows))
    return shapes


def cases(quick: bool) -> list[Callable[[], Case]]:
    """Made one at a time: the large ones take much memory."""
    library = Library()
    made: list[Callable[[], Case]] = []
    for shape in [CACHED] if quick else [LARGE, CACHED]:
        place = _place(shape)
        made += [
            lambda b=bits, s=shape, p=place: dequantizing(library, [s], p, b, True) for bits in BITS
        ]
        made += [
            lambda n=name, s=shape, p=place: rounding(library, s, p, n)
            for name in ("quantize", "quantize, expand", "fake-quantize, expand")
        ]
    for network in NETWORKS[-1:] if quick else NETWORKS:
        kernels = layer_shapes(network)
        made += [
            lambda b=bits, k=kernels, n=network: dequantizing(library, k, n, b, False)
            for bits in BITS
        ]
    return made


def aim(row: Row) -> float | None:
    """The least ratio that is aimed at."""
    if row.place == _place(CACHED):
        return 0.6
    if row.place == _place(LARGE):
        return 0.95 if row.operation in FAST else 0.85
    return None


def _place(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def markdown(rows: list[Row]) -> str:
    """The tables, with the command that makes them."""
    parts = [
        "# Microkernels and the speed of memory\n",
        f"`{COMMAND}`, one thread. Ratios: bytes read and written per second, over those of memcpy"
        " for the same traffic in the same run; 1.00 is as fast as copying. One scale for each"
        " output channel (dequantize), for each channel (quantize), for all (fake-quantize)."
        " *memset*: what writing the output alone would come to, the most that is possible where it"
        f" is below 1. *Expand*: copies of {100 * COPIES:.0f} % of the channels are appended in the"
        " same pass.\n",
    ]
    for place in dict.fromkeys(row.place for row in rows):
        own = [row for row in rows if row.place == place]
        sets = [name for name in own[0].over_memcpy if name in ("avx512", "avx2", "neon", "plain")]
        aims = aim(own[0]) is not None
        headers = ["operation", "MiB", "ms", "memcpy, GB/s", *(["aim"] * aims), "memset", *sets]
        table = []
        for row in own:
            line = [row.operation, f"{row.mebibytes:.2f}", f"{row.milliseconds:.3f}"]
            line += [f"{row.over_memcpy['memcpy']:.1f}"]
            line += [str(aim(row))] * aims + [f"{row.over_memcpy['memset']:.2f}"]
            table.append([*line, *(f"{row.over_memcpy[name]:.2f}" for name in sets)])
        parts += [f"## {place}\n", common.markdown_table(headers, table)]
        known = {"memcpy", "memset", *sets}
        theirs = [
            [row.operation, name, f"{ratio:.3f}", f"{row.over_memcpy[sets[0]] / ratio:.1f} x"]
            for row in own
            for name, ratio in row.over_memcpy.items()
            if name not in known
        ]
        if theirs:
            headers = ["operation", "by", "over memcpy", f"{sets[0]} is faster by"]
            parts.append(common.markdown_table(headers, theirs))
    return "\n".join([*parts, "![Bytes per second over memcpy's](microkernels.png)\n"])


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """A panel for each shape: each operation, the microkernels and the fastest other."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    places = list(dict.fromkeys(row.place for row in rows))
    figure, axes = plt.subplots(1, len(places), figsize=(4.6 * len(places), 4.4), squeeze=False)
    for axis, place in zip(axes[0], places, strict=True):
        own = [row for row in rows if row.place == place]
        sets = [name for name in ("avx512", "avx2", "neon", "plain") if name in own[0].over_memcpy]
        heights = np.arange(len(own))
        others = [
            max(
                (r for n, r in row.over_memcpy.items() if n not in {"memcpy", "memset", *sets}),
                default=0,
            )
            for row in own
        ]
        bars = {name: [row.over_memcpy[name] for row in own] for name in sets}
        if any(others):
            bars["fastest of the others"] = others
        width = 0.8 / len(bars)
        for i, (name, values) in enumerate(bars.items()):
            axis.barh(heights + (i + 0.5) * width - 0.4, values, width, label=name)
        axis.axvline(1, color="gray", linewidth=0.8)
        axis.set_yticks(heights, [row.operation for row in own])
        axis.invert_yaxis()
        axis.set(title=place, xlabel="bytes per second over memcpy's")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="lower center")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def benchmark(folder: str | pathlib.Path, quick: bool = False) -> list[Row]:
    """Measure everything, and write the results to `folder`."""
    rounds = (QUICK_ROUNDS, QUICK_ROUNDS) if quick else (ROUNDS, OTHER_ROUNDS)
    rows = [measure(make(), *rounds) for make in tqdm(cases(quick))]
    folder = pathlib.Path(folder)
    payload = {"machine": common.machine(), "rows": [dataclasses.asdict(row) for row in rows]}
    common.save_json(folder / "microkernels.json", payload)
    (folder / "microkernels.md").write_text(markdown(rows), encoding="utf-8")
    plot(rows, folder / "microkernels.png")
    return rows


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "The small shape and ResNet-20, few rounds.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")

    def run(_: Any) -> None:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        print(markdown(benchmark(folder.value, quick.value)))

    app.run(run)


if __name__ == "__main__":
    main()
