"""Time and memory of `ocs_tf.convert` on large networks, weights only.

    python -m benchmarks.memory [--quick] [--output_dir=DIR]

Networks of keras.applications with random weights, each in a process of its own. Memory is what the
process grows by beyond the model, at most, while it converts: the quantized model included. It is
to stay below the size of the model and the work on its largest kernel: so that the whole is less
than twice the model and one layer's work. Time, of all threads, is to be linear in the number of
parameters. Networks that were measured before are kept. Writes memory.json and memory.md. Some 20
minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
from absl import app, flags
from tqdm import tqdm

from benchmarks import common

NETWORKS = ("DenseNet201", "ResNet152", "EfficientNetV2L", "VGG19", "ConvNeXtLarge")
QUICK = ("MobileNetV2", "ResNet50")
# Copies of one kernel that are at work at a time: the float one, folded, and what is made of it,
# in double precision at times.
WORK = 8
COMMAND = "python -m benchmarks.memory"
_WORK = "import sys; from benchmarks import memory; memory.work(sys.argv[1])"
_INTERVAL = 0.005  # seconds between looks at the memory


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, by its name in `keras.applications`."""

    network: str


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """What converting it took.

    Attributes:
        parameters: of the float model.
        largest: parameters of the largest kernel.
        seconds: of CPU time that `convert` takes.
        model: bytes of the float model's parameters.
        before: resident memory of the process that has built the model, bytes.
        peak: the largest while it converts, bytes.
    """

    parameters: int
    largest: int
    seconds: float
    model: int
    before: int
    peak: int

    @property
    def limit(self) -> int:
        """What the process may grow by."""
        return self.model + WORK * 4 * self.largest


def resident() -> int:
    """Bytes of memory that this process has."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


class Peak:
    """The largest resident memory within a `with` block, looked at by a thread."""

    def __enter__(self) -> Peak:
        self.bytes = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            self.bytes = max(self.bytes, resident())

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()


def work(name: str) -> None:
    """Measure one network, and print its row as JSON."""
    import keras

    import ocs_tf

    # What is loaded, and allocated once, is not the model's.
    small = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    ocs_tf.convert(small, verbose=False)
    model = getattr(keras.applications, name)(weights=None)
    parameters = model.count_params()
    largest = max(int(np.prod(weight.shape)) for weight in model.weights)
    before = resident()
    start = time.process_time()
    with Peak() as peak:
        quantized = ocs_tf.convert(model, verbose=False)
    seconds = time.process_time() - start
    assert quantized.count_params()
    row = Row(name, parameters, largest, seconds, 4 * parameters, before, peak.bytes)
    print(json.dumps(dataclasses.asdict(row)))


def measured_apart(name: str) -> Row:
    """`work` in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-c", _WORK, name]
    done = subprocess.run(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def linear_fit(rows: list[Row]) -> tuple[float, float, float]:
    """Seconds in all cases and per million parameters, and how much of the variance is that."""
    millions = np.array([row.parameters / 1e6 for row in rows])
    seconds = np.array([row.seconds for row in rows])
    slope, offset = np.polyfit(millions, seconds, 1)
    left = seconds - offset - slope * millions
    return float(offset), float(slope), float(1 - left.var() / seconds.var())


def markdown(rows: list[Row]) -> str:
    """The table, with the command that makes it."""
    headers = ["network", "parameters, M", "model, MiB", "grows by, MiB", "x model", "limit, MiB"]
    headers += ["within", "seconds", "s per M parameters"]
    table = [
        [
            row.network,
            f"{row.parameters / 1e6:.1f}",
            f"{row.model / 2**20:,.0f}",
            f"{(row.peak - row.before) / 2**20:,.0f}",
            f"{(row.peak - row.before) / row.model:.2f}",
            f"{row.limit / 2**20:,.0f}",
            "yes" if row.peak - row.before <= row.limit else "NO",
            f"{row.seconds:.1f}",
            f"{row.seconds / row.parameters * 1e6:.2f}",
        ]
        for row in rows
    ]
    text = (
        "# Time and memory of convert, weights only\n\n"
        f"`{COMMAND}`: the default set-up, random weights, a process for each network."
        " *Seconds*: CPU time. *Grows by*: the largest memory during `convert`, the quantized model"
        " included, beyond that of the process with the float model. *Limit*: the size of the model"
        f" and {WORK} copies of its largest kernel.\n\n"
        f"{common.markdown_table(headers, table)}"
    )
    if len(rows) > 2:
        offset, slope, share = linear_fit(rows)
        text += (
            f"\nSeconds = {offset:.1f} + {slope:.2f} per million parameters, which explains"
            f" {share:.0%} of the variance between networks.\n"
        )
    return text


def benchmark(folder: str | pathlib.Path, names: tuple[str, ...] = NETWORKS) -> list[Row]:
    """Measure the networks, and write the results to `folder`."""
    folder = pathlib.Path(folder)
    results = common.Results(folder / "memory.json", Case, Row, machine=common.machine())
    for name in tqdm(names):
        if Case(name) not in results:
            results.add(measured_apart(name))
            common.save_text(folder / "memory.md", markdown(list(results)))
    return list(results)


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, f"Only {' and '.join(QUICK)}.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    app.run(lambda _: print(markdown(benchmark(folder.value, QUICK if quick.value else NETWORKS))))


if __name__ == "__main__":
    main()
