"""Texts of options: complete, and the same in docstrings, docs and the command's help."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re
import typing
from typing import Any

import pytest

import ocs_tf
from ocs_tf import config, numerics
from ocs_tf.config import Config, ConfigOptions, Override
from ocs_tf.export import exporter, int4
from ocs_tf.options import Option, code, documented, option, options_of
from tests.conftest import load_script

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPTIONS = options_of(Config)
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
TYPES = typing.get_type_hints(Config)


def choices(hint: Any) -> set[Any]:
    """The values that a type lists: those of `Literal`, `None`, and both booleans for `bool`."""
    if hint is type(None):
        return {None}
    if hint is bool:
        return {True, False}
    if typing.get_origin(hint) is typing.Literal:
        return set(typing.get_args(hint))
    return {choice for part in typing.get_args(hint) for choice in choices(part)}


def test_the_page_is_current() -> None:
    made = load_script("docs/make_options.py")
    assert made.PAGE.read_text(encoding="utf-8") == made.page()


def test_every_field_has_a_text() -> None:
    assert list(OPTIONS) == list(DEFAULTS)
    assert list(options_of(Override)) == [field.name for field in dataclasses.fields(Override)]
    assert {text.group for text in OPTIONS.values()} == set(config.OPTION_GROUPS)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_values_are_those_of_the_type(name: str) -> None:
    values = OPTIONS[name].values
    assert values
    literals = {value for value in values if code(value) != value and ".." not in value}
    named = {eval(value) for value in literals if not value.isdigit()}
    assert named == (choices(TYPES[name]) if name != "overrides" else set())
    assert OPTIONS[name].summary.endswith(".")


@pytest.mark.parametrize("name", OPTIONS)
def test_the_default_is_one_of_the_values(name: str) -> None:
    default = DEFAULTS[name]
    if default is None or isinstance(default, (str, bool)):
        assert default in choices(TYPES[name])
    elif name != "overrides":
        assert any(re.match(r"\d", value) for value in OPTIONS[name].values)


def test_choices_are_those_of_the_arithmetic() -> None:
    assert typing.get_args(config.Granularity) == numerics.GRANULARITIES
    assert typing.get_args(config.ClipMethod) == numerics.CLIP_METHODS
    assert typing.get_args(config.WeightClip) == numerics.WEIGHT_CLIPS
    assert typing.get_args(config.ActivationSplit) == numerics.SPLIT_RULES
    assert typing.get_args(exporter.Activations) == ("auto", *int4.ACTIVATIONS)


def test_docstrings_hold_the_texts() -> None:
    for cls in (Config, Override):
        shown = " ".join((cls.__doc__ or "").split())
        for name, text in options_of(cls).items():
            assert f"{name}: {' '.join(text.text().split())}" in shown, name


def test_a_docstring_gets_its_section_behind_the_rest() -> None:
    @documented
    @dataclasses.dataclass
    class Some:
        """What it is.

        Raises:
            ValueError: now and then.
        """

        bits: int = dataclasses.field(
            default=8, metadata=option("Widths", "How many.", {"2..8": "", "None": "float"})
        )
        other: int = 0

    assert inspect.getdoc(Some) == (
        "What it is.\n\nRaises:\n    ValueError: now and then.\n\n"
        "Attributes:\n    bits: How many. `2..8`; `None`: float."
    )


def test_a_switch_names_what_is_not_plain() -> None:
    assert Option("", "Do it.", {"True": "", "False": ""}).text() == "Do it."
    assert Option("", "Do it.", {"True": "", "False": "not"}).text() == "Do it. `False`: not."


def test_keyword_arguments_have_the_types_of_the_fields() -> None:
    assert typing.get_type_hints(ConfigOptions) == TYPES
    assert not ConfigOptions.__required_keys__
    for function in (ocs_tf.convert, ocs_tf.plan, Config.paper):
        assert "Unpack[ConfigOptions]" in str(inspect.signature(function).parameters["options"])
