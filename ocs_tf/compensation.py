"""Error-compensated (GPTQ-style) rounding and bias correction of a model, on calibration data.

1. The quantized and the float model are run over the data side by side, one layer at a time.
2. At a layer with a kernel, the inputs of the quantized model come from layers that are already
   quantized.
3. The codes are chosen for these inputs, so that the outputs approximate those of the float model
   (`numerics.rounding`). Each layer compensates its own rounding error and the accumulated error of
   the layers before it.
4. The bias compensates the mean error that is left (Nagel et al., "Data-Free Quantization Through
   Weight Equalization and Bias Correction", ICCV 2019, section 4.2; here the means are measured).

`compensate_blind` does the same without data, from batch-norm statistics.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.graph import composites
from ocs_tf.graph.moments import Moments, weighted_sums
from ocs_tf.graph.reader import Graph, KernelSite, Node
from ocs_tf.layers import unwrapped
from ocs_tf.numerics.grid import normalized
from ocs_tf.numerics.kernel import QuantizedKernel, split_codes
from ocs_tf.numerics.rounding import (
    assumed_moments,
    code_ranges,
    compensated_codes,
    shrunk_losses,
    shrunk_moments,
)
from ocs_tf.planning import LayerPlan

Batches = Sequence[Sequence[NDArray[Any]]]

# Output positions that products of inputs are summed over: as many as this, and for each input.
_POSITIONS = 1 << 14
_POSITIONS_PER_INPUT = 4
_SAMPLES = 1024
# Rows of a kernel that compensate each other: time and memory grow with their square.
_ROWS = 4608
_ASSUMED_ROWS = 256
_BYTES = 1 << 31  # of activations of both models


def compensate(
    graph: Graph,
    model: keras.Model,
    plans: Mapping[str, LayerPlan],
    batches: Batches,
    *,
    rounding: bool = True,
    bias_correction: bool = True,
    progress: Callable[[list[Node]], Iterable[Node]] = iter,
) -> None:
    """Choose the codes and biases of a quantized model anew.

    Held in memory are the activations of all `batches`, in both models, that are still to be read.

    Arguments:
        graph: the float model.
        model: the quantized model made of it, whose layers are changed.
        plans: of each layer with a quantized kernel, by name; quantization-aware ones.
        batches: calibration data: of each batch one array per input of the model.
        rounding: choose codes by error compensation; else they stay as they are.
        bias_correction: correct biases; layers without one stay without, and those inside of
            composites stay as they are.
        progress: wraps the calls that are gone through.
    """
    owners = {graph.kernels[name].owner.name for name in plans}
    of_float = _by_name(walk(graph, owners & set(plans), batches))
    for layer, inputs, run in walk(Graph(model, fold_batch_norm=False), owners, batches, progress):
        if layer.name not in plans:
            if rounding:
                _compensate_parts(graph.sites[layer.name], unwrapped(layer), plans, run)
            continue
        exact = of_float(layer.name)
        site = graph.kernels[layer.name]
        kernel, bias = site.weights()
        plan = plans[layer.name]
        if rounding:
            quantized = rounded(site, kernel, plan, inputs, exact)
        else:
            quantized = plan.quantize(kernel)
        if bias_correction and bias is not None:
            before = mean_outputs(site, mean_input(exact), kernel)
            after = mean_outputs(site, mean_input(inputs), quantized.effective_kernel())
            bias = bias + before - after
        site.adapter.store(layer, quantized, bias)
        layer.kernel_sqnr_db = quantized.sqnr_db(kernel)


def _compensate_parts(
    sites: Iterable[KernelSite],
    layer: Any,
    plans: Mapping[str, LayerPlan],
    run: Callable[[], object],
) -> None:
    """Choose the codes of the kernels inside of a composite, one after the other.

    What a later one reads depends on the codes of those before it: a recurrent kernel reads the
    states that both kernels of the cell lead to.

    Arguments:
        layer: the quantized composite.
        run: calls it on all data.
    """
    for site in sites:
        if site.name not in plans or site.adapter.is_lookup:
            continue
        with composites.recorded(layer, site.part) as inputs:
            run()
        kernel, bias = site.weights()
        quantized = rounded(site, kernel, plans[site.name], inputs)
        composites.assign(layer, {site.part: (quantized, bias)})
        composites.stored_parts(layer)[site.part].kernel_sqnr_db = quantized.sqnr_db(kernel)


def compensate_blind(
    site: KernelSite,
    plan: LayerPlan,
    moments: Moments | None,
    *,
    rounding: bool = True,
    bias_correction: bool = True,
) -> tuple[QuantizedKernel, NDArray[np.float32] | None]:
    """Kernel and bias of one layer, chosen without data.

    Arguments:
        moments: mean and variance of each input channel, if they are known. Without them, codes
            are balanced as for inputs of mean 0, and the bias stays as it is.
        rounding: balance errors; else codes are the nearest.
        bias_correction: correct the bias for the mean.
    """
    kernel, bias = site.weights()
    groups = site.adapter.groups(site.layer)
    if not (rounding and plan.quantization_aware) or site.adapter.is_lookup:
        quantized = plan.quantize(kernel, site.name)
    else:
        channels = groups * kernel.shape[-2]
        mean, variance = moments or (np.zeros(channels), np.ones(channels))

        def assumed(block: slice) -> tuple[NDArray[np.float64], None]:
            of_block = [v.reshape(groups, -1)[:, block] for v in (mean, variance)]
            return assumed_moments(kernel.shape[:-2], of_block[0], of_block[1]), None

        quantized = _encoded(site, kernel, plan, assumed, _ASSUMED_ROWS)
    if bias_correction and bias is not None and moments is not None:
        error = kernel - quantized.effective_kernel()
        bias = (bias + weighted_sums(error, moments[0], groups)).astype(np.float32)
    return quantized, bias


def rounded(
    site: KernelSite,
    kernel: NDArray[Any],
    plan: LayerPlan,
    inputs: list[NDArray[Any]],
    exact: list[NDArray[Any]] | None = None,
) -> QuantizedKernel:
    """`kernel`, with codes chosen for `inputs` of the layer; the nearest ones, for a lookup.

    Arguments:
        exact: what the float model has in the place of `inputs`, if that is not the same.
    """
    if site.adapter.is_lookup:
        return plan.quantize(kernel)
    return _encoded(
        site, kernel, plan, lambda block: _moments(site, kernel, inputs, exact, block), _ROWS
    )


def _encoded(
    site: KernelSite,
    kernel: NDArray[Any],
    plan: LayerPlan,
    moments: Callable[[slice], tuple[NDArray[np.float64], NDArray[np.float64] | None]],
    rows: int,
) -> QuantizedKernel:
    """`kernel`, with compensated codes.

    Arguments:
        moments: from a slice of the input channels of each group to the means of products, of
            what they read `[G, K, K]`, and of that with what outputs lose `[G, K, F]`, if anything.
        rows: largest K; channels beyond it are rounded by themselves.
    """
    step, copies = plan.step(), plan.expansion(kernel)
    low, high = code_ranges(copies, plan.bits, plan.full_range)
    *spatial, channels, _ = kernel.shape
    taps = math.prod(spatial)
    groups = site.adapter.groups(site.layer)
    # Codes of many copies may take more than 16 bits.
    wide = max(-int(low.min()), int(high.max())) > np.iinfo(np.int16).max
    effective = np.empty(kernel.shape, np.int32 if wide else np.int16)
    size = max(1, rows // taps)
    for start in range(0, channels, size):
        block = slice(start, start + size)
        part = kernel[..., block, :]
        codes = compensated_codes(
            _grouped(part, groups),
            step.reshape(groups, -1) if step.ndim else step,
            np.tile(low[block], taps),
            np.tile(high[block], taps),
            *moments(block),
        )
        effective[..., block, :] = codes.swapaxes(0, 1).reshape(part.shape)
    return split_codes(effective, plan.bits, step, copies)


def sample_limit(graph: Graph) -> int:
    """How many samples `compensate` should be given, by the memory that it is going to take."""
    last_reads = _last_reads(graph)
    held: dict[int, int] = {}
    most = 1
    for node in graph.nodes:
        for tensor in node.outputs:
            held[id(tensor)] = 2 * 4 * math.prod(size or 1 for size in tensor.shape[1:])
        most = max(most, sum(held.values()))
        for key in last_reads[id(node)]:
            del held[key]
    return max(1, min(_SAMPLES, _BYTES // most))


def _last_reads(graph: Graph) -> dict[int, list[int]]:
    """By the id of each call: the ids of the tensors that no later call reads."""
    last = {id(tensor): id(node) for node in graph.nodes for tensor in node.inputs}
    reads: dict[int, list[int]] = {id(node): [] for node in graph.nodes}
    for tensor, node in last.items():
        reads[node].append(tensor)
    return reads


def walk(
    graph: Graph,
    names: set[str],
    batches: Batches,
    progress: Callable[[list[Node]], Iterable[Node]] = iter,
) -> Iterator[tuple[Any, list[NDArray[Any]], Callable[[], list[list[Any]]]]]:
    """Run a model call by call; yield each layer of `names` before its first call.

    With it come its first inputs, and a function that calls it: of each batch its outputs.
    """
    inputs = {id(tensor): index for index, tensor in enumerate(graph.model.inputs)}
    last_reads = _last_reads(graph)
    values: dict[int, list[Any]] = {}  # by tensor: of each batch
    left = set(names)
    for node in progress(graph.nodes):
        if node.arguments is None:
            (tensor,) = node.outputs
            values[id(tensor)] = [batch[inputs[id(tensor)]] for batch in batches]
            continue
        run = functools.partial(_run, node, values, len(batches))
        if node.layer.name in left:
            left.remove(node.layer.name)
            yield node.layer, [np.asarray(v) for v in values[id(node.inputs[0])]], run
        if not left:
            return
        for tensor, made in zip(node.outputs, zip(*run(), strict=True), strict=True):
            values[id(tensor)] = list(made)
        for key in last_reads[id(node)]:
            del values[key]


def _run(node: Node, values: Mapping[int, Sequence[Any]], batches: int) -> list[list[Any]]:
    """The outputs of a call for each batch, given the values of all tensors."""
    outputs = []
    for index in range(batches):
        args, kwargs = node.arguments.fill_in({id(t): values[id(t)][index] for t in node.inputs})
        if "training" in getattr(node.layer, "_call_context_args", ()):
            kwargs["training"] = False  # as where the whole model is called so
        results = keras.tree.flatten(node.layer(*args, **kwargs))
        outputs.append([keras.ops.convert_to_numpy(result) for result in results])
    return outputs


def _by_name(
    walked: Iterator[tuple[Any, list[NDArray[Any]], Any]],
) -> Callable[[str], list[NDArray[Any]]]:
    """The inputs of a layer that is walked through, asked for by name, in about the same order."""
    passed: dict[str, list[NDArray[Any]]] = {}

    def inputs_of(name: str) -> list[NDArray[Any]]:
        while name not in passed:
            layer, inputs, _ = next(walked)
            passed[layer.name] = inputs
        return passed.pop(name)

    return inputs_of


def mean_input(inputs: list[NDArray[Any]]) -> NDArray[np.float64]:
    """The mean over all samples of all batches."""
    total = np.sum([batch.sum(0, dtype=np.float64) for batch in inputs], axis=0)
    return np.asarray(total / sum(map(len, inputs)))


def mean_outputs(
    site: KernelSite, mean: NDArray[np.float64], kernel: NDArray[Any]
) -> NDArray[np.float64]:
    """Mean of each output channel, without bias, for inputs of this mean."""
    patches = site.adapter.patches(site.layer, mean[None]).mean(0)
    weights = _grouped(kernel, len(patches))
    return np.matmul(patches[:, None], weights).reshape(-1)


def _moments(
    site: KernelSite,
    kernel: NDArray[Any],
    inputs: list[NDArray[Any]],
    exact: list[NDArray[Any]] | None = None,
    block: slice = slice(None),
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Means of products over output positions of all samples.

    Inputs are taken times a power of two that brings the largest near 1, so that no product of
    float32 numbers overflows or vanishes. It changes no code.

    Arguments:
        exact: what `inputs` should be.
        block: the input channels of each group to look at.

    Returns:
        `[G, K, K]`, of inputs with each other; `[G, K, F]`, of inputs with what outputs lose by
        what the inputs lack, if `exact` is given.
    """
    samples = sum(map(len, inputs))
    positions = site.adapter.positions(site.layer, inputs[0].shape)
    *taps, channels, _ = site.shape
    wanted = max(_POSITIONS, _POSITIONS_PER_INPUT * math.prod(taps) * channels)
    every = 1
    if positions:
        share = samples * math.prod(positions) / wanted
        every = max(1, math.ceil(share ** (1 / len(positions))))
    rng = np.random.default_rng(0)
    largest = max(float(np.abs(batch).max(initial=0)) for batch in (*inputs, *(exact or ())))
    exponent = -math.frexp(largest)[1]

    def read(batch: NDArray[Any], start: list[int]) -> NDArray[np.float32]:
        patches = site.adapter.patches(site.layer, batch, every, start)
        by_channel = patches.reshape(*patches.shape[:2], -1, channels)[..., block]
        patches = by_channel.reshape(*patches.shape[:2], -1).astype(np.float32)
        return np.ascontiguousarray(np.ldexp(patches, exponent).swapaxes(0, 1))

    weights = _grouped(kernel[..., block, :], site.adapter.groups(site.layer))
    weights, of_kernel = normalized(weights)
    groups, rows, _ = weights.shape
    products, lost = np.zeros((groups, rows, rows)), np.zeros(weights.shape)
    of_batch = np.empty(products.shape, np.float32)
    sums, lacking, own = np.zeros((3, groups, rows))
    count = 0
    for index, batch in enumerate(inputs):
        start = [int(rng.integers(min(every, size))) for size in positions]
        seen = read(batch, start)
        products += np.matmul(seen.swapaxes(1, 2), seen, out=of_batch)
        sums += seen.sum(1, dtype=np.float64)
        count += seen.shape[1]
        if exact is not None:
            missing = read(exact[index], start) - seen
            lost += np.matmul(seen.swapaxes(1, 2), np.matmul(missing, weights))
            lacking += missing.sum(1, dtype=np.float64)
            own += (seen * missing).sum(1, dtype=np.float64)
    mean = sums / count
    moments = shrunk_moments(products / count, mean, count)
    if exact is None:
        return moments, None
    losses = shrunk_losses(lost / count, weights, mean, lacking / count, own / count, count)
    return moments, np.ldexp(losses, of_kernel)


def _grouped(kernel: NDArray[Any], groups: int) -> NDArray[Any]:
    """Canonical kernel `[..., C, F]` as `[G, K, F / G]`."""
    rows = math.prod(kernel.shape[:-1])
    return kernel.reshape(rows, groups, -1).swapaxes(0, 1)
