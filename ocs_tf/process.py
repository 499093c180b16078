"""What belongs to the whole process: stderr, logging, warnings.

Each is changed here only, so that threads do not undo each other's changes: the first thread makes
a change, the last one undoes it, whatever fails.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, cast

_STDERR = 2
_lock = threading.RLock()  # of the list of warnings


class Shared:
    """A context that threads share: the first to enter opens it, the last to leave closes it."""

    def __init__(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self._context = context
        self._lock = threading.RLock()
        self._users = 0
        self._open = contextlib.ExitStack()
        self._value: Any = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Any]:
        with self._lock:
            if not self._users:
                self._value = self._open.enter_context(self._context())
            self._users += 1
        try:
            yield self._value
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._value = None
                    self._open.close()


# ai-edge-quantizer puts functions of its own in the place of others while it works, so that threads
# must take turns.
one_quantizer = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what converters and runtimes print and log; errors are exceptions.

    What other threads write to file descriptor 2 meanwhile is lost, as are their log records below
    the level of errors, and their warnings.
    """
    with _silent_stderr(), _less_logging(), ignored_warnings(), _keras_off_stdout():
        yield


@contextlib.contextmanager
def ignored_warnings(pattern: str = "") -> Iterator[None]:
    """Ignore warnings whose text starts with the regular expression `pattern`."""
    # `warnings.catch_warnings` puts back the list that it found, and with it what another thread
    # has put there since.
    entry = ("ignore", re.compile(pattern, re.I) if pattern else None, Warning, None, 0)
    with _lock:
        found = _warning_filters()
        found.insert(0, entry)
    try:
        yield
    finally:
        with _lock:
            now = _warning_filters()
            for filters in [found] if now is found else [found, now]:
                with contextlib.suppress(ValueError):
                    filters.remove(entry)


def _warning_filters() -> list[Any]:
    return cast("list[Any]", warnings.filters)


@contextlib.contextmanager
def _keras_off_stdout() -> Iterator[None]:
    """Let Keras log what it would print, in this thread."""
    import keras

    prints = keras.config.is_interactive_logging_enabled()
    keras.config.disable_interactive_logging()
    try:
        yield
    finally:
        if prints:
            keras.config.enable_interactive_logging()


@contextlib.contextmanager
def _stderr_to(handle: int) -> Iterator[None]:
    """Let file descriptor 2, where C++ libraries write past `sys.stderr`, lead where `handle` does.

    It may be closed, and is so again in the end. It is open within: else the next file to be opened
    would get its number, and with it what the libraries write.
    """
    _flush(sys.stderr)
    saved = _duplicate(_STDERR)
    try:
        os.dup2(handle, _STDERR)
        yield
    finally:
        if saved is None:
            os.close(_STDERR)
        else:
            os.dup2(saved, _STDERR)
            os.close(saved)


@contextlib.contextmanager
def _to_null() -> Iterator[None]:
    null = _not_stderr(os.open(os.devnull, os.O_WRONLY))
    try:
        with _stderr_to(null):
            yield
    finally:
        os.close(null)


_silent_stderr = Shared(_to_null)


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


_less_logging = Shared(_errors_only)


@contextlib.contextmanager
def _tracing_unsaid() -> Iterator[None]:
    def is_other(record: logging.LogRecord) -> bool:
        return "triggered tf.function retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


# Keras makes a function of each call of a grouped convolution; TensorFlow warns of the fifth.
no_tracing_warnings = Shared(_tracing_unsaid)


@contextlib.contextmanager
def held_stderr(mistakes: tuple[type[BaseException], ...]) -> Iterator[None]:
    """Keep what C++ libraries write to file descriptor 2 from the user, unless there is a bug.

    Python's `sys.stderr` still writes to where it did.

    Arguments:
        mistakes: exceptions that are no bugs. With any other one, all that was kept is shown.
    """
    with _held() as show:
        try:
            yield
        except mistakes:
            raise
        except BaseException:
            show()
            raise


@contextlib.contextmanager
def _to_log() -> Iterator[Callable[[], None]]:
    """Yields what shows the log."""
    with contextlib.ExitStack() as stack:
        with tempfile.TemporaryFile() as file:
            log = _not_stderr(os.dup(file.fileno()))
        stack.callback(os.close, log)
        terminal = _duplicate(_STDERR)
        stream: Any = None
        if terminal is not None:
            stream = stack.enter_context(os.fdopen(terminal, "w", buffering=1))

        def show() -> None:
            size = os.lseek(log, 0, os.SEEK_END)
            os.lseek(log, 0, os.SEEK_SET)
            text = os.read(log, size).decode(errors="replace")
            if stream is not None:
                stream.write(text)

        stack.enter_context(_stderr_to(log))
        if stream is not None and sys.stderr is sys.__stderr__:
            stack.enter_context(contextlib.redirect_stderr(stream))
        yield show


_held = Shared(_to_log)


def open_stderr() -> None:
    """Let file descriptor 2 lead to nowhere if it is closed: else the next file would get it."""
    try:
        os.fstat(_STDERR)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != _STDERR:
            os.dup2(null, _STDERR)
            os.close(null)


def _duplicate(handle: int) -> int | None:
    """Another file descriptor for the same file; `None` if it is closed."""
    try:
        return os.dup(handle)
    except OSError:
        return None


def _not_stderr(handle: int) -> int:
    """The same file under another number than 2, which it gets where stderr is closed."""
    if handle != _STDERR:
        return handle
    try:
        return os.dup(handle)
    finally:
        os.close(handle)


def _flush(stream: Any) -> None:
    # It may be None or closed, or any object with `write`.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.flush()
