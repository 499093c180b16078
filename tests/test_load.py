"""Files and models of Keras 3 and Keras 2, loaded; what is refused, and what the messages tell."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf import cli

tf = pytest.importorskip("tensorflow")
SHAPE = (8, 8, 3)


def float_model() -> keras.Model:
    parts = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten(), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input(SHAPE), *parts])


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).normal(size=(4, *SHAPE)).astype("float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Files that are no models, or not whole ones."""
    folder = tmp_path_factory.mktemp("files")
    model = float_model()
    model.save(folder / "float.keras")
    model.save_weights(folder / "only.weights.h5")
    ocs_tf.convert(model, weight_bits=4, verbose=False).save(folder / "quantized.keras")
    (folder / "text.keras").write_text("not a model")
    with zipfile.ZipFile(folder / "other.keras", "w") as archive:
        archive.writestr("a.txt", "b")
    tf.saved_model.save(tf.Module(), str(folder / "bare"))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, pathlib.Path]:
    """A model of Keras 2, and the folder with its files."""
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    folder = tmp_path_factory.mktemp("keras2")
    inputs = tf_keras.Input(SHAPE)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(inputs)
    x = layers.LeakyReLU()(layers.BatchNormalization(name="block/norm")(x)) + 1.0
    x = layers.Dense(2, activation="hard_sigmoid")(layers.Flatten()(tf.nn.relu6(x)))
    model = tf_keras.Model(inputs, x)
    for weight in model.weights:
        weight.assign_add(tf.random.uniform(weight.shape, 0, 0.5, seed=1))
    model.compile("adam", "mse")
    with pytest.warns(UserWarning, match="HDF5"):
        model.save(folder / "model.h5")
    model.save(folder / "model.keras")
    model.save(folder / "saved_model", save_format="tf")
    return model, folder


@pytest.mark.parametrize("name", ["float.keras", "quantized.keras"])
def test_keras3(folder: pathlib.Path, name: str, images: Any) -> None:
    loaded = ocs_tf.load_model(folder / name)
    expected = keras.models.load_model(folder / name)
    np.testing.assert_array_equal(loaded(images), expected(images))
    assert ocs_tf.load_model(loaded) is loaded


def test_the_file_says_what_loading_needs(folder: pathlib.Path) -> None:
    """Keras' own message about an unknown class shows this part of the file."""
    with zipfile.ZipFile(folder / "quantized.keras") as archive:
        config = json.loads(archive.read("config.json"))
    layer = next(layer for layer in config["config"]["layers"] if layer["config"]["name"] == "conv")
    assert layer["module"].startswith("ocs_tf.")
    assert layer["registered_name"] == "ocs_tf>QuantizedConv2D"


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "saved_model"])
def test_keras2_files(saved: tuple[Any, pathlib.Path], name: str, images: Any) -> None:
    model, folder = saved
    loaded = ocs_tf.load_model(folder / name)
    assert isinstance(loaded, keras.Model)
    assert "block_norm" in {layer.name for layer in loaded.layers}
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-6, atol=1e-6)


def test_tf_keras_does_not_take_the_place_of_keras() -> None:
    pytest.importorskip("tf_keras")
    assert tf.keras.Model is keras.Model


def test_keras2_models_are_converted(
    saved: tuple[Any, pathlib.Path], images: Any, tmp_path: pathlib.Path
) -> None:
    model, _ = saved
    expected = ocs_tf.convert(ocs_tf.load_model(model), weight_bits=4, verbose=False)
    quantized = ocs_tf.convert(model=model, weight_bits=4, verbose=False)
    np.testing.assert_array_equal(quantized(images), expected(images))
    plan = ocs_tf.plan(model, weight_bits=4, verbose=False)
    np.testing.assert_array_equal(
        ocs_tf.apply(model, plan, verbose=False)(images), expected(images)
    )
    assert ocs_tf.compare(model, quantized, images)[0].sqnr_db > 10
    quantized.save(tmp_path / "quantized.keras")
    loaded = ocs_tf.load_model(tmp_path / "quantized.keras")
    np.testing.assert_array_equal(loaded(images), expected(images))


