"""JSON and regular expressions from files: what is refused, and that nothing takes for ever.

Of each kind of document as many are changed as take some seconds; `make fuzz` changes more.
"""

from __future__ import annotations

import json
import re
import time

import pytest

from ocs_tf import documents
from tests import fuzz_documents

CHANGED = {"config": 4_000, "plan": 1_500, "layer": 600, "file": 60}

BAD_JSON: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "Expecting value"),
    "nan": ('{"a": NaN}', "number NaN is not finite"),
    "infinity": ('{"a": -Infinity}', "number -Infinity is not finite"),
    "too large": ("[1e999]", "number 1e999 is not finite"),
    "long": ("[" + "1" * 400 + "]", "has more than 20 digits"),
    "longer than Python reads": ("[" + "1" * 5000 + "]", "has more than 20 digits"),
    "twice": ('{"a": 1, "a": 1}', "key 'a' is there twice"),
    "deep": ("[" * 18 + "]" * 18, "nested more than 16 deep"),
    "deeper than the stack": ("[" * 100_000 + "]" * 100_000, "nested more than 16 deep"),
    "deep and open": ('{"a":' * 100_000, "nested more than 16 deep"),
    "half a pair": (r'["\ud800"]', r"text '\\ud800' is not Unicode"),
    "half a pair as a key": (r'{"\udfff": 1}', "is not Unicode"),
    "not UTF-8": (b'{"a": "\xff"}', "codec can't decode"),
    "encoded surrogate": (b'"\xed\xa0\x80"', "codec can't decode"),
}


@pytest.mark.parametrize(("text", "message"), BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        documents.read_json(text)


def test_only_text_is_read() -> None:
    with pytest.raises(ValueError, match="JSON text must be a string, not a NoneType"):
        documents.read_json(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order-mark"])
def test_json_is_read_as_python_reads_it(mark: bytes) -> None:
    value = {"a": [1, -2.5e-3, True, None, "é\U0001f600"], "b": {"c": []}}
    assert documents.read_json(json.dumps(value)) == value
    assert documents.read_json(mark + json.dumps(value, ensure_ascii=False).encode()) == value


GOOD_PATTERNS = (
    *(r"conv.*", r"block\d+_(conv|bn)_.*", r".*a.*b.*c.*", r"(?i)CONV[0-9]{1,3}", r"(.*)_\1"),
    *(r"(?=.*conv)x+", r"(a|b)?c*", r"(?:ab){1,5}", r"(x)?(?(1)y|z)", "", r"\w+\b", "a" * 1000),
)
SLOW_PATTERNS = (
    *(r"(a+)+$", r"(a*)*b", r"(a|a)*b", r"(a|ab)*c", r"(a?){60}a{60}", "a?" * 30 + "a" * 30),
    *(r"(\w+\s?)*!", r"((a+)b?)+c", r"(?=(a+)+b)a", r".*.*.*.*.*x", r"(.*)(.*)(.*)\1\2\3(.*)(.*)x"),
    *(r"(){1000}(a+)+b", r"(a{0,500}){0,500}", r"(x(y(z*)*)*)*", r"(?:a|b|ab)+?c", r"(?!(a+)+b)a"),
)


@pytest.mark.parametrize("regex", GOOD_PATTERNS)
def test_patterns_of_layers(regex: str) -> None:
    assert documents.compiled(regex) == re.compile(regex)


@pytest.mark.parametrize("regex", SLOW_PATTERNS)
def test_a_pattern_that_may_take_long_is_refused_at_once(regex: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match="might take too long to match a name of 128 characters"):
        documents.compiled(regex)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "regex", [r".*.*.*.*x", r".*a.*a.*a.*x", r"(a|a){12}b", r"(.{1,3}){4}x.*y"]
)
def test_the_slowest_allowed_patterns_take_no_time(regex: str) -> None:
    pattern = documents.compiled(regex)
    start = time.process_time()
    assert pattern.fullmatch("a" * documents.LONGEST_NAME) is None
    assert time.process_time() - start < 2


def test_longer_names_are_looked_at_again() -> None:
    pattern = documents.compiled(".*a.*a.*a.*")
    with pytest.raises(ValueError, match="name of 400 characters: it has repeats"):
        documents.check_pattern(pattern, 400)


@pytest.mark.parametrize(
    ("regex", "flags", "message"),
    [
        ("(", 0, r"`regex` \(='\('\) is not a regular expression: missing \)"),
        ("a{99999999999}", 0, "is not a regular expression: the repetition number is too large"),
        (3, 0, r"`regex` \(=3\) must be a string of up to 1000 characters"),
        ("a" * 1001, 0, "must be a string of up to 1000 characters"),
        ("a", re.DEBUG, r"`flags` \(=.*\) of `regex` must be a sum of re.ASCII"),
        ("a", re.LOCALE, "must be a sum of re.ASCII"),
        ("a", True, r"`flags` \(=True\) of `regex`"),
        ("a", "i", r"`flags` \(='i'\) of `regex`"),
        ("a", 10**30, "`flags`"),
        ("a", int(re.ASCII | re.UNICODE), "is not a regular expression"),
    ],
)
def test_no_pattern(regex: object, flags: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        documents.compiled(regex, flags)


def test_every_kind_is_changed() -> None:
    assert CHANGED.keys() == fuzz_documents.makers().keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGED)
def test_changed_documents(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    failures, outcomes = fuzz_documents.fuzz(kind, None, count=CHANGED[kind])
    assert failures == 0, capsys.readouterr().out
    assert 0 < outcomes["accepted"] < sum(outcomes.values())
