"""What equalization of kernels is worth: output SQNR with it and without.

    python -m benchmarks.equalization            # some minutes
    python -m benchmarks.equalization --quick    # two networks for digits, at one width

ResNet-20 of the zoo, calibrated on a quarter of its calibration set and scored on the rest, and
small networks for handwritten digits, trained here. Rows go to `equalization.json` one by one and
are not measured again (`--noresume` does).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from absl import flags
from keras import layers

import ocs_tf
from benchmarks import common
from benchmarks.peers import sqnr_db
from ocs_tf.cli import demo

COMMAND = "python -m benchmarks.equalization"
ZOO_NETWORK = "resnet20_cifar10"
DIGITS = ("dense", "convolutions", "convolutions with batch norms")
QUICK = (DIGITS[0], DIGITS[-1])
CALIBRATION = 256
EPOCHS = 15
# Bits of weights, and whether there are data; with them activations have 8 bits.
COLUMNS = {"W8": (8, False), "W5": (5, False), "W4": (4, False)}
COLUMNS |= {"W4, data": (4, True), "W3, data": (3, True)}
GRANULARITIES = {"tensor": "One step per kernel", "channel": "One step per output channel"}


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures; `column` is one of `COLUMNS`."""

    network: str
    granularity: str
    column: str
    equalization: bool


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """A measured case: SQNR of the outputs in dB, and the share of samples that get the float
    network's label, in percent."""

    sqnr_db: float | None = None
    agreement: float = math.nan


Results = common.Results[Case, Row]


def digits_network(name: str) -> keras.Model:
    """A small network for images of 8 x 8, untrained."""
    if name == "dense":
        hidden = [layers.Dense(units, activation="relu") for units in (128, 64, 32)]
        body = [layers.Flatten(), *hidden]
    else:
        norm = "norms" in name
        body = []
        for filters, strides in ((16, 1), (32, 2), (32, 1), (64, 2)):
            body.append(
                layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=not norm)
            )
            body += [layers.BatchNormalization()] if norm else []
            body.append(layers.ReLU())
        body.append(layers.GlobalAveragePooling2D())
    return keras.Sequential([layers.Input((8, 8, 1)), *body, layers.Dense(10)])


def load(name: str, zoo: str | None = None) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A trained network, what to calibrate it on, and what to score it on."""
    if name == ZOO_NETWORK:
        entry = common.load_zoo(zoo).load(name, limit=1)
        return entry.model, entry.calibration[:CALIBRATION], entry.calibration[CALIBRATION:]
    keras.utils.set_random_seed(0)
    images = demo.load("digits")
    model = digits_network(name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(*images.train, epochs=EPOCHS, batch_size=16, verbose=0)
    return model, images.train[0][:CALIBRATION], images.test[0]


def measure(
    case: Case,
    model: keras.Model,
    calibration: np.ndarray,
    inputs: np.ndarray,
    exact: np.ndarray,
) -> Row:
    """Quantize and score; `exact`: what `model` computes of `inputs`."""
    bits, with_data = COLUMNS[case.column]
    quantized = ocs_tf.convert(
        model,
        weight_bits=bits,
        granularity=case.granularity,
        equalization=case.equalization,
        representative_dataset=calibration if with_data else None,
        verbose=False,
    )
    outputs = np.asarray(quantized(inputs, training=False))
    noise = sqnr_db(exact, outputs)
    return Row(
        **dataclasses.asdict(case),
        sqnr_db=None if noise is None else round(noise, 2),
        agreement=round(100 * float((outputs.argmax(-1) == exact.argmax(-1)).mean()), 2),
    )


def cases(network: str, columns: Sequence[str]) -> Iterator[Case]:
    """All rows of a network."""
    for granularity, column, on in itertools.product(GRANULARITIES, columns, (False, True)):
        yield Case(network, granularity, column, on)


NOTES = """\
SQNR of the outputs in dB, without equalization and with it, on samples that nothing was chosen on;
the better one is bold. Everything else is the default. Without data weights alone are quantized;
*data*: activations in 8 bits, too, calibrated on 256 samples."""


def markdown(results: Results) -> str:
    """The whole report."""
    columns = [c for c in COLUMNS if any(row.column == c for row in results)]
    text = ["# Equalization\n", f"Made by `{COMMAND}`.\n", f"{NOTES}\n"]
    for granularity, title in GRANULARITIES.items():
        pairs = _pairs(results, granularity)
        gains = [with_it - without for without, with_it in pairs.values()]
        lines = [
            [f"`{network}`", *(_cell(pairs.get((network, column))) for column in columns)]
            for network in dict.fromkeys(row.network for row in results)
        ]
        text += [f"## {title}\n", common.markdown_table(["network", *columns], lines)]
        if gains:
            text.append(
                f"Gain: {np.mean(gains):.1f} dB on average, {min(gains):.1f} to {max(gains):.1f}.\n"
            )
    return "\n".join(text)


def _pairs(results: Results, granularity: str) -> dict[tuple[str, str], tuple[float, float]]:
    """By network and column: SQNR without equalization and with it, where both were measured."""
    found = {
        (row.network, row.column, row.equalization): row.sqnr_db
        for row in results
        if row.granularity == granularity and row.sqnr_db is not None
    }
    return {
        (network, column): (found[network, column, False], found[network, column, True])
        for network, column, on in found
        if on and (network, column, False) in found
    }


def _cell(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return ""
    better = max(pair)
    return ", ".join(f"**{noise:.1f}**" if noise == better else f"{noise:.1f}" for noise in pair)


def benchmark(
    folder: pathlib.Path, quick: bool = False, resume: bool = True, zoo: str | None = None
) -> Results:
    """Measure what is missing, and write `equalization.json` and `.md` to `folder`."""
    path = folder / f"equalization{'_quick' if quick else ''}.json"
    results: Results = common.Results(path, Case, Row, resume, machine=common.machine())
    for network in QUICK if quick else (ZOO_NETWORK, *DIGITS):
        missing = results.missing(cases(network, ["W4, data"] if quick else list(COLUMNS)))
        if not missing:
            continue
        model, calibration, inputs = load(network, zoo)
        exact = np.asarray(model(inputs, training=False))
        given = {"model": model, "calibration": calibration, "inputs": inputs, "exact": exact}
        results.fill(missing, functools.partial(measure, **given), network)
    common.save_text(path.with_suffix(".md"), markdown(results))
    return results


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "Two networks for digits, at one width.")
    resume = flags.DEFINE_bool("resume", True, "Keep the rows that were measured before.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    zoo = flags.DEFINE_string("zoo", None, "Folder of the zoo; else $OCS_TF_ZOO or ../shared/zoo.")

    common.run(lambda: benchmark(pathlib.Path(folder.value), quick.value, resume.value, zoo.value))


if __name__ == "__main__":
    main()
