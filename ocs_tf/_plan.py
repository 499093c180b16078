"""`Plan`: the numbers of a conversion (bits, thresholds, copies, grids), made before any change."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ocs_tf import documents
from ocs_tf.config import BIAS_CORRECTIONS, ROUNDINGS
from ocs_tf.numerics import (
    ActivationGrid,
    OracleGrid,
    QuantizedKernel,
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
from ocs_tf.numerics.grid import check_bits, check_copies, check_threshold
from ocs_tf.numerics.quantized_kernel import MAX_WEIGHT_BITS, check_kernel, encode
from ocs_tf.numerics.splitting import SplitMap, copies_of_map
from ocs_tf.paths import existing_file
from ocs_tf.writing import write

_FORMAT = 1
_ROUNDINGS = tuple(choice for choice in ROUNDINGS if choice != "auto")
_BIAS_CORRECTIONS = tuple(choice for choice in BIAS_CORRECTIONS if choice != "auto")
_SMALLEST_SCALE = 2.0**-64


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

    def expansion(self, kernel: np.ndarray) -> SplitMap:
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
            `NAME:preactivation`; see `graph.analysis.activation_sites`. A grid with `copies` is
            one of split channels; an `OracleGrid` is for simulation only.
        unsplit_activations: where activations are split elsewhere: why these sites' are not.
        fold_batch_norm: whether batch norms are folded into the layers before them.
        rounding, bias_correction: as in `Config`; other than the defaults they need data.
        equalization: by the name of a layer, what its output channels are divided by, and what the
            kernels that read them are multiplied by, each within `2^-64 .. 2^64`; see
            `planning.equalization`.
        coarse_parts: where tensors of very different ranges share a grid: how many of its codes
            the small ones span, by site and by the layer that makes them, or by the call of a
            shared layer; see `graph.analysis.concatenations`.
        synthetic: where the data were synthetic: what they were made from, in words.

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
    synthetic: str = ""

    def __post_init__(self) -> None:
        _keep(self, "fold_batch_norm", check_switch("fold_batch_norm", self.fold_batch_norm))
        _keep(self, "synthetic", check_text("synthetic", self.synthetic))
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
        both = sorted(self.layers.keys() & self.float_layers.keys())
        if both:
            raise ValueError(
                f"the plan has layer {both[0]!r} in `layers`, which quantizes it, and in"
                " `float_layers`, which says why not; take it out of one of them."
            )

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
            ValueError: `path` is none.
            OSError: the disk is full, `path` is a folder, or its folder is missing or cannot be
                written to.
        """
        write(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: the file cannot be read, or is a folder.
            ValueError: as `from_json`; or the file is not UTF-8, or `path` none.
        """
        return cls.from_json(existing_file(path).read_bytes())


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
