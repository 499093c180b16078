"""The benchmark of running every file, with an exporter of known cost."""

from __future__ import annotations

import json
import pathlib
import sys
import types
import warnings

import pytest

import ocs_tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import common, verification


def test_costs_and_warnings_are_told(monkeypatch, tmp_path):
    entry = types.SimpleNamespace(model=None, calibration=[])
    zoo = types.SimpleNamespace(load=lambda name, limit: entry, names=lambda: ["a"])

    def export(model, path, *, target, overwrite, verify):
        if target == "int8":
            warnings.warn("of the file", stacklevel=1)
        return types.SimpleNamespace(closeness=[types.SimpleNamespace(sqnr_db=d) for d in (9, 7)])

    def in_turns(actions, rounds, clock):
        return {"with": [3.0, 5.0, 4.0], "without": [2.0, 2.0, 9.0]}

    monkeypatch.setattr(common, "load_zoo", lambda folder: zoo)
    monkeypatch.setattr(common, "in_turns", in_turns)
    monkeypatch.setattr(ocs_tf, "export_tflite", export)
    monkeypatch.setattr(
        ocs_tf, "convert", lambda *args, **options: warnings.warn("of the data", stacklevel=1)
    )
    rows = verification.benchmark(tmp_path)
    assert [row.target for row in rows] == list(verification.TARGETS)
    assert [row.warned for row in rows] == [["of the data", "of the file"]] + [["of the data"]] * 2
    for row in rows:
        assert (row.with_run, row.without, row.sqnr_db) == (4.0, 2.0, 7)
    page = (tmp_path / "verification.md").read_text()
    assert "| `a` | packed | 4.00 | 2.00 | 100 | 7.0 | of the data |" in page
    monkeypatch.setattr(verification, "measure", None)  # nothing is measured twice
    assert verification.benchmark(tmp_path) == rows
    assert len(json.loads((tmp_path / "verification.json").read_text())["rows"]) == 3


@pytest.mark.usefixtures("zoo")
def test_correct_data_are_not_warned_of(monkeypatch):
    monkeypatch.setattr(
        common, "in_turns", lambda *args, **options: {"with": [2.0], "without": [1.0]}
    )
    monkeypatch.setattr(verification, "CALIBRATION", 32)
    (row,) = verification.measure(verification.QUICK, ("float",))
    assert row.warned == []
    assert row.sqnr_db > 60
