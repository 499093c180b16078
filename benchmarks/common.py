"""What benchmarks share: the zoo of pretrained networks, flags, and results on disk."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def default_zoo() -> pathlib.Path:
    """The folder named by the environment variable OCS_TF_ZOO, or `../shared/zoo`."""
    return pathlib.Path(os.environ.get("OCS_TF_ZOO") or ROOT.parent / "shared" / "zoo")


ZOO = flags.DEFINE_string("zoo", None, "Folder of the zoo (default: $OCS_TF_ZOO or ../shared/zoo).")
OUTPUT_DIR = flags.DEFINE_string("output_dir", str(RESULTS), "Where results are written.")
QUICK = flags.DEFINE_bool("quick", False, "A small part of the benchmark, in about a minute.")


def load_zoo(folder: str | pathlib.Path | None = None) -> ModuleType:
    """The module `zoo.py` of the zoo in `folder`.

    Raises:
        FileNotFoundError: there is no zoo.
    """
    path = pathlib.Path(folder or default_zoo()).resolve() / "zoo.py"
    if not path.exists():
        raise FileNotFoundError(f"no zoo at {path.parent}; set OCS_TF_ZOO or give --zoo.")
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file in one step, so that an interruption leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def markdown_table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]
