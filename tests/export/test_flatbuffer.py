"""Questions to small files, and changes of them, by what the schema says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from ocs_tf.export import flatbuffer as fb
from ocs_tf.runtime import runner
from tests.runtime.model_builder import ModelBuilder

BUILTIN = schema.BuiltinOperator
ONES = np.ones(2, np.float32)


def chain(order: tuple[int, ...] = (0, 1, 2)) -> Any:
    """`((x + 1) + x) * (x + 1)` of two numbers, its operators in some order."""
    builder = ModelBuilder()
    x, one = builder.tensor((2,)), builder.constant(ONES)
    a, b, c = (builder.tensor((2,)) for _ in range(3))
    builder.operator(BUILTIN.ADD, [x, one], [a], schema.AddOptionsT())
    builder.operator(BUILTIN.ADD, [a, x], [b], schema.AddOptionsT(), version=2)
    builder.operator(BUILTIN.MUL, [b, a], [c], schema.MulOptionsT())
    model = fb.read(builder.build([x], [c]))
    operators = model.subgraphs[0].operators
    model.subgraphs[0].operators = [operators[index] for index in order]
    return model


def computed(model: Any, *arrays: np.ndarray) -> list[list[float]]:
    interpreter = runner.opened(fb.write(model))
    runner.run(interpreter, arrays)
    return [array.tolist() for array in runner.outputs(interpreter)]


X = np.array([2, 3], np.float32)
EXPECTED = [[((2 + 1) + 2) * (2 + 1), ((3 + 1) + 3) * (3 + 1)]]


def test_what_is_read_is_what_is_written() -> None:
    assert computed(chain(), X) == EXPECTED
    assert computed(fb.read(fb.write(chain())), X) == EXPECTED


def test_names_of_operators() -> None:
    model = chain()
    found = [(place, fb.op_name(model, op)) for place, op in fb.operators(model)]
    assert found == [((0, 0), "ADD"), ((0, 1), "ADD"), ((0, 2), "MUL")]
    assert fb.operator(model, (0, 2)) is model.subgraphs[0].operators[2]
    assert [fb.op_version(model, op) for _, op in fb.operators(model)] == [1, 2, 1]
    assert {fb.custom_name(model, op) for _, op in fb.operators(model)} == {None}
    assert {fb.fused_activation(op) for _, op in fb.operators(model)} == {"NONE"}


def test_codes_of_old_files() -> None:
    """Before schema 3a, codes were in a field of their own, of one byte."""
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode = 0, BUILTIN.MUL
    assert fb.code_name(code) == "MUL"
    code.builtinCode, code.deprecatedBuiltinCode = BUILTIN.GELU, 127
    assert fb.code_name(code) == "GELU"


def test_codes_are_added_once() -> None:
    model = chain()
    before = len(model.operatorCodes)
    assert fb.operator_code(model, BUILTIN.MUL) == 2
    added = fb.operator_code(model, BUILTIN.SUB)
    assert added == fb.operator_code(model, BUILTIN.SUB) == before
    custom = fb.operator_code(model, BUILTIN.CUSTOM, "Own")
    assert custom == fb.operator_code(model, BUILTIN.CUSTOM, "Own") == before + 1
    assert fb.operator_code(model, BUILTIN.CUSTOM, "Other") == before + 2


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_sorted_operators_read_what_is_made(order: tuple[int, ...]) -> None:
    model = chain(order)
    fb.sort(model.subgraphs[0])
    assert computed(model, X) == EXPECTED


def test_sorting_keeps_an_order_that_works() -> None:
    model = chain()
    before = list(model.subgraphs[0].operators)
    fb.sort(model.subgraphs[0])
    assert all(a is b for a, b in zip(before, model.subgraphs[0].operators, strict=True))


def test_another_output() -> None:
    model = chain()
    graph = model.subgraphs[0]
    fb.replace_output(model, graph.outputs[0], graph.operators[1].outputs[0])
    assert computed(model, X) == [[2 + 1 + 2, 3 + 1 + 3]]


def test_a_part_alone() -> None:
    """It has its constants, and leaves the whole as it was."""
    model = chain()
    graph = model.subgraphs[0]
    (x,), first, second = graph.inputs, graph.operators[0], graph.operators[1]
    part = fb.extracted(model, [first, second], [x], [*second.outputs, *first.outputs])
    assert computed(part, X) == [[5, 7], [3, 4]]
    assert len(part.subgraphs[0].tensors) == 4
    assert computed(model, X) == EXPECTED


def test_one_graph_only() -> None:
    model = chain()
    assert len(fb.read_straight(fb.write(model)).subgraphs) == 1
    model.subgraphs.append(model.subgraphs[0])
    with pytest.raises(ValueError, match="the model has 2 subgraphs"):
        fb.read_straight(fb.write(model))


def test_tensors() -> None:
    model = chain()
    given, one = model.subgraphs[0].tensors[:2]
    assert (fb.name(given), fb.shape(given), fb.type_name(given)) == ("tensor0", (2,), "float32")
    assert not fb.is_constant(model, given)
    np.testing.assert_array_equal(fb.constant(model, one), ONES)
    with pytest.raises(ValueError, match="tensor 'tensor0' is no constant"):
        fb.constant(model, given)
    assert fb.float_activations(model) == {f"tensor{i}": i for i in (0, 2, 3, 4)}


def test_grids() -> None:
    tensor = schema.TensorT()
    assert fb.grid(tensor) is None
    tensor.quantization = schema.QuantizationParametersT()
    assert fb.grid(tensor) is None
    tensor.quantization.scale = [0.5, 0.25]
    scale, zero_point = fb.grid(tensor) or (None, None)
    assert (list(scale), list(zero_point)) == ([0.5, 0.25], [0, 0])
    tensor.quantization.zeroPoint = [3, -4]
    _, zero_point = fb.grid(tensor) or (None, None)
    assert list(zero_point) == [3, -4]


@pytest.mark.parametrize(
    ("name", "layer", "affinity"),
    [
        ("model/dense_1/MatMul", "dense", 2),
        ("model/dense/MatMul", "dense", 1),
        ("model/dense_2/MatMul", "dense", 0),
        ("model/relu_1/Relu;model/dense_1/MatMul", "relu", 2 * 2),
        ("model/relu_1/Relu;model/dense_1/MatMul", "dense", 2 * 2 - 1),
        ("model/a_b_1/MatMul", "a/b", 2),
    ],
)
def test_how_clearly_a_name_says_which_layer(name: str, layer: str, affinity: int) -> None:
    assert fb.name_affinity(name, layer) == affinity
