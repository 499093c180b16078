"""Error-compensated rounding against its definition, solved row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocs_tf.numerics.gptq import (
    DAMPING,
    code_ranges,
    compensated_codes,
    reproducible_share,
    shrunk_losses,
    shrunk_moments,
)
from ocs_tf.numerics.grid import code_limit
from ocs_tf.numerics.quantized_kernel import encode
from ocs_tf.numerics.splitting import choose_copies, copies_of_map

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
Array = NDArray[np.float64]


def wide(rows: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Ranges of codes that nothing reaches."""
    return np.full(rows, -(10**6), np.int32), np.full(rows, 10**6, np.int32)


def products(rng: np.random.Generator, groups: int, rows: int, samples: int = 50) -> Array:
    """Those of correlated inputs of different size."""
    x = rng.normal(size=(groups, samples, rows)) @ rng.normal(size=(groups, rows, rows))
    x *= rng.lognormal(0, 1, rows)
    return np.matmul(x.swapaxes(1, 2), x)


def output_error(kernel: Array, codes: Array, step: Array, hessian: Array) -> float:
    error = kernel - codes * step[:, None]
    return float(np.einsum("gkf,gkl,glf->", error, hessian, error))


def by_definition(weights: Array, hessian: Array, low: Array, high: Array) -> Array:
    """Rounds the input of most energy; the others are put where the error is least; and so on."""
    damped = hessian + DAMPING * hessian.diagonal().mean() * np.eye(len(hessian))
    weights, codes = weights.copy(), np.empty_like(weights)
    left = list(np.argsort(-hessian.diagonal(), kind="stable"))
    while left:
        k, *left = left
        codes[k] = np.clip(np.rint(weights[k]), low[k], high[k])
        if left:
            lost = np.outer(damped[left, k], weights[k] - codes[k])
            weights[left] += np.linalg.solve(damped[np.ix_(left, left)], lost)
    return codes


@given(rng=seeds, groups=st.integers(1, 3), rows=st.integers(1, 9), columns=st.integers(1, 5))
def test_each_row_makes_up_for_those_before(
    rng: np.random.Generator, groups: int, rows: int, columns: int
) -> None:
    kernel = rng.normal(size=(groups, rows, columns))
    step = rng.uniform(0.1, 0.5, (groups, columns))
    low, high = -rng.integers(1, 8, rows), rng.integers(1, 8, rows)
    hessian = products(rng, groups, rows)
    codes = compensated_codes(kernel, step, low, high, hessian)
    assert np.all(codes >= low[:, None])
    assert np.all(codes <= high[:, None])
    for g in range(groups):
        expected = by_definition(kernel[g] / step[g], hessian[g], low, high)
        np.testing.assert_array_equal(codes[g], expected)


@pytest.mark.slow
def test_more_rows_than_are_done_together(rng: np.random.Generator) -> None:
    kernel, hessian = rng.normal(size=(1, 150, 3)), products(rng, 1, 150, samples=400)
    low, high = wide(150)
    codes = compensated_codes(kernel, np.float64(0.3), low, high, hessian)
    np.testing.assert_array_equal(codes[0], by_definition(kernel[0] / 0.3, hessian[0], low, high))


@pytest.mark.parametrize("rows", [4, 40])
def test_the_output_error_is_less_than_that_of_rounding_to_the_nearest(
    rows: int, rng: np.random.Generator
) -> None:
    kernel, hessian = rng.normal(size=(2, rows, 64)), products(rng, 2, rows)
    step = np.full((2, 64), 0.5)
    codes = compensated_codes(kernel, step, *wide(rows), hessian)
    nearest = output_error(kernel, np.rint(kernel / 0.5), step, hessian)
    assert output_error(kernel, codes, step, hessian) < 0.5 * nearest


@given(rng=seeds, rows=st.integers(1, 9), columns=st.integers(1, 5))
def test_inputs_that_have_nothing_in_common_are_rounded_to_the_nearest(
    rng: np.random.Generator, rows: int, columns: int
) -> None:
    kernel = rng.normal(0, 3, size=(1, rows, columns))
    hessian = np.diag(rng.uniform(0, 2, rows))[None]
    low, high = np.full(rows, -3, np.int32), np.full(rows, 4, np.int32)
    codes = compensated_codes(kernel, np.float64(1), low, high, hessian)
    np.testing.assert_array_equal(codes, np.clip(np.rint(kernel), -3, 4))


