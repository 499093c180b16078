"""`write_int8`: exact codes and scales in the file, and the right numbers out of it.

The file is judged by the interpreters' tensor details and outputs, not by the writer's own reader.
The reference is a float run of the same graph with every activation rounded to its grid.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from ai_edge_quantizer.algorithms.utils.common_utils import OpQuantConstraint
from ai_edge_quantizer.utils import constrained_ops_utils
from keras import layers

from ocs_tf.export import _flatbuffer as fb
from ocs_tf.export import grid_rules, writer
from ocs_tf.export.assignment import ExportKernel
from ocs_tf.export.matching import measure_ranges
from ocs_tf.export.verification import VerificationError
from ocs_tf.export.writer import write_int8

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
KINDS = {layers.DepthwiseConv2D: "depthwise", layers.Conv2D: "conv", layers.Dense: "dense"}
INTERPRETERS = {"litert": litert.Interpreter, "tf.lite": tf.lite.Interpreter}


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
    with fb.quiet():
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


def details(file: bytes) -> dict[str, dict]:
    """Tensor details by name, as the plain interpreter sees them."""
    interpreter = reference_interpreter(file)
    return {d["name"]: d for d in interpreter.get_tensor_details()}


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


# What the file holds ------------------------------------------------------------------------------


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


@pytest.mark.parametrize("float_io", [False, True], ids=["int8-io", "float-io"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_codes_scales_and_grids_are_exact(graph, float_io):
    case = build(graph)
    file = case.write(float_io)
    for kernel in case.kernels:
        assert_kernel(file, kernel)
    assert_grids(file, case.grids)
    assert operators(file).count("QUANTIZE") == (len(case.data) if float_io else 0)
    ends = [*details_of(file, "get_input_details"), *details_of(file, "get_output_details")]
    assert {d["dtype"] for d in ends} == {np.float32 if float_io else np.int8}


def operators(file: bytes) -> list[str]:
    return [op["op_name"] for op in reference_interpreter(file)._get_ops_details()]


def details_of(file: bytes, getter: str) -> list[dict]:
    return getattr(reference_interpreter(file), getter)()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("graph", ["conv", "depthwise-multiplier-2", "dense"])
def test_every_width_keeps_its_own_step(graph, bits, granularity):
    case = build(graph, bits, granularity == "channel")
    file = case.write()
    for kernel in case.kernels:
        assert np.abs(kernel.codes).max() <= 2 ** (bits - 1) - 1
        assert_kernel(file, kernel)


def test_scales_survive_where_float32_ranges_would_lose_a_bit():
    """127 s in float32 gives back another s for about 1 % of all scales."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(1e-3, 1, 2000).astype(np.float32)
    assert np.any((scale * np.float32(127)) / np.float32(127) != scale)
    model = keras.Sequential([keras.Input((2,), batch_size=1), layers.Dense(2000, name="wide")])
    codes = rng.integers(-127, 127, (2, 2000), np.int8, endpoint=True)
    model.layers[0].set_weights([codes * scale, np.zeros(2000)])
    kernel = ExportKernel("wide", codes, scale, "dense")
    data = {model.inputs[0].name: rng.normal(size=(2, 2)).astype(np.float32)}
    assert_kernel(on_grids(to_tflite(model), (kernel,), data).write(), kernel)


def test_activation_grids_of_any_scale_and_zero_point():
    case = build("conv")
    rng = np.random.default_rng(0)
    for _ in range(20):
        grids = {
            name: Grid(float(np.float32(rng.lognormal())), int(rng.integers(-128, 128)))
            for name in case.grids
        }
        assert_grids(case.write(grids=grids), grids)


def test_a_layer_without_kernel_gets_ordinary_int8():
    case = build("residual-add-relu")
    tensors = [d for d in details(case.write(kernels=())).values() if d["dtype"] == np.int8]
    (weights,) = [d for d in tensors if len(d["quantization_parameters"]["scales"]) == 4]
    codes = case.kernels[0].codes.astype(np.float64)
    largest = np.abs(codes).max(axis=(0, 1, 2)) * case.kernels[0].scale
    np.testing.assert_allclose(weights["quantization_parameters"]["scales"], largest / 127, 1e-6)


