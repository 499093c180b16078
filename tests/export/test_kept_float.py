"""Operators that stay in float, and what is noted of them."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.kept_float import KeptFloat
from ocs_tf.numerics import ActivationGrid
from tests.runtime.model_builder import ModelBuilder

BUILTIN = schema.BuiltinOperator
GRID = ActivationGrid(8, 0.25, 0)


def row(*kinds: str) -> Any:
    """One operator after the other, of one input and one output each: tensors 0, 1, 2, ..."""
    builder = ModelBuilder()
    tensors = [builder.tensor((2,)) for _ in range(len(kinds) + 1)]
    for kind, given, made in zip(kinds, tensors, tensors[1:], strict=False):
        builder.operator(getattr(BUILTIN, kind), [given], [made])
    return fb.read(builder.build(tensors[:1], tensors[-1:]))


def kept(model: Any, rounded: str = "", outputs: Any = ()) -> KeptFloat:
    """`rounded`: digits of the tensors that have a grid; tensor N is made by layer N."""
    grids = {f"tensor{digit}": GRID for digit in rounded}
    layers = [f"layer{n}" for n in range(9)]
    matches = {f"tensor{n}": name for n, name in enumerate(layers)}
    return KeptFloat(model, grids, set(), set(outputs), layers, matches)


def test_nothing_is_kept_where_all_have_integer_forms() -> None:
    found = kept(row("RELU", "TANH"), "012")
    assert found.operators() == set()
    assert found.inside() == set()
    assert found.notes == []


def test_what_has_none_is_noted() -> None:
    found = kept(row("RELU", "FLOOR", "RELU"), "0123")
    assert found.operators() == {1}
    assert found.notes == ["1 layer is computed in float, since FLOOR has no int8 form: layer2."]


def test_up_to_the_tensors_that_are_rounded() -> None:
    """Between operators in float there is nothing to round."""
    found = kept(row("RELU", "EXP", "FLOOR", "RELU"), "014")
    assert found.operators() == {1, 2, 3}
    assert found.inside() == {"tensor2", "tensor3"}


def test_others_are_added_with_a_reason() -> None:
    found = kept(row("RELU", "EXP", "RELU"), "0123")
    found.add({1})
    found.note(found.layers_of({1}), "of a test")
    assert found.operators() == {1}
    assert found.notes == ["1 layer is computed in float, since of a test: layer2."]


def test_outputs_that_are_not_rounded() -> None:
    found = kept(row("RELU", "EXP"), "01", outputs={"tensor2"})
    assert found.operators() == {1}
    assert found.unrounded == {"tensor2"}
    assert found.notes == []  # it has an integer form: the caller knows why
