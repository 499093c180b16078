"""Accuracy of split activations: the paper's rule, ours, and an oracle, against clipping.

    python -m benchmarks.activation_splitting            # some 40 minutes
    python -m benchmarks.activation_splitting --quick    # a few rows on few pictures

Weights have 8 bits, activations 8 to 4. Every row is one call of `ocs_tf.convert`, on at most 512
calibration samples as in the paper, and the model that comes out is what is scored. Rows are kept
in `activation_splitting.json` one by one and not measured again (`--noresume` does).

The oracle chooses range and channels from each batch itself; so there is a row `dynamic`, the same
without copies, to tell what comes from splitting.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags
from tqdm import tqdm

import ocs_tf
from benchmarks import common
from ocs_tf.numerics import OracleGrid

PICTURES = {"resnet20_cifar10": 1000, "mobilenet_v1_075_imagenet": 500}
# Bits of activations by set-up. With scope "all" no activation of MobileNet can be split: depthwise
# kernels and ReLU6.
BITS = {
    "resnet20_cifar10": {"paper": (8, 6, 5, 4), "default": (6, 4), "default, inputs": (6, 4)},
    "mobilenet_v1_075_imagenet": {"paper": (6, 5)},
}
CALIBRATION = 512
QUICK_PICTURES = 100
MORE = ("resnet20_cifar10", "paper")  # with more ratios, and an oracle
RATIOS = (0.02, 0.1)
MORE_RATIOS = (0.01, 0.02, 0.05, 0.1)
ORACLE_BITS = (6, 4)
ORACLE_BATCHES = (1, 4, 32, 128)
BATCH = 100
CLIP = "mse"


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures; `activation_bits=None` is the float network.

    `split` is a choice of `Config.activation_split`, `"none"`, or `"dynamic"`: a range for each
    batch without splitting.
    """

    network: str
    pictures: int
    setup: str = "float"
    activation_bits: int | None = None
    clip: str = "none"
    split: str = "none"
    ratio: float = 0.0
    batch: int = BATCH


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """A measured case: top-1 and agreement with the float network's labels in percent; SQNR of the
    outputs in dB."""

    top1: float = math.nan
    agreement: float = math.nan
    sqnr_db: float | None = None  # no noise: infinite

    @property
    def case(self) -> Case:
        return Case(*(getattr(self, field.name) for field in dataclasses.fields(Case)))


def cases(network: str, quick: bool = False) -> Iterator[Case]:
    """All rows of a network."""
    pictures = QUICK_PICTURES if quick else PICTURES[network]
    yield Case(network, pictures)
    for setup, bits in BITS[network].items():
        more = (network, setup) == MORE
        for b in (4,) if quick else bits:
            base = Case(network, pictures, setup, b)
            yield base
            yield dataclasses.replace(base, clip=CLIP)
            # Rule "error" clips what it splits; in the paper's set-up there is nothing else.
            elsewhere = "none" if setup == "paper" else CLIP
            for ratio in MORE_RATIOS if more else RATIOS:
                yield dataclasses.replace(base, clip=elsewhere, split="error", ratio=ratio)
            if setup == "paper":
                yield from _other_rules(base, more)


def _other_rules(base: Case, more: bool) -> Iterator[Case]:
    for rule in ("count", "maximum"):
        for ratio in (0.01, 0.02, 0.05) if more else (0.02,):
            yield dataclasses.replace(base, split=rule, ratio=ratio)
        yield dataclasses.replace(base, split=rule, ratio=0.02, clip=CLIP)
    if more and base.activation_bits in ORACLE_BITS:
        for batch in ORACLE_BATCHES:
            yield dataclasses.replace(base, split="dynamic", batch=batch)
        for batch in ORACLE_BATCHES:
            yield dataclasses.replace(base, split="oracle", ratio=0.02, batch=batch)


def config(case: Case) -> ocs_tf.Config:
    """The options of a case."""
    options: dict[str, Any] = {
        "weight_bits": 8,
        "activation_bits": case.activation_bits,
        "first_activation_bits": "same",
        "last_activation_bits": "same",
        "intermediate_activation_bits": "same",
        "activation_clip": case.clip,
        "activation_expand_ratio": case.ratio,
        "calibration_samples": CALIBRATION,
    }
    if case.split not in ("none", "dynamic"):
        options["activation_split"] = case.split
    if case.setup == "paper":
        return ocs_tf.Config.paper(**options)
    if case.setup == "default, inputs":
        options["activation_scope"] = "inputs"
    return ocs_tf.Config(**options)


def convert(model: keras.Model, case: Case, calibration: np.ndarray) -> keras.Model:
    """The quantized model of a case."""
    if case.split != "dynamic":
        return ocs_tf.convert(
            model, config(case), representative_dataset=calibration, verbose=False
        )
    plan = ocs_tf.plan(model, config(case), representative_dataset=calibration, verbose=False)
    assert case.activation_bits is not None
    oracle = OracleGrid(case.activation_bits, 0, symmetric=True)
    plan = dataclasses.replace(plan, activations=dict.fromkeys(plan.activations, oracle))
    return ocs_tf.apply(model, plan, verbose=False)


