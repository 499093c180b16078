"""Building the quantized model: the same graph with quantized layers in place of float ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.graph import composites
from ocs_tf.graph.affine import affine
from ocs_tf.graph.analysis.activation_sites import kernel_output_grid, mixes_values, tensor_grids
from ocs_tf.graph.cloning import check_copied, clone_layer
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.rebuild import identity, rebuild, used
from ocs_tf.graph.substitutions import resizing
from ocs_tf.keras_types import Tensor
from ocs_tf.numerics import ActivationGrid, OracleGrid, QuantizedKernel, code_limit


@dataclasses.dataclass(frozen=True)
class Replacement:
    """Replacement of a layer with a kernel.

    Attributes:
        kernel: canonical quantized kernel.
        bias: float32 `[F]` or `None`.
        sqnr_db: of the effective kernel against the float one.
        equalized: whether its input channels were scaled before.
    """

    kernel: QuantizedKernel
    bias: np.ndarray | None
    sqnr_db: float
    equalized: bool = False


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """The quantized model, and how to run it call by call of the float one.

    Attributes:
        model: the new model.
        layers: its layers by the names of those they replace.
        call: `call(layer, *args, **kwargs)`: what the new model has in place of that call of the
            float `layer`, on symbolic tensors or arrays.
        read: `read(layer, x)`: `x` as the replacement of `layer` reads it.
    """

    model: keras.Model
    layers: dict[str, keras.layers.Layer]
    call: Callable[..., Any]
    read: Callable[[keras.layers.Layer, Tensor], Tensor]


def rewrite(
    graph: Graph,
    kernels: Mapping[str, Replacement],
    grids: Mapping[str, ActivationGrid | OracleGrid],
    coarse_parts: Mapping[str, dict[str, float]] | None = None,
) -> Rewritten:
    """A new model with quantized kernels and rounded activations; `graph.model` stays as it is.

    Arguments:
        kernels: by layer name.
        grids: by site; see `graph.analysis.activation_sites`. Oracles are for what single layers
            read.
        coarse_parts: as a `Plan` has them, for reports.
    """
    rewriting = _Rewriting(graph, kernels, grids, coarse_parts or {})
    model, twins = rebuild(graph, rewriting.replace, rewriting.call)
    for name, twin in twins.items():
        rewriting.fill(name, twin)

    def call_again(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return rewriting.call(layer, twins.get(layer.name, identity), *args, **used(kwargs))

    return Rewritten(model, twins, call_again, rewriting.read)


class _Rewriting:
    """What comes in the place of layers and their calls; arguments as of `rewrite`."""

    def __init__(
        self,
        graph: Graph,
        kernels: Mapping[str, Replacement],
        grids: Mapping[str, ActivationGrid | OracleGrid],
        coarse_parts: Mapping[str, dict[str, float]],
    ) -> None:
        self.graph, self.kernels, self.grids, self.coarse_parts = (
            graph,
            kernels,
            grids,
            coarse_parts,
        )
        self.fixed = {s: grid for s, grid in grids.items() if isinstance(grid, ActivationGrid)}
        self.known = tensor_grids(graph, self.fixed)
        self.taken = {node.layer.name for node in graph.nodes}
        # By site, one for all calls of a shared layer.
        self.quantizers: dict[str, keras.layers.Layer] = {}

    def replace(self, layer: keras.layers.Layer) -> keras.Operation:
        """The layer in the place of `layer`, without its weights."""
        name = layer.name
        if name in self.kernels and not self._parts(name):
            return self._kernel_layer(layer)
        twin = self._float_layer(layer)
        if name in self.fixed and _wrappable(self.graph, layer, twin):
            mixes = mixes_values(layer)
            wrapper = layers.QuantizedAveragePooling if mixes else layers.QuantizedOutput
            return wrapper(twin, self.fixed[name], self.coarse_parts.get(name), name=name)
        return twin

    def _float_layer(self, layer: keras.layers.Layer) -> Any:
        """In the place of a layer without a quantized kernel of its own."""
        inside, ref = self._parts(layer.name), self.graph.kernels.get(layer.name)
        if inside:
            return composites.quantized(layer, {p: _options(r) for p, r in inside.items()})
        if ref is not None and ref.batch_norm is not None:
            return type(layer).from_config(ref.adapter.quantized_config(layer, use_bias=True))
        return resizing.as_layer(layer) if resizing.is_bare(layer) else clone_layer(layer)

    def _kernel_layer(self, layer: keras.layers.Layer) -> layers.KernelLayer:
        name, replacement = layer.name, self.kernels[layer.name]
        read = {self.known.get(id(call.inputs[0])) for call in self.graph.calls(layer)}
        preactivation = f"{name}:preactivation"
        adapter = self.graph.kernels[name].adapter
        return adapter.quantized_class.from_config(
            {
                **adapter.quantized_config(layer, replacement.bias is not None),
                **_options(replacement),
                "input_grid": self.fixed.get(f"{name}:input")
                or (read.pop() if len(read) == 1 else None),
                "output_grid": kernel_output_grid(self.graph, layer, self.fixed),
                "preactivation_grid": self.fixed.get(preactivation),
                "equalized": replacement.equalized,
                "coarse_parts": self.coarse_parts.get(preactivation, {})
                | self.coarse_parts.get(name, {}),
            }
        )

    def read(self, layer: keras.layers.Layer, x: Tensor) -> Tensor:
        """`x` as the replacement of `layer` reads it."""
        site = f"{layer.name}:input"
        return self._rounded(site, f"{layer.name}_input_quantizer", x) if site in self.grids else x

    def call(
        self, layer: keras.layers.Layer, twin: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """What is in the place of a call of `layer`; `twin` is in its own."""
        name = layer.name
        if name in self.graph.folded:
            return args[0]
        args = (self.read(layer, args[0]), *args[1:]) if args else args
        outputs = twin(*args, **kwargs)
        if name in self.fixed and not isinstance(
            twin, (layers.KernelLayer, layers.QuantizedOutput)
        ):
            outputs = self._rounded(name, f"{name}_quantizer", outputs)
        return outputs

    def fill(self, name: str, twin: keras.layers.Layer) -> None:
        """Give the built `twin` of the layer `name` what `rebuild` does not: quantized weights."""
        graph, ref, inner = self.graph, self.graph.kernels.get(name), layers.unwrapped(twin)
        inside = self._parts(name)
        if inside:
            composites.copy_floats(graph.calls_of(name)[0].layer, inner)
            composites.assign(inner, {path: (r.kernel, r.bias) for path, r in inside.items()})
        elif ref is not None and name in self.kernels:
            ref.adapter.store(inner, self.kernels[name].kernel, self.kernels[name].bias)
        elif ref is not None and ref.batch_norm is not None:
            kernel, bias = ref.weights()
            assert bias is not None  # the norm's shift
            folded = [ref.adapter.to_keras(kernel, inner), ref.adapter.bias_to_keras(bias, inner)]
            inner.set_weights(folded)
        elif name not in graph.folded:
            original = graph.calls_of(name)[0]
            check_copied(original.layer, inner)
            if isinstance(inner, keras.layers.BatchNormalization):
                _round_shift(inner, self.known.get(id(original.inputs[0])))

    def _parts(self, name: str) -> dict[str, Replacement]:
        """Replacements of the kernels inside a composite, by path."""
        refs = self.graph.kernels_of.get(name, [])
        kernels = self.kernels
        return {ref.part: kernels[ref.name] for ref in refs if ref.part and ref.name in kernels}

    def _rounded(self, site: str, name: str, tensor: Tensor) -> Tensor:
        """`tensor`, rounded at a site by a layer of about this name."""
        if site not in self.quantizers:
            while name in self.taken:
                name += "_"
            self.taken.add(name)
            grid = self.grids[site]
            self.quantizers[site] = (
                layers.OracleQuantize(grid, name=name)
                if isinstance(grid, OracleGrid)
                else layers.FakeQuantize(grid, self.coarse_parts.get(site), name=name)
            )
        return self.quantizers[site](tensor)


def _wrappable(graph: Graph, layer: keras.layers.Layer, twin: keras.layers.Layer) -> bool:
    """Whether a `QuantizedOutput` can call `twin` as the model does `layer`: with one input."""
    whole = (keras.layers.InputLayer, keras.Model)  # models would be closed to all later steps
    if not isinstance(twin, keras.layers.Layer) or isinstance(twin, whole):
        return False
    return all(call.only_reads for call in graph.calls(layer))


def _round_shift(norm: keras.layers.Layer, grid: ActivationGrid | None) -> None:
    """Round the shift of a batch norm to the step of the integer sums it is added to.

    An integer runtime computes a batch norm that stands alone as a depthwise convolution with
    8-bit factors `gain / 127` and an int32 bias.
    """
    if grid is None or not norm.center:
        return
    gain, shift = affine(norm, norm.moving_mean.shape[0])
    step = np.abs(gain) / code_limit(8) * grid.scale
    rounded = np.rint(shift / np.where(step == 0, 1, step)) * step
    norm.beta.assign(np.asarray(norm.beta) + np.where(step == 0, 0, rounded - shift))


def _options(replacement: Replacement) -> dict[str, Any]:
    """The options of a layer that stores a kernel, alone or among others."""
    kernel = replacement.kernel
    return {
        "weight_bits": kernel.bits,
        "granularity": kernel.granularity,
        "copies": kernel.splits,
        "kernel_sqnr_db": replacement.sqnr_db,
    }
