"""The demo, in a quick form: few epochs, one number of bits."""

from __future__ import annotations

import dataclasses
import re
import sys

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf.cli import demo
from ocs_tf.runtime.model import TFLiteModel


@pytest.fixture(scope="module")
def images() -> demo.Images:
    return demo.load("digits")


def test_digits_are_split_once_and_in_range(images):
    (x, y), (test_x, test_y) = images.train, images.test
    assert len(x) + len(test_x) == 1797
    assert x.shape[1:] == test_x.shape[1:] == (8, 8, 1)
    assert (x.min(), x.max(), x.dtype) == (0, 1, np.float32)
    assert set(y) == set(test_y) == set(range(10))


def test_no_image_is_in_both_parts(images):
    seen = {image.tobytes() for image in images.train[0]}
    assert not seen & {image.tobytes() for image in images.test[0]}


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_other_datasets(name, monkeypatch):
    shape = (5, 28, 28) if name == "mnist" else (5, 32, 32, 3)
    part = (np.full(shape, 255, np.uint8), np.zeros((5, 1), np.uint8))
    monkeypatch.setattr(getattr(keras.datasets, name), "load_data", lambda: (part, part))
    x, y = demo.load(name).test
    assert x.shape == ((5, 28, 28, 1) if name == "mnist" else shape)
    assert (x.max(), y.shape) == (1, (5,))


def test_unknown_dataset():
    with pytest.raises(ValueError, match=r"`dataset` \(='svhn'\) must be one of digits"):
        demo.load("svhn")


def test_a_file_where_the_folder_is_to_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"--output .*file is a file; name a folder"):
        demo.run(tmp_path / "file")


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r'scikit-learn, which is not .*"ocs_tf\[demo\]"$'):
        demo.load("digits")


def test_evaluate_counts_right_answers(images):
    class Always3:
        def predict_on_batch(self, x):
            return np.eye(10)[np.full(len(x), 3)]

    assert demo.evaluate(Always3(), images) == pytest.approx(100 * (images.test[1] == 3).mean())


def test_run_prints_tables_and_leaves_files(tmp_path, images, capsys):
    folder = tmp_path / "files"
    demo.run(folder, epochs=2, bits=(4,))
    out = capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {"float.keras", "quantized.keras", "int8.tflite", "report.txt"}

    accuracies, ratios = (
        dict(zip(re.split(r"\s{2,}", head), row.split(), strict=False))
        for head, row in re.findall(r"^(bits .*)\n(.*)$", out, re.MULTILINE)
    )
    assert list(accuracies) == ["bits", *demo._WAYS, "bytes", "with OCS", "added"]
    assert all(0 <= float(accuracies[way]) <= 100 for way in demo._WAYS)
    # Splitting leaves smaller weights behind, so that steps are finer.
    assert float(ratios["OCS"]) > float(ratios["round only"])

    quantized = keras.models.load_model(folder / "quantized.keras")
    assert (folder / "report.txt").read_text("utf-8") == f"{ocs_tf.report(quantized)}\n"
    right, right_tflite = re.search(r"([\d.]+) % right in Keras, ([\d.]+) %", out).groups()
    assert float(right) == pytest.approx(demo.evaluate(quantized, images), abs=0.01)
    runtime = TFLiteModel(folder / "int8.tflite")
    assert float(right_tflite) == pytest.approx(demo.evaluate(runtime, images), abs=0.01)


def test_same_results_twice(images):
    few = dataclasses.replace(images, train=tuple(part[:128] for part in images.train))
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(demo.SEED)
        models.append(demo.train(few, "digits", epochs=1))
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
