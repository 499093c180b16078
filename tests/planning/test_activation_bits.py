"""Bits of activations by layer: overrides, the ends of the model, tensors that share a grid."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.numerics import ActivationGrid


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Sites: picture, scaled; r1, pool (one grid), c2, sum, mean; logits, softmax."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="picture")
    x = layers.Rescaling(0.5, offset=0.1, name="scaled")(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="c1")(x)
    x = layers.ReLU(name="r1")(layers.BatchNormalization(name="norm")(x))
    x = layers.MaxPooling2D(name="pool")(x)
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="c2")(x)
    x = layers.Concatenate(name="joined")([x, y])
    x = layers.Flatten(name="flat")(layers.GlobalAveragePooling2D(name="mean")(x))
    x = layers.Dense(5, name="logits")(x)
    return keras.Model(inputs, layers.Softmax(name="softmax")(x))


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)


def widths(model: keras.Model, samples: np.ndarray, **options: Any) -> dict[str, int]:
    plan = ocs_tf.plan(model, representative_dataset=samples, verbose=False, **options)
    return {site: grid.bits for site, grid in plan.activations.items()}


ENDS = {"picture", "scaled", "logits", "softmax"}
MIDDLE = {"r1", "c2", "joined", "mean"}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
def test_the_ends_have_8_bits_where_the_others_have_fewer(
    bits: int, model: keras.Model, samples: np.ndarray
) -> None:
    expected = dict.fromkeys(ENDS, max(bits, 8)) | dict.fromkeys(MIDDLE, bits)
    assert widths(model, samples, activation_bits=bits) == expected


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ({"first_activation_bits": "same", "last_activation_bits": "same"}, {}),
        ({"first_activation_bits": 16}, {"picture": 16, "scaled": 16, "logits": 8, "softmax": 8}),
        (
            {"first_activation_bits": None, "last_activation_bits": 6},
            {"picture": None, "scaled": None, "logits": 6, "softmax": 6},
        ),
    ],
)
def test_bits_of_the_ends(
    options: Any, others: dict[str, int | None], model: keras.Model, samples: np.ndarray
) -> None:
    expected = dict.fromkeys(ENDS | MIDDLE, 4) | others
    expected = {site: bits for site, bits in expected.items() if bits is not None}
    assert widths(model, samples, activation_bits=4, **options) == expected


@pytest.mark.parametrize(
    ("overrides", "others"),
    [
        # The ReLU and the batch norm are computed with the convolution.
        *(({name: {"activation_bits": 16}}, {"r1": 16}) for name in ("c1", "norm", "r1")),
        # What is concatenated shares a grid, and gets the most bits.
        ({"c2": {"activation_bits": 16}}, {"r1": 16, "c2": 16, "joined": 16}),
        (
            {"c2": {"activation_bits": 5}, "joined": {"activation_bits": 6}},
            {"r1": 6, "c2": 6, "joined": 6},
        ),
        ({"joined": {"activation_bits": None}}, {"r1": None, "c2": None, "joined": None}),
        ({"logits": {"activation_bits": 3}}, {"logits": 3}),
        ({re.compile(".*"): {"activation_bits": 7}}, dict.fromkeys(ENDS | MIDDLE, 7)),
    ],
)
def test_overrides(
    overrides: Any, others: dict[str, int | None], model: keras.Model, samples: np.ndarray
) -> None:
    found = widths(model, samples, activation_bits=4, overrides=overrides)
    shared = {"r1", "c2", "joined"}
    if shared & set(others):
        others = dict.fromkeys(shared, others.get("joined", others.get("r1"))) | others
    expected = dict.fromkeys(ENDS, 8) | dict.fromkeys(MIDDLE, 4) | others
    assert found == {site: bits for site, bits in expected.items() if bits is not None}


def test_only_what_an_override_names_is_rounded(model: keras.Model, samples: np.ndarray) -> None:
    overrides = {"mean": {"activation_bits": 6}}
    assert widths(model, samples, activation_bits=None, overrides=overrides) == {"mean": 6}


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ({}, 8),
        ({"intermediate_activation_bits": "same"}, 4),
        ({"intermediate_activation_bits": 6}, 6),
        ({"intermediate_activation_bits": None}, None),
    ],
)
def test_what_no_kernel_reads(options: Any, others: int | None) -> None:
    """Of a residual block: the summands, and what goes into functions that are not fused."""
    inputs = keras.Input((8, 8, 3), name="picture")
    x = start = layers.Conv2D(4, 3, padding="same", activation="relu", name="start")(inputs)
    x = layers.ZeroPadding2D(name="padded")(x)  # moves what "start" makes to the kernel
    x = layers.Conv2D(4, 3, name="leaky", activation="leaky_relu")(x)
    x = layers.Conv2D(4, 1, name="summand")(x)
    x = layers.Add(name="sum")([x, start])
    x = layers.Conv2D(4, 1, name="before")(layers.ReLU(name="relu")(x))
    x = layers.LeakyReLU(name="behind")(x)
    model = keras.Model(inputs, layers.Dense(2, name="last")(layers.Flatten(name="flat")(x)))
    data = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    found = widths(model, data, activation_bits=4, **options)
    read = {"start", "leaky", "relu", "behind"}
    unread = {"leaky:preactivation", "summand", "before"}
    expected = {"picture": 8, "last": 8} | dict.fromkeys(read, 4) | dict.fromkeys(unread, others)
    assert found == {site: bits for site, bits in expected.items() if bits is not None}


def test_inputs_of_layers(model: keras.Model, samples: np.ndarray) -> None:
    options: dict[str, Any] = {"activation_scope": "inputs", "activation_bits": 4}
    overrides = {"c2": {"activation_bits": 6}}
    found = widths(model, samples, **options, overrides=overrides)
    assert found == {"c1:input": 8, "c2:input": 6, "logits:input": 4}


def test_activation_functions_apart(samples: np.ndarray) -> None:
    """What goes into the function and what comes out of it have the bits of the layer."""
    inputs = keras.Input((8, 8, 3), name="picture")
    x = layers.Conv2D(4, 3, activation="gelu", name="c1")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 3, activation="sigmoid", name="c2")(x))
    found = widths(model, samples, activation_bits=4, overrides={"c1": {"activation_bits": 6}})
    assert found == {
        **{"picture": 8, "c1:preactivation": 6, "c1": 6},
        **{"c2:preactivation": 8, "c2": 8},
    }


def test_each_grid_holds_what_was_measured(model: keras.Model, samples: np.ndarray) -> None:
    overrides = {"mean": {"activation_bits": 16}, "c2": {"activation_bits": 3}}
    options: dict[str, Any] = {
        **{"overrides": overrides, "activation_equalization": False},
        "activation_clip": "none",
    }
    plan = ocs_tf.plan(model, representative_dataset=samples, verbose=False, **options)
    part = keras.Model(model.inputs, [model.get_layer(n).output for n in ("mean", "joined")])
    for name, values in zip(("mean", "joined"), part(samples), strict=True):
        grid = plan.activations[name]
        assert isinstance(grid, ActivationGrid)
        assert np.asarray(values).max() == pytest.approx(grid.maximum, rel=0.2)
        noise = np.abs(grid.fake_quantize(np.asarray(values)) - np.asarray(values)).max()
        assert noise <= grid.scale * 0.51


@pytest.mark.parametrize("name", ["pool", "flat"])
def test_layers_without_a_grid_of_their_own_are_refused(
    name: str, model: keras.Model, samples: np.ndarray
) -> None:
    message = rf"`activation_bits` \(=8\) to '{name}', whose output has no grid of its own"
    with pytest.raises(ValueError, match=message) as error:
        widths(model, samples, overrides={name: {"activation_bits": 8}})
    *_, named = str(error.value).rstrip(".").split(": ")
    for other in named.split(", "):  # the remedy
        assert widths(model, samples, overrides={other: {"activation_bits": 8}})


def test_data_are_needed(model: keras.Model) -> None:
    message = r"`activation_bits` \(=6\) needs `representative_dataset`"
    with pytest.raises(ValueError, match=message):
        ocs_tf.convert(model, overrides={"mean": {"activation_bits": 6}})
