"""Tables of docs/results.md: rows that exist, once; what is bold; the text between the markers."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import common, report


@pytest.fixture
def measured(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    rows = [{"network": "a", "bits": 4, "top1": 1.0}, {"network": "a", "bits": 8, "top1": 2.0}]
    (tmp_path / "some.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    report.rows.cache_clear()
    yield rows
    report.rows.cache_clear()


def test_a_row_is_found_by_its_values(measured: list[dict]) -> None:
    assert report.one("some", network="a", bits=8) == measured[1]
    assert report.matching("some", network="b") == []


@pytest.mark.parametrize(("values", "count"), [({"bits": 5}, 0), ({"network": "a"}, 2)])
def test_a_number_must_be_of_one_row(measured: list[dict], values: dict, count: int) -> None:
    with pytest.raises(LookupError, match=f"has {count} rows with"):
        report.one("some", **values)


def test_the_best_is_bold_unless_another_reads_the_same() -> None:
    assert report._best([1.04, 2.0, 1.0], ".1f") == ["1.0", "**2.0**", "1.0"]
    assert report._best([1.04, 1.0], ".1f") == ["1.0", "1.0"]
    assert report._best([1.04, 2.0], ".1f", least=True) == ["**1.0**", "2.0"]


def test_numbers_are_aligned_to_the_right() -> None:
    assert report._table(("a", "b"), [["x", 1]], texts=1) == "| a | b |\n| --- | --: |\n| x | 1 |"


def test_every_table_is_in_a_page() -> None:
    written = report.page() + report.render("headline.md")
    for name, table in report.TABLES.items():
        assert table() in written, name


def test_standard_error_is_that_of_a_share() -> None:
    assert report.standard_error(report.MOBILENET) == f"{100 * (0.792 * 0.208 / 500) ** 0.5:.1f}"


def test_only_what_is_between_the_markers_is_written() -> None:
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    headline = report.render("headline.md").strip()
    expected = f"before\n{report.BEGIN}\n\n{headline}\n\n{report.END}\nafter\n"
    assert report.readme(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", report.BEGIN, report.END + report.BEGIN, 2 * (report.BEGIN + report.END)],
    ids=["none", "one", "order", "twice"],
)
def test_texts_without_the_markers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must hold the lines"):
        report.readme(text)
