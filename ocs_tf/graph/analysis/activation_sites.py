"""Where a quantized model rounds its activations: as an integer TFLite runtime does.

Every activation tensor that such a runtime holds gets a grid; a tensor that exists only inside a
fused kernel (a convolution before its ReLU) gets none. Tensors that an operation only moves around
share one grid: pooling, resizing, padding and reshaping keep their input's, and all that is
concatenated agrees on one, so that nothing is rounded twice. The outputs of softmax, sigmoid and
tanh have the grids that the TFLite quantization specification fixes for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras

from ocs_tf.graph import adapters
from ocs_tf.graph.affine import affine_axis
from ocs_tf.graph.analysis.indices import index_tensors
from ocs_tf.graph.analysis.masks import (
    given_masks,
    limited_mask,
    mask_ranges,
    masked_maxima,
    masked_scores,
    only_unmasked,
    scores_with_given_masks,
    without_given_masks,
    without_masked,
)
from ocs_tf.graph.layer_traits import holds, keras_class
from ocs_tf.graph.reader import Graph, Node
from ocs_tf.keras_types import LayerT
from ocs_tf.layers import unwrapped
from ocs_tf.numerics import ActivationGrid

_LAYERS = keras.layers
_INPUT, _PREACTIVATION = ":input", ":preactivation"


@dataclasses.dataclass(frozen=True)
class Site:
    """A place where activations are rounded.

    Attributes:
        key: the name of the layer whose output is rounded; `NAME:input` for what layer NAME reads,
            `NAME:preactivation` for what goes into NAME's own activation function.
        tensors: the symbolic tensors (several calls of a shared layer).
        through: what to put their values through first (a layer, for example), or `None`.
        group: sites of one group share a grid.
        fixed: the function whose output grid is prescribed, `"lookup"` where it is that of a
            table, or `None`.
        span: what the grid must hold, whatever the data; or `None`.
    """

    key: str
    tensors: tuple[keras.KerasTensor, ...]
    group: str
    fixed: str | None = None
    through: Any = None
    span: tuple[float, float] | None = None

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return self.key.removesuffix(_INPUT).removesuffix(_PREACTIVATION)

    @property
    def is_preactivation(self) -> bool:
        """Whether it rounds what goes into the layer's own activation function."""
        return self.key.endswith(_PREACTIVATION)

    @property
    def is_output(self) -> bool:
        """Whether the layer makes `tensors`; else it reads them."""
        return not self.key.endswith((_INPUT, _PREACTIVATION))


def fixed_grid(function: str, bits: int) -> ActivationGrid:
    """The grid that TFLite prescribes for the output of softmax, sigmoid or tanh."""
    symmetric = bits == 16
    if symmetric:
        return ActivationGrid(bits, 2.0**-15, 0, symmetric=True)
    if function == "tanh":
        return ActivationGrid(bits, 2.0 ** (1 - bits), 0)
    return ActivationGrid(bits, 2.0**-bits, -(2 ** (bits - 1)))


def input_sites(graph: Graph, quantized: set[str]) -> list[Site]:
    """One site for the input of each layer named in `quantized`: the paper's activations."""
    sites = []
    for name, ref in graph.kernels.items():
        if name not in quantized or ref.part:
            continue  # what is inside of a composite stays in float
        tensors = tuple(call.inputs[0] for call in graph.calls(ref.layer))
        if "float" in str(tensors[0].dtype) and not ref.adapter.is_lookup:
            sites.append(Site(f"{name}{_INPUT}", tensors, f"{name}{_INPUT}"))
    return sites


def all_sites(
    graph: Graph,
    quantized: set[str] | None = None,
    tables: Collection[str] = (),
    exact: Collection[str] = (),
) -> list[Site]:
    """The sites of every activation tensor that an integer runtime holds.

    `quantized` names the layers whose kernels are quantized, all by default. The others run as one
    float step, whose inside is not rounded. `tables` names lookups whose outputs are on the grid of
    their table. `exact` names concatenations that are not rounded: their parts keep grids of their
    own.
    """
    chosen = set(graph.kernels) if quantized is None else quantized
    return _SiteFinder(graph, chosen, tables, exact).find()


