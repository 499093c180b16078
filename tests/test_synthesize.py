"""Calibration inputs without data, and what is made of them."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from tests.synthesis.test_input_moments import convolutional, pictures, trained


@pytest.fixture
def model(rng: np.random.Generator) -> keras.Model:
    keras.utils.set_random_seed(0)
    return trained(convolutional(), "norm", pictures(rng, 0, 255))


def test_inputs_are_of_the_range_that_the_batch_norm_tells(model: keras.Model) -> None:
    made = ocs_tf.synthesize(model, 20, steps=5, verbose=False)
    (name,) = made
    assert made[name].shape == (20, 16, 16, 3)
    assert made[name].dtype == np.float32
    assert made[name].min() >= -1e-3
    assert 150 < made[name].max() <= 255.001
    assert made.mismatch is not None
    assert made.mismatch[1] < made.mismatch[0]
    assert "20 synthetic samples" in made.summary
    assert "0 to 255" in made.summary


def test_the_same_seed_gives_the_same_inputs(model: keras.Model) -> None:
    weights = [np.array(w) for w in model.weights]
    options: dict[str, Any] = {"samples": 8, "steps": 2, "verbose": False}
    first, again, other = (ocs_tf.synthesize(model, seed=s, **options) for s in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    for before, after in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, after)


def test_noise_takes_no_gradients(model: keras.Model) -> None:
    made = ocs_tf.synthesize(model, 8, method="noise", verbose=False)
    assert made.mismatch is None


def test_convert_takes_the_word(model: keras.Model, rng: np.random.Generator) -> None:
    quantized = ocs_tf.convert(
        model, representative_dataset="synthetic", activation_bits=8, verbose=False
    )
    x = pictures(rng, 0, 255)
    want, got = model.predict_on_batch(x), quantized.predict_on_batch(x)
    assert 10 * np.log10(np.square(want).sum() / np.square(want - got).sum()) > 25
    assert ocs_tf.plan(model, representative_dataset="synthetic", verbose=False).activations


def test_the_last_range_is_twice_that_of_the_same_arrays(model: keras.Model) -> None:
    made = ocs_tf.synthesize(model, 16, steps=2, verbose=False)
    plans = [
        ocs_tf.plan(model, representative_dataset=data, verbose=False)
        for data in (made, dict(made))
    ]
    name = model.layers[-1].name
    wide, narrow = (plan.activations[name].scale for plan in plans)
    assert wide == pytest.approx(2 * narrow, rel=0.02)


@pytest.mark.slow
def test_a_full_integer_file_without_data(model: keras.Model, tmp_path: pathlib.Path) -> None:
    quantized = ocs_tf.convert(model, representative_dataset="synthetic", verbose=False)
    result = ocs_tf.export_tflite(quantized, tmp_path / "model.tflite", target="int8")
    assert result.path.exists()


def test_ids_are_rows_of_their_table() -> None:
    ids = keras.Input((6,), dtype="int32", name="ids")
    model = keras.Model(ids, layers.Dense(2)(layers.Flatten()(layers.Embedding(11, 3)(ids))))
    made = ocs_tf.synthesize(model, 50, verbose=False)["ids"]
    assert made.shape == (50, 6)
    assert made.dtype == np.int32
    counts = np.bincount(made.ravel(), minlength=11)
    assert len(counts) == 11
    assert counts[0] > 2 * counts[10]


def test_an_unknown_range_is_warned_of_and_can_be_given() -> None:
    inputs = keras.Input((8, 8, 3), name="pictures")
    model = keras.Model(inputs, layers.Conv2D(4, 3)(inputs))
    with pytest.warns(UserWarning, match="nothing tells the range of input 'pictures'.*0 to 1"):
        ocs_tf.synthesize(model, 4, verbose=False)
    for given in ((0, 10), {"pictures": (0, 10)}):
        made = ocs_tf.synthesize(model, 4, input_range=given, verbose=False)["pictures"]
        assert made.max() > 5
        assert made.min() >= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "`samples`"),
        ({"steps": 1.5}, "`steps`"),
        ({"method": "gan"}, "`method`"),
        ({"seed": -1}, "`seed`"),
        ({"input_range": (1, 0)}, "`input_range`.*lowest and the highest"),
        ({"input_range": 5}, "`input_range`"),
    ],
)
def test_arguments_are_checked(model: keras.Model, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ocs_tf.synthesize(model, verbose=False, **{"samples": 4, **options})


def test_matching_needs_batch_norms() -> None:
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 3)(inputs))
    with pytest.raises(ValueError, match=r"needs batch norms.*choose 'noise' or 'auto'"):
        ocs_tf.synthesize(model, method="match", verbose=False)


def test_strings_cannot_be_made() -> None:
    inputs = keras.Input((1,), dtype="string", name="word")
    x = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ValueError, match="'word' takes strings, which cannot be synthesized"):
        ocs_tf.synthesize(model, verbose=False)


def test_activations_without_data_are_measured_on_synthetic_data(model: keras.Model) -> None:
    with pytest.warns(UserWarning, match="measured on synthetic data, made"):
        plan = ocs_tf.plan(model, activation_bits=8, verbose=False)
    assert plan.synthetic.startswith("256 synthetic samples; input")
    assert "batch norms" in plan.synthetic
    same = ocs_tf.plan(model, activation_bits=8, representative_dataset="synthetic", verbose=False)
    assert same.activations == plan.activations
    again = ocs_tf.Plan.from_json(plan.to_json())
    x = pictures(np.random.default_rng(0), 0, 255)
    first, second = (
        ocs_tf.apply(model, plan, representative_dataset=data, verbose=False)
        for data in (None, "synthetic")
    )
    np.testing.assert_array_equal(first.predict_on_batch(x), second.predict_on_batch(x))
    assert again == plan


def test_without_batch_norms_data_are_asked_for() -> None:
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="'synthetic' to make some"):
        ocs_tf.convert(plain, activation_bits=8, verbose=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": {"nothing": {"weight_bits": 4}}}, "nothing"),
        ({"activation_expand_ratio": 2}, "from 0 to 1"),
    ],
)
def test_mistakes_are_found_before_inputs_are_made(
    model: keras.Model, options: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("made too early")

    monkeypatch.setattr("ocs_tf._synthesize.of_graph", fail)
    with pytest.raises(ValueError, match=message):
        ocs_tf.convert(model, representative_dataset="synthetic", verbose=False, **options)


def test_nothing_is_made_where_nothing_is_measured(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocs_tf._synthesize.of_graph", lambda *_, **__: pytest.fail("made"))
    options = {"rounding": "nearest", "bias_correction": False, "activation_bits": None}
    plan = ocs_tf.plan(model, representative_dataset="synthetic", verbose=False, **options)
    assert not plan.synthetic


@pytest.mark.slow
def test_an_export_takes_the_word(model: keras.Model, tmp_path: pathlib.Path) -> None:
    ranges = {"first_activation_bits": 8, "representative_dataset": "synthetic", "verbose": False}
    inputs_only = ocs_tf.convert(model, activation_bits=None, **ranges)
    result = ocs_tf.export_tflite(
        inputs_only, tmp_path / "m.tflite", representative_dataset="synthetic"
    )
    assert result.ops
    unknown = ocs_tf.convert(model, verbose=False)
    with pytest.warns(UserWarning, match="nothing tells the range"):
        ocs_tf.export_tflite(unknown, tmp_path / "n.tflite", representative_dataset="synthetic")
