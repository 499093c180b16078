"""Packed codes against Python's own integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocs_tf.numerics.packing import pack_codes, row_bytes, unpack_codes

ALL_BITS = range(2, 9)


def as_integer(row: np.ndarray, bits: int) -> int:
    """The bits of a row of codes as one large integer, the first code lowest."""
    return sum((int(code) % 2**bits) << (bits * i) for i, code in enumerate(row))


@st.composite
def matrices(draw):
    bits = draw(st.sampled_from(ALL_BITS))
    shape = draw(st.tuples(st.integers(0, 6), st.integers(0, 40)))
    seed = draw(st.integers(0, 2**32 - 1))
    limit = 2 ** (bits - 1)
    codes = np.random.default_rng(seed).integers(-limit, limit, shape)
    return bits, codes.astype(np.int8)


@settings(deadline=None, max_examples=200)
@given(matrices())
def test_a_row_is_one_string_of_bits(case) -> None:
    bits, codes = case
    packed = pack_codes(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (codes.shape[0], -(-codes.shape[1] * bits // 8))
    for row, found in zip(codes, packed, strict=True):
        assert int.from_bytes(found.tobytes(), "little") == as_integer(row, bits)
    np.testing.assert_array_equal(unpack_codes(packed, bits, codes.shape[1]), codes)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_blocks_join(bits: int) -> None:
    """More codes than are looked at together, in rows that are not contiguous in memory."""
    limit = 2 ** (bits - 1)
    codes = np.random.default_rng(bits).integers(-limit, limit, (3001, 800)).astype(np.int8).T
    packed = pack_codes(codes, bits)
    assert int.from_bytes(packed[-1].tobytes(), "little") == as_integer(codes[-1], bits)
    np.testing.assert_array_equal(unpack_codes(packed, bits, codes.shape[1]), codes)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_code_comes_back(bits: int) -> None:
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.int8)[None]
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes, bits), bits, 2**bits), codes)
    assert row_bytes(bits, 2**bits) == bits * 2**bits // 8


@pytest.mark.parametrize(("bits", "code"), [(2, 2), (2, -3), (5, 16), (7, -65)])
def test_codes_out_of_range(bits: int, code: int) -> None:
    limit = 2 ** (bits - 1)
    with pytest.raises(ValueError, match=rf"must be in {-limit}\.\.{limit - 1} for `bits`"):
        pack_codes(np.array([[0, code]], np.int8), bits)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range(bits: int) -> None:
    empty = np.zeros((0, 0), np.int8)
    with pytest.raises(ValueError, match="must be an integer from 2 to 8"):
        pack_codes(empty, bits)
    with pytest.raises(ValueError, match="must be an integer from 2 to 8"):
        unpack_codes(empty.view(np.uint8), bits, 0)


def test_rows_of_another_length() -> None:
    with pytest.raises(ValueError, match="rows of 3 bytes; 5 codes of 3 bits take 2"):
        unpack_codes(np.zeros((2, 3), np.uint8), 3, 5)
