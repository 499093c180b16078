"""Plans: which options reach which layer, JSON, and what is refused before any work."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf import Config, LayerPlan, Override, Plan
from ocs_tf.numerics import WEIGHT_CLIPS, copy_count, quantize_kernel

# KL takes hundreds of histograms for each channel: with one step for the kernel only.
each_clip = pytest.mark.parametrize(
    ("granularity", "clip"),
    [
        (granularity, clip)
        for granularity in ("tensor", "channel")
        for clip in WEIGHT_CLIPS
        if (granularity, clip) != ("channel", "kl")
    ],
)


def network() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(10, 3, name="stem")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2D(20, 1, name="middle")(x)
    x = layers.Conv2D(20, 1, groups=2, name="grouped")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="network")


@pytest.fixture
def model(randomize: Any) -> keras.Model:
    return randomize(network())


def plan(model: keras.Model, config: Config | None = None, **options: Any) -> Plan:
    return ocs_tf.plan(model, config, verbose=False, **options)


def bits(plan: Plan) -> dict[str, int]:
    return {name: layer.bits for name, layer in plan.layers.items()}


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


@pytest.mark.slow
@each_clip
def test_a_planned_kernel_is_that_of_the_numerics(
    granularity: str, clip: str, model: keras.Model
) -> None:
    options = {"weight_bits": 4, "expand_ratio": 0.3, "weight_clip": clip, "equalization": False}
    result = plan(model, granularity=granularity, percentile=99.0, **options)
    kernel = np.asarray(model.get_layer("middle").kernel)
    want = quantize_kernel(kernel, 4, 0.3, clip, granularity, percentile=99.0)
    got = result.layers["middle"].quantize(kernel)
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.scale, want.scale)
    np.testing.assert_array_equal(got.channel_map, want.channel_map)


@pytest.mark.parametrize("scope", ["all", "inputs"])
def test_json_round_trip(scope: str, model: keras.Model, tmp_path: pathlib.Path) -> None:
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3))
    result = plan(
        model,
        weight_bits=4,
        expand_ratio=0.2,
        overrides={"head": {"weight_bits": None}},
        representative_dataset=images,
        activation_scope=scope,
    )
    assert Plan.from_json(result.to_json()) == result
    result.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == result
    x = images.astype(np.float32)
    first, second = (
        ocs_tf.apply(model, p, representative_dataset=images, verbose=False)
        for p in (result, loaded)
    )
    np.testing.assert_array_equal(np.asarray(first(x)), np.asarray(second(x)))


def test_a_plan_can_be_edited(model: keras.Model) -> None:
    result = plan(model, weight_bits=8)
    result.layers["middle"] = LayerPlan(3, 0.5, copies=[4, 4, 1])
    del result.layers["stem"]
    quantized = ocs_tf.apply(model, result, verbose=False)
    middle = quantized.get_layer("middle")
    assert middle.weight_bits == 3
    assert np.asarray(middle.channel_map).tolist() == [*range(10), 4, 4, 1]
    assert float(middle.scale) == pytest.approx(0.5 / (2**2 - 1))
    assert type(quantized.get_layer("stem")) is layers.Conv2D


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "is not a plan, which is JSON text"),
        ("[]", "not a plan of format 1"),
        ("{}", "not a plan of format 1"),
        ('{"format": 99}', "not a plan of format 1"),
        ('{"format": 1}', "lacks a field or has an unknown one: 'layers'"),
    ],
    ids=["no-json", "list", "no-format", "other-format", "no-fields"],
)
def test_what_is_no_plan(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, r"`bits` \(=9\) must be an integer from 2 to 8"),
        ({"bits": 16}, r"`bits` \(=16\)"),
        ({"bites": 8}, r"unknown one: .*'bites'"),
    ],
    ids=["9-bits", "16-bits", "unknown-field"],
)
def test_a_badly_edited_plan(change: dict[str, Any], message: str, model: keras.Model) -> None:
    values = json.loads(plan(model).to_json())
    values["layers"]["middle"].update(change)
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("layer_plan", "message"),
    [
        (LayerPlan(4, [1.0, 2.0]), "plan has 2 thresholds for 'middle', which has 20"),
        (LayerPlan(4, 1.0, [10]), r"splits channel 10 of 'middle', whose channels are 0 \.\. 9"),
    ],
    ids=["thresholds", "copies"],
)
def test_a_plan_that_does_not_fit(layer_plan: LayerPlan, message: str, model: keras.Model) -> None:
    with pytest.raises(ValueError, match=message):
        ocs_tf.apply(model, Plan({"middle": layer_plan}), verbose=False)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (Plan({"conv9": LayerPlan(4, 1.0)}), "quantizes layer 'conv9', which .* 'network' does"),
        (Plan({"relu": LayerPlan(4, 1.0)}), "layers with a kernel: stem, depthwise, middle"),
        ("plan.json", "`plan` must be an ocs_tf.Plan, but is a str"),
    ],
    ids=["unknown-layer", "no-kernel", "path"],
)
def test_a_plan_of_another_model(result: Any, message: str, model: keras.Model) -> None:
    with pytest.raises(ValueError, match=message):
        ocs_tf.apply(model, result, verbose=False)


def test_a_layer_is_quantized_or_in_float() -> None:
    with pytest.raises(ValueError, match=r"layer 'a' in `layers`.* and in `float_layers`.*take it"):
        Plan({"a": LayerPlan(4, 1.0), "b": LayerPlan(4, 1.0)}, {"a": "why not"})
    text = (
        Plan({"a": LayerPlan(4, 1.0)})
        .to_json()
        .replace('"float_layers": {}', '"float_layers": {"a": ""}')
    )
    with pytest.raises(ValueError, match=r"layer 'a' in `layers`"):
        Plan.from_json(text)


@pytest.mark.parametrize("key", ["nowhere", "norm", "relu:input", "stem:preactivation"])
def test_a_grid_that_would_not_be_used_is_refused(key: str, model: keras.Model) -> None:
    grid = ocs_tf.numerics.ActivationGrid(8, 0.1)
    with pytest.raises(ValueError, match=f"rounds activations at '{key}', which .* not"):
        ocs_tf.apply(model, Plan({}, activations={key: grid}), verbose=False)


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", ["kernel", "bias"])
def test_weights_that_are_not_finite(weight: str, value: float, model: keras.Model) -> None:
    variable = getattr(model.get_layer("middle"), weight)
    values = np.asarray(variable).copy()
    values[..., 3] = value
    variable.assign(values)
    with pytest.raises(ValueError, match=f"{weight} of layer '?middle.* must be finite"):
        plan(model)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, 0.25], ids=["zero", "constant"])
@each_clip
def test_zero_and_constant_kernels(
    clip: str, granularity: str, value: float, model: keras.Model
) -> None:
    middle = model.get_layer("middle")
    middle.kernel.assign(np.full(middle.kernel.shape, value))
    options = {"weight_bits": 4, "weight_clip": clip, "granularity": granularity}
    options |= {"equalization": False}  # the kernel is looked at as it is
    result = plan(model, expand_ratio=0.2, **options)
    kernel = result.layers["middle"].quantize(np.asarray(middle.kernel)).effective_kernel()
    np.testing.assert_allclose(kernel, value, atol=0.15 * value)
    json.loads(result.to_json())


def test_one_dead_channel(model: keras.Model) -> None:
    middle = model.get_layer("middle")
    kernel = np.asarray(middle.kernel).copy()
    kernel[..., 7] = 0
    middle.kernel.assign(kernel)
    quantized = ocs_tf.apply(model, plan(model, weight_bits=4), verbose=False)
    assert (np.asarray(quantized.get_layer("middle").codes)[..., 7] == 0).all()
    assert np.isfinite(np.asarray(quantized.get_layer("middle").scale)).all()


class Block(layers.Layer):
    """A layer of a user's own that does not say what its outputs are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dense = layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (layers.ReLU(), "none"),
        (Block(name="own"), r"'own' \(Block\)"),
        (
            layers.TimeDistributed(
                keras.Sequential([keras.Input((4,)), layers.Dense(3)]), name="steps"
            ),
            r"'steps' \(TimeDistributed of Sequential\)",
        ),
    ],
)
def test_no_layer_to_quantize(layer: Any, found: str) -> None:
    inputs = keras.Input((5, 4))
    message = "no layer that can be quantized; those are: Dense, .*LSTM"
    with pytest.raises(ValueError, match=rf"{message}.* Its layers with weights: {found}\."):
        plan(keras.Model(inputs, layer(inputs)))


