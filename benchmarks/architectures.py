"""Small networks of eighty structures (benchmarks/networks): converted, saved, exported, compared.

    python -m benchmarks.architectures [--quick] [--only=NAME,...] [--output_dir=DIR]

Writes architectures.json and architectures.md. Some twenty minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from absl import flags

from benchmarks import common, steps
from benchmarks.networks import classifiers, dense_pictures, registry, sequences, tables

COMMAND = "python -m benchmarks.architectures"
QUICK = "darknet", "tabular"
SAMPLES = 32
_MODULES = (classifiers, dense_pictures, sequences, tables)  # each registers its networks


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, by its name."""

    network: str


@dataclasses.dataclass(frozen=True)
class Row(steps.Steps, Case):
    """What came out of each step."""


def measure(name: str) -> Row:
    """All steps for one network."""
    model = registry.made(name)
    x = registry.samples(model, SAMPLES)
    return Row(name, **dataclasses.asdict(steps.measured(model, x)))


def markdown(rows: Sequence[Row]) -> str:
    """The table, with the command that makes it."""
    return (
        "# Networks of many structures\n\n"
        f"`{COMMAND}`: networks of `benchmarks/networks`, with random weights and inputs."
        f" {steps.LEGEND}\n\n"
        f"{steps.table('network', [(row.network, row) for row in rows])}"
    )


def benchmark(
    folder: str | pathlib.Path, quick: bool = False, only: Sequence[str] = ()
) -> list[Row]:
    """Measure, and write the results to `folder`; what was measured before is kept."""
    folder = pathlib.Path(folder)
    stem = "architectures_quick" if quick else "architectures"
    results = common.Results(folder / f"{stem}.json", Case, Row, machine=common.machine())
    names = only or (QUICK if quick else registry.NETWORKS)
    results.fill(map(Case, names), lambda case: measure(case.network))
    common.save_text(folder / f"{stem}.md", markdown(list(results)))
    return list(results)


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, f"Only {' and '.join(QUICK)}.")
    only = flags.DEFINE_list("only", [], "Names of networks.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    common.run(lambda: print(markdown(benchmark(folder.value, quick.value, only.value))))


if __name__ == "__main__":
    main()
