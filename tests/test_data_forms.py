"""What of an element each input of a model takes. `test_data` has all forms, read to their end."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from ocs_tf import data_forms
from ocs_tf.data_forms import Spec, parts_of, whole

A, B = np.zeros((7, 3)), np.ones((7, 2, 1))
LABELS = np.arange(7)


def specs(*shapes: tuple[int | None, ...]) -> list[Spec]:
    return [Spec(keras.KerasTensor((None, *s)), n) for s, n in zip(shapes, "ab", strict=False)]


ONE, TWO = specs((3,)), specs((3,), (2, 1))


@pytest.mark.parametrize(
    ("shape", "given", "wanted"),
    [
        ((3,), (3,), ("sample", (1, 3))),
        ((3,), (7, 3), ("batch", (7, 3))),
        ((3,), (7, 3, 1), ("batch", (7, 3))),  # an axis too many
        ((2, 1), (2,), ("sample", (1, 2, 1))),  # an axis too few
        ((2, 1), (7, 2), ("batch", (7, 2, 1))),
        ((None, 2), (5, 2), ("sample", (1, 5, 2))),
        ((), (), ("sample", (1,))),
        ((), (7,), ("batch", (7,))),
        ((3,), (4,), None),
        ((3,), (7, 4), None),
        ((3,), None, None),
    ],
)
def test_layouts(shape: Any, given: Any, wanted: Any) -> None:
    (spec,) = specs(shape)
    assert spec.layout(given) == wanted


@pytest.mark.parametrize(
    ("element", "names"),
    [
        ([A, B], "AB"),
        ((A, B), "AB"),
        ({"b": B, "a": A}, "AB"),
        ({"b": B, "a": A, "label": LABELS}, "AB"),
        (({"a": A, "b": B}, LABELS), "AB"),
        (([A, B], LABELS, LABELS), "AB"),
        (((A, B), LABELS), "AB"),
        ([B, A], None),
        ([A], None),
        ({"a": A}, None),
        (A, None),
    ],
)
def test_parts_of_two_inputs(element: Any, names: str | None) -> None:
    found = parts_of(element, TWO)
    if names is None:
        assert found is None
    else:
        assert found is not None
        assert [part is wanted for part, wanted in zip(found, (A, B), strict=True)] == [True] * 2


@pytest.mark.parametrize("element", [A, [A], (A, LABELS), [A, LABELS], {"a": A}, A[0]])
def test_parts_of_one_input(element: Any) -> None:
    (part,) = parts_of(element, ONE) or [None]
    assert part is not None
    assert np.shape(part)[-1] == 3


def test_whole_data_are_told_from_lists_of_samples() -> None:
    assert whole(A, ONE, "data") == [A]
    assert whole([A[0], A[1]], ONE, "data") is None
    assert whole((A, LABELS), ONE, "data") == [A]
    assert whole([A, B], TWO, "data") == [A, B]
    with pytest.raises(ValueError, match=r"^data has inputs of different lengths: \[3, 7\]"):
        whole([A[:3], B], TWO, "data")


def test_slices_are_views_of_a_few_samples() -> None:
    first, second, third = data_forms.slices([A, B], 3)
    assert [len(x) for x in (*first, *second, *third)] == [3, 3, 3, 3, 1, 1]
    assert first[0].base is A
