"""Which operators of a file with integers stay in float32, and the notes that say why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ocs_tf.export import float_regions
from ocs_tf.export.grid_rules import Grid


class KeptFloat:
    """Operators that have no integer form, and others as they are found.

    Arguments:
        model: as `flatbuffer.read` returns it.
        grids: of activations, by name.
        indices: names of inputs that hold indices, and
        outputs: of outputs that are not rounded.
        layers: names of all layers.
        matches: the layers that are known to make tensors, by the tensors' names.

    Attributes:
        unrounded: names of inputs and outputs that are not rounded.
        notes: in plain words.
    """

    def __init__(
        self,
        model: Any,
        grids: Mapping[str, Grid],
        indices: set[str],
        outputs: set[str],
        layers: Sequence[str],
        matches: Mapping[str, str],
    ) -> None:
        self.model, self.grids = model, grids
        self.unrounded = indices | outputs
        self.notes: list[str] = []
        self._layers, self._matches = layers, matches
        self._others = float_regions.regridding_operators(model, grids)
        lacking = float_regions.float_operators(model, {*grids, *outputs}, indices, self._others)
        lacking -= float_regions.index_operators(model, indices)
        note = float_regions.describe(model, lacking, self._others, layers, matches)
        self.notes += [note] if note else []

    def add(self, operators: Collection[int]) -> None:
        """Keep these, too, although they have an integer form."""
        self._others |= set(operators)

    def note(self, names: Sequence[str], reason: str) -> None:
        """Note that layers are computed in float, and why."""
        self.notes.append(float_regions.in_float(names, reason))

    def operators(self) -> set[int]:
        """Indices of all operators that stay in float."""
        return float_regions.float_operators(self.model, self.grids, self.unrounded, self._others)

    def inside(self) -> set[str]:
        """Names of the tensors that only operators in float compute and read."""
        return float_regions.inside(self.model, self.operators(), self.grids, self.unrounded)

    def layers_of(self, operators: Collection[int]) -> list[str]:
        """Names of the layers that have these operators."""
        return float_regions.layer_names(self.model, operators, self._layers, self._matches)
