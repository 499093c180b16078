"""README.md and docs/: code runs as printed, commands and files exist, numbers are measured."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
from typing import Any

import keras
import numpy as np
import pytest

from ocs_tf import cli
from ocs_tf.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
PEERS = RESULTS.with_name("peers.json")
INGREDIENTS = RESULTS.with_name("ingredients.json")
LANGUAGE_MODELS = RESULTS.with_name("language_model.json")
BESIDE = "### Beside other quantizers"
EQUAL = "### At equal size"
LANGUAGE = "### Language models"
COLUMNS = re.compile(r"`(none|mse|aciq|kl|optimal|percentile)(?: r=([\d.]+))?`")
ON_DATA = {
    "nearest": ("nearest", False),
    "bias corrected": ("nearest", True),
    "error-compensated": ("error_compensated", False),
    "both": ("error_compensated", True),
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The code blocks of a page in this language, without a list's indentation."""
    pattern = r"^( *)```(\w*)\n(.*?)^\1```$"
    found = re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [
        re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        for indent, tag, code in found
        if tag == language
    ]


@pages
def test_python_blocks_run_one_after_the_other(
    page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for i, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page.name}, block {i + 1}", "exec"), names)
    if page == README:
        assert names["accuracy"] > 0.9
        made = {"digits.tflite", "quantized.keras", "quantized.tflite", "plan.json", "report.html"}
        assert {path.name for path in tmp_path.iterdir()} == made


def test_the_first_example_is_short() -> None:
    lines = blocks(README, "python")[0].splitlines()
    assert len(list(filter(None, lines))) <= 12


def test_commands_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for block in blocks(README, "") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("ocs_tf ")]
    assert {shlex.split(command)[1] for command in commands} == set(cli.COMMANDS)
    monkeypatch.chdir(tmp_path)
    inputs = keras.Input((6, 6, 2))
    keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs)).save("model.keras")
    np.save("images.npy", np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype("float32"))
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments == ["demo"]:
            arguments.append("--help")  # it takes a minute, and has a test of its own
        assert cli.main(arguments) == 0, command


@pages
def test_make_targets_exist(page: pathlib.Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    code = re.findall(r"```.*?```|`[^`]*`", page.read_text(encoding="utf-8"), re.DOTALL)
    for text in code:
        for words in re.findall(r"^`*make ((?:\w+=\S+ )*)([\w-]+)", text, re.MULTILINE):
            assert words[1] in targets, f"make {words[1]}"


@pages
def test_links_resolve(page: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        name, _, section = link.partition("#")
        if not link.startswith("https://"):
            target = page.parent / name if name else page
            assert target.exists(), link
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8") if section else "", re.M)
            assert not section or section in {t.lower().replace(" ", "-") for t in titles}, link


@pages
def test_named_files_exist(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:ocs_tf|tests|benchmarks|docs|notebooks)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"python -m ([\w.]+)", text):
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").exists(), name


def test_the_options_table_is_complete() -> None:
    text = README.read_text(encoding="utf-8")
    table = text[text.index("| option |") : text.index("`ocs_tf.Config.paper")]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| `")]
    named = {name: row[1].strip() for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    fields = Config.__dataclass_fields__
    assert set(named) == set(fields)
    for name, default in named.items():
        if default.startswith("`"):
            value = repr(fields[name].default).replace("'", '"')
            assert default == f"`{value}`", name


def results_tables(start: str, end: str) -> list[list[list[str]]]:
    """The tables of README between two titles, as rows of cells; header first."""
    text = README.read_text(encoding="utf-8")
    text = text[text.index(start) : text.index(end)]
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[line.strip("|\n ").split(" | ") for line in t.splitlines()] for t in tables]
    return [[table[0], *table[2:]] for table in rows]


def test_scores_are_those_of_the_benchmark() -> None:
    """Each score is a row of the JSON file, rounded; the first cell of a table is its set-up."""
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    tables = results_tables("## Results", BESIDE)
    assert tables
    for header, *lines in tables:
        (setup,) = re.findall(r"`(\w+)`", header[0])
        for line in lines:
            (network,) = re.findall(r"`(\w+)`", line[0])
            bits = re.fullmatch(r"W(\d)(?:A(\d))?", line[2])
            assert bits is not None, line
            (exact,) = {
                f"{row['top1']:.1f}" for row in rows_of(measured, network, "float", None, line[1])
            }
            assert line[3] == exact, line
            for column, cell in zip(header[4:], line[4:], strict=True):
                case = {
                    "weight_bits": int(bits[1]),
                    "activation_bits": int(bits[2]) if bits[2] else None,
                    **options_of(column, int(bits[1])),
                }
                (row,) = rows_of(measured, network, setup, case, line[1])
                score, agreement = f"{row['top1']:.1f}", f"{row['agreement']:.1f}"
                expected = (score, f"{score} ({agreement})")
                assert cell.replace("*", "") in expected, (line, column)


