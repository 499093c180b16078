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

from ocs_tf.export.lowering.build import Lowered, lower

__all__ = ["Lowered", "lower"]
