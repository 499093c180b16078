"""Kernels are found by content and told apart by name; malformed ones are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ocs_tf.export.integer_writer import write_weights
from ocs_tf.export.kernel_matching import ExportKernel
from tests.export.files import (
    assert_kernel,
    build,
    details,
    one_by_one,
    operators,
    reference_interpreter,
    twins,
    types_of_kernels,
)


def test_equal_weights_with_other_codes_are_told_apart_by_name():
    """2 steps of 0.5 weigh the same as 1 step of 1; the converter merges the two constants."""
    coarse, fine = one_by_one("one", [1, 2, -3, 4], 1.0), one_by_one("two", [2, 4, -6, 8], 0.5)
    case = twins(coarse, fine)
    for kernels in ((coarse, fine), (fine, coarse)):
        file = case.write(kernels=kernels)
        assert_kernel(file, coarse)
        assert_kernel(file, fine)
        interpreter = reference_interpreter(file)
        order = [
            interpreter.get_tensor(op["inputs"][1])[0, 0, 0, 0]
            for op in interpreter._get_ops_details()
            if op["op_name"] == "CONV_2D"
        ]
        assert order == [1, 2]


def test_equal_weights_of_different_widths():
    """2 steps of 0.5 weigh the same as 1 step of 1: one constant becomes two."""
    narrow = dataclasses.replace(one_by_one("one", [1, 2, -3, 4], 1.0), bits=4)
    case = twins(narrow, one_by_one("two", [2, 4, -6, 8], 0.5))
    for file in (case.write(), write_weights(case.float_model, case.kernels)):
        assert sorted(types_of_kernels(file)) == ["int4", "int8"]
        for kernel in case.kernels:
            assert_kernel(file, kernel)


def test_identical_layers_share_one_kernel():
    one, two = one_by_one("one", [1, 2, -3, 4], 1.0), one_by_one("two", [1, 2, -3, 4], 1.0)
    file = twins(one, two).write()
    assert_kernel(file, one)
    kernels = [d for d in details(file).values() if d["shape"].tolist() == [2, 1, 1, 2]]
    assert len(kernels) == 1


def test_layers_that_the_converter_merges_need_one_operator():
    one, two = one_by_one("one", [1, 2, -3, 4], 1.0), one_by_one("two", [1, 2, -3, 4], 1.0)
    file = twins(one, two, apart=False).write()
    assert operators(file).count("CONV_2D") == 1
    assert_kernel(file, one)


def test_kernel_that_the_model_does_not_have():
    case = build("conv")
    (kernel,) = case.kernels
    other = dataclasses.replace(kernel, layer="lost", codes=-kernel.codes)
    with pytest.raises(ValueError, match=r"kernel of layer 'lost' .* is not in the converted file"):
        case.write(kernels=(kernel, other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "lstm"},
            r"kind of layer 'c' \(='lstm'\) must be one of 'conv', 'conv3d', 'dense'",
        ),
        ({"codes": np.zeros((1, 1, 2, 3))}, r"codes of layer 'c' \(=float64 \[1, 1, 2, 3\]\)"),
        ({"codes": np.zeros((2, 3), np.int8)}, "must be int8 of rank 4 for kind 'conv'"),
        ({"codes": np.full((1, 1, 2, 3), -128, np.int8)}, r"range -128..0\) must be in -127..127"),
        ({"bits": 5}, r"bits of layer 'c' \(=5\) must be one of 4, 8"),
        (
            {"bits": 4, "codes": np.full((1, 1, 2, 3), 8, np.int8)},
            r"0..8\) must be in -7..7, for a",
        ),
        ({"bits": 4, "codes": np.full((1, 1, 2, 3), -8, np.int8)}, r"-8..0\) must be in -7..7"),
        ({"scale": np.ones(2, np.float32)}, r"must be float32 of shape \[\] or \[3\]"),
        ({"scale": np.ones(3)}, r"scale of layer 'c' \(=float64 \[3\]\)"),
        ({"scale": np.zeros(3, np.float32)}, r"minimum 0.0\) must be finite and at least"),
        ({"scale": np.float32([1, np.nan, 1])}, "must be finite and at least"),
    ],
)
def test_malformed_kernel(change, message):
    good = {
        "layer": "c",
        "codes": np.zeros((1, 1, 2, 3), np.int8),
        "scale": np.ones(3, np.float32),
        "kind": "conv",
    }
    with pytest.raises(ValueError, match=message):
        ExportKernel(**{**good, **change})
