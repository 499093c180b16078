"""Every export is run: a file that computes something else is not written."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf._compare import compare
from ocs_tf.export import exporter
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.errors import VerificationError
from ocs_tf.export.running import FLOOR_DB
from ocs_tf.runtime.model import TFLiteModel


def network() -> keras.Model:
    x = keras.Input((6, 6, 3), name="x")
    y = layers.Conv2D(4, 3, activation="relu", name="first")(x)
    y = layers.Conv2D(4, 3, activation="relu", name="second")(y)
    return keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y)))


@pytest.fixture
def quantized(rng: np.random.Generator) -> keras.Model:
    data = rng.normal(size=(16, 6, 6, 3)).astype("float32")
    return ocs_tf.convert(network(), representative_dataset=data, verbose=False)


def spoil(monkeypatch: pytest.MonkeyPatch, operator: int, scale: float = -1.0) -> None:
    """Let the writer return files in which one operator's kernel is `scale` times as large."""
    write = exporter.integer_writer.write_int8

    def write_wrong(*args, **options) -> bytes:
        model = fb.read(write(*args, **options))
        op = model.subgraphs[0].operators[operator]
        kernel = model.subgraphs[0].tensors[op.inputs[1]]
        codes = np.asarray(model.buffers[kernel.buffer].data, np.uint8).view(np.int8)
        model.buffers[kernel.buffer].data = (codes * scale).astype(np.int8).view(np.uint8)
        return fb.write(model)

    monkeypatch.setattr(exporter.integer_writer, "write_int8", write_wrong)


def test_what_was_measured_is_told(quantized, tmp_path, rng):
    data = rng.normal(size=(5, 6, 6, 3)).astype("float32")
    path = tmp_path / "m.tflite"
    for dataset in (None, data):
        result = ocs_tf.export_tflite(
            quantized, path, representative_dataset=dataset, overwrite=True
        )
        (close,) = result.closeness
        assert (close.name, close.samples) == ("head", 3)
        assert close.max_difference <= 1.01 * quantized.get_layer("head").output_grid.scale


@pytest.mark.parametrize(("operator", "layer"), [(0, "first"), (1, "second"), (3, "head")])
def test_a_wrong_file_names_the_layer_and_is_not_written(
    operator, layer, quantized, tmp_path, monkeypatch
):
    spoil(monkeypatch, operator)
    path = tmp_path / "m.tflite"
    with pytest.raises(VerificationError, match=f"SQNR .* They part at layer '{layer}'"):
        ocs_tf.export_tflite(quantized, path)
    assert not list(tmp_path.iterdir())
    result = ocs_tf.export_tflite(quantized, path, verify=False)  # the remedy
    assert result.closeness == []
    assert path.exists()


@pytest.mark.parametrize("rounds", [True, False])
def test_a_wrong_packed_file_names_the_layer(rounds, quantized, tmp_path, monkeypatch):
    """Files that round activations hold custom operators, which only the delegate reads."""
    model = quantized if rounds else ocs_tf.convert(network(), verbose=False)
    write = exporter.packed.write_packed

    def write_wrong(*args, **options) -> bytes:
        parsed = fb.read(write(*args, **options))
        graph = parsed.subgraphs[0]
        for op in graph.operators:
            if fb.name(graph.tensors[op.outputs[0]]) == "second/kernel":
                (scale,) = (
                    graph.tensors[i]
                    for i in op.inputs
                    if fb.grid(graph.tensors[i]) is None and graph.tensors[i].type == fb.FLOAT32
                )
                values = fb.constant(parsed, scale)
                parsed.buffers[scale.buffer].data = (-values).view(np.uint8)
        return fb.write(parsed)

    monkeypatch.setattr(exporter.packed, "write_packed", write_wrong)
    with pytest.raises(VerificationError, match=r"SQNR .* They part at layer 'second'"):
        ocs_tf.export_tflite(model, tmp_path / "m.tflite", target="packed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "mix",
    [
        lambda y: y - ops.mean(y, axis=0, keepdims=True) / 2,
        lambda y: ops.mean(y, axis=0, keepdims=True),  # one row of a batch
    ],
    ids=["each", "one"],
)
def test_file_and_model_see_batches_of_one_size(mix, tmp_path):
    """What depends on the batch is computed for one sample at a time by both."""
    x = keras.Input((6,), name="x")
    model = keras.Model(x, mix(layers.Dense(4, name="d")(x)))
    quantized = ocs_tf.convert(model, verbose=False)
    (close,) = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", target="float").closeness
    assert close.samples == 3
    assert close.sqnr_db > 80


