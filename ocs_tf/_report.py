"""`report`: bits, copies, error and size of each layer of a quantized model."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.graph import adapters, composites
from ocs_tf.graph.analysis.concatenations import describe
from ocs_tf.graph.reader import Graph
from ocs_tf.keras_state import restores_state
from ocs_tf.numerics import ActivationGrid, OracleGrid, QuantizedKernel
from ocs_tf.numerics.accumulator import FLOAT_BITS, INTEGER_BITS, accumulator_bits
from ocs_tf.numerics.activation_splitting import repeat_inputs
from ocs_tf.paths import checked_path
from ocs_tf.writing import write

FLOAT_BYTES = 4
SUFFIXES = (".json", ".txt", ".html")

_SIMULATED = (
    "Keras holds everything in float32, but adds up whole codes and rounds to the grids above, as"
    " integer hardware does."
)
_FLOAT_ACTIVATIONS = (
    "Keras computes in float32 with weights that are codes x scales; activations are not rounded."
)
_ORACLE = (
    "An oracle chose grids and split channels from each batch itself: that is a simulation of what"
    " the best choice would be worth, which no integer runtime can run."
)
_STORED = (
    "A .keras file holds the codes as int8; an int8 .tflite file computes with integers throughout."
)
_EQUALIZED = "Kernels with scaled input channels (cross-layer equalization)"
_SUMS = (
    "Sum bits: a signed accumulator of so many bits holds every sum of the layer, whatever its"
    " input."
)
_LEGEND = (
    "Bytes: float32 weights before; after, codes packed at their bits, scales, channel maps and"
    " float32 biases."
)


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: the layer's name; `OUTER.INNER` inside a nested model, if another has it, too.
        type: the Keras class it was.
        kernel_shape: of the original kernel in Keras order; `None` where nothing is quantized.
        bits: of the codes; `None` for a layer in float.
        granularity: `"tensor"` or `"channel"`, or `None`.
        clip_threshold: smallest and largest over the steps, or `None`; equal per tensor.
        copies: the original input channel of each copy.
        equalized: whether the kernel's input channels were scaled before it was quantized.
        sqnr_db: of the kernel after quantization, in dB, or `None` if unknown.
        parameters: numbers in the float layer.
        codes: integers in the expanded kernel.
        bytes_before: of the float32 layer.
        bytes_after: of the quantized one: packed codes, scales, channel map, bias.
        input_grid, preactivation_grid, output_grid: of the activations, where they are rounded;
            an `OracleGrid` in simulations only.
        accumulator_bits: of a signed integer that no sum of the layer's products and biases
            overflows, whatever its input is; `None` where the input is on no grid.
        why_float: the reason why weights stay in float, or `None`.
        coarse_parts: how many codes of the grid parts span that span few of them, by the name of
            the layer that makes the part; likewise the calls of a shared layer, `LAYER(INPUTS)`.
    """

    name: str
    type: str
    kernel_shape: tuple[int, ...] | None = None
    bits: int | None = None
    granularity: str | None = None
    clip_threshold: tuple[float, float] | None = None
    copies: tuple[int, ...] = ()
    equalized: bool = False
    sqnr_db: float | None = None
    parameters: int = 0
    codes: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    input_grid: ActivationGrid | OracleGrid | None = None
    preactivation_grid: ActivationGrid | None = None
    output_grid: ActivationGrid | OracleGrid | None = None
    accumulator_bits: int | None = None
    why_float: str | None = None
    coarse_parts: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def kernel_size(self) -> int:
        """Weights in the original kernel; 0 for a layer in float."""
        return math.prod(self.kernel_shape) if self.kernel_shape else 0


