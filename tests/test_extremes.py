"""Numbers of any size, kernels of zeros, and many copies: what is finite stays finite."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf


def convert(model: Any, *args: Any, **options: Any) -> keras.Model:
    return ocs_tf.convert(model, *args, verbose=False, **options)


# Sizes of every kind --------------------------------------------------------------------------


def scaled_dense(kernel: float, bias: float, second: float = 1.0) -> keras.Model:
    """Two dense layers; the first has weights and biases of these magnitudes."""
    rng = np.random.default_rng(3)
    i = keras.Input((6,))
    a, b = layers.Dense(5, activation="relu", name="a"), layers.Dense(4, name="b")
    model = keras.Model(i, b(a(i)))
    a.set_weights([rng.normal(0, kernel, (6, 5)), rng.normal(0, bias, 5)])
    b.set_weights([rng.normal(0, second, (5, 4)), np.zeros(4)])
    return model


EXTREMES = [
    (1e-30, 1.0, 0.0),
    (1e-36, 1.0, 0.0),
    (1e-38, 1.0, 0.0),
    (1e-42, 1.0, 0.0),
    (1.0, 1e-36, 0.0),
    (1.0, 1e-38, 0.0),
    (1.0, 1e-41, 0.0),
    (1e-25, 1e-20, 0.0),
    (1e-20, 1e-12, 1e-32),
    (1.0, 1e30, 0.0),
    (1e30, 1e-30, 0.0),
    (1e-30, 1e36, 0.0),
    (1e18, 1e18, 0.0),
    (1.0, 1e36, 0.0),
    (1e36, 1.0, 0.0),
    (1.0, 1.0, 1e30),
    (1e-30, 1e-20, 1.0),
    (1e-38, 1e-38, 1e10),
    (1e-20, 1e-25, 1e30),
]


SPLIT = {"weight_bits": 5, "expand_ratio": 0.5, "activation_clip": "mse"}
INPUTS = {"weight_bits": 8, "activation_scope": "inputs", "granularity": "tensor"}


@pytest.mark.parametrize(
    ("kernel", "data", "bias", "options"),
    [
        *((*case, {"weight_bits": 8}) for case in EXTREMES),
        *((*EXTREMES[i], SPLIT) for i in (1, 5, 8, 12)),
        *((*EXTREMES[i], INPUTS) for i in (4, 7, 15, 16)),
    ],
    ids=str,
)
def test_what_is_finite_in_float_stays_finite(
    kernel: float, data: float, bias: float, options: dict[str, Any], rng: np.random.Generator
) -> None:
    model = scaled_dense(kernel, bias)
    x = (rng.normal(size=(64, 6)) * data).astype(np.float32)
    exact = np.asarray(model(x), np.float64)
    assert np.isfinite(exact).all()
    for dataset in (None, x):
        of_weights = {k: v for k, v in options.items() if not k.startswith("activation")}
        chosen = of_weights if dataset is None else options
        got = np.asarray(convert(model, representative_dataset=dataset, **chosen)(x), np.float64)
        assert np.isfinite(got).all()
        # Below, float32 numbers are denormal, and a step may not be.
        if np.abs(exact).max() > 1e-34:
            assert ocs_tf.numerics.sqnr_db(exact, got) > 12


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_channels_and_biases_of_very_different_size(
    granularity: str, rng: np.random.Generator
) -> None:
    model = scaled_dense(1.0, 0.0)
    kernel = np.array(model.get_layer("a").kernel)
    kernel[:, 0] *= 1e-38
    model.get_layer("a").set_weights([kernel, np.float32([0, 1e30, -1e38, 0, 1e-40])])
    x = rng.normal(size=(64, 6)).astype(np.float32)
    quantized = convert(model, granularity=granularity, representative_dataset=x)
    assert ocs_tf.numerics.sqnr_db(model(x), quantized(x)) > 30


def test_a_kernel_too_large_for_its_grid_names_the_layer() -> None:
    model = scaled_dense(1.0, 0.0)
    model.get_layer("a").kernel.assign(np.full((6, 5), 3.4e38))
    with pytest.raises(ValueError, match=r"(?s)kernel of layer a: `threshold` .* too large"):
        convert(model, first_layer_bits=2, power_of_two=True)
    with pytest.raises(ValueError, match=r"kernel of layer a: .*3.4e\+38.* too large"):
        convert(model, first_layer_bits=8, power_of_two=True)


# Kernels of zeros, and many copies ------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_clip": "mse"},
        {"weight_clip": "none"},
        {"weight_clip": "none", "granularity": "tensor"},
        {"weight_clip": "joint", "split_budget": "network"},
        {"weight_clip": "none", "rounding": "nearest"},
        {"rounding": "error_balanced", "bias_correction": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_data", [False, True], ids=["W4", "W4A8"])
def test_a_kernel_of_zeros_has_no_copies(
    options: dict[str, Any], with_data: bool, rng: np.random.Generator
) -> None:
    i = keras.Input((150,))
    h = layers.Dense(150, activation="relu", name="first")(i)
    z = layers.Dense(3, name="zero", kernel_initializer="zeros")(h)
    model = keras.Model(i, layers.Dense(3, name="last")(z))
    x = rng.normal(size=(16, 150)).astype(np.float32)
    data = x if with_data else None
    quantized = convert(
        model, weight_bits=4, expand_ratio=1.0, representative_dataset=data, **options
    )
    assert quantized.get_layer("zero").copies == 0
    np.testing.assert_array_equal(quantized(x), model(x))


@pytest.mark.parametrize("rounding", ["nearest", "error_compensated"])
def test_a_plan_may_have_many_copies_of_a_channel(rounding: str, rng: np.random.Generator) -> None:
    model = scaled_dense(1.0, 1.0)
    x = rng.normal(size=(64, 6)).astype(np.float32)
    plan = ocs_tf.plan(
        model, weight_bits=8, rounding=rounding, representative_dataset=x, verbose=False
    )
    copies = dataclasses.replace(plan.layers["b"], copies=[0] * 2000)
    many = dataclasses.replace(plan, layers={**plan.layers, "b": copies})
    quantized = ocs_tf.apply(model, many, representative_dataset=x, verbose=False)
    assert quantized.get_layer("b").copies == 2000
    assert ocs_tf.numerics.sqnr_db(model(x), quantized(x)) > 30
