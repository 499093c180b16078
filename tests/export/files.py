"""Small float files with integer kernels and grids, what runtimes make of them, and a simulation.

Files are judged by the interpreters' tensor details and outputs, not by the package's own reader.
The reference is a float run of the same graph with every activation rounded to its grid.
"""

from __future__ import annotations

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from keras import layers

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import grid_rules
from ocs_tf.export.integer_writer import write_int8
from ocs_tf.export.kernel_matching import ExportKernel
from ocs_tf.export.tensor_matching import measure_ranges
from ocs_tf.process import quiet

KINDS = {layers.DepthwiseConv2D: "depthwise", layers.Conv2D: "conv", layers.Dense: "dense"}
INTERPRETERS = {"litert": litert.Interpreter, "tf.lite": tf.lite.Interpreter}
# The same without XNNPACK, which has kernels of its own.
PLAIN = {
    f"{name}-plain": functools.partial(
        INTERPRETERS[name],
        experimental_op_resolver_type=enum.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    for name, enum in (("litert", litert), ("tf.lite", tf.lite.experimental))
}
RUNTIMES = INTERPRETERS | PLAIN


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid as the writer wants it, and the rounding it stands for."""

    scale: float
    zero_point: int
    bits: int = 8

    @classmethod
    def of(cls, low: float, high: float) -> Grid:
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / 255))
        return cls(scale, round(-128 - low / scale))

    def round(self, values: np.ndarray) -> np.ndarray:
        return self._value(np.rint(values / self.scale) + self.zero_point)

    def round_pooled(self, values: np.ndarray) -> np.ndarray:
        """TFLite averages codes and rounds ties away from code 0; ties are frequent there."""
        codes = np.round(values.astype(np.float64) / self.scale, 4) + self.zero_point
        return self._value(np.sign(codes) * np.floor(np.abs(codes) + 0.5))

    def _value(self, codes: np.ndarray) -> np.ndarray:
        return ((np.clip(codes, -128, 127) - self.zero_point) * self.scale).astype(np.float32)


def conv(*args, **kwargs):
    return layers.Conv2D(*args, padding=kwargs.pop("padding", "same"), **kwargs)


def batch_norm(x):
    layer = layers.BatchNormalization()
    y = layer(x)
    rng, n = np.random.default_rng(3), x.shape[-1]
    layer.set_weights(
        [rng.uniform(0.5, 1.5, n), rng.normal(size=n), rng.normal(size=n), rng.uniform(0.5, 2, n)]
    )
    return y


def shared(x):
    layer = conv(4, 3, name="twice")
    return layer(layer(x))


GRAPHS = {
    "conv": lambda x: conv(6, 3)(x),
    "conv-stride-valid-nobias": lambda x: conv(6, 3, strides=2, padding="valid", use_bias=False)(x),
    "conv-dilation": lambda x: conv(6, 3, dilation_rate=2)(x),
    "conv-groups": lambda x: conv(6, 3, groups=2)(x),
    "conv-groups-are-channels": lambda x: conv(8, 3, groups=4)(x),
    "conv-relu": lambda x: conv(6, 3, activation="relu")(x),
    "conv-relu6": lambda x: layers.ReLU(6.0)(conv(6, 3)(x)),
    "depthwise-multiplier-2": lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x),
    "depthwise-stride": lambda x: layers.DepthwiseConv2D(3, strides=2, padding="same")(x),
    "conv-of-one-channel": lambda x: conv(3, 3)(conv(1, 1)(x)),
    "dense": lambda x: layers.Dense(5)(layers.Flatten()(x)),
    "dense-nobias": lambda x: layers.Dense(5, use_bias=False)(layers.Flatten()(x)),
    "dense-3d": lambda x: layers.Dense(5)(layers.Reshape((64, 4))(x)),
    "residual-add-relu": lambda x: layers.ReLU()(layers.Add()([x, conv(4, 3)(x)])),
    "concat": lambda x: layers.Concatenate()([conv(3, 1)(x), conv(5, 3)(x)]),
    "concat-of-slices": lambda x: conv(3, 3)(
        layers.Concatenate()([y := conv(4, 3)(x), y[..., 1:2], y[..., 2:4]])
    ),
    "average-pool": lambda x: conv(3, 1)(layers.AveragePooling2D(2)(conv(4, 3)(x))),
    "max-pool-relu": lambda x: layers.ReLU()(layers.MaxPooling2D(2)(conv(4, 3)(x))),
    "global-pool": lambda x: layers.Dense(3)(layers.GlobalAveragePooling2D()(conv(4, 3)(x))),
    "zero-padding": lambda x: conv(5, 3, strides=2, padding="valid")(layers.ZeroPadding2D(1)(x)),
    "relu-alone": lambda x: conv(3, 1)(layers.ReLU()(x)),
    "softmax": lambda x: layers.Softmax()(layers.Dense(5)(layers.Flatten()(x))),
    "softmax-inside": lambda x: layers.Flatten()(layers.Softmax()(conv(5, 3)(x))),
    "sigmoid": lambda x: layers.Dense(5, activation="sigmoid")(layers.Flatten()(x)),
    "tanh": lambda x: layers.Dense(5, activation="tanh")(layers.Flatten()(x)),
    "shared-layer": shared,
    "two-inputs": lambda x, y: layers.Add()([conv(3, 3)(x), conv(3, 1)(y)]),
    "two-outputs": lambda x: [conv(3, 3)(x), layers.Flatten()(conv(5, 1)(x))],
    "batch-norm-after-relu": lambda x: conv(3, 3)(batch_norm(conv(4, 1, activation="relu")(x))),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A float graph on a grid, what to write, and data for it."""

    float_model: bytes
    kernels: tuple[ExportKernel, ...]
    grids: dict[str, Grid]
    ranges: dict[str, tuple[float, float]]
    data: dict[str, np.ndarray]

    def write(self, float_io: bool = False, **changes) -> bytes:
        case = dataclasses.replace(self, **changes)
        return write_int8(
            case.float_model, case.kernels, case.grids, case.ranges, float_io=float_io
        )


def random_kernel(layer, bits: int, per_channel: bool, rng) -> ExportKernel:
    """Random codes and steps, set as the layer's weights."""
    kind = next(kind for cls, kind in KINDS.items() if isinstance(layer, cls))
    kernel, *rest = layer.get_weights()
    top = 2 ** (bits - 1) - 1
    codes = rng.integers(-top, top, kernel.shape, np.int8, endpoint=True)
    channels = kernel.shape[2:] if kind == "depthwise" else kernel.shape[-1:]
    fan_in = kernel.size / np.prod(channels)
    scale = rng.uniform(0.5, 1.5, channels if per_channel else ()) / top / np.sqrt(fan_in)
    scale = np.asarray(scale, np.float32)
    layer.set_weights([codes * scale, *(rng.normal(0, 0.2, w.shape) for w in rest)])
    return ExportKernel(layer.name, codes, scale.reshape(-1) if per_channel else scale, kind)


@functools.cache
def build(graph: str, bits: int = 8, per_channel: bool = True) -> Case:
    """The case of one graph, with the grid that `grid_rule` demands for every tensor."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(bits)
    count = GRAPHS[graph].__code__.co_argcount
    inputs = [keras.Input((8, 8, 4), batch_size=1, name=name) for name in "ba"[:count]]
    model = keras.Model(inputs, GRAPHS[graph](*inputs))
    kernels = tuple(
        random_kernel(layer, bits, per_channel, rng)
        for layer in model.layers
        if isinstance(layer, tuple(KINDS))
    )
    data = {t.name: rng.normal(size=(4, 8, 8, 4)).astype(np.float32) for t in inputs}
    return on_grids(to_tflite(model), kernels, data)


def to_tflite(model) -> bytes:
    with quiet():
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def on_grids(float_model: bytes, kernels, data) -> Case:
    """Grids for all activations: fixed, or shared along the rules, or of their own range."""
    ranges = measure_ranges(float_model, [data])
    model = fb.read(float_model)
    grids = {name: Grid.of(*span) for name, span in ranges.items()}
    for kind, inputs, outputs in activations_of_ops(model):
        rule = grid_rules.grid_rule(kind)
        if rule == "fixed":
            grids.update((name, Grid(*grid_rules.fixed_output_grid(kind))) for name in outputs)
        elif inputs and rule == "input":
            grids.update((name, grids[inputs[0]]) for name in outputs)
    for kind, inputs, outputs in reversed(activations_of_ops(model)):
        if inputs and grid_rules.grid_rule(kind) == "output":  # not the integer ones of a shape
            common = Grid.of(
                min(ranges[name][0] for name in inputs), max(ranges[name][1] for name in inputs)
            )
            grids.update((name, common) for name in (*inputs, *outputs))
    return Case(float_model, kernels, grids, ranges, data)


def activations_of_ops(model) -> list[tuple[str, list[str], list[str]]]:
    tensors = model.subgraphs[0].tensors
    known = fb.float_activations(model)

    def names(indices):
        return [fb.name(tensors[i]) for i in indices if i >= 0 and fb.name(tensors[i]) in known]

    return [
        (fb.op_name(model, op), names(op.inputs), names(op.outputs))
        for op in model.subgraphs[0].operators
    ]


def in_int4(case: Case) -> Case:
    """The case with kernels, of 4 bits at most, that are written as INT4 tensors."""
    kernels = tuple(dataclasses.replace(kernel, bits=4) for kernel in case.kernels)
    return dataclasses.replace(case, kernels=kernels)


def one_by_one(layer: str, codes: list, scale: float) -> ExportKernel:
    return ExportKernel(
        layer, np.int8(codes).reshape(1, 1, 2, 2), np.float32(scale).reshape(()), "conv"
    )


def twins(first: ExportKernel, second: ExportKernel, apart: bool = True) -> Case:
    """Two 1x1 convolutions `one` and `two`, in a row (`apart`) or of the same input."""
    x = keras.Input((4, 4, 2), batch_size=1)
    one, two = conv(2, 1, name="one"), conv(2, 1, name="two")
    y = two(layers.ReLU()(one(x))) if apart else layers.Concatenate()([one(x), two(x)])
    model = keras.Model(x, y)
    for layer, kernel in ((one, first), (two, second)):
        layer.set_weights([kernel.codes * kernel.scale, np.zeros(2)])
    data = {model.inputs[0].name: np.random.default_rng(0).normal(size=(2, 4, 4, 2))}
    return on_grids(to_tflite(model), (first, second), data)


def regrid(case: Case, part: str) -> tuple[str, Case]:
    """The case with another grid on the tensor whose name contains `part`."""
    (name,) = [name for name in case.grids if part in name]
    return name, dataclasses.replace(case, grids={**case.grids, name: Grid(0.25, 7)})


def reference_interpreter(file: bytes):
    interpreter = litert.Interpreter(
        model_content=file,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return interpreter


def run(interpreter_class, file: bytes, data) -> dict[str, np.ndarray]:
    """Float outputs by signature name; int8 inputs and outputs are converted here."""
    interpreter = interpreter_class(model_content=file)
    runner = interpreter.get_signature_runner()
    results: dict[str, list[np.ndarray]] = {}
    for index in range(len(next(iter(data.values())))):
        fed = {}
        for name, detail in runner.get_input_details().items():
            fed[name] = to_codes(data[name][index : index + 1], detail)
        for name, value in runner(**fed).items():
            detail = runner.get_output_details()[name]
            results.setdefault(name, []).append(from_codes(value, detail))
    return {name: np.concatenate(values) for name, values in results.items()}


def to_codes(value, detail):
    if detail["dtype"] == np.float32:
        return value
    scale, zero_point = detail["quantization"]
    return np.clip(np.rint(value / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def from_codes(value, detail):
    if detail["dtype"] == np.float32:
        return value
    scale, zero_point = detail["quantization"]
    return (value.astype(np.int32) - zero_point) * np.float32(scale)


def simulate(case: Case) -> dict[str, np.ndarray]:
    """The float graph, one op at a time, every activation rounded to its grid.

    Each op runs in float in an interpreter of its own, fed with rounded inputs: nothing of the int8
    kernels, nothing of the writer.
    """
    model = fb.read(case.float_model)
    graph = model.subgraphs[0]
    signature = model.signatureDefs[0]
    outputs: dict[str, list[np.ndarray]] = {}
    for index in range(len(next(iter(case.data.values())))):
        values = {}
        for entry in signature.inputs:
            name = fb.name(graph.tensors[entry.tensorIndex])
            given = case.data[entry.name.decode()][index : index + 1]
            values[entry.tensorIndex] = case.grids[name].round(given)
        for position in range(len(graph.operators)):
            op, interpreter = single_op(case.float_model, position)
            for detail in interpreter.get_input_details():
                interpreter.set_tensor(detail["index"], values[detail["index"]])
            interpreter.invoke()
            pools = fb.op_name(model, graph.operators[position]) == "AVERAGE_POOL_2D"
            for out in op.outputs:
                grid = case.grids[fb.name(graph.tensors[out])]
                rounded = grid.round_pooled if pools else grid.round
                values[out] = rounded(interpreter.get_tensor(out))
        for entry in signature.outputs:
            outputs.setdefault(entry.name.decode(), []).append(values[entry.tensorIndex])
    return {name: np.concatenate(chunks) for name, chunks in outputs.items()}


@functools.lru_cache(maxsize=64)
def single_op(float_model: bytes, position: int):
    """One operator of a model as a model of its own, with its interpreter."""
    model = fb.read(float_model)
    graph = model.subgraphs[0]
    op = graph.operators[position]
    graph.operators = [op]
    graph.inputs = sorted(
        {i for i in op.inputs if i >= 0 and not fb.is_constant(model, graph.tensors[i])}
    )
    graph.outputs = list(op.outputs)
    model.signatureDefs = None
    return op, reference_interpreter(fb.write(model))


def details(file: bytes) -> dict[str, dict]:
    """Tensor details by name, as the plain interpreter sees them."""
    interpreter = reference_interpreter(file)
    return {d["name"]: d for d in interpreter.get_tensor_details()}


def details_of(file: bytes, getter: str) -> list[dict]:
    return getattr(reference_interpreter(file), getter)()


def operators(file: bytes) -> list[str]:
    return [op["op_name"] for op in reference_interpreter(file)._get_ops_details()]


def types_of_kernels(file: bytes) -> list[str]:
    """Element types of the quantized constants of more than one axis: biases are left out."""
    model = fb.read(file)
    return [
        fb.type_name(tensor)
        for tensor in model.subgraphs[0].tensors
        if fb.grid(tensor) and fb.is_constant(model, tensor) and len(fb.shape(tensor)) > 1
    ]


def assert_kernel(file: bytes, kernel: ExportKernel) -> None:
    """Some weight tensor holds the kernel's codes, transposed as TFLite defines, and its scale."""
    codes = {
        "conv": lambda c: np.moveaxis(c, -1, 0),
        "dense": np.transpose,
        "depthwise": lambda c: c.reshape(1, *c.shape[:2], -1),
    }[kernel.kind](kernel.codes)
    axis = 3 if kernel.kind == "depthwise" else 0
    scale = np.atleast_1d(kernel.scale)
    if kernel.kind != "dense":
        scale = np.broadcast_to(scale, codes.shape[axis])
    interpreter = reference_interpreter(file)
    for detail in interpreter.get_tensor_details():
        quantization = detail["quantization_parameters"]
        if (
            detail["dtype"] == np.int8
            and detail["shape"].tolist() == list(codes.shape)
            and np.array_equal(quantization["scales"], scale)
            and not quantization["zero_points"].any()
            and (len(scale) == 1 or quantization["quantized_dimension"] == axis)
            and np.array_equal(interpreter.get_tensor(detail["index"]), codes)
        ):
            return
    raise AssertionError(f"no tensor holds the kernel of {kernel.layer}")


def assert_grids(file: bytes, grids: dict[str, Grid]) -> None:
    found = details(file)
    for name, grid in grids.items():
        detail = found.get(f"{name}_quantized", found[name])  # a float input's grid is on its copy
        assert detail["dtype"] == np.int8, name
        assert detail["quantization"] == (grid.scale, grid.zero_point), name
