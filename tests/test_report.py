"""`report`: against arithmetic written out by hand, on a model whose codes are given."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf._report import SUFFIXES, LayerReport, Report, report

FLOAT_HEAD = {"head": {"weight_bits": None}}


def small_model() -> keras.Model:
    inputs = keras.Input((6, 6, 2), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(5, 3, use_bias=False, name="second")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(3, name="head")(x)
    return keras.Model(inputs, x, name="small")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    return small_model()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (8, 6, 6, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(model: keras.Model) -> keras.Model:
    """8 bits first, 5 bits and 25 % copies second, a float head; kernels as they were."""
    options = {"granularity": "tensor", "equalization": False, "weight_clip": "optimal"}
    return ocs_tf.convert(model, weight_bits=5, expand_ratio=0.25, overrides=FLOAT_HEAD, **options)


def rows(model: keras.Model) -> dict:
    return {layer.name: layer for layer in report(model).layers}


class OwnDense(keras.layers.Dense):
    """A user's subclass, which may compute anything."""


class TestLayers:
    def test_numbers_of_a_layer_without_copies(self, quantized):
        first = rows(quantized)["first"]
        assert (first.type, first.kernel_shape) == ("Conv2D", (3, 3, 2, 4))
        assert (first.bits, first.granularity, first.copies) == (8, "tensor", ())
        assert first.parameters == 3 * 3 * 2 * 4 + 4
        assert first.bytes_before == 4 * (3 * 3 * 2 * 4 + 4)
        # 8-bit codes, one scale, four biases; no map without copies.
        assert first.bytes_after == 3 * 3 * 2 * 4 + 4 * 1 + 4 * 4

    def test_numbers_of_a_split_layer(self, quantized):
        second = rows(quantized)["second"]
        copies = math.ceil(0.25 * 4)
        codes = 3 * 3 * (4 + copies) * 5
        assert (second.kernel_shape, len(second.copies)) == ((3, 3, 4, 5), copies)
        assert (second.parameters, second.codes) == (3 * 3 * 4 * 5, codes)
        assert second.bytes_before == 4 * 3 * 3 * 4 * 5
        # Packed codes, one scale, the map of all 5 expanded channels; no bias.
        assert second.bytes_after == math.ceil(codes * 5 / 8) + 4 * 1 + 4 * (4 + copies)

    def test_copies_are_the_channels_of_the_map(self, quantized):
        stored = quantized.get_layer("second").quantized_kernel().channel_map
        assert rows(quantized)["second"].copies == tuple(stored[4:])

    def test_copy_is_of_the_channel_with_the_largest_weight(self, model):
        kernel = np.asarray(model.get_layer("second").kernel)
        outlier = kernel.copy()
        outlier[1, 1, 2, 3] = 5
        model.get_layer("second").kernel.assign(outlier)
        try:
            result = ocs_tf.convert(model, weight_bits=4, expand_ratio=0.25, granularity="tensor")
        finally:
            model.get_layer("second").kernel.assign(kernel)
        assert rows(result)["second"].copies == (2,)

    def test_clip_threshold_per_tensor(self, quantized):
        scale = float(quantized.get_layer("second").scale.numpy())
        low, high = rows(quantized)["second"].clip_threshold
        assert low == high == pytest.approx(scale * (2**4 - 1))

    def test_clip_threshold_per_channel(self, model):
        second = ocs_tf.convert(model, weight_bits=4).get_layer("second")
        quantized = ocs_tf.convert(model, weight_bits=4)
        limits = np.asarray(second.scale) * (2**3 - 1)
        assert rows(quantized)["second"].clip_threshold == pytest.approx(
            (limits.min(), limits.max())
        )
        # One scale per output channel.
        assert rows(quantized)["first"].bytes_after == 3 * 3 * 2 * 4 + 4 * 4 + 4 * 4

    def test_sqnr_is_that_of_the_kernels(self, model, quantized):
        float_kernel = np.asarray(model.get_layer("second").kernel, np.float64)
        noise = float_kernel - np.asarray(quantized.get_layer("second").kernel)
        expected = 10 * np.log10((float_kernel**2).sum() / (noise**2).sum())
        assert rows(quantized)["second"].sqnr_db == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize("scope", ["all", "inputs"])
    def test_bits_of_sums_are_reached_by_some_input(self, model, images, scope):
        options = {"rounding": "nearest", "bias_correction": False, "expand_ratio": 0.25}
        quantized = ocs_tf.convert(
            model, representative_dataset=images, activation_scope=scope, **options
        )
        found = rows(quantized)
        for name in ("first", "second", "head"):
            layer = quantized.get_layer(name)
            grid = layer.input_grid or found[name].input_grid
            ends = np.array([grid.code_min, grid.code_max]) - grid.zero_point
            codes = layer.quantized_kernel().codes.reshape(-1, layer.codes.shape[-1]).astype(int)
            products = codes[..., None] * ends  # of each weight with either end
            sums = [products.max(-1).sum(0), products.min(-1).sum(0)]
            if layer.bias is not None:
                step = np.asarray(layer.scale, np.float64) * grid.scale
                offset = np.rint(np.asarray(layer.bias, np.float64) / step).astype(int)
                sums = [sums[0] + offset.clip(0), sums[1] + offset.clip(None, 0)]
            bits = found[name].accumulator_bits
            assert max(sums[0].max(), -sums[1].min() - 1) < 2 ** (bits - 1)
            assert max(sums[0].max(), -sums[1].min() - 1) >= 2 ** (bits - 2)
        assert "Sum bits: a signed accumulator of so many bits" in str(report(quantized))

    def test_float_inputs_have_no_sums_of_integers(self, quantized):
        assert {row.accumulator_bits for row in rows(quantized).values()} == {None}
        assert "sum bits" not in str(report(quantized)).lower()

    def test_wide_sums_are_named(self):
        def described(bits: int) -> str:
            row = LayerReport("wide", "Dense", (4, 2), 8, accumulator_bits=bits, bytes_after=8)
            return str(Report("m", (row, dataclasses.replace(row, name="narrow"))))

        assert "Beyond" not in described(25)
        assert "Beyond 25, where float32 is not exact any more: wide, narrow." in described(26)
        assert "Beyond 32, which runtimes have: wide, narrow." in described(33)
        assert "Beyond 32" not in described(32)

    def test_float_layer_says_why(self, quantized):
        head = rows(quantized)["head"]
        assert (head.bits, head.kernel_shape, head.sqnr_db) == (None, None, None)
        assert head.bytes_before == head.bytes_after == 4 * (2 * 2 * 5 * 3 + 3)
        assert head.why_float == "left in float by the configuration"

    def test_layer_without_quantized_form_says_why(self):
        inputs = keras.Input((5, 3))
        x = OwnDense(2, name="memory")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
        memory = rows(ocs_tf.convert(model))["memory"]
        assert "OwnDense has no quantized form" in memory.why_float
        assert memory.parameters == 3 * 2 + 2

    def test_layer_with_several_kernels(self):
        inputs = keras.Input((5, 3))
        x = keras.layers.LSTM(2, name="memory")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
        overrides = {"memory/kernel": {"weight_bits": 4, "expand_ratio": 0.5}}
        found = rows(ocs_tf.convert(model, overrides=overrides))
        assert list(found) == ["memory/kernel", "memory/recurrent_kernel", "memory", "head"]
        kernel = found["memory/kernel"]
        assert (kernel.bits, kernel.kernel_shape, len(kernel.copies)) == (4, (3, 4 * 2), 2)
        assert found["memory/recurrent_kernel"].kernel_shape == (2, 4 * 2)
        assert found["memory"].type == "LSTM"
        assert found["memory"].parameters == 4 * 2  # the bias
        assert "stay in float" in found["memory"].why_float

    def test_depthwise_kernel(self):
        inputs = keras.Input((5, 5, 3))
        x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(inputs)
        quantized = ocs_tf.convert(keras.Model(inputs, x), first_layer_bits=4, last_layer_bits=4)
        row = rows(quantized)["depthwise"]
        assert (row.type, row.kernel_shape) == ("DepthwiseConv2D", (3, 3, 3, 2))
        assert row.bytes_after == 3 * 3 * 3 * 2 * 4 // 8 + 4 * 6 + 4 * 6

    def test_layers_without_weights_or_grid_are_left_out(self, quantized):
        assert set(rows(quantized)) == {"first", "second", "head"}

    def test_shared_layer_counts_once(self):
        one, two = keras.Input((4,), name="one"), keras.Input((4,), name="two")
        shared = keras.layers.Dense(3, name="shared")
        model = keras.Model([one, two], keras.layers.Add()([shared(one), shared(two)]))
        result = report(ocs_tf.convert(model))
        assert [layer.name for layer in result.layers if layer.bits] == ["shared"]
        assert result.parameters == 4 * 3 + 3

    def test_quantized_model_inside_another(self, quantized):
        inputs = keras.Input((6, 6, 2))
        outer = keras.Model(inputs, keras.layers.Dense(2, name="top")(quantized(inputs)))
        assert set(rows(outer)) == {"first", "second", "head", "top"}

    def test_names_that_a_quantized_model_shares_with_the_one_around_it(self, quantized):
        inputs = keras.Input((6, 6, 2))
        outer = keras.Model(inputs, keras.layers.Dense(2, name="head")(quantized(inputs)))
        found = rows(outer)
        assert set(found) == {"first", "second", "small.head", "head"}
        assert found["small.head"].bits == rows(quantized)["head"].bits


