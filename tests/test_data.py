"""Representative data in all its forms."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from keras import layers

from ocs_tf import data as data_module
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


class Tensor:
    """What another framework's tensors are to NumPy."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values

    def __getitem__(self, index: Any) -> Tensor:
        return Tensor(self.values[index])


class Labelled(Tensor):
    """Slices by labels, as pandas does; rows by `iloc`."""

    def __getitem__(self, index: Any) -> Tensor:
        raise KeyError(index)

    @property
    def iloc(self) -> np.ndarray:
        return self.values


class Loader:
    """Iterable again and again, with labels in lists."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        return ([Tensor(IMAGES[i : i + 9]), Tensor(LABELS[i : i + 9])] for i in range(0, 70, 9))


class Indexed:
    """No iterator stops at its end."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> Any:
        return IMAGES[index % 70], 0


class Endless(Pairs):
    num_batches = None

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index % 7)


def rewritten() -> Iterator[np.ndarray]:
    """One array, written to again and again."""
    array = np.zeros(3, np.float32)
    for sample in IMAGES:
        array[:] = sample
        yield array


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
    "generator-with-labels": lambda: ((sample, 0) for sample in IMAGES),
    "generator-of-numbers": lambda: (tuple(sample.tolist()) for sample in IMAGES),
    "generator-of-one-array": lambda: rewritten(),
    "callable-of-one-array": lambda: rewritten,
    "tuple-with-labels": lambda: (IMAGES, LABELS),
    "tuple-with-labels-like-inputs": lambda: (IMAGES, IMAGES + 1),
    "tuple-with-weights": lambda: (IMAGES, LABELS, LABELS),
    "tuple-of-a-list-and-labels": lambda: ([IMAGES], LABELS),
    "tuple-of-a-dict-and-labels": lambda: ({"image": IMAGES}, LABELS),
    "dict-with-labels": lambda: {"image": IMAGES, "label": LABELS},
    "list-of-tuples": lambda: list(zip(IMAGES, LABELS, strict=True)),
    "list-of-dicts": lambda: [{"image": sample} for sample in IMAGES],
    "list-of-lists": lambda: IMAGES.tolist(),
    "list-of-batches": lambda: [IMAGES[:40], IMAGES[40:]],
    "float16": lambda: IMAGES.astype(np.float16),
    "bfloat16": lambda: tf.cast(IMAGES, "bfloat16"),
    "objects": lambda: IMAGES.astype(object),
    "like-a-tensor": lambda: Tensor(IMAGES),
    "like-a-loader": lambda: Loader(),
    "by-index": lambda: Indexed(),
    "sliced-by-labels": lambda: Labelled(IMAGES),
    "callable-array": lambda: lambda: IMAGES,
    "callable-dict": lambda: lambda: {"image": IMAGES},
    "callable-dataset": lambda: lambda: dataset(IMAGES, LABELS).batch(9),
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


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_every_form_can_be_read_again(make: Callable[[], Any], model: keras.Model) -> None:
    source = Source(make())
    started = source.batches(model)
    (fewer,) = joined(source.batches(model, limit=40))  # while the first pass goes on
    np.testing.assert_array_equal(fewer, IMAGES[:40])
    for parts in (started, source.batches(model)):
        np.testing.assert_array_equal(joined(parts)[0], IMAGES)


@pytest.mark.parametrize("form", ["array", "tf.data-batches", "generator", "callable-lists"])
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


@pytest.mark.parametrize("make", [lambda: itertools.cycle(IMAGES), lambda: Endless(True)])
def test_limit_stops_what_is_endless(make: Callable[[], Any], model: keras.Model) -> None:
    (got,) = joined(batches(make(), model, limit=100))
    np.testing.assert_array_equal(got, np.concatenate([IMAGES, IMAGES[:30]]))


def test_nothing_behind_the_limit_is_read(model: keras.Model) -> None:
    read: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for index, sample in enumerate(IMAGES):
            read.append(index)
            yield sample

    list(batches(stream, model, limit=10))
    assert read == list(range(10))


