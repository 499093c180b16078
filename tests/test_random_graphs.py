"""Whatever a functional model is made of: it is read as it is, quantized closely, and exported.

The models are those of `random_graphs`. `OCS_TF_RANDOM_GRAPHS=1000` draws that many for each
property, others each time.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import tempfile
import warnings
from collections.abc import Iterable

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import ocs_tf
from ocs_tf.export.errors import VerificationError
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.substitutions.inlining import flat
from ocs_tf.runtime import runner, tflite
from ocs_tf.runtime.library import library_path
from tests.random_graphs import Drawn, models

Arrays = list[np.ndarray]
LONG = int(os.environ.get("OCS_TF_RANDOM_GRAPHS", 0))
# What the converter makes of a model that cannot be kept; the messages name the layer.
REFUSALS = (
    r"^kernel of layer '.*' \(dense \[1, .* a convolution of size 1 computes the same",
    r"^TensorFlow's converter fails at '.*': ",
    r"^the file does not compute .* Softmaxes read scores that range so far that 8 bits tell few",
)
# dB between a file and the Keras model. Inside of recurrent layers and of attention only int8 files
# round; in packed ones a value lands on the neighbouring code now and then.
CLOSE = {"int8": 15, "packed": 20}
quick = settings(
    max_examples=LONG or 4,
    derandomize=not LONG,
    database=None,
    deadline=None,
    # Shrinking takes minutes: each try converts a model.
    phases=[Phase.generate, Phase.shrink] if LONG else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)


files = settings(quick, max_examples=LONG or 12)


def assert_equal(
    found: Arrays,
    wanted: Arrays,
    tolerance: float = 1e-4,
    rounding: Iterable[float] = itertools.repeat(0.0),
) -> None:
    """But for float rounding: of each output, a share of its largest value, or what it is known."""
    assert len(found) == len(wanted)
    for one, other, known in zip(found, wanted, rounding, strict=False):
        assert one.shape == other.shape
        largest = max(1e-2, np.abs(other).max(initial=0))
        np.testing.assert_allclose(one, other, rtol=0, atol=max(tolerance * largest, 4 * known))


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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized = ocs_tf.convert(
            drawn.model,
            weight_bits=8,
            activation_bits=8,
            representative_dataset=drawn.inputs,
            verbose=False,
        )
    told = [str(warning.message) for warning in caught]
    if not any("share one grid" in text for text in told):  # else what reads small parts is far
        assert_close(drawn.outputs(quantized), drawn.outputs(), 10)
    described = ocs_tf.report(quantized)
    assert str(described)
    names = {row.name.partition("/")[0] for row in described.layers}
    for layer in flat(quantized).layers:
        assert not layer.weights or layer.name in names, layer.name


@files
@given(drawn=models(), activation_bits=st.sampled_from([None, 8]))
@pytest.mark.parametrize("target", ["float", "packed", "int8"])
def test_export(target: str, drawn: Drawn, activation_bits: int | None) -> None:
    if target == "packed" and not library_path().exists():
        pytest.skip("needs the native library")
    bits = {"float": None, "packed": activation_bits, "int8": 8}[target]
    data = drawn.inputs if bits else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized = ocs_tf.convert(
            drawn.model, activation_bits=bits, representative_dataset=data, verbose=False
        )
    warned = any("share one grid" in str(warning.message) for warning in caught)
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
        by_position, by_name = run(path, drawn)
    wanted = drawn.outputs(quantized)
    rounding = drawn.rounding(quantized)
    for found in (by_position, by_name):
        if bits is None:
            assert_equal(found, wanted, rounding=rounding)
        else:
            # Of small parts of a grid, what rounds inside of recurrent layers leaves less.
            assert_close(found, wanted, 10 if warned else CLOSE[target])


def run(path: pathlib.Path, drawn: Drawn) -> tuple[Arrays, Arrays]:
    """Outputs of a file, its inputs and outputs taken in the order of Keras; and by their names."""
    file = tflite.Interpreter(path)
    given, made = file.get_input_details(), file.get_output_details()
    names = [tensor.name for tensor in drawn.model.inputs]
    by_position, by_name = [], []
    for index in range(len(drawn.inputs[names[0]])):
        for name, detail in zip(names, given, strict=True):
            sample = drawn.inputs[name][index : index + 1]
            file.set_tensor(detail["index"], runner.to_codes(sample, detail))
        file.invoke()
        by_position.append([runner.to_floats(file.get_tensor(d["index"]), d) for d in made])
    signature = file.get_signature_runner()
    inputs, outputs = signature.get_input_details(), signature.get_output_details()
    assert sorted(outputs) == sorted(f"output_{number}" for number in range(len(made)))
    for index in range(len(by_position)):
        samples = {name: array[index : index + 1] for name, array in drawn.inputs.items()}
        found = signature(
            **{n: runner.to_codes(samples[n], detail) for n, detail in inputs.items()}
        )
        ordered = [f"output_{number}" for number in range(len(made))]
        by_name.append([runner.to_floats(found[name], outputs[name]) for name in ordered])
    return _joined(by_position), _joined(by_name)


def _joined(samples: list[Arrays]) -> Arrays:
    return [np.concatenate(column) for column in zip(*samples, strict=True)]
