"""What a program with TFLite Micro needs of a file: operators to register, and the file as C++."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.errors import VerificationError

# Operators of tflite-micro 0.dev20261023: it has a function Register_NAME for each.
_NAMES = """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND
    BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM
    DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL
    EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER
    GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
    LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM
    MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX
    REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT
    SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE
    SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
    UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
"""
OPERATORS = frozenset(_NAMES.split())
# Methods of MicroMutableOpResolver that are spelled in another way than the others.
_METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
_BYTES_IN_A_LINE = 16


def operators(tflite: bytes) -> tuple[str, ...]:
    """Names of a file's operators, each once, as they come; custom ones by their own names."""
    model = fb.read(tflite)
    names = (fb.custom_name(model, op) or fb.op_name(model, op) for _, op in fb.operators(model))
    return tuple(dict.fromkeys(names))


def method(operator: str) -> str:
    """The method of `tflite::MicroMutableOpResolver` that adds an operator."""
    parts = (part if part[0].isdigit() else part.capitalize() for part in operator.split("_"))
    return _METHODS.get(operator) or f"Add{''.join(parts)}"


def describe(names: Sequence[str], arena_bytes: int) -> str:
    """A line of an export's report."""
    methods = ", ".join(map(method, names))
    return f"TFLite Micro: an arena of {arena_bytes:,} bytes; operators: {methods}"


def check(names: Sequence[str]) -> None:
    """Refuse operators that TFLite Micro does not have.

    Raises:
        VerificationError: there is one; the message names it.
    """
    missing = [name for name in names if name not in OPERATORS]
    if missing:
        raise VerificationError(
            f"TFLite Micro has no {', '.join(missing)}, which the file needs, so that `c_array`"
            " would be of no use. Leave it out, or replace the layer."
        )


def header_path(source: pathlib.Path) -> pathlib.Path:
    """The header that belongs to a C++ file."""
    return source.with_suffix(".h")


def source_text(tflite: bytes, path: pathlib.Path) -> str:
    """A `.tflite` file as a C++ file at `path`: an aligned, constant array, and its length."""
    name = _name(path)
    rows = (
        f"    {', '.join(map(hex, tflite[start : start + _BYTES_IN_A_LINE]))},"
        for start in range(0, len(tflite), _BYTES_IN_A_LINE)
    )
    return "\n".join(
        [
            "// A .tflite file. Written by ocs_tf; do not edit.",
            f'#include "{header_path(path).name}"',
            "",
            f"alignas(16) const unsigned char {name}[] = {{",
            *rows,
            "};",
            f"const std::size_t {name}_size = sizeof({name});",
            "",
        ]
    )


def header_text(names: Sequence[str], arena_bytes: int | None, path: pathlib.Path) -> str:
    """The header of a C++ file at `path`: what it holds, and the operators to register.

    Arguments:
        names: of operators.
        arena_bytes: that the model needs; `None` if not known.
    """
    name = _name(path)
    guard = f"{re.sub(r'[^A-Z0-9]', '_', path.stem.upper())}_H_"
    arena = [
        "// Bytes of the tensor arena, as measured on a machine of 64 bits; one of 32 needs less.",
        f"constexpr std::size_t {name}_arena_size = {arena_bytes};",
        "",
    ]
    calls = " &&\n         ".join(f"resolver.{method(operator)}() == 0" for operator in names)
    return "\n".join(
        [
            "// A model for TensorFlow Lite Micro. Written by ocs_tf; do not edit.",
            f"#ifndef OCS_TF_{guard}",
            f"#define OCS_TF_{guard}",
            "",
            "#include <cstddef>",
            "",
            "// A .tflite file, aligned to 16 bytes, and its length.",
            f"extern const unsigned char {name}[];",
            f"extern const std::size_t {name}_size;",
            "",
            *([] if arena_bytes is None else arena),
            "// How many operators the model uses, and what adds them to a",
            f"// tflite::MicroMutableOpResolver<{name}_operators>; true if all were added.",
            f"constexpr unsigned int {name}_operators = {len(names)};",
            "template <typename Resolver>",
            f"bool {name}_register(Resolver& resolver) {{",
            f"  return {calls or 'true'};",
            "}",
            "",
            f"#endif  // OCS_TF_{guard}",
            "",
        ]
    )


def _name(path: pathlib.Path) -> str:
    """The array's name: `g_` and the file's."""
    return f"g_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
