"""What the benchmarks share: the store of measured rows."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import common


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    bits: int


@dataclasses.dataclass(frozen=True)
class Row(Case):
    score: float | None = None


def store(path: pathlib.Path, **options) -> common.Results[Case, Row]:
    return common.Results(path, Case, Row, **options)


def test_rows_are_found_by_their_case(tmp_path):
    results = store(tmp_path / "new" / "rows.json")
    rows = [Row("a", 8, 1.5), Row("a", 4, None), Row("b", 8, 2.5)]
    for row in rows:
        results.add(row)
    assert list(results) == rows
    assert results[Case("a", 8)].score == 1.5
    assert results.get(Case("b", 4)) is None
    assert Case("a", 4) in results
    assert Case("b", 4) not in results


def test_a_row_measured_again_takes_the_place_of_the_old_one(tmp_path):
    results = store(tmp_path / "rows.json")
    results.add(Row("a", 8, 1.5))
    results.add(Row("a", 8, 2.5))
    assert list(results) == [Row("a", 8, 2.5)]


@pytest.mark.parametrize("resume", [True, False], ids=["resume", "anew"])
def test_rows_are_read_from_the_file(tmp_path, resume):
    path = tmp_path / "rows.json"
    row = Row("a", 8, 1.5)
    store(path, machine={"cores": 2}).add(row)
    assert json.loads(path.read_text()) == {
        "machine": {"cores": 2},
        "rows": [{"name": "a", "bits": 8, "score": 1.5}],
    }
    assert list(store(path, resume=resume)) == ([row] if resume else [])


def test_what_is_missing_is_measured_once(tmp_path, capsys):
    results = store(tmp_path / "rows.json")
    results.add(Row("a", 8, 1.5))
    cases = [Case("a", 8), Case("b", 4), Case("b", 4), Case("c", 2)]
    assert results.missing(cases) == [Case("b", 4), Case("c", 2)]
    asked = []

    def measure(case: Case) -> Row:
        asked.append(case)
        return Row(case.name, case.bits, 7.0)

    assert results.fill(cases, measure) == 2
    assert asked == [Case("b", 4), Case("c", 2)]
    assert capsys.readouterr().out == f"{Row('b', 4, 7.0)}\n{Row('c', 2, 7.0)}\n"
    assert results.fill(cases, measure, "again") == 0
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    results = store(path)
    results.add(Row("a", 8))
    before = path.read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        results.add(Row("b", 8))
    assert path.read_text() == before
