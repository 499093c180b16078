"""Networks of keras.applications, converted, saved, loaded, exported, and run.

Some that differ in their operations, with few blocks of each kind; `make applications` goes through
all of them as they are.
"""

from __future__ import annotations

import functools
import inspect
import pathlib
import sys
from collections.abc import Callable

import keras
import numpy as np
import pytest

import ocs_tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import applications

EFFICIENTNET = inspect.getmodule(keras.applications.EfficientNetB0)
CONVNEXT = inspect.getmodule(keras.applications.ConvNeXtTiny)
assert EFFICIENTNET is not None
assert CONVNEXT is not None

# Networks by what makes them; and the least SQNR of the file's outputs against the quantized Keras
# model's, dB: what runtimes round inside of a swish, and how they add two tensors, makes a
# difference, which random networks enlarge.
NETWORKS: dict[str, tuple[Callable[..., keras.Model], float]] = {
    # Residual sums, ReLU6.
    "MobileNetV2": (functools.partial(keras.applications.MobileNetV2, alpha=0.35), 30),
    # Gates, hard swish.
    "MobileNetV3Small": (
        functools.partial(keras.applications.MobileNetV3Small, alpha=0.75, minimalistic=False),
        12,
    ),
    # Gates, swish, normalized inputs: B0's first three kinds of blocks of seven; the others have
    # more channels.
    "EfficientNet": (
        functools.partial(
            EFFICIENTNET.EfficientNet,
            1.0,
            1.0,
            224,
            blocks_args=EFFICIENTNET.DEFAULT_BLOCKS_ARGS[:3],
        ),
        10,
    ),
    # Layer normalizations, GELU, scales: its four stages, in which Tiny has 18 blocks.
    "ConvNeXt": (
        functools.partial(
            CONVNEXT.ConvNeXt, depths=(1, 2, 1, 1), projection_dims=(32, 64, 96, 128)
        ),
        30,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_goes_through_all_steps(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, least = NETWORKS[name]
    monkeypatch.setattr(applications, "networks", lambda: {name: make})
    model = applications.build(name, classes=10)
    images = applications.pictures(model, 8, seed=2)
    data = applications.pictures(model, 16, seed=3)
    want = model.predict_on_batch(images)
    split = applications.split_only(model).predict_on_batch(images)
    np.testing.assert_allclose(split, want, atol=1e-4 * np.abs(want).max())

    quantized = ocs_tf.convert(
        model,
        representative_dataset=data,
        rounding="nearest",  # which is fast, and makes no difference to what is in the file
        bias_correction=False,
        verbose=False,
    )
    outputs = quantized.predict_on_batch(images)
    assert applications.sqnr(want, outputs) > 10
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(images), outputs)

    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, representative_dataset=data)
    assert result.size < 1.2 * model.count_params() + 2e6
    for runtime in applications.RUNTIMES:
        codes, (scale, zero_point) = applications.run(path, images, runtime)
        assert applications.sqnr(outputs, (codes - zero_point) * np.float32(scale)) > least
