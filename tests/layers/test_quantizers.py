"""Fake quantization in Keras against the NumPy grid."""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.layers import (
    FakeQuantize,
    OracleQuantize,
    QuantizedAveragePooling,
    QuantizedOutput,
    fake_quantize,
)
from ocs_tf.layers.quantizers import requantize
from ocs_tf.numerics import ActivationGrid, OracleGrid
from ocs_tf.numerics.activation_splitting import copies_by_maximum, split_values

GRIDS = {
    "8bit": ActivationGrid(8, 0.05, -20),
    "2bit": ActivationGrid(2, 1.0, 0),
    "one-sided": ActivationGrid(8, 0.02, -128),
    "symmetric": ActivationGrid(4, 0.3, 0, symmetric=True),
    "16bit": ActivationGrid(16, 2.0**-12, 0, symmetric=True),
}


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    ties = np.arange(-20, 20) * 0.025
    return np.concatenate([rng.normal(0, 4, 1000), ties, [0.0, 1e6, -1e6]]).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_equals_the_numpy_grid(grid: ActivationGrid, values: np.ndarray) -> None:
    got = np.asarray(fake_quantize(keras.ops.convert_to_tensor(values), grid))
    np.testing.assert_array_equal(got, grid.fake_quantize(values))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_keeps_the_dtype(dtype: str, values: np.ndarray) -> None:
    grid = ActivationGrid(8, 1e-7, 0)  # in float16 this scale is denormal, its inverse infinite
    x = keras.ops.cast(values * 1e-6, dtype)
    got = fake_quantize(x, grid)
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    assert np.isfinite(np.asarray(keras.ops.cast(got, "float32"))).all()


@pytest.mark.parametrize("as_dict", [False, True], ids=["grid", "dict"])
def test_layer_rounds_and_keeps_its_config(as_dict: bool, values: np.ndarray) -> None:
    grid = GRIDS["8bit"]
    layer = FakeQuantize(grid.to_dict() if as_dict else grid, name="rounding")
    np.testing.assert_array_equal(np.asarray(layer(values)), grid.fake_quantize(values))
    twin = FakeQuantize.from_config(layer.get_config())
    assert (twin.grid, twin.name, twin.trainable) == (grid, "rounding", False)
    assert layer.compute_output_shape((2, 3)) == (2, 3)


def test_wrapper_rounds_the_output_of_its_layer(rng: np.random.Generator) -> None:
    grid = GRIDS["8bit"]
    inner = layers.Dense(3)
    wrapped = QuantizedOutput(inner, grid, name="wrapped")
    x = rng.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(wrapped(x)), grid.fake_quantize(np.asarray(inner(x))))
    twin = QuantizedOutput.from_config(wrapped.get_config())
    assert twin.grid == grid
    assert twin.layer.units == 3


@pytest.mark.parametrize("name", ["d(1)", "a b", "in:0"])
def test_wrapped_layers_may_have_any_name(name: str) -> None:
    wrapped = QuantizedOutput(layers.GRU(3, name=name), GRIDS["8bit"], name=name)
    output = wrapped(keras.Input((4, 2)))
    assert (output.shape, output.dtype) == ((None, 3), "float32")


def test_masks_pass_through() -> None:
    grid = ActivationGrid(8, 0.01)
    tokens = keras.Input((6,), dtype="int32")
    embedded = QuantizedOutput(layers.Embedding(9, 4, mask_zero=True), grid)(tokens)
    rounded = FakeQuantize(grid)(embedded)
    pooled = layers.GlobalAveragePooling1D()(rounded)  # averages what is not masked
    model = keras.Model(tokens, [rounded, pooled])
    x = np.array([[1, 2, 3, 0, 0, 0]])
    each, mean = model(x)
    np.testing.assert_allclose(np.asarray(mean)[0], np.asarray(each)[0, :3].mean(0), rtol=1e-5)


def test_training_reaches_the_wrapped_layer() -> None:
    wrapped = QuantizedOutput(layers.Dropout(0.5), ActivationGrid(8, 0.1))
    model = keras.Sequential([keras.Input((1000,)), wrapped])
    x = np.ones((1, 1000), np.float32)
    assert (np.asarray(model(x, training=True)) == 0).any()
    assert not (np.asarray(model(x)) == 0).any()


