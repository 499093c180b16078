"""Widths of layers: within the budget, and where they matter."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.numerics.bit_allocation import closed_form_bits
from ocs_tf.planning.mixed_precision import WIDTHS, _error


@pytest.fixture
def model() -> keras.Model:
    return network()


def network(deaf_size: int = 1) -> keras.Model:
    """Layers of different sizes; `deaf` hardly matters for the output."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 3, activation="relu", name="small")(inputs)
    deaf = layers.Conv2D(32, deaf_size, padding="same", use_bias=False, name="deaf")(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="large")(x)
    x = layers.Add()([x, layers.Rescaling(1e-4)(deaf)])
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="head")(x))


def data(model: keras.Model, count: int = 24) -> Any:
    return np.random.default_rng(0).normal(size=(count, *model.inputs[0].shape[1:])).astype("f4")


def code_bits(quantized: keras.Model) -> int:
    """Of all codes, from the layers themselves."""
    kernels = [
        layer.quantized_kernel() for layer in quantized.layers if hasattr(layer, "quantized_kernel")
    ]
    return sum(kernel.codes.size * kernel.bits for kernel in kernels)


def weights(model: keras.Model) -> int:
    found = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return sum(layer.kernel.shape.num_elements() for layer in found)


@pytest.mark.parametrize("allocation", ["sqnr", "measured", "closed_form"])
@pytest.mark.parametrize("average", [2.5, 5.7, 8])
def test_the_average_is_kept(allocation: str, average: float, model: keras.Model) -> None:
    given = data(model) if allocation == "measured" else None
    quantized = ocs_tf.convert(
        model,
        average_bits=average,
        allocation=allocation,
        activation_bits=None,
        representative_dataset=given,
        rounding="nearest",  # how codes are chosen makes no difference to how many bits they have
        bias_correction=False,
        verbose=False,
    )
    bits = code_bits(quantized) / weights(model)
    assert bits <= average
    # One layer has 2,304 of the 3,296 weights: its widths are coarse steps of the average.
    assert bits > average - 0.8


@pytest.mark.parametrize("allocation", ["sqnr", "closed_form"])
def test_bytes_are_kept(allocation: str, model: keras.Model) -> None:
    quantized = ocs_tf.convert(model, weight_bytes=1600, allocation=allocation, verbose=False)
    assert 1300 < code_bits(quantized) / 8 <= 1600


def test_what_does_not_matter_gets_fewest_bits() -> None:
    model = network(deaf_size=3)  # so large that what is left of the budget is no bit for it
    options = {"average_bits": 4.5, "activation_bits": None, "verbose": False}
    plan = ocs_tf.plan(model, representative_dataset=data(model), **options)
    bits = {name: layer.bits for name, layer in plan.layers.items()}
    assert bits["deaf"] == min(bits.values()) == 2
    blind = ocs_tf.plan(model, **options)
    assert blind.layers["deaf"].bits > 2


def test_the_error_of_probabilities_is_not_that_of_their_sums() -> None:
    """Softmax in float32 adds up to 1 but for some 1e-7, which depends on the CPU."""
    rng = np.random.default_rng(0)
    exact = rng.dirichlet(np.ones(5), 24)
    for sums in (1 - 1e-7, 1 + 1e-7):
        assert 0 <= _error(exact, exact * sums, softmax=True) < 1e-12
    changed = exact * (1 + 1e-3 * rng.normal(size=exact.shape))
    changed /= changed.sum(1, keepdims=True)
    divergence = (exact * np.log(exact / changed)).sum() / len(exact)
    assert _error(exact, changed, softmax=True) == pytest.approx(divergence, rel=1e-6)


