"""Codes and biases that mind what layers compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.compensation import weights as of_weights
from ocs_tf.graph import composites
from ocs_tf.numerics.gptq import DAMPING
from tests.export.networks import MODELS, randomize, samples

WEIGHTS_ONLY = {"activation_bits": None, "first_layer_bits": "same", "last_layer_bits": "same"}


def single(layer: layers.Layer, shape: tuple[int, ...]) -> keras.Model:
    inputs = keras.Input(shape, name="x")
    return randomize(keras.Model(inputs, layer(inputs)))


# Each layer with what it needs of a kernel's inputs: windows, groups, positions.
LAYERS = {
    "dense": lambda: single(layers.Dense(5, name="layer"), (7,)),
    "dense on 3-D": lambda: single(layers.Dense(5, name="layer"), (4, 7)),
    "conv": lambda: single(layers.Conv2D(5, 3, name="layer"), (8, 9, 4)),
    "conv, same, strides": lambda: single(
        layers.Conv2D(5, 3, strides=2, padding="same", name="layer"), (8, 9, 4)
    ),
    "conv, dilated": lambda: single(
        layers.Conv2D(5, (2, 3), dilation_rate=2, name="layer"), (8, 9, 4)
    ),
    "conv, groups": lambda: single(layers.Conv2D(6, 3, groups=2, name="layer"), (8, 9, 4)),
    "depthwise": lambda: single(layers.DepthwiseConv2D(3, name="layer"), (8, 9, 4)),
    "depthwise, multiplier": lambda: single(
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="layer"), (8, 9, 4)
    ),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def correlated(model: keras.Model, count: int = 64) -> np.ndarray:
    """Inputs whose channels and neighbours have much in common, with a mean of their own."""
    rng = np.random.default_rng(0)
    shape = model.inputs[0].shape[1:]
    x = rng.normal(size=(count, *shape))
    for axis in range(1, len(shape)):  # the spatial ones
        x = x + 2 * np.roll(x, 1, axis) + np.roll(x, 2, axis)
    return (x @ rng.normal(size=(shape[-1], shape[-1])) + 1).astype(np.float32)


def error(model: keras.Model, quantized: keras.Model, x: np.ndarray) -> np.ndarray:
    """Of each output channel of the last layer."""
    difference = np.asarray(quantized(x)) - np.asarray(model(x))
    return difference.reshape(-1, difference.shape[-1]).astype(np.float64)


@each_layer
def test_outputs_are_nearer_than_those_of_rounding_to_the_nearest(name: str) -> None:
    model = LAYERS[name]()
    x = correlated(model)
    options = {"weight_bits": 3, "representative_dataset": x, "verbose": False, **WEIGHTS_ONLY}
    errors = {}
    for rounding in ("nearest", "error_compensated"):
        quantized = ocs_tf.convert(model, rounding=rounding, bias_correction=True, **options)
        kernel = quantized.get_layer("layer").quantized_kernel()
        assert np.abs(kernel.codes).max() <= 3
        errors[rounding] = np.square(error(model, quantized, x)).sum()
    # Nine inputs, as of a depthwise kernel, cannot make up for much.
    assert errors["error_compensated"] < (1 if "depth" in name else 0.7) * errors["nearest"]


@each_layer
@pytest.mark.parametrize("rounding", ["nearest", "error_compensated"])
def test_outputs_have_the_mean_of_the_float_ones(name: str, rounding: str) -> None:
    model = LAYERS[name]()
    x = correlated(model)
    quantized = ocs_tf.convert(
        model,
        weight_bits=3,
        rounding=rounding,
        bias_correction=True,
        representative_dataset=x,
        verbose=False,
        **WEIGHTS_ONLY,
    )
    mean = np.abs(error(model, quantized, x).mean(0)).max()
    uncorrected = ocs_tf.convert(model, weight_bits=3, verbose=False, **WEIGHTS_ONLY)
    assert mean < 1e-3 * np.abs(error(model, uncorrected, x).mean(0)).max()


def test_a_layer_makes_up_for_what_was_lost_before_it() -> None:
    """The second kernel comes near the best one, in float, for what the coarse first one makes."""
    x = keras.Input((12,), name="x")
    hidden = layers.Dense(6, activation="relu", name="first")(x)
    model = randomize(keras.Model(x, layers.Dense(5, name="second")(hidden)))
    data = correlated(model, 2000)
    quantized = ocs_tf.convert(
        model,
        overrides={"first": {"weight_bits": 2}, "second": {"weight_bits": 8}},
        full_range=False,
        representative_dataset=data,
        **{**WEIGHTS_ONLY, "verbose": False},
    )
    hidden = keras.Model(quantized.inputs, quantized.get_layer("first").output)(data).numpy()
    # One more input, which is always 1, for the bias.
    reads = np.concatenate([hidden, np.ones((len(data), 1), np.float32)], 1).astype(np.float64)
    wanted = np.asarray(model(data)).astype(np.float64)
    best = np.linalg.lstsq(reads, wanted, rcond=None)[0]
    least = np.square(reads @ best - wanted).sum()
    as_it_was = np.square(model.get_layer("second")(hidden).numpy() - wanted).sum()
    got = np.square(np.asarray(quantized(data)) - wanted).sum()
    assert least * 1.5 < as_it_was
    assert got < least + 0.1 * (as_it_was - least)


# Layers with several kernels, or with layers inside.
COMPOSITES = {
    "lstm": lambda: layers.LSTM(6, return_sequences=True, name="layer"),
    "gru": lambda: layers.GRU(6, return_sequences=True, name="layer"),
    "gru, reset before": lambda: layers.GRU(
        6, reset_after=False, return_sequences=True, name="layer"
    ),
    "simple": lambda: layers.SimpleRNN(6, return_sequences=True, name="layer"),
    "bidirectional": lambda: layers.Bidirectional(
        layers.LSTM(4, return_sequences=True), name="layer"
    ),
    "stacked": lambda: layers.RNN(
        [layers.LSTMCell(4), layers.GRUCell(4)], return_sequences=True, name="layer"
    ),
    "time distributed": lambda: layers.TimeDistributed(layers.Dense(5), name="layer"),
}


def attention(**options: Any) -> keras.Model:
    x = keras.Input((9, 8), name="x")
    layer = layers.MultiHeadAttention(2, 4, name="layer")
    return randomize(keras.Model(x, layer(x, x, **options)))


COMPOSITE_MODELS = {
    **{name: lambda make=make: single(make(), (9, 8)) for name, make in COMPOSITES.items()},
    "attention": attention,
    "causal attention": lambda: attention(use_causal_mask=True),
}


@pytest.mark.parametrize("name", COMPOSITE_MODELS)
def test_so_are_those_of_layers_with_several_kernels(name: str) -> None:
    model = COMPOSITE_MODELS[name]()
    x = 0.1 * correlated(model, 200)
    options = {"weight_bits": 4, "representative_dataset": x, "verbose": False, **WEIGHTS_ONLY}
    errors = {
        rounding: np.square(
            error(model, ocs_tf.convert(model, rounding=rounding, **options), x)
        ).sum()
        for rounding in ("nearest", "error_compensated")
    }
    assert errors["error_compensated"] < errors["nearest"]


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_so_are_those_of_layers_whose_output_is_rounded(name: str) -> None:
    model = COMPOSITE_MODELS[name]()
    x = 0.1 * correlated(model, 100)
    found = {
        rounding: ocs_tf.convert(
            model, weight_bits=3, rounding=rounding, representative_dataset=x, verbose=False
        )
        for rounding in ("nearest", "error_compensated")
    }
    codes = [
        np.concatenate([w.numpy().ravel() for w in m.weights if w.name == "codes"])
        for m in found.values()
    ]
    assert np.any(codes[0] != codes[1])


@pytest.mark.parametrize("name", ["lstm", "bidirectional", "stacked"])
def test_recurrent_kernels_read_states(name: str) -> None:
    model = COMPOSITE_MODELS[name]()
    x = correlated(model, 3)
    quantized = ocs_tf.convert(model, verbose=False, **WEIGHTS_ONLY)
    layer = quantized.get_layer("layer")
    path, columns = {
        "lstm": ("", slice(None)),
        "bidirectional": ("backward/", slice(4, None)),
        "stacked": ("cell_1/", slice(None)),
    }[name]
    with composites.recorded(layer, f"{path}recurrent_kernel") as reads:
        outputs = np.asarray(layer(x))[..., columns]
    states = outputs[:, ::-1] if name == "bidirectional" else outputs
    before = np.concatenate([np.zeros_like(states[:, :1]), states[:, :-1]], axis=1)
    # Keras looks at what the first step makes before it begins.
    np.testing.assert_allclose(np.stack(reads[-9:], 1), before, atol=1e-6)
    with composites.recorded(layer, f"{path}kernel") as reads:
        layer(x)
    if name != "stacked":
        read = x[:, ::-1] if name == "bidirectional" else x
        np.testing.assert_array_equal(np.stack(reads[-9:], 1), read)
    count = len(reads)
    layer(x)
    assert len(reads) == count


def test_codes_of_a_dense_layer_are_those_of_the_definition() -> None:
    """With two inputs, the second one makes up for the first."""
    model = single(layers.Dense(3, use_bias=False, name="layer"), (2,))
    x = np.float32([[3, 1], [2, 1], [-1, 0.5], [2, 2]])
    quantized = ocs_tf.convert(
        model,
        weight_bits=6,
        expand_ratio=0.0,
        rounding="error_compensated",
        representative_dataset=x,
        verbose=False,
        **WEIGHTS_ONLY,
    )
    kernel = quantized.get_layer("layer").quantized_kernel()
    weights = np.asarray(model.get_layer("layer").kernel, np.float64) / kernel.scale
    mean = x.mean(0, dtype=np.float64)
    share = 2 / (2 + 4)  # of what four samples show of the two inputs' covariance
    hessian = x.T.astype(np.float64) @ x / 4
    hessian[[0, 1], [1, 0]] -= share * (hessian[0, 1] - mean[0] * mean[1])
    hessian += DAMPING * hessian.diagonal().mean() * np.eye(2)
    first = np.rint(weights[0])
    second = np.rint(weights[1] + (weights[0] - first) * hessian[1, 0] / hessian[1, 1])
    np.testing.assert_array_equal(kernel.codes, np.clip([first, second], -31, 31))


@pytest.mark.parametrize("name", MODELS)
def test_every_structure(name: str) -> None:
    model = MODELS[name]()
    data = samples(model)
    options = {"weight_bits": 4, "expand_ratio": 0.2, "representative_dataset": data}
    before = [np.asarray(w).copy() for w in model.weights]
    quantized, again = (
        ocs_tf.convert(
            model, rounding="error_compensated", bias_correction=True, verbose=False, **options
        )
        for _ in range(2)
    )
    for mine, others in zip(quantized.weights, again.weights, strict=True):
        np.testing.assert_array_equal(mine, others)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    x = list(data.values()) if len(data) > 1 else data["x"]
    expected = np.asarray(model(x))
    nearest = ocs_tf.convert(model, verbose=False, rounding="nearest", **options)
    plain = ocs_tf.numerics.sqnr_db(expected, np.asarray(nearest(x)))
    # Inputs without structure leave nothing to be gained.
    assert ocs_tf.numerics.sqnr_db(expected, np.asarray(quantized(x))) > plain - 1
    for layer in quantized.layers:
        if isinstance(layer, ocs_tf.layers.KernelLayer):
            kernel = layer.quantized_kernel()
            assert np.abs(kernel.codes).max() <= 2 ** (kernel.bits - 1) - 1


def test_a_model_of_nothing_but_a_composite() -> None:
    x = keras.Input((4, 3))
    model = keras.Model(x, layers.LSTM(2, name="lstm")(x))
    quantized = ocs_tf.convert(model, representative_dataset=samples(model), verbose=False)
    assert "lstm/kernel" in {row.name for row in ocs_tf.report(quantized).layers}


def test_split_channels_have_a_wider_range() -> None:
    model = LAYERS["dense"]()
    quantized = ocs_tf.convert(
        model,
        weight_bits=3,
        granularity="tensor",
        overrides={"layer": {"expand_ratio": 0.3}},
        rounding="error_compensated",
        representative_dataset=correlated(model),
        verbose=False,
        **WEIGHTS_ONLY,
    )
    kernel = quantized.get_layer("layer").quantized_kernel()
    assert kernel.splits == 3
    assert 3 < np.abs(kernel.effective_codes()).max() <= 4 * 3


def test_the_quality_in_reports_is_that_of_the_new_codes() -> None:
    model = LAYERS["conv"]()
    options = {"weight_bits": 4, "representative_dataset": correlated(model), "verbose": False}
    quantized = ocs_tf.convert(model, rounding="error_compensated", **options, **WEIGHTS_ONLY)
    layer = quantized.get_layer("layer")
    expected = ocs_tf.numerics.sqnr_db(model.get_layer("layer").kernel, layer.kernel)
    assert layer.kernel_sqnr_db == pytest.approx(expected, abs=1e-3)


def test_layers_see_what_the_quantized_ones_before_them_make() -> None:
    """The second bias makes up for what the first layer does to the mean."""
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, activation="relu", name="a")(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(3, name="b")(x)))
    data = correlated(model)
    quantized = ocs_tf.convert(
        model,
        weight_bits=2,
        bias_correction=True,
        representative_dataset=data,
        verbose=False,
        **WEIGHTS_ONLY,
    )
    errors = error(model, quantized, data)
    assert np.abs(errors.mean(0)).max() < 1e-4 * np.abs(errors).max()


@pytest.mark.parametrize("options", [{"rounding": "error_compensated"}, {"bias_correction": True}])
def test_data_are_needed(options: dict) -> None:
    model = LAYERS["dense"]()
    with pytest.raises(ValueError, match="need `representative_dataset`"):
        ocs_tf.convert(model, weight_bits=4, **options)
    plan = ocs_tf.plan(
        model, weight_bits=4, representative_dataset=correlated(model), verbose=False, **options
    )
    with pytest.raises(ValueError, match="give it to `apply`, too"):
        ocs_tf.apply(model, plan)
    loaded = ocs_tf.Plan.from_json(plan.to_json())
    assert loaded == plan
    applied, converted = (
        ocs_tf.apply(model, plan, representative_dataset=correlated(model), verbose=False),
        ocs_tf.convert(
            model, weight_bits=4, representative_dataset=correlated(model), verbose=False, **options
        ),
    )
    for mine, others in zip(applied.weights, converted.weights, strict=True):
        np.testing.assert_array_equal(mine, others)


def behind_a_norm(layer: Any, shape: tuple[int, ...]) -> tuple[keras.Model, Any]:
    """`layer` behind a batch norm and a ReLU, and inputs as the batch norm knows them."""
    rng = np.random.default_rng(0)
    inputs = keras.Input(shape)
    norm = layers.BatchNormalization()
    model = keras.Model(inputs, layer(layers.ReLU()(norm(inputs))))
    channels = shape[-1]
    norm.beta.assign(rng.normal(1, 1, channels))
    norm.gamma.assign(rng.lognormal(0, 0.5, channels))
    layer.set_weights([rng.normal(size=w.shape) * 0.3 for w in layer.get_weights()])
    return model, rng.normal(size=(500, *shape)).astype(np.float32)


BEHIND: dict[str, Callable[[], tuple[keras.Model, Any]]] = {
    "dense": lambda: behind_a_norm(layers.Dense(7, name="layer"), (24,)),
    "conv": lambda: behind_a_norm(layers.Conv2D(7, 3, name="layer"), (5, 5, 12)),
    "grouped": lambda: behind_a_norm(layers.Conv2D(8, 3, groups=4, name="layer"), (5, 5, 12)),
    "depthwise": lambda: behind_a_norm(layers.DepthwiseConv2D(3, name="layer"), (5, 5, 12)),
}


@pytest.mark.parametrize("name", BEHIND)
def test_without_data_batch_norms_tell_of_the_inputs(name: str) -> None:
    model, x = BEHIND[name]()
    options = {"weight_bits": 3, "granularity": "channel", "verbose": False, **WEIGHTS_ONLY}
    errors = {
        (rounding, bias): error(
            model,
            ocs_tf.convert(model, rounding=rounding, bias_correction=bias, **options),
            x,
        )
        for rounding in ("nearest", "error_balanced")
        for bias in (False, "batch_norm")
    }
    means = {key: np.abs(values.mean(0)).max() for key, values in errors.items()}
    powers = {key: np.square(values).mean() for key, values in errors.items()}
    for rounding in ("nearest", "error_balanced"):
        assert means[rounding, "batch_norm"] < 0.15 * means["nearest", False]
    assert powers["error_balanced", "batch_norm"] < 0.8 * powers["nearest", False]
    assert means["error_balanced", False] < 0.7 * means["nearest", False]


def test_it_is_the_default_without_data() -> None:
    model, x = BEHIND["conv"]()
    options = {"weight_bits": 4, "verbose": False}
    given = {"rounding": "error_balanced", "bias_correction": "batch_norm"}
    one, other = ocs_tf.convert(model, **options), ocs_tf.convert(model, **options, **given)
    np.testing.assert_array_equal(np.asarray(one(x)), np.asarray(other(x)))
    plan = ocs_tf.plan(model, **options)
    assert not plan.needs_data
    assert ocs_tf.Plan.from_json(plan.to_json()) == plan
    replayed = ocs_tf.apply(model, plan, verbose=False)
    np.testing.assert_array_equal(np.asarray(one(x)), np.asarray(replayed(x)))


def test_channels_beyond_a_block_are_rounded_by_themselves(monkeypatch: Any) -> None:
    """In blocks of 6 channels, codes are those of the two halves of the kernel."""
    model = single(layers.Conv2D(5, 3, name="layer"), (6, 6, 12))
    x = correlated(model)
    options = {"weight_bits": 4, "expand_ratio": 0.0, "verbose": False, **WEIGHTS_ONLY}
    options |= {"rounding": "error_compensated", "weight_clip": "none", "granularity": "tensor"}
    options |= {"equalization": False, "bias_correction": False}
    monkeypatch.setattr(of_weights, "_ROWS", 6 * 9)
    whole = ocs_tf.convert(model, representative_dataset=x, **options)
    kernel = np.asarray(model.get_layer("layer").kernel)
    for half in (slice(0, 6), slice(6, 12)):
        part = single(layers.Conv2D(5, 3, use_bias=False, name="layer"), (6, 6, 6))
        weights = kernel[:, :, half].copy()
        step = np.abs(kernel).max() / 7
        part.get_layer("layer").set_weights([weights])
        plan = ocs_tf.plan(part, representative_dataset=x[..., half], **options)
        changed = dataclasses.replace(plan.layers["layer"], threshold=float(7 * step))
        plan = dataclasses.replace(plan, layers={"layer": changed})
        got = ocs_tf.apply(part, plan, representative_dataset=x[..., half], verbose=False)
        codes = got.get_layer("layer").quantized_kernel().codes
        want = whole.get_layer("layer").quantized_kernel().codes[:, :, half]
        np.testing.assert_array_equal(codes, want)


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: keras.layers.Dropout(0.5)(x, training=True),
        lambda x: keras.layers.GaussianNoise(1.0)(x, training=True),
        lambda x: keras.layers.RandomFlip()(x),  # trains unless it is told not to
        lambda x: keras.layers.BatchNormalization()(x, training=True),
    ],
    ids=["dropout", "noise", "augmentation", "norm"],
)
def test_layers_are_run_for_inference(noise, rng):
    """As `predict` does, whatever a call says."""
    x = keras.Input((4, 4, 3))
    y = noise(keras.layers.Conv2D(4, 3, name="first")(x))
    model = keras.Model(x, keras.layers.Dense(2, name="last")(keras.layers.Flatten()(y)))
    data = rng.normal(size=(60, 4, 4, 3)).astype("float32")
    quantized = ocs_tf.convert(
        model, representative_dataset=data, fold_batch_norm=False, verbose=False
    )
    wanted, found = (m.predict(data, verbose=0) for m in (model, quantized))
    assert np.square(found - wanted).mean() < np.square(wanted).mean() / 10**2.8


@pytest.mark.parametrize("rounding", ["nearest", "error_compensated"])
def test_a_shared_layer_is_measured_on_all_its_calls(rounding: str) -> None:
    """A thousandth of the inputs of the first call: the first one's mean error would drown it."""
    inputs, layer = keras.Input((7,), name="x"), layers.Dense(5, name="layer")
    calls = [layer(inputs), layer(layers.Rescaling(1000.0)(inputs))]
    model = randomize(keras.Model(inputs, calls))
    x = correlated(model)
    quantized = ocs_tf.convert(
        model,
        rounding=rounding,
        bias_correction=True,
        representative_dataset=x,
        verbose=False,
        **WEIGHTS_ONLY,
    )
    for wanted, found in zip(model(x), quantized(x), strict=True):
        wanted = wanted - layer.bias  # of the small call it is most
        error = np.square(found - layer.bias - wanted).sum()
        assert np.square(wanted).sum() > 10**3 * error  # 30 dB


