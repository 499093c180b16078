"""`export_tflite`: a quantized model as a `.tflite` file."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ocs_tf import data
from ocs_tf.calibration import calibrate, observe
from ocs_tf.export import _flatbuffer as fb
from ocs_tf.export import (
    attention,
    edge_tpu,
    float_regions,
    int4,
    lowering,
    matching,
    packed,
    writer,
)
from ocs_tf.export.lowering import Lowered, lower
from ocs_tf.export.verification import VerificationError
from ocs_tf.graph.activations import Site, all_sites
from ocs_tf.graph.reader import Graph
from ocs_tf.numerics import ActivationGrid

__all__ = ["ExportResult", "VerificationError", "export_tflite"]

TARGETS = ("int8", "int4", "packed", "float")
IO_DTYPES = ("int8", "float32")
_ACTIVATIONS = ("auto", *int4.ACTIVATIONS)
_FORMS = {
    "int8": lowering.INT8,
    "int4": lowering.INT4,
    "packed": lowering.PACKED,
    "float": lowering.FLOAT,
}

_MATCHING_SAMPLES = 3
_BITS = 8
_NEEDS_DELEGATE = (
    "Packed kernels are read by custom operators: open the file with ocs_tf.tflite.Interpreter, or"
    " load the delegate ocs_tf.tflite.delegate_path() into another runtime."
)


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: of the file.
        target: `"int8"`, `"int4"`, `"packed"` or `"float"`.
        size: bytes.
        ops: every operator of the file, and whether the Edge TPU's documentation allows it
            (`target="int8"` only).
        notes: what a user should know, in plain words.
    """

    path: pathlib.Path
    target: str
    size: int
    ops: list[edge_tpu.OpReport]
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.target}, {self.size:,} bytes", *self.notes]
        if self.ops:
            lines.append(edge_tpu.summary(self.ops))
        return "\n".join(lines)


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    target: str = "int8",
    representative_dataset: data.Dataset = None,
    activations: str = "auto",
    io_dtype: str = "int8",
    dynamic_batch: bool = False,
    merge_copies: bool = True,
    fused_dense: bool = False,
    strict: bool = False,
    overwrite: bool = False,
) -> ExportResult:
    """Write a quantized model to a `.tflite` file.

    Target `"int8"` is full-integer: int8 kernels with exactly the codes and scales of the Keras
    layers (below 8 bits with their own step, at no saving in size), int8 activations on exactly
    the grids of the Keras model, int32 biases. The file is read back, and a difference is an
    error. Layers that were left in float get ordinary 8-bit kernels. Layers that need an operator
    without an int8 form (layer normalization, for example) are computed in float, between a
    DEQUANTIZE and a QUANTIZE; `notes` of the result names them.

    Target `"int4"` is the same, but for kernels of up to 4 bits, which are INT4 tensors, two codes
    in a byte; and activations may stay float.

    Target `"packed"` stores each quantized kernel in exactly its bits, with its scales and the
    copies of split channels, and rounds activations where the model does; it computes in float32.
    Custom operators read it: see `ocs_tf.tflite`. The file is read back, too.

    Target `"float"` is the lowered graph in float32: quantized kernels as numbers, activations not
    rounded.

    Arguments:
        model: what `convert` returned.
        path: of the file to write.
        target: `"int8"`, `"int4"`, `"packed"` or `"float"`.
        representative_dataset: inputs, in any form that `convert` takes and can be read twice;
            needed for int8 activations where those of `model` have no grid.
        activations: with `"int8"` and `"int4"`. `"int8"`: on the grids of `model`, or measured
            ones, which makes recurrent layers straight (unrolled); `"float"`:
            kernels are turned into floats again, exactly; `"dynamic"`: the runtime quantizes them
            to 8 bits, by each input's own range. `"auto"` is `"int8"`, but `"float"` with target
            `"int4"` where `model` has no grids and no data are given.
        io_dtype: of the inputs and outputs of a file with int8 activations: `"int8"` or
            `"float32"`.
        dynamic_batch: leave the batch size open instead of fixing it to 1. Runtimes for
            accelerators and microcontrollers want it fixed.
        merge_copies: add the copies of split channels up wherever the sum of their codes fits
            int8; the integers that are accumulated are the same, and the channels cost nothing.
            `False` keeps every copy a channel of its own. The files of target `"packed"` hold the
            copies in any case; they are added up when a file is loaded.
        fused_dense: with `"packed"`, multiply by the packed codes of large dense kernels as they
            are instead of unpacking them when the file is loaded: less memory, and faster for
            batches of up to 4.
        strict: with int8 activations, a layer that would be computed in float is an error.
        overwrite: replace an existing file.

    Returns:
        What was written, with the list of operators.

    Raises:
        ValueError: an argument is not usable, `model` has activations of other than 8 bits where
            the file's are int8, a range of activations is missing and no data are given, or
            runtimes are known to fail with an INT4 kernel (the message names the layer).
        FileExistsError: `path` exists and `overwrite` is False.
        FileNotFoundError: the folder of `path` does not exist.
        VerificationError: the file would differ from the model or, if `strict`, an operator has
            no integer form. No file is left behind.
    """
    path = pathlib.Path(path)
    _check(path, target, activations, io_dtype, fused_dense, overwrite)
    batch_size = None if dynamic_batch else 1
    if target == "int4" and activations == "auto":
        known = representative_dataset is not None or _has_grids(model)
        activations = "int8" if known else "float"
    form = _form(target, activations)
    if form.integer:
        _check_activation_bits(model)
    lowered = lower(model, form, merge_copies=merge_copies, batch_size=batch_size)
    if target == "int4":
        int4.check(lowered.kernels, activations)
    content = convert_float(lowered.model)
    ops: list[edge_tpu.OpReport] = []
    if form.integer:
        content = attention.limit_masks(content)
        open_batch = lower(model, form, merge_copies=merge_copies, batch_size=None)
        grids, ranges, left, note = _activations(content, open_batch, representative_dataset)
        if note and strict:
            raise VerificationError(f"{note} Replace them, or export with strict=False.")
        lowered.notes.extend([note] if note else [])
        content = writer.write_int8(
            content,
            lowered.kernels,
            grids,
            ranges,
            float_io=io_dtype == "float32",
            left_float=left,
        )
        if target == "int8":
            ops = edge_tpu.check(content)
    elif form.kernels in ("int8", "int4"):
        content = writer.write_weights(content, lowered.kernels, dynamic=activations == "dynamic")
    elif target == "packed":
        content = packed.write_packed(content, lowered.kernels, fused_dense=fused_dense)
        lowered.notes.append(_NEEDS_DELEGATE)
    write_file(path, content)
    return ExportResult(path, target, len(content), ops, lowered.notes)


