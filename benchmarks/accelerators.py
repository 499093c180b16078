"""Cycles of int8 files on an Ethos-U NPU, with and without split channels, as Arm's Vela estimates.

    python -m benchmarks.accelerators [--quick] [--zoo=DIR] [--output_dir=DIR]

The convolutional networks of the zoo with weights of 8 and 4 bits, rounded to nearest; and networks
of `keras.applications` with random weights, of 8 bits without splits. Needs
`pip install "ocs_tf[ethos-u]"`. Writes accelerators.json and accelerators.md. Some 30 minutes on
two cores.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from absl import flags

import ocs_tf
from benchmarks import applications, common

COMMAND = "python -m benchmarks.accelerators"
NETWORKS = (
    "resnet20_cifar10",
    "densenet40_cifar10",
    "mobilenet_v1_075_imagenet",
    "tinydarknet_imagenet",
)
QUICK = NETWORKS[0]
# All but the largest ones.
APPLICATIONS = tuple(
    name
    for name in applications.SMALL
    if name not in ("VGG19", "ConvNeXtTiny", "InceptionResNetV2")
)
ACCELERATORS = ("ethos-u55-128", "ethos-u85-256")
BITS = (8, 4)
SPLITS = ((0.0, 1), (0.05, 1), (0.05, 16))  # expand ratio and channel multiple
CALIBRATION = 32
OTHERS = (
    "Random weights, the smallest input that the network takes. What the CPU runs is computed in"
    " float32 by the file, too, or is an operator that the NPU lacks."
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One file, one accelerator.

    Attributes:
        network: of the zoo.
        bits: of all kernels but those of the first and last layer.
        ratio: `expand_ratio`.
        multiple: `channel_multiple`.
        accelerator: as of `ocs_tf.check`.
    """

    network: str
    bits: int
    ratio: float
    multiple: int
    accelerator: str


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """What Vela says.

    Attributes:
        copies: channels that are split, in all layers.
        on_npu, on_cpu: operators.
        cycles: of one sample.
        macs: multiplications.
        sram_bytes: memory for activations.
        copy_cycles: of them those that move data.
        size: bytes of the `.tflite` file.
        error: how Vela failed; no text if it did not.
    """

    copies: int
    on_npu: int
    on_cpu: int
    cycles: int
    macs: int
    sram_bytes: int
    copy_cycles: int
    size: int
    error: str = ""


def cases(quick: bool = False) -> Iterator[Case]:
    """All of them, those of one file one after the other."""
    for network in [QUICK] if quick else NETWORKS:
        for bits in BITS[:1] if quick else BITS:
            for split in SPLITS:
                for accelerator in ACCELERATORS[:1] if quick else ACCELERATORS:
                    yield Case(network, bits, *split, accelerator)
    for network in [] if quick else APPLICATIONS:
        yield Case(network, 8, *SPLITS[0], ACCELERATORS[0])


class Files:
    """The file of a case; the last one is kept for the next accelerator."""

    def __init__(self, folder: str, zoo: str | None = None) -> None:
        self._folder = pathlib.Path(folder)
        self._zoo = common.load_zoo(zoo)
        self._entries: dict[str, tuple[keras.Model, np.ndarray]] = {}
        self._last: tuple[Any, Any] = (None, None)

    def measure(self, case: Case) -> Row:
        """Convert, export and compile."""
        path, copies = self._file(case)
        size = path.stat().st_size
        try:
            report = ocs_tf.check(path, case.accelerator)
        except ocs_tf.CompilerError as error:
            known = {**dataclasses.asdict(case), "copies": copies, "size": size}
            unknown = ("on_npu", "on_cpu", "cycles", "macs", "sram_bytes", "copy_cycles")
            return Row(**known, **dict.fromkeys(unknown, 0), error=str(error))
        return Row(
            **dataclasses.asdict(case),
            copies=copies,
            on_npu=report.on_npu,
            on_cpu=report.on_cpu,
            cycles=report.cycles,
            macs=report.macs,
            sram_bytes=report.sram_bytes,
            copy_cycles=report.cycles_by_operator().get("MemoryCopy", 0),
            size=size,
        )

    def _file(self, case: Case) -> tuple[pathlib.Path, int]:
        key = dataclasses.replace(case, accelerator="")
        if self._last[0] != key:
            model, data = self._loaded(case.network)
            model = ocs_tf.convert(
                model,
                weight_bits=case.bits,
                expand_ratio=case.ratio,
                channel_multiple=case.multiple,
                rounding="nearest",
                bias_correction=False,
                representative_dataset=data,
                verbose=False,
            )
            copies = sum(len(layer.copies) for layer in ocs_tf.report(model).layers)
            path = self._folder / "model.tflite"
            ocs_tf.export_tflite(model, path, representative_dataset=data, overwrite=True)
            self._last = key, (path, copies)
        return self._last[1]

    def _loaded(self, network: str) -> tuple[keras.Model, np.ndarray]:
        """A network and its calibration data; the last one is kept."""
        if network not in self._entries:
            if network in NETWORKS:
                entry = self._zoo.load(network, limit=1)
                found = entry.model, entry.calibration[:CALIBRATION]
            else:
                keras.utils.clear_session()
                model = applications.build(network)
                found = model, applications.pictures(model, CALIBRATION, seed=3)
            self._entries = {network: found}
        return self._entries[network]


