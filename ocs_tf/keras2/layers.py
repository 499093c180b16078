"""Layers of Keras 2 as layers of Keras 3: their configuration, weights and other state.

Most configurations are the same. `_RULES` has those that are not.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ocs_tf.keras2 import tf_keras_internals
from ocs_tf.keras_internals import layers_right_within, own_variables
from ocs_tf.layers import keras2_hard_sigmoid

Config = dict[str, Any]
# What only building and training read, or what Keras 3 decides by itself.
_WITHOUT_EFFECT = (
    *("batch_input_shape", "has_input_vocabulary", "implementation", "input_length", "key_shape"),
    *("query_shape", "rng_type", "trainable", "value_shape", "vocabulary_size"),
)
_TRAINING_ONLY = {
    "_initializer": keras.initializers.get,
    "_regularizer": keras.regularizers.get,
    "_constraint": keras.constraints.get,
}
_IN_OTHER_CLASSES = {
    "RandomCrop": "Resizing",  # but in training
    "RandomHeight": "Identity",  # but in training
    "RandomWidth": "Identity",
    "SyncBatchNormalization": "BatchNormalization",
    "ThresholdedReLU": "ReLU",
}


class NoCounterpartError(ValueError):
    """What Keras 3 does not have; the message names the layer, and what to do."""


def keras3_layer(
    layer: Any, name: str, custom_objects: Mapping[str, Any], inner: Callable[[Any], Any]
) -> Any:
    """A layer of Keras 3 that computes the same as `layer`, but for weights still to be copied.

    Arguments:
        name: of the new layer.
        custom_objects: classes of Keras 3 by the names of the classes of Keras 2.
        inner: what this function gives for layers within `layer`; takes models, too.

    Raises:
        NoCounterpartError: Keras 3 has no such layer, or it lacks an option that is in use.
    """
    cls, custom = _keras3_class(layer, custom_objects)
    try:
        with warnings.catch_warnings():  # of functions, which are taken as they are
            warnings.simplefilter("ignore")
            config = dict(layer.get_config())
    except NotImplementedError as error:
        raise NoCounterpartError(
            f"layer {layer.name!r} ({type(layer).__name__}) has no configuration: give its class a"
            " get_config() that returns every argument of __init__."
        ) from error
    config["name"] = name
    config["dtype"] = layer.dtype_policy.name if hasattr(layer, "dtype_policy") else layer.dtype
    if config["dtype"].startswith("_"):  # of TensorFlow 1: that of the inputs
        del config["dtype"]
    config = {key: _value(layer, key, value, inner) for key, value in config.items()}
    if custom:
        return cls.from_config(config)
    for keras2_class, rule in _RULES.items():
        if type(layer).__name__ in keras2_class.split():
            rule(layer, config)
    return cls(**_known(layer, cls, config))


def keras3_name(name: str) -> str:
    """A name that Keras 3 takes, too."""
    return name.replace("/", "_")


def copy_weights(old: Any, new: keras.layers.Layer) -> None:
    """Give the built layer `new` the weights of `old`, with those of layers within.

    Raises:
        NoCounterpartError: their numbers or shapes differ.
    """
    if type(old).__name__ in _STATE_IN_CONFIG:
        return
    theirs, ours = tf_keras_internals.own_variables(old), own_variables(new)
    shapes = [tuple(w.shape) for w in theirs], [tuple(w.shape) for w in ours]
    if shapes[0] != shapes[1]:
        raise NoCounterpartError(
            f"layer {old.name!r} ({type(old).__name__}) has weights of shapes {shapes[0]}, but in"
            f" Keras 3 of {shapes[1]}."
        )
    for source, target in zip(theirs, ours, strict=True):
        target.assign(source.numpy())
    for pair in _pairs(old, new):
        copy_weights(*pair)


def _pairs(old: Any, new: keras.layers.Layer) -> Iterator[tuple[Any, Any]]:
    """Layers within `old` that have weights, with their counterparts: by name, else in order."""
    theirs = [layer for layer in tf_keras_internals.sublayers(old) if layer.weights]
    ours = [layer for layer in layers_right_within(new) if layer.weights]
    by_name = {layer.name: layer for layer in ours}
    names = [keras3_name(layer.name) for layer in theirs]
    if len(theirs) != len(ours):
        raise NoCounterpartError(
            f"layer {old.name!r} ({type(old).__name__}) has {len(theirs)} layers with weights in"
            f" it, but in Keras 3 {len(ours)}."
        )
    if set(names) == set(by_name) and len(names) == len(by_name):
        return zip(theirs, [by_name[name] for name in names], strict=True)
    return zip(theirs, ours, strict=True)


def _keras3_class(layer: Any, custom_objects: Mapping[str, Any]) -> tuple[Any, bool]:
    """The class for `layer`, and whether it is a user's."""
    name = type(layer).__name__
    for known in (custom_objects.get(name), _registered(layer)):
        if known is not None:
            return known, True
    if type(layer).__module__.startswith("tf_keras."):
        cls = getattr(keras.layers, _IN_OTHER_CLASSES.get(name, name), None)
        if cls is not None:
            return cls, False
        reason = "which Keras 3 does not have"
    else:
        reason = "which is no class of Keras"
    raise NoCounterpartError(
        f"layer {layer.name!r} is a {name}, {reason}. Write the class as a keras.layers.Layer of"
        f" Keras 3, with the same arguments and weights, and give custom_objects={{{name!r}:"
        " THE_CLASS}."
    )


