"""Starts the `ocs_tf` command.

It stands outside the package because importing the package imports TensorFlow, which logs to file
descriptor 2 meanwhile, whatever it is told. That is kept from the user unless the import fails.
"""

from __future__ import annotations

import os
import sys
import tempfile


def main() -> int:
    """Run the command with the process's arguments, and return its exit code."""
    with tempfile.TemporaryFile() as log:
        terminal = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            from ocs_tf import cli
        except BaseException:
            log.seek(0)
            os.write(terminal, log.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
