"""The custom operators' names, and the version of their format; docs/packed.md describes them."""

FORMAT_VERSION = 1

DEQUANTIZE = "OcsDequantize"
FULLY_CONNECTED = "OcsFullyConnected"
QUANTIZE = "OcsQuantize"
FAKE_QUANTIZE = "OcsFakeQuantize"
CUSTOM_OPERATORS = (DEQUANTIZE, FULLY_CONNECTED, QUANTIZE, FAKE_QUANTIZE)
