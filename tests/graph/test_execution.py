"""How much of a model fits into memory; what it computes is tested where it is used."""

from __future__ import annotations

import pytest

from ocs_tf.graph import execution
from ocs_tf.graph.reader import Graph
from tests.compensation.test_calibrated import LAYERS


def test_samples_are_limited_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LAYERS["conv"]()
    graph = Graph(model)
    assert execution.sample_limit(graph) == 1024
    # Input and output of the convolution are held together: 8 x 9 x 4 and 6 x 7 x 5 floats, of
    # the float model and of the quantized one.
    monkeypatch.setattr(execution, "_BYTES", 10 * 2 * 4 * (8 * 9 * 4 + 6 * 7 * 5) + 1)
    assert execution.sample_limit(graph) == 10
    monkeypatch.setattr(execution, "_BYTES", 1)
    assert execution.sample_limit(graph) == 1
