"""Post-training quantization of Keras models: outlier channel splitting (OCS), GPTQ-style rounding,
mixed precision, and export to integer TFLite.
"""

from ocs_tf import numerics, tflite
from ocs_tf.config import Config, Override
from ocs_tf.convert import apply, convert, plan
from ocs_tf.export.tflite import ExportResult, export_tflite
from ocs_tf.planning import LayerPlan, Plan
from ocs_tf.report import report

__version__ = "0.1.0"

__all__ = [
    "Config",
    "ExportResult",
    "LayerPlan",
    "Override",
    "Plan",
    "apply",
    "convert",
    "export_tflite",
    "numerics",
    "plan",
    "report",
    "tflite",
]
