"""Models of two versions of Keras that compute the same, nearly the same, and something else."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from ocs_tf.keras2 import comparison, keras3_model, tf_keras_internals
from ocs_tf.keras2.comparison import check_same

tf_keras = pytest.importorskip("tf_keras")
tf = pytest.importorskip("tensorflow")


def pair(factor: float, shape: tuple[int | None, ...] = (4,), dtype: str = "float32") -> Any:
    """`x` in Keras 2, and `factor * x` in Keras 3."""
    old, new = tf_keras.Input(shape, dtype=dtype), keras.Input(shape, dtype=dtype)
    kept = tf_keras.layers.Rescaling(1.0, dtype=dtype)(old)
    scaled = keras.layers.Rescaling(factor, dtype=dtype)(new)
    return tf_keras.Model(old, kept, name="old"), keras.Model(new, scaled)


@pytest.mark.parametrize("shape", [(4,), (None, 3)], ids=["known", "open"])
def test_to_a_few_steps_of_float32(shape: tuple[int | None, ...]) -> None:
    step = 2.0**-23
    check_same(*pair(1.0, shape))
    check_same(*pair(1 + 4 * step, shape))
    with pytest.raises(ValueError, match=r"'old' cannot be translated.*differs .* by 1"):
        check_same(*pair(1 + 1e-5, shape))


def test_half_precision_has_longer_steps() -> None:
    check_same(*pair(1 + 2.0**-10, dtype="float16"))
    with pytest.raises(ValueError, match="cannot be translated"):
        check_same(*pair(1.1, dtype="float16"))


def test_other_shapes_and_numbers_that_are_none() -> None:
    old, _ = pair(1.0)
    inputs = keras.Input((4,))
    wide = keras.Model(inputs, keras.ops.concatenate([inputs, inputs]))
    with pytest.raises(ValueError, match="by inf of its largest"):
        check_same(old, wide)
    with pytest.raises(ValueError, match="by nan of its largest"):
        check_same(*pair(np.nan))


def test_words_that_a_table_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are drawn of them, so that not all are unknown."""
    lookup = tf_keras.layers.StringLookup(vocabulary=["cat", "dog"])
    inputs = tf_keras.Input((), dtype="string")
    assert {"cat", "dog"} <= set(comparison._vocabulary(tf_keras.Model(inputs, lookup(inputs))))


def functional(function: Any, shape: tuple[int, ...] = (4,)) -> Any:
    inputs = tf_keras.Input(shape)
    return tf_keras.Model(inputs, function(inputs))


def test_models_that_cannot_be_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any, arrays: Any) -> None:
        raise RuntimeError("only supports NHWC")

    monkeypatch.setattr(tf_keras_internals, "outputs", fail)
    with pytest.warns(UserWarning, match="could not be compared.*here: only supports NHWC"):
        assert keras3_model(functional(tf_keras.layers.Dense(2))).built


def test_rounding_that_the_model_enlarges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in another order differ in their last place, and the sine enlarges that."""
    model = functional(lambda x: tf.sin(tf_keras.layers.BatchNormalization()(x) * 1e4), (2, 2, 4))
    for weight in model.weights:
        weight.assign(np.linspace(0.3, 0.9, 4))
    assert keras3_model(model).built
    monkeypatch.setattr(comparison, "_nudged", comparison._outputs)
    with pytest.raises(ValueError, match="differs from that of tf_keras"):
        keras3_model(model)
