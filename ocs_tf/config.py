"""`Config`: every option of a conversion, validated where it is set."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from ocs_tf import documents
from ocs_tf.numerics.checks import (
    LARGEST_INT64,
    check_choice,
    check_integer,
    check_switch,
    check_text,
    is_integer,
    is_number,
    refuse,
    shown,
)
from ocs_tf.numerics.clipping import DEFAULT_PERCENTILE
from ocs_tf.numerics.grid import check_bits
from ocs_tf.numerics.quantized_kernel import MAX_WEIGHT_BITS
from ocs_tf.options import documented, option

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of `typing` from Python 3.11 on

ACTIVATION_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
# The choices of options, for type checkers; `numerics` has the same names.
Granularity = Literal["tensor", "channel"]
SplitBudget = Literal["layer", "network"]
ClipMethod = Literal["none", "mse", "aciq", "kl", "percentile", "optimal"]
WeightClip = Literal[ClipMethod, "joint"]
ActivationClip = Literal["auto", "regression", ClipMethod]
Rounding = Literal["auto", "nearest", "error_balanced", "error_compensated"]
Allocation = Literal["auto", "measured", "sqnr", "closed_form"]
AllocationCost = Literal["size", "macs"]
ActivationSplit = Literal["count", "maximum", "error", "oracle"]
ActivationScope = Literal["all", "inputs"]
ROUNDINGS = get_args(Rounding)
BIAS_CORRECTIONS = ("auto", True, False, "batch_norm")
# What `expand_ratio="auto"` stands for: at 8 bits splitting costs channels and buys nothing.
AUTO_EXPAND_RATIO = 0.02
SYNTHETIC = "synthetic"  # what `representative_dataset` takes in place of data
CALIBRATION_SAMPLES = 1024
# Options for the bit widths of some activations, in place of `activation_bits`.
_SOME_ACTIVATIONS = (
    "first_activation_bits",
    "last_activation_bits",
    "intermediate_activation_bits",
)
SWITCHES = (
    "activation_equalization",
    "outlier_equalization",
    "exact_outputs",
    "fold_batch_norm",
    "quantization_aware",
    "power_of_two",
    "activation_symmetric",
    "strict",
)
_CHOICES: Mapping[str, Sequence[Any]] = {
    "granularity": get_args(Granularity),
    "weight_clip": get_args(WeightClip),
    "rounding": ROUNDINGS,
    "bias_correction": BIAS_CORRECTIONS,
    "equalization": ("auto", True, False),
    "full_range": ("auto", True, False),
    "split_budget": get_args(SplitBudget),
    "allocation": get_args(Allocation),
    "allocation_cost": get_args(AllocationCost),
    "activation_clip": get_args(ActivationClip),
    "activation_scope": get_args(ActivationScope),
    "activation_split": get_args(ActivationSplit),
}

# Sections of docs/options.md, in their order.
_WIDTHS = "Bit widths"
_SCALES = "Scales and clipping"
_SPLITTING = "Outlier channel splitting"
_ROUNDING = "Rounding and bias correction"
_MIXED = "Mixed precision"
_EQUALIZATION = "Equalization"
_ACTIVATIONS = "Activations"
_LAYERS = "Layers"
_CHECKS = "Data and checks"
OPTION_GROUPS = (
    _WIDTHS,
    _SCALES,
    _SPLITTING,
    _ROUNDING,
    _MIXED,
    _EQUALIZATION,
    _ACTIVATIONS,
    _LAYERS,
    _CHECKS,
)

Selector = str | re.Pattern[str] | type | Callable[[Any], bool]


_AS_IN_CONFIG = option("", "The option of `Config` of this name.", {"None": "as in `Config`"})


@documented
@dataclasses.dataclass(frozen=True)
class Override:
    """Options of some layers that differ from those of the others.

    An option that is not given keeps what `Config` says. `Override(select, weight_bits=None)`
    therefore differs from `Override(select)`.
    """

    select: Selector = dataclasses.field(
        metadata=option(
            "",
            "Which layers.",
            {
                "a str": "a layer's name, or that of one of its kernels, such as"
                " `lstm/recurrent_kernel`",
                "a compiled regular expression": "layers whose whole name it matches",
                "a layer class": "its instances",
                "a callable": "layers for which it returns True",
            },
        )
    )
    weight_bits: int | Literal["unset"] | None = dataclasses.field(
        default="unset",
        metadata=option(
            "",
            "Bit width of the weights.",
            {"2..8": "", "None": "leave these layers in float32", '"unset"': "as in `Config`"},
        ),
    )
    granularity: Granularity | None = dataclasses.field(default=None, metadata=_AS_IN_CONFIG)
    expand_ratio: float | Literal["auto"] | None = dataclasses.field(
        default=None, metadata=_AS_IN_CONFIG
    )
    weight_clip: WeightClip | None = dataclasses.field(default=None, metadata=_AS_IN_CONFIG)
    activation_bits: int | Literal["unset"] | None = dataclasses.field(
        default="unset",
        metadata=option(
            "",
            "Bit width of the activations that these layers make; with"
            ' `activation_scope="inputs"`, of those that they read. Tensors that share a grid get'
            " the most bits that one of them is given.",
            {"2..8": "", "16": "", "None": "leave them in float32", '"unset"': "as in `Config`"},
        ),
    )

    def __post_init__(self) -> None:
        of_bytes = isinstance(self.select, re.Pattern) and not isinstance(self.select.pattern, str)
        if not (isinstance(self.select, (str, re.Pattern)) or callable(self.select)) or of_bytes:
            raise ValueError(
                f"`select` (={shown(self.select)}) must be a layer name, a compiled regular"
                " expression, a layer class or a callable."
            )
        if self.weight_bits is not None and not _is_text(self.weight_bits, "unset"):
            _keep(self, "weight_bits", _check_weight_bits("weight_bits", self.weight_bits))
        _keep_activation_bits(self, "activation_bits", "unset")
        if self.granularity is not None:
            _keep_choice(self, "granularity", _CHOICES["granularity"])
        if self.weight_clip is not None:
            _keep_choice(self, "weight_clip", _CHOICES["weight_clip"])
        if self.expand_ratio is not None:
            _keep(self, "expand_ratio", _check_ratio(self.expand_ratio))

    def matches(self, layer: Any, kernel: str = "") -> bool:
        """Whether `layer` (a Keras layer), or its kernel of this name, is selected.

        Raises:
            ValueError: it would take too long to tell whether a regular expression matches; see
                `documents.check_pattern`. Only names of more than 128 characters are looked at.
        """
        if isinstance(self.select, str):
            return self.select in (layer.name, kernel or layer.name)
        if isinstance(self.select, re.Pattern):
            for name in (layer.name, kernel):
                if len(name) > documents.LONGEST_NAME:
                    documents.check_pattern(self.select, len(name))
            return any(self.select.fullmatch(name) for name in (layer.name, kernel))
        if isinstance(self.select, type):
            return isinstance(layer, self.select)
        return bool(self.select(layer))

    def describe(self) -> str:
        """The selector in words, for messages."""
        kind, value = next(iter(self._selector_dict().items()))
        return f"{kind} {value!r}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; raises `ValueError` for a callable selector."""
        selector = self._selector_dict()
        if "callable" in selector:
            raise ValueError(
                f"`overrides` selects layers by the callable {selector['callable']}, which JSON"
                " cannot hold; select by name, regular expression or class instead."
            )
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "select" and getattr(self, field.name) != field.default
        }
        return {**selector, **options}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Override:
        """The inverse of `to_dict`.

        Regular expressions are limited to those that match any name in no time; see
        `documents.compiled`.

        Raises:
            ValueError: a key is missing or unknown, or a value out of range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"an override (={shown(values)}) must be an object.")
        options = dict(values)
        select: Selector
        if "name" in options:
            select = check_text("name", options.pop("name"))
        elif "regex" in options:
            select = documents.compiled(options.pop("regex"), options.pop("flags", 0))
        elif "class" in options:
            select = _ClassName(check_text("class", options.pop("class")))
        else:
            raise ValueError(
                f"an override (={shown(values)}) needs one of the keys name, regex, class."
            )
        return _override_of(select, options)

    def _selector_dict(self) -> dict[str, Any]:
        if isinstance(self.select, str):
            return {"name": self.select}
        if isinstance(self.select, re.Pattern):
            flags = self.select.flags & documents.FLAGS
            plain = flags == re.UNICODE
            return {"regex": self.select.pattern, **({} if plain else {"flags": flags})}
        if isinstance(self.select, type):
            return {"class": self.select.__name__}
        if isinstance(self.select, _ClassName):
            return {"class": self.select.name}
        return {"callable": getattr(self.select, "__name__", repr(self.select))}


@dataclasses.dataclass(frozen=True)
class _ClassName:
    """A layer class known by its name only, as JSON keeps it."""

    name: str

    def __call__(self, layer: Any) -> bool:
        return any(c.__name__ == self.name for c in type(layer).__mro__)


class ConfigOptions(TypedDict, total=False):
    """The fields of `Config` as keyword arguments, for type checkers and editors."""

    weight_bits: int | None
    activation_bits: int | Literal["auto"] | None
    granularity: Granularity
    expand_ratio: float | Literal["auto"]
    channel_multiple: int
    split_budget: SplitBudget
    weight_clip: WeightClip
    rounding: Rounding
    bias_correction: bool | Literal["auto", "batch_norm"]
    activation_clip: ActivationClip
    activation_expand_ratio: float
    activation_split: ActivationSplit
    percentile: float
    first_layer_bits: int | Literal["auto", "same"] | None
    last_layer_bits: int | Literal["auto", "same"] | None
    first_activation_bits: int | Literal["auto", "same"] | None
    last_activation_bits: int | Literal["auto", "same"] | None
    intermediate_activation_bits: int | Literal["auto", "same"] | None
    average_bits: float | None
    weight_bytes: int | None
    allocation: Allocation
    allocation_cost: AllocationCost
    equalization: bool | Literal["auto"]
    activation_equalization: bool
    outlier_equalization: bool
    exact_outputs: bool
    fold_batch_norm: bool
    quantization_aware: bool
    power_of_two: bool
    full_range: bool | Literal["auto"]
    activation_scope: ActivationScope
    activation_symmetric: bool
    overrides: Sequence[Override] | Mapping[Selector, Mapping[str, Any]]
    calibration_samples: int | None
    strict: bool


# The values, and what each means, of options that share them.
_CLIP_VALUES = {
    '"none"': "the largest magnitude",
    '"mse"': "least squared error over a histogram, as in the paper's code",
    '"aciq"': "closed form for a normal or Laplace distribution",
    '"kl"': "least Kullback-Leibler divergence between the histograms before and after",
    '"percentile"': "the `percentile` of the magnitudes",
    '"optimal"': "least squared error over the values themselves",
}
_END_BITS = {
    "2..8": "",
    "None": "float32",
    '"same"': "as the other layers",
    '"auto"': '8, or `"same"` with mixed precision',
}
_END_ACTIVATION_BITS = {
    "2..8": "",
    "16": "",
    "None": "float32",
    '"same"': "as the other activations",
    '"auto"': '8 if the others have fewer bits, else `"same"`',
}


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """How to quantize a model. The defaults are the best we know; `Config.paper` is the paper's.

    Each field has its own text; docs/options.md shows them all.

    Raises:
        ValueError: an option is out of range; the message names it, its value and the rule.
    """

    weight_bits: int | None = dataclasses.field(
        default=8,
        metadata=option(
            _WIDTHS,
            "Bit width of the weights.",
            {
                "2..8": "",
                "None": "leave all weights in float32",
            },
        ),
    )
    activation_bits: int | Literal["auto"] | None = dataclasses.field(
        default="auto",
        metadata=option(
            _WIDTHS,
            "Bit width of the activations.",
            {
                "2..8": "",
                "16": "",
                "None": "leave activations in float32",
                '"auto"': "8 if there are calibration data, else `None`",
            },
        ),
    )
    granularity: Granularity = dataclasses.field(
        default="channel",
        metadata=option(
            _SCALES,
            "How many scales a weight tensor has.",
            {
                '"channel"': "one per output channel (per-channel)",
                '"tensor"': "one (per-tensor)",
            },
        ),
    )
    expand_ratio: float | Literal["auto"] = dataclasses.field(
        default="auto",
        metadata=option(
            _SPLITTING,
            "Share `r` of input channels to add by splitting. A layer with `C` input channels gets"
            " `ceil(r * C)` copies of its outlier channels.",
            {
                "0..1": "",
                '"auto"': "0.02 below 8 weight bits, 0 at 8",
            },
        ),
    )
    channel_multiple: int = dataclasses.field(
        default=1,
        metadata=option(
            _SPLITTING,
            "Copies per layer end at the next multiple of this many input channels. Accelerators"
            " compute channels in blocks (Ethos-U: 16): up to the end of a block copies are free,"
            " one more costs a block. A layer whose channels fill their blocks gets none. Copies"
            " that an int8 file adds up, at up to 7 bits, are free in any case.",
            {"1..1024": "1: any number of copies"},
        ),
    )
    split_budget: SplitBudget = dataclasses.field(
        default="layer",
        metadata=option(
            _SPLITTING,
            "What `expand_ratio` applies to.",
            {
                '"layer"': "each layer",
                '"network"': "the whole network; as many values are added in all, in the layers"
                " where they reduce the quantization error most (a layer may get none)",
            },
        ),
    )
    weight_clip: WeightClip = dataclasses.field(
        default="joint",
        metadata=option(
            _SCALES,
            "How the clip threshold of the weights is chosen.",
            {
                **_CLIP_VALUES,
                '"joint"': "least squared error, searched together with the channels to split",
            },
        ),
    )
    rounding: Rounding = dataclasses.field(
        default="auto",
        metadata=option(
            _ROUNDING,
            "How weights are rounded.",
            {
                '"nearest"': "round-to-nearest (RTN)",
                '"error_compensated"': "GPTQ-style, on calibration data: each rounding error is"
                " compensated by the weights that are not rounded yet, and each layer"
                " compensates the error of the layers before it",
                '"error_balanced"': "data-free (SQuant-style), from batch-norm statistics",
                '"auto"': '`"error_compensated"` if there are calibration data, else'
                ' `"error_balanced"`; `"nearest"` with `quantization_aware=False`',
            },
        ),
    )
    bias_correction: bool | Literal["auto", "batch_norm"] = dataclasses.field(
        default="auto",
        metadata=option(
            _ROUNDING,
            "Add the mean difference from the float model's outputs to the biases. Layers"
            " without a bias stay without.",
            {
                "True": "measured on calibration data",
                '"batch_norm"': "data-free, from batch-norm statistics",
                "False": "no correction",
                '"auto"': '`True` if there are calibration data, else `"batch_norm"`',
            },
        ),
    )
    activation_clip: ActivationClip = dataclasses.field(
        default="auto",
        metadata=option(
            _ACTIVATIONS,
            "How the range of an activation tensor is clipped.",
            {
                **_CLIP_VALUES,
                '"regression"': "least squared error after the best gain and offset of each"
                " channel, which error-compensated weights and biases take up",
                '"auto"': '`"none"` at 8 bits and more; at fewer bits `"regression"` with'
                ' error-compensated rounding, else `"mse"`',
            },
        ),
    )
    activation_expand_ratio: float = dataclasses.field(
        default=0.0,
        metadata=option(
            _ACTIVATIONS,
            "Share `r` of channels to add by splitting activations. A tensor with `C` channels that"
            " only quantized layers read gets `ceil(r * C)` copies of its outlier channels.",
            {
                "0..1": "",
            },
        ),
    )
    activation_split: ActivationSplit = dataclasses.field(
        default="error",
        metadata=option(
            _ACTIVATIONS,
            "Which channels of activations are split.",
            {
                '"error"': "those that leave the least squared error, together with a clip"
                " threshold (`activation_clip` is for the other tensors then)",
                '"maximum"': "those with the largest values",
                '"count"': "the paper's rule: those with the most values above the 99th percentile",
                '"oracle"': "the best ones of each batch; a simulation that cannot be exported",
            },
        ),
    )
    percentile: float = dataclasses.field(
        default=DEFAULT_PERCENTILE,
        metadata=option(
            _SCALES,
            'The percentile of clip method `"percentile"`, for weights and activations.',
            {
                "0..100": "",
            },
        ),
    )
    first_layer_bits: int | Literal["auto", "same"] | None = dataclasses.field(
        default="auto",
        metadata=option(
            _WIDTHS,
            "Weight bits of the layers next to the model's inputs. They are not split unless an"
            " override gives them an `expand_ratio`.",
            _END_BITS,
        ),
    )
    last_layer_bits: int | Literal["auto", "same"] | None = dataclasses.field(
        default="auto",
        metadata=option(
            _WIDTHS,
            "Weight bits of the layers next to the model's outputs.",
            _END_BITS,
        ),
    )
    first_activation_bits: int | Literal["auto", "same"] | None = dataclasses.field(
        default="auto",
        metadata=option(
            _WIDTHS,
            "Bit width of the model's inputs, and of what is computed of them in front of the first"
            " layers with weights.",
            _END_ACTIVATION_BITS,
        ),
    )
    last_activation_bits: int | Literal["auto", "same"] | None = dataclasses.field(
        default="auto",
        metadata=option(
            _WIDTHS,
            "Bit width of the model's outputs, and of what the last layers with weights make.",
            _END_ACTIVATION_BITS,
        ),
    )
    intermediate_activation_bits: int | Literal["auto", "same"] | None = dataclasses.field(
        default="auto",
        metadata=option(
            _WIDTHS,
            "Bit width of activations that no kernel reads: what goes into sums and into"
            " activation functions that are not fused. Hardware with fewer than 8 bits computes"
            " those inside of accumulators.",
            _END_ACTIVATION_BITS,
        ),
    )
    average_bits: float | None = dataclasses.field(
        default=None,
        metadata=option(
            _MIXED,
            "Budget of mixed precision in bits per weight. Each layer gets 2 to 8 bits, so that"
            " weights take at most this many on average, copies and layers with given bits"
            " counted."
            " `weight_bits` is not used then.",
            {
                "2..8": "",
                "None": "no such budget",
            },
        ),
    )
    weight_bytes: int | None = dataclasses.field(
        default=None,
        metadata=option(
            _MIXED,
            "Budget of mixed precision in bytes of all quantized weights. It excludes"
            " `average_bits`.",
            {
                "1 or more": "",
                "None": "no such budget",
            },
        ),
    )
    allocation: Allocation = dataclasses.field(
        default="auto",
        metadata=option(
            _MIXED,
            "The sensitivity metric of mixed precision.",
            {
                '"measured"': "what each layer adds to the error of the model's outputs, on"
                " calibration data",
                '"sqnr"': "the signal-to-quantization-noise ratio of each kernel",
                '"closed_form"': "the number of weights (Lin et al., ICML 2016)",
                '"auto"': '`"measured"` if there are calibration data, else `"sqnr"`',
            },
        ),
    )
    allocation_cost: AllocationCost = dataclasses.field(
        default="size",
        metadata=option(
            _MIXED,
            "What `average_bits` is an average over.",
            {
                '"size"': "the weights",
                '"macs"': "the multiplications with them",
            },
        ),
    )
    equalization: bool | Literal["auto"] = dataclasses.field(
        default="auto",
        metadata=option(
            _EQUALIZATION,
            "Cross-layer equalization (Nagel et al., ICCV 2019). Channels are scaled between layers"
            " so that the weights use their ranges better; the float function stays the same.",
            {
                "True": "always",
                "False": "never",
                '"auto"': 'with `granularity="tensor"` only',
            },
        ),
    )
    activation_equalization: bool = dataclasses.field(
        default=True,
        metadata=option(
            _EQUALIZATION,
            "Rescale concatenated channels so that they share one scale with less error. The float"
            " function stays the same. It is measured on 256 calibration samples, and done only if"
            " every activation tensor is quantized.",
        ),
    )
    outlier_equalization: bool = dataclasses.field(
        default=False,
        metadata=option(
            _EQUALIZATION,
            "Rescale channels of outliers between two kernels, too, so that the others of their"
            " tensor get a finer scale. The float function stays the same. It takes"
            ' `activation_equalization=True` and `granularity="channel"`.',
        ),
    )
    exact_outputs: bool = dataclasses.field(
        default=True,
        metadata=option(
            _ACTIVATIONS,
            "Keep a concatenated model output in float32 if its parts have very different ranges."
            " It is kept if one part would span fewer than 16 levels of the shared grid; each part"
            " keeps its own scale, and a `.tflite` file has a float32 output there.",
            {
                "True": "",
                "False": "round it to one grid",
            },
        ),
    )
    fold_batch_norm: bool = dataclasses.field(
        default=True,
        metadata=option(
            _LAYERS,
            "Multiply a batch norm into the layer before it, where that is possible.",
        ),
    )
    quantization_aware: bool = dataclasses.field(
        default=True,
        metadata=option(
            _SPLITTING,
            "Split so that the copies add up to the quantized value of the whole weight.",
            {
                "True": "",
                "False": "halve the weights",
            },
        ),
    )
    power_of_two: bool = dataclasses.field(
        default=False,
        metadata=option(
            _SCALES,
            "Restrict all scales to powers of two.",
        ),
    )
    full_range: bool | Literal["auto"] = dataclasses.field(
        default="auto",
        metadata=option(
            _SCALES,
            "Let weights take the value `-2^(bits-1)`, too. TFLite's kernels do not have it at"
            " 8 bits.",
            {
                "True": "they may",
                "False": "they are symmetric about 0",
                '"auto"': "`True` at 2 bits, where it is the fourth of four codes",
            },
        ),
    )
    activation_scope: ActivationScope = dataclasses.field(
        default="all",
        metadata=option(
            _ACTIVATIONS,
            "Which activation tensors are quantized.",
            {
                '"all"': "every one that an integer runtime holds",
                '"inputs"': "what quantized layers read, as in the paper",
            },
        ),
    )
    activation_symmetric: bool = dataclasses.field(
        default=False,
        metadata=option(
            _ACTIVATIONS,
            "Make activation grids symmetric about 0, without a zero point (always so at 16 bits).",
        ),
    )
    overrides: Sequence[Override] | Mapping[Selector, Mapping[str, Any]] = dataclasses.field(
        default=(),
        metadata=option(
            _LAYERS,
            "Options of single layers; the first that matches a layer wins.",
            {
                "a sequence of Override": "",
                "a mapping": 'from selectors to dicts of options: `{"conv1": {"weight_bits": 4}}`',
            },
        ),
    )
    calibration_samples: int | None = dataclasses.field(
        default=CALIBRATION_SAMPLES,
        metadata=option(
            _CHECKS,
            "Use at most this many samples of the calibration data, the first ones.",
            {
                "1 or more": "",
                "None": "all; the data must then have an end",
            },
        ),
    )
    strict: bool = dataclasses.field(
        default=False,
        metadata=option(
            _CHECKS,
            "Fail with `ValueError` if a layer that should be quantized would stay in float32.",
            {
                "True": "",
                "False": "name such layers in the report",
            },
        ),
    )

    def __post_init__(self) -> None:
        for name in ("weight_bits", "first_layer_bits", "last_layer_bits"):
            value = getattr(self, name)
            words = () if name == "weight_bits" else ("auto", "same")
            if value is not None and not _is_text(value, *words):
                _keep(self, name, _check_weight_bits(name, value))
        _keep_activation_bits(self, "activation_bits", "auto")
        for name in _SOME_ACTIVATIONS:
            _keep_activation_bits(self, name, "auto", "same")
        for name in SWITCHES:
            _keep(self, name, check_switch(name, getattr(self, name)))
        for name, choices in _CHOICES.items():
            _keep_choice(self, name, choices)
        if self.rounding in ("error_balanced", "error_compensated") and not self.quantization_aware:
            raise ValueError(
                f"`rounding` (={self.rounding!r}) chooses codes of whole weights, which only the"
                " copies of quantization_aware=True add up to."
            )
        self._check_budget()
        _keep(self, "expand_ratio", _check_ratio(self.expand_ratio))
        _keep(
            self,
            "channel_multiple",
            check_integer("channel_multiple", self.channel_multiple, 1, 1024),
        )
        self._check_activation_split()
        if not (is_number(self.percentile) and 0 <= self.percentile <= 100):
            raise ValueError(
                f"`percentile` (={shown(self.percentile)}) must be a number in 0 .. 100."
            )
        _keep(self, "percentile", float(self.percentile))
        samples = self.calibration_samples
        if samples is not None:
            _keep(self, "calibration_samples", check_count("calibration_samples", samples))
        _keep(self, "overrides", _as_overrides(self.overrides))
        if self.activation_clip == "aciq" and 16 in self._activation_widths():
            raise ValueError(
                "`activation_clip` (='aciq') is defined for activation_bits 2..8, not 16; choose"
                " another method."
            )

    def _activation_widths(self) -> list[Any]:
        """All values that options give for bits of activations."""
        some = (getattr(self, name) for name in _SOME_ACTIVATIONS)
        overrides = (o.activation_bits for o in _as_overrides(self.overrides))
        return [self.activation_bits, *some, *overrides]

    def _check_budget(self) -> None:
        average, size = self.average_bits, self.weight_bytes
        if average is not None:
            if not (is_number(average) and 2 <= average <= 8):
                raise ValueError(f"`average_bits` (={shown(average)}) must be a number in 2 .. 8.")
            _keep(self, "average_bits", float(average))
        if size is not None:
            _keep(self, "weight_bytes", check_count("weight_bytes", size))
        if average is not None and size is not None:
            raise ValueError(
                f"`average_bits` (={average!r}) and `weight_bytes` (={size!r}) are mutually"
                " exclusive; give one."
            )
        if size is not None and self.allocation_cost != "size":
            raise ValueError(
                f"`weight_bytes` (={size!r}) is about size; allocation_cost='macs' needs"
                " `average_bits`."
            )

    @property
    def allocates(self) -> bool:
        """Whether bit widths are allocated to the layers (mixed precision)."""
        return self.average_bits is not None or self.weight_bytes is not None

    @property
    def equalizes_activations(self) -> bool:
        """Whether concatenated channels are rescaled."""
        rounded = self.activation_bits is not None and self.activation_scope == "all"
        return self.activation_equalization and rounded

    @property
    def rounds_activations(self) -> bool:
        """Whether any activations are rounded, once `resolve` has said what `"auto"` is."""
        return any(isinstance(bits, int) for bits in self._activation_widths())

    def _check_activation_split(self) -> None:
        ratio = self.activation_expand_ratio
        if not is_number(ratio) or not 0 <= ratio <= 1:
            raise ValueError(
                f"`activation_expand_ratio` (={shown(ratio)}) must be a number from 0 to 1."
            )
        _keep(self, "activation_expand_ratio", float(ratio))
        if ratio and self.activation_bits is None:
            raise ValueError(
                f"`activation_expand_ratio` (={ratio}) splits channels of rounded activations, but"
                " activation_bits=None leaves them in float; set activation_bits, or the ratio to"
                " 0."
            )
        if ratio and self.activation_split == "oracle" and self.activation_scope != "inputs":
            raise ValueError(
                "`activation_split` (='oracle') is a simulation of what single layers read; set"
                " activation_scope='inputs', or choose another rule."
            )

    def resolve(self, with_data: bool) -> Config:
        """What `"auto"` stands for, given whether there are calibration data.

        Raises:
            ValueError: an option needs data, and there are none.
        """
        if self.activation_expand_ratio and not with_data:
            raise ValueError(
                f"`activation_expand_ratio` (={self.activation_expand_ratio}) needs"
                " `representative_dataset`, to find outlier channels. Give some inputs, or leave it"
                " 0."
            )
        values: dict[str, Any] = {}
        bits = self.activation_bits
        if bits == "auto":
            bits = values["activation_bits"] = 8 if with_data else None
        usual = 8 if bits is not None and bits < 8 else "same"
        for name in _SOME_ACTIVATIONS:
            if getattr(self, name) == "auto":
                values[name] = usual
        if self.rounding == "auto":
            careful = "error_compensated" if with_data else "error_balanced"
            values["rounding"] = careful if self.quantization_aware else "nearest"
        if self.bias_correction == "auto":
            values["bias_correction"] = True if with_data else "batch_norm"
        if self.allocation == "auto":
            values["allocation"] = "measured" if with_data else "sqnr"
        edges = "same" if self.allocates else 8
        for name in ("first_layer_bits", "last_layer_bits"):
            if getattr(self, name) == "auto":
                values[name] = edges
        if self.equalization == "auto":
            values["equalization"] = self.granularity == "tensor"
        config = dataclasses.replace(self, **values)
        if with_data:
            return config
        if config.rounds_activations:
            given = next(b for b in config._activation_widths() if isinstance(b, int))
            raise ValueError(
                f"`activation_bits` (={given}) needs `representative_dataset`, to"
                " measure the ranges of activations. Give some inputs, or 'synthetic' to make some"
                " from what batch norms know, or set activation_bits=None to leave activations in"
                " float."
            )
        if config.allocates and config.allocation == "measured":
            raise ValueError(
                "`allocation` (='measured') needs `representative_dataset`. Give some inputs, or"
                " choose 'sqnr'."
            )
        if config.rounding == "error_compensated" or config.bias_correction is True:
            raise ValueError(
                f"`rounding` (={config.rounding!r}) and `bias_correction`"
                f" (={config.bias_correction}) need `representative_dataset`. Give some inputs, or"
                " leave both as they are by default."
            )
        return config

    @classmethod
    def paper(cls, **options: Unpack[ConfigOptions]) -> Config:
        """The configuration of Zhao et al. (ICML 2019) and its released code.

        Per-tensor scales, the first layer and `Dense` layers in float, batch norm not folded,
        symmetric activation grids on the inputs of quantized layers only, depthwise kernels in
        float. `options` are the remaining fields, e.g. `weight_bits`, `expand_ratio`,
        `weight_clip`; overrides given here come first.
        """
        fixed: dict[str, Any] = {
            "granularity": "tensor",
            "first_layer_bits": None,
            "last_layer_bits": "same",
            "fold_batch_norm": False,
            "activation_scope": "inputs",
            "activation_symmetric": True,
            "full_range": True,
            "rounding": "nearest",
            "bias_correction": False,
            "equalization": False,
            "activation_equalization": False,
            "exact_outputs": False,
        }
        defaults: dict[str, Any] = {
            "expand_ratio": 0.0,
            "weight_clip": "none",
            "activation_clip": "none",
        }
        extra = _as_overrides(options.pop("overrides", ()))
        floats = tuple(
            Override(_ClassName(name), weight_bits=None) for name in ("Dense", "DepthwiseConv2D")
        )
        given: dict[str, Any] = {**options, "overrides": (*extra, *floats)}
        return cls(**{**fixed, **defaults, **given})

    @property
    def checked_overrides(self) -> tuple[Override, ...]:
        """`overrides` as `Override`s."""
        return _as_overrides(self.overrides)

    def override_for(self, layer: Any, kernel: str = "") -> Override | None:
        """The first override that selects `layer`, or its kernel of this name; or `None`."""
        return next((o for o in _as_overrides(self.overrides) if o.matches(layer, kernel)), None)

    def unused_overrides(self, kernels: Iterable[tuple[Any, str]]) -> list[Override]:
        """The overrides by name or pattern that match no layer and none of its kernels' names.

        A class or a callable may well describe layers that a model happens not to have.
        """
        candidates = list(kernels)
        return [
            o
            for o in _as_overrides(self.overrides)
            if isinstance(o.select, (str, re.Pattern))
            and not any(o.matches(layer, kernel) for layer, kernel in candidates)
        ]

    def to_json(self) -> str:
        """The configuration as JSON text; `Config.from_json` reads it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["overrides"] = [o.to_dict() for o in _as_overrides(self.overrides)]
        return json.dumps(values, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Config:
        """The inverse of `to_json`; fields that are not given have their defaults.

        Raises:
            ValueError: `text` is not JSON as `documents.read_json` has it, a field is unknown, or a
                value out of range.
        """
        values = documents.read_json(text)
        if not isinstance(values, dict):
            raise ValueError(f"a configuration is a JSON object, not a {type(values).__name__}.")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}.")
        overrides = values.get("overrides", [])
        if not isinstance(overrides, list):
            raise ValueError(f"`overrides` (={shown(overrides)}) must be a list of objects.")
        values["overrides"] = tuple(map(Override.from_dict, overrides))
        return cls(**values)


