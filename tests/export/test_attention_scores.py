"""Scores of attention in int8 files: large ones, masked ones, and those that 8 bits hardly hold."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf.export import attention_scores
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.errors import VerificationError
from ocs_tf.export.exporter import convert_float
from ocs_tf.export.tensor_matching import largest_score

STEPS, WIDTH = 4, 8
BEFORE = np.tril(np.ones((STEPS, STEPS), bool))


def by_layer(x: Any, keys: Any) -> Any:
    return layers.Attention(name="attention")([x, x, keys], use_causal_mask=True)


def by_where(x: Any, keys: Any) -> Any:
    scores = ops.matmul(x, ops.transpose(keys, (0, 2, 1)))
    return ops.matmul(ops.softmax(ops.where(BEFORE, scores, -1e9)), x)


def by_sum(x: Any, keys: Any) -> Any:
    scores = ops.matmul(x, ops.transpose(keys, (0, 2, 1)))
    return ops.matmul(ops.softmax(scores + np.where(BEFORE, 0, -1e9).astype("float32")), x)


FORMS = {"layer": by_layer, "where": by_where, "sum": by_sum}


def model_of(form: Any, rng: np.random.Generator) -> keras.Model:
    x = keras.Input((STEPS, WIDTH), name="x")
    model = keras.Model(x, layers.Dense(2)(form(x, layers.Dense(WIDTH, name="keys")(x))))
    model.get_layer("keys").kernel.assign(-np.eye(WIDTH))
    return model


def tokens(size: float, count: int = 16) -> np.ndarray:
    """Rows of a Hadamard matrix, in random order: a score is `-size` with a row itself, else 0."""
    rng = np.random.default_rng(0)
    signs = np.array([[(-1) ** bin(i & j).count("1") for j in range(8)] for i in range(8)])
    rows = np.stack([rng.permutation(8)[:STEPS] for _ in range(count)])
    return (signs[rows] * np.sqrt(size / 8)).astype(np.float32)


@pytest.mark.parametrize("size", [20.0, 400.0, 3000.0])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_masked_scores_stay_below_all_others(
    form: Any, size: float, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    """Masks of -256 alone would lift later steps, of score 0, above a first one of -400."""
    model, x = model_of(form, rng), tokens(size)
    quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    result = ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", representative_dataset=x)
    assert result.closeness[0].sqnr_db > 25


def test_magnitudes_of_scores_and_masks(rng: np.random.Generator) -> None:
    """8 times the largest score, rounded up to a power of two, but no more than the model has."""
    content = convert_float(sized(model_of(by_sum, rng)))
    assert largest_score(content, [tokens(400.0)[:1]]) == pytest.approx(400, rel=1e-5)
    for largest, mask in ((0.0, 256), (32.0, 256), (33.0, 512), (400.0, 4096)):
        limited = fb.read(attention_scores.limit_masks(content, largest))
        (score, *_) = attention_scores.scores(limited).values()
        assert score.mask == mask


def sized(model: keras.Model) -> keras.Model:
    """`model` for batches of one."""
    x = keras.Input(batch_shape=(1, STEPS, WIDTH), name="x")
    return keras.Model(x, model(x))


def test_scores_that_8_bits_hardly_tell_apart(tmp_path: pathlib.Path) -> None:
    """2501 and 2499 share a code: weights are 0.5 and 0.5, not 0.88 and 0.12."""
    x = keras.Input((2, 2), name="x")
    values = layers.Dense(1, use_bias=False, name="values")(x)
    model = keras.Model(x, layers.Attention(name="attention")([x, values, x]))
    model.get_layer("values").kernel.assign([[0.0], [1.0]])
    data = np.array([[[50.0, 1.0], [50.0, -1.0]], [[50.0, -1.0], [50.0, 1.0]]], np.float32)
    quantized, path = (
        ocs_tf.convert(model, representative_dataset=data, verbose=False),
        tmp_path / "m",
    )
    with pytest.raises(VerificationError, match=r"'attention' in steps of .* activations='float'"):
        ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    result = ocs_tf.export_tflite(quantized, path, activations="float", overwrite=True)
    assert not any("Softmaxes" in note for note in result.notes)  # the remedy
    result = ocs_tf.export_tflite(
        quantized, path, representative_dataset=data, verify=False, overwrite=True
    )
    assert any("'attention' in steps of" in note for note in result.notes)
