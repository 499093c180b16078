"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

Build = Callable[[], keras.Model]
NETWORKS: dict[str, Build] = {}
WORDS = 40  # rows of tables that integer inputs are looked up in


def network(build: Build) -> Build:
    """Register a function that makes a network, by its name."""
    NETWORKS[build.__name__] = build
    return build


def made(name: str) -> keras.Model:
    """The network of this name, with random weights: the same in each process."""
    keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "bias", "moving_mean"):
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


def samples(model: keras.Model, count: int) -> dict[str, np.ndarray]:
    """Random inputs by name: normal numbers, and integers below `WORDS`."""
    rng = np.random.default_rng(1)
    arrays = {}
    for tensor in model.inputs:
        shape = (count, *tensor.shape[1:])
        whole = "int" in tensor.dtype
        values = rng.integers(0, WORDS, shape) if whole else rng.normal(size=shape)
        arrays[tensor.name] = values.astype(tensor.dtype)
    return arrays
