"""The exported file, run in both interpreters, against the Keras model it was made from."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import os
import pathlib
import warnings

import ai_edge_litert.interpreter as litert
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import ocs_tf
from ocs_tf.export import exporter
from ocs_tf.runtime import tflite as tflite_package
from tests.export.networks import (
    EACH_WIDTH,
    FAST,
    MODELS,
    covering,
    of_each_width,
    randomize,
    samples,
    single,
)

RNG = np.random.default_rng(7)
INTERPRETERS = {"litert": litert.Interpreter, "tf.lite": tf.lite.Interpreter}


def run(path: pathlib.Path, inputs: dict[str, np.ndarray], runtime: str = "litert") -> list:
    """Outputs of a .tflite file, sample by sample, as float32, in the order of the signature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf.lite.Interpreter announces its retirement
        interpreter = INTERPRETERS[runtime](str(path))
    runner = interpreter.get_signature_runner()
    given, made = runner.get_input_details(), runner.get_output_details()
    rows = []
    for i in range(len(next(iter(inputs.values())))):
        feed = {n: _to_codes(inputs[n][i : i + 1], d) for n, d in given.items()}
        rows.append({n: _to_values(v, made[n]) for n, v in runner(**feed).items()})
    return [np.concatenate([row[name] for row in rows]) for name in sorted(made)]


def _to_codes(x: np.ndarray, detail: dict) -> np.ndarray:
    if detail["dtype"] == np.float32:
        return x
    scale, zero_point = detail["quantization"]
    return np.clip(np.rint(x / scale) + zero_point, -128, 127).astype(np.int8)


def _to_values(x: np.ndarray, detail: dict) -> np.ndarray:
    if detail["dtype"] == np.float32:
        return x
    scale, zero_point = detail["quantization"]
    return (x.astype(np.float32) - zero_point) * np.float32(scale)


# Output steps, and share of outputs that differ, where the simulation is not exact: a shared layer
# whose calls have inputs on different grids, what the runtime rounds inside of a silu and of a
# layer normalization, and what two operators in a row round by factors of their own.
LOOSER = {
    "shared-layer": (3, 0.7),
    "swish": (2, 0.2),
    "layer-norm": (8, 0.9),
    "float-between": (1, 0.06),
}


def worst_step(expected: np.ndarray, got: np.ndarray, step: float) -> tuple[float, float]:
    """Largest difference in output steps, and the share of values that differ at all."""
    difference = np.abs(expected - got) / step
    return float(difference.max()), float((difference > 0.5).mean())


def output_step(path: pathlib.Path) -> float:
    return litert.Interpreter(str(path)).get_output_details()[0]["quantization"][0]


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
            assert np.abs(kernel.codes).max() <= 2 ** (kernel.bits - 1) - 1
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
    file.set_tensor(given["index"], tflite_package.to_codes(data, given))
    file.invoke()
    wanted = quantized.predict(data, verbose=0)
    found = tflite_package.to_floats(file.get_tensor(made["index"]), made)
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


@functools.cache
def quantized_model(**options) -> keras.Model:
    model = MODELS["mobile"]()
    data = None if options.get("activation_bits", 8) is None else samples(model)
    return ocs_tf.convert(model, representative_dataset=data, verbose=False, **FAST, **options)


@pytest.mark.parametrize("bits", [2, 4, 7, 16])
def test_activations_that_int8_cannot_hold_are_refused(bits, tmp_path):
    model = quantized_model(activation_bits=bits)
    with pytest.raises(ValueError, match=f"{bits}-bit activations.*activation_bits=8.*'packed'"):
        ocs_tf.export_tflite(model, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def two_layers(scale: float, key: str) -> keras.Model:
    """A quantized model of which one grid has steps of `scale`."""
    model = keras.Sequential(
        [keras.Input((4,), name="in"), layers.Dense(3, name="first"), layers.Dense(2, name="last")]
    )
    options = {"rounding": "nearest", "bias_correction": False, "verbose": False}
    data = np.eye(4, dtype=np.float32)
    plan = ocs_tf.plan(model, representative_dataset=data, **options)
    grid = dataclasses.replace(plan.activations[key], scale=scale)
    edited = dataclasses.replace(plan, activations={**plan.activations, key: grid})
    return ocs_tf.apply(model, edited, verbose=False)


@pytest.mark.parametrize("key", ["in", "first", "last"])
def test_steps_that_int8_cannot_hold_are_refused(key, tmp_path):
    """Activations around 1e-28 and less."""
    model, path = two_layers(1e-30, key), tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=rf"layer '{key}.*' has steps of 1e-30.*'packed'"):
        ocs_tf.export_tflite(model, path)
    ocs_tf.export_tflite(model, path, target="packed")  # the remedy


