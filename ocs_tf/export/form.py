"""How kernels and activations are stored: one `Form` for each kind of file."""

from __future__ import annotations

import dataclasses

from ocs_tf.export import int4
from ocs_tf.numerics.grid import code_limit


@dataclasses.dataclass(frozen=True)
class Form:
    """What a lowered model is for.

    Attributes:
        kernels: how kernels are going to be stored: `"float"`, `"int8"`, `"int4"` (those of up to 4
            bits; wider ones in int8) or `"packed"`.
        integer: prepare for an integer runtime: batch norms that were not folded become depthwise
            convolutions with 8-bit kernels, and a ReLU6 by itself a ReLU on a grid that ends at 6.
        rounds: activations are rounded by operators in the graph, not by the tensors' grids.
    """

    kernels: str
    integer: bool = False
    rounds: bool = False

    def tensor_bits(self, bits: int, kind: str) -> int:
        """Width of the integer tensor that a kernel of this kind and of `bits` goes into."""
        return 4 if self.kernels == "int4" and bits <= 4 and kind in int4.KINDS else 8

    @property
    def splits_activations(self) -> bool:
        """Whether activations are rounded, so that splitting their channels matters."""
        return self.integer or self.rounds

    def code_limit(self, bits: int, kind: str) -> int | None:
        """Largest effective code that such a kernel may have; None: any."""
        integers = self.kernels in ("int8", "int4")
        return code_limit(self.tensor_bits(bits, kind)) if integers else None


FLOAT = Form("float")
INT8 = Form("int8", integer=True)
INT4 = Form("int4", integer=True)
INT8_WEIGHTS = Form("int8")
INT4_WEIGHTS = Form("int4")
PACKED = Form("packed", rounds=True)

_FORMS = {"int8": INT8, "int4": INT4, "packed": PACKED, "float": FLOAT}


def form_of(target: str, activations: str) -> Form:
    """The form of a file, by the choices of `export_tflite`."""
    if activations in ("float", "dynamic"):
        return INT4_WEIGHTS if target == "int4" else INT8_WEIGHTS
    return _FORMS[target]
