"""Agreement with the code that the authors of the paper released.

The vectors (inputs and outputs of that code) are found by the environment variable
`OCS_TF_GOLDEN`, by default beside the checkout.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from ocs_tf.numerics import copy_count, split_channels, symmetric_step
from ocs_tf.numerics.quantized_kernel import choose_threshold, encode
from ocs_tf.numerics.splitting import choose_copies

DEFAULT = Path(__file__).parents[3] / "shared" / "golden" / "reference_ocs.npz"
GOLDEN = Path(os.environ.get("OCS_TF_GOLDEN", DEFAULT))
CLIPS = ("none", "mse", "aciq", "kl")

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_file(), reason=f"no golden vectors at {GOLDEN}; set OCS_TF_GOLDEN"
)
vectors = np.load(GOLDEN) if GOLDEN.is_file() else None
cases = sorted({name.split("/")[0] for name in vectors.files}) if vectors else []
each_case = pytest.mark.parametrize("case", cases)
each_clip = pytest.mark.parametrize("clip", CLIPS)


def settings_of(case: str) -> tuple[int, float]:
    """`NAME.bBITS.rRATIO` -> bits, ratio."""
    name, ratio = case.rsplit(".r", 1)
    return int(name.rsplit(".b", 1)[1]), float(ratio)


def summed(copies: np.ndarray, channel_map: np.ndarray) -> np.ndarray:
    """The copies of each channel added up."""
    channels = channel_map.max() + 1
    total = np.zeros((*copies.shape[:2], channels, copies.shape[3]), copies.dtype)
    np.add.at(total, (slice(None), slice(None), channel_map), copies)
    return total


def test_all_cases_are_there() -> None:
    assert len(cases) == 42
    assert {settings_of(c)[0] for c in cases} == {3, 4, 5, 6, 8}


@each_case
def test_plain_splits(case) -> None:
    kernel, naive = vectors[f"{case}/kernel"], vectors[f"{case}/naive"]
    _, ratio = settings_of(case)
    channels = kernel.shape[2]
    split = split_channels(kernel, ratio)
    copies = split.channel_map[channels:]
    assert sorted(copies) == sorted(vectors[f"{case}/naive_channels"])
    reference_map = np.r_[:channels, vectors[f"{case}/naive_channels"]]
    for channel in range(channels):  # the copies of a channel, in any order
        ours = split.kernel[:, :, split.channel_map == channel]
        theirs = naive[:, :, reference_map == channel]
        order = [np.argsort(np.abs(k).max((0, 1, 3)), kind="stable") for k in (ours, theirs)]
        np.testing.assert_array_equal(ours[:, :, order[0]], theirs[:, :, order[1]])


@each_clip
@each_case
def test_threshold(case, clip) -> None:
    kernel = vectors[f"{case}/kernel"]
    bits, ratio = settings_of(case)
    count = copy_count(ratio, kernel.shape[2])
    expected = float(vectors[f"{case}/{clip}.threshold"])
    for dtype in (np.float64, np.float32):
        threshold = choose_threshold(kernel.astype(dtype), bits, count, clip, "tensor")
        assert threshold == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("full_range", [False, True], ids=["symmetric", "full-range"])
@each_clip
@each_case
def test_codes(case, clip, full_range) -> None:
    kernel = vectors[f"{case}/kernel"]
    bits, ratio = settings_of(case)
    channels = kernel.shape[2]
    threshold = float(vectors[f"{case}/{clip}.threshold"])
    step = symmetric_step(threshold, bits)
    copies = choose_copies(kernel, copy_count(ratio, channels), step)
    q = encode(kernel, bits, step, copies, full_range)

    reference_channels = vectors[f"{case}/{clip}.channels"]
    assert sorted(q.channel_map[channels:]) == sorted(reference_channels)

    # The released code has one more negative level than the paper (and this library by default).
    limit = 2 ** (bits - 1) - 1
    reference_codes = vectors[f"{case}/{clip}.codes"].astype(np.int32)
    if not full_range:
        reference_codes = np.maximum(reference_codes, -limit)
    assert q.codes.shape == reference_codes.shape
    assert -limit - full_range <= q.codes.min() <= q.codes.max() <= limit
    expected = summed(reference_codes, np.r_[:channels, reference_channels])
    difference = np.abs(q.effective_codes() - expected)

    exact = kernel.astype(np.float64) / (threshold / limit)
    at_tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-4
    assert not difference[~at_tie].any()
    assert difference.max() <= 1
    assert at_tie.mean() < 0.01  # or the comparison above would say little


@each_clip
@each_case
def test_effective_codes_of_the_vectors_are_their_codes_summed(case, clip) -> None:
    """The vectors fit together as they are described; else the tests above mean little."""
    codes = vectors[f"{case}/{clip}.codes"].astype(np.int32)
    channels = vectors[f"{case}/kernel"].shape[2]
    mapping = np.r_[:channels, vectors[f"{case}/{clip}.channels"]]
    np.testing.assert_array_equal(summed(codes, mapping), vectors[f"{case}/{clip}.effective_codes"])