def _registered(layer: Any) -> Any:
    """The class that users registered with Keras 3 under the name that they gave to tf_keras."""
    import tf_keras

    return keras.saving.get_registered_object(tf_keras.saving.get_registered_name(type(layer)))


def _value(layer: Any, key: str, value: Any, inner: Callable[[Any], Any]) -> Any:
    """What stands in a configuration of Keras 3 for `value`."""
    own = getattr(layer, key, None)
    if _is_layer(own):
        return inner(own)
    if isinstance(own, (list, tuple)) and own and all(map(_is_layer, own)):
        return [inner(part) for part in own]
    if key.endswith("activation") and callable(own):
        return _activation(own)
    for suffix, get in _TRAINING_ONLY.items():
        if key.endswith(suffix):
            return _of_training(get, value)
    return value


def _is_layer(value: Any) -> bool:
    import tf_keras

    return isinstance(value, tf_keras.layers.Layer)


def _of_training(get: Callable[[Any], Any], value: Any) -> Any:
    """An initializer, regularizer or constraint; `None` where Keras 3 has no such."""
    if isinstance(value, Mapping) and str(value.get("module", "keras")).split(".")[0] in (
        *("keras", "tf_keras"),
    ):
        value = {key: value[key] for key in ("class_name", "config") if key in value}
    try:
        return get(value)
    except (ValueError, TypeError):
        return None


def _activation(function: Any) -> Any:
    """An activation function of Keras 3, or the user's own as it is."""
    name = getattr(function, "__name__", "")
    origin = getattr(function, "__module__", "").split(".")[0]
    if origin == "tf_keras" and name == "hard_sigmoid":
        return keras2_hard_sigmoid
    if origin == "tensorflow":
        name = (tf_keras_internals.symbol(function) or "").rpartition(".")[2]
    elif origin != "tf_keras":
        return function
    try:
        return keras.activations.get(name or function)
    except ValueError:
        return function


def _known(layer: Any, cls: Any, config: Config) -> Config:
    """`config` without what `cls` does not take and `layer` does not use.

    Raises:
        NoCounterpartError: it is in use.
    """
    taken = _taken(cls)
    unknown = [name for name in config if name not in taken]
    defaults = _parameters(type(layer))
    for name in unknown:
        value = config.pop(name)
        neutral = value is None or value is False or (name == "groups" and value == 1)
        if neutral or name in _WITHOUT_EFFECT or name.endswith(tuple(_TRAINING_ONLY)):
            continue
        default = defaults[name].default if name in defaults else inspect.Parameter.empty
        if value != default:
            raise NoCounterpartError(
                f"layer {layer.name!r} ({type(layer).__name__}) has {name}={value!r}, which Keras"
                " 3 does not have. Build the model without it."
            )
    return config


