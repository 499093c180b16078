"""What the benchmarks share: results as JSON and Markdown, and the machine they ran on."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import numpy as np
from absl import app
from numpy.typing import NDArray
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("numpy", "scipy", "keras", "tensorflow", "ai-edge-litert", "ai-edge-quantizer")

Case = TypeVar("Case")
Row = TypeVar("Row")


class Results(Generic[Case, Row]):
    """Measured rows, kept in a JSON file that is written anew with each of them.

    A case is what was measured, a frozen dataclass; a row, which inherits from it, adds what came
    out.
    """

    def __init__(
        self, path: Path, case: type[Case], row: type[Row], resume: bool = True, **head: Any
    ) -> None:
        """Start with the rows that are in `path` already, if `resume`.

        Arguments:
            path: of the JSON file.
            case, row: their classes.
            resume: whether to keep what was measured before.
            **head: values to write in front of the rows.
        """
        self.path = path
        self._names = [field.name for field in dataclasses.fields(case)]  # type: ignore[arg-type]
        self._make_case = case
        self._head = head
        rows = json.loads(path.read_text())["rows"] if resume and path.exists() else []
        self._rows = {self.case_of(found): found for found in (row(**values) for values in rows)}

    def __contains__(self, case: Case) -> bool:
        return case in self._rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __getitem__(self, case: Case) -> Row:
        return self._rows[case]

    def get(self, case: Case) -> Row | None:
        return self._rows.get(case)

    def case_of(self, row: Row) -> Case:
        """The case that a row belongs to."""
        return self._make_case(*(getattr(row, name) for name in self._names))

    def missing(self, cases: Iterable[Case]) -> list[Case]:
        """Those that are not measured yet, each once."""
        return [case for case in dict.fromkeys(cases) if case not in self]

    def fill(self, cases: Iterable[Case], measure: Callable[[Case], Row], title: str = "") -> int:
        """Measure those cases that are not measured yet; returns how many there were.

        Arguments:
            title: of a progress bar. Without one, rows are printed.
        """
        missing = self.missing(cases)
        for case in tqdm(missing, title, unit="row", disable=not (title and missing)):
            self.add(measure(case))
            if not title:
                print(self[case], flush=True)
        return len(missing)

    def add(self, row: Row) -> None:
        self._rows[self.case_of(row)] = row
        head = "".join(f"{json.dumps(key)}: {json.dumps(self._head[key])},\n" for key in self._head)
        lines = ",\n".join(json.dumps(dataclasses.asdict(found)) for found in self)  # type: ignore[call-overload]
        save_text(self.path, f'{{{head}"rows": [\n{lines}\n]}}\n')


def save_text(path: Path, text: str) -> None:
    """Write a file in one step, so that an interruption leaves the old or the new one."""
    from ocs_tf.writing import write  # which imports TensorFlow

    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, text)


def save_json(path: str | Path, payload: Any) -> None:
    """Write `payload` to `path` as indented JSON, making the folder where it is missing."""
    save_text(Path(path), json.dumps(payload, indent=1) + "\n")


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; cells are shown by `str`."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def run(action: Callable[[], object]) -> None:
    """Read the command's flags, and do it; an argument that is no flag is refused."""

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}")
        action()

    app.run(main)


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """CPU model, cores this process may use, and versions; no names and no paths.

    Arguments:
        packages: whose versions matter besides those that all benchmarks use.
    """
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: _version(name) for name in (*_PACKAGES, *packages)},
    }


def load_zoo(folder: str | Path | None = None) -> ModuleType:
    """The module `zoo.py` of the zoo in `folder`, else in $OCS_TF_ZOO, else in `../shared/zoo`.

    Raises:
        FileNotFoundError: there is no zoo.
    """
    folder = folder or os.environ.get("OCS_TF_ZOO") or ROOT.parent / "shared" / "zoo"
    path = Path(folder).resolve() / "zoo.py"
    if not path.exists():
        raise FileNotFoundError(f"no zoo at {path.parent}; set OCS_TF_ZOO or give --zoo.")
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_turns(
    actions: Mapping[str, Callable[[], Any]],
    rounds: int,
    least: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each action in each round; the order changes from round to round.

    What takes less than `least` seconds is repeated for as long. What an action returns is let go
    of outside of the time that is measured, but for repetitions. `time.process_time` as `clock`
    counts what all threads of this process compute, whatever else the machine does.
    """
    repeats = {}
    for name, action in actions.items():
        action()
        repeats[name] = max(1, int(least / _seconds(action, 1, clock)))
    order = np.random.default_rng(0)
    seconds = {name: np.zeros(rounds) for name in actions}
    for i in range(rounds):
        for name in order.permutation(list(actions)):
            gc.collect(0)
            seconds[name][i] = _seconds(actions[name], repeats[name], clock) / repeats[name]
    return seconds


def _seconds(action: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        result = action()
    seconds = clock() - start
    del result
    return seconds


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
