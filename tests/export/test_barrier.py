"""What stands behind a barrier is not folded into what stands before it, and no file has one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.barrier import Barrier, barrier_function, without_barriers
from ocs_tf.runtime import runner
from tests.export.files import to_tflite


def network(apart: bool, rng: np.random.Generator) -> keras.Model:
    """Two products, of which TensorFlow's converter merges the bias of the first."""
    inputs = keras.Input((3,), batch_size=1)
    x = layers.Dense(4, name="first")(inputs)
    x = Barrier()(x) if apart else x
    model = keras.Model(inputs, layers.Dense(2, name="second")(x))
    for layer in model.layers:
        layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    return model


def biases(content: bytes) -> list[np.ndarray]:
    model = fb.read(content)
    return [
        fb.constant(model, model.subgraphs[0].tensors[op.inputs[2]])
        for _, op in fb.operators(model)
        if fb.op_name(model, op) == "FULLY_CONNECTED" and len(op.inputs) == 3 and op.inputs[2] >= 0
    ]


@pytest.mark.parametrize("apart", [False, True])
def test_biases_stay_where_they_are(apart: bool, rng: np.random.Generator) -> None:
    model = network(apart, rng)
    content = without_barriers(to_tflite(model))
    own = [np.asarray(model.get_layer(name).bias) for name in ("first", "second")]
    found = biases(content)
    same = len(found) == 2 and all(map(np.array_equal, found, own))
    assert same is apart
    x = rng.normal(size=(1, 3)).astype(np.float32)
    interpreter = runner.opened(content)  # no runtime knows a barrier
    runner.run(interpreter, [x])
    np.testing.assert_allclose(runner.outputs(interpreter)[0], model(x), rtol=1e-5, atol=1e-5)


def test_the_operator_is_gone(rng: np.random.Generator) -> None:
    before = to_tflite(network(True, rng))
    after = without_barriers(before)
    names = [{fb.code_name(c) for c in fb.read(f).operatorCodes} for f in (before, after)]
    assert names == [{"FULLY_CONNECTED", "CUSTOM"}, {"FULLY_CONNECTED"}]


def test_a_barrier_at_the_end(rng: np.random.Generator) -> None:
    inputs = keras.Input((3,), batch_size=1)
    model = keras.Model(inputs, Barrier()(layers.ReLU()(inputs)))
    content = without_barriers(to_tflite(model))
    x = rng.normal(size=(1, 3)).astype(np.float32)
    interpreter = runner.opened(content)
    runner.run(interpreter, [x])
    np.testing.assert_array_equal(runner.outputs(interpreter)[0], np.maximum(x, 0))


def test_files_without_one_stay_to_the_byte(rng: np.random.Generator) -> None:
    content = to_tflite(network(False, rng))
    assert without_barriers(content) is content


def test_a_function_behind_it() -> None:
    x = np.array([-1.0, 2.0], np.float32)
    np.testing.assert_array_equal(barrier_function()(x), x)
    np.testing.assert_array_equal(barrier_function(keras.ops.relu)(x), [0, 2])
    np.testing.assert_array_equal(Barrier()(x), x)
