"""Starts the `ocs_tf` command.

It stands outside the package because importing the package imports TensorFlow, which logs to file
descriptor 2 meanwhile, whatever it is told. That is kept from the user unless the import fails.
"""

from __future__ import annotations

import os
import sys
import tempfile

_STDERR = 2


def main() -> int:
    """Run the command with the process's arguments, and return its exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _open_stderr()
    with tempfile.TemporaryFile() as log:
        terminal = os.dup(_STDERR)
        os.dup2(log.fileno(), _STDERR)
        try:
            from ocs_tf import cli
        except BaseException:
            log.seek(0)
            os.write(terminal, log.read())
            raise
        finally:
            os.dup2(terminal, _STDERR)
            os.close(terminal)
    return cli.main()


def _open_stderr() -> None:
    """Let file descriptor 2 lead to nowhere if it is closed: else the next file would get it."""
    try:
        os.fstat(_STDERR)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != _STDERR:
            os.dup2(null, _STDERR)
            os.close(null)


if __name__ == "__main__":
    sys.exit(main())