def test_kernels_of_least_noise_to_signal(model: keras.Model) -> None:
    """No other widths of the same size have a smaller sum of noise to signal ratios."""
    options = {"expand_ratio": 0.0, "weight_clip": "none", "verbose": False}
    kernels = {
        layer.name: np.asarray(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")
    }
    ratios = {}
    for name, bits in itertools.product(kernels, WIDTHS):
        only = {"weight_bits": bits, "first_layer_bits": bits, "last_layer_bits": bits}
        layer = ocs_tf.convert(model, **only, **options).get_layer(name)
        ratios[name, bits] = 10 ** (-layer.kernel_sqnr_db / 10)
    sizes = np.array([kernel.size for kernel in kernels.values()])

    def total(widths: Any) -> float:
        return sum(ratios[pair] for pair in zip(kernels, widths, strict=True))

    plan = ocs_tf.plan(model, average_bits=4.2, **options)
    chosen = [plan.layers[name].bits for name in kernels]
    fits = [
        total(widths)
        for widths in itertools.product(WIDTHS, repeat=len(kernels))
        if widths @ sizes <= 4.2 * sizes.sum()
    ]
    assert total(chosen) <= min(fits) * 1.0001


def test_closed_form_is_that_of_the_numerics(model: keras.Model) -> None:
    plan = ocs_tf.plan(
        model, average_bits=5, allocation="closed_form", expand_ratio=0.0, verbose=False
    )
    sizes = [model.get_layer(name).kernel.shape.num_elements() for name in plan.layers]
    want = closed_form_bits(sizes, 5)
    np.testing.assert_array_equal([layer.bits for layer in plan.layers.values()], want)


def test_macs_weigh_kernels_by_use(model: keras.Model) -> None:
    """A dense layer's weights are used once, a convolution's at each position."""
    options = {"average_bits": 4, "expand_ratio": 0.0, "verbose": False}
    plan = ocs_tf.plan(model, allocation_cost="macs", **options)
    uses = {"small": 16, "deaf": 16, "large": 16, "depthwise": 4, "head": 1}
    macs = {n: model.get_layer(n).kernel.shape.num_elements() * uses[n] for n in uses}
    spent = sum(plan.layers[name].bits * count for name, count in macs.items())
    assert spent <= 4 * sum(macs.values())
    by_size = ocs_tf.plan(model, **options)
    assert plan.layers["head"].bits >= by_size.layers["head"].bits


def test_given_widths_stay_and_count(model: keras.Model) -> None:
    options = {"average_bits": 5, "expand_ratio": 0.0, "verbose": False}
    plan = ocs_tf.plan(
        model,
        first_layer_bits=7,
        overrides={"deaf": {"weight_bits": 8}, "depthwise": {"weight_bits": None}},
        **options,
    )
    assert plan.layers["small"].bits == 7
    assert plan.layers["deaf"].bits == 8
    assert "depthwise" not in plan.layers
    sizes = {n: model.get_layer(n).kernel.shape.num_elements() for n in plan.layers}
    spent = sum(plan.layers[name].bits * size for name, size in sizes.items())
    assert spent <= 5 * sum(sizes.values())


def test_all_given_is_left_alone(model: keras.Model) -> None:
    overrides = {
        layer.name: {"weight_bits": 3} for layer in model.layers if hasattr(layer, "kernel")
    }
    plan = ocs_tf.plan(model, average_bits=8, overrides=overrides, verbose=False)
    assert {layer.bits for layer in plan.layers.values()} == {3}


def test_a_budget_that_is_too_small(model: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"`average_bits` \(=2.0\) is too small: .* it is 2.2"):
        ocs_tf.plan(model, average_bits=2, expand_ratio=0.05, verbose=False)
    least = -(-2 * weights(model) // 8)
    with pytest.raises(ValueError, match=rf"`weight_bytes` \(=99\) is too small: .* {least}"):
        ocs_tf.plan(model, weight_bytes=99, expand_ratio=0.0, verbose=False)


def test_measuring_needs_data(model: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"`allocation` \(='measured'\) needs `representative"):
        ocs_tf.plan(model, average_bits=4, allocation="measured", verbose=False)


def test_the_model_is_left_as_it_was(model: keras.Model) -> None:
    before = [np.array(w) for w in model.get_weights()]
    x = data(model, 3)
    ocs_tf.plan(model, average_bits=4, representative_dataset=x, verbose=False)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_one_sample_is_enough(model: keras.Model) -> None:
    plan = ocs_tf.plan(model, average_bits=4, representative_dataset=data(model, 1), verbose=False)
    assert len(plan.layers) == 5


def test_several_outputs_without_softmax() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7,))
    x = layers.Dense(16, activation="relu", name="a")(inputs)
    model = keras.Model(inputs, [layers.Dense(3, name="b")(x), layers.Dense(2, name="c")(x)])
    plan = ocs_tf.plan(model, average_bits=6, representative_dataset=data(model), verbose=False)
    sizes = {"a": 112, "b": 48, "c": 32}
    assert sum(plan.layers[n].bits * size for n, size in sizes.items()) <= 6 * sum(sizes.values())


def test_copies_of_a_network_are_no_more_codes_than_those_of_its_layers(model: keras.Model) -> None:
    keras.utils.set_random_seed(1)
    kernel = np.asarray(model.get_layer("large").kernel)
    kernel[0, 0, 3] *= 30
    model.get_layer("large").kernel.assign(kernel)
    options = {"weight_bits": 4, "expand_ratio": 0.2, "verbose": False, "last_layer_bits": "same"}
    each = ocs_tf.plan(model, weight_clip="none", **options)
    shared = ocs_tf.plan(model, split_budget="network", **options)

    def codes(plan: ocs_tf.Plan) -> int:
        rows = {n: model.get_layer(n).kernel.shape.num_elements() for n in plan.layers}
        inputs = {"small": 4, "deaf": 8, "large": 8, "depthwise": 1, "head": 32}
        return sum(len(p.copies) * rows[n] // inputs[n] for n, p in plan.layers.items())

    assert 0 < codes(shared) <= codes(each)
    assert 3 in shared.layers["large"].copies
    assert shared.layers["small"].copies == shared.layers["depthwise"].copies == []

    def noise(plan: ocs_tf.Plan) -> float:
        quantized = ocs_tf.apply(model, plan, verbose=False)
        return sum(10 ** (-quantized.get_layer(n).kernel_sqnr_db / 10) for n in plan.layers)

    nearest = {**options, "rounding": "nearest"}
    by_layer = noise(ocs_tf.plan(model, **nearest))
    assert noise(ocs_tf.plan(model, split_budget="network", **nearest)) <= by_layer * 1.02


@pytest.mark.parametrize("multiple", [4, 16])
def test_copies_of_a_network_end_at_the_multiple(multiple: int) -> None:
    """Layers of 10 and of 16 channels: the first gets copies up to 12, or 16, the other none."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(10, 3, name="stem")(inputs)
    x = keras.layers.Conv2D(16, 3, name="ten")(x)
    x = keras.layers.Conv2D(4, 3, name="sixteen")(x)
    model = keras.Model(inputs, x)
    for name in ("ten", "sixteen"):
        kernel = np.asarray(model.get_layer(name).kernel).copy()
        kernel[0, 0, 3:8] *= 30
        model.get_layer(name).kernel.assign(kernel)
    options = {"weight_bits": 4, "expand_ratio": 0.3, "split_budget": "network", "verbose": False}
    options["last_layer_bits"] = "same"
    plan = ocs_tf.plan(model, channel_multiple=multiple, **options)
    assert 0 < len(plan.layers["ten"].copies) <= -10 % multiple
    assert plan.layers["sixteen"].copies == []
    assert ocs_tf.plan(model, **options).layers["sixteen"].copies != []
