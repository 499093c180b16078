"""The table of layer traits, against what the layers compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from numpy.typing import NDArray

import ocs_tf
from ocs_tf.graph import layer_traits
from ocs_tf.graph.layer_traits import (
    TABLE,
    UNKNOWN,
    acts_elementwise,
    holds,
    holds_for,
    keras_class,
)
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.substitutions.inlining import WithMask
from ocs_tf.layers import FakeQuantize, QuantizedDense
from ocs_tf.numerics import ActivationGrid

CHANNELS = 3
SIZES = (6, 7, 5)
GRID = ActivationGrid(8, 0.0625, 3)
MEASURED = ("elementwise", "channelwise", "homogeneous", "moves")

# By class: its options, each a case. "{}" stands for 1 to 3 dimensions.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Activation": [
        {"activation": name}
        for name in ("linear", "relu", "leaky_relu", "relu6", "tanh", "swish", "softmax")
    ]
    + [{"activation": keras.activations.log_softmax}],
    "ReLU": [{}, {"max_value": 6.0}, {"threshold": 0.5}, {"negative_slope": 0.3}],
    "LeakyReLU": [{"negative_slope": 0.2}],
    "PReLU": [{}, {"shared_axes": [1]}],
    "Dropout": [{"rate": 0.5}],
    "GaussianDropout": [{"rate": 0.5}],
    "AlphaDropout": [{"rate": 0.5}],
    "GaussianNoise": [{"stddev": 1.0}],
    "SpatialDropout{}D": [{"rate": 0.5}],
    "ActivityRegularization": [{"l2": 0.1}],
    "Reshape": [{"target_shape": (-1,)}, {"target_shape": (CHANNELS, -1)}],
    "Permute": [{"dims": (2, 1)}],
    "RepeatVector": [{"n": 3}],
    "ZeroPadding{}D": [{"padding": 1}],
    "Cropping{}D": [{"cropping": 1}],
    "UpSampling{}D": [{"size": 2}],
    "UpSampling2D": [{}, *({"interpolation": name} for name in ("bilinear", "bicubic"))],
    "Resizing": [
        {"height": 9, "width": 4, **options}
        for options in (
            {"interpolation": "nearest"},
            {"interpolation": "bilinear"},
            {"interpolation": "bicubic"},
            {"interpolation": "nearest", "pad_to_aspect_ratio": True},
            {"interpolation": "nearest", "pad_to_aspect_ratio": True, "fill_value": 3.0},
            {"interpolation": "bilinear", "crop_to_aspect_ratio": True},
        )
    ],
    "MaxPooling{}D": [{"pool_size": 2}, {"pool_size": 3, "strides": 2, "padding": "same"}],
    "AveragePooling{}D": [{"pool_size": 2}, {"pool_size": 3, "strides": 2, "padding": "same"}],
    "GlobalMaxPooling{}D": [{}, {"keepdims": True}],
    "GlobalAveragePooling{}D": [{}, {"keepdims": True}],
    "AdaptiveMaxPooling{}D": [{"output_size": 2}, {"output_size": 1}],
    "AdaptiveAveragePooling{}D": [{"output_size": 2}, {"output_size": 1}],
    "Dense": [{"units": CHANNELS}],
    "EinsumDense": [
        {"equation": "abc,cd->abd", "output_shape": (None, CHANNELS), "bias_axes": "d"}
    ],
    "Conv{}D": [{"filters": CHANNELS, "kernel_size": 2}],
    "Conv{}DTranspose": [{"filters": CHANNELS, "kernel_size": 2}],
    "DepthwiseConv{}D": [
        {"kernel_size": 2},
        {"kernel_size": 2, "depth_multiplier": 2},
        {"kernel_size": 1, "activation": "softmax"},
    ],
    "FakeQuantize": [{"grid": GRID}],
}
# Channels behind the samples, where TensorFlow computes that on any machine.
CHANNELS_FIRST = ("ZeroPadding", "Cropping", "UpSampling2", "Global", "SpatialDropout")
JOINING = ("Add", "Subtract", "Multiply", "Concatenate", "Maximum", "Minimum")
WITHOUT_INPUT_FACTS = (*JOINING, "InputLayer")
# True, and used by no pass: factors of their own come with channels.
UNUSED = {("BatchNormalization", "elementwise"), ("FakeQuantize", "elementwise")}


def _options_of(cls: type) -> list[dict[str, Any]]:
    family = "".join("{}" if c in "123" else c for c in cls.__name__)
    found = OPTIONS.get(cls.__name__, OPTIONS.get(family, [{}]))
    has_layout = "data_format" in inspect.signature(cls).parameters
    if cls.__name__.startswith(CHANNELS_FIRST) and has_layout:
        found = [*found, *({**o, "data_format": "channels_first"} for o in found)]
    return found


def _cases() -> Iterator[Any]:
    for cls in TABLE:
        if cls.__name__ in WITHOUT_INPUT_FACTS:
            continue
        for options in _options_of(cls):
            values = ["=".join((k, getattr(v, "__name__", str(v)))) for k, v in options.items()]
            yield pytest.param(cls, options, id="-".join([cls.__name__, *values]))


def _shape(cls: type, options: dict[str, Any]) -> tuple[int, ...]:
    if cls is layers.RepeatVector:
        return (CHANNELS,)
    rank = TABLE[cls].rank or 1
    first = options.get("data_format") == "channels_first"
    return (CHANNELS, *SIZES[:rank]) if first else (*SIZES[:rank], CHANNELS)


def _built(cls: type, options: dict[str, Any]) -> tuple[Any, Callable[[Any], Any], NDArray[Any]]:
    """A layer with random weights, what it computes, and an input for it."""
    rng = np.random.default_rng(0)
    layer = cls(**options)
    x = (5 * rng.normal(size=(2, *_shape(cls, options)))).astype(np.float32)
    layer(x)
    layer.set_weights([rng.uniform(0.2, 0.7, w.shape) for w in layer.get_weights()])
    return layer, lambda values: keras.ops.convert_to_numpy(layer(values)), x


def _differ(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    return ~np.isclose(a, b, 1e-4, 1e-4)


def _is_elementwise(layer: Any, function: Any, x: NDArray[Any]) -> bool:
    y = function(x)
    if y.shape != x.shape:
        return False
    for index in (0, x.size // 2, x.size - 1):
        other = x.copy()
        other.flat[index] += 3.3
        if np.delete(_differ(function(other), y).reshape(-1), index).any():
            return False
    return True


def _is_channelwise(layer: Any, function: Any, x: NDArray[Any]) -> bool:
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    y = function(x)
    if y.shape[axis] != CHANNELS:
        return False
    for channel in range(CHANNELS):
        other = np.moveaxis(x.copy(), axis, -1)
        other[..., channel] += np.linspace(-4, 4, other[..., 0].size).reshape(other.shape[:-1])
        changed = _differ(function(np.moveaxis(other, -1, axis)), y)
        if np.delete(np.moveaxis(changed, axis, -1), channel, -1).any():
            return False
    return True


def _is_homogeneous(layer: Any, function: Any, x: NDArray[Any]) -> bool:
    factors = (np.float32(0.1), np.float32(2.6))
    return not any(_differ(function(a * x), a * function(x)).any() for a in factors)


def _moves(layer: Any, function: Any, x: NDArray[Any]) -> bool:
    return bool(np.isin(function(x), np.append(x, 0)).all())


MEASURES = {
    "elementwise": _is_elementwise,
    "channelwise": _is_channelwise,
    "homogeneous": _is_homogeneous,
    "moves": _moves,
}


@pytest.mark.parametrize(("cls", "options"), list(_cases()))
def test_facts_are_what_the_layer_computes(cls: type, options: dict[str, Any]) -> None:
    layer, function, x = _built(cls, options)
    measured = {name: measure(layer, function, x) for name, measure in MEASURES.items()}
    known = {name: holds(layer, name) for name in MEASURES}  # type: ignore[arg-type]
    unused = {name for name in measured if (cls.__name__, name) in UNUSED}
    assert known == {name: value and name not in unused for name, value in measured.items()}
    if holds(layer, "keeps_grid"):
        _check_grid(layer, function, x)
    if holds(layer, "keeps_moments"):
        _check_moments(cls, layer, function)


def _check_grid(layer: Any, function: Any, x: NDArray[Any]) -> None:
    """What is moved has the codes of the input, and what is computed lies between them."""
    codes = np.clip(np.rint(x / GRID.scale), -131, 124)
    made = function((codes * GRID.scale).astype(np.float32)) / GRID.scale
    if holds(layer, "moves"):
        assert np.isin(made, np.append(codes, 0)).all()
    else:
        tolerance = 1e-3
        assert codes.min() - tolerance <= made.min() <= made.max() <= codes.max() + tolerance


def _check_moments(cls: type, layer: Any, function: Any) -> None:
    """The mean stays, and the variance does not grow: of many samples, and but for padding."""
    rng = np.random.default_rng(1)
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    shape = _shape(cls, {"data_format": getattr(layer, "data_format", None)})
    values = rng.normal(size=(4000 // np.prod(shape) * 10 + 400, *shape))
    x = np.moveaxis(values, axis, -1) * [1, 2, 3] + [-3, 0, 5]
    y = np.moveaxis(function(np.moveaxis(x, -1, axis).astype(np.float32)), axis, -1)
    for channel, (before, after) in enumerate(
        zip(x.reshape(-1, 3).T, y.reshape(-1, 3).T, strict=True)
    ):
        after = after[after != 0]
        assert abs(after.mean() - before.mean()) < 0.1 * before.std(), channel
        assert after.var() < 1.1 * before.var(), channel


@pytest.mark.parametrize("name", JOINING)
def test_where_several_tensors_share_a_grid(name: str) -> None:
    """All numbers of the output are some of the inputs, or the layer computes new ones."""
    layer = getattr(layers, name)()
    codes = np.random.default_rng(0).integers(-128, 127, (2, 2, 4, 3)).astype(np.float32)
    made = keras.ops.convert_to_numpy(layer(list(codes)))
    kept = bool(np.isin(made, codes).all())
    assert kept or not holds(layer, "one_grid")
    assert not any(holds(layer, trait) for trait in (*MEASURED, "keeps_grid", "keeps_moments"))


def test_each_class_of_keras_is_listed_or_declared_unknown() -> None:
    found = {
        value
        for value in (getattr(layers, name) for name in dir(layers))
        if inspect.isclass(value) and issubclass(value, layers.Layer)
    }
    names = {name for text in UNKNOWN.values() for name in text.split()}
    unknown = {getattr(layers, name, None) for name in names}
    missing = sorted(cls.__name__ for cls in found - set(TABLE) - unknown)
    assert not missing, f"list these in ocs_tf/graph/layer_traits.py: {missing}"
    assert not unknown & set(TABLE)


@pytest.mark.parametrize("name", [name for name in layer_traits.ROWS if "{}" in name])
def test_members_of_a_family_have_the_same_facts(name: str) -> None:
    rows = [row for cls, row in TABLE.items() if cls.__name__ in _members(name)]
    ranks = [row.rank for row in rows]
    assert ranks == list(range(1, len(ranks) + 1))
    assert len({tuple(v for k, v in vars(row).items() if k != "rank") for row in rows}) <= 1


def _members(name: str) -> list[str]:
    return [name.format(rank) for rank in (1, 2, 3)]


class Renamed(layers.SpatialDropout1D):
    """A subclass that computes what its base class does."""

    def __init__(self, rate: float = 0.25, **kwargs: Any) -> None:
        super().__init__(rate, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mine": 1}

    def _mine(self) -> int:
        return 1


class OwnCall(layers.Identity):
    def call(self, inputs: Any) -> Any:
        return inputs - keras.ops.mean(inputs, -1, keepdims=True)


class OwnHelper(layers.SpatialDropout1D):
    """A part of what its base class' `call` computes."""

    def _get_noise_shape(self, inputs: Any) -> Any:
        return None


