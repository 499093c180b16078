"""Lowering: a quantized model as a plain float Keras graph with the same function.

Kernels become `codes * scale`, exactly; rounded activations become names with grids. Copies of
split channels are merged back where the sums of their codes still fit an int8 tensor (at up to 7
bits, as a rule): the accumulator of an integer convolution sees the same sum. Where they do not
fit, or are to be kept, the layer that produces the channels produces the copies too; only where its
output has other readers does a Concatenation of slices duplicate them. There is never a Gather,
which accelerators such as the Edge TPU do not have.

Split activations have more channels there. The layer that makes them makes the copies, too,
each of its output channels at `1/k` of its scale; where there is no such layer, only packed files,
which round activations by operators, can have copies.

What is to become of kernels and activations is a `Form`, one for each kind of file.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.data import fixed_batch_size
from ocs_tf.export import int4
from ocs_tf.export.barrier import Barrier, barrier_function
from ocs_tf.export.fake_quantize_operator import RoundingOperator
from ocs_tf.export.folding import (
    ends_in_sum,
    function_may_multiply,
    is_integer,
    may_begin_with_product,
    may_end_in_product,
)
from ocs_tf.export.inference import (
    constants_in_float32,
    float32_input,
    in_float32,
    without_dropout,
)
from ocs_tf.export.kernel_matching import ExportKernel
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
from ocs_tf.graph.substitutions import resizing
from ocs_tf.graph.substitutions.inlining import flat
from ocs_tf.layers.checks import check_floats, check_grid, of_layer
from ocs_tf.numerics import ActivationGrid, QuantizedKernel
from ocs_tf.numerics.activation_splitting import copy_parts, repeat_inputs, split_outputs
from ocs_tf.numerics.grid import code_limit
from ocs_tf.planning.weights import SMALLEST_CHANNEL


@dataclasses.dataclass(frozen=True)
class Form:
    """What a lowered model is for.

    Attributes:
        kernels: how kernels are going to be stored: `"float"`, `"int8"`, `"int4"` (those of up to 4
            bits; wider ones in int8) or `"packed"`.
        integer: prepare for an integer runtime: batch norms that were not folded become depthwise
            convolutions with 8-bit kernels, and a ReLU6 by itself a ReLU on a grid that ends at 6.
        rounds: activations are rounded by operators in the graph, not by the tensors' grids.
    """

    kernels: str
    integer: bool = False
    rounds: bool = False

    def tensor_bits(self, bits: int, kind: str) -> int:
        """Width of the integer tensor that a kernel of this kind and of `bits` goes into."""
        return 4 if self.kernels == "int4" and bits <= 4 and kind in int4.KINDS else 8

    @property
    def splits_activations(self) -> bool:
        """Whether activations are rounded, so that splitting their channels matters."""
        return self.integer or self.rounds

    def code_limit(self, bits: int, kind: str) -> int | None:
        """Largest effective code that such a kernel may have; None: any."""
        integers = self.kernels in ("int8", "int4")
        return code_limit(self.tensor_bits(bits, kind)) if integers else None


_CONVOLUTIONS = ("conv", "depthwise", "transposed")

FLOAT = Form("float")
INT8 = Form("int8", integer=True)
INT4 = Form("int4", integer=True)
INT8_WEIGHTS = Form("int8")
INT4_WEIGHTS = Form("int4")
PACKED = Form("packed", rounds=True)


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A quantized model, lowered.

    Attributes:
        model: float Keras model of plain Keras layers.
        kernels: the integer kernels of `model`'s layers: `ExportKernel`s, `PackedKernel`s for form
            `PACKED`, none for `FLOAT`.
        grids: activation grid by layer name in `model`, in topological order.
        notes: what a user should know, in plain words.
    """

    model: keras.Model
    kernels: list[Any]
    grids: dict[str, ActivationGrid]
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


