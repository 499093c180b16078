"""Every network of `keras.applications`: converted, saved, loaded, exported, run, and compared.

    python -m benchmarks.applications [--quick] [--sizes=all] [--only=NAME,...] [--output_dir=DIR]

Random weights, with which batch norms normalize and nothing is dead; the smallest input that the
network takes; logits. One size of each family, or all sizes. Each network runs in a process of its
own, so that one that fails is a row that says so. Rows without an error are kept from earlier runs.
Writes applications.json and applications.md. Some 20 minutes on two cores, 3 hours with all sizes.
"""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from absl import app, flags
from numpy.typing import NDArray
from tqdm import tqdm

import ocs_tf
from benchmarks import common
from ocs_tf.export.edge_tpu import OpReport
from ocs_tf.export.kernel_matching import BORDER_OPS
from ocs_tf.graph.cloning import clone_layer
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.rebuild import rebuild
from ocs_tf.layers import KernelLayer
from ocs_tf.numerics import split_channels
from ocs_tf.runtime import tflite

# One size of each family, with all that differs between sizes in what it computes.
SMALL = (
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "MobileNetV3Large",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "EfficientNetV2S",
    "ResNet50",
    "ResNet50V2",
    "DenseNet121",
    "NASNetMobile",
    "InceptionV3",
    "Xception",
    "VGG16",
    "VGG19",
    "ConvNeXtTiny",
    "InceptionResNetV2",
)
QUICK = ("MobileNetV2", "MobileNetV3Small")
SIDES = (32, 64, 71, 75, 96, 128, 224, 331)  # of pictures
NORMALIZING, CALIBRATION, PICTURES = 256, 32, 16
SPLIT_RATIO = 0.05
RUNTIMES = ("ai_edge_litert", "tensorflow")
COMMAND = "python -m benchmarks.applications"
Array = NDArray[np.float32]
# Loads a model and runs it, knowing nothing but the files.
_RELOAD = """
import sys
import keras, numpy as np
import ocs_tf
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict_on_batch(np.load(sys.argv[2])))
"""
_WORK = "import sys; from benchmarks import applications; applications.work(*sys.argv[1:])"


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, by its name in `keras.applications`."""

    network: str


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """What came out; `None` where it did not come to that.

    Attributes:
        side: of the pictures.
        parameters: of the float model.
        quantized, left_float: layers with weights, batch norms not counted.
        split_difference: largest difference of outputs between the float model and one with
            `SPLIT_RATIO` of the channels of each kernel split, over the largest output.
        sqnr: of the quantized Keras model's outputs against the float one's, dB.
        reload_difference: largest difference of outputs after saving, and loading elsewhere.
        steps, differing: of each runtime's outputs from the quantized Keras model's: the largest
            difference in steps of the output, and the share of codes that differ, in percent.
        file_sqnr: of the file's outputs (LiteRT) against the float model's, dB.
        float_operators: of the file, by name; empty if it computes in integers alone.
        convert_seconds, export_seconds: of each.
        float_size, keras_size, file_size: bytes of the float model's .keras file, the quantized
            model's, and the .tflite file.
        memory: largest memory of the process, MiB.
        error: of the step that failed, its first line.
    """

    side: int | None = None
    parameters: int | None = None
    quantized: int | None = None
    left_float: int | None = None
    split_difference: float | None = None
    sqnr: float | None = None
    reload_difference: float | None = None
    steps: dict[str, int] = dataclasses.field(default_factory=dict)
    differing: dict[str, float] = dataclasses.field(default_factory=dict)
    file_sqnr: float | None = None
    float_operators: list[str] = dataclasses.field(default_factory=list)
    convert_seconds: float | None = None
    export_seconds: float | None = None
    float_size: int | None = None
    keras_size: int | None = None
    file_size: int | None = None
    memory: int | None = None
    error: str | None = None


def networks() -> dict[str, Callable[..., keras.Model]]:
    """All that `keras.applications` has, by name."""
    return {
        name: function
        for name, function in sorted(vars(keras.applications).items())
        if inspect.isfunction(function) and "weights" in inspect.signature(function).parameters
    }


def family(name: str) -> str:
    """The module that a network comes from."""
    return str(networks()[name].__module__.rpartition(".")[2])


def build(name: str, **options: Any) -> keras.Model:
    """A network that computes logits of the smallest pictures it takes, with random weights."""
    for side in SIDES:
        try:
            model = networks()[name](
                weights=None, input_shape=(side, side, 3), classifier_activation=None, **options
            )
        except ValueError as error:
            reason = error
            continue
        randomize(model)
        return model
    raise ValueError(f"{name} takes no picture of a side of {SIDES}: {reason}")


def randomize(model: keras.Model) -> None:
    """Random weights that keep activations in range, and batch norms that fit them.

    Most of what batch norms make is positive. Else ReLUs behind them would make a network chaotic:
    a small error at its inputs would grow to the size of its outputs.
    """
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("gamma", "variable"):  # the latter of a LayerScale
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name == "beta":
            weight.assign(rng.normal(1, 0.4, weight.shape))
        elif weight.name == "bias":
            weight.assign(rng.normal(0, 0.1, weight.shape))
        elif weight.name == "kernel":
            depthwise = weight.path.split("/")[-2].find("depthwise") >= 0
            inputs = np.prod(weight.shape[:2] if depthwise else weight.shape[:-1])
            weight.assign(rng.normal(0, (2 / inputs) ** 0.5, weight.shape))
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the last batch alone counts
    # Keras keeps all activations until the end; larger pictures have more places to average over.
    count = NORMALIZING if model.input_shape[1] <= SIDES[0] else NORMALIZING // 4
    model(pictures(model, count, seed=1), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def pictures(model: keras.Model, count: int, seed: int) -> Array:
    """Noise, coarse and fine, in the range that the network expects."""
    rng = np.random.default_rng(seed)
    side = model.input_shape[1]
    coarse = rng.uniform(-0.7, 0.7, (count, 4, 4, 3))
    places = np.arange(side) * 4 // side
    noise = coarse[:, places][:, :, places] + rng.uniform(-0.3, 0.3, (count, side, side, 3))
    scales = any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers)
    return np.float32(127.5 * (noise + 1) if scales else noise)


def split_only(model: keras.Model) -> keras.Model:
    """`model` in float, with channels of each kernel that allows it split in halves.

    Batch norms are folded, as `ocs_tf.convert` does. The copies of channels are made by an
    operation in front of the layer, and its kernel is the expanded one: the definition itself.
    """
    graph = Graph(model)
    splits = {}
    for name, site in graph.kernels.items():
        if not site.adapter.why_not_split(site.layer):
            kernel, _ = site.weights()
            splits[name] = split_channels(kernel, SPLIT_RATIO)

    def replace(layer: Any) -> Any:
        if layer.name not in graph.kernels:
            return clone_layer(layer)
        site = graph.kernels[layer.name]
        use_bias = layer.use_bias or site.batch_norm is not None
        return type(layer).from_config({**layer.get_config(), "use_bias": use_bias})

    def call(layer: Any, twin: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.name in graph.folded:
            return args[0]
        if layer.name in splits:
            args = (keras.ops.take(args[0], splits[layer.name].channel_map, axis=-1), *args[1:])
        return twin(*args, **kwargs)

    result, twins = rebuild(graph, replace, call)
    for name, site in graph.kernels.items():
        kernel, bias = site.weights()
        kernel = splits[name].kernel if name in splits else kernel
        weights = [site.adapter.to_keras(kernel, twins[name])]
        twins[name].set_weights(weights if bias is None else [*weights, bias])
    return result


def sqnr(reference: Array, other: Array) -> float:
    """Signal over the error of `other`, dB."""
    error = np.square(np.float64(other) - reference).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / max(error, 1e-30)))


def measure(model: keras.Model, note: Callable[..., None], folder: pathlib.Path) -> None:
    """All steps with one network; `note` takes the fields of `Row`, as they come out."""
    images = pictures(model, PICTURES, seed=2)
    want = np.asarray(model.predict_on_batch(images))
    note(side=model.input_shape[1], parameters=model.count_params())
    model.save(folder / "float.keras")
    note(float_size=(folder / "float.keras").stat().st_size)
    with _step("split", note):
        found = np.asarray(split_only(model).predict_on_batch(images))
        note(split_difference=float(np.abs(found - want).max() / np.abs(want).max()))
    gc.collect()

    # What is chosen on data takes time, and makes no difference to how exact files are.
    start = time.perf_counter()
    quantized = ocs_tf.convert(
        model,
        weight_bits=8,
        activation_bits=8,
        representative_dataset=pictures(model, CALIBRATION, seed=3),
        rounding="nearest",
        bias_correction=False,
        verbose=False,
    )
    note(convert_seconds=time.perf_counter() - start)
    kernels = [layer for layer in quantized.layers if isinstance(layer, KernelLayer)]
    note(quantized=len(kernels), left_float=_left_float(quantized))
    outputs = np.asarray(quantized.predict_on_batch(images))
    note(sqnr=sqnr(want, outputs))

    with _step("save and load", note):
        quantized.save(folder / "quantized.keras")
        note(keras_size=(folder / "quantized.keras").stat().st_size)
        note(reload_difference=float(np.abs(reloaded(folder, images) - outputs).max()))

    path = folder / "quantized.tflite"
    start = time.perf_counter()
    result = ocs_tf.export_tflite(
        quantized, path, representative_dataset=pictures(model, CALIBRATION, seed=3)
    )
    note(export_seconds=time.perf_counter() - start, file_size=result.size)
    note(float_operators=[op.op for op in result.ops if _in_float(op)])
    steps, differing = {}, {}
    for runtime in RUNTIMES:
        with _step(f"run in {runtime}", note):
            got, (scale, zero_point) = run(path, images, runtime)
            codes = np.rint(outputs / scale) + zero_point
            difference = np.abs(got - codes)
            steps[runtime] = int(difference.max())
            differing[runtime] = 100 * float((difference > 0).mean())
            note(steps=steps, differing=differing)
            if runtime == RUNTIMES[0]:
                note(file_sqnr=sqnr(want, np.float32((got - zero_point) * scale)))


def reloaded(folder: pathlib.Path, images: Array) -> Array:
    """Outputs of the saved model, by a process that knows nothing else."""
    np.save(folder / "images.npy", images)
    files = [folder / name for name in ("quantized.keras", "images.npy", "outputs.npy")]
    command = [sys.executable, "-c", _RELOAD, *map(str, files)]
    done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    return np.asarray(np.load(files[2]))


def run(path: pathlib.Path, images: Array, runtime: str) -> tuple[Array, tuple[float, int]]:
    """Codes that an int8 file computes, and their grid."""
    interpreter = tflite.Interpreter(path, num_threads=2, runtime=runtime)
    (reads,), (makes,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = reads["quantization"]
    codes = []
    for image in images:
        given = np.clip(np.rint(image / np.float32(scale)) + zero_point, -128, 127)
        interpreter.set_tensor(reads["index"], given[None].astype(np.int8))
        interpreter.invoke()
        codes.append(interpreter.get_tensor(makes["index"])[0].astype(np.float32))
    return np.array(codes), makes["quantization"]


@contextmanager
def _step(name: str, note: Callable[..., None]) -> Iterator[None]:
    """A step that others do not need: if it fails, its error is noted, and they go on."""
    try:
        yield
    except Exception as error:
        note(error=f"{name}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Class and first line of the message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


def _left_float(quantized: keras.Model) -> int:
    """Layers with float kernels; not norms and other factors per channel."""
    inner = [getattr(layer, "layer", layer) for layer in quantized.layers]
    return sum(
        not isinstance(layer, KernelLayer)
        and any(w.name in ("kernel", "embeddings") for w in layer.weights)
        for layer in inner
    )


def _in_float(op: OpReport) -> bool:
    tensors = (*op.inputs, *op.outputs)
    return op.op not in BORDER_OPS and any(tensor.startswith("float32") for tensor in tensors)


def work(name: str, path: str) -> None:
    """Measure one network, and write its row to the file `path` after each step."""
    row: dict[str, Any] = {"network": name}

    def note(**fields: Any) -> None:
        if row.get("error"):
            fields.pop("error", None)  # the first one says most
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        row.update(fields, memory=memory)
        common.save_text(pathlib.Path(path), json.dumps(row))

    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(build(name), note, pathlib.Path(folder))
    except Exception as error:
        note(error=first_line(error))


def measured_apart(name: str) -> Row:
    """`work` in a process of its own, and what is known if it dies."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "row.json"
        command = [sys.executable, "-c", _WORK, name, str(path)]
        done = subprocess.run(command, cwd=common.ROOT, stderr=subprocess.PIPE, text=True)
        values = json.loads(path.read_text()) if path.exists() else {"network": name}
    if done.returncode:
        values.setdefault("error", f"the process ended with {done.returncode}")
    return Row(**values)


