"""`match_tensors` and `measure_ranges`: the file's tensors told apart by what they hold."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ocs_tf.export.tensor_matching import match_tensors, measure_ranges
from ocs_tf.process import quiet


def conv(*args, **kwargs):
    return layers.Conv2D(*args, padding="same", **kwargs)


def to_tflite(model) -> bytes:
    with quiet():
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def random_model(build, names="x"):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((6, 6, 4), batch_size=1, name=name) for name in names]
    model = keras.Model(inputs, build(*inputs))
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:  # a moving variance must stay positive
        weight.assign(rng.uniform(0.5, 1, weight.shape) * rng.choice([-1, 1], weight.shape))
    data = {name: rng.normal(size=(3, 6, 6, 4)).astype(np.float32) for name in names}
    return model, data


def layer_outputs(model, data) -> dict[str, np.ndarray]:
    """What Keras computes after each layer, by layer name, in topological order."""
    probe = keras.Model(model.inputs, [layer.output for layer in model.layers])
    count = len(next(iter(data.values())))
    rows = [probe([data[t.name][i : i + 1] for t in model.inputs]) for i in range(count)]
    return {
        layer.name: np.concatenate([np.asarray(row[i]) for row in rows])
        for i, layer in enumerate(model.layers)
    }


def matched(build, names="x", only=None) -> dict[str, str]:
    """TFLite name -> layer name, over the layers named in `only` (all by default)."""
    model, data = random_model(build, names)
    tensors = layer_outputs(model, data)
    if only:
        tensors = {key: tensors[key] for key in only}
    return match_tensors(to_tflite(model), data, tensors)


def chain(x):
    x = conv(5, 3, activation="relu", name="first")(x)
    x = layers.DepthwiseConv2D(3, name="deep")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    return layers.Dense(3, activation="softmax", name="last")(x)


def test_every_tensor_of_a_chain_is_found():
    matches = matched(chain)
    assert list(matches.values()) == ["x", "first", "deep", "pool", "flat", "last"]


def test_tensors_that_are_fused_away_are_absent():
    matches = matched(
        lambda x: layers.ReLU(name="relu")(
            layers.BatchNormalization(name="norm")(conv(4, 3, name="conv")(x))
        )
    )
    assert list(matches.values()) == ["x", "relu"]


def test_a_moved_reshape_is_seen_through():
    """Dense after Reshape comes out as FULLY_CONNECTED before RESHAPE: same values, other shape."""
    matches = matched(lambda x: layers.Dense(5, name="dense")(layers.Reshape((36, 4))(x)))
    assert list(matches.values()) == ["x", "dense", "dense"]


def test_shape_decides_between_equal_values():
    matches = matched(lambda x: layers.Flatten(name="flat")(conv(4, 3, name="conv")(x)))
    assert list(matches.values()) == ["x", "conv", "flat"]


def dead(x):
    """Three branches of zeros: only their names differ."""
    zeros = [
        layers.ReLU(name=f"{name}_relu")(
            conv(2, 1, name=name, kernel_initializer="zeros", trainable=False)(x)
        )
        for name in ("left", "middle", "right")
    ]
    return layers.Concatenate(name="join")(zeros)


def test_names_decide_between_equal_contents():
    model, data = random_model(dead)
    for layer in model.layers:
        layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    # The converter would merge layers that are alike down to their biases.
    for bias, name in enumerate(("left", "middle", "right"), 1):
        model.get_layer(name).set_weights([np.zeros((1, 1, 4, 2)), -np.full(2, bias)])
    tensors = layer_outputs(model, data)
    keys = ["left_relu", "right_relu", "middle_relu"]
    matches = match_tensors(to_tflite(model), data, {key: tensors[key] for key in keys})
    for name, key in matches.items():
        if "relu" in name:
            assert f"{key}_1" in name


def test_order_decides_where_names_do_not():
    model, _ = random_model(chain)
    zeros = np.zeros((3, 6, 6, 4), np.float32)
    matches = match_tensors(
        to_tflite(model), {"x": zeros}, {"one": zeros, "two": zeros, "three": zeros + 1}
    )
    assert set(matches.values()) == {"one"}  # the input is the only tensor of that size


def test_float_rounding_does_not_matter():
    model, data = random_model(chain)
    rng = np.random.default_rng(1)
    tensors = {
        key: value * rng.uniform(1 - 1e-5, 1 + 1e-5, value.shape)
        for key, value in layer_outputs(model, data).items()
    }
    assert len(match_tensors(to_tflite(model), data, tensors)) == len(tensors)


def test_other_values_do_not_match():
    model, data = random_model(chain)
    tensors = {key: value + 1 for key, value in layer_outputs(model, data).items()}
    assert match_tensors(to_tflite(model), data, tensors) == {}


@pytest.mark.parametrize("names", [*itertools.permutations(["zeta", "alpha", "mid"])], ids="-".join)
def test_inputs_go_by_name(names):
    """A file lists its inputs in an order of its own."""
    matches = matched(lambda *xs: [conv(2, 1, name=f"c_{x.name}")(x) for x in xs], names)
    assert set(matches.values()) == {*names, *(f"c_{name}" for name in names)}
    assert all(key in name for name, key in matches.items() if name.startswith("serving_default"))


# Ranges -------------------------------------------------------------------------------------------


def test_ranges_are_those_of_the_data():
    model, data = random_model(chain)
    float_model = to_tflite(model)
    matches = match_tensors(float_model, data, tensors := layer_outputs(model, data))
    ranges = measure_ranges(float_model, [[data["x"]]])
    assert set(ranges) - set(matches) == {n for n in ranges if "last_1" in n}  # the logits
    for name, key in matches.items():
        span = (tensors[key].min(), tensors[key].max())
        np.testing.assert_allclose(ranges[name], span, rtol=1e-4, atol=1e-5)


def test_ranges_do_not_depend_on_the_batches():
    model, data = random_model(chain)
    float_model = to_tflite(model)
    whole = measure_ranges(float_model, [data])
    assert measure_ranges(float_model, ([data["x"][i : i + 1]] for i in range(3))) == whole
    assert measure_ranges(float_model, [[data["x"][1:]], {"x": data["x"][:1]}]) == whole


def test_an_outlier_is_neither_averaged_nor_lost():
    model, _ = random_model(chain)
    calm, wild = np.zeros((1, 6, 6, 4)), np.full((1, 6, 6, 4), 1000.0)
    ranges = measure_ranges(to_tflite(model), [[calm], [wild], [calm], [calm]])
    assert next(iter(ranges.values())) == (0.0, 1000.0)


def test_a_fixed_batch_above_one():
    x = keras.Input((3,), batch_size=2, name="x")
    float_model = to_tflite(keras.Model(x, layers.ReLU()(x)))
    data = np.arange(-6, 6, dtype=np.float32).reshape(4, 3)
    assert list(measure_ranges(float_model, [[data]]).values()) == [(-6, 5), (0, 5)]
    with pytest.raises(ValueError, match=r"has shape \[3, 3\]; the model takes \[2 x n, 3\]"):
        measure_ranges(float_model, [[data[:3]]])


# Refusals -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_input() -> bytes:
    return to_tflite(random_model(chain)[0])


@pytest.fixture(scope="module")
def two_inputs() -> bytes:
    return to_tflite(random_model(lambda x, y: layers.Add()([x, y]), "xy")[0])


GOOD = np.zeros((2, 6, 6, 4), np.float32)


def test_empty_dataset(one_input):
    with pytest.raises(ValueError, match="dataset is empty"):
        measure_ranges(one_input, [])


def test_wrong_shape(one_input):
    with pytest.raises(
        ValueError, match=r"has shape \[2, 6, 4\]; the model takes \[1 x n, 6, 6, 4"
    ):
        measure_ranges(one_input, [[GOOD[:, 0]]])


def test_not_finite(one_input):
    with pytest.raises(ValueError, match="is not finite"):
        measure_ranges(one_input, [[GOOD + np.inf]])


def test_several_inputs_by_position(two_inputs):
    with pytest.raises(ValueError, match=r"pass a mapping by name, from \['x', 'y'\]"):
        measure_ranges(two_inputs, [[GOOD, GOOD]])


def test_unknown_input_name(two_inputs):
    with pytest.raises(ValueError, match=r"names \['x', 'z'\], the model's are \['x', 'y'\]"):
        measure_ranges(two_inputs, [{"x": GOOD, "z": GOOD}])


def test_inputs_of_other_lengths(two_inputs):
    with pytest.raises(ValueError, match=r"inputs differ in length: \[1, 2\]|\[2, 1\]"):
        measure_ranges(two_inputs, [{"x": GOOD, "y": GOOD[:1]}])


def test_tensor_without_the_samples(one_input):
    with pytest.raises(ValueError, match=r"tensors\['t'\] has shape \[5\]; .* the 2 samples"):
        match_tensors(one_input, [GOOD], {"t": np.zeros(5)})


def test_nothing_is_printed(one_input, capfd):
    measure_ranges(one_input, [[GOOD]])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