@pytest.mark.parametrize("name", ["model.h5", "saved_model"])
def test_command(
    saved: tuple[Any, pathlib.Path], name: str, tmp_path: pathlib.Path, images: Any
) -> None:
    output = tmp_path / "out.keras"
    arguments = ["convert", str(saved[1] / name), "--weight_bits", "8", "--output", str(output)]
    assert cli.main(arguments) == 0
    np.testing.assert_allclose(ocs_tf.load_model(output)(images), saved[0](images), atol=0.05)


NOT_LOADED: dict[str, tuple[type[Exception], str]] = {
    "missing.keras": (FileNotFoundError, "`path_or_model` .*missing.keras does not exist"),
    "": (IsADirectoryError, "`path_or_model` .* is a folder; name a file in it"),
    "text.keras": (ValueError, "is no model file: it is neither a zip archive, .* nor HDF5"),
    "other.keras": (ValueError, "is no .keras file: it is a zip archive of other things"),
    "only.weights.h5": (ValueError, "weights only.*model.load_weights.*model.save.'model.keras'"),
    "bare": (
        ValueError,
        "without Keras metadata.*model.save.'model.keras'.*TFLiteConverter.from_saved_model",
    ),
}


@pytest.mark.parametrize(("name", "error"), NOT_LOADED.items(), ids=NOT_LOADED)
def test_what_is_not_loaded(
    folder: pathlib.Path, name: str, error: tuple[type[Exception], str]
) -> None:
    with pytest.raises(error[0], match=error[1]):
        ocs_tf.load_model(folder / name)


def test_what_the_messages_tell_helps(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = float_model()
    model.load_weights(folder / "only.weights.h5")
    model.save(tmp_path / "model.keras")
    assert ocs_tf.load_model(tmp_path / "model.keras").built


@pytest.mark.parametrize("value", [None, 3, keras.layers.Dense(2)], ids=["none", "int", "layer"])
def test_what_is_neither_path_nor_model(value: Any) -> None:
    with pytest.raises(ValueError, match="`path_or_model` must be the path of a model, a keras"):
        ocs_tf.load_model(value)


def test_without_tf_keras(saved: tuple[Any, pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'not installed: pip install "ocs_tf\[keras2\]"'):
        ocs_tf.load_model(saved[1] / "model.h5")


def own_layer(tf_keras: Any) -> Any:
    class Twice(tf_keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return 2.0 * x

    return Twice


class Twice3(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return 2.0 * x


def with_own_layer(tf_keras: Any) -> Any:
    return tf_keras.Sequential([tf_keras.Input((3,)), own_layer(tf_keras)(name="twice")])


def with_lambda(tf_keras: Any) -> Any:
    return tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Lambda(lambda x: 2.0 * x)])


def load_in_two_steps(tf_keras: Any, path: pathlib.Path) -> keras.Model:
    known = {"Twice": own_layer(tf_keras)}
    model = tf_keras.models.load_model(path, custom_objects=known)
    return ocs_tf.load_model(model, custom_objects={"Twice": Twice3})


def load_lambda(tf_keras: Any, path: pathlib.Path) -> keras.Model:
    return ocs_tf.load_model(path, safe_mode=False)


REFUSED: dict[str, tuple[Callable[..., Any], str, Callable[..., Any]]] = {
    "own layer": (
        with_own_layer,
        "tf_keras cannot load it: .*Twice.* load it with tf_keras.models.load_model.path,",
        load_in_two_steps,
    ),
    "lambda": (with_lambda, "tf_keras cannot load it: .*safe_mode=False", load_lambda),
}


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize(("make", "message", "remedy"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_refusals_and_their_remedies(
    make: Callable[..., Any],
    message: str,
    remedy: Callable[..., Any],
    suffix: str,
    tmp_path: pathlib.Path,
) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    path = tmp_path / f"model{suffix}"
    make(tf_keras).save(path)
    with pytest.raises(ValueError, match=message):
        ocs_tf.load_model(path)
    np.testing.assert_array_equal(remedy(tf_keras, path)(np.ones((1, 3), np.float32)), [[2, 2, 2]])
