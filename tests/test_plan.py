"""Plans as JSON, edited ones, and what is no plan."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf import LayerPlan, Plan
from tests.planning.networks import network, plan, split_plan


@pytest.fixture
def model(randomize: Any) -> keras.Model:
    return randomize(network())


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
