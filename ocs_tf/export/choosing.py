"""Which kind of file `target="auto"` and `"smallest"` stand for."""

from __future__ import annotations

import keras

from ocs_tf.export import int4, sizes
from ocs_tf.export.choices import Activations, Target
from ocs_tf.export.quantized_model import check_grids, has_grids
from ocs_tf.runtime import NativeLibraryError, library_path

NAMES = ("auto", "smallest")


def choose(
    model: keras.Model, target: Target, activations: Activations, *, has_data: bool, micro: bool
) -> tuple[Target, Activations, str]:
    """The target and the activations of a file, and a note on why.

    `"auto"`: a file that computes in integers, where activations can be; else the smallest.
    `"smallest"`: of the files that this machine runs, the one whose codes take the fewest bytes.

    Arguments:
        model: a quantized model.
        target: `"auto"` or `"smallest"`.
        activations: as of `export_tflite`; packed files have no choice of them.
        has_data: whether there are data to measure activations on.
        micro: whether the file is for TFLite Micro, which has neither packed kernels nor INT4 ones
            of dense layers with a scale per channel.
    """
    integers = activations in ("auto", "int8") and _can_be_integers(model, has_data)
    if target == "auto" and (integers or activations == "int8"):
        return "int8", "int8", "Target 'int8' was chosen: activations can be integers."
    chosen: Activations = activations
    if activations == "auto":
        chosen = "int8" if integers else "float"
    possible: dict[Target, Activations] = {"int8": chosen}
    kernels = sizes.kernel_sizes(model)
    why_not = ""
    if not micro and _runs_in_int4(kernels, chosen):
        possible["int4"] = chosen
    if not micro and activations == "auto":
        why_not = _missing_delegate()
        possible |= {} if why_not else {"packed": "auto"}
    codes = sizes.total(kernels)
    best = min(possible, key=lambda kind: codes[kind])
    others = ", ".join(f"{codes[kind]:,} as {kind}" for kind in possible if kind != best)
    note = f"Target {best!r} was chosen: its codes take {codes[best]:,} bytes"
    return best, possible[best], f"{note}{f' ({others})' if others else ''}.{why_not}"


def _can_be_integers(model: keras.Model, has_data: bool) -> bool:
    """Whether all activations that are rounded have 8 bits, and the ranges of others are known."""
    try:
        check_grids(model)
    except ValueError:
        return False
    return has_data or has_grids(model)


def _runs_in_int4(kernels: list[sizes.KernelSize], activations: str) -> bool:
    """Whether there are kernels to store in INT4, and runtimes compute with all of them."""
    try:
        int4.check(kernels, activations)
    except ValueError:
        return False
    return True


def _missing_delegate() -> str:
    """A sentence on why packed files are left out; no text if they are not."""
    try:
        library_path()
    except NativeLibraryError as error:
        return f" Packed files were left out: {error}"
    return ""
