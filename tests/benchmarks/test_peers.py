"""The benchmark of other quantizers, on a tiny network and a few pictures of noise."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import types

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf.runtime import tflite

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import peers
from ocs_tf.export import flatbuffer as fb

PICTURES, SIZE = 40, 8
W8A8, W4A8, MIXED, W8, W4, _ = peers.WIDTHS


class Entry:
    """As of the zoo."""

    def __init__(self, name: str, limit: int | None) -> None:
        keras.utils.set_random_seed(0)
        layers = keras.layers
        self.model = keras.Sequential(
            [
                keras.Input((SIZE, SIZE, 3), name="pictures"),
                layers.Conv2D(8, 3, activation="relu", name="first"),
                layers.DepthwiseConv2D(3, activation="relu", name="depthwise"),
                layers.Conv2D(12, 1, activation="relu", name="middle"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(5, name="last"),
            ]
        )
        rng = np.random.default_rng(0)
        self.name = name
        self.inputs = rng.normal(size=(PICTURES, SIZE, SIZE, 3)).astype("float32")[:limit]
        self.calibration = rng.normal(size=(24, SIZE, SIZE, 3)).astype("float32")
        self.targets = rng.integers(0, 5, PICTURES)[:limit]

    def predict(self, model, batch_size):
        return np.asarray(model.predict_on_batch(self.inputs))


ZOO = types.SimpleNamespace(load=lambda name, limit=None: Entry(name, limit))


@pytest.fixture(scope="module")
def network():
    return peers.Network(ZOO, "tiny", PICTURES)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Runs the benchmark into a folder, all widths of the tiny network."""

    def run(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(peers, "NETWORKS", {"tiny": PICTURES})
            patch.setattr(peers.common, "load_zoo", lambda _: ZOO)
            return peers.benchmark(folder)

    return run


@pytest.fixture(scope="module")
def results(benchmark, tmp_path_factory):
    return benchmark(tmp_path_factory.mktemp("peers"))


def kernel_scales(content: bytes) -> dict[str, list[np.ndarray]]:
    """Scales of kernels by operator, in the order of the file."""
    model = fb.read(content)
    tensors = model.subgraphs[0].tensors
    found: dict[str, list[np.ndarray]] = {}
    for op in model.subgraphs[0].operators:
        name = fb.op_name(model, op)
        if name in peers.KERNEL_INPUTS:
            scale, _ = fb.grid(tensors[op.inputs[1]])
            found.setdefault(name, []).append(scale)
    return found


def test_sqnr():
    # Deviations from the mean (3) are -2 and 2: 8. Errors are 0.2 and 0.2: 0.08, a hundredth.
    y, q = np.array([[1.0], [5.0]]), np.array([[1.2], [4.8]])
    assert peers.sqnr_db(y, q) == pytest.approx(20)
    assert peers.sqnr_db(y + 7, q + 7) == pytest.approx(20)
    assert peers.sqnr_db(y, y) is None


@pytest.mark.parametrize(
    ("width", "name"),
    [(W8A8, "W8A8"), (W4A8, "W4A8"), (MIXED, "W4A8, depthwise W8"), (W8, "W8"), (W4, "W4")],
)
def test_names_of_widths(width, name):
    assert str(width) == name


def test_methods():
    assert peers.methods(peers.CONVERTER, W8A8) == ["per channel", "per tensor"]
    assert peers.methods(peers.CONVERTER, W4A8) == peers.methods(peers.CONVERTER, W8) == []
    assert peers.methods(peers.AI_EDGE, W4) == ["min-max", "OCTAV", "MSE"]
    assert len(peers.methods(peers.AI_EDGE, W4A8)) == 3 * len(peers.RANGES)


# One letter per kernel: the first convolution, the depthwise one, the middle one, the dense one.
@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (W8A8, ["int8"] * 4),
        (W4A8, ["int8", "int4", "int4", "int8"]),
        (MIXED, ["int8", "int8", "int4", "int8"]),
        (W4, ["int8", "int4", "int4", "int8"]),
    ],
    ids=str,
)
def test_tools_write_the_same_bits(network, width, expected):
    ranges = ", true ranges" if width.activations else ""
    assert peers.kernel_types(peers.by_ai_edge(network, width, f"OCTAV{ranges}")) == expected
    assert peers.kernel_types(peers.by_ocs_tf(network, width, peers.DEFAULT)) == expected


@pytest.mark.parametrize("width", [W8A8, W4A8, W4], ids=str)
def test_ai_edge_min_max_steps_are_the_largest_magnitude(network, width):
    ranges = ", true ranges" if width.activations else ""
    content = peers.by_ai_edge(network, width, f"min-max{ranges}")
    model = fb.read(content)
    tensors = model.subgraphs[0].tensors
    # Behind a DEQUANTIZE, where activations are float; the middle kernel is [12, 1, 1, 8].
    (codes,) = (t for t in tensors if fb.shape(t) == (12, 1, 1, 8) and fb.grid(t) is not None)
    kernel = network.entry.model.get_layer("middle").kernel.numpy()
    largest = np.abs(kernel).max((0, 1, 2))
    np.testing.assert_allclose(
        fb.grid(codes)[0], largest / (2 ** (width.weights - 1) - 1), rtol=1e-6
    )


def test_true_ranges_are_used(network):
    """ai-edge-quantizer ignores names that it does not know, in silence."""
    outputs = network.entry.model.predict(network.calibration, verbose=0)
    model = fb.read(peers.by_ai_edge(network, W8A8, "min-max, true ranges"))
    (index,) = model.subgraphs[0].outputs
    scale, _ = fb.grid(model.subgraphs[0].tensors[index])
    width = max(outputs.max(), 0) - min(outputs.min(), 0)
    np.testing.assert_allclose(scale, [width / 255], rtol=1e-4)
    averaged = fb.read(peers.by_ai_edge(network, W8A8, "min-max, moving averages"))
    assert fb.grid(averaged.subgraphs[0].tensors[index])[0] < 0.98 * scale


