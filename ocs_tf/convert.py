"""The flow: read, calibrate, plan, apply."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ocs_tf import data
from ocs_tf.activation_planning import activation_grids
from ocs_tf.allocation import MEASURED_SAMPLES, allocate_bits, allocate_copies
from ocs_tf.calibration import calibrate, channel_magnitudes
from ocs_tf.compensation import compensate, compensate_blind, sample_limit
from ocs_tf.config import Config, Override
from ocs_tf.graph.activations import all_sites, input_sites
from ocs_tf.graph.chains import chains
from ocs_tf.graph.equalization import choose_scales, equalized, joined_scales
from ocs_tf.graph.layouts import check_layouts
from ocs_tf.graph.moments import channel_moments
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.rewrite import Replacement, rewrite
from ocs_tf.graph.splittable import splittable_sites
from ocs_tf.numerics import ActivationGrid, OracleGrid
from ocs_tf.planning import (
    PROGRESS_DELAY,
    Plan,
    check_not_quantized,
    layer_options,
    plan_kernels,
)

_TABLE_BITS = 8  # of what a lookup finds, in integer runtimes
_MAGNITUDE_SAMPLES = 256
_BATCHES = 8  # of the most samples that memory allows; of more, calls would cost more than work


def convert(
    model: keras.Model,
    config: Config | None = None,
    *,
    representative_dataset: data.Dataset = None,
    verbose: bool = True,
    **options: Any,
) -> keras.Model:
    """Quantize a trained Keras model without training.

    Arguments:
        model: a built `keras.Model`; it is not modified. Models nested in it are put in their
            places. One with a `call` of its own must have been called on data once, and consist of
            Keras layers and operations.
        config: a `Config`; or give its fields as keyword `options`, e.g. `weight_bits=4`.
        representative_dataset: calibration inputs: an array, a dict of arrays by input name, a
            `tf.data.Dataset`, a `keras.utils.PyDataset`, or a callable that yields lists or dicts
            of arrays. Without it activations stay in float.
        verbose: show progress of what takes longer than two seconds.

    Returns:
        A new `keras.Model` with the same layer, input and output names. It predicts, evaluates,
        saves and loads like any other.

    Raises:
        ValueError: the model, an option or the data is not usable; see `Config`, `plan`, `apply`.
    """
    config = _config(config, options)
    runs = representative_dataset is not None or not _compiles(model)
    plan_ = _plan(model, config, representative_dataset, verbose, runs)
    if plan_.equalization:
        gc.collect()  # Keras models are circular; the copy that was planned on must not stay
    return apply(
        model,
        plan_,
        representative_dataset=representative_dataset,
        calibration_samples=config.calibration_samples,
        verbose=verbose,
    )


def plan(
    model: keras.Model,
    config: Config | None = None,
    *,
    representative_dataset: data.Dataset = None,
    verbose: bool = True,
    **options: Any,
) -> Plan:
    """Decide what `apply` is going to do, without changing anything. Arguments as for `convert`.

    Raises:
        ValueError: `model` is not a built Keras 3 model, cannot be traced, or has no layer that
            can be quantized; an option is out of range or an override matches nothing;
            an option needs data, and there are none; the data do not fit the model; a kernel
            or an activation holds NaN or infinity; data are given, but TensorFlow cannot compute
            a `channels_first` layer on this machine.
    """
    config = _config(config, options)
    runs = representative_dataset is not None
    return _plan(model, config, representative_dataset, verbose, runs)


def _plan(
    model: keras.Model, config: Config, dataset: data.Dataset, verbose: bool, runs: bool
) -> Plan:
    """`plan`; with `runs`, the model or what becomes of it must be computable on this machine."""
    config = config.resolve(with_data=dataset is not None)
    bits = config.activation_bits
    assert bits != "auto"
    graph = Graph(model, config.fold_batch_norm)
    if runs:
        check_layouts(graph)
    batches = []
    if bits is not None:
        # The first batch is read before the slow part, so that data that do not fit fail at once.
        stream = data.batches(dataset, graph.model, limit=config.calibration_samples)
        batches = [next(stream)]
    scales = _scales(graph, config, dataset, verbose)
    if scales:
        # A copy of the float model, for as long as it takes.
        config = config.for_copies_of(node.layer for node in graph.nodes)
        graph = Graph(equalized(graph, scales), config.fold_batch_norm)
    by_layer = _layer_options(graph, config, dataset, verbose)
    result = dataclasses.replace(
        plan_kernels(graph, config, by_layer, verbose),
        equalization={name: values.tolist() for name, values in scales.items()},
    )
    if bits is None:
        return result
    tables = _table_grids(graph, result, bits)
    if config.activation_scope == "all":
        sites = all_sites(graph, set(result.layers), tables)
    else:
        sites = input_sites(graph, set(result.layers))
    observed = {site.key: site.tensors for site in sites if not site.fixed}
    through = {site.key: site.through for site in sites if site.through is not None}

    def progress() -> Any:
        yield from batches
        yield from stream

    split: set[str] = set()
    if config.activation_expand_ratio:
        split, unsplit = splittable_sites(graph, sites, set(result.layers))
        result = dataclasses.replace(result, unsplit_activations=unsplit)
    bar = tqdm(progress(), "Calibrating", unit="batch", delay=PROGRESS_DELAY, disable=not verbose)
    histogram = config.activation_clip != "none"
    statistics = calibrate(
        graph.model, observed, bar, through=through, histogram=histogram, channels=split
    )
    grids = activation_grids(sites, statistics, config, bits, split, tables)
    return dataclasses.replace(result, activations=grids)


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
        representative_dataset: as for `convert`; only needed if `plan.needs_data`.
        calibration_samples: use at most this many samples of it. 1,024 are enough in any case, and
            fewer are used if their activations would take more than two GiB.

    Raises:
        ValueError: the plan names a layer that the model does not have, or does not fit a kernel;
            it splits activations of which nobody could read or make copies; it needs data and
            there are none, or they do not fit the model; TensorFlow cannot compute a
            `channels_first` layer on this machine (if the plan needs no data, a model that is
            compiled with `jit_compile=True` is taken).
    """
    if not isinstance(plan, Plan):
        raise ValueError(f"`plan` must be an ocs_tf.Plan, but is a {type(plan).__name__}.")
    graph = Graph(model, plan.fold_batch_norm)
    check_not_quantized(graph)
    _check_fits(plan, graph)
    if plan.needs_data or not _compiles(model):
        check_layouts(graph)
    batches = _batches(plan, graph, representative_dataset, calibration_samples)
    scaled: set[str] = set()
    if plan.equalization:
        known = chains(graph)
        graph = Graph(equalized(graph, plan.equalization), plan.fold_batch_norm)
        scaled = {reader for name in plan.equalization for reader in known[name].readers}
    moments = channel_moments(graph) if plan.uses_batch_norms else {}
    kernels = {}
    bar = tqdm(plan.layers.items(), "Quantizing", delay=PROGRESS_DELAY, disable=not verbose)
    for name, layer_plan in bar:
        site = graph.kernels[name]
        kernel, _ = site.weights()
        quantized, bias = compensate_blind(
            site,
            layer_plan,
            None if site.part else moments.get(id(graph.calls(site.layer)[0].inputs[0])),
            rounding=plan.rounding == "error_balanced",
            bias_correction=plan.bias_correction == "batch_norm",
        )
        quality = quantized.sqnr_db(kernel)
        kernels[name] = Replacement(quantized, bias, quality, name in scaled)
    result = rewrite(graph, kernels, plan.activations)
    if batches:
        compensate(
            graph,
            result,
            plan.layers,
            batches,
            rounding=plan.rounding == "error_compensated",
            bias_correction=plan.bias_correction is True,
            progress=lambda calls: tqdm(
                calls, "Compensating", delay=PROGRESS_DELAY, disable=not verbose
            ),
        )
    if isinstance(model, keras.Sequential) and Graph(result).is_chain:
        result = keras.Sequential(result.layers, name=model.name)
    if model.compiled:
        _compile_like(model, result)
    return result