def shared(layer: Any) -> tuple[keras.Model, np.ndarray]:
    """`layer`, called on the first half of the channels, and on ten times the other half."""
    inputs = keras.Input((9, 8), name="x")
    pick = np.repeat([1.0, 0.0], 4)
    reads = [layers.Rescaling(list(pick))(inputs), layers.Rescaling(list(10 - 10 * pick))(inputs)]
    model = randomize(keras.Model(inputs, [layer(x) for x in reads]))
    return model, correlated(model, 50)


def codes_of(model: keras.Model, x: np.ndarray, rounding: str) -> list[np.ndarray]:
    options = {"weight_bits": 4, "expand_ratio": 0.0, "equalization": False, **WEIGHTS_ONLY}
    quantized = ocs_tf.convert(
        model,
        rounding=rounding,
        bias_correction=False,
        representative_dataset=x,
        verbose=False,
        **options,
    )
    return [np.asarray(w) for w in quantized.weights if w.path.endswith("codes")]


def test_so_are_kernels_inside_of_shared_layers() -> None:
    """Those of one that is called at each step are those of the layer by itself."""
    plain, x = shared(layers.Dense(5, name="layer"))
    wrapped, _ = shared(layers.TimeDistributed(layers.Dense(5), name="layer"))
    wrapped.set_weights(plain.get_weights())
    (wanted,), (found,) = (codes_of(m, x, "error_compensated") for m in (plain, wrapped))
    np.testing.assert_array_equal(found, wanted)
    (nearest,) = codes_of(plain, x, "nearest")
    for half in (slice(0, 4), slice(4, 8)):  # of channels, each of which one call reads
        assert np.any(wanted[half] != nearest[half])


@keras.saving.register_keras_serializable("test_calibrated")
class Either(layers.Layer):
    """One of two kernels, as the call says; a layer that is not traced, for its open batch size."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.one, self.other = layers.Dense(4), layers.Dense(4)

    def build(self, input_shape: Any) -> None:
        self.one.build(input_shape)
        self.other.build(input_shape)

    def call(self, x: Any, swap: bool = False) -> Any:
        x = keras.ops.concatenate([keras.ops.zeros((keras.ops.shape(x)[0], 1, 8)), x], axis=1)
        return self.other(x) if swap else self.one(x)


@pytest.mark.parametrize("second", [False, True])
def test_kernels_that_not_every_call_reads(second: bool) -> None:
    inputs, layer = keras.Input((9, 8), name="x"), Either(name="layer")
    model = randomize(keras.Model(inputs, [layer(inputs), layer(inputs, swap=second)]))
    x = correlated(model, 20)
    chosen, nearest = (codes_of(model, x, r) for r in ("error_compensated", "nearest"))
    differ = [bool(np.any(a != b)) for a, b in zip(chosen, nearest, strict=True)]
    assert differ == [True, second]
