"""Files on TFLite Micro: outputs bit for bit, arenas, operators to register, the C++ array."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import ai_edge_litert.interpreter as litert
import numpy as np
import pytest

import ocs_tf
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import int4, micro
from ocs_tf.export.errors import VerificationError
from ocs_tf.runtime import micro as micro_runtime
from ocs_tf.runtime import runner, tflite
from tests.export.networks import FAST, MODELS, covering, quantized_model, samples
from tests.export.test_layers import CASES, data_for, quantize

needs_micro = pytest.mark.skipif(
    not micro_runtime.installed(), reason='needs tflite-micro: pip install "ocs_tf[micro]"'
)
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

# Operators that TFLite Micro does not have.
LACKING = {"layer-norm": "GELU"}
OPTIONS = {
    "w8": {},
    "w5-split": {"weight_bits": 5, "expand_ratio": 0.2},
    "w8-split-tensor": {"weight_bits": 8, "expand_ratio": 0.2, "granularity": "tensor"},
    "w3-unfolded": {"weight_bits": 3, "fold_batch_norm": False},
}


class Reference:
    """A file, one operator at a time, by LiteRT's reference kernels.

    Dense layers with int8 outputs are computed here, with both of gemmlowp's roundings: LiteRT's
    reference kernel rounds once where a kernel has scales per channel, TFLite Micro twice.
    """

    def __init__(self, content: bytes) -> None:
        self.model = fb.read(content)
        self.graph = self.model.subgraphs[0]
        self.operators = [self._compiled(op) for op in self.graph.operators]

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Codes of the outputs."""
        values = dict(zip(self.graph.inputs, inputs, strict=True))
        for op, interpreter in zip(self.graph.operators, self.operators, strict=True):
            if interpreter is None:
                values[op.outputs[0]] = self._dense(op, values[op.inputs[0]])
                continue
            runner.run(interpreter, [values[index] for index in self._computed(op)])
            values.update(zip(op.outputs, runner.outputs(interpreter), strict=True))
        return [values[index] for index in self.graph.outputs]

    def _computed(self, op: Any) -> list[int]:
        """What an operator reads that is no constant."""
        inputs = dict.fromkeys(index for index in op.inputs if index >= 0)
        return [i for i in inputs if not fb.is_constant(self.model, self.graph.tensors[i])]

    def _compiled(self, op: Any) -> litert.Interpreter | None:
        types = [fb.type_name(self.graph.tensors[op.outputs[0]])]
        types += [fb.type_name(self.graph.tensors[index]) for index in self._computed(op)]
        if fb.op_name(self.model, op) == "FULLY_CONNECTED" and types == ["int8", "int8"]:
            return None
        part = fb.extracted(self.model, [op], self._computed(op), op.outputs)
        # Without the codes of others: an interpreter refuses what it does not know.
        part.operatorCodes = [self.model.operatorCodes[op.opcodeIndex]]
        part.subgraphs[0].operators[0].opcodeIndex = 0
        return reference_interpreter(fb.write(part))

    def _dense(self, op: Any, x: np.ndarray) -> np.ndarray:
        tensors = [self.graph.tensors[index] for index in op.inputs if index >= 0]
        output = self.graph.tensors[op.outputs[0]]
        kernel = int4.codes_of(self.model, tensors[1]).astype(np.int64)
        grids = [fb.grid(tensor) for tensor in (tensors[0], tensors[1], output)]
        (step, zero), (steps, _), (out_step, out_zero) = [(s.astype(float), z) for s, z in grids]
        sums = (x.reshape(-1, kernel.shape[1]).astype(np.int64) - zero) @ kernel.T
        if len(tensors) > 2:
            sums += fb.constant(self.model, tensors[2])
        factors = step * np.broadcast_to(steps, len(kernel)) / out_step
        columns = [
            twice_rounded(column, factor) for column, factor in zip(sums.T, factors, strict=True)
        ]
        floor = {"NONE": -128, "RELU": int(out_zero[0])}[fb.fused_activation(op)]
        codes = np.clip(np.stack(columns, 1) + out_zero, floor, 127)
        return codes.astype(np.int8).reshape(fb.shape(output))


def twice_rounded(sums: np.ndarray, factor: float) -> np.ndarray:
    """`sums * factor` in integers, as gemmlowp multiplies: by 31 bits, then by a power of two."""
    fraction, exponent = np.frexp(factor)
    multiplier = int(np.floor(fraction * 2**31 + 0.5))
    shift = -int(exponent)
    assert shift >= 0
    product = sums * multiplier + np.where(sums >= 0, 1 << 30, 1 - (1 << 30))
    high = np.where(product >= 0, product >> 31, -(-product >> 31))  # towards 0
    rest, half = high & ((1 << shift) - 1), ((1 << shift) - 1) >> 1
    return (high >> shift) + (rest > half + (high < 0))


