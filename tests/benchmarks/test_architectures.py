"""The benchmark of many structures: its networks compute, and one goes through all steps."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import architectures
from benchmarks.networks import registry


@pytest.mark.parametrize("name", ["capsules", "conformer", "factorization_machine"])
def test_networks_are_the_same_each_time(name: str) -> None:
    one, other = registry.made(name), registry.made(name)
    for weight, again in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, again)
    samples = registry.samples(one, 2)
    assert {array.shape[0] for array in samples.values()} == {2}


def test_each_step_is_measured(tmp_path: pathlib.Path) -> None:
    (row,) = architectures.benchmark(tmp_path, only=["two_towers"])
    assert row.kernels == 6
    assert row.reloaded == "0"
    assert all(text.endswith(" dB") for text in (row.weights, row.both, row.packed, row.int8))
    assert "| two_towers | 6 | 0 |" in (tmp_path / "architectures.md").read_text()
