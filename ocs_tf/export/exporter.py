"""`export_tflite`: a quantized model as a `.tflite` file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from ocs_tf import data
from ocs_tf._synthesize import is_word, source_of
from ocs_tf.closeness import Closeness
from ocs_tf.export import (
    choosing,
    edge_tpu,
    failures,
    int4,
    integer_writer,
    micro,
    packed,
    running,
    sizes,
)
from ocs_tf.export.barrier import without_barriers
from ocs_tf.export.choices import (
    ACTIVATIONS,
    ARRAY_SUFFIXES,
    IO_DTYPES,
    TARGETS,
    Activations,
    IODtype,
    Target,
)
from ocs_tf.export.errors import VerificationError
from ocs_tf.export.float_file import convert_float
from ocs_tf.export.form import Form, form_of
from ocs_tf.export.long_concatenations import in_steps
from ocs_tf.export.lowering import Lowered, lower
from ocs_tf.export.quantized_model import check_grids, coarse_parts, has_grids
from ocs_tf.export.samples import sample_inputs
from ocs_tf.export.signature import in_keras_order, sized_as
from ocs_tf.export.tensor_grids import TensorGrids, find_activations
from ocs_tf.export.unsigned import unsigned_borders
from ocs_tf.export.unused import drop_unused
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.substitutions.inlining import check_model, flat
from ocs_tf.keras_internals import maker
from ocs_tf.keras_state import restores_state
from ocs_tf.numerics.checks import check_choice, check_switch
from ocs_tf.paths import checked_path, writable_file
from ocs_tf.runtime import NativeLibraryError
from ocs_tf.runtime import micro as micro_runtime
from ocs_tf.writing import replacing, write

_NEEDS_DELEGATE = (
    "Packed kernels are read by custom operators: open the file with ocs_tf.tflite.Interpreter, or"
    " load the delegate ocs_tf.tflite.delegate_path() into another runtime."
)
_IN_STEPS = (
    "It joins up to ten tensors at once: with c_array, an export joins more of them in steps."
)
_INT4_FAILS = (
    "Arm's compiler Vela (5.2) crashes on INT4 kernels, and TFLite Micro refuses dense ones with a"
    " scale per channel: for Ethos-U and microcontrollers export with target='int8'."
)


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    Attributes:
        path: of the file.
        target: `"int8"`, `"int4"`, `"packed"` or `"float"`.
        size: bytes.
        ops: every operator of the file, and whether the Edge TPU's documentation allows it
            (`target="int8"` only).
        notes: what a user should know, in plain words.
        closeness: of each output to that of the Keras model, on a few samples; empty where the
            file was not run. Files whose activations stay float are compared with the model
            without rounded activations.
        operators: names of the file's operators, each once.
        integer: whether activations are integers.
        other_sizes: about how many bytes a file of each other target would have: the same codes.
        widths: bits of the codes of the model's kernels.
    """

    path: pathlib.Path
    target: str
    size: int
    ops: list[edge_tpu.OpReport]
    notes: list[str]
    closeness: list[Closeness] = dataclasses.field(default_factory=list)
    operators: tuple[str, ...] = ()
    integer: bool = False
    other_sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    widths: tuple[int, ...] = ()

    @functools.cached_property
    def arena(self) -> micro_runtime.Arena | None:
        """The arena that TFLite Micro needs for the file, or why it refuses it.

        Found when it is first asked for, which takes a second. `None` without the package
        `tflite-micro` (the extra `micro`), or where the file is not there any more.
        """
        if not micro_runtime.installed():
            return None
        with contextlib.suppress(OSError, ValueError):
            return micro_runtime.find_arena(self.path.read_bytes())
        return None

    @property
    def arena_bytes(self) -> int | None:
        """Bytes of the arena that TFLite Micro needs; `None` where that is not known."""
        return self.arena.size if self.arena else None

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.target}, {self.size:,} bytes", *self.notes]
        if self.other_sizes:
            lines.append(sizes.describe(self.target, self.size, self.other_sizes, self.widths))
        if self.ops:
            lines.append(edge_tpu.summary(self.ops))
        if self.integer and self.arena:
            lines.append(_on_microcontrollers(self.arena, self.operators))
        return "\n".join(lines)


def _on_microcontrollers(arena: micro_runtime.Arena, operators: tuple[str, ...]) -> str:
    if arena.size is None:
        more = f". {_IN_STEPS}" if "kMaxInputNum" in arena.refusal else ""
        return f"TFLite Micro refuses the file: {arena.refusal}{more}"
    return micro.describe(operators, arena.size)


