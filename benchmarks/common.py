"""What the benchmarks share: results as JSON and Markdown, and the machine they ran on."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("numpy", "scipy", "keras", "tensorflow")


def save_json(path: str | Path, payload: Any) -> None:
    """Write `payload` to `path` as indented JSON, making the folder where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(payload, indent=1) + "\n")


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; cells are shown by `str`."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, and versions; no names and no paths."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def load_zoo(folder: str | Path | None = None) -> ModuleType:
    """The module `zoo.py` of the zoo in `folder`, else in $OCS_TF_ZOO, else in `../shared/zoo`.

    Raises:
        FileNotFoundError: there is no zoo.
    """
    folder = folder or os.environ.get("OCS_TF_ZOO") or ROOT.parent / "shared" / "zoo"
    path = Path(folder).resolve() / "zoo.py"
    if not path.exists():
        raise FileNotFoundError(f"no zoo at {path.parent}; set OCS_TF_ZOO or give --zoo.")
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_turns(
    actions: Mapping[str, Callable[[], Any]], rounds: int, least: float = 0.0
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each action in each round; the order changes from round to round.

    What takes less than `least` seconds is repeated for as long. What an action returns is let go
    of outside of the time that is measured, but for repetitions.
    """
    repeats = {}
    for name, action in actions.items():
        action()
        repeats[name] = max(1, int(least / _seconds(action, 1)))
    order = np.random.default_rng(0)
    seconds = {name: np.zeros(rounds) for name in actions}
    for i in range(rounds):
        for name in order.permutation(list(actions)):
            gc.collect(0)
            seconds[name][i] = _seconds(actions[name], repeats[name]) / repeats[name]
    return seconds


def _seconds(action: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = action()
    seconds = time.perf_counter() - start
    del result
    return seconds


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
