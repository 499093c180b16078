"""Running `.tflite` files, and the native library that packed ones need (C++ sources in `cc/`)."""

from ocs_tf.runtime.library import LIBRARY_VERSION, NativeLibraryError, library_path

__all__ = ["LIBRARY_VERSION", "NativeLibraryError", "library_path"]
