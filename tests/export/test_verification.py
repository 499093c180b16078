"""What a written file must be, or it is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.errors import VerificationError
from ocs_tf.export.integer_writer import write_weights
from tests.export.files import (
    Grid,
    build,
    conv,
    details,
    in_int4,
    on_grids,
    regrid,
    to_tflite,
)


def test_a_pool_with_another_grid_than_its_input_is_refused():
    _, case = regrid(build("average-pool"), "AvgPool")
    with pytest.raises(VerificationError, match="AVERAGE_POOL_2D takes its input's grid"):
        case.write()


def test_a_concat_sets_the_grid_of_what_it_alone_reads():
    name, case = regrid(build("concat"), "StatefulPartitionedCall")
    with pytest.raises(VerificationError, match="a CONCATENATION or the like that alone reads it"):
        case.write()
    left = {name: case.grids[name]} | {n: g for n, g in case.grids.items() if "conv" not in n}
    file = case.write(grids=left)
    grids = [
        d["quantization"] for n, d in details(file).items() if "conv" in n and len(d["shape"]) == 4
    ]
    assert grids.count((0.25, 7)) == 2  # both branches, though nothing was given for them


def test_operator_without_int8_form():
    x = keras.Input((4, 4, 2), batch_size=1)
    case = on_grids(
        to_tflite(keras.Model(x, keras.ops.floor(x))), (), {x.name: np.ones((1, 4, 4, 2))}
    )
    with pytest.raises(VerificationError, match=r"operator FLOOR computing .* is left in float"):
        case.write()


def test_bias_that_overflows():
    x = keras.Input((4, 4, 2), batch_size=1)
    layer = conv(2, 1, name="dead")
    model = keras.Model(x, layer(x))
    layer.set_weights([np.zeros((1, 1, 2, 2)), 100 * np.ones(2)])
    case = on_grids(to_tflite(model), (), {x.name: np.ones((1, 4, 4, 2))})
    with pytest.raises(VerificationError, match=r"bias of a layer in float .* do not fit int32"):
        case.write()


def damage(monkeypatch, edit) -> None:
    """Apply `edit(model, weights)` to what is written, `weights` being the kernel of "conv"."""
    original = fb.write

    def write(model):
        weights = next(t for t in model.subgraphs[0].tensors if fb.shape(t) == (6, 3, 3, 4))
        if fb.grid(weights):  # not the float file that the quantizer reads
            edit(model, weights)
        return original(model)

    monkeypatch.setattr(fb, "write", write)


def damage_codes(model, weights):
    model.buffers[weights.buffer].data[7] ^= 1


def damage_scale(model, weights):
    weights.quantization.scale[2] = np.nextafter(weights.quantization.scale[2], np.float32(1))


def damage_type(model, weights):
    weights.type = schema.TensorType.UINT8


def damage_grid(model, weights):
    model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]].quantization.zeroPoint[0] += 1


def damage_bias(model, weights):
    (bias,) = [t for t in model.subgraphs[0].tensors if fb.shape(t) == (6,)]
    model.buffers[bias.buffer].data[0] ^= 1


def damage_reading(model, weights):
    """The operator reads the codes in place of what the DEQUANTIZE makes of them."""
    dequantize, convolution = model.subgraphs[0].operators
    convolution.inputs[1] = dequantize.inputs[0]


KERNEL_DAMAGES = [
    (damage_codes, "kernel of layer .*: 1 of 216 codes differ"),
    (damage_scale, "kernel of layer .*: scale .* given"),
    (damage_type, "kernel of layer .* is uint8, not int"),
]


@pytest.mark.parametrize(
    ("edit", "message"),
    [*KERNEL_DAMAGES, (damage_grid, "activation .*: .* in the file, given")],
)
def test_a_file_that_differs_is_refused(edit, message, monkeypatch):
    """The check reads the file: whatever goes wrong while writing is found."""
    case = build("conv")
    damage(monkeypatch, edit)
    with pytest.raises(VerificationError, match=message):
        case.write()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        *KERNEL_DAMAGES,
        (damage_bias, "tensor .* has no given kernel, but has changed"),
        (damage_reading, "operator CONV_2D reads the int4 tensor .* with dynamic=False"),
    ],
)
def test_a_file_with_float_activations_that_differs_is_refused(edit, message, monkeypatch):
    case = in_int4(build("conv", 4))
    damage(monkeypatch, edit)
    with pytest.raises(VerificationError, match=message):
        write_weights(case.float_model, case.kernels)


@pytest.mark.parametrize("steps", [(2.0**20, 1.0), (2.0**120, 2.0**120)], ids=["ratio", "overflow"])
def test_a_sum_that_ends_the_process(steps):
    """Runtimes abort where the factor of a sum, in float32, is 1 or more, or 0."""
    inputs = keras.Input((4,), batch_size=1, name="x"), keras.Input((4,), batch_size=1, name="y")
    data = {tensor.name: np.ones((1, 4), np.float32) for tensor in inputs}
    case = on_grids(to_tflite(keras.Model(inputs, inputs[0] + inputs[1])), (), data)
    case.write()
    given, made = steps
    grids = {name: Grid(made if "Call" in name else given, 0) for name in case.grids}
    with pytest.raises(VerificationError, match=r"operator ADD computing .* in steps of up to"):
        case.write(grids=grids)