@pytest.mark.parametrize(("scale", "key"), [(1e-10, "last"), (1e30, "in")])
def test_factors_that_runtimes_refuse_are_named(scale, key, tmp_path):
    model, path = two_layers(scale, key), tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=r"layer '(first|last)': one product .* less than 256"):
        ocs_tf.export_tflite(model, path)
    ocs_tf.export_tflite(model, path, target="packed")  # the remedy


def test_a_layer_that_reads_another_grid_than_it_was_quantized_for(tmp_path):
    """Layers called in another order, or with an edited grid."""
    model = keras.Sequential(
        [keras.Input((4,)), *(layers.Dense(4, "relu", name=name) for name in "abc")]
    )
    data = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    first, a, _, c = quantized.layers[-4:]
    shortened = keras.Model(quantized.inputs, c(a(first(quantized.inputs[0]))))
    message = r"layer 'c' was quantized for inputs on .*, but reads what 'a' rounds to"
    for target in ("int8", "packed"):
        with pytest.raises(ValueError, match=message):
            ocs_tf.export_tflite(shortened, tmp_path / "m.tflite", target=target)
    c.input_grid = a.output_grid
    ocs_tf.export_tflite(shortened, tmp_path / "m.tflite")


def test_data_that_int8_cannot_hold_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,), name="in"), layers.Dense(2)])
    quantized = ocs_tf.convert(model, verbose=False)
    data = np.full((8, 4), 1e-41, np.float32)
    with pytest.raises(ValueError, match=r"the measured range at 'in' has steps of .*'packed'"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", representative_dataset=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "int7"},
            r"`target` \(='int7'\) must be one of 'int8', 'int4', 'packed', 'float'",
        ),
        (
            {"io_dtype": "int16"},
            r"`io_dtype` \(='int16'\) must be one of 'int8', 'uint8', 'float32'",
        ),
    ],
    ids=["target", "io_dtype"],
)
def test_unknown_options(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ocs_tf.export_tflite(quantized_model(), tmp_path / "model.tflite", **options)


def test_float_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no quantized layer; pass what ocs_tf.convert"):
        ocs_tf.export_tflite(MODELS["mobile"](), tmp_path / "model.tflite")


def test_channels_first_is_refused(tmp_path):
    inputs = keras.Input((6, 8, 8))
    x = layers.Conv2D(4, 3, data_format="channels_first", name="cf")(inputs)
    model = keras.Model(inputs, x)
    model.compile(jit_compile=True)  # which computes it on any CPU
    quantized = ocs_tf.convert(model, verbose=False)
    with pytest.raises(ValueError, match="'cf' is channels_first, which TFLite does not have"):
        ocs_tf.export_tflite(quantized, tmp_path / "model.tflite", target="float")


def test_missing_ranges_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"have no grid at 'x'.*pass representative_dataset"):
        ocs_tf.export_tflite(quantized_model(activation_bits=None), tmp_path / "model.tflite")


def test_data_without_an_end_that_can_be_read_once(tmp_path):
    """1,024 samples are used: the next one would stretch the range."""
    inputs = keras.Input((2,), name="x")
    quantized = ocs_tf.convert(keras.Model(inputs, layers.Dense(2)(inputs)), verbose=False)
    rows = (np.full(2, min(count, 1026), np.float32) for count in itertools.count(1))
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=rows)
    (detail,) = ocs_tf.tflite.Interpreter(path).get_input_details()
    scale, zero_point = detail["quantization"]
    assert scale * (127 - zero_point) == pytest.approx(1024, rel=1e-3)


def test_ranges_inside_of_a_layer_are_named(tmp_path):
    model = single(
        lambda x: layers.Activation("hard_sigmoid")(layers.ReLU()(layers.Conv2D(4, 3)(x)))
    )
    quantized = ocs_tf.convert(model, representative_dataset=samples(model), verbose=False)
    message = r"^the range of \S+( \(and of [1-9].*\))? is not known; pass"
    with pytest.raises(ValueError, match=message):
        ocs_tf.export_tflite(quantized, tmp_path / "model.tflite")


def test_operator_without_integer_form_is_refused_if_strict(tmp_path):
    model = single(lambda x: ops.floor(layers.Conv2D(4, 3, name="c")(x)))
    data = samples(model)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "m.tflite"
    with pytest.raises(exporter.VerificationError, match=r"FLOOR has no int8 form: floor"):
        ocs_tf.export_tflite(quantized, path, representative_dataset=data, strict=True)
    assert list(tmp_path.iterdir()) == []


