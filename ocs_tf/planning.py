"""`Plan`: the numbers of a conversion (bits, thresholds, copies, grids), made before any change."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ocs_tf import documents
from ocs_tf.config import AUTO_EXPAND_RATIO, BIAS_CORRECTIONS, ROUNDINGS, Config, Override
from ocs_tf.graph import adapters, composites
from ocs_tf.graph.adapters import is_keras_quantized
from ocs_tf.graph.reader import Graph, KernelSite
from ocs_tf.numerics import (
    ActivationGrid,
    OracleGrid,
    QuantizedKernel,
    copy_count,
    symmetric_step,
)
from ocs_tf.numerics.checks import (
    check_choice,
    check_counts,
    check_number,
    check_switch,
    check_text,
    shown,
)
from ocs_tf.numerics.grid import check_bits, check_copies, check_threshold, smallest_threshold
from ocs_tf.numerics.kernel import MAX_WEIGHT_BITS, check_kernel, choose_splits, encode
from ocs_tf.numerics.splitting import Copies, check_finite, copies_of_map
from ocs_tf.progress import progress_bar
from ocs_tf.writing import write

_FORMAT = 1
_ON_PURPOSE = "left in float by the configuration"
_ROUNDINGS = tuple(choice for choice in ROUNDINGS if choice != "auto")
_BIAS_CORRECTIONS = tuple(choice for choice in BIAS_CORRECTIONS if choice != "auto")
_SMALLEST_SCALE = 2.0**-64
SMALLEST_CHANNEL = 2.0**-13  # of the largest threshold in a kernel


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """How one layer's kernel is quantized.

    Attributes:
        bits: 2..8.
        threshold: clip threshold; a float per tensor, a list `[F]` per output channel. Each is 0,
            where all weights are, or positive and such that the step is a normal float32.
        copies: the original input channel of each copy, from 0, in the order they are appended.
        power_of_two: the step is rounded up to a power of two.
        quantization_aware: the copies' codes add up to the code of the whole weight.
        full_range: the code `-2^(bits-1)` may be used, too.

    Raises:
        ValueError: a field is of another type or out of range; the message names it.
    """

    bits: int
    threshold: float | list[float]
    copies: list[int] = dataclasses.field(default_factory=list)
    power_of_two: bool = False
    quantization_aware: bool = True
    full_range: bool = False

    def __post_init__(self) -> None:
        bits = check_bits(self.bits, "bits", largest=MAX_WEIGHT_BITS)
        _keep(self, "bits", bits)
        for name in ("power_of_two", "quantization_aware", "full_range"):
            _keep(self, name, check_switch(name, getattr(self, name)))
        _keep(self, "threshold", check_threshold(self.threshold, bits, self.power_of_two))
        _keep(self, "copies", list(check_copies(self.copies)))

    @property
    def granularity(self) -> str:
        return "channel" if isinstance(self.threshold, list) else "tensor"

    def step(self) -> np.ndarray:
        """The step, float32 `()` or `[F]`."""
        return symmetric_step(self.threshold, self.bits, self.power_of_two)

    def expansion(self, kernel: np.ndarray) -> Copies:
        """The channels of the expanded kernel, given the float one."""
        mapping = np.array([*range(kernel.shape[-2]), *self.copies], np.int32)
        return copies_of_map(kernel, mapping, self.step() if self.quantization_aware else None)

    def quantize(self, kernel: np.ndarray, name: str = "kernel") -> QuantizedKernel:
        """Quantize a float kernel `[..., C, F]` as planned, each weight to the nearest code.

        Raises:
            ValueError: the kernel is not finite, or the plan does not fit its shape.
        """
        kernel = check_kernel(kernel, name)
        outputs = kernel.shape[-1]
        if isinstance(self.threshold, list) and len(self.threshold) != outputs:
            raise ValueError(
                f"the plan has {len(self.threshold)} thresholds for {name!r}, which has"
                f" {outputs} output channels."
            )
        return encode(kernel, self.bits, self.step(), self.expansion(kernel), self.full_range)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `apply` does to a model. Numbers only: print it, edit it, save it, load it.

    Attributes:
        layers: `LayerPlan` by layer name.
        float_layers: why the other layers with weights stay in float, by layer name.
        activations: grid by site: a layer name (its output), `NAME:input` or
            `NAME:preactivation`; see `graph.activations`. A grid with `copies` is one of split
            channels; an `OracleGrid` is for simulation only.
        unsplit_activations: where activations are split elsewhere: why these sites' are not.
        fold_batch_norm: whether batch norms are folded into the layers before them.
        rounding, bias_correction: as in `Config`; other than the defaults they need data.
        equalization: by the name of a layer, what its output channels are divided by, and what the
            kernels that read them are multiplied by, each within `2^-64 .. 2^64`; see
            `graph.equalization`.
        coarse_parts: where tensors of very different ranges share a grid: how many of its codes
            the small ones span, by site and by the layer that makes them; see `graph.parts`.

    Raises:
        ValueError: a field, or one of a layer or grid in it, is of another type or out of range;
            the message names it, and the layer.
    """

    layers: dict[str, LayerPlan]
    float_layers: dict[str, str] = dataclasses.field(default_factory=dict)
    activations: dict[str, ActivationGrid | OracleGrid] = dataclasses.field(default_factory=dict)
    fold_batch_norm: bool = True
    rounding: str = "nearest"
    bias_correction: bool | str = False
    equalization: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    unsplit_activations: dict[str, str] = dataclasses.field(default_factory=dict)
    coarse_parts: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _keep(self, "fold_batch_norm", check_switch("fold_batch_norm", self.fold_batch_norm))
        _keep(self, "rounding", check_choice("rounding", self.rounding, _ROUNDINGS))
        choices = _BIAS_CORRECTIONS
        _keep(
            self, "bias_correction", check_choice("bias_correction", self.bias_correction, choices)
        )
        for name, check in (
            ("layers", self._checked_layer),
            ("float_layers", lambda reason: check_text("reason", reason)),
            ("activations", _checked_grid),
            ("equalization", _checked_scales),
            ("unsplit_activations", lambda reason: check_text("reason", reason)),
            ("coarse_parts", lambda parts: check_counts("codes", parts)),
        ):
            _keep(self, name, _each(name, getattr(self, name), check))

    def _checked_layer(self, plan: Any) -> LayerPlan:
        if not isinstance(plan, LayerPlan):
            raise ValueError(f"it must be a LayerPlan, not {shown(plan)}.")
        if self.rounding != "nearest" and not plan.quantization_aware:
            raise ValueError(
                f"`rounding` (={self.rounding!r}) chooses codes of whole weights, which only the"
                " copies of quantization_aware=True add up to."
            )
        return dataclasses.replace(plan)  # its lists may have been changed

    @property
    def needs_data(self) -> bool:
        """Whether `apply` needs calibration data."""
        return self.rounding == "error_compensated" or self.bias_correction is True

    @property
    def uses_batch_norms(self) -> bool:
        """Whether `apply` takes the moments of activations from batch norms."""
        return self.rounding == "error_balanced" or self.bias_correction == "batch_norm"

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The inverse of `to_json`.

        Raises:
            ValueError: not a plan, or one of an unknown format; or it is not valid, see `Plan`.
        """
        try:
            values = documents.read_json(text)
        except ValueError as error:
            raise ValueError(f"this is not a plan, which is JSON text: {error}.") from error
        form = values.pop("format", None) if isinstance(values, dict) else None
        if not isinstance(form, int) or isinstance(form, bool) or form != _FORMAT:
            raise ValueError(f"this is not a plan of format {_FORMAT}.")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in (*known[:4], *values):
            if name not in values or name not in known:
                raise ValueError(f"the plan lacks a field or has an unknown one: {shown(name)}.")
        values["layers"] = _each("layers", values["layers"], lambda v: _made(LayerPlan, v))
        values["activations"] = _each("activations", values["activations"], _grid)
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a JSON file, in one step: an existing file stays if that fails.

        Raises:
            OSError: the disk is full, or the folder is missing or cannot be written to.
        """
        write(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: as `from_json`; or the file is not UTF-8.
        """
        return cls.from_json(pathlib.Path(path).read_bytes())


def _each(field: str, values: Any, check: Callable[[Any], Any]) -> dict[str, Any]:
    """The dict `values` with what `check` makes of each value; its errors name field and key."""
    if not isinstance(values, Mapping):
        raise ValueError(f"`{field}` (={shown(values)}) of a plan must be a dict by name.")
    checked = {}
    for name, value in values.items():
        with _named(field, check_text(f"name in `{field}`", name)):
            checked[name] = check(value)
    return checked


@contextlib.contextmanager
def _named(field: str, name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"`{field}` of the plan, {name!r}: {error}") from error


def _made(kind: type, values: Any) -> Any:
    """A `kind`, a dataclass, of the dict `values`."""
    if not isinstance(values, dict):
        raise ValueError(f"it must be an object, not {shown(values)}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    for name in (*needed, *values):
        if name not in values or name not in fields:
            raise ValueError(f"it lacks a field or has an unknown one: {shown(name)}.")
    return kind(**values)


def _grid(values: Any) -> ActivationGrid | OracleGrid:
    """The inverse of a grid's `to_dict`."""
    oracle = isinstance(values, dict) and "count" in values
    grid: ActivationGrid | OracleGrid = _made(OracleGrid if oracle else ActivationGrid, values)
    return grid


def _checked_grid(grid: Any) -> ActivationGrid | OracleGrid:
    if not isinstance(grid, (ActivationGrid, OracleGrid)):
        raise ValueError(f"it must be an ActivationGrid or an OracleGrid, not {shown(grid)}.")
    return grid


def _checked_scales(scales: Any) -> list[float]:
    values = scales.tolist() if isinstance(scales, np.ndarray) else scales
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"it must be a list of positive numbers, not {shown(scales)}.")
    # Kernels are multiplied and divided by them, in float32.
    return [check_number("scale", value, _SMALLEST_SCALE, 1 / _SMALLEST_SCALE) for value in values]


