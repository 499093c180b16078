"""Layers that users wrote, with quantized layers in place of those inside of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from ocs_tf.keras_internals import layers_within, take_signature
from ocs_tf.keras_types import Tensor
from ocs_tf.layers.checks import FromConfig, of_layer
from ocs_tf.layers.quantizers import PACKAGE
from ocs_tf.layers.structure import is_users, put, sublayers
from ocs_tf.numerics.checks import shown


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedInside(FromConfig, keras.layers.Layer):
    """A layer that a user wrote, with quantized layers in place of those inside of it.

    It is called as that layer is. A file has the layer's own configuration, and those of the
    quantized layers. So it can be loaded where the class of the layer can be.

    Arguments:
        layer: the user's layer.
        parts: what is still to be put into it: by path, names of layers from the outside in with
            slashes between them, `"layer"` and `"build"`, the configurations of a layer and of how
            it was built. `None` if all is in its place.

    Raises:
        ValueError: `parts` are not of that form; when it is called: `layer` has no such parts.

    Example:
        >>> import ocs_tf
        >>> quantized = ocs_tf.convert(model, weight_bits=8)  # doctest: +SKIP
        >>> quantized.get_layer("block").layer  # doctest: +SKIP
        <Block name=block, built=True>
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            name=kwargs.get("name", layer.name), dtype=layer.dtype_policy, trainable=False
        )
        with of_layer(self.name):
            self._waiting = _checked(parts or {})
        self.layer = layer
        self.supports_masking = layer.supports_masking
        take_signature(self, layer)
        self.built = layer.built and not self._waiting

    def build(self, input_shape: Any = None) -> None:
        self.built = True  # what is inside is built when it is called

    def call(self, *args: Any, **kwargs: Any) -> Tensor:
        outputs = self.layer(*args, **kwargs)  # makes and builds what is inside of it
        if self._waiting:
            self._put_in()
            outputs = self.layer(*args, **kwargs)
        return outputs

    def _put_in(self) -> None:
        for path, config in self._waiting.items():
            *outer, name = path.split("/")
            holder: Any = self.layer
            for step in outer:
                holder = sublayers(holder).get(step)
            old = None if holder is None else sublayers(holder).get(name)
            if old is None:
                raise ValueError(
                    f"layer {self.name!r}: its {type(self.layer).__name__} has no layer {path!r}"
                    " inside, which was quantized."
                )
            new = keras.saving.deserialize_keras_object(config["layer"])
            if not new.built and config["build"]:
                new.build_from_config(config["build"])
            put(holder, old, new)
        self._waiting = {}

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor) -> Tensor:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        parts = {
            path: {
                "layer": keras.saving.serialize_keras_object(part),
                "build": part.get_build_config(),
            }
            for path, part in _quantized(self.layer, ())
        }
        layer = keras.saving.serialize_keras_object(self.layer)
        layer.pop("build_config", None)  # it is built when it is called
        return {"name": self.name, "layer": layer, "parts": parts or self._waiting}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizedInside:
        layer = keras.saving.deserialize_keras_object(config["layer"])
        made: QuantizedInside = super().from_config({**config, "layer": layer})
        return made


def _quantized(
    layer: keras.layers.Layer, path: tuple[str, ...]
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """What is in the place of layers inside of a user's layer, by path."""
    for name, child in sublayers(layer).items():
        if is_users(child):
            yield from _quantized(child, (*path, name))
        elif any(type(part).__module__.startswith("ocs_tf.") for part in layers_within(child)):
            yield "/".join((*path, name)), child


def _checked(parts: Any) -> dict[str, Any]:
    """`parts` of a configuration."""
    whole = isinstance(parts, Mapping) and all(
        isinstance(path, str) and isinstance(part, Mapping) and {"layer", "build"} <= set(part)
        for path, part in parts.items()
    )
    if not whole:
        raise ValueError(
            "`parts` must have 'layer' and 'build' by the path of each part, but is"
            f" {shown(parts)}."
        )
    return dict(parts)
