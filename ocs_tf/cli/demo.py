"""`ocs_tf demo`: a small network, trained here, quantized in several ways and compared."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import ocs_tf
from ocs_tf._compare import compare
from ocs_tf.process import no_tracing_warnings
from ocs_tf.runtime.model import TFLiteModel
from ocs_tf.writing import replacing

BITS = (8, 6, 5, 4, 3)
EXPAND_RATIO = 0.05
_ADDED = 100 * EXPAND_RATIO
CALIBRATION_IMAGES = 128
SEED = 0

# One step per kernel, where a single large weight costs all the others their precision.
_ONE_STEP = {
    "granularity": "tensor",
    "equalization": False,
    "rounding": "nearest",
    "bias_correction": False,
}
_WAYS: dict[str, dict[str, Any]] = {
    "round only": {**_ONE_STEP, "weight_clip": "none", "expand_ratio": 0.0},
    "clip only": {**_ONE_STEP, "weight_clip": "mse", "expand_ratio": 0.0},
    "OCS": {**_ONE_STEP, "weight_clip": "none", "expand_ratio": EXPAND_RATIO},
    "OCS + clip": {**_ONE_STEP, "weight_clip": "mse", "expand_ratio": EXPAND_RATIO},
    "default": {},
}

_EXPLANATION = f"""\
Weights only, activations in float32; the first and the last layer have 8 bits in all rows.
  round only  round-to-nearest, per-tensor
  clip only   the same, with the clip threshold of the least squared error
  OCS         the same without clipping; the channels with the largest weights are split,
              {_ADDED:.0f} % are added
  OCS + clip  both
  default     the defaults of ocs_tf.convert: per-channel, splits and clip thresholds of the least
              error, 2 % of channels added below 8 bits, data-free error-balanced rounding"""


@dataclasses.dataclass(frozen=True)
class Images:
    """Images float32 `[N, h, w, c]` within 0..1, and their classes `[N]`."""

    train: tuple[NDArray[Any], NDArray[Any]]
    test: tuple[NDArray[Any], NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Result:
    """One quantized model: test accuracy in %, mean SQNR of the kernels with the bits that were
    asked for in dB, packed bytes, weights added in %."""

    accuracy: float
    sqnr_db: float
    size: int
    overhead: float


def run(
    folder: pathlib.Path,
    dataset: str = "digits",
    epochs: int | None = None,
    bits: Sequence[int] = BITS,
) -> None:
    """Train, compare ways to quantize at each of `bits`, export to int8 and run the file.

    Arguments:
        folder: for the files; made if it does not exist. Files in it are replaced.
        dataset: `"digits"` (comes with scikit-learn), `"mnist"` or `"cifar10"` (downloaded).
        epochs: of training; `None` for as many as suit the dataset.

    Raises:
        ValueError: `epochs` or `dataset` is out of range, or scikit-learn is not installed.
        OSError: `folder` cannot be made, or is a file.
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"`epochs` (={epochs}) must be a positive integer.")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output {folder} is a file; name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(SEED)
    images = load(dataset)
    model = train(images, dataset, epochs)
    accuracy, count = evaluate(model, images), len(images.test[0])
    print(f"\nFloat model: {accuracy:.2f} % of {count:,} test images right.\n")
    print("\n".join(_tables(_compare_ways(model, images, bits), bits)))
    print(f"\n{_EXPLANATION}\n")
    chance = 2 * math.sqrt(accuracy * (100 - accuracy) / count)
    print(
        f"One image is {100 / count:.2f} %; differences below about {chance:.1f} % may be chance.\n"
    )
    _export(model, images, folder)


def load(dataset: str) -> Images:
    """The images of `dataset`; for digits, half of the 1797 are the test."""
    if dataset == "digits":
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise ValueError(
                f"the digits of the demo come with scikit-learn, which is not installed ({error}):"
                ' pip install "ocs_tf[demo]"'
            ) from error
        digits = load_digits()
        x = (digits.images[..., None] / 16).astype(np.float32)
        parts = train_test_split(
            x, digits.target, test_size=0.5, random_state=SEED, stratify=digits.target
        )
        return Images((parts[0], parts[2]), (parts[1], parts[3]))
    if dataset not in ("mnist", "cifar10"):
        raise ValueError(f"`dataset` (={dataset!r}) must be one of digits, mnist, cifar10.")
    pairs = getattr(keras.datasets, dataset).load_data()
    train_set, test_set = ((_as_images(x), y.ravel()) for x, y in pairs)
    return Images(train_set, test_set)


def train(images: Images, dataset: str, epochs: int | None = None) -> keras.Model:
    """A small trained CNN. The high learning rate leaves its kernels with a few large weights."""
    x, y = images.train
    rate = 0.03 if dataset == "digits" else 0.003
    epochs = epochs or (30 if dataset == "digits" else 5)
    model = build(x.shape[1:])
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    print(f"Training on {len(x):,} images of {dataset}:")
    for _ in tqdm(range(epochs), unit="epoch"):
        model.fit(x, y, batch_size=64, verbose=0)
    return model


