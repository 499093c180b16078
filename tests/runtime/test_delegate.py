"""The delegate in both TFLite runtimes.

The oracle for weights is the same graph with float32 constants, which must give the same bits: a
convolution that left XNNPACK, because its weights were no constants, would differ in the last ones.
"""

from __future__ import annotations

import concurrent.futures
import gc
import pathlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from ocs_tf.runtime import NativeLibraryError, library_path

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from model_builder import (
    COLUMN,
    MISSING,
    ROW,
    TENSOR,
    ModelBuilder,
    PackedKernel,
    branches,
    chain,
    connected,
    network,
    only_weights,
    round_codes,
    rounding,
    transposed,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
RUNTIMES: dict[str, Any] = {"litert": litert, "tf.lite": tf.lite}
LOADERS: dict[str, Any] = {
    "litert": litert.load_delegate,
    "tf.lite": tf.lite.experimental.load_delegate,
}
RESOLVERS = {"xnnpack": "AUTO", "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
BATCHES = (1, 3, 3, 17, 2, 1)


@pytest.fixture(scope="session")
def library() -> str:
    """The path of the delegate; skips where it cannot be built."""
    try:
        return str(library_path())
    except NativeLibraryError as error:
        if shutil.which("c++") is None:
            pytest.skip(str(error))
        raise


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return request.param


def load(runtime: str, library: str, **options: Any) -> Any:
    return LOADERS[runtime](library, **options)


def interpret(
    runtime: str,
    content: bytes,
    delegates: list[Any] | None = None,
    resolver: str = "xnnpack",
    threads: int = 1,
) -> Any:
    """An interpreter whose tensors are not yet allocated."""
    module = RUNTIMES[runtime]
    types = module.experimental.OpResolverType if runtime == "tf.lite" else litert.OpResolverType
    return module.Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_delegates=delegates,
        experimental_op_resolver_type=getattr(types, RESOLVERS[resolver]),
    )


def run(interpreter: Any, x: np.ndarray | None = None) -> list[np.ndarray]:
    """All outputs for one batch, after resizing the input to it."""
    if x is not None:
        (details,) = interpreter.get_input_details()
        if tuple(details["shape"]) != x.shape:
            interpreter.resize_tensor_input(details["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(details["index"], x)
    else:
        interpreter.allocate_tensors()
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]).copy() for d in interpreter.get_output_details()]