def reference_interpreter(content: bytes) -> litert.Interpreter:
    """The reference kernels of LiteRT; where these lack an operator (ELU), its optimized ones."""
    kinds = litert.OpResolverType
    for kind in (kinds.BUILTIN_REF, kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
        try:
            interpreter = litert.Interpreter(
                model_content=content, experimental_op_resolver_type=kind
            )
        except ValueError:
            continue
        interpreter.allocate_tensors()
        return interpreter
    raise AssertionError("LiteRT has no kernels for the file")


def assert_equal_outputs(path: pathlib.Path, inputs: Sequence[np.ndarray]) -> None:
    """TFLite Micro and the reference kernels compute the same codes, of samples and of noise."""
    content = path.read_bytes()
    micro_interpreter = tflite.Interpreter(content, runtime="tflite_micro")
    expected_of = Reference(content)
    details = micro_interpreter.get_input_details()
    rng = np.random.default_rng(5)
    for number in range(len(inputs[0])):
        rows = [array[number : number + 1] for array in inputs]
        codes = [runner.to_codes(row, d) for row, d in zip(rows, details, strict=True)]
        if number % 2 and codes[0].dtype == np.int8:
            codes = [rng.integers(-128, 128, row.shape).astype(np.int8) for row in codes]
        runner.run(micro_interpreter, codes)
        found = runner.outputs(micro_interpreter)
        for got, expected in zip(found, expected_of(codes), strict=True):
            np.testing.assert_array_equal(got, expected)


@needs_micro
@pytest.mark.parametrize(("name", "options"), covering(OPTIONS, (0, 2)))
def test_outputs_of_networks_equal_the_reference_kernels(name, options, tmp_path):
    model = MODELS[name]()
    data = samples(model)
    quantized = ocs_tf.convert(
        model, representative_dataset=data, verbose=False, **FAST, **OPTIONS[options]
    )
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    if name in LACKING:
        assert result.arena_bytes is None
        refusal = f"refuses the file: Didn't find op for builtin opcode {LACKING[name]!r}"
        assert refusal in str(result)
        return
    assert_equal_outputs(path, list(data.values()))
    assert set(result.operators) <= micro.OPERATORS
    assert f"TFLite Micro: an arena of {result.arena_bytes:,} bytes; operators: Add" in str(result)


@needs_micro
@pytest.mark.parametrize("case", CASES)
def test_outputs_of_layers_equal_the_reference_kernels(case, tmp_path):
    x = data_for(case)
    quantized = quantize(case, 6, 0.2, activation_bits=8, representative_dataset=x)
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, representative_dataset=x)
    if result.arena_bytes is None:
        missing = set(result.operators) - micro.OPERATORS
        assert missing, result.arena
        return
    assert_equal_outputs(path, [x])


@needs_micro
@pytest.mark.parametrize("bits", [4, 6])
def test_outputs_of_int4_files(bits, tmp_path):
    quantized = quantized_model(weight_bits=4, first_layer_bits=bits)
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, target="int4")
    assert_equal_outputs(path, [samples(MODELS["mobile"]())["x"]])
    assert result.arena_bytes


@needs_micro
def test_the_operators_are_those_of_the_library():
    """Which has a function `Register_NAME` for each."""
    import tflite_micro

    (library,) = pathlib.Path(tflite_micro.__file__).parent.rglob("_runtime.so")
    # Mangled: the length of the name, the name, and E or v.
    found = set(re.findall(rb"Register_([A-Z0-9_]+?)(?:Ev|v)\b", library.read_bytes()))
    assert {name.encode() for name in micro.OPERATORS} <= found


def test_methods():
    for operator, expected in {
        "CONV_2D": "AddConv2D",
        "L2_POOL_2D": "AddL2Pool2D",
        "RELU6": "AddRelu6",
        "PADV2": "AddPadV2",
        "BATCH_TO_SPACE_ND": "AddBatchToSpaceNd",
        "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
    }.items():
        assert micro.method(operator) == expected


