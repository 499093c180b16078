"""Error-compensated (GPTQ-style) rounding and bias correction of a model, on calibration data.

1. The quantized and the float model are run over the data side by side, one layer at a time.
2. At a layer with a kernel, the inputs of the quantized model come from layers that are already
   quantized.
3. The codes are chosen for these inputs, so that the outputs approximate those of the float model
   (`numerics.gptq`). Each layer compensates its own rounding error and the accumulated error of
   the layers before it.
4. The bias compensates the mean error that is left (Nagel et al., "Data-Free Quantization Through
   Weight Equalization and Bias Correction", ICCV 2019, section 4.2; here the means are measured).

A shared layer is measured on all its calls. Each counts by its errors relative to its inputs. What
the second and later calls read is taken from the float model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ocs_tf._plan import LayerPlan
from ocs_tf.compensation.statistics import call_weights, mean_outputs, weighted
from ocs_tf.compensation.weights import compensated_kernel
from ocs_tf.graph import composites
from ocs_tf.graph.execution import Batches, calls_by_layer, calls_by_name, run_by_layer
from ocs_tf.graph.reader import Graph, KernelRef, Node
from ocs_tf.graph.rewrite import Rewritten
from ocs_tf.layers import unwrapped


def compensate(
    graph: Graph,
    quantized: Rewritten,
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
        quantized: the quantized model made of it, whose layers are changed.
        plans: of each layer with a quantized kernel, by name; quantization-aware ones.
        batches: calibration data: of each batch one array per input of the model.
        rounding: choose codes by error compensation; else they stay as they are.
        bias_correction: correct biases; layers without one stay without, and those inside of
            composites stay as they are.
        progress: wraps the calls that are gone through.
    """
    owners = {graph.kernels[name].owner.name for name in plans}
    shared = {name for name in owners if len(graph.calls_of(name)) > 1}
    measured = (owners & set(plans)) | (shared if rounding else set())
    of_float = calls_by_name(calls_by_layer(graph, measured, batches))
    for layer, call in run_by_layer(graph, owners, batches, progress, quantized):
        # What later calls read is still to be computed.
        float_calls = of_float(layer.name) if layer.name in measured else []
        calls = [call, *float_calls[1:]]
        if layer.name not in plans:
            if rounding:
                runs = [functools.partial(each.run, quantized) for each in calls]
                _compensate_parts(graph.kernels_of[layer.name], unwrapped(layer), plans, runs)
            continue
        reads, exact = ([each.inputs for each in made] for made in (calls, float_calls))
        weights = call_weights(exact)
        ref = graph.kernels[layer.name]
        kernel, bias = ref.weights()
        plan = plans[layer.name]
        if rounding:
            of_calls = weighted(reads, weights), weighted(exact, weights)
            chosen = compensated_kernel(ref, kernel, plan, *of_calls)
        else:
            chosen = plan.quantize(kernel)
        if bias_correction and bias is not None:
            before = mean_outputs(ref, exact, kernel, weights)
            after = mean_outputs(ref, reads, chosen.effective_kernel(), weights)
            bias = bias + before - after
        ref.adapter.store(layer, chosen, bias)
        layer.kernel_sqnr_db = chosen.sqnr_db(kernel)


def _compensate_parts(
    refs: Iterable[KernelRef],
    layer: Any,
    plans: Mapping[str, LayerPlan],
    runs: Sequence[Callable[[], object]],
) -> None:
    """Choose the codes of the kernels inside of a composite, one after the other.

    What a later one reads depends on the codes of those before it: a recurrent kernel reads the
    states that both kernels of the cell lead to.

    Arguments:
        layer: the quantized composite.
        runs: each makes one of its calls, on all data.
    """
    for ref in refs:
        if ref.name not in plans or ref.adapter.is_lookup:
            continue
        reads = []
        for run in runs:
            with composites.recorded(layer, ref.part) as inputs:
                run()
            if inputs:
                reads.append(inputs)
        if not reads:
            continue  # no call of the layer reads it
        kernel, bias = ref.weights()
        inputs = weighted(reads, call_weights(reads))
        quantized = compensated_kernel(ref, kernel, plans[ref.name], inputs)
        composites.assign(layer, {ref.part: (quantized, bias)})
        composites.stored_parts(layer)[ref.part].kernel_sqnr_db = quantized.sqnr_db(kernel)
