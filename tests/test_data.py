"""Representative data in all its forms."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ocs_tf.data import Source

IMAGES = np.arange(70 * 3, dtype=np.float32).reshape(70, 3)
LABELS = np.zeros(70, np.int64)


def batches(dataset: Any, model: keras.Model, **options: Any) -> Iterator[list[np.ndarray]]:
    return Source(dataset).batches(model, **options)


@pytest.fixture
def model() -> keras.Model:
    inputs = keras.Input((3,), name="image")
    return keras.Model(inputs, layers.Dense(2)(inputs))


@pytest.fixture
def pair() -> keras.Model:
    """Two inputs, of which the second holds integers and has an open length."""
    a, b = keras.Input((3,), name="a"), keras.Input((None,), dtype="int32", name="b")
    embedded = layers.GlobalAveragePooling1D()(layers.Embedding(9, 3)(b))
    return keras.Model([a, b], layers.Add()([a, embedded]))


class Pairs(keras.utils.PyDataset):
    def __init__(self, labels: bool) -> None:
        super().__init__()
        self.labels = labels

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        part = slice(10 * index, 10 * index + 10)
        return (IMAGES[part], LABELS[part]) if self.labels else IMAGES[part]


def dataset(*parts: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0])


FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: IMAGES,
    "float64": lambda: IMAGES.astype(np.float64),
    "uint8-cast": lambda: IMAGES.astype(np.uint8),
    "tensor": lambda: tf.constant(IMAGES),
    "list-of-one-array": lambda: [IMAGES],
    "list-of-samples": lambda: list(IMAGES),
    "dict": lambda: {"image": IMAGES},
    "tf.data-samples": lambda: dataset(IMAGES),
    "tf.data-size-1": lambda: dataset(IMAGES).batch(1),
    "tf.data-batches": lambda: dataset(IMAGES).batch(9),
    "tf.data-with-labels": lambda: dataset(IMAGES, LABELS).batch(9),
    "tf.data-with-weights": lambda: dataset(IMAGES, LABELS, LABELS).batch(9),
    "tf.data-dicts": lambda: dataset(IMAGES).batch(9).map(lambda x: {"image": x}),
    "tf.data-dicts-with-labels": lambda: dataset(IMAGES, LABELS).map(
        lambda x, y: ({"image": x}, y)
    ),
    "pydataset": lambda: Pairs(labels=False),
    "pydataset-with-labels": lambda: Pairs(labels=True),
    "generator": lambda: (sample[None] for sample in IMAGES),
    "callable-lists": lambda: lambda: ([sample[None]] for sample in IMAGES),
    "callable-samples": lambda: lambda: iter(IMAGES),
    "callable-dicts": lambda: lambda: ({"image": sample[None]} for sample in IMAGES),
    "callable-tensors": lambda: lambda: ([tf.constant(s[None])] for s in IMAGES),
    "callable-batches-of-any-size": lambda: lambda: iter([IMAGES[:1], IMAGES[1:60], IMAGES[60:]]),
}


def joined(parts: Iterator[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_samples(make: Callable[[], Any], model: keras.Model) -> None:
    (got,) = joined(batches(make(), model))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, IMAGES)


@pytest.mark.parametrize("form", ["array", "tf.data-size-1", "generator", "callable-lists"])
def test_batches_are_filled(form: str, model: keras.Model) -> None:
    sizes = [len(part[0]) for part in batches(FORMS[form](), model, batch_size=16)]
    assert sizes == [16, 16, 16, 16, 6]


@pytest.mark.parametrize("limit", [1, 16, 17, 70, 1000])
@pytest.mark.parametrize("form", ["array", "callable-lists", "tf.data-batches"])
def test_limit(form: str, limit: int, model: keras.Model) -> None:
    (got,) = joined(batches(FORMS[form](), model, limit=limit))
    np.testing.assert_array_equal(got, IMAGES[:limit])


def test_limit_stops_an_endless_stream(model: keras.Model) -> None:
    (got,) = joined(batches(dataset(IMAGES).repeat(), model, limit=100))
    assert len(got) == 100


def test_reads_once_and_holds_one_batch(model: keras.Model) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    largest = 0

    def stream() -> Iterator[list[np.ndarray]]:
        for sample in IMAGES:
            array = sample[None].copy()
            alive.append(weakref.ref(array))
            yield [array]

    for _ in batches(stream, model, batch_size=8):
        largest = max(largest, sum(ref() is not None for ref in alive))
    assert len(alive) == len(IMAGES)
    assert largest <= 2 * 8


def test_a_whole_array_is_converted_a_batch_at_a_time(model: keras.Model) -> None:
    class Counted(np.ndarray):
        largest = 0

        def astype(self, *args: Any, **kwargs: Any) -> Any:
            Counted.largest = max(Counted.largest, len(self))
            return super().astype(*args, **kwargs)

    parts = list(batches(IMAGES.astype(np.float64).view(Counted), model, batch_size=8))
    assert len(parts) == 9
    assert Counted.largest <= 8


TWO = {"a": IMAGES[:4], "b": np.ones((4, 5), np.int64)}


@pytest.mark.parametrize(
    "data",
    [
        TWO,
        dict(reversed(TWO.items())),
        list(TWO.values()),
        lambda: iter([TWO]),
        lambda: ([a[None], b[None]] for a, b in zip(*TWO.values(), strict=True)),
        dataset(TWO["a"], TWO["b"]).batch(2),
        dataset(TWO).batch(2),
        dataset(TWO).map(lambda x: (x, 0)),
    ],
    ids=[
        "dict",
        "dict-other-order",
        "list",
        "callable-dict",
        "callable-lists",
        "tf.data-tuples",
        "tf.data-dicts",
        "tf.data-dicts-with-labels",
    ],
)
def test_several_inputs(data: Any, pair: keras.Model) -> None:
    a, b = joined(batches(data, pair))
    np.testing.assert_array_equal(a, TWO["a"])
    np.testing.assert_array_equal(b, TWO["b"])
    assert b.dtype == np.int32


def test_names_of_unnamed_inputs_are_those_of_their_layers() -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    (got,) = joined(batches({model.layers[0].name: IMAGES}, model))
    np.testing.assert_array_equal(got, IMAGES)


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_names_of_a_dict_of_inputs_are_its_keys() -> None:
    inputs = {"x": keras.Input((3,), name="one"), "y": keras.Input((3,), name="two")}
    model = keras.Model(inputs, layers.Add()(list(inputs.values())))
    x, y = joined(batches({"y": IMAGES + 1, "x": IMAGES}, model))
    np.testing.assert_array_equal(x, y - 1)


def raises_at_the_third() -> Iterator[np.ndarray]:
    yield from IMAGES[:2]
    raise OSError("disk on fire")


ERRORS: dict[str, tuple[Any, str]] = {
    "empty-array": (IMAGES[:0], "`representative_dataset` is empty"),
    "empty-list": ([], "is empty"),
    "empty-generator": (lambda: iter([]), "is empty"),
    "wrong-shape": (IMAGES[:, :2], r"has shape \(32, 2\), but input 'image' takes .*shape \(3\)"),
    "wrong-rank": (IMAGES[None], r"has shape \(1, 70, 3\), but input 'image'"),
    "wrong-shape-later": (
        lambda: iter([IMAGES, IMAGES[:, :2]]),
        r"\(element 1\) has shape \(70, 2\)",
    ),
    "nan": (np.where(IMAGES == 5, np.nan, IMAGES), r"NaN or infinity, for input 'image'"),
    "infinity": (np.where(IMAGES == 205, np.inf, IMAGES), r"\(element 2\) holds NaN or infinity"),
    "strings": (np.array([["a", "b", "c"]]), "must be numbers, but has dtype <U1"),
    "wrong-name": ({"picture": IMAGES}, r"the keys \['picture'\], but the inputs are \['image'\]"),
    "too-many-arrays": (lambda: iter([[IMAGES, IMAGES]]), "holds 2 arrays for 1 inputs"),
    "raises": (raises_at_the_third, r"raised OSError\('disk on fire'\) after 2 elements"),
    "not-iterable": (lambda: 5, "returned int, which is not iterable"),
    "a-number": (5, r"\(a int\) must be an array, a dict or list of arrays"),
    "none": (None, r"\(a NoneType\) must be an array"),
}


@pytest.mark.parametrize(("data", "message"), ERRORS.values(), ids=ERRORS)
def test_unusable_data(data: Any, message: str, model: keras.Model) -> None:
    with pytest.raises(ValueError, match=message):
        list(batches(data, model))


PAIR_ERRORS: dict[str, tuple[Any, str]] = {
    "one-array": (IMAGES, "is one array, but the model has 2 inputs"),
    "missing-name": ({"a": IMAGES}, r"the keys \['a'\], but the inputs are \['a', 'b'\]"),
    "different-lengths": (
        {"a": IMAGES, "b": np.ones((4, 5))},
        r"inputs of different lengths: \[4, 70\]",
    ),
}


@pytest.mark.parametrize(("data", "message"), PAIR_ERRORS.values(), ids=PAIR_ERRORS)
def test_unusable_data_for_several_inputs(data: Any, message: str, pair: keras.Model) -> None:
    with pytest.raises(ValueError, match=message):
        list(batches(data, pair))


def test_the_cause_of_a_failing_generator_is_kept(model: keras.Model) -> None:
    with pytest.raises(ValueError, match="disk on fire") as caught:
        list(batches(raises_at_the_third, model))
    assert isinstance(caught.value.__cause__, OSError)
