"""The latency benchmark in its quick mode, on a network that is called ResNet-20, and small."""

from __future__ import annotations

import json
import pathlib
import sys
import types

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import latency
from tests.benchmarks.small import Entry


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latency")
    zoo = types.SimpleNamespace(load=lambda name, limit: Entry())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency.common, "load_zoo", lambda: zoo)
        return latency.benchmark(folder, quick=True), folder


def test_every_file_is_compared_with_the_float_one(results):
    packed = [f"packed {bits}" for bits in latency.PACKED_BITS]
    files = {
        "resnet20_cifar10": {"float", "int8", "INT4 weights", *packed},
        "dense": {
            *("float", "INT4 weights", "INT4 dynamic", *packed),
            *(f"{name}, fused" for name in packed),
        },
    }
    for network, names in files.items():
        rows = {row.file: row for row in results[0] if row.network == network}
        assert set(rows) == names
        assert set(rows["float"].over_float.values()) == {1.0}
        assert rows["float"].load_over_float == 1.0
        for row in rows.values():
            assert min(row.milliseconds.values()) > 0
            assert row.memory > 0


def test_files_are_smaller_by_their_bits(results):
    rows = {row.file: row for row in results[0] if row.network == "dense"}
    codes = (latency.DENSE // 4) ** 2
    for bits in latency.PACKED_BITS:
        for kind in ("", ", fused"):
            size = rows[f"packed {bits}{kind}"].size
            # Scales and biases of 4 bytes for each output, and what a file needs.
            assert 0 < size - codes * bits / 8 < 2 * 4 * latency.DENSE // 4 + 2048


def test_fused_kernels_stay_packed_in_memory(results):
    rows = {row.file: row for row in results[0] if row.network == "dense"}
    saved = rows["packed 4"].memory - rows["packed 4, fused"].memory
    assert saved > 4 * (latency.DENSE // 4) ** 2 / 1024


def test_results_are_written(results):
    rows, folder = results
    assert len(json.loads((folder / "latency.json").read_text())["rows"]) == len(rows)
    assert (folder / "latency.md").read_text().count("packed 3") == 3
    assert (folder / "latency.png").read_bytes()[1:4] == b"PNG"
