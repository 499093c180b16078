"""The notebook runs from top to bottom, and its committed outputs are what it prints."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
SECONDS = 300  # for a cell
# Proxies that refuse: nothing may be downloaded.
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
FLOAT = r"float: ([\d.]+) % of (\d+) test images"
EIGHT_BITS = r"8 bits: ([\d.]+) %"
TFLITE = r"tflite: ([\d.]+) %"
AGREEMENT = r"agreement with Keras: ([\d.]+) %"
ROW = r"(\d) bits, ([\w ]+?) +([\d.]+) % +([\d.]+) dB +([\d.]+) dB +([\d,]+)"


@pytest.fixture(scope="module")
def committed() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook, run in a kernel of its own in an empty folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**NO_NETWORK, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}.items():
            patch.setenv(name, value)
        runner = ExecutePreprocessor(timeout=SECONDS, kernel_name="python3")
        runner.preprocess(notebook, {"metadata": {"path": str(folder)}})
    assert [path.name for path in folder.iterdir()] == ["digits_int8.tflite"]
    return notebook


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook: Any) -> str:
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream")


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} was not printed"
    return [float(group) for group in found.groups()]


@pytest.mark.parametrize("which", ["committed", "executed"])
def test_what_it_prints_is_as_it_says(which: str, request: pytest.FixtureRequest) -> None:
    notebook = request.getfixturevalue(which)
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    text = printed(notebook)
    exact, pictures = numbers(FLOAT, text)
    assert pictures == 1797 // 2 + 1797 % 2
    assert exact > 95
    (eight_bits,), (tflite,) = numbers(EIGHT_BITS, text), numbers(TFLITE, text)
    assert eight_bits == pytest.approx(exact, abs=1.5)
    assert tflite == pytest.approx(eight_bits, abs=0.5)
    assert numbers(AGREEMENT, text)[0] > 99
    rows = {(int(m[1]), m[2]): (float(m[3]), float(m[5])) for m in re.finditer(ROW, text)}
    schemes = ("rounding only", "OCS", "step per channel")
    assert set(rows) == {(bits, scheme) for bits in (4, 3) for scheme in schemes}
    for bits in (4, 3):
        plain, split, per_channel = (rows[bits, scheme] for scheme in schemes)
        # Of conv3, in dB: what the text says of the schemes.
        assert plain[1] + 0.5 < split[1] < per_channel[1]
    assert rows[3, "rounding only"][0] < rows[3, "OCS"][0]
    assert all(rows[4, scheme][0] > exact - 3 for scheme in schemes)
    operators = re.search(r"operators: (.*)", text)
    assert operators is not None
    assert "SHAPE" not in operators[1].split(", "), "the batch size is not fixed"
    assert sum("image/png" in o.get("data", {}) for o in outputs(notebook)) == 2


def test_committed_outputs_are_clean(committed: Any) -> None:
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(o.get("name") != "stderr" for o in outputs(committed))
    text = nbformat.writes(committed)
    assert not re.search(r"/(?:home|root|work|tmp|Users|opt|usr)/", text)
    assert "warning" not in text.lower()


def test_it_installs_only_what_is_missing(committed: Any) -> None:
    first = next(cell for cell in committed.cells if cell.cell_type == "code")
    before, _, after = first.source.partition("except ImportError:")
    assert "import ocs_tf" in before
    assert "%pip install" in after
