"""INT4 kernels: every operator, width, granularity and kind of activations, in both runtimes.

Each model is one layer whose float twin Keras computes. What `int4` refuses is refused here, too,
and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import int4
from ocs_tf.export.integer_writer import write_int8, write_weights
from ocs_tf.export.kernel_matching import ExportKernel
from ocs_tf.numerics import ActivationGrid
from tests.export.files import RUNTIMES, random_kernel, to_tflite

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")

# Shapes are odd on purpose: rows of codes then start in the middle of a byte.
LAYERS = {
    "conv-3x3": ((9, 7, 5), lambda: layers.Conv2D(7, 3, padding="same")),
    "conv-stride-nobias": ((9, 7, 5), lambda: layers.Conv2D(7, 3, strides=2, use_bias=False)),
    "conv-1x1": ((9, 7, 5), lambda: layers.Conv2D(7, 1)),
    "conv-to-one-channel": ((9, 7, 3), lambda: layers.Conv2D(1, 3)),
    "conv-groups": ((9, 7, 6), lambda: layers.Conv2D(8, 3, groups=2)),
    "depthwise": ((9, 7, 5), lambda: layers.DepthwiseConv2D(3)),
    "depthwise-multiplier": ((9, 7, 5), lambda: layers.DepthwiseConv2D(3, depth_multiplier=3)),
    "dense": ((13,), lambda: layers.Dense(7)),
    "dense-even-nobias": ((64,), lambda: layers.Dense(32, use_bias=False)),
    "dense-3d": ((5, 13), lambda: layers.Dense(7)),
}
EVERY_LAYER = pytest.mark.parametrize("layer", LAYERS)
EVERY_WIDTH = pytest.mark.parametrize("bits", [2, 3, 4, 8])
EVERY_GRANULARITY = pytest.mark.parametrize("granularity", ["tensor", "channel"])


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer, the same as a float file, and its kernel."""

    model: keras.Model
    float_model: bytes
    kernel: ExportKernel

    def compute(self, inputs: np.ndarray) -> np.ndarray:
        return np.concatenate([self.model(sample[None]) for sample in inputs])

    def write(self, activations: str, grids=()) -> bytes:
        if activations != "int8":
            dynamic = activations == "dynamic"
            return write_weights(self.float_model, [self.kernel], dynamic=dynamic)
        names = list(fb.float_activations(fb.read(self.float_model)))
        ranges = dict.fromkeys(names, (-4.0, 4.0))
        on_grids = dict(zip((names[0], names[-1]), grids, strict=False))
        return write_int8(self.float_model, [self.kernel], on_grids, ranges, float_io=True)


@functools.cache
def build(name: str, bits: int, granularity: str) -> Case:
    rng = np.random.default_rng(bits)
    shape, make = LAYERS[name]
    layer = make()
    x = keras.Input(shape, batch_size=1, name="x")
    model = keras.Model(x, layer(x))
    kernel = random_kernel(layer, bits, granularity == "channel", rng)
    kernel = dataclasses.replace(kernel, bits=4 if bits <= 4 else 8)
    return Case(model, to_tflite(model), kernel)


def samples(layer: str, rng) -> np.ndarray:
    return rng.normal(size=(4, *LAYERS[layer][0])).astype(np.float32)


def run(runtime: str, file: bytes, inputs: np.ndarray) -> np.ndarray:
    """Outputs of a file with one float input and one float output, sample by sample."""
    interpreter = RUNTIMES[runtime](model_content=file)
    interpreter.allocate_tensors()
    (given,), (computed,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in inputs:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(computed["index"]).copy())
    return np.concatenate(outputs)


def kernel_tensor(file: bytes):
    """The quantized constant of the file's only kernel, and its bytes."""
    model = fb.read(file)
    (tensor,) = (
        t
        for t in model.subgraphs[0].tensors
        if fb.type_name(t) in ("int4", "int8") and fb.is_constant(model, t)
    )
    return tensor, np.asarray(model.buffers[tensor.buffer].data, np.uint8)


def in_layout(kernel: ExportKernel) -> np.ndarray:
    """Codes as TFLite orders them."""
    if kernel.kind == "depthwise":
        return kernel.codes.reshape(1, *kernel.codes.shape[:2], -1)
    return np.moveaxis(kernel.codes, -1, 0)


def refused(layer: str, bits: int, granularity: str) -> bool:
    """Of dynamic activations."""
    return ("depthwise" in layer and bits <= 4) or (
        layer == "conv-groups" and granularity == "tensor"
    )


# The table ----------------------------------------------------------------------------------------