def test_scores_of_other_tools_are_those_of_the_benchmark() -> None:
    """Each score is that of a tool's best row."""
    measured = json.loads(PEERS.read_text(encoding="utf-8"))["rows"]
    ((header, *lines),) = results_tables(BESIDE, EQUAL)
    assert lines
    for line in lines:
        network, pictures, width = line[0].strip("`"), int(line[1].replace(",", "")), line[2]
        own = [row for row in measured if (row["network"], row["pictures"]) == (network, pictures)]
        (exact,) = (row["top1"] for row in own if row["tool"] == "float")
        assert line[3] == f"{exact:.1f}"
        for tool, cell in zip(header[4:], line[4:], strict=True):
            found = [
                (row["top1"], row["agreement"])
                for row in own
                if (row["tool"], row["width"]) == (tool.strip("`"), width)
            ]
            expected = "{:.1f} ({:.1f})".format(*max(found)) if found else ""
            assert cell.strip().replace("*", "") == expected, (line, tool)


def test_scores_at_equal_size_are_those_of_the_benchmark() -> None:
    """Each is a row's top-1 and effective bits."""
    measured = json.loads(INGREDIENTS.read_text(encoding="utf-8"))["rows"]
    rows = {(r["network"], r["pictures"], r["method"], r["bits"]): r for r in measured}
    ((header, *lines),) = results_tables(EQUAL, LANGUAGE)
    assert lines
    for line in lines:
        network, pictures, method = line[0].strip("`"), int(line[1].replace(",", "")), line[3]
        for width, cell in zip(header[4:], line[4:], strict=True):
            row = rows.get((network, pictures, method, float(width.strip()[1:])))
            if row is None:
                assert cell.strip() == "-"
                continue
            assert cell.strip() == f"{row['top1']:.1f} ({row['effective_bits']:.2f})"
            assert line[2] == f"{row['top1'] + row['drop']:.1f}"


def test_scores_of_language_models_are_those_of_the_benchmark() -> None:
    """Columns are clip methods in the paper's set-up, all split by 0.02, and the default."""
    measured = json.loads(LANGUAGE_MODELS.read_text(encoding="utf-8"))["rows"]
    ((header, *lines),) = results_tables(LANGUAGE, "## Limits")
    assert lines
    for line in lines:
        network, digits = line[0].strip("`"), 2 if "perplexity" in line[1] else 3
        own = [row for row in measured if row["network"] == network]
        assert line[1] == own[0]["unit"]
        found = {
            (row["setup"], row["clip"]): f"{row['score']:.{digits}f}"
            for row in own
            if row["bits"] == int(line[2][1:])
            and row["expand_ratio"] == (0.02 if row["setup"] == "paper" else 0)
        }
        (exact,) = (row["score"] for row in own if row["setup"] == "float")
        assert line[3] == f"{exact:.{digits}f}"
        for column, cell in zip(header[4:], line[4:], strict=True):
            clip = column.startswith("`")
            case = ("paper", column.strip("`")) if clip else (column, "")
            assert cell.replace("*", "") == found[case], (line, column)


def options_of(column: str, bits: int) -> dict[str, Any]:
    """What the head of a column of scores stands for."""
    if column in ON_DATA:
        rounding, bias_correction = ON_DATA[column]
        return {
            "clip": "optimal",
            "expand_ratio": 0.02 if bits < 8 else 0.0,
            "rounding": rounding,
            "bias_correction": bias_correction,
        }
    found = COLUMNS.fullmatch(column)
    assert found is not None, column
    return {"clip": found[1], "expand_ratio": float(found[2] or 0)}


def rows_of(
    measured: list[dict[str, Any]],
    network: str,
    setup: str,
    case: dict[str, Any] | None,
    pictures: str,
) -> list[dict[str, Any]]:
    wanted = {
        "network": network,
        "setup": setup,
        "pictures": int(pictures.replace(",", "")),
        **(case or {}),
    }
    return [row for row in measured if all(row[key] == value for key, value in wanted.items())]


def test_pages_hold_no_paths_of_a_machine() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", text), page.name
