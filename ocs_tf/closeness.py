"""Closeness of two arrays of outputs, accumulated over batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Closeness:
    """How close one output of a model is to a reference's.

    Attributes:
        name: of the reference's output.
        samples: how many were compared.
        sqnr_db: `10 log10(sum(reference^2) / sum((reference - other)^2))`.
        max_difference: the largest absolute difference.
        max_magnitude: the largest magnitude in the reference.
        agreement: share (0..1) of samples with the same largest class on the last axis; `None`
            where there is but one number on it.
        parts: where the output is a concatenation, the same for each of its parts.
    """

    name: str
    samples: int
    sqnr_db: float
    max_difference: float
    max_magnitude: float
    agreement: float | None
    parts: tuple[Closeness, ...] = ()

    def __str__(self) -> str:
        lines = [f"output {self.name!r}: {self._figures()}"]
        lines += [f"  its part {part.name!r}: {part._figures()}" for part in self.parts]
        return "\n".join(lines)

    def _figures(self) -> str:
        text = (
            f"SQNR {self.sqnr_db:.1f} dB, largest difference"
            f" {self.max_difference:.3g} (values up to {self.max_magnitude:.3g})"
        )
        if self.agreement is not None:
            text += f", same top-1 in {100 * self.agreement:.2f} % of {self.samples}"
        return text


class Tally:
    """Sums over batches.

    Arguments:
        name: of the output.
        parts: where it is a concatenation: which numbers each part is, by name, as an index of the
            output with its batch axis.
    """

    def __init__(self, name: str, parts: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.parts = {part: (index, Tally(part)) for part, index in (parts or {}).items()}
        self.signal = self.noise = self.difference = self.magnitude = 0.0
        self.samples = self.same = self.decisions = 0

    def add(self, reference: Array, other: Array) -> None:
        if reference.shape != other.shape:
            raise ValueError(
                f"output {self.name!r} has shape {reference.shape} in one model and"
                f" {other.shape} in the other."
            )
        x, y = reference.astype(np.float64), other.astype(np.float64)
        self.signal += float(np.square(x).sum())
        self.noise += float(np.square(x - y).sum())
        self.difference = max(self.difference, float(np.abs(x - y).max()))
        self.magnitude = max(self.magnitude, float(np.abs(x).max()))
        self.samples += len(x)
        if x.ndim > 1 and x.shape[-1] > 1:
            same = x.argmax(-1) == y.argmax(-1)
            self.same += int(same.sum())
            self.decisions += same.size
        for index, part in self.parts.values():
            part.add(x[index], y[index])

    def result(self) -> Closeness:
        ratio = self.signal / self.noise if self.noise else math.inf
        return Closeness(
            self.name,
            self.samples,
            10 * math.log10(ratio) if ratio else -math.inf,
            self.difference,
            self.magnitude,
            self.same / self.decisions if self.decisions else None,
            tuple(part.result() for _, part in self.parts.values()),
        )