def _as_overrides(
    overrides: Sequence[Override] | Mapping[Selector, Mapping[str, Any]],
) -> tuple[Override, ...]:
    if not isinstance(overrides, Iterable) or isinstance(overrides, str):
        overrides = (overrides,)  # refused below
    if isinstance(overrides, Mapping):
        overrides = [_override_of(select, options) for select, options in overrides.items()]
    names: set[str] = set()
    for override in overrides:
        if not isinstance(override, Override):
            raise ValueError(
                f"`overrides` holds {shown(override)}; it must hold `Override`s, or map selectors"
                " to dicts of options."
            )
        if isinstance(override.select, str):
            if override.select in names:
                raise ValueError(f"`overrides` names layer {override.select!r} twice.")
            names.add(override.select)
    return tuple(overrides)


def _override_of(select: Selector, options: Mapping[str, Any]) -> Override:
    known = [f.name for f in dataclasses.fields(Override) if f.name != "select"]
    if not isinstance(options, Mapping):
        raise ValueError(
            f"`overrides` maps {select!r} to {shown(options)}; it must map it to a dict of options."
        )
    unknown = sorted(set(options) - set(known), key=str)
    if unknown:
        raise ValueError(
            f"`overrides` has unknown option {unknown[0]!r} for {select!r};"
            f" known: {', '.join(known)}."
        )
    return Override(select, **options)


