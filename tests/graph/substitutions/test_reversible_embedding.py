"""A `ReversibleEmbedding` is a lookup and, in reverse, a product with the same table."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf

IDS = np.array([[0, 3, 2], [1, 1, 4]])
pytestmark = pytest.mark.skipif(
    not hasattr(layers, "ReversibleEmbedding"), reason="of newer versions of Keras"
)


def language_model(**options: Any) -> tuple[keras.Model, Any]:
    table = layers.ReversibleEmbedding(5, 4, name="words", **options)
    inputs = keras.Input((3,), dtype="int32")
    model = keras.Model(inputs, table(layers.Dense(4, name="d")(table(inputs)), reverse=True))
    for weight in model.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    return model, table


@pytest.mark.parametrize("tied", [True, False])
def test_both_ways_are_quantized(tied: bool) -> None:
    model, table = language_model(tie_weights=tied)
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    kinds = {layer.name: layer.type for layer in ocs_tf.report(quantized).layers}
    assert kinds == {"words": "Embedding", "d": "Dense", "words_reverse": "Dense"}
    kernel = np.asarray(table.embeddings).T if tied else np.asarray(table.reverse_embeddings)
    found = np.asarray(quantized.get_layer("words_reverse").kernel)
    np.testing.assert_allclose(found, kernel, atol=np.abs(kernel).max() / 254 * 1.01)
    expected = np.asarray(model(IDS))
    np.testing.assert_allclose(quantized(IDS), expected, atol=0.02 * np.abs(expected).max())


def test_what_is_no_product_stays_in_float() -> None:
    model, _ = language_model(logit_soft_cap=2.0)
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    assert set(ocs_tf.plan(model, verbose=False).layers) == {"words", "d"}
    np.testing.assert_allclose(quantized(IDS), model(IDS), atol=0.05)
