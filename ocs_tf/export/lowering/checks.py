"""What cannot be lowered, before any work."""

from __future__ import annotations

import keras

from ocs_tf import layers
from ocs_tf.export.form import Form
from ocs_tf.export.lowering.kernels import inside
from ocs_tf.graph import composites
from ocs_tf.graph.analysis.activation_sites import tensor_grids
from ocs_tf.graph.reader import Graph
from ocs_tf.layers.checks import check_floats, check_grid, of_layer
from ocs_tf.numerics import ActivationGrid


def check(graph: Graph, form: Form) -> None:
    """Raise `ValueError` for what cannot be lowered; see `lower`."""
    _check_input_grids(graph)
    for node in graph.nodes:
        _check_stored(layers.unwrapped(node.layer), node.layer)
    quantized = [n.layer for n in graph.nodes if isinstance(n.layer, layers.KernelLayer)]
    if not quantized and not any(inside(node.layer) for node in graph.nodes):
        raise ValueError(
            f"`model` {graph.model.name!r} has no quantized layer; pass what"
            " ocs_tf.convert returned."
        )
    for tensor in graph.model.inputs:
        if str(tensor.dtype) == "string":
            raise ValueError(
                f"input {tensor.name!r} holds strings, for which TFLite has no tables. Give the"
                " model an input of the integers that its lookup makes, and look strings up before."
            )
    for layer in quantized:
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                f"layer {layer.name!r} is channels_first, which TFLite does not have; build"
                " the model with data_format='channels_last'."
            )
    for layer in (node.layer for node in graph.nodes):
        if isinstance(layer, layers.OracleQuantize):
            raise ValueError(
                f"layer {layer.name!r} chooses its grid from each batch, a simulation only;"
                " convert with another activation_split than 'oracle'."
            )
        _check_length(layer, graph, form)
        copies = isinstance(layer, layers.FakeQuantize) and layer.grid.copies
        if copies and form.integer:
            raise ValueError(
                f"layer {layer.name!r} splits activations where nothing can make the copies in"
                " integers. Convert with activation_scope='all' or activation_expand_ratio=0,"
                " or export with target='packed'."
            )


def _check_stored(layer: keras.layers.Layer, wrapper: keras.Operation) -> None:
    """Refuse what no conversion makes, from a damaged file or of weights that were set."""
    with of_layer(layer.name):
        if isinstance(wrapper, (layers.FakeQuantize, layers.QuantizedOutput)):
            check_grid("grid", wrapper.grid)
        kernels = inside(layer)
        for path, stored in kernels.items():
            with of_layer(path):
                stored.check_state()
        if kernels:
            check_floats(layer)
    if isinstance(layer, layers.KernelLayer):
        layer.check_state()


def _check_length(layer: keras.layers.Layer, graph: Graph, form: Form) -> None:
    if not (form.integer and inside(layer)):
        return
    steps = [call.inputs[0].shape[1] for call in graph.calls_of(layer.name)]
    if composites.is_recurrent(layers.unwrapped(layer)) and None in steps:
        raise ValueError(
            f"layer {layer.name!r} reads sequences of any length, but an int8 file has a copy"
            " of the layer's operators for each time step. Build the model with a fixed length"
            " (keras.Input((100, 8))), or export with activations='float' or 'dynamic', or"
            " target='packed'."
        )


def _check_input_grids(graph: Graph) -> None:
    """Refuse a layer that takes its input to be on another grid than it is: by now, or by mistake.

    The layers of a quantized model can be edited, and called in another order.
    """
    grids = {
        str(node.layer.name): grid
        for node in graph.nodes
        for attribute in ("grid", "output_grid")
        if isinstance(grid := getattr(node.layer, attribute, None), ActivationGrid)
    }
    known = tensor_grids(graph, grids)
    for node in graph.nodes:
        wanted = getattr(node.layer, "input_grid", None)
        found = known.get(id(node.inputs[0])) if node.inputs else None
        if isinstance(wanted, ActivationGrid) and found not in (None, wanted):
            maker = graph.producer[id(node.inputs[0])].layer.name
            raise ValueError(
                f"layer {node.layer.name!r} was quantized for inputs on {wanted}, but reads what"
                f" {maker!r} rounds to {found}. Convert the float model anew, in the form that it"
                " is to have."
            )