class _SiteFinder:
    def __init__(
        self,
        graph: Graph,
        quantized: set[str],
        tables: Collection[str],
        exact: Collection[str],
    ) -> None:
        self.graph = graph
        self.tables = tables
        self.exact = exact
        self.quantized = quantized
        self.sites: dict[str, Site] = {}
        self.group_of: dict[int, str] = {}  # tensor -> group
        self.alias: dict[str, str] = {}  # group -> group it was united with
        measures: dict[Callable[[Any], Any], set[int]] = {
            without_masked: masked_scores(graph),
            without_given_masks: scores_with_given_masks(graph),
            limited_mask: given_masks(graph),
            only_unmasked: masked_maxima(graph),
        }
        # What is measured of a tensor in its place, by its id; the first one counts.
        self.through = {i: f for f, ids in reversed(measures.items()) for i in ids}
        self.mask_ranges = mask_ranges(graph)
        self.indices = index_tensors(graph)

    def find(self) -> list[Site]:
        for node in self.graph.nodes:
            if len(node.outputs) != 1 or id(node.outputs[0]) in self.indices:
                continue
            if "float" in str(node.outputs[0].dtype):
                self._visit(node, node.outputs[0])
        return [self._finished(site) for site in self.sites.values()]

    def _finished(self, site: Site) -> Site:
        """The site in its final group, with what masks ask of it."""
        tensor = site.tensors[0]
        through = self.through.get(id(tensor)) if site.through is None else site.through
        group, span = self._root(site.group), self.mask_ranges.get(id(tensor))
        return dataclasses.replace(site, group=group, through=through, span=span)

    def _visit(self, node: Node, output: keras.KerasTensor) -> None:
        layer, name = node.layer, node.layer.name
        if name in self.exact or self._behind_exact(node):
            return
        if name in self.graph.folded:
            return  # observed as the output of the layer that takes it up
        if name in self.graph.kernels:
            self._visit_kernel(node, output)
        elif mixes_values(layer) or moves_values(layer):
            self.group_of[id(output)] = self._group(node.inputs[0])
            if mixes_values(layer) and not self._fused_into_relu(output, layer):
                if name in self.sites:  # shared: all inputs are on the grid that it has
                    self._unite(self.sites[name].group, self._group(node.inputs[0]))
                self._add(name, output, self._group(node.inputs[0]))
        elif holds(layer, "one_grid"):
            for tensor in node.inputs:
                self._unite(name, self._group(tensor))
            self._add(name, output, name)
        elif is_relu(layer) and (_feeds_pool(self.graph, node) or self._behind_shared(node)):
            self._add(name, output, self._group(node.inputs[0]))
        elif _fixed_function(layer) is not None:
            self._add(name, output, name, _fixed_function(layer))
        elif not self._fused_into_relu(output, layer):
            self._add(name, output, name)

    def _behind_exact(self, node: Node) -> bool:
        """Whether `node` only moves what an exact concatenation makes."""
        if not (node.inputs and moves_values(node.layer)):
            return False
        before = self.graph.producer[id(node.inputs[0])]
        return before.layer.name in self.exact or self._behind_exact(before)

    def _behind_shared(self, node: Node) -> bool:
        """Whether the ReLU `node` is computed by a layer that has a grid for its other calls."""
        before = self.graph.producer[id(node.inputs[0])].layer.name
        return fuses_into_producer(self.graph, node) and before in self.sites

    def _visit_kernel(self, node: Node, output: keras.KerasTensor) -> None:
        layer, name = node.layer, node.layer.name
        norm = self.graph.kernels[name].batch_norm
        if norm is not None:
            output = self.graph.calls(norm)[0].outputs[0]
        function = "lookup" if name in self.tables else _fixed_function(layer)
        key = f"{name}{_PREACTIVATION}"
        if separable_activation(layer) is not None and name in self.quantized:
            linear = without_activation(layer, node.inputs[0].shape)
            self._add(key, node.inputs[0], key, through=linear)
        if not self._fused_into_relu(output, layer) and not self._is_shifted(output, layer):
            self._add(name, output, name, function)

    def _add(
        self,
        key: str,
        tensor: keras.KerasTensor,
        group: str,
        fixed: str | None = None,
        through: Any = None,
    ) -> None:
        before = self.sites.get(key)
        group = before.group if before else group
        if through is None:
            self.group_of[id(tensor)] = group
        tensors = (*(before.tensors if before else ()), tensor)
        self.sites[key] = Site(key, tensors, group, fixed, through)

    def _group(self, tensor: keras.KerasTensor) -> str:
        return self.group_of.get(id(tensor), f"tensor {id(tensor)}")

    def _root(self, group: str) -> str:
        while group in self.alias:
            group = self.alias[group]
        return group

    def _unite(self, group: str, other: str) -> None:
        site = self.sites.get(other)
        group, other = self._root(group), self._root(other)
        if group != other and not (site is not None and site.fixed):
            self.alias[other] = group

    def _fused_into_relu(
        self, tensor: keras.KerasTensor, layer: keras.layers.Layer | None = None
    ) -> bool:
        """Whether `tensor` vanishes in a kernel that applies the ReLU behind it."""
        if layer is not None and not _fuses_relu(layer):
            return False
        return self._all_read_by(tensor, lambda reader: is_relu(reader.layer))

    def _is_shifted(self, tensor: keras.KerasTensor, layer: keras.layers.Layer) -> bool:
        """Whether `tensor` vanishes in a kernel that takes up the constant added behind it."""
        return _fuses_relu(layer) and self._all_read_by(tensor, _adds_constant)

    def _all_read_by(self, tensor: keras.KerasTensor, fits: Callable[[Node], bool]) -> bool:
        """Whether one call that `fits` reads `tensor`, and so for all calls of a shared layer."""
        calls = self.graph.calls(self.graph.producer[id(tensor)].layer)
        readers = [self.graph.only_consumer(call.outputs[0]) for call in calls]
        return all(reader is not None and fits(reader) for reader in readers)