@EVERY_GRANULARITY
@EVERY_WIDTH
@EVERY_LAYER
def test_integer_activations_are_off_by_one_step_at_most(layer, bits, granularity, rng):
    case = build(layer, bits, granularity)
    grid = ActivationGrid.from_range(-2.5, 3.0, 8)
    inputs = grid.fake_quantize(samples(layer, rng))
    wanted = case.compute(inputs)
    out_grid = ActivationGrid.from_range(float(wanted.min()), float(wanted.max()), 8)
    file = case.write("int8", (grid, out_grid))
    for runtime in RUNTIMES:
        off = np.abs(run(runtime, file, inputs) - wanted) / out_grid.scale
        assert off.max() <= 1.01, runtime  # half a step of rounding, and the bias's own rounding


@EVERY_GRANULARITY
@EVERY_WIDTH
@EVERY_LAYER
def test_float_activations_lose_nothing(layer, bits, granularity, rng):
    case = build(layer, bits, granularity)
    inputs = samples(layer, rng)
    wanted = case.compute(inputs)
    file = case.write("float")
    for runtime in RUNTIMES:
        found = run(runtime, file, inputs)
        limit = 1e-6 * np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=limit, err_msg=runtime)


@EVERY_GRANULARITY
@EVERY_WIDTH
@EVERY_LAYER
def test_dynamic_activations_are_close(layer, bits, granularity, rng):
    """Inputs are rounded to at most 255 steps of their range; how, is the runtime's affair."""
    case = build(layer, bits, granularity)
    if refused(layer, bits, granularity):
        with pytest.raises(ValueError, match="activations='dynamic'"):
            case.write("dynamic")
        return
    inputs = samples(layer, rng)
    wanted = case.compute(inputs)
    file = case.write("dynamic")
    for runtime in RUNTIMES:
        off = np.abs(run(runtime, file, inputs) - wanted) / np.abs(wanted).max()
        assert 1e-4 < off.max() < 0.02, runtime


@pytest.mark.parametrize("activations", int4.ACTIVATIONS)
@EVERY_WIDTH
@EVERY_LAYER
def test_two_codes_take_a_byte(layer, bits, activations):
    case = build(layer, bits, "channel")
    if activations == "dynamic" and refused(layer, bits, "channel"):
        pytest.skip("there is no such file")
    tensor, data = kernel_tensor(case.write(activations))
    codes = in_layout(case.kernel)
    assert fb.shape(tensor) == codes.shape
    assert np.array_equal(fb.grid(tensor)[0], case.kernel.scale)
    if bits > 4:
        assert fb.type_name(tensor) == "int8"
        assert np.array_equal(data.view(np.int8), codes.ravel())
        return
    assert fb.type_name(tensor) == "int4"
    assert len(data) == -(-codes.size // 2)
    nibbles = np.stack([data & 15, data >> 4], axis=1).ravel()[: codes.size].astype(np.int8)
    assert np.array_equal(np.where(nibbles > 7, nibbles - 16, nibbles), codes.ravel())


def test_runtimes_have_no_dynamic_depthwise(monkeypatch, rng):
    """Once they have, `int4.check` is too strict."""
    case = build("depthwise", 4, "channel")
    monkeypatch.setattr(int4, "check_operators", lambda *_: None)
    file = case.write("dynamic")
    for runtime in RUNTIMES:
        with pytest.raises(RuntimeError, match="filter type INT4 not currently supported"):
            run(runtime, file, samples("depthwise", rng))


# What is refused ----------------------------------------------------------------------------------


def kernel(kind: str = "conv", bits: int = 4, per_channel: bool = True) -> ExportKernel:
    shape = {"conv": (3, 3, 2, 5), "depthwise": (3, 3, 5, 1), "dense": (4, 5)}[kind]
    scale = np.arange(1, 6, dtype=np.float32) if per_channel else np.float32(1).reshape(())
    return ExportKernel(kind, np.ones(shape, np.int8), scale, kind, bits)


@pytest.mark.parametrize("activations", int4.ACTIVATIONS)
def test_kernels_that_are_allowed(activations):
    int4.check([kernel("conv"), kernel("dense"), kernel("depthwise", 8)], activations)


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_depthwise_kernels_are_allowed_without_dynamic_activations(activations):
    int4.check([kernel("depthwise")], activations)


def test_dynamic_depthwise_is_named():
    with pytest.raises(ValueError, match=r"layer 'depthwise': runtimes have no .* 5 to 8 bits"):
        int4.check([kernel("conv"), kernel("depthwise")], "dynamic")


def test_dynamic_groups_of_one_step_are_named():
    case = build("conv-groups", 4, "tensor")
    name = case.kernel.layer
    with pytest.raises(ValueError, match=rf"layer '{name}': tf.lite cannot run .* of 2 groups"):
        case.write("dynamic")


@pytest.mark.parametrize("kernels", [[], [kernel(bits=8)]], ids=["none", "wide"])
def test_nothing_to_store(kernels):
    with pytest.raises(ValueError, match="nothing to store in INT4; use target='int8'"):
        int4.check(kernels, "int8")


def test_unknown_activations():
    with pytest.raises(ValueError, match=r"`activations` \(='int16'\) must be one of int8, float,"):
        int4.check([kernel()], "int16")
