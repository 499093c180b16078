"""The arena that TFLite Micro needs for a model: `python micro_arena.py LARGEST < MODEL`.

TFLite Micro crashes in an arena that is too small, and with a damaged file. That is why this is a
process of its own, with a child for each size. It must not import ocs_tf, which imports TensorFlow.
"""

from __future__ import annotations

import os
import sys

ALIGNMENT = 16


def main(content: bytes, largest: int) -> int:
    """The fewest bytes in which the model opens, a multiple of `ALIGNMENT`.

    Arguments:
        content: of the `.tflite` file.
        largest: an arena that is surely enough for a model that TFLite Micro has the operators of.

    Raises:
        RuntimeError: TFLite Micro refuses the model; it writes the reason on stderr.
    """
    _open(content, largest)
    too_small, enough = 0, -(-largest // ALIGNMENT)
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if _opens(content, middle * ALIGNMENT):
            enough = middle
        else:
            too_small = middle
    return enough * ALIGNMENT


def _opens(content: bytes, size: int) -> bool:
    """Whether the model opens in an arena of `size` bytes, in a child that may crash."""
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _open(content, size)
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _open(content: bytes, size: int) -> None:
    from tflite_micro import runtime

    runtime.Interpreter.from_bytes(content, arena_size=size)


if __name__ == "__main__":
    import resource  # which Windows does not have, nor TFLite Micro

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are expected
    print(main(sys.stdin.buffer.read(), int(sys.argv[1])))
