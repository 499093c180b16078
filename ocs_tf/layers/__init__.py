"""The Keras layers of a quantized model, registered under the package name `ocs_tf`."""

from ocs_tf.layers.activations import keras2_hard_sigmoid
from ocs_tf.layers.attention import (
    QuantizedAttention,
    QuantizedGroupQueryAttention,
    QuantizedMultiHeadAttention,
)
from ocs_tf.layers.base import QUANTIZATION_OPTIONS, KernelLayer
from ocs_tf.layers.convolutions import (
    QuantizedConv1D,
    QuantizedConv1DTranspose,
    QuantizedConv2D,
    QuantizedConv2DTranspose,
    QuantizedConv3D,
    QuantizedConv3DTranspose,
    QuantizedDepthwiseConv1D,
    QuantizedDepthwiseConv2D,
)
from ocs_tf.layers.dense import QuantizedDense, QuantizedEinsumDense, QuantizedEmbedding
from ocs_tf.layers.inside import QuantizedInside
from ocs_tf.layers.quantizers import (
    FakeQuantize,
    OracleQuantize,
    QuantizedAveragePooling,
    QuantizedOutput,
    fake_quantize,
    unwrapped,
)
from ocs_tf.layers.recurrent import (
    QuantizedCell,
    QuantizedGRUCell,
    QuantizedLSTMCell,
    QuantizedRNN,
    QuantizedSimpleRNNCell,
)
from ocs_tf.layers.storage import StoredKernel

__all__ = [
    "QUANTIZATION_OPTIONS",
    "FakeQuantize",
    "KernelLayer",
    "OracleQuantize",
    "QuantizedAttention",
    "QuantizedAveragePooling",
    "QuantizedCell",
    "QuantizedConv1D",
    "QuantizedConv1DTranspose",
    "QuantizedConv2D",
    "QuantizedConv2DTranspose",
    "QuantizedConv3D",
    "QuantizedConv3DTranspose",
    "QuantizedDense",
    "QuantizedDepthwiseConv1D",
    "QuantizedDepthwiseConv2D",
    "QuantizedEinsumDense",
    "QuantizedEmbedding",
    "QuantizedGRUCell",
    "QuantizedGroupQueryAttention",
    "QuantizedInside",
    "QuantizedLSTMCell",
    "QuantizedMultiHeadAttention",
    "QuantizedOutput",
    "QuantizedRNN",
    "QuantizedSimpleRNNCell",
    "StoredKernel",
    "fake_quantize",
    "keras2_hard_sigmoid",
    "unwrapped",
]
