"""Export of quantized Keras models to `.tflite` files."""
