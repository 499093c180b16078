"""Grids and ranges of the tensors of a float file whose activations become integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ocs_tf import data
from ocs_tf.config import CALIBRATION_SAMPLES
from ocs_tf.export import (
    attention_scores,
    compositions,
    float_regions,
    integer_forms,
    integer_writer,
    tensor_matching,
    unrolled,
)
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.grid_rules import Grid
from ocs_tf.export.kept_float import KeptFloat
from ocs_tf.export.kernel_matching import SMALLEST_RANGE
from ocs_tf.export.lowering import Lowered
from ocs_tf.export.samples import named_batches
from ocs_tf.graph.analysis.activation_sites import Site, all_sites, moves_values
from ocs_tf.graph.analysis.concatenations import ends_of, exact_concatenations
from ocs_tf.graph.analysis.indices import index_tensors
from ocs_tf.graph.layer_traits import holds
from ocs_tf.graph.reader import Graph
from ocs_tf.keras_internals import layers_within, maker
from ocs_tf.numerics import ActivationGrid
from ocs_tf.planning.calibration import calibrate, observe

_BITS = 8
_SMALLEST_STEP = SMALLEST_RANGE / (2**_BITS - 1)
_SCALE_UP = (
    f"the smallest are {_SMALLEST_STEP:.3g}. Scale the numbers there up (inputs by a larger unit,"
    " or the kernel in front), or export with target='packed', which computes in float32."
)
_EXACT = (
    "Output {!r} is float32: the parts that it concatenates have grids of their own. Convert with"
    " exact_outputs=False for one grid."
)
_UNROUNDED = (
    "What these layers make is float32, since the model does not round it, and so is what is"
    " computed with it: {}."
)
_UNKNOWN = "ranges inside are not known (pass representative_dataset)"
_COARSE = f"8 bits inside leave less than {compositions.FLOOR_DB:.0f} dB"


@dataclasses.dataclass(frozen=True)
class TensorGrids:
    """Grids and ranges of activations, for `writer.write_int8`.

    Attributes:
        content: the float file, its masks limited to what integers need, its operators in the form
            that integers have.
        grids: by tensor of the file: those of the Keras model.
        ranges: `(min, max)` of the other tensors, inside of layers that Keras sees as one.
        left_float: indices of the operators that stay in float.
        unrounded: names of the inputs and outputs that stay in float.
        notes: which layers are computed in float, and why.
        coarse_scores: a note on scores that 8 bits hardly tell apart, or no text.
    """

    content: bytes
    grids: dict[str, Grid]
    ranges: dict[str, tuple[float, float]]
    left_float: set[int]
    unrounded: set[str]
    notes: list[str]
    coarse_scores: str


def find_activations(
    content: bytes, lowered: Lowered, sample: Mapping[str, np.ndarray], source: data.Source | None
) -> TensorGrids:
    """The grids of a float file's tensors.

    Arguments:
        content: what the converter made of the lowered model, its batch size fixed.
        lowered: the same with an open batch size.
        sample: a few inputs by name.
        source: representative data, or `None`.

    Raises:
        ValueError: a range is not known, and there are no data to measure it.
    """
    graph = Graph(lowered.model)
    exact = exact_concatenations(graph, lowered.grids)
    known = _matched(content, lowered, graph, exact, sample, source)
    largest = tensor_matching.largest_score(content, sample)
    limited = attention_scores.limit_masks(content, largest)
    model = fb.read_straight(limited)
    masks = attention_scores.mask_ranges(model)
    grids = known.grids | float_regions.moved(model, known.grids)
    for name in masks:
        grids.pop(name, None)  # that of the Keras model reaches -1e9
    ends = model.subgraphs[0]
    indices = _names_of(ends.inputs, model, graph.model.inputs, index_tensors(graph))
    outputs = _names_of(ends.outputs, model, graph.model.outputs, ends_of(graph, exact))
    outputs |= known.in_float & _ends(model)
    layers = [layer.name for layer in layers_within(lowered.model, include_self=False)]
    kept = KeptFloat(model, grids, indices, outputs, layers, known.matches)
    if known.unrounded:
        kept.add(float_regions.touching(model, known.in_float))
        kept.notes.append(_UNROUNDED.format(", ".join(known.unrounded)))
    last = {maker(tensor).name for tensor in graph.model.outputs}
    kept.notes += [_EXACT.format(name) for name in sorted(exact & last or exact)]
    ranges = _ranges_inside(limited, kept, masks, lowered, sample, source)
    for name in attention_scores.symmetric_factors(model) & set(ranges):
        ranges[name] = attention_scores.symmetric(*ranges[name])
    measured = {name: ActivationGrid.from_range(*ends, _BITS) for name, ends in ranges.items()}
    steps = {name: grid.scale for name, grid in (grids | measured).items()}
    scores = attention_scores.coarse_scores(model, steps, layers)
    left = kept.operators()
    all_grids, ranges = integer_forms.in_integer_forms(model, grids, ranges, left)
    written = fb.write(model)
    return TensorGrids(written, all_grids, ranges, left, kept.unrounded, kept.notes, scores)


@dataclasses.dataclass(frozen=True)
class _Known:
    """What the Keras model says of the tensors of a file.

    Attributes:
        grids: those that it rounds to, by tensor.
        matches: the layer that a tensor comes from.
        in_float: tensors that it does not round, though it rounds others.
        unrounded: the layers that make those.
    """

    grids: dict[str, ActivationGrid]
    matches: dict[str, str]
    in_float: set[str]
    unrounded: list[str]


def _matched(
    content: bytes,
    lowered: Lowered,
    graph: Graph,
    exact: set[str],
    sample: Mapping[str, np.ndarray],
    source: data.Source | None,
) -> _Known:
    """Match the tensors of a file with the sites of the Keras model, by their values."""
    # What goes into an activation function is a tensor of the lowered graph already, but in layers
    # that were left in float: those are one step, and the file tells the ranges inside.
    tables = [kernel.layer for kernel in lowered.kernels if kernel.kind == "lookup"]
    free = _unrounded_joins(graph, lowered) - exact
    sites = all_sites(graph, quantized=set(), tables=tables, exact=exact | free)
    in_float = _unrounded_sites(sites, lowered)
    keys = {site.key for site in in_float} | free
    sites = [site for site in sites if site.key not in keys]
    by_group = _grids_by_group([site for site in sites if not site.fixed], lowered, source)
    for name in free:
        joined = tuple(call.outputs[0] for call in graph.calls_of(name))
        in_float.append(Site(name, joined, name))
    known = _known_tensors(graph, [*sites, *in_float])
    tensors = [tensor for _, tensor in known.values()]
    (values,) = observe(lowered.model, tensors, [list(sample.values())]) if known else ([],)
    arrays = {key: np.asarray(value) for key, value in zip(known, values, strict=True)}
    matches = tensor_matching.match_tensors(content, sample, arrays)
    site_of = {name: known[key][0] for name, key in matches.items()}
    return _Known(
        {n: by_group[s.group] for n, s in site_of.items() if not s.fixed and s.key not in keys},
        matches,
        {name for name, site in site_of.items() if site.key in keys},
        list(dict.fromkeys(site.layer for site in in_float)),
    )


def _ranges_inside(
    content: bytes,
    kept: KeptFloat,
    masks: Mapping[str, tuple[float, float]],
    lowered: Lowered,
    sample: Mapping[str, np.ndarray],
    source: data.Source | None,
) -> dict[str, tuple[float, float]]:
    """Ranges inside of layers of several operators; those for which 8 bits are too few are kept."""
    model, grids = kept.model, kept.grids
    left, border = kept.operators(), float_regions.border(model, grids, kept.unrounded)
    groups = compositions.compositions(model, left, border)
    if source is None and groups:
        kept.add(set().union(*groups))
        kept.note(kept.layers_of(set().union(*groups)), _UNKNOWN)
        groups = []
    ranges = _ranges(content, kept, masks, lowered, source)
    coarse = compositions.coarse(model, groups, sample, grids, ranges, border)
    if not coarse:
        return ranges
    kept.add({index for group in coarse for index in group})
    kept.note(
        [
            f"{name} ({close:.0f} dB)"
            for group, close in coarse.items()
            for name in kept.layers_of(group)
        ],
        _COARSE,
    )
    inside = kept.inside()
    return {name: ends for name, ends in ranges.items() if name not in inside}


def _ranges(
    content: bytes,
    kept: KeptFloat,
    masks: Mapping[str, tuple[float, float]],
    lowered: Lowered,
    source: data.Source | None,
) -> dict[str, tuple[float, float]]:
    """Ranges of the tensors inside of layers: of masks as they must be, of others as measured."""
    missing = integer_writer.needed_activations(kept.model) - set(kept.grids) - kept.inside()
    ranges = {name: masks[name] for name in missing & set(masks)}
    missing -= set(ranges)
    if missing:
        measured = _measured(content, sorted(missing), lowered, source)
        cells = unrolled.cell_names(lowered.model)
        measured = unrolled.over_steps(kept.model, cells, kept.grids, measured)
        ranges |= _without_empty(kept.model, kept.grids, measured)
    return ranges


def _unrounded_sites(sites: Sequence[Site], lowered: Lowered) -> list[Site]:
    """The sites that the quantized model leaves in float, if it rounds what other layers make."""
    if not lowered.rounds_outputs:
        return []
    rounded = {s.group for s in sites if any(name in lowered.grids for name in _names(s))}
    return [site for site in sites if site.group not in rounded]


def _unrounded_joins(graph: Graph, lowered: Lowered) -> set[str]:
    """Names of layers that would have one grid with all that they read, but that have none."""
    if not lowered.rounds_outputs:
        return set()
    joins = {
        node.layer.name
        for node in graph.nodes
        if holds(node.layer, "one_grid") and "float" in str(node.outputs[0].dtype)
    }
    return joins - set(lowered.grids)


def _names(site: Site) -> list[str]:
    """The names under which the grid of a site may be known."""
    return [site.key, *(maker(tensor).name for tensor in site.tensors)]


def _ends(model: Any) -> set[str]:
    """Names of the inputs and outputs of a file."""
    graph = model.subgraphs[0]
    return {fb.name(graph.tensors[i]) for i in (*graph.inputs, *graph.outputs)}


def _names_of(
    indices: Sequence[int],
    model: Any,
    tensors: Sequence[keras.KerasTensor],
    chosen: Collection[int],
) -> set[str]:
    """Names of those inputs (or outputs) of a file whose Keras tensors are `chosen`, by id."""
    pairs = zip(indices, tensors, strict=True)
    return {fb.name(model.subgraphs[0].tensors[i]) for i, t in pairs if id(t) in chosen}


def _known_tensors(graph: Graph, sites: list[Site]) -> dict[str, tuple[Site, keras.KerasTensor]]:
    """Tensors of the lowered model with the site whose grid they are on, by a key of each.

    Those with a prescribed grid are among them: others may hold the same numbers. So are those
    that operations only move numbers to.
    """
    known: dict[str, tuple[Site, keras.KerasTensor]] = {}
    site_of: dict[int, Site] = {}
    for site in sites:
        for tensor in site.tensors:
            site_of[id(tensor)] = site
    for node in graph.nodes:
        for tensor in node.outputs:
            if id(tensor) not in site_of and node.inputs and moves_values(node.layer):
                moved = site_of.get(id(node.inputs[0]))
                if moved is not None:
                    site_of[id(tensor)] = moved
            if id(tensor) in site_of:
                name = str(node.layer.name)
                key = name if name not in known else f"{name}#{len(known)}"
                known[key] = site_of[id(tensor)], tensor
    return known


def _measured(
    content: bytes, missing: list[str], lowered: Lowered, source: data.Source | None
) -> dict[str, tuple[float, float]]:
    if source is None:
        count = len(missing) - 1
        others = (
            f" (and of {count} more tensor{'s'[: count > 1]} inside of layers)" if count else ""
        )
        raise ValueError(
            f"the range of {missing[0]!r}{others} is not known; pass representative_dataset."
        )
    measured = tensor_matching.measure_ranges(content, named_batches(lowered, source))
    return {name: measured[name] for name in missing}


def _without_empty(
    model: Any, grids: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """`ranges`; of what is 0 in all samples, as far as what it is computed from.

    A step that is padding in all of them is not always. XNNPACK ends the process at such a kernel.
    """
    tensors = model.subgraphs[0].tensors
    found, reach = dict(ranges), dict[int, float]()
    for name, index in fb.float_activations(model).items():
        if name in grids:
            reach[index] = grids[name].scale * 2**_BITS
        elif any(ranges.get(name, ())):
            reach[index] = max(map(abs, ranges[name]))
    for op in model.subgraphs[0].operators:
        largest = max((reach[i] for i in op.inputs if i in reach), default=1.0)
        for index in op.outputs:
            if ranges.get(fb.name(tensors[index])) == (0.0, 0.0):
                found[fb.name(tensors[index])] = (-largest, largest)
            reach.setdefault(index, largest)
    return found


def _grids_by_group(
    sites: list[Site], lowered: Lowered, source: data.Source | None
) -> dict[str, ActivationGrid]:
    """One grid per group of sites: the model's own, or a measured one where it has none."""
    grids: dict[str, ActivationGrid] = {}
    for site in sites:
        for name in _names(site):
            given = lowered.grids.get(name)
            known = grids.get(site.group)
            if given and (known is None or given.scale > known.scale):
                grids[site.group] = given
    missing = [site for site in sites if site.group not in grids]
    if not missing:
        return grids
    if source is None:
        raise ValueError(
            f"the activations of `model` have no grid at {missing[0].key!r}"
            f" ({len(missing)} such places): pass representative_dataset to measure them, or"
            " convert with it and activation_bits=8."
        )
    measured = calibrate(
        lowered.model,
        {site.key: site.tensors for site in missing},
        source.batches(lowered.model, limit=CALIBRATION_SAMPLES),
        through={site.key: site.through for site in missing if site.through is not None},
        spans={site.key: site.span for site in missing if site.span is not None},
    )
    for group in {site.group for site in missing}:
        members = [s for site in missing if site.group == group for s in measured[site.key]]
        low, high = min(s.minimum for s in members), max(s.maximum for s in members)
        grids[group] = ActivationGrid.from_range(low, high, _BITS)
    for site in missing:
        check_step(grids[site.group], f"the measured range at {site.key!r}")
    return grids


def check_step(grid: ActivationGrid, what: str) -> None:
    """Raise `ValueError` if the steps of `grid`, which `what` has, are too small for int8 files."""
    if grid.scale < _SMALLEST_STEP:
        raise ValueError(
            f"{what} has steps of {grid.scale:.3g}, which an int8 .tflite cannot hold: {_SCALE_UP}"
        )
