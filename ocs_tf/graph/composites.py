"""Layers with several kernels, or with layers inside: recurrent ones, attention, wrappers.

Their kernels are named by a path: `kernel` and `recurrent_kernel` of a cell, `forward/kernel` in a
`Bidirectional`, `query` of an attention layer, the inner layer's name in a `TimeDistributed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ocs_tf import layers
from ocs_tf.graph import adapters
from ocs_tf.graph.adapters import KernelAdapter
from ocs_tf.graph.cloning import check_copied, clone_layer, copy_weights
from ocs_tf.keras_internals import layers_within
from ocs_tf.keras_types import Tensor
from ocs_tf.layers.attention import projections
from ocs_tf.layers.recurrent import CELL_KERNELS, UnrolledRNN
from ocs_tf.layers.structure import copied, is_users, sublayers
from ocs_tf.numerics import QuantizedKernel

_LAYERS = keras.layers
_CELLS = {
    _LAYERS.LSTMCell: layers.QuantizedLSTMCell,
    _LAYERS.GRUCell: layers.QuantizedGRUCell,
    _LAYERS.SimpleRNNCell: layers.QuantizedSimpleRNNCell,
}
_ATTENTION = {
    _LAYERS.MultiHeadAttention: layers.QuantizedMultiHeadAttention,
    _LAYERS.GroupQueryAttention: layers.QuantizedGroupQueryAttention,
}
_FLOAT_CLASSES: dict[type, type[keras.layers.Layer]] = {
    quantized: plain for plain, quantized in (*_CELLS.items(), *_ATTENTION.items())
}
_KERAS_RECURRENT = (_LAYERS.RNN, _LAYERS.LSTM, _LAYERS.GRU, _LAYERS.SimpleRNN)
_RECURRENT = (*_KERAS_RECURRENT, layers.QuantizedRNN, UnrolledRNN)
_RNN_OPTIONS = (
    "name",
    "return_sequences",
    "return_state",
    "go_backwards",
    "stateful",
    "unroll",
    "zero_output_for_mask",
)
COMPOSITES: tuple[type, ...] = (
    *_KERAS_RECURRENT,
    _LAYERS.Bidirectional,
    _LAYERS.TimeDistributed,
    *_ATTENTION,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A kernel inside of a layer.

    Attributes:
        holder: the layer or cell that has it.
        adapter: what is known of it.
    """

    holder: keras.layers.Layer
    adapter: KernelAdapter


class CellKernelAdapter(adapters.DenseAdapter):
    """One of the kernels of a recurrent cell; the bias stays the cell's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_direct(self, layer: keras.layers.Layer) -> bool:
        return False

    def read(self, layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray | None]:
        return np.asarray(getattr(layer, self.name)), None

    def write(self, layer: keras.layers.Layer, kernel: np.ndarray) -> None:
        getattr(layer, self.name).assign(kernel)

    def operands(self, layer: keras.layers.Layer) -> list[slice]:
        gru = type(layer) in (_LAYERS.GRUCell, layers.QuantizedGRUCell)
        if gru and self.name == "recurrent_kernel" and not layer.reset_after:
            gates = 2 * layer.units  # the third product reads what they leave of the state
            return [slice(0, gates), slice(gates, None)]
        return [slice(None)]


_CELL_ADAPTERS = {name: CellKernelAdapter(name) for name in CELL_KERNELS}


def parts(layer: keras.layers.Layer) -> dict[str, Part]:
    """The kernels inside of a float `layer`, by path; none if it is no composite."""
    if type(layer) in _CELLS:
        return {name: Part(layer, adapter) for name, adapter in _CELL_ADAPTERS.items()}
    found = {}
    for name, child in _children(layer).items():
        if not child.built:
            continue  # it is never called
        adapter = adapters.adapter_for(child)
        inside = parts(child) if adapter is None else {"": Part(child, adapter)}
        found.update({_path(name, path): part for path, part in inside.items()})
    return found


def stored_parts(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The quantized kernels inside of `layer`, by path: `StoredKernel`s and `KernelLayer`s."""
    if isinstance(layer, layers.QuantizedCell):
        return dict(layer.stored_kernels())
    found: dict[str, keras.layers.Layer] = {}
    for name, child in _children(layer).items():
        inside = {"": child} if isinstance(child, layers.KernelLayer) else stored_parts(child)
        found.update({_path(name, path): kernel for path, kernel in inside.items()})
    return found


