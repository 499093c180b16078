"""Real networks with real data: what a user gets, on few pictures."""

from __future__ import annotations

import functools
import pathlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter as litert

import ocs_tf
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.rewrite import rewrite

LIMIT = {"resnet20_cifar10": 400, "densenet40_cifar10": 60, "mobilenet_v1_075_imagenet": 60}
# What takes minutes with the kernels of up to 4,104 inputs of a DenseNet; test_compensation has
# structures like its own.
PLAIN: dict[str, dict[str, Any]] = {
    "densenet40_cifar10": {"rounding": "nearest", "bias_correction": False}
}


@pytest.fixture
def entry(request: pytest.FixtureRequest, zoo: ModuleType) -> Any:
    return load(zoo, request.param)


@functools.cache
def load(zoo: ModuleType, name: str) -> tuple[Any, np.ndarray]:
    """A network, and its float outputs."""
    network = zoo.load(name, limit=LIMIT.get(name, 5))
    return network, network.predict(network.model)


@functools.cache
def quantized_in_8_bits(zoo: ModuleType, name: str) -> tuple[Any, np.ndarray]:
    """Weights and activations; and what it predicts."""
    network, _ = load(zoo, name)
    quantized = ocs_tf.convert(
        network.model,
        representative_dataset=network.calibration[:32],
        verbose=False,
        **PLAIN.get(name, {}),
    )
    return quantized, network.predict(quantized)


def agreement(network: Any, want: np.ndarray, **options: Any) -> float:
    """Share of pictures on which the quantized network predicts what the float one does."""
    quantized = ocs_tf.convert(network.model, verbose=False, **options)
    return same_labels(network.predict(quantized), want)


def same_labels(found: np.ndarray, want: np.ndarray) -> float:
    """Share of pictures."""
    return float(np.mean(labels(found) == labels(want)))


def labels(outputs: np.ndarray) -> np.ndarray:
    return outputs.reshape(len(outputs), -1).argmax(-1)


images = pytest.mark.parametrize("entry", LIMIT, indirect=True)


@images
def test_8_bit_weights_hardly_change_a_prediction(entry: Any) -> None:
    assert agreement(*entry) >= 0.9


@images
def test_8_bit_weights_and_activations(entry: Any, zoo: ModuleType) -> None:
    network, want = entry
    _, found = quantized_in_8_bits(zoo, network.name)
    assert same_labels(found, want) >= 0.85


@images
def test_exported_file_predicts_what_keras_does(
    entry: Any, zoo: ModuleType, tmp_path: pathlib.Path
) -> None:
    network, _ = entry
    quantized, outputs = quantized_in_8_bits(zoo, network.name)
    images, want = network.inputs[:100], labels(outputs)[:100]
    path = tmp_path / "model.tflite"
    result = ocs_tf.export_tflite(quantized, path, io_dtype="float32")
    for library in (litert, tf.lite):
        runner = library.Interpreter(str(path)).get_signature_runner()
        (name,) = runner.get_input_details()
        got = [next(iter(runner(**{name: image[None]}).values())).argmax() for image in images]
        assert np.mean(got == want) >= 0.99
    # What a float border costs aside, every operator is one that Coral documents.
    assert [op.op for op in result.ops if not op.supported] in ([], ["QUANTIZE", "DEQUANTIZE"])


@pytest.mark.parametrize("entry", ["resnet20_cifar10"], indirect=True)
def test_what_is_chosen_on_data_helps(entry: Any) -> None:
    options = {"weight_bits": 3, "representative_dataset": entry[0].calibration[:64]}
    nearest = agreement(*entry, rounding="nearest", bias_correction=False, **options)
    assert agreement(*entry, **options) > nearest + 0.1


@pytest.mark.parametrize("entry", ["resnet20_cifar10"], indirect=True)
def test_fewer_bits_cost_more(entry: Any) -> None:
    same = {"first_layer_bits": "same", "last_layer_bits": "same"}
    scores = [agreement(*entry, weight_bits=b, **same) for b in (8, 4, 2)]
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize("entry", ["resnet20_cifar10"], indirect=True)
def test_splitting_helps_as_in_the_paper(entry: Any) -> None:
    paper = functools.partial(ocs_tf.Config.paper, weight_bits=4)
    plain, split = (agreement(*entry, config=paper(expand_ratio=r)) for r in (0.0, 0.1))
    assert split > plain


@pytest.mark.parametrize("entry", ["charlstm_shakespeare"], indirect=True)
def test_a_recurrent_network(entry: Any) -> None:
    network, want = entry
    plan = ocs_tf.plan(network.model, verbose=False)
    assert len(plan.layers) == 6  # an Embedding, two LSTMs with two kernels each, a Dense
    assert plan.float_layers == {}
    quantized = ocs_tf.apply(network.model, plan, verbose=False)
    score, float_score = (
        network.score_outputs(outputs) for outputs in (network.predict(quantized), want)
    )
    assert score == pytest.approx(float_score, abs=0.004)  # bits per character


@pytest.mark.parametrize("entry", ["resnet20_cifar10"], indirect=True)
def test_a_residual_network_without_batch_norms(entry: Any) -> None:
    """Asked for what lies between such layers, TensorFlow's graph optimizer ends the process."""
    network, want = entry
    folded = rewrite(Graph(network.model), {}, {}).model
    quantized = ocs_tf.convert(
        folded, average_bits=5, representative_dataset=network.calibration[:32], verbose=False
    )
    got = network.predict(quantized)
    assert (got.argmax(-1) == want.argmax(-1)).mean() >= 0.95


@pytest.mark.parametrize("entry", ["mobilenet_v1_075_imagenet"], indirect=True)
def test_widths_of_their_own_and_no_data_save_mobilenet(entry: Any) -> None:
    """In 5 bits, rounded to the nearest, it knows next to nothing."""
    assert agreement(*entry, weight_bits=5, rounding="nearest", bias_correction=False) < 0.3
    assert agreement(*entry, weight_bits=5) > 0.75
    assert agreement(*entry, average_bits=5.9) > 0.85
