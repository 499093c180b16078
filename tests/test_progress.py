"""Progress bars appear when asked for, on stderr, and change nothing that goes through them."""

from __future__ import annotations

import sys

import pytest

from ocs_tf import progress
from ocs_tf.progress import progress_bar


def test_items_go_through() -> None:
    assert list(progress_bar(range(5), "Counting", verbose=False)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("verbose", "shown"), [(True, True), (False, False)])
def test_shown_if_asked_for(
    verbose: bool, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_DELAY", 0)
    assert list(progress_bar("ab", "Reading", verbose)) == ["a", "b"]
    written = capsys.readouterr()
    assert ("Reading" in written.err) is shown
    assert written.out == ""


def test_what_is_quick_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar("ab", "Reading", verbose=True)) == ["a", "b"]
    assert "Reading" not in capsys.readouterr().err


def test_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress_bar("ab", "Reading", verbose=True)) == ["a", "b"]
