"""What `ocs_tf.convert` reaches by default: with calibration data, with few of them, and with none.

    python -m benchmarks.defaults            # hours
    python -m benchmarks.defaults --quick    # ResNet-20 on few pictures: some minutes

Each row is one call of `convert`, scored on evaluation pictures that nothing was chosen on. Rows go
to `defaults.json` one by one; what is in there already is not measured again (`--noresume` does).
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import pathlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import ocs_tf
from benchmarks import common
from benchmarks.peers import sqnr_db

COMMAND = "python -m benchmarks.defaults"
NETWORKS = {  # and their pictures; DenseNet-40 is slow
    "resnet20_cifar10": 5000,
    "mobilenet_v1_075_imagenet": 500,
    "tinydarknet_imagenet": 500,
    "densenet40_cifar10": 1000,
}
QUICK_PICTURES = 200
NEAREST = {"rounding": "nearest", "bias_correction": True}
# The options of each row, and how many calibration samples it has: all, some, or synthetic ones.
SETTINGS: Mapping[str, tuple[Mapping[str, Any], int | str | None]] = {
    "W8A8": ({"activation_bits": 8}, None),
    "W8A8, outlier_equalization": ({"activation_bits": 8, "outlier_equalization": True}, None),
    "W8A8, nearest codes, biases corrected": ({"activation_bits": 8, **NEAREST}, None),
    "W8A8, 16 samples": ({"activation_bits": 8}, 16),
    "W8A8, nearest codes, biases corrected, 16 samples": ({"activation_bits": 8, **NEAREST}, 16),
    "W8A8, no data": ({"activation_bits": 8}, "synthetic"),
    "W4A8": ({"weight_bits": 4, "activation_bits": 8}, None),
    "W4A8, 10 samples": ({"weight_bits": 4, "activation_bits": 8}, 10),
    "W4A8, no data": ({"weight_bits": 4, "activation_bits": 8}, "synthetic"),
    "W3A8": ({"weight_bits": 3, "activation_bits": 8}, None),
    "W3A8, no data": ({"weight_bits": 3, "activation_bits": 8}, "synthetic"),
    "W6A6": ({"weight_bits": 6, "activation_bits": 6}, None),
    "W4A4": ({"weight_bits": 4, "activation_bits": 4}, None),
    "W2A8": ({"weight_bits": 2, "activation_bits": 8}, None),
    "2.5 bits on average, A8": ({"average_bits": 2.5, "activation_bits": 8}, None),
}
QUICK = ("W8A8", "W8A8, no data", "W4A4")


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures; `setting` is one of `SETTINGS`."""

    network: str
    pictures: int
    setting: str


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """A measured case.

    Attributes:
        top1: of the quantized network, in percent.
        drop: of the float network's top-1 less that, in points.
        drop_error: standard error of `drop`, over the pictures that only one of the two gets right.
        agreement: share of the pictures that get the float network's label, in percent.
        sqnr_db: of the outputs; `None`: exact.
        seconds: to convert, making synthetic data not included.
        synthesis_seconds: to make them; 0 for all rows that have data.
    """

    top1: float = math.nan
    drop: float = math.nan
    drop_error: float = math.nan
    agreement: float = math.nan
    sqnr_db: float | None = None
    seconds: float = 0.0
    synthesis_seconds: float = 0.0


Results = common.Results[Case, Row]


class Scorer:
    """Measures cases of one network."""

    def __init__(self, zoo: Any, network: str, pictures: int) -> None:
        self.entry = zoo.load(network, limit=pictures)
        self.outputs = self._flat(self.entry.model)

    def measure(self, case: Case) -> Row:
        options, samples = SETTINGS[case.setting]
        synthetic = samples == "synthetic"
        data, making = self.synthetic if synthetic else (self.entry.calibration[:samples], 0.0)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few samples
            model = ocs_tf.convert(
                self.entry.model, representative_dataset=data, verbose=False, **options
            )
        seconds = time.perf_counter() - start
        outputs = self._flat(model)
        del model
        gc.collect()
        return score(case, self.outputs, outputs, self.entry.targets, seconds, making)

    @functools.cached_property
    def synthetic(self) -> tuple[ocs_tf.SyntheticData, float]:
        """The data, and the seconds that making them took."""
        start = time.perf_counter()
        return ocs_tf.synthesize(self.entry.model, verbose=False), time.perf_counter() - start

    def _flat(self, model: Any) -> np.ndarray:
        outputs = self.entry.predict(model)
        return outputs.reshape(len(outputs), -1).astype(np.float64)


