"""Which options reach which layer, and what stays in float."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf import Config, Override
from ocs_tf.numerics import copy_count, quantize_kernel
from tests.planning.networks import bits, network, plan


@pytest.fixture
def model(randomize: Any) -> keras.Model:
    return randomize(network())


def test_defaults(model: keras.Model) -> None:
    result = plan(model)
    assert bits(result) == {"stem": 8, "depthwise": 8, "middle": 8, "grouped": 8, "head": 8}
    assert {layer.granularity for layer in result.layers.values()} == {"channel"}
    assert all(layer.copies == [] for layer in result.layers.values())
    assert result.float_layers == {}
    assert result.activations == {}
    assert result.fold_batch_norm


def test_below_8_bits_all_but_the_first_layer_are_split(model: keras.Model) -> None:
    result = plan(model, weight_bits=5, last_layer_bits=5)
    assert bits(result) == {"stem": 8, "depthwise": 5, "middle": 5, "grouped": 5, "head": 5}
    copies = {name: len(layer.copies) for name, layer in result.layers.items()}
    assert copies == {
        "stem": 0,  # first
        "depthwise": 0,  # not splittable
        "middle": copy_count(0.02, 10),
        "grouped": 0,  # not splittable
        "head": copy_count(0.02, 20),
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weight_bits": 4}, (8, 4, 8)),
        ({"weight_bits": 4, "first_layer_bits": "same"}, (4, 4, 8)),
        ({"weight_bits": 4, "last_layer_bits": "same"}, (8, 4, 4)),
        ({"weight_bits": 4, "first_layer_bits": None, "last_layer_bits": 6}, (None, 4, 6)),
        ({"weight_bits": None, "last_layer_bits": 6}, (8, None, 6)),
        ({"weight_bits": 4, "overrides": {"stem": {"weight_bits": 3}}}, (3, 4, 8)),
        ({"weight_bits": 4, "overrides": {"head": {"weight_bits": None}}}, (8, 4, None)),
        ({"weight_bits": 4, "overrides": {layers.Conv2D: {"weight_bits": 5}}}, (5, 5, 8)),
        ({"overrides": [Override(re.compile("[sm].*"), 5), Override("stem", 6)]}, (5, 5, 8)),
        ({"overrides": [Override(lambda x: x.name == "head", 5)]}, (8, 8, 5)),
    ],
    ids=[
        "defaults",
        "first-same",
        "last-same",
        "first-float",
        "middle-float",
        "name",
        "float-by-name",
        "class",
        "first-match-wins",
        "callable",
    ],
)
def test_bits_of_first_middle_and_last(
    options: dict[str, Any], expected: tuple[int | None, ...], model: keras.Model
) -> None:
    result = plan(model, **options)
    assert tuple(bits(result).get(n) for n in ("stem", "middle", "head")) == expected
    floats = {n for n, b in zip(("stem", "middle", "head"), expected, strict=True) if b is None}
    assert floats <= set(result.float_layers)
    assert {result.float_layers[n] for n in floats} <= {"left in float by the configuration"}


def test_the_first_layer_is_not_split_whatever_its_bits(model: keras.Model) -> None:
    result = plan(model, weight_bits=4, first_layer_bits="same", expand_ratio=0.5)
    assert result.layers["stem"].bits == 4
    assert result.layers["stem"].copies == []
    assert len(result.layers["middle"].copies) == copy_count(0.5, 10)


@pytest.mark.parametrize(("multiple", "most"), [(1, 10), (4, 2), (5, 0), (8, 6), (16, 6), (64, 54)])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 1.0])
def test_copies_end_at_the_multiple(
    multiple: int, most: int, ratio: float, model: keras.Model
) -> None:
    result = plan(model, weight_bits=4, expand_ratio=ratio, channel_multiple=multiple)
    assert len(result.layers["middle"].copies) == min(copy_count(ratio, 10), most)


def test_an_override_can_split_the_first_layer(model: keras.Model) -> None:
    result = plan(model, overrides={"stem": {"expand_ratio": 0.5, "granularity": "tensor"}})
    assert len(result.layers["stem"].copies) == copy_count(0.5, 3)
    assert result.layers["stem"].granularity == "tensor"
    assert result.layers["middle"].granularity == "channel"


def test_paper(model: keras.Model) -> None:
    config = Config.paper(weight_bits=4, expand_ratio=0.1, weight_clip="mse")
    result = plan(model, config, representative_dataset=np.ones((2, 8, 8, 3), np.float32))
    assert set(result.layers) == {"middle", "grouped"}
    assert set(result.float_layers) == {"stem", "norm", "depthwise", "head"}
    assert not result.fold_batch_norm
    assert set(result.activations) == {"middle:input", "grouped:input"}
    assert {grid.symmetric for grid in result.activations.values()} == {True}
    kernel = np.asarray(model.get_layer("middle").kernel)
    want = quantize_kernel(kernel, 4, 0.1, "mse", "tensor")
    got = result.layers["middle"].quantize(kernel)
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.scale, want.scale)


class OwnDense(layers.Dense):
    """A user's subclass, which may compute anything."""


def with_own_layer() -> keras.Model:
    inputs = keras.Input((5, 4))
    x = OwnDense(3, name="memory")(layers.Dense(4, name="first")(inputs))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def test_layers_that_stay_float_are_listed_with_their_reason() -> None:
    result = plan(with_own_layer())
    assert list(result.float_layers) == ["memory"]
    assert "OwnDense has no quantized form" in result.float_layers["memory"]


def test_strict_names_layer_reason_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"'memory' .* OwnDense has no .*weight_bits=None.*strict"):
        plan(with_own_layer(), strict=True)
    result = plan(with_own_layer(), strict=True, overrides={"memory": {"weight_bits": None}})
    assert result.float_layers == {"memory": "left in float by the configuration"}


@pytest.mark.parametrize("config", [Config(strict=True), Config.paper(strict=True)])
def test_strict_is_content_with_what_was_asked_for(config: Config, model: keras.Model) -> None:
    assert plan(model, config).layers


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"conv9": {"weight_bits": 4}}, "name 'conv9', which matches no layer; .*: stem, depth"),
        ({re.compile("block.*"): {}}, r"regex 'block\.\*', which matches no layer"),
    ],
    ids=["name", "pattern"],
)
def test_an_override_that_matches_nothing(overrides: Any, message: str, model: keras.Model) -> None:
    with pytest.raises(ValueError, match=message):
        plan(model, overrides=overrides)


class OwnKernel(layers.Layer):
    """A layer of a user's own that keeps its kernel itself."""

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(shape=(input_shape[-1], 3), name="table")

    def call(self, inputs: Any) -> Any:
        return keras.ops.matmul(inputs, self.table)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], 3)


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (layers.ReLU(), "none"),
        (OwnKernel(name="own"), r"'own' \(OwnKernel\)"),
        (
            layers.TimeDistributed(OwnKernel(), name="steps"),
            r"'steps' \(TimeDistributed of OwnKernel\)",
        ),
    ],
)
def test_no_layer_to_quantize(layer: Any, found: str) -> None:
    inputs = keras.Input((5, 4))
    message = "no layer that can be quantized; those are: Dense, .*LSTM"
    with pytest.raises(ValueError, match=rf"{message}.* Its layers with weights: {found}\."):
        plan(keras.Model(inputs, layer(inputs)))


def test_what_keras_has_quantized_is_named():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="small")])
    model.get_layer("small").quantize("int8")
    with pytest.raises(ValueError, match="Keras has quantized 'small' already"):
        ocs_tf.plan(model)