@given(rng=seeds, rows=st.integers(1, 9), columns=st.integers(1, 5), groups=st.integers(1, 3))
def test_outputs_are_those_of_the_inputs_that_should_be(
    rng: np.random.Generator, rows: int, columns: int, groups: int
) -> None:
    """On a very fine grid nothing is lost by rounding: the kernel is that of ridge regression."""
    kernel = rng.normal(size=(groups, rows, columns))
    x = rng.normal(size=(groups, 30, rows)) @ rng.normal(size=(groups, rows, rows))
    lacking = rng.normal(0, 0.3, x.shape)
    lost = x.swapaxes(1, 2) @ lacking @ kernel
    codes = compensated_codes(
        kernel, np.float64(1e-6), *[10**4 * b for b in wide(rows)], x.swapaxes(1, 2) @ x, lost
    )
    for g in range(groups):
        ridge = np.sqrt(DAMPING * np.square(x[g]).sum() / rows) * np.eye(rows)
        wanted = np.concatenate([(x[g] + lacking[g]) @ kernel[g], ridge @ kernel[g]])
        best = np.linalg.lstsq(np.concatenate([x[g], ridge]), wanted, rcond=None)[0]
        np.testing.assert_allclose(codes[g] * 1e-6, best, rtol=1e-4, atol=1e-5)


def test_what_inputs_lack_is_made_up_for_on_coarse_grids(rng: np.random.Generator) -> None:
    kernel, x = rng.normal(size=(1, 20, 8)), rng.normal(size=(400, 20))
    exact = 1.2 * x + 0.3 * np.roll(x, 1, axis=1)
    moments, lost = (x.T @ x)[None], (x.T @ (exact - x) @ kernel[0])[None]
    errors = [
        np.square(exact @ kernel[0] - x @ (0.4 * codes[0])).sum()
        for codes in (
            compensated_codes(kernel, np.float64(0.4), *wide(20), moments, given)
            for given in (None, lost)
        )
    ]
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("dead", ["all", "one", "copies of another"])
def test_singular_hessians(dead: str, rng: np.random.Generator) -> None:
    kernel, x = rng.normal(size=(1, 5, 4)), rng.normal(size=(20, 5))
    if dead == "all":
        x[:] = 0
    elif dead == "one":
        x[:, 2] = 0
    else:
        x[:, 2] = x[:, 1]
    codes = compensated_codes(kernel, np.float64(0.2), *wide(5), (x.T @ x)[None])
    if dead == "all":
        np.testing.assert_array_equal(codes, np.rint(kernel / 0.2))
    if dead == "one":
        np.testing.assert_array_equal(codes[0, 2], np.rint(kernel[0, 2] / 0.2))
    assert np.abs(codes * 0.2 - kernel).max() < 1


def test_what_is_given_stays_as_it_is(rng: np.random.Generator) -> None:
    kernel, hessian = rng.normal(size=(1, 5, 4)), products(rng, 1, 5)
    before = kernel.copy(), hessian.copy()
    compensated_codes(kernel, np.float64(0.2), *wide(5), hessian)
    np.testing.assert_array_equal(kernel, before[0])
    np.testing.assert_array_equal(hessian, before[1])


def test_errors() -> None:
    kernel = np.zeros((1, 3, 2))
    with pytest.raises(ValueError, match=r"`hessian` has shape \(1, 2, 2\).*needs \(1, 3, 3\)"):
        compensated_codes(kernel, np.float64(1), *wide(3), np.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="`hessian` must be finite"):
        compensated_codes(kernel, np.float64(1), *wide(3), np.full((1, 3, 3), np.nan))
    with pytest.raises(ValueError, match=r"`lost` has shape \(1, 3, 3\).*needs \(1, 3, 2\)"):
        compensated_codes(kernel, np.float64(1), *wide(3), np.eye(3)[None], np.ones((1, 3, 3)))
    lost = np.full((1, 3, 2), np.inf)
    with pytest.raises(ValueError, match="`lost` must be finite"):
        compensated_codes(kernel, np.float64(1), *wide(3), np.eye(3)[None], lost)


@given(rng=seeds, bits=st.integers(2, 8), count=st.integers(0, 12), full_range=st.booleans())
def test_ranges_are_what_copies_can_hold(
    rng: np.random.Generator, bits: int, count: int, full_range: bool
) -> None:
    """Each code in the range is stored and found again; the next one is not."""
    kernel = rng.normal(size=(4, 1)).astype(np.float32)
    step = np.float32(0.25)
    copies = choose_copies(kernel, count, step)
    low, high = code_ranges(copies, bits, full_range)
    limit = code_limit(bits)
    alone = np.bincount(copies.channel_map, minlength=4) == 1
    assert np.all(high[alone] == limit)
    assert np.all(low[alone] == -limit - full_range)
    for bound, beyond in ((low, -1), (high, 1)):
        for past in (0, beyond):
            codes = bound + past
            values = (codes * step.astype(np.float64))[:, None]
            found = encode(values, bits, step, copies, full_range).effective_codes()[:, 0]
            assert np.all((found == codes) == (past == 0))


