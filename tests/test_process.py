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
import tensorflow as tf

import ocs_tf
from ocs_tf import process
from ocs_tf.compare import compare

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


def draws() -> list[float]:
    """The next random number of every kind."""
    return [
        random.random(),
        float(np.random.random()),
        float(tf.random.uniform(())),
        float(keras.random.uniform(())),
    ]


class TestRestoresState:
    def test_lost_masks_are_not_told_again(self):
        def build() -> None:
            ids = keras.Input((4,), dtype="int32")
            rows = keras.layers.Embedding(5, 2, mask_zero=True)(ids)
            keras.layers.Reshape((2, 4))(rows)

        with pytest.warns(UserWarning, match="was passed an input with a mask"):
            build()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            process.restores_state(build)()

    def test_random_numbers_and_names(self):
        draws()  # Keras' own generator is there from here on

        @process.restores_state
        def use() -> list[float]:
            keras.layers.Identity()
            return draws()

        assert use() == draws()
        keras.utils.set_random_seed(3)
        expected = [keras.layers.Identity().name, *draws()]
        assert expected[0] == "identity"
        keras.utils.set_random_seed(3)
        use()
        assert [keras.layers.Identity().name, *draws()] == ["identity_1", *expected[1:]]

    def test_after_an_error(self):
        @process.restores_state
        def fail() -> None:
            draws()
            keras.utils.set_random_seed(5)
            keras.layers.Identity()
            raise ZeroDivisionError

        keras.utils.set_random_seed(3)
        expected = draws()
        keras.utils.set_random_seed(3)
        with pytest.raises(ZeroDivisionError):
            fail()
        assert draws() == expected
        assert keras.layers.Identity().name == "identity"

    def test_lasts_until_the_last_thread_returns(self):
        before = random.getstate()
        overlapping(process._kept_random, random.random)
        assert random.getstate() == before

    def test_names_within_do_not_depend_on_the_past_and_are_free(self):
        inputs = keras.Input((4,))
        x = keras.layers.Dense(4, name="dense_3")(inputs)
        model = keras.Model(inputs, keras.layers.ReLU(name="re_lu")(x + 1))  # an operation "add"

        @process.restores_state
        def names(_: keras.Model) -> list[str]:
            kinds = (keras.layers.Dense, keras.layers.ReLU, keras.layers.Add)
            made = [keras.layers.Dense(1), *(kind() for kind in kinds[1:]), keras.layers.Identity()]
            return [layer.name for layer in made]

        first = names(model)
        for _ in range(3):
            keras.layers.ReLU()
        assert names(model) == first == ["dense_4", "re_lu_1", "add_1", "identity"]

    @pytest.mark.slow
    def test_public_functions(self, tmp_path):
        model = small()
        quantized = ocs_tf.convert(model, representative_dataset=X, verbose=False)
        plan = ocs_tf.plan(model, representative_dataset=X, verbose=False)
        calls = [
            lambda: ocs_tf.convert(model, representative_dataset=X, verbose=False),
            lambda: ocs_tf.plan(model, representative_dataset=X, verbose=False),
            lambda: ocs_tf.apply(model, plan, representative_dataset=X, verbose=False),
            lambda: ocs_tf.report(quantized),
            lambda: compare(model, quantized, X),
            lambda: ocs_tf.export_tflite(quantized, tmp_path / "a.tflite", target="packed"),
        ]
        keras.utils.set_random_seed(3)
        expected = draws()
        assert keras.layers.Dense(1).name == "dense_2"  # behind the two of the model
        for number, call in enumerate(calls):
            keras.utils.set_random_seed(3)
            call()
            assert draws() == expected
            assert keras.layers.Dense(1).name == f"dense_{number + 3}"

    @pytest.mark.slow
    def test_file_does_not_depend_on_names_given_before(self, tmp_path):
        quantized = ocs_tf.convert(small(), representative_dataset=X, verbose=False)
        files = []
        for number in range(2):
            path = tmp_path / f"{number}.tflite"
            ocs_tf.export_tflite(quantized, path, target="packed")
            files.append(path.read_bytes())
            keras.Model(quantized.inputs, keras.ops.relu(quantized.outputs[0]))
        assert files[0] == files[1]
