"""Models of Keras 2 (tf_keras) as models of Keras 3: translated and compared."""

from ocs_tf.keras2.files import load_keras2
from ocs_tf.keras2.model import is_keras2, keras3_model, takes_keras2

__all__ = ["is_keras2", "keras3_model", "load_keras2", "takes_keras2"]
