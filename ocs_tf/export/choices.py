"""What a file can be: the choices of `export_tflite`."""

from __future__ import annotations

from typing import Literal, get_args

Target = Literal["int8", "int4", "packed", "float", "auto", "smallest"]
Activations = Literal["auto", "int8", "float", "dynamic"]
IODtype = Literal["int8", "uint8", "float32"]

TARGETS = get_args(Target)
ACTIVATIONS = get_args(Activations)
IO_DTYPES = get_args(IODtype)

ARRAY_SUFFIXES = (".cc", ".cpp", ".cxx")
