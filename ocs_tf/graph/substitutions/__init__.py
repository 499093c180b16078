"""Layers and models in another form of the same function."""
