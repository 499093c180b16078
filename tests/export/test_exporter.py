"""The exported file, run in both interpreters, against the Keras model it was made from."""

from __future__ import annotations

import pathlib

import ai_edge_litert.interpreter as litert
import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.runtime import runner
from ocs_tf.runtime import tflite as tflite_package
from tests.export.keras_and_file import INTERPRETERS, output_step, run, worst_step
from tests.export.networks import (
    EACH_WIDTH,
    FAST,
    MODELS,
    covering,
    of_each_width,
    quantized_model,
    randomize,
    samples,
)

RNG = np.random.default_rng(7)


# Output steps, and share of outputs that differ, where the simulation is not exact: a shared layer
# whose calls have inputs on different grids, what the runtime rounds inside of a silu and of a
# layer normalization, and what two operators in a row round by factors of their own.
LOOSER = {
    "shared-layer": (3, 0.7),
    "swish": (2, 0.2),
    "layer-norm": (8, 0.9),
    "float-between": (1, 0.06),
}


OPTIONS = {
    "w8": {},
    "w5-split": {"weight_bits": 5, "expand_ratio": 0.2, **FAST},
    "w8-split-tensor": {"weight_bits": 8, "expand_ratio": 0.2, "granularity": "tensor", **FAST},
    "w3-unfolded": {"weight_bits": 3, "fold_batch_norm": False, **FAST},
}


@pytest.mark.parametrize(("name", "options"), covering(OPTIONS))
def test_file_computes_what_the_keras_model_does(name, options, tmp_path):
    model = MODELS[name]()
    data = samples(model)
    quantized = ocs_tf.convert(
        model, representative_dataset=data, verbose=False, **OPTIONS[options]
    )
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    expected = np.asarray(quantized(data["x"]))
    steps, most = LOOSER.get(name, (1, 0.02))
    for runtime in INTERPRETERS:
        (got,) = run(path, data, runtime)
        worst, share = worst_step(expected, got, output_step(path))
        assert worst <= steps + 0.01, f"{runtime}: {worst:.2f} output steps apart"
        assert share <= most, f"{runtime}: {share:.1%} of the outputs differ"


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_every_width_is_exact(granularity, tmp_path):
    model = of_each_width()
    data = samples(model)
    quantized = ocs_tf.convert(
        model,
        representative_dataset=data,
        granularity=granularity,
        overrides=EACH_WIDTH,
        verbose=False,
        **FAST,
    )
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path)
    stored = stored_kernels(path)
    for layer in quantized.layers:
        if isinstance(layer, ocs_tf.layers.KernelLayer):
            kernel = layer.quantized_kernel()
            codes = kernel.effective_codes()
            assert kernel.bits == EACH_WIDTH[layer.name]["weight_bits"]
            limit = 2 ** (kernel.bits - 1) - 1
            assert -limit - (kernel.bits == 2) <= kernel.codes.min() <= kernel.codes.max() <= limit
            assert any(np.array_equal(found, tflite_layout(layer, codes)) for found in stored), (
                f"codes of {layer.name} are not in the file"
            )


