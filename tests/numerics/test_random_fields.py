"""Statistics of random fields, by NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from ocs_tf.numerics.random_fields import coloured, dead_leaves, noise_fields


@pytest.mark.parametrize("sizes", [(), (256,), (32, 32), (12, 12, 12)])
def test_fields_have_mean_0_and_variance_1(
    sizes: tuple[int, ...], rng: np.random.Generator
) -> None:
    fields = noise_fields(400, sizes, 2, 0.5, rng)
    assert fields.shape == (400, *sizes, 2)
    assert abs(fields.mean()) < 0.1
    assert fields.var() == pytest.approx(1, abs=0.15)
    assert abs(np.corrcoef(fields[..., 0].ravel(), fields[..., 1].ravel())[0, 1]) < 0.2


def test_neighbours_are_more_alike_the_larger_the_correlation(rng: np.random.Generator) -> None:
    found = []
    for correlation in (0.5, 0.9, 0.98):
        fields = noise_fields(50, (64, 64), 1, correlation, rng)[..., 0]
        found.append(np.corrcoef(fields[:, 1:].ravel(), fields[:, :-1].ravel())[0, 1])
        assert found[-1] == pytest.approx(correlation, abs=0.2)
    assert found == sorted(found)


def test_dead_leaves_have_flat_areas_and_edges(rng: np.random.Generator) -> None:
    pictures = dead_leaves(20, 40, 30, 3, rng)
    assert pictures.shape == (20, 40, 30, 3)
    steps = np.abs(np.diff(pictures, axis=1)).max(-1)
    assert 0.3 < (steps == 0).mean() < 0.99
    assert (steps > 0.5).any()
    assert pictures.std() == pytest.approx(1, abs=0.3)


def test_colours_have_the_covariance_that_is_asked_for(rng: np.random.Generator) -> None:
    mean, root = np.array([1.0, -2, 0]), rng.normal(size=(3, 3))
    covariance = root @ root.T
    values = coloured(rng.normal(size=(20000, 3)), mean, covariance)
    np.testing.assert_allclose(values.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(np.cov(values.T), covariance, atol=0.1 * covariance.max())
