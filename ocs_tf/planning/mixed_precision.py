"""Mixed precision: a bit width and copies for each layer, with the least total error for a size.

Small errors of single layers add up at the outputs. The error of a layer at a reference bit width
is measured, or approximated by the noise-to-signal ratio of its kernel. Other bit widths are scaled
by the kernel's squared error at each of them, splits and clipping included.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf._plan import LayerPlan
from ocs_tf.compensation.statistics import Calls, call_weights, mean_outputs, weighted
from ocs_tf.compensation.weights import compensated_kernel
from ocs_tf.config import Config
from ocs_tf.graph import composites
from ocs_tf.graph.analysis.activation_sites import activation_function
from ocs_tf.graph.execution import Batches, calls_by_layer
from ocs_tf.graph.reader import Graph, KernelRef
from ocs_tf.graph.rewrite import rewrite
from ocs_tf.numerics.bit_allocation import allocate, closed_form_bits, share_copies
from ocs_tf.numerics.grid import normalized
from ocs_tf.numerics.joint_search import search_splits
from ocs_tf.numerics.quantized_kernel import check_kernel
from ocs_tf.planning.calibration import observe
from ocs_tf.planning.layer_options import LayerOptions
from ocs_tf.planning.weights import plan_kernel, plan_layer
from ocs_tf.progress import progress_bar

WIDTHS = range(2, 9)
MEASURED_SAMPLES = 256
_SAMPLED_WEIGHTS = 1 << 16  # weights of a kernel that its error at each bit width is computed on
_TESTED_SAMPLES = 64  # of them, at most, and no more than half
_AVERAGE_STEP = 0.02
_MOST_COPIES = 4  # times as many as by its own ratio a layer may get
_REFERENCE_BITS = (3, 5)  # at which errors are measured: large enough to see, yet small


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One layer's choices: squared error and cost at each bit width in `WIDTHS`."""

    ref: KernelRef
    options: LayerOptions
    noise: NDArray[np.float64]
    costs: NDArray[np.float64]
    power: float  # sum of the squares of the kernel


def allocate_bits(
    graph: Graph,
    options: Mapping[str, LayerOptions],
    given: Mapping[str, int],
    config: Config,
    batches: Batches,
    verbose: bool = True,
) -> dict[str, int]:
    """A bit width for each kernel: the given ones, and the best others for the budget.

    Arguments:
        batches: calibration data, of each batch one array per input; for allocation `"measured"`.

    Raises:
        ValueError: the budget is too small for 2 bits.
    """

    def progress(items: Sequence[Any], title: str) -> Iterable[Any]:
        return progress_bar(items, title, verbose, leave=False)

    counts = {name: _count(graph, graph.kernels[name], config) for name in options}
    free = [name for name in options if name not in given]
    if not free:
        return dict(given)
    layers = {
        name: _layer(graph.kernels[name], options[name], config, counts[name])
        for name in progress(free, "Trying bit widths")
    }
    spent = 0.0
    for name, bits in given.items():
        channels = graph.kernels[name].shape[-2]
        spent += _cost(bits, options[name].copies(bits, channels), channels, counts[name])
    total = sum(counts.values())
    # `Config` has one of the two.
    limit = 8.0 * (config.weight_bytes or 0)
    if config.average_bits is not None:
        limit = config.average_bits * total
    _check_budget(config, spent, layers, limit, total)
    if config.allocation == "closed_form":
        return {**given, **_closed_form(layers, limit - spent)}
    if config.allocation == "measured":
        reference = int(np.clip(round(limit / total), *_REFERENCE_BITS))
        errors = _measured(graph, layers, reference, batches, config, progress)
        scale = [errors[name] / layers[name].noise[reference - WIDTHS[0]] for name in free]
    else:
        scale = [1 / (layers[name].power or 1.0) for name in free]
    noise = np.stack([layers[name].noise for name in free])
    costs = np.stack([layers[name].costs for name in free])
    chosen = allocate(noise * np.array(scale)[:, None], costs, limit - spent)
    return {**given, **{name: WIDTHS[i] for name, i in zip(free, chosen, strict=True)}}


