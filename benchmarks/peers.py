"""The training-free quantizers that install next to `ocs_tf`, on the same networks and pictures.

    python -m benchmarks.peers [--quick] [--networks A,B] [--noresume]

Every tool gets the float network and the zoo's calibration set (see `benchmarks.common`), and makes
a `.tflite` file, which is run by LiteRT and scored. Rows go to `peers.json` one by one; what is in
there already is not measured again. `peers.md` is made from it at the end. Some 20 minutes on two
cores.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

import ocs_tf
from benchmarks import common
from benchmarks.accuracy import PICTURES, QUICK_PICTURES
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.float_file import convert_float
from ocs_tf.export.kernel_matching import KERNEL_INPUTS, kernel_input
from ocs_tf.export.tensor_matching import measure_ranges
from ocs_tf.process import quiet
from ocs_tf.runtime.model import TFLiteModel

COMMAND = "python -m benchmarks.peers"
NETWORKS = {name: few for name, (few, _) in PICTURES.items()}
QUICK = {"resnet20_cifar10": QUICK_PICTURES}
QUICK_CALIBRATION = 50
BATCH = 100

CONVERTER, AI_EDGE, OURS = "TensorFlow converter", "ai-edge-quantizer", "ocs_tf"
TOOLS = (CONVERTER, AI_EDGE, OURS)
# Disabled or not: the converter's switch has no public name.
GRANULARITIES = {"per channel": False, "per tensor": True}
ALGORITHMS = {
    "min-max": algorithm_manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
    "OCTAV": algorithm_manager.AlgorithmName.OCTAV,
    "MSE": algorithm_manager.AlgorithmName.MSE,
}
# Of activations: over all pictures, or as ai-edge-quantizer's `calibrate` has them.
RANGES = ("true ranges", "moving averages")
DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Width:
    """Bits of kernels and activations; the first and last layers' kernels always have 8.

    Attributes:
        weights, activations: bits; `activations=None` leaves them float, and takes no data.
        depthwise: bits of the kernels of depthwise convolutions.
    """

    weights: int
    activations: int | None
    depthwise: int

    def __str__(self) -> str:
        name = f"W{self.weights}" + (f"A{self.activations}" if self.activations else "")
        return name + (f", depthwise W{self.depthwise}" if self.depthwise != self.weights else "")


WIDTHS = (
    Width(8, 8, 8),
    Width(4, 8, 4),
    Width(4, 8, 8),  # ai-edge-quantizer refuses 4-bit depthwise kernels unless told not to check
    Width(8, None, 8),
    Width(4, None, 4),
    Width(4, None, 8),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures; `tool="float"` is the network itself."""

    network: str
    pictures: int
    width: str
    tool: str
    method: str


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """A measured case.

    Attributes:
        top1: accuracy in percent.
        agreement: share of pictures that get the float network's label, in percent.
        sqnr_db: signal to quantization noise of the outputs, see `sqnr_db`; None: no noise.
        size: of the file, bytes; of the float network's file for the network itself.
        kernels: how many have which type, read from the file.
        seconds: to quantize.
    """

    top1: float
    agreement: float
    sqnr_db: float | None
    size: int
    kernels: str
    seconds: float


Results = common.Results[Case, Row]


def sqnr_db(reference: np.ndarray, outputs: np.ndarray) -> float | None:
    """`10 log10(sum (y - mean y)^2 / sum (y - q)^2)`, means over the pictures; None for no noise.

    Arguments:
        reference: outputs `y` of the float network, `[pictures, n]`.
        outputs: outputs `q` of the quantized one, `[pictures, n]`.
    """
    y, q = reference.astype(np.float64), outputs.astype(np.float64)
    noise = float(np.square(y - q).sum())
    signal = float(np.square(y - y.mean(0)).sum())
    return 10 * math.log10(signal / noise) if noise and signal else None


# The networks, and what is known of them once ----------------------------------------------------


