"""What the passes over a graph need to know of each Keras layer class, in one table.

A row holds for a family: its members of one, two and three dimensions are made from one name. A
fact that depends on a layer's options is a function of the layer. Classes of which nothing is known
are in `UNKNOWN`, with the reason; for them, and for users' own layers, no fact holds.

Which axes a kernel has is known to `graph.adapters`, and by what a batch norm or a scale multiplies
to `graph.affine`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.graph import adapters
from ocs_tf.graph.reader import Node
from ocs_tf.graph.substitutions.inlining import WithMask
from ocs_tf.keras_internals import calls_of

Fact = bool | Callable[[Any], bool]  # of a layer, of whatever class the row is for
Trait = Literal[
    "elementwise",
    "channelwise",
    "homogeneous",
    "moves",
    "keeps_grid",
    "keeps_moments",
    "fuses_relu",
    "one_grid",
    "joins",
    "no_product",
]

_LAYERS = keras.layers


@dataclasses.dataclass(frozen=True)
class Traits:
    """What is known of a layer, at inference. Channels are on the axis that its options name.

    The first six are facts about layers with one input.

    Attributes:
        elementwise: each number of the output depends on the number at its place alone.
        channelwise: each channel of the output depends on that channel of the input alone.
            What is elementwise is channelwise, too.
        homogeneous: `f(a x) = a f(x)` for each number `a > 0`.
        moves: each number of the output is one of the input, or 0.
        keeps_grid: an integer runtime has the output on the grid of the input. What is computed
            anew, as means are, is rounded to it.
        keeps_moments: the mean of each channel stays as it is, and its variance does not grow, but
            for the zeros that are padded.
        fuses_relu: an integer runtime computes a ReLU behind it in the same operator.
        one_grid: all inputs, and numbers of the layer's own, are on the grid of the output.
        joins: the grid of the output holds the range of each input.
        no_product: it neither begins nor ends with a product with constants, which the converter
            could multiply into a kernel; its activation function aside.
        inference_only: with `training=True` it does something else.
        rank: spatial axes that its input must have; `None`: any.
    """

    elementwise: Fact = False
    channelwise: Fact = False
    homogeneous: Fact = False
    moves: Fact = False
    keeps_grid: Fact = False
    keeps_moments: Fact = False
    fuses_relu: Fact = False
    one_grid: Fact = False
    joins: Fact = False
    no_product: Fact = False
    inference_only: bool = False
    rank: int | None = None


def holds(layer: keras.layers.Layer, trait: Trait) -> bool:
    """Whether a fact holds for a layer or a bare operation; not, if nothing is known of it."""
    row = _row(layer)
    if row is None:
        return False
    facts = [getattr(row, trait), trait == "channelwise" and row.elementwise]
    return any(bool(fact(layer)) if callable(fact) else bool(fact) for fact in facts)


def holds_for(node: Node, trait: Trait) -> bool:
    """Whether a fact holds for a call of a layer, which may be one for training."""
    row = _row(node.layer)
    trains = row is not None and row.inference_only and is_training(node)
    return not trains and holds(node.layer, trait)


def is_training(node: Node) -> bool:
    """Whether a call says `training=True`."""
    return bool(node.arguments.kwargs.get("training"))


def keras_class(layer: keras.layers.Layer) -> type | None:
    """The class in `TABLE` whose function `layer` computes; `None` if there is none.

    That of a subclass, too, as long as it overrides nothing that says what is computed, or names
    the class in `SAME_FUNCTION_AS`; and that of the Keras layer for which a quantized one stands.
    """
    adapter = adapters.adapter_of_quantized(layer)
    same = getattr(layer, SAME_FUNCTION_AS, None) if adapter is None else adapter.layer_class
    if same is not None:
        return same if same in TABLE else None
    own: set[str] = set(vars(layer)) & {"call"}
    for cls in type(layer).__mro__:
        if cls in TABLE:
            changed = {name for name in own - _HARMLESS if _says_what(getattr(cls, name, None))}
            return None if changed else cls
        own |= vars(cls).keys()
    return None


def _says_what(attribute: Any) -> bool:
    """Whether an attribute of a class has a part in what its layers compute."""
    return callable(attribute) or isinstance(attribute, property)


# The attribute by which a class of this package says so.
SAME_FUNCTION_AS = "same_function_as"


# What a subclass may override: how a layer is made, kept and described.
_HARMLESS = {
    *dir(object),
    *("build", "build_from_config", "from_config", "get_build_config", "get_config"),
    *("compute_output_shape", "compute_output_spec"),
}


def acts_elementwise(function: Any) -> bool:
    """Whether an activation function makes each number from the one at its place alone.

    `None` is the identity. Functions are tried: on an array, and on parts of it.
    """
    if function is None:
        return True
    if isinstance(function, _LAYERS.Layer):
        return holds(function, "elementwise") and not isinstance(function, _LAYERS.PReLU)
    try:
        whole = keras.ops.convert_to_numpy(function(_TRIED))
        return whole.shape == _TRIED.shape and all(
            np.allclose(keras.ops.convert_to_numpy(function(_TRIED[at])), whole[at], 1e-4, 1e-6)
            for at in _PARTS
        )
    except Exception:  # a function of a user's, which may want other shapes
        return False


# Numbers of all sizes, and parts without the largest and the smallest of them.
_TRIED = np.outer([0.01, 0.3, 1, 5, 40], [-1.1, 0.9, -0.4, 0.2, 0.6, -0.05]).astype(np.float32)
_PARTS = [(slice(i, i + 2), slice(j, j + 2)) for i, j in ((0, 0), (1, 3), (2, 1), (3, 2), (3, 4))]

_HOMOGENEOUS = (
    None,
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.leaky_relu,
)


def is_homogeneous(function: Any) -> bool:
    """Whether an activation function is known to be positively homogeneous."""
    return any(function is known for known in _HOMOGENEOUS)


def _linear(layer: keras.layers.Layer) -> bool:
    return adapters.is_linear(layer.activation)


def fills(layer: keras.layers.Layer) -> bool:
    """Whether a resizing puts numbers of its own, other than 0, around what it resizes."""
    if not getattr(layer, "pad_to_aspect_ratio", False):
        return False
    return bool(layer.fill_value != 0 or layer.fill_mode != "constant")


def _resizes(*methods: str) -> Callable[[Any], bool]:
    """Whether a layer resizes by one of these methods, and fills nothing."""
    return lambda layer: layer.interpolation in methods and not fills(layer)


_IDENTITY = Traits(
    elementwise=True, homogeneous=True, moves=True, keeps_grid=True, keeps_moments=True
)
_NOISE = dataclasses.replace(_IDENTITY, inference_only=True)
_ELSEWHERE = dataclasses.replace(_IDENTITY, elementwise=False, channelwise=True)  # other places
_RESHAPED = Traits(homogeneous=True, moves=True, keeps_grid=True)
_RESIZED = Traits(
    channelwise=True,
    homogeneous=lambda layer: not fills(layer),
    moves=_resizes("nearest"),
    keeps_grid=_resizes("nearest", "bilinear"),
    keeps_moments=lambda layer: not fills(layer),
    one_grid=fills,
)
_POOL = Traits(
    channelwise=True, homogeneous=True, keeps_grid=True, fuses_relu=True, no_product=True
)
# The maximum and the mean of an image are operators of their own, with outputs on other grids.
_GLOBAL_POOL = dataclasses.replace(_POOL, keeps_grid=False, fuses_relu=False)
# Several operators. The mean of everything is one, with a grid of its own.
_ADAPTIVE_POOL = dataclasses.replace(_POOL, fuses_relu=False, no_product=False)
# A largest value is one of the input, but larger than its mean.
_MAXIMUM: dict[str, Any] = {"moves": True}
_MEAN: dict[str, Any] = {"keeps_moments": True}

# By name of the class, "{}" for 1 to 3 dimensions: not every version of Keras has each.
ROWS: Mapping[str, Traits] = {
    "Identity": _IDENTITY,
    "ActivityRegularization": _IDENTITY,
    "Dropout": _IDENTITY,
    "GaussianDropout": _IDENTITY,
    "SpatialDropout{}D": _IDENTITY,
    # In training, they add numbers that do not grow with the input.
    "AlphaDropout": _NOISE,
    "GaussianNoise": _NOISE,
    "Activation": Traits(
        elementwise=lambda layer: acts_elementwise(layer.activation),
        homogeneous=lambda layer: is_homogeneous(layer.activation),
        moves=lambda layer: _linear(layer) or layer.activation is keras.activations.relu,
        keeps_grid=_linear,
        no_product=True,
    ),
    "ReLU": Traits(
        elementwise=True,
        homogeneous=lambda layer: layer.max_value is None and not layer.threshold,
        moves=lambda layer: layer.max_value is None and not layer.negative_slope,
        no_product=True,
    ),
    "LeakyReLU": Traits(elementwise=True, homogeneous=True),
    "PReLU": Traits(elementwise=True, homogeneous=True),
    "ELU": Traits(elementwise=True),
    "Softmax": Traits(no_product=True),
    "BatchNormalization": Traits(channelwise=True),
    "Flatten": _RESHAPED,
    "Permute": _RESHAPED,
    "Reshape": _RESHAPED,
    "RepeatVector": _ELSEWHERE,
    "ZeroPadding{}D": _ELSEWHERE,
    "Cropping{}D": _ELSEWHERE,
    # Only that of two dimensions can interpolate.
    "UpSampling1D": dataclasses.replace(_ELSEWHERE, rank=1),
    "UpSampling2D": dataclasses.replace(_RESIZED, rank=2),
    "UpSampling3D": dataclasses.replace(_ELSEWHERE, rank=3),
    "Resizing": dataclasses.replace(_RESIZED, rank=2),
    # TFLite has no pooling in three dimensions: such a model is converted, but not exported.
    "MaxPooling{}D": dataclasses.replace(_POOL, **_MAXIMUM),
    "AveragePooling{}D": dataclasses.replace(_POOL, **_MEAN),
    "GlobalMaxPooling{}D": dataclasses.replace(_GLOBAL_POOL, **_MAXIMUM),
    "GlobalAveragePooling{}D": dataclasses.replace(_GLOBAL_POOL, **_MEAN),
    "AdaptiveMaxPooling{}D": dataclasses.replace(_ADAPTIVE_POOL, **_MAXIMUM),
    "AdaptiveAveragePooling{}D": dataclasses.replace(
        _ADAPTIVE_POOL, keeps_grid=lambda layer: set(layer.output_size) != {1}, **_MEAN
    ),
    "Add": Traits(fuses_relu=True, joins=True, no_product=True),
    "Subtract": Traits(fuses_relu=True, joins=True, no_product=True),
    "Multiply": Traits(fuses_relu=True, no_product=True),
    "Concatenate": Traits(one_grid=True, joins=True, no_product=True),
    "Maximum": Traits(one_grid=True, joins=True, no_product=True),
    "Minimum": Traits(joins=True, no_product=True),
    "InputLayer": Traits(no_product=True),
    "Dense": Traits(fuses_relu=True),
    "EinsumDense": Traits(fuses_relu=True),
    "Conv{}D": Traits(fuses_relu=True),
    "Conv{}DTranspose": Traits(fuses_relu=True),
    # There is none of three dimensions.
    "DepthwiseConv{}D": Traits(
        channelwise=lambda layer: (
            layer.depth_multiplier == 1 and acts_elementwise(layer.activation)
        ),
        fuses_relu=True,
    ),
}


def _pads_zeros(operation: keras.Operation) -> bool:
    """Whether a bare `Pad` adds zeros, or numbers of its input, in each of its calls."""
    values = [call.arguments.kwargs.get("constant_values") for call in calls_of(operation)]
    return all(value is None or (np.isscalar(value) and value == 0) for value in values)


# Bare Keras operations (`x[..., :2]`, `keras.ops.concatenate`), by class name: they have no public
# classes.
_MOVED = Traits(moves=True, keeps_grid=True)
OPERATIONS: Mapping[str, Traits] = {
    **dict.fromkeys(("GetItem", "Reshape", "Squeeze", "ExpandDims", "Transpose"), _MOVED),
    "Pad": Traits(moves=_pads_zeros, keeps_grid=_pads_zeros),
    **dict.fromkeys(
        ("Relu", "Relu6", "Sigmoid", "Softmax", "Tanh"),
        Traits(no_product=True),
    ),
    **{name: ROWS[name] for name in ("Add", "Subtract", "Concatenate", "Maximum", "Minimum")},
    **dict.fromkeys(("Hstack", "Stack", "Vstack"), Traits(joins=True, no_product=True)),
    "Multiply": dataclasses.replace(ROWS["Multiply"], no_product=False),  # by a constant, maybe
    # As a layer, it may be channelwise; as an operation, it is followed no further.
    "Resize": dataclasses.replace(_RESIZED, channelwise=False),
}

# Classes of which no fact is used, by the reason.
UNKNOWN: Mapping[str, str] = {
    "a base class, or one with any function": (
        "Layer Wrapper Lambda FlaxLayer JaxLayer TFSMLayer TorchModuleWrapper Pipeline"
    ),
    "it adds up channels or places, or divides by what it adds up": (
        "AdditiveAttention Attention Average Dot GroupNormalization GroupQueryAttention"
        " LayerNormalization MultiHeadAttention RMSNormalization UnitNormalization"
    ),
    "graph.affine knows by what it multiplies": "Normalization Rescaling",
    "graph.substitutions.inlining makes two layers of it": "SeparableConv1D SeparableConv2D",
    "its kernel is a table, or has another layer inside": (
        "Embedding ReversibleEmbedding SpectralNormalization TimeDistributed"
    ),
    "it goes over a sequence step by step": (
        "Bidirectional ConvLSTM1D ConvLSTM2D ConvLSTM3D GRU GRUCell LSTM LSTMCell RNN SimpleRNN"
        " SimpleRNNCell StackedRNNCells"
    ),
    "all channels of a place decide whether it is masked": "Masking",
    "it reads or makes indices, texts or sounds": (
        "CategoryEncoding Discretization HashedCrossing Hashing IntegerLookup MelSpectrogram"
        " STFTSpectrogram StringLookup TextVectorization"
    ),
    "it prepares images for training, with values in a range of their own": (
        "AugMix AutoContrast CenterCrop ContrastLimitedAdaptiveHistogramEqualization CutMix"
        " Equalization MaxNumBoundingBoxes MixUp RandAugment RandomBrightness"
        " RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop"
        " RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale"
        " RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation"
        " RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom Solarization"
    ),
}


def _members(name: str, traits: Traits) -> dict[type, Traits]:
    """The classes of a row that the installed Keras has."""
    ranks: tuple[int | None, ...] = (1, 2, 3) if "{}" in name else (traits.rank,)
    found = {rank: getattr(_LAYERS, name.format(rank), None) for rank in ranks}
    return {c: dataclasses.replace(traits, rank=r) for r, c in found.items() if c is not None}


TABLE: Mapping[type, Traits] = {
    **{cls: row for name, row in ROWS.items() for cls, row in _members(name, row).items()},
    WithMask: _IDENTITY,
    layers.FakeQuantize: Traits(channelwise=True),  # a grid may have channels that are split
}


def _row(layer: keras.layers.Layer) -> Traits | None:
    if not isinstance(layer, _LAYERS.Layer):
        return OPERATIONS.get(type(layer).__name__)
    cls = keras_class(layer)
    return None if cls is None else TABLE[cls]
