"""The benchmark of the defaults in its quick mode, on a small network."""

from __future__ import annotations

import pathlib
import sys
import types

import keras
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import common, defaults
from benchmarks.defaults import Case, Results, Row
from tests.synthesis.test_input_moments import convolutional, pictures, trained


@pytest.fixture(scope="module")
def entry() -> types.SimpleNamespace:
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    x = pictures(rng, 0, 255)
    model = trained(convolutional(), "norm", x)
    outputs = model.predict_on_batch(x).reshape(len(x), -1)
    return types.SimpleNamespace(
        model=model,
        calibration=x[:20],
        inputs=x[20:],
        targets=outputs[20:].argmax(1),
        predict=lambda m: m.predict_on_batch(x[20:]),
    )


@pytest.fixture(scope="module")
def measured(entry: types.SimpleNamespace, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("defaults")
    patch = pytest.MonkeyPatch()
    zoo = types.SimpleNamespace(load=lambda network, limit: entry)
    patch.setattr(common, "load_zoo", lambda folder: zoo)
    yield defaults.benchmark(folder, quick=True), folder
    patch.undo()


def test_every_quick_case_is_measured(measured) -> None:
    results, folder = measured
    want = {Case("resnet20_cifar10", 200, setting) for setting in defaults.QUICK}
    assert {results.case_of(row) for row in results} == want
    for row in results:
        assert row.top1 + row.drop == pytest.approx(100)
        assert row.sqnr_db > 10
        assert (row.synthesis_seconds > 0) == ("no data" in row.setting)
    page = (folder / "defaults_quick.md").read_text()
    assert all(f"| {setting} |" in page for setting in defaults.QUICK)


def test_nothing_is_measured_twice(measured, monkeypatch: pytest.MonkeyPatch) -> None:
    results, folder = measured
    monkeypatch.setattr(defaults, "Scorer", None)
    assert list(defaults.benchmark(folder, quick=True)) == list(results)


def test_drops_and_their_errors() -> None:
    """Ten pictures: the float network has 8, the other 7; they differ at three."""
    targets = np.zeros(10, int)
    was, now = np.eye(2)[[0] * 8 + [1] * 2], np.eye(2)[[1, 1] + [0] * 7 + [1]]
    row = defaults.score(Case("resnet20_cifar10", 10, "W8A8"), was, now, targets)
    assert (row.top1, row.drop, row.agreement) == (70, 10, 70)
    lost = np.array([1, 1] + [0] * 6 + [-1, 0])
    assert row.drop_error == pytest.approx(100 * lost.std() / np.sqrt(10), abs=0.01)


def test_settings_are_options_of_convert() -> None:
    import ocs_tf

    for options, _ in defaults.SETTINGS.values():
        ocs_tf.Config(**options)


def test_the_page_has_a_row_for_each(tmp_path: pathlib.Path) -> None:
    results: Results = common.Results(tmp_path / "rows.json", Case, Row)
    results.add(Row("resnet20_cifar10", 100, "W4A4", 90.0, 1.0, 0.5, 97.0, 20.04, 7.6))
    page = defaults.markdown(results)
    assert "Float: 91.00." in page
    assert "| W4A4 | 90.00 | 1.00 ± 0.50 | 97.00 | 20.0 | 8 |  |" in page