def test_a_callable_is_called_once_per_pass(model: keras.Model) -> None:
    calls: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        calls.append(1)
        return iter(IMAGES)

    source = Source(stream)
    for passes in (1, 2):
        list(source.batches(model))
        assert len(calls) == passes


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
        tuple(TWO.values()),
        (tuple(TWO.values()), LABELS[:4]),
        (list(TWO.values()), LABELS[:4]),
        (TWO, LABELS[:4]),
        lambda: (((a, b), 0) for a, b in zip(*TWO.values(), strict=True)),
        lambda: ([a, b] for a, b in zip(*TWO.values(), strict=True)),
        {**TWO, "label": LABELS},
        [{"b": TWO["b"][i], "a": TWO["a"][i]} for i in range(4)],
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
        "tuple",
        "tuple-with-labels",
        "list-with-labels",
        "dict-with-labels",
        "callable-tuples-with-labels",
        "callable-samples",
        "dict-with-labels-in-it",
        "list-of-dicts-in-another-order",
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


def test_a_tuple_is_inputs_where_the_shapes_fit() -> None:
    """Two arrays for two inputs are never inputs and labels."""
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, layers.Add()(inputs))
    for data in ((IMAGES, IMAGES + 1), lambda: zip(IMAGES, IMAGES + 1, strict=True)):
        x, y = joined(batches(data, model))
        np.testing.assert_array_equal(x, y - 1)
    with pytest.raises(ValueError, match="one array, but the model has 2 inputs"):
        batches((IMAGES, LABELS), model)


COLUMN = np.arange(5.0)


