"""Which operators of a float file stay in float, and what is between them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert import interpreter as litert
from keras import layers, ops

import ocs_tf
from ocs_tf._compare import compare
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import float_regions
from ocs_tf.runtime.model import TFLiteModel
from tests.export.files import Grid, to_tflite


def read(build) -> tuple:
    """A float file of `build`, and the names of its activations by operator."""
    x = keras.Input((4, 4, 6), batch_size=1, name="x")
    model = fb.read(to_tflite(keras.Model(x, build(x))))
    graph = model.subgraphs[0]
    return model, [fb.name(graph.tensors[op.outputs[0]]) for op in graph.operators]


def kinds(model, indices) -> list[str]:
    return [fb.op_name(model, model.subgraphs[0].operators[index]) for index in sorted(indices)]


def test_nothing_stays_in_float_where_all_have_integer_forms():
    model, _ = read(lambda x: layers.Activation("gelu")(layers.Conv2D(3, 3)(x)))
    assert float_regions.float_operators(model, []) == set()


def test_a_layer_is_in_float_from_grid_to_grid():
    model, names = read(lambda x: layers.Conv2D(2, 1)(ops.sin(ops.exp(layers.Conv2D(3, 3)(x)))))
    on_grids = [names[0], names[-2]]
    left = float_regions.float_operators(model, on_grids)
    assert left == set(range(1, len(names) - 1))
    assert kinds(model, left) == ["EXP", "SIN"]
    assert float_regions.inside(model, left, on_grids) == set(names[1:-2])


def test_what_moves_numbers_on_a_grid_ends_a_region():
    """A reader of the pooled tensor with an integer form is not drawn in."""

    def build(x):
        pooled = layers.MaxPooling2D(2)(layers.Conv2D(6, 1)(x))
        return layers.Add()([ops.sin(pooled), layers.Conv2D(6, 1)(pooled)])

    model, names = read(build)
    order = kinds(model, range(len(names)))
    on_grids = [name for name, kind in zip(names, order, strict=True) if kind != "MAX_POOL_2D"]
    left = float_regions.float_operators(model, on_grids)
    assert kinds(model, left) == ["SIN"]
    assert float_regions.inside(model, left, on_grids) == set()


def test_description():
    wave = layers.Activation(ops.sin, name="wave")
    model, _ = read(lambda x: layers.Conv2D(3, 1)(wave(x)))
    text = float_regions.describe(model, {0}, set(), ["wave", "other"], {})
    assert text == "1 layer is computed in float, since SIN has no int8 form: wave."


# Layers that Keras rounds to a grid of their own, where TFLite's operators keep their input's.
REGRIDDING = {
    "pool": ("MAX_POOL_2D", lambda x: ops.max_pool(x, 2)),
    "mean": ("AVERAGE_POOL_2D", lambda x: ops.average_pool(x, 2)),
    "stack": ("PACK", lambda x: ops.stack([layers.Conv2D(3, 1)(x), x[..., :3] * 4], 3)),
    "append": ("CONCATENATION", lambda x: ops.append(layers.Conv2D(3, 1)(x), 4 * x, axis=-1)),
    "pick": (
        "GATHER_ND",
        lambda x: ops.take_along_axis(layers.Dense(6)(x), ops.argsort(x, -1)[..., :3], -1),
    ),
    "fill": ("PADV2", lambda x: ops.pad(x, ((0, 0), (0, 0), (1, 2), (0, 0)), constant_values=-7.0)),
}


@pytest.mark.parametrize("name", REGRIDDING)
def test_what_would_have_to_share_a_grid_is_rounded_again(name, tmp_path, rng):
    """Means stay in float: they would be rounded twice."""
    kind, build = REGRIDDING[name]
    x = keras.Input((4, 4, 6), name="x")
    y = build(layers.Conv2D(6, 1)(x))
    model = keras.Model(x, layers.Dense(2)(layers.Flatten()(y)))
    data = rng.normal(size=(30, 4, 4, 6)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    result = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", representative_dataset=data)
    notes = [note for note in result.notes if "computed in float" in note]
    assert [f"of {kind} would have to share a grid" in note for note in notes] == (
        [True] if name == "mean" else []
    )
    (close,) = compare(quantized, TFLiteModel(tmp_path / "m.tflite"), data)
    assert close.max_difference <= 1.01 * quantized.get_layer("dense").output_grid.scale


def test_a_constant_table_has_a_grid_of_its_own(tmp_path, rng):
    table = rng.normal(size=(20, 6)).astype("float32")
    ids = keras.Input((5,), dtype="int32", name="ids")
    rows = ops.take(ops.convert_to_tensor(table), ids, axis=0)
    model = keras.Model(ids, layers.Dense(2)(layers.Flatten()(rows)))
    data = rng.integers(0, 20, (30, 5)).astype("int32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", representative_dataset=data)
    (close,) = compare(quantized, TFLiteModel(tmp_path / "m.tflite"), data)
    assert close.max_difference <= 1.01 * quantized.get_layer("dense").output_grid.scale


def test_what_is_looked_up_ends_a_region(tmp_path, rng):
    """It is on the table's grid: what else reads it, to its output, is not drawn in."""
    ids = rng.integers(0, 7, (8, 2)).astype(np.int32)
    x = keras.Input((2,), dtype="int32", name="ids")
    rows = layers.Embedding(7, 5, name="table")(x)
    model = keras.Model(x, [layers.GlobalMaxPooling1D(name="max")(rows), layers.Flatten()(rows)])
    data = {"representative_dataset": ids, "verbose": False}
    quantized = ocs_tf.convert(model, activation_bits=8, **data)
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, representative_dataset=ids)
    assert result.notes == []
    largest, flat = compare(quantized, TFLiteModel(path), ids)
    assert flat.max_difference < 1e-6
    assert largest.max_difference <= 1.01 * quantized.get_layer("max").grid.scale


def test_parts_that_nobody_reads(tmp_path, rng):
    x = keras.Input((4, 6))
    model = keras.Model(x, layers.Dense(2)(ops.unstack(layers.Dense(5)(x), axis=1)[2]))
    data = rng.normal(size=(30, 4, 6)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    result = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite")
    assert result.closeness[0].sqnr_db > 30


def test_rounding_between_operators_in_float():
    model, names = read(lambda x: layers.ELU()(layers.LeakyReLU()(x)))
    grid = Grid.of(-1.0, 2.0)
    float_regions.round_between(model, {names[0]: grid})
    assert kinds(model, range(4)) == ["LEAKY_RELU", "QUANTIZE", "DEQUANTIZE", "ELU"]
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 6)).astype(np.float32)
    interpreter = litert.Interpreter(model_content=fb.write(model))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    rounded = grid.round(np.asarray(layers.LeakyReLU()(x)))
    np.testing.assert_allclose(got, np.asarray(layers.ELU()(rounded)), atol=1e-5)
