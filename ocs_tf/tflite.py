"""Runs `.tflite` files, packed ones included, by whichever TFLite runtime is installed."""

from ocs_tf.runtime.tflite import Interpreter, delegate_path, load_delegate

__all__ = ["Interpreter", "delegate_path", "load_delegate"]
