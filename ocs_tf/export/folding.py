"""Places where TensorFlow's converter might fold constants into a kernel, which must not change.

It multiplies factors in front of a kernel, or behind it, into the weights, and adds what is added
in front of a dense layer to the bias: constants of batch norms, but also of activation functions
(`hard_sigmoid` divides by 6), of averages, and of whatever users' own layers compute.
"""

from __future__ import annotations

import keras

from ocs_tf import layers
from ocs_tf.graph import adapters
from ocs_tf.graph.affine import affine_axis
from ocs_tf.graph.analysis.activation_sites import activation_function, is_operation, moves_values
from ocs_tf.graph.layer_traits import holds
from ocs_tf.graph.reader import Graph

_FUNCTIONS = (
    keras.activations.relu,
    keras.activations.relu6,
    keras.activations.sigmoid,
    keras.activations.softmax,
    keras.activations.tanh,
)


def ends_in_sum(graph: Graph, tensor: keras.KerasTensor) -> bool:
    """Whether the last that was done to a tensor of a quantized model is an addition."""
    layer = layers.unwrapped(graph.producer[id(tensor)].layer)
    if isinstance(layer, layers.KernelLayer):
        return adapters.is_linear(getattr(layer, "activation", None))
    if _passes(layer):
        return ends_in_sum(graph, graph.producer[id(tensor)].inputs[0])
    return affine_axis(layer) is not None or is_operation(layer, ("Add", "Subtract"))


def may_end_in_product(graph: Graph, tensor: keras.KerasTensor) -> bool:
    """Whether the last that was done to a tensor may be a product with constants.

    But for layers that `affine_axis` knows: lowering deals with them, where they read floats.
    """
    node = graph.producer[id(tensor)]
    layer = layers.unwrapped(node.layer)
    if _passes(layer):
        return may_end_in_product(graph, node.inputs[0])
    if affine_axis(layer) is not None:
        return is_integer(node.inputs[0])
    return may_multiply(layer)


def is_integer(tensor: keras.KerasTensor) -> bool:
    """Whether a symbolic tensor holds integers."""
    return "int" in keras.backend.standardize_dtype(tensor.dtype)


def may_begin_with_product(graph: Graph, tensor: keras.KerasTensor, moved: bool = False) -> bool:
    """Whether the first that is done to a tensor may be a product with constants.

    Arguments:
        moved: something stands between the tensor and what made it. Otherwise lowering deals with
            layers that `affine_axis` knows.
    """
    for reader in graph.consumers[id(tensor)]:
        layer = layers.unwrapped(reader.layer)
        if _passes(layer):
            found = any(may_begin_with_product(graph, made, True) for made in reader.outputs)
        elif affine_axis(layer) is not None:
            found = moved
        else:
            found = not isinstance(layer, layers.KernelLayer) and may_multiply(layer)
        if found:
            return True
    return False


def may_multiply(layer: keras.layers.Layer) -> bool:
    """Whether `layer` may do more than its kernel does, or be no layer that is known not to."""
    plain = isinstance(layer, layers.KernelLayer) or holds(layer, "no_product")
    return not plain or function_may_multiply(layer)


def function_may_multiply(layer: keras.layers.Layer) -> bool:
    """Whether the activation function of `layer`, if any, may hold a product with constants."""
    function = activation_function(layer)
    return function is not None and function not in _FUNCTIONS


def _passes(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, layers.FakeQuantize) or moves_values(layer)
