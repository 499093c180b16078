"""Do TFLite's runtimes compute what the Keras model does?

    python -m benchmarks.runtimes [--quick] [--output_dir FOLDER]

Converts and exports the image networks of the zoo (see `benchmarks.common`), runs each file in both
interpreters, with and without XNNPACK, and compares the codes of the output with the Keras model's.
Writes runtimes.json and runtimes.md. Some 15 minutes on two cores.
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

# All pictures of the evaluation sets but for DenseNet-40, which has 5,000 and is slow.
PICTURES = {
    "resnet20_cifar10": 5000,
    "densenet40_cifar10": 1000,
    "mobilenet_v1_075_imagenet": 500,
}
QUICK = {"resnet20_cifar10": 50}
CALIBRATION = 100
BITS = (8, 5)
INTERPRETERS = {"LiteRT": litert, "tf.lite": tf.lite.experimental}
RESOLVERS = {"XNNPACK": "AUTO", "without": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
COMMAND = "python -m benchmarks.runtimes"
Codes = np.ndarray[Any, np.dtype[np.int64]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One file in one runtime, against the Keras model it was exported from.

    Attributes:
        differing: share of output codes that differ, in percent.
        steps: by how many at most.
        agreement: share of pictures with the same top-1 class, in percent.
        keras_top1, file_top1: accuracy in percent.
        size: of the file, bytes.
    """

    network: str
    pictures: int
    weight_bits: int
    interpreter: str
    kernels: str
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


def measure(entry: Any, bits: int, path: pathlib.Path) -> list[Row]:
    """One network at one width, in every runtime; `path` is where its file is put."""
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
    want = keras_codes(model, entry.inputs, details[0]["quantization"])
    rows = []
    for library, kernels in itertools.product(INTERPRETERS, RESOLVERS):
        got = file_codes(open_file(path, library, kernels), entry.inputs)
        row = Row(
            entry.name,
            len(got),
            bits,
            library,
            kernels,
            differing=100 * float(np.mean(got != want)),
            steps=int(np.abs(got - want).max()),
            agreement=100 * float(np.mean(got.argmax(-1) == want.argmax(-1))),
            keras_top1=100 * float(np.mean(want.argmax(-1) == entry.targets)),
            file_top1=100 * float(np.mean(got.argmax(-1) == entry.targets)),
            size=size,
        )
        rows.append(row)
    return rows


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
    """Measure everything, and write the results to `folder`."""
    zoo = common.load_zoo()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "model.tflite"
        pictures = QUICK if quick else PICTURES
        for (name, limit), bits in tqdm(list(itertools.product(pictures.items(), BITS))):
            rows += measure(zoo.load(name, limit=limit), bits, path)
    folder = pathlib.Path(folder)
    payload = {"machine": common.machine(), "rows": [dataclasses.asdict(row) for row in rows]}
    common.save_json(folder / "runtimes.json", payload)
    (folder / "runtimes.md").write_text(markdown(rows), encoding="utf-8")
    return rows


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "ResNet-20 on a few pictures.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    app.run(lambda _: print(markdown(benchmark(folder.value, quick.value))))


if __name__ == "__main__":
    main()
