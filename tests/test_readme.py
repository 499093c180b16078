"""README.md and docs/: code runs as printed, commands and files exist, numbers are measured."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import shlex
import sys
from typing import Any

import keras
import numpy as np
import pytest

from ocs_tf.cli import command as cli

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import report

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
OTHERS = [ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")]
PAGES = [README, *OTHERS, *sorted((ROOT / "docs").glob("*.md"))]
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
        made = {"digits.tflite", "quantized.keras", "int8.tflite", "packed.tflite"}
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
        without_vela = arguments[0] == "check" and importlib.util.find_spec("ethosu") is None
        if arguments == ["demo"] or without_vela:
            arguments.append("--help")  # the demo takes a minute; both have tests of their own
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


def test_results_are_current() -> None:
    """`python -m benchmarks.report` would write the same text."""
    assert report.PAGE.read_text(encoding="utf-8") == report.page()
    text = README.read_text(encoding="utf-8")
    assert text == report.readme(text)


def test_the_first_paragraph_has_the_words_that_people_search_for() -> None:
    head = README.read_text(encoding="utf-8")[:500].lower()
    for word in ("post-training quantization", "mixed precision", "per-channel", "gptq", "tflite"):
        assert word in head, word
    for word in ("edge tpu", "keras", "outlier channel splitting"):
        assert word in head, word


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 1000


def test_pages_hold_no_paths_of_a_machine() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", text), page.name
