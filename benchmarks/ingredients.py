"""What each ingredient is worth: accuracy over size, and with one thing left out at a time.

    python -m benchmarks.ingredients            # some hours on two cores; it resumes
    python -m benchmarks.ingredients --networks resnet20_cifar10

Every row is one call of `ocs_tf.convert` on a network of the zoo, calibrated on the zoo's
calibration set and scored on its evaluation pictures. Rows go to `ingredients.json` one by one;
`ingredients.md` and the charts are made of them at the end.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import matplotlib
import numpy as np
from absl import flags
from matplotlib import pyplot as plt

import ocs_tf
from benchmarks import common
from benchmarks.accuracy import PICTURES
from benchmarks.peers import sqnr_db

matplotlib.use("Agg")

WIDTHS = (8, 6, 5, 4, 3)
# Largest drop of top-1 in points that we aim at, with data and 8-bit activations, by weight bits.
AIMS = {
    "resnet20_cifar10": {8: 0.1, 6: 0.1, 5: 0.2, 4: 0.3, 3: 1.2},
    "densenet40_cifar10": {8: 0.2, 6: 0.2, 5: 0.3, 4: 0.5, 3: 3.0},
    "mobilenet_v1_075_imagenet": {8: 0.3, 6: 0.5, 5: 1.5, 4: 4.0, 3: 20.0},
}
BLIND_AIMS = {8: 0.3, 6: 0.6, 5: 1.5}  # weights only, no data, any network

# The ways to convert: title, whether data are given, options by weight bits.
UNIFORM = "default"
MIXED = "mixed widths"
AS_LARGE = "mixed widths, as large as the default"
TENSOR = "one step per kernel"
BLIND = "no data"
BLIND_MIXED = "no data, mixed widths"
BLIND_AS_LARGE = "no data, mixed widths, as large as the default"
PLAIN = "plain: one step per output channel, nearest"
PAPER = "the paper: OCS r = 0.02, mse clip"
WITHOUT = {
    "without splitting": {"expand_ratio": 0.0},
    "without compensated rounding": {"rounding": "nearest"},
    "without bias correction": {"bias_correction": False},
    "without the joint search": {"weight_clip": "optimal"},
    "without equalization of activations": {"activation_equalization": False},
    "with equalization": {"equalization": True},
    "with copies where they help most": {"split_budget": "network"},
}
_PLAIN_OPTIONS = {"expand_ratio": 0.0, "rounding": "nearest", "bias_correction": False}


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures; `bits` is the width, or the average of mixed ones."""

    network: str
    pictures: int
    method: str
    bits: float


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """A measured case.

    Attributes:
        top1, drop: in percent, and points below the float network's.
        agreement: percent of pictures that get the float network's label.
        sqnr_db: of the outputs.
        effective_bits: bits of all codes over the number of weights that were quantized.
        code_bytes: of all codes, packed.
        seconds: to convert.
    """

    top1: float = math.nan
    drop: float = math.nan
    agreement: float = math.nan
    sqnr_db: float | None = None
    effective_bits: float = math.nan
    code_bytes: int = 0
    seconds: float = 0.0


Results = common.Results[Case, Row]


def config(method: str, bits: float, default_bytes: int = 0) -> ocs_tf.Config:
    """The options of a row. `default_bytes`: size of the default's codes at this width."""
    if method in (MIXED, BLIND_MIXED):
        return ocs_tf.Config(average_bits=bits)
    if method in (AS_LARGE, BLIND_AS_LARGE):
        return ocs_tf.Config(weight_bytes=default_bytes)
    width = int(bits)
    if method == PAPER:
        return ocs_tf.Config.paper(
            weight_bits=width, activation_bits=8, expand_ratio=0.02, weight_clip="mse"
        )
    options: dict[str, Any] = {
        UNIFORM: {},
        BLIND: {},
        TENSOR: {"granularity": "tensor"},
        PLAIN: {**_PLAIN_OPTIONS, "weight_clip": "mse"},
        **WITHOUT,
    }[method]
    return ocs_tf.Config(weight_bits=width, **options)


def is_blind(method: str) -> bool:
    """Whether a method sees no data; activations stay in float then."""
    return method in (BLIND, BLIND_MIXED, BLIND_AS_LARGE)


def code_sizes(model: keras.Model) -> tuple[int, int]:
    """Bytes of all codes of a converted model, packed, and the weights they stand for."""
    bits = weights = 0
    for layer in model.layers:
        if hasattr(layer, "quantized_kernel"):
            kernel = layer.quantized_kernel()
            bits += kernel.bits * kernel.codes.size
            weights += kernel.codes.size * kernel.channels // len(kernel.channel_map)
    return math.ceil(bits / 8), weights


