"""Validation of values: each function returns one as a plain Python value, or raises.

Types count: 1 and 1.0 are not `True`, and `True` is not a number. NumPy's booleans and numbers are
as good as Python's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

LARGEST_INT32 = 2**31 - 1
LARGEST_INT64 = 2**63 - 1
_LONGEST = 200  # characters of a value in a message


def shown(value: Any) -> str:
    """`repr(value)` for messages, cut short."""
    try:
        text = repr(value)
    except Exception:  # nested too deep, or a number of too many digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def refuse(name: str, value: Any, choices: Sequence[Any]) -> NoReturn:
    """Raise the `ValueError` that says which values `name` may have."""
    raise ValueError(f"`{name}` (={shown(value)}) must be one of {', '.join(map(repr, choices))}.")


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer, not a boolean."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number, not a boolean."""
    return is_integer(value) or isinstance(value, (float, np.floating))


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """The one of `choices` (strings, booleans, `None`) that `value` is, of the same type.

    Raises:
        ValueError: it is none of them.
    """
    for choice in choices:
        kind = (bool, np.bool_) if isinstance(choice, bool) else type(choice)
        if isinstance(value, kind) and value == choice:
            return choice
    refuse(name, value, choices)


def check_switch(name: str, value: Any) -> bool:
    """`value` if it is `True` or `False`.

    Raises:
        ValueError: it is anything else, 0 and 1 included.
    """
    return bool(check_choice(name, value, (True, False)))


def check_integer(name: str, value: Any, low: int, high: int = LARGEST_INT32) -> int:
    """`value` if it is an integer from `low` to `high`.

    Raises:
        ValueError: it is not.
    """
    if not is_integer(value) or not low <= value <= high:
        raise ValueError(f"`{name}` (={shown(value)}) must be an integer from {low} to {high}.")
    return int(value)


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """`value` if it is a number from `low` to `high`.

    Raises:
        ValueError: it is not.
    """
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f"`{name}` (={shown(value)}) must be a number from {low:g} to {high:g}.")
    return float(value)


def check_counts(name: str, values: Any) -> dict[str, float]:
    """`values` if it is a dict of numbers from 0 by name.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"`{name}` (={shown(values)}) must be a dict of numbers by name.")
    return {str(k): check_number(name, v, 0, LARGEST_INT32) for k, v in values.items()}


def check_text(name: str, value: Any) -> str:
    """`value` if it is a string.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"`{name}` (={shown(value)}) must be a string.")
    return str(value)


def check_decibels(name: str, value: Any) -> float | None:
    """`value` if it is a number, infinity included, or `None`.

    Raises:
        ValueError: it is not.
    """
    if value is None:
        return None
    if not is_number(value) or math.isnan(value):
        raise ValueError(f"`{name}` (={shown(value)}) must be a number or None.")
    return float(value)
