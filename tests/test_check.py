"""Files compiled by Vela: what runs where, and how it fails."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf import _check
from ocs_tf._check import ACCELERATORS, AcceleratorReport, CompiledOperator, CompilerError
from ocs_tf.cli import command as cli

needs_vela = pytest.mark.skipif(
    importlib.util.find_spec("ethosu") is None,
    reason='needs ethos-u-vela: pip install "ocs_tf[ethos-u]"',
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """`int8.tflite`, `int4.tflite` and `float.tflite` of one network; its `FLOOR` is float."""
    folder = tmp_path_factory.mktemp("check")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(16, 3, padding="same", name="first")(inputs)
    x = keras.layers.Conv2D(16, 3, padding="same", name="second")(keras.ops.floor(x))
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 16)).astype(np.float32)
    quantized = ocs_tf.convert(
        keras.Model(inputs, x),
        weight_bits=4,
        first_layer_bits="same",
        representative_dataset=data,
        rounding="nearest",
        bias_correction=False,
        verbose=False,
    )
    for target in ("int8", "int4", "float"):
        ocs_tf.export_tflite(
            quantized, folder / f"{target}.tflite", target=target, representative_dataset=data
        )
    return folder


@needs_vela
def test_what_runs_where(folder):
    report = ocs_tf.check(folder / "int8.tflite", "ethos-u55-128")
    assert [(o.made_of, o.on_npu) for o in report.operators] == [
        ("Conv2D", True),
        ("Dequantize", False),
        ("Floor", False),
        ("Quantize", False),
        ("Conv2D", True),
    ]
    assert (report.on_npu, report.on_cpu) == (2, 3)
    macs = 2 * 8 * 8 * 16 * 16 * 3 * 3
    assert report.macs == macs
    assert report.cycles >= macs / 128  # of its units, one each cycle
    assert sum(report.cycles_by_operator().values()) >= report.cycles
    assert report.sram_bytes >= 2 * 8 * 8 * 16
    assert 0 < report.seconds < 1


@needs_vela
def test_larger_accelerators_take_fewer_cycles(folder):
    few, many = (
        ocs_tf.check(folder / "int8.tflite", name).cycles
        for name in ("ethos-u55-32", "ethos-u55-256")
    )
    assert many < few


@needs_vela
def test_a_float_file_is_left_to_the_cpu(folder):
    report = ocs_tf.check(folder / "float.tflite")
    assert report.on_npu == 0
    assert report.cycles == 0


@needs_vela
def test_a_crash_is_an_error_with_a_remedy(folder):
    with pytest.raises(CompilerError, match=r"int4.tflite \(SIGFPE\)\. .*target='int8'"):
        ocs_tf.check(folder / "int4.tflite")


@needs_vela
def test_what_is_no_file_for_vela(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"something else")
    with pytest.raises(CompilerError, match=r"Vela (refuses|crashed on) .*model\.tflite"):
        ocs_tf.check(path)


@needs_vela
def test_accelerators_are_those_of_vela():
    said = subprocess.run(
        [sys.executable, "-m", "ethosu.vela", "--help"], capture_output=True, text=True, check=True
    ).stdout
    listed = said.split("--accelerator-config {")[1].split("}")[0]
    assert set("".join(listed.split()).split(",")) == set(ACCELERATORS)


@needs_vela
def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = str(folder / "int8.tflite")
    command = ["check", path, "--accelerator", "ethos-u55-128", "--report", "report.json"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    report = ocs_tf.check(path)
    assert printed == f"{report}\nWrote report.json.\n"
    assert json.loads(pathlib.Path("report.json").read_text()) == report.to_dict()
    assert {p.name for p in tmp_path.iterdir()} == {"report.json"}  # Vela's files are gone
    assert cli.main(command) == 2
    assert "--report report.json exists; give --overwrite" in capsys.readouterr().err
    assert cli.main(["check", str(folder / "int4.tflite")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ocs_tf: Vela crashed on")
    assert error.count("\n") == 1


def report() -> AcceleratorReport:
    operators = (
        CompiledOperator("Conv2D", "Conv2D", True, 900, "a"),
        CompiledOperator("MemoryCopy", "Concat", True, 50, "b"),
        CompiledOperator("Passthrough", "Floor", False, 0, "c"),
        CompiledOperator("MemoryCopy", "Pad", True, 70, "d"),
    )
    return AcceleratorReport(
        pathlib.Path("m.tflite"),
        "ethos-u55-128",
        "System, Sram",
        1020,
        2.04e-6,
        2048,
        5000,
        operators,
    )


def test_the_text():
    assert str(report()).splitlines() == [
        "m.tflite on ethos-u55-128 (System, Sram), as Vela estimates:",
        "  3 operators on the NPU, 1 on the CPU",
        "  1,020 cycles (0.00204 ms), 5,000 multiplications, 2,048 bytes of SRAM",
        "  CPU: Floor c",
        "  cycles: Conv2D 900, MemoryCopy 120",
    ]


def test_json(tmp_path):
    report().save(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["cycles"], found["on_npu"], found["on_cpu"]) == (1020, 3, 1)
    assert found["operators"][2] == {
        "op": "Passthrough",
        "made_of": "Floor",
        "on_npu": False,
        "cycles": 0,
        "name": "c",
    }
    with pytest.raises(FileExistsError):
        report().save(tmp_path / "report.json", overwrite=False)
    with pytest.raises(ValueError, match=r"must end in \.json"):
        report().save(tmp_path / "report.txt")


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"`accelerator` \(='ethos-u1'\) must be one of"):
        ocs_tf.check("m.tflite", "ethos-u1")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ocs_tf.check(tmp_path / "m.tflite")
    path = tmp_path / "m.tflite"
    path.write_bytes(b"")
    monkeypatch.setattr(_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompilerError, match=r'pip install "ocs_tf\[ethos-u\]"'):
        ocs_tf.check(path)


def pretend(monkeypatch, code: int, said: str = "", files: dict[str, str] | None = None) -> None:
    """Let Vela end with a code, a text and files."""

    def run(command, **options):
        for name, text in (files or {}).items():
            pathlib.Path(command[-1], name).write_text(text)
        return subprocess.CompletedProcess(command, code, said, "")

    monkeypatch.setattr(_check.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(_check.subprocess, "run", run)


@pytest.mark.parametrize(
    ("code", "said", "message"),
    [
        (-11, "", r"Vela crashed on .*m\.tflite \(SIGSEGV\)\."),
        (134, "", r"\(SIGABRT\)"),
        (
            1,
            "Warning: a\nError: no such operator.\nbye\n",
            r"refuses .*: Error: no such operator\. ",
        ),
        (2, "", r"refuses .*: no message\."),
        (0, "", r"wrote 0 files \*_summary_\*\.csv, not one.*ethos-u-vela"),
    ],
)
def test_failures_of_vela(code, said, message, monkeypatch, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"")
    pretend(monkeypatch, code, said)
    with pytest.raises(CompilerError, match=message):
        ocs_tf.check(path)