def kernel_output_grid(
    graph: Graph, layer: keras.layers.Layer, grids: Mapping[str, ActivationGrid]
) -> ActivationGrid | None:
    """The grid on which a kernel layer's sums arrive: its own, or that of the ReLU behind it.

    Rounding before the ReLU comes to the same numbers as rounding behind it, and it is how a
    runtime computes the two together.
    """
    if layer.name in grids:
        return grids[layer.name]
    norm = graph.kernels[layer.name].batch_norm
    calls = graph.calls(layer if norm is None else norm)
    reader = graph.only_consumer(calls[0].outputs[0]) if len(calls) == 1 else None
    if reader is None or not is_relu(reader.layer) or len(graph.calls(reader.layer)) > 1:
        return None
    return grids.get(reader.layer.name)


def tensor_grids(graph: Graph, grids: Mapping[str, ActivationGrid]) -> dict[int, ActivationGrid]:
    """The grid that each symbolic tensor is on, by its id, given the grids of sites by key."""
    found: dict[int, ActivationGrid] = {}
    for node in graph.nodes:
        name = node.layer.name
        grid = grids.get(name)
        if name in graph.folded or (grid is None and moves_values(node.layer)):
            grid = found.get(id(node.inputs[0]))
        if grid is not None:
            found.update((id(tensor), grid) for tensor in node.outputs)
    return found


def moves_values(layer: keras.layers.Layer) -> bool:
    """Whether the output of `layer` holds only numbers of its input, on the grid of the input."""
    return holds(layer, "moves") and holds(layer, "keeps_grid")


def mixes_values(layer: keras.layers.Layer) -> bool:
    """Whether the output of `layer` holds new numbers, but stays on the grid of its input."""
    return holds(layer, "keeps_grid") and not holds(layer, "moves")


def fuses_into_producer(graph: Graph, node: Node) -> bool:
    """Whether a runtime computes the ReLU `node` together with the layer in front of it."""
    before = unwrapped(graph.producer[id(node.inputs[0])].layer)
    return _fuses_relu(before) and graph.only_consumer(node.inputs[0]) is node


