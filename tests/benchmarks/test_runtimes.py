"""The runtime benchmark in its quick mode: ResNet-20 on 16 pictures."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import runtimes
from ocs_tf.runtime import micro


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


@pytest.mark.skipif(not micro.installed(), reason='needs tflite-micro: pip install "ocs_tf[micro]"')
def test_microcontrollers_round_otherwise_and_mostly_choose_the_same_class(results):
    rows = [row for row in results[0] if row.interpreter == runtimes.MICRO]
    assert [row.weight_bits for row in rows] == list(runtimes.BITS)
    for row in rows:
        assert row.pictures == 16
        assert row.differing > 10
        assert row.steps <= 8
        assert row.agreement >= 90


def test_what_was_measured_is_kept(results, monkeypatch):
    monkeypatch.setitem(runtimes.QUICK, "resnet20_cifar10", 16)
    monkeypatch.setattr(runtimes, "measure", None)
    assert runtimes.benchmark(results[1], quick=True) == results[0]


def test_results_are_written(results):
    rows, folder = results
    assert len(json.loads((folder / "runtimes.json").read_text())["rows"]) == len(rows)
    assert (folder / "runtimes.md").read_text().count("resnet20_cifar10") == len(rows)