@given(rng=seeds, inputs=st.integers(1, 6), samples=st.integers(1, 100))
def test_shrinkage_leaves_means_and_variances(
    rng: np.random.Generator, inputs: int, samples: int
) -> None:
    x = rng.normal(1, 2, (samples, inputs)) @ rng.normal(size=(inputs, inputs))
    mean = x.mean(0)
    shrunk = shrunk_moments((x.T @ x / samples)[None], mean[None], samples)[0]
    covariance = np.cov(x.T, bias=True).reshape(inputs, inputs)
    kept = np.where(np.eye(inputs) > 0, 1, samples / (inputs + samples))
    want = covariance * kept + np.outer(mean, mean)
    np.testing.assert_allclose(shrunk, want, rtol=1e-9, atol=1e-9)
    assert np.linalg.eigvalsh(shrunk).min() > -1e-9 * np.trace(shrunk)


@given(rng=seeds, inputs=st.integers(1, 6), samples=st.integers(1, 100))
def test_losses_are_shrunk_likewise(rng: np.random.Generator, inputs: int, samples: int) -> None:
    x, d = rng.normal(1, 2, (2, samples, inputs))
    kernel = rng.normal(size=(inputs, 3))
    means = x.mean(0), d.mean(0)
    shrunk = shrunk_losses(
        (x.T @ d @ kernel / samples)[None],
        kernel[None],
        *(mean[None] for mean in means),
        (x * d).mean(0)[None],
        samples,
    )
    covariance = np.cov(x.T, d.T, bias=True)[:inputs, inputs:]
    kept = np.where(np.eye(inputs) > 0, 1, samples / (inputs + samples))
    want = (covariance * kept + np.outer(*means)) @ kernel
    np.testing.assert_allclose(shrunk[0], want, rtol=1e-9, atol=1e-9)


def test_a_correction_counts_as_far_as_other_samples_confirm_it(rng: np.random.Generator) -> None:
    """Of signal S and noise N in a half, all samples have N / 2: S / (S + N / 2)."""
    signal = rng.normal(size=(1, 40, 200))
    hessians = [np.eye(40)[None]] * 2
    for noise in (0.0, 0.5, 3.0):
        halves = [signal + math.sqrt(noise) * rng.normal(size=signal.shape) for _ in range(2)]
        got = reproducible_share(hessians, halves, hessians, halves, damping=1e-9)
        assert got == pytest.approx(1 / (1 + noise / 2), abs=0.05)
    opposed = [signal, -signal]
    assert reproducible_share(hessians, opposed, hessians, opposed) == 0
    nothing = [np.zeros_like(signal)] * 2
    assert reproducible_share(hessians, nothing, hessians, nothing) == 0


@given(
    copies=st.lists(st.integers(0, 2), max_size=9),
    weights=st.lists(st.integers(-99, 99), min_size=3, max_size=3),
    bits=st.integers(2, 5),
    full_range=st.booleans(),
)
def test_code_ranges_are_those_found_by_trying(
    copies: list[int], weights: list[int], bits: int, full_range: bool
) -> None:
    made = copies_of_map(np.float64(weights)[:, None], [0, 1, 2, *copies], 1.0)
    limit = code_limit(bits)
    tried = np.arange(-(2**14), 2**14)[:, None]
    rounded = np.rint(made.gain * tried + made.offset)
    fits = (rounded >= -limit - full_range) & (rounded <= limit)
    for channel, (low, high) in enumerate(zip(*code_ranges(made, bits, full_range), strict=True)):
        within = tried[fits[:, made.channel_map == channel].all(1), 0]
        assert (low, high) == (within.min(), within.max())


@pytest.mark.parametrize("count", [500, 20_000])
def test_code_ranges_of_many_copies(count: int) -> None:
    copies = copies_of_map(np.ones((1, 1)), [0] * (count + 1), 1.0)
    low, high = code_ranges(copies, 4)
    codes = np.array([low, 0 * low, high], np.int64)
    halves = np.rint(copies.gain * codes + copies.offset)
    np.testing.assert_array_equal(halves.sum(1), codes[:, 0])
    assert np.abs(halves).max() == 7
