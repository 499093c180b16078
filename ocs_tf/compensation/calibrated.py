"""Error-compensated (GPTQ-style) rounding and bias correction of a model, on calibration data.

1. The quantized and the float model are run over the data side by side, one layer at a time.
2. At a layer with a kernel, the inputs of the quantized model come from layers that are already
   quantized.
3. The codes are chosen for these inputs, so that the outputs approximate those of the float model
   (`numerics.gptq`). Each layer compensates its own rounding error and the accumulated error of
   the layers before it.
4. The bias compensates the mean error that is left (Nagel et al., "Data-Free Quantization Through
   Weight Equalization and Bias Correction", ICCV 2019, section 4.2; here the means are measured).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ocs_tf._plan import LayerPlan
from ocs_tf.compensation.statistics import mean_input, mean_outputs
from ocs_tf.compensation.weights import compensated_kernel
from ocs_tf.graph import composites
from ocs_tf.graph.execution import Batches, inputs_by_name, run_by_layer
from ocs_tf.graph.reader import Graph, KernelSite, Node
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
    of_float = inputs_by_name(run_by_layer(graph, owners & set(plans), batches))
    for layer, inputs, run in run_by_layer(graph, owners, batches, progress, quantized):
        if layer.name not in plans:
            if rounding:
                _compensate_parts(graph.sites[layer.name], unwrapped(layer), plans, run)
            continue
        exact = of_float(layer.name)
        site = graph.kernels[layer.name]
        kernel, bias = site.weights()
        plan = plans[layer.name]
        if rounding:
            chosen = compensated_kernel(site, kernel, plan, inputs, exact)
        else:
            chosen = plan.quantize(kernel)
        if bias_correction and bias is not None:
            before = mean_outputs(site, mean_input(exact), kernel)
            after = mean_outputs(site, mean_input(inputs), chosen.effective_kernel())
            bias = bias + before - after
        site.adapter.store(layer, chosen, bias)
        layer.kernel_sqnr_db = chosen.sqnr_db(kernel)


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
        quantized = compensated_kernel(site, kernel, plans[site.name], inputs)
        composites.assign(layer, {site.part: (quantized, bias)})
        composites.stored_parts(layer)[site.part].kernel_sqnr_db = quantized.sqnr_db(kernel)
