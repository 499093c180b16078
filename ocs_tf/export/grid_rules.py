"""The operators that an int8 .tflite file holds as integers, and what each asks of grids.

Most rules are those of the TFLite quantization specification
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec), the others
those of LiteRT's int8 kernels. `docs/operators.md` says what each runtime makes of each operator.
"""

from __future__ import annotations

from typing import Protocol

ACTIVATION_MIN, ACTIVATION_MAX = -128, 127

# Operators by whose grid their tensors have (see `grid_rule`), each with the version that brought
# its int8 kernel (tensorflow/lite/tools/versioning/op_version.cc). Those with kernels are not
# here: what their version is depends on the kernel. Neither are operators whose int8 kernels
# compute with the codes as if they were the numbers: CAST, FLOOR_DIV, FLOOR_MOD, MATRIX_DIAG, NEG,
# SCATTER_ND.
_VERSIONS = {
    "own": """
        ABS:2 ADD:2 ARG_MAX:2 ARG_MIN:2 BATCH_MATMUL:2 DIV:1 ELU:1 EQUAL:2 EXP:2 GELU:2 GREATER:2
        GREATER_EQUAL:2 HARD_SWISH:1 LEAKY_RELU:1 LESS:2 LESS_EQUAL:2 LOG:2 MEAN:2 MUL:2 NOT_EQUAL:2
        PRELU:1 REDUCE_PROD:2 RELU:2 RELU6:2 RELU_0_TO_1:1 RELU_N1_TO_1:1 RSQRT:2 SQRT:1
        SQUARED_DIFFERENCE:2 STABLEHLO_COMPOSITE:1 SUB:2 SUM:2
    """,
    "input": """
        AVERAGE_POOL_2D:2 BATCH_TO_SPACE_ND:2 BROADCAST_TO:3 DEPTH_TO_SPACE:2 EXPAND_DIMS:1 GATHER:2
        GATHER_ND:1 MAX_POOL_2D:2 MIRROR_PAD:2 PAD:2 REDUCE_MAX:2 REDUCE_MIN:2 RESHAPE:1
        RESIZE_BILINEAR:2 RESIZE_NEAREST_NEIGHBOR:2 REVERSE_V2:3 SLICE:2 SPACE_TO_BATCH_ND:2
        SPACE_TO_DEPTH:2 SPLIT:2 SPLIT_V:2 SQUEEZE:1 STRIDED_SLICE:2 TILE:3 TOPK_V2:2 TRANSPOSE:2
        UNPACK:2
    """,
    "output": """
        CONCATENATION:2 DYNAMIC_UPDATE_SLICE:1 MATRIX_SET_DIAG:1 MAXIMUM:2 MINIMUM:2 ONE_HOT:1
        PACK:2 PADV2:2 SELECT:1 SELECT_V2:1
    """,
    "fixed": "L2_NORMALIZATION:2 LOGISTIC:2 LOG_SOFTMAX:2 SOFTMAX:2 TANH:2",
}
_ROWS = {
    name: (rule, int(version))
    for rule, rows in _VERSIONS.items()
    for name, _, version in (row.partition(":") for row in rows.split())
}
# They compute new numbers on the grid of their input, so their output cannot have another one
# without being rounded twice.
_MIXING = ("AVERAGE_POOL_2D", "RESIZE_BILINEAR")
_FIXED_OUTPUT = {
    "L2_NORMALIZATION": (1.0 / 128, 0),
    "LOGISTIC": (1.0 / 256, -128),
    "LOG_SOFTMAX": (16.0 / 256, 127),
    "SOFTMAX": (1.0 / 256, -128),
    "TANH": (1.0 / 128, 0),
}
# Written as a MUL: of -1, of itself.
PRODUCTS = ("NEG", "SQUARE")
_KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
INTEGER_FORMS = frozenset((*_ROWS, *PRODUCTS, *_KERNELS))


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

    `"SOFTMAX"` and `"LOGISTIC"` give 1/256 and -128, `"TANH"` and `"L2_NORMALIZATION"` 1/128 and 0,
    `"LOG_SOFTMAX"` 16/256 and 127 (tensorflow/lite/kernels: activations.cc, l2norm.cc).
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
    return _ROWS[op_name][0] if op_name in _ROWS else "own"


def int8_version(op_name: str) -> int:
    """The version of a TFLite op that brought its int8 kernel; 1 where that is not known."""
    return _ROWS[op_name][1] if op_name in _ROWS else 1


def mixes(op_name: str) -> bool:
    """Whether an op with the `"input"` rule makes numbers that its input does not hold."""
    return op_name in _MIXING


def data_input(op_name: str) -> int:
    """Which of its inputs an op with the `"input"` rule moves."""
    return 1 if op_name == "SPLIT" else 0
