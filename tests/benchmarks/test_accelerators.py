"""The benchmark of cycles on Ethos-U: its cases, its tables, and one network."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import accelerators


def row(case: accelerators.Case, cycles: int) -> accelerators.Row:
    return accelerators.Row(
        **dataclasses.asdict(case),
        copies=3,
        on_npu=5,
        on_cpu=1,
        cycles=cycles,
        macs=10,
        sram_bytes=2048,
        copy_cycles=7,
        size=1_500_000,
    )


def test_cycles_are_told_relative_to_no_splits(monkeypatch, tmp_path):
    class Files:
        def __init__(self, folder, zoo):
            assert pathlib.Path(folder).is_dir()

        def measure(self, case):
            return row(case, 1000 + (500 if case.ratio and case.multiple == 1 else 0))

    monkeypatch.setattr(accelerators, "Files", Files)
    rows = accelerators.benchmark(tmp_path)
    assert (
        len(rows)
        == len(set(accelerators.cases()))
        == 4 * 2 * 3 * 2 + len(accelerators.APPLICATIONS)
    )
    page = (tmp_path / "accelerators.md").read_text()
    line = "| `resnet20_cifar10` | W8 | 0.05 | 1 | 3 | 5 / 1 | 1,500 | 1.50 | 7 | 2.0 | 1.50 |"
    assert page.count(line) == 2  # of either accelerator
    assert "| `VGG16` | W8 | 0.0 | 1 | 3 | 5 / 1 | 1,000 | 1.00 | 7 | 2.0 | 1.50 |" in page
    monkeypatch.setattr(accelerators, "Files", None)  # nothing is measured twice
    assert accelerators.benchmark(tmp_path) == rows


def test_failures_are_told():
    case = accelerators.Case("VGG16", 8, 0.0, 1, "ethos-u55-128")
    page = accelerators.markdown([dataclasses.replace(row(case, 0), error="Vela crashed.")])
    assert "| failed | 0 |" in page
    assert "- `VGG16`: Vela crashed." in page


@pytest.mark.skipif(
    importlib.util.find_spec("ethosu") is None,
    reason='needs ethos-u-vela: pip install "ocs_tf[ethos-u]"',
)
@pytest.mark.usefixtures("zoo")
def test_splits_within_blocks_cost_next_to_nothing(tmp_path):
    """And splits beyond them, with copies in front of padding, less than twice the cycles."""
    whole, split, within = accelerators.benchmark(tmp_path, quick=True)
    assert (whole.copies, whole.on_cpu, split.on_cpu, within.on_cpu) == (0, 0, 0, 0)
    assert split.copies > 20
    assert split.cycles < 2 * whole.cycles
    assert within.cycles < 1.25 * whole.cycles
