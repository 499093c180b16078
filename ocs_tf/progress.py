"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_DELAY = 2  # seconds; what takes less shows no bar


def progress_bar(
    items: Iterable[Any], title: str, verbose: bool, *, unit: str = "it", leave: bool = True
) -> Any:
    """`items`, with a bar on stderr if `verbose` and they take longer than two seconds.

    A process without stderr has no bar.
    """
    hidden = not verbose or sys.stderr is None
    return tqdm(items, title, unit=unit, leave=leave, delay=_DELAY, disable=hidden)
