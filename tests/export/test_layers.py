"""Every layer that can be quantized, in a file of every target, run by both runtimes."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export import flatbuffer as fb
from ocs_tf.runtime import runner, tflite

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    # a layer (its name is "layer"), the shape that it reads; () for three row numbers
    "Dense": (lambda: layers.Dense(5), (4, 6)),
    "EinsumDense": (
        lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
        (4, 6),
    ),
    "Embedding": (lambda: layers.Embedding(7, 4), ()),
    "Conv1D": (lambda: layers.Conv1D(5, 3, padding="causal"), (6, 4)),
    "Conv2D": (lambda: layers.Conv2D(4, 3, groups=2), (6, 6, 4)),
    "Conv3D": (lambda: layers.Conv3D(5, 2), (3, 4, 3, 4)),
    "DepthwiseConv1D": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), (6, 4)),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 4)),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(5, 3, strides=2), (6, 4)),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(5, 3, strides=2), (4, 4, 4)),
    "Conv3DTranspose": (lambda: layers.Conv3DTranspose(5, 2), (3, 4, 3, 4)),
    "SeparableConv1D": (lambda: layers.SeparableConv1D(5, 3), (6, 4)),
    "SeparableConv2D": (lambda: layers.SeparableConv2D(5, 3), (6, 6, 4)),
    "RNN": (lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)]), (4, 5)),
    "LSTM": (lambda: layers.LSTM(4, return_sequences=True), (4, 5)),
    "GRU": (lambda: layers.GRU(4, reset_after=False), (4, 5)),
    "SimpleRNN": (lambda: layers.SimpleRNN(4), (4, 5)),
    "Bidirectional": (lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True)), (4, 5)),
    "TimeDistributed": (lambda: layers.TimeDistributed(layers.Conv1D(3, 2)), (4, 5, 2)),
    "MultiHeadAttention": (lambda: layers.MultiHeadAttention(2, 3), (4, 6)),
    "GroupQueryAttention": (lambda: layers.GroupQueryAttention(3, 4, 2), (4, 6)),
}
# Integers inside of these, where the Keras model computes in float.
INSIDE = ("RNN", "LSTM", "GRU", "Bidirectional", "TimeDistributed", "Attention")
RUNTIMES = ("ai_edge_litert", "tensorflow")


def model_of(case: str) -> keras.Model:
    make, shape = CASES[case]
    layer = make()
    layer.name = "layer"
    inputs = keras.Input(shape or (3,), dtype="float32" if shape else "int32")
    outputs = layer(inputs, inputs) if "Attention" in case else layer(inputs)
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(0, 0.6, w.shape).astype(np.float32) for w in model.weights])
    return model


def data_for(case: str) -> np.ndarray:
    rng = np.random.default_rng(4)
    shape = CASES[case][1]
    if not shape:
        return rng.integers(0, 7, (8, 3)).astype(np.int32)
    return rng.normal(size=(8, *shape)).astype(np.float32)


def quantize(case: str, bits: int, ratio: float, **options: Any) -> keras.Model:
    everywhere = ocs_tf.Override(lambda _: True, weight_bits=bits, expand_ratio=ratio)
    return ocs_tf.convert(model_of(case), overrides=[everywhere], verbose=False, **options)


def run(path: pathlib.Path, x: np.ndarray, runtime: str) -> np.ndarray:
    interpreter = tflite.Interpreter(path, runtime=runtime)
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in x:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(made["index"]).copy())
    return np.concatenate(outputs)


def operators(path: pathlib.Path) -> set[str]:
    model = fb.read(path.read_bytes())
    return {fb.op_name(model, op) for _, op in fb.operators(model)}


@pytest.mark.parametrize("case", CASES)
def test_float_activations(case: str, tmp_path: pathlib.Path) -> None:
    quantized = quantize(case, 5, 0.2)
    x = data_for(case)
    want = np.asarray(quantized(x))
    for target in ("float", "packed"):
        path = tmp_path / f"{target}.tflite"
        ocs_tf.export_tflite(quantized, path, target=target)
        for runtime in RUNTIMES:
            got = run(path, x, runtime)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=target)


@pytest.mark.parametrize("case", CASES)
def test_integer_activations(case: str, tmp_path: pathlib.Path) -> None:
    x = data_for(case)
    quantized = quantize(case, 6, 0.2, activation_bits=8, representative_dataset=x)
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, representative_dataset=x, io_dtype="float32")
    want = np.asarray(quantized(x))
    inside = any(name in case for name in INSIDE)
    for runtime in RUNTIMES:
        error = run(path, x, runtime) - want
        if inside:
            assert np.square(want).sum() > 100 * np.square(error).sum()  # 20 dB
        else:  # a step or two of the output's 255
            assert np.abs(error).max() <= 2 / 255 * np.ptp(want)
    in_float = [note for note in result.notes if "computed in float" in note]
    assert bool(in_float) == case.startswith("Conv3D")
    assert "WHILE" not in operators(path)


@pytest.mark.parametrize("case", ["Dense", "Conv1D", "LSTM", "Bidirectional", "MultiHeadAttention"])
def test_int4_kernels(case: str, tmp_path: pathlib.Path) -> None:
    x = data_for(case)
    quantized = quantize(case, 4, 0.0, activation_bits=8, representative_dataset=x)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(
        quantized, path, target="int4", representative_dataset=x, io_dtype="float32"
    )
    want = np.asarray(quantized(x))
    for runtime in RUNTIMES:
        noise = np.square(run(path, x, runtime) - want).sum()
        assert np.square(want).sum() > 100 * noise  # 20 dB
    model = fb.read(path.read_bytes())
    assert "int4" in {fb.type_name(t) for t in model.subgraphs[0].tensors}


# Each pair of a layer, a kind of activations and a kind of kernels.
@pytest.mark.parametrize(
    ("case", "activations", "target"),
    [
        *(("LSTM", activations, "int8") for activations in ("float", "dynamic")),
        *(("LSTM", activations, "int4") for activations in ("float", "dynamic")),
        *(("GRU", "float", "int8"), ("GRU", "dynamic", "int4")),
        *(("Bidirectional", "float", "int4"), ("Bidirectional", "dynamic", "int8")),
    ],
)
def test_integer_kernels_inside_of_a_loop(
    case: str, activations: str, target: str, tmp_path: pathlib.Path
) -> None:
    quantized = quantize(case, 4, 0.0)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target=target, activations=activations)
    assert "WHILE" in operators(path)
    x = data_for(case)
    want = np.asarray(quantized(x))
    tolerance = 1e-4 if activations == "float" else 0.05
    for runtime in RUNTIMES:
        np.testing.assert_allclose(run(path, x, runtime), want, atol=tolerance)


# ai-edge-quantizer has no form of these with float activations.
@pytest.mark.parametrize("activations", ["float", "dynamic"])
@pytest.mark.parametrize("case", ["Embedding", "Conv3D", "Conv3DTranspose"])
def test_integer_kernels_that_are_dequantized(
    case: str, activations: str, tmp_path: pathlib.Path
) -> None:
    """Exactly the codes, and rows of a table are turned into floats after they are looked up."""
    quantized = quantize(case, 8, 0.0)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, activations=activations)
    x = data_for(case)
    want = np.asarray(quantized(x))
    for runtime in RUNTIMES:
        np.testing.assert_allclose(run(path, x, runtime), want, rtol=1e-5, atol=1e-5)
    model = fb.read(path.read_bytes())
    kernel = model_of(case).weights[0]
    stored = [
        fb.type_name(tensor)
        for tensor in model.subgraphs[0].tensors
        if fb.is_constant(model, tensor) and np.prod(fb.shape(tensor)) == kernel.numpy().size
    ]
    assert stored == ["int8"]
    if case == "Embedding":
        assert [fb.op_name(model, op) for _, op in fb.operators(model)][-2:] == [
            "GATHER",
            "DEQUANTIZE",
        ]


def test_a_table_that_is_looked_up_twice(tmp_path: pathlib.Path) -> None:
    ids = keras.Input((3,), dtype="int32")
    table = layers.Embedding(7, 4)
    first, second = table(ids), table(ids[:, ::-1])
    model = keras.Model(ids, layers.Dense(5)(first + second))
    x = data_for("Embedding")
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, activations="float")
    want = np.asarray(quantized(x))
    for runtime in RUNTIMES:
        np.testing.assert_allclose(run(path, x, runtime), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["LSTM", "GRU", "SimpleRNN"])
def test_sequences_of_any_length_have_no_integer_activations(
    case: str, tmp_path: pathlib.Path
) -> None:
    inputs = keras.Input((None, 5))
    layer = CASES[case][0]()
    layer.name = "layer"
    x = data_for(case)
    quantized = ocs_tf.convert(
        keras.Model(inputs, layer(inputs)),
        activation_bits=8,
        representative_dataset=x,
        verbose=False,
    )
    with pytest.raises(ValueError, match=r"'layer' reads sequences of any length.*packed"):
        ocs_tf.export_tflite(quantized, tmp_path / "model.tflite", representative_dataset=x)
    assert not list(tmp_path.iterdir())


def test_split_groups_of_a_convolution_without_merging(tmp_path: pathlib.Path) -> None:
    """Each group reads its own copies, which slices of the input are concatenated for."""
    x = data_for("Conv2D")
    quantized = quantize("Conv2D", 8, 0.5, activation_bits=8, representative_dataset=x)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(
        quantized, path, merge_copies=False, representative_dataset=x, io_dtype="float32"
    )
    assert "CONCATENATION" in operators(path)
    want = np.asarray(quantized(x))
    for runtime in RUNTIMES:
        assert np.abs(run(path, x, runtime) - want).max() <= 2 / 255 * np.ptp(want)


def test_masked_scores_keep_their_steps(tmp_path: pathlib.Path) -> None:
    """A mask of -1e38 would leave one step for all scores."""
    inputs = keras.Input((6, 8))
    attention = layers.MultiHeadAttention(2, 4)
    model = keras.Model(inputs, attention(inputs, inputs, use_causal_mask=True))
    rng = np.random.default_rng(5)
    model.set_weights([rng.normal(0, 0.6, w.shape).astype(np.float32) for w in model.weights])
    x = rng.normal(size=(8, 6, 8)).astype(np.float32)
    quantized = ocs_tf.convert(model, activation_bits=8, representative_dataset=x, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=x, io_dtype="float32")
    want = np.asarray(quantized(x), np.float64)
    noise = np.square(run(path, x, "ai_edge_litert") - want).sum()
    assert 10 * np.log10(np.square(want).sum() / noise) > 30


@pytest.mark.parametrize("target", ["int8", "packed"])
def test_a_bias_for_each_step(target: str, tmp_path: pathlib.Path) -> None:
    """Of `[B, T, C]`, not for each channel, as other operators in one dimension read it."""
    inputs = keras.Input((5, 4))
    x = layers.EinsumDense("abc,bd->adc", (3, 4), bias_axes="d")(inputs)
    x = layers.DepthwiseConv1D(2)(layers.MaxPooling1D(2, strides=1)(x))
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.weights])
    data = rng.normal(size=(16, 5, 4)).astype(np.float32)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target=target, representative_dataset=data)
    file = tflite.Interpreter(path)
    (given,), (made,) = file.get_input_details(), file.get_output_details()
    wanted = np.asarray(quantized(data[:1]))
    file.set_tensor(given["index"], runner.to_codes(data[:1], given))
    file.invoke()
    found = runner.to_floats(file.get_tensor(made["index"]), made)
    np.testing.assert_allclose(found, wanted, atol=np.abs(wanted).max() / 60)
