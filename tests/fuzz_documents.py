"""Random changes to configurations, plans, quantized layers and `.keras` files.

    python tests/fuzz_documents.py --seconds 60 --seed 0

A document is given by the kind, the seed and its number. What comes of it must be a `ValueError`,
or something that works: it can be written and read again, it computes, its numbers are finite. What
Keras raises by itself, of a broken archive or of its own options, before any of our code has a say,
is Keras' own: `.keras` files may end in any exception but those of modules of `ocs_tf` and of what
they call of other packages. A document that takes longer than a minute ends the process.
"""

from __future__ import annotations

import argparse
import collections
import copy
import faulthandler
import io
import json
import pathlib
import re
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import keras
import numpy as np

import ocs_tf
from ocs_tf import Config, Override, Plan, layers

PACKAGE, KERAS = (str(pathlib.Path(package.__file__).parent) for package in (ocs_tf, keras))
SECONDS_PER_DOCUMENT = 60
APPLIED = 50  # of so many plans that are accepted, one is applied to a model
LARGEST = 1 << 20  # elements of a weight; memory is not what is tested

SPECIAL: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 4, 7, 8, 9, 16, 127, 128, 255, 1000),
    *(0.0, -0.0, 0.5, 1.0, 4.0, -1.5, 1e-45, 1e-38, 1e-30, 1e30, 3e38, 1e39, 1e308, 5e-324),
    *("", "auto", "same", "none", "true", "nearest", "error_balanced", "error_compensated"),
    *("tensor", "channel", "batch_norm", "a", "b", "conv", "norm", "\x00", "é", "layer" * 60),
    *([], {}, [0], [1.0, 2.0], [[]], {"": 0}, [None], ["a"], [0] * 9, [True]),
)
LARGE: tuple[Any, ...] = (2**31 - 1, 2**31, -(2**31), 2**63, 10**18, 2**64 + 1)
PATTERNS = (
    *(
        "(a+)+$",
        "(a|a)*b",
        "(a?){60}",
        "(.*)*",
        ".*.*.*.*.*.*x",
        "(",
        "a{99999999999}",
        "(?=(a+)+)",
    ),
    *(r"(\w+\s?)+!", "conv.*", "(?i)A", "[a-z]+_[0-9]+", "((a{99}){99}){99}", "(?P<x>a)(?P=x)*"),
)
TOKENS = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" + b"0" * 400, b"1" * 5000, b"-0", b"00"),
    *(b"[" * 3000, b"[" * 3000 + b"]" * 3000, b'{"a":' * 2000, b'"\\ud800"', b'"\\udfff\\ud800"'),
    *(
        b"\xff",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\x00",
        b"\xef\xbb\xbf",
        b"//",
        b"'",
        b",",
        b'"a":1,',
    ),
)


# Changes.


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container within `value`, with each of its keys or indices."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, (dict, list)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            found.append((value, key))
            found += places(value[key])
    return found


def pick(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(0, len(choices)))]


def changed_value(rng: np.random.Generator, value: Any, special: tuple[Any, ...]) -> Any:
    """Another value: special, or near `value`."""
    kind = rng.integers(0, 6)
    if kind == 0 and isinstance(value, (int, float)) and not isinstance(value, bool):
        return pick(rng, (value + 1, value - 1, -value, value * 2, float(value), str(value)))
    if kind == 1 and isinstance(value, str):
        return pick(rng, (value[1:], value.upper(), value + value, [value], pick(rng, PATTERNS)))
    if kind == 2:
        return pick(rng, ([value], {"x": value}, [[[value]]]))
    return copy.deepcopy(pick(rng, special))


