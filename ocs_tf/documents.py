"""JSON texts and regular expressions that come from files, which anyone may have written.

Both are held to what is needed here, so that a damaged or hostile file is a `ValueError` and never
anything else: no other exception, and no search that takes for ever.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocs_tf.numerics.checks import shown

# Configurations and plans are three levels deep.
_DEEPEST = 16
_MOST_DIGITS = 20

FLAGS = int(re.ASCII | re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE | re.UNICODE)
LONGEST_PATTERN = 1000  # characters
LONGEST_NAME = 128  # of a layer; longer ones are looked at when they come
# Of the steps that a search takes at worst: some tenths of a second.
_MOST_STEPS = 1e8
_MOST_ELEMENTS = 20_000

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text (RFC 8259), with less than Python's `json` would let through.

    Arguments:
        text: a string, or bytes in UTF-8.

    Raises:
        ValueError: it is not JSON or not UTF-8; a key is there twice; a number is not finite
            (`NaN`, `Infinity`, `1e999`) or has more than 20 digits without a fraction; values are
            nested more than 16 deep; a string holds half of a surrogate pair.
    """
    if isinstance(text, (bytes, bytearray)):
        text = bytes(text).decode("utf-8-sig")
    if not isinstance(text, str):
        raise ValueError(f"JSON text must be a string, not a {type(text).__name__}.")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_int=_integer,
            parse_constant=_finite,
        )
    except RecursionError:
        raise ValueError(f"values are nested more than {_DEEPEST} deep.") from None
    _check_values(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {shown(key)} is there twice.")
        values[key] = value
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:40]} is not finite.")
    return value


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"number {text[:40]}... has more than {_MOST_DIGITS} digits.")
    return int(text)


def _check_values(value: Any) -> None:
    """Raise `ValueError` if `value` is nested too deep, or a string is not Unicode."""
    level = [value]
    for _ in range(_DEEPEST + 1):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inside += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                inside += item
            elif isinstance(item, str) and not _is_unicode(item):
                raise ValueError(f"text {shown(item)} is not Unicode.")
        level = inside
    if level:
        raise ValueError(f"values are nested more than {_DEEPEST} deep.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def compiled(regex: Any, flags: Any = 0) -> re.Pattern[str]:
    """A regular expression from a file.

    Arguments:
        regex: up to 1000 characters.
        flags: ASCII, IGNORECASE, MULTILINE, DOTALL, VERBOSE and UNICODE of `re`, added up.

    Raises:
        ValueError: it is none; or a search might take too long (see `check_pattern`) in a name of
            up to 128 characters.
    """
    if not isinstance(regex, str) or len(regex) > LONGEST_PATTERN:
        raise ValueError(
            f"`regex` (={shown(regex)}) must be a string of up to {LONGEST_PATTERN} characters."
        )
    whole = isinstance(flags, int) and not isinstance(flags, bool)
    if not whole or flags & ~FLAGS:
        raise ValueError(
            f"`flags` (={shown(flags)}) of `regex` must be a sum of re.ASCII, IGNORECASE,"
            " MULTILINE, DOTALL, VERBOSE and UNICODE."
        )
    try:
        pattern = re.compile(regex, flags)
    except (re.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"`regex` (={shown(regex)}) is not a regular expression: {reason}.") from (
            None
        )
    if pattern.flags & ~FLAGS:
        raise ValueError(f"`regex` (={shown(regex)}) has flags that are not allowed.")
    check_pattern(pattern, LONGEST_NAME)
    return pattern


def check_pattern(pattern: re.Pattern[str], length: int) -> None:
    """Raise `ValueError` if matching `pattern` might take long, whatever the name.

    A backtracking search goes through the ways in which elements of a pattern can share out the
    characters of a name. They are counted for a name of which each element matches any part, so
    that no name can have more. There are exponentially many where repeats are nested, `(a+)+`,
    which is never allowed but for short, fixed numbers of times; and `n^k / k!` for `k` repeats of
    any length one after the other, of which 4 are allowed in a name of 128 characters.

    Arguments:
        length: of the name, in characters.
    """
    start = np.zeros(length + 1)
    start[0] = 1
    try:
        _Search().walk(_parser.parse(pattern.pattern, pattern.flags), start)
    except _TooLongError:
        raise ValueError(
            f"`regex` (={shown(pattern.pattern)}) might take too long to match a name of {length}"
            " characters: it has repeats inside of repeats, or too many of them. Write it with up"
            " to 4 repeats and none inside of another, or as several overrides."
        ) from None


class _TooLongError(Exception):
    pass


class _Search:
    """Counts the steps of a search: `[length + 1]` ways to have come to each place of a name."""

    def __init__(self) -> None:
        self.steps = 0.0
        self.elements = 0

    def walk(self, elements: Any, ways: NDArray[np.float64]) -> NDArray[np.float64]:
        """The ways behind `elements` of a parsed pattern, given those in front."""
        for operator, argument in elements:
            ways = self._element(str(operator), argument, ways)
            self.steps += ways.sum()
            self.elements += 1
            if self.steps > _MOST_STEPS or self.elements > _MOST_ELEMENTS:
                raise _TooLongError
        return ways

    def _element(
        self, operator: str, argument: Any, ways: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        if operator in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, repeated = argument
            return self._repeat(int(least), int(most), repeated, ways)
        if operator == "SUBPATTERN":
            return self.walk(argument[-1], ways)
        if operator == "ATOMIC_GROUP":
            return self.walk(argument, ways)
        if operator == "BRANCH":
            return np.sum([self.walk(branch, ways) for branch in argument[1]], axis=0)
        if operator in ("ASSERT", "ASSERT_NOT"):
            self.walk(argument[1], ways)
            return ways
        if operator == "GROUPREF_EXISTS":
            branches = [branch or [] for branch in argument[1:]]
            return np.sum([self.walk(branch, ways) for branch in branches], axis=0)
        if operator == "AT":
            return ways
        if operator == "GROUPREF":  # of any length
            return ways.cumsum()
        return np.concatenate([[0], ways[:-1]])  # one character

    def _repeat(
        self, least: int, most: int, elements: Any, ways: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        behind = ways if least == 0 else np.zeros_like(ways)
        times = 0
        # What matches nothing is not repeated without end.
        for times in range(1, min(most, 2 * len(ways)) + 1):
            ways = self.walk(elements, ways)
            if times >= least:
                behind = behind + ways
            if not ways.any():
                return behind
        return behind + ways if least > times else behind