@pytest.mark.parametrize("float_io", [False, True], ids=["int8-io", "float-io"])
def test_an_open_batch_size(float_io):
    """Flatten then computes its shape at run time, from the int8 input where there is one."""
    x = keras.Input((8, 8, 4), name="x")
    layer = layers.Dense(3, name="dense")
    model = keras.Model(x, layer(layers.Flatten()(x)))
    rng = np.random.default_rng(0)
    kernel = random_kernel(layer, 5, True, rng)
    data = {"x": rng.normal(size=(2, 8, 8, 4)).astype(np.float32)}
    case = on_grids(to_tflite(model), (kernel,), data)
    file = case.write(float_io)
    assert_kernel(file, kernel)
    assert_grids(file, case.grids)
    assert "SHAPE" in operators(file)
    assert operators(file).count("DEQUANTIZE") == float_io


def test_ranges_are_used_where_no_grid_is_given():
    case = build("conv")
    found = details(case.write(grids={}))
    for name, (low, high) in case.ranges.items():
        assert found[name]["quantization"][0] == pytest.approx((high - low) / 255, rel=1e-6)


def test_operator_versions_are_those_of_the_tensorflow_converter():
    case = build("residual-add-relu")
    wanted = {"CONV_2D": 3, "ADD": 2}  # float: 1 and 1
    model = fb.read(case.write())
    ops = model.subgraphs[0].operators
    assert {fb.op_name(model, op): fb.op_version(model, op) for op in ops} == wanted