def _taken(cls: Any) -> set[str]:
    """The arguments of a class, with those that it passes on to the classes that it is made of."""
    taken: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = _parameters(base)
            taken.update(parameters)
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
                break
    return taken


def _parameters(cls: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls.__init__).parameters


def _batch_norm(layer: Any, config: Config) -> None:
    axis = config["axis"]
    if isinstance(axis, (list, tuple)):
        if len(axis) > 1:
            raise NoCounterpartError(
                f"layer {layer.name!r} ({type(layer).__name__}) has axis={list(axis)}, and Keras 3"
                " takes one axis. Build the model with one."
            )
        config["axis"] = axis[0]
    if type(layer).__name__ == "SyncBatchNormalization":
        config["synchronized"] = True


def _leaky(layer: Any, config: Config) -> None:
    config["negative_slope"] = float(config.pop("alpha"))


def _thresholded(layer: Any, config: Config) -> None:
    config["threshold"] = float(config.pop("theta"))


def _resizing(layer: Any, config: Config) -> None:
    config["crop_to_aspect_ratio"] = True
    del config["seed"]


def _only_name(layer: Any, config: Config) -> None:
    for key in set(config) - {"name", "dtype", "trainable"}:
        del config[key]


def _lambda(layer: Any, config: Config) -> None:
    for key in ("function", "mask", "output_shape"):
        for suffix in ("_type", "_module", ""):
            config.pop(f"{key}{suffix}", None)
    config.pop("module", None)
    config["function"] = layer.function


def _bidirectional(layer: Any, config: Config) -> None:
    # The forward layer is made anew, of the configuration of `layer`, and renamed.
    config["layer"].name = keras3_name(layer.layer.name.removeprefix("forward_"))


def _lookup(layer: Any, config: Config) -> None:
    table = getattr(layer, "_lookup_layer", layer)
    vocabulary = np.asarray(layer.get_vocabulary(include_special_tokens=False)).tolist()
    config["vocabulary"], config["idf_weights"] = vocabulary, None
    if config["output_mode"] == "tf_idf":
        first = len(layer.get_vocabulary()) - len(vocabulary)
        weights = np.asarray(table.idf_weights)[first : first + len(vocabulary)]
        config["idf_weights"] = weights.tolist()
    if type(layer).__name__ != "TextVectorization":
        config["dtype"] = "int64" if config["output_mode"] == "int" else "float32"


def _discretization(layer: Any, config: Config) -> None:
    config["bin_boundaries"] = [float(edge) for edge in np.ravel(layer.bin_boundaries)]
    config["num_bins"] = None


def _normalization(layer: Any, config: Config) -> None:
    axes = np.atleast_1d([] if config["axis"] is None else config["axis"])
    for key in ("mean", "variance"):
        values = np.asarray(getattr(layer, key))
        shape = [values.shape[axis] for axis in axes] if values.ndim else []
        config[key] = values.reshape(shape).tolist()


_RULES: dict[str, Callable[[Any, Config], None]] = {
    "BatchNormalization SyncBatchNormalization": _batch_norm,
    "Discretization": _discretization,
    "IntegerLookup StringLookup TextVectorization": _lookup,
    "Lambda": _lambda,
    "LeakyReLU": _leaky,
    "Normalization": _normalization,
    "RandomCrop": _resizing,
    "RandomHeight RandomWidth": _only_name,
    "ThresholdedReLU": _thresholded,
}
_STATE_IN_CONFIG = (
    *("Discretization", "IntegerLookup", "Normalization", "StringLookup", "TextVectorization"),
)
