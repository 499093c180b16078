"""What files of each kind cost at run time: latency of one sample, loading, memory, size.

    python -m benchmarks.latency [--quick] [--output_dir FOLDER]

The zoo's MobileNet and ResNet-20 (see `benchmarks.common`), and one large dense layer, in LiteRT.
Latencies are medians of runs in turns: each round runs every file once, in an order that changes.
Ratios to the float file are medians of the ratios within rounds. Memory is what a process of its
own grows by. Writes latency.json, latency.md and latency.png. Some 5 minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import matplotlib as mpl
import numpy as np
from absl import app, flags
from tqdm import tqdm

import ocs_tf
from benchmarks import common
from ocs_tf.runtime import tflite

NETWORKS = ("mobilenet_v1_075_imagenet", "resnet20_cifar10")
PACKED_BITS = (8, 5, 4, 3)
THREADS = (1, 2)
CALIBRATION = 100
# One dense layer, whose weights are larger than the caches.
DENSE = 4096
BATCHES = (1, 2, 3, 4)
ROUNDS, QUICK_ROUNDS = 201, 5
COMMAND = "python -m benchmarks.latency"
TICKS = (0.1, 0.2, 0.5, 1, 2, 5)
# What the process of its own does; it knows neither TensorFlow nor ocs_tf.
_MEMORY = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

path, library, count = sys.argv[1:]
delegates = [load_delegate(library)] if library else []
before = resident()
interpreter = Interpreter(path, num_threads=1, experimental_delegates=delegates)
(detail,) = interpreter.get_input_details()
shape = [int(count), *detail["shape"][1:]]
interpreter.resize_tensor_input(detail["index"], shape)
interpreter.allocate_tensors()
interpreter.set_tensor(detail["index"], np.zeros(shape, detail["dtype"]))
interpreter.invoke()
print(resident() - before)
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One file.

    Attributes:
        network: name in the zoo, or `"dense"`.
        file: what kind of file.
        samples: in a batch.
        milliseconds: median latency of a batch, by number of threads.
        over_float: median over rounds of the latency over the float file's, likewise.
        load: median milliseconds from opening the file to its being ready.
        load_over_float: median of ratios, likewise.
        memory: what a process grows by when it opens the file and runs it once, KiB.
        size: of the file, bytes.
    """

    network: str
    file: str
    samples: int
    milliseconds: dict[int, float]
    over_float: dict[int, float]
    load: float
    load_over_float: float
    memory: int
    size: int


def network_files(entry: Any, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """A zoo network as files of each kind; the first is the float one."""

    def convert(bits: int, **options: Any) -> keras.Model:
        return ocs_tf.convert(entry.model, weight_bits=bits, verbose=False, **options)

    def export(model: keras.Model, name: str, **options: Any) -> pathlib.Path:
        path = folder / f"{name.replace(' ', '_')}.tflite"
        ocs_tf.export_tflite(model, path, **options)
        return path

    calibration = entry.calibration[:CALIBRATION]
    eight = convert(8)
    files = {
        "float": export(eight, "float", target="float"),
        "int8": export(convert(8, representative_dataset=calibration), "int8"),
        "INT4 weights": export(convert(4), "INT4 weights", target="int4"),
    }
    for bits in PACKED_BITS:
        model = eight if bits == 8 else convert(bits)
        files[f"packed {bits}"] = export(model, f"packed {bits}", target="packed")
    return files


def dense_files(folder: pathlib.Path, width: int) -> dict[str, pathlib.Path]:
    """A dense layer as files of each kind; the first is the float one."""
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(width, name="dense")])

    def export(bits: int, name: str, **options: Any) -> pathlib.Path:
        path = folder / f"{name.replace(' ', '_')}.tflite"
        # The only layer is first and last, which have 8 bits otherwise.
        quantized = ocs_tf.convert(
            model, weight_bits=bits, first_layer_bits="same", last_layer_bits="same", verbose=False
        )
        ocs_tf.export_tflite(quantized, path, dynamic_batch=True, **options)
        return path

    files = {
        "float": export(8, "float", target="float"),
        "INT4 weights": export(4, "INT4 weights", target="int4", activations="float"),
        "INT4 dynamic": export(4, "INT4 dynamic", target="int4", activations="dynamic"),
    }
    for bits in PACKED_BITS:
        files[f"packed {bits}"] = export(bits, f"packed {bits}", target="packed")
        name = f"packed {bits}, fused"
        files[name] = export(bits, name, target="packed", fused_dense=True)
    return files