def _keep_choice(target: Any, name: str, choices: Sequence[Any]) -> None:
    _keep(target, name, check_choice(name, getattr(target, name), choices))


def _check_ratio(value: Any) -> Any:
    if _is_text(value, "auto"):
        return "auto"
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(
            f"`expand_ratio` (={shown(value)}) must be a number from 0 to 1, or 'auto'."
        )
    return float(value)


def _check_weight_bits(name: str, value: Any) -> int:
    try:
        return check_bits(value, name, largest=MAX_WEIGHT_BITS)
    except ValueError as error:
        choices = "None for float" if name == "weight_bits" else "None for float, 'same'"
        raise ValueError(f"{str(error)[:-1]} ({choices}).") from None


def _keep_activation_bits(target: Any, name: str, *words: str) -> None:
    """Check a bit width of activations, and keep it as a Python integer."""
    value = getattr(target, name)
    if value is None or _is_text(value, *words):
        return
    if not is_number(value) or value not in ACTIVATION_BITS:
        refuse(name, value, (None, *words, *ACTIVATION_BITS))
    _keep(target, name, int(value))


def check_count(name: str, value: Any) -> int:
    """`value` if it is a positive integer, of 64 bits at most; else `ValueError`."""
    if not is_integer(value) or value < 1:
        every = ", or None for all" if name == "calibration_samples" else ""
        raise ValueError(f"`{name}` (={shown(value)}) must be a positive integer{every}.")
    return check_integer(name, value, 1, LARGEST_INT64)


def _is_text(value: Any, *words: str) -> bool:
    return isinstance(value, str) and value in words


def _keep(target: Any, name: str, value: Any) -> None:
    """Set an attribute of a frozen dataclass while it is made."""
    object.__setattr__(target, name, value)
