"""Target "int4", from the Keras model to the runtimes."""

from __future__ import annotations

import importlib

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.export import flatbuffer as fb
from ocs_tf.runtime import tflite
from tests.export.networks import FAST, MODELS, covering, samples, single

OPTIONS = {
    "w4": {"weight_bits": 4, "last_layer_bits": "same"},
    "w4-split-tensor": {
        "weight_bits": 4,
        "granularity": "tensor",
        "expand_ratio": 0.2,
        "last_layer_bits": "same",
        **FAST,
    },
    "w3-last-at-3": {"weight_bits": 3, "expand_ratio": 0.3, "last_layer_bits": "same", **FAST},
}
INTERPRETERS = {
    "ai_edge_litert": "ai_edge_litert.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}
RUNTIMES = tuple(INTERPRETERS)


def run(path, x, runtime="ai_edge_litert", resolver="AUTO"):
    enum = importlib.import_module(INTERPRETERS[runtime]).OpResolverType
    options = {"runtime": runtime, "experimental_op_resolver_type": enum[resolver]}
    runner = tflite.Interpreter(path, **options).get_signature_runner()
    rows = [runner(x=x[i : i + 1]) for i in range(len(x))]
    (name,) = rows[0]
    return np.concatenate([row[name] for row in rows])


def types(path) -> set[str]:
    model = fb.read(path.read_bytes())
    return {fb.type_name(tensor) for tensor in model.subgraphs[0].tensors}


@pytest.mark.parametrize(("name", "options"), covering(OPTIONS, [0]))
def test_integer_file_computes_what_an_int8_one_does(name, options, tmp_path):
    """The same codes, in half the space: the plain kernels' outputs are equal to the bit.

    XNNPACK, which rounds as the Keras model does, takes convolutions of INT8 and not of INT4: with
    it the outputs differ by what the plain kernels round otherwise.
    """
    model = MODELS[name]()
    data = samples(model)
    quantized = ocs_tf.convert(
        model,
        representative_dataset=data,
        first_layer_bits="same",
        verbose=False,
        **OPTIONS[options],
    )
    paths = {target: tmp_path / f"{target}.tflite" for target in ("int4", "int8")}
    for target, path in paths.items():
        ocs_tf.export_tflite(quantized, path, target=target, io_dtype="float32")
    assert "int4" in types(paths["int4"])
    assert "int4" not in types(paths["int8"])
    expected = np.asarray(quantized(data["x"]))
    for runtime in RUNTIMES:
        int4, int8 = (
            run(path, data["x"], runtime, "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
            for path in paths.values()
        )
        assert np.any(int4)
        np.testing.assert_array_equal(int4, int8)
        assert ocs_tf.numerics.sqnr_db(expected, run(paths["int4"], data["x"], runtime)) > 30


@pytest.mark.parametrize(("name", "options"), covering(OPTIONS, [1]))
def test_file_with_float_activations_is_exact(name, options, tmp_path):
    model = MODELS[name]()
    data = samples(model, 4)
    quantized = ocs_tf.convert(model, first_layer_bits="same", verbose=False, **OPTIONS[options])
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target="int4")
    assert "int4" in types(path)
    expected = np.asarray(quantized(data["x"]))
    for runtime in RUNTIMES:
        got = run(path, data["x"], runtime)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_dynamic_activations(tmp_path):
    model = single(
        lambda x: layers.Dense(5, name="b")(layers.Dense(9, activation="relu", name="a")(x)), (12,)
    )
    data = samples(model)
    quantized = ocs_tf.convert(model, weight_bits=4, first_layer_bits="same", verbose=False)
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(quantized, path, target="int4", activations="dynamic")
    expected = np.asarray(quantized(data["x"]))
    # Two layers whose inputs are rounded to 8 bits.
    assert 30 < ocs_tf.numerics.sqnr_db(expected, run(path, data["x"])) < 80


@pytest.mark.parametrize("given", ["grids", "data", "nothing"])
def test_auto_takes_int8_where_it_can(given, tmp_path):
    model = MODELS["residual"]()
    data = samples(model)
    quantized = ocs_tf.convert(
        model,
        weight_bits=4,
        representative_dataset=data if given == "grids" else None,
        verbose=False,
    )
    path = tmp_path / "model.tflite"
    ocs_tf.export_tflite(
        quantized, path, target="int4", representative_dataset=data if given == "data" else None
    )
    (detail,) = tflite.Interpreter(path).get_input_details()
    assert detail["dtype"] == (np.float32 if given == "nothing" else np.int8)


def test_copies_stay_channels_where_their_sum_does_not_fit(tmp_path):
    """A split weight has a code of up to twice the limit, which INT8 holds and INT4 does not."""
    model = single(lambda x: layers.Dense(4, name="d")(x), (8,))
    quantized = ocs_tf.convert(
        model,
        weight_bits=4,
        expand_ratio=0.25,
        overrides={"d": {"weight_bits": 4, "expand_ratio": 0.25}},
        verbose=False,
    )
    kernel = quantized.get_layer("d").quantized_kernel()
    assert np.abs(kernel.effective_codes()).max() > 7
    shapes = {}
    for target in ("int4", "int8"):
        path = tmp_path / f"{target}.tflite"
        data = samples(model)
        ocs_tf.export_tflite(quantized, path, target=target, representative_dataset=data)
        parsed = fb.read(path.read_bytes())
        shapes[target] = {fb.shape(tensor) for tensor in parsed.subgraphs[0].tensors}
    assert (4, 8 + 2) in shapes["int4"]
    assert (4, 8) in shapes["int8"]


def test_nothing_to_store_in_int4(tmp_path):
    quantized = ocs_tf.convert(MODELS["residual"](), weight_bits=5, verbose=False)
    with pytest.raises(ValueError, match="no kernel has 4 bits or less"):
        ocs_tf.export_tflite(quantized, tmp_path / "x.tflite", target="int4")


def test_networks_of_first_and_last_layers_have_int4_kernels_if_told_so(tmp_path):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(4)])
    quantized = ocs_tf.convert(model, weight_bits=4, verbose=False)
    with pytest.raises(ValueError, match="first_layer_bits='same', last_layer_bits='same'"):
        ocs_tf.export_tflite(quantized, tmp_path / "x.tflite", target="int4")
    quantized = ocs_tf.convert(
        model, weight_bits=4, first_layer_bits="same", last_layer_bits="same", verbose=False
    )
    ocs_tf.export_tflite(quantized, tmp_path / "x.tflite", target="int4")
    assert (tmp_path / "x.tflite").exists()