class TestActivations:
    def test_grids_of_an_integer_runtime(self, model, images):
        quantized = ocs_tf.convert(model, representative_dataset=images)
        found = rows(quantized)
        assert found["first"].input_grid.bits == 8
        assert found["first"].output_grid == quantized.get_layer("first").output_grid
        low, high = images.min(), images.max()
        grid = found["first"].input_grid
        assert grid.minimum == pytest.approx(low, abs=grid.scale)
        assert grid.maximum == pytest.approx(high, abs=grid.scale)

    def test_grids_of_the_paper(self, model, images):
        config = ocs_tf.Config.paper(weight_bits=5, activation_bits=6)
        found = rows(ocs_tf.convert(model, config, representative_dataset=images))
        assert (found["second"].input_grid.bits, found["second"].output_grid) == (6, None)

    def test_text_says_what_is_simulated(self, model, images, quantized):
        both = ocs_tf.convert(model, representative_dataset=images)
        assert "adds up whole codes" in str(report(both))
        assert "activations are not rounded" in str(report(quantized))


class TestTotals:
    def test_sums(self, quantized):
        result = report(quantized)
        first, second, head = 3 * 3 * 2 * 4 + 4, 3 * 3 * 4 * 5, 2 * 2 * 5 * 3 + 3
        assert result.parameters == first + second + head
        assert result.bytes_before == 4 * (first + second + head)
        after = sum(layer.bytes_after for layer in result.layers)
        assert result.bytes_after == after
        assert result.compression == result.bytes_before / after

    def test_overhead_and_mean_bits(self, quantized):
        result = report(quantized)
        kernels = 3 * 3 * 2 * 4 + 3 * 3 * 4 * 5
        added = 3 * 3 * 1 * 5
        assert result.overhead_percent == pytest.approx(100 * added / kernels)
        bits = 8 * 3 * 3 * 2 * 4 + 5 * (3 * 3 * 4 * 5 + added)
        assert result.mean_bits == pytest.approx(bits / kernels)


