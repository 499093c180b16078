"""The `ocs_tf` command: every command for real, every mistake with its message and exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing

import keras
import numpy as np
import pytest

import ocs_tf
from ocs_tf.cli import command as cli
from ocs_tf.options import options_of
from ocs_tf.runtime import micro

SHAPE = (6, 6, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """`model.keras`, `quantized.keras` and inputs for them in several forms."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(3)
    inputs = keras.Input(SHAPE, name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(5, 3, activation="relu", name="second")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name="tiny")
    images = np.random.default_rng(0).integers(0, 256, (10, *SHAPE)).astype(np.uint8)
    model.save(folder / "model.keras")
    scaled = (images / 255).astype(np.float32)
    ocs_tf.convert(model, representative_dataset=scaled).save(folder / "quantized.keras")
    np.save(folder / "bytes.npy", images)
    np.save(folder / "scaled.npy", scaled)
    np.savez(folder / "named.npz", image=scaled, label=np.zeros(10))
    np.savez(folder / "other.npz", a=scaled, b=scaled)
    np.save(folder / "wrong.npy", np.zeros((4, 5, 5, 3), np.float32))
    (folder / "pictures" / "class_a").mkdir(parents=True)
    for i, image in enumerate(images):
        keras.utils.save_img(folder / f"pictures/class_a/{i}.png", image, scale=False)
    (folder / "empty").mkdir()
    (folder / "broken.keras").write_bytes(b"not a zip file")
    (folder / "broken.npy").write_bytes(b"not an array")
    (folder / "broken.tflite").write_bytes(b"not a flatbuffer")
    (folder / "config.json").write_text(ocs_tf.Config(weight_bits=6).to_json())
    (folder / "unknown.json").write_text('{"bits": 3}')
    (folder / "text.json").write_text("not json")
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder, `{}` standing for the folder of the inputs."""
    monkeypatch.chdir(tmp_path)

    def call(text: str) -> tuple[int, str, str]:
        code = cli.main([word.replace("{}", str(folder)) for word in text.split()])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def test_model_without_integer_form_is_one_line(run, tmp_path):
    inputs = keras.Input(SHAPE)
    outputs = keras.ops.floor(keras.layers.Conv2D(2, 3)(inputs))
    ocs_tf.convert(keras.Model(inputs, outputs), verbose=False).save(tmp_path / "steps.keras")
    command = "export steps.keras --output steps.tflite --data {}/scaled.npy"
    code, _, error = run(f"{command} --strict")
    assert code == 2
    assert error.startswith("ocs_tf: 1 layer is computed in float, since FLOOR has no int8")
    assert error.count("\n") == 1
    assert not (tmp_path / "steps.tflite").exists()
    code, out, _ = run(command)
    assert code == 0
    assert "FLOOR has no int8 form: floor" in out


class TestConvert:
    def test_keras_tflite_plan_and_report(self, run, tmp_path):
        code, out, err = run(
            "convert {}/model.keras --weight_bits 5 --data {}/bytes.npy --preprocess 0..1"
            " --output out.keras --tflite out.tflite --plan plan.json --report report.json"
        )
        assert (code, err) == (0, "")
        assert "Wrote out.keras" in out
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"out.keras", "out.tflite", "plan.json", "report.json"}
        loaded = keras.models.load_model("out.keras")
        assert loaded.get_layer("second").weight_bits == 5
        # Ranges are those of x/255.
        assert loaded.get_layer("image_quantizer").grid.maximum == pytest.approx(1, abs=0.01)
        report = json.loads(pathlib.Path("report.json").read_text())
        assert report == json.loads(ocs_tf.report(loaded).to_json())
        assert ocs_tf.Plan.load("plan.json").layers["second"].bits == 5

    def test_same_as_the_library(self, run, folder):
        run(
            "convert {}/model.keras --weight_bits=4 --expand_ratio 0.3 --granularity tensor"
            " --weight_clip mse --output out.keras"
        )
        expected = ocs_tf.convert(
            keras.models.load_model(folder / "model.keras"),
            weight_bits=4,
            expand_ratio=0.3,
            granularity="tensor",
            weight_clip="mse",
        )
        got = keras.models.load_model("out.keras")
        for a, b in zip(expected.weights, got.weights, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_overrides(self, run):
        code, _, _ = run(
            "convert {}/model.keras --weight_bits 6 --override name=second,weight_bits=4"
            " --override regex=he.{1,2},weight_bits=none --override class=Conv2D,weight_bits=3"
            " --output out.keras"
        )
        assert code == 0
        layers = keras.models.load_model("out.keras").layers
        bits = {layer.name: getattr(layer, "weight_bits", None) for layer in layers}
        assert (bits["first"], bits["second"], bits["head"]) == (3, 4, None)

    def test_paper(self, run):
        run("convert {}/model.keras --paper --weight_bits 5 --output out.keras")
        layers = keras.models.load_model("out.keras").layers
        assert [getattr(layer, "weight_bits", None) for layer in layers] == [
            None,  # the input
            None,  # the first layer
            5,
            None,
            None,  # Dense
        ]

    def test_flags_come_before_the_config_file(self, run):
        run("convert {}/model.keras --config {}/config.json --output six.keras")
        run("convert {}/model.keras --config {}/config.json --weight_bits 3 --output three.keras")
        for name, bits in (("six", 6), ("three", 3)):
            layer = keras.models.load_model(f"{name}.keras").get_layer("second")
            assert layer.weight_bits == bits

    def test_from_plan(self, run):
        run("convert {}/model.keras --weight_bits 3 --plan plan.json")
        code, _, _ = run("convert {}/model.keras --from_plan plan.json --output out.keras")
        assert code == 0
        assert keras.models.load_model("out.keras").get_layer("second").weight_bits == 3

    def test_from_a_plan_that_needs_data(self, run):
        run("convert {}/model.keras --weight_bits 3 --data {}/bytes.npy --plan plan.json")
        code, _, err = run("convert {}/model.keras --from_plan plan.json --output out.keras")
        assert (code, err) == (
            2,
            "ocs_tf: --from_plan plan.json has rounding=error_compensated and"
            " bias_correction=True, which need --data.\n",
        )
        command = "convert {}/model.keras --from_plan plan.json --data {}/bytes.npy"
        assert run(f"{command} --output out.keras")[0] == 0

    @pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
    def test_bias_correction(self, run, text, value):
        run(
            "convert {}/model.keras --rounding nearest --plan plan.json --data {}/bytes.npy"
            f" --bias_correction {text}"
        )
        plan = ocs_tf.Plan.load("plan.json")
        assert (plan.rounding, plan.bias_correction) == ("nearest", value)

    @pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
    def test_equalization(self, run, text, value):
        run(f"convert {{}}/model.keras --plan plan.json --equalization {text}")
        assert bool(ocs_tf.Plan.load("plan.json").equalization) == value

    def test_split_activations(self, run):
        run(
            "convert {}/model.keras --activation_scope inputs --plan plan.json --data {}/bytes.npy"
            " --activation_expand_ratio 0.5 --activation_split maximum"
        )
        plan = ocs_tf.Plan.load("plan.json")
        assert plan.activations["second:input"].copies

    def test_existing_file_stays_without_overwrite(self, run):
        pathlib.Path("out.keras").write_text("mine")
        code, _, err = run("convert {}/model.keras --output out.keras")
        assert (code, pathlib.Path("out.keras").read_text()) == (2, "mine")
        assert err == "ocs_tf: --output out.keras exists; give --overwrite to replace it.\n"
        assert run("convert {}/model.keras --output out.keras --overwrite")[0] == 0
        assert keras.models.load_model("out.keras").name == "tiny"

    def test_failure_leaves_no_file(self, run, tmp_path, monkeypatch):
        def fail(model, path, *args, **kwargs):
            pathlib.Path(path).write_text("half")
            raise OSError("No space left on device")

        monkeypatch.setattr(keras.Model, "save", fail)
        code, _, err = run("convert {}/model.keras --output out.keras")
        assert (code, err) == (2, "ocs_tf: No space left on device\n")
        assert list(tmp_path.iterdir()) == []

    def test_folder_of_images(self, run):
        code, _, err = run(
            "convert {}/model.keras --data {}/pictures --preprocess -1..1 --output out.keras"
        )
        assert (code, err) == (0, "")
        grid = keras.models.load_model("out.keras").get_layer("image_quantizer").grid
        assert grid.minimum == pytest.approx(-1, abs=0.05)
        assert grid.maximum == pytest.approx(1, abs=0.05)

    def test_pictures_that_cannot_be_read_are_named(self, run, tmp_path, folder):
        pictures = shutil.copytree(folder / "pictures", tmp_path / "some")
        for i in range(10):
            shutil.copy(pictures / "class_a" / f"{i}.png", pictures / f"{i}.png")
        (pictures / "class_a" / "2.png").write_bytes(b"no picture")
        code, _, err = run("convert {}/model.keras --data some --output out.keras")
        assert code == 0
        assert err.startswith("ocs_tf: 1 of 20 images of --data cannot be read: some/class_a/2.png")
        assert err.count("\n") == 1
        for i in range(3):
            (pictures / f"{i}.png").write_bytes(b"")
        code, out, err = run("compare {}/model.keras {}/quantized.keras --data some")
        assert (code, out) == (2, "")
        assert err.startswith("ocs_tf: 3 of 20 images of --data cannot be read:")
        assert err.endswith("That is more than 10%.\n")

    @pytest.mark.filterwarnings("default:all 9 samples")
    def test_suspicious_data_are_told_in_one_line(self, run):
        np.save("zeros.npy", np.zeros((9, *SHAPE), np.float32))
        code, _, err = run("convert {}/model.keras --data zeros.npy --output out.keras")
        assert code == 0
        assert err == (
            "ocs_tf: warning: all 9 samples of --data are zero at input 'image'. Give the inputs"
            " that the model is going to see, as various as they are.\n"
        )

    def test_archive_by_input_name(self, run):
        assert run("convert {}/model.keras --data {}/named.npz --output out.keras")[0] == 0


class TestReport:
    def test_prints_the_report(self, run, folder):
        code, out, err = run("report {}/quantized.keras")
        loaded = keras.models.load_model(folder / "quantized.keras")
        assert (code, out, err) == (0, f"{ocs_tf.report(loaded)}\n", "")


class TestExport:
    def test_writes_a_file(self, run):
        code, out, err = run("export {}/quantized.keras --output out.tflite --io float32")
        assert (code, err) == (0, "")
        assert out.startswith("out.tflite: int8, ")
        assert pathlib.Path("out.tflite").read_bytes()[4:8] == b"TFL3"

    def test_writes_an_array(self, run, tmp_path):
        code, out, err = run("export {}/quantized.keras --output out.tflite --c_array data.cc")
        assert (code, err) == (0, "")
        assert {path.name for path in tmp_path.iterdir()} == {"out.tflite", "data.cc", "data.h"}
        assert "const unsigned char g_data[]" in pathlib.Path("data.cc").read_text()
        assert "resolver.AddConv2D()" in pathlib.Path("data.h").read_text()
        if micro.installed():
            assert re.search(r"TFLite Micro: an arena of [\d,]+ bytes; operators: AddConv2D", out)

    def test_split_activations(self, run):
        run(
            "convert {}/model.keras --activation_scope inputs --plan plan.json --data {}/bytes.npy"
            " --activation_expand_ratio 0.5 --activation_split maximum"
        )
        plan = ocs_tf.Plan.load("plan.json")
        assert plan.activations["second:input"].copies

    def test_existing_file_stays_without_overwrite(self, run):
        pathlib.Path("out.tflite").write_text("mine")
        assert run("export {}/quantized.keras --output out.tflite")[0] == 2
        assert pathlib.Path("out.tflite").read_text() == "mine"
        assert run("export {}/quantized.keras --output out.tflite --overwrite")[0] == 0


class TestCompare:
    def test_model_with_itself(self, run):
        code, out, _ = run("compare {}/model.keras {}/model.keras --data {}/scaled.npy")
        assert code == 0
        assert "SQNR inf dB, largest difference 0 " in out
        assert "same top-1 in 100.00 % of 10" in out

    @pytest.mark.parametrize("flags", ["", "--io float32", "--dynamic_batch", "--target float"])
    def test_keras_with_tflite(self, run, flags):
        run(f"export {{}}/quantized.keras --output out.tflite {flags}")
        code, out, err = run("compare {}/quantized.keras out.tflite --data {}/scaled.npy")
        assert (code, err) == (0, "")
        assert float(out.split("SQNR ")[1].split(" dB")[0]) > 30

    def test_runtime(self, run):
        if not micro.installed():
            pytest.skip('needs tflite-micro: pip install "ocs_tf[micro]"')
        run("export {}/quantized.keras --output out.tflite")
        command = "compare {}/quantized.keras out.tflite --data {}/scaled.npy --runtime"
        code, out, err = run(f"{command} tflite_micro")
        assert (code, err) == (0, "")
        assert float(out.split("SQNR ")[1].split(" dB")[0]) > 30

    def test_a_runtime_that_is_not_installed(self, run, monkeypatch):
        run("export {}/quantized.keras --output out.tflite")
        monkeypatch.setattr(micro, "installed", lambda: False)
        code, out, err = run(
            "compare {}/quantized.keras out.tflite --data {}/scaled.npy --runtime tflite_micro"
        )
        assert (code, out) == (2, "")
        assert err == 'ocs_tf: tflite_micro is not installed: pip install "ocs_tf[micro]"\n'

    def test_numbers(self, run, folder):
        _, out, _ = run("compare {}/model.keras {}/quantized.keras --data {}/scaled.npy")
        x = np.load(folder / "scaled.npy")
        a, b = (
            keras.models.load_model(folder / f"{name}.keras").predict(x, verbose=0).astype(float)
            for name in ("model", "quantized")
        )
        assert f"SQNR {10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()):.1f} dB" in out
        assert f"largest difference {abs(a - b).max():.3g} " in out
        assert f"top-1 in {100 * (a.argmax(1) == b.argmax(1)).mean():.2f} % of 10" in out


CONVERT = "convert {}/model.keras --output out.keras"
MISTAKES = {
    "no command": ("", "which command? One of convert, report"),
    "unknown command": ("quantize x", "unknown command 'quantize'; known: convert, report"),
    "unknown flag": (f"{CONVERT} --wieght_bits 4", "Unknown command line flag 'wieght_bits'"),
    "flag without value": (f"{CONVERT} --data", "Missing value for flag --data"),
    "no model": ("convert --output out.keras", "convert takes the arguments MODEL; given: none"),
    "two models": ("report a.keras b.keras", "report takes the arguments MODEL; given: a.keras"),
    "one model to compare": ("compare a.keras", "takes the arguments REFERENCE OTHER"),
    "missing model": ("report missing.keras", "model missing.keras does not exist"),
    "folder as model": ("report {}", "is not a file"),
    "other ending": ("report {}/scaled.npy", "must end in one of .keras, .h5, .hdf5"),
    "broken model": ("report {}/broken.keras", "is neither a zip archive"),
    "broken tflite": (
        "compare {}/model.keras {}/broken.tflite --data {}/scaled.npy",
        "broken.tflite: this is not a TFLite file",
    ),
    "float model": ("report {}/model.keras", "'tiny' has no quantized layer"),
    "nothing to write": ("convert {}/model.keras", "nothing to write; give --output, --tflite"),
    "output ending": ("convert {}/model.keras --output out.h5", "--output out.h5 must end in .ker"),
    "report ending": (
        "convert {}/model.keras --report out.pdf",
        "--report out.pdf must end in .json or .txt or .html",
    ),
    "no folder": (
        "convert {}/model.keras --output no/out.keras",
        "the folder of --output no/out.keras does not exist",
    ),
    "bits": (f"{CONVERT} --weight_bits 9", "`weight_bits` (=9) must be an integer from 2 to 8"),
    "bits in words": (f"{CONVERT} --weight_bits four", "`weight_bits` (='four') must be an"),
    "clip": (f"{CONVERT} --weight_clip max", "`weight_clip` (='max') must be one of 'none'"),
    "ratio": (f"{CONVERT} --expand_ratio 2", "`expand_ratio` (=2)"),
    "ratio in words": (f"{CONVERT} --expand_ratio much", "`expand_ratio` (='much')"),
    "switch": (f"{CONVERT} --strict=maybe", "flag --strict=maybe"),
    "activations without data": (f"{CONVERT} --activation_bits 8", "needs --data"),
    "int8 without data": ("convert {}/model.keras --tflite out.tflite", "needs --data"),
    "override key": (f"{CONVERT} --override name=first,bits=4", "has the unknown key 'bits'"),
    "override selector": (f"{CONVERT} --override weight_bits=4", "name, regex, class"),
    "override value": (f"{CONVERT} --override name=first,weight_bits=9", "(=9) must be"),
    "override pattern": (f"{CONVERT} --override regex=(,weight_bits=4", "--override"),
    "override matches none": (f"{CONVERT} --override name=conv9,weight_bits=4", "matches no layer"),
    "paper and config": (f"{CONVERT} --paper --config {{}}/config.json", "not both"),
    "missing config": (f"{CONVERT} --config no.json", "file no.json does not exist"),
    "unknown option in config": (f"{CONVERT} --config {{}}/unknown.json", "unknown option 'bits'"),
    "config is no JSON": (
        f"{CONVERT} --config {{}}/text.json",
        "text.json does not hold a Config: Expecting",
    ),
    "plan with options": (
        f"{CONVERT} --from_plan {{}}/config.json --weight_bits 4",
        "--from_plan takes no other options",
    ),
    "plan is none": (f"{CONVERT} --from_plan {{}}/config.json", "not a plan of format"),
    "missing data": (f"{CONVERT} --data no.npy", "--data no.npy does not exist"),
    "data ending": (f"{CONVERT} --data {{}}/config.json", "must end in one of .npy, .npz"),
    "broken data": (f"{CONVERT} --data {{}}/broken.npy", "broken.npy cannot be read"),
    "wrong shape": (f"{CONVERT} --data {{}}/wrong.npy", "takes samples of shape (6, 6, 3)"),
    "other names": (
        f"{CONVERT} --data {{}}/other.npz",
        "holds a, b, but the model's inputs are im",
    ),
    "no images": (f"{CONVERT} --data {{}}/empty", "holds no images (.png, .jpg"),
    "preprocess": (f"{CONVERT} --data {{}}/scaled.npy --preprocess 0..2", "--preprocess=0..2"),
    "export without output": ("export {}/quantized.keras", "export needs --output"),
    "target": ("export {}/quantized.keras --output o.tflite --target int3", "--target=int3"),
    "array ending": (
        "export {}/quantized.keras --output o.tflite --c_array o.txt",
        "--c_array o.txt must end in .cc or .cpp or .cxx",
    ),
    "array alone": (f"{CONVERT} --c_array o.cc", "--c_array needs --tflite"),
    "runtime": ("compare {}/model.keras {}/model.keras --runtime micro", "--runtime=micro"),
    "compare without data": ("compare {}/model.keras {}/model.keras", "compare needs --data"),
    "demo dataset": ("demo --dataset imagenet", "--dataset=imagenet"),
    "demo epochs": ("demo --epochs 0", "`epochs` (=0) must be a positive integer"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_told_in_one_line(run, tmp_path, name):
    arguments, message = MISTAKES[name]
    code, out, err = run(arguments)
    assert (code, out) == (2, "")
    assert err.startswith("ocs_tf: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


class TestHelp:
    @pytest.mark.parametrize("arguments", ["--help", "-h", "help"])
    def test_lists_the_commands(self, run, arguments):
        code, out, err = run(arguments)
        assert (code, err) == (0, "")
        for name, command in cli.COMMANDS.items():
            assert name in out
            assert command.summary in out

    @pytest.mark.parametrize("name", cli.COMMANDS)
    def test_of_a_command(self, run, name):
        code, out, err = run(f"{name} --help")
        assert (code, err) == (0, "")
        assert f"example: ocs_tf {name}" in out
        assert all(len(line) <= 100 for line in out.splitlines())

    def test_every_option_of_config_has_a_flag(self, run):
        _, out, _ = run("convert --help")
        entries = dict(re.findall(r"(?ms)^  --(?:\[no\])?(\w+) +(.*?)(?=^  --|\Z)", out))
        fields = dataclasses.fields(ocs_tf.Config)
        assert {field.name for field in fields} - set(entries) == {"overrides"}
        for field in fields:
            if field.name != "overrides":
                said = "".join(entries[field.name].split())  # lines may break anywhere
                default = str(field.default)
                default = default.lower() if default in ("None", "True", "False") else default
                assert f"(default{default})" in said, field.name
                assert f"--[no]{field.name} " in out or field.type != "bool", field.name
                summary = re.sub(r'[`"\s]', "", options_of(ocs_tf.Config)[field.name].summary)
                assert said.lower().startswith(summary.lower()), field.name

    def test_which_options_may_be_none(self, run):
        types = typing.get_type_hints(ocs_tf.Config)
        names = [name for name, hint in types.items() if type(None) in typing.get_args(hint)]
        assert sorted(cli._MAY_BE_NONE) == sorted(names)

    def test_version(self, run):
        assert run("--version") == (0, f"ocs_tf {ocs_tf.__version__}\n", "")


class TestOutputs:
    @pytest.mark.parametrize("other", ["x.json", "./x.json", "link.json", "folder/x.json"])
    def test_two_at_one_path(self, run, tmp_path, other):
        (tmp_path / "link.json").symlink_to("x.json")
        (tmp_path / "folder").symlink_to(".")
        code, _, error = run(f"convert {{}}/model.keras --plan x.json --report {other} --overwrite")
        message = f"ocs_tf: --plan x.json and --report {other} are the same file; name two files.\n"
        assert (code, error) == (2, message)
        assert not (tmp_path / "x.json").exists()

    def test_one_file_by_two_names(self, run, tmp_path):
        (tmp_path / "x.json").write_text("precious")
        (tmp_path / "y.json").hardlink_to(tmp_path / "x.json")
        code, _, error = run("convert {}/model.keras --plan x.json --report y.json --overwrite")
        assert code == 2
        assert "are the same file" in error
        assert (tmp_path / "x.json").read_text() == "precious"

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            (
                "convert m.keras --output ./m.keras",
                "--output ./m.keras would replace the model m.keras; name another file.",
            ),
            (
                "convert m.keras --from_plan p.json --plan p.json",
                "--plan p.json would replace --from_plan p.json; name another file.",
            ),
            (
                "convert m.keras --config p.json --report p.json",
                "--report p.json would replace --config p.json; name another file.",
            ),
            (
                "export m.keras --output o.tflite --data o.h --c_array o.cc",
                "the header of --c_array o.h would replace --data o.h; name another file.",
            ),
            (
                "export m.keras --data data.npy --output link.tflite",
                "--output link.tflite would replace --data data.npy; name another file.",
            ),
        ],
    )
    def test_an_input(self, run, tmp_path, command, message):
        for name in ("m.keras", "p.json", "data.npy", "o.h"):
            (tmp_path / name).write_text("precious")
        (tmp_path / "link.tflite").symlink_to("data.npy")
        code, _, error = run(f"{command} --overwrite")
        assert (code, error) == (2, f"ocs_tf: {message}\n")
        assert {path.read_text() for path in tmp_path.iterdir()} == {"precious"}

    def test_file_that_appears_meanwhile_is_kept(self, run, tmp_path, monkeypatch):
        def save(self, path):
            (tmp_path / "plan.json").write_text("of another program")

        monkeypatch.setattr(ocs_tf.Plan, "save", save)
        code, _, error = run("convert {}/model.keras --plan plan.json")
        assert code == 2
        assert error == "ocs_tf: `path` plan.json exists; pass --overwrite to replace it.\n"
        assert (tmp_path / "plan.json").read_text() == "of another program"
        assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]

    def test_existing_file_keeps_its_permissions(self, run, tmp_path):
        for name in ("out.keras", "plan.json"):
            (tmp_path / name).write_text("old")
            (tmp_path / name).chmod(0o640)
        code, _, _ = run(
            "convert {}/model.keras --output out.keras --plan plan.json --report r.txt --overwrite"
        )
        assert code == 0
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        umask = 0o777 & ~modes.pop("r.txt")
        assert modes == {"out.keras": 0o640, "plan.json": 0o640}
        assert umask == 0o777 & ~(0o666 & ~int(_umask(), 8))


def _umask() -> str:
    return subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True).stdout


class TestStderr:
    def test_debug_shows_where_an_error_comes_from(self, run):
        with pytest.raises(cli.UsageError):
            run("report missing.keras --debug")

    def test_of_the_process(self):
        root = pathlib.Path(ocs_tf.__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-m", "ocs_tf", "report", "missing.keras"],
            capture_output=True,
            text=True,
            cwd=root,
        )
        assert done.returncode == 2
        assert done.stderr == "ocs_tf: model missing.keras does not exist.\n"

    def test_closed(self, folder, tmp_path):
        """Files that the command writes do not get the number of stderr, nor what goes there."""
        arguments = f"convert {folder}/model.keras --plan plan.json"
        command = f"{sys.executable} -m ocs_tf {arguments} 2>&-"
        done = subprocess.run(
            ["sh", "-c", command],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(pathlib.Path(ocs_tf.__file__).parents[1])},
        )
        assert done.returncode == 0
        assert "Wrote plan.json" in done.stdout
        assert ocs_tf.Plan.load(tmp_path / "plan.json").layers