# What XNNPACK and the builtin operators make of folded weights.


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("copies", [0, 3], ids=["plain", "copies"])
@pytest.mark.parametrize("scaling", [TENSOR, ROW], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_folded_weights_are_constants(
    library: str,
    runtime: str,
    bits: int,
    scaling: int,
    copies: int,
    resolver: str,
    threads: int,
    rng: np.random.Generator,
) -> None:
    delegate = load(runtime, library)
    files = [network(bits, scaling, copies, folded) for folded in (True, False)]
    packed = interpret(runtime, files[0], [delegate], resolver, threads)
    plain = interpret(runtime, files[1], None, resolver, threads)
    for batch in BATCHES:
        x = rng.normal(size=(batch, 6, 7, 4)).astype(np.float32)
        for got, expected in zip(run(packed, x), run(plain, x), strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_transposed_convolution(
    library: str, runtime: str, resolver: str, rng: np.random.Generator
) -> None:
    kernel = PackedKernel.random(rng, (3, 3, 3, 5), 5, TENSOR, copies=2)
    delegate = load(runtime, library)
    packed = interpret(runtime, transposed(kernel, True), [delegate], resolver)
    plain = interpret(runtime, transposed(kernel, False), None, resolver)
    x = rng.normal(size=(1, 4, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(run(packed, x), run(plain, x))


def test_xnnpack_takes_the_whole_network(library: str, runtime: str) -> None:
    interpreter = interpret(runtime, network(4, ROW, 2, True), [load(runtime, library)])
    interpreter.allocate_tensors()
    last = interpreter._get_ops_details()[-1]
    assert last["op_name"] == "DELEGATE"
    outputs = {details["index"] for details in interpreter.get_output_details()}
    assert set(last["outputs"]) == outputs  # so it computes all of them


@pytest.mark.parametrize("scaling", [TENSOR, ROW, COLUMN])
def test_weights_as_output_of_the_graph(
    library: str, runtime: str, scaling: int, rng: np.random.Generator
) -> None:
    kernel = PackedKernel.random(rng, (3, 2, 2, 5), 6, scaling)
    interpreter = interpret(runtime, only_weights(kernel), [load(runtime, library)])
    (output,) = run(interpreter)
    np.testing.assert_array_equal(output, kernel.effective())


def test_two_operators_share_packed_codes(
    library: str, runtime: str, rng: np.random.Generator
) -> None:
    kernel = PackedKernel.random(rng, (3, 7), 3, ROW)
    builder = ModelBuilder()
    outputs = [kernel.add_to(builder), builder.tensor(kernel.shape)]
    builder.operator("OcsDequantize", builder.graph.operators[0].inputs, outputs[1:])
    interpreter = interpret(runtime, builder.build([], outputs), [load(runtime, library)])
    for output in run(interpreter):
        np.testing.assert_array_equal(output, kernel.effective())


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_weights_in_branches(
    library: str, runtime: str, resolver: str, rng: np.random.Generator
) -> None:
    """The delegate is applied to each graph of a file."""
    kernels = [PackedKernel.random(rng, (3, 5), bits, ROW, copies=2) for bits in (3, 6)]
    delegate = load(runtime, library)
    packed = interpret(runtime, branches(kernels), [delegate], resolver)
    plain = interpret(runtime, branches(kernels, folded=False), None, resolver)
    for batch in BATCHES:
        x = rng.normal(size=(batch, 5)).astype(np.float32)
        for condition in (True, False):
            outputs = []
            for interpreter in (packed, plain):
                indices = [details["index"] for details in interpreter.get_input_details()]
                interpreter.resize_tensor_input(indices[1], x.shape)
                interpreter.allocate_tensors()
                interpreter.set_tensor(indices[0], np.array([condition]))
                interpreter.set_tensor(indices[1], x)
                interpreter.invoke()
                (output,) = interpreter.get_output_details()
                outputs.append(interpreter.get_tensor(output["index"]))
            assert np.any(outputs[1])
            np.testing.assert_array_equal(*outputs)


# The operators that run at inference.


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("copies", [None, [4, 0, 4]], ids=["plain", "copies"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize(
    ("name", "meta"),
    [
        ("OcsQuantize", (-128, 127, -3)),
        ("OcsQuantize", (-8, 7, 0)),
        ("OcsFakeQuantize", (-128, 127, 5)),
        ("OcsFakeQuantize", (-2, 1, 0)),
        ("OcsFakeQuantize", (-32768, 32767, 0)),
    ],
)
def test_rounding(
    library: str,
    runtime: str,
    name: str,
    meta: tuple[int, int, int],
    per_channel: bool,
    copies: list[int] | None,
    resolver: str,
    threads: int,
    rng: np.random.Generator,
) -> None:
    channels = 5
    map_ = None if copies is None else np.array(copies, np.int32)
    width = channels + len(copies or [])
    inv_scale = rng.uniform(1, 40, width if per_channel else 1).astype(np.float32)
    scale = (1 / inv_scale).astype(np.float32)
    content = rounding(name, channels, inv_scale, scale, meta, map_)
    interpreter = interpret(runtime, content, [load(runtime, library)], resolver, threads)
    low, high, zero_point = meta
    for batch in BATCHES:
        x = rng.normal(0, 3, (batch, 2, channels)).astype(np.float32)
        x[0, 0, :4] = np.nan, np.inf, -np.inf, 1.5 / inv_scale[0]
        codes = round_codes(x, inv_scale, low, high, zero_point, map_)
        if name == "OcsQuantize":
            expected = codes.astype(np.int8)
        else:
            expected = (codes - zero_point).astype(np.float32) * scale
        (output,) = run(interpreter, x)
        assert output.dtype == expected.dtype
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("activation", [0, 1, 2], ids=["none", "relu", "relu6"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("copies", [0, 5], ids=["plain", "copies"])
@pytest.mark.parametrize("scaling", [TENSOR, ROW], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_fully_connected(
    library: str,
    runtime: str,
    bits: int,
    scaling: int,
    copies: int,
    bias: bool,
    activation: int,
    explicit: bool,
    rng: np.random.Generator,
) -> None:
    kernel = PackedKernel.random(rng, (6, 37), bits, scaling, copies)
    values = rng.normal(size=6).astype(np.float32) if bias else None
    content = connected(kernel, values, activation, explicit)
    interpreter = interpret(runtime, content, [load(runtime, library)])
    effective = kernel.effective().astype(np.float64)
    for batch in (*BATCHES, 0):
        x = rng.normal(size=(batch, 37)).astype(np.float32)
        sums = x @ effective.T + (0 if values is None else values)
        expected = np.clip(sums, *[(-np.inf, np.inf), (0, np.inf), (0, 6)][activation])
        (output,) = run(interpreter, x)
        assert output.shape == expected.shape
        # Copies are not merged: a channel may cancel itself out.
        all_codes = np.abs(kernel.codes).sum() + np.abs(kernel.copy_codes).sum()
        largest = all_codes * kernel.scale.max() * max(1.0, np.abs(x).max(initial=0))
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_operators_in_one_partition_and_between_builtin_ones(
    library: str, runtime: str, resolver: str, rng: np.random.Generator
) -> None:
    """Tensors between two of our operators get no memory from the runtime."""
    kernel = PackedKernel.random(rng, (4, 6), 4, TENSOR)
    interpreter = interpret(runtime, chain(kernel), [load(runtime, library)], resolver)
    inv_scale = np.float32([8])
    # XNNPACK makes nonsense of a batch of 0, in files without our operators as well.
    for batch in (*BATCHES, 0, 1) if resolver == "builtin" else BATCHES:
        values = rng.integers(-40, 40, (batch, 6)).astype(np.float32) / 16
        grid = round_codes(-values, inv_scale, -127, 127, 0) / np.float32(8)
        expected = grid @ kernel.effective().T
        got_codes, got = run(interpreter, values)
        np.testing.assert_allclose(got, -expected, atol=1e-5)
        np.testing.assert_array_equal(got_codes, round_codes(-got, inv_scale, -127, 127, 0))


def test_weights_are_the_input_of_an_operator(
    library: str, runtime: str, rng: np.random.Generator
) -> None:
    kernel = PackedKernel.random(rng, (3, 5), 4, ROW, copies=2)
    builder = ModelBuilder()
    weights = kernel.add_to(builder)
    output = builder.tensor(kernel.shape, np.int8)
    meta = np.array([1, -128, 127, 1], np.int32)
    inputs = [weights, builder.constant(np.float32([20])), builder.constant(meta)]
    builder.operator("OcsQuantize", inputs, [output])
    interpreter = interpret(runtime, builder.build([], [output]), [load(runtime, library)])
    expected = round_codes(kernel.effective(), np.float32([20]), -128, 127, 1)
    np.testing.assert_array_equal(run(interpreter)[0], expected)


# The life of a delegate.


def test_nothing_leaks_when_interpreters_are_made_again(library: str, runtime: str) -> None:
    kernel = PackedKernel.random(np.random.default_rng(0), (256, 1024), 4, ROW)
    content = only_weights(kernel)  # 1 MB of float32
    expected = kernel.effective()
    unit = 1 if sys.platform == "darwin" else 1024
    start = 0
    for times in range(400):
        interpreter = interpret(runtime, content, [load(runtime, library)])
        interpreter.allocate_tensors()
        if times % 100 == 0:
            np.testing.assert_array_equal(run(interpreter)[0], expected)
        del interpreter
        gc.collect(0)
        if times == 30:
            start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * unit
    assert growth < 40 * expected.nbytes


def test_interpreters_and_threads_share_a_delegate(
    library: str, runtime: str, rng: np.random.Generator
) -> None:
    delegate = load(runtime, library)
    content = network(4, ROW, 2, True)
    x = rng.normal(size=(3, 6, 7, 4)).astype(np.float32)
    expected = run(interpret(runtime, network(4, ROW, 2, False)), x)

    def work(_: int) -> list[np.ndarray]:
        interpreter = interpret(runtime, content, [delegate])
        return [run(interpreter, x[: 1 + times % 3]) for times in range(10)][-1]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(work, range(20)):
            for got, wanted in zip(outputs, expected, strict=True):
                np.testing.assert_array_equal(got, wanted[:1])


def test_the_delegate_is_undone_and_applied_again(
    library: str, runtime: str, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    """Behind a delegate that takes static shapes only, a runtime undoes all to resize a tensor."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    here = pathlib.Path(__file__).parent
    static = tmp_path / "static_delegate.so"
    command = [compiler, "-std=c++17", "-shared", "-fPIC", "-o", static]
    include = f"-I{here.parents[1] / 'ocs_tf' / 'runtime' / 'cc'}"
    subprocess.run([*command, include, here / "cc" / "static_delegate.cc"], check=True)
    delegates = [load(runtime, library), load(runtime, str(static))]
    packed = interpret(runtime, network(5, ROW, 2, True), delegates, "builtin")
    plain = interpret(runtime, network(5, ROW, 2, False), None, "builtin")
    for batch in BATCHES:
        x = rng.normal(size=(batch, 6, 7, 4)).astype(np.float32)
        for got, expected in zip(run(packed, x), run(plain, x), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_options_are_refused(library: str, runtime: str) -> None:
    with pytest.raises(ValueError, match="has no options, but was given `speed`"):
        load(runtime, library, options={"speed": "high"})


def test_without_the_delegate(runtime: str, rng: np.random.Generator) -> None:
    content = only_weights(PackedKernel.random(rng, (3, 5), 4, ROW))
    with pytest.raises(RuntimeError, match="OcsDequantize"):
        interpret(runtime, content).allocate_tensors()


# Files that are not what they should be. tests/runtime/cc/delegate_test.cc has all of the checks.


class Damage:
    """The first operator of a file, to be changed."""

    def __init__(self, content: bytes) -> None:
        self.model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        self.graph = self.model.subgraphs[0]
        self.operator = self.graph.operators[0]
        self.inputs = list(self.operator.inputs)

    def content(self) -> bytes:
        self.operator.inputs = self.inputs
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))

    def tensor(self, position: int) -> Any:
        return self.graph.tensors[self.inputs[position]]

    def output(self) -> Any:
        return self.graph.tensors[self.operator.outputs[0]]

    def put(self, position: int, values: Any, dtype: Any = np.int32) -> None:
        """Gives an input other values, of any number."""
        array = np.asarray(values, dtype)
        tensor = self.tensor(position)
        tensor.shape = list(array.shape)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1


def dequantize() -> bytes:
    return only_weights(PackedKernel.random(np.random.default_rng(0), (3, 2, 5), 4, ROW, 2))


def fully_connected() -> bytes:
    kernel = PackedKernel.random(np.random.default_rng(0), (3, 5), 4, ROW, 2)
    return connected(kernel, np.zeros(3, np.float32), 0)


def quantize() -> bytes:
    return rounding("OcsQuantize", 3, np.ones(4, np.float32), np.ones(4), (-8, 7, 0), np.int32([1]))


def fake_quantize() -> bytes:
    ones = np.ones(4, np.float32)
    return rounding("OcsFakeQuantize", 3, ones, ones, (-8, 7, 0), np.int32([1]))


def _set_type(position: int, name: str) -> Callable[[Damage], None]:
    return lambda d: setattr(d.tensor(position), "type", getattr(schema.TensorType, name))


def _put(position: int, values: Any, dtype: Any = np.int32) -> Callable[[Damage], None]:
    return lambda d: d.put(position, values, dtype)


def _leave_out(position: int) -> Callable[[Damage], None]:
    return lambda d: d.inputs.__setitem__(position, MISSING)


def _compute(position: int) -> Callable[[Damage], None]:
    return lambda d: setattr(d.tensor(position), "buffer", 0)


MALFORMED: dict[str, tuple[Callable[[], bytes], Callable[[Damage], None], str]] = {
    "no inputs": (dequantize, lambda d: d.inputs.clear(), "it has 0 inputs"),
    "packed is missing": (dequantize, _leave_out(0), r"`packed` \(input 0\) is missing"),
    "x is missing": (quantize, _leave_out(0), "`x` is tensor -1"),
    "packed is int8": (dequantize, _set_type(0, "INT8"), "type of `packed` is int8"),
    "meta is computed": (dequantize, _compute(2), "`meta` .* must be a constant"),
    "copies are computed": (dequantize, _compute(3), "`copies` .* must be a constant"),
    "a constant is the output": (
        dequantize,
        lambda d: d.operator.outputs.__setitem__(0, d.inputs[1]),
        "`output` must not be a constant",
    ),
    "x is the output": (
        fake_quantize,
        lambda d: d.operator.outputs.__setitem__(0, d.inputs[0]),
        "`output` is `x`",
    ),
    "a variable is the output": (
        quantize,
        lambda d: setattr(d.output(), "isVariable", True),
        "`output` must not be a constant or a variable",
    ),
    "scale is a matrix": (dequantize, _put(1, np.ones((3, 1)), np.float32), "one dimension"),
    "scale is a scalar": (dequantize, _put(1, 1, np.float32), "one dimension"),
    "version 2": (dequantize, _put(2, [2, 4, 1, 3, 3, 2, 5]), "version 2 of the format"),
    "no shape": (dequantize, _put(2, [1, 4, 1, 3]), "`meta` has 4 elements"),
    "9 bits": (dequantize, _put(2, [1, 9, 1, 3, 3, 2, 5]), "`meta` has 9 bits"),
    "scaling 3": (dequantize, _put(2, [1, 4, 3, 3, 3, 2, 5]), "`meta` has scaling 3"),
    "4 rows": (dequantize, _put(2, [1, 4, 1, 4, 3, 2, 5]), "`meta` has 4 rows"),
    "a dimension of 0": (dequantize, _put(2, [1, 4, 1, 3, 3, 0, 5]), "a dimension of 0"),
    "overflow": (dequantize, _put(2, [1, 4, 1, 3] + [2**31 - 1] * 8), "too large"),
    "a row too much": (dequantize, _put(2, [1, 4, 1, 4, 4, 2, 5]), "`packed` has 21 bytes"),
    "channel 5 of 5": (dequantize, _put(3, [0, 5]), "`copies` has channel 5"),
    "two scales": (dequantize, _put(1, [1, 1], np.float32), "`scale` has 2 elements"),
    "codes go down": (quantize, _put(2, [1, 7, -8, 0]), "codes 7 to -8"),
    "codes of 9 bits": (quantize, _put(2, [1, -8, 128, 0]), "codes -8 to 128"),
    "codes of 17 bits": (fake_quantize, _put(3, [1, -8, 2**15, 0]), "codes -8 to 32768"),
    "output is float32": (
        quantize,
        lambda d: setattr(d.output(), "type", schema.TensorType.FLOAT32),
        "`output` is float32",
    ),
    "channel 3 of 3": (quantize, _put(3, [3]), "`copies` has channel 3"),
    "scales for 3 of 4": (quantize, _put(1, [1, 1, 1], np.float32), "must have 1 or 4"),
    "fewer scales": (fake_quantize, _put(2, [1], np.float32), "`scale` has 1 elements"),
    "x is a scalar": (quantize, lambda d: setattr(d.tensor(0), "shape", []), "`x` must have one"),
    "a circle": (
        lambda: chain(PackedKernel.random(np.random.default_rng(0), (6, 6), 4, TENSOR)),
        lambda d: d.graph.operators[1].inputs.__setitem__(0, d.graph.operators[2].outputs[0]),
        "not in order",
    ),
    "activation 3": (fully_connected, _put(3, [1, 4, 1, 3, 3, 5]), "has activation 3"),
    "4 channels": (fully_connected, _put(3, [1, 4, 1, 0, 3, 4]), "`copies` has|`packed` has"),
    "another width of x": (
        fully_connected,
        lambda d: setattr(d.tensor(0), "shape", [1, 6]),
        "`x` has 6 channels, but must have 5",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused(library: str, runtime: str, case: str) -> None:
    make, change, message = MALFORMED[case]
    damage = Damage(make())
    change(damage)
    delegate = load(runtime, library)
    with pytest.raises((RuntimeError, ValueError), match=message):
        interpret(runtime, damage.content(), [delegate]).allocate_tensors()


@pytest.mark.parametrize("make", [dequantize, fully_connected, quantize, fake_quantize])
def test_the_files_are_well_formed_before(
    library: str, runtime: str, make: Callable[[], bytes]
) -> None:
    interpret(runtime, Damage(make()).content(), [load(runtime, library)]).allocate_tensors()
