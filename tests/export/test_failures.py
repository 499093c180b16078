"""What is said of a model that TensorFlow's converter cannot do."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import ocs_tf
from ocs_tf.export.float_file import convert_float


def _clipped() -> keras.Model:
    ids = keras.Input((), dtype="int32", name="ids")
    return keras.Model(ids, layers.Embedding(7, 2)(ops.clip(ids, 0, 6)))


def _bicubic() -> keras.Model:
    image = keras.Input((4, 4, 2), name="image")
    return keras.Model(image, layers.UpSampling2D(interpolation="bicubic", name="up 2")(image))


class OnlyEager(layers.Layer):
    def call(self, inputs):
        if tf.inside_function() and not isinstance(inputs, keras.KerasTensor):
            raise KeyError("only eager")
        return inputs

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def _untraceable() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, OnlyEager()(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            _clipped,
            r"fails at 'clip\w*': TFLite has no operator for TensorFlow's Relu6 on int32\.$",
        ),
        (_bicubic, r"fails at 'up 2': TFLite .* ResizeBicubic on float32\.$"),
        (_untraceable, r"fails on the model: KeyError: .*only eager"),
    ],
)
def test_layer_operator_and_type_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_float(make())


FULL_FOLDER = """
import keras, resource
from ocs_tf.export.float_file import convert_float

inputs = keras.Input((2,))
model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
try:
    convert_float(model)
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
print(len(convert_float(model)) > 100)
"""


def test_a_full_temporary_folder() -> None:
    """The converter said that 'NoneType' object is not callable.

    In a process of its own: the limit would hold for what pytest keeps the output in, too.
    """
    done = subprocess.run(
        [sys.executable, "-c", FULL_FOLDER], check=True, capture_output=True, text=True
    )
    said, works_again = done.stdout.splitlines()
    assert "File too large, where TensorFlow's converter writes the" in said
    assert works_again == "True"


class Loop(layers.Layer):
    def call(self, inputs):
        return ops.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, 0.5 * x), (0, inputs))[1]


class Branch(layers.Layer):
    def call(self, inputs):
        return ops.cond(ops.sum(inputs) > 0, lambda: 2 * inputs, lambda: inputs - 1)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (Loop(name="own"), "WHILE"),
        (Branch(name="own"), "IF"),
        (layers.ConvLSTM1D(1, 2, name="own"), "WHILE"),
    ],
)
def test_control_flow_is_refused_with_the_layer(layer, kind: str, tmp_path) -> None:
    x = keras.Input((2, 3, 1), name="x")
    model = keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(layer(x))))
    data = np.random.default_rng(0).normal(size=(8, 2, 3, 1)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    path = tmp_path / "m.tflite"
    message = f"^'own': computed by {kind}, .* activations='float' or 'dynamic', or target='float'"
    with pytest.raises(ValueError, match=message):
        ocs_tf.export_tflite(quantized, path)
    assert not path.exists()
    for remedy in ({"activations": "float"}, {"activations": "dynamic"}, {"target": "float"}):
        ocs_tf.export_tflite(quantized, path, overwrite=True, **remedy)


def test_every_loop_is_named(tmp_path) -> None:
    x = keras.Input((2, 6, 1), name="x")
    first = layers.ConvLSTM1D(2, 2, return_sequences=True, name="lstm")
    made = layers.ConvLSTM1D(1, 2, name="lstm_1")(first(x))
    model = keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(made)))
    data = np.random.default_rng(0).normal(size=(8, 2, 6, 1)).astype("float32")
    quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False)
    with pytest.raises(ValueError, match=r"^'lstm', 'lstm_1': computed by WHILE"):
        ocs_tf.export_tflite(quantized, tmp_path / "m.tflite")
