"""The benchmark of split activations: its rows, its quick mode, and what the docs say of it."""

from __future__ import annotations

import json
import pathlib
import re
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import activation_splitting, common
from benchmarks.activation_splitting import Case, Row, cases, config, label

RESULTS = common.RESULTS / "activation_splitting.json"
PAGE = common.ROOT / "docs" / "quantization.md"


@pytest.mark.parametrize("network", activation_splitting.BITS)
def test_each_row_is_a_valid_case_of_its_own(network):
    rows = list(cases(network))
    assert len(set(rows)) == len(rows)
    names = {(row.setup, row.activation_bits, label(row)) for row in rows}
    assert len(names) == len(rows)
    for row in rows[1:]:
        assert config(row).activation_expand_ratio == row.ratio


def test_files_hold_every_row():
    rows = activation_splitting.load_rows(RESULTS)
    assert list(rows) == [case for network in activation_splitting.BITS for case in cases(network)]
    page = RESULTS.with_suffix(".md").read_text()
    for row in rows.values():
        if row.activation_bits is not None:
            assert f"{row.top1:.1f} ({row.agreement:.1f}, {row.sqnr_db:.1f})" in page


def test_the_page_shows_scores_in_their_places():
    base = Case("resnet20_cifar10", 10, "paper", 4)
    exact = Row("resnet20_cifar10", 10, top1=91.0, agreement=100.0)
    plain = Row(**vars(base), top1=80.0, agreement=90.0, sqnr_db=5.0)
    split = Row(
        **{**vars(base), "split": "error", "ratio": 0.02}, top1=85.0, agreement=95.0, sqnr_db=9.0
    )
    page = activation_splitting.to_markdown([exact, plain, split], {"cores": 2}, "the command")
    assert "| activations | A4 |" in page
    assert "| no clip | 80.0 (90.0, 5.0) |" in page
    assert "| `error` r=0.02 | 85.0 (95.0, 9.0) |" in page


def test_scores_in_the_docs_are_those_of_the_benchmark():
    rows = activation_splitting.load_rows(RESULTS)
    scores = {(r.network, r.setup, r.activation_bits, label(r)): r for r in rows.values()}
    text = PAGE.read_text(encoding="utf-8")
    tables = re.findall(r"\| `(\w+)`, `([\w, ]+)` \|(.*)\n\|.*\n((?:\|.*\n)+)", text)
    assert tables
    for network, setup, heads, lines in tables:
        bits = [int(b) for b in re.findall(r"A(\d)", heads)]
        for line in lines.splitlines():
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            for b, cell in zip(bits, cells, strict=True):
                row = scores.get((network, setup, b, name))
                if cell:
                    assert cell.replace("*", "") == f"{row.top1:.1f} ({row.agreement:.1f})", line


def test_quick_mode(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(activation_splitting, "QUICK_PICTURES", 20)
    chosen = [
        Case("resnet20_cifar10", 20),
        Case("resnet20_cifar10", 20, "paper", 4, split="error", ratio=0.1),
        Case("resnet20_cifar10", 20, "paper", 4, split="dynamic", batch=10),
    ]
    monkeypatch.setattr(activation_splitting, "CALIBRATION", 20)
    monkeypatch.setattr(activation_splitting, "cases", lambda network, quick: chosen)
    activation_splitting.benchmark(tmp_path, quick=True, networks=["resnet20_cifar10"])
    found = json.loads((tmp_path / "activation_splitting_quick.json").read_text())["rows"]
    assert [row["split"] for row in found] == ["none", "error", "dynamic"]
    assert found[0]["agreement"] == 100
    assert all(np.isfinite(row["sqnr_db"]) for row in found[1:])
    measured = []
    monkeypatch.setattr(activation_splitting.Scorer, "measure", lambda *_: measured.append(1))
    activation_splitting.benchmark(tmp_path, quick=True, networks=["resnet20_cifar10"])
    assert not measured
