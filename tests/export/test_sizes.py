"""What a model takes in each kind of file: estimates against files."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export import sizes
from tests.export.networks import FAST, MODELS, samples

TARGETS = ("int8", "int4", "packed", "float")


def dense(widths: dict[str, int], ratio: float = 0.0) -> keras.Model:
    """Three dense kernels, large enough for their codes to be most of a file."""
    x = inputs = keras.Input((200,))
    for name in widths:
        layer = layers.Dense(200, name=name)
        x = layer(x)
        kernel = np.asarray(layer.kernel).copy()
        kernel[7, 5] = 50 * np.abs(kernel).max()  # the only one that splitting is about
        layer.kernel.assign(kernel)
    return ocs_tf.convert(
        keras.Model(inputs, x),
        overrides={
            name: {"weight_bits": bits, "expand_ratio": ratio} for name, bits in widths.items()
        },
        granularity="tensor",
        verbose=False,
        **FAST,
    )


def test_codes_by_hand():
    model = dense({"a": 8, "b": 5, "c": 3})
    kernels = sizes.kernel_sizes(model)
    assert [(k.layer, k.kind, k.width, k.bits) for k in kernels] == [
        ("a", "dense", 8, 8),
        ("b", "dense", 5, 8),
        ("c", "dense", 3, 4),
    ]
    count = 200 * 200
    assert sizes.total(kernels) == {
        "int8": 3 * count,
        "int4": 2 * count + count // 2,
        "packed": count * (8 + 5 + 3) // 8,
        "float": 3 * count * 4,
    }


def test_copies_that_do_not_add_up_are_counted():
    """Of 8 bits with codes up to 127, whose sums do not fit; packed files have them always."""
    keras.utils.set_random_seed(0)
    (whole,) = sizes.kernel_sizes(dense({"a": 8}))
    models = [dense({"a": bits}, 0.1) for bits in (8, 5)]
    (split,), (narrow,) = map(sizes.kernel_sizes, models)
    channels, others = (200 + model.get_layer("a").copies for model in models)
    assert min(channels, others) > 200
    assert whole.bytes["int8"] == 200 * 200
    assert split.bytes["int8"] == channels * 200
    assert split.bytes["float"] == narrow.bytes["float"] == 200 * 200 * 4
    assert narrow.bytes["int8"] == 200 * 200
    assert narrow.bytes["packed"] == others * 200 * 5 // 8


@pytest.mark.parametrize("ratio", [0.0, 0.05])
def test_estimates_are_near_the_files(ratio, tmp_path):
    model = dense({"a": 8, "b": 5, "c": 3}, ratio)
    results = {
        target: ocs_tf.export_tflite(model, tmp_path / target, target=target, **how)
        for target, how in (
            ("int8", {"activations": "float"}),
            ("int4", {"activations": "float"}),
            ("packed", {}),
            ("float", {}),
        )
    }
    for result in results.values():
        assert set(result.other_sizes) == set(TARGETS) - {result.target}
        for target, about in result.other_sizes.items():
            # Slices and concatenations of copies, which packed files do not have, take 6 kB.
            assert about == pytest.approx(results[target].size, rel=0.05, abs=6000 if ratio else 0)


def test_kernels_inside_of_layers_count():
    inputs = keras.Input((4, 5))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    model = keras.Model(inputs, layers.LSTM(6, name="lstm")(x))
    quantized = ocs_tf.convert(
        model,
        weight_bits=4,
        first_layer_bits="same",
        last_layer_bits="same",
        expand_ratio=0,
        verbose=False,
        **FAST,
    )
    kernels = sizes.kernel_sizes(quantized)
    attention = 4 * 5 * 2 * 3
    lstm = (5 + 6) * 6 * 4
    assert sizes.total(kernels)["packed"] == (attention + lstm) // 2
    assert {k.layer.split("/")[0] for k in kernels} == {"attention", "lstm"}


def test_the_report_says_so(tmp_path):
    model = MODELS["mobile"]()
    quantized = ocs_tf.convert(
        model, weight_bits=4, representative_dataset=samples(model), verbose=False, **FAST
    )
    result = ocs_tf.export_tflite(quantized, tmp_path / "model.tflite")
    (line,) = (line for line in str(result).splitlines() if line.startswith("Sizes:"))
    assert "codes of 4 bits take a byte each here, " in line
    for target, about in result.other_sizes.items():
        assert f"{target} {about / 1e3:.1f} kB" in line
    packed = ocs_tf.export_tflite(quantized, tmp_path / "packed.tflite", target="packed")
    assert "a byte each" not in str(packed)


def test_text():
    other = {"int4": 150_000, "packed": 99_000}
    assert sizes.describe("int8", 2_850_000, other, (3, 5, 8)) == (
        "Sizes: codes of 3 and 5 bits take a byte each here, 2.85 MB;"
        " other targets, about: int4 0.15 MB, packed 99.0 kB"
    )
    assert sizes.describe("int8", 1000, {"packed": 900}, (8,)) == (
        "Sizes: 1.0 kB; other targets, about: packed 0.9 kB"
    )
    assert np.all([w in sizes.describe("float", 4, {}, (8,)) for w in ("four", "bytes")])