class Scorer:
    """Measures cases of one network."""

    def __init__(self, zoo: Any, network: str, pictures: int) -> None:
        self.entry = zoo.load(network, limit=pictures)
        self.outputs = self._predict(self.entry.model)
        self.top1 = self._top1(self.outputs)

    def measure(self, case: Case, default_bytes: int = 0) -> Row:
        data = None if is_blind(case.method) else self.entry.calibration
        start = time.perf_counter()
        model = ocs_tf.convert(
            self.entry.model,
            config(case.method, case.bits, default_bytes),
            representative_dataset=data,
            verbose=False,
        )
        seconds = time.perf_counter() - start
        outputs = self._predict(model)
        size, weights = code_sizes(model)
        noise = sqnr_db(self.outputs, outputs)
        row = Row(
            **dataclasses.asdict(case),
            top1=round(self._top1(outputs), 2),
            drop=round(self.top1 - self._top1(outputs), 2),
            agreement=round(100 * float((outputs.argmax(1) == self.outputs.argmax(1)).mean()), 2),
            sqnr_db=None if noise is None else round(noise, 2),
            effective_bits=round(8 * size / weights, 3),
            code_bytes=size,
            seconds=round(seconds, 1),
        )
        del model
        gc.collect()
        return row

    def _predict(self, model: keras.Model) -> np.ndarray:
        outputs = self.entry.predict(model, 100)
        return np.asarray(outputs).reshape(len(self.entry.inputs), -1)

    def _top1(self, outputs: np.ndarray) -> float:
        return 100 * float((outputs.argmax(1) == self.entry.targets).mean())


def cases(network: str, pictures: int) -> Iterator[Case]:
    """All rows of a network, the important ones first."""

    def rows(method: str, widths: Sequence[int]) -> Iterator[Case]:
        yield from (Case(network, pictures, method, float(bits)) for bits in widths)

    yield from rows(UNIFORM, WIDTHS)
    yield from rows(AS_LARGE, (5, 4, 3))
    yield from rows(MIXED, (4, 5, 3))
    yield from rows(BLIND, (8, 6, 5))
    yield from rows(PLAIN, (8, 5, 4, 3))
    yield from rows(PAPER, (8, 6, 5, 4))
    for method in WITHOUT:
        yield from rows(method, (4,))
    yield from rows(TENSOR, (8, 4))
    yield from rows(BLIND_AS_LARGE, (5,))
    yield from rows(BLIND_MIXED, (5,))
    yield from rows(TENSOR, (6, 5, 3))
    yield from rows(BLIND, (4, 3))


def measure(zoo: Any, results: Results, network: str, pictures: int) -> None:
    """Measure what is missing of one network."""
    scorer = functools.cache(lambda: Scorer(zoo, network, pictures))

    def measured(case: Case) -> Row:
        size = 0
        if case.method in (AS_LARGE, BLIND_AS_LARGE):
            same = UNIFORM if case.method == AS_LARGE else BLIND
            size = results[dataclasses.replace(case, method=same)].code_bytes
        return scorer().measure(case, size)

    results.fill(cases(network, pictures), measured, network)


# The report ---------------------------------------------------------------------------------------

NOTES = """\
Every row is a Keras model that `ocs_tf.convert` returned, scored on the zoo's evaluation pictures;
it was calibrated on the zoo's calibration set, and nothing was chosen on evaluation pictures.
Activations are rounded to 8 bits, but with *no data*, where they stay in float. Drops are top-1
points against the float network, with the share of pictures that get the float network's label, and
the outputs' signal to noise ratio. *Bits* are those of all codes over all quantized weights: copies
and layers in 8 bits count. The *default* has its first and last layer in 8 bits; *mixed widths* are
for an average (`average_bits`), first and last layer included; *as large as the default* has the
default's bytes (`weight_bytes`). One standard error of a score is 0.4 points on 5,000 pictures near
91 %, 0.8 on 1,000 near 93 %, and 1.8 on 500 near 79 %; differences between two forms of one network
are less noisy. Seconds are upper bounds, measured while the machine did other work. An empty
cell was not measured."""


def markdown(results: Results, findings: str = "") -> str:
    """The whole report."""
    lines = ["# Ingredients", "", "Made by `python -m benchmarks.ingredients`.", "", NOTES, ""]
    lines += [findings, ""] if findings else []
    networks = sorted({(row.network, row.pictures) for row in results})
    for network, pictures in networks:
        rows = {(r.method, r.bits): r for r in results if r.network == network}
        exact = next(iter(rows.values()))
        lines += [f"## {network}, {pictures:,} pictures, float {exact.top1 + exact.drop:.1f}", ""]
        lines += [f"![accuracy over bits](ingredients_{network}.png)", ""]
        lines += _drops(rows, network) + _ablation(rows)
    return "\n".join(lines).rstrip() + "\n"


