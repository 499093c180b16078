"""Inputs that are drawn where there are no data."""

from __future__ import annotations

import numpy as np
import pytest

from ocs_tf import drawing


def test_values_fit_their_type(rng: np.random.Generator) -> None:
    floats = drawing.drawn(rng, (2, 500), "bfloat16", -1.0, 3.0)
    assert -1 <= floats.min() < -0.9 < 2.9 < floats.max() <= 3
    for dtype in ("int32", "uint8", "bool"):
        assert set(drawing.drawn(rng, (50,), dtype).tolist()) == {0, 1}
    assert set(drawing.drawn(rng, (99,), "int64", rows=4).tolist()) == {0, 1, 2, 3}
    assert set(drawing.drawn(rng, (50,), "string", words=("x", "y")).tolist()) == {"x", "y"}


def test_open_sizes_are_filled_in() -> None:
    assert drawing.sized((None, 3, None), 7) == (7, 3, 7)
    assert len(set(drawing.OPEN_SIZES)) == len(drawing.OPEN_SIZES)


def test_what_is_tried_until_something_works() -> None:
    tried = []

    def run(size: int) -> str:
        tried.append(size)
        if size < 3:
            raise ValueError(f"{size} is too small")
        return "done"

    assert drawing.first_that_works((1, 2, 3, 4), run) == (3, "done")
    assert tried == [1, 2, 3]
    with pytest.raises(ValueError, match=r"^1 is too small"):
        drawing.first_that_works((1, 2), run)
