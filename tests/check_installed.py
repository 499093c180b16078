"""Whether an installed `ocs_tf` works: what its wheel brings, and the command, in one minute.

Run by a Python that has nothing but the package and its dependencies, from any folder:
`make floor` and `make wheel-check` do. It needs neither pytest nor a compiler.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

import ocs_tf
from ocs_tf import *  # noqa: F403

SHAPE = (6, 6, 3)


def main() -> None:
    check_files()
    check_command()
    check_packed_file()
    print(f"ocs_tf {ocs_tf.__version__} works, as installed in {sys.prefix}.")


def check_files() -> None:
    """The package is the installed one, of a wheel for every Linux that LiteRT's is for."""
    folder = pathlib.Path(ocs_tf.__file__).parent
    assert folder.parent == pathlib.Path(sysconfig.get_path("purelib")), folder
    assert set(ocs_tf.__all__) <= set(globals())
    assert pathlib.Path(ocs_tf.tflite.delegate_path()).parent == folder / "runtime"
    assert glibc("ocs_tf") <= glibc("ai-edge-litert"), glibc("ocs_tf")
    assert not any(".cc" in str(file) for file in importlib.metadata.files("ocs_tf") or ())


def glibc(package: str) -> tuple[int, int]:
    """The oldest glibc that an installed wheel is for, by its tags."""
    text = importlib.metadata.distribution(package).read_text("WHEEL") or ""
    found = re.findall(r"^Tag: .*-manylinux_(\d+)_(\d+)_\w+$", text, re.MULTILINE)
    assert found, f"{package} is not installed from a manylinux wheel: {text}"
    return min((int(major), int(minor)) for major, minor in found)


def check_command() -> None:
    assert run("--version").split() == ["ocs_tf", importlib.metadata.version("ocs_tf")]
    found = dict(re.split(r"  +", line, maxsplit=1) for line in run("doctor").splitlines())
    assert found["delegate in ai-edge-litert"] == "works", found
    assert "not installed" not in found["scipy"], found


def run(*arguments: str) -> str:
    command = pathlib.Path(sysconfig.get_path("scripts"), "ocs_tf")
    done = subprocess.run([command, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def check_packed_file() -> None:
    """LiteRT, with the delegate loaded as other programs do, computes what Keras does."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    x = keras.layers.Dense(4, activation="softmax")(keras.layers.Flatten()(x))
    images = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    quantized = ocs_tf.convert(
        keras.Model(inputs, x), weight_bits=3, representative_dataset=images, verbose=False
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "packed.tflite")
        print(ocs_tf.export_tflite(quantized, path, target="packed"))
        got = [run_file(path, image[None]) for image in images]
    want = quantized.predict(images, verbose=0)
    np.testing.assert_allclose(np.concatenate(got), want, atol=1.001 / 256)  # a step of softmax


def run_file(path: str, image: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(path, experimental_delegates=[ocs_tf.tflite.load_delegate()])
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


if __name__ == "__main__":
    main()
