"""`Config`: what it accepts, what it refuses and in which words, and its JSON form."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf import Config, Override

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "weight_bits-1": ({"weight_bits": 1}, r"`weight_bits` \(=1\) must be an integer from 2 to 8"),
    "weight_bits-9": ({"weight_bits": 9}, r"`weight_bits` \(=9\).*None for float"),
    "weight_bits-float": ({"weight_bits": 4.0}, r"`weight_bits` \(=4.0\) must be an integer"),
    "weight_bits-bool": ({"weight_bits": True}, r"`weight_bits` \(=True\) must be an integer"),
    "weight_bits-same": ({"weight_bits": "same"}, r"`weight_bits` \(='same'\)"),
    "first_layer_bits": ({"first_layer_bits": 16}, r"`first_layer_bits` \(=16\).*'same'"),
    "last_layer_bits": ({"last_layer_bits": "last"}, r"`last_layer_bits` \(='last'\)"),
    "activation_bits-9": ({"activation_bits": 9}, r"`activation_bits` \(=9\).*7, 8, 16"),
    "activation_bits-1": ({"activation_bits": 1}, r"`activation_bits` \(=1\) must be one of"),
    "activation_bits-text": ({"activation_bits": "8"}, r"`activation_bits` \(='8'\)"),
    "granularity": ({"granularity": "axis"}, r"`granularity` \(='axis'\).*'tensor', 'channel'"),
    "expand_ratio-negative": ({"expand_ratio": -0.1}, r"`expand_ratio` \(=-0.1\).*from 0 to 1"),
    "expand_ratio-above-1": ({"expand_ratio": 1.1}, r"`expand_ratio` \(=1.1\).*or 'auto'"),
    "expand_ratio-nan": ({"expand_ratio": float("nan")}, r"`expand_ratio` \(=nan\)"),
    "expand_ratio-text": ({"expand_ratio": "lots"}, r"`expand_ratio` \(='lots'\)"),
    "weight_clip": ({"weight_clip": "max"}, r"`weight_clip` \(='max'\).*'none', 'mse', 'aciq'"),
    "activation_clip": ({"activation_clip": None}, r"`activation_clip` \(=None\)"),
    "aciq-at-16-bits": ({"activation_clip": "aciq", "activation_bits": 16}, r"2..8, not 16"),
    "percentile-101": ({"percentile": 101}, r"`percentile` \(=101\) must be a number in 0 .. 100"),
    "percentile-nan": ({"percentile": float("nan")}, r"`percentile` \(=nan\)"),
    "percentile-text": ({"percentile": "99"}, r"`percentile` \(='99'\)"),
    "rounding": ({"rounding": "up"}, r"`rounding`.*'auto', 'nearest', 'error_balanced'"),
    "rounding of halves": (
        {"rounding": "error_compensated", "quantization_aware": False},
        "which only the copies of quantization_aware=True add up to",
    ),
    "bias_correction": ({"bias_correction": "no"}, r"`bias_correction` \(='no'\).*'auto', True"),
    "average_bits-low": ({"average_bits": 1.9}, r"`average_bits` \(=1.9\) must be a number in 2"),
    "average_bits-text": ({"average_bits": "4"}, r"`average_bits` \(='4'\)"),
    "weight_bytes": ({"weight_bytes": 0}, r"`weight_bytes` \(=0\) must be a positive integer"),
    "two budgets": ({"average_bits": 4, "weight_bytes": 9}, "are mutually exclusive; give one"),
    "bytes of macs": ({"weight_bytes": 9, "allocation_cost": "macs"}, r"`weight_bytes` .* size"),
    "allocation": ({"allocation": "best"}, r"`allocation` .*'measured', 'sqnr', 'closed_form'"),
    "allocation_cost": ({"allocation_cost": "time"}, r"`allocation_cost` .*'size', 'macs'"),
    "equalization": ({"equalization": "yes"}, r"`equalization` \(='yes'\).*'auto', True, False"),
    "split_budget": ({"split_budget": "all"}, r"`split_budget` \(='all'\).*'layer', 'network'"),
    "channel_multiple-0": (
        {"channel_multiple": 0},
        r"`channel_multiple` \(=0\) must be an integer",
    ),
    "channel_multiple-text": (
        {"channel_multiple": "16"},
        r"\(='16'\) must be an integer from 1 to",
    ),
    "activation_scope": ({"activation_scope": "some"}, r"`activation_scope`.*'all', 'inputs'"),
    "activation ratio": (
        {"activation_expand_ratio": 1.5},
        r"`activation_expand_ratio` \(=1.5\) must be a number from 0 to 1",
    ),
    "activation ratio-auto": ({"activation_expand_ratio": "auto"}, r"\(='auto'\) must be a number"),
    "activation ratio-nan": ({"activation_expand_ratio": float("nan")}, r"\(=nan\) must be a"),
    "activation split": (
        {"activation_split": "best"},
        r"`activation_split` \(='best'\).*'count', 'maximum', 'error', 'oracle'",
    ),
    "activation ratio in float": (
        {"activation_expand_ratio": 0.1, "activation_bits": None},
        "activation_bits=None leaves them in float",
    ),
    "oracle for all": (
        {"activation_expand_ratio": 0.1, "activation_split": "oracle"},
        r"`activation_split` \(='oracle'\).*activation_scope='inputs'",
    ),
    "switch": ({"fold_batch_norm": "no"}, r"`fold_batch_norm` \(='no'\).*True, False"),
    "strict": ({"strict": 1}, r"`strict` \(=1\)"),
    "samples-0": ({"calibration_samples": 0}, r"`calibration_samples` \(=0\).*positive integer"),
    "samples-float": ({"calibration_samples": 1.5}, r"`calibration_samples` \(=1.5\)"),
    "overrides-number": ({"overrides": 3}, r"`overrides` holds 3; it must hold `Override`s"),
    "overrides-dicts": ({"overrides": [{"weight_bits": 4}]}, r"`overrides` holds \{'weight_bits'"),
    "overrides-option": (
        {"overrides": {"conv1": {"bits": 4}}},
        r"unknown option 'bits' for 'conv1'; known: weight_bits, granularity",
    ),
    "overrides-value": ({"overrides": {"conv1": 4}}, r"maps 'conv1' to 4; .* dict of options"),
    "overrides-bits": ({"overrides": {"conv1": {"weight_bits": 9}}}, r"`weight_bits` \(=9\)"),
    "overrides-ratio": ({"overrides": {"conv1": {"expand_ratio": 2}}}, r"`expand_ratio` \(=2\)"),
    "overrides-selector": ({"overrides": {3: {"weight_bits": 4}}}, r"`select` \(=3\) must be"),
    "overrides-bytes": ({"overrides": {re.compile(b"x"): {}}}, r"`select` .* must be"),
    "overrides-twice": (
        {"overrides": [Override("conv1", 4), Override("conv1", 5)]},
        r"`overrides` names layer 'conv1' twice",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)


@pytest.mark.parametrize("bits", [None, *range(2, 9)])
def test_every_number_of_weight_bits(bits: int | None) -> None:
    config = Config(weight_bits=bits, first_layer_bits=bits, last_layer_bits=bits)
    assert config.weight_bits == config.first_layer_bits == config.last_layer_bits == bits


@pytest.mark.parametrize("bits", [None, "auto", 2, 3, 4, 5, 6, 7, 8, 16])
def test_every_number_of_activation_bits(bits: Any) -> None:
    assert Config(activation_bits=bits).activation_bits == bits


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().weight_bits = 4  # type: ignore[misc]


def test_replace_validates_again() -> None:
    assert dataclasses.replace(Config(), weight_bits=4).weight_bits == 4
    with pytest.raises(ValueError, match="weight_bits"):
        dataclasses.replace(Config(), weight_bits=40)


def test_mapping_of_overrides() -> None:
    pattern = re.compile("conv.*")
    config = Config(overrides={"head": {"weight_bits": None}, pattern: {"expand_ratio": 0.1}})
    assert config.overrides == (
        Override("head", weight_bits=None),
        Override(pattern, expand_ratio=0.1),
    )


LAYER = layers.Conv2D(4, 3, name="block1_conv")


@pytest.mark.parametrize(
    ("select", "matches"),
    [
        ("block1_conv", True),
        ("block1", False),
        (re.compile("block1_.*"), True),
        (re.compile("block1"), False),  # a whole name, not a part of it
        (re.compile("BLOCK1_CONV", re.IGNORECASE), True),
        (layers.Conv2D, True),
        (layers.Layer, True),
        (layers.Dense, False),
        (lambda layer: layer.filters == 4, True),
        (lambda layer: layer.filters > 4, False),
    ],
    ids=[
        "name",
        "part-of-name",
        "pattern",
        "part-of-pattern",
        "pattern-with-flag",
        "class",
        "base-class",
        "other-class",
        "callable",
        "other-callable",
    ],
)
def test_selectors(select: Any, matches: bool) -> None:
    assert Override(select).matches(LAYER) is matches
    if not callable(select):
        from_json = Config.from_json(Config(overrides=[Override(select)]).to_json())
        assert (from_json.override_for(LAYER) is not None) is matches


def test_first_override_that_matches_wins() -> None:
    config = Config(
        overrides=[
            Override(layers.Dense, 3),
            Override(layers.Conv2D, 4),
            Override("block1_conv", 5),
        ]
    )
    override = config.override_for(LAYER)
    assert override is not None
    assert override.weight_bits == 4
    assert config.override_for(layers.ReLU()) is None


def test_unused_overrides_are_names_and_patterns_only() -> None:
    unused = [Override("head"), Override(re.compile("conv"))]
    used = [Override("block1_conv"), Override(layers.Dense), Override(lambda _: False)]
    assert Config(overrides=[*unused, *used]).unused_overrides([(LAYER, "")]) == unused
    inside = Override("block1_conv/kernel")
    assert Config(overrides=[inside]).unused_overrides([(LAYER, inside.select)]) == []


CONFIGS: dict[str, Config] = {
    "default": Config(),
    "paper": Config.paper(weight_bits=5),
    "everything": Config(
        weight_bits=None,
        activation_bits=16,
        granularity="tensor",
        expand_ratio=0.05,
        weight_clip="percentile",
        activation_clip="kl",
        percentile=99.0,
        first_layer_bits="same",
        last_layer_bits=None,
        fold_batch_norm=False,
        quantization_aware=False,
        power_of_two=True,
        activation_scope="inputs",
        activation_symmetric=True,
        calibration_samples=100,
        strict=True,
    ),
    "on data": Config(rounding="error_compensated", bias_correction=True),
    "on all data": Config(calibration_samples=None),
    "overrides": Config(
        overrides=[
            Override("head", weight_bits=None),
            Override("stem", weight_bits=4, granularity="tensor", weight_clip="mse"),
            Override(re.compile("conv[0-9]+", re.IGNORECASE), expand_ratio="auto"),
        ]
    ),
    "numpy-numbers": Config(
        weight_bits=np.int64(4),  # type: ignore[arg-type]
        activation_bits=np.int32(8),  # type: ignore[arg-type]
        expand_ratio=np.float32(0.5),  # type: ignore[arg-type]
        calibration_samples=np.int64(7),  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_json_round_trip(config: Config) -> None:
    assert Config.from_json(config.to_json()) == config


def test_class_selector_becomes_a_class_name_in_json() -> None:
    config = Config(overrides=[Override(layers.Conv2D, 4)])
    loaded = Config.from_json(config.to_json())
    assert loaded.to_json() == config.to_json()
    assert loaded.override_for(LAYER) is not None
    assert loaded.override_for(layers.Dense(2)) is None


def test_callable_selector_has_no_json_form() -> None:
    with pytest.raises(ValueError, match="by the callable is_big, which JSON cannot hold"):
        Config(overrides=[Override(is_big)]).to_json()


def is_big(layer: keras.layers.Layer) -> bool:
    return bool(layer.count_params() > 1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"weight_bit": 4}), "unknown option 'weight_bit'; known: activation_bits"),
        (json.dumps([]), "is a JSON object, not a list"),
        ("{", "Expecting property name"),
        (json.dumps({"weight_bits": 11}), r"`weight_bits` \(=11\)"),
        (json.dumps({"overrides": [{"weight_bits": 4}]}), "one of the keys name, regex, class"),
        (json.dumps({"overrides": [{"name": "a", "bits": 4}]}), "unknown option 'bits' for 'a'"),
    ],
    ids=["unknown", "list", "no-json", "out-of-range", "no-selector", "unknown-in-override"],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.from_json(text)


def test_missing_fields_of_json_are_the_defaults() -> None:
    assert Config.from_json("{}") == Config()


def test_paper() -> None:
    config = Config.paper(weight_bits=5, expand_ratio=0.02, weight_clip="mse")
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    expected = {
        "weight_bits": 5,
        "expand_ratio": 0.02,
        "weight_clip": "mse",
        "granularity": "tensor",
        "first_layer_bits": None,
        "fold_batch_norm": False,
        "activation_scope": "inputs",
        "activation_symmetric": True,
        "quantization_aware": True,
        "power_of_two": False,
        "rounding": "nearest",
        "bias_correction": False,
        "equalization": False,
        "activation_equalization": False,
    }
    assert {name: given[name] for name in expected} == expected
    for layer in (layers.Dense(2), layers.DepthwiseConv2D(3)):
        override = config.override_for(layer)
        assert override is not None
        assert override.weight_bits is None
    assert config.override_for(LAYER) is None


def test_paper_takes_every_option() -> None:
    config = Config.paper(first_layer_bits=8, overrides={"head": {"weight_bits": 8}})
    assert config.first_layer_bits == 8
    override = config.override_for(layers.Dense(2, name="head"))
    assert override is not None
    assert override.weight_bits == 8
    with pytest.raises(TypeError, match="weight_bit"):
        Config.paper(weight_bit=4)


AUTO = ("activation_bits", "rounding", "bias_correction")


def resolved(with_data: bool, **options: Any) -> tuple[Any, ...]:
    config = Config(**options).resolve(with_data)
    return tuple(getattr(config, name) for name in AUTO)


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize(("granularity", "equalizes"), [("tensor", True), ("channel", False)])
def test_auto_equalizes_where_channels_share_a_step(
    granularity: str, equalizes: bool, with_data: bool
) -> None:
    config = Config(granularity=granularity)
    assert config.resolve(with_data).equalization is equalizes
    for given in (True, False):
        config = Config(granularity=granularity, equalization=given)
        assert config.resolve(with_data).equalization is given


def test_auto_depends_on_data() -> None:
    assert resolved(True) == (8, "error_compensated", True)
    assert resolved(False) == (None, "error_balanced", "batch_norm")
    assert resolved(True, quantization_aware=False) == (8, "nearest", True)
    assert resolved(False, quantization_aware=False) == (None, "nearest", "batch_norm")
    given = {"activation_bits": 4, "rounding": "nearest", "bias_correction": False}
    assert resolved(True, **given) == tuple(given.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_bits": 8}, r"`activation_bits` \(=8\) needs `representative_dataset`"),
        ({"rounding": "error_compensated"}, r"`rounding` \(='error_compensated'\) and"),
        ({"bias_correction": True}, r"`bias_correction` \(=True\) need `representative_dataset`"),
    ],
)
def test_what_needs_data(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options).resolve(with_data=False)


def test_auto_of_allocation_and_of_the_outer_layers() -> None:
    edges = "first_layer_bits", "last_layer_bits"
    for with_data, allocation in ((True, "measured"), (False, "sqnr")):
        config = Config(average_bits=4).resolve(with_data)
        assert config.allocation == allocation
        assert [getattr(config, name) for name in edges] == ["same", "same"]
        uniform = Config(weight_bits=4).resolve(with_data)
        assert [getattr(uniform, name) for name in edges] == [8, 8]
        assert not uniform.allocates
