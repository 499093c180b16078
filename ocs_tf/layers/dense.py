"""Quantized layers whose kernels multiply channels, or are looked up."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ocs_tf.keras_types import Tensor
from ocs_tf.layers.base import KernelLayer
from ocs_tf.layers.einsum import EinsumSpec
from ocs_tf.layers.quantizers import PACKAGE, fake_quantize


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedDense(KernelLayer, keras.layers.Dense):  # type: ignore[misc]
    """`keras.layers.Dense` with a quantized kernel; see `KernelLayer`."""

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        return input_shape[-1], self.units

    def apply_kernel(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.matmul(inputs, kernel)


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedEinsumDense(KernelLayer, keras.layers.EinsumDense):  # type: ignore[misc]
    """`keras.layers.EinsumDense` with a quantized kernel; see `KernelLayer`.

    Codes are `[C, F]`: the axes that are summed over make up C, all others of the kernel F.
    """

    @property
    def use_bias(self) -> bool:
        """Whether there is a bias."""
        return self.bias_axes is not None

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        self.spec = EinsumSpec.of(self, input_shape)
        return self.spec.channels, self.spec.outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As newer versions of Keras do it; older ones need what their own `build` leaves."""
        return EinsumSpec.of(self, input_shape).full_output_shape

    def keras_layout(self, kernel: Tensor) -> Tensor:
        return ops.transpose(ops.reshape(kernel, self.spec.ordered_shape), self.spec.keras_order)

    def apply_kernel(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.einsum(self.equation, inputs, kernel)

    def _per_channel(self, values: Tensor, outputs: Tensor) -> Tensor:
        return ops.reshape(values, self.spec.output_shape) if len(values.shape) else values


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedEmbedding(KernelLayer, keras.layers.Embedding):
    """`keras.layers.Embedding` with a quantized table; see `KernelLayer`."""

    use_bias = False
    may_split = False

    def kernel_shape(self, input_shape: Any) -> tuple[int, ...]:
        return self.input_dim, self.output_dim

    @property
    def embeddings(self) -> Tensor:
        """The effective float32 table."""
        return self.kernel

    def call(self, inputs: Tensor) -> Tensor:
        codes = ops.take(self.codes, ops.cast(inputs, "int32"), axis=0)
        outputs = ops.cast(codes, "float32") * self.scale
        if self.output_grid is not None:
            outputs = fake_quantize(outputs, self.output_grid)
        return ops.cast(outputs, self.compute_dtype)
