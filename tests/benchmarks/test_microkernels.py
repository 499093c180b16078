"""The benchmark of microkernels in its quick mode: 256 x 1024, and the kernels of ResNet-20."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import microkernels


@pytest.fixture(scope="module")
def results(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("microkernels")
    return microkernels.benchmark(folder, quick=True), folder


def test_every_operation_is_compared(results):
    operations = [f"dequantize, {bits} bits" for bits in range(2, 9)]
    small = [row for row in results[0] if row.place == "256 x 1024"]
    rounding = ["quantize", "quantize, expand", "fake-quantize, expand"]
    assert [row.operation for row in small] == [*operations, *rounding]
    network = [row for row in results[0] if row.place == "resnet20_cifar10"]
    assert [row.operation for row in network] == operations
    for row in small:
        assert {"memcpy", "memset", "plain", "numpy"} <= set(row.over_memcpy)
        assert min(row.over_memcpy.values()) > 0
        assert row.milliseconds > 0


def test_traffic_is_what_is_read_and_written(results):
    traffic = {row.operation: row.mebibytes * 2**20 for row in results[0] if row.place[0] == "2"}
    codes = 256 * 1024
    for bits in range(2, 9):
        assert traffic[f"dequantize, {bits} bits"] == codes * bits / 8 + 4 * 256 + 4 * codes
    assert traffic["quantize"] == 4 * codes + 4 * 1024 + codes
    copies = round(0.05 * 1024)
    wide = 256 * (1024 + copies)
    assert traffic["quantize, expand"] == 4 * codes + 4 * (1024 + copies) + 4 * copies + wide
    assert traffic["fake-quantize, expand"] == 4 * codes + 4 + 4 * copies + 4 * wide


def test_builtin_operators_do_the_same():
    """What is compared is the same work."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (6, 32), np.int8)
    scale = np.float32([1, 2, 0.5, 3, 1, 2])
    outputs = []
    dequantize = microkernels.builtin(codes, np.float32, scale, 0)
    dequantize()
    outputs.append(dequantize.__self__.get_tensor(1))
    np.testing.assert_array_equal(outputs[0], codes * scale[:, None])
    x = rng.normal(0, 60, (6, 32)).astype(np.float32)
    scale = rng.choice(np.float32([1, 0.5]), 32)
    quantize = microkernels.builtin(x, np.int8, scale, 1)
    quantize()
    expected = np.clip(np.rint(x / scale), -128, 127)
    np.testing.assert_array_equal(quantize.__self__.get_tensor(1), expected)


def test_results_are_written(results):
    rows, folder = results
    assert len(json.loads((folder / "microkernels.json").read_text())["rows"]) == len(rows)
    text = (folder / "microkernels.md").read_text()
    assert text.count("TFLite DEQUANTIZE") == text.count("TFLite QUANTIZE") == 1
    assert (folder / "microkernels.png").read_bytes()[1:4] == b"PNG"
