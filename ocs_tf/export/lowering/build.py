"""The float graph of a quantized model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.data import fixed_batch_size
from ocs_tf.export.barrier import Barrier, barrier_function
from ocs_tf.export.fake_quantize_operator import RoundingOperator
from ocs_tf.export.folding import (
    function_may_multiply,
    is_integer,
)
from ocs_tf.export.form import INT8, Form
from ocs_tf.export.inference import (
    constants_in_float32,
    float32_input,
    in_float32,
    without_dropout,
)
from ocs_tf.export.kernel_matching import ExportKernel
from ocs_tf.export.lowering.apart import Apart, has_kernels
from ocs_tf.export.lowering.checks import check
from ocs_tf.export.lowering.decisions import decide
from ocs_tf.export.lowering.functions import may_be_large, with_large_numbers
from ocs_tf.export.lowering.kernels import (
    adapter_of,
    as_float,
    in_two_dimensions,
    inside,
    output_copies,
    steps,
    with_copies_in_order,
    with_norm,
)
from ocs_tf.export.packed import PackedKernel
from ocs_tf.graph import adapters, composites
from ocs_tf.graph.affine import affine, affine_axis
from ocs_tf.graph.analysis import channels
from ocs_tf.graph.analysis.activation_sites import (
    fuses_into_producer,
    is_relu6,
    moves_values,
    separable_activation,
)
from ocs_tf.graph.cloning import clone_layer
from ocs_tf.graph.reader import Graph, Node
from ocs_tf.graph.rebuild import rebuild
from ocs_tf.graph.substitutions import pooling, resizing
from ocs_tf.graph.substitutions.inlining import flat
from ocs_tf.keras_internals import maker
from ocs_tf.numerics import ActivationGrid, QuantizedKernel
from ocs_tf.numerics.activation_splitting import copy_parts
from ocs_tf.numerics.grid import code_limit

_MOST_PARTS = 10  # of one Concatenation: TFLite Micro refuses more


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A quantized model, lowered.

    Attributes:
        model: float Keras model of plain Keras layers.
        kernels: the integer kernels of `model`'s layers: `ExportKernel`s, `PackedKernel`s for form
            `PACKED`, none for `FLOAT`.
        grids: activation grid by layer name in `model`, in topological order.
        rounds_outputs: whether the quantized model rounds what layers make. What it does not
            round then is float32 on purpose.
        notes: what a user should know, in plain words.
    """

    model: keras.Model
    kernels: list[Any]
    grids: dict[str, ActivationGrid]
    rounds_outputs: bool
    notes: list[str]


def lower(
    model: keras.Model,
    form: Form = INT8,
    *,
    merge_copies: bool = True,
    batch_size: int | None = 1,
) -> Lowered:
    """Lower a quantized model.

    Arguments:
        model: what `convert` returned; it is not modified.
        form: what for.
        merge_copies: add the copies of split channels up wherever the sums can be stored.
        batch_size: of the inputs where `model` leaves it open; `None` leaves it so, too.

    Raises:
        ValueError: `model` holds no quantized layer, or a `channels_first` one, or one whose
            options or weights are not those of a quantized layer; or it splits activations where
            the form has no way to make the copies.
    """
    return _Lowering(model, form, merge_copies, batch_size).run()


