"""Packed files: what they hold, read bit by bit, and what they compute in both runtimes."""

from __future__ import annotations

import pathlib
import re

import keras
import numpy as np
import pytest
from ai_edge_litert import interpreter as litert
from keras import layers
from tensorflow.lite.python.interpreter import OpResolverType

import ocs_tf
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import packed
from ocs_tf.export.errors import VerificationError
from ocs_tf.runtime import library, tflite
from tests.export.networks import (
    EACH_WIDTH,
    FAST,
    MODELS,
    WIDTHS,
    covering,
    of_each_width,
    samples,
    single,
)

RESOLVERS = {"ai_edge_litert": litert.OpResolverType, "tensorflow": OpResolverType}
# Largest relative difference of float32 sums that are added up in another order.
FLOAT32 = 1e-5


def export(model: keras.Model, path: pathlib.Path, **options) -> ocs_tf.ExportResult:
    return ocs_tf.export_tflite(model, path, target="packed", **options)


def run(path: pathlib.Path, data: dict[str, np.ndarray], **options) -> np.ndarray:
    """What the file computes, sample by sample."""
    interpreter = tflite.Interpreter(path, **options)
    runner = interpreter.get_signature_runner()
    count = len(next(iter(data.values())))
    rows = [
        runner(**{name: values[i : i + 1] for name, values in data.items()}) for i in range(count)
    ]
    (name,) = rows[0]
    return np.concatenate([row[name] for row in rows])


def operators(path: pathlib.Path) -> list[str]:
    model = fb.read(path.read_bytes())
    ops = model.subgraphs[0].operators
    return [fb.custom_name(model, op) or fb.op_name(model, op) for op in ops]


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32 * np.abs(expected).max())


def unpack(data: np.ndarray, bits: int, count: int) -> list[int]:
    """Codes of a row, by Python's integers."""
    whole = int.from_bytes(data.tobytes(), "little")
    fields = [(whole >> (bits * i)) % 2**bits for i in range(count)]
    return [field - 2**bits if field >= 2 ** (bits - 1) else field for field in fields]


