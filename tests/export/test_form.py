"""Forms of files: how wide kernels are, and what codes fit."""

from __future__ import annotations

import pytest

from ocs_tf.export import form
from ocs_tf.export.form import form_of


@pytest.mark.parametrize(
    ("target", "activations", "expected"),
    [
        ("int8", "int8", form.INT8),
        ("int4", "int8", form.INT4),
        ("int8", "float", form.INT8_WEIGHTS),
        ("int8", "dynamic", form.INT8_WEIGHTS),
        ("int4", "dynamic", form.INT4_WEIGHTS),
        ("packed", "auto", form.PACKED),
        ("float", "auto", form.FLOAT),
    ],
)
def test_forms_of_choices(target: str, activations: str, expected: form.Form) -> None:
    assert form_of(target, activations) == expected


@pytest.mark.parametrize(
    ("kind", "bits", "of_int4", "of_int8"),
    [("conv", 4, 4, 8), ("conv", 5, 8, 8), ("dense", 2, 4, 8)],
)
def test_widths_of_tensors(kind: str, bits: int, of_int4: int, of_int8: int) -> None:
    assert form.INT4.tensor_bits(bits, kind) == of_int4
    assert form.INT8.tensor_bits(bits, kind) == of_int8


def test_largest_codes() -> None:
    """Copies that are summed must fit the tensor: `2^(b-1) - 1`; floats take any."""
    assert form.INT8.code_limit(8, "conv") == 2**7 - 1
    assert form.INT4.code_limit(4, "conv") == 2**3 - 1
    assert form.INT4.code_limit(8, "conv") == 2**7 - 1
    assert form.FLOAT.code_limit(8, "conv") is form.PACKED.code_limit(8, "conv") is None


def test_who_rounds_activations() -> None:
    rounding = {form.INT8, form.INT4, form.PACKED}
    others = {form.FLOAT, form.INT8_WEIGHTS, form.INT4_WEIGHTS}
    assert all(one.splits_activations for one in rounding)
    assert not any(one.splits_activations for one in others)