def _compiles(model: keras.Model) -> bool:
    """Whether XLA computes `model` in `predict` and `evaluate`: it takes any layout of tensors."""
    return isinstance(model, keras.Model) and model.compiled and bool(model.jit_compile)


def _table_grids(graph: Graph, plan: Plan, bits: int) -> dict[str, ActivationGrid]:
    """Of lookups in tables of one step: what they find is on that grid, as in a runtime."""
    return {
        name: ActivationGrid(bits, float(layer_plan.step()))
        for name, layer_plan in plan.layers.items()
        if graph.kernels[name].adapter.is_lookup
        and layer_plan.granularity == "tensor"
        and bits == _TABLE_BITS
    }


def _scales(
    graph: Graph, config: Config, dataset: data.Dataset, verbose: bool
) -> dict[str, NDArray[np.float64]]:
    """What channels are divided by, by the name of the layer that makes them."""
    scales = choose_scales(graph, config.granularity) if config.equalization else {}
    if not config.equalizes_activations:
        return scales
    places = [chain.joined for chain in chains(graph).values() if chain.joined is not None]
    samples = min(_MAGNITUDE_SAMPLES, config.calibration_samples or _MAGNITUDE_SAMPLES)
    stream = data.batches(dataset, graph.model, limit=samples)
    bar = tqdm(
        stream, "Measuring channels", unit="batch", delay=PROGRESS_DELAY, disable=not verbose
    )
    tensors = {id(place.tensor): (place.tensor, place.axis) for place in places}
    magnitudes = channel_magnitudes(graph.model, tensors, bar)
    return scales | joined_scales(graph, magnitudes, config.granularity)


