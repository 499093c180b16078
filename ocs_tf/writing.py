"""Atomic file writes: on any failure the old file stays and nothing else is left."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator

from ocs_tf.paths import checked_path, exists, writable_file

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_NEW_FILE = 0o666  # less the umask, which the system takes off
_PRIVATE = 0o600


def write(path: str | os.PathLike[str], content: bytes | str, *, overwrite: bool = True) -> None:
    """Write `content`, text in UTF-8, to `path` as `replacing` does.

    A device or a pipe is written to as it is.

    Raises:
        ValueError: `path` is none.
        FileExistsError: `path` exists and `overwrite` is False.
        IsADirectoryError: `path` is a folder.
        OSError: the disk is full, or the folder is missing or cannot be written to.
    """
    encoded = content.encode() if isinstance(content, str) else content
    path = checked_path(path)
    if _is_stream(path):
        path.write_bytes(encoded)
        return
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(encoded)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[pathlib.Path]:
    """An empty file in the folder of `path`, with its ending, to be written within the context.

    It takes the place of `path` once its content is on the disk. It keeps the permissions of an
    existing file. A symbolic link stays, and the file that it points to is replaced.

    Raises:
        ValueError: `path` is none.
        FileExistsError: `path` exists and `overwrite` is False.
        IsADirectoryError: `path` is a folder.
        OSError: the disk is full, or the folder is missing or cannot be written to.
    """
    path = writable_file(path, overwrite=overwrite)
    target = pathlib.Path(os.path.realpath(path))
    # Nobody can know the name before, and put a link there.
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    try:
        mode = _create(temporary, target)
        yield temporary
        _flush(temporary)
        os.chmod(temporary, mode)
        if overwrite:
            os.replace(temporary, target)
        else:
            try:
                _publish_new(temporary, target)
            except FileExistsError:
                raise exists(path) from None
        _flush_folder(target.parent)
    except OSError as error:
        if error.errno and error.filename in (None, os.fspath(temporary)):
            error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_stream(path: pathlib.Path) -> bool:
    """Whether `path` is there, but neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _create(temporary: pathlib.Path, target: pathlib.Path) -> int:
    """Make `temporary`, which only this user can read for now; the permissions it is to have."""
    handle = os.open(temporary, _CREATE, _NEW_FILE)
    try:
        # What the umask leaves: to ask for the umask itself is to change it, in all threads.
        mode = os.fstat(handle).st_mode
    finally:
        os.close(handle)
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(target).st_mode
    os.chmod(temporary, _PRIVATE)
    return stat.S_IMODE(mode) & 0o777


def _flush(path: pathlib.Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: pathlib.Path) -> None:
    """Bring the new name to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _publish_new(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Give `temporary` the name `target`, unless there is such a file by now."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: an empty file holds the name
        os.close(os.open(target, _CREATE, _PRIVATE))
        try:
            os.replace(temporary, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
