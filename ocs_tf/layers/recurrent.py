"""Recurrent layers and cells with quantized kernels.

A cell is the Keras cell it replaces, computing with the effective kernels in float: quantization is
of weights only, states and activations inside of the loop are not rounded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import ops

from ocs_tf.keras_internals import layers_within
from ocs_tf.keras_types import Tensor
from ocs_tf.layers.checks import FromConfig, as_stored, check_floats, of_layer, options_by_name
from ocs_tf.layers.quantizers import PACKAGE
from ocs_tf.layers.storage import StoredKernel

CELL_KERNELS = ("kernel", "recurrent_kernel")


def _kernel(name: str) -> Any:
    """A property of a cell: the float kernel, whether it is stored as one or as codes."""

    def get(cell: keras.layers.Layer) -> Any:
        unpacked = cell.unpacked_kernels.get(name)
        if unpacked is not None:
            return unpacked
        weight = getattr(cell, f"_{name}_weight")
        if isinstance(weight, StoredKernel):
            return ops.cast(weight.kernel, cell.compute_dtype)
        return weight

    def put(cell: keras.layers.Layer, weight: keras.Variable) -> None:
        setattr(cell, f"_{name}_weight", weight)

    return property(get, put, doc="The effective kernel, a float tensor.")


class QuantizedCell(FromConfig, keras.layers.Layer):
    """Mixed into a Keras cell class, in front of it, to give it quantized kernels.

    Arguments (besides those of the Keras cell, keyword only):
        kernels: by name (`"kernel"`, `"recurrent_kernel"`), the options of a `StoredKernel`. A
            kernel without options is a float weight.

    Raises:
        ValueError: `kernels` has another name, or an option is out of range.
    """

    kernel = _kernel("kernel")
    recurrent_kernel = _kernel("recurrent_kernel")

    def __init__(self, *args: Any, kernels: Mapping[str, Mapping[str, Any]], **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "trainable": False})
        with of_layer(self.name):
            self.kernel_options = options_by_name(kernels, CELL_KERNELS)
        self.unpacked_kernels: dict[str, Any] = {}

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """A weight; in place of a kernel that has options, a `StoredKernel`."""
        name = kwargs.get("name")
        options = self.kernel_options.get(str(name))
        if options is None:
            return super().add_weight(*args, **kwargs)
        stored = StoredKernel(kwargs["shape"], name=name, **options)
        stored.build()
        return stored

    def stored_kernels(self) -> dict[str, StoredKernel]:
        """The quantized kernels, by name; the cell must be built."""
        weights = {name: getattr(self, f"_{name}_weight") for name in CELL_KERNELS}
        return {name: w for name, w in weights.items() if isinstance(w, StoredKernel)}

    @contextlib.contextmanager
    def unpacked(self) -> Iterator[None]:
        """Within this context, kernels are turned into floats once, not at each step of a loop."""
        stored = self.stored_kernels()
        self.unpacked_kernels.update({name: getattr(self, name) for name in stored})
        try:
            yield
        finally:
            self.unpacked_kernels.clear()

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        with of_layer(self.name):
            check_floats(self)

    def get_config(self) -> dict[str, Any]:
        stored = self.stored_kernels() if self.built else {}
        return {**super().get_config(), "kernels": as_stored(self.kernel_options, stored)}


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedLSTMCell(QuantizedCell, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` with quantized kernels; see `QuantizedCell`."""


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedGRUCell(QuantizedCell, keras.layers.GRUCell):
    """`keras.layers.GRUCell` with quantized kernels; see `QuantizedCell`."""


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedSimpleRNNCell(QuantizedCell, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` with quantized kernels; see `QuantizedCell`."""


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedRNN(FromConfig, keras.layers.RNN):  # type: ignore[misc]
    """`keras.layers.RNN` over quantized cells: what a quantized LSTM, GRU or SimpleRNN becomes."""

    def inner_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The loop over the sequence."""
        with contextlib.ExitStack() as stack:
            for cell in layers_within(self):
                if isinstance(cell, QuantizedCell):
                    stack.enter_context(cell.unpacked())
            return super().inner_loop(*args, **kwargs)


@keras.saving.register_keras_serializable(PACKAGE)
class UnrolledRNN(keras.layers.RNN):
    """`keras.layers.RNN`, unrolled, that computes what a loop does.

    Keras' own, unrolled, goes backwards through the mask when it selects states, but forwards when
    it sets masked outputs to zero.
    """

    zero_output_for_mask: bool

    def inner_loop(  # type: ignore[override]
        self, sequences: Tensor, initial_state: Any, mask: Tensor | None, **kwargs: Any
    ) -> Any:
        """One copy of the cell for each step."""
        if mask is None or not (self.go_backwards and self.zero_output_for_mask):
            return super().inner_loop(sequences, initial_state, mask, **kwargs)
        self.zero_output_for_mask = False
        try:
            last, outputs, states = super().inner_loop(sequences, initial_state, mask, **kwargs)
        finally:
            self.zero_output_for_mask = True
        mask = keras.ops.expand_dims(mask, -1)  # [N, T, 1]
        backwards = keras.ops.flip(mask, 1)
        zero = keras.ops.zeros((), outputs.dtype)
        last = keras.ops.where(mask[:, 0], last, zero)
        return last, keras.ops.where(backwards, outputs, zero), states
