"""Keras finds quantized layers in saved models once it and `ocs_tf` are imported, in any order."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_layers() -> None:
    """Import `ocs_tf.layers`: now, if Keras is imported already, or as soon as it is."""
    if "keras" in sys.modules:
        importlib.import_module("ocs_tf.layers")
    else:
        sys.meta_path.insert(0, _AfterKeras())


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Finds Keras as it would be found anyway, and imports the layers behind it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                importlib.import_module("ocs_tf.layers")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