def change(rng: np.random.Generator, root: Any, special: tuple[Any, ...]) -> None:
    """Change one place within `root`, a dict."""
    found = places(root)
    if not found:
        return
    container, key = pick(rng, found)
    kind = rng.integers(0, 8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[pick(rng, ("x", "bits", "name", "count", "regex", key.upper()))] = container[key]
    elif kind == 2 and isinstance(container, list):
        container.insert(
            int(rng.integers(0, len(container) + 1)), copy.deepcopy(pick(rng, special))
        )
    elif kind == 3:
        other, place = pick(rng, found)
        container[key] = copy.deepcopy(other[place]) if len(str(root)) < 1 << 16 else None
    else:
        container[key] = changed_value(rng, container[key], special)


def changed_text(rng: np.random.Generator, values: dict[str, Any]) -> bytes:
    """`values`, a little changed, as JSON; sometimes hardly so."""
    values = copy.deepcopy(values)
    for _ in range(rng.integers(0, 3)):
        change(rng, values, SPECIAL + LARGE)
    text = bytearray(json.dumps(values, allow_nan=True).encode())
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        start = int(rng.integers(0, len(text) + 1))
        kind = rng.integers(0, 3)
        if kind == 0:
            text[start : start + int(rng.integers(0, 9))] = pick(rng, TOKENS)
        elif kind == 1:
            text[start : start + 1] = bytes([int(rng.integers(0, 256))])
        else:
            # In the place of a number or word: what is around it stays JSON.
            start = text.find(b": ", start) + 2
            ends = [e for e in (text.find(c, start) for c in (b",", b"}", b"]")) if e > 0]
            text[start : min(ends, default=start)] = pick(rng, TOKENS)
    return bytes(text)


# Configurations.

CONFIGS = [
    Config(),
    Config.paper(weight_bits=4),
    Config(average_bits=4, allocation="sqnr", calibration_samples=9),
    Config(
        rounding="error_compensated",
        bias_correction=True,
        activation_expand_ratio=0.1,
        overrides=[
            Override("conv", 4, granularity="tensor"),
            Override(re.compile("b|dense_[0-9]*"), expand_ratio=0.2),
            Override(keras.layers.Conv2D, weight_clip="mse"),
        ],
    ),
]


class Named:
    name = "a" * 100


def config_document(rng: np.random.Generator) -> Callable[[], None]:
    text = changed_text(rng, json.loads(pick(rng, CONFIGS).to_json()))

    def use() -> None:
        config = Config.from_json(text)
        assert Config.from_json(config.to_json()) == config
        config.override_for(Named())
        with_data = bool(rng.integers(0, 2))
        resolved = config.resolve(with_data)
        assert "auto" not in (resolved.activation_bits, resolved.rounding, resolved.bias_correction)

    return use


# Plans.


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 3), name="in")
    x = keras.layers.Conv1D(4, 2, activation="relu", name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.DepthwiseConv1D(2, name="depth")(x)
    x = keras.layers.Flatten(name="flat")(x)
    x = keras.layers.Dense(3, activation="relu", name="a")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="b")(x), name="network")


class Plans:
    def __init__(self) -> None:
        self.model = network()
        self.x = np.random.default_rng(0).normal(size=(8, 5, 3)).astype(np.float32)
        options: list[dict[str, Any]] = [
            {"weight_bits": 4, "expand_ratio": 0.3},
            {"weight_bits": 8, "granularity": "tensor", "rounding": "nearest"},
            {
                "weight_bits": 3,
                "activation_scope": "inputs",
                "activation_expand_ratio": 0.3,
                "activation_split": "oracle",
                "quantization_aware": False,
            },
            {"weight_bits": 5, "activation_expand_ratio": 0.3, "full_range": True},
        ]
        self.plans = [
            json.loads(
                ocs_tf.plan(self.model, representative_dataset=self.x, verbose=False, **o).to_json()
            )
            for o in options
        ]
        self.kernels = {
            name: np.asarray(self.model.get_layer(name).kernel) for name in ("conv", "a", "b")
        }
        self.accepted = 0

    def __call__(self, rng: np.random.Generator) -> Callable[[], None]:
        text = changed_text(rng, pick(rng, self.plans))

        def use() -> None:
            plan = Plan.from_json(text)
            assert Plan.from_json(plan.to_json()) == plan
            for name in set(plan.layers) & set(self.kernels):
                kernel = self.kernels[name]
                try:
                    quantized = plan.layers[name].quantize(kernel)
                except ValueError:
                    continue  # it does not fit this kernel
                limit = 2 ** (quantized.bits - 1) - 1
                assert -limit - plan.layers[name].full_range <= quantized.codes.min()
                assert quantized.codes.max() <= limit
                assert np.isfinite(quantized.scale).all()
            self.accepted += 1
            if self.accepted % APPLIED == 0:
                result = ocs_tf.apply(
                    self.model, plan, representative_dataset=self.x, verbose=False
                )
                assert np.isfinite(np.asarray(result(self.x))).all()

        return use


