"""The accuracy benchmark in its quick mode, on a small network that is called ResNet-20."""

import dataclasses
import json
import pathlib
import sys
import types

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import accuracy
from tests.benchmarks.small import Entry

FIELDS = {
    "network": str,
    "pictures": int,
    "setup": str,
    "weight_bits": (int, type(None)),
    "activation_bits": (int, type(None)),
    "clip": str,
    "expand_ratio": float,
    "rounding": str,
    "bias_correction": bool,
    "top1": float,
    "agreement": float,
    "weight_bytes": int,
    "seconds": float,
}


# Copies for r = 0.02 are one of 16 channels, one of 32, and two of 64, as in ResNet-20.
CHANNELS = (16, 16, 32, 32, 64)


@pytest.fixture(scope="module", autouse=True)
def _small():
    entry = Entry(CHANNELS, pictures=200, drawn=400)
    with pytest.MonkeyPatch.context() as patch:
        small = types.SimpleNamespace(load=lambda name, limit: entry)
        patch.setattr(accuracy.common, "load_zoo", lambda folder: small)
        yield


@pytest.fixture(scope="module")
def results(_small, tmp_path_factory):
    return accuracy.benchmark(tmp_path_factory.mktemp("accuracy"), quick=True)


@pytest.fixture(scope="module")
def float_case():
    return accuracy.Case("resnet20_cifar10", 200)


def test_float_score_is_the_zoos(zoo, float_case):
    scorer = accuracy.Scorer(zoo, float_case.network, 200)
    entry, row = scorer.entry, scorer.measure(float_case)
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

    # Of 16, 32 and 64 channels, 1, 1 and 2 are copied: 3 to 7 % more.
    for bits in (8, 4):
        assert 1.03 < size(bits, 0.02) / size(bits, 0.0) < 1.07
    assert size(4, 0.0) < 0.55 * size(8, 0.0)
    assert size(8, 0.0) < 0.27 * results[float_case].weight_bytes


def test_rows_of_the_file(results):
    rows = json.loads(results.path.read_text())["rows"]
    assert len(rows) == 1 + 2 * (2 * 2 * 2 + 1) + len(accuracy.ROUNDINGS)
    for row in rows:
        assert row.keys() == FIELDS.keys()
        assert all(isinstance(row[name], kind) for name, kind in FIELDS.items())
        assert 0 <= row["top1"] <= 100
        assert 0 <= row["agreement"] <= 100


def test_what_is_chosen_on_data_helps(results):
    nearest, *_, both = accuracy.on_data("resnet20_cifar10", 200)[-8:-4]  # 4 bits
    assert (nearest.weight_bits, both.bias_correction) == (4, True)
    assert results[both].agreement > results[nearest].agreement
    text = results.path.with_suffix(".md").read_text()
    cells = [
        f"{results[case].top1:.1f} ({results[case].agreement:.1f})" for case in (nearest, both)
    ]
    assert all(cell in text for cell in cells)


def test_resume_measures_only_what_is_missing(results, tmp_path, monkeypatch):
    path = tmp_path / "accuracy_quick.json"
    *kept, last = json.loads(results.path.read_text())["rows"]
    path.write_text(json.dumps({"rows": kept}))
    seen = []
    measure = accuracy.Scorer.measure
    monkeypatch.setattr(
        accuracy.Scorer, "measure", lambda self, case: seen.append(case) or measure(self, case)
    )
    again = accuracy.benchmark(tmp_path, quick=True)
    assert [dataclasses.asdict(case) for case in seen] == [
        {name: last[name] for name in dataclasses.asdict(seen[0])}
    ]
    assert {row.case: row.top1 for row in again} == {row.case: row.top1 for row in results}
    accuracy.benchmark(tmp_path, quick=True)
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


def test_important_rows_come_first(tmp_path):
    """The rows that are compared, then 8, 5 and 4 bits without and with r = 0.02."""
    results = accuracy.Results(tmp_path / "rows.json")
    order = [
        case
        for _, _, cases in accuracy.stages(["resnet20_cifar10"], ["paper"], results)
        for case in cases
    ]
    references = [
        reference.case
        for reference in accuracy.REFERENCES
        if reference.case.network == "resnet20_cifar10"
    ]
    assert order[0] == accuracy.Case("resnet20_cifar10", 5000)
    assert order[1:8] == references
    first = order[8:32]
    assert {case.weight_bits for case in first} == {8, 5, 4}
    assert {case.expand_ratio for case in first} == {0.0, 0.02}
    # 5 bit widths, 4 clip methods, 4 ratios; the compared rows are among them.
    assert len(set(order)) == 1 + 5 * 4 * 4


def test_limit_cuts_the_pictures(tmp_path):
    results = accuracy.Results(tmp_path / "rows.json")
    stages = accuracy.stages(list(accuracy.PICTURES), ["paper"], results, limit=100)
    assert {case.pictures for _, _, cases in stages for case in cases} == {100}