@restores_state
def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    target: Target = "int8",
    representative_dataset: data.Dataset = None,
    activations: Activations = "auto",
    io_dtype: IODtype = "int8",
    dynamic_batch: bool = False,
    merge_copies: bool = True,
    fused_dense: bool = False,
    c_array: str | os.PathLike[str] | None = None,
    strict: bool = False,
    overwrite: bool = False,
    verify: bool = True,
) -> ExportResult:
    """Write a quantized model to a `.tflite` file.

    Target `"int8"` is full-integer: int8 kernels with exactly the codes and scales of the Keras
    layers (one byte each at any bit width), int8 activations on exactly
    the grids of the Keras model, int32 biases. The file is read back, and a difference is an
    error. Layers that were left in float32 get ordinary 8-bit kernels. Layers that need an operator
    without an int8 form (`keras.ops.cumsum`, for example), and those inside of which 8 bits are too
    few, are computed in float32, between a DEQUANTIZE and a QUANTIZE; `notes` of the result names
    them.

    Target `"int4"` is the same, except that kernels of up to 4 bits are INT4 tensors, two codes
    in a byte, and activations may stay float32.

    Target `"packed"` stores each quantized kernel in exactly its bits, with its scales and the
    copies of split channels, and rounds activations where the model does; it computes in float32.
    Custom operators read it: see `ocs_tf.tflite`. The file is read back, too.

    Target `"float"` is the lowered graph in float32: quantized kernels as numbers, activations not
    rounded.

    Arguments:
        model: what `convert` returned.
        path: the file to write.
        target: `"int8"`, `"int4"`, `"packed"` or `"float"`. `"auto"`: `"int8"` where activations
            can be integers, else as `"smallest"`: the smallest file that this machine can run.
            `target` of the result is what was chosen, and its `notes` say why.
        representative_dataset: inputs, in any form that `convert` takes; needed for int8
            activations where those of `model` have no grid. At most 1,024 samples are used.
            `"synthetic"` stands for noise within the grids of the inputs: batch norms, which could
            tell more, are folded. `synthesize(float_model)` makes better ones.
        activations: with `"int8"` and `"int4"`. `"int8"`: on the grids of `model`, or measured
            ones, which unrolls recurrent layers; `"float"`:
            kernels are dequantized, exactly; `"dynamic"`: the runtime quantizes them
            to 8 bits, by each input's own range. `"auto"` is `"int8"`, but `"float"` with target
            `"int4"` where `model` has no grids and no data are given.
        io_dtype: type of the inputs and outputs of a file with int8 activations: `"int8"`,
            `"uint8"` (codes and zero points are 128 higher, so that images can be given as they
            are where their grid has scale 1 or 1/255 and starts at 0) or `"float32"`.
        dynamic_batch: leave the batch size open instead of fixing it to that of `model`, or to 1
            where `model` leaves it open. Runtimes for accelerators and microcontrollers want it
            fixed.
        merge_copies: add the copies of split channels up wherever the sum of their codes fits
            int8; the integers that are accumulated are the same, and the channels cost nothing.
            `False` keeps every copy a channel of its own. The files of target `"packed"` hold the
            copies in any case; they are added up when a file is loaded.
        fused_dense: with `"packed"`, multiply by the packed codes of large dense kernels as they
            are instead of unpacking them when the file is loaded: less memory, and faster for
            batches of up to 4.
        c_array: also write the file as a C++ array to this `.cc`, `.cpp` or `.cxx` file, and a
            header of the same name that declares it and registers its operators with TFLite Micro.
            Concatenations of more than ten tensors are made in steps then, also in `path`.
        strict: with int8 activations, a layer that would be computed in float is an error.
        overwrite: replace an existing file.
        verify: run the file in LiteRT on three samples (of the data, or drawn to fit the inputs'
            grids, types and tables), and compare its outputs with those of `model`.

    Returns:
        What was written, with the list of operators.

    Raises:
        ValueError: an argument is not usable, `model` has activations of other than 8 bits where
            the file's are int8, a range of activations is missing and no data are given, or
            runtimes are known to fail with an INT4 kernel (the message names the layer);
            `model` is no Keras model that is built.
        FileExistsError: `path` exists, or `c_array` or its header, and `overwrite` is False.
        IsADirectoryError: `path` or `c_array` is a folder.
        FileNotFoundError: the folder of `path` or `c_array` does not exist.
        VerificationError: the file would differ from the model; with `verify`, its outputs are
            more than one step of their grid from the model's and less than 10 dB close to them,
            or the runtime refuses it; with `c_array`, TFLite Micro lacks an operator or, where it
            is installed, refuses the file; if `strict`, an operator has no integer form. No file is
            left behind.
    """
    check_model(model)
    path = checked_path(path)
    _check_switches(
        dynamic_batch=dynamic_batch,
        merge_copies=merge_copies,
        fused_dense=fused_dense,
        strict=strict,
        overwrite=overwrite,
        verify=verify,
    )
    _check_choices(target, activations, io_dtype, fused_dense)
    writable_file(path, overwrite=overwrite)
    array = None if c_array is None else _checked_array(c_array, target, dynamic_batch, overwrite)
    chosen = ""
    if fused_dense and target in choosing.NAMES:
        target = "packed"
    if target in choosing.NAMES:
        has_data = representative_dataset is not None
        target, activations, chosen = choosing.choose(
            model, target, activations, has_data=has_data, micro=array is not None
        )
    if target == "int4" and activations == "auto":
        known = representative_dataset is not None or has_grids(model)
        activations = "int8" if known else "float"
    form = form_of(target, activations)
    if form.integer:
        check_grids(model)
    source = _source(representative_dataset)
    lowered = lower(model, form, merge_copies=merge_copies, batch_size=None if dynamic_batch else 1)
    lowered.notes.extend([chosen] if chosen else [])
    _check_lowered(lowered, target, activations, dynamic_batch)
    if is_word(representative_dataset):
        source = _synthetic(lowered)
    original = _float_file(lowered, source)
    reason = ""  # why outputs may be far from the model's
    if form.integer:
        failures.check_straight(original.content, lowered.model)
        open_batch = lowered
        if not dynamic_batch:
            open_batch = lower(model, form, merge_copies=merge_copies, batch_size=None)
        found = find_activations(original.content, open_batch, original.samples, source)
        _take_notes(found, lowered, strict)
        reason = found.coarse_scores
        content = _integer_file(found, lowered, io_dtype)
    else:
        dynamic = activations == "dynamic"
        content = _with_kernels(original.content, lowered, form, dynamic, fused_dense)
    if target == "int4" and form.integer:
        lowered.notes.append(_INT4_FAILS)
    if array is not None:
        content = in_steps(content)
    lowered.notes.extend(coarse_parts(model))
    closeness = _run(content, model, form, lowered, original, reason) if verify else []
    operators = micro.operators(content)
    with _written_array(content, operators, array, overwrite):
        write(path, content, overwrite=overwrite)
    kernels = sizes.kernel_sizes(model)
    return ExportResult(
        path,
        target,
        len(content),
        edge_tpu.check(content) if form.integer and target == "int8" else [],
        lowered.notes,
        closeness,
        operators=operators,
        integer=form.integer,
        other_sizes=sizes.others(target, len(content), sizes.total(kernels)),
        widths=tuple(sorted({kernel.width for kernel in kernels})),
    )


