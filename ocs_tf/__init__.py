"""Training-free quantization of Keras models by outlier channel splitting."""

from ocs_tf import numerics
from ocs_tf.config import Config, Override
from ocs_tf.convert import apply, convert, plan
from ocs_tf.planning import LayerPlan, Plan

__version__ = "0.1.0"

__all__ = [
    "Config",
    "LayerPlan",
    "Override",
    "Plan",
    "apply",
    "convert",
    "numerics",
    "plan",
]
