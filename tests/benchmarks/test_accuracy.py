"""The accuracy benchmark in its quick mode: ResNet-20 on 200 pictures."""

import dataclasses
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
import ocs_tf
from benchmarks import accuracy

FIELDS = {
    "network": str,
    "pictures": int,
    "setup": str,
    "weight_bits": (int, type(None)),
    "activation_bits": (int, type(None)),
    "clip": str,
    "expand_ratio": float,
    "top1": float,
    "agreement": float,
    "weight_bytes": int,
    "seconds": float,
}


def run_quick(folder: pathlib.Path) -> accuracy.Results:
    flags.FLAGS(["accuracy"])
    with flagsaver.flagsaver(quick=True, output_dir=str(folder)):
        accuracy.main(["accuracy"])
    return accuracy.Results(folder / "accuracy_quick.json")


@pytest.fixture(scope="module")
def results(zoo, tmp_path_factory):
    return run_quick(tmp_path_factory.mktemp("accuracy"))


@pytest.fixture(scope="module")
def float_case():
    return accuracy.Case("resnet20_cifar10", 200)


def test_float_score_is_the_zoos(zoo, results, float_case):
    entry = zoo.load("resnet20_cifar10", limit=200)
    row = results[float_case]
    assert row.top1 == pytest.approx(entry.score(entry.model))
    assert row.agreement == 100
    assert row.weight_bytes == 4 * entry.model.count_params()


@pytest.mark.parametrize("setup", ["paper", "default"])
def test_eight_bits_lose_nothing(results, float_case, setup):
    for bits in (None, 8):
        row = results[
            dataclasses.replace(float_case, setup=setup, weight_bits=8, activation_bits=bits)
        ]
        assert row.top1 == pytest.approx(results[float_case].top1, abs=1)
        assert row.agreement >= 99


@pytest.mark.parametrize("setup", ["paper", "default"])
def test_weight_bytes(results, float_case, setup):
    def size(bits, ratio):
        case = dataclasses.replace(float_case, setup=setup, weight_bits=bits, expand_ratio=ratio)
        return results[case].weight_bytes

    # Layers of 16, 32 and 64 channels get 1, 1 and 2 copies: 3 to 7 % more.
    for bits in (8, 4):
        assert 1.03 < size(bits, 0.02) / size(bits, 0.0) < 1.07
    assert size(4, 0.0) < 0.55 * size(8, 0.0)
    assert size(8, 0.0) < 0.27 * results[float_case].weight_bytes


def test_rows_of_the_file(results):
    rows = json.loads(results.path.read_text())["rows"]
    assert len(rows) == 1 + 2 * (2 * 2 * 2 + 1)
    for row in rows:
        assert row.keys() == FIELDS.keys()
        assert all(isinstance(row[name], kind) for name, kind in FIELDS.items())
        assert 0 <= row["top1"] <= 100
        assert 0 <= row["agreement"] <= 100


def test_resume_measures_only_what_is_missing(zoo, results, tmp_path, monkeypatch):
    path = tmp_path / "accuracy_quick.json"
    *kept, last = json.loads(results.path.read_text())["rows"]
    path.write_text(json.dumps({"rows": kept}))
    seen = []
    measure = accuracy.Scorer.measure
    monkeypatch.setattr(
        accuracy.Scorer, "measure", lambda self, case: seen.append(case) or measure(self, case)
    )
    again = run_quick(tmp_path)
    assert [dataclasses.asdict(case) for case in seen] == [
        {name: last[name] for name in dataclasses.asdict(seen[0])}
    ]
    assert {row.case: row.top1 for row in again} == {row.case: row.top1 for row in results}
    run_quick(tmp_path)
    assert len(seen) == 1


def test_report_shows_the_scores(results, float_case):
    text = results.path.with_suffix(".md").read_text()
    assert f"Float: top-1 {results[float_case].top1:.2f}" in text
    assert "python -m benchmarks.accuracy --quick" in text
    (line,) = [
        line for line in text.partition("default set-up")[2].splitlines() if line.startswith("| W4")
    ][:1]
    clips = [("none", 0.0), ("none", 0.02), ("mse", 0.0), ("mse", 0.02)]
    cells = [cell.strip(" *") for cell in line.strip("|").split("|")[1:]]
    assert cells == [
        f"{results[accuracy.Case('resnet20_cifar10', 200, 'default', 4, None, *c)].top1:.1f}"
        for c in clips
    ]


def test_standard_error():
    # sqrt(p (1 - p) / n) at p = 1/2, n = 100 is 1/20.
    assert accuracy.Row("any", 100, top1=50.0).standard_error == pytest.approx(5)


def test_best_clip_is_the_best_without_splitting(tmp_path):
    results = accuracy.Results(tmp_path / "rows.json")
    case = accuracy.Case("any", 100, "paper", 4)
    for clip, ratio, top1 in [("none", 0.0, 50), ("mse", 0.0, 60), ("none", 0.02, 70)]:
        given = dataclasses.replace(case, clip=clip, expand_ratio=ratio)
        results.add(accuracy.Row(**dataclasses.asdict(given), top1=top1))
    assert results.best_clip("any", 100, "paper", 4) == "mse"
    assert results.best_clip("any", 100, "paper", 8) is None


@pytest.mark.parametrize("ratio", [0.0, 0.1])
@pytest.mark.parametrize("clip", ["none", "mse"])
def test_lowest_code(clip, ratio):
    """It changes the codes of clipped negative weights, and nothing else."""
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(16, 3)]
    )
    model.set_weights([rng.standard_t(3, size=weight.shape) for weight in model.get_weights()])
    config = ocs_tf.Config.paper(weight_bits=4, weight_clip=clip, expand_ratio=ratio)
    quantized = ocs_tf.convert(model, config)
    before = [np.asarray(layer.codes) for layer in quantized.layers[1:]]
    accuracy.use_lowest_code(quantized, model, ratio)
    for old, layer in zip(before, quantized.layers[1:], strict=True):
        new = np.asarray(layer.codes)
        np.testing.assert_array_equal(np.maximum(new, -7), old)
        assert (new.min() == -8) == (clip == "mse")
