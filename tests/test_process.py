"""What belongs to the whole process is as before, whatever threads and errors do in between."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import random
import sys
import threading
import warnings

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf import process

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


def small() -> keras.Model:
    """Automatic names, and layers that draw seeds when they are made."""
    inputs = keras.Input((4,))
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(4, activation="relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


@contextlib.contextmanager
def closed_stderr():
    """File descriptor 2, closed; checks that it still is in the end."""
    saved = os.dup(2)
    os.close(2)
    try:
        yield
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(2)
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def target() -> tuple[int, int]:
    """The file that file descriptor 2 leads to."""
    found = os.fstat(2)
    return found.st_dev, found.st_ino


def overlapping(context, check) -> None:
    """Two threads within `context`, so that the first to come is the first to go."""
    entered, left = threading.Event(), threading.Event()

    def second() -> None:
        with context():
            entered.set()
            left.wait(10)
            check()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with context():
            done = pool.submit(second)
            entered.wait(10)
        left.set()
        done.result()


class TestThreads:
    @pytest.mark.slow
    def test_exports_are_those_of_one_thread_and_leave_no_trace(self, tmp_path):
        model = ocs_tf.convert(small(), weight_bits=4, representative_dataset=X, verbose=False)

        def export(number: int) -> bytes:
            path = tmp_path / f"{number}.tflite"
            ocs_tf.export_tflite(model, path, target=("int8", "packed")[number % 2])
            return path.read_bytes()

        def state() -> list:
            return [target(), sys.stderr, sys.stdout, logging.root.manager.disable]

        export(99)  # what is imported sets filters of its own
        before = [*state(), list(warnings.filters), random.getstate(), len(os.listdir("/dev/fd"))]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            files = list(pool.map(export, range(16)))
        after = [*state(), list(warnings.filters), random.getstate(), len(os.listdir("/dev/fd"))]
        assert after == before
        assert files == [export(100), export(101)] * 8

    @pytest.mark.slow
    def test_conversions_are_those_of_one_thread(self):
        model = small()

        def convert(_: int) -> keras.Model:
            return ocs_tf.convert(model, weight_bits=3, representative_dataset=X, verbose=False)

        expected = convert(0)
        before = random.getstate()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for got in pool.map(convert, range(8)):
                assert [layer.name for layer in got.layers] == [
                    layer.name for layer in expected.layers
                ]
                for a, b in zip(got.weights, expected.weights, strict=True):
                    if "seed" not in a.path:
                        np.testing.assert_array_equal(a, b)
        assert random.getstate() == before


class TestQuiet:
    def test_what_libraries_say_is_dropped(self, capfd, caplog, recwarn):
        with process.quiet():
            os.write(2, b"chatter of a C++ library\n")
            logging.getLogger("library").warning("chatter")
            warnings.warn("chatter", stacklevel=1)
            keras.src.utils.io_utils.print_msg("chatter")
            print("a word of ours")
        assert capfd.readouterr() == ("a word of ours\n", "")
        assert not caplog.records
        assert not recwarn.list
        logging.getLogger("library").warning("heard")
        assert [record.message for record in caplog.records] == ["heard"]

    def test_lasts_until_the_last_thread_leaves(self, capfd):
        before = (target(), logging.root.manager.disable, list(warnings.filters))

        def check() -> None:
            os.write(2, b"chatter of the second thread\n")
            assert logging.root.manager.disable == logging.WARNING

        overlapping(process.quiet, check)
        assert (target(), logging.root.manager.disable, list(warnings.filters)) == before
        assert capfd.readouterr().err == ""

    def test_ends_with_an_error(self):
        before = (target(), logging.root.manager.disable, list(warnings.filters))
        with pytest.raises(ZeroDivisionError), process.quiet():
            raise ZeroDivisionError
        assert (target(), logging.root.manager.disable, list(warnings.filters)) == before
        assert keras.config.is_interactive_logging_enabled()

    def test_opens_no_file_for_good(self):
        before = len(os.listdir("/dev/fd"))
        for _ in range(3):
            with process.quiet():
                pass
        assert len(os.listdir("/dev/fd")) == before

    def test_leaves_stricter_logging_as_it_is(self):
        logging.disable(logging.CRITICAL)
        try:
            with process.quiet():
                assert logging.root.manager.disable == logging.CRITICAL
            assert logging.root.manager.disable == logging.CRITICAL
        finally:
            logging.disable(logging.NOTSET)

    def test_leaves_keras_logging_off(self):
        keras.config.disable_interactive_logging()
        try:
            with process.quiet():
                pass
            assert not keras.config.is_interactive_logging_enabled()
        finally:
            keras.config.enable_interactive_logging()

    def test_closed_stderr(self, tmp_path):
        with closed_stderr():
            before = len(os.listdir("/dev/fd"))
            with process.quiet():
                os.write(2, b"chatter")
                with open(tmp_path / "file", "wb") as file:  # which must not be where 2 leads
                    os.write(2, b"chatter")
                    file.write(b"content")
            assert len(os.listdir("/dev/fd")) == before
        assert (tmp_path / "file").read_bytes() == b"content"

    @pytest.mark.parametrize("stream", [None, object()])
    def test_stderr_that_cannot_be_flushed(self, monkeypatch, stream):
        monkeypatch.setattr(sys, "stderr", stream)
        with process.quiet():
            os.write(2, b"chatter")
        assert sys.stderr is stream


class TestIgnoredWarnings:
    def test_only_those_that_match(self):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            with process.ignored_warnings("chatter"):
                warnings.warn("chatter of a library", stacklevel=1)
                warnings.warn("a word", stacklevel=1)
            warnings.warn("chatter again", stacklevel=1)
        assert [str(w.message) for w in heard] == ["a word", "chatter again"]

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_another_thread_catches_warnings_meanwhile(self, ours_first):
        """Its `catch_warnings` overlaps with ours, which both come and go in the same order."""
        before = list(warnings.filters)
        ours, theirs = process.ignored_warnings(), warnings.catch_warnings()
        first, second = (ours, theirs) if ours_first else (theirs, ours)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert list(warnings.filters) == before


class TestHeldStderr:
    def break_down(self, error: Exception) -> None:
        with process.held_stderr((ValueError,)):
            os.write(2, b"F0000 why it broke\n")
            raise error

    def test_libraries_are_silent(self, capfd):
        with process.held_stderr((ValueError,)):
            os.write(2, b"I0000 chatter of a C++ library\n")
            print("a word of ours", file=sys.stderr)
        assert capfd.readouterr().err == "a word of ours\n"

    def test_libraries_are_silent_about_mistakes(self, capfd):
        with pytest.raises(ValueError, match="a mistake"):
            self.break_down(ValueError("a mistake"))
        assert capfd.readouterr().err == ""

    def test_libraries_are_heard_when_something_breaks(self, capfd):
        with pytest.raises(ZeroDivisionError):
            self.break_down(ZeroDivisionError())
        assert capfd.readouterr().err == "F0000 why it broke\n"

    def test_lasts_until_the_last_thread_leaves(self, capfd):
        before = (target(), sys.stderr)
        overlapping(lambda: process.held_stderr(()), lambda: os.write(2, b"chatter\n"))
        assert (target(), sys.stderr) == before
        assert capfd.readouterr().err == ""

    def test_closed_stderr(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        monkeypatch.setattr(sys, "__stderr__", None)
        with closed_stderr():
            before = len(os.listdir("/dev/fd"))
            with pytest.raises(ZeroDivisionError):
                self.break_down(ZeroDivisionError())
            assert len(os.listdir("/dev/fd")) == before