class _Lowering:
    def __init__(
        self, model: keras.Model, form: Form, merge_copies: bool, batch_size: int | None
    ) -> None:
        self.graph = Graph(model, fold_batch_norm=False, open_quantized=True)
        self.form = form
        self.merge_copies = merge_copies
        self.batch_size = fixed_batch_size(self.graph.model) or batch_size
        self.kernels: list[Any] = []
        self.grids: dict[str, ActivationGrid] = {}
        self.notes: list[str] = []
        self.weights: dict[str, list[np.ndarray]] = {}  # of the new layers
        # The decisions, by layer name: the map of an expanded input; whether the layer in front
        # makes the copies; how output channels are repeated for a reader; the batch norm that is
        # taken up.
        self.expanded: dict[str, np.ndarray] = {}
        self.fed: set[str] = set()
        self.repeated: dict[str, np.ndarray] = {}
        self.norms: dict[str, keras.layers.Layer] = {}
        self.tensor_grids: dict[int, ActivationGrid | None] = {}  # of the new graph
        self.composed: set[str] = set()  # composites that have their weights
        self.added: dict[str, keras.layers.Layer] = {}  # by name: beside those in place of others

    def run(self) -> Lowered:
        self._check()
        for node in self.graph.nodes:
            if isinstance(node.layer, layers.KernelLayer):
                self._choose_expansion(node)
                norm = self.graph.foldable_norm(node.layer, may_be_output=True)
                if norm is not None and node.layer.output_grid is None:
                    self.norms[node.layer.name] = norm
        self.dropped = {norm.name for norm in self.norms.values()}
        model, twins = rebuild(
            self.graph, self._replace, self._call, self.batch_size, input_dtype=float32_input
        )
        for name, weights in self.weights.items():
            twins[name].set_weights(weights)
        for node in self.graph.nodes:
            layer = layers.unwrapped(node.layer)
            if self._inside(layer) and layer.name not in self.composed:
                self.composed.add(layer.name)
                self._fill(layer, twins[layer.name])
        # A constant that is float32 by now may be a layer, as it is where a graph is read.
        return Lowered(flat(model), self.kernels, self.grids, self.notes)

    def _check(self) -> None:
        for node in self.graph.nodes:
            self._check_stored(layers.unwrapped(node.layer), node.layer)
        quantized = [n.layer for n in self.graph.nodes if isinstance(n.layer, layers.KernelLayer)]
        if not quantized and not any(self._inside(node.layer) for node in self.graph.nodes):
            raise ValueError(
                f"`model` {self.graph.model.name!r} has no quantized layer; pass what"
                " ocs_tf.convert returned."
            )
        for layer in quantized:
            if getattr(layer, "data_format", None) == "channels_first":
                raise ValueError(
                    f"layer {layer.name!r} is channels_first, which TFLite does not have; build"
                    " the model with data_format='channels_last'."
                )
        for layer in (node.layer for node in self.graph.nodes):
            if isinstance(layer, layers.OracleQuantize):
                raise ValueError(
                    f"layer {layer.name!r} chooses its grid from each batch, a simulation only;"
                    " convert with another activation_split than 'oracle'."
                )
            self._check_length(layer)
            copies = isinstance(layer, layers.FakeQuantize) and layer.grid.copies
            if copies and self.form.integer:
                raise ValueError(
                    f"layer {layer.name!r} splits activations where nothing can make the copies in"
                    " integers. Convert with activation_scope='all' or activation_expand_ratio=0,"
                    " or export with target='packed'."
                )

    def _check_stored(self, layer: Any, wrapper: Any) -> None:
        """Refuse what no conversion makes, from a damaged file or of weights that were set."""
        with of_layer(layer.name):
            if isinstance(wrapper, (layers.FakeQuantize, layers.QuantizedOutput)):
                check_grid("grid", wrapper.grid)
            inside = self._inside(layer)
            for path, stored in inside.items():
                with of_layer(path):
                    stored.check_state()
            if inside:
                check_floats(layer)
        if isinstance(layer, layers.KernelLayer):
            layer.check_state()

    def _check_length(self, layer: Any) -> None:
        if not (self.form.integer and self._inside(layer)):
            return
        steps = [call.inputs[0].shape[1] for call in self.graph.calls_of(layer.name)]
        if composites.is_recurrent(layers.unwrapped(layer)) and None in steps:
            raise ValueError(
                f"layer {layer.name!r} reads sequences of any length, but an int8 file has a copy"
                " of the layer's operators for each time step. Build the model with a fixed length"
                " (keras.Input((100, 8))), or export with activations='float' or 'dynamic', or"
                " target='packed'."
            )

    def _choose_expansion(self, node: Node) -> None:
        layer = node.layer
        if not layer.copies or layer.name in self.expanded:
            return
        kernel, _ = self._quantized(layer)
        limit = self.form.code_limit(layer.weight_bits, _adapter(layer).kind)
        fits = limit is None or np.abs(kernel.effective_codes()).max(initial=0) <= limit
        if self.merge_copies and fits:
            return
        adapter = _adapter(layer)
        if not adapter.is_direct(layer):
            raise ValueError(
                f"layer {layer.name!r} has split channels whose codes do not add up to int8, over"
                " several axes of its input. Convert it with expand_ratio=0 or fewer bits, or"
                " export with merge_copies=True or target='packed'."
            )
        self.expanded[layer.name] = mapping = adapter.input_map(layer, kernel.channel_map)
        try:
            chain = channels.producers(self.graph, node)
        except channels.NoProducer as reason:
            self.notes.append(
                f"{layer.name}: no layer in front can repeat channels for it ({reason}), so a"
                f" Concatenation of slices duplicates {layer.copies} channels."
            )
        else:
            self.fed.add(layer.name)
            self.repeated |= {producer.layer.name: mapping for producer in chain}

    # Layers ---------------------------------------------------------------------------------

    def _replace(self, layer: Any) -> Any:
        return in_float32(without_dropout(self._twin(layers.unwrapped(layer))))

    def _twin(self, layer: Any) -> Any:
        if isinstance(layer, layers.KernelLayer):
            return self._kernel_layer(layer)
        if self._inside(layer):
            return composites.plain(layer, unroll=self.form.integer)
        if affine_axis(layer) is not None and self._stands_alone(layer):
            return self._norm_as_depthwise(layer)
        if self.form.integer and is_relu6(layer) and not self._fused(layer):
            return keras.layers.ReLU(name=layer.name)
        if self.form.integer:
            shapes = {call.inputs[0].shape for call in self.graph.calls_of(layer.name)}
            resized = resizing.as_one_operator(layer, shapes.pop()) if len(shapes) == 1 else None
            if resized is not None:
                return resized
        mapping = self.repeated.get(layer.name)
        if mapping is None or not getattr(layer, "weights", None):
            return clone_layer(layer)
        config, weights = self._repeat(layer, adapters.config_of(layer), layer.get_weights())
        self.weights[layer.name] = weights
        return type(layer).from_config(config)

    def _kernel_layer(self, layer: layers.KernelLayer) -> Any:
        """The float layer whose kernel is exactly `codes * scale`."""
        adapter = _adapter(layer)
        kernel, bias = self._kernel(layer)
        config = adapter.with_bias(adapter.float_config(layer), bias is not None)
        if self._output_copies(layer):
            assert adapter.outputs_option is not None
            config[adapter.outputs_option] = kernel.codes.shape[-1]
        if separable_activation(layer) is not None:
            config["activation"] = None
        expanded = layer.name in self.expanded
        if self.form.kernels == "packed":
            self._note(layer.name, adapter.kind, kernel)
        codes = kernel.codes if expanded else kernel.effective_codes()
        arrays: list[Any] = [codes, kernel.scale] if bias is None else [codes, kernel.scale, bias]
        config, arrays = self._repeat(layer, config, arrays)
        identity = np.arange(arrays[0].shape[-2], dtype=np.int32)
        made = QuantizedKernel(arrays[0], arrays[1], identity, layer.weight_bits)
        self.weights[layer.name] = [
            adapter.from_stored(_as_float(made, layer), layer),
            *(adapter.bias_to_keras(array, layer) for array in arrays[2:]),
        ]
        if self.form.kernels != "packed":
            self._note(layer.name, adapter.kind, made)
        return adapter.layer_class.from_config(config)

    def _inside(self, layer: Any) -> dict[str, Any]:
        """The quantized kernels inside of a composite, by path."""
        layer = layers.unwrapped(layer)
        return {} if isinstance(layer, layers.KernelLayer) else composites.stored_parts(layer)

    def _fill(self, layer: Any, twin: Any) -> None:
        """Give the float composite `twin` of `layer` its weights; note its kernels."""
        composites.copy_floats(layer, twin)
        parts = composites.parts(twin)
        for path, stored in self._inside(layer).items():
            holder, adapter = parts[path].holder, parts[path].adapter
            kernel = stored.quantized_kernel()
            adapter.write(holder, adapter.from_stored(_as_float(kernel, holder), holder))
            bias = getattr(stored, "bias", None)
            if bias is not None:
                holder.bias.assign(adapter.bias_to_keras(np.asarray(bias), holder))
            # Attention scales its query, or the scores.
            scaled = path.endswith("query") or function_may_multiply(holder)
            if scaled and self.form.kernels != "float" and hasattr(holder, "activation"):
                holder.activation = barrier_function(holder.activation)
            for columns in adapter.operands(holder):
                scale = kernel.scale[columns] if kernel.scale.ndim else kernel.scale
                piece = dataclasses.replace(kernel, codes=kernel.codes[..., columns], scale=scale)
                self._note(f"{layer.name}/{path}", adapter.kind, piece)

    def _note(self, name: str, kind: str, kernel: QuantizedKernel) -> None:
        """Remember the kernel, in the layout of a quantized layer, for the file."""
        kernel = dataclasses.replace(kernel, codes=_in_two_dimensions(kernel.codes, kind))
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

    def _kernel(self, layer: layers.KernelLayer) -> tuple[QuantizedKernel, np.ndarray | None]:
        """Kernel in the layer's layout, and bias, with a following batch norm folded into them."""
        kernel, bias = self._quantized(layer)
        norm = self.norms.get(layer.name)
        if norm is None:
            return kernel, bias
        # A factor per output channel rescales that channel's step.
        gain, shift = affine(norm, layer.output_channels)
        bias = (shift + gain * (0 if bias is None else bias)).astype(np.float32)
        wanted = (kernel.scale * gain).astype(np.float32)
        if self.form.code_limit(layer.weight_bits, _adapter(layer).kind) is None:
            return dataclasses.replace(kernel, scale=wanted), bias
        # Steps of integer kernels are positive: a negative factor turns the codes around, which a
        # symmetric grid allows.
        scale = _steps(wanted)
        factor = wanted / scale  # 1 or -1, but for a channel that is all but dead
        factor = factor.reshape(kernel.codes.shape[-2:]) if _is_depthwise(layer) else factor
        codes = np.rint(kernel.codes * factor).astype(np.int8)
        return dataclasses.replace(kernel, codes=codes, scale=scale), bias

    def _quantized(self, layer: Any) -> tuple[QuantizedKernel, np.ndarray | None]:
        """Kernel in the layer's layout, and bias, for the copies of split activations."""
        kernel = layer.quantized_kernel()
        bias = None if layer.bias is None else np.asarray(layer.bias)
        grid = layer.input_grid
        if grid is not None and grid.copies and self.form.splits_activations:
            kernel = repeat_inputs(kernel, grid.copies)
        copies = self._output_copies(layer)
        return split_outputs(kernel, bias, copies, layer.output_grid) if copies else (kernel, bias)

    def _output_copies(self, layer: Any) -> tuple[int, ...]:
        grid = layer.output_grid
        return grid.copies if grid is not None and self.form.splits_activations else ()

    def _repeat(
        self, layer: Any, config: dict[str, Any], weights: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Configuration and weights of `layer` with repeated output channels, if it has any."""
        mapping = self.repeated.get(layer.name)
        if mapping is None:
            return config, weights
        adapter = adapters.any_adapter(layer)
        if adapter is not None and adapter.outputs_option is not None:
            return adapter.repeat_outputs(config, weights, mapping)
        return config, channels.repeat_weights(layer, weights, mapping)

    def _stands_alone(self, norm: Any) -> bool:
        """Whether neither the lowering nor the converter folds `norm` into the layer before it."""
        calls = self.graph.calls_of(norm.name)
        before = [self.graph.producer[id(call.inputs[0])].layer for call in calls]
        # The converter multiplies a batch norm into a float layer; quantized ones were dealt with.
        folded = any(
            adapters.adapter_for(layer) is not None and self.graph.foldable_norm(layer) is norm
            for layer in before
        )
        folded = folded or norm.name in self.dropped
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
            self._has_kernels(reader.layer)
            or (_passes_factors(reader.layer) and self._reaches_kernel(reader))
            for reader in readers
        )

    def _norm_as_depthwise(self, norm: Any) -> Any:
        """An affine layer as a 1x1 depthwise convolution: 8-bit factors, exact to float rounding.

        A converter would multiply and add in two rounded steps, with one step size for all
        factors; or multiply the factors into a kernel behind, which must stay as it is.
        """
        gain, shift = affine(norm, self.graph.calls_of(norm.name)[0].outputs[0].shape[-1])
        scale = _steps(gain / code_limit(8))
        codes = np.rint(gain / scale).astype(np.int8).reshape(1, 1, -1, 1)
        mapping = self.repeated.get(norm.name, np.arange(len(gain)))
        codes, scale, shift = codes[:, :, mapping], scale[mapping], shift[mapping]
        if self.form.integer:
            self.kernels.append(ExportKernel(norm.name, codes, scale, "depthwise"))
        kernel = codes.astype(np.float32) * scale.reshape(-1, 1)
        self.weights[norm.name] = [kernel, shift.astype(np.float32)]
        return keras.layers.DepthwiseConv2D(1, name=norm.name)

    def _fused(self, layer: Any) -> bool:
        calls = self.graph.calls_of(layer.name)
        return all(fuses_into_producer(self.graph, call) for call in calls)

    # Calls ----------------------------------------------------------------------------------

    def _call(self, layer: Any, twin: Any, *args: Any, **kwargs: Any) -> Any:
        name = layer.name
        if name in self.dropped:
            return args[0]
        if isinstance(layer, layers.FakeQuantize):
            tensor = args[0]
            if layer.grid.copies and self.form.splits_activations:
                tensor = self._split(tensor, layer.grid, name)
            return self._rounded(tensor._keras_history.operation.name, tensor, layer.grid)
        if name in self.expanded and name not in self.fed:
            args = (self._duplicate(args[0], name), *args[1:])
        args, kwargs = self._apart(layer, (args, kwargs))
        if affine_axis(layers.unwrapped(layer)) is not None:
            outputs = self._scaled(layer, twin, args[0])
        else:
            args, kwargs = constants_in_float32((args, kwargs))
            outputs = twin(*args, **kwargs)
        function = separable_activation(layer) if isinstance(layer, layers.KernelLayer) else None
        outputs = self._apart_from_readers(layer, outputs, function)
        if function is not None:
            outputs = self._rounded(name, outputs, layer.preactivation_grid)
            name = f"{name}_activation"
            outputs = self._once(keras.layers.Activation, function, name=name)(outputs)
        grid = getattr(layer, "grid", None) or getattr(layer, "output_grid", None)
        if grid is None and args and moves_values(layer):
            self._note_grid(name, outputs, self.tensor_grids.get(id(args[0])))
            return outputs
        return self._rounded(name, outputs, grid)

    def _apart(self, layer: Any, given: Any) -> Any:
        """The arguments of a layer with kernels, apart from it: nothing is folded into them."""
        if self.form.kernels == "float" or not self._has_kernels(layer):
            return given
        dense = isinstance(layer, layers.KernelLayer) and _adapter(layer).kind == "dense"
        tensors = [tensor for call in self.graph.calls_of(layer.name) for tensor in call.inputs]
        adds = dense and self.form.integer and any(ends_in_sum(self.graph, t) for t in tensors)
        if adds or any(may_end_in_product(self.graph, tensor) for tensor in tensors):
            return self._behind_barriers(given, f"{layer.name}_barrier")
        return given

    def _apart_from_readers(self, layer: Any, made: Any, function: Any) -> Any:
        """The output of a layer with kernels, apart from what the converter might fold into them.

        Arguments:
            made: before its activation `function`, if that is a step of its own.
        """
        if self.form.kernels == "float" or not self._has_kernels(layer):
            return made
        if function is not None:
            multiplied = function_may_multiply(layers.unwrapped(layer))
        else:
            read = [t for call in self.graph.calls_of(layer.name) for t in call.outputs]
            multiplied = any(may_begin_with_product(self.graph, tensor) for tensor in read)
        return self._behind_barriers(made, f"{layer.name}_behind") if multiplied else made

    def _has_kernels(self, layer: Any) -> bool:
        return isinstance(layer, layers.KernelLayer) or bool(self._inside(layer))

    def _behind_barriers(self, tensors: Any, name: str) -> Any:
        """The floats of a structure of tensors, behind barriers."""
        barrier = self._once(Barrier, name=name)
        return keras.tree.map_structure(
            lambda t: barrier(t) if keras.backend.is_keras_tensor(t) and "float" in t.dtype else t,
            tensors,
        )

    def _once(self, layer_class: type, *args: Any, name: str) -> Any:
        """A layer of this name, which may be called more than once."""
        if name not in self.added:
            self.added[name] = layer_class(*args, name=name)
        return self.added[name]

    def _scaled(self, layer: Any, twin: Any, tensor: Any) -> Any:
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

    def _duplicate(self, tensor: Any, name: str) -> Any:
        """`tensor` with its channels repeated as layer `name` needs."""
        output = self._repeated(tensor, self.expanded[name], name)
        self._note_grid(f"{name}_copies", output, self.tensor_grids.get(id(tensor)))
        return output

    def _repeated(self, tensor: Any, mapping: np.ndarray, name: str) -> Any:
        """The channels of `tensor` that `mapping` lists: slices, concatenated."""
        # Neighbours that follow each other in order make one slice.
        runs = np.split(mapping, np.flatnonzero(np.diff(mapping) != 1) + 1)
        slices = [
            tensor if len(run) == tensor.shape[-1] else tensor[..., int(run[0]) : int(run[-1]) + 1]
            for run in runs
        ]
        return self._once(keras.layers.Concatenate, name=f"{name}_copies")(slices)

    def _split(self, tensor: Any, grid: ActivationGrid, name: str) -> Any:
        """`tensor` with its channels split as `grid` says, in float."""
        _, gain, offset = copy_parts(grid.copies, tensor.shape[-1])
        mapping = np.array([*range(tensor.shape[-1]), *grid.copies])
        expanded = self._repeated(tensor, mapping, name)
        return expanded * gain.astype(np.float32) + (offset * grid.scale).astype(np.float32)

    def _rounded(self, name: str, tensor: Any, grid: ActivationGrid | None) -> Any:
        """`tensor`, which the quantized model rounds to `grid`, if any."""
        if grid is not None and grid.copies:
            grid = dataclasses.replace(grid, copies=())  # they are channels like others by now
        if grid is not None and self.form.rounds:
            tensor = RoundingOperator(grid)(tensor)
        self._note_grid(name, tensor, grid)
        return tensor

    def _note_grid(self, name: str, tensor: Any, grid: ActivationGrid | None) -> None:
        if grid is not None:
            self.grids.setdefault(name, grid)
            self.tensor_grids[id(tensor)] = grid


def _in_two_dimensions(codes: np.ndarray, kind: str) -> np.ndarray:
    """`codes` of a convolution, as the converter has it: one dimension is the second of two."""
    return codes[None] if kind in _CONVOLUTIONS and codes.ndim == 3 else codes


def _steps(values: np.ndarray) -> np.ndarray:
    """Magnitudes of `values` as float32 steps, none so small that an int32 bias overflows."""
    magnitudes = np.abs(values)
    largest = magnitudes.max(initial=0.0) or 1.0
    return np.maximum(magnitudes, largest * SMALLEST_CHANNEL).astype(np.float32)


def _adapter(layer: Any) -> adapters.KernelAdapter:
    """The adapter of a quantized layer with one kernel."""
    adapter = adapters.adapter_of_quantized(layer)
    assert adapter is not None
    return adapter


def _as_float(kernel: QuantizedKernel, layer: Any) -> np.ndarray:
    """The effective kernel in float32, in the layout of the quantized `layer`'s codes."""
    codes = kernel.effective_codes()
    scale = kernel.scale
    if _is_depthwise(layer, scale):
        scale = scale.reshape(codes.shape[-2:])
    return codes.astype(np.float32) * scale


def _passes_factors(layer: Any) -> bool:
    """Whether factors in front of `layer` are as good as behind it."""
    linear = affine_axis(layer) is not None or isinstance(layer, layers.FakeQuantize)
    return linear or moves_values(layers.unwrapped(layer))


def _is_depthwise(layer: Any, scale: np.ndarray | None = None) -> bool:
    """Whether `layer` keeps its output channels on two axes (and `scale`, if given, has both)."""
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    return isinstance(layer, depthwise) and (scale is None or scale.ndim > 0)
