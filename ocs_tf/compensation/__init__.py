"""Codes and biases, chosen on calibration data or from batch-norm statistics."""
