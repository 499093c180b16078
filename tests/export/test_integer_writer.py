"""`write_int8`, `write_weights`: exact codes and scales in the file, right numbers out of it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import sys
import threading
import time

import keras
import numpy as np
import pytest
from ai_edge_litert import interpreter as litert
from keras import layers

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import integer_writer
from ocs_tf.export.integer_writer import write_int8, write_weights
from ocs_tf.export.kernel_matching import ExportKernel
from ocs_tf.export.tensor_matching import measure_ranges
from tests.export.files import (
    GRAPHS,
    INTERPRETERS,
    PLAIN,
    RUNTIMES,
    Case,
    Grid,
    assert_grids,
    assert_kernel,
    build,
    conv,
    details,
    details_of,
    in_int4,
    on_grids,
    operators,
    random_kernel,
    regrid,
    run,
    simulate,
    to_tflite,
    types_of_kernels,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


# What the file holds ------------------------------------------------------------------------------


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


# INT4 kernels, and activations that stay float ----------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
def test_int4_files_compute_what_int8_files_do(graph):
    """Bit for bit: runtimes unpack INT4 kernels, and go on with the same integers."""
    case = build(graph, 4)
    wide, narrow = case.write(True), in_int4(case).write(True)
    assert "int4" in types_of_kernels(narrow)
    for kernel in case.kernels:
        assert_kernel(narrow, kernel)
    assert_grids(narrow, case.grids)
    for runtime in PLAIN.values():
        wanted, found = run(runtime, wide, case.data), run(runtime, narrow, case.data)
        assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("graph", GRAPHS)
def test_with_float_activations_only_kernels_change(graph):
    case = in_int4(build(graph, 4))
    file = write_weights(case.float_model, case.kernels)
    assert set(types_of_kernels(file)) == {"int4"}
    for kernel in case.kernels:
        assert_kernel(file, kernel)
    for runtime in RUNTIMES.values():
        wanted, found = run(runtime, case.float_model, case.data), run(runtime, file, case.data)
        for key, value in wanted.items():
            limit = 1e-6 * np.abs(value).max()
            np.testing.assert_allclose(found[key], value, rtol=0, atol=limit)


def test_dynamic_files_have_no_operator_more():
    case = in_int4(build("residual-add-relu", 4))
    file = write_weights(case.float_model, case.kernels, dynamic=True)
    assert operators(file) == operators(case.float_model)
    assert_kernel(file, case.kernels[0])


def mixed() -> Case:
    """Kernels of 8, 4, 3 and 2 bits; one is used twice, one is not given."""
    x = keras.Input((8, 8, 4), batch_size=1, name="x")
    y = conv(6, 3, activation="relu", name="wide")(x)
    y = layers.DepthwiseConv2D(3, name="four")(y)
    twice = conv(6, 1, name="three")
    y = conv(3, 3, name="float")(twice(layers.ReLU()(twice(y))))
    y = layers.Dense(5, name="two")(layers.Flatten()(y))
    model = keras.Model(x, y)
    rng = np.random.default_rng(0)
    kernels = []
    for name, bits in {"wide": 8, "four": 4, "three": 3, "two": 2}.items():
        kernel = random_kernel(model.get_layer(name), bits, True, rng)
        kernels.append(dataclasses.replace(kernel, bits=max(bits, 4)))
    data = {"x": rng.normal(size=(4, 8, 8, 4)).astype(np.float32)}
    return on_grids(to_tflite(model), tuple(kernels), data)


@pytest.mark.parametrize("float_io", [False, True], ids=["int8-io", "float-io"])
def test_mixed_widths_on_grids(float_io):
    case = mixed()
    file = case.write(float_io)
    assert sorted(types_of_kernels(file)) == ["int4"] * 3 + ["int8"] * 2
    for kernel in case.kernels:
        assert_kernel(file, kernel)
    wide = [dataclasses.replace(kernel, bits=8) for kernel in case.kernels]
    saved = len(case.write(float_io, kernels=wide)) - len(file)
    halves = sum(kernel.codes.size // 2 for kernel in case.kernels if kernel.bits == 4)
    assert abs(saved - halves) <= 3 * 16  # each buffer is aligned to 16 bytes
    for interpreter in INTERPRETERS:
        (found,) = run(INTERPRETERS[interpreter], file, case.data).values()
        (wanted,) = simulate(case).values()
        step = list(case.grids.values())[-1].scale
        assert np.abs(found - wanted).max() <= 2.01 * step


def test_mixed_widths_with_float_activations():
    case = mixed()
    file = write_weights(case.float_model, case.kernels)
    assert sorted(types_of_kernels(file)) == ["int4"] * 3 + ["int8"]  # "float" has stayed float
    for kernel in case.kernels:
        assert_kernel(file, kernel)


@pytest.mark.parametrize("dynamic", [False, True], ids=["float", "dynamic"])
def test_float_activations_with_an_open_batch_size(dynamic):
    x = keras.Input((8, 8, 4), name="x")
    layer = layers.Dense(3, name="dense")
    model = keras.Model(x, layer(layers.Flatten()(x)))
    rng = np.random.default_rng(0)
    kernel = dataclasses.replace(random_kernel(layer, 4, True, rng), bits=4)
    file = write_weights(to_tflite(model), [kernel], dynamic=dynamic)
    data = rng.normal(size=(5, 8, 8, 4)).astype(np.float32)
    wanted = model.predict_on_batch(data)
    (found,) = litert.Interpreter(model_content=file).get_signature_runner()(x=data).values()
    assert np.abs(found - wanted).max() <= (0.02 if dynamic else 1e-6) * np.abs(wanted).max()


# From tensorflow/lite/tools/versioning/op_version.cc.
INT4_VERSIONS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}
VERSIONS = {
    "int8": INT4_VERSIONS,
    "float": {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "DEQUANTIZE": 6},
    "dynamic": {"CONV_2D": 7, "FULLY_CONNECTED": 12, "DEPTHWISE_CONV_2D": 6},
}


@pytest.mark.parametrize("activations", VERSIONS)
def test_operator_versions_of_int4(activations):
    case = mixed()
    kernels = list(case.kernels)
    if activations == "int8":
        file = case.write()
    else:
        if activations == "dynamic":
            kernels[1] = dataclasses.replace(kernels[1], bits=8)
        file = write_weights(case.float_model, kernels, dynamic=activations == "dynamic")
    model = fb.read(file)
    found = {fb.op_name(model, op): fb.op_version(model, op) for op in model.subgraphs[0].operators}
    assert found == {"RESHAPE": 1, **VERSIONS[activations]}


# Grids that are shared ----------------------------------------------------------------------------


def test_what_is_given_for_a_fixed_output_does_not_matter():
    case = build("softmax")
    name = list(case.grids)[-1]
    found = details(case.write(grids={**case.grids, name: Grid(0.5, 3)}))
    assert found[name]["quantization"] == (1 / 256, -128)


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
    assert integer_writer.needed_activations(fb.read(case.float_model)) == set(case.grids) - set(
        derived
    )


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


def test_no_kernel_to_write():
    with pytest.raises(ValueError, match="kernels is empty"):
        write_weights(build("conv").float_model, ())


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


def test_quantizer_works_in_one_thread_at_a_time():
    """It replaces functions of its own modules while it works."""
    inside, together = threading.Lock(), []

    class Engine:
        def quantize(self, **_):
            together.append(not inside.acquire(blocking=False))
            time.sleep(0.05)
            if not together[-1]:
                inside.release()
            raise ZeroDivisionError

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        done = [pool.submit(integer_writer._quantize, Engine(), {}) for _ in range(3)]
    assert all(isinstance(future.exception(), ZeroDivisionError) for future in done)
    assert together == [False] * 3
