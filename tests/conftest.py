"""What all tests share: quiet TensorFlow, fixed seeds, tiers, and data outside the checkout."""

from __future__ import annotations

import gc
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import settings

# The same examples in every run, so that a change fails for what it changes. New ones:
# pytest --hypothesis-profile=default. No deadline: a busy machine takes longer.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]

# Modules and folders whose tests `make check` leaves out, as it does tests that read the zoo or the
# reference vectors, and those that are marked where they stand. The longest first: a worker of
# pytest-xdist takes a module at a time, in this order, so that none is left alone with a long one.
SLOW = (
    *("test_zoo", "export/test_exporter", "test_applications", "runtime/test_native"),
    *("test_convert", "export/test_layers", "export/test_packed", "test_random_graphs"),
    *("planning/test_equalization", "export/test_tflite_int4", "graph/test_rewrite"),
    *("test_extremes", "graph/test_scaling"),
    *("compensation/test_calibrated", "graph/substitutions/test_inlining", "export"),
    *("planning/test_mixed_precision", "benchmarks", "cli/test_command", "graph/test_composites"),
    *("layers/test_checks", "graph/substitutions/test_constants", "test_notebook"),
    *("graph/analysis/test_activation_sites", "floor", "test_readme", "cli/test_demo"),
    *("graph/test_cloning", "numerics/test_joint_search", "runtime/test_compatibility"),
    *("graph/analysis/test_concatenations", "keras2", "test_load", "test_packaging"),
)


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """`make check` need not even read them."""
    quick = config.option.markexpr == "not slow"
    return True if quick and _place(collection_path) < len(SLOW) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reads = {"zoo", "golden"}.intersection(getattr(item, "fixturenames", ()))
        if reads or _place(item.path) < len(SLOW):
            item.add_marker("slow")
    items.sort(key=lambda item: _place(item.path))


def _place(path: pathlib.Path) -> int:
    """Where `SLOW` has a module of tests, or its folder; behind all if nowhere."""
    module = path.as_posix().rpartition("/tests/")[2].removesuffix(".py") + "/"
    return next((i for i, name in enumerate(SLOW) if module.startswith(f"{name}/")), len(SLOW))


def pytest_collection_finish() -> None:
    gc.freeze()  # what TensorFlow and all tests are made of need not be gone through again


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take a second or more: tests that make some are marked."""

    def refuse(*arguments: object) -> None:
        pytest.fail("a test that exports needs @pytest.mark.slow")

    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(tf.lite.TFLiteConverter, "from_keras_model", refuse)


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    """Every test starts from the same seeds and the same automatic layer names."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def randomize() -> Callable[[keras.Model], keras.Model]:
    """A function that gives a model weights as training might leave them, biases included."""

    def fill(model: keras.Model, seed: int = 0) -> keras.Model:
        rng = np.random.default_rng(seed)
        for weight in model.weights:
            if not np.issubdtype(np.dtype(weight.dtype), np.floating):
                continue
            if weight.name in ("moving_variance", "gamma"):
                weight.assign(rng.uniform(0.5, 2.0, weight.shape))
            else:
                fan_in = max(1, int(np.prod(weight.shape[:-1])))
                weight.assign(rng.normal(0, fan_in**-0.5, weight.shape))
        return model

    return fill


@pytest.fixture(scope="session")
def zoo() -> ModuleType:
    """The loader of real networks and data; skips where they are not at hand."""
    return _load(_outside("OCS_TF_ZOO", "zoo") / "zoo.py")


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of reference vectors; skips where it is not at hand."""
    return _outside("OCS_TF_GOLDEN", "golden")


def load_script(path: str) -> Any:
    """A script of the checkout as a module, by its path in it."""
    return _load(CHECKOUT / path)


def _load(path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _outside(variable: str, name: str) -> pathlib.Path:
    folder = pathlib.Path(os.environ.get(variable, CHECKOUT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"needs the folder {name!r}: set {variable} (now {folder}, which is absent)")
    return folder