def _keep(target: Any, name: str, value: Any) -> None:
    """Set an attribute of a frozen dataclass while it is made."""
    object.__setattr__(target, name, value)


def _kind(layer: Any) -> str:
    """The class of a layer and, if it is a wrapper, of what it wraps."""
    inside = getattr(layer, "layer", None)
    name = type(layer).__name__
    return f"{name} of {_kind(inside)}" if isinstance(inside, keras.layers.Layer) else name


def layer_options(graph: Graph, config: Config) -> dict[str, Override]:
    """The options of each layer with a kernel, all resolved except bit widths to be allocated.

    Raises:
        ValueError: an override matches no layer; there is no layer to quantize.
    """
    check_not_quantized(graph)
    _check_overrides(graph, config)
    first, last = graph.first_kernels(), graph.last_kernels()
    options = {
        name: _options(site, config, name in first, name in last)
        for name, site in graph.kernels.items()
    }
    if not options:
        quantized = [repr(n.layer.name) for n in graph.nodes if is_keras_quantized(n.layer)]
        if quantized:
            raise ValueError(
                f"Keras has quantized {', '.join(quantized)} already, and `model` has no other"
                " layer that can be quantized. Convert the float model."
            )
        known = ", ".join(c.__name__ for c in composites.quantizable_classes())
        found = ", ".join(
            f"{node.layer.name!r} ({_kind(node.layer)})"
            for node in graph.nodes
            if getattr(node.layer, "weights", None)
        )
        raise ValueError(
            f"`model` has no layer that can be quantized; those are: {known}."
            f" Its layers with weights: {found or 'none'}."
        )
    return options


