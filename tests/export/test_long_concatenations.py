"""Concatenations of more than ten tensors, in steps."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from keras import layers

import ocs_tf
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.long_concatenations import in_steps
from ocs_tf.runtime import micro
from tests.export.networks import FAST, randomize
from tests.export.test_micro import assert_equal_outputs
from tests.runtime.model_builder import ModelBuilder


def file_of(count: int, axis: int) -> bytes:
    """`count` inputs of 1, 2, 3, 1, 2, ... along an axis, joined."""
    builder = ModelBuilder()
    sizes = [1 + number % 3 for number in range(count)]
    shapes = [(2, size, 3) if axis in (1, -2) else (2, 4, size) for size in sizes]
    whole = (2, sum(sizes), 3) if axis in (1, -2) else (2, 4, sum(sizes))
    parts, output = [builder.tensor(shape) for shape in shapes], builder.tensor(whole)
    options = schema.ConcatenationOptionsT()
    options.axis = axis
    builder.operator(schema.BuiltinOperator.CONCATENATION, parts, [output], options)
    return builder.build(parts, [output])


def outputs(content: bytes) -> np.ndarray:
    interpreter = litert.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        x = rng.normal(size=detail["shape"]).astype(np.float32)
        interpreter.set_tensor(detail["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("axis", [1, 2, -1, -2])
@pytest.mark.parametrize(("count", "steps"), [(11, 2), (20, 3), (21, 3), (105, 13)])
def test_outputs_are_the_same(count, steps, axis):
    given = file_of(count, axis)
    changed = in_steps(given)
    operators = fb.read(changed).subgraphs[0].operators
    assert len(operators) == steps
    assert max(len(op.inputs) for op in operators) <= 10
    np.testing.assert_array_equal(outputs(changed), outputs(given))


@pytest.mark.parametrize("count", [2, 10])
def test_short_ones_stay(count):
    given = file_of(count, 1)
    assert in_steps(given) is given


@pytest.mark.skipif(not micro.installed(), reason='needs tflite-micro: pip install "ocs_tf[micro]"')
def test_an_export_for_microcontrollers(tmp_path):
    inputs = keras.Input((6, 6, 3))
    parts = [layers.Conv2D(2, 1, name=f"c{number}")(inputs) for number in range(13)]
    x = layers.Conv2D(3, 3, name="d")(layers.Concatenate()(parts))
    model = randomize(keras.Model(inputs, x))
    data = np.random.default_rng(1).normal(size=(16, 6, 6, 3)).astype(np.float32)
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False, **FAST)
    path = tmp_path / "model.tflite"
    refused = ocs_tf.export_tflite(quantized, path)
    assert refused.arena_bytes is None
    assert "with c_array, an export joins more of them in steps." in str(refused)
    ocs_tf.export_tflite(quantized, path, c_array=tmp_path / "model.cc", overwrite=True)
    assert_equal_outputs(path, [data])
