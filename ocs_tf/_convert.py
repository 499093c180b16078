"""The flow: read, calibrate, plan, apply."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf import data, layers
from ocs_tf._plan import Plan
from ocs_tf._synthesize import is_word, source_of
from ocs_tf.compensation.calibrated import compensate
from ocs_tf.compensation.data_free import compensate_data_free, moments_of_calls
from ocs_tf.config import Config, ConfigOptions, check_count
from ocs_tf.data_checks import watched
from ocs_tf.graph.analysis.activation_sites import Site, all_sites, input_sites
from ocs_tf.graph.analysis.batch_norm_moments import channel_moments
from ocs_tf.graph.analysis.chains import Chain, chains
from ocs_tf.graph.analysis.concatenations import (
    coarse_calls,
    coarse_parts,
    coarse_slices,
    describe,
    describe_all,
    output_concatenations,
    slices,
    with_readers,
)
from ocs_tf.graph.analysis.indices import graph_on
from ocs_tf.graph.analysis.layouts import check_layouts
from ocs_tf.graph.analysis.splittable_sites import splittable_sites
from ocs_tf.graph.cloning import why_not_loaded
from ocs_tf.graph.execution import sample_limit
from ocs_tf.graph.reader import Graph, is_chain
from ocs_tf.graph.rewrite import Replacement, rewrite
from ocs_tf.graph.scaling import scale_channels
from ocs_tf.graph.substitutions.tracing import has_graph, inputs_of
from ocs_tf.keras2 import takes_keras2
from ocs_tf.keras_state import restores_state
from ocs_tf.numerics import ActivationGrid, OracleGrid
from ocs_tf.numerics.checks import check_switch
from ocs_tf.numerics.quantized_kernel import check_kernel
from ocs_tf.numerics.splitting import check_finite
from ocs_tf.planning.activation_bits import activation_bits, check_overrides, table_bits
from ocs_tf.planning.activation_grids import activation_grids, clip_method, vanishing_divisors
from ocs_tf.planning.calibration import (
    Statistics,
    calibrate,
    channel_ranges,
    together,
)
from ocs_tf.planning.equalization import choose_scales, joined_scales, outlier_scales, scalable
from ocs_tf.planning.fit import check_fits
from ocs_tf.planning.layer_options import LayerOptions, Selection, check_not_quantized, select
from ocs_tf.planning.mixed_precision import MEASURED_SAMPLES, allocate_bits, allocate_copies
from ocs_tf.planning.synthetic_ranges import widened
from ocs_tf.planning.weights import plan_kernels
from ocs_tf.progress import progress_bar
from ocs_tf.synthesis.matching import norms_of

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of `typing` from Python 3.11 on

_TABLE_BITS = 8  # of what a lookup finds, in integer runtimes
_MAGNITUDE_SAMPLES = 256
_FEW_BITS = 4  # about as many as weights have that are allocated for a size in bytes
_COARSE = (
    "Give them similar ranges (scale the small one up, and the kernel that reads it down), or leave"
    " activations in float (activation_bits=None)."
)
_SLICE = "slice "  # in front of a name that is of no site
_COARSE_CALLS = (
    "Call a layer of its own in its place, a copy with the same weights: it has a grid of its own."
)
_NO_DATA = (
    "there is no `representative_dataset`: activations are measured on synthetic data, made from"
    " what batch norms know of the training data. Give some real inputs if you have any. Without"
    " this warning: representative_dataset='synthetic', or activation_bits=None (float)."
)
_CHECKED_SAMPLES = 256  # where activations stay in float, and nothing is measured on data
_BATCHES = 8  # of the most samples that memory allows; of more, calls would cost more than work


@takes_keras2
@restores_state
def convert(
    model: keras.Model,
    config: Config | None = None,
    *,
    representative_dataset: data.Dataset = None,
    verbose: bool = True,
    **options: Unpack[ConfigOptions],
) -> keras.Model:
    """Quantize a trained Keras model without training (post-training quantization).

    Arguments:
        model: a built `keras.Model`, or a `tf_keras.Model` (see `load_model`); it is not modified.
            Models nested in it are put in their places. One with a `call` of its own must have been
            called on data once, and consist of Keras layers and operations.
        config: a `Config`; or give its fields as keyword `options`, e.g. `weight_bits=4`. See
            `Config` or docs/options.md.
        representative_dataset: calibration inputs: an array, a dict of arrays by input name, a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, or a callable that yields lists or dicts
            of arrays; labels, in tuples, are left out. See `data.Source` for all forms. It is read
            several times; what can be read only once, a generator, is kept in memory as far as it
            is read. Without it activations stay in float32, unless `activation_bits` asks for them:
            then it is `"synthetic"` where the model has batch norms. `"synthetic"` makes inputs by
            `synthesize`, which takes minutes.
        verbose: show progress of what takes longer than two seconds.

    Returns:
        A new `keras.Model` with the same layer, input and output names. It predicts, evaluates,
        saves and loads like any other.

    Raises:
        ValueError: the model, an option or the data is not usable; see `Config`, `plan`, `apply`.
    """
    config = _config(config, options)
    _check_options(verbose)
    graph, source = _opened(model, config.fold_batch_norm, representative_dataset, verbose)
    source = source or _made_up(graph, config, verbose)
    runs = source is not None or not _compiles(model)
    plan_, scaled = _plan(graph, config, source, verbose, runs)
    batches = _batches(plan_, graph, source, config.calibration_samples)
    return _apply(model, plan_, graph, scaled, batches, verbose)


@takes_keras2
@restores_state
def plan(
    model: keras.Model,
    config: Config | None = None,
    *,
    representative_dataset: data.Dataset = None,
    verbose: bool = True,
    **options: Unpack[ConfigOptions],
) -> Plan:
    """Decide what `apply` is going to do, without changing anything. Arguments as for `convert`.

    Raises:
        ValueError: `model` is not a built Keras 3 model, cannot be traced, or has no layer that
            can be quantized; an option is out of range or an override matches nothing;
            an option needs data, and there are none; the data do not fit the model; a kernel
            or an activation holds NaN or infinity; data are given, but TensorFlow cannot compute
            a `channels_first` layer on this machine.

    Warns of data that look wrong: of another scale than the training data, by what batch norms
    know of those; all the same; fewer than 8 samples.
    """
    _check_options(verbose)
    config = _config(config, options)
    graph, source = _opened(model, config.fold_batch_norm, representative_dataset, verbose)
    source = source or _made_up(graph, config, verbose)
    result, _ = _plan(graph, config, source, verbose, runs=source is not None)
    return result


def _plan(
    graph: Graph, config: Config, source: data.Source | None, verbose: bool, runs: bool
) -> tuple[Plan, Graph]:
    """The plan of a model, and the model with scaled channels that it is for.

    With `runs`, the model or what becomes of it must be computable on this machine.
    """
    config = config.resolve(with_data=source is not None)
    if runs:
        check_layouts(graph)
    selected = select(graph, config)
    check_overrides(graph, config, set(selected.options))
    stream: Iterator[data.Batch] = iter(())
    if source is not None and (config.rounds_activations or not source.is_synthetic):
        # Before the slow part, so that data that do not fit fail at once.
        limit = config.calibration_samples
        limit = limit if config.rounds_activations else _at_most(_CHECKED_SAMPLES, limit)
        stream = watched(graph, source.batches(graph.model, limit=limit), source.name)
    scales = _scales(graph, config, selected, source, verbose)
    graph = _scaled(graph, scales, config.fold_batch_norm)
    options, widths = _all_options(graph, config, selected, source, verbose)
    result = Plan(
        plan_kernels(graph, config, options, widths, verbose),
        selected.float_layers,
        fold_batch_norm=config.fold_batch_norm,
        rounding=config.rounding,
        bias_correction=config.bias_correction,
        equalization={name: values.tolist() for name, values in scales.items()},
    )
    if source is not None and (config.rounds_activations or result.needs_data):
        result = dataclasses.replace(result, synthetic=source.summary)
    if not config.rounds_activations:
        collections.deque(stream, maxlen=0)  # to its end, for the warnings
        return result, graph
    return _plan_activations(graph, result, config, stream, verbose), graph


def _plan_activations(
    graph: Graph,
    result: Plan,
    config: Config,
    stream: Iterator[data.Batch],
    verbose: bool,
) -> Plan:
    """The plan of kernels `result`, with grids of activations, measured on `stream`."""
    quantized = set(result.layers)
    tables = _table_grids(graph, result, config)
    if config.activation_scope == "all":
        sites = all_sites(graph, quantized, tables)
    else:
        sites = input_sites(graph, quantized)
    bits = activation_bits(graph, sites, config)
    sites = [site for site in sites if site.key in bits]
    observed: dict[str, tuple[Any, ...]] = {
        site.key: tuple(site.tensors) for site in sites if not site.fixed
    }
    cut: dict[str, tuple[Any, ...]] = {
        f"{_SLICE}{name}": (tensor,) for name, tensor in slices(graph, observed).items()
    }
    through = {site.key: site.through for site in sites if site.through is not None}
    spans = {site.key: site.span for site in sites if site.span is not None}

    split: set[str] = set()
    if config.activation_expand_ratio:
        split, unsplit = splittable_sites(graph, sites, quantized)
        result = dataclasses.replace(result, unsplit_activations=unsplit)
    bar = progress_bar(stream, "Calibrating", verbose, unit="batch")
    methods = {key: clip_method(config, width) for key, width in bits.items()}
    measured = calibrate(
        graph.model,
        observed | cut,
        bar,
        through=through,
        spans=spans,
        histogram=any(method != "none" for method in methods.values()),
        channels=split | {key for key, method in methods.items() if method == "regression"},
    )
    cut_ranges = {
        key.removeprefix(_SLICE): (seen.minimum, seen.maximum)
        for key in cut
        for seen in measured.pop(key, ())
    }
    if result.synthetic:
        measured = widened(graph, sites, measured)
    statistics = together(measured)
    sites = _rounded(sites, statistics)
    grids = activation_grids(sites, statistics, config, bits, split, tables)
    coarse = coarse_parts(graph, _ranges(sites, measured, grids), grids)
    ends = output_concatenations(graph) if config.exact_outputs else set()
    exact = with_readers(graph, set(coarse) & ends) & ends
    if exact and config.activation_scope == "all":
        sites = all_sites(graph, quantized, tables, exact)
        bits = activation_bits(graph, sites, config)
        sites = _rounded([site for site in sites if site.key in bits], statistics)
        grids = activation_grids(sites, statistics, config, bits, split, tables)
        coarse = {site: parts for site, parts in coarse.items() if site not in exact}
    for site, parts in coarse_slices(graph, cut_ranges, grids).items():
        coarse[site] = coarse.get(site, {}) | parts
    ranges = {key: [(s.minimum, s.maximum) for s in each] for key, each in measured.items()}
    calls = coarse_calls(graph, sites, ranges, grids)
    for site, parts in coarse.items():
        warnings.warn(f"{describe(site, parts, 2 ** grids[site].bits)}. {_COARSE}", stacklevel=2)
    for width in sorted({grids[site].bits for site in calls}):
        alike = {site: parts for site, parts in calls.items() if grids[site].bits == width}
        warnings.warn(f"{describe_all(alike, 2**width)}. {_COARSE_CALLS}", stacklevel=2)
    both = {site: coarse.get(site, {}) | calls.get(site, {}) for site in coarse | calls}
    for key in vanishing_divisors(graph, sites, statistics, grids):
        del grids[key]
    return dataclasses.replace(result, activations=grids, coarse_parts=both)


def _scaled(graph: Graph, scales: Mapping[str, Any], fold_batch_norm: bool) -> Graph:
    """`graph`, or that of a copy of the model with scaled channels."""
    return Graph(scale_channels(graph, scales), fold_batch_norm) if scales else graph


def _opened(
    model: keras.Model, fold_batch_norm: bool, dataset: data.Dataset, verbose: bool
) -> tuple[Graph, data.Source | None]:
    """The graph of `model`, and the data; what is "synthetic" is made when it is read.

    Keras does not know of what dtype inputs of a `call` are, data do.
    """
    if is_word(dataset):
        graph = Graph(model, fold_batch_norm)
        return graph, source_of(graph, verbose=verbose)
    source = data.Source.of(dataset)
    if source is None or not isinstance(model, keras.Model) or has_graph(model):
        return Graph(model, fold_batch_norm), source
    inputs = keras.tree.flatten(inputs_of(model))
    return graph_on(model, fold_batch_norm, source.dtypes(inputs)), source


def _made_up(graph: Graph, config: Config, verbose: bool) -> data.Source | None:
    """Synthetic data for a user who asks for rounded activations and has none, if that can be."""
    if not config.rounds_activations or not norms_of(graph):
        return None
    warnings.warn(_NO_DATA, stacklevel=2)
    return source_of(graph, verbose=verbose)


def _rounded(sites: Sequence[Site], statistics: Mapping[str, Statistics]) -> list[Site]:
    """The sites whose values turned out to be floats, or have a prescribed grid."""
    return [site for site in sites if site.fixed or site.key in statistics]


def _ranges(
    sites: Sequence[Site],
    measured: Mapping[str, Sequence[Statistics]],
    grids: Mapping[str, ActivationGrid | OracleGrid],
) -> dict[int, tuple[float, float]]:
    """Minimum and maximum of each measured tensor, or of its prescribed grid, by tensor id."""
    found = {}
    for site in sites:
        grid = grids[site.key]
        if site.is_output and site.key in measured:
            for tensor, seen in zip(site.tensors, measured[site.key], strict=True):
                found[id(tensor)] = seen.minimum, seen.maximum
        elif site.is_output and isinstance(grid, ActivationGrid):
            found.update((id(tensor), (grid.minimum, grid.maximum)) for tensor in site.tensors)
    return found


@takes_keras2
@restores_state
def apply(
    model: keras.Model,
    plan: Plan,
    *,
    representative_dataset: data.Dataset = None,
    calibration_samples: int | None = None,
    verbose: bool = True,
) -> keras.Model:
    """Make the quantized model that `plan` describes. `model` is not modified.

    Arguments:
        representative_dataset: as for `convert`; only needed if `plan.needs_data`. Without it, a
            plan made on synthetic data is applied on such.
        calibration_samples: use at most this many samples of it. 1,024 are enough in any case, and
            fewer are used if their activations would take more than two GiB.

    Raises:
        ValueError: the plan is not valid; it names a layer that the model does not have, or does
            not fit a kernel, or a chain of channels to be scaled; it splits activations of which
            nobody could read or make copies; a kernel or bias holds NaN or infinity, or what its
            codes stand for is too large for float32; the plan needs data and there are none, or
            they do not fit the model; TensorFlow cannot compute a `channels_first` layer on this
            machine (if the plan needs no data, a model that is compiled with `jit_compile=True` is
            taken: XLA computes it).
    """
    if not isinstance(plan, Plan):
        raise ValueError(f"`plan` must be an ocs_tf.Plan, but is a {type(plan).__name__}.")
    plan = dataclasses.replace(plan)  # checked anew: what is in it may have been edited
    _check_options(verbose, calibration_samples)
    graph, source = _opened(model, plan.fold_batch_norm, representative_dataset, verbose)
    if source is None and plan.synthetic:
        source = source_of(graph, verbose=verbose)  # the same again
    check_not_quantized(graph)
    check_fits(plan, graph)
    if plan.needs_data or not _compiles(model):
        check_layouts(graph)
    batches = _batches(plan, graph, source, calibration_samples)
    scaled = _scaled(graph, plan.equalization, plan.fold_batch_norm)
    return _apply(model, plan, graph, scaled, batches, verbose)


def _apply(
    model: keras.Model,
    plan: Plan,
    original: Graph,
    graph: Graph,
    batches: list[data.Batch],
    verbose: bool,
) -> keras.Model:
    """The quantized model.

    Arguments:
        original: of `model`.
        graph: the same with the scaled channels of the plan.
        batches: the data that the plan needs, if any.
    """
    known = chains(original) if plan.equalization else {}
    equalized = {reader for name in plan.equalization for reader in known[name].readers}
    moments = channel_moments(graph) if plan.uses_batch_norms else {}
    kernels = {}
    bar = progress_bar(plan.layers.items(), "Quantizing", verbose)
    for name, layer_plan in bar:
        ref = graph.kernels[name]
        kernel, bias = ref.weights()
        check_kernel(kernel, f"kernel of layer {name}")
        if bias is not None:
            check_finite(bias, f"bias of layer {name}")
        calls = [] if ref.part else graph.calls(ref.layer)
        quantized, bias = compensate_data_free(
            ref,
            layer_plan,
            moments_of_calls([moments.get(id(call.inputs[0])) for call in calls]),
            rounding=plan.rounding == "error_balanced",
            bias_correction=plan.bias_correction == "batch_norm",
        )
        with np.errstate(over="ignore", divide="ignore"):
            quality = quantized.sqnr_db(kernel)
        if quality == -np.inf:
            raise ValueError(
                f"kernel of layer {name}: its weights reach {np.abs(kernel).max():g}, and codes of"
                " that size are too large for float32. Leave the layer in float with an override"
                " (weight_bits=None)."
            )
        kernels[name] = Replacement(quantized, bias, quality, name in equalized)
    rewritten = rewrite(graph, kernels, plan.activations, plan.coarse_parts)
    if batches:
        compensate(
            graph,
            rewritten,
            plan.layers,
            batches,
            rounding=plan.rounding == "error_compensated",
            bias_correction=plan.bias_correction is True,
            progress=lambda calls: progress_bar(calls, "Compensating", verbose),
        )
    result = rewritten.model
    _warn_of_files(result)
    if isinstance(model, keras.Sequential) and is_chain(result):
        result = keras.Sequential(result.layers, name=model.name)
    if model.compiled:
        _compile_like(model, result)
    return result


def _compiles(model: keras.Model) -> bool:
    """Whether XLA computes `model` in `predict` and `evaluate`: it takes any layout of tensors."""
    return isinstance(model, keras.Model) and model.compiled and bool(model.jit_compile)


def _table_grids(graph: Graph, plan: Plan, config: Config) -> dict[str, ActivationGrid]:
    """Grids of lookups in per-tensor tables: the output is on the table's grid, as in a runtime."""
    return {
        name: ActivationGrid(_TABLE_BITS, float(layer_plan.step()))
        for name, layer_plan in plan.layers.items()
        if graph.kernels[name].adapter.is_lookup
        and layer_plan.granularity == "tensor"
        and table_bits(graph, name, config) == _TABLE_BITS
    }


