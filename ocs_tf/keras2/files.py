"""Files of Keras 2, as tf_keras reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras

from ocs_tf.keras2 import tf_keras_internals


def load_keras2(
    path: str | os.PathLike[str], custom_objects: Mapping[str, Any] | None, safe_mode: bool
) -> Any:
    """The model of tf_keras in a file, or in the folder of a SavedModel.

    Arguments:
        custom_objects: classes and functions by name; those of Keras 3 are left out.

    Raises:
        ValueError: tf_keras cannot make the model; the message has its reason.
    """
    import tf_keras

    theirs = {
        name: value for name, value in (custom_objects or {}).items() if not _is_keras3(value)
    }
    try:
        with tf_keras_internals.safe_mode(safe_mode):
            model = tf_keras.models.load_model(path, custom_objects=theirs, compile=False)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"{os.fspath(path)} was saved by Keras 2, and tf_keras cannot load it: {reason} If it"
            " has layers or functions of your own, load it with tf_keras.models.load_model(path,"
            " custom_objects=...), and give the model to ocs_tf.load_model."
        ) from error
    if not isinstance(model, tf_keras.Model):
        raise ValueError(
            f"{os.fspath(path)} holds no Keras model, but a {type(model).__name__}. Save the model"
            " from the program that made it: model.save('model.keras')."
        )
    return model


def _is_keras3(value: Any) -> bool:
    return isinstance(value, keras.Operation) or (
        isinstance(value, type) and issubclass(value, keras.Operation)
    )