Rows = dict[tuple[str, float], Row]


def _drops(rows: Rows, network: str) -> list[str]:
    methods = [UNIFORM, AS_LARGE, MIXED, TENSOR, PLAIN, PAPER, BLIND, BLIND_AS_LARGE, BLIND_MIXED]
    header = ["drop (agreement, dB, bits, seconds)", *(f"W{bits}" for bits in WIDTHS)]
    aims = [f"{AIMS[network][bits]:g}" for bits in WIDTHS]
    blind = [f"{BLIND_AIMS[bits]:g}" if bits in BLIND_AIMS else "" for bits in WIDTHS]
    table = [["aim", *aims]]
    for method in methods:
        if method == BLIND:
            table.append(["aim without data", *blind])
        found = [rows.get((method, float(bits))) for bits in WIDTHS]
        if any(found):
            table.append([method, *map(_cell, found)])
    return [*common.markdown_table(header, table).splitlines(), ""]


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    noise = "" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB, "
    return (
        f"**{row.drop:.1f}** ({row.agreement:.1f}, {noise}{row.effective_bits:.2f} b,"
        f" {row.seconds:.0f} s)"
    )


def _ablation(rows: Rows) -> list[str]:
    base = rows.get((UNIFORM, 4.0))
    found = [rows[name, 4.0] for name in WITHOUT if (name, 4.0) in rows]
    if base is None or not found:
        return []
    header = ["W4A8", "top-1", "drop", "agreement", "output SQNR dB", "bits"]
    table = [
        [
            row.method,
            f"{row.top1:.1f}",
            f"{row.drop:.1f}",
            f"{row.agreement:.1f}",
            "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
            f"{row.effective_bits:.2f}",
        ]
        for row in [base, *found]
    ]
    return [
        "One thing changed at a time:",
        "",
        *common.markdown_table(header, table).splitlines(),
        "",
    ]


def draw(results: Results, network: str, path: pathlib.Path) -> None:
    """Top-1 over effective bits, a line per method."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    exact = None
    for method in (UNIFORM, AS_LARGE, MIXED, TENSOR, BLIND, PLAIN, PAPER):
        rows = [row for row in results if (row.network, row.method) == (network, method)]
        rows.sort(key=lambda row: row.effective_bits)
        if rows:
            exact = rows[0].top1 + rows[0].drop
            bits = [row.effective_bits for row in rows]
            axes.plot(bits, [row.top1 for row in rows], marker="o", label=method)
    if exact is not None:
        axes.axhline(exact, color="grey", linestyle=":", label="float")
        axes.set_ylim(max(0, exact - 40), exact + 2)
    axes.set_xlabel("bits per quantized weight, copies included")
    axes.set_ylabel("top-1 %")
    axes.set_title(network)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def benchmark(
    folder: pathlib.Path = common.RESULTS,
    networks: Sequence[str] = tuple(PICTURES),
    limit: int | None = None,
    resume: bool = True,
    zoo: str | None = None,
) -> Results:
    """Measure what is missing, and write `ingredients.json`, `.md` and the charts to `folder`."""
    results = Results(folder / "ingredients.json", Case, Row, resume, machine=common.machine())
    try:
        for network in networks:
            pictures = min(PICTURES[network][0], limit or PICTURES[network][0])
            measure(common.load_zoo(zoo), results, network, pictures)
    finally:  # an interrupted run reports what it has
        for network in {row.network for row in results}:
            draw(results, network, folder / f"ingredients_{network}.png")
        findings = folder / "ingredients_findings.md"
        text = findings.read_text(encoding="utf-8") if findings.exists() else ""
        common.save_text(folder / "ingredients.md", markdown(results, text))
    return results


def main() -> None:
    networks = flags.DEFINE_list("networks", list(PICTURES), "Networks of the zoo to measure.")
    limit = flags.DEFINE_integer("limit", None, "Use at most this many pictures of each network.")
    resume = flags.DEFINE_bool("resume", True, "Keep the rows that were measured before.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    zoo = flags.DEFINE_string("zoo", None, "Folder of the zoo; else $OCS_TF_ZOO or ../shared/zoo.")

    def run() -> None:
        benchmark(pathlib.Path(folder.value), networks.value, limit.value, resume.value, zoo.value)

    common.run(run)


if __name__ == "__main__":
    main()