def test_saved_and_loaded_without_custom_objects(tmp_path: pathlib.Path) -> None:
    inputs = keras.Input((4,))
    x = FakeQuantize(ActivationGrid(8, 0.1))(inputs)
    model = keras.Model(inputs, QuantizedOutput(layers.Dense(2), ActivationGrid(8, 0.1))(x))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("pool", [2, 3])
def test_average_pooling_takes_the_mean_of_codes(pool: int, rng: np.random.Generator) -> None:
    grid = ActivationGrid(8, 0.1, zero_point=-20)
    codes = rng.integers(-128, 128, (2, 6, 6, 3))
    layer = QuantizedAveragePooling(layers.AveragePooling2D(pool), grid)
    got = grid.quantize(np.asarray(layer(grid.dequantize(codes))))
    # The mean of whole numbers, ties away from code 0: in integers, without a rounding error.
    size = 6 // pool
    windows = codes[:, : size * pool, : size * pool].reshape(2, size, pool, size, pool, 3)
    sums, count = windows.sum((2, 4)), pool * pool
    expected = np.sign(sums) * ((2 * np.abs(sums) + count) // (2 * count))
    np.testing.assert_array_equal(got, expected)


def test_requantize_is_one_rounding_of_integer_sums(rng: np.random.Generator) -> None:
    grid = ActivationGrid(8, 0.037, zero_point=5)
    sums = rng.integers(-(2**20), 2**20, (50, 4))
    step = rng.uniform(1e-7, 1e-5, 4).astype(np.float32)
    factor = (step.astype(np.float64) / grid.scale).astype(np.float32)
    expected = np.clip(np.rint(sums.astype(np.float32) * factor) + 5, -128, 127)
    got = requantize(sums.astype(np.float32), step, grid)
    np.testing.assert_array_equal(grid.quantize(np.asarray(got)), expected)


# Split channels -------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_split_channels_are_rounded_like_their_copies(
    grid: ActivationGrid, rng: np.random.Generator
) -> None:
    copies = (1, 1, 0)
    split = dataclasses.replace(grid, copies=copies)
    x = rng.normal(0, 100 * grid.scale, (50, 3)).astype(np.float32)
    parts = grid.fake_quantize(split_values(x, copies, grid.scale))
    expected = parts[:, :3].copy()
    expected[:, 0] += parts[:, 5]
    expected[:, 1] += parts[:, 3] + parts[:, 4]
    got = np.asarray(FakeQuantize(split)(x))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(got, split.fake_quantize(x))
    step = np.float32([grid.scale, grid.scale / 3, grid.scale * 2])
    sums = np.rint(x / step)
    codes = requantize(sums, step, split)
    np.testing.assert_array_equal(np.asarray(codes), split.fake_quantize(sums * step))


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("kind", ["signed", "positive", "zero"])
def test_an_oracle_chooses_for_each_batch(
    kind: str, symmetric: bool, count: int, rng: np.random.Generator
) -> None:
    layer = OracleQuantize(OracleGrid(4, count, symmetric))
    for scale in (0.1, 10):
        x = (rng.normal(size=(5, 4, 3)) * scale * [1, 4, 2]).astype(np.float32)
        x = {"signed": x, "positive": np.abs(x), "zero": 0 * x}[kind]
        copies = copies_by_maximum(np.abs(x).max((0, 1)), count)
        k = 1 + np.bincount(copies, minlength=3).astype(np.float32)
        low, high = (x.min((0, 1)) / k).min(), (x.max((0, 1)) / k).max()
        grid = ActivationGrid.from_range(low, high, 4, symmetric, copies=copies)
        np.testing.assert_allclose(np.asarray(layer(x)), grid.fake_quantize(x), rtol=1e-5)


def test_split_grids_are_saved_and_loaded(tmp_path: pathlib.Path) -> None:
    inputs = keras.Input((4,))
    x = FakeQuantize(ActivationGrid(4, 0.1, copies=(2,)))(inputs)
    model = keras.Model(inputs, OracleQuantize(OracleGrid(3, 1))(x))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert [layer.grid for layer in loaded.layers[1:]] == [
        ActivationGrid(4, 0.1, copies=(2,)),
        OracleGrid(3, 1),
    ]
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
