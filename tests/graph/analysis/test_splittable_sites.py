"""Which activations can be split: who reads them, and who makes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers

from ocs_tf.graph.analysis.activation_sites import all_sites, input_sites
from ocs_tf.graph.analysis.splittable_sites import splittable_sites
from ocs_tf.graph.reader import Graph
from tests.graph import twins


def make(build: Callable[[Any], Any], shape: tuple[int, ...] = (8, 8, 4)) -> keras.Model:
    inputs = keras.Input(shape, name="x")
    return keras.Model(inputs, build(inputs))


def conv(name: str, **options: Any) -> Any:
    return layers.Conv2D(4, 1, name=name, **options)


def chain(*between: Any) -> Callable[[Any], Any]:
    """A kernel `a`, these layers, a kernel `b`."""

    def build(x: Any) -> Any:
        for layer in (conv("a"), *between, conv("b")):
            x = layer(x)
        return x

    return build


def two_readers(x: Any) -> Any:
    x = layers.ReLU(name="relu")(conv("a")(x))
    return [conv("b")(x), conv("c")(x)]


def residual(x: Any) -> Any:
    x = conv("a", activation="relu")(x)
    return layers.Add(name="sum")([x, conv("b")(x)])


def behind_a_sum(x: Any) -> Any:
    return conv("b")(layers.Add(name="sum")([conv("a")(x), x]))


def concatenation(x: Any) -> Any:
    x = conv("a", activation="relu")(x)
    return conv("c")(layers.Concatenate(name="both")([x, conv("b")(x)]))


def read_as_output(x: Any) -> Any:
    x = conv("a")(x)
    return [x, conv("b")(x)]


def shared_reader(x: Any) -> Any:
    reader = conv("b")
    return layers.Add()([reader(conv("a")(x)), reader(x)])


def shared_maker(x: Any) -> Any:
    maker = conv("a")
    return conv("b")(maker(maker(x)))


def read_before_the_relu(x: Any) -> Any:
    x = conv("a")(x)
    return [conv("b")(layers.ReLU(name="relu")(x)), layers.Softmax()(x)]


def relus_behind_a_shared_maker(x: Any) -> Any:
    maker = conv("a")
    x = maker(layers.ReLU(name="relu")(maker(x)))
    return conv("b")(layers.ReLU(name="relu2")(x))


RELU6 = "a ReLU that ends at 6 for each copy, too"
CASES: dict[str, tuple[Callable[[Any], Any], str, str | None]] = {
    "linear": (chain(), "a", None),
    "relu": (chain(layers.ReLU(name="relu")), "relu", None),
    "norm": (chain(layers.BatchNormalization(), layers.ReLU(name="relu")), "relu", None),
    "norm, linear": (chain(layers.BatchNormalization()), "a", None),
    "inside": (lambda x: conv("b")(conv("a", activation="relu")(x)), "a", None),
    "pooled": (chain(layers.ReLU(name="relu"), layers.MaxPooling2D(2)), "relu", None),
    "padded": (chain(layers.ReLU(name="relu"), layers.ZeroPadding2D()), "relu", None),
    "two readers": (two_readers, "relu", None),
    "input": (chain(), "x", "'x' makes it, which cannot repeat single channels"),
    "output": (chain(), "b", "it is an output of the model"),
    "output, too": (read_as_output, "a", "it is an output of the model"),
    "relu6": (chain(layers.ReLU(6.0, name="relu")), "relu", RELU6),
    "relu6 inside": (lambda x: conv("b")(conv("a", activation="relu6")(x)), "a", RELU6),
    "tanh": (lambda x: conv("b")(conv("a", activation="tanh")(x)), "a", "not the output of one"),
    "elu": (lambda x: conv("b")(conv("a", activation="elu")(x)), "a", "not a ReLU"),
    "preactivation": (
        lambda x: conv("b")(conv("a", activation="elu")(x)),
        "a:preactivation",
        "not the output of one layer",
    ),
    "residual": (residual, "a", "'sum' reads it, which has no weights to repeat"),
    "sum": (behind_a_sum, "sum", "'sum' makes it, which cannot repeat single channels"),
    "concatenation": (concatenation, "both", "it shares its grid with other tensors"),
    "average": (
        chain(layers.ReLU(name="relu"), layers.AveragePooling2D(2)),
        "relu",
        "it shares its grid with other tensors",
    ),
    "flattened": (
        lambda x: layers.Dense(3)(layers.Flatten(name="flat")(conv("a")(x))),
        "a",
        "'flat' reads it, which has no weights to repeat",
    ),
    "depthwise": (
        chain(layers.ReLU(name="relu"), layers.DepthwiseConv2D(3, name="depthwise")),
        "relu",
        "'depthwise' reads it, but a depthwise convolution",
    ),
    "behind depthwise": (
        chain(layers.DepthwiseConv2D(3, name="depthwise")),
        "depthwise",
        "'depthwise' makes it, which cannot repeat",
    ),
    "grouped": (
        lambda x: conv("c", groups=2)(conv("a")(x)),
        "a",
        "'c' reads it, in groups of channels",
    ),
    "shared reader": (shared_reader, "a", "'b' reads it, which is called several times"),
    "shared maker": (shared_maker, "a", "not the output of one layer"),
    "shared maker, relu": (
        relus_behind_a_shared_maker,
        "relu2",
        "'a' makes it, which is called several times",
    ),
    "read before the relu": (
        read_before_the_relu,
        "relu",
        "what 'relu' reads has other readers",
    ),
    "channels_first": (
        lambda x: conv("b", data_format="channels_first")(conv("a")(x)),
        "a",
        "'b' reads it, which is channels_first",
    ),
}


@pytest.mark.parametrize(("build", "key", "reason"), CASES.values(), ids=CASES)
def test_sites_of_all_tensors(build: Any, key: str, reason: str | None) -> None:
    graph = Graph(make(build))
    sites = all_sites(graph)
    found, reasons = splittable_sites(graph, sites, set(graph.kernels))
    assert found | set(reasons) == {site.key for site in sites}
    assert not found & set(reasons)
    if reason is None:
        assert key in found
    else:
        assert re.search(reason, reasons[key]), reasons[key]


def test_a_reader_in_float() -> None:
    graph = Graph(make(chain()))
    _, reasons = splittable_sites(graph, all_sites(graph, {"a"}), {"a"})
    assert reasons["a"] == "'b' reads it, which stays in float"


def test_a_maker_in_float() -> None:
    graph = Graph(make(chain(conv("c"))))
    _, reasons = splittable_sites(graph, all_sites(graph, {"c", "b"}), {"c", "b"})
    assert reasons["a"] == "'a' makes it, which cannot repeat single channels"


@pytest.mark.parametrize(
    "build", [behind_a_sum, concatenation, residual, shared_reader], ids=lambda b: b.__name__
)
def test_whatever_a_single_layer_reads(build: Any) -> None:
    """Where each layer rounds its own input, it does not matter who makes it."""
    graph = Graph(make(build))
    kernels = set(graph.kernels)
    found, reasons = splittable_sites(graph, input_sites(graph, kernels), kernels)
    first = graph.first_kernels()
    assert found == {f"{name}:input" for name in kernels - first}
    assert set(reasons) == {f"{name}:input" for name in first}


def test_inputs_of_layers_that_are_not_split() -> None:
    graph = Graph(make(chain(layers.DepthwiseConv2D(3, name="depthwise"), conv("c", groups=2))))
    kernels = set(graph.kernels)
    found, reasons = splittable_sites(graph, input_sites(graph, kernels), kernels)
    assert found == {"b:input"}
    assert "depthwise convolution" in reasons["depthwise:input"]
    assert "in groups of channels" in reasons["c:input"]


@pytest.mark.parametrize("rank", twins.RANKS)
def test_in_any_number_of_dimensions(rank: int) -> None:
    """Behind what is padded, cropped, enlarged and pooled to maxima alone."""
    inputs = keras.Input((*(6, 5, 4)[:rank], 4))
    x = twins.make("Conv{}D", rank, 6, 2, activation="relu", name="a")(inputs)
    for kind in ("ZeroPadding{}D", "Cropping{}D", "UpSampling{}D", "MaxPooling{}D"):
        x = twins.make(kind, rank)(x)
    x = twins.make("SpatialDropout{}D", rank, 0.5)(x)
    model = keras.Model(inputs, twins.make("Conv{}D", rank, 3, 1, name="b")(x))
    graph = Graph(model)
    found, _ = splittable_sites(graph, all_sites(graph), set(graph.kernels))
    assert "a" in found
