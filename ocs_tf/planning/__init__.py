"""Decisions of a conversion, made before anything changes: bits, thresholds, copies, grids."""