def quantized(
    layer: keras.layers.Layer, options: Mapping[str, Mapping[str, Any]]
) -> keras.layers.Layer:
    """The quantized layer in place of the float `layer`; its weights are still to be put in.

    Arguments:
        options: by path, of the kernels to quantize: those of a `KernelLayer`.
    """
    if type(layer) in _CELLS:
        config = adapters.without_training(adapters.config_of(layer))
        return _CELLS[type(layer)].from_config({**config, "kernels": options})
    if type(layer) in _ATTENTION:
        config = adapters.without_training(adapters.config_of(layer))
        return _ATTENTION[type(layer)].from_config({**config, "kernels": options})
    adapter = adapters.adapter_for(layer)
    if adapter is not None and options:
        config = adapter.quantized_config(layer, getattr(layer, "bias", None) is not None)
        return adapter.quantized_class.from_config({**config, **options[""]})
    made = _rebuilt(
        layer, lambda name, child: _inner(layer, child, _below(name, options)), layers.QuantizedRNN
    )
    return layers.QuantizedInside(made) if is_users(layer) and options else made


def _inner(
    outer: keras.layers.Layer, layer: keras.layers.Layer, options: Mapping[str, Mapping[str, Any]]
) -> keras.layers.Layer:
    """The quantized layer in place of `layer`, which is inside of `outer`."""
    made = quantized(layer, options)
    return made.layer if is_users(outer) and isinstance(made, layers.QuantizedInside) else made


def plain(layer: keras.layers.Layer, *, unroll: bool = False) -> keras.layers.Layer:
    """The float layer that the quantized composite `layer` stands for, without its weights.

    Arguments:
        unroll: make recurrent layers straight, one copy of the cell for each step.
    """
    float_class = _FLOAT_CLASSES.get(type(layer))
    if float_class is not None:
        config = adapters.config_of(layer)
        del config["kernels"]
        if type(layer) is layers.QuantizedGRUCell or type(layer) is layers.QuantizedLSTMCell:
            config["implementation"] = 2  # one product for all gates
        return float_class.from_config(config)
    adapter = adapters.adapter_of_quantized(layer)
    if adapter is not None:
        return adapter.layer_class.from_config(
            adapter.with_bias(adapter.float_config(layer), getattr(layer, "bias", None) is not None)
        )
    return _rebuilt(layer, lambda _, child: plain(child, unroll=unroll), _LAYERS.RNN, unroll)


