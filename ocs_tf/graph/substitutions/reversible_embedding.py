"""A `ReversibleEmbedding` as the two layers that it consists of: a lookup, and its transpose.

Language models look words up in a table, and compare what they come to with the same table.
"""

from __future__ import annotations

import keras
import numpy as np

_CLASS = getattr(keras.layers, "ReversibleEmbedding", None)  # of newer versions of Keras


def is_reversible(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is one, or a subclass that calls the same."""
    return _CLASS is not None and isinstance(layer, _CLASS) and type(layer).call is _CLASS.call


def is_product(layer: keras.layers.Layer) -> bool:
    """Whether a reversed call of `layer` is a product and nothing else."""
    return layer.logit_soft_cap is None and layer.reverse_dtype is None


def lookup(layer: keras.layers.Layer) -> keras.layers.Embedding:
    """What `layer` does forwards, with a copy of its table."""
    made = keras.layers.Embedding(
        layer.input_dim,
        layer.output_dim,
        mask_zero=layer.mask_zero,
        name=layer.name,
        dtype=layer.dtype_policy,
    )
    made.build()
    made.embeddings.assign(layer.embeddings)
    return made


def product(layer: keras.layers.Layer) -> keras.layers.Dense:
    """What `layer` does in reverse, with a copy of its table."""
    made = keras.layers.Dense(
        layer.input_dim, use_bias=False, name=f"{layer.name}_reverse", dtype=layer.dtype_policy
    )
    made.build((None, layer.output_dim))
    tied = np.asarray(layer.embeddings).T if layer.tie_weights else layer.reverse_embeddings
    made.kernel.assign(tied)
    return made
