"""Whatever a functional model is made of: it is read as it is, quantized closely, and exported.

The models are those of `random_graphs`. `OCS_TF_RANDOM_GRAPHS=1000` draws that many for each
property, others each time.
"""

from __future__ import annotations

import os
import pathlib
import re
import tempfile

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import ocs_tf
from ocs_tf.compare import TFLiteModel
from ocs_tf.export.tflite import VerificationError
from ocs_tf.graph.flat import flat
from ocs_tf.graph.reader import Graph
from ocs_tf.kernels.library import library_path
from tests.random_graphs import Drawn, models

Arrays = list[np.ndarray]
LONG = int(os.environ.get("OCS_TF_RANDOM_GRAPHS", 0))
# What the converter makes of a model that cannot be kept; the messages name the layer.
REFUSALS = (
    r"^kernel of layer '.*' .* equals no weight tensor of the float model; .*factor in front",
    r"^TensorFlow's converter fails .*Replace a layer",
)
quick = settings(
    max_examples=LONG or 4,
    derandomize=not LONG,
    database=None,
    deadline=None,
    # Shrinking takes minutes: each try converts a model.
    phases=[Phase.generate, Phase.shrink] if LONG else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def assert_equal(found: Arrays, wanted: Arrays, tolerance: float = 1e-4) -> None:
    """But for float rounding."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        largest = max(1e-2, np.abs(other).max(initial=0))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


def assert_close(found: Arrays, wanted: Arrays, sqnr_db: float) -> None:
    """To within this ratio of signal to noise; outputs that are all but 0 have no signal."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        signal = np.square(np.float64(other)).mean()
        noise = np.square(np.float64(one) - other).mean()
        assert noise <= max(signal, 1e-4) * 10 ** (-sqnr_db / 10), 10 * np.log10(signal / noise)


@quick
@given(models())
def test_flat_is_the_same_function(drawn: Drawn) -> None:
    assert_equal(drawn.outputs(flat(drawn.model)), drawn.outputs(), 1e-6)


@quick
@given(models(), st.booleans())
def test_splitting_alone_changes_nothing(drawn: Drawn, fold: bool) -> None:
    model = flat(drawn.model)  # its own layers, also for those that become several
    put_on_grid(model)
    quantized = ocs_tf.convert(
        model,
        weight_bits=8,
        weight_clip="none",
        rounding="nearest",
        bias_correction=False,
        equalization=False,
        fold_batch_norm=fold,
        first_layer_bits="same",
        last_layer_bits="same",
        overrides=[ocs_tf.Override(lambda layer: True, expand_ratio=0.01, granularity="channel")],
        verbose=False,
    )
    assert_equal(drawn.outputs(quantized), drawn.outputs(model))


def put_on_grid(model: keras.Model) -> None:
    """Give kernels weights that 8-bit codes hold exactly once the largest channel is split."""
    rng = np.random.default_rng(5)
    for site in Graph(model, fold_batch_norm=False).kernels.values():
        kernel, _ = site.adapter.read(site.layer)
        codes = rng.integers(-127, 128, kernel.shape)
        if site.adapter.why_not_split(site.layer):
            codes[(0,) * (kernel.ndim - 1)] = 127
        else:
            codes[..., kernel.shape[-2] // 2, :] *= 2
            codes[(*(0,) * (kernel.ndim - 2), kernel.shape[-2] // 2)] = 254
        fan_in = np.prod(kernel.shape[:-1])
        step = 2.0 ** -np.round(np.log2(80 * np.sqrt(fan_in)))
        site.adapter.write(site.layer, site.adapter.to_keras(np.float32(codes * step), site.layer))


@quick
@given(models())
def test_weights(drawn: Drawn) -> None:
    quantized = ocs_tf.convert(drawn.model, weight_bits=8, verbose=False)
    found = drawn.outputs(quantized)
    assert_close(found, drawn.outputs(), 10)  # a normalization of two channels enlarges much
    assert [t.name for t in quantized.inputs] == [t.name for t in drawn.model.inputs]
    assert quantized.output_names == drawn.model.output_names
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "quantized.keras"
        quantized.save(path)
        assert_equal(drawn.outputs(keras.models.load_model(path)), found, 1e-6)


@quick
@given(models())
def test_weights_and_activations(drawn: Drawn) -> None:
    quantized = ocs_tf.convert(
        drawn.model,
        weight_bits=8,
        activation_bits=8,
        representative_dataset=drawn.inputs,
        verbose=False,
    )
    found = drawn.outputs(quantized)
    assert_close(found, drawn.outputs(), 10)
    described = ocs_tf.report(quantized)
    assert str(described)
    names = {row.name.partition("/")[0] for row in described.layers}
    for layer in flat(quantized).layers:
        assert not layer.weights or layer.name in names, layer.name


@quick
@given(drawn=models(), activation_bits=st.sampled_from([None, 8]))
@pytest.mark.parametrize("target", ["float", "packed", "int8"])
def test_export(target: str, drawn: Drawn, activation_bits: int | None) -> None:
    if target == "packed" and not library_path().exists():
        pytest.skip("needs the native library")
    bits = {"float": None, "packed": activation_bits, "int8": 8}[target]
    data = drawn.inputs if bits else None
    quantized = ocs_tf.convert(
        drawn.model, activation_bits=bits, representative_dataset=data, verbose=False
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        try:
            ocs_tf.export_tflite(
                quantized, path, target=target, representative_dataset=drawn.inputs
            )
        except (ValueError, VerificationError) as error:
            assert re.search("|".join(REFUSALS), str(error)), error  # noqa: PT017
            assert not path.exists()
            return
        found = run(path, drawn)
    if bits is None:
        assert_equal(found, drawn.outputs(quantized))
    else:
        assert_close(found, drawn.outputs(quantized), 15)


def run(path: pathlib.Path, drawn: Drawn) -> Arrays:
    """Outputs of a file, in the order of the model's."""
    file = TFLiteModel(path)
    found = file.predict_on_batch([drawn.inputs[name] for name in file.input_names])
    outputs = dict(zip(file.output_names, keras.tree.flatten(found), strict=True))
    return [outputs[name] for name in sorted(outputs)]  # output_0, output_1, ...