def stored_kernels(path: pathlib.Path) -> list[np.ndarray]:
    """Every int8 tensor of the file that is quantized and constant, by the interpreter's word."""
    interpreter = litert.Interpreter(
        str(path),
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    return [
        interpreter.get_tensor(d["index"]).astype(np.int32)
        for d in interpreter.get_tensor_details()
        if d["dtype"] == np.int8 and len(d["shape"]) == 4
    ]


def tflite_layout(layer: keras.layers.Layer, codes: np.ndarray) -> np.ndarray:
    if isinstance(layer, layers.DepthwiseConv2D):
        return codes.reshape(1, *codes.shape[:2], -1)
    return codes.transpose(3, 0, 1, 2)


@pytest.mark.parametrize("name", ["residual", "mobile", "dense-block"])
def test_merged_and_expanded_copies_give_the_same_integers(name, tmp_path):
    model = MODELS[name]()
    data = samples(model)
    quantized = ocs_tf.convert(
        model, representative_dataset=data, weight_bits=5, expand_ratio=0.3, verbose=False, **FAST
    )
    outputs, sizes = [], []
    for merge in (True, False):
        path = tmp_path / f"{merge}.tflite"
        result = ocs_tf.export_tflite(quantized, path, merge_copies=merge)
        outputs.append(run(path, data)[0])
        sizes.append(result.size)
        assert all(op.op not in ("GATHER", "GATHER_ND") for op in result.ops)
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert sizes[0] < sizes[1]


def test_weights_only_model_is_calibrated_at_export(tmp_path):
    model = MODELS["residual"]()
    data = samples(model)
    quantized = ocs_tf.convert(model, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    (got,) = run(path, data)
    expected = np.asarray(quantized(data["x"]))
    assert ocs_tf.numerics.sqnr_db(expected, got) > 25


def test_paper_set_up_is_exported_with_its_batch_norms_unfolded(tmp_path):
    model = MODELS["residual"]()
    data = samples(model)
    config = ocs_tf.Config.paper(weight_bits=6, expand_ratio=0.1, activation_bits=8)
    quantized = ocs_tf.convert(model, config, representative_dataset=data, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    (got,) = run(path, data)
    assert ocs_tf.numerics.sqnr_db(np.asarray(quantized(data["x"])), got) > 20


def test_float_layer_with_a_softmax_inside(tmp_path):
    model = MODELS["softmax-in-dense"]()
    data = samples(model)
    quantized = ocs_tf.convert(
        model, representative_dataset=data, last_layer_bits=None, verbose=False
    )
    path = tmp_path / "model.tflite"
    # Other data than those that set the grids of the model, which must stay as they are.
    wider = {name: 3 * values for name, values in data.items()}
    ocs_tf.export_tflite(quantized, path, representative_dataset=wider)
    details = litert.Interpreter(str(path)).get_tensor_details()
    grids = [v.grid for v in quantized.layers if hasattr(v, "grid")]
    grids += [v.output_grid for v in quantized.layers if getattr(v, "output_grid", None)]
    for grid in grids:
        assert any(d["quantization"] == (grid.scale, grid.zero_point) for d in details)


def test_several_inputs_and_outputs(tmp_path):
    a, b = keras.Input((6,), name="alpha"), keras.Input((4,), name="beta")
    x = layers.Concatenate()([layers.Dense(5, name="da")(a), layers.Dense(5, name="db")(b)])
    model = randomize(
        keras.Model({"alpha": a, "beta": b}, [layers.Dense(3, name="o1")(x), layers.ReLU()(x)])
    )
    data = samples(model)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, io_dtype="float32")
    for expected, got in zip(quantized.predict_on_batch(data), run(path, data), strict=True):
        assert ocs_tf.numerics.sqnr_db(expected, got) > 35


@pytest.mark.parametrize("io_dtype", ["int8", "uint8", "float32"])
def test_types_of_inputs_and_outputs(io_dtype, tmp_path):
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized_model(), path, io_dtype=io_dtype)
    interpreter = litert.Interpreter(str(path))
    for detail in (*interpreter.get_input_details(), *interpreter.get_output_details()):
        assert detail["dtype"] == np.dtype(io_dtype)


@pytest.mark.parametrize("io_dtype", ["int8", "uint8", "float32"])
@pytest.mark.parametrize(
    "order", [("hidden", "end"), ("end", "shaped", "hidden", "x"), ("hidden", "cosine")]
)
def test_outputs_that_operators_read(order, io_dtype, tmp_path):
    """Operators in integers, and one in float."""
    tensors = {"x": keras.Input((8,), name="x")}
    tensors["hidden"] = layers.Dense(6, activation="relu")(tensors["x"])
    tensors["shaped"] = layers.Reshape((3, 2))(tensors["hidden"])
    tensors["end"] = layers.Dense(3)(tensors["hidden"])
    tensors["cosine"] = keras.ops.cos(tensors["hidden"])
    model = randomize(keras.Model(tensors["x"], [tensors[name] for name in order]))
    data = samples(model)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, io_dtype=io_dtype)
    details = tflite_package.Interpreter(path).get_output_details()
    assert {d["dtype"] for d in details} == {np.dtype(io_dtype).type}
    for close in ocs_tf.compare(quantized, ocs_tf.TFLiteModel(path), data):
        assert close.max_difference <= 1e-6


@pytest.mark.parametrize("layer", [keras.layers.LSTM, keras.layers.GRU])
def test_dynamic_batch_of_recurrent_layers(layer, tmp_path):
    x = keras.Input((4, 6))
    model = keras.Model(x, keras.layers.Dense(3)(layer(5)(x)))
    data = np.random.default_rng(0).normal(size=(20, 4, 6)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    ocs_tf.export_tflite(
        quantized, tmp_path / "m.tflite", representative_dataset=data, dynamic_batch=True
    )
    file = tflite_package.Interpreter(tmp_path / "m.tflite")
    given, made = file.get_input_details()[0], file.get_output_details()[0]
    file.resize_tensor_input(given["index"], data.shape)
    file.allocate_tensors()
    file.set_tensor(given["index"], runner.to_codes(data, given))
    file.invoke()
    wanted = quantized.predict(data, verbose=0)
    found = runner.to_floats(file.get_tensor(made["index"]), made)
    np.testing.assert_allclose(found, wanted, atol=1.01 * made["quantization"][0])


def test_dynamic_batch(tmp_path):
    model = MODELS["residual"]()
    data = samples(model, 6)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, dynamic_batch=True, io_dtype="float32")
    interpreter = litert.Interpreter(str(path))
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, data["x"].shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(index, data["x"])
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert ocs_tf.numerics.sqnr_db(np.asarray(quantized(data["x"])), got) > 35


@pytest.mark.parametrize("merge", [True, False])
def test_float_target_has_the_quantized_kernels(merge, tmp_path):
    model = MODELS["residual"]()
    data = samples(model)
    quantized = ocs_tf.convert(model, weight_bits=4, expand_ratio=0.2, verbose=False)
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, target="float", merge_copies=merge)
    assert result.ops == []
    np.testing.assert_allclose(
        run(path, data)[0], np.asarray(quantized(data["x"])), rtol=1e-4, atol=1e-4
    )


# Split activations ----------------------------------------------------------------------------


def test_input_that_nothing_reads(randomize, tmp_path):
    x, unread = keras.Input((4,), name="x"), keras.Input((3,), name="unread")
    model = randomize(keras.Model([x, unread], layers.Dense(2)(x)))
    data = samples(model)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "m.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    (closeness,) = ocs_tf.compare(quantized, ocs_tf.TFLiteModel(path), data)
    assert closeness.sqnr_db > 40