def convert_float(model: keras.Model) -> bytes:
    """A float Keras model as the bytes of a `.tflite` file, without the converter's chatter.

    Raises:
        ValueError: TensorFlow's converter does not know an operator, or makes a wrong graph.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    try:
        with fb.quiet(), contextlib.redirect_stdout(io.StringIO()):
            return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    except ConverterError as error:
        raise ValueError(_converter_failed(model, str(error))) from error


def _converter_failed(model: keras.Model, message: str) -> str:
    """What to tell a user, given the converter's `message`, which is long and of its own words."""
    parts = set(re.split(r"[/;\"@]", message))
    at = [layer.name for layer in model.layers if parts & {layer.name, f"{layer.name}_1"}]
    where = f"at {', '.join(map(repr, at))}" if at else "on the model"
    reason = re.search(r"'t\w+\.\w+' op .*", message)
    return (
        f"TensorFlow's converter fails {where}: {reason[0] if reason else message.strip()}."
        " Replace a layer there by others that compute the same (a Dense layer on a sequence of"
        " one channel by a Conv1D of size 1, for example)."
    )


def write_file(path: pathlib.Path, content: bytes) -> None:
    """Write `content` to `path` in one step: whatever fails, no partial file is left.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _check(
    path: pathlib.Path,
    target: str,
    activations: str,
    io_dtype: str,
    fused_dense: bool,
    overwrite: bool,
) -> None:
    for name, value, choices in (
        ("target", target, TARGETS),
        ("activations", activations, _ACTIVATIONS),
        ("io_dtype", io_dtype, IO_DTYPES),
    ):
        if value not in choices:
            raise ValueError(f"`{name}` (={value!r}) must be one of {', '.join(choices)}.")
    if activations != "auto" and target not in ("int8", "int4"):
        raise ValueError(
            f"`activations` (={activations!r}) is a choice of targets 'int8' and 'int4', not of"
            f" {target!r}; leave it 'auto'."
        )
    if fused_dense and target != "packed":
        raise ValueError(
            f"`fused_dense` (={fused_dense!r}) multiplies by packed codes, which target={target!r}"
            " does not have; use target='packed'."
        )
    if path.exists() and not overwrite:
        raise FileExistsError(f"`path` {path} exists; pass overwrite=True to replace it.")
    if path.is_dir():
        raise ValueError(f"`path` {path} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of `path` {path} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder of `path` {path} cannot be written to.")


def _form(target: str, activations: str) -> lowering.Form:
    if activations in ("float", "dynamic"):
        return lowering.INT4_WEIGHTS if target == "int4" else lowering.INT8_WEIGHTS
    return _FORMS[target]


def _grids(model: keras.Model) -> Iterator[tuple[str, ActivationGrid]]:
    """Names of layers of a quantized model, with the grids that they round to."""
    for layer in model._flatten_layers():
        for attribute in ("grid", "output_grid", "preactivation_grid"):
            grid = getattr(layer, attribute, None)
            if grid is not None:
                yield layer.name, grid


def _has_grids(model: keras.Model) -> bool:
    return next(_grids(model), None) is not None


def _check_activation_bits(model: keras.Model) -> None:
    """Refuse activations that an int8 file cannot hold, before any work."""
    for name, grid in _grids(model):
        if grid.bits != _BITS:
            raise ValueError(
                f"layer {name!r} has {grid.bits}-bit activations, which an int8 .tflite cannot"
                " hold. Convert with activation_bits=8 (or None, and pass representative_dataset"
                " here), or export with target='packed'."
            )


def _activations(
    content: bytes, lowered: Lowered, dataset: data.Dataset
) -> tuple[dict[str, ActivationGrid], dict[str, tuple[float, float]], set[int], str]:
    """Grid or, inside of layers that Keras sees as one, range of each tensor of the file.

    And the operators that stay in float, inside of which there is nothing to be rounded, and what
    a user should know of them.
    """
    # What goes into an activation function is a tensor of the lowered graph already, but in layers
    # that were left in float: those are one step, and the file tells the ranges inside.
    tables = [kernel.layer for kernel in lowered.kernels if kernel.kind == "lookup"]
    found = all_sites(Graph(lowered.model), quantized=set(), tables=tables)
    sites = [site for site in found if not site.fixed]
    by_group = _grids_by_group(sites, lowered, dataset)
    sample = _sample(lowered, dataset)
    flat = [(site, tensor) for site in sites for tensor in site.tensors]
    tensors = [tensor for _, tensor in flat]
    (values,) = observe(lowered.model, tensors, [list(sample.values())]) if flat else ([],)
    keys = {}
    for i, (site, _) in enumerate(flat):
        keys[site.key if site.key not in keys else f"{site.key}#{i}"] = site
    arrays = dict(zip(keys, (np.asarray(v) for v in values), strict=True))
    matches = matching.match_tensors(content, sample, arrays)
    grids = {name: by_group[keys[key].group] for name, key in matches.items()}
    model = fb.read_straight(content)
    left = float_regions.float_operators(model, grids)
    names = [layer.name for layer in lowered.model._flatten_layers(include_self=False)]
    note = float_regions.describe(model, left, names, matches)
    unrounded = float_regions.inside(model, left, grids)
    missing = sorted(writer.needed_activations(content) - set(grids) - unrounded)
    if not missing:
        return grids, {}, left, note
    if dataset is None:
        raise ValueError(
            f"the range of {missing[0]!r} (and {len(missing) - 1} more tensors inside of layers)"
            " is not known; pass representative_dataset."
        )
    measured = matching.measure_ranges(content, _named_batches(lowered, dataset))
    ranges = {name: measured[name] for name in missing}
    for name in attention.symmetric_factors(model) & set(missing):
        ranges[name] = attention.symmetric(*ranges[name])
    return grids, ranges, left, note


def _grids_by_group(
    sites: list[Site], lowered: Lowered, dataset: data.Dataset
) -> dict[str, ActivationGrid]:
    """One grid per group of sites: the model's own, or a measured one where it has none."""
    grids: dict[str, ActivationGrid] = {}
    for site in sites:
        names = [site.key, *(t._keras_history.operation.name for t in site.tensors)]
        for name in names:
            given = lowered.grids.get(name)
            known = grids.get(site.group)
            if given and (known is None or given.scale > known.scale):
                grids[site.group] = given
    missing = [site for site in sites if site.group not in grids]
    if not missing:
        return grids
    if dataset is None:
        raise ValueError(
            f"the activations of `model` have no grid at {missing[0].key!r}"
            f" ({len(missing)} such places): pass representative_dataset to measure them, or"
            " convert with it and activation_bits=8."
        )
    batches = data.batches(dataset, lowered.model)
    seen = calibrate(lowered.model, {site.key: site.tensors for site in missing}, batches)
    for group in {site.group for site in missing}:
        members = [seen[site.key] for site in missing if site.group == group]
        low, high = min(s.minimum for s in members), max(s.maximum for s in members)
        grids[group] = ActivationGrid.from_range(low, high, _BITS)
    return grids


def _sample(lowered: Lowered, dataset: data.Dataset) -> Mapping[str, np.ndarray]:
    """A few inputs by name, to tell tensors apart by: real ones, or noise of the right range."""
    model = lowered.model
    if dataset is not None:
        return next(_named_batches(lowered, dataset, limit=_MATCHING_SAMPLES))
    rng = np.random.default_rng(0)
    sample = {}
    for tensor in model.inputs:
        grid = lowered.grids.get(tensor.name)
        low, high = (grid.minimum, grid.maximum) if grid else (-1.0, 1.0)
        shape = (_MATCHING_SAMPLES, *(size or 1 for size in tensor.shape[1:]))
        noise = rng.uniform(low, high, shape)
        sample[tensor.name] = noise.astype(keras.backend.standardize_dtype(tensor.dtype))
    return sample


def _named_batches(
    lowered: Lowered, dataset: data.Dataset, limit: int | None = None
) -> Iterator[Mapping[str, Any]]:
    names = [tensor.name for tensor in lowered.model.inputs]
    for batch in data.batches(dataset, lowered.model, limit=limit):
        yield dict(zip(names, batch, strict=True))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