def measure(
    network: str,
    files: dict[str, pathlib.Path],
    samples: int,
    threads: tuple[int, ...],
    rounds: int,
) -> list[Row]:
    """All files of one network, against each other."""
    latencies = {count: _latencies(files, samples, count, rounds) for count in threads}
    loads = common.in_turns(
        {name: _loader(path) for name, path in files.items()}, max(5, rounds // 10)
    )
    return [
        Row(
            network,
            name,
            samples,
            {count: _median(latencies[count][name]) for count in threads},
            {count: _ratio(latencies[count], name) for count in threads},
            _median(loads[name]),
            _ratio(loads, name),
            memory(path, samples),
            path.stat().st_size,
        )
        for name, path in files.items()
    ]


def memory(path: pathlib.Path, samples: int) -> int:
    """KiB that a process grows by when it opens the file and runs it once."""
    library = tflite.delegate_path() if "packed" in path.name else ""
    command = [sys.executable, "-c", _MEMORY, str(path), library, str(samples)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout)


def _latencies(
    files: dict[str, pathlib.Path], samples: int, threads: int, rounds: int
) -> dict[str, np.ndarray]:
    runs = {}
    for name, path in files.items():
        interpreter = tflite.Interpreter(path, num_threads=threads)
        (detail,) = interpreter.get_input_details()
        shape = [samples, *detail["shape"][1:]]
        interpreter.resize_tensor_input(detail["index"], shape)
        interpreter.allocate_tensors()
        values = np.random.default_rng(0).normal(size=shape)
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
        runs[name] = interpreter.invoke
    return common.in_turns(runs, rounds)


def _loader(path: pathlib.Path) -> Callable[[], Any]:
    return lambda: tflite.Interpreter(path, num_threads=1)


def _median(seconds: np.ndarray) -> float:
    """In milliseconds."""
    return 1e3 * float(np.median(seconds))


def _ratio(seconds: dict[str, np.ndarray], name: str) -> float:
    return float(np.median(seconds[name] / seconds["float"]))


def markdown(rows: list[Row]) -> str:
    """The tables, with the command that makes them."""
    parts = [
        "# What files cost at run time\n",
        f"`{COMMAND}`, LiteRT under XNNPACK. *x float* is the ratio to the float file. *INT4"
        " weights*: target `int4` with float activations; *INT4 dynamic*: activations quantized by"
        " the runtime; *packed*: kernels of so many bits, unpacked when the file is loaded;"
        " *fused*: multiplied as they are. Weights only, but for int8.\n",
    ]
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        threads = list(own[0].milliseconds)
        headers = ["file", "batch"]
        for count in threads:
            headers += [f"ms, {count} thread{'s' * (count > 1)}", "x float"]
        headers += ["load, ms", "x float", "memory, KiB", "file, KiB"]
        table = []
        for row in own:
            line: list[Any] = [row.file, row.samples]
            for count in threads:
                line += [f"{row.milliseconds[count]:.3f}", f"{row.over_float[count]:.3f}"]
            line += [f"{row.load:.2f}", f"{row.load_over_float:.2f}", f"{row.memory:,}"]
            table.append([*line, f"{row.size / 1024:,.0f}"])
        parts += [f"## {network}\n", common.markdown_table(headers, table)]
    return "\n".join([*parts, "![Latency and size over those of the float file](latency.png)\n"])


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """Latency and size over the float file's: a panel per network, one sample, one thread."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    networks = list(dict.fromkeys(row.network for row in rows))
    figure, axes = plt.subplots(1, len(networks), figsize=(4.6 * len(networks), 4.2))
    for axis, network in zip(np.atleast_1d(axes), networks, strict=True):
        own = [row for row in rows if row.network == network and row.samples == 1]
        places = np.arange(len(own))
        sizes = [row.size / own[0].size for row in own]
        axis.barh(places - 0.2, [row.over_float[1] for row in own], 0.4, label="latency")
        axis.barh(places + 0.2, sizes, 0.4, label="file size")
        axis.axvline(1, color="gray", linewidth=0.8)
        axis.set_yticks(places, [row.file for row in own])
        axis.invert_yaxis()
        axis.set(title=network, xlabel="over the float file", xscale="log")
        axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axis.minorticks_off()
    np.atleast_1d(axes)[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def benchmark(folder: str | pathlib.Path, quick: bool = False) -> list[Row]:
    """Measure everything, and write the results to `folder`."""
    zoo = common.load_zoo()
    rounds = QUICK_ROUNDS if quick else ROUNDS
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in tqdm(NETWORKS[-1:] if quick else NETWORKS):
            place = pathlib.Path(temporary) / name
            place.mkdir()
            files = network_files(zoo.load(name, limit=1), place)
            rows += measure(name, files, 1, THREADS, rounds)
        place = pathlib.Path(temporary) / "dense"
        place.mkdir()
        files = dense_files(place, DENSE // 4 if quick else DENSE)
        for samples in tqdm(BATCHES[:1] if quick else BATCHES):
            rows += measure("dense", files, samples, THREADS[:1], rounds)
    folder = pathlib.Path(folder)
    payload = {"machine": common.machine(), "rows": [dataclasses.asdict(row) for row in rows]}
    common.save_json(folder / "latency.json", payload)
    (folder / "latency.md").write_text(markdown(rows), encoding="utf-8")
    plot(rows, folder / "latency.png")
    return rows


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "ResNet-20 and a smaller dense layer, few rounds.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    app.run(lambda _: print(markdown(benchmark(folder.value, quick.value))))


if __name__ == "__main__":
    main()
