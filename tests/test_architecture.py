"""Who may import whom: no import runs upwards, and the arithmetic knows neither TF nor Keras."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "ocs_tf"
# From the lowest up; docs/architecture.md shows the same list. Modules and packages on one line do
# not import each other.
LEVELS = (
    ("paths",),
    (
        "process",
        "progress",
        "writing",
        "options",
        "keras_internals",
        "keras_types",
        "_registration",
        "_former",
    ),
    ("numerics", "closeness", "drawing", "keras_state"),
    ("documents",),
    ("config", "data_forms", "layers", "runtime"),
    ("graph", "keras2", "_plan", "tflite"),
    ("data", "compensation", "_load", "synthesis"),
    ("planning", "_synthesize"),
    ("data_checks",),
    ("_convert",),
    ("export", "_report", "_check"),
    ("_compare",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {part: height for height, level in enumerate(LEVELS) for part in level}
FRAMEWORKS = {"tensorflow", "keras", "tf_keras", "ai_edge_litert", "ai_edge_quantizer"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: pathlib.Path) -> str:
    """The package below `ocs_tf` that a module is in, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: pathlib.Path) -> Iterator[str]:
    """Full names of what a module imports, wherever in it; submodules as `package.submodule`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                parts = name.split(".")[1:]
                found = PACKAGE.joinpath(*parts)
                is_module = found.is_dir() or found.with_suffix(".py").exists()
                yield name if is_module else str(node.module)


def imported_parts(path: pathlib.Path) -> set[str]:
    names = [name.split(".") for name in imported_modules(path)]
    return {(parts[1:] or ["__init__"])[0] for parts in names if parts[0] == "ocs_tf"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_runs_upwards(path: pathlib.Path) -> None:
    part = part_of(path)
    for other in imported_parts(path) - {part}:
        assert HEIGHT[other] < HEIGHT[part], f"{part} imports {other}, which is not below it"


def test_no_cycle_within_a_package() -> None:
    """Modules of one package import each other in one direction, too."""
    names = {
        ".".join(("ocs_tf", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in MODULES
    }
    graph = {name: {n for n in imported_modules(p) if n in names} for name, p in names.items()}
    while graph:
        free = [name for name, needs in graph.items() if not needs & set(graph)]
        assert free, f"these import each other in a circle: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


@pytest.mark.parametrize("part", ["numerics", "documents", "config", "_plan"])
def test_the_arithmetic_knows_no_framework(part: str) -> None:
    for path in (path for path in MODULES if part_of(path) == part):
        frameworks = {name.split(".")[0] for name in imported_modules(path)} & FRAMEWORKS
        assert not frameworks, f"{path.relative_to(PACKAGE)} imports {frameworks}"


def test_every_part_has_a_level() -> None:
    assert {part_of(path) for path in MODULES} <= set(HEIGHT)


def test_the_page_shows_the_levels() -> None:
    """docs/architecture.md: the import order."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Import order.*?```\n(.*?)```", page, re.DOTALL)
    shown = [set(re.findall(r"\w+", line.partition("(")[0])) for line in block.splitlines()]
    unnamed = {"__main__"}
    expected = [set(level) - unnamed for level in reversed(LEVELS) if set(level) - unnamed]
    assert [level & set(HEIGHT) for level in shown] == expected


@pytest.mark.parametrize("page", ["architecture", "ideas"])
def test_pages_name_modules_that_exist(page: str) -> None:
    text = (PACKAGE.parent / "docs" / f"{page}.md").read_text(encoding="utf-8")
    names = re.findall(r"`([a-z]\w*(?:/\w+)+)`", text)
    assert names
    for name in names:
        assert (PACKAGE / name).is_dir() or (PACKAGE / name).with_suffix(".py").exists(), name


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_one_module_reads_what_keras_keeps_private(path: pathlib.Path) -> None:
    names = r"(keras_\w+|flatten_layers|nodes_by_depth|call_context_args|functional)"
    pattern = rf"[.\"']_{names}\b|\._\w+bound_nodes\b|\bkeras\.src\b"
    private = re.findall(pattern, path.read_text(encoding="utf-8"))
    assert not private or path.name in ("keras_internals.py", "tf_keras_internals.py")


# Modules without a test module of their name, and which tests are theirs.
TESTED_ELSEWHERE = {
    "_former": "test_imports",
    "compensation/weights": "compensation/test_calibrated",
    "export/choices": "test_options",
    "export/custom_operator": "export/test_barrier",
    "export/errors": "export/test_verification",
    "export/fake_quantize_operator": "export/test_packed",
    "export/float_file": "export/test_failures",
    "keras2/files": "test_load",
    "keras2/tf_keras_internals": "keras2/test_model",
    "keras_types": "test_packaging",  # mypy
    # Every quantized layer goes through the tests of their base.
    **{f"layers/{name}": "layers/test_base" for name in ("convolutions", "dense")},
    "layers/attention": "layers/test_checks",
    "runtime/choices": "runtime/test_tflite",
    "runtime/micro_arena": "runtime/test_micro",
    "runtime/operators": "runtime/test_delegate",
    "runtime/self_test": "runtime/test_compatibility",
    "tflite": "runtime/test_tflite",
}


def test_every_module_has_tests_of_its_name() -> None:
    """`tests/graph/test_reader.py` is for `ocs_tf/graph/reader.py`; a leading `_` is left out."""
    tests = PACKAGE.parent / "tests"
    missing = set()
    for path in MODULES:
        module = path.relative_to(PACKAGE).with_suffix("")
        mirror = tests / module.parent / f"test_{module.name.lstrip('_')}.py"
        if not module.name.startswith("__") and not mirror.exists():
            missing.add(module.as_posix())
    assert missing == set(TESTED_ELSEWHERE)
    assert all((tests / f"{other}.py").exists() for other in TESTED_ELSEWHERE.values())
