"""Grids and ranges of the tensors of a float file whose activations become integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ocs_tf import data
from ocs_tf.config import CALIBRATION_SAMPLES
from ocs_tf.export import (
    attention_scores,
    compositions,
    float_regions,
    integer_forms,
    integer_writer,
    tensor_matching,
)
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.grid_rules import Grid
from ocs_tf.export.kernel_matching import SMALLEST_RANGE
from ocs_tf.export.lowering import Lowered
from ocs_tf.graph.analysis.activation_sites import Site, all_sites, moves_values
from ocs_tf.graph.analysis.concatenations import ends_of, exact_concatenations
from ocs_tf.graph.analysis.indices import index_tensors, table_rows
from ocs_tf.graph.layer_traits import holds
from ocs_tf.graph.reader import Graph
from ocs_tf.keras_internals import layers_within, maker
from ocs_tf.numerics import ActivationGrid
from ocs_tf.planning.calibration import calibrate, observe

_SAMPLES = 3
# Of drawn samples: the first that a model can read, which may have a table of few positions.
_OPEN_SIZES = (32, 64, 128, 256, 512, 1024, 16, 8, 4, 2, 1)
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
class Activations:
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
) -> Activations:
    """The grids of a float file's tensors.

    Arguments:
        content: what the converter made of the lowered model, its batch size fixed.
        lowered: the same with an open batch size.
        sample: a few inputs by name.
        source: representative data, or `None`.

    Raises:
        ValueError: a range is not known, and there are no data to measure it.
    """
    # What goes into an activation function is a tensor of the lowered graph already, but in layers
    # that were left in float: those are one step, and the file tells the ranges inside.
    tables = [kernel.layer for kernel in lowered.kernels if kernel.kind == "lookup"]
    graph = Graph(lowered.model)
    exact = exact_concatenations(graph, lowered.grids)
    free = _unrounded_joins(graph, lowered) - exact
    sites = all_sites(graph, quantized=set(), tables=tables, exact=exact | free)
    in_float = _unrounded_sites(sites, lowered)
    float_keys = {site.key for site in in_float} | free
    sites = [site for site in sites if site.key not in float_keys]
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
    float_tensors = {name for name, site in site_of.items() if site.key in float_keys}
    grids = {
        name: by_group[site.group]
        for name, site in site_of.items()
        if not site.fixed and site.key not in float_keys
    }
    largest = tensor_matching.largest_score(content, sample)
    limited = attention_scores.limit_masks(content, largest)
    model = fb.read_straight(limited)
    masks = attention_scores.mask_ranges(model)
    grids |= float_regions.moved(model, grids)
    for name in masks:
        grids.pop(name, None)  # that of the Keras model reaches -1e9
    indices = _names_of(model.subgraphs[0].inputs, model, graph.model.inputs, index_tensors(graph))
    exact_ends = ends_of(graph, exact)
    outputs = _names_of(model.subgraphs[0].outputs, model, graph.model.outputs, exact_ends)
    outputs |= float_tensors & _ends(model)
    unrounded = indices | outputs
    apart = float_regions.regridding_operators(model, grids)
    lacking = float_regions.float_operators(model, {*grids, *outputs}, indices, apart)
    lacking -= float_regions.index_operators(model, indices)
    names = [layer.name for layer in layers_within(lowered.model, include_self=False)]
    notes = [float_regions.describe(model, lacking, apart, names, matches)]
    if in_float:
        notes.append(_UNROUNDED.format(", ".join(dict.fromkeys(site.layer for site in in_float))))
        apart |= float_regions.touching(model, float_tensors)
    ends = {maker(tensor).name for tensor in graph.model.outputs}
    notes += [_EXACT.format(name) for name in sorted(exact & ends or exact)]
    left = float_regions.float_operators(model, grids, unrounded, apart)
    border = float_regions.border(model, grids, unrounded)
    groups = compositions.compositions(model, left, border)
    if source is None and groups:
        apart |= set().union(*groups)
        where = float_regions.layer_names(model, set().union(*groups), names, matches)
        notes.append(float_regions.in_float(where, _UNKNOWN))
        left = float_regions.float_operators(model, grids, unrounded, apart)
        groups = []
    ranges = _ranges(limited, grids, masks, left, unrounded, lowered, source)
    coarse = compositions.coarse(model, groups, sample, grids, ranges, border)
    if coarse:
        apart |= {index for group in coarse for index in group}
        where = [
            f"{name} ({close:.0f} dB)"
            for group, close in coarse.items()
            for name in float_regions.layer_names(model, group, names, matches)
        ]
        notes.append(float_regions.in_float(where, _COARSE))
        left = float_regions.float_operators(model, grids, unrounded, apart)
        inside = float_regions.inside(model, left, grids, unrounded)
        ranges = {name: ends for name, ends in ranges.items() if name not in inside}
    for name in attention_scores.symmetric_factors(model) & set(ranges):
        ranges[name] = attention_scores.symmetric(*ranges[name])
    measured = {name: ActivationGrid.from_range(*ends, _BITS) for name, ends in ranges.items()}
    steps = {name: grid.scale for name, grid in (grids | measured).items()}
    scores = attention_scores.coarse_scores(model, steps, names)
    notes = [note for note in notes if note]
    all_grids, ranges = integer_forms.in_integer_forms(model, grids, ranges, left)
    return Activations(fb.write(model), all_grids, ranges, left, unrounded, notes, scores)


def _ranges(
    content: bytes,
    grids: Mapping[str, ActivationGrid],
    masks: Mapping[str, tuple[float, float]],
    left: Collection[int],
    unrounded: Collection[str],
    lowered: Lowered,
    source: data.Source | None,
) -> dict[str, tuple[float, float]]:
    """Ranges of the tensors inside of layers: of masks as they must be, of others as measured."""
    model = fb.read_straight(content)
    missing = integer_writer.needed_activations(content) - set(grids)
    missing -= float_regions.inside(model, left, grids, unrounded)
    ranges = {name: masks[name] for name in missing & set(masks)}
    missing -= set(ranges)
    if missing:
        ranges |= _without_empty(model, grids, _measured(content, sorted(missing), lowered, source))
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
    joins = {node.layer.name for node in graph.nodes if holds(node.layer, "one_grid")}
    return joins - set(lowered.grids)


def _names(site: Site) -> list[str]:
    """The names under which the grid of a site may be known."""
    return [site.key, *(maker(tensor).name for tensor in site.tensors)]


def _ends(model: Any) -> set[str]:
    """Names of the inputs and outputs of a file."""
    graph = model.subgraphs[0]
    return {fb.name(graph.tensors[i]) for i in (*graph.inputs, *graph.outputs)}


def _names_of(
    indices: Sequence[int], model: Any, tensors: Sequence[Any], chosen: Collection[int]
) -> set[str]:
    """Names of those inputs (or outputs) of a file whose Keras tensors are `chosen`, by id."""
    pairs = zip(indices, tensors, strict=True)
    return {fb.name(model.subgraphs[0].tensors[i]) for i, t in pairs if id(t) in chosen}


def _known_tensors(graph: Graph, sites: list[Site]) -> dict[str, tuple[Site, Any]]:
    """Tensors of the lowered model with the site whose grid they are on, by a key of each.

    Those with a prescribed grid are among them: others may hold the same numbers. So are those
    that operations only move numbers to.
    """
    known: dict[str, tuple[Site, Any]] = {}
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
    measured = tensor_matching.measure_ranges(content, _named_batches(lowered, source))
    return {name: measured[name] for name in missing}


def _without_empty(
    model: Any, grids: Mapping[str, ActivationGrid], ranges: Mapping[str, tuple[float, float]]
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


def sample_inputs(lowered: Lowered, source: data.Source | None) -> dict[str, np.ndarray]:
    """A few inputs of a lowered model, by name: real ones, or drawn ones that fit.

    Numbers are drawn from all of the input's grid; indices from the rows of the smallest table that
    they are looked up in, and other integers from 0 and 1. There are as many as fill batches of the
    model's own size.
    """
    batch = data.fixed_batch_size(lowered.model) or 1
    count = -(-_SAMPLES // batch) * batch
    if source is not None:
        batches = list(_named_batches(lowered, source, limit=count))  # of one sample each, often
        shapes = [{name: array.shape[1:] for name, array in batch.items()} for batch in batches]
        alike = [b for b, shape in zip(batches, shapes, strict=True) if shape == shapes[0]]
        given = {name: np.concatenate([b[name] for b in alike]) for name in batches[0]}
        size = len(next(iter(given.values())))
        count = min(count, -(-size // batch) * batch)
        return {name: array[np.arange(count) % size] for name, array in given.items()}
    graph = Graph(lowered.model)
    rng = np.random.default_rng(0)
    sample = {}
    open_size = _open_size(lowered.model)
    for tensor in graph.model.inputs:
        shape = (count, *(size or open_size for size in tensor.shape[1:]))
        rows = table_rows(graph, tensor)
        grid = lowered.grids.get(tensor.name)
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if rows is not None or "float" not in dtype:
            sample[str(tensor.name)] = rng.integers(0, rows or 2, shape).astype(dtype)
        else:
            low, high = (grid.minimum, grid.maximum) if grid else (-1.0, 1.0)
            sample[str(tensor.name)] = rng.uniform(low, high, shape).astype(dtype)
    return sample


def _open_size(model: keras.Model) -> int:
    """What the sizes are set to that a model leaves open: the first with which it can be run.

    No layer lacks elements, and no table of positions is too short.
    """
    if all(None not in tensor.shape[1:] for tensor in model.inputs):
        return _OPEN_SIZES[0]
    fitting = [size for size in _OPEN_SIZES if _gives_outputs(model, size)]
    return next((size for size in fitting if _runs(model, size)), max(_OPEN_SIZES))


def _gives_outputs(model: keras.Model, size: int) -> bool:
    """Whether inputs of this size leave something of each output."""
    specs = [keras.KerasTensor(_with_size(t, size), t.dtype) for t in model.inputs]
    try:
        outputs = keras.tree.flatten(model.compute_output_spec(specs))
    except ValueError:
        return False
    return all(0 not in output.shape for output in outputs)


def _runs(model: keras.Model, size: int) -> bool:
    zeros = [keras.ops.zeros(_with_size(t, size), t.dtype) for t in model.inputs]
    alone = isinstance(model, keras.Sequential)
    try:
        model(zeros[0] if alone else keras.tree.pack_sequence_as(model.input, zeros))
    except (ValueError, tf.errors.OpError):
        return False
    return True


def _with_size(tensor: Any, size: int) -> tuple[int, ...]:
    return (1, *(given or size for given in tensor.shape[1:]))


def _named_batches(
    lowered: Lowered, source: data.Source, limit: int = CALIBRATION_SAMPLES
) -> Iterator[Mapping[str, Any]]:
    names = [tensor.name for tensor in lowered.model.inputs]
    for batch in source.batches(lowered.model, limit=limit):
        yield dict(zip(names, batch, strict=True))
