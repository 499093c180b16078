"""What a user does with a model, step by step, and how close each result is."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

import ocs_tf
from benchmarks import common
from ocs_tf import layers

LEGEND = (
    "*Layers in place*: those of other packages that cannot be traced; others are opened. *W8*,"
    " *W8A8*: the outputs of the quantized Keras model against the float one's, the worst of them;"
    " *reloaded*: the largest difference after saving and loading; *packed*, *int8*: the outputs of"
    " the W8A8 file against the Keras model's, on a few samples; *in float*: whether layers of the"
    " int8 file are computed in float32."
)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What came out of each step; its error, where it has one.

    Attributes:
        kernels: how many are quantized.
        in_place: how many users' layers are quantized in place, not opened.
        weights, both: outputs of the Keras model against the float one's, dB: with 8-bit weights,
            and with 8-bit activations, too.
        reloaded: largest difference of outputs after saving and loading.
        packed, int8: outputs of the file against the Keras model's, dB.
        in_float: notes on layers that the int8 file computes in float32.
    """

    kernels: int
    in_place: int
    weights: str
    both: str
    reloaded: str
    packed: str
    int8: str
    in_float: int


def measured(model: keras.Model, x: Any) -> Steps:
    """All steps for one model and its inputs `x`."""
    options: dict[str, Any] = {"weight_bits": 8, "verbose": False}
    made: dict[str, keras.Model] = {}
    notes: list[str] = []

    def converted(key: str, **more: Any) -> str:
        made[key] = ocs_tf.convert(model, **options, **more)
        return _decibels(ocs_tf.compare(model, made[key], x))

    def exported(path: pathlib.Path, target: Any, **more: Any) -> str:
        result = ocs_tf.export_tflite(made["both"], path, target=target, **more)
        notes[:] = [note for note in result.notes if "float" in note]
        return _decibels(result.closeness)

    def reloaded(path: pathlib.Path) -> str:
        made["both"].save(path)
        found = ocs_tf.compare(made["both"], keras.models.load_model(path), x)
        return f"{max(one.max_difference for one in found):g}"

    with tempfile.TemporaryDirectory() as text, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = pathlib.Path(text)
        weights = _tried(lambda: converted("weights"))
        both = _tried(lambda: converted("both", representative_dataset=x))
        saved = _tried(lambda: reloaded(folder / "model.keras"))
        packed = _tried(lambda: exported(folder / "packed.tflite", "packed"))
        int8 = _tried(lambda: exported(folder / "int8.tflite", "int8", representative_dataset=x))
    found = made.get("both")
    rows = [] if found is None else ocs_tf.report(found).layers
    kernels = sum(row.bits is not None for row in rows)
    inside = [] if found is None else [layers.unwrapped(layer) for layer in found.layers]
    in_place = sum(isinstance(layer, layers.QuantizedInside) for layer in inside)
    return Steps(kernels, in_place, weights, both, saved, packed, int8, len(notes))


def table(kind: str, rows: Sequence[tuple[str, Steps]]) -> str:
    """Rows by name, as Markdown."""
    names = [field.name for field in dataclasses.fields(Steps)]
    headers = ["kernels", "layers in place", "W8", "W8A8", "reloaded", "packed", "int8", "in float"]
    cells = [[name, *(str(getattr(row, field)) for field in names)] for name, row in rows]
    return common.markdown_table([kind, *headers], cells)


def _tried(step: Callable[[], str]) -> str:
    """What a step gives, or the first line of its error."""
    try:
        return step()
    except Exception as error:
        return str(error).strip().splitlines()[0][:160]


def _decibels(closeness: Any) -> str:
    return f"{min(one.sqnr_db for one in closeness):.1f} dB"
