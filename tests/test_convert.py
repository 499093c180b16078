"""`convert` from end to end: numbers, promises, and every documented error."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import ocs_tf
from ocs_tf.layers import FakeQuantize, KernelLayer
from ocs_tf.numerics import ActivationGrid

CHECKOUT = pathlib.Path(ocs_tf.__file__).resolve().parents[1]
SHAPE = (8, 8, 3)


def network() -> keras.Model:
    inputs = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(8, 3, name="stem")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Add(name="sum")([x, layers.Conv2D(8, 1, activation="relu", name="middle")(x)])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x))


@pytest.fixture
def model(randomize: Any) -> keras.Model:
    return randomize(network())


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 1, (64, *SHAPE)).astype(np.float32)


def convert(model: Any, *args: Any, **options: Any) -> keras.Model:
    return ocs_tf.convert(model, *args, verbose=False, **options)


def predict(model: keras.Model, x: Any) -> np.ndarray:
    return np.asarray(model.predict(x, verbose=0))


# Numbers --------------------------------------------------------------------------------------


def integer_dense(codes: np.ndarray, grid: ActivationGrid, layer: KernelLayer) -> np.ndarray:
    """What integer hardware adds up: int64 sums of codes and a bias on their step."""
    step = np.asarray(layer.scale, np.float64) * grid.scale
    bias = np.rint(np.asarray(layer.bias, np.float64) / step).astype(np.int64)
    kernel = layer.quantized_kernel().effective_codes().astype(np.int64)
    return ((codes.astype(np.int64) - grid.zero_point) @ kernel + bias) * step


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_equals_integer_arithmetic_by_hand(
    bits: int, symmetric: bool, randomize: Any, rng: np.random.Generator
) -> None:
    model = randomize(
        keras.Sequential(
            [
                keras.Input((20,)),
                layers.Dense(30, activation="relu", name="a"),
                layers.Dense(10, activation="softmax", name="b"),
            ]
        )
    )
    x = rng.normal(size=(200, 20)).astype(np.float32)
    quantized = convert(
        model,
        weight_bits=5,
        activation_bits=bits,
        expand_ratio=0.1,
        last_layer_bits="same",
        first_activation_bits="same",
        last_activation_bits="same",
        activation_clip="none",
        activation_symmetric=symmetric,
        representative_dataset=x,
    )
    (w1, b1), (w2, b2) = (model.get_layer(name).get_weights() for name in "ab")
    hidden = np.maximum(x @ w1 + b1, 0)
    ranges = [x, hidden, hidden @ w2 + b2]
    grids = [ActivationGrid.from_range(v.min(), v.max(), bits, symmetric) for v in ranges]
    a, b = (quantized.get_layer(name) for name in "ab")

    h = np.maximum(integer_dense(grids[0].quantize(x), grids[0], a), 0)
    logits = grids[2].fake_quantize(integer_dense(grids[1].quantize(h), grids[1], b))
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    levels = 2**bits
    want = np.rint(odds / odds.sum(-1, keepdims=True) * levels).clip(0, levels - 1) / levels
    difference = np.abs(predict(quantized, x) - want)
    assert (difference > 1e-6).mean() < 0.01  # a tie in the ranges or sums, now and then
    assert difference.max() < 3 / levels


def test_paper_equals_a_pass_by_hand(randomize: Any, rng: np.random.Generator) -> None:
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(inputs)
    x = layers.Conv2D(6, 1, name="conv")(x)
    model = randomize(keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x))))
    images = rng.normal(size=(50, 6, 6, 3)).astype(np.float32)
    config = ocs_tf.Config.paper(
        weight_bits=4, activation_bits=6, expand_ratio=0.1, weight_clip="mse"
    )
    quantized = convert(model, config, representative_dataset=images)

    stem = keras.Model(inputs, model.get_layer("stem").output)
    hidden = predict(stem, images)
    grid = ActivationGrid.from_range(hidden.min(), hidden.max(), 6, symmetric=True)
    kernel, bias = model.get_layer("conv").get_weights()
    effective = ocs_tf.numerics.quantize_kernel(kernel, 4, 0.1, "mse").effective_kernel()[0, 0]
    features = grid.fake_quantize(hidden) @ effective
    (head, head_bias) = model.get_layer("head").get_weights()
    want = (features + bias).reshape(50, -1) @ head + head_bias
    # The bias of an integer convolution is rounded to the step of its sums.
    step = grid.scale * float(np.asarray(quantized.get_layer("conv").scale))
    allowed = 0.5 * step * np.abs(head).sum(0).max() + 1e-4
    assert np.abs(predict(quantized, images) - want).max() <= allowed


@pytest.mark.parametrize("rule", ["count", "maximum", "error"])
def test_split_activations_equal_a_pass_with_copies_by_hand(
    rule: str, randomize: Any, rng: np.random.Generator
) -> None:
    inputs = keras.Input((12,))
    x = layers.Dense(10, activation="relu", name="stem")(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(6, name="head")(x)))
    images = rng.normal(size=(200, 12)).astype(np.float32)
    quantized = convert(
        model,
        activation_scope="inputs",
        activation_bits=4,
        first_layer_bits=None,
        activation_expand_ratio=0.3,
        activation_split=rule,
        rounding="nearest",
        bias_correction=False,
        representative_dataset=images,
    )
    grid = quantized.get_layer("head_input_quantizer").grid
    assert len(grid.copies) == 3
    hidden = predict(keras.Model(inputs, model.get_layer("stem").output), images)
    # Copies, each of them on the plain grid, and what reads them: weights as they are.
    copies = dataclasses.replace(grid, copies=()).quantize(
        ocs_tf.numerics.split_values(hidden, grid.copies, grid.scale)
    )
    head = quantized.get_layer("head")
    channels = [*range(10), *grid.copies]
    codes = head.quantized_kernel().effective_codes()[channels].astype(np.int64)
    step = np.asarray(head.scale, np.float64) * grid.scale
    bias = np.rint(np.asarray(head.bias, np.float64) / step)
    want = ((copies.astype(np.int64) - grid.zero_point) @ codes + bias) * step
    np.testing.assert_allclose(predict(quantized, images), want, rtol=1e-5, atol=1e-5)


def test_an_oracle_is_closer_with_smaller_batches(randomize: Any) -> None:
    """It sees less at once, so that its choice suits it better."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((12,))
    x = layers.Dense(30, activation="relu", name="stem")(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(6, name="head")(x)))
    images = rng.standard_cauchy((256, 12)).clip(-30, 30).astype(np.float32)
    quantized = convert(
        model,
        activation_scope="inputs",
        activation_bits=4,
        first_layer_bits=None,
        activation_expand_ratio=0.1,
        activation_split="oracle",
        representative_dataset=images,
    )
    want = predict(model, images)

    def error(batch: int) -> float:
        parts = [quantized.predict_on_batch(p) for p in np.split(images, 256 // batch)]
        return float(np.square(np.concatenate(parts) - want).sum())

    assert error(1) < error(16) < error(256)


def test_more_bits_are_closer(model: keras.Model, images: np.ndarray) -> None:
    want = predict(model, images)
    errors = [
        np.abs(
            predict(
                convert(model, weight_bits=b, first_layer_bits="same", last_layer_bits="same"),
                images,
            )
            - want
        ).mean()
        for b in (2, 4, 6, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.005


def test_16_bit_activations_are_closer_than_8(model: keras.Model, images: np.ndarray) -> None:
    quantized = {
        bits: convert(model, activation_bits=bits, representative_dataset=images)
        for bits in (None, 8, 16)
    }
    float_activations = predict(quantized[None], images)
    errors = {b: np.abs(predict(quantized[b], images) - float_activations).mean() for b in (8, 16)}
    assert errors[16] < errors[8] / 20


def test_splitting_helps_a_kernel_with_outliers(randomize: Any, rng: np.random.Generator) -> None:
    model = randomize(keras.Sequential([keras.Input((100,)), layers.Dense(50, name="layer")]))
    kernel = np.asarray(model.layers[0].kernel).copy()
    kernel[[3, 50], 7] = 10 * np.abs(kernel).max()
    model.layers[0].kernel.assign(kernel)
    x = rng.normal(size=(100, 100)).astype(np.float32)
    errors = [
        np.square(
            predict(
                convert(
                    model,
                    overrides={"layer": {"weight_bits": 4, "expand_ratio": ratio}},
                    granularity="tensor",
                    weight_clip="none",
                ),
                x,
            )
            - predict(model, x)
        ).mean()
        for ratio in (0.0, 0.1)
    ]
    assert errors[1] < errors[0] / 2


# An ordinary Keras model ------------------------------------------------------------------------


def test_is_an_ordinary_model(model: keras.Model, images: np.ndarray) -> None:
    quantized = convert(model, weight_bits=5, representative_dataset=images)
    assert type(quantized) is type(model)
    kept = [layer.name for layer in quantized.layers if not isinstance(layer, FakeQuantize)]
    assert kept == [layer.name for layer in model.layers if layer.name != "norm"]
    assert quantized.output_names == model.output_names
    assert quantized.predict({"image": images}, verbose=0).shape == (64, 4)
    assert quantized.count_params() > 0
    quantized.summary(print_fn=lambda *_: None)


def compiled(model: keras.Model) -> keras.Model:
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_a_compiled_model_comes_out_compiled(
    kind: str, model: keras.Model, images: np.ndarray, rng: np.random.Generator
) -> None:
    if kind == "sequential":
        model = keras.Sequential(
            [keras.Input(SHAPE), layers.Flatten(), layers.Dense(4, activation="softmax")]
        )
    quantized = convert(compiled(model))
    labels = rng.integers(0, 4, 64)
    got, want = (m.evaluate(images, labels, verbose=0) for m in (quantized, model))
    assert got == pytest.approx(want, abs=0.05)
    assert quantized.optimizer is not model.optimizer


def test_an_uncompiled_model_stays_uncompiled(model: keras.Model) -> None:
    assert not convert(model).compiled


def test_a_loss_that_cannot_be_copied_is_reported(model: keras.Model) -> None:
    model.compile("adam", lambda y, p: keras.ops.mean((y - p) ** 2))
    with pytest.warns(UserWarning, match=r"is not compiled.*call compile\(\) on it"):
        quantized = convert(model)
    assert not quantized.compiled


def test_every_verbosity_and_option_form(
    model: keras.Model, images: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    config = ocs_tf.Config(weight_bits=5)
    first = ocs_tf.convert(model, config, verbose=True)
    second = ocs_tf.convert(model, weight_bits=5, verbose=False)
    np.testing.assert_array_equal(predict(first, images), predict(second, images))
    assert "Planning" not in capfd.readouterr().err  # only what takes long shows progress


def test_calibration_samples(model: keras.Model, images: np.ndarray) -> None:
    outlier = images.copy()
    outlier[40:] *= 100
    options = {"representative_dataset": outlier, "verbose": False}
    few = ocs_tf.plan(model, calibration_samples=40, **options)
    same = ocs_tf.plan(model, representative_dataset=images[:40], verbose=False)
    assert few == same
    assert ocs_tf.plan(model, **options).activations["image"].maximum > 50


@pytest.mark.parametrize("scope", ["all", "inputs"])
def test_the_form_of_the_data_does_not_matter(
    scope: str, model: keras.Model, images: np.ndarray
) -> None:
    def singles() -> Iterator[list[np.ndarray]]:
        return ([image[None]] for image in images)

    plans = [
        ocs_tf.plan(model, representative_dataset=d, activation_scope=scope, verbose=False)
        for d in (images, {"image": images}, singles, singles(), (images, images[:, 0, 0, 0]))
    ]
    assert all(plan == plans[0] for plan in plans)


def test_a_generator_gives_the_model_that_an_array_does(
    model: keras.Model, images: np.ndarray
) -> None:
    """It is read for widths, for ranges and for codes."""
    options = {"average_bits": 4, "verbose": False}
    expected = ocs_tf.convert(model, representative_dataset=images, **options)
    got = ocs_tf.convert(model, representative_dataset=(image for image in images), **options)
    for one, other in zip(expected.get_weights(), got.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_callable_is_called_once_per_pass(model: keras.Model, images: np.ndarray) -> None:
    calls: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        calls.append(1)
        return iter(images)

    ocs_tf.convert(model, weight_bits=4, representative_dataset=stream, verbose=False)
    assert len(calls) == 2  # for ranges, and for codes


def test_a_used_up_generator_is_refused(model: keras.Model, images: np.ndarray) -> None:
    used = (image for image in images)
    options = {"weight_bits": 4, "verbose": False}
    plan = ocs_tf.plan(model, representative_dataset=used, **options)
    with pytest.raises(ValueError, match=r"nothing left to read.* Pass a callable"):
        ocs_tf.apply(model, plan, representative_dataset=used, verbose=False)


def test_endless_data_are_read_to_the_default_limit() -> None:
    """The 1,024th sample is the last."""
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    rows = (np.full(2, min(count, 1026), np.float32) for count in itertools.count(1))
    plan = ocs_tf.plan(model, representative_dataset=rows, verbose=False)
    assert plan.activations["x"].maximum == pytest.approx(1024, rel=1e-6)
    data = np.arange(1, 1027, dtype=np.float32)[:, None].repeat(2, 1)
    options = {"calibration_samples": None, "verbose": False}
    plan = ocs_tf.plan(model, representative_dataset=data, **options)
    assert plan.activations["x"].maximum == pytest.approx(1026, rel=1e-6)


@pytest.mark.parametrize("bits", [8, None])
def test_data_that_do_not_fit_fail_before_the_work(
    bits: int | None, model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["ocs_tf._convert"], "plan_kernels", None)
    with pytest.raises(ValueError, match=r"has shape \(9, 2\), but input 'image'"):
        ocs_tf.convert(model, activation_bits=bits, representative_dataset=np.ones((9, 2)))


def test_a_model_of_a_fixed_batch_size(images: np.ndarray) -> None:
    """It, too, can only be called on batches of that size."""
    inputs = keras.Input((6,), batch_size=4, name="x")
    x = keras.ops.reshape(layers.Dense(4, activation="relu")(inputs), (2, 8))
    model = keras.Model(inputs, layers.Dense(3)(x))
    data = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    quantized = ocs_tf.convert(model, weight_bits=8, representative_dataset=data, verbose=False)
    expected = model.predict_on_batch(data[:4])
    np.testing.assert_allclose(quantized.predict_on_batch(data[:4]), expected, atol=0.05)


# Saving, determinism ----------------------------------------------------------------------------

IN_A_NEW_PROCESS = """
import pathlib, sys
import keras, numpy as np, ocs_tf
folder = pathlib.Path(sys.argv[1])
x = np.load(folder / "x.npy")
loaded = keras.models.load_model(folder / "quantized.keras")
np.save(folder / "loaded.npy", loaded.predict(x, verbose=0))
split = keras.models.load_model(folder / "split.keras")
np.save(folder / "split.npy", split.predict(x, verbose=0))
model = keras.models.load_model(folder / "float.keras")
options = {"rounding": "nearest", "bias_correction": False, "representative_dataset": x}
plan = ocs_tf.plan(model, weight_bits=5, expand_ratio=0.2, **options)
(folder / "plan.json").write_text(plan.to_json())
again = ocs_tf.apply(model, plan)
np.savez(folder / "again.npz", *again.get_weights())
"""


def digest(arrays: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def test_a_new_process_with_one_thread_gives_the_same_bits(
    model: keras.Model, images: np.ndarray, tmp_path: pathlib.Path
) -> None:
    # Sums of products of activations, which error compensation goes by, depend on threads.
    plan = ocs_tf.plan(
        model,
        weight_bits=5,
        expand_ratio=0.2,
        rounding="nearest",
        bias_correction=False,
        representative_dataset=images,
        verbose=False,
    )
    quantized = ocs_tf.apply(model, plan, verbose=False)
    options: dict[str, Any] = {"activation_scope": "inputs", "activation_bits": 4}
    split = convert(model, **options, activation_expand_ratio=0.3, representative_dataset=images)
    assert split.get_layer("middle_input_quantizer").grid.copies
    model.save(tmp_path / "float.keras")
    quantized.save(tmp_path / "quantized.keras")
    split.save(tmp_path / "split.keras")
    np.save(tmp_path / "x.npy", images)
    one_thread = {
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "12345",
        "PYTHONPATH": str(CHECKOUT),
    }
    subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path)],
        env={**os.environ, **one_thread},
        check=True,
        capture_output=True,
    )
    np.testing.assert_array_equal(np.load(tmp_path / "loaded.npy"), predict(quantized, images))
    np.testing.assert_array_equal(np.load(tmp_path / "split.npy"), predict(split, images))
    assert (tmp_path / "plan.json").read_text() == plan.to_json()
    again = np.load(tmp_path / "again.npz")
    assert digest([again[key] for key in again.files]) == digest(quantized.get_weights())


def test_the_file_is_a_quarter(tmp_path: pathlib.Path, randomize: Any) -> None:
    model = randomize(keras.Sequential([keras.Input((500,)), layers.Dense(500), layers.Dense(500)]))
    model.save(tmp_path / "float.keras")
    convert(model).save(tmp_path / "quantized.keras")
    sizes = [(tmp_path / f"{n}.keras").stat().st_size for n in ("quantized", "float")]
    assert sizes[0] / sizes[1] < 0.28


PEAK_MEMORY = """
import resource, sys
import keras, numpy as np, ocs_tf
from keras import layers

def convert(size):
    model = keras.Sequential([keras.Input((size,)), layers.Dense(size), layers.Dense(size)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = {"weight_clip": "none", "equalization": sys.argv[1] == "True"}
    ocs_tf.convert(model, last_layer_bits=5, expand_ratio=0.02, **options)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (8 * size**2)

convert(4)  # what TensorFlow sets up at the first use
print(convert(3000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux only")
@pytest.mark.parametrize(
    ("equalization", "models"), [(False, 2), (True, 3)], ids=["plain", "equalized"]
)
def test_peak_memory_is_below_twice_the_model(equalization: bool, models: int) -> None:
    """Equalization works on one more copy of the model."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, str(equalization)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert float(run.stdout) < models


# Errors -----------------------------------------------------------------------------------------


def bad(images: Any = None, **options: Any) -> dict[str, Any]:
    return {**options, **({} if images is None else {"representative_dataset": images})}


IMAGES = np.ones((4, *SHAPE), np.float32)
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown-option": (bad(weight_bit=4), "unknown option 'weight_bit'; known: activation_bits"),
    "bits": (bad(weight_bits=1), r"`weight_bits` \(=1\) must be an integer from 2 to 8"),
    "ratio": (bad(expand_ratio=1.5), r"`expand_ratio` \(=1.5\) must be a number from 0 to 1"),
    "split-without-data": (
        bad(activation_expand_ratio=0.1),
        r"`activation_expand_ratio` \(=0.1\) needs `representative_dataset`",
    ),
    "empty": (bad(IMAGES[:0]), "`representative_dataset` is empty"),
    "shape": (bad(IMAGES[:, :4]), r"has shape \(4, 4, 8, 3\), but input 'image' takes"),
    "name": (bad({"picture": IMAGES}), r"the keys \['picture'\], but the inputs are \['image'\]"),
    "nan": (bad(np.nan * IMAGES), "holds NaN or infinity, for input 'image'"),
    "not-data": (bad(3.5), r"\(a float\) must be an array"),
    "override": (bad(overrides={"conv9": {}}), "name 'conv9', which matches no layer"),
    "override-option": (bad(overrides={"stem": {"bits": 3}}), "unknown option 'bits'"),
}


@pytest.mark.parametrize(("options", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_input(options: dict[str, Any], message: str, model: keras.Model) -> None:
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(ValueError, match=message):
        convert(model, **options)
    assert digest(before) == digest(model.get_weights())


def test_config_and_options_together(model: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"either `config` or options.*got weight_bits beside"):
        convert(model, ocs_tf.Config(), weight_bits=4)
    with pytest.raises(ValueError, match=r"`config` must be an ocs_tf.Config, but is \{'weight"):
        convert(model, {"weight_bits": 4})


def late_failure() -> Iterator[np.ndarray]:
    yield from IMAGES
    raise RuntimeError("camera unplugged")


def test_a_generator_that_raises(model: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"RuntimeError\('camera unplugged'\) after 4 elements"):
        convert(model, representative_dataset=late_failure)


def test_bad_data_is_noticed_before_the_kernels_are_planned(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("planned before the data was looked at")

    monkeypatch.setattr(sys.modules["ocs_tf._convert"], "plan_kernels", never)
    with pytest.raises(ValueError, match="has shape"):
        convert(model, representative_dataset=IMAGES[:, :4])


def test_an_activation_that_overflows_is_named(model: keras.Model) -> None:
    for name in ("stem", "middle"):
        model.get_layer(name).bias.assign([3e38] * 8)
    with pytest.raises(ValueError, match=r"NaN or infinity at '.*', on the calibration data"):
        convert(model, fold_batch_norm=False, representative_dataset=IMAGES)


@pytest.mark.parametrize("again", ["convert", "apply"])
def test_a_quantized_model_is_not_quantized_twice(again: str, model: keras.Model) -> None:
    quantized = convert(model)
    functions: dict[str, Callable[[], Any]] = {
        "convert": lambda: convert(quantized),
        "apply": lambda: ocs_tf.apply(quantized, ocs_tf.Plan({}), verbose=False),
    }
    with pytest.raises(ValueError, match="quantized already: layer 'stem' is a QuantizedConv2D"):
        functions[again]()


def test_an_unbuilt_model() -> None:
    with pytest.raises(ValueError, match="is not built"):
        convert(keras.Sequential([layers.Dense(2)]))


# Functions of users ---------------------------------------------------------------------------


def own_function(x: Any) -> Any:
    """Known to nobody else."""
    return keras.ops.tanh(x) + keras.ops.relu(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda f: [keras.Input((6,)), layers.Dense(4, f), layers.Dense(2)],
        lambda f: [keras.Input((6, 2)), layers.Conv1D(4, 2, activation=f), layers.Dense(2)],
        lambda f: [keras.Input((6, 2)), layers.SeparableConv1D(4, 2, activation=f)],
        lambda f: [keras.Input((6, 2)), layers.EinsumDense("abc,cd->abd", (None, 3), activation=f)],
        lambda f: [keras.Input((6, 2)), layers.LSTM(3, f, recurrent_activation=f), layers.Dense(2)],
        lambda f: [keras.Input((6, 2)), layers.TimeDistributed(layers.Dense(3, f))],
    ],
    ids=["dense", "conv", "separable", "einsum", "lstm", "distributed"],
)
@pytest.mark.parametrize(
    "function", [own_function, lambda x: own_function(x)], ids=["def", "lambda"]
)
def test_activation_functions_that_keras_does_not_know(
    make: Any, function: Any, rng: np.random.Generator
) -> None:
    """They are not made from their names; only a file needs those, which is told."""
    model = keras.Sequential(make(function))
    x = rng.normal(size=(16, *model.input_shape[1:])).astype(np.float32)
    with pytest.warns(
        UserWarning, match="a .keras file of the quantized model will not load"
    ) as told:
        quantized = ocs_tf.convert(model, representative_dataset=x, verbose=False)
    assert not [w for w in told if "includes a `lambda`" in str(w.message)]
    assert ocs_tf.numerics.sqnr_db(model(x), quantized(x)) > 20
