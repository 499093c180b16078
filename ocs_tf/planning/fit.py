"""Whether a plan fits a model."""

from __future__ import annotations

from ocs_tf._plan import LayerPlan, Plan
from ocs_tf.graph.analysis.activation_sites import all_sites, input_sites
from ocs_tf.graph.analysis.splittable_sites import splittable_sites
from ocs_tf.graph.reader import Graph, KernelRef
from ocs_tf.graph.scaling import check_scales
from ocs_tf.numerics import ActivationGrid, OracleGrid


def check_fits(plan: Plan, graph: Graph) -> None:
    """Raise `ValueError` if a plan, made for another model or edited, does not fit this one."""
    for name in plan.layers:
        if name not in graph.kernels:
            raise ValueError(
                f"the plan quantizes layer {name!r}, which `model` {graph.model.name!r} does not"
                f" have; layers with a kernel: {', '.join(graph.kernels)}."
            )
        _check_kernel_fits(plan.layers[name], graph.kernels[name])
    check_scales(graph, plan.equalization)
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


def _check_kernel_fits(plan: LayerPlan, ref: KernelRef) -> None:
    *_, channels, outputs = ref.shape
    if isinstance(plan.threshold, list) and len(plan.threshold) != outputs:
        raise ValueError(
            f"the plan has {len(plan.threshold)} thresholds for {ref.name!r}, which has {outputs}"
            " output channels."
        )
    if not plan.copies:
        return
    if max(plan.copies) >= channels:
        raise ValueError(
            f"the plan splits channel {max(plan.copies)} of {ref.name!r}, whose channels are 0 .."
            f" {channels - 1}."
        )
    reason = ref.adapter.why_not_split(ref.layer)
    if reason is not None:
        raise ValueError(f"the plan splits channels of {ref.name!r}, but {reason}.")


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
        if isinstance(grid, OracleGrid) and reason is None and grid.count > channels:
            reason = f"it has {channels} channels, which is less than {grid.count} copies"
        if isinstance(grid, ActivationGrid) and reason is None and max(grid.copies) >= channels:
            reason = f"it has {channels} channels, so not all of the copies {list(grid.copies)}"
        if reason is not None:
            raise ValueError(
                f"the plan splits activations at {key!r}, which cannot be split: {reason}."
            )


def _whole(grid: ActivationGrid | OracleGrid) -> bool:
    return isinstance(grid, ActivationGrid) and not grid.copies
