"""Quantization arithmetic in NumPy and SciPy: grids, clip thresholds, channel splitting, kernels.

Nothing here knows TensorFlow or Keras. Kernels have their input channels on axis -2 and their
output channels on axis -1, as Keras keeps them.
"""

from ocs_tf.numerics.activation_splitting import SPLIT_RULES, OracleGrid, split_values
from ocs_tf.numerics.clipping import CLIP_METHODS, clip_threshold, optimal_thresholds
from ocs_tf.numerics.grid import (
    ActivationGrid,
    code_limit,
    dequantize,
    fake_quantize,
    quantize,
    symmetric_step,
)
from ocs_tf.numerics.packing import pack_codes, unpack_codes
from ocs_tf.numerics.quantized_kernel import (
    GRANULARITIES,
    WEIGHT_CLIPS,
    QuantizedKernel,
    quantize_kernel,
    sqnr_db,
)
from ocs_tf.numerics.splitting import Split, copy_count, split_channels

__all__ = [
    "CLIP_METHODS",
    "GRANULARITIES",
    "SPLIT_RULES",
    "WEIGHT_CLIPS",
    "ActivationGrid",
    "OracleGrid",
    "QuantizedKernel",
    "Split",
    "clip_threshold",
    "code_limit",
    "copy_count",
    "dequantize",
    "fake_quantize",
    "optimal_thresholds",
    "pack_codes",
    "quantize",
    "quantize_kernel",
    "split_channels",
    "split_values",
    "sqnr_db",
    "symmetric_step",
    "unpack_codes",
]
