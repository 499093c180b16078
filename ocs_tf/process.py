"""State of the whole process: stderr, logging, warnings, random numbers, Keras' names.

Each is changed here only, so that threads do not undo each other's changes: the first thread makes
a change, the last one undoes it, whatever fails.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import random
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar, cast

import keras
import numpy as np
from keras.src.backend.common import global_state
from numpy.typing import NDArray

_STDERR = 2
_COUNTERS = "object_name_uids"
_SEED_GENERATOR = "global_seed_generator"
# What Keras keeps for each thread, by its own names.
_KERAS_STATE = (_COUNTERS, _SEED_GENERATOR, "global_random_seed")

_lock = threading.RLock()  # of the list of warnings

P = ParamSpec("P")
T = TypeVar("T")


class _Shared:
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


# stderr, logging and warnings --------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the chatter of converters and runtimes from the user; errors travel as exceptions.

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


_silent_stderr = _Shared(_to_null)


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


_less_logging = _Shared(_errors_only)


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
no_tracing_warnings = _Shared(_tracing_unsaid)


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


_held = _Shared(_to_log)


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


# Random numbers and names ------------------------------------------------------------------------


# Keras said so when the model was built, and would again of each copy.
_LOST_MASK = r"Layer '.*' \(of type .*\) was passed an input with a mask"


def restores_state(function: Callable[P, T]) -> Callable[P, T]:
    """Leave random numbers and Keras' automatic names as if `function` had not been called.

    These are the states of Python's `random`, of NumPy, TensorFlow and Keras, and Keras' counters
    of names; and the states of stateful recurrent layers, which start from zero within.
    Within, automatic names depend on the models among the arguments, and on nothing that
    was before; they differ from all names in these models.

    The states of Keras belong to a thread. The others belong to the process: while calls overlap,
    the last one to return restores what was before the first.
    """

    @functools.wraps(function)
    def restoring(*args: P.args, **kwargs: P.kwargs) -> T:
        models = [a for a in (*args, *kwargs.values()) if isinstance(a, keras.Model)]
        with (
            _kept_random(),
            _kept_keras(models),
            _kept_recurrent(models),
            ignored_warnings(_LOST_MASK),
        ):
            result = function(*args, **kwargs)
            if isinstance(result, keras.Model):
                reset_recurrent(result)
            return result

    return restoring


def reset_recurrent(model: keras.Model) -> list[tuple[Any, NDArray[Any]]]:
    """Set what stateful recurrent layers keep between calls to zero.

    Returns:
        The variables, and what they held.
    """
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "stateful", False)]
    variables = keras.tree.flatten([getattr(layer, "states", None) for layer in layers])
    held = [(v, np.array(v)) for v in variables if isinstance(v, keras.Variable)]
    for variable, values in held:
        variable.assign(np.zeros_like(values))
    return held


@contextlib.contextmanager
def _kept_recurrent(models: Sequence[keras.Model]) -> Iterator[None]:
    """Run recurrent layers from zero, and leave their states as they were."""
    held = [pair for model in models for pair in reset_recurrent(model)]
    try:
        yield
    finally:
        for variable, values in held:
            variable.assign(values)


@contextlib.contextmanager
def _random_states() -> Iterator[None]:
    from tensorflow.python.eager import context

    python, arrays = random.getstate(), np.random.get_state(legacy=False)
    eager = context.context()  # no public name leads to its seed
    seeds = {name: vars(eager)[name] for name in ("_seed", "_rng") if name in vars(eager)}
    generator: random.Random | None = seeds.get("_rng")
    sequence = generator.getstate() if generator else None
    try:
        yield
    finally:
        random.setstate(python)
        with contextlib.suppress(TypeError):  # NumPy's may be another one than it can restore
            np.random.set_state(arrays)
        vars(eager).update(seeds)
        if generator and sequence and sequence != generator.getstate():
            generator.setstate(sequence)
            eager.clear_kernel_cache()  # each operation drawn meanwhile has a state of its own


_kept_random = _Shared(_random_states)


@contextlib.contextmanager
def _kept_keras(models: Iterable[keras.Model]) -> Iterator[None]:
    before = {name: global_state.get_global_attribute(name) for name in _KERAS_STATE}
    generator = before[_SEED_GENERATOR]
    seed = np.array(generator.state) if generator else None
    global_state.set_global_attribute(_COUNTERS, _counters(models))
    try:
        yield
    finally:
        for name, value in before.items():
            global_state.set_global_attribute(name, value)
        if seed is not None and not np.array_equal(seed, np.asarray(generator.state)):
            generator.state.assign(seed)


def _counters(models: Iterable[keras.Model]) -> dict[str, int]:
    """Counters by which Keras gives no name that a layer or operation of `models` has."""
    counters: dict[str, int] = collections.defaultdict(int)
    for name in {name for model in models for name in _names(model)}:
        prefix, _, number = name.rpartition("_")
        counters[name] = max(counters[name], 1)
        if prefix and number.isdecimal():
            counters[prefix] = max(counters[prefix], int(number) + 1)
    return counters


def _names(model: keras.Model) -> Iterator[str]:
    for layer in model._flatten_layers():
        yield layer.name
        for operation in getattr(layer, "operations", ()):
            yield operation.name