def plan_kernels(
    graph: Graph, config: Config, options: Mapping[str, Override], verbose: bool = True
) -> Plan:
    """A plan without activations, given the options of each layer with a kernel.

    Raises:
        ValueError: a kernel holds NaN or infinity; with `config.strict`, a layer would stay in
            float unasked.
    """
    float_layers = _unsupported(graph, config)
    if config.strict:
        _refuse_skipped(graph, float_layers)
    float_layers |= {name: _ON_PURPOSE for name, o in options.items() if o.weight_bits is None}
    chosen = [name for name, o in options.items() if o.weight_bits is not None]
    layers = {
        name: plan_layer(graph.kernels[name], options[name], config)
        for name in progress_bar(chosen, "Planning", verbose, leave=False)
    }
    return Plan(
        layers,
        float_layers,
        fold_batch_norm=config.fold_batch_norm,
        rounding=config.rounding,
        bias_correction=config.bias_correction,
    )


def _options(site: KernelSite, config: Config, first: bool, last: bool) -> Override:
    """Every option of one layer: overrides before first and last before the rest."""
    override = config.override_for(site.owner, site.name) or Override(site.name)
    bits: Any = "unset" if config.allocates else config.weight_bits
    ratio = config.expand_ratio
    if last and config.last_layer_bits != "same":
        bits = config.last_layer_bits
    if first:
        bits = bits if config.first_layer_bits == "same" else config.first_layer_bits
        ratio = 0.0
    if override.weight_bits != "unset":
        bits = override.weight_bits
    if override.expand_ratio is not None:
        ratio = override.expand_ratio
    if site.adapter.why_not_split(site.layer):
        ratio = 0.0
    elif ratio == "auto" and site.adapter.groups(site.layer) > 1:
        ratio = 0.0  # a copy would be one in each group, far more than a small share
    return Override(
        site.name,
        weight_bits=bits,
        # Runtimes look rows up in tables of one step.
        granularity=override.granularity
        or ("tensor" if site.adapter.is_lookup else config.granularity),
        expand_ratio=ratio,
        weight_clip=override.weight_clip or config.weight_clip,
    )


