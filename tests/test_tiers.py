"""What `make check` leaves out, and that nothing of it is left in."""

from __future__ import annotations

import pathlib

import pytest
import tensorflow as tf

from tests.conftest import SLOW

TESTS = pathlib.Path(__file__).parent


def test_a_test_that_is_not_marked_cannot_export() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"needs @pytest\.mark\.slow"):
        tf.lite.TFLiteConverter.from_keras_model(None)


@pytest.mark.parametrize("name", SLOW)
def test_what_is_slow_is_there(name: str) -> None:
    """Under another name, it would be among what is quick."""
    assert (TESTS / name).is_dir() or (TESTS / f"{name}.py").is_file()
