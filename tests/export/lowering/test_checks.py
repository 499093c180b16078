"""What cannot be lowered is refused, with the layer and the remedy, before any work."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from tests.export.networks import MODELS, linear, samples


def test_a_layer_that_reads_another_grid_than_it_was_quantized_for(tmp_path):
    """Layers called in another order, or with an edited grid."""
    model = keras.Sequential(
        [keras.Input((4,)), *(layers.Dense(4, "relu", name=name) for name in "abc")]
    )
    data = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    first, a, _, c = quantized.layers[-4:]
    shortened = keras.Model(quantized.inputs, c(a(first(quantized.inputs[0]))))
    message = r"layer 'c' was quantized for inputs on .*, but reads what 'a' rounds to"
    for target in ("int8", "packed"):
        with pytest.raises(ValueError, match=message):
            ocs_tf.export_tflite(shortened, tmp_path / "m.tflite", target=target)
    c.input_grid = a.output_grid
    ocs_tf.export_tflite(shortened, tmp_path / "m.tflite")


def test_float_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no quantized layer; pass what ocs_tf.convert"):
        ocs_tf.export_tflite(MODELS["mobile"](), tmp_path / "model.tflite")


def test_channels_first_is_refused(tmp_path):
    inputs = keras.Input((6, 8, 8))
    x = layers.Conv2D(4, 3, data_format="channels_first", name="cf")(inputs)
    model = keras.Model(inputs, x)
    model.compile(jit_compile=True)  # which computes it on any CPU
    quantized = ocs_tf.convert(model, verbose=False)
    with pytest.raises(ValueError, match="'cf' is channels_first, which TFLite does not have"):
        ocs_tf.export_tflite(quantized, tmp_path / "model.tflite", target="float")


def test_an_oracle_is_not_exported(tmp_path):
    model = linear()
    quantized = ocs_tf.convert(
        model,
        representative_dataset=samples(model),
        activation_scope="inputs",
        activation_expand_ratio=0.1,
        activation_split="oracle",
        verbose=False,
    )
    for target in ("int8", "packed", "float"):
        with pytest.raises(ValueError, match="chooses its grid from each batch, a simulation"):
            ocs_tf.export_tflite(quantized, tmp_path / "model.tflite", target=target)
    assert not list(tmp_path.iterdir())


def test_copies_that_nothing_can_make_in_integers(tmp_path):
    model = linear()
    data = samples(model)
    quantized = ocs_tf.convert(
        model,
        representative_dataset=data,
        activation_scope="inputs",
        activation_expand_ratio=0.1,
        verbose=False,
    )
    with pytest.raises(ValueError, match=r"nothing can make the copies in integers.*packed"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", representative_dataset=data)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_strings(tmp_path):
    """They ended in a TypeError. What is to be done instead works."""
    lookup = keras.layers.StringLookup(vocabulary=["a", "b", "c"], name="lookup")
    table = keras.layers.Embedding(lookup.vocabulary_size(), 4)
    head = keras.layers.Dense(2)

    def model(inputs, ids):
        return keras.Model(inputs, head(keras.layers.Flatten()(table(ids))))

    words = keras.Input((3,), dtype="string", name="words")
    quantized = ocs_tf.convert(model(words, lookup(words)), verbose=False)
    with pytest.raises(
        ValueError, match=r"^input 'words' holds strings, .* look strings up before"
    ):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", target="float")
    ids = keras.Input((3,), dtype="int64")
    quantized = ocs_tf.convert(model(ids, ids), verbose=False)
    ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", target="float")
    given = np.asarray(lookup(np.array([["c", "a", "x"]])))
    (close,) = ocs_tf.compare(quantized, ocs_tf.TFLiteModel(tmp_path / "m.tflite"), given)
    assert close.sqnr_db > 100
