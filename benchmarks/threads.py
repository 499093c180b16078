"""Exports in several threads at once: what the process has and keeps afterwards.

    python -m benchmarks.threads [--quick] [--exports=N] [--threads=N] [--output_dir=DIR]

A small network goes to files of three targets, again and again. Each file is to have the bytes
that it has in one thread; stderr, stdout, logging, warnings and random numbers are to be
as before; file descriptors, threads and memory are not to grow. Memory is the process's,
after each tenth of the exports. Writes threads.json and threads.md. Some 10 minutes on two cores.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import logging
import os
import pathlib
import random
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

import keras
import numpy as np
from absl import flags

import ocs_tf
from benchmarks import common
from benchmarks.memory import resident

TARGETS = ("int8", "packed", "float")
QUICK = 40
COMMAND = "python -m benchmarks.threads"
_TENTHS = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """So many exports in so many threads."""

    exports: int
    threads: int


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """What came of them.

    Attributes:
        seconds: in all, by the clock.
        failed: exports that raised an error.
        different: files whose bytes are not those of one thread.
        changed: what of the process's state is not as before.
        descriptors: open files before and after.
        running: threads of Python before and after, and of the process in all.
        memory: bytes of the process, before and after each tenth of the exports.
    """

    seconds: float
    failed: int
    different: int
    changed: list[str]
    descriptors: list[int]
    running: list[int]
    memory: list[int]


def network() -> keras.Model:
    """Two dense layers with 4-bit kernels, activations of 8 bits."""
    inputs = keras.Input((6,), name="x")
    x = keras.layers.Dense(8, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    data = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    return ocs_tf.convert(model, weight_bits=4, representative_dataset=data, verbose=False)


def state() -> dict[str, Any]:
    """What exports must leave as it is, by name."""
    return {
        "file descriptor 2": os.readlink("/proc/self/fd/2"),
        "sys.stderr": sys.stderr,
        "sys.stdout": sys.stdout,
        "logging": logging.root.manager.disable,
        "warnings": list(warnings.filters),
        "random": random.getstate(),
        "numpy.random": str(np.random.get_state()),
    }


def measure(case: Case, folder: pathlib.Path) -> Row:
    """Do the exports, into `folder`."""
    model = network()

    def export(target: str, name: str) -> bytes:
        path = folder / f"{name}.tflite"
        ocs_tf.export_tflite(model, path, target=target, overwrite=True)
        return path.read_bytes()

    expected = {target: export(target, "alone") for target in TARGETS}
    failed: list[str] = []
    different: list[int] = []

    def check(number: int) -> None:
        target = TARGETS[number % len(TARGETS)]
        try:
            if export(target, f"file_{number}") != expected[target]:
                different.append(number)
        except Exception as error:
            failed.append(f"{number}: {error}")

    before, descriptors, running = state(), [_descriptors()], _running()
    memory = [resident()]
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(case.threads) as pool:
        for numbers in np.array_split(np.arange(case.exports), _TENTHS):
            list(pool.map(check, numbers.tolist()))
            gc.collect()
            memory.append(resident())
            print(f"{numbers[-1] + 1} exports, {memory[-1]:,} bytes", flush=True)
    seconds = time.perf_counter() - start
    after = state()
    for error in failed:
        print(error)
    return Row(
        case.exports,
        case.threads,
        seconds,
        len(failed),
        len(different),
        [name for name in before if before[name] != after[name]],
        [*descriptors, _descriptors()],
        [*running, *_running()],
        memory,
    )


def _descriptors() -> int:
    """How many files the process has open."""
    return len(os.listdir("/proc/self/fd"))


def _running() -> list[int]:
    """How many threads of Python there are, and how many of the process in all."""
    return [threading.active_count(), len(os.listdir("/proc/self/task"))]


def markdown(rows: list[Row]) -> str:
    """The table, with the command that makes it."""
    headers = ["exports", "threads", "seconds", "failed", "other bytes", "state changed"]
    headers += ["open files", "threads of Python", "threads in all", "memory, MiB"]
    table = [
        [
            row.exports,
            row.threads,
            f"{row.seconds:.0f}",
            row.failed,
            row.different,
            ", ".join(row.changed) or "nothing",
            "{} to {}".format(*row.descriptors),
            f"{row.running[0]} to {row.running[2]}",
            f"{row.running[1]} to {row.running[3]}",
            " ".join(f"{size / 2**20:.0f}" for size in row.memory),
        ]
        for row in rows
    ]
    return (
        "# Exports in threads\n\n"
        f"`{COMMAND}`: a small network, targets {', '.join(TARGETS)}, in turns. *Other bytes*:"
        " files that are not those of one thread. *State*: where file descriptor 2 leads,"
        " `sys.stderr`, `sys.stdout`, logging, filters of warnings, and random numbers of Python"
        " and NumPy. *Memory*: of the process, before and after each tenth of the exports.\n\n"
        f"{common.markdown_table(headers, table)}"
    )


def benchmark(folder: str | pathlib.Path, exports: int, threads: int) -> list[Row]:
    """Measure, and write the results to `folder`; what was measured before is kept."""
    folder = pathlib.Path(folder)
    results = common.Results(folder / "threads.json", Case, Row, machine=common.machine())
    case = Case(exports, threads)
    if case not in results:
        with tempfile.TemporaryDirectory() as scratch:
            results.add(measure(case, pathlib.Path(scratch)))
    common.save_text(folder / "threads.md", markdown(list(results)))
    return list(results)


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, f"Only {QUICK} exports.")
    exports = flags.DEFINE_integer("exports", 1000, "How many files to write.", lower_bound=10)
    threads = flags.DEFINE_integer("threads", 8, "In how many threads.", lower_bound=1)
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")

    def action() -> None:
        count = QUICK if quick.value else exports.value
        print(markdown(benchmark(folder.value, count, threads.value)))

    common.run(action)


if __name__ == "__main__":
    main()