def markdown(rows: list[Row]) -> str:
    """The table, with the command that makes it."""
    headers = ["network", "side", "parameters, M", "quantized", "float", "split only", "SQNR, dB"]
    headers += ["reload", "steps: LiteRT", "tf.lite", "differ, %", "file SQNR, dB"]
    headers += ["float operators", "convert, s", "export, s", ".keras, MB", ".tflite, MB"]
    headers += ["memory, MiB"]
    table = [
        [
            row.network,
            _shown(row.side),
            _shown(row.parameters, 1e6, ".1f"),
            _shown(row.quantized),
            _shown(row.left_float),
            _shown(row.split_difference, 1, ".0e"),
            _shown(row.sqnr, 1, ".1f"),
            _shown(row.reload_difference, 1, "g"),
            *(_shown(row.steps.get(runtime)) for runtime in RUNTIMES),
            _shown(row.differing.get(RUNTIMES[0]), 1, ".2f"),
            _shown(row.file_sqnr, 1, ".1f"),
            len(row.float_operators) if row.file_size else "",
            _shown(row.convert_seconds, 1, ".0f"),
            _shown(row.export_seconds, 1, ".0f"),
            _shown(row.float_size, 1e6, ".1f"),
            _shown(row.file_size, 1e6, ".1f"),
            _shown(row.memory, 1, ",.0f"),
        ]
        for row in rows
    ]
    failed = [f"- {row.network}: {row.error}" for row in rows if row.error]
    failures = "\n".join(["\nWhat failed:\n", *failed, ""]) if failed else ""
    return (
        "# The networks of keras.applications\n\n"
        f"`{COMMAND}`: random weights, the smallest pictures (noise), logits; weights and"
        f" activations of 8 bits, rounded to the nearest, {CALIBRATION} pictures to"
        f" calibrate, {PICTURES} to compare."
        f" *Split only*: largest difference of float outputs with {SPLIT_RATIO:.0%} of channels"
        " split, over the largest output. *SQNR*: of the quantized Keras model against the float"
        " one. *Reload*: largest difference after saving, and loading in another process. *Steps*:"
        " the largest difference between the int8 file's outputs and the quantized Keras model's,"
        " in steps of the output; *differ*: share of output codes. *Float operators*: of the file."
        " *Memory*: the largest of the process, TensorFlow included.\n\n"
        f"{common.markdown_table(headers, table)}{failures}"
    )


