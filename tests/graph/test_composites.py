"""Kernels inside of recurrent layers, attention and wrappers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.graph import composites
from ocs_tf.graph.reader import Graph

STEPS, CHANNELS = 5, 4
CELL = ["kernel", "recurrent_kernel"]
CASES: dict[str, tuple[Any, list[str]]] = {
    # a layer, the paths of its kernels
    "lstm": (lambda: layers.LSTM(3), CELL),
    "lstm-sequences": (lambda: layers.LSTM(3, return_sequences=True, use_bias=False), CELL),
    "lstm-backwards": (lambda: layers.LSTM(3, go_backwards=True, implementation=1), CELL),
    "gru": (lambda: layers.GRU(3), CELL),
    "gru-reset-before": (lambda: layers.GRU(3, reset_after=False), CELL),
    "simple": (lambda: layers.SimpleRNN(3, activation="relu", unroll=True), CELL),
    "cell": (lambda: layers.RNN(layers.LSTMCell(3)), CELL),
    "stacked": (
        lambda: layers.RNN([layers.GRUCell(3), layers.LSTMCell(2)]),
        [f"cell_{i}/{name}" for i in range(2) for name in CELL],
    ),
    "bidirectional": (
        lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        [f"{way}/{name}" for way in ("forward", "backward") for name in CELL],
    ),
    "bidirectional-two": (
        lambda: layers.Bidirectional(
            layers.GRU(3), backward_layer=layers.LSTM(3, go_backwards=True), merge_mode="sum"
        ),
        [f"{way}/{name}" for way in ("forward", "backward") for name in CELL],
    ),
    "time-distributed": (lambda: layers.TimeDistributed(layers.Dense(3, name="each")), ["each"]),
    "attention": (
        lambda: layers.MultiHeadAttention(2, 3),
        ["query", "key", "value", "attention_output"],
    ),
}


def model_of(case: str) -> keras.Model:
    layer = CASES[case][0]()
    layer.name = "layer"
    inputs = keras.Input((STEPS, CHANNELS))
    attends = isinstance(layer, layers.MultiHeadAttention)
    model = keras.Model(inputs, layer(inputs, inputs) if attends else layer(inputs))
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.5, w.shape).astype(np.float32) for w in model.weights])
    return model


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(3, STEPS, CHANNELS)).astype(np.float32)


def quantize(model: keras.Model, *overrides: ocs_tf.Override, **options: Any) -> keras.Model:
    """Every kernel with the same options, those of first and last layers included."""
    everywhere = ocs_tf.Override(lambda _: True, **options)
    plain = {"rounding": "nearest", "bias_correction": False, "verbose": False}
    return ocs_tf.convert(model, overrides=[*overrides, everywhere], **plain)


def test_paths(case: str) -> None:
    model = model_of(case)
    assert list(composites.parts(model.layers[-1])) == CASES[case][1]
    assert list(Graph(model).kernels) == [f"layer/{path}" for path in CASES[case][1]]


def test_computes_with_the_effective_kernels(case: str, x: np.ndarray) -> None:
    """The float layer, given what the codes stand for, computes the same."""
    model = model_of(case)
    quantized = quantize(model, weight_bits=3, expand_ratio=0.3)
    stored = composites.stored_parts(quantized.layers[-1])
    assert list(stored) == CASES[case][1]
    parts = composites.parts(model.layers[-1])
    for path, kernel in stored.items():
        assert kernel.copies == int(np.ceil(0.3 * kernel.quantized_kernel().channels))
        holder, adapter = parts[path].holder, parts[path].adapter
        effective = kernel.quantized_kernel().effective_kernel()
        adapter.write(holder, adapter.to_keras(effective, holder))
    np.testing.assert_allclose(quantized(x), model(x), atol=1e-6)


def test_kernels_on_the_grid_stay_what_they_are(case: str, x: np.ndarray) -> None:
    model = model_of(case)
    on_grid = [np.round(w * 32) / 32 for w in model.get_weights()]
    for w in on_grid:
        w[(0,) * w.ndim] = 127 / 32
    model.set_weights(on_grid)
    before = np.asarray(model(x))
    same = {"weight_bits": 8, "granularity": "tensor", "weight_clip": "none"}
    whole = quantize(model, **same, expand_ratio=0.0)
    np.testing.assert_allclose(whole(x), before, rtol=1e-5, atol=1e-6)


def test_saved_and_loaded(case: str, x: np.ndarray, tmp_path: Any) -> None:
    quantized = quantize(model_of(case), weight_bits=4, expand_ratio=0.2)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), quantized(x))
    assert not loaded.trainable_weights
    kinds = {keras.backend.standardize_dtype(w.dtype) for w in loaded.weights}
    assert kinds <= {"int8", "int32", "float32"}
    assert max(np.prod(w.shape) for w in loaded.weights if "float" in str(w.dtype)) <= 6 * 4


def test_the_float_model_is_left_alone(case: str, x: np.ndarray) -> None:
    model = model_of(case)
    before = [w.copy() for w in model.get_weights()]
    quantize(model, weight_bits=2)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert type(model.layers[-1]).__module__.startswith("keras.")


def test_some_kernels_in_float(case: str, x: np.ndarray) -> None:
    path = CASES[case][1][0]
    if len(CASES[case][1]) == 1:
        pytest.skip("it has one kernel")
    model = model_of(case)
    override = ocs_tf.Override(f"layer/{path}", weight_bits=None)
    quantized = quantize(model, override, weight_bits=8)
    assert path not in composites.stored_parts(quantized.layers[-1])
    assert f"layer/{path}" in ocs_tf.plan(model, overrides=[override]).float_layers
    np.testing.assert_allclose(quantized(x), model(x), atol=0.1)


def test_float_form_computes_the_same(case: str, x: np.ndarray) -> None:
    layer = quantize(model_of(case), weight_bits=4).layers[-1]
    inputs = keras.Input((STEPS, CHANNELS))
    attends = isinstance(layer, layers.MultiHeadAttention)
    for unroll in (False, True):
        twin = composites.plain(layer, unroll=unroll)
        model = keras.Model(inputs, twin(inputs, inputs) if attends else twin(inputs))
        assert not composites.stored_parts(twin)
        assert composites.is_recurrent(twin) == composites.is_recurrent(layer)
        assert [w.shape for w in twin.weights] == [w.shape for w in model_of(case).weights]
        assert model.output_shape[1:] == np.shape(np.asarray(model(x)))[1:]


def test_state_is_returned_and_taken(rng: np.random.Generator) -> None:
    inputs = keras.Input((STEPS, CHANNELS))
    out, h, c = layers.LSTM(3, return_sequences=True, return_state=True, name="encoder")(inputs)
    again = layers.LSTM(3, name="decoder")(out, initial_state=[h, c])
    model = keras.Model(inputs, [again, h])
    quantized = quantize(model, weight_bits=8)
    x = rng.normal(size=(2, STEPS, CHANNELS)).astype(np.float32)
    for got, want in zip(quantized(x), model(x), strict=True):
        np.testing.assert_allclose(got, want, atol=0.02)


def test_masks_reach_the_cells(rng: np.random.Generator) -> None:
    inputs = keras.Input((STEPS,), dtype="int32")
    x = layers.Embedding(7, CHANNELS, mask_zero=True)(inputs)
    model = keras.Model(inputs, layers.Bidirectional(layers.GRU(3))(x))
    quantized = quantize(model, weight_bits=8)
    ids = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 1, 0]], np.int32)
    np.testing.assert_allclose(quantized(ids), model(ids), atol=0.02)


def test_stateful(rng: np.random.Generator) -> None:
    inputs = keras.Input(batch_shape=(2, STEPS, CHANNELS))
    model = keras.Model(inputs, layers.LSTM(3, stateful=True)(inputs))
    quantized = quantize(model, weight_bits=8)
    x = rng.normal(size=(2, STEPS, CHANNELS)).astype(np.float32)
    for _ in range(2):
        np.testing.assert_allclose(quantized(x), model(x), atol=0.02)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("case", ["lstm", "gru", "attention", "time-distributed"])
def test_half_precision(case: str, policy: str, x: np.ndarray) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = model_of(case)
    finally:
        keras.config.set_dtype_policy("float32")
    quantized = quantize(model, weight_bits=8)
    got, want = (np.asarray(m(x), np.float32) for m in (quantized, model))
    np.testing.assert_allclose(got, want, atol=0.05)


def test_a_users_cell_stays_in_float() -> None:
    class OwnCell(layers.LSTMCell):
        """It may compute anything."""

    assert composites.parts(layers.RNN(OwnCell(3))) == {}


def test_grouped_query_attention(x: np.ndarray) -> None:
    inputs = keras.Input((STEPS, CHANNELS))
    layer = layers.GroupQueryAttention(3, 4, 2, name="layer")
    model = keras.Model(inputs, layer(inputs, inputs))
    quantized = quantize(model, weight_bits=8)
    assert list(composites.stored_parts(quantized.layers[-1])) == [
        "query",
        "key",
        "value",
        "attention_output",
    ]
    np.testing.assert_allclose(quantized(x), model(x), atol=0.03)


def test_widths_are_allocated_to_kernels(x: np.ndarray) -> None:
    model = model_of("lstm")
    for allocation, data in (("sqnr", None), ("measured", x)):
        result = ocs_tf.plan(
            model,
            average_bits=4.5,
            allocation=allocation,
            first_layer_bits="auto",
            last_layer_bits="auto",
            expand_ratio=0.0,
            representative_dataset=data,
            activation_bits=None,
            verbose=False,
        )
        sizes = {"layer/kernel": CHANNELS * 12, "layer/recurrent_kernel": 3 * 12}
        bits = sum(sizes[name] * plan.bits for name, plan in result.layers.items())
        assert bits <= 4.5 * sum(sizes.values())


def test_a_quantized_composite_is_not_converted_again() -> None:
    with pytest.raises(ValueError, match="is quantized already: layer 'layer'"):
        ocs_tf.plan(quantize(model_of("lstm"), weight_bits=8))
