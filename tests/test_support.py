"""The table of layers is what the registry and the export tests say."""

from __future__ import annotations

import pathlib

import keras

from ocs_tf import support
from ocs_tf.graph import composites
from tests.export.test_layers import CASES

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "layers.md"


def test_docs_hold_the_table() -> None:
    assert support.table() in DOCS.read_text(encoding="utf-8")


def test_every_registered_layer_has_a_row() -> None:
    rows = {getattr(keras.layers, row.layer) for row in support.supported_layers()}
    assert set(composites.quantizable_classes()) <= rows


def test_every_row_is_exported_in_a_test() -> None:
    assert [row.layer for row in support.supported_layers()] == list(CASES)