def _shown(value: float | None, unit: float = 1, form: str = "") -> str:
    return "" if value is None else format(value / unit if unit != 1 else value, form)


def benchmark(
    folder: str | pathlib.Path, names: list[str], measured: Callable[[str], Row] = measured_apart
) -> list[Row]:
    """Measure the networks that were not yet, and write the results to `folder`."""
    folder = pathlib.Path(folder)
    results = common.Results(folder / "applications.json", Case, Row, machine=common.machine())
    bar = tqdm(names)
    for name in bar:
        bar.set_postfix_str(name)
        known = results.get(Case(name))
        if known is None or known.error:
            results.add(measured(name))
            common.save_text(folder / "applications.md", markdown(list(results)))
    return list(results)


def chosen(sizes: str, only: list[str]) -> list[str]:
    """Names of the networks to measure, the small ones first."""
    known = networks()
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise ValueError(f"keras.applications has no {unknown[0]!r}, but {', '.join(known)}")
    if only:
        return only
    families = {family(name) for name in SMALL}
    others = [name for name in known if name not in SMALL]
    return [*SMALL, *(n for n in others if sizes == "all" or family(n) not in families)]


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, f"Only {' and '.join(QUICK)}.")
    sizes = flags.DEFINE_enum("sizes", "one", ["one", "all"], "Of each family.")
    only = flags.DEFINE_list("only", [], "Names in keras.applications.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")

    def run_all(_: Any) -> None:
        names = chosen(sizes.value, only.value or (list(QUICK) if quick.value else []))
        print(markdown(benchmark(folder.value, names)))

    app.run(run_all)


if __name__ == "__main__":
    main()
