"""The table of layers is what the registry and the export tests say."""

from __future__ import annotations

import pathlib

import keras

from ocs_tf.graph import composites
from tests.conftest import load_script
from tests.export.test_layers import CASES

ROOT = pathlib.Path(__file__).parents[1]
make_layers = load_script("docs/make_layers.py")


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    assert make_layers.page() == page
    assert make_layers.table() in page


def test_every_registered_layer_has_a_row() -> None:
    rows = {getattr(keras.layers, row.layer) for row in make_layers.supported_layers()}
    assert set(composites.quantizable_classes()) <= rows


def test_every_row_is_exported_in_a_test() -> None:
    assert [row.layer for row in make_layers.supported_layers()] == list(CASES)
