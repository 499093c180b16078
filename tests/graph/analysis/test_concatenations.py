"""Parts of very different ranges on one grid: named, and kept exact where they are outputs."""

from __future__ import annotations

import re
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ocs_tf
from ocs_tf import numerics
from ocs_tf.graph.analysis.activation_sites import all_sites
from ocs_tf.graph.analysis.concatenations import (
    coarse_calls,
    coarse_parts,
    exact_concatenations,
    output_concatenations,
    output_parts,
    with_readers,
)
from ocs_tf.graph.reader import Graph

JOINS = {
    "concatenate": layers.Concatenate(name="join"),
    "maximum": layers.Maximum(name="join"),
    "minimum": layers.Minimum(name="join"),
    "add": layers.Add(name="join"),
}


def two_parts(join: Any, ratio: float = 1000.0, behind: Any = None) -> keras.Model:
    """Two dense layers, one `ratio` times as large as the other, joined."""
    x = keras.Input((8,), name="x")
    parts = [layers.Dense(3, name="small")(x), layers.Dense(3, name="large")(x)]
    outputs = join(parts)
    model = keras.Model(x, outputs if behind is None else behind(outputs))
    model.get_layer("large").kernel.assign(ratio * np.asarray(model.get_layer("small").kernel))
    return model


def data(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(64, 8)).astype("float32")


def head(x: Any) -> Any:
    return layers.Dense(2, name="head")(x)


def convert(model: keras.Model, x: np.ndarray, **options: Any) -> keras.Model:
    options = {"activation_equalization": False, **options}
    return ocs_tf.convert(model, representative_dataset=x, verbose=False, **options)


def test_codes_of_each_part() -> None:
    """-1..1 spans 2 / 0.25 = 8 codes of a step of 0.25, -2..2 spans 16."""
    graph = Graph(two_parts(layers.Concatenate(name="join")))
    by_name = {graph.producer[key].layer.name: key for key in graph.producer}
    grids = {"join": numerics.ActivationGrid(8, 0.25)}
    ranges = {by_name["small"]: (-1.0, 1.0), by_name["large"]: (-30.0, 30.0)}
    assert coarse_parts(graph, ranges, grids) == {"join": {"small": 8.0}}
    ranges[by_name["small"]] = (-2.0, 2.0)
    assert not coarse_parts(graph, ranges, grids)


@pytest.mark.parametrize(("bits", "fewest"), [(16, 16), (8, 16), (6, 4), (4, 1)])
def test_small_grids_have_fewer_codes_for_each_part(bits: int, fewest: int) -> None:
    """A sixteenth of them is few: else all parts of 4-bit grids would be named."""
    graph = Graph(two_parts(layers.Concatenate(name="join")))
    by_name = {graph.producer[key].layer.name: key for key in graph.producer}
    grids = {"join": numerics.ActivationGrid(bits, 1.0)}
    assert not coarse_parts(graph, {by_name["small"]: (0.0, fewest)}, grids)
    assert coarse_parts(graph, {by_name["small"]: (0.0, fewest - 0.5)}, grids)


@pytest.mark.parametrize("name", JOINS)
def test_a_warning_names_the_layer_and_the_part(name: str, rng: np.random.Generator) -> None:
    model = two_parts(JOINS[name], behind=head)
    with pytest.warns(UserWarning, match=r"parts of 'join' share one grid of 256 codes.*'small'"):
        quantized = convert(model, data(rng))
    report = ocs_tf.report(quantized)
    assert "Few codes: the parts of 'join'" in str(report)
    (row,) = [row for row in report.layers if row.name.startswith("join")]
    assert set(row.coarse_parts) == {"small"}