def _layer_options(
    graph: Graph, config: Config, dataset: data.Dataset, verbose: bool
) -> dict[str, Override]:
    """The options of each layer with a kernel, those that depend on all layers included."""
    options = layer_options(graph, config)
    if config.allocates:
        samples: list[list[Any]] = []
        if config.allocation == "measured":
            limit = min(sample_limit(graph), MEASURED_SAMPLES)
            limit = min(limit, config.calibration_samples or limit)
            samples = list(data.batches(dataset, graph.model, limit=limit))
        options = allocate_bits(graph, options, config, samples, verbose)
    if config.split_budget == "network":
        options = allocate_copies(graph, options, config, verbose)
    return options


def _batches(
    plan: Plan, graph: Graph, dataset: data.Dataset, samples: int | None
) -> list[list[Any]]:
    """The data that `plan` needs, in memory; none if it needs none."""
    if not plan.needs_data:
        return []
    if dataset is None:
        raise ValueError(
            f"the plan has rounding={plan.rounding!r} and bias_correction={plan.bias_correction},"
            " which need `representative_dataset`; give it to `apply`, too."
        )
    limit = sample_limit(graph)
    batch_size = max(data.BATCH_SIZE, limit // _BATCHES)
    limit = min(limit, samples or limit)
    return list(data.batches(dataset, graph.model, batch_size=batch_size, limit=limit))


def _check_fits(plan: Plan, graph: Graph) -> None:
    for name in plan.layers:
        if name not in graph.kernels:
            raise ValueError(
                f"the plan quantizes layer {name!r}, which `model` {graph.model.name!r} does not"
                f" have; layers with a kernel: {', '.join(graph.kernels)}."
            )
    names = {node.layer.name for node in graph.nodes} - graph.folded
    inputs = {f"{name}:input" for name in graph.kernels}
    preactivations = {f"{name}:preactivation" for name in plan.layers}
    for key in plan.activations:
        if key not in names | inputs | preactivations:
            raise ValueError(
                f"the plan rounds activations at {key!r}, which `model` {graph.model.name!r} does"
                " not have, or does not quantize."
            )
    _check_splits(plan, graph)


def _check_splits(plan: Plan, graph: Graph) -> None:
    """Refuse split activations where nothing could make or read the copies."""
    split = {key: grid for key, grid in plan.activations.items() if not _whole(grid)}
    if not split:
        return
    quantized = set(plan.layers)
    sites = {s.key: s for s in (*all_sites(graph, quantized), *input_sites(graph, quantized))}
    _, reasons = splittable_sites(graph, list(sites.values()), quantized)
    for key, grid in split.items():
        reason = reasons.get(key) if key in sites else "activations are not rounded there"
        if isinstance(grid, OracleGrid) and not key.endswith(":input"):
            reason = "an oracle is for what single layers read (activation_scope='inputs')"
        channels = sites[key].tensors[0].shape[-1] if reason is None else 0
        if isinstance(grid, ActivationGrid) and reason is None and max(grid.copies) >= channels:
            reason = f"it has {channels} channels, so not all of the copies {list(grid.copies)}"
        if reason is not None:
            raise ValueError(f"the plan splits activations at {key!r}, which cannot be: {reason}.")


def _whole(grid: ActivationGrid | OracleGrid) -> bool:
    return isinstance(grid, ActivationGrid) and not grid.copies


def _compile_like(model: keras.Model, result: keras.Model) -> None:
    """Compile `result` as `model` is, with an optimizer, loss and metrics of its own."""
    try:
        result.compile_from_config(model.get_compile_config())
    except Exception as error:
        warnings.warn(
            f"the quantized model is not compiled, since the loss, metrics or optimizer of"
            f" {model.name!r} cannot be copied ({error}); call compile() on it before evaluate().",
            stacklevel=3,
        )


def _config(config: Config | None, options: dict[str, Any]) -> Config:
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
