"""Models that compute the same, and models that only look so."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from ocs_tf.graph.substitutions.sameness import computes_the_same


def scaled(factor: float, shape: Any = (3,), dtype: str = "float32") -> keras.Model:
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, keras.layers.Rescaling(factor)(inputs))


class Counting(keras.Model):
    """Its outputs depend on how often it was called."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = 0

    def call(self, x: Any) -> Any:
        self.count += 1
        return x * float(self.count)


class Failing(keras.Model):
    def call(self, x: Any) -> Any:
        raise RuntimeError("not on this machine")


@pytest.mark.parametrize(
    ("factor", "same"), [(2.0, True), (2.0 * (1 + 5e-4), True), (2.01, False), (np.nan, False)]
)
def test_to_a_thousandth_of_the_largest_output(factor: float, same: bool) -> None:
    assert computes_the_same(scaled(2.0), scaled(factor)) is same


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_what_is_no_float_is_the_same_to_the_bit(dtype: str) -> None:
    """Inputs are drawn of 0 and 1, which indices and masks may be."""

    def model(first: int) -> keras.Model:
        inputs = keras.Input((50,), dtype=dtype)
        return keras.Model(inputs, keras.ops.equal(keras.ops.cast(inputs, "int32"), first))

    assert computes_the_same(model(1), model(1))
    assert not computes_the_same(model(1), model(0))
    assert computes_the_same(model(2), model(3))  # neither is drawn


def test_other_shapes_differ() -> None:
    inputs = keras.Input((3,))
    wide = keras.Model(inputs, keras.ops.concatenate([inputs, inputs]))
    assert not computes_the_same(scaled(1.0), wide)


def test_open_sizes_are_drawn_alike() -> None:
    assert computes_the_same(scaled(2.0, (None, 3)), scaled(2.0, (None, 3)))


def test_state_of_python_shows() -> None:
    model = Counting()
    model.count = 1
    assert not computes_the_same(model, scaled(1.0))
    assert model.count == 2


def test_what_cannot_be_run_decides_nothing() -> None:
    assert computes_the_same(Failing(), scaled(1.0))
    inputs = keras.Input((1,), dtype="string")
    assert computes_the_same(Failing(), keras.Model(inputs, keras.layers.Identity()(inputs)))


class Broken(keras.Model):
    """It has a structure of inputs, and fails when it is called."""

    def __init__(self) -> None:
        inputs = keras.Input((3,))
        super().__init__(inputs, keras.layers.Identity()(inputs))

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("never")


def test_a_traced_model_must_run() -> None:
    assert not computes_the_same(scaled(1.0), Broken())


def test_open_sizes_are_large_enough() -> None:
    """Models that cannot be run on the first size were taken to be the same."""

    def cut(factor: float) -> keras.Model:
        inputs = keras.Input((None, 2))
        pooled = keras.layers.AveragePooling1D(20)(inputs)
        return keras.Model(
            inputs, keras.layers.Rescaling(factor)(keras.layers.Reshape((1, 2))(pooled))
        )

    assert computes_the_same(cut(1.0), cut(1.0))
    assert not computes_the_same(cut(1.0), cut(2.0))


def test_strings_are_words() -> None:
    def lookup(words: list[str]) -> keras.Model:
        inputs = keras.Input((8,), dtype="string")
        return keras.Model(inputs, keras.layers.StringLookup(vocabulary=words)(inputs))

    assert computes_the_same(lookup(["a", "the"]), lookup(["a", "the"]))
    assert not computes_the_same(lookup(["a", "the"]), lookup(["the", "a"]))