def _scales(
    graph: Graph, config: Config, selected: Selection, source: data.Source | None, verbose: bool
) -> dict[str, NDArray[np.float64]]:
    """Factors that channels are divided by, by the name of the layer that makes them."""
    scales = choose_scales(graph, config.granularity) if config.equalization else {}
    if not config.equalizes_activations or source is None:
        return scales
    places = [chain.joined for chain in chains(graph).values() if chain.joined is not None]
    bits: dict[int, int] = {}
    known: dict[str, Chain] = {}
    if config.outlier_equalization and config.granularity == "channel" and not config.equalization:
        known = scalable(graph, selected.options.keys())
        bits = _tensor_bits(graph, config, selected.options.keys())
        places += [p for chain in known.values() for p in chain.places if id(p.tensor) in bits]
    if not places:
        return scales
    tensors = {id(place.tensor): (place.tensor, place.axis) for place in places}
    limit = _at_most(_MAGNITUDE_SAMPLES, config.calibration_samples)
    stream = source.batches(graph.model, limit=limit)
    bar = progress_bar(stream, "Measuring channels", verbose, unit="batch")
    ranges = channel_ranges(graph.model, tensors, bar)
    widths = {name: selected.bits.get(name, _width(config)) for name in selected.options}
    outliers = outlier_scales(graph, known, ranges, bits, widths)
    return scales | outliers | joined_scales(graph, ranges, config.granularity)


