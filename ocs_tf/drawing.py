"""Inputs that are drawn where there are no data, and sizes of open axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

# Of axes that a model leaves open: the first that its layers can read, which may have a table of
# few positions.
OPEN_SIZES = (32, 64, 128, 256, 512, 1024, 16, 8, 4, 2, 1)
WORDS = ("a", "the", "unknown")

ResultT = TypeVar("ResultT")
TriedT = TypeVar("TriedT")


def drawn(
    rng: np.random.Generator,
    shape: Sequence[int],
    dtype: str,
    low: float = -2.0,
    high: float = 2.0,
    rows: int = 2,
    words: Sequence[str] = WORDS,
) -> NDArray[Any]:
    """Random values for an input; the caller casts them, as NumPy has no bfloat16.

    Arguments:
        dtype: the name of a type. Floats are from `low` to `high`; strings are `words`.
        rows: integers and booleans are less: 0 and 1, which any table has, or rows of a known one.
    """
    if dtype == "string":
        return rng.choice(np.asarray(words, object), shape)
    if "float" in dtype:
        return rng.uniform(low, high, shape)
    return rng.integers(0, rows, shape)


def sized(shape: Iterable[int | None], open_size: int) -> tuple[int, ...]:
    """A shape whose open sizes are `open_size`."""
    return tuple(open_size if size is None else int(size) for size in shape)


def first_that_works(
    tried: Iterable[TriedT], run: Callable[[TriedT], ResultT]
) -> tuple[TriedT, ResultT]:
    """The first of `tried` for which `run` raises nothing, and what it returns.

    Raises:
        Exception: of the first one, if all fail.
    """
    failure: Exception | None = None
    for one in tried:
        try:
            return one, run(one)
        except Exception as error:  # of whatever layers raise at a size that they cannot read
            failure = failure or error
    raise failure or ValueError("`tried` is empty.")
