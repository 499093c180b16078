"""Attention layers whose projections have quantized kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from ocs_tf.layers.checks import FromConfig, as_stored, of_layer, options_by_name
from ocs_tf.layers.dense import QuantizedEinsumDense
from ocs_tf.layers.quantizers import PACKAGE

PROJECTIONS = ("query", "key", "value", "attention_output", "gate")


class QuantizedAttention(FromConfig, keras.layers.Layer):
    """Mixed into a Keras attention class, in front of it, to give it quantized projections.

    Activations inside of the layer stay in float.

    Arguments (besides those of the Keras layer, keyword only):
        kernels: by name of a projection (`"query"`, `"key"`, `"value"`, `"attention_output"`, with
            `use_gate` also `"gate"`), the options of a `KernelLayer`. A projection without options
            stays in float.

    Raises:
        ValueError: `kernels` has another name, or an option is out of range.
    """

    def __init__(self, *args: Any, kernels: Mapping[str, Mapping[str, Any]], **kwargs: Any) -> None:
        # Set first: attributes are looked at from here on.
        with of_layer(str(kwargs.get("name"))):
            self.kernel_options = options_by_name(kernels, PROJECTIONS)
        super().__init__(*args, **{**kwargs, "trainable": False})

    def __setattr__(self, name: str, value: Any) -> None:
        # Keras makes the projections when the layer is built, and builds them after that.
        if type(value) is keras.layers.EinsumDense and value.name in self.kernel_options:
            options = self.kernel_options[value.name]
            value = QuantizedEinsumDense.from_config({**value.get_config(), **options})
        super().__setattr__(name, value)

    def get_config(self) -> dict[str, Any]:
        kernels = as_stored(self.kernel_options, projections(self))
        return {**super().get_config(), "kernels": kernels}


def projections(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The projections that an attention layer, float or quantized, has, by name."""
    found = {name: getattr(layer, _attribute(name), None) for name in PROJECTIONS}
    return {name: projection for name, projection in found.items() if projection is not None}


def _attribute(projection: str) -> str:
    """The attribute in which Keras keeps a projection."""
    return f"_{'output' if projection == 'attention_output' else projection}_dense"


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedMultiHeadAttention(QuantizedAttention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with quantized kernels; see `QuantizedAttention`."""


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedGroupQueryAttention(QuantizedAttention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` with quantized kernels; see `QuantizedAttention`."""