def split_plan(randomize: Any, **options: Any) -> tuple[keras.Model, Plan]:
    """Of a network of which one tensor can be split, but for what single layers read."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(10, 3, name="stem")(inputs))
    x = layers.Conv2D(10, 1, name="middle")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = randomize(keras.Model(inputs, layers.Dense(5, name="head")(x)))
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3))
    options = {"activation_expand_ratio": 0.2, "rounding": "nearest", **options}
    return model, plan(model, representative_dataset=images, bias_correction=False, **options)


SPLIT_OPTIONS: dict[str, dict[str, Any]] = {
    "all": {"activation_split": "maximum"},
    "inputs": {"activation_split": "count", "activation_scope": "inputs"},
    "oracle": {"activation_split": "oracle", "activation_scope": "inputs"},
}


@pytest.mark.parametrize("options", SPLIT_OPTIONS.values(), ids=SPLIT_OPTIONS)
def test_json_round_trip_of_split_activations(options: dict[str, Any], randomize: Any) -> None:
    model, result = split_plan(randomize, **options)
    loaded = Plan.from_json(result.to_json())
    assert loaded == result
    x = np.random.default_rng(1).uniform(size=(4, 8, 8, 3)).astype(np.float32)
    first, second = (ocs_tf.apply(model, p, verbose=False)(x) for p in (result, loaded))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_where_activations_are_split_and_why_not_elsewhere(randomize: Any) -> None:
    _, result = split_plan(randomize, activation_split="maximum")
    copies = {key: len(grid.copies) for key, grid in result.activations.items()}
    assert {key: n for key, n in copies.items() if n} == {"relu": 2}
    assert result.unsplit_activations == {
        "image": "'image' makes it, which cannot repeat single channels",
        "middle": "'pool' reads it, which has no weights to repeat",
        "pool": "'pool' makes it, which cannot repeat single channels",
        "head": "it is an output of the model",
    }
    _, result = split_plan(randomize, activation_scope="inputs", activation_split="maximum")
    copies = {key: len(grid.copies) for key, grid in result.activations.items()}
    assert copies == {"stem:input": 0, "middle:input": 2, "head:input": 2}
    assert list(result.unsplit_activations) == ["stem:input"]


def test_nothing_is_split_by_default(randomize: Any) -> None:
    _, result = split_plan(randomize, activation_expand_ratio=0.0)
    assert not any(grid.copies for grid in result.activations.values())
    assert result.unsplit_activations == {}


GRID = ocs_tf.numerics.ActivationGrid(8, 0.1, copies=(4,))
BAD_SPLITS: dict[str, tuple[str, Any, str]] = {
    "a sum of pixels": (
        "pool",
        GRID,
        "which cannot be split: 'pool' makes it, which cannot repeat",
    ),
    "nowhere": ("stem", GRID, "which cannot be split: activations are not rounded there"),
    "no channel": (
        "relu",
        dataclasses.replace(GRID, copies=(4, 10)),
        r"it has 10 channels, so not all of the copies \[4, 10\]",
    ),
    "an oracle": ("relu", ocs_tf.numerics.OracleGrid(8, 1), "an oracle is for what single layers"),
}


@pytest.mark.parametrize(("key", "grid", "message"), BAD_SPLITS.values(), ids=BAD_SPLITS)
def test_a_plan_that_splits_what_cannot_be(
    key: str, grid: Any, message: str, randomize: Any
) -> None:
    model, result = split_plan(randomize)
    result = dataclasses.replace(result, activations={**result.activations, key: grid})
    with pytest.raises(ValueError, match=f"the plan splits activations at .*{message}"):
        ocs_tf.apply(model, result, verbose=False)


def test_plans_without_split_activations_are_read(randomize: Any) -> None:
    _, result = split_plan(randomize, activation_expand_ratio=0.0)
    values = json.loads(result.to_json())
    del values["unsplit_activations"]
    for grid in values["activations"].values():
        del grid["copies"]
    assert Plan.from_json(json.dumps(values)) == result


def test_plans_without_what_is_chosen_on_data_are_read(model: keras.Model) -> None:
    result = plan(model, weight_bits=4, rounding="nearest", bias_correction=False)
    values = json.loads(result.to_json())
    del values["rounding"], values["bias_correction"]
    loaded = Plan.from_json(json.dumps(values))
    assert loaded == result
    assert not loaded.needs_data


def test_what_keras_has_quantized_is_named():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="small")])
    model.get_layer("small").quantize("int8")
    with pytest.raises(ValueError, match="Keras has quantized 'small' already"):
        ocs_tf.plan(model)
