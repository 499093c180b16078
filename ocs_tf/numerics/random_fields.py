"""Random fields that resemble natural pictures and signals: spectra of noise, dead leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_LEAVES = 120  # discs per picture
_LARGEST, _SMALLEST = 2 / 3, 1 / 32  # radii, in sizes of the picture


def noise_fields(
    count: int, sizes: Sequence[int], channels: int, correlation: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Gaussian fields whose neighbours are correlated, `[count, *sizes, channels]`.

    The amplitude of wave number k is `(k^2 + kappa^2)^(-p)` with `p = (d + 1) / 4` for d axes and
    `kappa = -ln(correlation)`, which gives correlations of about `correlation^distance`. (Natural
    pictures have 1/f amplitudes: Field, "Relations between the statistics of natural images and the
    response properties of cortical cells", 1987.) Fields are cut out of twice the size, so that
    they differ in their means. Channels are independent; mean 0 and variance 1 over all fields.

    Arguments:
        sizes: of one, two or more axes; none for independent numbers.
        correlation: of neighbours, 0 < correlation < 1.
    """
    if not sizes:
        return rng.normal(size=(count, channels)).astype(np.float32)
    double = [2 * size for size in sizes]
    axes = tuple(range(1, len(sizes) + 1))
    waves = np.meshgrid(*(2 * np.pi * np.fft.fftfreq(n) for n in double), indexing="ij")
    squares = sum(np.square(wave) for wave in waves)
    amplitude = (squares + np.log(correlation) ** 2) ** (-(len(sizes) + 1) / 4)
    amplitude /= np.sqrt(np.mean(np.square(amplitude)))
    cut = (slice(None), *(slice(0, n) for n in sizes))
    fields = np.empty((count, *sizes, channels), np.float32)
    for c in range(channels):
        white = rng.normal(size=(count, *double))
        spectrum = np.fft.fftn(white, axes=axes) * amplitude
        fields[..., c] = np.fft.ifftn(spectrum, axes=axes).real[cut]
    return fields


def dead_leaves(
    count: int, height: int, width: int, channels: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Pictures of discs that hide each other, `[count, height, width, channels]`.

    They have edges and flat areas, which Gaussian fields lack. Radii have the density `r^-3` (Lee,
    Mumford & Huang, "Occlusion models for natural images", IJCV 2001). Colours are drawn from
    N(0, 1), independently for each channel.
    """
    size = max(height, width)
    y, x = np.mgrid[:height, :width]
    pictures = np.empty((count, height, width, channels), np.float32)
    pictures[:] = rng.normal(size=(count, 1, 1, channels))
    ends = (_LARGEST * size) ** -2, max(_SMALLEST * size, 1.0) ** -2
    for picture in pictures:
        radii = rng.uniform(*ends, _LEAVES) ** -0.5
        centers = rng.uniform(0, 1, (_LEAVES, 2)) * (height, width)
        for radius, (row, column) in zip(radii, centers, strict=True):
            inside = np.square(y - row) + np.square(x - column) < radius**2
            picture[inside] = rng.normal(size=channels)
    return pictures


def coloured(
    fields: NDArray[np.floating], mean: NDArray[np.floating], covariance: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Independent `fields` `[..., C]` with the mean `[C]` and the covariance `[C, C]`."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    return (fields @ root.T + mean).astype(np.float32)
