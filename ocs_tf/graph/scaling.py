"""The model with scaled channels: the same function, other weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.graph import adapters
from ocs_tf.graph.analysis.chains import Chain, chains
from ocs_tf.graph.cloning import check_copied, clone_layer
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.rebuild import rebuild
from ocs_tf.numerics.cross_layer_equalization import (
    input_factors,
    scale_in_place,
)


def scale_channels(graph: Graph, scales: Mapping[str, Any]) -> keras.Model:
    """A model of the same function with scaled channels; `graph.model` stays as it is.

    Arguments:
        scales: by the name of the layer that makes the channels: they are divided by these
            positive numbers `[C]`.

    Raises:
        ValueError: there is no such chain in the model, or not of this size.
    """
    known = chains(graph)
    made: dict[str, NDArray[np.float64]] = {}
    read: dict[str, NDArray[np.float64]] = {}
    for name, values in scales.items():
        scale = _checked(graph, known, name, values)
        made[name] = 1 / scale
        for reader, channels in known[name].readers.items():
            own = channels >= 0
            read.setdefault(reader, np.ones(len(channels)))[own] = scale[channels[own]]

    def replace(layer: keras.layers.Layer) -> keras.layers.Layer:
        scaled = layer.name in made or layer.name in read
        if scaled and isinstance(layer, keras.layers.BatchNormalization):
            return type(layer).from_config({**layer.get_config(), "scale": True})
        return clone_layer(layer)

    def call(layer: keras.layers.Layer, twin: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return twin(*args, **kwargs)

    model, twins = rebuild(graph, replace, call)
    for name, twin in twins.items():
        layer = graph.calls_of(name)[0].layer
        if name in made or name in read:
            twin.set_weights(_scaled_weights(layer, made.get(name), read.get(name)))
        else:
            check_copied(layer, twin)
    return model


def check_scales(graph: Graph, scales: Mapping[str, Any]) -> None:
    """Raise `ValueError` if `scales` are not those of chains of the model."""
    if scales:
        known = chains(graph)
        for name, values in scales.items():
            _checked(graph, known, name, values)


def _scaled_weights(
    layer: keras.layers.Layer, made: NDArray[np.float64] | None, read: NDArray[np.float64] | None
) -> list[NDArray[np.float32]]:
    """Weights of `layer` with output channels times `made` and input channels times `read`.

    Float32 products of float64 factors, without a copy in float64 of a whole kernel.
    """
    if isinstance(layer, keras.layers.BatchNormalization):
        return _scaled_norm(layer, made, read)
    adapter = adapters.adapter_for(layer)
    assert adapter is not None
    kernel, bias = adapter.read(layer)
    factors = np.ones(kernel.shape[-1]) if made is None else made
    scaled = kernel.astype(np.float32)
    scale_in_place(scaled, factors)
    if read is not None:
        rows = input_factors(read, adapter.groups(layer), kernel.shape[-1])
        scale_in_place(scaled, rows)
    weights = [adapter.to_keras(scaled, layer)]
    return weights if bias is None else [*weights, (bias * factors).astype(np.float32)]


def _scaled_norm(layer: keras.layers.Layer, made: Any, read: Any) -> list[NDArray[np.float32]]:
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
    gamma = np.asarray(layer.gamma) if layer.scale else np.ones(mean.shape)
    made, read = (1.0 if factors is None else factors for factors in (made, read))
    weights = [gamma * made * read]
    if layer.center:
        weights.append(np.asarray(layer.beta) * made)
    return [np.asarray(w, np.float32) for w in (*weights, mean / read, variance)]


def _checked(
    graph: Graph, known: Mapping[str, Chain], name: str, values: Any
) -> NDArray[np.float64]:
    if name not in known:
        raise ValueError(
            f"the plan scales the channels of layer {name!r}, which `model` {graph.model.name!r}"
            f" does not have, or whose channels cannot be scaled; those are: {', '.join(known)}."
        )
    scale = np.asarray(values, np.float64)
    if scale.shape != (known[name].size,) or not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError(
            f"the plan scales the channels of layer {name!r} by {scale.size} numbers; it must be"
            f" {known[name].size} positive ones."
        )
    return scale
