"""Post-training quantization of Keras models: outlier channel splitting (OCS), GPTQ-style rounding,
mixed precision, and export to integer TFLite.

Names are loaded when they are asked for: `import ocs_tf` imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ocs_tf._former import keep_former_modules
from ocs_tf._registration import register_layers

if TYPE_CHECKING:
    from ocs_tf import layers, numerics, tflite
    from ocs_tf._check import AcceleratorReport, CompiledOperator, CompilerError, check
    from ocs_tf._compare import Closeness, compare
    from ocs_tf._convert import apply, convert, plan
    from ocs_tf._load import load_model
    from ocs_tf._plan import LayerPlan, Plan
    from ocs_tf._report import LayerReport, Report, report
    from ocs_tf._synthesize import SyntheticData, synthesize
    from ocs_tf.config import Config, Override
    from ocs_tf.export.errors import VerificationError
    from ocs_tf.export.exporter import ExportResult, export_tflite
    from ocs_tf.runtime import NativeLibraryError
    from ocs_tf.runtime.model import TFLiteModel

__version__ = "0.1.0"

__all__ = [
    "AcceleratorReport",
    "Closeness",
    "CompiledOperator",
    "CompilerError",
    "Config",
    "ExportResult",
    "LayerPlan",
    "LayerReport",
    "NativeLibraryError",
    "Override",
    "Plan",
    "Report",
    "SyntheticData",
    "TFLiteModel",
    "VerificationError",
    "apply",
    "check",
    "compare",
    "convert",
    "export_tflite",
    "layers",
    "load_model",
    "numerics",
    "plan",
    "report",
    "synthesize",
    "tflite",
]

_MODULES = ("layers", "numerics", "tflite")
_HOMES = {
    "_check": ("AcceleratorReport", "CompiledOperator", "CompilerError", "check"),
    "_compare": ("Closeness", "compare"),
    "_convert": ("apply", "convert", "plan"),
    "_load": ("load_model",),
    "_plan": ("LayerPlan", "Plan"),
    "_report": ("LayerReport", "Report", "report"),
    "_synthesize": ("SyntheticData", "synthesize"),
    "config": ("Config", "Override"),
    "export.errors": ("VerificationError",),
    "export.exporter": ("ExportResult", "export_tflite"),
    "runtime": ("NativeLibraryError",),
    "runtime.model": ("TFLiteModel",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ocs_tf.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"ocs_tf.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ocs_tf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


keep_former_modules()
register_layers()
