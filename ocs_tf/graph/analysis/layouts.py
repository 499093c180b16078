"""Whether TensorFlow can compute the `channels_first` operations of a model on this machine.

On CPUs it has kernels for them only in oneDNN, which it leaves off on some, most of them only in
float32. Which operations Keras transposes instead, or compiles, depends on its version; so each is
tried once in each dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ocs_tf.graph.reader import Graph, Node
from ocs_tf.keras_internals import layers_within

_LAYERS: dict[str, tuple[type, ...]] = {
    "conv": (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    "conv_transpose": (
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
    ),
    "depthwise_conv": (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    "separable_conv": (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
    "max_pool": (
        keras.layers.MaxPooling1D,
        keras.layers.MaxPooling2D,
        keras.layers.MaxPooling3D,
    ),
    "average_pool": (
        keras.layers.AveragePooling1D,
        keras.layers.AveragePooling2D,
        keras.layers.AveragePooling3D,
    ),
}
_RECURRENT = (keras.layers.ConvLSTM1D, keras.layers.ConvLSTM2D, keras.layers.ConvLSTM3D)
# Operations that are called without a layer, by the class that Keras records.
_BARE = {
    "Conv": "conv",
    "ConvTranspose": "conv_transpose",
    "DepthwiseConv": "depthwise_conv",
    "SeparableConv": "separable_conv",
    "MaxPool": "max_pool",
    "AveragePool": "average_pool",
}
_CHANNELS = 2
_REMEDY = {
    True: (
        "on a CPU that needs oneDNN, which is off here. Set the environment variable"
        " TF_ENABLE_ONEDNN_OPTS=1 before TensorFlow is imported (on x86, this switches oneDNN on),"
        " or build the model with data_format='channels_last' (kernels keep their shapes)."
    ),
    False: (
        "TensorFlow's kernels for CPUs, with oneDNN or without, have it in float32 at most. Build"
        " the model with data_format='channels_last' (kernels keep their shapes)."
    ),
}


def check_layouts(graph: Graph) -> None:
    """Raise `ValueError` if TensorFlow cannot compute a `channels_first` layer of `graph` here."""
    for node in graph.nodes:
        for layer, operation, rank, grouped in _channels_first(node):
            dtype = _dtype(layer, node)
            if not is_computed(operation, rank, grouped, dtype):
                in_float32 = dtype == "float32"
                raise ValueError(
                    f"layer {layer.name!r} ({type(layer).__name__}) is channels_first"
                    f"{'' if in_float32 else f' in {dtype}'}, which TensorFlow cannot compute on"
                    f" this machine: {_REMEDY[in_float32]}"
                )


def _dtype(layer: keras.layers.Layer, node: Node) -> str:
    """In which `layer`, or an operation, computes."""
    if isinstance(layer, keras.layers.Layer):
        return str(layer.compute_dtype)
    return str(keras.backend.standardize_dtype(node.inputs[0].dtype))


def _channels_first(node: Node) -> Iterator[tuple[keras.layers.Layer, str, int, bool]]:
    """The `channels_first` operations of `node`, inner layers included: it, name, rank, grouped."""
    if not isinstance(node.layer, keras.layers.Layer):
        operation = _BARE.get(type(node.layer).__name__)
        layout = getattr(node.layer, "data_format", "channels_last")
        if operation and (layout or keras.config.image_data_format()) == "channels_first":
            yield node.layer, operation, len(node.inputs[0].shape) - 2, False
        return
    for layer in layers_within(node.layer):
        cell = layer.cell if isinstance(layer, _RECURRENT) else layer
        if getattr(cell, "data_format", None) != "channels_first":
            continue
        if cell is not layer:
            yield layer, "conv", cell.rank, False
        for operation, classes in _LAYERS.items():
            for rank, cls in enumerate(classes, 1):
                if isinstance(layer, cls):
                    yield layer, operation, rank, getattr(layer, "groups", 1) > 1


@functools.cache
def is_computed(operation: str, rank: int, grouped: bool, dtype: str = "float32") -> bool:
    """Try `keras.ops.OPERATION` on zeros of `rank` spatial axes, in `dtype`."""
    function = getattr(keras.ops, operation)
    inputs = keras.ops.zeros((1, _CHANNELS, *[3] * rank), dtype)
    size = [2] * rank
    arguments: dict[str, tuple[Any, ...]] = {
        "conv": (_kernel(size, _CHANNELS // 2 if grouped else _CHANNELS, _CHANNELS),),
        "conv_transpose": (_kernel(size, _CHANNELS, _CHANNELS), 1),  # Keras 3.5 needs strides
        "depthwise_conv": (_kernel(size, _CHANNELS, 1),),
        "separable_conv": (
            _kernel(size, _CHANNELS, 1),
            _kernel([1] * rank, _CHANNELS, _CHANNELS),
        ),
        "max_pool": (2,),
        "average_pool": (2,),
    }
    try:
        given = [
            keras.ops.cast(value, dtype) if isinstance(value, np.ndarray) else value
            for value in arguments[operation]
        ]
        function(inputs, *given, data_format="channels_first")
    except tf.errors.OpError:
        return False
    return True


def _kernel(size: list[int], *channels: int) -> np.ndarray:
    return np.zeros((*size, *channels), np.float32)
