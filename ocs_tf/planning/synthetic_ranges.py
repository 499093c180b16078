"""Ranges of activations on synthetic data, widened to what real data would reach.

Synthetic inputs resemble no class, and excite the last layers less than real ones do. In front of
those, batch norms tell how far values reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ocs_tf.graph.analysis.activation_sites import Site
from ocs_tf.graph.analysis.batch_norm_moments import Moments, channel_moments
from ocs_tf.graph.layer_traits import holds
from ocs_tf.graph.reader import Graph
from ocs_tf.planning.calibration import Statistics

_DEVIATIONS = 4.0
_LAST = 2.0  # factor of the range of what no kernel reads any more


def widened(
    graph: Graph, sites: Sequence[Site], measured: Mapping[str, Sequence[Statistics]]
) -> dict[str, list[Statistics]]:
    """The statistics of `sites`, by key, that hold what real data may reach as well."""
    moments = channel_moments(graph)
    last = graph.tensors_behind_kernels()
    found = {key: list(each) for key, each in measured.items()}
    for site in sites:
        if site.key not in measured or site.fixed:
            continue
        for i, (tensor, seen) in enumerate(zip(site.tensors, measured[site.key], strict=True)):
            if id(tensor) in last:
                ends = [_LAST * seen.minimum, _LAST * seen.maximum]
            else:
                ends = _reach(graph, tensor, moments)
            if ends:
                reached = Statistics.of(np.array(ends, np.float32), seen.counts is not None)
                wider = seen.merge(reached)
                found[site.key][i] = dataclasses.replace(wider, channels=seen.channels)
    return found


def _reach(graph: Graph, tensor: Any, moments: Mapping[int, Moments]) -> list[float]:
    """The ends of what a tensor of known moments reaches; nothing where these are not known."""
    node = graph.producer.get(id(tensor))
    if node is None:
        return []
    layer = node.layer
    through = holds(layer, "elementwise") and not layer.weights and len(node.inputs) == 1
    known = moments.get(id(node.inputs[0] if through else tensor))
    if known is None:
        return []
    mean, deviation = known[0], np.sqrt(known[1])
    ends = np.stack([mean - _DEVIATIONS * deviation, mean + _DEVIATIONS * deviation])
    values = layer(ends.astype(np.float32)) if through else ends
    values = keras.ops.convert_to_numpy(values)
    return [float(values.min()), float(values.max())] if np.isfinite(values).all() else []
