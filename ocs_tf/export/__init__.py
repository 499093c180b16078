"""From quantized Keras models to files that other runtimes load."""
