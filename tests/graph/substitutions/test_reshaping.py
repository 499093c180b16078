"""Shapes with open sizes: which have one meaning."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import ops

from ocs_tf.graph.substitutions.reshaping import open_shape, settled
from ocs_tf.keras_internals import maker

BATCH = None


@pytest.mark.parametrize(
    ("inputs", "shape", "expected"),
    [
        ((BATCH, 6, 4), (BATCH, 24), (-1, 24)),
        ((BATCH, 6, 4), (BATCH, -1, 8), (-1, 3, 8)),
        ((BATCH, None, 4), (BATCH, None, 2, 2), None),
        ((BATCH, None, 4), (BATCH, -1, 2), None),
        ((BATCH, None, 4), (-1, None, 4), None),
    ],
)
def test_the_shape_that_is_left(inputs: Any, shape: Any, expected: Any) -> None:
    operation = maker(ops.reshape(keras.KerasTensor(inputs), shape))
    assert open_shape(operation) == shape
    assert settled(operation, inputs) == expected


def test_known_shapes_are_left_alone() -> None:
    operation = maker(ops.reshape(keras.KerasTensor((BATCH, 6, 4)), (-1, 24)))
    assert open_shape(operation) is None
    assert settled(operation, (BATCH, 6, 4)) is None
