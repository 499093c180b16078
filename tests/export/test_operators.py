"""Each operator that has an integer form, alone: what is written computes what it should."""

from __future__ import annotations

import importlib.util

import pytest

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import integer_forms, integer_writer
from ocs_tf.export.grid_rules import INTEGER_FORMS
from ocs_tf.export.kernel_matching import KERNEL_INPUTS
from tests.conftest import load_script
from tests.export.files import RUNTIMES

operators = load_script("docs/make_operators.py")
CASES = {case.kind: case for case in operators.CASES}
IN_INTEGERS = [kind for kind in CASES if kind in INTEGER_FORMS]


def written(case) -> bytes:
    """The int8 file of an operator, from its float file."""
    model = fb.read(operators.file_of(case, integer=False))
    given, made = operators.grids_of(case)
    ends = {f"i{n}": grid for n, grid in enumerate(given)}
    ends |= {f"o{n}": grid for n, grid in enumerate(made)}
    known = fb.float_activations(model)
    grids = {name: grid for name, grid in ends.items() if name in known}
    grids, ranges = integer_forms.in_integer_forms(model, grids, {}, ())
    return integer_writer.write_int8(fb.write(model), (), grids, ranges, float_io=False)


@pytest.mark.parametrize("kind", IN_INTEGERS)
def test_operator(kind):
    case = CASES[kind]
    content = written(case)
    for runtime in RUNTIMES.values():
        interpreter = runtime(model_content=content)
        interpreter.allocate_tensors()
        details = interpreter.get_input_details()
        for detail, array in zip(details, operators.feeds(case), strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        found = [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]
        assert operators.differs_by(case, found) <= 1


def test_every_operator_with_an_integer_form_is_tried():
    untried = INTEGER_FORMS - set(CASES) - set(KERNEL_INPUTS)
    assert untried == {"STABLEHLO_COMPOSITE"}  # which has another graph inside


def test_the_page_is_current():
    """That of TFLite Micro where it is installed."""
    micro = importlib.util.find_spec("tflite_micro") is not None
    assert operators.page(micro) == operators.PAGE.read_text(encoding="utf-8")