def build(shape: tuple[int, ...]) -> keras.Model:
    """Three convolutions with batch norm and a Dense layer, not trained."""
    x = inputs = keras.Input(shape, name="image")
    for i, filters in enumerate((32, 64, 64)):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{i + 1}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{i + 1}")(x)
        x = keras.layers.ReLU(name=f"relu{i + 1}")(x)
        if i < 2:
            x = keras.layers.MaxPooling2D(name=f"pool{i + 1}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    outputs = keras.layers.Dense(10, activation="softmax", name="class")(x)
    return keras.Model(inputs, outputs, name="demo_cnn")


def evaluate(model: keras.Model | TFLiteModel, images: Images) -> float:
    """Share of test images classified right, in percent."""
    x, y = images.test
    with no_tracing_warnings():  # there is a model for each row
        parts = [np.asarray(model.predict_on_batch(part)) for part in _batches(x)]
    return float(100 * (np.concatenate(parts).argmax(-1) == y).mean())


def _compare_ways(
    model: keras.Model, images: Images, bits: Sequence[int]
) -> dict[tuple[int, str], Result]:
    results = {}
    for b, way in tqdm([(b, way) for b in bits for way in _WAYS], "Quantizing", unit="model"):
        quantized = ocs_tf.convert(model, weight_bits=b, verbose=False, **_WAYS[way])
        report = ocs_tf.report(quantized)
        sqnr = float(np.mean([layer.sqnr_db for layer in report.layers if layer.bits == b]))
        results[b, way] = Result(
            evaluate(quantized, images), sqnr, report.bytes_after, report.overhead_percent
        )
    return results


def _tables(results: dict[tuple[int, str], Result], bits: Sequence[int]) -> list[str]:
    """Accuracy, size and overhead at each number of bits; then how exact the kernels are."""
    accuracies, ratios = [["bits", *_WAYS, "bytes", "with OCS", "added"]], [["bits", *_WAYS]]
    for b in bits:
        plain, split = results[b, "round only"], results[b, "OCS"]
        sizes = [f"{plain.size:,}", f"{split.size:,}", f"{split.overhead:.1f} %"]
        accuracies.append([str(b), *(f"{results[b, way].accuracy:.2f}" for way in _WAYS), *sizes])
        ratios.append([str(b), *(f"{results[b, way].sqnr_db:.1f}" for way in _WAYS)])
    return [
        "Test accuracy in %, and size of the weights:",
        *_aligned(accuracies),
        "",
        "Signal to noise ratio of the quantized kernels, in dB (6 dB are worth a bit):",
        *_aligned(ratios),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _export(model: keras.Model, images: Images, folder: pathlib.Path) -> None:
    """Quantize weights and activations to 8 bits, write the files, run the `.tflite` file."""
    calibration = images.train[0][:CALIBRATION_IMAGES]
    quantized = ocs_tf.convert(model, representative_dataset=calibration)
    report = ocs_tf.report(quantized)
    for name, saved in (("float", model), ("quantized", quantized)):
        with replacing(folder / f"{name}.keras") as temporary:
            saved.save(temporary)
    report.save(folder / "report.txt")
    result = ocs_tf.export_tflite(
        quantized,
        folder / "int8.tflite",
        representative_dataset=calibration,
        overwrite=True,
    )
    runtime = TFLiteModel(result.path)
    keras_accuracy, tflite_accuracy = (evaluate(m, images) for m in (quantized, runtime))
    (closeness,) = compare(quantized, runtime, images.test[0])
    assert closeness.agreement is not None
    print(
        f"8-bit weights and activations, ranges measured on {len(calibration)} training images:\n"
        f"  {keras_accuracy:.2f} % right in Keras, {tflite_accuracy:.2f} % in the TFLite runtime;\n"
        f"  the two agree on {100 * closeness.agreement:.2f} % of the test images.\n\n"
        f"Files in {folder}:\n"
        f"  float.keras      the trained model, {report.bytes_before:,} bytes of weights\n"
        f"  quantized.keras  the same, quantized: load it with keras.models.load_model\n"
        f"  int8.tflite      {result.size:,} bytes, integers throughout\n"
        f"  report.txt       what was done to each layer"
    )


def _as_images(pixels: NDArray[Any]) -> NDArray[Any]:
    """Bytes `[N, h, w]` or `[N, h, w, c]` as float32 `[N, h, w, c]` within 0..1."""
    images = pixels if pixels.ndim == 4 else pixels[..., None]
    return np.asarray(images, np.float32) / 255


def _batches(x: NDArray[Any], size: int = 1000) -> Iterator[Any]:
    for start in range(0, len(x), size):
        yield x[start : start + size]