def test_operators_come_once_in_their_order(tmp_path):
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized_model(), path)
    names = [op["op_name"] for op in reference_interpreter(path.read_bytes())._get_ops_details()]
    assert list(result.operators) == list(dict.fromkeys(names))
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "SOFTMAX"} <= set(result.operators)


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(micro_runtime, "installed", lambda: False)
    array = tmp_path / "model.cc"
    result = ocs_tf.export_tflite(quantized_model(), tmp_path / "model.tflite", c_array=array)
    assert result.arena is None
    assert result.arena_bytes is None
    assert "TFLite Micro" not in str(result)
    assert "arena_size" not in array.with_suffix(".h").read_text()


# Prints the array's bytes, its address, and the operators that it registers.
PROGRAM = """
#include "my-model 2.h"
#include <cstdint>
#include <cstdio>

struct Resolver {
%s
};

int main() {
  Resolver resolver;
  bool all = g_my_model_2_register(resolver);
  std::printf("%%d %%u %%zu %%d\\n", all, g_my_model_2_operators, g_my_model_2_arena_size,
              static_cast<int>(reinterpret_cast<std::uintptr_t>(g_my_model_2) %% 16));
  std::fflush(stdout);
  std::fwrite(g_my_model_2, 1, g_my_model_2_size, stdout);
}
"""


@needs_micro
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_the_array_is_the_file(tmp_path):
    path, array = tmp_path / "model.tflite", tmp_path / "my-model 2.cc"
    result = ocs_tf.export_tflite(quantized_model(), path, c_array=array)
    methods = [
        f'  int {micro.method(name)}() {{ std::puts("{name}"); return 0; }}'
        for name in sorted(micro.OPERATORS)
    ]
    program = tmp_path / "main.cc"
    program.write_text(PROGRAM % "\n".join(methods))
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [COMPILER, *flags, program, array, "-o", tmp_path / "main"], check=True, cwd=tmp_path
    )
    printed = subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout
    count = len(result.operators)
    *registered, numbers, content = printed.split(b"\n", count + 1)
    assert [name.decode() for name in registered] == list(result.operators)
    assert numbers.split() == [b"1", b"%d" % count, b"%d" % result.arena_bytes, b"0"]
    assert content == path.read_bytes()


@needs_micro
def test_an_operator_that_it_lacks_leaves_no_file(tmp_path):
    model = MODELS["layer-norm"]()
    data = samples(model)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False, **FAST)
    with pytest.raises(VerificationError, match="TFLite Micro has no GELU, which the file needs"):
        ocs_tf.export_tflite(
            quantized,
            tmp_path / "model.tflite",
            c_array=tmp_path / "model.cc",
            representative_dataset=data,
        )
    assert not list(tmp_path.iterdir())


def test_a_refused_file_is_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr(micro_runtime, "installed", lambda: True)
    refusal = micro_runtime.Arena(None, "too many inputs")
    monkeypatch.setattr(micro_runtime, "find_arena", lambda content: refusal)
    with pytest.raises(VerificationError, match="TFLite Micro refuses the file: too many inputs"):
        ocs_tf.export_tflite(
            quantized_model(), tmp_path / "model.tflite", c_array=tmp_path / "model.cc"
        )
    assert not list(tmp_path.iterdir())


def test_all_files_or_none(monkeypatch, tmp_path):
    """If the .tflite file cannot be written, the array is not either."""
    from ocs_tf.export import exporter

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        ocs_tf.export_tflite(
            quantized_model(), tmp_path / "model.tflite", c_array=tmp_path / "model.cc"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c_array": "model.h"}, r"`c_array` \(=model.h\) must end in one of .cc, .cpp, .cxx"),
        ({"c_array": "model.cc", "target": "packed"}, "cannot read packed kernels"),
        ({"c_array": "model.cc", "dynamic_batch": True}, "needs a fixed batch size"),
        ({"c_array": 5}, "`c_array`.*must be the path of a file"),
    ],
)
def test_what_is_refused_before_work(options, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        ocs_tf.export_tflite(quantized_model(), "model.tflite", **options)


@pytest.mark.parametrize("name", ["model.cc", "model.h"])
def test_existing_arrays_and_headers_stay(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"{name} exists; pass overwrite=True"):
        ocs_tf.export_tflite(
            quantized_model(), tmp_path / "model.tflite", c_array=tmp_path / "model.cc"
        )
    assert (tmp_path / name).read_text() == "mine"


@needs_micro
def test_a_network_of_the_zoo_equals_the_reference_kernels(zoo, tmp_path):
    network = zoo.load("resnet20_cifar10", limit=4)
    quantized = ocs_tf.convert(
        network.model, representative_dataset=network.calibration[:32], verbose=False, **FAST
    )
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, overwrite=True)
    assert_equal_outputs(path, [network.calibration[:4]])
    assert 32 * 32 * 16 * 2 < result.arena_bytes < 100_000
