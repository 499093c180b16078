"""What goes wrong with a file that was written."""

from __future__ import annotations


class VerificationError(RuntimeError):
    """The written file is not what was asked for; no file is returned."""
