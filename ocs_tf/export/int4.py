"""INT4 kernels in `.tflite` files: storage, and combinations that runtimes fail with.

The tensor type holds two codes in a byte. LiteRT and TensorFlow Lite compute with it, but not with
every operator, and not every failure is an error: some combinations return nonsense. All those that
a file of this package could hold are refused here, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.kernel_matching import ExportKernel, stored_kernels
from ocs_tf.numerics.packing import pack_codes, unpack_codes


class Kernel(Protocol):
    """What is asked of a kernel: the layer's name, its kind, and the bits of its tensor."""

    @property
    def layer(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def bits(self) -> int: ...


KINDS = ("conv", "dense", "depthwise")  # of kernels that operators read as INT4
ACTIVATIONS = ("int8", "float", "dynamic")


def check(kernels: Sequence[Kernel], activations: str) -> None:
    """Refuse kernels that no INT4 file should be written for, before any work.

    Arguments:
        kernels: all kernels of a model.
        activations: `"int8"`: on fixed grids; `"float"`: not quantized; `"dynamic"`: quantized by
            the runtime, as they come.

    Raises:
        ValueError: if no kernel has 4 bits, or runtimes cannot compute with one of them.
    """
    if activations not in ACTIVATIONS:
        raise ValueError(
            f"`activations` (={activations!r}) must be one of {', '.join(ACTIVATIONS)}."
        )
    if all(kernel.bits != 4 for kernel in kernels):
        raise ValueError(
            "no kernel has 4 bits or less, so there is nothing to store in INT4; use"
            " target='int8', or convert with weight_bits=4 (and first_layer_bits='same',"
            " last_layer_bits='same': these layers keep 8 bits otherwise)."
        )
    for kernel in kernels:
        if kernel.kind == "depthwise":
            _check_depthwise(kernel, activations)


def check_operators(
    model: Any, assigned: Mapping[fb.Place, ExportKernel], activations: str
) -> None:
    """`check` for what the converter made of the layers.

    Arguments:
        model: the float model.
        assigned: kernels by operator.
        activations: as for `check`.

    Raises:
        ValueError: if runtimes cannot compute an operator with its kernel.
    """
    for place, kernel in assigned.items():
        op, tensors = fb.operator(model, place), model.subgraphs[place[0]].tensors
        kind = fb.op_name(model, op)
        if kind == "DEPTHWISE_CONV_2D":
            _check_depthwise(kernel, activations)
        elif kind == "CONV_2D":
            read, held = (fb.shape(tensors[i])[-1] for i in op.inputs[:2])
            _check_convolution(kernel, activations, groups=read // held)


def _check_depthwise(kernel: Kernel, activations: str) -> None:
    # "Type FLOAT32 with filter type INT4 not currently supported", from both runtimes.
    if kernel.bits == 4 and activations == "dynamic":
        raise ValueError(
            f"layer {kernel.layer!r}: runtimes have no depthwise convolution with an INT4 kernel"
            " for activations='dynamic'; use 'int8' or 'float', or convert with an Override that"
            " gives this layer 5 to 8 bits."
        )


def _check_convolution(kernel: ExportKernel, activations: str, groups: int) -> None:
    # Equal steps are taken for one step, whose kernel does not know groups: "Invalid tensor index".
    if groups > 1 and activations == "dynamic" and np.all(kernel.scale == kernel.scale.flat[0]):
        raise ValueError(
            f"layer {kernel.layer!r}: tf.lite cannot run a convolution of {groups} groups whose"
            " output channels have one scale with activations='dynamic'; use 'int8' or 'float', or"
            " convert this layer with granularity='channel'."
        )


def store(model: Any, assigned: Mapping[fb.Place, ExportKernel]) -> None:
    """Turn the INT8 tensors of 4-bit kernels into INT4 ones: the same codes and scales."""
    packed: set[int] = set()
    for _, tensor, kernel in stored_kernels(model, assigned):
        if kernel.bits != 4 or fb.type_name(tensor) == "int4":
            continue
        if tensor.buffer not in packed:
            codes = fb.constant(model, tensor).reshape(1, -1)
            model.buffers[tensor.buffer].data = pack_codes(codes, 4).reshape(-1)
            packed.add(tensor.buffer)
        tensor.type = schema.TensorType.INT4


def codes_of(model: Any, tensor: Any) -> np.ndarray:
    """The codes of an INT8 or INT4 constant, int8, in its shape."""
    if fb.type_name(tensor) != "int4":
        return fb.constant(model, tensor)
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    shape = fb.shape(tensor)
    return unpack_codes(data.reshape(1, -1), 4, int(np.prod(shape))).reshape(shape)
