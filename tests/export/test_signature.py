"""The order of inputs and outputs is that of the Keras model, and signatures follow tensors."""

from __future__ import annotations

import copy
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.signature import follow, in_keras_order, sized_as
from ocs_tf.runtime import runner
from tests.export.files import to_tflite

NAMES = ("b", "c", "a")


def network(order: tuple[str, ...] = NAMES) -> keras.Model:
    """An input of 1, 2, 3 numbers by name; outputs in the opposite order."""
    inputs = {name: keras.Input((ord(name) - 96,), batch_size=1, name=name) for name in "abc"}
    outputs = [layers.Rescaling(2.0, name=f"{name}_2")(inputs[name]) for name in order[::-1]]
    return keras.Model([inputs[name] for name in order], outputs)


def shapes(content: bytes) -> tuple[list[int], list[int]]:
    """Sizes of inputs and outputs, in the order of the file."""
    graph = fb.read(content).subgraphs[0]
    ends = graph.inputs, graph.outputs
    given, made = ([fb.shape(graph.tensors[i])[-1] for i in indices] for indices in ends)
    return given, made


@pytest.mark.parametrize("order", [NAMES, ("a", "b", "c"), ("c", "b", "a")], ids="".join)
def test_the_order_is_that_of_keras(order: tuple[str, ...]) -> None:
    model = network(order)
    content = in_keras_order(to_tflite(model), model)
    sizes = [ord(name) - 96 for name in order]
    assert shapes(content) == (sizes, sizes[::-1])
    interpreter = runner.opened(content)
    arrays = [np.full((1, size), size, np.float32) for size in sizes]
    runner.run(interpreter, arrays)
    for found, array in zip(runner.outputs(interpreter), arrays[::-1], strict=True):
        np.testing.assert_array_equal(found, 2 * array)


def test_a_file_without_a_signature_stays() -> None:
    parsed = fb.read(to_tflite(network()))
    parsed.signatureDefs = None
    content = fb.write(parsed)
    assert in_keras_order(content, network()) is content


def test_more_than_ten_outputs_are_ordered_by_number() -> None:
    inputs = keras.Input((1,), batch_size=1)
    outputs = [layers.Rescaling(float(n + 1))(inputs) for n in range(12)]
    model = keras.Model(inputs, outputs)
    interpreter = runner.opened(in_keras_order(to_tflite(model), model))
    runner.run(interpreter, [np.ones((1, 1), np.float32)])
    assert [float(found[0, 0]) for found in runner.outputs(interpreter)] == list(range(1, 13))


def test_open_sizes_begin_as_those_of_samples() -> None:
    inputs = keras.Input((None, 2), batch_size=1)
    model = keras.Model(inputs, layers.ReLU()(inputs))
    content = sized_as(to_tflite(model), model, [np.zeros((5, 7, 2), np.float32)])
    (detail,) = runner.opened(content).get_input_details()
    assert detail["shape"].tolist() == [1, 7, 2]
    assert detail["shape_signature"].tolist() == [1, -1, 2]


def test_known_sizes_are_left_alone() -> None:
    model = network()
    content = to_tflite(model)
    assert sized_as(content, model, [np.zeros((5, 7))] * 3) is content


def test_signatures_follow_other_tensors() -> None:
    original = fb.read(to_tflite(network()))
    rewritten = copy.deepcopy(original)
    graph = rewritten.subgraphs[0]
    moved: dict[Any, int] = {}
    for index in graph.outputs:
        graph.tensors.append(copy.deepcopy(graph.tensors[index]))
        moved[index] = len(graph.tensors) - 1
    graph.outputs = [moved[index] for index in graph.outputs]
    follow(rewritten, original)
    before, after = original.signatureDefs[0], rewritten.signatureDefs[0]
    for old, new in zip(before.outputs, after.outputs, strict=True):
        assert new.tensorIndex == moved[old.tensorIndex]
    assert [e.tensorIndex for e in after.inputs] == [e.tensorIndex for e in before.inputs]
