"""The Keras layers of a quantized model, registered under the package name `ocs_tf`."""

from ocs_tf.layers.kernels import (
    QUANTIZATION_OPTIONS,
    KernelLayer,
    QuantizedConv2D,
    QuantizedDense,
    QuantizedDepthwiseConv2D,
)
from ocs_tf.layers.quantizers import (
    FakeQuantize,
    OracleQuantize,
    QuantizedAveragePooling,
    QuantizedOutput,
    fake_quantize,
    unwrapped,
)

__all__ = [
    "QUANTIZATION_OPTIONS",
    "FakeQuantize",
    "KernelLayer",
    "OracleQuantize",
    "QuantizedAveragePooling",
    "QuantizedConv2D",
    "QuantizedDense",
    "QuantizedDepthwiseConv2D",
    "QuantizedOutput",
    "fake_quantize",
    "unwrapped",
]
