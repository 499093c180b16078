"""Accuracy of quantized zoo networks over bits, clip methods and expand ratios.

    python -m benchmarks.accuracy            # the whole grid: hours
    python -m benchmarks.accuracy --quick    # a few rows on few pictures: about a minute

Every row is one call of `ocs_tf.convert`, and the model that comes out is what is scored. Rows go
to `accuracy.json` one by one; what is in there already is not measured again (`--noresume` does).
`accuracy.md` is made from it at the end.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import flags

import ocs_tf
from benchmarks import common

BITS = (8, 6, 5, 4, 3)
RATIOS = (0.0, 0.01, 0.02, 0.05)
# Parts of the grid, the important one first.
PASSES = (((8, 5, 4), (0.0, 0.02)), ((6, 3), (0.0, 0.02)), (BITS, (0.01, 0.05)))
CLIPS = {
    "paper": ("none", "mse", "aciq", "kl"),
    "default": ("none", "mse", "aciq", "kl", "optimal"),
}
# Pictures of the whole grid, and of selected rows: DenseNet-40 is the slow one.
PICTURES = {
    "resnet20_cifar10": (5000, 5000),
    "mobilenet_v1_075_imagenet": (500, 500),
    "densenet40_cifar10": (1000, 5000),
}
ROUNDINGS = tuple(itertools.product(("nearest", "error_compensated"), (False, True)))
ACTIVATION_ROWS = (8, 5, 4)  # weight bits that are also scored with 8-bit activations
QUICK_PICTURES = 200


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures; `weight_bits=None` is the float network."""

    network: str
    pictures: int
    setup: str = "float"
    weight_bits: int | None = None
    activation_bits: int | None = None
    clip: str = "none"
    expand_ratio: float = 0.0
    rounding: str = "nearest"
    bias_correction: bool = False


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """A measured case: top-1 and agreement with the float network's labels in percent."""

    top1: float = math.nan
    agreement: float = math.nan
    weight_bytes: int = 0
    seconds: float = 0.0  # to convert

    @property
    def case(self) -> Case:
        return Case(*(getattr(self, field.name) for field in dataclasses.fields(Case)))

    @property
    def standard_error(self) -> float:
        """Of `top1`, in points."""
        return math.sqrt(self.top1 * (100 - self.top1) / self.pictures)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A top-1 score of the code released with the paper, and the case it belongs to."""

    what: str
    case: Case
    top1: float


def _reference(network: str, bits: int, clip: str, ratio: float, top1: float, what: str = ""):
    case = Case(network, PICTURES[network][0], "paper", bits, None, clip, ratio)
    label = what or (f"OCS r = {ratio}" if ratio else "") + ("" if clip == "none" else f" {clip}")
    return Reference(label.strip() or "no clip", case, top1)


# In the rows called best clip, the method is the one that was best without splitting.
REFERENCES = (
    _reference("resnet20_cifar10", 4, "none", 0.0, 85.9),
    _reference("resnet20_cifar10", 4, "mse", 0.0, 88.0),
    _reference("resnet20_cifar10", 4, "aciq", 0.0, 87.2),
    _reference("resnet20_cifar10", 4, "none", 0.02, 88.0),
    _reference("resnet20_cifar10", 4, "mse", 0.02, 90.2),
    _reference("resnet20_cifar10", 4, "aciq", 0.02, 89.1),
    _reference("resnet20_cifar10", 4, "mse", 0.05, 90.4),
    _reference("densenet40_cifar10", 4, "none", 0.0, 90.7, "best clip (none)"),
    _reference("densenet40_cifar10", 4, "none", 0.02, 89.1, "OCS r = 0.02, best clip (none)"),
    _reference("densenet40_cifar10", 3, "kl", 0.0, 77.8, "best clip (kl)"),
    _reference("mobilenet_v1_075_imagenet", 8, "mse", 0.0, 72.8, "best clip (mse)"),
    _reference("mobilenet_v1_075_imagenet", 8, "none", 0.02, 76.6),
    _reference("mobilenet_v1_075_imagenet", 6, "mse", 0.0, 37.2, "best clip (mse)"),
    _reference("mobilenet_v1_075_imagenet", 6, "mse", 0.02, 42.6, "OCS r = 0.02, best clip (mse)"),
)


class Results(common.Results[Case, Row]):
    """Measured rows, kept in a JSON file."""

    def __init__(self, path: pathlib.Path, resume: bool = True) -> None:
        super().__init__(path, Case, Row, resume)

    def best_clip(self, network: str, pictures: int, setup: str, bits: int) -> str | None:
        """The clip method of the best top-1 without splitting; None if nothing was measured."""
        cases = [Case(network, pictures, setup, bits, clip=clip) for clip in CLIPS[setup]]
        rows = [self._rows[case] for case in cases if case in self]
        return max(rows, key=lambda row: row.top1).clip if rows else None


class Scorer:
    """Measures cases of one network."""

    def __init__(self, zoo: Any, network: str, limit: int | None = None) -> None:
        self.entry = zoo.load(network, limit=limit)
        self.labels = self._labels(self.entry.model, len(self.entry.inputs))

    def measure(self, case: Case) -> Row:
        if case.weight_bits is None:
            weights = sum(math.prod(w.shape) for w in self.entry.model.weights)
            return self._row(case, self.labels, 4 * weights, 0.0)
        start = time.perf_counter()
        data = None if case.activation_bits is None else self.entry.calibration
        model = ocs_tf.convert(
            self.entry.model, config(case), representative_dataset=data, verbose=False
        )
        seconds = time.perf_counter() - start
        labels = self._labels(model, case.pictures)
        row = self._row(case, labels, ocs_tf.report(model).bytes_after, seconds)
        del model
        gc.collect()
        return row

    def _labels(self, model: keras.Model, pictures: int, batch: int = 100) -> np.ndarray:
        inputs = self.entry.inputs[:pictures]
        outputs = [
            model.predict_on_batch(inputs[i : i + batch]) for i in range(0, len(inputs), batch)
        ]
        return np.concatenate(outputs).reshape(len(inputs), -1).argmax(1)

    def _row(self, case: Case, labels: np.ndarray, weight_bytes: int, seconds: float) -> Row:
        labels = labels[: case.pictures]
        right = labels == self.entry.targets[: case.pictures]
        same = labels == self.labels[: case.pictures]
        return Row(
            **dataclasses.asdict(case),
            top1=round(100 * float(right.mean()), 2),
            agreement=round(100 * float(same.mean()), 2),
            weight_bytes=weight_bytes,
            seconds=round(seconds, 2),
        )


def config(case: Case) -> ocs_tf.Config:
    """The options of a case."""
    make = ocs_tf.Config.paper if case.setup == "paper" else ocs_tf.Config
    return make(
        weight_bits=case.weight_bits,
        activation_bits=case.activation_bits,
        weight_clip=case.clip,
        expand_ratio=case.expand_ratio,
        rounding=case.rounding,
        bias_correction=case.bias_correction,
    )


# Which rows ---------------------------------------------------------------------------------------

Stage = tuple[str, str, Iterable[Case]]  # network, title, cases


def grid(
    network: str, pictures: int, setup: str, bits: Sequence[int], ratios: Sequence[float]
) -> list[Case]:
    """Weights only, with all clip methods of a set-up."""
    return [
        Case(network, pictures, setup, b, None, clip, ratio)
        for b, clip, ratio in itertools.product(bits, CLIPS[setup], ratios)
    ]


def is_slow(case: Case) -> bool:
    """KL searches some 500 thresholds per step, and there is a step per output channel."""
    return case.setup == "default" and case.clip == "kl"


def compared(network: str, pictures: int) -> list[Case]:
    """The rows to compare with the released code."""
    cases = [reference.case for reference in REFERENCES if reference.case.network == network]
    return [dataclasses.replace(case, pictures=pictures) for case in cases]


def with_activations(network: str, pictures: int, setup: str, results: Results) -> Iterator[Case]:
    """Activations in 8 bits, with the clip method that was best."""
    for bits in ACTIVATION_ROWS:
        clip = results.best_clip(network, pictures, setup, bits)
        if clip:
            for ratio in (0.0, 0.02):
                yield Case(network, pictures, setup, bits, 8, clip, ratio)


def on_data(network: str, pictures: int) -> list[Case]:
    """What is chosen on calibration data, each alone and both; activations in 8 bits."""
    return [
        Case(network, pictures, "default", bits, 8, "optimal", 0.0 if bits == 8 else 0.02, *chosen)
        for bits, chosen in itertools.product(BITS, ROUNDINGS)
    ]


def more_pictures(
    network: str, few: int, many: int, setup: str, results: Results
) -> Iterator[Case]:
    """Rows that matter, on all pictures, where the grid is measured on some."""
    for bits in (5, 4):
        best = results.best_clip(network, few, setup, bits)
        clip = "optimal" if setup == "default" else best
        if clip:
            for ratio in (0.0, 0.02):
                yield Case(network, many, setup, bits, None, clip, ratio)
    if setup == "default":
        for bits in ACTIVATION_ROWS:
            yield Case(network, many, setup, bits, 8, "optimal", 0.0 if bits == 8 else 0.02)


def stages(
    networks: Sequence[str], setups: Sequence[str], results: Results, limit: int | None = None
) -> Iterator[Stage]:
    """All rows, the important ones first; some depend on the results of earlier ones."""
    sizes = {n: [min(size, limit or size) for size in PICTURES[n]] for n in networks}
    both = [(setup, network, *sizes[network]) for setup in setups for network in networks]
    for network, (few, many) in sizes.items():
        yield network, "float", [Case(network, size) for size in sorted({few, many})]
        if "paper" in setups:
            yield network, "compared", compared(network, few)
        if "default" in setups:
            yield network, "on data", on_data(network, few)
    for part in PASSES:
        for setup, network, few, _ in both:
            rows = grid(network, few, setup, *part)
            yield network, setup, itertools.filterfalse(is_slow, rows)
        for setup, network, few, many in both:
            yield network, f"{setup} A8", with_activations(network, few, setup, results)
            if many > few:
                rest = more_pictures(network, few, many, setup, results)
                yield network, f"{setup} all pictures", rest
    for part in PASSES:
        for setup, network, few, _ in both:
            yield network, f"{setup} kl", filter(is_slow, grid(network, few, setup, *part))


def quick_stages(setups: Sequence[str], pictures: int) -> Iterator[Stage]:
    """A few rows of ResNet-20."""
    case = Case("resnet20_cifar10", pictures)
    cases = [case]
    for setup in setups:
        cases += [
            dataclasses.replace(case, setup=setup, weight_bits=b, clip=c, expand_ratio=r)
            for b, c, r in itertools.product((8, 4), ("none", "mse"), (0.0, 0.02))
        ]
        cases.append(dataclasses.replace(case, setup=setup, weight_bits=8, activation_bits=8))
    if "default" in setups:
        cases += [c for c in on_data(case.network, pictures) if c.weight_bits == 4]
    yield case.network, "quick", cases


def run(zoo: Any, results: Results, todo: Iterable[Stage], limit: int | None = None) -> int:
    """Measure what is missing in `results`; returns the number of rows measured."""
    scorer = functools.cache(lambda network: Scorer(zoo, network, limit))

    def measure(case: Case) -> Row:
        return scorer(case.network).measure(case)

    return sum(results.fill(cases, measure, f"{network} {title}") for network, title, cases in todo)


# The report ---------------------------------------------------------------------------------------

TITLES = {
    "paper": "The paper's set-up",
    "default": "The default set-up",
}
NOTES = """\
Every score is that of the Keras model which `ocs_tf.convert` returns; its weights are integer
codes. "A8" rounds activations to 8-bit grids as well and adds up integers, held in float32; how
near the exported files come is in runtimes.md. Set-ups: the *paper's* is `Config.paper(...)`: one
step per kernel, the first convolution,
depthwise kernels and `Dense` layers in float, batch norm not folded, activations rounded where
quantized layers read them; the *default* is `Config(...)`: one step per output channel, first and
last layer in 8 bits, batch norm folded, all activations rounded as an int8 TFLite runtime holds
them. `r` is the expand ratio. *Agreement* is the share of pictures that get the float network's
label; it is far less noisy than top-1. Weight bytes count all that the model stores: packed
codes, steps, channel maps, biases, and the layers that stay float. An empty cell was not
measured.
"""


def markdown(results: Results, findings: str = "") -> str:
    """The whole report."""
    lines = ["# Accuracy", "", f"Made by `python -m {_command(results)}`.", "", NOTES]
    lines += [findings, ""] if findings else []
    lines += _compared(results)
    parts = {(row.network, row.pictures) for row in results}
    for network, pictures in sorted(parts, key=lambda p: (list(PICTURES).index(p[0]), p[1])):
        lines += _network(results, network, pictures)
    return "\n".join(lines).rstrip() + "\n"


def _command(results: Results) -> str:
    return "benchmarks.accuracy" + (" --quick" if "quick" in results.path.stem else "")


def _compared(results: Results) -> list[str]:
    lines = []
    for reference in REFERENCES:
        case = reference.case
        if case in results:
            ours = results[case].top1
            name = f"W{case.weight_bits} {reference.what}"
            scores = [reference.top1, f"{ours:.2f}", f"{ours - reference.top1:+.2f}"]
            lines.append([case.network, case.pictures, name, *scores])
    if not lines:
        return []
    header = ["network", "pictures", "weights only", "released code", "ours", "difference"]
    return [
        "## Against the released code",
        "",
        "Top-1 of the code released with the paper, and of `Config.paper`, on the same pictures.",
        "",
        *_table(header, lines),
        "",
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return common.markdown_table(header, rows).splitlines()


def _network(results: Results, network: str, pictures: int) -> list[str]:
    rows = [row for row in results if (row.network, row.pictures) == (network, pictures)]
    rows.sort(key=lambda row: (-(row.weight_bits or 0), row.clip, row.expand_ratio))
    lines = [f"## {network}, {pictures} pictures", ""]
    exact = results.get(Case(network, pictures))
    if exact is not None:
        lines += [
            f"Float: top-1 {exact.top1:.2f} (standard error {exact.standard_error:.2f}),"
            f" {exact.weight_bytes:,} bytes of weights.",
            "",
        ]
    for setup, title in TITLES.items():
        mine = [row for row in rows if row.setup == setup]
        weights_only = [row for row in mine if row.activation_bits is None]
        if weights_only:
            lines += [f"### {title}", "", "Top-1, weights only (the best of a line in bold):", ""]
            lines += _pivot(weights_only, lambda row: row.top1, 1, best=True)
            lines += ["Agreement with the float network:", ""]
            lines += _pivot(weights_only, lambda row: row.agreement, 1)
            lines += _bytes(weights_only)
        rounded = [row for row in mine if row.activation_bits is not None]
        if any((row.rounding, row.bias_correction) != ROUNDINGS[0] for row in rounded):
            lines += [_ON_DATA, "", *_on_data(rounded)]
        rounded = [row for row in rounded if (row.rounding, row.bias_correction) == ROUNDINGS[0]]
        if rounded:
            lines += ["8-bit activations:", "", *_rounded(rounded, results)]
    return lines


_ON_DATA = """\
Chosen on calibration data, activations in 8 bits, clip method `optimal`, `r` = 0.02 below 8 bits:
top-1, and agreement with the float network. *Both* is what `ocs_tf.convert` does by default; the
seconds are those that takes."""


def _on_data(rows: Sequence[Row]) -> list[str]:
    header = ["", "nearest", "bias corrected", "error-compensated", "both", "seconds"]
    lines = []
    for bits in sorted({row.weight_bits for row in rows}, reverse=True):
        ratio = 0.0 if bits == 8 else 0.02
        found = {
            (row.rounding, row.bias_correction): row
            for row in rows
            if (row.weight_bits, row.clip, row.expand_ratio) == (bits, "optimal", ratio)
        }
        if set(found) == set(ROUNDINGS):
            cells = [f"{found[r].top1:.1f} ({found[r].agreement:.1f})" for r in ROUNDINGS]
            lines.append([f"W{bits}", *cells, f"{found[ROUNDINGS[-1]].seconds:.0f}"])
    return [*_table(header, lines), ""]


def _pivot(
    rows: Sequence[Row], value: Callable[[Row], float], digits: int, best: bool = False
) -> list[str]:
    """A table of a line per bits and a column per clip and ratio."""
    cells = {(row.weight_bits, row.clip, row.expand_ratio): value(row) for row in rows}
    clips = [clip for clip in CLIPS["default"] if any(row.clip == clip for row in rows)]
    ratios = sorted({row.expand_ratio for row in rows})
    columns = list(itertools.product(clips, ratios))
    lines = []
    for bits in sorted({row.weight_bits for row in rows}, reverse=True):
        scores = [cells.get((bits, *column)) for column in columns]
        top = max(score for score in scores if score is not None) if best else None
        texts = ["" if score is None else f"{score:.{digits}f}" for score in scores]
        bold = (f"**{t}**" if s == top and best else t for s, t in zip(scores, texts, strict=True))
        lines.append([f"W{bits}", *bold])
    header = ["", *(f"{clip} {f'r={ratio:g}' if ratio else ''}".strip() for clip, ratio in columns)]
    return [*_table(header, lines), ""]


def _bytes(rows: Sequence[Row]) -> list[str]:
    """Weight bytes; they do not depend on the clip method."""
    sizes = {(row.weight_bits, row.expand_ratio): row.weight_bytes for row in rows}
    ratios = sorted({row.expand_ratio for row in rows})
    lines = [
        [f"W{bits}", *(f"{sizes[bits, r]:,}" if (bits, r) in sizes else "" for r in ratios)]
        for bits in sorted({row.weight_bits for row in rows}, reverse=True)
    ]
    return [
        "Weight bytes:",
        "",
        *_table(["", *(f"r={ratio:g}" for ratio in ratios)], lines),
        "",
    ]


def _rounded(rows: Sequence[Row], results: Results) -> list[str]:
    header = ["", "top-1 A8", "top-1 A float", "agreement A8", "agreement A float"]
    lines = []
    for row in rows:
        twin = results.get(dataclasses.replace(row.case, activation_bits=None))
        other = ["", ""] if twin is None else [f"{twin.top1:.1f}", f"{twin.agreement:.1f}"]
        name = f"W{row.weight_bits} {row.clip} r={row.expand_ratio:g}"
        lines.append([name, f"{row.top1:.1f}", other[0], f"{row.agreement:.1f}", other[1]])
    return [*_table(header, lines), ""]


def benchmark(
    folder: pathlib.Path = common.RESULTS,
    quick: bool = False,
    networks: Sequence[str] = tuple(PICTURES),
    setups: Sequence[str] = tuple(CLIPS),
    limit: int | None = None,
    resume: bool = True,
    zoo: str | None = None,
    stage: str | None = None,
) -> Results:
    """Measure what is missing, and write `accuracy[_quick].json` and `.md` to `folder`."""
    path = folder / ("accuracy_quick.json" if quick else "accuracy.json")
    results = Results(path, resume)
    if quick:
        limit = limit or QUICK_PICTURES
        todo = quick_stages(setups, limit)
    else:
        todo = stages(networks, setups, results, limit)
    if stage is not None:
        todo = (part for part in todo if part[1] == stage)
    findings = path.with_name(path.stem + "_findings.md")
    try:
        run(common.load_zoo(zoo), results, todo, limit)
    finally:  # an interrupted run reports what it has
        text = findings.read_text(encoding="utf-8") if findings.exists() else ""
        common.save_text(path.with_suffix(".md"), markdown(results, text))
    return results


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "A few rows on few pictures, in about a minute.")
    networks = flags.DEFINE_list("networks", list(PICTURES), "Networks of the zoo to measure.")
    setups = flags.DEFINE_list("setups", list(CLIPS), "Set-ups to measure.")
    limit = flags.DEFINE_integer("limit", None, "Use at most this many pictures of each network.")
    resume = flags.DEFINE_bool("resume", True, "Keep the rows that were measured before.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    stage = flags.DEFINE_string("stage", None, "Only the rows of this title, e.g. 'on data'.")
    zoo = flags.DEFINE_string("zoo", None, "Folder of the zoo; else $OCS_TF_ZOO or ../shared/zoo.")

    def run_flags() -> None:
        benchmark(
            pathlib.Path(folder.value),
            quick.value,
            networks.value,
            setups.value,
            limit.value,
            resume.value,
            zoo.value,
            stage.value,
        )

    common.run(run_flags)


if __name__ == "__main__":
    main()