def _width(config: Config) -> int:
    """About how many bits weights have whose bits are to be allocated."""
    return round(config.average_bits) if config.average_bits is not None else _FEW_BITS


def _tensor_bits(graph: Graph, config: Config, quantized: Collection[str]) -> dict[int, int]:
    """The bits of the grid of each tensor that is rounded at its own site, by its id."""
    sites = [site for site in all_sites(graph, set(quantized)) if site.is_output]
    bits = activation_bits(graph, sites, config)
    return {id(t): bits[site.key] for site in sites if site.key in bits for t in site.tensors}


def _all_options(
    graph: Graph, config: Config, selected: Selection, source: data.Source | None, verbose: bool
) -> tuple[dict[str, LayerOptions], dict[str, int]]:
    """Options and bit width of each kernel, those that depend on all kernels included."""
    options, bits = selected.options, selected.bits
    if config.allocates:
        samples: list[list[Any]] = []
        if config.allocation == "measured" and source is not None:
            limit = min(sample_limit(graph), MEASURED_SAMPLES)
            limit = _at_most(limit, config.calibration_samples)
            samples = list(source.batches(graph.model, limit=limit))
        bits = allocate_bits(graph, options, bits, config, samples, verbose)
    if config.split_budget == "network":
        options = allocate_copies(graph, options, bits, verbose)
    return options, bits