def _checked_array(
    c_array: str | os.PathLike[str], target: str, dynamic_batch: bool, overwrite: bool
) -> pathlib.Path:
    path = checked_path(c_array, "c_array")
    if path.suffix not in ARRAY_SUFFIXES:
        raise ValueError(f"`c_array` (={path}) must end in one of {', '.join(ARRAY_SUFFIXES)}.")
    if target == "packed":
        raise ValueError(
            "`c_array` is for TFLite Micro, which cannot read packed kernels; use target='int8'."
        )
    if dynamic_batch:
        raise ValueError(
            "`c_array` is for TFLite Micro, which needs a fixed batch size; leave"
            " dynamic_batch=False."
        )
    writable_file(path, "c_array", overwrite=overwrite)
    writable_file(micro.header_path(path), "the header of `c_array`", overwrite=overwrite)
    return path


@contextlib.contextmanager
def _written_array(
    content: bytes, operators: tuple[str, ...], path: pathlib.Path | None, overwrite: bool
) -> Iterator[None]:
    """Write a file as C++ to `path`, unless what is done within the context fails.

    Raises:
        VerificationError: TFLite Micro cannot run it.
    """
    if path is None:
        yield
        return
    micro.check(operators)
    size = None
    if micro_runtime.installed():
        arena = micro_runtime.find_arena(content)
        if arena.size is None:
            raise VerificationError(
                f"TFLite Micro refuses the file: {arena.refusal}. Nothing was written; leave"
                " `c_array` out to write it all the same."
            )
        size = arena.size
    texts = {
        path: micro.source_text(content, path),
        micro.header_path(path): micro.header_text(operators, size, path),
    }
    with contextlib.ExitStack() as files:
        for name, text in texts.items():
            temporary = files.enter_context(replacing(name, overwrite=overwrite))
            temporary.write_text(text, encoding="ascii")
        yield


