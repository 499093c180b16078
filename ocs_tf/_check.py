"""`check`: what a compiler for an accelerator makes of a `.tflite` file."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from typing import Any, Literal, get_args

from ocs_tf.numerics.checks import check_choice
from ocs_tf.paths import checked_path, existing_file
from ocs_tf.writing import write

# Those that Vela 5.2.0 compiles for.
Accelerator = Literal[
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
]
ACCELERATORS: tuple[str, ...] = get_args(Accelerator)

_SECONDS = 3600
_SLOWEST = 5  # operators in the text
_REMEDY = (
    "Vela crashes on INT4 kernels, for one: export with target='int8', or compile the file by Vela"
    " itself to see more."
)


class CompilerError(RuntimeError):
    """The compiler for an accelerator is missing, crashed, or refuses the file."""


@dataclasses.dataclass(frozen=True)
class CompiledOperator:
    """One operator of a compiled file.

    Attributes:
        op: the compiler's name for it, for example `"Conv2D"`.
        made_of: the operator of the file that it was made of.
        on_npu: whether the NPU runs it, or the CPU.
        cycles: of the NPU, as the compiler estimates them; 0 on the CPU.
        name: of the tensor that it makes.
    """

    op: str
    made_of: str
    on_npu: bool
    cycles: int
    name: str


@dataclasses.dataclass(frozen=True)
class AcceleratorReport:
    """What Arm's compiler Vela says of a file: `print` it, or see `to_dict` and `save`.

    Attributes:
        path: of the file.
        accelerator: that it was compiled for.
        system: the clock, bandwidths and memories that Vela takes for granted.
        cycles: of one run on the NPU; operators on the CPU are not in it.
        seconds: of one run on the NPU.
        sram_bytes: of the memory for activations.
        macs: multiplications and additions on the NPU.
        operators: in the order of execution.
    """

    path: pathlib.Path
    accelerator: str
    system: str
    cycles: int
    seconds: float
    sram_bytes: int
    macs: int
    operators: tuple[CompiledOperator, ...]

    @property
    def on_npu(self) -> int:
        """How many operators run on the NPU."""
        return sum(operator.on_npu for operator in self.operators)

    @property
    def on_cpu(self) -> int:
        """How many operators run on the CPU."""
        return len(self.operators) - self.on_npu

    def cycles_by_operator(self) -> dict[str, int]:
        """Cycles of all operators of a kind, the most first."""
        cycles: Counter[str] = Counter()
        for operator in self.operators:
            cycles[operator.op] += operator.cycles
        return {op: number for op, number in cycles.most_common() if number}

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "operators": [dataclasses.asdict(operator) for operator in self.operators],
            "on_npu": self.on_npu,
            "on_cpu": self.on_cpu,
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write `to_json` to a `.json` file.

        Raises:
            ValueError: `path` does not end in `.json`.
            FileExistsError: it exists and `overwrite` is False.
            OSError: it cannot be written.
        """
        if checked_path(path).suffix.lower() != ".json":
            raise ValueError(f"`path` (={str(path)!r}) must end in .json.")
        write(path, f"{self.to_json()}\n", overwrite=overwrite)

    def __str__(self) -> str:
        lines = [
            f"{self.path} on {self.accelerator} ({self.system}), as Vela estimates:",
            f"  {self.on_npu} operators on the NPU, {self.on_cpu} on the CPU",
            f"  {self.cycles:,} cycles ({1000 * self.seconds:.3g} ms), {self.macs:,}"
            f" multiplications, {self.sram_bytes:,} bytes of SRAM",
        ]
        for operator in (operator for operator in self.operators if not operator.on_npu):
            lines.append(f"  CPU: {operator.made_of} {operator.name}")
        slowest = list(self.cycles_by_operator().items())[:_SLOWEST]
        if slowest:
            lines.append(f"  cycles: {', '.join(f'{op} {n:,}' for op, n in slowest)}")
        return "\n".join(lines)


def check(
    path: str | os.PathLike[str], accelerator: Accelerator = "ethos-u55-128"
) -> AcceleratorReport:
    """Compile a `.tflite` file for an NPU by Arm's compiler Vela, and report what it says.

    Needs the package `ethos-u-vela`: `pip install "ocs_tf[ethos-u]"`. Vela runs in a process of its
    own, with its default system configuration; what it writes is thrown away. Numbers of cycles are
    its estimates.

    Arguments:
        path: of the file.
        accelerator: one of Ethos-U55, U65 and U85, with the number of its MAC units.

    Raises:
        ValueError: `accelerator` is none of Vela's, or `path` is none.
        FileNotFoundError: there is no such file.
        CompilerError: Vela is not installed, crashed, or refuses the file.
    """
    check_choice("accelerator", accelerator, ACCELERATORS)
    path = existing_file(path)
    if importlib.util.find_spec("ethosu") is None:
        raise CompilerError('Vela is not installed: pip install "ocs_tf[ethos-u]"')
    with tempfile.TemporaryDirectory() as folder:
        _compile(path, accelerator, folder)
        (summary,) = _rows(folder, "*_summary_*.csv")
        return AcceleratorReport(
            path,
            accelerator,
            f"{summary['system_config']}, {summary['memory_mode']}",
            round(float(summary["cycles_total"])),
            float(summary["inference_time"]),
            round(1024 * float(summary["sram_memory_used"])),
            int(summary["nn_macs"]),
            tuple(map(_operator, _rows(folder, "*_per-layer.csv"))),
        )


def _compile(path: pathlib.Path, accelerator: str, folder: str) -> None:
    command = [sys.executable, "-m", "ethosu.vela", os.fspath(path.resolve())]
    command += ["--accelerator-config", accelerator, "--verbose-performance"]
    command += ["--output-dir", folder]
    try:
        process = subprocess.run(
            command,
            cwd=folder,  # it must not find a module of the user's
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise CompilerError(f"Vela did not compile {path} within {_SECONDS} s.") from error
    if process.returncode:
        raise CompilerError(f"{_failure(path, process)} {_REMEDY}")


def _failure(path: pathlib.Path, process: subprocess.CompletedProcess[str]) -> str:
    """How Vela failed, in a sentence."""
    code = process.returncode
    # A shell in between tells of a signal as 128 and its number.
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"Vela crashed on {path} ({signal.Signals(number).name})."
    said = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
    errors = [line for line in said if "error" in line.lower()] or said or ["no message"]
    return f"Vela refuses {path}: {errors[-1].strip().rstrip('.')}."


def _rows(folder: str, pattern: str) -> list[dict[str, str]]:
    """The rows of the only file of that name.

    Raises:
        CompilerError: there is none, or more than one.
    """
    found = sorted(pathlib.Path(folder).glob(pattern))
    if len(found) != 1:
        raise CompilerError(
            f"Vela wrote {len(found)} files {pattern}, not one; its version should be 5.2:"
            ' pip install "ethos-u-vela>=5.2,<6"'
        )
    with found[0].open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _operator(row: dict[str, str]) -> CompiledOperator:
    return CompiledOperator(
        row["NNG Operator"],
        row["Original Operator"],
        row["Target"] == "NPU",
        round(float(row["Op Cycles"])),
        row["Name"],
    )