def _fuses_relu(layer: keras.layers.Layer) -> bool:
    fuses = holds(layer, "fuses_relu") or affine_axis(layer) is not None
    return fuses and activation_function(layer) is None


def _adds_constant(node: Node) -> bool:
    """Whether `node` is `x + c` or `x - c`, for a number `c`."""
    if not is_operation(node.layer, ("Add", "Subtract")) or len(node.inputs) != 1:
        return False
    values = node.arguments.args
    last = values[-1] if node.layer.__class__.__name__ == "Subtract" else None
    return last is not node.inputs[0] and any(isinstance(v, int | float) for v in values)


def separable_activation(layer: keras.layers.Layer) -> Any:
    """The activation function in `layer` that a runtime computes as a step of its own."""
    return None if _relu_limit(layer) is not None else activation_function(layer)


def is_relu6(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is nothing but a ReLU that ends at 6."""
    return is_relu(layer) and _relu_limit(layer) == 6


def is_relu(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is nothing but a ReLU, unbounded or up to 6."""
    alone = keras_class(layer) in (_LAYERS.ReLU, _LAYERS.Activation)
    return alone and _relu_limit(layer) is not None


def without_activation(layer: LayerT, input_shape: Any) -> LayerT:
    """A copy of `layer` that leaves out its activation function."""
    config = {
        **adapters.config_of(layer),
        "activation": None,
        "name": f"{layer.name}_preactivation",
    }
    linear = type(layer).from_config(config)
    linear.build(input_shape)
    linear.set_weights(layer.get_weights())
    return linear


def activation_function(layer: keras.layers.Layer) -> Any:
    """The activation function that `layer` applies to its output, or `None`."""
    if keras_class(layer) is _LAYERS.Softmax:
        return keras.activations.softmax
    function = getattr(layer, "activation", None)
    return None if adapters.is_linear(function) else function


def _relu_limit(layer: keras.layers.Layer) -> float | None:
    """Upper bound of a plain ReLU (infinite, 6), or `None` if `layer` does not end in one."""
    if isinstance(layer, _LAYERS.ReLU):
        plain = not layer.negative_slope and not layer.threshold
        limit = float("inf") if layer.max_value is None else float(layer.max_value)
        return limit if plain and limit in (6.0, float("inf")) else None
    function = activation_function(layer)
    if function is keras.activations.relu6:
        return 6.0
    return float("inf") if function is keras.activations.relu else None


def _fixed_function(layer: keras.layers.Layer) -> str | None:
    if is_operation(layer, ("Softmax", "Sigmoid", "Tanh")):
        return type(layer).__name__.lower()
    names = {
        keras.activations.softmax: "softmax",
        keras.activations.sigmoid: "sigmoid",
        keras.activations.tanh: "tanh",
    }
    # What a user's own layer computes of its `activation` is not known.
    own = isinstance(layer, _LAYERS.Layer) and not _is_ours(type(layer).call)
    return None if own else names.get(activation_function(layer))


def _is_ours(function: Any) -> bool:
    """Whether a function is one of Keras or of this package."""
    return function.__module__.split(".")[0] in ("keras", "ocs_tf")


def _feeds_pool(graph: Graph, node: Node) -> bool:
    """Whether the ReLU `node` is computed by the pooling in front of it."""
    before = graph.producer[id(node.inputs[0])].layer
    pools = holds(before, "keeps_grid") and holds(before, "fuses_relu")
    return pools and graph.only_consumer(node.inputs[0]) is node


def concatenates(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is a concatenation: a layer, or a bare `keras.ops.concatenate`."""
    return keras_class(layer) is _LAYERS.Concatenate or is_operation(layer, ("Concatenate",))


def is_operation(operation: keras.Operation, names: tuple[str, ...]) -> bool:
    """Whether `operation` is a bare Keras operation (not a layer) of one of these class names."""
    return not isinstance(operation, _LAYERS.Layer) and type(operation).__name__ in names