def constants(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Inputs of each `OcsDequantize` of the file, by the layer's name."""
    model = fb.read(path.read_bytes())
    graph = model.subgraphs[0]
    return {
        fb.name(graph.tensors[op.outputs[0]]).removesuffix("/kernel"): [
            fb.constant(model, graph.tensors[i]) for i in op.inputs
        ]
        for op in graph.operators
        if fb.custom_name(model, op) == "OcsDequantize"
    }


OPTIONS = {
    "w8-split": {"weight_bits": 8, "expand_ratio": 0.2},
    "w4-split": {"weight_bits": 4, "expand_ratio": 0.3, **FAST},
    "w5-tensor": {"weight_bits": 5, "granularity": "tensor", "expand_ratio": 0.1, **FAST},
    "w3-unfolded": {"weight_bits": 3, "fold_batch_norm": False, **FAST},
}


@pytest.mark.parametrize(("name", "options"), covering(OPTIONS, [0]))
def test_file_computes_what_the_keras_model_does(name, options, tmp_path):
    model = MODELS[name]()
    data = samples(model, 4)
    quantized = ocs_tf.convert(model, verbose=False, **OPTIONS[options])
    path = tmp_path / "model.tflite"
    export(quantized, path)
    expected = np.asarray(quantized(data["x"]))
    for runtime, resolvers in RESOLVERS.items():
        assert_close(run(path, data, runtime=runtime), expected)
        resolver = resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # without XNNPACK
        without = run(path, data, runtime=runtime, experimental_op_resolver_type=resolver)
        assert_close(without, expected)


def test_without_the_library_the_notes_say_what_to_install(tmp_path, monkeypatch):
    """As where there was no compiler: the file is written, but cannot be run here."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "FILE_NAME", "not_built.so")
    quantized = ocs_tf.convert(MODELS["swish"](), weight_bits=4, verbose=False)
    result = export(quantized, tmp_path / "model.tflite")
    assert result.path.stat().st_size == result.size
    assert not result.closeness
    said = r"The file was not run: .* not_built.so is missing .*apt-get install g\+\+.*pip install"
    assert re.search(said, str(result))


@pytest.mark.parametrize(
    ("name", "scope", "weight_bits"),
    [("residual", "all", 4), ("residual", "inputs", 8), ("dense-block", "inputs", 4)],
)
def test_split_activations(name, weight_bits, scope, tmp_path):
    """Copies are channels in the file, of activations and of weights, each rounded by itself."""
    model = MODELS[name]()
    data = samples(model, 16)
    quantized = ocs_tf.convert(
        model,
        weight_bits=weight_bits,
        expand_ratio=0.3,
        activation_bits=5,
        activation_scope=scope,
        activation_expand_ratio=0.4,
        activation_split="maximum",
        representative_dataset=data,
        verbose=False,
    )
    grids = [getattr(v, "grid", None) or getattr(v, "output_grid", None) for v in quantized.layers]
    assert any(grid.copies for grid in grids if grid is not None)
    path = tmp_path / "model.tflite"
    export(quantized, path)
    expected = np.asarray(quantized(data["x"]))
    difference = np.abs(run(path, data) - expected) / np.abs(expected).max()
    assert (difference > 1e-4).mean() < 0.05  # a tie in a rounding, now and then
    assert difference.max() < 0.1


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_file_holds_the_codes_of_the_layers(granularity, tmp_path):
    quantized = ocs_tf.convert(
        of_each_width(),
        granularity=granularity,
        expand_ratio=0.3,
        overrides=EACH_WIDTH,
        verbose=False,
    )
    path = tmp_path / "model.tflite"
    export(quantized, path)
    found = constants(path)
    kernels = [v for v in quantized.layers if isinstance(v, ocs_tf.layers.KernelLayer)]
    assert sorted(found) == sorted(layer.name for layer in kernels)
    for layer in kernels:
        bits = EACH_WIDTH[layer.name]["weight_bits"]
        data, scale, meta, *copies = found[layer.name]
        kernel = layer.quantized_kernel()
        np.testing.assert_array_equal(scale, kernel.scale.reshape(-1))
        mapping = kernel.channel_map[kernel.channels :]
        np.testing.assert_array_equal(copies[0] if copies else [], mapping)
        h, w, inputs, outputs = kernel.codes.shape
        if isinstance(layer, layers.DepthwiseConv2D):
            rows = kernel.codes.reshape(h * w, inputs * outputs)
            assert meta.tolist()[4:] == [1, h, w, inputs * outputs]
        else:
            parts = np.split(kernel.codes, [kernel.channels], axis=2)
            rows = np.concatenate(
                [part.transpose(3, 0, 1, 2).reshape(outputs, -1) for part in parts], axis=1
            )
            assert meta.tolist()[4:] == [outputs, h, w, kernel.channels]
        assert meta.tolist()[1] == bits
        assert meta.tolist()[3] == len(rows)
        strings = data.reshape(len(rows), -1)
        assert strings.shape[1] == -(-bits * rows.shape[1] // 8)
        for string, row in zip(strings, rows, strict=True):
            assert unpack(string, bits, len(row)) == row.tolist()


def test_size_is_that_of_the_codes(tmp_path):
    def network(x):
        for bits in (8, 2, 5, 3):
            x = layers.Conv2D(64, 3, activation="relu", name=f"conv{bits}")(x)
        return layers.Dense(10, name="head")(layers.Flatten()(x))

    model = single(network, (12, 12, 3))
    widths = {f"conv{bits}": {"weight_bits": bits} for bits in (2, 3, 5)}
    quantized = ocs_tf.convert(model, expand_ratio=0.05, overrides=widths, verbose=False)
    size = export(quantized, tmp_path / "packed.tflite").size
    rest = ocs_tf.export_tflite(quantized, tmp_path / "float.tflite", target="float").size
    packed_size = 0.0
    for layer in quantized.layers:
        if isinstance(layer, ocs_tf.layers.KernelLayer):
            kernel = layer.quantized_kernel()
            rest -= 4 * kernel.effective_codes().size
            packed_size += kernel.codes.size * kernel.bits / 8
            packed_size += 4 * (kernel.scale.size + kernel.splits)
    assert size == pytest.approx(packed_size + rest, rel=0.02)


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_activations_are_rounded_where_the_model_does(bits, tmp_path):
    model = MODELS["residual"]()
    data = samples(model)
    quantized = ocs_tf.convert(
        model, activation_bits=bits, representative_dataset=data, verbose=False
    )
    path = tmp_path / "model.tflite"
    export(quantized, path)
    rounded = [v for v in quantized.layers if getattr(v, "grid", getattr(v, "output_grid", None))]
    assert operators(path).count("OcsFakeQuantize") == len(rounded)
    (last,) = (v.output_grid for v in quantized.layers if v.name == "head")
    got, expected = run(path, data), np.asarray(quantized(data["x"]))
    codes = got / np.float32(last.scale)
    np.testing.assert_allclose(codes, np.rint(codes), atol=2.0**-8)
    # A sum in floating point may fall on the other side of a tie, and that is passed on.
    assert np.mean(np.abs(got - expected) > 0.5 * last.scale) < (0.02 if bits <= 8 else 0.5)
    assert ocs_tf.numerics.sqnr_db(expected, got) > 35


def test_fused_dense(tmp_path, monkeypatch):
    """Each width and activation, side by side, and one layer that is too small."""
    monkeypatch.setattr(packed, "FUSED_CODES", 40 * 30)
    large = [*((bits, "relu") for bits in WIDTHS), (3, None), (4, "relu6"), (5, "tanh")]
    names = [f"bits{bits}_{activation}" for bits, activation in large]

    def network(x):
        parts = [
            layers.Dense(30, activation=activation, name=name)(x)
            for name, (_, activation) in zip(names, large, strict=True)
        ]
        return layers.Concatenate()([*parts, layers.Dense(7, use_bias=False, name="small")(x)])

    model = single(network, (40,))
    data = samples(model, 3)
    widths = {name: {"weight_bits": bits} for name, (bits, _) in zip(names, large, strict=True)}
    quantized = ocs_tf.convert(model, expand_ratio=0.1, overrides=widths, verbose=False)
    path = tmp_path / "model.tflite"
    export(quantized, path, fused_dense=True)
    assert operators(path).count("OcsFullyConnected") == len(large)
    assert operators(path).count("FULLY_CONNECTED") == 1
    expected = np.asarray(quantized(data["x"]))
    for runtime in RESOLVERS:
        assert_close(run(path, data, runtime=runtime), expected)


def test_fused_dense_on_more_axes_and_without_bias(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "FUSED_CODES", 1)
    model = single(lambda x: layers.Dense(9, use_bias=False, name="dense")(x), (5, 8))
    data = samples(model, 3)
    quantized = ocs_tf.convert(model, weight_bits=4, expand_ratio=0.3, verbose=False)
    path = tmp_path / "model.tflite"
    export(quantized, path, fused_dense=True)
    assert_close(run(path, data), np.asarray(quantized(data["x"])))


def test_batch_size_may_stay_open(tmp_path):
    model = MODELS["mobile"]()
    quantized = ocs_tf.convert(model, weight_bits=4, verbose=False)
    path = tmp_path / "model.tflite"
    export(quantized, path, dynamic_batch=True)
    interpreter = tflite.Interpreter(path)
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    for count in (1, 5, 2):
        data = samples(model, count)["x"]
        interpreter.resize_tensor_input(given["index"], data.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], data)
        interpreter.invoke()
        assert_close(interpreter.get_tensor(made["index"]), np.asarray(quantized(data)))


def test_lowest_code_under_a_negative_batch_norm(tmp_path):
    """`-2^(bits-1)` has no opposite: the factor goes into the scale, not into the codes."""
    model = single(
        lambda x: layers.BatchNormalization(name="norm")(layers.Conv2D(5, 3, name="conv")(x))
    )
    gamma = model.get_layer("norm").gamma
    gamma.assign(-np.abs(gamma))
    quantized = ocs_tf.convert(
        model,
        weight_bits=3,
        weight_clip="percentile",
        percentile=60.0,
        full_range=True,
        fold_batch_norm=False,
        first_layer_bits="same",
        last_layer_bits="same",
        verbose=False,
    )
    assert quantized.get_layer("conv").quantized_kernel().codes.min() == -(2**2)
    data = samples(model, 3)
    path = tmp_path / "model.tflite"
    export(quantized, path)
    assert_close(run(path, data), np.asarray(quantized(data["x"])))


def test_copies_of_a_single_channel(tmp_path):
    """A convolution over one channel may become a depthwise one, whose rows are pixels."""
    model = single(lambda x: layers.Conv2D(6, 3, name="conv")(x), (8, 8, 1))
    quantized = ocs_tf.convert(
        model, overrides={"conv": {"weight_bits": 4, "expand_ratio": 1.0}}, verbose=False
    )
    assert quantized.get_layer("conv").copies == 1
    data = samples(model, 3)
    path = tmp_path / "model.tflite"
    export(quantized, path)
    assert_close(run(path, data), np.asarray(quantized(data["x"])))


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_kernel_in_the_operator_of_the_other_kind(kind):
    """Over one channel the two are the same; copies stand where that operator's rows have them."""
    rng = np.random.default_rng(1)
    copies = 2 if kind == "conv" else 0
    codes = rng.integers(-7, 8, (3, 2, 1 + copies, 5)).astype(np.int8)
    mapping = np.zeros(1 + copies, np.int32)
    scale = rng.uniform(1, 2, 5).astype(np.float32)
    kernel = packed.PackedKernel(
        "layer", kind, ocs_tf.numerics.QuantizedKernel(codes, scale, mapping, 4)
    )
    effective = codes.astype(int).sum(axis=2)  # [h, w, out]
    by_pixel = packed.stored(kernel, "DEPTHWISE_CONV_2D")
    sums = by_pixel.codes[:, :5].astype(int)
    for column, channel in zip(by_pixel.codes[:, 5:].T, by_pixel.copies, strict=True):
        sums[:, channel] += column
    np.testing.assert_array_equal(sums, effective.reshape(6, 5))
    assert by_pixel.scaling == packed.PER_COLUMN
    by_output = packed.stored(kernel, "CONV_2D")
    sums = by_output.codes[:, :6] + by_output.codes[:, 6:].astype(int).reshape(5, 6, -1).sum(axis=2)
    np.testing.assert_array_equal(sums, effective.reshape(6, 5).T)
    assert by_output.scaling == packed.PER_ROW


def test_shared_layer_is_stored_once(tmp_path):
    quantized = ocs_tf.convert(MODELS["shared-layer"](), weight_bits=4, verbose=False)
    path = tmp_path / "model.tflite"
    export(quantized, path)
    assert operators(path).count("CONV_2D") == 2
    assert operators(path).count("OcsDequantize") == 2  # of "shared", and of "head"


def test_layers_left_in_float_stay_as_they_are(tmp_path):
    model = MODELS["mobile"]()
    quantized = ocs_tf.convert(model, weight_bits=4, last_layer_bits=None, verbose=False)
    path = tmp_path / "model.tflite"
    export(quantized, path)
    assert "head" not in constants(path)
    data = samples(model, 3)
    assert_close(run(path, data), np.asarray(quantized(data["x"])))


def test_the_float_kernels_are_gone(tmp_path):
    quantized = ocs_tf.convert(MODELS["residual"](), weight_bits=4, verbose=False)
    path = tmp_path / "model.tflite"
    export(quantized, path)
    kernels = {
        v.quantized_kernel().effective_kernel().tobytes()
        for v in quantized.layers
        if isinstance(v, ocs_tf.layers.KernelLayer)
    }
    model = fb.read(path.read_bytes())
    sizes = [len(buffer.data) for buffer in model.buffers if buffer.data is not None]
    assert max(sizes) < max(map(len, kernels))


def test_result_says_what_the_file_needs(tmp_path):
    quantized = ocs_tf.convert(MODELS["mobile"](), weight_bits=4, verbose=False)
    path = tmp_path / "model.tflite"
    result = export(quantized, path)
    assert result.target == "packed"
    assert result.size == path.stat().st_size
    assert "ocs_tf.tflite.Interpreter" in str(result)


@pytest.mark.parametrize("position", [0, 1, 3], ids=["codes", "scale", "copies"])
def test_a_file_that_differs_is_not_written(position, tmp_path, monkeypatch):
    quantized = ocs_tf.convert(MODELS["mobile"](), weight_bits=4, expand_ratio=0.3, verbose=False)

    def damage(model):
        graph = model.subgraphs[0]
        inputs = next(
            op.inputs
            for op in graph.operators
            if fb.custom_name(model, op) == "OcsDequantize" and len(op.inputs) == 4
        )
        buffer = model.buffers[graph.tensors[inputs[position]].buffer]
        buffer.data = buffer.data.copy()
        buffer.data[0] ^= 1
        return fb.flatbuffer_utils.convert_object_to_bytearray(model)

    monkeypatch.setattr(fb, "write", lambda model: bytes(damage(model)))
    with pytest.raises(VerificationError, match="codes, scale or copies in the file differ"):
        export(quantized, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_fused_dense_belongs_to_packed(tmp_path):
    quantized = ocs_tf.convert(MODELS["mobile"](), weight_bits=4, verbose=False)
    with pytest.raises(ValueError, match=r"`fused_dense` .* target='packed'"):
        ocs_tf.export_tflite(quantized, tmp_path / "x.tflite", target="float", fused_dense=True)
