"""Scaling channels changes nothing but the numbers inside, and how well they use their grids."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import ai_edge_litert.interpreter as litert
import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf.graph.analysis.chains import chains
from ocs_tf.graph.reader import Graph
from ocs_tf.graph.scaling import scale_channels
from ocs_tf.layers import QuantizedOutput
from ocs_tf.numerics.cross_layer_equalization import LIMIT
from ocs_tf.planning.calibration import ChannelRanges, channel_ranges
from ocs_tf.planning.equalization import choose_scales, joined_scales
from tests.graph.chain_models import (
    SHAPE,
    check_same,
    dense,
    model_of,
    parametrize_cases,
)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@parametrize_cases
def test_chosen_scales_keep_the_function(name: str, granularity: str, randomize: Any) -> None:
    model = model_of(name, randomize)
    graph = Graph(model)
    scales = choose_scales(graph, granularity)
    assert list(scales) == [k for k, chain in chains(graph).items() if chain.joined is None]
    assert all((s >= 1 / LIMIT).all() and (s <= LIMIT).all() for s in scales.values())
    check_same(model, scale_channels(graph, scales))


def joined_ranges(graph: Graph, x: np.ndarray) -> dict[int, ChannelRanges]:
    joined = [chain.joined for chain in chains(graph).values() if chain.joined is not None]
    return channel_ranges(graph.model, {id(p.tensor): (p.tensor, p.axis) for p in joined}, [[x]])


def test_scales_of_what_is_concatenated(randomize: Any) -> None:
    """s = magnitude^0.75 / share^0.25, over that of the median channel."""
    model, x = model_of("dense block", randomize), images()
    graph = Graph(model)
    seen = keras.Model(model.inputs, [model.get_layer(name).output for name in "abc"])
    made = [np.abs(values).max((0, 1, 2)) for values in seen.predict_on_batch(x)]
    kernels = {name: np.abs(np.asarray(model.get_layer(name).kernel)) for name in "bc"}
    shares = {k: (v / v.max((0, 1, 2))).max((0, 1, 3)) for k, v in kernels.items()}
    read = [np.maximum(shares["b"], shares["c"][:5]), shares["c"][5:], np.ones(2)]
    want = np.concatenate(made) ** 0.75 / np.concatenate(read) ** 0.25
    got = joined_scales(graph, joined_ranges(graph, x), "channel")
    assert list(got) == ["a", "b", "c"]
    np.testing.assert_allclose(
        np.concatenate(list(got.values())), want / np.exp(np.median(np.log(want))), rtol=1e-4
    )


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@parametrize_cases
def test_scales_of_what_is_concatenated_keep_the_function(
    name: str, granularity: str, randomize: Any
) -> None:
    model, x = model_of(name, randomize), images()
    graph = Graph(model)
    scales = joined_scales(graph, joined_ranges(graph, x), granularity)
    assert list(scales) == [k for k, chain in chains(graph).items() if chain.joined is not None]
    check_same(model, scale_channels(graph, scales))


def test_dead_channels_of_what_is_concatenated_are_left_alone(randomize: Any) -> None:
    model = model_of("dense block", randomize)
    kernel, bias = model.get_layer("b").get_weights()
    kernel[..., 1], bias[1] = 0, 0
    model.get_layer("b").set_weights([kernel, bias])
    graph = Graph(model)
    scale = joined_scales(graph, joined_ranges(graph, images()), "channel")["b"]
    assert scale[1] == 1
    assert np.isfinite(scale).all()


def peaks(model: keras.Model, maker: str, reader: str) -> tuple[np.ndarray, np.ndarray]:
    kernels = [np.abs(np.asarray(model.get_layer(n).kernel)) for n in (maker, reader)]
    return kernels[0].max((0, 1, 2)), kernels[1].max((0, 1, 3))


def test_with_a_step_per_kernel_both_ranges_are_the_same(randomize: Any) -> None:
    model = model_of("linear", randomize)
    model.get_layer("a").bias.assign(np.zeros(5))
    graph = Graph(model)
    made, read = peaks(scale_channels(graph, choose_scales(graph, "tensor")), "a", "b")
    np.testing.assert_allclose(made / read, (made / read)[0], rtol=0.02)


def test_with_a_step_per_output_channel_all_inputs_use_their_grids(randomize: Any) -> None:
    model = model_of("linear", randomize)
    model.get_layer("a").bias.assign(np.zeros(5))
    graph = Graph(model)
    other = scale_channels(graph, choose_scales(graph, "channel"))
    kernel = np.abs(np.asarray(other.get_layer("b").kernel)).max((0, 1))
    shares = (kernel / kernel.max(0)).max(1)
    np.testing.assert_allclose(shares, 1, rtol=0.02)


def test_in_a_row_the_scales_settle(randomize: Any) -> None:
    model = model_of("in a row", randomize)
    for name in "abc":
        model.get_layer(name).bias.assign(np.zeros(5))
    graph = Graph(model)
    other = scale_channels(graph, choose_scales(graph, "tensor"))
    for pair in ("ab", "bc"):
        made, read = peaks(other, *pair)
        np.testing.assert_allclose(made / read, (made / read)[0], rtol=0.05)
    again = choose_scales(Graph(other), "tensor")
    for scale in again.values():
        np.testing.assert_allclose(scale, 1, rtol=0.05)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_dead_channels_are_left_alone(granularity: str, randomize: Any) -> None:
    model = model_of("norm", randomize)
    gamma = np.asarray(model.get_layer("n").gamma).copy()
    gamma[2] = 0
    model.get_layer("n").gamma.assign(gamma)
    model.get_layer("n").beta.assign(np.zeros(5))
    kernel = np.asarray(model.get_layer("b").kernel).copy()
    kernel[:, :, 1] = 0
    model.get_layer("b").kernel.assign(kernel)
    scale = choose_scales(Graph(model), granularity)["n"]
    assert scale[1] == scale[2] == 1
    assert np.isfinite(scale).all()


@pytest.mark.parametrize("fold", [False, True], ids=["unfolded", "folded"])
def test_no_bias_grows_beyond_the_largest(fold: bool, randomize: Any) -> None:
    """A channel that is a constant but for a little would be scaled up by its small weights."""
    model = model_of("norm", randomize)
    model.get_layer("a").bias.assign(np.zeros(5))
    n = model.get_layer("n")
    n.gamma.assign([1e-6, 1.0, 1.0, 1.0, 1.0])
    n.moving_mean.assign(np.zeros(5))
    n.beta.assign([2.0, -1.0, 0.5, 0.1, 3.0])
    graph = Graph(model, fold)
    scale = choose_scales(graph, "tensor")["n"]
    assert scale[0] == pytest.approx(2 / 3) or not fold  # by its weights it would be 1 / LIMIT
    shift = np.asarray(scale_channels(graph, {"n": scale}).get_layer("n").beta)
    assert np.abs(shift).max() <= 3 * (1 + 1e-6)
    assert scale[1:].max() < 10  # the others do not follow


# From end to end -------------------------------------------------------------------------------


def convert(model: keras.Model, **options: Any) -> keras.Model:
    return ocs_tf.convert(model, verbose=False, **options)


def images(count: int = 32) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(count, *SHAPE)).astype(np.float32)


def sqnr_db(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(want).sum() / np.square(want - got).sum()))


def unequal(model: keras.Model, maker: str, reader: str) -> keras.Model:
    """The same function with channels 100 times larger, or smaller, than they were."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    factors = 10 ** np.random.default_rng(6).uniform(-2, 2, 5)
    made, read = other.get_layer(maker), other.get_layer(reader)
    made.set_weights([w * factors for w in made.get_weights()])
    kernel, bias = read.get_weights()
    read.set_weights([kernel / factors[:, None], bias])
    return other


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("with_data", [False, True], ids=["weights only", "on data"])
def test_unequal_channels_are_made_good(granularity: str, with_data: bool, randomize: Any) -> None:
    model, x = model_of("relu", randomize), images()
    skewed = unequal(model, "a", "b")
    want = model.predict_on_batch(x)
    np.testing.assert_allclose(skewed.predict_on_batch(x), want, rtol=0, atol=1e-4)
    options = {"weight_bits": 8, "granularity": granularity}
    if with_data:
        options["representative_dataset"] = x
    found = {
        name: sqnr_db(want, convert(m, equalization=on, **options).predict_on_batch(x))
        for name, m, on in (
            ("balanced", model, False),
            ("skewed", skewed, False),
            ("equalized", skewed, True),
        )
    }
    assert found["equalized"] > found["balanced"] - 3
    assert found["equalized"] > found["skewed"] + 6


