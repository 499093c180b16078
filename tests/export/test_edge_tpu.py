"""`edge_tpu.check`: each documented limitation is found, and only where it applies."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ocs_tf.export import edge_tpu
from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.integer_writer import write_int8
from ocs_tf.export.tensor_matching import measure_ranges
from ocs_tf.process import quiet


def to_tflite(model) -> bytes:
    with quiet():
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def int8_file(build, shape=(8, 8, 4), float_io=False, batch=1) -> bytes:
    keras.utils.set_random_seed(0)
    x = keras.Input(shape, batch_size=batch, name="x")
    float_model = to_tflite(keras.Model(x, build(x)))
    data = np.random.default_rng(0).normal(size=(2 * batch, *shape))
    ranges = measure_ranges(float_model, [[data]])
    return write_int8(float_model, (), {}, ranges, float_io=float_io)


def network(x):
    y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = layers.Concatenate()([y, y[..., 1:3]])
    y = layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")(y)
    y = layers.MaxPooling2D(2)(layers.ZeroPadding2D(1)(y))
    y = layers.GlobalAveragePooling2D()(y)
    return layers.Softmax()(layers.Dense(5)(y))


def reasons(file: bytes) -> dict[str, str]:
    return {r.op: r.reason for r in edge_tpu.check(file) if not r.supported}


def edited(file: bytes, name: str, edit) -> bytes:
    """The file after `edit(model, op)` of its first operator called `name`."""
    model = fb.read(file)
    edit(model, next(op for op in model.subgraphs[0].operators if fb.op_name(model, op) == name))
    return fb.write(model)


def test_an_ordinary_network_is_supported():
    reports = edge_tpu.check(int8_file(network))
    assert [r.op for r in reports] == [
        *("CONV_2D", "STRIDED_SLICE", "CONCATENATION", "DEPTHWISE_CONV_2D", "PAD", "MAX_POOL_2D"),
        *("MEAN", "FULLY_CONNECTED", "SOFTMAX"),
    ]
    assert all(r.supported and not r.reason for r in reports)
    assert reports[0].inputs == ("int8[1, 8, 8, 4]", "int8[4, 3, 3, 4]", "int32[4]")
    assert reports[0].outputs == ("int8[1, 8, 8, 4]",)
    assert edge_tpu.summary(reports) == "Edge TPU: 9 of 9 operators are supported; they map"


def test_float_borders_run_on_the_cpu():
    reports = edge_tpu.check(int8_file(lambda x: layers.ReLU()(x), float_io=True))
    assert edge_tpu.summary(reports).splitlines() == [
        "Edge TPU: 1 of 3 operators are supported; they map",
        "  0 QUANTIZE: converts a float input or output, which the CPU does",
        "  2 DEQUANTIZE: converts a float input or output, which the CPU does",
    ]


def test_a_float_file_is_not():
    x = keras.Input((8, 8, 4), batch_size=1)
    found = reasons(to_tflite(keras.Model(x, layers.ReLU()(x))))
    assert "is float32, not 8-bit" in found["RELU"]


@pytest.mark.parametrize(
    ("build", "op", "reason"),
    [
        (lambda x: keras.ops.take(x, [0, 1, 1], axis=-1), "GATHER", "not in the table"),
        (lambda x: layers.Permute((2, 1, 3))(x), "TRANSPOSE", "not in the table"),
        (lambda x: x[:, ::2], "STRIDED_SLICE", "strides [1, 2, 1, 1] must all be 1"),
        (lambda x: layers.Softmax()(x), "SOFTMAX", "input [1, 8, 8, 4] must be one-dimensional"),
        (lambda x: layers.Dense(3)(x), "FULLY_CONNECTED", "output [1, 8, 8, 3] must be one-dim"),
        (
            lambda x: layers.ReLU()(layers.AveragePooling2D(2)(x)),
            "AVERAGE_POOL_2D",
            "fused activation RELU: none may be fused",
        ),
        (
            lambda x: keras.ops.mean(x[..., :3], axis=-1),
            "MEAN",
            "reduces the z-dimension of 3, which is no multiple of 4",
        ),
        (lambda x: keras.ops.mean(x, axis=0), "MEAN", "reduces the batch dimension"),
        (lambda x: keras.ops.stack([x, x], axis=0), "PACK", "has a size above 1 outside"),
        (
            lambda x: layers.Concatenate()([x, keras.ops.ones((1, 8, 8, 2))]),
            "CONCATENATION",
            "a constant input must be all zeros and one of exactly 2 inputs",
        ),
    ],
)
def test_limitation(build, op, reason):
    assert reason in reasons(int8_file(build))[op]


def test_reduction_over_z_of_a_multiple_of_4_is_supported():
    assert reasons(int8_file(lambda x: keras.ops.mean(x, axis=-1))) == {}


def test_zero_constant_in_a_concat_is_supported():
    zeros = lambda x: layers.Concatenate()([x, keras.ops.zeros((1, 8, 8, 2))])  # noqa: E731
    assert "CONCATENATION" not in reasons(int8_file(zeros))


def test_softmax_size():
    assert reasons(int8_file(layers.Softmax(), (16_000,))) == {}
    found = reasons(int8_file(layers.Softmax(), (16_001,)))
    assert found == {"SOFTMAX": "16001 elements exceed 16000"}


def test_batch_above_one():
    found = reasons(int8_file(lambda x: layers.ReLU()(x), batch=2))
    assert "[2, 8, 8, 4] has a size above 1 outside the innermost 3" in found["RELU"]


def test_dynamic_shape():
    x = keras.Input((4,), name="x")
    file = to_tflite(keras.Model(x, layers.ReLU()(x)))
    model = fb.read(file)
    for tensor in model.subgraphs[0].tensors:
        tensor.type = 9  # int8, so that only the shape is left to object to
    assert "has the dynamic shape [-1, 4]" in reasons(fb.write(model))["RELU"]


def test_unequal_dilation():
    def stretch(_, op):
        op.builtinOptions.dilationWFactor = 3

    file = edited(int8_file(lambda x: layers.Conv2D(2, 3)(x)), "CONV_2D", stretch)
    assert reasons(file) == {"CONV_2D": "dilation 3 in x and 1 in y must be equal"}


def test_shuffled_weights():
    def shuffle(_, op):
        op.builtinOptions.weightsFormat = 1

    build = lambda x: layers.Dense(3)(layers.Flatten()(x))  # noqa: E731
    found = reasons(edited(int8_file(build), "FULLY_CONNECTED", shuffle))
    assert found == {"FULLY_CONNECTED": "weights are in the shuffled format"}


def test_slice_masks():
    def mask(_, op):
        op.builtinOptions.ellipsisMask = 2

    found = reasons(edited(int8_file(lambda x: x[..., 1:3]), "STRIDED_SLICE", mask))
    assert found == {"STRIDED_SLICE": "{'ellipsis_mask': 2} must be 0"}


def test_padding_of_the_batch():
    def pad_batch(model, op):
        buffer = model.subgraphs[0].tensors[op.inputs[1]].buffer
        paddings = np.int32([[1, 0], [0, 0], [0, 0], [0, 0]])
        model.buffers[buffer].data = paddings.view(np.uint8).ravel()

    found = reasons(edited(int8_file(layers.ZeroPadding2D(1)), "PAD", pad_batch))
    assert found == {"PAD": "pads the batch dimension"}


def test_computed_kernel():
    def compute(model, op):
        model.buffers[model.subgraphs[0].tensors[op.inputs[2]].buffer].data = None
        model.subgraphs[0].tensors[op.inputs[2]].type = 9

    found = reasons(edited(int8_file(lambda x: layers.Conv2D(2, 3)(x)), "CONV_2D", compute))
    assert "are not constant" in found["CONV_2D"]


def test_summary_says_what_the_cpu_runs():
    file = int8_file(lambda x: layers.ReLU()(keras.ops.take(layers.ReLU()(x), [0, 0], axis=-1)))
    text = edge_tpu.summary(edge_tpu.check(file))
    assert text.splitlines() == [
        "Edge TPU: 2 of 3 operators are supported; 1 map, the CPU runs the rest from operator 1 on",
        "  1 GATHER: not in the table of supported operations",
    ]
