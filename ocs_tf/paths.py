"""Paths that users give: checked before work, by errors that name the argument."""

from __future__ import annotations

import os
import pathlib
import stat
from typing import Any

_LONGEST = 80  # characters of a value in a message


def checked_path(path: Any, name: str = "path") -> pathlib.Path:
    """`path` as a `pathlib.Path`; nothing needs to be there.

    Arguments:
        name: of the argument, for messages.

    Raises:
        ValueError: it is no string or path object, empty, or holds a NUL.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(
            f"`{name}` (={_cut(repr(path))}) must be the path of a file: a string or a"
            " pathlib.Path."
        )
    return pathlib.Path(text)


def existing_file(path: Any, name: str = "path") -> pathlib.Path:
    """`path` as a `pathlib.Path`, if it is there and no folder.

    Raises:
        ValueError: as `checked_path`.
        FileNotFoundError: nothing is there.
        IsADirectoryError: it is a folder.
        OSError: it cannot be looked at: its name is too long, or a folder on the way is closed.
    """
    found = checked_path(path, name)
    mode = _mode(found, name)
    if mode is None:
        raise FileNotFoundError(f"`{name}` {found} does not exist.")
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"`{name}` {found} is a folder; name a file in it.")
    return found


def writable_file(path: Any, name: str = "path", *, overwrite: bool = True) -> pathlib.Path:
    """`path` as a `pathlib.Path`, if a file can be written there, as far as can be seen.

    Raises:
        ValueError: as `checked_path`.
        IsADirectoryError: it is a folder.
        FileExistsError: it exists and `overwrite` is False.
        FileNotFoundError: its folder does not exist.
        PermissionError: its folder cannot be written to.
        OSError: its name is too long, or a folder on the way is closed or a file.
    """
    found = checked_path(path, name)
    mode = _mode(found, name)
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(f"`{name}` {found} is a folder; name a file in it.")
    if mode is not None and not overwrite:
        raise exists(found, name)
    # A symbolic link stays, and what it points to is written.
    folder = pathlib.Path(os.path.realpath(found)).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of `{name}` {found} does not exist.")
    if (mode is None or stat.S_ISREG(mode)) and not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder of `{name}` {found} cannot be written to.")
    return found


def exists(path: pathlib.Path, name: str = "path") -> FileExistsError:
    """The error that `path` exists and is not to be replaced."""
    return FileExistsError(f"`{name}` {path} exists; pass overwrite=True to replace it.")


def _mode(path: pathlib.Path, name: str) -> int | None:
    """What is at `path`, as `stat` tells it; `None` if there is nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"`{name}` cannot be used: {error.strerror}"
        raise OSError(error.errno, reason, os.fspath(path)) from error


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