# What the file computes ---------------------------------------------------------------------------


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("float_io", [False, True], ids=["int8-io", "float-io"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_outputs_equal_the_simulation(graph, float_io, interpreter):
    """At most one output step off, in one value of a hundred: ties, and the int32 bias.

    Constants of a batch norm that the converter leaves behind are int8 too, which the simulation
    does not know.
    """
    case = build(graph)
    wanted, found = simulate(case), run(INTERPRETERS[interpreter], case.write(float_io), case.data)
    steps, share = (2, 0.5) if graph == "batch-norm-after-relu" else (1, 0.01)
    model = fb.read(case.float_model)
    for entry in model.signatureDefs[0].outputs:
        key, tensor = entry.name.decode(), model.subgraphs[0].tensors[entry.tensorIndex]
        off = np.abs(found[key] - wanted[key]) / case.grids[fb.name(tensor)].scale
        assert off.max() <= steps + 0.01
        assert np.mean(off > 0.5) <= share
        assert np.ptp(wanted[key]) > 50 * case.grids[fb.name(tensor)].scale  # the test is not void


# Which kernel is whose ----------------------------------------------------------------------------


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


def one_by_one(layer: str, codes: list, scale: float) -> ExportKernel:
    return ExportKernel(
        layer, np.int8(codes).reshape(1, 1, 2, 2), np.float32(scale).reshape(()), "conv"
    )


def test_equal_weights_with_other_codes_are_told_apart_by_name():
    """2 steps of 0.5 weigh the same as 1 step of 1; the converter merges the two constants."""
    coarse, fine = one_by_one("one", [1, 2, -3, 4], 1.0), one_by_one("two", [2, 4, -6, 8], 0.5)
    case = twins(coarse, fine)
    for kernels in ((coarse, fine), (fine, coarse)):
        file = case.write(kernels=kernels)
        assert_kernel(file, coarse)
        assert_kernel(file, fine)
        interpreter = reference_interpreter(file)
        order = [
            interpreter.get_tensor(op["inputs"][1])[0, 0, 0, 0]
            for op in interpreter._get_ops_details()
            if op["op_name"] == "CONV_2D"
        ]
        assert order == [1, 2]


def test_identical_layers_share_one_kernel():
    one, two = one_by_one("one", [1, 2, -3, 4], 1.0), one_by_one("two", [1, 2, -3, 4], 1.0)
    file = twins(one, two).write()
    assert_kernel(file, one)
    kernels = [d for d in details(file).values() if d["shape"].tolist() == [2, 1, 1, 2]]
    assert len(kernels) == 1


def test_layers_that_the_converter_merges_need_one_operator():
    one, two = one_by_one("one", [1, 2, -3, 4], 1.0), one_by_one("two", [1, 2, -3, 4], 1.0)
    file = twins(one, two, apart=False).write()
    assert operators(file).count("CONV_2D") == 1
    assert_kernel(file, one)


# Grids that are shared ----------------------------------------------------------------------------


def test_rules_are_those_of_the_quantizer():
    known = {
        rule: set(constrained_ops_utils.get_constrained_op_list(constraint))
        for rule, constraint in {
            "own": OpQuantConstraint.NO_CONSTRAIN,
            "input": OpQuantConstraint.SAME_AS_INPUT_SCALE,
            "output": OpQuantConstraint.SAME_AS_OUTPUT_SCALE,
            "fixed": OpQuantConstraint.FIXED_OUTPUT_SCALE,
        }.items()
    }
    for rule, ops in known.items():
        assert {grid_rules.grid_rule(op.value) for op in ops} == {rule}
    stated = set(grid_rules._RULES)
    assert stated == {op.value for rule in ("input", "output", "fixed") for op in known[rule]}


@pytest.mark.parametrize(
    ("op", "grid"),
    [("SOFTMAX", (1 / 256, -128)), ("LOGISTIC", (1 / 256, -128)), ("TANH", (1 / 128, 0))],
)
def test_fixed_output_grid(op, grid):
    assert grid_rules.fixed_output_grid(op) == grid


def test_fixed_output_grid_of_others_is_none():
    assert grid_rules.fixed_output_grid("CONV_2D") is None


def test_what_is_given_for_a_fixed_output_does_not_matter():
    case = build("softmax")
    name = list(case.grids)[-1]
    found = details(case.write(grids={**case.grids, name: Grid(0.5, 3)}))
    assert found[name]["quantization"] == (1 / 256, -128)


def regrid(case: Case, part: str) -> tuple[str, Case]:
    """The case with another grid on the tensor whose name contains `part`."""
    (name,) = [name for name in case.grids if part in name]
    return name, dataclasses.replace(case, grids={**case.grids, name: Grid(0.25, 7)})


def test_a_pool_with_another_grid_than_its_input_is_refused():
    _, case = regrid(build("average-pool"), "AvgPool")
    with pytest.raises(VerificationError, match="AVERAGE_POOL_2D takes its input's grid"):
        case.write()


def test_a_concat_sets_the_grid_of_what_it_alone_reads():
    name, case = regrid(build("concat"), "StatefulPartitionedCall")
    with pytest.raises(VerificationError, match="a CONCATENATION or the like that alone reads it"):
        case.write()
    left = {name: case.grids[name]} | {n: g for n, g in case.grids.items() if "conv" not in n}
    file = case.write(grids=left)
    grids = [
        d["quantization"] for n, d in details(file).items() if "conv" in n and len(d["shape"]) == 4
    ]
    assert grids.count((0.25, 7)) == 2  # both branches, though nothing was given for them


def test_a_concat_of_slices_on_another_grid_requantizes():
    _, case = regrid(build("concat-of-slices"), "concat")
    assert operators(case.write()).count("QUANTIZE") == 3  # the tensor and its two slices


# Refusals -----------------------------------------------------------------------------------------


def test_unknown_tensor_names():
    case = build("conv")
    with pytest.raises(ValueError, match=r"grids names \['typo'\], which are no float activation"):
        case.write(grids={**case.grids, "typo": Grid(1.0, 0)})
    with pytest.raises(ValueError, match=r"ranges names \['typo'\]"):
        case.write(ranges={**case.ranges, "typo": (0.0, 1.0)})


def test_needed_activations():
    case = build("average-pool")
    derived = [name for name in case.grids if "AvgPool" in name]
    assert len(derived) == 1
    assert writer.needed_activations(case.float_model) == set(case.grids) - set(derived)


def test_missing_activation():
    case = build("conv")
    name = next(iter(case.ranges))
    ranges = {key: span for key, span in case.ranges.items() if key != name}
    with pytest.raises(ValueError, match=f"{name}.* in neither grids nor ranges"):
        case.write(grids={}, ranges=ranges)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(1.0, 0, bits=6), r"bits \(=6\) must be 8"),
        (Grid(0.1, 0), r"scale \(=0.1\) must be .* exactly representable in float32"),
        (Grid(-1.0, 0), r"scale \(=-1.0\) must be finite, at least"),
        (Grid(float("inf"), 0), r"scale \(=inf\) must be finite"),
        (Grid(1.0, 128), r"zero_point \(=128\) must be in -128..127"),
    ],
)
def test_malformed_grid(grid, message):
    case = build("conv")
    with pytest.raises(ValueError, match=message):
        case.write(grids=dict.fromkeys(case.grids, grid))