# Layers.


class Layers:
    """Quantized layers by themselves, made of changed configurations and given changed weights."""

    def __init__(self) -> None:
        grid = {"bits": 8, "scale": 0.1, "zero_point": 3, "symmetric": False, "copies": []}
        split = {"weight_bits": 4, "granularity": "channel", "copies": 2}
        grids = {"input_grid": grid, "output_grid": grid, "preactivation_grid": None}
        cell = {"kernel": split, "recurrent_kernel": {"weight_bits": 8, "granularity": "tensor"}}
        self.made: list[tuple[type, dict[str, Any], tuple[int, ...], list[np.ndarray]]] = []
        for kind, options, shape in (
            (layers.QuantizedDense, {"units": 3, **split, **grids}, (2, 4)),
            (layers.QuantizedConv1D, {"filters": 3, "kernel_size": 2, **split}, (2, 5, 4)),
            (
                layers.QuantizedDepthwiseConv1D,
                {"kernel_size": 2, "weight_bits": 8, **grids},
                (2, 5, 4),
            ),
            (
                layers.QuantizedEinsumDense,
                {"equation": "ab,bc->ac", "output_shape": 3, "bias_axes": "c", **split},
                (2, 4),
            ),
            (
                layers.QuantizedEmbedding,
                {"input_dim": 5, "output_dim": 2, "weight_bits": 3},
                (2, 4),
            ),
            (layers.QuantizedLSTMCell, {"units": 2, "kernels": cell}, (2, 4)),
            (layers.StoredKernel, {"shape": [4, 3], **split}, (2, 4)),
            (layers.FakeQuantize, {"grid": grid}, (2, 4)),
            (
                layers.OracleQuantize,
                {"grid": {"bits": 4, "count": 2, "symmetric": False}},
                (2, 4),
            ),
        ):
            layer = kind(name="layer", **options)
            layer.build(shape)
            for part in layer._flatten_layers():
                self._fill(part)
            own = {**layer.get_config(), "dtype": "float32"}
            ours = {key: value for key, value in own.items() if key in {*options, "name", "copies"}}
            self.made.append((kind, json.loads(json.dumps(ours)), shape, self._states(layer)))

    @staticmethod
    def _fill(part: Any) -> None:
        if getattr(part, "channel_map", None) is not None:
            rows = part.codes.shape[-2]
            part.channel_map.assign([*range(rows - part.copies), *range(part.copies)])

    @staticmethod
    def _states(layer: Any) -> list[dict[str, np.ndarray]]:
        """What `layer` and the layers in it save."""
        states = []
        for part in layer._flatten_layers():
            store: dict[str, Any] = {}
            part.save_own_variables(store)
            states.append({key: np.asarray(value) for key, value in store.items()})
        return states

    def __call__(self, rng: np.random.Generator) -> Callable[[], None]:
        kind, config, shape, states = pick(rng, self.made)
        config = copy.deepcopy(config)
        for _ in range(rng.choice([0, 0, 1, 1, 2])):
            change(rng, config, SPECIAL)
        stores = [
            {key: changed_array(rng, array) for key, array in state.items()} for state in states
        ]

        def use() -> None:
            layer = kind.from_config(config)
            if _elements(layer) > LARGEST:
                return
            layer.build(shape)
            for part, store in zip(layer._flatten_layers(), stores, strict=False):
                part.load_own_variables(store)
            if hasattr(layer, "check_state"):
                layer.check_state()
            x = np.arange(np.prod(shape)).reshape(shape).astype(np.float32) % 5
            if isinstance(layer, layers.QuantizedCell):
                outputs = layer(x, layer.get_initial_state(len(x)))
            elif isinstance(layer, layers.StoredKernel):
                outputs = layer.kernel
            else:
                outputs = layer(x)
            for output in keras.tree.flatten(outputs):
                assert np.isfinite(np.asarray(output)).all()

        return use