def test_depthwise_with_dynamic_activations(tmp_path):
    quantized = ocs_tf.convert(
        MODELS["mobile"](), weight_bits=4, first_layer_bits="same", verbose=False
    )
    with pytest.raises(ValueError, match=r"layer 'dw.': .*activations='dynamic'.*Override"):
        ocs_tf.export_tflite(quantized, tmp_path / "x.tflite", target="int4", activations="dynamic")
    assert not list(tmp_path.iterdir())


def test_activations_of_16_bits(tmp_path):
    model = MODELS["mobile"]()
    data = samples(model)
    quantized = ocs_tf.convert(
        model, weight_bits=4, activation_bits=16, representative_dataset=data, verbose=False
    )
    with pytest.raises(ValueError, match=r"16-bit activations.*target='packed'"):
        ocs_tf.export_tflite(quantized, tmp_path / "x.tflite", target="int4")


@pytest.mark.parametrize("target", ["packed", "float"])
def test_activations_are_a_choice_of_files_with_integers(target, tmp_path):
    quantized = ocs_tf.convert(MODELS["mobile"](), weight_bits=4, verbose=False)
    with pytest.raises(ValueError, match=r"`activations` \(='dynamic'\) is a choice of targets"):
        ocs_tf.export_tflite(quantized, tmp_path / "x.tflite", target=target, activations="dynamic")
