"""What all tests share: quiet TensorFlow, fixed seeds, and the way to data outside the checkout."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import Callable
from types import ModuleType

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import numpy as np
import pytest
from hypothesis import settings

# The same examples in every run, so that a change fails for what it changes. New ones:
# pytest --hypothesis-profile=default.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


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
    folder = _outside("OCS_TF_ZOO", "zoo")
    spec = importlib.util.spec_from_file_location("zoo", folder / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of reference vectors; skips where it is not at hand."""
    return _outside("OCS_TF_GOLDEN", "golden")


def _outside(variable: str, name: str) -> pathlib.Path:
    folder = pathlib.Path(os.environ.get(variable, CHECKOUT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"needs the folder {name!r}: set {variable} (now {folder}, which is absent)")
    return folder