def _source(dataset: data.Dataset) -> data.Source | None:
    """What was given as data; `None` if nothing was, or data are to be made."""
    return None if is_word(dataset) else data.Source.of(dataset)


def _take_notes(found: TensorGrids, lowered: Lowered, strict: bool) -> None:
    """Note what stays in float, or refuse it if `strict`."""
    if found.notes and strict:
        reasons = " ".join(found.notes)
        raise VerificationError(f"{reasons} Replace them, or export with strict=False.")
    lowered.notes.extend(note for note in (*found.notes, found.coarse_scores) if note)


def _run(
    content: bytes,
    model: keras.Model,
    form: Form,
    lowered: Lowered,
    original: _FloatFile,
    reason: str,
) -> list[Closeness]:
    """Run the file, and compare its outputs; note where it cannot be run here."""
    rounds = form.integer or form.rounds
    reference = flat(model) if rounds or not has_grids(model) else lowered.model
    samples, before = original.samples, original.content
    try:
        return running.compare(content, reference, samples, before, lowered, reason)
    except NativeLibraryError as error:
        lowered.notes.append(f"The file was not run: {error}")
        return []


def _with_kernels(
    original: bytes, lowered: Lowered, form: Form, dynamic: bool, fused_dense: bool
) -> bytes:
    """The file with its kernels in the form of a target whose activations are float."""
    if form.kernels == "packed":
        lowered.notes.append(_NEEDS_DELEGATE)
        return packed.write_packed(original, lowered.kernels, fused_dense=fused_dense)
    if form.kernels == "float":
        return original
    return integer_writer.write_weights(original, lowered.kernels, dynamic=dynamic)


def _synthetic(lowered: Lowered) -> data.Source:
    """Noise within the grids of the inputs, where these are known."""
    grids = {str(maker(t).name): lowered.grids.get(t.name) for t in lowered.model.inputs}
    ranges = {name: (grid.minimum, grid.maximum) for name, grid in grids.items() if grid}
    return source_of(Graph(lowered.model), method="noise", input_range=ranges, verbose=False)


@dataclasses.dataclass(frozen=True)
class _FloatFile:
    """What TensorFlow's converter makes of a lowered model, and a few inputs of it by name."""

    content: bytes
    samples: Mapping[str, np.ndarray]


def _float_file(lowered: Lowered, source: data.Source | None) -> _FloatFile:
    """A lowered model as a float file in Keras' order, with no kernels that no output needs."""
    samples = sample_inputs(lowered, source)
    content = in_keras_order(convert_float(lowered.model), lowered.model)
    content = sized_as(without_barriers(content), lowered.model, list(samples.values()))
    drop_unused(lowered, content, samples)
    return _FloatFile(content, samples)


def _integer_file(found: TensorGrids, lowered: Lowered, io_dtype: str) -> bytes:
    content = integer_writer.write_int8(
        found.content,
        lowered.kernels,
        found.grids,
        found.ranges,
        float_io=io_dtype == "float32",
        left_float=found.left_float,
        unrounded=found.unrounded,
    )
    return unsigned_borders(content) if io_dtype == "uint8" else content


def _check_switches(**switches: object) -> None:
    for name, value in switches.items():
        check_switch(name, value)


def _check_lowered(lowered: Lowered, target: str, activations: str, dynamic_batch: bool) -> None:
    own_batch = data.fixed_batch_size(lowered.model)
    if dynamic_batch and own_batch is not None:
        raise ValueError(
            "`dynamic_batch` (=True) leaves the batch size open, but that of `model` is"
            f" {own_batch}. Build it with an open one, or leave dynamic_batch=False."
        )
    if target == "int4":
        int4.check(lowered.kernels, activations)


def _check_choices(
    target: str,
    activations: str,
    io_dtype: str,
    fused_dense: bool,
) -> None:
    for name, value, choices in (
        ("target", target, TARGETS),
        ("activations", activations, ACTIVATIONS),
        ("io_dtype", io_dtype, IO_DTYPES),
    ):
        check_choice(name, value, choices)
    if activations != "auto" and target in ("packed", "float"):
        raise ValueError(
            f"`activations` (={activations!r}) is a choice of targets 'int8' and 'int4', not of"
            f" {target!r}; leave it 'auto'."
        )
    if fused_dense and target in ("int8", "int4", "float"):
        raise ValueError(
            f"`fused_dense` (={fused_dense!r}) multiplies by packed codes, which target={target!r}"
            " does not have; use target='packed'."
        )
