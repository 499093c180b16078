"""Data-free bias correction: the error of the kernel times the mean that a batch norm tells of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.compensation.data_free import compensate_data_free, moments_of_calls
from ocs_tf.graph.analysis.batch_norm_moments import channel_moments
from ocs_tf.graph.reader import Graph


def einsum(equation: str, *shape: int, bias: str = "f") -> Callable[[], Any]:
    return lambda: layers.EinsumDense(equation, shape, bias_axes=bias, name="layer")


# Layers behind a batch norm over the last axis, the size of that axis, and whether it holds their
# input channels.
READERS = {
    "one axis": (einsum("abe,ef->abf", 3, 5), 4, True),
    "two axes": (einsum("abe,bef->af", 5), 4, True),
    "two outputs": (einsum("abe,befg->afg", 5, 2, bias="fg"), 4, True),
    "kernel in another order": (einsum("abe,ebf->af", 5), 4, True),
    "not the last": (einsum("abe,bf->afe", 5, 4), 4, False),
    "not the last, as large": (einsum("abe,bf->afe", 5, 3), 3, False),
    "dense": (lambda: layers.Dense(5, name="layer"), 4, True),
    "convolution": (lambda: layers.Conv1D(5, 3, name="layer"), 4, True),
}


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize(("reader", "last", "tells"), READERS.values(), ids=READERS)
def test_biases_take_the_error_of_the_mean(
    reader: Callable[[], Any], last: int, tells: bool, rounding: bool, randomize: Any
) -> None:
    inputs = keras.Input((3, last))
    layer = reader()
    model = randomize(keras.Model(inputs, layer(layers.BatchNormalization(name="norm")(inputs))))
    graph = Graph(model)
    site = graph.kernels["layer"]
    moments = channel_moments(graph)[id(graph.calls(layer)[0].inputs[0])]
    plan = ocs_tf.plan(model, weight_bits=3, verbose=False).layers["layer"]
    _, bias = site.weights()
    quantized, corrected = compensate_data_free(site, plan, moments, rounding=rounding)
    if tells:
        # What the float layer makes of the mean, less what the quantized one does.
        mean = np.broadcast_to(np.asarray(model.get_layer("norm").beta), (1, 3, last))
        exact = np.asarray(layer(mean))
        layer.kernel.assign(site.adapter.from_stored(quantized.effective_kernel(), layer))
        error = exact - np.asarray(layer(mean))
        bias = bias + error.reshape(-1, len(bias))[0]
        assert np.abs(error).max() > 1e-3
    np.testing.assert_allclose(corrected, bias, rtol=1e-4, atol=1e-5)
    quantized = ocs_tf.convert(model, weight_bits=8, verbose=False)
    x = np.random.default_rng(0).normal(size=(8, 3, last)).astype(np.float32)
    np.testing.assert_allclose(quantized(x), model(x), atol=0.05)


def test_a_shared_layer_minds_what_all_its_calls_read(randomize: Any) -> None:
    """Each counts by its error relative to what it reads: by one over the mean square of that."""
    inputs, layer = keras.Input((6,)), layers.Dense(5, name="layer")
    norms = [layers.BatchNormalization(name=name) for name in ("small", "large")]
    model = randomize(keras.Model(inputs, [layer(norm(inputs)) for norm in norms]))
    norms[1].gamma.assign(norms[1].gamma * 30)
    norms[1].beta.assign(norms[1].beta * 20)
    quantized = ocs_tf.convert(model, weight_bits=3, last_layer_bits="same", verbose=False)
    error = layer.kernel - quantized.get_layer("layer").kernel
    betas, gammas = (np.stack([getattr(n, name) for n in norms]) for name in ("beta", "gamma"))
    shares = 1 / (np.square(betas) + np.square(gammas)).mean(1)
    wanted = shares @ (betas @ np.asarray(error)) / shares.sum()
    found = quantized.get_layer("layer").bias - layer.bias
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=1e-4)


def test_what_one_call_reads_is_not_what_all_do() -> None:
    known = np.zeros(2), np.ones(2)
    assert moments_of_calls([known, None]) is None
    assert moments_of_calls([known]) is known
    mean, variance = moments_of_calls([(np.ones(2), np.zeros(2)), (-np.ones(2), np.zeros(2))])
    np.testing.assert_allclose((mean, variance), ([0, 0], [1, 1]))