def allocate_copies(
    graph: Graph,
    options: Mapping[str, LayerOptions],
    bits: Mapping[str, int],
    verbose: bool = True,
) -> dict[str, LayerOptions]:
    """`options`, with copies where they lower the kernels' noise-to-signal ratios most.

    In all they take no more codes than `expand_ratio` would give each layer by itself.
    """
    kernels = graph.kernels
    splits = {n: o.copies(bits[n], kernels[n].shape[-2]) for n, o in options.items()}
    names = [name for name in options if splits[name]]
    paths, prices = [], []
    for name in progress_bar(names, "Splitting", verbose, leave=False):
        kernel, _ = normalized(kernels[name].weights()[0])
        room = options[name].room(kernel.shape[-2])
        most = min(_MOST_COPIES * splits[name], kernel.shape[-2], room)
        _, path = search_splits(kernel, bits[name], most, options[name].granularity)
        paths.append(path / (np.square(kernel).sum() or 1.0))
        prices.append(float(kernel.size / kernel.shape[-2]))
    budget = sum(price * splits[name] for name, price in zip(names, prices, strict=True))
    counts = dict(zip(names, share_copies(paths, prices, budget), strict=True))
    ratios = {name: _ratio(kernels[name], count) for name, count in counts.items()}
    return {
        name: dataclasses.replace(o, expand_ratio=ratios.get(name, o.expand_ratio))
        for name, o in options.items()
    }


def _ratio(ref: KernelRef, copies: int) -> float:
    """An expand ratio that makes just so many copies."""
    return max(0.0, (copies - 0.5) / ref.shape[-2])


