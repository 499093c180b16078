"""Calibration inputs of a model that nobody has data for."""