def test_layers_in_float_are_named_and_need_no_ranges(tmp_path):
    model = MODELS["layer-norm"]()
    quantized = ocs_tf.convert(model, representative_dataset=samples(model), verbose=False)
    result = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite")
    (note,) = result.notes
    reason = "ranges inside are not known (pass representative_dataset)"
    assert note == f"1 layer is computed in float, since {reason}: norm."


def test_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"precious")
    model = quantized_model()
    with pytest.raises(FileExistsError, match="exists; pass overwrite=True"):
        ocs_tf.export_tflite(model, path)
    assert path.read_bytes() == b"precious"
    result = ocs_tf.export_tflite(model, path, overwrite=True)
    assert path.stat().st_size == result.size


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of `path` .* does not exist"):
        ocs_tf.export_tflite(quantized_model(), tmp_path / "nowhere" / "model.tflite")


def test_folder_as_path_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        ocs_tf.export_tflite(quantized_model(), tmp_path, overwrite=True)


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"precious")

    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.tflite"):
        ocs_tf.export_tflite(quantized_model(), path, target="float", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
    assert path.read_bytes() == b"precious"


def test_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    converted = exporter.convert_float

    def slow(model):
        path.write_bytes(b"of another program")
        return converted(model)

    monkeypatch.setattr(exporter, "convert_float", slow)
    with pytest.raises(FileExistsError, match=r"model\.tflite exists; pass overwrite=True"):
        ocs_tf.export_tflite(quantized_model(), path, target="float")
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
    assert path.read_bytes() == b"of another program"


def test_result_says_what_was_written(tmp_path):
    result = ocs_tf.export_tflite(quantized_model(), tmp_path / "model.tflite")
    text = str(result)
    assert f"{result.size:,} bytes" in text
    assert f"Edge TPU: {len(result.ops)} of {len(result.ops)} operators" in text


# Split activations ----------------------------------------------------------------------------


def splittable() -> keras.Model:
    """Two tensors that can be split, one of them behind a pooling."""
    inputs = keras.Input((8, 8, 6), name="x")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="a")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="b")(x)
    x = layers.Conv2D(8, 3, name="c")(layers.MaxPooling2D(2)(x))
    return randomize(keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x))))


def linear() -> keras.Model:
    """Signed activations, whose zero point lies inside of the grid."""
    inputs = keras.Input((6, 6, 5), name="x")
    x = layers.Conv2D(10, 3, name="b")(layers.Conv2D(16, 1, name="a")(inputs))
    x = layers.GlobalAveragePooling2D()(x)
    return randomize(keras.Model(inputs, layers.Dense(4, name="head")(x)))


SPLIT_OPTIONS: dict[str, dict] = {
    "error": {"activation_split": "error"},
    "maximum": {"activation_split": "maximum"},
    "many": {"activation_split": "maximum", "activation_expand_ratio": 1.0},
    "tensor": {"granularity": "tensor", "activation_split": "maximum"},
    # Copies of weights of 8 bits stay channels of their own, in front of the copies of activations.
    "weights, too": {"expand_ratio": 0.3, "granularity": "tensor", "activation_split": "maximum"},
    "w4": {"weight_bits": 4, "expand_ratio": 0.2, "activation_split": "maximum"},
}


@pytest.mark.parametrize("options", SPLIT_OPTIONS.values(), ids=SPLIT_OPTIONS)
@pytest.mark.parametrize("make", [splittable, linear], ids=["relu", "linear"])
def test_split_activations_in_integers(make, options, tmp_path):
    """The interpreter adds up copies; the Keras model has one number with more codes."""
    model = make()
    data = samples(model, 48)
    options = {"activation_expand_ratio": 0.3, "rounding": "nearest", **options}
    quantized = ocs_tf.convert(
        model, representative_dataset=data, bias_correction=False, verbose=False, **options
    )
    grids = {v.name: v.output_grid for v in quantized.layers if hasattr(v, "output_grid")}
    copies = len(grids["a"].copies)
    assert copies
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path)
    (got,) = run(path, data)
    step = grids["head"].scale
    worst, differ = worst_step(np.asarray(quantized(data["x"])), got, step)
    # Copies are rounded one by one, with a bias that is a whole number: near ties, sums of theirs
    # can differ from the Keras model's by a step of the tensor.
    assert worst <= 3.01
    assert differ <= 0.25
    shapes = [d["shape"].tolist() for d in litert.Interpreter(str(path)).get_tensor_details()]
    units = quantized.get_layer("a").codes.shape[-1]
    # Copies of what reads them may add more.
    assert any(len(s) == 4 and s[-1] >= units + copies for s in shapes)


