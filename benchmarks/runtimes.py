"""Do TFLite's runtimes compute what the Keras model does?

    python -m benchmarks.runtimes [--quick] [--output_dir FOLDER]

Converts and exports the image networks of the zoo (see `benchmarks.common`), runs each file in both
interpreters, with and without XNNPACK, and in TFLite Micro on fewer pictures (`pip install
"ocs_tf[micro]"`), and compares the codes of the output with the Keras model's. Writes runtimes.json
and runtimes.md; what was measured before is kept. Some 30 minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import tempfile
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from ai_edge_litert import interpreter as litert
from tqdm import tqdm

import ocs_tf
from benchmarks import common
from ocs_tf.export.long_concatenations import in_steps
from ocs_tf.runtime import micro

# All pictures of the evaluation sets but for DenseNet-40, which has 5,000 and is slow.
PICTURES = {
    "resnet20_cifar10": 5000,
    "densenet40_cifar10": 1000,
    "mobilenet_v1_075_imagenet": 500,
}
MICRO_PICTURES = {
    "resnet20_cifar10": 500,
    "densenet40_cifar10": 100,
    "mobilenet_v1_075_imagenet": 100,
}
QUICK = {"resnet20_cifar10": 50}
CALIBRATION = 100
BITS = (8, 5)
INTERPRETERS = {"LiteRT": litert, "tf.lite": tf.lite.experimental}
MICRO = "TFLite Micro"
RESOLVERS = {"XNNPACK": "AUTO", "without": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
COMMAND = "python -m benchmarks.runtimes"
Codes = np.ndarray[Any, np.dtype[np.int64]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One file in one runtime.

    Attributes:
        kernels: `"XNNPACK"`; `"without"`: the interpreter's own ones, optimized; `"reference"`.
    """

    network: str
    pictures: int
    weight_bits: int
    interpreter: str
    kernels: str


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """Against the Keras model that the file was exported from.

    Attributes:
        differing: share of output codes that differ, in percent.
        steps: by how many at most.
        agreement: share of pictures with the same top-1 class, in percent.
        keras_top1, file_top1: accuracy in percent.
        size: of the file, bytes.
    """

    differing: float
    steps: int
    agreement: float
    keras_top1: float
    file_top1: float
    size: int


