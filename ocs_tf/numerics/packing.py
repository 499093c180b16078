"""Integer codes in exactly as many bits as they have; docs/packed.md has the format."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ocs_tf.numerics import grid

MAX_BITS = 8
_BLOCK = 1 << 20  # codes looked at together: single bits take a byte each meanwhile


def row_bytes(bits: int, columns: int) -> int:
    """Bytes of a packed row of `columns` codes."""
    return -(-bits * columns // 8)


def pack_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Pack each row of `codes` into a string of bits, padded with zeros to whole bytes.

    Arguments:
        codes: int8 `[rows, columns]`, within `-2^(bits-1) .. 2^(bits-1) - 1`.
        bits: 2..8.

    Returns:
        uint8 `[rows, row_bytes(bits, columns)]`: two's complement, the first code in the lowest
        bits of the first byte.

    Raises:
        ValueError: `bits` or `codes` is out of range.
    """
    grid.check_bits(bits, "bits", largest=MAX_BITS)
    limit = 1 << (bits - 1)
    if codes.size and (codes.min() < -limit or codes.max() >= limit):
        raise ValueError(
            f"`codes` (={codes.min()}..{codes.max()}) must be in {-limit}..{limit - 1} for"
            f" `bits` (={bits})."
        )
    rows, columns = codes.shape
    packed = np.empty((rows, row_bytes(bits, columns)), np.uint8)
    for block in _blocks(rows, columns):
        planes = np.unpackbits(
            np.ascontiguousarray(codes[block]).view(np.uint8)[..., None],
            axis=-1,
            count=bits,
            bitorder="little",
        )
        packed[block] = np.packbits(
            planes.reshape(len(planes), columns * bits), axis=-1, bitorder="little"
        )
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.int8]:
    """The inverse of `pack_codes`: int8 `[rows, columns]`.

    Raises:
        ValueError: `bits` is out of range, or a row of `packed` does not hold `columns` codes.
    """
    grid.check_bits(bits, "bits", largest=MAX_BITS)
    rows, found = packed.shape
    if found != row_bytes(bits, columns):
        raise ValueError(
            f"`packed` has rows of {found} bytes; {columns} codes of {bits} bits take"
            f" {row_bytes(bits, columns)}."
        )
    codes = np.empty((rows, columns), np.int8)
    for block in _blocks(rows, columns):
        planes = np.unpackbits(packed[block], axis=-1, count=columns * bits, bitorder="little")
        values = np.packbits(planes.reshape(len(planes), columns, bits), axis=-1, bitorder="little")
        # Up against the sign bit and back: the shift extends the sign.
        codes[block] = (values[..., 0] << (8 - bits)).view(np.int8) >> (8 - bits)
    return codes


def _blocks(rows: int, columns: int) -> list[slice]:
    count = max(1, _BLOCK // max(1, columns))
    return [slice(start, start + count) for start in range(0, rows, count)]