def _layer(ref: KernelRef, options: LayerOptions, config: Config, count: float) -> _Layer:
    kernel = check_kernel(ref.weights()[0], f"kernel of layer {ref.name}")
    channels, columns = kernel.shape[-2:]
    every = 1
    if options.granularity == "channel":  # then some output channels stand for all
        every = min(columns, max(1, kernel.size // _SAMPLED_WEIGHTS))
    sample = np.ascontiguousarray(kernel[..., ::every])
    noise, costs = [], []
    for bits in WIDTHS:
        plan = plan_kernel(sample, bits, options, config)
        error = plan.quantize(sample).effective_kernel() - sample
        # Not 0, which an all-zero kernel has: then no bit width would cost anything.
        noise.append(max(float(np.square(error, dtype=np.float64).sum()), 1e-300))
        costs.append(_cost(bits, options.copies(bits, channels), channels, count))
    scale = columns / sample.shape[-1]
    power = float(np.square(kernel, dtype=np.float64).sum())
    return _Layer(ref, options, np.array(noise) * scale, np.array(costs), power)


def _count(graph: Graph, ref: KernelRef, config: Config) -> float:
    """Weights of a layer, or multiplications with them for one sample."""
    size = math.prod(ref.shape)
    if config.allocation_cost == "size":
        return float(size)
    tensor = graph.calls(ref.owner)[0].inputs[0]
    shape = [1, *(size or 1 for size in tensor.shape[1:])]
    sizes = shape[1:-1] if ref.part else ref.adapter.positions(ref.layer, shape)
    return float(size * math.prod(sizes))


def _cost(bits: int, copies: int, channels: int, count: float) -> float:
    """Bits of a layer's codes, times how often each is used, if that is what counts."""
    return bits * count * (1 + copies / channels)


def _check_budget(
    config: Config, given: float, layers: Mapping[str, _Layer], limit: float, count: float
) -> None:
    least = given + sum(layer.costs.min() for layer in layers.values())
    if least > limit:
        asked, lowest = f"`weight_bytes` (={config.weight_bytes})", f"{math.ceil(least / 8)}"
        if config.average_bits is not None:
            asked, lowest = f"`average_bits` (={config.average_bits})", f"{least / count:.3g}"
        raise ValueError(
            f"{asked} is too small: with 2 bits for every layer without a given bit width,"
            f" copies counted, it is {lowest}. Give more, or a smaller `expand_ratio`."
        )


def _closed_form(layers: Mapping[str, _Layer], limit: float) -> dict[str, int]:
    """Bit widths by the rule of Lin et al., the largest that fit with their copies."""
    counts = [layer.costs[-1] / WIDTHS[-1] for layer in layers.values()]
    for average in np.arange(max(WIDTHS), min(WIDTHS), -_AVERAGE_STEP):
        bits = closed_form_bits(counts, average).tolist()
        costs = [layer.costs[b - WIDTHS[0]] for layer, b in zip(layers.values(), bits, strict=True)]
        if sum(costs) <= limit:
            return dict(zip(layers, bits, strict=True))
    return dict.fromkeys(layers, WIDTHS[0])


def _measured(
    graph: Graph,
    layers: Mapping[str, _Layer],
    bits: int,
    batches: Batches,
    config: Config,
    progress: Any,
) -> dict[str, float]:
    """The error that each layer alone, in `bits` bits, adds to the float model's outputs.

    Some samples choose the codes, others tell the error: on those that chose them, few-sample
    layers look better than they are.
    """
    arrays = [np.concatenate(column) for column in zip(*batches, strict=True)]
    tested = max(1, min(_TESTED_SAMPLES, len(arrays[0]) // 2))
    fitted = [[array[: max(1, len(array) - tested)] for array in arrays]]
    held_out = [array[-tested:] for array in arrays]
    copy = rewrite(graph, {}, {})
    observed = observe(copy.model, copy.model.outputs, itertools.repeat(held_out))
    exact = next(observed)
    softmax = [
        activation_function(graph.producer[id(tensor)].layer) is keras.activations.softmax
        for tensor in graph.model.outputs
    ]
    found = {}
    owners = {layer.ref.owner.name for layer in layers.values()}
    walked = calls_by_layer(graph, owners, fitted, lambda nodes: progress(nodes, "Measuring"), copy)
    for layer, calls in walked:
        inputs = [call.inputs for call in calls]
        for ref in graph.kernels_of[layer.name]:
            if ref.name not in layers:
                continue
            plan = plan_layer(ref, bits, layers[ref.name].options, config)
            weights = layer.get_weights()
            _quantize_in_float(ref, layer, plan, inputs, config)
            outputs = next(observed)
            pairs = zip(exact, outputs, softmax, strict=True)
            found[ref.name] = sum(_error(*pair) for pair in pairs)
            layer.set_weights(weights)
    return found


def _quantize_in_float(
    ref: KernelRef, layer: keras.layers.Layer, plan: LayerPlan, calls: Calls, config: Config
) -> None:
    """Give a float `layer` the dequantized weights of the kernel of `ref`."""
    kernel, bias = ref.weights()
    weights = call_weights(calls)
    if config.rounding == "error_compensated" and not ref.part:
        inputs = weighted(calls, weights)
        effective = compensated_kernel(ref, kernel, plan, inputs).effective_kernel()
    else:
        effective = plan.quantize(kernel).effective_kernel()
    if ref.part:
        part = composites.parts(layer)[ref.part]
        part.adapter.write(part.holder, part.adapter.to_keras(effective, part.holder))
        return
    changed = [ref.adapter.to_keras(effective, layer)]
    if bias is not None:
        if config.bias_correction:
            exact, rounded = (mean_outputs(ref, calls, k, weights) for k in (kernel, effective))
            bias = (bias + (exact - rounded)).astype(np.float32)
        changed.append(ref.adapter.bias_to_keras(bias, layer))
    layer.set_weights(changed)


def _error(exact: NDArray[Any], output: NDArray[Any], softmax: bool) -> float:
    """Kullback-Leibler divergence of probabilities, or relative squared error of other outputs."""
    exact, output = exact.astype(np.float64), output.astype(np.float64)
    if softmax:
        p, q = np.maximum(exact, 1e-9), np.maximum(output, 1e-9)
        # With q - p, whose sum is rounding, and can be more than a small divergence.
        return float((p * np.log(p / q) + q - p).sum() / len(p))
    spread = np.square(exact - exact.mean(0)).sum() or 1.0
    return float(np.square(exact - output).sum() / spread)