def copy_floats(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Give the built layer `new` the float weights of `old` that both have.

    One of them is the quantized form of the other.
    """
    if _is_cell(old):
        stored = stored_parts(old) or stored_parts(new)
        for name in (*CELL_KERNELS, "bias"):
            if name not in stored and getattr(old, name, None) is not None:
                getattr(new, name).assign(getattr(old, name))
    for before, after in zip(_children(old).values(), _children(new).values(), strict=True):
        if isinstance(before, layers.KernelLayer) or isinstance(after, layers.KernelLayer):
            continue
        if _is_cell(before) or _children(before):
            copy_floats(before, after)
        else:
            copy_weights(before, after)
            check_copied(before, after)


def assign(
    layer: keras.layers.Layer, kernels: Mapping[str, tuple[QuantizedKernel, np.ndarray | None]]
) -> None:
    """Put canonical kernels and biases into the built quantized composite `layer`, by path."""
    targets = stored_parts(layer)
    for path, (kernel, bias) in kernels.items():
        target = targets[path]
        if isinstance(target, layers.StoredKernel):
            target.assign(kernel)
        else:
            adapter = adapters.adapter_of_quantized(target)
            assert adapter is not None
            adapter.store(target, kernel, bias)


@contextlib.contextmanager
def recorded(layer: keras.layers.Layer, path: str) -> Iterator[list[np.ndarray]]:
    """Inputs of the kernel at `path` in eager calls of the quantized composite `layer`.

    The list that this gives grows while the context lasts: arrays `[N, ..., C]`, in cells one for
    each step, and what Keras looks at the first step for.
    """
    reads: list[np.ndarray] = []
    reader: Any = _readers(layer)[path]
    state = path.rpartition("/")[2] == "recurrent_kernel"
    call = reader.call

    def record(inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(reader, layers.QuantizedCell):
            states = args[0] if args else kwargs["states"]
            reads.append(np.asarray(keras.tree.flatten(states)[0] if state else inputs))
        else:
            reads.append(np.asarray(inputs))
        return call(inputs, *args, **kwargs)

    reader.call = record
    try:
        yield reads
    finally:
        del reader.call


def _readers(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The layers and cells inside of a quantized composite whose calls read kernels, by path."""
    if isinstance(layer, layers.QuantizedCell):
        return dict.fromkeys(layer.stored_kernels(), layer)
    found: dict[str, keras.layers.Layer] = {}
    for name, child in _children(layer).items():
        inside = {"": child} if isinstance(child, layers.KernelLayer) else _readers(child)
        found.update({_path(name, path): reader for path, reader in inside.items()})
    return found


def quantizable_classes() -> list[type]:
    """The Keras layer classes that have a quantized form."""
    return [*(adapter.layer_class for adapter in adapters.ADAPTERS), *COMPOSITES]


def is_recurrent(layer: keras.layers.Layer) -> bool:
    """Whether there is a loop over a sequence in `layer`."""
    return isinstance(layer, _RECURRENT) or any(map(is_recurrent, _children(layer).values()))


def mixes_kernels(layer: keras.layers.Layer) -> bool:
    """Whether the kernels inside of a composite may have any operations around them."""
    return any(isinstance(part, keras.Model) or is_users(part) for part in layers_within(layer))


def _is_cell(layer: keras.layers.Layer) -> bool:
    return type(layer) in _CELLS or isinstance(layer, layers.QuantizedCell)


def _children(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The layers inside of a composite, by name; none of other layers."""
    if type(layer) in _RECURRENT:
        return {} if is_users(layer.cell) else {"": layer.cell}
    if type(layer) is _LAYERS.StackedRNNCells:
        return (
            {}
            if any(map(is_users, layer.cells))
            else {f"cell_{index}": cell for index, cell in enumerate(layer.cells)}
        )
    if type(layer) is _LAYERS.Bidirectional:
        return {"forward": layer.forward_layer, "backward": layer.backward_layer}
    if type(layer) is _LAYERS.TimeDistributed:
        return {str(layer.layer.name): layer.layer}
    if type(layer) in _ATTENTION or isinstance(layer, layers.QuantizedAttention):
        return projections(layer)
    if isinstance(layer, layers.QuantizedInside):
        return _children(layer.layer)
    return sublayers(layer) if is_users(layer) or isinstance(layer, keras.Model) else {}


def _rebuilt(
    layer: keras.layers.Layer,
    remake: Callable[[str, keras.layers.Layer], keras.layers.Layer],
    recurrent: type,
    unroll: bool = False,
) -> keras.layers.Layer:
    """A wrapper like `layer` around what `remake` makes of each layer inside, by name."""
    inside = {name: remake(name, child) for name, child in _children(layer).items()}
    if type(layer) in _RECURRENT:
        options = {name: getattr(layer, name) for name in _RNN_OPTIONS}
        if unroll and not layer.unroll:
            recurrent, options["unroll"] = UnrolledRNN, True
        return recurrent(inside[""], **options, dtype=layer.dtype_policy)
    if type(layer) is _LAYERS.StackedRNNCells:
        return _LAYERS.StackedRNNCells(list(inside.values()), name=layer.name)
    if type(layer) is _LAYERS.Bidirectional:
        return _LAYERS.Bidirectional(
            inside["forward"],
            merge_mode=layer.merge_mode,
            backward_layer=inside["backward"],
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    if type(layer) is _LAYERS.TimeDistributed:
        (child,) = inside.values()
        return _LAYERS.TimeDistributed(child, name=layer.name, dtype=layer.dtype_policy)
    if isinstance(layer, layers.QuantizedInside):  # in one piece: a graph would be opened
        return layers.QuantizedInside(_rebuilt(layer.layer, remake, recurrent, unroll))
    if is_users(layer):
        return copied(layer, lambda name, child: _built(child, inside[name]))
    if isinstance(layer, keras.Model):
        names = {id(child): name for name, child in sublayers(layer).items()}
        return keras.models.clone_model(layer, clone_function=lambda old: inside[names[id(old)]])
    return clone_layer(layer)


def _built(old: keras.layers.Layer, new: keras.layers.Layer) -> keras.layers.Layer:
    """`new`, built as `old` is, in whose place it is."""
    if old.built and not new.built and (config := old.get_build_config()):
        new.build_from_config(config)
    return new


def _below(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of what is inside of the child `name`, by path from there."""
    if not name:
        return dict(options)
    return {
        path[len(name) :].lstrip("/"): value
        for path, value in options.items()
        if path == name or path.startswith(f"{name}/")
    }


def _path(*names: str) -> str:
    return "/".join(filter(None, names))
