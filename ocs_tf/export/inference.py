"""Layers as they are in inference: nothing is dropped.

A converter traces a layer for inference, where dropout does nothing. All the same a layer with
dropout inside brings along the state of its generator of random numbers, draws masks that nobody
reads, or takes a slower path: attention, one that multiplies the scale into the query's kernel.
"""

from __future__ import annotations

from typing import Any

import keras

# Attributes of Keras' layers and cells; recurrent layers read those of their cells.
_RATES = ("dropout", "recurrent_dropout", "_dropout")


def without_dropout(layer: Any) -> Any:
    """`layer`, never called yet, with all rates of dropout inside of Keras' own layers at 0."""
    if isinstance(layer, keras.layers.Layer):
        for part in layer._flatten_layers():
            for name in _RATES:
                if _is_rate(part, name):
                    setattr(part, name, 0.0)
    return layer


def _is_rate(layer: Any, name: str) -> bool:
    """Whether the attribute `name` of `layer` is a rate that Keras' own class sets and reads."""
    if isinstance(getattr(type(layer), name, None), property):
        return False
    of_keras = any(
        base.__module__.startswith("keras.src.layers.") and base is not keras.layers.Layer
        for base in type(layer).__mro__
    )
    rate = getattr(layer, name, None)
    return of_keras and isinstance(rate, int | float) and rate > 0