def test_bits_that_were_not_asked_for_are_an_error(network, monkeypatch):
    make = peers._ai_edge_config
    monkeypatch.setattr(peers, "_ai_edge_config", lambda _, activations: make(8, activations))
    with pytest.raises(
        RuntimeError, match=r"asked for kernels of \['int8', 'int4'.*wrote \['int8'"
    ):
        peers.by_ai_edge(network, W4A8, "min-max, true ranges")


@pytest.mark.parametrize(("method", "steps"), [("per channel", 12), ("per tensor", 1)])
def test_the_converter_is_told_the_granularity(network, method, steps):
    content = peers.by_converter(network, W8A8, method)
    assert peers.kernel_types(content) == ["int8"] * 4
    middle = kernel_scales(content)["CONV_2D"][1]
    assert len(set(middle.tolist())) == steps


def test_weights_of_8_bits_alone_are_packed(network):
    content = peers.by_ocs_tf(network, W8, peers.DEFAULT)
    assert tflite.custom_operators(content)
    assert peers.kernel_types(content) == ["packed"] * 4


def test_scores(results, network):
    """The row of our own file, run in an interpreter picture by picture."""
    case = peers.Case("tiny", PICTURES, "W8A8", peers.OURS, peers.DEFAULT)
    row = results[case]
    content = peers.by_ocs_tf(network, W8A8, peers.DEFAULT)
    interpreter = ocs_tf.tflite.Interpreter(content)
    (reads,), (makes,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for picture in network.entry.inputs:
        scale, zero = reads["quantization"]
        codes = np.clip(np.rint(picture / np.float32(scale)) + zero, -128, 127)
        interpreter.set_tensor(reads["index"], codes[None].astype(np.int8))
        interpreter.invoke()
        scale, zero = makes["quantization"]
        outputs.append((interpreter.get_tensor(makes["index"])[0].astype(float) - zero) * scale)
    labels = np.argmax(outputs, 1)
    exact = network.entry.model.predict(network.entry.inputs, verbose=0)
    # Codes chosen on data differ a little with the number of threads.
    assert row.top1 == pytest.approx(100 * np.mean(labels == network.entry.targets), abs=2.5)
    assert row.agreement == pytest.approx(100 * np.mean(labels == exact.argmax(1)), abs=2.5)
    signal, noise = np.square(exact - exact.mean(0)).sum(), np.square(exact - outputs).sum()
    assert row.sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.5)
    assert row.size == pytest.approx(len(content), rel=0.05)  # names of layers are counted up


def test_the_network_itself(results, network):
    row = results[peers.Case("tiny", PICTURES, "float", "float", "")]
    labels = network.entry.model.predict(network.entry.inputs, verbose=0).argmax(1)
    assert row.top1 == 100 * np.mean(labels == network.entry.targets)
    assert (row.agreement, row.sqnr_db, row.kernels) == (100, None, "4 float32")


def test_all_rows_are_measured(results):
    content = json.loads(results.path.read_text())
    assert content["machine"].keys() >= {"tensorflow", "ai-edge-quantizer", "ai-edge-litert"}
    assert len(content["rows"]) == 1 + 2 + 3 * 6 + 3 * 3 + len(peers.WIDTHS)
    for row in results:
        if row.width in ("W8", "W8A8") and "averages" not in row.method:
            assert row.sqnr_db > 10, row  # a wrong file has 0 or less
        assert 0 <= row.top1 <= 100
        assert 0 <= row.agreement <= 100
        assert row.size > 0


def test_the_summary_shows_the_best_of_each_tool(results):
    text = results.path.with_suffix(".md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| tiny | W4A8 |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    scores = [r.top1 for r in results if (r.width, r.tool) == ("W4A8", peers.AI_EDGE)]
    ours = results[peers.Case("tiny", PICTURES, "W4A8", peers.OURS, peers.DEFAULT)]
    assert cells[3] == ""  # the converter has no 4 bits
    assert cells[4].startswith(f"{max(scores):.1f} (")
    assert cells[5] == f"{ours.top1:.1f} ({ours.agreement:.1f}) {ours.sqnr_db:.1f} dB"


def test_best_prefers_top1_then_agreement():
    row = peers.Row("any", 1, "W8", "tool", "a", 50.0, 60.0, None, 1, "", 0.0)
    better = dataclasses.replace(row, method="b", agreement=61.0)
    assert peers.best([better, row]) == peers.best([row, better]) == better
    assert peers.best([better, dataclasses.replace(row, method="c", top1=51.0)]).method == "c"
    assert peers.best([]) is None


def test_resume_measures_only_what_is_missing(results, benchmark, tmp_path, monkeypatch):
    content = json.loads(results.path.read_text())
    last = content["rows"].pop()
    (tmp_path / "peers.json").write_text(json.dumps(content))
    seen = []
    measure = peers.measure
    monkeypatch.setattr(
        peers, "measure", lambda network, case: seen.append(case) or measure(network, case)
    )
    again = benchmark(tmp_path)
    assert [(case.width, case.tool) for case in seen] == [(last["width"], last["tool"])]
    assert {again.case_of(row) for row in again} == {results.case_of(row) for row in results}


def test_zoo_networks_and_quick_ones_are_known():
    assert set(peers.QUICK) < set(peers.NETWORKS)
    assert peers.NETWORKS["densenet40_cifar10"] == 1000
