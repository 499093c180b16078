"""Statistics of inputs, by NumPy on all positions."""

from __future__ import annotations

import numpy as np
import pytest

from ocs_tf.compensation import statistics
from ocs_tf.graph.reader import Graph
from tests.compensation.test_calibrated import LAYERS, correlated


def below_one(arrays: list[np.ndarray]) -> float:
    """The power of two that brings the largest magnitude into 0.5 .. 1."""
    return 2.0 ** -np.frexp(max(np.abs(array).max() for array in arrays))[1]


def test_sums_over_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LAYERS["conv"]()
    site = Graph(model).kernels["layer"]
    x = [correlated(model, 40), correlated(model, 25)]
    kernel = statistics.grouped(site.weights()[0], 1)
    halves = statistics.input_sums(site, kernel, x)
    assert [half.count for half in halves] == [(20 + 13) * 6 * 7, (20 + 12) * 6 * 7]
    for parity, half in enumerate(halves):
        batches = [site.adapter.patches(site.layer, batch[parity::2])[:, 0] for batch in x]
        patches = np.concatenate(batches) * below_one(x)
        np.testing.assert_allclose(half.products[0], patches.T @ patches, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(half.inputs[0], patches.sum(0), rtol=1e-4, atol=1e-3)
        assert not half.lost.any()


def test_only_some_positions_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LAYERS["conv"]()
    site = Graph(model).kernels["layer"]
    x = [correlated(model, 40), correlated(model, 24)]
    monkeypatch.setattr(statistics, "_POSITIONS", 300)
    exact = [batch + 1 for batch in x]
    kernel = statistics.grouped(site.weights()[0], 1)
    for some in statistics.input_sums(site, kernel, x, exact):
        # Of 6 x 7 positions, 2 or 3 along each axis: every third.
        assert 32 * 2 * 2 <= some.count <= 32 * 2 * 3
        # The same positions of what should be there: what inputs lack is 1 everywhere.
        lacking = below_one(x + exact)
        np.testing.assert_allclose(some.lacking[0], some.count * lacking, rtol=1e-4)
        want = np.outer(some.inputs[0], lacking * kernel[0].sum(0))
        np.testing.assert_allclose(some.lost[0], want, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(some.own[0], lacking * some.inputs[0], rtol=1e-3, atol=1e-3)


def test_calls_count_by_their_relative_errors() -> None:
    """The inputs of the second call are ten times as large: the mean is near that of the first."""
    model = LAYERS["dense"]()
    site = Graph(model).kernels["layer"]
    kernel = site.weights()[0]
    rng = np.random.default_rng(0)
    first = [rng.normal(size=(6, 7)), rng.normal(size=(2, 7))]
    calls = [first, [10 * first[0] + 1], [np.zeros((3, 7))]]
    weights = statistics.call_weights(calls)
    powers = [np.square(np.concatenate(call)).mean() for call in calls[:2]]
    assert weights == pytest.approx([(powers[1] / powers[0]) ** 0.5, 1, 0], rel=0.3)
    means = [np.concatenate(call).mean(0) @ kernel for call in calls[:2]]
    wanted = (weights[0] ** 2 * means[0] + means[1]) / (weights[0] ** 2 + 1)
    np.testing.assert_allclose(statistics.mean_outputs(site, calls, kernel, weights), wanted)
    assert statistics.call_weights(calls[:1]) == [1]
    joined = statistics.weighted(calls[:2], weights[:2])
    assert joined[-1] is calls[1][0]
    np.testing.assert_array_equal(joined[0], weights[0] * first[0])