def _batches(
    plan: Plan, graph: Graph, source: data.Source | None, samples: int | None
) -> list[data.Batch]:
    """The data that `plan` needs, in memory; none if it needs none."""
    if not plan.needs_data:
        return []
    if source is None:
        raise ValueError(
            f"the plan has rounding={plan.rounding!r} and bias_correction={plan.bias_correction},"
            " which need `representative_dataset`; give it to `apply`, too."
        )
    limit = sample_limit(graph)
    batch_size = max(data.BATCH_SIZE, limit // _BATCHES)
    limit = _at_most(limit, samples)
    return list(source.batches(graph.model, batch_size=batch_size, limit=limit))


def _at_most(limit: int, samples: int | None) -> int:
    return limit if samples is None else min(limit, samples)


def _warn_of_files(model: keras.Model) -> None:
    """Warn of layers that a `.keras` file of `model` would not load."""
    for layer in model.layers:
        layer = layers.unwrapped(layer)
        reason = None if isinstance(layer, keras.Model) else why_not_loaded(layer)
        if reason is not None:
            kind = type(layer.layer if isinstance(layer, layers.QuantizedInside) else layer)
            warnings.warn(
                f"layer {layer.name!r} ({kind.__name__}) works as it is, but a .keras file"
                f" of the quantized model will not load: {reason} Exports to .tflite need no such"
                " file.",
                stacklevel=3,
            )


def _compile_like(model: keras.Model, result: keras.Model) -> None:
    """Compile `result` as `model` is, with an optimizer, loss and metrics of its own."""
    try:
        result.compile_from_config(model.get_compile_config())
    except Exception as error:
        warnings.warn(
            f"the quantized model is not compiled, since the loss, metrics or optimizer of"
            f" {model.name!r} cannot be copied ({error}); call compile() on it before evaluate().",
            stacklevel=4,
        )


def _check_options(verbose: Any, samples: Any = None) -> None:
    check_switch("verbose", verbose)
    if samples is not None:
        check_count("calibration_samples", samples)


def _config(config: Config | None, options: ConfigOptions) -> Config:
    if config is None:
        known = {field.name for field in dataclasses.fields(Config)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}.")
        return Config(**options)
    if options:
        raise ValueError(
            f"give either `config` or options, not both; got {', '.join(sorted(options))} beside"
            " `config`. Put them into the Config (dataclasses.replace)."
        )
    if not isinstance(config, Config):
        raise ValueError(f"`config` must be an ocs_tf.Config, but is {config!r}.")
    return config