def split_ratio(options: Override) -> float:
    """The expand ratio of a layer with a given bit width."""
    if options.expand_ratio != "auto":
        return float(options.expand_ratio or 0)
    return AUTO_EXPAND_RATIO if options.weight_bits != 8 else 0.0


def plan_layer(site: KernelSite, options: Override, config: Config) -> LayerPlan:
    """The plan of one layer with a given bit width."""
    kernel, bias = site.weights()
    kernel = check_kernel(kernel, f"kernel of layer {site.name}")
    if bias is not None:
        check_finite(bias, f"bias of layer {site.name}")
    try:
        return plan_kernel(kernel, options, config)
    except ValueError as error:
        raise ValueError(f"kernel of layer {site.name}: {error}") from error


def plan_kernel(kernel: np.ndarray, options: Override, config: Config) -> LayerPlan:
    """The plan for a finite kernel `[..., C, F]`."""
    bits, clip, granularity = options.weight_bits, options.weight_clip, options.granularity
    assert isinstance(bits, int)
    assert clip is not None
    assert granularity is not None
    count = copy_count(split_ratio(options), kernel.shape[-2])
    threshold, channels = choose_splits(
        kernel,
        bits,
        count,
        clip,
        granularity,
        percentile=config.percentile,
        power_of_two=config.power_of_two,
        quantization_aware=config.quantization_aware,
        # A channel that is all but dead would get a step so small that its int32 bias overflows.
        smallest=SMALLEST_CHANNEL,
    )
    # Of weights below it, no step is a normal float32.
    threshold = np.where(threshold == 0, 0, np.maximum(threshold, smallest_threshold(bits)))
    return LayerPlan(
        bits,
        threshold.tolist(),
        channels,
        config.power_of_two,
        config.quantization_aware,
        config.full_range,
    )


def _unsupported(graph: Graph, config: Config) -> dict[str, str]:
    """Layers with weights that have no quantized form, and why."""
    reasons = {}
    for node in graph.nodes:
        name = node.layer.name
        reason = adapters.why_float(node.layer)
        if reason and not graph.sites[name] and name not in graph.folded:
            override = config.override_for(node.layer)
            on_purpose = override is not None and override.weight_bits is None
            reasons[name] = _ON_PURPOSE if on_purpose else reason
    return reasons


def _refuse_skipped(graph: Graph, float_layers: Mapping[str, str]) -> None:
    for name, reason in float_layers.items():
        # A normalization has no kernel: where it cannot be folded, there is nothing to quantize.
        weights = graph.calls_of(name)[0].layer.weights
        if reason != _ON_PURPOSE and any(len(weight.shape) > 1 for weight in weights):
            raise ValueError(
                f"layer {name!r} would stay in float: {reason}. Leave it in float on purpose with"
                " an override (weight_bits=None), or set strict=False."
            )


def check_not_quantized(graph: Graph) -> None:
    """Raise `ValueError` if a layer of the model is quantized already."""
    for node in graph.nodes:
        stored = composites.stored_parts(node.layer)
        if stored or adapters.adapter_of_quantized(node.layer) is not None:
            raise ValueError(
                f"`model` {graph.model.name!r} is quantized already: layer {node.layer.name!r} is"
                f" a {type(node.layer).__name__}. Convert the float model instead."
            )


def _check_overrides(graph: Graph, config: Config) -> None:
    layers = [(node.layer, "") for node in graph.nodes]
    kernels = [(site.owner, site.name) for site in graph.kernels.values()]
    for override in config.unused_overrides([*layers, *kernels]):
        raise ValueError(
            f"`overrides` has an entry for {override.describe()}, which matches no layer;"
            f" layers with a kernel: {', '.join(graph.kernels)}."
        )
