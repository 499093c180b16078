"""Texts of options: each stands once, as metadata of a dataclass field.

Docstrings, docs/options.md and the help of the command are made of them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import TypeVar

_T = TypeVar("_T")
_KEY = "option"
_WIDTH = 92
_SWITCH: Mapping[str, str] = {"True": "", "False": ""}


@dataclasses.dataclass(frozen=True)
class Option:
    """What is said of one option, in Markdown.

    Attributes:
        group: title of the section of docs/options.md that it is in.
        summary: what the option controls; whole sentences.
        values: the values that it takes, as Python writes them or as a range, and what each
            means; "" where that is clear.
    """

    group: str
    summary: str
    values: Mapping[str, str]

    def text(self) -> str:
        """The summary, and every value that needs a word, as one paragraph."""
        values = [
            f"{code(value)}: {meaning}" if meaning else code(value)
            for value, meaning in self.values.items()
            if meaning or value not in _SWITCH
        ]
        return f"{self.summary} {'; '.join(values)}." if values else self.summary


def code(value: str) -> str:
    """A value of an option as Markdown: Python's literals as code, descriptions as they are."""
    return f"`{value}`" if re.fullmatch(r'".*"|True|False|None|[\d.]+', value) else value


def option(group: str, summary: str, values: Mapping[str, str] = _SWITCH) -> Mapping[str, Option]:
    """The metadata of a dataclass field that is an option, or a switch. Arguments: see `Option`."""
    return {_KEY: Option(group, summary, values)}


def options_of(cls: type) -> dict[str, Option]:
    """The text of each field of a dataclass that has one, by name, in the order of the fields."""
    fields = dataclasses.fields(cls)
    return {field.name: field.metadata[_KEY] for field in fields if _KEY in field.metadata}


def documented(cls: type[_T]) -> type[_T]:
    """The dataclass `cls` with the section "Attributes" of its docstring made of its options."""
    if cls.__doc__ is not None:  # it is under `python -OO`
        lines = [
            textwrap.fill(
                f"{name}: {option.text()}",
                width=_WIDTH,
                initial_indent=" " * 4,
                subsequent_indent=" " * 8,
                break_on_hyphens=False,
            )
            for name, option in options_of(cls).items()
        ]
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Attributes:", *lines])
    return cls