@pytest.mark.parametrize("fold", [False, True], ids=["unfolded", "folded"])
def test_channels_that_are_concatenated_all_use_the_grid_they_share(
    fold: bool, randomize: Any
) -> None:
    """Those of one layer are 50 times as large; what reads them makes up for it."""
    model, x = model_of("dense block", randomize), images()
    kernel, bias = model.get_layer("a").get_weights()
    model.get_layer("a").set_weights([kernel * 50, bias * 50])
    for name in "bc":
        kernel, bias = model.get_layer(name).get_weights()
        kernel[:, :, :5] /= 50
        model.get_layer(name).set_weights([kernel, bias])
    norm_of_all = model.get_layer("n")
    mean, variance = np.array(norm_of_all.moving_mean), np.array(norm_of_all.moving_variance)
    mean[:5] *= 50
    variance[:5] *= 50**2
    norm_of_all.moving_mean.assign(mean)
    norm_of_all.moving_variance.assign(variance)
    want = model.predict_on_batch(x)
    options = {"fold_batch_norm": fold, "rounding": "nearest", "representative_dataset": x}
    found = {
        on: sqnr_db(want, convert(model, activation_equalization=on, **options).predict_on_batch(x))
        for on in (False, True)
    }
    assert found[True] > found[False] + 10


