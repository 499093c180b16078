"""Loading of models of Keras 3 and of Keras 2 (tf_keras), from any file that holds them."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import h5py
import keras

from ocs_tf import layers  # noqa: F401  registers them with Keras
from ocs_tf.keras2 import is_keras2, keras3_model, load_keras2
from ocs_tf.keras_state import restores_state
from ocs_tf.paths import checked_path, existing_file

_WEIGHTS = (
    "{} holds weights only. Build the model and load them with model.load_weights, or save the"
    " whole model: model.save('model.keras')."
)
_NO_METADATA = (
    "{} is a SavedModel without Keras metadata (from model.export or tf.saved_model.save), so its"
    " layers are not known. Save the model from the program that made it:"
    " model.save('model.keras'); or convert the SavedModel as it is, without ocs_tf:"
    " tf.lite.TFLiteConverter.from_saved_model(path)."
)
_NO_TF_KERAS = (
    "{} was saved by Keras 2, and tf_keras, which reads it, is not installed:"
    ' pip install "ocs_tf[keras2]"'
)


@restores_state
def load_model(
    path_or_model: str | os.PathLike[str] | keras.Model | Any,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
) -> keras.Model:
    """Load a model, quantized or not, of Keras 3 or of Keras 2, as a model of Keras 3.

    A model of Keras 2 (tf_keras) is translated layer by layer, its weights are copied, and its
    outputs on drawn inputs are compared with those of tf_keras: to 1e-6 of the largest one, or to
    what a change of the weights in their last place does. Its optimizer, losses and metrics are
    left out.

    Arguments:
        path_or_model: a `.keras` or HDF5 (`.h5`) file of either; the folder of a SavedModel that
            tf_keras made; or a model in memory. One of Keras 3 is returned as it is.
        custom_objects: classes and functions of Keras 3 by name: layers under the names that their
            classes have in the file or model, functions of TensorFlow as `"tf.math.erfinv"`.
            To load a file, tf_keras may need classes of its own: then load it with
            `tf_keras.models.load_model` and give the model.
        compile: whether a model from a file of Keras 3 is compiled as it was.
        safe_mode: whether to refuse files with lambdas, which are code.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ImportError: it is from Keras 2, and `tf_keras` is not installed.
        ValueError: it is no model, or holds weights only, a SavedModel without Keras metadata, a
            subclassed tf_keras model or a layer that Keras 3 does not have; or the outputs differ.
            The message says what to do.

    Warns if TensorFlow cannot run a model of Keras 2 on this machine, to compare it.
    """
    if isinstance(path_or_model, keras.Model):
        return path_or_model
    if is_keras2(path_or_model):
        return keras3_model(path_or_model, custom_objects)
    if not isinstance(path_or_model, (str, os.PathLike)):
        kind = f"{type(path_or_model).__module__}.{type(path_or_model).__name__}"
        raise ValueError(
            "`path_or_model` must be the path of a model, a keras.Model or a tf_keras.Model, but is"
            f" a {kind}."
        )
    path = checked_path(path_or_model, "path_or_model")
    if not _is_keras2_file(path):
        return keras.models.load_model(
            path, custom_objects=custom_objects, compile=compile, safe_mode=safe_mode
        )
    if importlib.util.find_spec("tf_keras") is None:
        raise ImportError(_NO_TF_KERAS.format(path))
    return keras3_model(load_keras2(path, custom_objects, safe_mode), custom_objects)


def _is_keras2_file(path: pathlib.Path) -> bool:
    """Whether Keras 2 wrote a file, or the folder of a SavedModel.

    Raises:
        ValueError: it holds no model.
    """
    if (path / "saved_model.pb").is_file():
        return _has_keras_metadata(path)
    path = existing_file(path, "path_or_model")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "metadata.json" not in archive.namelist():
                raise ValueError(f"{path} is no .keras file: it is a zip archive of other things.")
            version = json.loads(archive.read("metadata.json")).get("keras_version")
    elif h5py.is_hdf5(path):
        with h5py.File(path) as file:
            if "model_config" not in file.attrs:
                raise ValueError(_WEIGHTS.format(path))
            version = file.attrs.get("keras_version")
    else:
        raise ValueError(
            f"{path} is no model file: it is neither a zip archive, as .keras files are, nor HDF5,"
            " or it is damaged."
        )
    version = version.decode() if isinstance(version, bytes) else str(version)
    return not version.split(".")[0].isdecimal() or int(version.split(".")[0]) < 3


def _has_keras_metadata(folder: pathlib.Path) -> bool:
    """Raises `ValueError` if not: Keras knows no layers then."""
    if (folder / "keras_metadata.pb").is_file():
        return True
    # Before TensorFlow 2.5 it was in the graph itself, as JSON.
    if b'"class_name"' in (folder / "saved_model.pb").read_bytes():
        return True
    raise ValueError(_NO_METADATA.format(folder))
