"""How Keras layers store a quantized kernel: integer codes, a scale and a channel map.

A layer that does has `weight_bits`, `granularity` and `copies`; the functions here give it the
weights `codes` (int8 `[..., C', F]`), `scale` (float32, `()` or `[F]`) and, if there are copies,
`channel_map` (int32 `[C']`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ocs_tf.keras_types import Tensor
from ocs_tf.layers.checks import (
    FromConfig,
    check_file,
    check_floats,
    check_kernel,
    kernel_options,
    of_layer,
)
from ocs_tf.layers.quantizers import PACKAGE
from ocs_tf.numerics import QuantizedKernel
from ocs_tf.numerics.checks import LARGEST_INT32, check_integer, shown


def add_weight(
    layer: keras.layers.Layer, name: str, shape: Any, dtype: str, initializer: str = "zeros"
) -> keras.Variable:
    """A weight that is neither trained nor cast to half precision, where a small step vanishes."""
    return layer.add_weight(
        name=name,
        shape=shape,
        dtype=dtype,
        initializer=initializer,
        trainable=False,
        autocast=False,
    )


def add_kernel(layer: keras.layers.Layer, shape: Sequence[int], outputs: int) -> None:
    """Give `layer` the weights of a kernel that has `shape` without its copies."""
    *spatial, channels, columns = shape
    layer.codes = add_weight(layer, "codes", (*spatial, channels + layer.copies, columns), "int8")
    steps = (outputs,) if layer.granularity == "channel" else ()
    layer.scale = add_weight(layer, "scale", steps, "float32", initializer="ones")
    layer.channel_map = None
    if layer.copies:
        layer.channel_map = add_weight(layer, "channel_map", (channels + layer.copies,), "int32")


def effective_codes(codes: Tensor, channel_map: Tensor, copies: int) -> Tensor:
    """Codes `[..., C', F]` with copies summed back, float32 tensor `[..., C, F]`."""
    codes = ops.cast(codes, "float32")
    if not copies:
        return codes
    channels = codes.shape[-2] - copies
    extra = ops.moveaxis(codes[..., channels:, :], -2, 0)
    sums = ops.segment_sum(extra, channel_map[channels:], num_segments=channels)
    return codes[..., :channels, :] + ops.moveaxis(sums, 0, -2)


def quantized_kernel(layer: keras.layers.Layer) -> QuantizedKernel:
    """The quantized kernel that `layer` stores, as NumPy arrays.

    Raises:
        ValueError: it is not a quantized kernel: weights were set, or loaded from a bad file.
    """
    if layer.channel_map is None:
        mapping = np.arange(layer.codes.shape[-2], dtype=np.int32)
    else:
        mapping = np.asarray(layer.channel_map)
    kernel = QuantizedKernel(
        np.asarray(layer.codes), np.asarray(layer.scale), mapping, layer.weight_bits
    )
    with of_layer(layer.name):
        check_kernel(layer, kernel)
    return kernel


def load_kernel(layer: keras.layers.Layer, store: Any) -> None:
    """Load the weights of `layer` from `store`, as Keras does, but check them.

    Raises:
        ValueError: they are not what a layer of this configuration stores.
    """
    with of_layer(layer.name):
        check_file(layer, store)
    keras.layers.Layer.load_own_variables(layer, store)
    quantized_kernel(layer)
    with of_layer(layer.name):
        check_floats(layer)


def assign_kernel(layer: keras.layers.Layer, kernel: QuantizedKernel) -> None:
    """Store `kernel` in `layer`.

    Raises:
        ValueError: the layer cannot hold it.
    """
    with of_layer(layer.name):
        check_kernel(layer, kernel)
    layer.codes.assign(kernel.codes)
    layer.scale.assign(kernel.scale)
    if layer.channel_map is not None:
        layer.channel_map.assign(kernel.channel_map)


@keras.saving.register_keras_serializable(PACKAGE)
class StoredKernel(FromConfig, keras.layers.Layer):
    """A quantized kernel by itself, for layers that have several.

    Arguments:
        shape: `[C, F]` of the kernel without copies.
        weight_bits, granularity, copies, kernel_sqnr_db: as in `KernelLayer`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        weight_bits: int,
        granularity: str = "tensor",
        copies: int = 0,
        kernel_sqnr_db: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "trainable": False})
        with of_layer(self.name):
            if not isinstance(shape, (list, tuple)) or len(shape) != 2:
                raise ValueError(f"`shape` (={shown(shape)}) must be two integers.")
            self.shape = tuple(check_integer("shape", n, 1, LARGEST_INT32) for n in shape)
            options = kernel_options(
                weight_bits=weight_bits,
                granularity=granularity,
                copies=copies,
                kernel_sqnr_db=kernel_sqnr_db,
            )
        self.weight_bits: int = options["weight_bits"]
        self.granularity: str = options["granularity"]
        self.copies: int = options["copies"]
        self.kernel_sqnr_db: float | None = options["kernel_sqnr_db"]

    def build(self, input_shape: Any = None) -> None:
        add_kernel(self, self.shape, self.shape[-1])
        self.built = True

    @property
    def kernel(self) -> Tensor:
        """The effective float32 kernel `[C, F]`, tensor."""
        return effective_codes(self.codes, self.channel_map, self.copies) * self.scale

    def quantized_kernel(self) -> QuantizedKernel:
        """The stored kernel as NumPy arrays."""
        return quantized_kernel(self)

    def check_state(self) -> None:
        """Raise `ValueError` if options and weights are not those of a quantized kernel."""
        quantized_kernel(self)

    def assign(self, kernel: QuantizedKernel) -> None:
        """Store `kernel`; the layer must be built.

        Raises:
            ValueError: it is not one that the layer can hold.
        """
        assign_kernel(self, kernel)

    def load_own_variables(self, store: Any) -> None:
        load_kernel(self, store)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "shape": self.shape,
            "weight_bits": self.weight_bits,
            "granularity": self.granularity,
            "copies": self.copies,
            "kernel_sqnr_db": self.kernel_sqnr_db,
        }
