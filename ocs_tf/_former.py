"""Modules of earlier versions: `from ocs_tf.compare import compare` still works, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

_NEW = {"compare": "_compare", "convert": "_convert", "report": "_report"}


def keep_former_modules() -> None:
    """Let imports find them; as attributes of `ocs_tf`, these names are functions."""
    for old, new in _NEW.items():
        sys.modules[f"ocs_tf.{old}"] = _Former(f"ocs_tf.{old}", f"ocs_tf.{new}")


class _Former(ModuleType):
    def __init__(self, name: str, new: str) -> None:
        super().__init__(name)
        self._new = new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(self._new), name)
        warnings.warn(
            f"the module {self.__name__} is going away; import {name} from ocs_tf.",
            DeprecationWarning,
            stacklevel=2,
        )
        return value