def markdown(rows: list[Row]) -> str:
    """The tables, one for each accelerator."""
    text = (
        "# Cycles on Ethos-U\n\n"
        f"`{COMMAND}`: int8 files compiled by Arm's Vela with its default system configuration, one"
        " sample. Kernels of the first and last layer have 8 bits. *Copies*: split channels of all"
        " layers. *Relative*: cycles against those of `r` = 0 at the same bits. *Moving data*:"
        " cycles of copies and paddings.\n"
    )
    for accelerator in dict.fromkeys(row.accelerator for row in rows):
        chosen = [r for r in rows if r.accelerator == accelerator and r.network in NETWORKS]
        text += f"\n## {accelerator}\n\n{table(chosen)}"
    others = [row for row in rows if row.network not in NETWORKS]
    if others:
        text += f"\n## keras.applications on {others[0].accelerator}\n\n{OTHERS}\n\n{table(others)}"
        text += "".join(f"\n- `{row.network}`: {row.error}\n" for row in others if row.error)
    return text


def table(rows: list[Row]) -> str:
    """The rows of one accelerator."""
    headers = ["network", "bits", "`r`", "`channel_multiple`", "copies", "on NPU / CPU", "cycles"]
    headers += ["relative", "moving data", "SRAM, KiB", "file, MB"]
    whole = {(row.network, row.bits): row.cycles for row in rows if not row.ratio}
    return common.markdown_table(
        headers,
        [
            [
                f"`{row.network}`",
                f"W{row.bits}",
                row.ratio,
                row.multiple,
                row.copies,
                "failed" if row.error else f"{row.on_npu} / {row.on_cpu}",
                f"{row.cycles:,}",
                f"{row.cycles / whole[row.network, row.bits]:.2f}"
                if whole.get((row.network, row.bits))
                else "",
                f"{row.copy_cycles:,}",
                f"{row.sram_bytes / 1024:.1f}",
                f"{row.size / 1e6:.2f}",
            ]
            for row in rows
        ],
    )


def benchmark(folder: str | pathlib.Path, zoo: str | None = None, quick: bool = False) -> list[Row]:
    """Measure, and write the results to `folder`; what was measured before is kept."""
    folder = pathlib.Path(folder)
    name = "accelerators_quick" if quick else "accelerators"
    versions = common.machine(("ethos-u-vela",))
    results = common.Results(folder / f"{name}.json", Case, Row, machine=versions)
    with tempfile.TemporaryDirectory() as place:
        if results.missing(cases(quick)):
            results.fill(cases(quick), Files(place, zoo).measure)
    common.save_text(folder / f"{name}.md", markdown(list(results)))
    return list(results)


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, f"Only {QUICK} at 8 bits, on one accelerator.")
    zoo = flags.DEFINE_string("zoo", None, "Folder of the zoo.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    common.run(lambda: print(markdown(benchmark(folder.value, zoo.value, quick.value))))


if __name__ == "__main__":
    main()