@pytest.mark.parametrize(
    ("shape", "data", "expected"),
    [
        ((1,), COLUMN, COLUMN[:, None]),
        ((1,), COLUMN.tolist(), COLUMN[:, None]),
        ((1,), (COLUMN, COLUMN), COLUMN[:, None]),
        ((1,), list(zip(COLUMN, COLUMN, strict=True)), COLUMN[:, None]),
        ((), COLUMN[:, None], COLUMN),
        ((5, 5, 1), np.ones((2, 5, 5)), np.ones((2, 5, 5, 1))),
        ((5, 5, 1), np.ones((5, 5)), np.ones((1, 5, 5, 1))),
    ],
)
def test_a_last_axis_of_one_may_be_missing(shape: Any, data: Any, expected: np.ndarray) -> None:
    """As in Keras."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.Identity()(inputs))
    (got,) = joined(batches(data, model))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "data",
    [
        np.array([["ab"], ["c"]]),
        np.array(["ab", "c"]),
        ["ab", "c"],
        tf.constant([["ab"], ["c"]]),
        np.array([["ab"], ["c"]], object),
        dataset(["ab", "c"], [0, 1]),
    ],
)
def test_strings(data: Any) -> None:
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, layers.StringLookup(vocabulary=["c", "ab"])(inputs))
    (got,) = joined(batches(data, model))
    np.testing.assert_array_equal(model(got), [[2], [1]])
    with pytest.raises(ValueError, match="must be strings, but has dtype int64"):
        batches(np.ones((2, 1), np.int64), model)


def typed(dtype: str) -> keras.Model:
    inputs = keras.Input((2,), dtype=dtype, name="ids")
    return keras.Model(inputs, layers.Identity()(inputs))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int32", [[1.0, 2.0]]),
        ("uint8", [[0, 255]]),
        ("bool", [[0, 1]]),
        ("float32", [[True, False]]),
        ("float32", np.array([[1, 2]], np.uint8)),
        ("float16", [[0.5, 65504.0]]),
    ],
)
def test_dtypes(dtype: str, values: Any) -> None:
    (got,) = joined(batches(np.array(values), typed(dtype)))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.array(values).astype(dtype))


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("int32", [[1.0, 2.5]], r"holds 2.5, but input 'ids' takes int32: round the values"),
        ("int32", [[1, 2**40]], r"holds 1099511627776, but input 'ids' takes int32, -2147483648"),
        ("uint8", [[-1, 2]], r"holds -1, but input 'ids' takes uint8, 0 to 255"),
        ("bool", [[1, 2]], r"holds 2, but input 'ids' takes bool, 0 to 1"),
        ("float16", [[1, 70000.0]], r"holds 70000.0, but input 'ids' takes float16"),
    ],
)
def test_what_a_dtype_does_not_hold(dtype: str, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches(np.array(values), typed(dtype))


def test_samples_of_different_shapes_are_in_different_batches() -> None:
    inputs = keras.Input((None,), name="ids", dtype="int32")
    model = keras.Model(inputs, layers.Identity()(inputs))
    sentences = [[1], [1, 2], [3, 4], [1, 2, 3]]
    found = [part.tolist() for (part,) in batches(sentences, model)]
    assert found == [[[1]], [[1, 2], [3, 4]], [[1, 2, 3]]]


@pytest.mark.parametrize(
    ("count", "lengths"), [(12, [4, 4, 4]), (10, [4, 4, 2]), (3, [3])], ids=["even", "odd", "few"]
)
def test_a_fixed_batch_size(count: int, lengths: list[int]) -> None:
    """Short batches are filled up by repeating what is in them."""
    inputs = keras.Input((3,), batch_size=4)
    model = keras.Model(inputs, layers.Identity()(inputs))
    data = IMAGES[:count]
    parts = [part for (part,) in batches(data, model)]
    assert [len(part) for part in parts] == [4] * len(lengths)
    for index, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        own = data[4 * index :][:length]
        np.testing.assert_array_equal(part, np.tile(own, (4, 1))[:4])
    assert [len(part) for (part,) in batches(data, model, fill=False)] == lengths


def raises_at_the_third() -> Iterator[np.ndarray]:
    yield from IMAGES[:2]
    raise OSError("disk on fire")


MASKED = np.ma.masked_equal(IMAGES, 182)  # in its 61st sample


class Unreadable:
    def __iter__(self) -> Any:
        raise OSError("no disk")


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
    "cannot-be-read": (Unreadable(), r"raised OSError\('no disk'\) when it was read"),
    "ragged-tensor": (tf.ragged.constant([[1.0, 2], [1]]), "is ragged: .* Pad them to one length"),
    "ragged-batch": (
        lambda: dataset(tf.ragged.constant([[1.0, 2], [1]])).batch(2),
        r"\(element 0\) is ragged",
    ),
    "ragged-lists": (lambda: iter([{"image": [[1, 2, 3], [1]]}]), "is ragged"),
    "sparse": (tf.sparse.from_dense(IMAGES), "is sparse; make it dense"),
    "sparse-scipy": (lambda: iter([scipy.sparse.csr_matrix(IMAGES)]), "is sparse"),
    "masked": (MASKED, r"`representative_dataset` is a masked array.*give its filled"),
    "masked-by-name": ({"image": MASKED}, r"`representative_dataset` is a masked array"),
    "masked-with-labels": ((MASKED, np.zeros(70)), r"`representative_dataset` is a masked array"),
    "masked-samples": (lambda: iter([IMAGES, MASKED]), r"\(element 1\) is a masked array"),
    "masked-in-a-list": (lambda: iter([[IMAGES[0], MASKED[60]]]), "is a masked array"),
    "missing": (np.array([[1, None, 2]], object), "must be numbers, but has dtype object"),
    "complex": (IMAGES + 1j, "must be numbers, but has dtype complex64"),
    "endless": (dataset(IMAGES).repeat(), "is endless: limit it"),
    "endless-pydataset": (Endless(True), "is endless: limit it"),
    "used-up": (iter([]), "is an iterator with nothing left to read.* Pass a callable"),
    "a-path": ("images.npy", r"\(a str\) must be an array"),
    "call-raises": (lambda x: x, r"raised TypeError\(.*\) when it was called"),
    "call-of-nothing": (lambda: None, "returned NoneType, which is not iterable"),
    "not-iterable": (lambda: 5, "returned int, which is not iterable"),
    "a-number": (5, r"\(a int\) must be an array, a dict or list of arrays"),
    "none": (None, r"\(a NoneType\) must be an array"),
}


@pytest.mark.parametrize(("data", "message"), ERRORS.values(), ids=ERRORS)
def test_unusable_data(data: Any, message: str, model: keras.Model) -> None:
    with pytest.raises(ValueError, match=message):
        list(batches(data, model))


def test_masked_arrays_that_mask_nothing_or_are_filled(model: keras.Model) -> None:
    for data in (np.ma.array(IMAGES), MASKED.filled(182)):
        (found,) = joined(batches(data, model))
        np.testing.assert_array_equal(found, IMAGES)


def endless() -> Iterator[np.ndarray]:
    while True:
        yield IMAGES


def unknown(times: int) -> tf.data.Dataset:
    """A dataset whose length TensorFlow does not know."""
    return tf.data.Dataset.from_tensors(IMAGES).repeat(times).filter(lambda x: True)


ENDLESS = {
    "function": lambda: endless,
    "generator": lambda: endless(),
    "map": lambda: map(np.asarray, endless()),
    "tf.data": lambda: unknown(-1),
    "function-of-tf.data": lambda: lambda: unknown(100),
}


@pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
def test_data_without_a_length_are_read_up_to_a_limit(
    make: Callable[[], Any], model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "MOST_SAMPLES", 100)
    with pytest.warns(UserWarning, match=r"does not say how many .* the first 100 are used"):
        (found,) = joined(batches(make(), model))
    np.testing.assert_array_equal(found, np.concatenate([IMAGES, IMAGES[:30]]))


@pytest.mark.parametrize("wrap", [np.asarray, list, lambda x: lambda: list(x), dataset])
def test_data_with_a_length_are_read_to_their_end(
    wrap: Any, model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "MOST_SAMPLES", 10)
    (found,) = joined(batches(wrap(IMAGES), model))
    np.testing.assert_array_equal(found, IMAGES)


PAIR_ERRORS: dict[str, tuple[Any, str]] = {
    "one-array": (IMAGES, "is one array, but the model has 2 inputs"),
    "missing-name": ({"a": IMAGES}, r"the keys \['a'\], but the inputs are \['a', 'b'\]"),
    "different-lengths": (
        {"a": IMAGES, "b": np.ones((4, 5))},
        r"inputs of different lengths: \[4, 70\]",
    ),
    "different-lengths-listed": (
        [IMAGES, np.ones((4, 5))],
        r"^`representative_dataset` has inputs of different lengths: \[4, 70\]",
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


def test_an_iterator_that_a_callable_gives_twice(model: keras.Model) -> None:
    once = iter(IMAGES)
    source = Source(lambda: once)
    assert len(joined(source.batches(model))[0]) == 70
    with pytest.raises(ValueError, match=r"gives the same iterator each time.* make a new one"):
        source.batches(model)


def test_samples_that_are_not_there_again(model: keras.Model) -> None:
    stack = list(IMAGES)

    def stream() -> Iterator[np.ndarray]:
        while stack:
            yield stack.pop()

    source = Source(stream)
    list(source.batches(model))
    with pytest.raises(ValueError, match=r"none when it was read again.* Pass a callable"):
        source.batches(model)


def test_data_that_do_not_fit_fail_before_they_are_iterated(model: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"shape \(70, 2\)"):
        Source(lambda: iter([IMAGES[:, :2]])).batches(model)


def test_a_source_of_a_source_is_itself() -> None:
    source = Source(IMAGES)
    assert Source.of(source) is source
    assert Source.of(None) is None