class TestOutput:
    def test_text_is_aligned_and_complete(self, quantized):
        text = str(report(quantized))
        lines = text.splitlines()
        head = lines.index(next(line for line in lines if line.startswith("layer ")))
        end = lines[head].index("bits") + len("bits")  # numbers stand to the right
        assert [line[end - 5 : end].strip() for line in lines[head + 2 : head + 5]] == [
            "8",
            "5",
            "float",
        ]
        for name in ("small", "first", "second", "head", "left in float by the configuration"):
            assert name in text

    def test_json_is_the_dict(self, quantized):
        result = report(quantized)
        parsed = json.loads(result.to_json())
        assert parsed["totals"] == result.to_dict()["totals"]
        assert [layer["name"] for layer in parsed["layers"]] == ["first", "second", "head"]

    def test_json_of_an_exact_kernel(self):
        inputs = keras.Input((2,))
        dense = keras.layers.Dense(1, kernel_initializer="ones")
        quantized = ocs_tf.convert(keras.Model(inputs, dense(inputs)), weight_clip="none")
        assert json.loads(report(quantized).to_json())["layers"][0]["sqnr_db"] == "inf"

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_save(self, quantized, tmp_path, suffix):
        path = tmp_path / f"report{suffix}"
        report(quantized).save(path)
        text = path.read_text("utf-8")
        assert "second" in text
        assert text.endswith("\n")

    def test_html_escapes_names(self):
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs), name="a<b")
        page = report(ocs_tf.convert(model)).to_html()
        assert "a&lt;b" in page
        assert "a<b" not in page

    def test_save_refuses_another_ending(self, quantized, tmp_path):
        with pytest.raises(ValueError, match=r"`path` .*\.pdf.* must end in one of \.json"):
            report(quantized).save(tmp_path / "report.pdf")


class TestModels:
    def test_float_model_is_refused(self, model):
        with pytest.raises(ValueError, match=r"'small' has no quantized layer.*ocs_tf\.convert"):
            report(model)

    def test_sequential(self):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="only")])
        assert rows(ocs_tf.convert(model))["only"].kernel_shape == (4, 2)

    @pytest.mark.slow
    def test_same_in_a_new_process(self, quantized, tmp_path):
        path = tmp_path / "quantized.keras"
        quantized.save(path)
        program = (
            "import sys, keras, ocs_tf;"
            "print(ocs_tf.report(keras.models.load_model(sys.argv[1])).to_json())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == json.loads(report(quantized).to_json())


class TestSplitActivations:
    def convert(self, model, images, **options):
        return ocs_tf.convert(
            model,
            activation_scope="inputs",
            activation_bits=4,
            activation_expand_ratio=0.5,
            representative_dataset=images,
            verbose=False,
            **options,
        )

    def test_names_channels_that_are_split(self, model, images):
        found = report(self.convert(model, images, activation_split="maximum"))
        second = next(layer for layer in found.layers if layer.name == "second")
        assert len(second.input_grid.copies) == 2
        a, b = second.input_grid.copies
        assert f", copies: 2 (of {a}, {b})" in str(found)
        assert f", copies: 2 (of {a}, {b})" in found.to_html()
        (row,) = (row for row in json.loads(found.to_json())["layers"] if row["name"] == "second")
        assert row["input_grid"]["copies"] == [a, b]
        assert "simulation only" not in str(found)

    def test_says_that_an_oracle_is_a_simulation(self, model, images):
        found = report(self.convert(model, images, activation_split="oracle"))
        assert "in 4 bits, 2 copies by an oracle (simulation only)" in str(found)
        assert "which no integer runtime can run" in str(found)
        assert "which no integer runtime can run" in found.to_html()
        assert "int8 .tflite file" not in str(found)
