"""Closeness of arrays, by arithmetic written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ocs_tf.closeness import Closeness, Tally


def tally(*batches: tuple[list, list], **options) -> Closeness:
    found = Tally("y", **options)
    for reference, other in batches:
        found.add(np.array(reference, np.float32), np.array(other, np.float32))
    return found.result()


def test_sums_go_over_all_batches() -> None:
    found = tally(([[3, 4]], [[3, 2]]), ([[0, -6], [1, 1.5]], [[0, -5], [1.5, 1]]))
    signal, noise = 9 + 16 + 36 + 1 + 2.25, 2**2 + 1**2 + 0.5**2 + 0.5**2
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise))
    assert (found.samples, found.max_difference, found.max_magnitude) == (3, 2, 6)
    assert found.agreement == 1 / 3  # of the largest of each row: 1 and 0, 0 and 0, 1 and 0


def test_without_a_choice_there_is_no_agreement() -> None:
    assert tally(([[1.0], [2.0]], [[1.0], [3.0]])).agreement is None
    assert tally(([1.0, 2.0], [1.0, 3.0])).agreement is None


@pytest.mark.parametrize(
    ("reference", "other", "sqnr_db"),
    [([[1.0, 2.0]], [[1.0, 2.0]], math.inf), ([[0.0, 0.0]], [[1.0, 0.0]], -math.inf)],
    ids=["equal", "silent"],
)
def test_limits(reference: list, other: list, sqnr_db: float) -> None:
    assert tally((reference, other)).sqnr_db == sqnr_db


def test_parts_are_counted_apart() -> None:
    parts = {"a": (..., slice(0, 2)), "b": (..., slice(2, 3))}
    found = tally(([[1.0, 2.0, 8.0]], [[1.0, 2.0, 4.0]]), parts=parts)
    a, b = found.parts
    assert (a.name, a.sqnr_db, a.agreement) == ("a", math.inf, 1)
    assert (b.name, b.sqnr_db) == ("b", pytest.approx(10 * math.log10(64 / 16)))
    assert found.sqnr_db == pytest.approx(10 * math.log10((1 + 4 + 64) / 16))


def test_as_text() -> None:
    text = str(tally(([[1, 2]], [[0, 1]]), parts={"left": (..., slice(0, 1))}))
    assert text.splitlines() == [
        "output 'y': SQNR 4.0 dB, largest difference 1 (values up to 2),"
        " same top-1 in 100.00 % of 1",
        "  its part 'left': SQNR 0.0 dB, largest difference 1 (values up to 1)",
    ]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has shape \(1, 2\) in one model and \(1, 1\)"):
        tally(([[1.0, 2.0]], [[1.0]]))
