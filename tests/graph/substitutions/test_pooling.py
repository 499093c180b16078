"""Adaptive pooling as ordinary pooling."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf.graph.layer_traits import holds
from ocs_tf.graph.substitutions import pooling

pytestmark = pytest.mark.skipif(
    not hasattr(keras.layers, "AdaptiveMaxPooling2D"), reason="this Keras has no adaptive pooling"
)
SIZES = (6, 4)
SHAPE = (None, *SIZES, 3)


def adaptive(kind: str, size: Any, rank: int = 2, **options: Any) -> Any:
    return getattr(keras.layers, f"Adaptive{kind}Pooling{rank}D")(size, name="pool", **options)


@pytest.mark.parametrize("kind", ["Average", "Max"])
@pytest.mark.parametrize(
    ("size", "rank"), [((3, 2), 2), (2, 2), (1, 2), ((1, 4), 2), (2, 1), (1, 1)]
)
def test_windows_of_one_size(kind: str, size: Any, rank: int, rng: np.random.Generator) -> None:
    layer = adaptive(kind, size, rank)
    shape = SHAPE if rank == 2 else (None, SIZES[0], 3)
    found = pooling.as_one_operator(layer, shape)
    assert found is not None
    assert found.name == "pool"
    assert not type(found).__name__.startswith("Adaptive")
    x = rng.normal(size=(2, *shape[1:])).astype(np.float32)
    np.testing.assert_allclose(found(x), layer(x), atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: adaptive("Average", 4), SHAPE),  # windows of one and of two
        (lambda: adaptive("Average", 2), (None, None, 4, 3)),
        (lambda: adaptive("Average", 2, data_format="channels_first"), (None, 3, 6, 4)),
        (lambda: adaptive("Max", 2, 3), (None, 4, 4, 4, 3)),
        (lambda: keras.layers.MaxPooling2D(2), SHAPE),
    ],
    ids=["uneven", "open", "channels_first", "3D", "ordinary"],
)
def test_others_stay(layer: Any, shape: tuple[int | None, ...]) -> None:
    assert pooling.as_one_operator(layer(), shape) is None


def test_grids() -> None:
    """An integer runtime pools on the grid of the input; a mean of everything has its own."""
    assert [holds(adaptive("Max", size), "keeps_grid") for size in (1, 2)] == [True, True]
    assert [holds(adaptive("Average", size), "keeps_grid") for size in (1, 2)] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size", "least"),
    [("Average", 3, np.inf), ("Average", 1, np.inf), ("Max", 5, np.inf), ("Average", 5, 32.0)],
)
def test_files(kind: str, size: int, least: float, tmp_path: Any, rng: np.random.Generator) -> None:
    """Windows of two sizes are averaged by rows, rounded, and averaged by columns."""
    inputs = keras.Input((9, 9, 2))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(adaptive(kind, size)(x)))
    images = rng.normal(size=(20, 9, 9, 2)).astype(np.float32)
    quantized = ocs_tf.convert(model, representative_dataset=images, verbose=False)
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, representative_dataset=images)
    assert not result.notes
    (close,) = ocs_tf.compare(quantized, ocs_tf.TFLiteModel(path), images)
    assert close.sqnr_db >= least
