"""The table of layers is what the registry and the export tests say."""

from __future__ import annotations

import pathlib

from ocs_tf import support
from ocs_tf.graph import adapters, composites
from tests.export.test_layers import CASES

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "layers.md"


def test_docs_hold_the_table() -> None:
    assert support.table() in DOCS.read_text(encoding="utf-8")


def test_every_registered_layer_has_a_row() -> None:
    named = {row.layer for row in support.supported_layers()}
    registered = {adapter.layer_class.__name__ for adapter in adapters.ADAPTERS}
    assert registered | {cls.__name__ for cls in composites.COMPOSITES} <= named


def test_every_row_is_exported_in_a_test() -> None:
    classes = {cls.__name__: cls for cls in composites.COMPOSITES}
    tested = {type(make()).__name__ for make, _ in CASES.values()}
    assert {row.layer for row in support.supported_layers()} == tested
    assert classes.keys() <= tested
