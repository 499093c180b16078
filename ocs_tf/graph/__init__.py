"""Keras graphs: read, analysed, rebuilt."""
