"""The command `ocs_tf`."""

from ocs_tf.cli.command import main

__all__ = ["main"]
