"""What running every file costs, and whether correct data are warned of.

    python -m benchmarks.verification [--quick] [--zoo=DIR] [--output_dir=DIR]

The zoo's networks, W8A8, calibrated on their own data: CPU seconds of an export that runs its file
and of one that does not, and the warnings of conversion and export. Writes verification.json and
verification.md. Some five minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
import warnings

import numpy as np
from absl import flags

import ocs_tf
from benchmarks import common

COMMAND = "python -m benchmarks.verification"
TARGETS = ("int8", "packed", "float")
# It reads texts of any length, which int8 files cannot.
ANY_LENGTH = ("charlstm_shakespeare",)
QUICK = "resnet20_cifar10"
CALIBRATION = 100
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One network, one kind of file."""

    network: str
    target: str


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """Medians.

    Attributes:
        with_run: seconds of `export_tflite`.
        without: of `export_tflite(verify=False)`.
        sqnr_db: between the outputs of file and Keras model, of the one that is furthest away.
        warned: texts of warnings, those of the conversion included.
    """

    with_run: float
    without: float
    sqnr_db: float
    warned: list[str]


def measure(network: str, targets: tuple[str, ...], zoo: str | None = None) -> list[Row]:
    """One row for each target."""
    entry = common.load_zoo(zoo).load(network, limit=1)
    rows = []
    with warnings.catch_warnings(record=True) as heard, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always", UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        model = ocs_tf.convert(
            entry.model, representative_dataset=entry.calibration[:CALIBRATION], verbose=False
        )
        converted = [str(warning.message) for warning in heard]
        for target in targets:
            heard.clear()
            path = pathlib.Path(folder) / "model.tflite"

            def export(verify: bool, target: str = target, path: pathlib.Path = path):
                return ocs_tf.export_tflite(
                    model, path, target=target, overwrite=True, verify=verify
                )

            closeness = export(True).closeness
            warned = converted + [str(warning.message) for warning in heard]
            both = {"with": lambda: export(True), "without": lambda: export(False)}
            seconds = common.in_turns(both, ROUNDS, clock=time.process_time)
            with_run, without = (float(np.median(seconds[key])) for key in ("with", "without"))
            sqnr_db = min(close.sqnr_db for close in closeness)
            rows.append(Row(network, target, with_run, without, sqnr_db, sorted(set(warned))))
    return rows


def markdown(rows: list[Row]) -> str:
    """The table, with the command that makes it."""
    headers = ["network", "target", "export, s", "of which the run, s", "%", "SQNR/dB", "warnings"]
    table = [
        [
            f"`{row.network}`",
            row.target,
            f"{row.with_run:.2f}",
            f"{row.with_run - row.without:.2f}",
            f"{100 * (row.with_run / row.without - 1):.0f}",
            f"{row.sqnr_db:.1f}",
            "; ".join(row.warned) or "none",
        ]
        for row in rows
    ]
    return (
        "# What running every file costs\n\n"
        f"`{COMMAND}`: W8A8, calibrated on {CALIBRATION} samples; medians of {ROUNDS} exports, in"
        " CPU seconds of all threads."
        " *SQNR*: between the outputs of file and Keras model, three samples.\n\n"
        f"{common.markdown_table(headers, table)}"
    )


def benchmark(folder: str | pathlib.Path, zoo: str | None = None, quick: bool = False) -> list[Row]:
    """Measure, and write the results to `folder`; what was measured before is kept."""
    folder = pathlib.Path(folder)
    name = "verification_quick" if quick else "verification"
    results = common.Results(folder / f"{name}.json", Case, Row, machine=common.machine())
    for network in [QUICK] if quick else common.load_zoo(zoo).names():
        targets = TARGETS[1:] if network in ANY_LENGTH else TARGETS
        if any(Case(network, target) not in results for target in targets):
            for row in measure(network, targets, zoo):
                results.add(row)
                print(row, flush=True)
    common.save_text(folder / f"{name}.md", markdown(list(results)))
    return list(results)


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, f"Only {QUICK}.")
    zoo = flags.DEFINE_string("zoo", None, "Folder of the zoo.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    common.run(lambda: print(markdown(benchmark(folder.value, zoo.value, quick.value))))


if __name__ == "__main__":
    main()
