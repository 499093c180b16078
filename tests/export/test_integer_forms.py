"""Operators in forms that int8 files have: the same numbers, the same tensors, sorted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import integer_forms
from ocs_tf.export.integer_forms import in_integer_forms, known_to_quantizer, restore
from ocs_tf.numerics import ActivationGrid
from ocs_tf.runtime import runner
from tests.runtime.model_builder import ModelBuilder

BUILTIN = schema.BuiltinOperator
X = np.array([-2, 3], np.float32)
FINE, COARSE = ActivationGrid(8, 0.25, 0), ActivationGrid(8, 0.5, 3)
ONE, OTHER = "tensor1", "tensor2"  # what the two operators make


def two(first: int, second: int, options: tuple[Any, Any] = (None, None)) -> Any:
    """`second(first(x))` of two numbers."""
    builder = ModelBuilder()
    x, y, z = (builder.tensor((2,)) for _ in range(3))
    builder.operator(first, [x], [y], options[0])
    builder.operator(second, [y], [z], options[1])
    return fb.read(builder.build([x], [z]))


def names(model: Any) -> list[str]:
    return [fb.op_name(model, op) for _, op in fb.operators(model)]


def computed(model: Any) -> list[float]:
    interpreter = runner.opened(fb.write(model))
    runner.run(interpreter, [X])
    return runner.outputs(interpreter)[0].tolist()


def negated_square() -> Any:
    return two(BUILTIN.SQUARE, BUILTIN.NEG, (schema.SquareOptionsT(), schema.NegOptionsT()))


def test_products_compute_the_same() -> None:
    model = negated_square()
    assert computed(model) == [-4, -9]
    grids, ranges = in_integer_forms(model, {}, {}, ())
    assert (grids, ranges) == ({}, {})
    assert names(model) == ["MUL", "MUL"]
    assert computed(model) == [-4, -9]


def test_what_stays_in_float_stays_as_it_is() -> None:
    model = negated_square()
    in_integer_forms(model, {}, {}, {1})
    assert names(model) == ["MUL", "NEG"]


def kept() -> Any:
    """A ReLU, and a RESHAPE, whose output has the grid of its input in TFLite."""
    options = schema.ReshapeOptionsT()
    options.newShape = [2]
    return two(BUILTIN.RELU, BUILTIN.RESHAPE, (None, options))


@pytest.mark.parametrize("measured", [False, True], ids=["given", "measured"])
def test_another_grid_is_rounded_to(measured: bool) -> None:
    """Behind all other operators, whose indices stay; `restore` sorts them."""
    model = kept()
    given = {ONE: FINE, OTHER: COARSE}
    ranges = {ONE: (0.0, 8.0)} if measured else {}
    grids, _ = in_integer_forms(model, {OTHER: COARSE} if measured else given, ranges, ())
    assert names(model) == ["RELU", "RESHAPE", "QUANTIZE"]
    graph = model.subgraphs[0]
    reshape, rounds = graph.operators[1:]
    assert list(reshape.outputs) == list(rounds.inputs)
    assert fb.name(graph.tensors[rounds.outputs[0]]) == OTHER
    assert grids[OTHER] == COARSE
    assert list(graph.outputs) == list(rounds.outputs)


def test_the_same_grid_needs_no_operator() -> None:
    model = kept()
    assert in_integer_forms(model, {ONE: FINE, OTHER: FINE}, {}, ())[0] == {ONE: FINE, OTHER: FINE}
    assert names(model) == ["RELU", "RESHAPE"]


def test_inputs_of_a_maximum_are_rounded_to_the_grid_of_its_output() -> None:
    builder = ModelBuilder()
    x, y, z = (builder.tensor((2,)) for _ in range(3))
    builder.operator(BUILTIN.RELU, [x], [y])
    builder.operator(BUILTIN.MAXIMUM, [y, x], [z], schema.MaximumMinimumOptionsT())
    model = fb.read(builder.build([x], [z]))
    grids, _ = in_integer_forms(model, {ONE: FINE, OTHER: COARSE}, {}, ())
    assert names(model).count("QUANTIZE") == 1
    graph = model.subgraphs[0]
    rounds = graph.operators[-1]
    assert fb.name(graph.tensors[rounds.inputs[0]]) == ONE
    assert rounds.outputs[0] in graph.operators[1].inputs
    assert grids[fb.name(graph.tensors[rounds.outputs[0]])] == COARSE


def test_stand_ins_are_taken_back() -> None:
    """What ai-edge-quantizer does not know goes by another name while it works."""
    model = two(BUILTIN.ELU, BUILTIN.RELU)
    shown = known_to_quantizer(model)
    lacks = integer_forms._lacks("ELU")
    assert (names(shown)[0] != "ELU") == lacks
    assert names(model) == ["ELU", "RELU"]
    written = fb.read(fb.write(shown))
    written.subgraphs[0].operators.reverse()
    restore(written, model)
    assert names(written) == ["ELU", "RELU"]


def test_who_needs_other_forms() -> None:
    model = negated_square()
    assert integer_forms.needs_us(model, [0])
    plain = two(BUILTIN.TANH, BUILTIN.LOGISTIC)
    assert not integer_forms.needs_us(plain, [0, 1])


def test_grids_that_are_fixed() -> None:
    """Those that ai-edge-quantizer does not give itself."""
    model = two(BUILTIN.LOG_SOFTMAX, BUILTIN.TANH, (schema.LogSoftmaxOptionsT(), None))
    fixed = integer_forms.fixed_grids(model)
    assert fixed == ({ONE: (16 / 256, 127)} if integer_forms._lacks("LOG_SOFTMAX") else {})