def test_a_file_that_the_runtime_refuses_is_not_written(quantized, tmp_path, monkeypatch):
    write = exporter.integer_writer.write_int8

    def write_broken(*args, **options) -> bytes:
        model = fb.read(write(*args, **options))
        model.operatorCodes[0].version = 99
        return fb.write(model)

    monkeypatch.setattr(exporter.integer_writer, "write_int8", write_broken)
    with pytest.raises(VerificationError, match="runtime refuses the file"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_small_differences_pass(quantized, tmp_path, monkeypatch):
    """Kernels 10 % too large: the error's power is 20 dB below the output's, or a little more."""
    spoil(monkeypatch, 3, 0.9)
    (close,) = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite").closeness
    assert FLOOR_DB < close.sqnr_db < 25


@pytest.mark.parametrize("target", ["float", "int8"])
def test_floats_are_compared_with_what_is_not_rounded(target, tmp_path, rng):
    """Two bits for activations leave little of the outputs; a file in float is in order."""
    data = rng.normal(size=(16, 6, 6, 3)).astype("float32")
    bits = {"float": 2, "int8": 8}[target]
    model = ocs_tf.convert(
        network(), representative_dataset=data, activation_bits=bits, verbose=False
    )
    options = {"activations": "float"} if target == "int8" else {}
    (close,) = ocs_tf.export_tflite(
        model, tmp_path / "m.tflite", target=target, **options
    ).closeness
    assert close.sqnr_db > 80


@pytest.mark.parametrize("form", ["tensor", "list", "dict"])
@pytest.mark.filterwarnings("error:The structure of")
def test_inputs_of_any_structure(form, tmp_path):
    """Those of a list of one, and of a dict, are called as Keras wants them."""
    x = keras.Input((5,), name="x")
    inputs = {"tensor": x, "list": [x], "dict": {"x": x}}[form]
    model = ocs_tf.convert(keras.Model(inputs, layers.Dense(3)(x)), verbose=False)
    (close,) = ocs_tf.export_tflite(model, tmp_path / "m.tflite", target="float").closeness
    assert close.samples == 3


def test_a_fixed_batch_and_an_open_one(tmp_path, rng):
    x = keras.Input((5,), name="x")
    model = keras.Model(x, layers.Dense(3)(x))
    data = rng.normal(size=(8, 5)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    (close,) = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", dynamic_batch=True).closeness
    assert close.samples == 3


@pytest.mark.parametrize("io_dtype", ["int8", "float32"])
def test_a_step_is_that_of_the_file_where_the_model_has_none(io_dtype, tmp_path):
    """The first samples, 1 to 3, are less than a step of a range up to 1,024."""
    x = keras.Input((2,), name="x")
    quantized = ocs_tf.convert(keras.Model(x, layers.Dense(2)(x)), verbose=False)
    data = np.float32([[count, count] for count in range(1, 1025)])
    path = tmp_path / "m.tflite"
    (close,) = ocs_tf.export_tflite(
        quantized, path, representative_dataset=data, io_dtype=io_dtype
    ).closeness
    assert close.sqnr_db < FLOOR_DB  # and yet
    assert path.exists()


@pytest.mark.parametrize("target", ["int8", "packed", "float"])
@pytest.mark.parametrize("with_data", [True, False])
def test_open_sizes_stay_open(target, with_data, tmp_path, rng):
    x = keras.Input((None, None, 2), name="x")
    model = keras.Model(x, layers.Conv2D(3, 3, name="c")(x))
    data = rng.normal(size=(8, 7, 9, 2)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "m.tflite"
    given = data if with_data else None
    ocs_tf.export_tflite(quantized, path, target=target, representative_dataset=given)
    (close,) = compare(quantized, TFLiteModel(path), data)
    assert close.sqnr_db > 35


@pytest.mark.parametrize("target", ["int8", "packed"])
def test_a_file_has_the_batch_size_of_the_model(target, tmp_path, rng):
    """Samples of a batch may even depend on each other."""
    x = keras.Input((6,), batch_size=4, name="x")
    pairs = ops.reshape(layers.Dense(3)(x), (2, 6))
    model = keras.Model(x, layers.Dense(2)(pairs))
    data = rng.normal(size=(8, 6)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "m.tflite"
    for given in (data, data[:2], None):
        (close,) = ocs_tf.export_tflite(
            quantized, path, target=target, representative_dataset=given, overwrite=True
        ).closeness
        assert close.samples == 2  # of the output
    (detail,) = ocs_tf.tflite.Interpreter(path).get_input_details()
    assert detail["shape"].tolist() == [4, 6]
    with pytest.raises(ValueError, match=r"`dynamic_batch` .* that of `model` is 4\."):
        ocs_tf.export_tflite(quantized, path, dynamic_batch=True, overwrite=True)


@pytest.mark.parametrize("recurrent", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_what_stateful_layers_keep_is_as_before(recurrent, tmp_path, rng):
    x = keras.Input((3, 2), batch_size=1, name="x")
    layer = recurrent(2, stateful=True, name="kept")
    model = keras.Model(x, layers.Dense(2)(layer(x)))
    data = rng.normal(size=(8, 3, 2)).astype("float32")
    model(data[:1])
    before = [np.array(state) for state in layer.states]
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    for target in ("packed", "float"):
        path = tmp_path / f"{target}.tflite"
        (close,) = ocs_tf.export_tflite(quantized, path, target=target).closeness
        assert close.sqnr_db > 80
    with pytest.raises(ValueError, match="'kept': keeps a state between calls"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite")
    np.testing.assert_equal([np.array(state) for state in layer.states], before)
    states = [getattr(part, "states", None) for part in quantized._flatten_layers()]
    assert not any(np.any(np.array(s)) for s in keras.tree.flatten(states) if s is not None)