def _elements(layer: Any) -> int:
    names = ("units", "filters", "input_dim", "output_dim", "copies")
    sizes = [getattr(layer, name, 0) for name in names]
    sizes += [option.get("copies", 0) for option in getattr(layer, "kernel_options", {}).values()]
    sizes += list(np.ravel(getattr(layer, "kernel_size", 0))) + list(getattr(layer, "shape", ()))
    return max((int(s) for s in sizes if isinstance(s, (int, np.integer))), default=0) ** 2


def changed_array(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """`array`, or with an element, its type or its shape changed."""
    array = np.array(array)
    kind = rng.integers(0, 16)
    if kind == 0 and array.size:
        special = [0, 1, -1, 127, -128, 7, 8, 3, 9]
        special += [np.nan, np.inf, -np.inf, 1e-45, 3e38] if array.dtype.kind == "f" else []
        value = np.asarray(pick(rng, special)).astype(array.dtype)  # -1 is 255 in uint8
        array.flat[int(rng.integers(0, array.size))] = value
    elif kind == 1:
        array = array.astype(pick(rng, ["float64", "int64", "uint8", "bool", "float16"]))
    elif kind == 2:
        array = array.reshape(-1)[: int(rng.integers(0, array.size + 1))]
    return array


# Files.


class Files:
    """Saved models, with changed configurations, weights or bytes.

    A change is in one place or two, so each model has one or two layers: a file loads in 10 ms.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(8, 5, 3)).astype(np.float32)
        indices = rng.integers(0, 5, (8, 4))
        split: dict[str, Any] = {"weight_bits": 4, "expand_ratio": 0.3}
        oracle: dict[str, Any] = {"activation_expand_ratio": 0.3, "activation_split": "oracle"}
        oracle |= {"activation_scope": "inputs"}
        self.contents = []
        cases: list[tuple[np.ndarray, dict[str, Any], list[keras.Layer]]] = [
            (x, split, [keras.layers.Conv1D(2, 2, name="conv"), keras.layers.BatchNormalization()]),
            (x, {}, [keras.layers.DepthwiseConv1D(2, activation="relu")]),
            (x, split | oracle, [keras.layers.Dense(2, name="dense")]),
            (x, split, [keras.layers.EinsumDense("abc,cd->abd", (None, 2), bias_axes="d")]),
            (indices, {"weight_bits": 3}, [keras.layers.Embedding(5, 2, name="table")]),
            (x, split, [keras.layers.LSTM(2, name="lstm")]),
        ]
        for data, options, made in cases:
            inputs = keras.Input(data.shape[1:], dtype=data.dtype.name)
            self._add(keras.Sequential([inputs, *made]), data, options)
        inputs = keras.Input((5, 3))
        attention = keras.layers.MultiHeadAttention(1, 2, name="attention")(inputs, inputs)
        self._add(keras.Model(inputs, attention + inputs), x, split)

    def _add(self, model: keras.Model, data: np.ndarray, options: dict[str, Any]) -> None:
        quantized = ocs_tf.convert(model, representative_dataset=data, verbose=False, **options)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            quantized.save(path)
            with zipfile.ZipFile(path) as archive:
                self.contents.append({n: archive.read(n) for n in archive.namelist()})

    def __call__(self, rng: np.random.Generator) -> Callable[[], None]:
        parts = dict(pick(rng, self.contents))
        kind = rng.integers(0, 8)
        if kind < 3:
            config = json.loads(parts["config.json"])
            for _ in range(rng.integers(1, 3)):
                change(rng, config, SPECIAL)
            parts["config.json"] = json.dumps(config).encode()
        elif kind < 6:
            parts["model.weights.h5"] = changed_weights(rng, parts["model.weights.h5"])
        elif kind == 6:
            name = pick(rng, sorted(parts))
            del parts[name]
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        content = bytearray(packed.getvalue())
        if kind == 7:
            for _ in range(rng.integers(1, 9)):
                content[int(rng.integers(0, len(content)))] = int(rng.integers(0, 256))

        def use() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "model.keras"
                path.write_bytes(content)
                keras.config.disable_traceback_filtering()  # it is asked who raised an exception
                try:
                    model = keras.models.load_model(path)
                except Exception as error:
                    if isinstance(error, ValueError) or not raised_here(error):
                        raise Refused(type(error).__name__) from error
                    raise
                finally:
                    keras.config.enable_traceback_filtering()
            layer = next((la for la in model.layers if isinstance(la, layers.KernelLayer)), None)
            if layer is not None:
                layer.check_state()

        return use


def changed_weights(rng: np.random.Generator, content: bytes) -> bytes:
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        found: list[str] = []
        file.visititems(
            lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
        )
        name = pick(rng, found)
        array = np.asarray(file[name])
        for _ in range(16):
            array = changed_array(rng, array)
        del file[name]
        file[name] = array
    return buffer.getvalue()


# Running.


class Refused(Exception):
    """A file is refused as it should be; by whom is in the text."""


def raised_here(error: BaseException) -> bool:
    """Whether the exception was raised in a module of ours, or in what it calls but for Keras."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith((PACKAGE, KERAS)):
            return frame.filename.startswith(PACKAGE)
    return False


def makers() -> dict[str, Callable[[], Callable[[np.random.Generator], Callable[[], None]]]]:
    return {"config": lambda: config_document, "plan": Plans, "layer": Layers, "file": Files}


def numbers(first: int, count: int | None) -> Iterator[int]:
    index = first
    while count is None or index < first + count:
        yield index
        index += 1


def fuzz(
    kind: str, seconds: float | None, seed: int = 0, first: int = 0, count: int | None = None
) -> tuple[int, collections.Counter[str]]:
    """Numbers of failures, and of documents by what became of them."""
    make = makers()[kind]()
    outcomes: collections.Counter[str] = collections.Counter()
    failures = 0
    start = time.monotonic()
    for index in numbers(first, count):
        if seconds is not None and time.monotonic() - start > seconds:
            break
        use = make(np.random.default_rng([seed, index]))
        faulthandler.dump_traceback_later(SECONDS_PER_DOCUMENT, exit=True, file=sys.__stderr__)
        try:
            use()
            outcomes["accepted"] += 1
        except ValueError:
            outcomes["ValueError"] += 1
        except Refused as error:
            outcomes[f"file: {error}"] += 1
        except Exception:
            failures += 1
            print(f"{kind} {index} of seed {seed}:\n{traceback.format_exc()[-3000:]}", flush=True)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return failures, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, help="for all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=makers(), help="one instead of all")
    parser.add_argument("--first", type=int, default=0, help="number of the first document")
    parser.add_argument("--count", type=int, help="of documents of each kind")
    options = parser.parse_args()
    if options.seconds is None and options.count is None:
        parser.error("give --seconds or --count")
    warnings.simplefilter("ignore")
    kinds = [options.kind] if options.kind else list(makers())
    seconds = None if options.seconds is None else options.seconds / len(kinds)
    failed = False
    for kind in kinds:
        failures, outcomes = fuzz(kind, seconds, options.seed, options.first, options.count)
        total = failures + sum(outcomes.values())
        print(f"{kind}: {total} documents, {failures} failures; {dict(outcomes)}", flush=True)
        # Were all refused, or none, nothing would have been tried.
        failed |= failures > 0 or not 0 < outcomes["accepted"] < total
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