@pytest.mark.parametrize("ratio", [1.0, 8.0])
@pytest.mark.parametrize("name", JOINS)
def test_no_warning_for_similar_parts(name: str, ratio: float, rng: np.random.Generator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(two_parts(JOINS[name], ratio, head), data(rng))


def test_the_remedies_of_the_warning(rng: np.random.Generator) -> None:
    """The small part scaled up, and the kernel that reads it down; or activations in float."""
    x = data(rng)
    model = two_parts(layers.Concatenate(name="join"), behind=head)
    small, kernel = model.get_layer("small"), np.array(model.get_layer("head").kernel)
    wanted = model.predict_on_batch(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, x, activation_bits=None)
        small.set_weights([1000 * weight for weight in small.get_weights()])
        kernel[:3] /= 1000
        model.get_layer("head").kernel.assign(kernel)
        convert(model, x)
    np.testing.assert_allclose(model.predict_on_batch(x), wanted, rtol=1e-4, atol=1e-4)


def shared(kind: str) -> Any:
    """A layer called 'shared', or a function that calls it."""
    if kind == "add":
        add = layers.Add(name="shared")
        return lambda x: add([x, x])
    if kind == "nested":
        inside = layers.Dense(3, activation="relu", name="shared")
        return keras.Sequential([keras.Input((3,)), inside])
    if kind == "relu":
        return layers.ReLU(name="shared")
    return layers.Dense(3, kind, name="shared")


def two_calls(first: Any, second: Any, ratio: float) -> keras.Model:
    """`first` of 'small' and `second` of 'large', which is `ratio` times as large."""
    x = keras.Input((8,), name="x")
    parts = [layers.Dense(3, name="small")(x), layers.Dense(3, name="large")(x)]
    model = keras.Model(x, [first(parts[0]), second(parts[1])])
    model.get_layer("large").kernel.assign(ratio * np.asarray(model.get_layer("small").kernel))
    return model


@pytest.mark.parametrize("kind", ["linear", "gelu", "relu", "add", "nested"])
def test_a_warning_names_the_call_of_a_shared_layer(kind: str, rng: np.random.Generator) -> None:
    layer = shared(kind)
    call = r"'shared\(small, small\)'" if kind == "add" else r"'shared\(small\)'"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quantized = convert(two_calls(layer, layer, 1000), data(rng))
    texts = "\n".join(str(warning.message) for warning in told)
    assert re.search(rf"calls of 'shared' share one grid of 256 .*{call}", texts)
    report = ocs_tf.report(quantized)
    assert re.search(r"Few codes: the (parts and )?calls of 'shared'", str(report))
    (row,) = [row for row in report.layers if row.coarse_parts]
    assert row.name == "shared"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(two_calls(layer, layer, 4), data(rng))


def test_one_warning_names_all_layers_of_a_shared_model(rng: np.random.Generator) -> None:
    names = ["first", "second", "third"]
    inside = [layers.Dense(3, "relu", use_bias=False, name=name) for name in names]
    encoder = keras.Sequential([keras.Input((3,)), *inside])
    for layer in inside:
        layer.kernel.assign(np.eye(3))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quantized = convert(two_calls(encoder, encoder, 1000), data(rng))
    (text,) = [str(w.message) for w in told if "share one grid" in str(w.message)]
    found = re.search(r"the calls of '(\w+)' .* spans .*; likewise of '(\w+)', '(\w+)'\.", text)
    assert found is not None
    assert sorted(found.groups()) == names
    assert str(ocs_tf.report(quantized)).count("Few codes: the calls of") == 3


def test_codes_of_each_call() -> None:
    """-1..1 spans 2 / 0.25 = 8 codes of a step of 0.25; a call that is always 0 lost nothing."""
    layer = shared("relu")
    graph = Graph(two_calls(layer, layer, 1))
    (site,) = [site for site in all_sites(graph) if site.key == "shared"]
    grids = {"shared": numerics.ActivationGrid(8, 0.25)}

    def found(small: float) -> Any:
        reach = {"small": small, "large": 30.0}
        reads = [graph.producer[id(t)].inputs[0] for t in site.tensors]
        makers = [graph.producer[id(t)].layer.name for t in reads]
        ranges = [(-reach[name], reach[name]) for name in makers]
        return coarse_calls(graph, [site], {"shared": ranges}, grids)

    assert found(1.0) == {"shared": {"shared(small)": 8.0}}
    assert found(2.0) == found(0.0) == {}


def test_what_a_quantized_layer_reads_in_several_calls(rng: np.random.Generator) -> None:
    layer = shared("linear")
    with pytest.warns(UserWarning, match=r"calls of 'shared:input' .* 'shared\(small\)' spans"):
        convert(two_calls(layer, layer, 1000), data(rng), activation_scope="inputs")


def test_the_remedy_of_the_warning_of_calls(rng: np.random.Generator) -> None:
    """A copy with the same weights."""
    x, layer, copy = data(rng), shared("linear"), layers.Dense(3, name="copy")
    model, remedied = two_calls(layer, layer, 1000), two_calls(layer, copy, 1000)
    copy.set_weights(layer.get_weights())
    for name in ("small", "large"):
        remedied.get_layer(name).set_weights(model.get_layer(name).get_weights())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized = convert(remedied, x, weight_bits=8)
    for wanted, found in zip(model(x), quantized(x), strict=True):
        wanted, found = np.asarray(wanted), np.asarray(found)
        assert np.square(wanted).sum() > 10**3 * np.square(wanted - found).sum()  # 30 dB


def test_a_shared_layer_is_calibrated_on_all_calls(rng: np.random.Generator) -> None:
    """One call is computed with the ReLU behind it; the layer's grid must hold it all the same."""
    x, layer = data(rng), shared("linear")
    model = two_calls(lambda y: layers.ReLU()(layer(y)), layer, 0.125)
    quantized = convert(model, x)
    for wanted, found in zip(model(x), quantized(x), strict=True):
        wanted, found = np.asarray(wanted), np.asarray(found)
        assert np.square(wanted).sum() > 10**2 * np.square(wanted - found).sum()  # 20 dB


@pytest.mark.parametrize("join", [JOINS["concatenate"], lambda parts: ops.concatenate(parts, -1)])
def test_parts_of_an_output_are_kept_exact(join: Any, rng: np.random.Generator) -> None:
    x = data(rng)
    model = two_parts(join, behind=layers.Reshape((2, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized = convert(model, x)
    wanted, found = (m.predict_on_batch(x).reshape(-1, 6) for m in (model, quantized))
    for part in (slice(0, 3), slice(3, 6)):
        signal, noise = np.square(wanted[:, part]), np.square(wanted[:, part] - found[:, part])
        assert signal.sum() > 10**3 * noise.sum()  # 30 dB
    with pytest.warns(UserWarning, match="share one grid"):
        shared = convert(model, x, exact_outputs=False).predict_on_batch(x).reshape(-1, 6)
    small = slice(0, 3)
    assert np.square(shared - wanted)[:, small].sum() > 0.1 * np.square(wanted)[:, small].sum()


def sizes(join: Any) -> keras.Model:
    """Boxes beside scores, of two sizes of things below each other."""
    x = keras.Input((8,), name="x")
    rows = []
    for _ in range(2):
        boxes = layers.Dense(3)(x) * 1000.0
        rows.append(join([boxes, layers.Dense(3, activation="sigmoid")(x)]))
    rows = [layers.Reshape((1, 6))(row) for row in rows]
    return keras.Model(x, layers.Concatenate(axis=1, name="below")(rows))


@pytest.mark.parametrize(
    "join",
    [layers.Concatenate(), lambda parts: ops.stack(parts, 1), ops.hstack],
    ids=["concatenate", "stack", "hstack"],
)
def test_parts_of_parts_are_kept_exact(join: Any, rng: np.random.Generator) -> None:
    x = data(rng)
    model = sizes(join)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized = convert(model, x)
    wanted, found = (m.predict_on_batch(x)[:, :, 3:] for m in (model, quantized))
    assert np.square(wanted).sum() > 10**3 * np.square(wanted - found).sum()  # 30 dB


def test_what_reads_an_exact_concatenation_is_exact() -> None:
    x = keras.Input((4,), name="x")
    inner = layers.Concatenate(name="inner")([x, x])
    outer = layers.Concatenate(name="outer")([layers.Reshape((8,))(inner), x])
    used = layers.Concatenate(name="used")([x, x])
    graph = Graph(keras.Model(x, [outer, layers.Dense(2)(used)]))
    assert output_concatenations(graph) == {"inner", "outer"}
    assert with_readers(graph, {"inner"}) == {"inner", "outer"}
    assert with_readers(graph, {"used"}) == {"used"}


@pytest.mark.parametrize(
    "cut",
    [lambda y: (y[:, :3], y[:, 3:]), lambda y: ops.split(layers.Reshape((6,))(y), 2, -1)],
)
def test_a_warning_names_what_is_cut_out_with_few_codes(cut: Any, rng: np.random.Generator) -> None:
    """As the boxes and scores of a head that is one layer."""

    def head_of(factor: float) -> keras.Model:
        x = keras.Input((8,), name="x")
        whole = layers.Dense(6, name="whole")
        small, large = cut(whole(x))
        model = keras.Model(x, [ops.sigmoid(small), large])
        kernel = np.asarray(whole.kernel)
        whole.kernel.assign(np.concatenate([kernel[:, :3], factor * kernel[:, 3:]], 1))
        return model

    x = data(rng)
    with pytest.warns(UserWarning, match=r"^the parts of 'whole' share .*(get_item|split)"):
        quantized = convert(head_of(1000.0), x)
    assert "Few codes: the parts of 'whole'" in str(ocs_tf.report(quantized))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(head_of(4.0), x)


def test_exact_concatenations_are_those_without_a_grid() -> None:
    graph = Graph(two_parts(layers.Concatenate(name="join")))
    assert exact_concatenations(graph, {"small", "large"}) == {"join"}
    assert not exact_concatenations(graph, {"small", "large", "join"})
    assert not exact_concatenations(graph, set())
    keys = {site.key for site in all_sites(graph, exact={"join"})}
    assert keys == {"x", "small", "large"}


def test_parts_of_outputs_by_name() -> None:
    x = keras.Input((4, 2), name="x")
    conv = layers.Conv1D(3, 1, name="c")(x)
    model = keras.Model(x, [layers.Concatenate(axis=1)([x, x]), layers.Concatenate()([conv, x]), x])
    first, second, third = output_parts(Graph(model))
    values = np.arange(1 * 8 * 5).reshape(1, 8, 5)
    assert first.keys() == {"x", "x (1)"}
    np.testing.assert_array_equal(values[first["x (1)"]], values[:, 4:8])
    np.testing.assert_array_equal(values[second["c"]], values[:, :, 0:3])
    assert third == {}
