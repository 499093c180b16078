"""The native library of the packed format: its C++ sources (`cc/`), and how Python finds it."""

from ocs_tf.runtime.library import LIBRARY_VERSION, NativeLibraryError, library_path

__all__ = ["LIBRARY_VERSION", "NativeLibraryError", "library_path"]
