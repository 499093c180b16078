"""Layers that no conversion makes are refused: when made, loaded, reported and exported."""

from __future__ import annotations

import io
import json
import pathlib
import zipfile
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.layers import KernelLayer
from ocs_tf.layers.checks import kernel_options, options_by_name


@pytest.fixture(params=["tensor", "channel"])
def quantized(request: pytest.FixtureRequest, rng: np.random.Generator) -> keras.Model:
    """A dense layer of 4 bits whose 6 inputs have 2 copies."""
    inputs = keras.Input((5,))
    model = keras.Model(
        inputs, layers.Dense(3, name="dense")(layers.Dense(6, name="first")(inputs))
    )
    for layer in model.layers[1:]:
        layer.kernel.assign(rng.normal(size=layer.kernel.shape))
    return ocs_tf.convert(
        model,
        weight_bits=4,
        expand_ratio=0.3,
        granularity=request.param,
        first_layer_bits="same",
        last_layer_bits="same",
        verbose=False,
    )


def dense(model: keras.Model) -> Any:
    layer = model.get_layer("dense")
    assert isinstance(layer, KernelLayer)
    assert layer.copies == 2
    return layer


# What a weight is set to, given what it holds, and what is said of it.
WEIGHTS: dict[str, tuple[str, Any, str]] = {
    "too large a code": ("codes", lambda v: v + 100, r"`codes` are from .* 4 bits hold -8 \.\. 7"),
    "a step of 0": ("scale", lambda v: 0 * v, "`scale` must be finite and positive"),
    "a negative step": ("scale", lambda v: -v, "`scale` must be finite and positive"),
    "a step that is no number": ("scale", lambda v: v * np.nan, "`scale` must be finite"),
    "a step too large for its codes": (
        "scale",
        lambda v: 0 * v + 3e38,
        "must be finite in float32",
    ),
    "a subnormal step": ("scale", lambda v: 0 * v + 1e-42, "in normal float32 numbers"),
    "a channel that is not there": ("channel_map", lambda v: np.r_[v[:-1], 6], "outside 0 .. 5"),
    "a negative channel": ("channel_map", lambda v: np.r_[v[:-1], -1], "outside 0 .. 5"),
    "originals out of order": ("channel_map", lambda v: v[::-1].copy(), "start with 0 .. 5"),
    "an infinite bias": ("bias", lambda v: v + np.inf, "bias"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_were_set(case: str, quantized: keras.Model, tmp_path: pathlib.Path) -> None:
    name, change, message = WEIGHTS[case]
    weight = getattr(dense(quantized), name)
    weight.assign(change(np.asarray(weight)))
    for target in ("float", "packed"):
        with pytest.raises(ValueError, match=f"layer 'dense': .*{message}"):
            ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_in_a_file(case: str, quantized: keras.Model, tmp_path: pathlib.Path) -> None:
    name, change, message = WEIGHTS[case]
    names = ["codes", "scale", "channel_map", "bias"]

    def change_weights(content: bytes) -> bytes:
        file = io.BytesIO(content)
        with h5py.File(file, "r+") as store:
            paths: list[str] = []
            store.visit(paths.append)
            of_layers = sorted(p for p in paths if p.endswith(f"vars/{names.index(name)}"))
            array = store[of_layers[-1]]  # of the second dense layer
            array[...] = change(np.asarray(array))
        return file.getvalue()

    path = changed_file(quantized, tmp_path, "model.weights.h5", change_weights)
    with pytest.raises(ValueError, match=f"layer 'dense': .*{message}"):
        keras.models.load_model(path)


OPTIONS: list[tuple[str, Any, str]] = [
    ("weight_bits", 9, r"`weight_bits` \(=9\) must be"),
    ("weight_bits", 1, r"`weight_bits` \(=1\) must be"),
    ("weight_bits", 4.0, r"`weight_bits` \(=4.0\) must be"),
    ("weight_bits", None, r"`weight_bits` \(=None\) must be"),
    ("granularity", "row", r"`granularity` \(='row'\) must be one of 'tensor', 'channel'"),
    ("copies", -1, r"`copies` \(=-1\) must be an integer from 0"),
    ("copies", True, r"`copies` \(=True\) must be an integer from 0"),
    ("copies", 2**20 + 1, r"`copies` \(=1048577\) must be an integer from 0 to 1048576"),
    ("kernel_sqnr_db", "good", "`kernel_sqnr_db`"),
    ("equalized", 1, r"`equalized` \(=1\) must be one of True, False"),
    ("coarse_parts", {"a": -1.0}, r"`coarse_parts` \(=-1.0\) must be a number from 0"),
    ("output_grid", {"bits": 8}, r"`output_grid` \(=\{'bits': 8\}\)"),
    ("output_grid", 3, r"`output_grid` \(=3\) must be an ActivationGrid"),
    ("input_grid", {"bits": 8, "scale": -1.0}, "`input_grid`"),
    ("preactivation_grid", {"bits": 8, "scale": 1.0, "zero_point": 300}, "`preactivation_grid`"),
]


@pytest.mark.parametrize(("option", "value", "message"), OPTIONS)
def test_options(
    option: str, value: Any, message: str, quantized: keras.Model, tmp_path: pathlib.Path
) -> None:
    """In a constructor, a configuration, a file, and where they were set."""
    layer = dense(quantized)
    config = {**layer.get_config(), option: value}
    with pytest.raises(ValueError, match=f"layer 'dense'.*{message}"):
        type(layer).from_config(config)

    def change_config(content: bytes) -> bytes:
        document = json.loads(content)
        (entry,) = (e for e in document["config"]["layers"] if e["config"]["name"] == "dense")
        entry["config"][option] = value
        return json.dumps(document).encode()

    path = changed_file(quantized, tmp_path, "config.json", change_config)
    with pytest.raises(ValueError, match=message):
        keras.models.load_model(path)
    setattr(layer, option, value)
    with pytest.raises(ValueError, match=f"layer 'dense'.*{message}"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite", target="float")


def changed_file(model: keras.Model, folder: pathlib.Path, part: str, change: Any) -> pathlib.Path:
    """`model` in a `.keras` file one of whose parts was changed."""
    path = folder / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[part] = change(parts[part])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def test_unknown_options_of_a_kernel() -> None:
    with pytest.raises(ValueError, match="unknown option 'steps'"):
        kernel_options(weight_bits=4, steps=3)


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        (3, r"`kernels` \(=3\) must be a dict"),
        ({"gate": {"weight_bits": 4}}, r"`kernels` \(='gate'\) must be one of 'kernel'"),
        ({"kernel": 4}, "has 4 for 'kernel'; it must be a dict of options, with weight_bits"),
        ({"kernel": {"copies": 1}}, "with weight_bits"),
        ({"kernel": {"weight_bits": 40}}, r"`weight_bits` \(=40\)"),
    ],
)
def test_options_of_composites(kernels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options_by_name(kernels, ["kernel"])
