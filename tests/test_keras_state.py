"""Random numbers, names and states are as before, whatever threads and errors do in between."""

from __future__ import annotations

import random
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import ocs_tf
from ocs_tf import keras_state
from ocs_tf.keras_internals import set_thread_state
from tests.test_process import X, overlapping, small


def seed(value: int) -> None:
    keras.utils.set_random_seed(value)
    set_thread_state("global_seed_generator", None)  # older versions of Keras keep it


def draws() -> list[float]:
    """The next random number of every kind."""
    return [
        random.random(),
        float(np.random.random()),
        float(tf.random.uniform(())),
        float(keras.random.uniform(())),
    ]


class TestRestoresState:
    def test_lost_masks_are_not_told_again(self):
        def build() -> None:
            ids = keras.Input((4,), dtype="int32")
            rows = keras.layers.Embedding(5, 2, mask_zero=True)(ids)
            keras.layers.Reshape((2, 4))(rows)

        with pytest.warns(UserWarning, match="was passed an input with a mask"):
            build()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            keras_state.restores_state(build)()

    def test_random_numbers_and_names(self):
        draws()  # Keras' own generator is there from here on

        @keras_state.restores_state
        def use() -> list[float]:
            keras.layers.Identity()
            return draws()

        assert use() == draws()
        seed(3)
        expected = [keras.layers.Identity().name, *draws()]
        assert expected[0] == "identity"
        seed(3)
        use()
        assert [keras.layers.Identity().name, *draws()] == ["identity_1", *expected[1:]]

    def test_after_an_error(self):
        @keras_state.restores_state
        def fail() -> None:
            draws()
            keras.utils.set_random_seed(5)
            keras.layers.Identity()
            raise ZeroDivisionError

        seed(3)
        expected = draws()
        seed(3)
        with pytest.raises(ZeroDivisionError):
            fail()
        assert draws() == expected
        assert keras.layers.Identity().name == "identity"

    def test_lasts_until_the_last_thread_returns(self):
        before = random.getstate()
        overlapping(keras_state._kept_random, random.random)
        assert random.getstate() == before

    def test_names_within_do_not_depend_on_the_past_and_are_free(self):
        inputs = keras.Input((4,))
        x = keras.layers.Dense(4, name="dense_3")(inputs)
        model = keras.Model(inputs, keras.layers.ReLU(name="re_lu")(x + 1))  # an operation "add"

        @keras_state.restores_state
        def names(_: keras.Model) -> list[str]:
            kinds = (keras.layers.Dense, keras.layers.ReLU, keras.layers.Add)
            made = [keras.layers.Dense(1), *(kind() for kind in kinds[1:]), keras.layers.Identity()]
            return [layer.name for layer in made]

        first = names(model)
        for _ in range(3):
            keras.layers.ReLU()
        assert names(model) == first == ["dense_4", "re_lu_1", "add_1", "identity"]

    @pytest.mark.slow
    def test_public_functions(self, tmp_path):
        model = small()
        quantized = ocs_tf.convert(model, representative_dataset=X, verbose=False)
        plan = ocs_tf.plan(model, representative_dataset=X, verbose=False)
        calls = [
            lambda: ocs_tf.convert(model, representative_dataset=X, verbose=False),
            lambda: ocs_tf.plan(model, representative_dataset=X, verbose=False),
            lambda: ocs_tf.apply(model, plan, representative_dataset=X, verbose=False),
            lambda: ocs_tf.report(quantized),
            lambda: ocs_tf.compare(model, quantized, X),
            lambda: ocs_tf.export_tflite(quantized, tmp_path / "a.tflite", target="packed"),
        ]
        seed(3)
        expected = draws()
        assert keras.layers.Dense(1).name == "dense_2"  # behind the two of the model
        for number, call in enumerate(calls):
            seed(3)
            call()
            assert draws() == expected
            assert keras.layers.Dense(1).name == f"dense_{number + 3}"

    @pytest.mark.slow
    def test_file_does_not_depend_on_names_given_before(self, tmp_path):
        quantized = ocs_tf.convert(small(), representative_dataset=X, verbose=False)
        files = []
        for number in range(2):
            path = tmp_path / f"{number}.tflite"
            ocs_tf.export_tflite(quantized, path, target="packed")
            files.append(path.read_bytes())
            keras.Model(quantized.inputs, keras.ops.relu(quantized.outputs[0]))
        assert files[0] == files[1]
