"""Statistics of inputs, by NumPy on all positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ocs_tf.compensation import statistics
from ocs_tf.graph.reader import Graph
from tests.compensation.test_calibrated import LAYERS, correlated


def below_one(arrays: list[np.ndarray]) -> float:
    """The power of two that brings the largest magnitude into 0.5 .. 1."""
    return 2.0 ** -np.frexp(max(np.abs(array).max() for array in arrays))[1]


def test_only_some_positions_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LAYERS["conv"]()
    site = Graph(model).kernels["layer"]
    x = [correlated(model, 40), correlated(model, 24)]
    counts = []

    def unchanged(moments: Any, mean: Any, samples: int) -> Any:
        counts.append(samples)
        return np.concatenate([moments, mean[..., None]], -1)

    monkeypatch.setattr(statistics, "shrunk_moments", unchanged)
    kernel = site.weights()[0]
    everything, nothing = statistics.input_moments(site, kernel, x)
    assert nothing is None
    patches = np.concatenate([site.adapter.patches(site.layer, batch)[:, 0] for batch in x])
    patches = patches * below_one(x)
    moments = np.column_stack([patches.T @ patches / len(patches), patches.mean(0)])
    np.testing.assert_allclose(everything[0], moments, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(statistics, "_POSITIONS", 300)
    exact = [batch + 1 for batch in x]
    some, lost = statistics.input_moments(site, kernel, x, exact)
    # Of 6 x 7 positions, 2 or 3 along each axis: every third.
    assert counts[0] == 64 * 6 * 7
    assert 64 * 2 * 2 <= counts[1] <= 64 * 2 * 3
    # The same positions of what should be there: what inputs lack is 1 everywhere.
    assert lost is not None
    want = np.outer(some[0, :, -1], below_one(x + exact) * kernel.sum((0, 1, 2)))
    np.testing.assert_allclose(lost[0], want, rtol=1e-4, atol=1e-4)


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
