"""Checks of values: which types are as good as which, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ocs_tf.numerics import checks


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_a_switch_becomes_a_bool(value: Any) -> None:
    checked = checks.check_switch("strict", value)
    assert type(checked) is bool
    assert checked == value


@pytest.mark.parametrize("value", [0, 1, 1.0, np.int8(1), np.float32(0), "true", None, [True]])
def test_a_switch_is_no_number_and_no_word(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`strict` \(=.*\) must be one of True, False\."):
        checks.check_switch("strict", value)


@pytest.mark.parametrize(
    ("value", "expected"), [("a", "a"), (np.str_("a"), "a"), (np.True_, True), (None, None)]
)
def test_a_choice_is_that_of_its_type(value: Any, expected: Any) -> None:
    checked = checks.check_choice("x", value, ("a", True, None))
    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize("value", [1, 1.0, False, "True", "b", b"a", np.array(["a", "b"]), {}])
def test_no_choice(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`x` \(=.*\) must be one of 'a', True, None\."):
        checks.check_choice("x", value, ("a", True, None))


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_an_integer_becomes_an_int(value: Any) -> None:
    assert type(checks.check_integer("n", value, 0)) is int


@pytest.mark.parametrize(
    "value", [-1, 2**31, True, np.True_, 3.0, "3", None, float("nan"), 10**999]
)
def test_no_integer_in_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`n` \(=.*\) must be an integer from 0 to 2147483647"):
        checks.check_integer("n", value, 0)


@pytest.mark.parametrize("value", [0.5, 1, np.float16(0.5), np.int64(1)])
def test_a_number_becomes_a_float(value: Any) -> None:
    assert type(checks.check_number("x", value, 0, 1)) is float


@pytest.mark.parametrize(
    "value", [-0.1, 1.1, True, "1", None, float("nan"), float("inf"), 1j, np.complex64(1), 10**400]
)
def test_no_number_in_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`x` \(=.*\) must be a number from 0 to 1\."):
        checks.check_number("x", value, 0, 1)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (checks.check_text, 3, r"`x` \(=3\) must be a string"),
        (checks.check_counts, [1], r"`x` \(=\[1\]\) must be a dict of numbers by name"),
        (checks.check_counts, {1: 2}, r"must be a dict of numbers by name"),
        (checks.check_counts, {"a": -1}, r"`x` \(=-1\) must be a number from 0"),
        (checks.check_decibels, "9", r"`x` \(='9'\) must be a number or None"),
        (checks.check_decibels, float("nan"), r"`x` \(=nan\) must be a number or None"),
    ],
)
def test_other_kinds(check: Callable[[str, Any], Any], value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check("x", value)


def test_infinite_decibels_are_those_of_an_exact_kernel() -> None:
    assert checks.check_decibels("x", float("inf")) == float("inf")
    assert checks.check_decibels("x", None) is None


def test_what_cannot_be_shown_is_named_by_its_type() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert checks.shown(nested) == "<list>"
    assert checks.shown("a" * 1000) == f"'{'a' * 199}..."
    while nested:  # freed one by one
        nested = nested.pop()
