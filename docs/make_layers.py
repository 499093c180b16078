"""Writes the table of layers.md: layers that can be quantized, and their form in each kind of file.

python docs/make_layers.py
"""

from __future__ import annotations

import dataclasses
import pathlib
import re

import keras

from ocs_tf.export import int4
from ocs_tf.export.float_regions import INTEGER_FORMS
from ocs_tf.export.kernel_matching import KINDS
from ocs_tf.graph import adapters, composites
from ocs_tf.graph.adapters import KernelAdapter

PAGE = pathlib.Path(__file__).with_name("layers.md")
COLUMNS = ("layer", "kernels", "split", "activations", "int8", "int4", "packed")


@dataclasses.dataclass(frozen=True)
class Support:
    """One layer class.

    Attributes:
        layer: name of the Keras class.
        kernels: what is quantized, to 2..8 bits.
        split: whether its input channels are split.
        activations: what is rounded, with activations of 2..8 or 16 bits.
        int8, int4, packed: how a file of that target holds the kernels.
    """

    layer: str
    kernels: str
    split: str
    activations: str
    int8: str
    int4: str
    packed: str


def supported_layers() -> list[Support]:
    """Every layer class that has a quantized form, from the registry of adapters."""
    rows = [_single(adapter) for adapter in adapters.ADAPTERS]
    rows += [
        _separable(cls) for cls in (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
    ]
    return rows + [_composite(cls) for cls in composites.COMPOSITES]


def table() -> str:
    """The table as Markdown."""
    rows = [dataclasses.astuple(row) for row in supported_layers()]
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _single(adapter: KernelAdapter) -> Support:
    integer = KINDS[adapter.kind] in INTEGER_FORMS
    fourth = "INT4" if adapter.kind in int4.KINDS else "int8" if integer else "float"
    rows = "its rows" if adapter.is_lookup else "input and output"
    splits = adapter.is_lookup or adapter.kind == "depthwise"
    return Support(
        layer=adapter.layer_class.__name__,
        kernels="embeddings" if adapter.is_lookup else "kernel",
        split="never" if splits else "yes",
        activations=rows,
        int8="int8" if integer else "float",
        int4=fourth,
        packed="packed",
    )


def _separable(cls: type) -> Support:
    return Support(
        cls.__name__,
        "depthwise kernel, pointwise kernel",
        "the pointwise kernel",
        "input, between, and output",
        "int8",
        "INT4",
        "packed",
    )


def _public_name(cls: type) -> str:
    """What `keras.layers` calls a class, which may have another name itself."""
    return next(name for name in dir(keras.layers) if getattr(keras.layers, name) is cls)


def _composite(cls: type) -> Support:
    name = _public_name(cls)
    if cls is keras.layers.TimeDistributed:
        inside = "as the layer inside"
        return Support(name, inside, inside, "output", inside, inside, inside)
    attention = "Attention" in name
    kernels = "query, key, value, output" if attention else "kernel, recurrent kernel"
    return Support(
        layer=name,
        kernels=kernels if name != "Bidirectional" else "those of both directions",
        split="yes",
        activations="output",
        int8="int8" if attention else "int8, unrolled",
        int4="INT4" if attention else "INT4, unrolled",
        packed="packed",
    )


def page() -> str:
    """`layers.md` with the table of today."""
    text = PAGE.read_text(encoding="utf-8")
    (former,) = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return text.replace(former, table())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
