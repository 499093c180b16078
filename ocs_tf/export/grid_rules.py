"""Rules for the grids of tensors in an int8 .tflite file, by operator.

The rules are those of the TFLite quantization specification
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec) as
ai-edge-quantizer applies them.
"""

from __future__ import annotations

from typing import Protocol

ACTIVATION_MIN, ACTIVATION_MAX = -128, 127

_FIXED_OUTPUT = {
    "SOFTMAX": (1.0 / 256, -128),
    "LOGISTIC": (1.0 / 256, -128),
    "TANH": (1.0 / 128, 0),
}
_INPUT_GRID = """
    AVERAGE_POOL_2D BROADCAST_TO GATHER GATHER_ND MAX_POOL_2D MIRROR_PAD PAD REDUCE_MIN RESHAPE
    RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE SPACE_TO_DEPTH SPLIT STRIDED_SLICE TRANSPOSE
    UNPACK
"""
_OUTPUT_GRID = "CONCATENATION DYNAMIC_UPDATE_SLICE MAXIMUM PACK PADV2 SELECT SELECT_V2"
_RULES = {
    **dict.fromkeys(_FIXED_OUTPUT, "fixed"),
    **dict.fromkeys(_INPUT_GRID.split(), "input"),
    **dict.fromkeys(_OUTPUT_GRID.split(), "output"),
}


class Grid(Protocol):
    """The grid of an activation: `value = scale * (code - zero_point)`."""

    @property
    def scale(self) -> float:
        """Step, exactly representable in float32."""

    @property
    def zero_point(self) -> int:
        """Code of the value 0, in -128..127."""

    @property
    def bits(self) -> int:
        """8: an int8 tensor saturates at -128 and 127, nowhere else."""


def fixed_output_grid(op_name: str) -> tuple[float, int] | None:
    """`(scale, zero_point)` that TFLite's int8 kernel of `op_name` demands of its output, or None.

    `"SOFTMAX"` and `"LOGISTIC"` give 1/256 and -128, `"TANH"` 1/128 and 0
    (tensorflow/lite/kernels/activations.cc).
    """
    return _FIXED_OUTPUT.get(op_name)


def grid_rule(op_name: str) -> str:
    """Whose grid the tensors of a TFLite op have.

    Returns:
        `"fixed"`: the output's is a constant, see `fixed_output_grid`;
        `"input"`: the output has the input's (pooling, reshape, pad, slice, ...);
        `"output"`: every input has the output's; an input that also serves others, or whose own
        producer follows one of these rules, is requantized first (concatenation, maximum, ...);
        `"own"`: every tensor has its own.
    """
    return _RULES.get(op_name, "own")