def score(
    case: Case,
    exact: np.ndarray,
    outputs: np.ndarray,
    targets: np.ndarray,
    seconds: float = 0.0,
    synthesis_seconds: float = 0.0,
) -> Row:
    """The row of a case, by the outputs `[N, classes]` of the float and the quantized network."""
    was, now = exact.argmax(1), outputs.argmax(1)
    lost = (was == targets).astype(float) - (now == targets)
    return Row(
        **dataclasses.asdict(case),
        top1=round(100 * float((now == targets).mean()), 2),
        drop=round(100 * float(lost.mean()), 2),
        drop_error=round(100 * float(lost.std()) / math.sqrt(len(lost)), 2),
        agreement=round(100 * float((was == now).mean()), 2),
        sqnr_db=sqnr_db(exact, outputs),
        seconds=round(seconds, 1),
        synthesis_seconds=round(synthesis_seconds, 1),
    )


def cases(networks: Sequence[str], settings: Sequence[str], limit: int | None) -> Iterator[Case]:
    for network in networks:
        pictures = min(NETWORKS[network], limit or NETWORKS[network])
        yield from (Case(network, pictures, setting) for setting in settings)


# The report ---------------------------------------------------------------------------------------

NOTES = """\
Calibration sets are those of the zoo: 1,024 pictures of CIFAR-10, 100 of ImageNet. The evaluation
pictures are others; nothing is chosen on them. *No data* is `representative_dataset="synthetic"`.
*Drop* is the loss of top-1 in points with its standard error, by pictures that only one of the two
networks gets right. *Agreement* is the share of pictures with the float network's label. SQNR is
that of the outputs. What is scored is the Keras model, which adds up integers; runtimes.md says
how near files come. Activations of fewer than 8 bits are a simulation: no TFLite file has them.
Below 8 bits, the model's ends and what no kernel reads keep 8 bits.
Seconds are those of one conversion, on a machine that did other work as well; *made in* is what
`ocs_tf.synthesize` took.
"""


def markdown(results: Results, findings: str = "") -> str:
    """The whole report."""
    lines = ["# Defaults", "", f"Made by `{COMMAND}`.", "", NOTES]
    lines += [findings, ""] if findings else []
    parts = {(row.network, row.pictures) for row in results}
    header = ["", "top-1", "drop", "agreement", "SQNR, dB", "seconds", "made in"]
    for network, pictures in sorted(parts, key=lambda part: list(NETWORKS).index(part[0])):
        rows = [row for row in results if (row.network, row.pictures) == (network, pictures)]
        rows.sort(key=lambda row: list(SETTINGS).index(row.setting))
        of_float = rows[0].top1 + rows[0].drop
        lines += [f"## {network}, {pictures:,} pictures", "", f"Float: {of_float:.2f}.", ""]
        lines += common.markdown_table(header, map(_cells, rows)).splitlines()
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: Row) -> list[str]:
    return [
        row.setting,
        f"{row.top1:.2f}",
        f"{row.drop:.2f} ± {row.drop_error:.2f}",
        f"{row.agreement:.2f}",
        "exact" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
        f"{row.seconds:.0f}",
        f"{row.synthesis_seconds:.0f} s" if row.synthesis_seconds else "",
    ]


def benchmark(
    folder: pathlib.Path = common.RESULTS,
    quick: bool = False,
    networks: Sequence[str] = tuple(NETWORKS),
    resume: bool = True,
    zoo: str | None = None,
    limit: int | None = None,
    settings: Sequence[str] = (),
) -> Results:
    """Measure what is missing, and write `defaults[_quick].json` and `.md` to `folder`."""
    path = folder / ("defaults_quick.json" if quick else "defaults.json")
    results: Results = common.Results(path, Case, Row, resume)
    if quick:
        networks, limit = networks[:1], limit or QUICK_PICTURES
    todo = cases(networks, settings or (QUICK if quick else tuple(SETTINGS)), limit)
    folder_of_networks = common.load_zoo(zoo)

    @functools.lru_cache(1)
    def scorer(network: str, pictures: int) -> Scorer:
        return Scorer(folder_of_networks, network, pictures)

    findings = path.with_name(path.stem + "_findings.md")
    try:
        results.fill(todo, lambda case: scorer(case.network, case.pictures).measure(case))
    finally:  # an interrupted run reports what it has
        text = findings.read_text(encoding="utf-8") if findings.exists() else ""
        common.save_text(path.with_suffix(".md"), markdown(results, text))
    return results


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "Three rows of ResNet-20 on few pictures.")
    networks = flags.DEFINE_list("networks", list(NETWORKS), "Networks of the zoo to measure.")
    resume = flags.DEFINE_bool("resume", True, "Keep the rows that were measured before.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    zoo = flags.DEFINE_string("zoo", None, "Folder of the zoo; else $OCS_TF_ZOO or ../shared/zoo.")
    limit = flags.DEFINE_integer("limit", None, "Use at most this many pictures of each network.")

    def run_flags() -> None:
        benchmark(
            pathlib.Path(folder.value),
            quick.value,
            networks.value,
            resume.value,
            zoo.value,
            limit.value,
        )

    common.run(run_flags)


if __name__ == "__main__":
    main()
