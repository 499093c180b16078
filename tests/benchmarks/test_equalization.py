"""The benchmark of equalization in its quick mode, on networks that are hardly trained."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import common, equalization
from benchmarks.equalization import Case, Results, Row


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("equalization")
    patch = pytest.MonkeyPatch()
    patch.setattr(equalization, "EPOCHS", 1)
    yield equalization.benchmark(folder, quick=True), folder
    patch.undo()


def test_every_case_is_measured(measured):
    results, folder = measured
    want = itertools.product(
        equalization.QUICK, equalization.GRANULARITIES, ["W4, data"], (False, True)
    )
    assert {results.case_of(row) for row in results} == {Case(*case) for case in want}
    assert all(row.sqnr_db > 10 for row in results)
    kept = json.loads((folder / "equalization_quick.json").read_text())["rows"]
    assert kept == [dataclasses.asdict(row) for row in results]


def test_nothing_is_measured_twice(measured, monkeypatch):
    results, folder = measured
    monkeypatch.setattr(equalization, "load", None)
    again = equalization.benchmark(folder, quick=True)
    assert list(again) == list(results)


def test_the_page_says_what_was_gained(tmp_path):
    results: Results = common.Results(tmp_path / "rows.json", Case, Row)
    for network, (without, with_it) in {"a": (20.0, 23.0), "b": (30.0, 29.0)}.items():
        results.add(Row(network, "tensor", "W4", False, without, 90.0))
        results.add(Row(network, "tensor", "W4", True, with_it, 90.0))
    page = equalization.markdown(results)
    assert "| `a` | 20.0, **23.0** |" in page
    assert "| `b` | **30.0**, 29.0 |" in page
    assert f"{(3 - 1) / 2:.1f} dB on average, -1.0 to 3.0." in page