class Scorer:
    """Measures cases of one network."""

    def __init__(self, zoo: Any, network: str, pictures: int) -> None:
        self.entry = zoo.load(network, limit=pictures)
        self.outputs = self._outputs(self.entry.model, BATCH)

    def measure(self, case: Case) -> Row:
        if case.activation_bits is None:
            return self._row(case, self.outputs)
        model = convert(self.entry.model, case, self.entry.calibration)
        row = self._row(case, self._outputs(model, case.batch))
        del model
        gc.collect()
        return row

    def _outputs(self, model: keras.Model, batch: int) -> np.ndarray:
        inputs = self.entry.inputs
        parts = [
            model.predict_on_batch(inputs[i : i + batch]) for i in range(0, len(inputs), batch)
        ]
        return np.concatenate(parts).reshape(len(inputs), -1).astype(np.float64)

    def _row(self, case: Case, outputs: np.ndarray) -> Row:
        labels = outputs.argmax(1)
        noise = np.square(outputs - self.outputs).sum()
        signal = np.square(self.outputs).sum()
        return Row(
            **dataclasses.asdict(case),
            top1=round(100 * float((labels == self.entry.targets).mean()), 2),
            agreement=round(100 * float((labels == self.outputs.argmax(1)).mean()), 2),
            sqnr_db=round(10 * math.log10(signal / noise), 2) if noise else None,
        )


def load_rows(path: pathlib.Path) -> dict[Case, Row]:
    """The rows of a file of results; none if there is no file."""
    if not path.exists():
        return {}
    return {row.case: row for row in (Row(**r) for r in json.loads(path.read_text())["rows"])}


def label(case: Case) -> str:
    """A case in words, but for network, set-up and bits."""
    where = " elsewhere" if case.split == "error" else ""
    clip = "" if case.clip == "none" else f" + {case.clip} clip{where}"
    if case.split == "none":
        return f"{case.clip} clip" if clip else "no clip"
    batch = f", batches of {case.batch}" if case.split in ("oracle", "dynamic") else ""
    ratio = f" r={case.ratio:g}" if case.ratio else ""
    name = {"dynamic": "range of each batch", "oracle": "oracle (simulation only)"}
    return f"{name.get(case.split, f'`{case.split}`')}{ratio}{clip}{batch}"


def to_markdown(rows: list[Row], about: dict[str, Any], command: str) -> str:
    """The results as a page, one table for each network and set-up."""
    versions = ", ".join(f"{key} {value}" for key, value in about.items() if value)
    text = [
        "# Split activations\n",
        f"Made by `{command}`. Machine: {versions}.\n",
        "Top-1 in percent; in brackets the agreement with the float network's labels in percent,"
        " and the SQNR of the outputs in dB. Weights in 8 bits, *r*: activation expand ratio. The"
        " oracle, and the range of each batch, look at the pictures that are scored, which no"
        " integer runtime could do; the others look at calibration data only.\n",
    ]
    scores = {(r.network, r.setup, label(r), r.activation_bits): r for r in rows}
    for network in dict.fromkeys(row.network for row in rows):
        (exact,) = (r for r in rows if r.network == network and r.activation_bits is None)
        for setup in dict.fromkeys(r.setup for r in rows if r.network == network):
            own = [r for r in rows if (r.network, r.setup) == (network, setup)]
            if setup == "float":
                continue
            bits = sorted({r.activation_bits for r in own if r.activation_bits}, reverse=True)
            lines = [
                [name, *(_cell(scores.get((network, setup, name, b))) for b in bits)]
                for name in dict.fromkeys(label(r) for r in own)
            ]
            text.append(f"## `{network}`, {setup}\n")
            text.append(f"{exact.pictures:,} pictures; float: {exact.top1:.1f}.\n")
            text.append(common.markdown_table(["activations", *(f"A{b}" for b in bits)], lines))
    return "\n".join(text)


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{row.top1:.1f} ({row.agreement:.1f}, {row.sqnr_db:.1f})"


def benchmark(
    folder: pathlib.Path,
    quick: bool = False,
    networks: Sequence[str] = tuple(PICTURES),
    resume: bool = True,
) -> None:
    """Measure what is missing, and write `activation_splitting.json` and `.md` to `folder`."""
    path = folder / f"activation_splitting{'_quick' if quick else ''}.json"
    rows = load_rows(path) if resume else {}
    zoo = common.load_zoo()
    about = common.machine()
    command = "python -m benchmarks.activation_splitting" + (" --quick" if quick else "")
    for network in networks:
        todo = [case for case in cases(network, quick) if case not in rows]
        scorer = Scorer(zoo, network, todo[0].pictures) if todo else None
        for case in tqdm(todo, network):
            assert scorer is not None
            rows[case] = scorer.measure(case)
            keras.backend.clear_session()
            kept = [dataclasses.asdict(row) for row in rows.values()]
            common.save_json(path, {"command": command, "machine": about, "rows": kept})
    found = [rows[case] for network in networks for case in cases(network, quick)]
    kept = [dataclasses.asdict(row) for row in found]
    common.save_json(path, {"command": command, "machine": about, "rows": kept})
    path.with_suffix(".md").write_text(to_markdown(found, about, command))


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "A few rows on few pictures, to see that it works.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    resume = flags.DEFINE_bool("resume", True, "Keep the rows that were measured before.")
    networks = flags.DEFINE_list("networks", list(PICTURES), "Networks of the zoo to measure.")
    app.run(
        lambda _: benchmark(pathlib.Path(folder.value), quick.value, networks.value, resume.value)
    )


if __name__ == "__main__":
    main()