class OwnProperty(layers.ReLU):
    @property
    def threshold(self) -> float:
        return 1.0

    @threshold.setter
    def threshold(self, value: float) -> None:
        pass


class Mixin:
    def call(self, inputs: Any) -> Any:
        return keras.ops.flip(inputs, -1)


class Mixed(Mixin, layers.Identity):  # type: ignore[misc]
    pass


class AboveOwnCall(OwnCall):
    """Its parent overrides what is computed."""


def test_a_subclass_that_computes_the_same_has_the_same_facts() -> None:
    layer = Renamed()
    assert keras_class(layer) is layers.SpatialDropout1D
    assert holds(layer, "elementwise")


@pytest.mark.parametrize("cls", [OwnCall, Mixed, AboveOwnCall])
def test_a_subclass_with_a_function_of_its_own_has_none(cls: type) -> None:
    assert keras_class(cls()) is None
    assert not holds(cls(), "moves")


def test_a_part_of_the_function_counts_too() -> None:
    assert keras_class(OwnHelper(0.5)) is None


def test_a_layer_whose_call_is_replaced_has_none() -> None:
    layer = layers.Identity()
    layer.call = lambda inputs: inputs[..., ::-1]
    assert keras_class(layer) is None


def test_a_quantized_layer_has_the_facts_of_the_one_it_stands_for() -> None:
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, name="dense")])
    layer = ocs_tf.convert(model, verbose=False).get_layer("dense")
    assert isinstance(layer, QuantizedDense)
    assert keras_class(layer) is layers.Dense
    assert holds(layer, "fuses_relu")


