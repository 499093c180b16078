"""Layers of several operators in an int8 file: whether 8 bits are enough inside of them.

The Keras model computes a layer in float and rounds its output; an int8 file rounds what each
operator makes. A layer normalization, say, can lose more to that than the network can do with.
So each such composition is written alone, run, and compared with what Keras computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ocs_tf.closeness import Tally
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import float_regions, integer_forms, integer_writer
from ocs_tf.export.grid_rules import ACTIVATION_MAX, ACTIVATION_MIN, Grid, fixed_output_grid
from ocs_tf.export.tensor_matching import Sample, tensor_values
from ocs_tf.numerics import ActivationGrid
from ocs_tf.runtime import runner

# What integers inside of a layer may add to the error of its output, in dB below it.
FLOOR_DB = 30.0


def compositions(model: Any, left: Collection[int], border: Collection[int]) -> list[list[int]]:
    """Operators that compute with each other's results between tensors on grids, in order.

    Only those of which ai-edge-quantizer does not know one: others are integers in any case.

    Arguments:
        model: the float model.
        left: indices of operators that stay in float.
        border: indices of the tensors that the Keras model rounds, too.
    """
    graph = model.subgraphs[0]
    activations = set(fb.float_activations(model).values())
    joined: dict[int, list[int]] = {}  # by operator: all those of its composition
    makers: dict[int, int] = {}
    for index, op in enumerate(graph.operators):
        if index in left:
            continue
        group = joined[index] = [index]
        for i in op.inputs:
            if i in makers and joined[makers[i]] is not group:
                group[:0] = joined[makers[i]]
                joined |= dict.fromkeys(joined[makers[i]], group)
        exact = border if activations & set(op.outputs) else ()  # what is no number is not rounded
        makers |= {i: index for i in op.outputs if i not in exact}
    groups = {id(group): sorted(group) for group in joined.values() if len(group) > 1}
    return [group for group in groups.values() if integer_forms.needs_us(model, group)]


def coarse(
    model: Any,
    groups: Sequence[Sequence[int]],
    inputs: Sample,
    grids: Mapping[str, Grid],
    ranges: Mapping[str, tuple[float, float]],
    border: Collection[int],
) -> dict[tuple[int, ...], float]:
    """The compositions to which 8 bits are too few, with their SQNR in dB.

    That is of what a composition computes in integers, to what it does in float. Both read tensors
    on their grids, and round what they return to its grid.

    Arguments:
        model, border: as of `compositions`, and
        groups: what it returned.
        inputs: samples for the whole model.
        grids: of tensors that the Keras model rounds, by name.
        ranges: of others, by name.
    """
    if not groups:
        return {}
    known = _border_grids(model, grids, ranges, border)
    parts = [_Part(model, group, known, ranges) for group in groups]
    wanted = {i for part in parts for i in part.inputs}
    for values in tensor_values(fb.write(model), inputs, wanted):
        for part in parts:
            part.add(values)
    found = [part.tally.result().sqnr_db for part in parts]
    return {
        tuple(group): close for group, close in zip(groups, found, strict=True) if close < FLOOR_DB
    }


def _border_grids(
    model: Any,
    grids: Mapping[str, Grid],
    ranges: Mapping[str, tuple[float, float]],
    border: Collection[int],
) -> dict[int, Grid]:
    """Grids of tensors between compositions: given, of ranges, fixed, or kept by operators.

    Those of tables are near to what the file has, which is written with other codes.
    """
    tensors = model.subgraphs[0].tensors
    ends = {fb.name(tensors[i]) for i in border} & set(ranges)
    known = {name: ActivationGrid.from_range(*ranges[name], 8) for name in ends} | dict(grids)
    for op in model.subgraphs[0].operators:
        fixed, output = fixed_output_grid(fb.op_name(model, op)), fb.name(tensors[op.outputs[0]])
        first = tensors[op.inputs[0]]
        if fixed is not None:
            known[output] = ActivationGrid(8, *fixed)
        elif fb.op_name(model, op) == "GATHER" and fb.is_constant(model, first):
            table = fb.constant(model, first)
            known[output] = ActivationGrid.from_range(float(table.min()), float(table.max()), 8)
    return float_regions.known_grids(model, known)


class _Part:
    """One composition as files of its own, and the closeness of their outputs."""

    def __init__(
        self,
        model: Any,
        group: Sequence[int],
        grids: Mapping[int, Grid],
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        graph = model.subgraphs[0]
        operators = [graph.operators[index] for index in group]
        made = {i for op in operators for i in op.outputs}
        others = [op for index, op in enumerate(graph.operators) if index not in group]
        needed = {i for op in others for i in op.inputs} | set(graph.outputs)
        read = [i for op in operators for i in op.inputs if i >= 0]
        constant = {i for i in read if fb.is_constant(model, graph.tensors[i])}
        self.inputs = sorted(set(read) - made - constant)
        outputs = sorted(made & needed)
        part = fb.extracted(model, operators, self.inputs, outputs)
        names = fb.float_activations(part)
        ends = {i: grids[i] for i in (*self.inputs, *made) if i in grids}
        own = {fb.name(graph.tensors[i]): grid for i, grid in ends.items()}
        spans = {name: ranges[name] for name in set(names) - set(own) if name in ranges}
        self.tally = Tally("")
        self._grids = [grids.get(i) for i in self.inputs], [grids.get(i) for i in outputs]
        self._float = runner.opened(fb.write(part))
        own, spans = integer_forms.in_integer_forms(part, own, spans, ())
        written = integer_writer.write_int8(fb.write(part), (), own, spans, float_io=False)
        self._integer = runner.opened(written)

    def add(self, values: Mapping[int, np.ndarray]) -> None:
        """Run both on the same inputs, by the index of the tensor in the whole model."""
        given, made = self._grids
        codes = [_codes(values[i], grid) for i, grid in zip(self.inputs, given, strict=True)]
        numbers = [_numbers(array, grid) for array, grid in zip(codes, given, strict=True)]
        results = zip(_run(self._float, numbers), _run(self._integer, codes), made, strict=True)
        for wanted, found, grid in results:
            self.tally.add(_numbers(_codes(wanted, grid), grid), _numbers(found, grid))


def _codes(values: np.ndarray, grid: Grid | None) -> np.ndarray:
    """Numbers rounded to a grid, as its int8 codes; what has none stays as it is."""
    if grid is None:
        return values
    codes = np.rint(values / grid.scale) + grid.zero_point
    return np.clip(codes, ACTIVATION_MIN, ACTIVATION_MAX).astype(np.int8)


def _numbers(codes: np.ndarray, grid: Grid | None) -> np.ndarray:
    if grid is None:
        return codes
    return ((codes.astype(np.float64) - grid.zero_point) * grid.scale).astype(np.float32)


def _run(interpreter: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    runner.allocate_for(interpreter, inputs)
    runner.run(interpreter, inputs)
    return runner.outputs(interpreter)