class Network:
    """A network of the zoo, its file, and how its activations range."""

    def __init__(self, zoo: Any, name: str, pictures: int, calibration: int | None = None) -> None:
        self.entry = zoo.load(name, limit=pictures)
        self.calibration = self.entry.calibration[:calibration]
        self.outputs = self.predict(self.entry.model)

    def predict(self, model: Any) -> np.ndarray:
        """Outputs on the evaluation pictures, `[pictures, classes]`."""
        return self.entry.predict(model, BATCH).reshape(len(self.entry.inputs), -1)

    @functools.cached_property
    def has_depthwise(self) -> bool:
        layers = self.entry.model.layers
        return any(isinstance(layer, keras.layers.DepthwiseConv2D) for layer in layers)

    @functools.cached_property
    def file(self) -> bytes:
        """The float network as a `.tflite` file."""
        return convert_float(self.entry.model)

    def statistics(self, ranges: str) -> dict[str, Any]:
        """Ranges of activations for ai-edge-quantizer, one of the two in `RANGES`."""
        return self._true_ranges if ranges == RANGES[0] else self._averages

    @functools.cached_property
    def _true_ranges(self) -> dict[str, dict[str, np.ndarray]]:
        """Smallest and largest value of each activation, as ai-edge-quantizer takes them."""
        model = fb.read(self.file)
        tensors, found = model.subgraphs[0].tensors, measure_ranges(self.file, [[self.calibration]])
        statistics = {}
        for name, index in fb.float_activations(model).items():
            low, high = (np.full([1] * len(fb.shape(tensors[index])), v) for v in found[name])
            statistics[name] = {"min": low, "max": high}
        return statistics

    @functools.cached_property
    def _averages(self) -> dict[str, Any]:
        """What `calibrate` of ai-edge-quantizer measures, picture by picture."""
        engine = quantizer.Quantizer(self.file)
        engine.update_quantization_recipe(
            ".*", qtyping.TFLOperationName.ALL_SUPPORTED, _ai_edge_config(8, 8)
        )
        name = self.entry.model.inputs[0].name
        pictures = [{name: picture[None]} for picture in self.calibration]
        with quiet():
            return engine.calibrate({"serving_default": pictures}, num_threads=2)


# The tools ---------------------------------------------------------------------------------------