def _behind_barrier(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` of a layer, with its input behind a barrier."""
    barrier = barrier_function()

    def behind(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return call(barrier(inputs), *args, **kwargs)

    return behind


class _Lowering:
    def __init__(
        self, model: keras.Model, form: Form, merge_copies: bool, batch_size: int | None
    ) -> None:
        self.graph = Graph(model, fold_batch_norm=False, open_quantized=True)
        check(self.graph, form)
        self.form = form
        self.batch_size = fixed_batch_size(self.graph.model) or batch_size
        self.decided = decide(self.graph, form, merge_copies)
        self.apart = Apart(self.graph, form)
        self.kernels: list[Any] = []
        self.grids: dict[str, ActivationGrid] = {}
        self.rounds_outputs = False
        self.weights: dict[str, list[np.ndarray]] = {}  # of the new layers
        self.tensor_grids: dict[int, ActivationGrid | None] = {}  # of the new graph
        self.composed: set[str] = set()  # composites that have their weights
        self.added: dict[str, keras.layers.Layer] = {}  # by name: beside those in place of others

    def run(self) -> Lowered:
        model, twins = rebuild(
            self.graph, self._replace, self._call, self.batch_size, input_dtype=float32_input
        )
        for name, weights in self.weights.items():
            twins[name].set_weights(weights)
        for node in self.graph.nodes:
            layer = layers.unwrapped(node.layer)
            if inside(layer) and layer.name not in self.composed:
                self.composed.add(layer.name)
                self._fill(layer, twins[layer.name])
        # A constant that is float32 by now may be a layer, as it is where a graph is read.
        notes = self.decided.notes
        return Lowered(flat(model), self.kernels, self.grids, self.rounds_outputs, notes)

    # Layers ---------------------------------------------------------------------------------

    def _replace(self, layer: keras.layers.Layer) -> keras.Operation:
        twin = in_float32(without_dropout(self._twin(layers.unwrapped(layer))))
        grid = getattr(layer, "grid", None) or getattr(layer, "output_grid", None)
        return self._in_form(twin, grid)

    def _in_form(self, twin: keras.layers.Layer, grid: ActivationGrid | None) -> keras.Operation:
        """`twin`, whose output is on `grid`, if on any, for all numbers that it may be given."""
        small = self.form.integer and grid is not None and not may_be_large(grid)
        return twin if small else with_large_numbers(twin)

    def _twin(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, layers.KernelLayer):
            return self._kernel_layer(layer)
        if inside(layer):
            return composites.plain(layer, unroll=self.form.integer)
        if affine_axis(layer) is not None and self._stands_alone(layer):
            return self._norm_as_depthwise(layer)
        if self.form.integer and is_relu6(layer) and not self._fused(layer):
            return keras.layers.ReLU(name=layer.name)
        if self.form.integer:
            simpler = self._one_operator(layer)
            if simpler is not None:
                return simpler
        mapping = self.decided.repeated.get(layer.name)
        if mapping is None or not getattr(layer, "weights", None):
            return clone_layer(layer)
        config, weights = self._repeat(layer, adapters.config_of(layer), layer.get_weights())
        self.weights[layer.name] = weights
        return type(layer).from_config(config)

    def _one_operator(self, layer: keras.layers.Layer) -> keras.layers.Layer | None:
        """What the converter writes as one operator in the place of several."""
        shapes = {call.inputs[0].shape for call in self.graph.calls_of(layer.name)}
        if len(shapes) > 1:
            return None
        shape = shapes.pop()
        return resizing.as_one_operator(layer, shape) or pooling.as_one_operator(layer, shape)

    def _kernel_layer(self, layer: layers.KernelLayer) -> keras.layers.Layer:
        """The float layer whose kernel is exactly `codes * scale`."""
        adapter = adapter_of(layer)
        kernel, bias = with_norm(layer, self.decided.norms.get(layer.name), self.form)
        config = adapter.with_bias(adapter.float_config(layer), bias is not None)
        if output_copies(layer, self.form):
            assert adapter.outputs_option is not None
            config[adapter.outputs_option] = kernel.codes.shape[-1]
        if separable_activation(layer) is not None:
            config["activation"] = None
        expanded = layer.name in self.decided.expanded
        if self.form.kernels == "packed":
            self._note(layer.name, adapter.kind, kernel)
        codes = with_copies_in_order(kernel).codes if expanded else kernel.effective_codes()
        arrays: list[Any] = [codes, kernel.scale] if bias is None else [codes, kernel.scale, bias]
        config, arrays = self._repeat(layer, config, arrays)
        identity = np.arange(arrays[0].shape[-2], dtype=np.int32)
        made = QuantizedKernel(arrays[0], arrays[1], identity, layer.weight_bits)
        self.weights[layer.name] = [
            adapter.from_stored(as_float(made, layer), layer),
            *(adapter.bias_to_keras(array, layer) for array in arrays[2:]),
        ]
        if self.form.kernels != "packed":
            self._note(layer.name, adapter.kind, made)
        return adapter.layer_class.from_config(config)

    def _fill(self, layer: keras.layers.Layer, twin: keras.layers.Layer) -> None:
        """Give the float composite `twin` of `layer` its weights; note its kernels."""
        composites.copy_floats(layer, twin)
        parts = composites.parts(twin)
        for path, stored in inside(layer).items():
            holder: Any
            holder, adapter = parts[path].holder, parts[path].adapter
            kernel = stored.quantized_kernel()
            adapter.write(holder, adapter.from_stored(as_float(kernel, holder), holder))
            bias = getattr(stored, "bias", None)
            if bias is not None:
                holder.bias.assign(adapter.bias_to_keras(np.asarray(bias), holder))
            # Attention scales its query, or the scores.
            mixed = composites.mixes_kernels(layer)
            scaled = mixed or path.endswith("query") or function_may_multiply(holder)
            if scaled and self.form.kernels != "float" and hasattr(holder, "activation"):
                holder.activation = barrier_function(holder.activation)
            if mixed and self.form.kernels != "float":
                holder.call = _behind_barrier(holder.call)
            for columns in adapter.operands(holder):
                scale = kernel.scale[columns] if kernel.scale.ndim else kernel.scale
                piece = dataclasses.replace(kernel, codes=kernel.codes[..., columns], scale=scale)
                self._note(f"{layer.name}/{path}", adapter.kind, piece)

    def _note(self, name: str, kind: str, kernel: QuantizedKernel) -> None:
        """Remember the kernel, in the layout of a quantized layer, for the file."""
        kernel = dataclasses.replace(kernel, codes=in_two_dimensions(kernel.codes, kind))
        if self.form.kernels == "packed":
            self.kernels.append(PackedKernel(name, kind, kernel))
        elif self.form.kernels != "float":
            codes = kernel.effective_codes()
            limit = self.form.code_limit(kernel.bits, kind)
            if limit is not None and np.abs(codes).max(initial=0) > limit:
                if not kernel.splits:
                    raise ValueError(
                        f"kernel {name!r} has the code {codes.min():.0f}, which integer files leave"
                        " out. Convert with full_range=False, or export with target='packed'."
                    )
                raise ValueError(
                    f"kernel {name!r}: the codes of its split channels add up to more"
                    f" than {self.form.tensor_bits(kernel.bits, kind)} bits. Convert it with"
                    " expand_ratio=0 or fewer bits, or export with target='packed'."
                )
            bits = self.form.tensor_bits(kernel.bits, kind)
            self.kernels.append(ExportKernel(name, codes.astype(np.int8), kernel.scale, kind, bits))

    def _repeat(
        self, layer: keras.layers.Layer, config: dict[str, Any], weights: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Configuration and weights of `layer` with repeated output channels, if it has any."""
        mapping = self.decided.repeated.get(layer.name)
        if mapping is None:
            return config, weights
        adapter = adapters.any_adapter(layer)
        if adapter is not None and adapter.outputs_option is not None:
            return adapter.repeat_outputs(config, weights, mapping)
        return config, channels.repeat_weights(layer, weights, mapping)

    def _stands_alone(self, norm: keras.layers.Layer) -> bool:
        """Whether neither the lowering nor the converter folds `norm` into the layer before it."""
        calls = self.graph.calls_of(norm.name)
        before = [self.graph.producer[id(call.inputs[0])].layer for call in calls]
        # The converter multiplies a batch norm into a float layer; quantized ones were dealt with.
        folded = any(
            adapters.adapter_for(layer) is not None and self.graph.foldable_norm(layer) is norm
            for layer in before
        )
        folded = folded or norm.name in self.decided.dropped
        if self.form.integer:
            apart = not is_integer(calls[0].inputs[0])  # these have no grid
        else:
            apart = any(self._reaches_kernel(call) for call in calls)
        rank = len(calls[0].inputs[0].shape)
        axis = affine_axis(norm)
        assert axis is not None
        return apart and not folded and rank <= 4 and axis % rank == rank - 1

    def _reaches_kernel(self, call: Node) -> bool:
        """Whether the converter might multiply `call`, an affine layer, into a kernel behind it."""
        if self.form.kernels == "float":
            return False
        readers = self.graph.consumers[id(call.outputs[0])]
        return any(
            has_kernels(reader.layer)
            or (_passes_factors(reader.layer) and self._reaches_kernel(reader))
            for reader in readers
        )

    def _norm_as_depthwise(self, norm: keras.layers.Layer) -> keras.layers.Layer:
        """An affine layer as a 1x1 depthwise convolution: 8-bit factors, exact to float rounding.

        A converter would multiply and add in two rounded steps, with one step size for all
        factors; or multiply the factors into a kernel behind, which must stay as it is.
        """
        gain, shift = affine(norm, self.graph.calls_of(norm.name)[0].outputs[0].shape[-1])
        scale = steps(gain / code_limit(8))
        codes = np.rint(gain / scale).astype(np.int8).reshape(1, 1, -1, 1)
        mapping = self.decided.repeated.get(norm.name, np.arange(len(gain)))
        codes, scale, shift = codes[:, :, mapping], scale[mapping], shift[mapping]
        if self.form.integer:
            self.kernels.append(ExportKernel(norm.name, codes, scale, "depthwise"))
        kernel = codes.astype(np.float32) * scale.reshape(-1, 1)
        self.weights[norm.name] = [kernel, shift.astype(np.float32)]
        return keras.layers.DepthwiseConv2D(1, name=norm.name)

    def _fused(self, layer: keras.layers.Layer) -> bool:
        calls = self.graph.calls_of(layer.name)
        return all(fuses_into_producer(self.graph, call) for call in calls)

    # Calls ----------------------------------------------------------------------------------

    def _call(
        self, layer: keras.layers.Layer, twin: keras.layers.Layer, *args: Any, **kwargs: Any
    ) -> Any:
        name = layer.name
        if name in self.decided.dropped:
            return args[0]
        if isinstance(layer, layers.FakeQuantize):
            tensor = args[0]
            if layer.grid.copies and self.form.splits_activations:
                tensor = self._split(tensor, layer.grid, name)
            return self._rounded(_maker(tensor).name, tensor, layer.grid)
        reader = self.decided.ahead.get(name, name)
        if name in self.decided.ahead or name in self.decided.beside:
            args = (self._duplicate(args[0], reader), *args[1:])
        args, kwargs = self.apart.from_makers(layer, (args, kwargs))
        if affine_axis(layers.unwrapped(layer)) is not None:
            outputs = self._scaled(layer, twin, args[0])
        else:
            args, kwargs = constants_in_float32((args, kwargs))
            outputs = twin(*args, **kwargs)
        function = separable_activation(layer) if isinstance(layer, layers.KernelLayer) else None
        own_grids = "grid", "output_grid", "preactivation_grid"
        self.rounds_outputs |= any(getattr(layer, name, None) is not None for name in own_grids)
        outputs = self.apart.from_readers(layer, outputs, function)
        if function is not None:
            outputs = self._rounded(name, outputs, layer.preactivation_grid)
            name = f"{name}_activation"
            activation = self._once(keras.layers.Activation, function, name=name)
            outputs = self._in_form(activation, layer.output_grid)(outputs)
        grid = getattr(layer, "grid", None) or getattr(layer, "output_grid", None)
        if grid is None and args and moves_values(layer):
            self._note_grid(name, outputs, self.tensor_grids.get(id(args[0])))
            return outputs
        return self._rounded(name, outputs, grid)

    def _once(self, layer_class: type, *args: Any, name: str) -> Any:
        """A layer of this name, which may be called more than once."""
        if name not in self.added:
            self.added[name] = layer_class(*args, name=name)
        return self.added[name]

    def _scaled(
        self, layer: keras.layers.Layer, twin: keras.layers.Layer, tensor: keras.KerasTensor
    ) -> keras.KerasTensor:
        """The output of `twin`, in place of the affine `layer`, for a `tensor` of any rank."""
        if not isinstance(twin, keras.layers.DepthwiseConv2D):
            return twin(tensor)
        if is_integer(tensor):
            tensor = keras.ops.cast(tensor, "float32")
        *lead, channels = [-1 if size is None else size for size in tensor.shape[1:]]
        flat = len(lead) < 2
        if flat:
            image = (*(1,) * (2 - len(lead)), *lead, channels)
            tensor = self._once(keras.layers.Reshape, image, name=f"{layer.name}_image")(tensor)
        tensor = twin(tensor)
        if flat:
            back = (*lead, tensor.shape[-1])
            tensor = self._once(keras.layers.Reshape, back, name=f"{layer.name}_back")(tensor)
        return tensor

    def _duplicate(self, tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """`tensor` with its channels repeated as layer `name` needs."""
        output = self._repeated(tensor, self.decided.expanded[name], name)
        self._note_grid(f"{name}_copies", output, self.tensor_grids.get(id(tensor)))
        return output

    def _repeated(
        self, tensor: keras.KerasTensor, mapping: np.ndarray, name: str
    ) -> keras.KerasTensor:
        """The channels of `tensor` that `mapping` lists: slices, concatenated."""
        # Neighbours that follow each other in order make one slice.
        runs = np.split(mapping, np.flatnonzero(np.diff(mapping) != 1) + 1)
        parts = [
            tensor if len(run) == tensor.shape[-1] else tensor[..., int(run[0]) : int(run[-1]) + 1]
            for run in runs
        ]
        return self._joined(parts, self.tensor_grids.get(id(tensor)), f"{name}_copies")

    def _joined(
        self, parts: list[keras.KerasTensor], grid: ActivationGrid | None, name: str
    ) -> keras.KerasTensor:
        """`parts` in a row: many of them in steps, the first one, the largest, in the last step."""
        first, *rest = parts
        number = 0
        while len(rest) >= _MOST_PARTS:
            groups = [rest[i : i + _MOST_PARTS] for i in range(0, len(rest), _MOST_PARTS)]
            rest = []
            for group in groups:
                inner = f"{name}_{number}"
                rest.append(self._once(keras.layers.Concatenate, name=inner)(group))
                self._note_grid(inner, rest[-1], grid)
                number += 1
        return self._once(keras.layers.Concatenate, name=name)([first, *rest])

    def _split(
        self, tensor: keras.KerasTensor, grid: ActivationGrid, name: str
    ) -> keras.KerasTensor:
        """`tensor` with its channels split as `grid` says, in float."""
        _, gain, offset = copy_parts(grid.copies, tensor.shape[-1])
        mapping = np.array([*range(tensor.shape[-1]), *grid.copies])
        expanded = self._repeated(tensor, mapping, name)
        return expanded * gain.astype(np.float32) + (offset * grid.scale).astype(np.float32)

    def _rounded(
        self, name: str, tensor: keras.KerasTensor, grid: ActivationGrid | None
    ) -> keras.KerasTensor:
        """`tensor`, which the quantized model rounds to `grid`, if any."""
        if grid is not None and grid.copies:
            grid = dataclasses.replace(grid, copies=())  # they are channels like others by now
        if grid is not None and self.form.rounds:
            tensor = RoundingOperator(grid)(tensor)
        self._note_grid(name, tensor, grid)
        return tensor

    def _note_grid(self, name: str, tensor: keras.KerasTensor, grid: ActivationGrid | None) -> None:
        if grid is not None:
            self.grids.setdefault(name, grid)
            self.tensor_grids[id(tensor)] = grid


def _maker(tensor: keras.KerasTensor) -> keras.Operation:
    """The layer that made a tensor: not a barrier behind it, which stands in no quantized model."""
    found = maker(tensor)
    return _maker(found.input) if isinstance(found, Barrier) else found


def _passes_factors(layer: keras.layers.Layer) -> bool:
    """Whether factors in front of `layer` are as good as behind it."""
    linear = affine_axis(layer) is not None or isinstance(layer, layers.FakeQuantize)
    return linear or moves_values(layers.unwrapped(layer))