def test_a_lookup_fuses_no_relu() -> None:
    assert not holds(layers.Embedding(3, 2), "fuses_relu")


def test_classes_of_this_package_are_in_the_table() -> None:
    assert holds(WithMask(), "moves")
    assert holds(FakeQuantize(GRID), "channelwise")


@pytest.mark.parametrize(("training", "expected"), [(True, False), (False, True), (None, True)])
def test_noise_is_no_identity_in_training(training: bool | None, expected: bool) -> None:
    inputs = keras.Input((4, 3))
    outputs = layers.GaussianNoise(1.0)(inputs, training=training)
    graph = Graph(keras.Model(inputs, outputs))
    assert holds_for(graph.nodes[-1], "homogeneous") is expected


ACROSS = {"softmax", "log_softmax", "glu", "sparsemax"}
FUNCTIONS = sorted(
    name
    for name in dir(keras.activations)
    if inspect.isfunction(getattr(keras.activations, name))
    and name not in ("get", "serialize", "deserialize")
    and name != "threshold"  # which takes more than a tensor
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_functions(name: str) -> None:
    assert acts_elementwise(getattr(keras.activations, name)) is (name not in ACROSS)


OWN = {
    "relu up to 2": (lambda x: keras.activations.relu(x, max_value=2), True),
    "swish": (lambda x: x * keras.ops.sigmoid(x), True),
    "layer": (layers.LeakyReLU(0.3), True),
    "layer with weights": (layers.PReLU(), False),
    "shares": (lambda x: x / keras.ops.sum(x, -1, keepdims=True), False),
    "over places": (lambda x: x - keras.ops.mean(x, 0), False),
    "over all": (lambda x: x / keras.ops.max(keras.ops.abs(x)), False),
    "flipped": (lambda x: keras.ops.flip(x, -1), False),
    "of images": (lambda x: keras.ops.mean(x, (1, 2, 3)), False),
    "of another shape": (lambda x: keras.ops.concatenate([x, x], -1), False),
    "none": (None, True),
}


@pytest.mark.parametrize(("function", "expected"), OWN.values(), ids=OWN)
def test_own_functions(function: Any, expected: bool) -> None:
    assert acts_elementwise(function) is expected
