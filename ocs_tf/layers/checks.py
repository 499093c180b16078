"""Validation of the configuration and stored arrays of quantized layers.

A file may be damaged, and weights can be set by anyone: configurations are checked where layers are
made, weights when they are stored or loaded, and both when they are read for a report or an export.
Calls do not look at weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ocs_tf.numerics import GRANULARITIES, ActivationGrid, QuantizedKernel
from ocs_tf.numerics.checks import check_choice, check_decibels, check_integer, shown
from ocs_tf.numerics.grid import check_bits, code_counts, code_limit
from ocs_tf.numerics.quantized_kernel import MAX_WEIGHT_BITS
from ocs_tf.numerics.splitting import check_channel_map, check_finite

_SMALLEST_STEP = np.finfo(np.float32).tiny
_MOST_COPIES = 2**20  # of a damaged file: memory is allocated before weights are looked at


class FromConfig:
    """Mixed into a Keras class, in front of it: what a configuration lacks is a `ValueError`.

    Keras makes a `TypeError` of whatever a constructor raises.
    """

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The layer of this configuration.

        Raises:
            ValueError: there is none; the message has the reason.
        """
        try:
            return super().from_config(config)  # type: ignore[misc]
        except Exception as error:
            reason = error.__context__ if isinstance(error, TypeError) else None
            name = config.get("name") if isinstance(config, Mapping) else config
            raise ValueError(
                f"layer {shown(name)}, a {cls.__name__}, cannot be made of its configuration:"
                f" {reason or error}"
            ) from error


@contextlib.contextmanager
def of_layer(name: str) -> Iterator[None]:
    """Within this context, a `ValueError` begins with the name of the layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def kernel_options(
    *,
    weight_bits: Any,
    granularity: Any = "tensor",
    copies: Any = 0,
    kernel_sqnr_db: Any = None,
    **unknown: Any,
) -> dict[str, Any]:
    """The options that every stored kernel has, checked; for their meaning see `KernelLayer`.

    Raises:
        ValueError: one is out of range, or unknown.
    """
    if unknown:
        raise ValueError(f"a kernel has the unknown option {shown(next(iter(unknown)))}.")
    return {
        "weight_bits": check_bits(weight_bits, "weight_bits", largest=MAX_WEIGHT_BITS),
        "granularity": check_choice("granularity", granularity, GRANULARITIES),
        "copies": check_integer("copies", copies, 0, _MOST_COPIES),
        "kernel_sqnr_db": check_decibels("kernel_sqnr_db", kernel_sqnr_db),
    }


def options_by_name(kernels: Any, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """`kernels`, which a composite is given: the options of those of its kernels that have codes.

    Raises:
        ValueError: there is a name that is none of `names`, or a bad option.
    """
    if not isinstance(kernels, Mapping):
        raise ValueError(f"`kernels` (={shown(kernels)}) must be a dict of options by name.")
    checked = {}
    for name, options in kernels.items():
        check_choice("kernels", name, tuple(names))
        if not isinstance(options, Mapping) or "weight_bits" not in options:
            raise ValueError(
                f"`kernels` has {shown(options)} for {name!r}; it must be a dict of options, with"
                " weight_bits."
            )
        checked[name] = kernel_options(**options)
    return checked


def as_stored(
    options: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """`options` by name, with the quality of the codes that are stored by now."""
    return {
        name: {**values, "kernel_sqnr_db": stored[name].kernel_sqnr_db}
        if hasattr(stored.get(name), "kernel_sqnr_db")
        else dict(values)
        for name, values in options.items()
    }


def check_grid(name: str, grid: Any, kind: type = ActivationGrid) -> Any:
    """`grid`, or the one that its `to_dict()` stands for.

    Raises:
        ValueError: it is none.
    """
    if isinstance(grid, Mapping):
        try:
            grid = kind(**grid)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{name}` (={shown(dict(grid))}): {error}") from error
    if not isinstance(grid, kind):
        raise ValueError(f"`{name}` (={shown(grid)}) must be an {kind.__name__} or its to_dict().")
    return grid


def check_kernel(layer: keras.layers.Layer, kernel: QuantizedKernel) -> None:
    """Raise `ValueError` if `kernel` is not one that `layer`, which is built, may store."""
    options = {"weight_bits", "granularity", "copies", "kernel_sqnr_db"}
    kernel_options(**{name: getattr(layer, name) for name in options})
    limit = code_limit(layer.weight_bits)
    codes, scale = np.asarray(kernel.codes), np.asarray(kernel.scale)
    _check_array("codes", codes, layer.codes)
    _check_array("scale", scale, layer.scale)
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if not (-limit - 1 <= low and high <= limit):
        raise ValueError(
            f"`codes` are from {low} to {high}; {layer.weight_bits} bits hold"
            f" {-limit - 1} .. {limit}."
        )
    if not np.all(np.isfinite(scale) & (scale >= _SMALLEST_STEP)):
        raise ValueError("`scale` must be finite and positive, in normal float32 numbers.")
    if np.any(scale.astype(np.float64) * max(-low, high) > np.finfo(np.float32).max):
        raise ValueError("`scale` times the largest of `codes` must be finite in float32.")
    if scale.ndim != (layer.granularity == "channel"):
        raise ValueError(f"`scale` of shape {scale.shape} is not of a {layer.granularity}.")
    if (layer.channel_map is None) != (layer.copies == 0):
        raise ValueError(f"`copies` (={layer.copies}) is not what the layer was built with.")
    if layer.channel_map is not None:
        channels = codes.shape[-2] - layer.copies
        mapping = np.asarray(kernel.channel_map)
        _check_array("channel_map", mapping, layer.channel_map)
        if channels < 1 or len(mapping) != codes.shape[-2]:
            raise ValueError(f"`copies` (={layer.copies}) is not of {len(mapping)} channels.")
        check_channel_map(mapping, channels)


def _check_array(name: str, array: np.ndarray, weight: keras.Variable) -> None:
    shape, dtype = tuple(weight.shape), str(weight.dtype)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"`{name}` must be {dtype} of shape {shape}, but is {array.dtype} of {array.shape}."
        )


def check_floats(layer: keras.layers.Layer) -> None:
    """Raise `ValueError` if a float weight of `layer`, or inside of it, is not finite."""
    for weight in layer.weights:
        if "float" in str(weight.dtype):
            check_finite(np.asarray(weight, np.float32), str(weight.name))


def check_copies_of(name: str, grid: Any, channels: int) -> None:
    """Raise `ValueError` if `grid`, if any, splits channels that there are not."""
    if grid is not None:
        with_name = check_grid(name, grid)
        code_counts(with_name.copies, channels)


def check_file(layer: keras.layers.Layer, store: Any) -> None:
    """Raise `ValueError` if what is going to be loaded would be cast, and so change."""
    variables = layer._trainable_variables + layer._non_trainable_variables
    stored = set(store.keys())  # Keras 3.5 has no `in` here
    for index, variable in enumerate(variables):
        key = str(index)
        if key in stored:
            dtype = np.asarray(store[key]).dtype
            if dtype != str(variable.dtype):
                raise ValueError(f"`{variable.name}` is stored as {dtype}, not {variable.dtype}.")