def by_converter(network: Network, width: Width, method: str) -> bytes:
    """Full-integer quantization by `tf.lite.TFLiteConverter`."""
    assert (width.weights, width.activations) == (8, 8)
    converter = tf.lite.TFLiteConverter.from_keras_model(network.entry.model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([picture[None]] for picture in network.calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    converter._experimental_disable_per_channel = GRANULARITIES[method]
    with quiet():
        return bytes(converter.convert())


def by_ai_edge(network: Network, width: Width, method: str) -> bytes:
    """Quantization by ai-edge-quantizer; the file is read back for the bits of its kernels.

    Raises:
        RuntimeError: a kernel does not have the bits that were asked for.
    """
    algorithm, _, ranges = method.partition(", ")
    model = fb.read(network.file)
    engine = quantizer.Quantizer(network.file)
    engine.update_quantization_recipe(
        ".*", qtyping.TFLOperationName.ALL_SUPPORTED, _ai_edge_config(8, width.activations)
    )
    bits = kernel_bits(model, width)
    for op, wanted in zip(_kernel_operators(model), bits, strict=True):
        scope = tfl_flatbuffer_utils.get_op_scope(op, model.subgraphs[0].tensors)
        engine.update_quantization_recipe(
            f"^{re.escape(scope)}$",
            qtyping.TFLOperationName(fb.op_name(model, op)),
            _ai_edge_config(wanted, width.activations),
            ALGORITHMS[algorithm],
        )
    statistics = network.statistics(ranges) if ranges else None
    with quiet():
        result = engine.quantize(
            statistics, enable_progress_bar=False, enable_progress_report=False
        )
    content = bytes(result.quantized_model or b"")
    expected, got = [f"int{b}" for b in bits], kernel_types(content)
    if got != expected:
        raise RuntimeError(f"ai-edge-quantizer was asked for kernels of {expected}, wrote {got}.")
    return content


def _ai_edge_config(bits: int, activation_bits: int | None) -> qtyping.OpQuantizationConfig:
    """Symmetric kernels per output channel, activations on asymmetric grids or in float."""
    precision = qtyping.ComputePrecision
    return qtyping.OpQuantizationConfig(
        compute_precision=precision.INTEGER if activation_bits else precision.FLOAT,
        explicit_dequantize=not activation_bits,
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=bits, granularity=qtyping.QuantGranularity.CHANNELWISE
        ),
        activation_tensor_config=(
            qtyping.TensorQuantizationConfig(num_bits=activation_bits, symmetric=False)
            if activation_bits
            else None
        ),
        skip_checks=bits < 8,  # or it refuses 4-bit depthwise kernels
    )


def by_ocs_tf(network: Network, width: Width, method: str) -> bytes:
    """`ocs_tf.convert` as it is by default, with data if activations are quantized."""
    assert method == DEFAULT
    model = ocs_tf.convert(
        network.entry.model,
        weight_bits=width.weights,
        activation_bits=width.activations,
        overrides=[ocs_tf.Override(keras.layers.DepthwiseConv2D, weight_bits=width.depthwise)],
        representative_dataset=network.calibration if width.activations else None,
        verbose=False,
    )
    if width.activations:
        options = {"target": "int8" if width.weights == 8 else "int4"}
    elif width.weights == 8:
        options = {"target": "packed"}
    else:
        options = {"target": "int4", "activations": "float"}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        ocs_tf.export_tflite(model, path, dynamic_batch=True, **options)  # type: ignore[arg-type]
        return path.read_bytes()


QUANTIZERS: dict[str, Callable[[Network, Width, str], bytes]] = {
    CONVERTER: by_converter,
    AI_EDGE: by_ai_edge,
    OURS: by_ocs_tf,
}


def methods(tool: str, width: Width) -> list[str]:
    """The ways in which a tool quantizes to a width; empty if it cannot."""
    if tool == CONVERTER:
        return list(GRANULARITIES) if (width.weights, width.activations) == (8, 8) else []
    if tool == AI_EDGE:
        if width.activations is None:
            return list(ALGORITHMS)
        return [", ".join(parts) for parts in itertools.product(ALGORITHMS, RANGES)]
    return [DEFAULT]


# What is in a file -------------------------------------------------------------------------------


def kernel_bits(model: Any, width: Width) -> list[int]:
    """Bits that each kernel of a float file is to have: 8 for the first and last, else `width`'s.

    The networks have one input and one output, so the first and last layers are the first and last
    operators.
    """
    ops = [fb.op_name(model, op) for op in _kernel_operators(model)]
    bits = [width.depthwise if op == "DEPTHWISE_CONV_2D" else width.weights for op in ops]
    return [8, *bits[1:-1], 8]


def kernel_types(content: bytes) -> list[str]:
    """Types of the kernels of a file, in its order; `"packed"` for those of custom operators."""
    model = fb.read(content)
    tensors = model.subgraphs[0].tensors
    made_by = {output: op for op in model.subgraphs[0].operators for output in op.outputs}
    types = []
    for op in _kernel_operators(model):
        place = kernel_input(model, op)
        source = made_by.get(place)
        if source is not None and fb.custom_name(model, source):
            types.append("packed")
        else:  # where activations are float, a DEQUANTIZE reads the codes
            types.append(fb.type_name(tensors[place if source is None else source.inputs[0]]))
    return types


def _kernel_operators(model: Any) -> list[Any]:
    return [op for op in model.subgraphs[0].operators if fb.op_name(model, op) in KERNEL_INPUTS]


def _described(content: bytes) -> str:
    counts = collections.Counter(kernel_types(content))
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


# Measuring ---------------------------------------------------------------------------------------


def cases(network: str, pictures: int, widths: Iterable[Width]) -> list[Case]:
    """All rows of a network."""
    rows = [Case(network, pictures, "float", "float", "")]
    for width, tool in itertools.product(widths, TOOLS):
        rows += [Case(network, pictures, str(width), tool, m) for m in methods(tool, width)]
    return rows


def measure(network: Network, case: Case) -> Row:
    """Quantize, write, run and score."""
    if case.tool == "float":
        return _row(network, case, network.outputs, network.file, 0.0)
    width = next(width for width in WIDTHS if str(width) == case.width)
    start = time.perf_counter()
    content = QUANTIZERS[case.tool](network, width, case.method)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        path.write_bytes(content)
        return _row(network, case, network.predict(TFLiteModel(path)), content, seconds)


def _row(network: Network, case: Case, outputs: np.ndarray, content: bytes, seconds: float) -> Row:
    labels = outputs.argmax(1)
    noise = sqnr_db(network.outputs, outputs)
    return Row(
        **dataclasses.asdict(case),
        top1=round(100 * float(np.mean(labels == network.entry.targets)), 2),
        agreement=round(100 * float(np.mean(labels == network.outputs.argmax(1))), 2),
        sqnr_db=None if noise is None else round(noise, 2),
        size=len(content),
        kernels=_described(content),
        seconds=round(seconds, 1),
    )


def benchmark(
    folder: pathlib.Path = common.RESULTS,
    quick: bool = False,
    networks: Sequence[str] | None = None,
    resume: bool = True,
    zoo: str | None = None,
) -> Results:
    """Measure what is missing, and write `peers[_quick].json` and `.md` to `folder`."""
    path = folder / ("peers_quick.json" if quick else "peers.json")
    results = Results(path, Case, Row, resume, machine=common.machine())
    pictures = QUICK if quick else NETWORKS
    try:
        for name in networks or pictures:
            network = Network(
                common.load_zoo(zoo), name, pictures[name], QUICK_CALIBRATION if quick else None
            )
            widths = WIDTHS if network.has_depthwise else [w for w in WIDTHS if not _is_mixed(w)]
            todo = cases(name, pictures[name], widths[:2] if quick else widths)
            results.fill(todo, functools.partial(measure, network), name)
    finally:  # an interrupted run reports what it has
        common.save_text(path.with_suffix(".md"), markdown(results))
    return results


def _is_mixed(width: Width) -> bool:
    return width.depthwise != width.weights


# The report --------------------------------------------------------------------------------------

NOTES = f"""\
Top-1 in percent; in brackets, the share of pictures on which the file says what the float network
does; and the signal to quantization noise ratio of the outputs,
`10 log10(sum (y - mean y)^2 / sum (y - q)^2)` with means over the pictures. Every score is that of
a `.tflite` file run by LiteRT on the same pictures; all tools had the same calibration pictures,
without labels, and one step per output channel, but for the converter's "per tensor". `W4`: all
kernels but the first and last have 4 bits; "depthwise W8": those of depthwise convolutions have 8,
too, which is as far as ai-edge-quantizer goes unless its checks are switched off. Without `A`,
only weights are quantized, and no tool uses data.

Of the ways a tool has, the first table shows the one with the best top-1 *on these pictures*, which
favours those that have several: ai-edge-quantizer with its algorithms {", ".join(ALGORITHMS)}, and
with its own calibration (moving averages) or the true ranges. `ocs_tf` is `ocs_tf.convert` as it is
by default: with data, it chooses codes by what layers compute, which the others do not.
"""


def markdown(results: Results) -> str:
    """The whole report."""
    version = common.machine()["ai-edge-quantizer"]
    rows = list(results)
    networks = list(dict.fromkeys(row.network for row in rows))
    parts = [
        "# Beside other training-free quantizers",
        f"Made by `{COMMAND}`, TensorFlow {tf.__version__}, ai-edge-quantizer {version}.",
        NOTES,
        _summary(rows),
        "## All rows",
    ]
    for network in networks:
        own = [row for row in rows if row.network == network]
        parts += [f"### {network}, {own[0].pictures:,} pictures", _all(own)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def best(rows: Iterable[Row]) -> Row | None:
    """The row of the best top-1, of those the one of the best agreement; None if there is none."""
    return max(rows, key=lambda row: (row.top1, row.agreement), default=None)


def _summary(rows: Sequence[Row]) -> str:
    lines = []
    for network, width in dict.fromkeys((r.network, r.width) for r in rows if r.tool != "float"):
        own = [row for row in rows if row.network == network]
        found = [row for row in own if row.width == width]
        exact = best(row for row in own if row.tool == "float")
        tools = (best(row for row in found if row.tool == tool) for tool in TOOLS)
        cells = [f"{row.top1:.1f} ({row.agreement:.1f}) {_db(row)}" if row else "" for row in tools]
        lines.append([network, width, f"{exact.top1:.1f}" if exact else "", *cells])
    return common.markdown_table(["network", "width", "float", *TOOLS], lines)


def _all(rows: Sequence[Row]) -> str:
    header = ["width", "tool", "method", "top-1", "agreement", "SQNR", "KiB", "kernels", "seconds"]
    lines = [
        [
            row.width,
            row.tool,
            row.method,
            f"{row.top1:.2f}",
            f"{row.agreement:.2f}",
            _db(row),
            f"{row.size / 1024:,.0f}",
            row.kernels,
            f"{row.seconds:.1f}",
        ]
        for row in rows
    ]
    return common.markdown_table(header, lines)


def _db(row: Row) -> str:
    return "" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "ResNet-20 on a few pictures: about a minute.")
    networks = flags.DEFINE_list("networks", None, "Networks of the zoo to measure; else all.")
    resume = flags.DEFINE_bool("resume", True, "Keep the rows that were measured before.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    zoo = flags.DEFINE_string("zoo", None, "Folder of the zoo; else $OCS_TF_ZOO or ../shared/zoo.")

    def run() -> None:
        benchmark(pathlib.Path(folder.value), quick.value, networks.value, resume.value, zoo.value)

    common.run(run)


if __name__ == "__main__":
    main()
