"""Small networks of many structures, written for tests of conversion: a function for each.

Weights are random. What a network is for does not matter, only which layers it connects, and how.
"""