def keras_codes(model: keras.Model, images: np.ndarray, grid: tuple[float, int]) -> Codes:
    """What `model` computes for each image, flat, as codes on `grid`."""
    batches = np.array_split(images, -(-len(images) // 50))
    outputs = np.concatenate([np.asarray(model.predict_on_batch(batch)) for batch in batches])
    return (np.rint(outputs / grid[0]) + grid[1]).astype(int).reshape(len(images), -1)


def open_file(path: pathlib.Path, library: str, kernels: str) -> Any:
    """An interpreter of the file, ready to run."""
    module = INTERPRETERS[library]
    maker = module if library == "LiteRT" else tf.lite
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf.lite.Interpreter announces its retirement
        interpreter = maker.Interpreter(
            str(path),
            experimental_op_resolver_type=getattr(module.OpResolverType, RESOLVERS[kernels]),
            num_threads=2,
        )
    interpreter.allocate_tensors()
    return interpreter


def file_codes(interpreter: Any, images: np.ndarray) -> Codes:
    """What the file computes for each image, flat."""
    (reads,), (makes,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = reads["quantization"]
    rows = []
    for image in images:
        codes = np.clip(np.rint(image / np.float32(scale)) + zero_point, -128, 127)
        interpreter.set_tensor(reads["index"], codes[None].astype(np.int8))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(makes["index"]).ravel().astype(int))
    return np.array(rows)


def measure(entry: Any, bits: int, path: pathlib.Path, cases: list[Case]) -> list[Row]:
    """One network at one width, in some runtimes; `path` is where its file is put."""
    # What is chosen on data takes time, and makes no difference to how exact files are.
    model = ocs_tf.convert(
        entry.model,
        weight_bits=bits,
        representative_dataset=entry.calibration[:CALIBRATION],
        rounding="nearest",
        bias_correction=False,
        verbose=False,
    )
    size = ocs_tf.export_tflite(model, path, overwrite=True).size
    details = open_file(path, "LiteRT", "XNNPACK").get_output_details()
    most = max(case.pictures for case in cases)
    want = keras_codes(model, entry.inputs[:most], details[0]["quantization"])
    return [row(case, entry, path, want[: case.pictures], size) for case in cases]


def row(case: Case, entry: Any, path: pathlib.Path, want: Codes, size: int) -> Row:
    """One runtime, given what Keras computes."""
    if case.interpreter == MICRO:
        # As in the file that an export with `c_array` writes.
        content = in_steps(path.read_bytes())
        interpreter = ocs_tf.tflite.Interpreter(content, runtime="tflite_micro")
    else:
        interpreter = open_file(path, case.interpreter, case.kernels)
    got = file_codes(interpreter, entry.inputs[: len(want)])
    targets = entry.targets[: len(want)]
    return Row(
        **dataclasses.asdict(case),
        differing=100 * float(np.mean(got != want)),
        steps=int(np.abs(got - want).max()),
        agreement=100 * float(np.mean(got.argmax(-1) == want.argmax(-1))),
        keras_top1=100 * float(np.mean(want.argmax(-1) == targets)),
        file_top1=100 * float(np.mean(got.argmax(-1) == targets)),
        size=size,
    )


def cases(network: str, bits: int, quick: bool = False) -> list[Case]:
    """All runtimes for one file."""
    pictures = (QUICK if quick else PICTURES)[network]
    found = [
        Case(network, pictures, bits, library, kernels)
        for library, kernels in itertools.product(INTERPRETERS, RESOLVERS)
    ]
    if micro.installed():
        few = min(pictures, MICRO_PICTURES[network])
        found.append(Case(network, few, bits, MICRO, "reference"))
    return found


def markdown(rows: list[Row]) -> str:
    """The table, with the command that makes it."""
    headers = ["network", "weights", "pictures", "interpreter", "kernels", "codes that differ"]
    headers += ["by at most", "same class", "top-1 Keras", "top-1 file", "bytes"]
    table = [
        [
            row.network,
            f"W{row.weight_bits}",
            f"{row.pictures:,}",
            row.interpreter,
            row.kernels,
            f"{row.differing:.2f} %",
            row.steps,
            f"{row.agreement:.2f} %",
            f"{row.keras_top1:.1f}",
            f"{row.file_top1:.1f}",
            f"{row.size:,}",
        ]
        for row in rows
    ]
    return (
        "# What runtimes compute, against the Keras model\n\n"
        f"`{COMMAND}`: int8 files of the default set-up, but rounded to the nearest;"
        f" activations of 8 bits, calibrated on {CALIBRATION} pictures; codes of the output.\n\n"
        f"{common.markdown_table(headers, table)}"
    )


def benchmark(folder: str | pathlib.Path, quick: bool = False) -> list[Row]:
    """Measure what is not there yet, and write the results to `folder`."""
    folder = pathlib.Path(folder)
    zoo = common.load_zoo()
    results = common.Results(folder / "runtimes.json", Case, Row, machine=common.machine())
    every = list(itertools.product(QUICK if quick else PICTURES, BITS))
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "model.tflite"
        for name, bits in tqdm(every):
            missing = results.missing(cases(name, bits, quick))
            if missing:
                limit = max(case.pictures for case in missing)
                for found in measure(zoo.load(name, limit=limit), bits, path, missing):
                    results.add(found)
    rows = sorted(results, key=lambda r: (list(PICTURES).index(r.network), -r.weight_bits))
    common.save_text(folder / "runtimes.md", markdown(rows))
    return rows


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "ResNet-20 on a few pictures.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    app.run(lambda _: print(markdown(benchmark(folder.value, quick.value))))


if __name__ == "__main__":
    main()