def test_split_codes_are_in_the_file(tmp_path):
    """The producer's codes twice at half of the step; the reader's rows twice as they are."""
    model = linear()
    data = samples(model, 48)
    quantized = ocs_tf.convert(
        model,
        representative_dataset=data,
        activation_expand_ratio=0.1,
        activation_split="maximum",
        verbose=False,
    )
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path)
    first, second = (quantized.get_layer(name).quantized_kernel() for name in "ab")
    channels = [*range(16), *quantized.get_layer("a").output_grid.copies]
    interpreter = litert.Interpreter(str(path))
    interpreter.allocate_tensors()
    kernels = {
        tuple(d["shape"]): d for d in interpreter.get_tensor_details() if d["dtype"] == np.int8
    }
    made = kernels[(len(channels), 1, 1, 5)]
    expected = np.moveaxis(first.codes[..., channels], -1, 0)
    np.testing.assert_array_equal(interpreter.get_tensor(made["index"]), expected)
    k = np.bincount(channels)[channels]
    scales = (first.scale[channels] / k).astype(np.float32)
    np.testing.assert_array_equal(made["quantization_parameters"]["scales"], scales)
    read = kernels[(10, 3, 3, len(channels))]
    expected = np.moveaxis(second.codes[:, :, channels], -1, 0)
    np.testing.assert_array_equal(interpreter.get_tensor(read["index"]), expected)
    np.testing.assert_array_equal(read["quantization_parameters"]["scales"], second.scale)


@pytest.mark.parametrize("target", ["float", "int4"])
def test_files_with_float_activations_do_not_split_them(target, tmp_path):
    model = splittable()
    data = samples(model)
    options = {"representative_dataset": data, "weight_bits": 4, "rounding": "nearest"}
    paths = []
    for ratio in (0.0, 0.5):
        quantized = ocs_tf.convert(
            model, bias_correction=False, activation_expand_ratio=ratio, verbose=False, **options
        )
        paths.append(tmp_path / f"{ratio}.tflite")
        activations = {"activations": "float"} if target == "int4" else {}
        ocs_tf.export_tflite(quantized, paths[-1], target=target, **activations)
    assert paths[0].stat().st_size == paths[1].stat().st_size
    # Biases are rounded to the steps of the grids, which differ.
    np.testing.assert_allclose(run(paths[0], data)[0], run(paths[1], data)[0], atol=0.02)


def test_input_that_nothing_reads(randomize, tmp_path):
    x, unread = keras.Input((4,), name="x"), keras.Input((3,), name="unread")
    model = randomize(keras.Model([x, unread], layers.Dense(2)(x)))
    data = samples(model)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "m.tflite"
    ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    (closeness,) = ocs_tf.compare(quantized, ocs_tf.TFLiteModel(path), data)
    assert closeness.sqnr_db > 40


def test_what_the_converter_cannot_do_names_the_layers(randomize, tmp_path):
    x = keras.Input((4, 1))
    y = layers.Dense(3, name="after")(layers.Dense(2, name="of_one_channel")(x))
    quantized = ocs_tf.convert(randomize(keras.Model(x, y)), verbose=False)
    with pytest.raises(ValueError, match=r"converter fails at 'of_one_channel', 'after'.*Conv1D"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", target="float")
    assert not list(tmp_path.iterdir())


def test_an_oracle_is_not_exported(tmp_path):
    model = linear()
    quantized = ocs_tf.convert(
        model,
        representative_dataset=samples(model),
        activation_scope="inputs",
        activation_expand_ratio=0.1,
        activation_split="oracle",
        verbose=False,
    )
    for target in ("int8", "packed", "float"):
        with pytest.raises(ValueError, match="chooses its grid from each batch, a simulation"):
            ocs_tf.export_tflite(quantized, tmp_path / "model.tflite", target=target)
    assert not list(tmp_path.iterdir())


def test_copies_that_nothing_can_make_in_integers(tmp_path):
    model = linear()
    data = samples(model)
    quantized = ocs_tf.convert(
        model,
        representative_dataset=data,
        activation_scope="inputs",
        activation_expand_ratio=0.1,
        verbose=False,
    )
    with pytest.raises(ValueError, match=r"nothing can make the copies in integers.*packed"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", representative_dataset=data)
    assert not list(tmp_path.iterdir())
