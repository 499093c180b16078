"""Files of models with masks, indices, sums in front of dense layers and several ends, run."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf._compare import compare
from ocs_tf.export.errors import VerificationError
from ocs_tf.runtime import runner, tflite
from ocs_tf.runtime.library import library_path
from ocs_tf.runtime.model import TFLiteModel

LENGTH, WIDTH, ROWS = 6, 8, 50
NATIVE = pytest.param(
    "packed", marks=pytest.mark.skipif(not library_path().exists(), reason="no native library")
)


def export(model: keras.Model, path: pathlib.Path, target: str, data: Any = None) -> TFLiteModel:
    needed = {} if target == "packed" else {"representative_dataset": data}
    ocs_tf.export_tflite(model, path / "m.tflite", target=target, overwrite=True, **needed)
    return TFLiteModel(path / "m.tflite")


def embedded(ids: Any) -> Any:
    return layers.Embedding(ROWS, WIDTH, mask_zero=True)(ids)


def self_attention(
    layer: Callable[..., Any], in_a_list: bool = False, **options: Any
) -> Callable[[Any], Any]:
    def build(ids: Any) -> Any:
        x = embedded(ids)
        return layer([x, x]) if in_a_list else layer(x, x, **options)

    return build


def bare_attention(ids: Any) -> Any:
    x = layers.Embedding(ROWS, WIDTH)(ids)
    mask = ops.cast(ops.not_equal(ids, 0), "float32")[:, None, :]
    scores = ops.matmul(layers.Dense(WIDTH)(x), ops.transpose(x, (0, 2, 1)))
    return ops.matmul(ops.softmax(scores + (1.0 - mask) * -1e9), x)


def normalized(ids: Any) -> Any:
    x = layers.BatchNormalization()(layers.Dropout(0.1)(embedded(ids)))
    return layers.MultiHeadAttention(2, 4)(x, x)


MASKED = {
    "multi-head": self_attention(layers.MultiHeadAttention(2, 4)),
    "causal": self_attention(layers.MultiHeadAttention(2, 4), use_causal_mask=True),
    "group-query": self_attention(layers.GroupQueryAttention(4, 2, 1)),
    "attention": self_attention(layers.Attention(), in_a_list=True),
    "additive": self_attention(layers.AdditiveAttention(), in_a_list=True),
    "norm-between": normalized,
    "bare": bare_attention,
    "recurrent": lambda ids: layers.GRU(5)(embedded(ids)),
    "both-ways": lambda ids: layers.Bidirectional(layers.LSTM(3, return_sequences=True))(
        embedded(ids)
    ),
}


@pytest.mark.parametrize("target", ["int8", NATIVE])
@pytest.mark.parametrize("name", MASKED)
def test_masks_reach_files_calibrated_on_full_sentences(name, target, tmp_path, rng):
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    model = keras.Model(ids, layers.Dense(4)(MASKED[name](ids)))
    model.set_weights([3 * weight for weight in model.get_weights()])
    full = rng.integers(1, ROWS, (40, LENGTH)).astype("int32")
    padded = full.copy()
    padded[:, 4:] = 0
    quantized = ocs_tf.convert(model, representative_dataset=full, verbose=False)
    file = export(quantized, tmp_path, target, full)
    for data in (full, padded):
        (close,) = compare(quantized, file, data)
        assert close.sqnr_db > (22 if target == "int8" else 50)


def padded_sequences(mark, rng):
    """Of at most 5 steps of 6."""
    data = rng.normal(size=(32, LENGTH, 3)).astype("float32")
    for sample, steps in enumerate(data):
        steps[2 + sample % 4 :] = mark
    return data


@pytest.mark.parametrize("mark", [0.0, -1.0])
@pytest.mark.parametrize("layer", [layers.GRU, layers.LSTM])
def test_a_step_that_is_padding_in_all_samples(layer, mark, tmp_path, rng):
    """What it computes is 0, a range that XNNPACK cannot take: the process ended."""
    data = padded_sequences(mark, rng)
    x = keras.Input((LENGTH, 3))
    model = keras.Model(x, layers.Dense(3)(layer(4)(layers.Masking(mark)(x))))
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    (close,) = compare(model, export(quantized, tmp_path, "int8", data), data)
    assert close.sqnr_db > 20


@pytest.mark.parametrize("target", ["int8", NATIVE])
def test_float_ids_find_their_rows(target, tmp_path, rng):
    ids, x = keras.Input((4,), name="ids"), keras.Input((3,), name="x")
    found = layers.Flatten()(layers.Embedding(5000, 4)(ids))
    model = keras.Model([ids, x], layers.Dense(2)(layers.Concatenate()([found, x])))
    data = [rng.integers(0, 5000, (40, 4)).astype("float32"), rng.normal(size=(40, 3))]
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    file = export(quantized, tmp_path, target, data)
    (close,) = compare(quantized, file, data)
    assert close.max_difference <= 1.01 * quantized.get_layer("dense").output_grid.scale
    details = {d["name"]: d for d in interpreter(tmp_path).get_input_details()}
    assert [d["dtype"] for name, d in details.items() if "ids" in name] == [np.float32]


def interpreter(folder: pathlib.Path) -> Any:
    return tflite.Interpreter(folder / "m.tflite")


def test_indices_are_no_layers_in_float(tmp_path, rng):
    """`strict` refuses layers that are computed in float; finding rows is no such layer."""
    ids = keras.Input((4,), name="ids")
    model = keras.Model(ids, layers.Dense(2)(layers.Flatten()(layers.Embedding(9, 4)(ids))))
    data = rng.integers(0, 9, (20, 4)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    assert not ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", strict=True).notes


SUMS_IN_FRONT_OF_DENSE = {
    "two": lambda x: layers.Dense(5)(layers.Dense(4)(x)),
    "three": lambda x: layers.Dense(5)(layers.Dense(6)(layers.Dense(4)(x))),
    "shifted": lambda x: layers.Dense(5)(layers.Dense(4)(x) + 3.0),
    "shifted-sum": lambda x: layers.Dense(5)(layers.Add()([layers.ReLU()(x), x]) - 0.5),
    "dropout-between": lambda x: layers.Dense(5)(layers.Dropout(0.5)(layers.Dense(4)(x))),
    "two-readers": lambda x: (lambda y: layers.Concatenate()([layers.Dense(3)(y), y]))(
        layers.Dense(4)(x)
    ),
    "einsum": lambda x: layers.EinsumDense("bi,ij->bj", 5, bias_axes="j")(layers.Dense(4)(x)),
}


@pytest.mark.parametrize("name", SUMS_IN_FRONT_OF_DENSE)
def test_a_constant_stays_with_its_layer(name, tmp_path, rng):
    x = keras.Input((7,), name="x")
    model = keras.Model(x, SUMS_IN_FRONT_OF_DENSE[name](x))
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    data = rng.normal(size=(40, 7)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    result = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite")  # without data
    (output,) = interpreter(tmp_path).get_output_details()
    (close,) = compare(quantized, TFLiteModel(tmp_path / "m.tflite"), data)
    assert close.max_difference <= 1.01 * output["quantization"][0]
    assert {op.op for op in result.ops}.isdisjoint({"MAX_POOL_2D", "CUSTOM"})  # nothing between


@pytest.mark.parametrize("target", ["int8", "float", NATIVE])
def test_ends_are_in_the_order_of_keras(target, tmp_path, rng):
    """By position, as programs that know no signatures read them."""
    inputs = [keras.Input((5,), name=name) for name in ("zeta", "alpha", "mid")]
    x = layers.Concatenate()(inputs)
    outputs = [layers.Dense(size, name=f"d{size}")(x) for size in (4, 2, 3, 1)]
    model = keras.Model(inputs, [*outputs, inputs[2] * 2.0])
    data = [scale * rng.normal(size=(20, 5)).astype("float32") for scale in (1, 5, 0.2)]
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    export(quantized, tmp_path, target, data)
    file = interpreter(tmp_path)
    for detail, array in zip(file.get_input_details(), data, strict=True):
        file.set_tensor(detail["index"], runner.to_codes(array[:1], detail))
    file.invoke()
    wanted = model.predict_on_batch([array[:1] for array in data])
    for detail, reference in zip(file.get_output_details(), wanted, strict=True):
        found = runner.to_floats(file.get_tensor(detail["index"]), detail)
        np.testing.assert_allclose(found, reference, atol=0.05 * np.abs(reference).max() + 0.05)


def boxes_and_scores() -> keras.Model:
    x = keras.Input((8,), name="x")
    boxes = layers.Rescaling(1000.0)(layers.Dense(4, activation="relu")(x))
    scores = layers.Dense(3, activation="softmax", name="scores")(x)
    return keras.Model(x, layers.Concatenate(name="row")([boxes, scores]))


@pytest.mark.parametrize("io_dtype", ["int8", "float32"])
def test_parts_of_an_output_are_exact_in_a_file(io_dtype, tmp_path, rng):
    model, data = boxes_and_scores(), rng.normal(size=(40, 8)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "m.tflite"
    result = ocs_tf.export_tflite(quantized, path, io_dtype=io_dtype)
    assert any("'row' is float32" in note for note in result.notes)
    assert interpreter(tmp_path).get_output_details()[0]["dtype"] == np.float32
    (close,) = compare(model, TFLiteModel(path), data)
    assert {part.name for part in close.parts} == {"rescaling", "scores"}
    assert min(part.sqnr_db for part in close.parts) > 25
    with pytest.raises(VerificationError, match="exact_outputs=False"):
        ocs_tf.export_tflite(quantized, tmp_path / "strict.tflite", strict=True)


def test_one_grid_where_it_is_asked_for(tmp_path, rng):
    data = rng.normal(size=(40, 8)).astype("float32")
    with pytest.warns(UserWarning, match="'row' share one grid"):
        quantized = ocs_tf.convert(
            boxes_and_scores(), representative_dataset=data, exact_outputs=False, verbose=False
        )
    result = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", strict=True)
    assert any(note.startswith("The parts of 'row' share one grid") for note in result.notes)


@pytest.fixture(scope="module")
def residual() -> tuple[keras.Model, np.ndarray]:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="picture")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="c1")(inputs)
    y = layers.Conv2D(4, 3, padding="same", name="c2")(x)
    x = layers.Concatenate(name="joined")([layers.Add(name="sum")([x, y]), y])
    x = layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D(name="mean")(x))
    model = keras.Model(inputs, layers.Softmax(name="softmax")(x))
    return model, np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "in_float"),
    [
        ({"overrides": {"c1": {"activation_bits": None}}}, "c1"),
        ({"overrides": {"sum": {"activation_bits": None}}}, "c2, sum, joined"),
        ({"first_activation_bits": None}, "picture"),
        ({"last_activation_bits": None}, "logits, softmax"),
        (
            {"activation_bits": None, "overrides": {"c1": {"activation_bits": 8}}},
            "picture, c2, sum, mean, logits, softmax, joined",
        ),
    ],
)
def test_what_the_model_does_not_round_is_float(
    options: Any, in_float: str, residual: tuple[keras.Model, np.ndarray], tmp_path: pathlib.Path
) -> None:
    model, x = residual
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False, **options)
    result = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite")
    (note,) = result.notes
    assert note.endswith(f"so is what is computed with it: {in_float}.")
    found = compare(quantized, TFLiteModel(result.path), x)
    assert min(closeness.sqnr_db for closeness in found) > 100
    codes = sum(np.asarray(layer.kernel).size for layer in model.layers if hasattr(layer, "kernel"))
    tensors = tflite.Interpreter(str(result.path)).get_tensor_details()
    per_channel = [t for t in tensors if t["quantization_parameters"]["scales"].size > 1]
    stored = sum(np.prod(t["shape"]) for t in per_channel if t["dtype"] == np.int8)
    assert stored == codes  # kernels are codes, whatever reads them
