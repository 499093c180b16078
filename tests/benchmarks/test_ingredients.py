"""The benchmark of ingredients on a tiny network."""

import dataclasses
import pathlib
import sys
import types

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import ingredients
from benchmarks.ingredients import AS_LARGE, BLIND, MIXED, PAPER, UNIFORM, WITHOUT, Case, Row
from tests.benchmarks.small import Entry

NETWORK = "resnet20_cifar10"  # its name only


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two widths of three methods, measured."""
    path = tmp_path_factory.mktemp("ingredients")
    patch = pytest.MonkeyPatch()
    chosen = [(UNIFORM, 4), (UNIFORM, 8), (AS_LARGE, 4), (MIXED, 4), (BLIND, 8), (PAPER, 4)]
    chosen += [("without splitting", 4)]
    patch.setattr(
        ingredients,
        "cases",
        lambda network, pictures: [Case(network, pictures, m, float(b)) for m, b in chosen],
    )
    zoo = types.SimpleNamespace(load=lambda name, limit: Entry())
    patch.setattr(ingredients.common, "load_zoo", lambda folder: zoo)
    ingredients.benchmark(path, [NETWORK], limit=40)
    yield path
    patch.undo()


@pytest.fixture(scope="module")
def results(folder):
    return ingredients.Results(folder / "ingredients.json", Case, Row)


def test_rows_are_what_convert_makes(results):
    case = Case(NETWORK, 40, UNIFORM, 8.0)
    row = results[case]
    assert row.effective_bits == 8
    assert row.code_bytes == 3 * 3 * (3 * 8 + 8 * 16 + 16 * 16) + 16 * 4
    assert row.drop == pytest.approx(100 - row.top1)  # the labels are the float network's
    assert row.agreement == row.top1
    assert row.sqnr_db > 25


def test_mixed_widths_keep_their_size(results):
    default = results[Case(NETWORK, 40, UNIFORM, 4.0)]
    # 8 bits first and last, 4 between, and a copy in each of those two.
    inner = 3 * 3 * ((8 + 1) * 16 + (16 + 1) * 16)
    assert default.code_bytes <= 3 * 3 * 3 * 8 + 16 * 4 + inner // 2
    assert results[Case(NETWORK, 40, AS_LARGE, 4.0)].code_bytes <= default.code_bytes
    assert results[Case(NETWORK, 40, MIXED, 4.0)].effective_bits <= 4


def test_what_is_measured_is_not_measured_again(folder, results, monkeypatch):
    monkeypatch.setattr(ingredients, "Scorer", None)  # would fail if it were called
    again = ingredients.benchmark(folder, [NETWORK], limit=40)
    assert list(again) == list(results)


def test_the_report_has_every_row(folder, results):
    text = (folder / "ingredients.md").read_text()
    assert f"## {NETWORK}, 40 pictures, float 100.0" in text
    for row in results:
        assert row.method in text
    assert "| aim | 0.1 | 0.1 | 0.2 | 0.3 | 1.2 |" in text
    assert (folder / f"ingredients_{NETWORK}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("method", sorted({c.method for c in ingredients.cases(NETWORK, 9)}))
def test_each_method_is_a_configuration_of_its_own(method):
    found = ingredients.config(method, 4.0, 1000)
    default = ingredients.config(UNIFORM, 4.0)
    assert (found == default) == (method in (UNIFORM, BLIND))
    if method in WITHOUT:
        changed = {
            field.name
            for field in dataclasses.fields(found)
            if getattr(found, field.name) != getattr(default, field.name)
        }
        assert changed == set(WITHOUT[method])
