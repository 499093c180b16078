"""Sizes of a model's files: what the same codes take in each kind of file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.export.form import Form
from ocs_tf.export.lowering.kernels import adapter_of, inside
from ocs_tf.graph import adapters
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.substitutions.inlining import flat

_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class KernelSize:
    """The codes of one kernel.

    Attributes:
        layer: its name.
        kind: as of `ExportKernel`.
        bits: of the tensor in an INT4 file: 4 or 8.
        width: bits of the codes.
        bytes: in each kind of file.
    """

    layer: str
    kind: str
    bits: int
    width: int
    bytes: Mapping[str, int]


def kernel_sizes(model: keras.Model) -> list[KernelSize]:
    """The sizes of all kernels of a quantized model.

    Copies of split channels are added up where the sums fit the file's integers; packed files have
    them in any case.
    """
    return [_size(name, stored, kind) for name, stored, kind in _kernels(model)]


def total(kernels: list[KernelSize]) -> dict[str, int]:
    """Bytes of all codes, by the kind of file."""
    kinds = ("int8", "int4", "packed", "float")
    return {kind: sum(kernel.bytes[kind] for kernel in kernels) for kind in kinds}


def others(written: str, size: int, codes: Mapping[str, int]) -> dict[str, int]:
    """About how many bytes the other kinds of files of a model would have.

    Arguments:
        written: the kind of a file, and
        size: its bytes.
        codes: of the model, as `total` gives them.
    """
    rest = size - codes[written]
    return {kind: rest + count for kind, count in codes.items() if kind != written}


def describe(written: str, size: int, other: Mapping[str, int], widths: tuple[int, ...]) -> str:
    """A line of an export's report.

    Arguments:
        written, size: as of `others`, and
        other: what it gives.
        widths: bits of the codes.
    """
    narrow = [str(bits) for bits in widths if bits < 8]
    why = ""
    if written == "int8" and narrow:
        why = f"codes of {' and '.join(narrow)} bits take a byte each here, "
    elif written == "float":
        why = "codes take four bytes each here, "
    shown = ", ".join(f"{kind} {_readable(count)}" for kind, count in other.items())
    return f"Sizes: {why}{_readable(size)}; other targets, about: {shown}"


def _size(name: str, stored: keras.layers.Layer, kind: str) -> KernelSize:
    kernel = stored.quantized_kernel()
    effective = kernel.effective_codes()
    largest = int(np.abs(effective).max(initial=0))
    sizes = {}
    for file in ("int8", "int4"):
        form = Form(file)
        limit = form.code_limit(kernel.bits, kind)
        count = effective.size if limit is None or largest <= limit else kernel.codes.size
        sizes[file] = -(-count * form.tensor_bits(kernel.bits, kind) // 8)
    sizes["packed"] = -(-kernel.codes.size * kernel.bits // 8)
    sizes["float"] = _FLOAT_BYTES * effective.size
    return KernelSize(name, kind, Form("int4").tensor_bits(kernel.bits, kind), kernel.bits, sizes)


def _kernels(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer, str]]:
    """The name of each quantized kernel, the layer that stores it, and its kind."""
    graph = Graph(flat(model), fold_batch_norm=False, open_quantized=True)
    for layer in {id(node.layer): layers.unwrapped(node.layer) for node in graph.nodes}.values():
        if isinstance(layer, layers.KernelLayer):
            yield layer.name, layer, adapter_of(layer).kind
        for path, stored in inside(layer).items():
            adapter = adapters.adapter_of_quantized(stored)
            yield f"{layer.name}/{path}", stored, adapter.kind if adapter else "dense"  # of a cell


def _readable(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