@dataclasses.dataclass(frozen=True)
class Report:
    """What was done to a model: `print` it, or see `to_dict` and `save`.

    Attributes:
        model: the model's name.
        layers: every layer that has weights or rounds activations; a shared layer once.
    """

    model: str
    layers: tuple[LayerReport, ...]

    @property
    def parameters(self) -> int:
        """Numbers in the float model."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def bytes_before(self) -> int:
        """Bytes of all weights in float32."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes of all weights with the quantized kernels packed."""
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def compression(self) -> float:
        """`bytes_before / bytes_after`."""
        return self.bytes_before / self.bytes_after

    @property
    def overhead_percent(self) -> float:
        """Weights that splitting added to the quantized kernels, in percent of what they had."""
        codes = sum(layer.codes for layer in self.layers)
        return 100 * (codes / sum(layer.kernel_size for layer in self.layers) - 1)

    @property
    def mean_bits(self) -> float:
        """Bits per weight of the quantized kernels, copies included in the bits."""
        total = sum(layer.codes * (layer.bits or 0) for layer in self.layers)
        return total / sum(layer.kernel_size for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `model`, `totals`, `layers` (the fields of `LayerReport`)."""
        totals = ["parameters", "bytes_before", "bytes_after", "compression"]
        totals += ["overhead_percent", "mean_bits"]
        return {
            "model": self.model,
            "totals": {name: getattr(self, name) for name in totals},
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON; an infinite SQNR is the string "inf"."""
        return json.dumps(_finite(self.to_dict()), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """A page that needs no other file."""
        template = jinja2.Environment(autoescape=True).from_string(_HTML)
        return template.render(
            title=f"{self.model}, quantized",
            columns=_COLUMNS,
            rows=[_row(layer, most=None) for layer in self.layers],
            totals=self._totals(),
            notes=self._notes(),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path`, in one step; its ending chooses .json, .txt or .html.

        Raises:
            ValueError: another ending, or `path` is none.
            OSError: the disk is full, `path` is a folder, or its folder is missing or cannot be
                written to.
        """
        forms = dict(zip(SUFFIXES, (self.to_json, self.__str__, self.to_html), strict=True))
        text = forms.get(checked_path(path).suffix.lower())
        if text is None:
            raise ValueError(f"`path` (={str(path)!r}) must end in one of {', '.join(SUFFIXES)}.")
        write(path, text() + "\n")

    def __str__(self) -> str:
        lines = [f"Model {self.model!r}", "", *_table([_row(layer) for layer in self.layers]), ""]
        lines += [f"{layer.name}: {layer.why_float}." for layer in self.layers if layer.why_float]
        return "\n".join([*lines, *self._totals(), *self._notes()])

    def _totals(self) -> list[str]:
        return [
            f"{self.parameters:,} parameters; {self.bytes_before:,} bytes in float32,"
            f" {self.bytes_after:,} quantized: {self.compression:.2f} times smaller.",
            f"{self.mean_bits:.2f} bits per quantized weight, with the"
            f" {self.overhead_percent:.2f} % of weights that splitting added.",
        ]

    def _notes(self) -> list[str]:
        rounded = any(layer.output_grid or layer.input_grid for layer in self.layers)
        scaled = [layer.name for layer in self.layers if layer.equalized]
        equalized = [f"{_EQUALIZED}: {_some(scaled)}."] if scaled else []
        oracle = any(isinstance(layer.input_grid, OracleGrid) for layer in self.layers)
        coarse = [
            f"Few codes: {describe(row.name, row.coarse_parts, 2**grid.bits)}."
            for row in self.layers
            if row.coarse_parts and (grid := row.output_grid or row.preactivation_grid)
        ]
        simulated = _SIMULATED if rounded else _FLOAT_ACTIVATIONS
        sums = [note for note in (self._wide_sums(),) if note]
        return [*coarse, *sums, *equalized, _LEGEND, simulated, _ORACLE if oracle else _STORED]

    def _wide_sums(self) -> str:
        """A note on layers whose sums may be beyond what adds them up; no text if none are."""
        bits = {row.name: row.accumulator_bits or 0 for row in self.layers}
        if not any(bits.values()):
            return ""
        overflowing = [name for name, count in bits.items() if count > INTEGER_BITS]
        rounded = [name for name, count in bits.items() if count > FLOAT_BITS]
        text = _SUMS
        if rounded:
            text += f" Beyond {FLOAT_BITS}, where float32 is not exact any more: {_some(rounded)}."
        if overflowing:
            text += f" Beyond {INTEGER_BITS}, which runtimes have: {_some(overflowing)}."
        return text


def _some(names: Sequence[str], most: int = 8) -> str:
    """Names with commas; of many, the first ones."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


@restores_state
def report(model: keras.Model) -> Report:
    """Describe a quantized model; it may have been saved and loaded.

    Raises:
        ValueError: `model` has no quantized layer, or cannot be read; see `convert`.
    """
    rows = tuple(_layers(model))
    if not any(row.bits for row in rows):
        raise ValueError(
            f"`model` {model.name!r} has no quantized layer, so there is nothing to report; use"
            " ocs_tf.convert(model) first."
        )
    return Report(str(model.name), rows)


_QUANTIZERS = (layers.FakeQuantize, layers.OracleQuantize)


def _layers(model: keras.Model) -> Iterator[LayerReport]:
    graph = Graph(model, fold_batch_norm=False, open_quantized=True)
    seen: set[str] = set()
    for node in graph.nodes:
        layer = node.layer
        if layer.name in seen or not isinstance(layer, keras.layers.Layer):
            continue
        seen.add(layer.name)
        inside = composites.stored_parts(layers.unwrapped(layer))
        if inside:
            yield from _composite(layer, str(layer.name), inside)
            continue
        sources = [graph.producer[id(tensor)].layer for tensor in node.inputs[:1]]
        quantizers = [source for source in sources if isinstance(source, _QUANTIZERS)]
        input_grid = quantizers[0].grid if quantizers else None
        row = _layer(layer, input_grid)
        if row.parameters or row.output_grid:
            yield row


def _layer(
    layer: keras.layers.Layer, input_grid: ActivationGrid | OracleGrid | None
) -> LayerReport:
    name = str(layer.name)
    if isinstance(layer, layers.KernelLayer):
        return _quantized(layer, name, input_grid)
    output_grid, parts = None, getattr(layer, "coarse_parts", {})
    if isinstance(layer, (layers.QuantizedOutput, *_QUANTIZERS)):
        output_grid = layer.grid
        layer = layers.unwrapped(layer)
    parameters = sum(math.prod(weight.shape) for weight in layer.weights)
    why_float = adapters.why_float(layer)
    if adapters.adapter_for(layer) is not None:
        why_float = "left in float by the configuration"
    return LayerReport(
        name=name,
        type=type(layer).__name__,
        parameters=parameters,
        bytes_before=FLOAT_BYTES * parameters,
        bytes_after=FLOAT_BYTES * parameters,
        input_grid=input_grid if parameters else None,
        output_grid=output_grid,
        why_float=why_float,
        coarse_parts=parts,
    )


def _composite(
    layer: keras.layers.Layer, name: str, inside: dict[str, Any]
) -> Iterator[LayerReport]:
    """The kernels inside of a layer, and what is left of it."""
    for path, kernel in inside.items():
        yield _quantized(kernel, f"{name}/{path}", None)
    stored = {id(weight) for kernel in inside.values() for weight in kernel.weights}
    rest = [weight for weight in layer.weights if id(weight) not in stored]
    parameters = sum(math.prod(weight.shape) for weight in rest)
    grid = layer.grid if isinstance(layer, layers.QuantizedOutput) else None
    yield LayerReport(
        name=name,
        type=_composite_type(layers.unwrapped(layer)),
        parameters=parameters,
        bytes_before=FLOAT_BYTES * parameters,
        bytes_after=FLOAT_BYTES * parameters,
        output_grid=grid,
        coarse_parts=getattr(layer, "coarse_parts", {}),
        why_float="its biases, and the activations inside of it, stay in float",
    )


def _composite_type(layer: keras.layers.Layer) -> str:
    if isinstance(layer, layers.QuantizedRNN):
        layer = layer.cell
    return type(layer).__name__.removeprefix("Quantized").removesuffix("Cell")


def _quantized(
    layer: keras.layers.Layer, name: str, input_grid: ActivationGrid | OracleGrid | None
) -> LayerReport:
    kernel = layer.quantized_kernel()
    shape = list(kernel.codes.shape)
    shape[-2] -= layer.copies
    alone = isinstance(layer, layers.KernelLayer)
    bias = math.prod(layer.bias.shape) if alone and layer.bias is not None else 0
    parameters = math.prod(shape) + bias
    codes = kernel.codes.size
    numbers = kernel.scale.size + bias + (kernel.channel_map.size if layer.copies else 0)
    return LayerReport(
        name=name,
        type=_float_type(layer),
        kernel_shape=tuple(shape),
        bits=layer.weight_bits,
        granularity=layer.granularity,
        clip_threshold=(float(kernel.threshold.min()), float(kernel.threshold.max())),
        copies=tuple(kernel.channel_map[shape[-2] :].tolist()),
        equalized=alone and layer.equalized,
        sqnr_db=layer.kernel_sqnr_db,
        parameters=parameters,
        codes=codes,
        bytes_before=FLOAT_BYTES * parameters,
        bytes_after=math.ceil(codes * layer.weight_bits / 8) + 4 * numbers,
        input_grid=input_grid,
        preactivation_grid=layer.preactivation_grid if alone else None,
        output_grid=layer.output_grid if alone else None,
        accumulator_bits=_accumulator_bits(layer, kernel, input_grid) if alone else None,
        coarse_parts=layer.coarse_parts if alone else {},
    )


def _accumulator_bits(
    layer: layers.KernelLayer, kernel: QuantizedKernel, grid: ActivationGrid | OracleGrid | None
) -> int | None:
    """Bits that the sums of a layer need, which reads a tensor on `grid`, or on its own one."""
    grid = layer.input_grid or grid
    adapter = adapters.adapter_of_quantized(layer)
    if not isinstance(grid, ActivationGrid) or adapter is None or adapter.is_lookup:
        return None
    if grid.copies:
        kernel = repeat_inputs(kernel, grid.copies)
    bias = None
    if layer.bias is not None:
        bias = np.asarray(layer.bias, np.float64) / (kernel.scale.astype(float) * grid.scale)
    axes = tuple(range(kernel.codes.ndim - 2)) if adapter.kind == "depthwise" else None
    low, high = grid.code_min - grid.zero_point, grid.code_max - grid.zero_point
    return accumulator_bits(kernel.codes, low, high, bias, axes=axes)


def _float_type(layer: keras.layers.Layer) -> str:
    if isinstance(layer, layers.StoredKernel):
        return "kernel of a cell"
    adapter = adapters.adapter_of_quantized(layer)
    return (type(layer) if adapter is None else adapter.layer_class).__name__


def _finite(value: Any) -> Any:
    """`value` with infinite numbers as strings, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


# Text ------------------------------------------------------------------------------------------

_COLUMNS = (
    "layer",
    "type",
    "kernel",
    "bits",
    "steps",
    "clip",
    "copies",
    "SQNR/dB",
    "bytes before",
    "bytes after",
    "sum bits",
    "activations",
)
_NUMBERS = ("bits", "SQNR/dB", "bytes before", "bytes after", "sum bits")


def _row(layer: LayerReport, most: int | None = 4) -> list[str]:
    """One text per column; at most `most` channel numbers of copies."""
    bits = layer.bits or ("float" if layer.parameters else "")
    return [
        layer.name,
        layer.type,
        "x".join(map(str, layer.kernel_shape or ())),
        str(bits),
        f"per {layer.granularity}" if layer.granularity else "",
        _range_text(layer.clip_threshold),
        _copies_text(layer.copies, most),
        "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
        f"{layer.bytes_before:,}" if layer.parameters else "",
        f"{layer.bytes_after:,}" if layer.parameters else "",
        "" if layer.accumulator_bits is None else str(layer.accumulator_bits),
        _grids_text(layer, most),
    ]


def _range_text(limits: tuple[float, float] | None) -> str:
    if limits is None:
        return ""
    low, high = (f"{limit:.3g}" for limit in limits)
    return low if low == high else f"{low} .. {high}"


def _copies_text(copies: Sequence[int], most: int | None) -> str:
    if not copies:
        return ""
    shown = ", ".join(map(str, copies[:most]))
    more = "" if most is None or len(copies) <= most else ", ..."
    return f"{len(copies)} (of {shown}{more})"


def _grids_text(layer: LayerReport, most: int | None) -> str:
    grids = {"in": layer.input_grid, "pre": layer.preactivation_grid, "out": layer.output_grid}
    return "; ".join(
        f"{where} {grid.bits} bits{_grid_text(grid, most)}"
        for where, grid in grids.items()
        if grid is not None
    )


def _grid_text(grid: ActivationGrid | OracleGrid, most: int | None) -> str:
    if isinstance(grid, OracleGrid):
        return f", {grid.count} copies by an oracle (simulation only)"
    copies = f", copies: {_copies_text(grid.copies, most)}" if grid.copies else ""
    return f" {grid.minimum:.3g} .. {grid.maximum:.3g}{copies}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines, numbers to the right; columns that are empty throughout are left out."""
    columns = [
        (head, cells)
        for head, cells in zip(_COLUMNS, zip(*rows, strict=True), strict=True)
        if any(cells)
    ]
    widths = [max(len(head), *map(len, cells)) for head, cells in columns]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if head in _NUMBERS else cell.ljust(width)
            for cell, width, (head, _) in zip(cells, widths, columns, strict=True)
        )
        return "  ".join(aligned).rstrip()

    body = [line(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return [line([head for head, _ in columns]), "  ".join("-" * w for w in widths), *body]


_HTML = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
th { border-bottom: 2px solid #888; }
</style>
<h1>{{ title }}</h1>
{% for line in totals %}<p>{{ line }}</p>
{% endfor %}
<div class="wide"><table>
<tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in rows -%}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor -%}
</table></div>
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}</html>"""