@pytest.mark.parametrize("span", [(1.0, 0.0), (0.0, float("nan")), (float("-inf"), 0.0)])
def test_malformed_range(span):
    case = build("conv")
    with pytest.raises(ValueError, match="must be finite with min <= max"):
        case.write(ranges=dict.fromkeys(case.ranges, span))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "lstm"}, r"kind of layer 'c' \(='lstm'\) must be one of 'conv', 'dense'"),
        ({"codes": np.zeros((1, 1, 2, 3))}, r"codes of layer 'c' \(=float64 \[1, 1, 2, 3\]\)"),
        ({"codes": np.zeros((2, 3), np.int8)}, "must be int8 of rank 4 for kind 'conv'"),
        ({"codes": np.full((1, 1, 2, 3), -128, np.int8)}, r"minimum -128\) must be in -127..127"),
        ({"scale": np.ones(2, np.float32)}, r"must be float32 of shape \[\] or \[3\]"),
        ({"scale": np.ones(3)}, r"scale of layer 'c' \(=float64 \[3\]\)"),
        ({"scale": np.zeros(3, np.float32)}, r"minimum 0.0\) must be finite and at least"),
        ({"scale": np.float32([1, np.nan, 1])}, "must be finite and at least"),
    ],
)
def test_malformed_kernel(change, message):
    good = {
        "layer": "c",
        "codes": np.zeros((1, 1, 2, 3), np.int8),
        "scale": np.ones(3, np.float32),
        "kind": "conv",
    }
    with pytest.raises(ValueError, match=message):
        ExportKernel(**{**good, **change})


def test_kernel_that_the_model_does_not_have():
    case = build("conv")
    (kernel,) = case.kernels
    other = dataclasses.replace(kernel, layer="lost", codes=-kernel.codes)
    with pytest.raises(ValueError, match=r"kernel of layer 'lost' .* equals no weight tensor"):
        case.write(kernels=(kernel, other))


def test_operator_without_int8_form():
    x = keras.Input((4, 4, 2), batch_size=1)
    case = on_grids(
        to_tflite(keras.Model(x, layers.LeakyReLU()(x))), (), {x.name: np.ones((1, 4, 4, 2))}
    )
    with pytest.raises(
        VerificationError, match=r"operator LEAKY_RELU computing .* is left in float"
    ):
        case.write()


def test_bias_that_overflows():
    x = keras.Input((4, 4, 2), batch_size=1)
    layer = conv(2, 1, name="dead")
    model = keras.Model(x, layer(x))
    kernel = one_by_one("dead", [0, 0, 0, 0], 1e-9)
    layer.set_weights([kernel.codes * kernel.scale, np.ones(2)])
    case = on_grids(to_tflite(model), (kernel,), {x.name: np.ones((1, 4, 4, 2))})
    with pytest.raises(VerificationError, match=r"bias .* do not fit int32"):
        case.write()


@pytest.mark.parametrize("damage", ["codes", "scale", "grid"])
def test_a_file_that_differs_is_refused(damage, monkeypatch):
    """The check reads the file: whatever goes wrong while writing is found."""
    case = build("conv")
    original = fb.write

    def damaged(model):
        tensors = model.subgraphs[0].tensors
        (weights,) = [t for t in tensors if fb.shape(t) == (6, 3, 3, 4)]
        if damage == "codes":
            model.buffers[weights.buffer].data[7] ^= 1
        elif damage == "scale":
            weights.quantization.scale[2] = np.nextafter(weights.quantization.scale[2], 1)
        else:
            tensors[model.subgraphs[0].outputs[0]].quantization.zeroPoint[0] += 1
        return original(model)

    monkeypatch.setattr(fb, "write", damaged)
    with pytest.raises(
        VerificationError,
        match={
            "codes": "kernel of layer .*: 1 of 216 codes differ",
            "scale": "kernel of layer .*: scale .* given",
            "grid": "activation .*: .* in the file, given",
        }[damage],
    ):
        case.write()


def test_nothing_is_printed(capfd):
    build("conv").write()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


# A real network -----------------------------------------------------------------------------------


def load_zoo(name: str):
    root = pathlib.Path(__file__).resolve().parents[2]
    folder = pathlib.Path(os.environ.get("OCS_TF_ZOO", root / ".." / "shared" / "zoo")).resolve()
    if not (folder / f"{name}.keras").exists():
        pytest.skip(f"the zoo is not at {folder}: set OCS_TF_ZOO")
    sys.path.insert(0, str(folder))
    import zoo

    return zoo.load(name, limit=100)


def test_resnet20_loses_no_accuracy():
    """Batch norm folded by the converter, so no kernel is listed: int8 throughout, as accurate."""
    entry = load_zoo("resnet20_cifar10")
    x = keras.Input(entry.model.input_shape[1:], batch_size=1, name="image")
    float_model = to_tflite(keras.Model(x, entry.model(x)))
    ranges = measure_ranges(float_model, [[entry.calibration[:50]]])
    file = write_int8(float_model, (), {}, ranges, float_io=True)
    found = run(litert.Interpreter, file, {"image": entry.inputs})["output_0"]
    wanted = entry.predict(entry.model)
    assert np.mean(found.argmax(1) == wanted.argmax(1)) >= 0.97
    assert "DEQUANTIZE" in operators(file)
    assert len(file) < 0.4 * len(float_model)
