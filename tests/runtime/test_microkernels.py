"""The microkernels of each instruction set, by name, against NumPy; equal to the bit."""

from __future__ import annotations

import ctypes
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocs_tf.numerics import packing

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import microkernel_library

pytestmark = pytest.mark.skipif(
    bool(microkernel_library.missing()), reason=microkernel_library.missing()
)
BITS = range(2, 9)
TENSOR, ROW, COLUMN = range(3)
SPECIAL = [0.0, -0.0, 0.5, 1.5, -2.5, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 2**31, -(2**31)]

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
# Through several vectors of each width, with every kind of rest.
sizes = st.integers(0, 140)
bits_of_codes = st.sampled_from(BITS)


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    """Before any test, whose time is limited."""
    microkernel_library.load()


@pytest.fixture(scope="module", params=["plain", "neon", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name not in microkernel_library.instruction_sets():
        pytest.skip(f"this processor does not run {name}")
    return name


def call(name: str, instruction_set: str, *arguments: Any) -> int:
    """A function of the library; integers are sizes unless they are `ctypes.c_int32`."""

    def convert(argument: Any) -> Any:
        if isinstance(argument, np.ndarray):
            return ctypes.c_void_p(argument.ctypes.data)
        return ctypes.c_size_t(argument) if isinstance(argument, int) else argument

    return getattr(microkernel_library.load(), name)(
        instruction_set.encode(), *map(convert, arguments)
    )


def int32(value: int) -> ctypes.c_int32:
    return ctypes.c_int32(value)


class Output:
    """An array to be written, of any alignment, between bytes that must stay as they are."""

    GUARD = 64

    def __init__(self, shape: tuple[int, ...], dtype: Any, shift: int) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.start = self.GUARD + shift
        self.bytes = np.full(self.start + size + self.GUARD, 0xA5, np.uint8)
        self.end = self.start + size
        self.array = np.ndarray(shape, dtype, self.bytes, self.start)

    def checked(self) -> NDArray[Any]:
        assert np.all(self.bytes[: self.start] == 0xA5)
        assert np.all(self.bytes[self.end :] == 0xA5)
        return self.array


def misaligned(array: NDArray[Any], shift: int) -> NDArray[Any]:
    """A copy that starts at an odd address, and ends where its memory does."""
    memory = np.empty(array.nbytes + shift, np.uint8)
    copy: NDArray[Any] = np.ndarray(array.shape, array.dtype, memory, shift)
    copy[...] = array
    return copy


def random_codes(rng: np.random.Generator, bits: int, shape: tuple[int, ...]) -> NDArray[np.int8]:
    limit = 1 << (bits - 1)
    return rng.integers(-limit, limit, shape).astype(np.int8)


def random_scales(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return rng.lognormal(-3, 2, count).astype(np.float32)


def random_values(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Around the codes, with ties and what is hard to round."""
    x = (rng.normal(0, 100, shape) * rng.choice([1e-3, 1, 1e3], shape)).astype(np.float32)
    x = np.where(rng.random(shape) < 0.2, np.rint(x) + np.float32(0.5), x)
    return np.where(rng.random(shape) < 0.1, rng.choice(SPECIAL, shape), x).astype(np.float32)


def rounded(
    x: NDArray[np.float32], inv_scale: NDArray[np.float32], low: int, high: int
) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.rint(x * inv_scale)
    return np.clip(np.nan_to_num(codes, nan=0.0, posinf=high, neginf=low), low, high)


def test_the_plain_set_is_the_slowest_one() -> None:
    assert microkernel_library.instruction_sets()[0] == "plain"


@given(
    rng=seeds, bits=bits_of_codes, rows=st.integers(0, 5), columns=sizes, shift=st.integers(0, 7)
)
def test_pack_and_unpack(
    instruction_set: str, rng: np.random.Generator, bits: int, rows: int, columns: int, shift: int
) -> None:
    codes = random_codes(rng, bits, (rows, columns))
    packed = packing.pack_codes(codes, bits)
    out = Output(packed.shape, np.uint8, shift)
    source = misaligned(codes, shift)
    assert call("ocs_pack", instruction_set, source, int32(bits), rows, columns, out.array) == 0
    np.testing.assert_array_equal(out.checked(), packed)
    back = Output(codes.shape, np.int8, shift)
    source = misaligned(packed, shift)
    assert call("ocs_unpack", instruction_set, source, int32(bits), rows, columns, back.array) == 0
    np.testing.assert_array_equal(back.checked(), codes)


@given(
    rng=seeds,
    bits=bits_of_codes,
    scaling=st.sampled_from([TENSOR, ROW, COLUMN]),
    rows=st.integers(0, 5),
    columns=sizes,
    copies=st.integers(0, 9),
    shift=st.integers(0, 7),
)
def test_dequantize(
    instruction_set: str,
    rng: np.random.Generator,
    bits: int,
    scaling: int,
    rows: int,
    columns: int,
    copies: int,
    shift: int,
) -> None:
    """Of all columns, the first ones."""
    codes = random_codes(rng, bits, (rows, columns + copies))
    packed = misaligned(packing.pack_codes(codes, bits), shift)
    scale = random_scales(rng, (1, rows, columns)[scaling])
    out = Output((rows, columns), np.float32, 4 * shift)
    arguments = [packed, int32(bits), rows, columns + copies, columns, scale, int32(scaling)]
    assert call("ocs_dequantize", instruction_set, *arguments, out.array) == 0
    by = scale[:, None] if scaling == ROW else scale
    np.testing.assert_array_equal(out.checked(), codes[:, :columns] * by)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shift", [0, 4])
def test_large_outputs_that_go_around_the_caches(
    instruction_set: str, bits: int, shift: int, rng: np.random.Generator
) -> None:
    rows, columns = 520, 4096  # 8.1 MiB of float32
    codes = random_codes(rng, bits, (rows, columns))
    scale = random_scales(rng, rows)
    out = Output((rows, columns), np.float32, shift)
    packed = packing.pack_codes(codes, bits)
    arguments = [packed, int32(bits), rows, columns, columns, scale, int32(ROW)]
    assert call("ocs_dequantize", instruction_set, *arguments, out.array) == 0
    np.testing.assert_array_equal(out.checked(), codes * scale[:, None])


@given(
    rng=seeds,
    bits=bits_of_codes,
    scaling=st.sampled_from([TENSOR, ROW, COLUMN]),
    rows=st.integers(0, 4),
    pixels=st.integers(1, 9),
    channels=st.integers(1, 20),
    copy_count=st.integers(0, 9),
)
def test_copies_are_merged(
    instruction_set: str,
    rng: np.random.Generator,
    bits: int,
    scaling: int,
    rows: int,
    pixels: int,
    channels: int,
    copy_count: int,
) -> None:
    """Their codes are added to their channel's before anything is rounded."""
    first = random_codes(rng, bits, (rows, pixels, channels))
    behind = random_codes(rng, bits, (rows, pixels, copy_count))
    copies = rng.integers(0, channels, copy_count).astype(np.int32)
    columns = pixels * channels
    flat = first.reshape(rows, columns), behind.reshape(rows, pixels * copy_count)
    codes = np.concatenate(flat, axis=1)
    packed = packing.pack_codes(codes, bits)
    scale = random_scales(rng, (1, rows, columns)[scaling])
    sums = first.astype(np.int32)
    np.add.at(sums, (slice(None), slice(None), copies), behind)
    by = scale[:, None] if scaling == ROW else scale
    expected = sums.reshape(rows, columns).astype(np.float32) * by
    out = Output((rows, columns), np.float32, 0)
    arguments = [packed, int32(bits), rows, pixels, channels, copies, copy_count, scale]
    arguments += [int32(scaling), out.array]
    assert call("ocs_dequantize_merged", instruction_set, *arguments) == 0
    np.testing.assert_array_equal(out.checked(), expected)


@given(
    rng=seeds,
    bits=bits_of_codes,
    per_channel=st.booleans(),
    rows=st.integers(0, 5),
    channels=st.integers(1, 140),
    copy_count=st.integers(0, 70),
    zero_point=st.integers(-128, 127),
    shift=st.integers(0, 7),
)
def test_quantize(
    instruction_set: str,
    rng: np.random.Generator,
    bits: int,
    per_channel: bool,
    rows: int,
    channels: int,
    copy_count: int,
    zero_point: int,
    shift: int,
) -> None:
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    zero_point = min(max(zero_point, lowest), highest)
    low, high = lowest - zero_point, highest - zero_point
    x, copies, inv_scale = rounding_case(rng, per_channel, rows, channels, copy_count)
    out = Output((rows, channels + copy_count), np.int8, shift)
    arguments = [misaligned(x, 4 * shift), rows, channels, inv_scale, int32(per_channel)]
    arguments += [int32(low), int32(high), int32(zero_point), copies, copy_count, out.array]
    assert call("ocs_quantize", instruction_set, *arguments) == 0
    expanded = np.concatenate([x, x[:, copies]], axis=1)
    expected = rounded(expanded, inv_scale, low, high) + zero_point
    np.testing.assert_array_equal(out.checked(), expected.astype(np.int8))


@given(
    rng=seeds,
    bits=st.sampled_from([*BITS, 16]),
    signed=st.booleans(),
    per_channel=st.booleans(),
    rows=st.integers(0, 5),
    channels=st.integers(1, 140),
    copy_count=st.integers(0, 70),
    shift=st.integers(0, 7),
)
def test_fake_quantize(
    instruction_set: str,
    rng: np.random.Generator,
    bits: int,
    signed: bool,
    per_channel: bool,
    rows: int,
    channels: int,
    copy_count: int,
    shift: int,
) -> None:
    low, high = (1 - (1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    x, copies, inv_scale = rounding_case(rng, per_channel, rows, channels, copy_count)
    scale = np.float32(1) / inv_scale
    out = Output((rows, channels + copy_count), np.float32, 4 * shift)
    arguments = [misaligned(x, 4 * shift), rows, channels, inv_scale, scale, int32(per_channel)]
    arguments += [int32(low), int32(high), copies, copy_count, out.array]
    assert call("ocs_fake_quantize", instruction_set, *arguments) == 0
    expanded = np.concatenate([x, x[:, copies]], axis=1)
    expected = rounded(expanded, inv_scale, low, high) * scale
    np.testing.assert_array_equal(out.checked(), expected)


def rounding_case(
    rng: np.random.Generator, per_channel: bool, rows: int, channels: int, copy_count: int
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    x = random_values(rng, (rows, channels))
    copies = rng.integers(0, channels, copy_count).astype(np.int32)
    # Powers of 2 leave ties as they are.
    count = channels + copy_count if per_channel else 1
    inv_scale = rng.choice([0.25, 1, 2, 0.3, 7.7], count).astype(np.float32)
    return x, copies, inv_scale


@pytest.mark.parametrize("function", ["ocs_quantize", "ocs_fake_quantize"])
def test_large_activations_that_go_around_the_caches(
    instruction_set: str, function: str, rng: np.random.Generator
) -> None:
    rows, channels, copy_count = 2055, 4091, 10  # 8.0 MiB of int8, rows of an odd length
    x = random_values(rng, (rows, channels))
    copies = rng.integers(0, channels, copy_count).astype(np.int32)
    scale = np.float32([0.5])
    expanded = np.concatenate([x, x[:, copies]], axis=1)
    expected = rounded(expanded, 1 / scale, -7, 7)
    if function == "ocs_quantize":
        out, scales, zero_point = Output(expected.shape, np.int8, 3), [], [int32(0)]
    else:
        out, scales, zero_point = Output(expected.shape, np.float32, 4), [scale], []
        expected = expected * scale
    arguments = [x, rows, channels, 1 / scale, *scales, int32(0), int32(-7), int32(7)]
    assert call(function, instruction_set, *arguments, *zero_point, copies, 10, out.array) == 0
    np.testing.assert_array_equal(out.checked(), expected)


@given(
    rng=seeds,
    bits=bits_of_codes,
    rows=st.integers(0, 5),
    columns=sizes,
    batch=st.integers(0, 9),
    shift=st.integers(0, 7),
)
def test_multiply(
    rng: np.random.Generator, bits: int, rows: int, columns: int, batch: int, shift: int
) -> None:
    codes = random_codes(rng, bits, (rows, columns))
    packed = misaligned(packing.pack_codes(codes, bits), shift)
    x = misaligned(rng.normal(size=(batch, columns)).astype(np.float32), 4 * shift)
    products = x.astype(np.float64)[:, None] * codes
    results = []
    for instruction_set in microkernel_library.instruction_sets():
        out = Output((batch, rows), np.float32, 4 * shift)
        arguments = [packed, int32(bits), rows, columns, x, batch, out.array]
        assert call("ocs_multiply", instruction_set, *arguments) == 0
        results.append(out.checked())
        # Each of at most `columns` additions is off by half a unit of what was added up so far.
        bound = 2.0**-24 * (columns + 1) * np.abs(products).sum(axis=-1)
        assert np.all(np.abs(out.array - products.sum(axis=-1)) <= bound)
        np.testing.assert_array_equal(out.array, results[0])


@settings(deadline=None)
@given(
    rng=seeds, bits=bits_of_codes, rows=st.integers(1, 5), columns=st.integers(1, 140), batch=sizes
)
def test_multiply_keeps_infinities_and_nan(
    rng: np.random.Generator, bits: int, rows: int, columns: int, batch: int
) -> None:
    """As a dense layer does, which has no zeros to skip."""
    codes = random_codes(rng, bits, (rows, columns))
    x = rng.choice(np.float32([1, 0, np.inf, -np.inf, np.nan]), (batch, columns))
    with np.errstate(invalid="ignore"):
        expected = (x[:, None] * codes).sum(axis=-1, dtype=np.float32)
    for instruction_set in microkernel_library.instruction_sets():
        out = Output((batch, rows), np.float32, 0)
        packed = packing.pack_codes(codes, bits)
        arguments = [packed, int32(bits), rows, columns, x, batch, out.array]
        assert call("ocs_multiply", instruction_set, *arguments) == 0
        np.testing.assert_array_equal(np.isnan(out.checked()), np.isnan(expected))
        infinite = np.isinf(expected)
        np.testing.assert_array_equal(out.array[infinite], expected[infinite])


SOME = np.zeros(64, np.uint8)
REFUSED: dict[str, tuple[str, Sequence[Any]]] = {
    "1 bit": ("ocs_pack", [SOME, int32(1), 1, 1, SOME]),
    "9 bits": ("ocs_unpack", [SOME, int32(9), 1, 1, SOME]),
    "no scaling": ("ocs_dequantize", [SOME, int32(4), 1, 1, 1, SOME, int32(3), SOME]),
    "too many columns": ("ocs_dequantize", [SOME, int32(4), 1, 1, 2, SOME, int32(0), SOME]),
    "merged, 0 bits": (
        "ocs_dequantize_merged",
        [SOME, int32(0), 1, 1, 1, SOME, 0, SOME, int32(0), SOME],
    ),
    "low above high": (
        "ocs_quantize",
        [SOME, 1, 1, SOME, int32(0), int32(2), int32(1), int32(0), SOME, 0, SOME],
    ),
    "no int8": (
        "ocs_quantize",
        [SOME, 1, 1, SOME, int32(0), int32(0), int32(127), int32(1), SOME, 0, SOME],
    ),
    "17 bits": (
        "ocs_fake_quantize",
        [SOME, 1, 1, SOME, SOME, int32(0), int32(0), int32(65536), SOME, 0, SOME],
    ),
    "10 bits": ("ocs_multiply", [SOME, int32(10), 1, 1, SOME, 1, SOME]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_out_of_range_write_nothing(case: str) -> None:
    name, arguments = REFUSED[case]
    assert call(name, "plain", *arguments) == 1
    assert not SOME.any()


@pytest.mark.parametrize("name", ["", "sse9", "plain "])
def test_unknown_instruction_set(name: str) -> None:
    assert call("ocs_pack", name, SOME, int32(4), 1, 1, SOME) == 1
