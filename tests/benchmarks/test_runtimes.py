"""The runtime benchmark in its quick mode: ResNet-20 on 16 pictures."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import runtimes


@pytest.fixture(scope="module")
def results(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtimes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runtimes.QUICK, "resnet20_cifar10", 16)
        patch.setattr(runtimes, "CALIBRATION", 32)
        return runtimes.benchmark(folder, quick=True), folder


def test_files_compute_what_the_keras_model_does_under_xnnpack(results):
    rows = [row for row in results[0] if row.kernels == "XNNPACK"]
    assert {(row.weight_bits, row.interpreter) for row in rows} == {
        (bits, library) for bits in runtimes.BITS for library in runtimes.INTERPRETERS
    }
    for row in rows:
        assert row.agreement >= 99
        assert row.steps <= 1


def test_results_are_written(results):
    rows, folder = results
    assert len(json.loads((folder / "runtimes.json").read_text())["rows"]) == len(rows)
    assert (folder / "runtimes.md").read_text().count("resnet20_cifar10") == len(rows)
