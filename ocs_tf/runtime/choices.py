"""The runtimes that run `.tflite` files, by the names of their packages."""

MICRO = "tflite_micro"
RUNTIMES = ("ai_edge_litert", "tensorflow", MICRO)