@pytest.mark.parametrize("fold", [False, True], ids=["unfolded", "folded"])
def test_a_plan_repeats_what_was_planned(
    fold: bool, randomize: Any, tmp_path: pathlib.Path
) -> None:
    model, x = model_of("mobile", randomize), images()
    options = {"granularity": "tensor", "weight_bits": 5, "fold_batch_norm": fold}
    data = {"representative_dataset": x, "verbose": False}
    plan = ocs_tf.plan(model, rounding="nearest", **options, **data)
    assert set(plan.equalization) == {"n1", "n2"}
    plan.save(tmp_path / "plan.json")
    loaded = ocs_tf.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    want = convert(model, rounding="nearest", representative_dataset=x, **options)
    got = ocs_tf.apply(model, loaded, **data)
    for a, b in zip(want.weights, got.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_plan_from_before_equalization_is_read(randomize: Any) -> None:
    model = model_of("relu", randomize)
    plan = ocs_tf.plan(model, verbose=False)
    values = json.loads(plan.to_json())
    assert values.pop("equalization") == {}
    assert ocs_tf.Plan.from_json(json.dumps(values)) == plan


def test_a_plan_whose_scales_do_not_fit(randomize: Any) -> None:
    model = model_of("relu", randomize)
    plan = ocs_tf.plan(model, equalization=True, verbose=False)
    plan = dataclasses.replace(plan, equalization={"b": [1.0, 1.0, 1.0]})
    with pytest.raises(ValueError, match=r"channels of layer 'b', which .*; those are: a\."):
        ocs_tf.apply(model, plan, verbose=False)


@pytest.mark.parametrize(
    ("options", "scaled"),
    [
        ({}, set()),
        ({"granularity": "tensor"}, {"a"}),
        ({"granularity": "tensor", "equalization": False}, set()),
        ({"equalization": True}, {"a"}),
        ({"config": ocs_tf.Config.paper()}, set()),
    ],
    ids=["channel", "tensor", "off", "on", "paper"],
)
def test_when_channels_are_scaled(options: Any, scaled: set[str], randomize: Any) -> None:
    plan = ocs_tf.plan(model_of("relu", randomize), verbose=False, **options)
    assert set(plan.equalization) == scaled


@pytest.mark.parametrize(
    ("options", "scaled"),
    [
        ({}, {"a", "b", "c"}),
        ({"outlier_equalization": True}, {"a", "b", "c", "n"}),
        ({"outlier_equalization": True, "activation_equalization": False}, set()),
        ({"granularity": "tensor", "equalization": False}, {"a", "b", "c"}),
        ({"granularity": "tensor"}, {"a", "b", "c", "n"}),
        ({"activation_equalization": False}, set()),
        ({"activation_bits": None}, set()),
        ({"activation_scope": "inputs"}, set()),
        ({"config": ocs_tf.Config.paper(activation_bits=8)}, set()),
        ({"config": ocs_tf.Config.paper(activation_bits=8, activation_scope="all")}, set()),
    ],
    ids=[
        "on",
        "outliers",
        "outliers, off",
        "tensor",
        "both",
        "off",
        "float",
        "inputs",
        "paper",
        "paper, all",
    ],
)
def test_when_channels_that_are_concatenated_are_scaled(
    options: Any, scaled: set[str], randomize: Any
) -> None:
    model = model_of("dense block", randomize)
    plan = ocs_tf.plan(model, representative_dataset=images(), verbose=False, **options)
    assert set(plan.equalization) == scaled


def test_without_data_nothing_that_is_concatenated_is_scaled(randomize: Any) -> None:
    assert ocs_tf.plan(model_of("dense block", randomize), verbose=False).equalization == {}


def test_one_sample_is_enough_to_measure_channels(randomize: Any) -> None:
    options = {"calibration_samples": 1, "representative_dataset": images(), "verbose": False}
    assert ocs_tf.plan(model_of("dense block", randomize), **options).equalization


def test_the_report_names_the_kernels(randomize: Any) -> None:
    model = model_of("in a row", randomize)
    result = ocs_tf.report(convert(model, equalization=True))
    assert [layer.name for layer in result.layers if layer.equalized] == ["b", "c"]
    assert "Kernels with scaled input channels (cross-layer equalization): b, c." in str(result)
    assert "equalization" not in str(ocs_tf.report(convert(model)))


def test_the_report_names_the_first_of_many_kernels(randomize: Any) -> None:
    x = inputs = keras.Input((4,))
    for index in range(11):
        x = dense(f"d{index}", 4, activation="relu")(x)
    result = ocs_tf.report(convert(randomize(keras.Model(inputs, x)), equalization=True))
    assert "(cross-layer equalization): d1, d2, d3, d4, d5, d6, d7, d8 and 2 more." in str(result)


def test_a_saved_model_remembers(randomize: Any, tmp_path: pathlib.Path) -> None:
    quantized = convert(model_of("relu", randomize), equalization=True)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [loaded.get_layer(name).equalized for name in "ab"] == [False, True]


def test_a_callable_sees_the_layers_of_the_users_model(randomize: Any) -> None:
    model = model_of("in a row", randomize)
    chosen = model.get_layer("b")
    override = ocs_tf.Override(lambda layer: layer is chosen, weight_bits=5)
    plan = ocs_tf.plan(model, equalization=True, overrides=[override], verbose=False)
    assert {name: layer.bits for name, layer in plan.layers.items()} == {"a": 8, "b": 5, "c": 8}


def test_sequential_models_stay_compiled_and_sequential(randomize: Any) -> None:
    steps = [dense("a", activation="relu"), dense("b", activation="relu"), dense("c")]
    model = randomize(keras.Sequential([keras.Input((4,)), *steps]))
    model.compile("sgd", "mse")
    quantized = convert(model, equalization=True)
    assert isinstance(quantized, keras.Sequential)
    assert quantized.compiled


def test_weights_that_are_not_finite_are_named_as_ever(randomize: Any) -> None:
    model = model_of("in a row", randomize)
    kernel = np.asarray(model.get_layer("b").kernel).copy()
    kernel[0, 0, 2, 3] = np.nan
    model.get_layer("b").kernel.assign(kernel)
    with pytest.raises(ValueError, match="kernel of layer b` must be finite"):
        ocs_tf.plan(model, equalization=True, verbose=False)


@pytest.mark.parametrize(
    ("name", "fold"),
    [
        ("mobile", True),
        ("lone norms", False),
        ("flatten", True),
        ("two readers, two tensors", False),
        ("dense block", True),
        ("inception", False),
        ("mobile", False),
        ("dense block", False),
    ],
)
def test_an_exported_file_computes_the_same(
    name: str, fold: bool, randomize: Any, tmp_path: pathlib.Path
) -> None:
    model, x = model_of(name, randomize), images()
    quantized = convert(
        model, equalization=True, fold_batch_norm=fold, weight_bits=6, representative_dataset=x
    )
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, io_dtype="float32")
    runner = litert.Interpreter(str(path)).get_signature_runner()
    (key,) = runner.get_input_details()
    got = np.concatenate([next(iter(runner(**{key: image[None]}).values())) for image in x])
    want = quantized.predict_on_batch(x)
    last = quantized.get_layer(quantized.output_names[0])
    grid = last.grid if isinstance(last, QuantizedOutput) else last.output_grid
    difference = np.abs(got - want) / grid.scale
    assert difference.max() <= 1.01
    assert (difference > 0.5).mean() <= 0.02
