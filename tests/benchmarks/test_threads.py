"""The benchmark of threads, with a writer in place of the exporter: it finds what goes wrong."""

from __future__ import annotations

import json
import pathlib
import random
import sys

import ocs_tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import threads


def test_faults_are_counted(monkeypatch, tmp_path):
    numbers = iter(range(1000))

    def export(model, path, *, target, overwrite) -> None:
        random.random()  # the state of the process, which is to stay
        number = next(numbers)  # the first three are those of one thread
        if number == 5:
            raise ValueError("a fault")
        path.write_text("other" if number in (7, 9) else target)

    monkeypatch.setattr(threads.gc, "collect", lambda: 0)
    monkeypatch.setattr(threads, "network", lambda: None)
    monkeypatch.setattr(ocs_tf, "export_tflite", export)
    (row,) = threads.benchmark(tmp_path, exports=12, threads=3)
    assert (row.exports, row.threads) == (12, 3)
    assert (row.failed, row.different, row.changed) == (1, 2, ["random"])
    assert len(row.memory) == 11
    assert row.running[0] == row.running[2]
    assert json.loads((tmp_path / "threads.json").read_text())["rows"][0]["different"] == 2
    assert "| 12 | 3 |" in (tmp_path / "threads.md").read_text()
