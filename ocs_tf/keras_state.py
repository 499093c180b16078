"""Random numbers, Keras' automatic names and recurrent states: as they were after a call."""

from __future__ import annotations

import collections
import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import keras
import numpy as np
from numpy.typing import NDArray

from ocs_tf.keras_internals import (
    is_variable,
    layers_within,
    operations_of,
    set_thread_state,
    thread_state,
)
from ocs_tf.process import Shared, ignored_warnings

_COUNTERS = "object_name_uids"
_SEED_GENERATOR = "global_seed_generator"
# What Keras keeps for each thread, by its own names.
_KERAS_STATE = (_COUNTERS, _SEED_GENERATOR, "global_random_seed")

P = ParamSpec("P")
T = TypeVar("T")

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
    layers = [layer for layer in layers_within(model) if getattr(layer, "stateful", False)]
    variables = keras.tree.flatten([getattr(layer, "states", None) for layer in layers])
    held = [(v, np.array(v)) for v in variables if is_variable(v)]
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


_kept_random = Shared(_random_states)


@contextlib.contextmanager
def _kept_keras(models: Iterable[keras.Model]) -> Iterator[None]:
    before = {name: thread_state(name) for name in _KERAS_STATE}
    generator = before[_SEED_GENERATOR]
    seed = np.array(generator.state) if generator else None
    set_thread_state(_COUNTERS, _counters(models))
    try:
        yield
    finally:
        for name, value in before.items():
            set_thread_state(name, value)
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
    for layer in layers_within(model):
        yield layer.name
        for operation in operations_of(layer):
            yield operation.name
