"""`compare`: against arithmetic written out, and with files of other shapes and orders."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from ocs_tf._compare import compare


def dense(kernel: list[list[float]], name: str = "model") -> keras.Model:
    inputs = keras.Input((len(kernel),), name="x")
    outputs = keras.layers.Dense(len(kernel[0]), use_bias=False, name="y")(inputs)
    model = keras.Model(inputs, outputs, name=name)
    model.set_weights([np.array(kernel, np.float32)])
    return model


def test_numbers_by_hand():
    reference, other = dense([[2.0, 0.0], [0.0, 1.0]]), dense([[1.0, 0.0], [0.0, 1.0]])
    # Outputs (2, 0), (2, 1.5) against (1, 0), (1, 1.5).
    (result,) = compare(reference, other, np.array([[1, 0], [1, 1.5]], np.float32))
    assert (result.name, result.samples) == ("y", 2)
    signal, noise = 2**2 + 2**2 + 1.5**2, 1**2 + 1**2
    assert result.sqnr_db == pytest.approx(10 * math.log10(signal / noise))
    assert (result.max_difference, result.max_magnitude) == (1, 2)
    assert result.agreement == 1 / 2


def test_sequential_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="y")])
    (result,) = compare(model, model, np.eye(2, dtype=np.float32))
    assert (result.name, result.sqnr_db) == ("y", math.inf)


def test_batches_add_up():
    reference, other = dense([[2.0, 1.0]]), dense([[1.9, 1.0]])
    x = np.random.default_rng(0).normal(size=(77, 1)).astype(np.float32)
    (whole,) = compare(reference, other, x)
    (parts,) = compare(reference, other, lambda: ([row] for row in x))
    assert whole.samples == parts.samples == 77
    assert whole.sqnr_db == pytest.approx(parts.sqnr_db)


def test_models_of_a_fixed_batch_size():
    """The last batch is filled up for the models; what is compared are the samples."""
    kernel = [[1.0, 2], [3, 4]]
    fixed = keras.Sequential([keras.Input((2,), batch_size=4), keras.layers.Dense(2)])
    fixed.layers[0].set_weights([np.array(kernel), np.zeros(2)])
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    for pair in ((fixed, dense(kernel)), (dense(kernel), fixed)):
        (result,) = compare(*pair, x)
        assert (result.samples, result.sqnr_db) == (6, math.inf)


def test_equal_models_and_a_single_number():
    (result,) = compare(dense([[1.0]]), dense([[1.0]]), np.ones((3, 1), np.float32))
    assert (result.sqnr_db, result.agreement) == (math.inf, None)
    assert "top-1" not in str(result)


def test_silent_reference():
    (result,) = compare(dense([[0.0]]), dense([[1.0]]), np.ones((3, 1), np.float32))
    assert result.sqnr_db == -math.inf


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dense([[1.0, 1.0]]), r"output 'y' has shape \(3, 1\) in one model and \(3, 2\)"),
        (dense([[1.0], [1.0]]), r"take inputs of shapes \(1,\) and \(2,\)"),
    ],
    ids=["outputs", "inputs"],
)
def test_models_that_do_not_fit(other, message):
    with pytest.raises(ValueError, match=message):
        compare(dense([[1.0]]), other, np.ones((3, 1), np.float32))


def two_by_two(swapped: bool = False) -> keras.Model:
    """Inputs a (2 numbers), b (3); outputs a and b doubled."""
    inputs = [keras.Input((2,), name="a"), keras.Input((3,), name="b")]
    outputs = [keras.layers.Rescaling(2.0, name=f"{t.name}_out")(t) for t in inputs]
    step = -1 if swapped else 1
    return keras.Model(inputs[::step], outputs[::step])


def test_inputs_and_outputs_are_paired_by_name():
    data = {"a": np.ones((4, 2), np.float32), "b": np.zeros((4, 3), np.float32)}
    results = compare(two_by_two(), two_by_two(swapped=True), data)
    assert [(r.name, r.sqnr_db) for r in results] == [("a_out", math.inf), ("b_out", math.inf)]


def test_outputs_of_one_layer_keep_their_order():
    inputs = keras.Input((2,))
    double = keras.layers.Rescaling(2.0, name="double")
    model = keras.Model(inputs, [double(inputs), double(double(inputs))])
    results = compare(model, model, np.ones((4, 2), np.float32))
    assert [(r.max_difference, r.max_magnitude) for r in results] == [(0, 2), (0, 4)]


@pytest.mark.filterwarnings("error:The structure of")
@pytest.mark.parametrize("form", [list, lambda inputs: {x.name: x for x in inputs}])
def test_inputs_of_any_structure_and_layers_of_any_name(form):
    x, y = keras.Input((2,), name="x"), keras.Input((2,), name="in")
    outputs = [keras.layers.Dense(3, name="a:b")(y), keras.layers.Dense(2)(x)]
    data = {name: np.ones((4, 2), "float32") for name in ("in", "x")}
    model = keras.Model(form([y, x]), outputs)
    assert [c.max_difference for c in compare(model, model, data)] == [0, 0]
    alone = keras.Model(form([y]), outputs[0])
    assert [c.name for c in compare(alone, alone, data["in"])] == ["a:b"]
