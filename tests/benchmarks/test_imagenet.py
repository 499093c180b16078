"""The ImageNet benchmark on tiny pictures, with a tiny network."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import ocs_tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import imagenet, paper

CLASSES, PER_CLASS, SIZE = 3, 5, 24
FORM = imagenet.Form(SIZE, 28, "tf")


def write_pictures(folder: pathlib.Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = rng.uniform(0, 255, (5, 6, 3))
        image = tf.image.resize(small, (30, 40)).numpy()  # smooth, as photographs are
        keras.utils.save_img(folder / f"{seed}_{i}.png", image, scale=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of class folders to score, and one of pictures to calibrate on."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(CLASSES):
        write_pictures(folder / "val" / f"n{i}", PER_CLASS, i)
    write_pictures(folder / "train" / "any", 8, 100)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network under a name that the paper has numbers of."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ]
    )
    path = tmp_path_factory.mktemp("network") / "resnet50.keras"
    model.save(path)
    return path


def run(network, folders, output, **options):
    options = {"preprocess": "tf", "resize": 28, "tables": [2], "bits": [8, 4]} | options
    return imagenet.benchmark(str(network), folders / "val", folders / "train", output, **options)


@pytest.fixture(scope="module")
def results(network, folders, tmp_path_factory):
    return run(network, folders, tmp_path_factory.mktemp("results"))


def pil_inputs(files) -> np.ndarray:
    """What the network takes, by another library: shorter side 28, the middle 24 x 24, -1..1."""
    arrays = []
    for file in files:
        image = PIL.Image.open(file).convert("RGB")
        sides = [28 * side // min(image.size) for side in image.size]
        image = image.resize(sides, PIL.Image.Resampling.BILINEAR)
        left, top = (round((side - SIZE) / 2) for side in sides)
        arrays.append(np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32))
    return np.stack(arrays) / 127.5 - 1


# Pictures ----------------------------------------------------------------------------------------


def test_pictures_are_resized_and_cut_as_pillow_does(folders):
    pictures = imagenet.find(folders / "val", FORM, CLASSES)
    (got,) = pictures.batches(100)
    np.testing.assert_allclose(got, pil_inputs(pictures.files), atol=1.01 / 127.5)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_photographs_are_read_as_pillow_does(tmp_path, rng, mode):
    path = tmp_path / "one.JPEG"
    image = tf.image.resize(rng.uniform(0, 255, (5, 6, 3)), (30, 40)).numpy().astype(np.uint8)
    PIL.Image.fromarray(image).convert(mode).save(path, quality=95)
    (got,) = imagenet.Pictures([path], [0], FORM).batches()
    np.testing.assert_allclose(got, pil_inputs([path]), atol=2.01 / 127.5)


def test_a_picture_of_the_right_height_is_only_cut(tmp_path, rng):
    image = rng.integers(0, 256, (28, 36, 3), np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "one.png")
    got = FORM.read(tf.constant(str(tmp_path / "one.png"))).numpy()
    np.testing.assert_array_equal(got, image[2:26, 6:30])


def test_grey_pictures_have_three_channels(tmp_path, rng):
    image = rng.integers(0, 256, (28, 28), np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "grey.png")
    got = FORM.read(tf.constant(str(tmp_path / "grey.png"))).numpy()
    np.testing.assert_array_equal(got, np.repeat(image[2:26, 2:26, None], 3, axis=2))


# https://github.com/keras-team/keras, applications/imagenet_utils.py: means in BGR, or of 0..1.
WHITE = {
    "none": [255, 255, 255],
    "tf": [255 / 127.5 - 1] * 3,
    "caffe": [255 - 103.939, 255 - 116.779, 255 - 123.68],
    "torch": [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225],
}


@pytest.mark.parametrize("mode", imagenet.MODES)
def test_preprocessing(mode):
    white = np.full((2, SIZE, SIZE, 3), 255, np.uint8)
    got = imagenet.Form(SIZE, SIZE, mode).inputs(white)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.broadcast_to(WHITE[mode], got.shape), rtol=1e-5)


def test_batches_are_in_the_order_of_the_labels(folders):
    pictures = imagenet.find(folders / "val", FORM, CLASSES)
    assert [int(file.parent.name[1:]) for file in pictures.files] == pictures.labels.tolist()
    assert len(pictures) == CLASSES * PER_CLASS
    whole = np.concatenate(list(pictures.batches(100)))
    np.testing.assert_array_equal(np.concatenate(list(pictures.batches(4))), whole)


def test_pictures_kept_in_memory_are_not_read_again(folders, tmp_path):
    shutil.copytree(folders / "val", tmp_path / "val")
    pictures = imagenet.find(tmp_path / "val", FORM, CLASSES)
    pictures.keep()
    before = np.concatenate(list(pictures.batches(4)))
    shutil.rmtree(tmp_path / "val")
    np.testing.assert_array_equal(np.concatenate(list(pictures.batches(2))), before)


def test_labels_from_a_file(folders, tmp_path):
    (tmp_path / "labels.txt").write_text("n0 7\n\nn2\t0\nn1 999\nabsent 3\n")
    pictures = imagenet.find(folders / "val", FORM, 1000, tmp_path / "labels.txt")
    assert dict(
        zip((file.parent.name for file in pictures.files), pictures.labels, strict=True)
    ) == {
        "n0": 7,
        "n1": 999,
        "n2": 0,
    }


def test_limit_takes_the_same_pictures_each_time(folders):
    whole = imagenet.find(folders / "val", FORM, CLASSES)
    some, again = (imagenet.find(folders / "val", FORM, CLASSES, limit=7) for _ in range(2))
    assert some.files == again.files
    assert len(some) == 7
    assert set(some.files) < set(whole.files)
    assert [int(file.parent.name[1:]) for file in some.files] == some.labels.tolist()
    assert len(set(some.labels.tolist())) > 1  # the first 7 would be of two classes, and in order


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("n0 0\nn1 1\n", r"`labels` \(=.*\) has no line for the folder 'n2'"),
        ("n0 0\nn1 3\n", r"line 2 \(='n1 3'\) must be a folder and an index in 0..2"),
        ("n0\n", r"line 1 \(='n0'\) must be a folder and an index in 0..2"),
        ("n0 -1\n", r"line 1 \(='n0 -1'\) must be"),
    ],
)
def test_labels_are_checked(folders, tmp_path, labels, message):
    (tmp_path / "labels.txt").write_text(labels)
    with pytest.raises(ValueError, match=message):
        imagenet.find(folders / "val", FORM, CLASSES, tmp_path / "labels.txt")


def test_folders_must_be_the_classes(folders, tmp_path):
    with pytest.raises(ValueError, match=r"holds 3 folders, but the network knows 1000 classes"):
        imagenet.find(folders / "val", FORM, 1000)
    with pytest.raises(ValueError, match=r"`pictures` \(=.*absent\) must be a folder"):
        imagenet.find(tmp_path / "absent", FORM, CLASSES)
    (tmp_path / "empty" / "n0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"`pictures` \(=.*empty\) holds no pictures \(\.jpeg"):
        imagenet.find(tmp_path / "empty", FORM, 1)
    with pytest.raises(ValueError, match=r"`limit` \(=0\) must be at least 1"):
        imagenet.find(folders / "val", FORM, CLASSES, limit=0)


def test_calibration_pictures(folders, tmp_path):
    scored = imagenet.find(folders / "val", FORM, CLASSES)
    found = imagenet.find_calibration(folders / "train", scored)
    assert {file.name for file in found.files} == {f"100_{i}.png" for i in range(8)}
    assert len(imagenet.find_calibration(folders / "train", scored, 3)) == 3
    with pytest.raises(ValueError, match=r"`calibration` \(=.*\) holds no pictures"):
        imagenet.find_calibration(tmp_path, scored)
    with pytest.raises(ValueError, match=r"`calibration` \(=.*absent\) must be a folder"):
        imagenet.find_calibration(tmp_path / "absent", scored)
    with pytest.raises(ValueError, match=r"`calibration_pictures` \(=0\) must be at least 1"):
        imagenet.find_calibration(folders / "train", scored, 0)


@pytest.mark.parametrize("copied", [False, True], ids=["same folder", "a copy"])
def test_calibration_on_what_is_scored_is_refused(folders, tmp_path, copied):
    scored = imagenet.find(folders / "val", FORM, CLASSES)
    folder = folders / "val"
    if copied:
        folder = tmp_path / "copy"
        shutil.copytree(folders / "val" / "n1", folder)
    with pytest.raises(ValueError, match=r"holds 1?\d*_\d.png, which is scored as well"):
        imagenet.find_calibration(folder, scored)


# Networks ----------------------------------------------------------------------------------------


def test_a_network_by_name(tmp_path, monkeypatch):
    asked = []

    def make(weights):
        asked.append(weights)
        return keras.Sequential([keras.Input((299, 299, 3)), keras.layers.Flatten()])

    monkeypatch.setattr(keras.applications, "InceptionV3", make)
    name, _, form = imagenet.load_network("inception_v3", "some.weights.h5")
    assert (name, asked) == ("inception_v3", ["some.weights.h5"])
    assert form == imagenet.Form(299, 342, "tf")
    with pytest.raises(ValueError, match=r"`input_size` \(=224\): the network takes pictures of"):
        imagenet.load_network("inception_v3", input_size=224)


def test_every_named_network_is_in_keras():
    assert all(hasattr(keras.applications, name) for name, _ in imagenet.NETWORKS.values())
    assert set(imagenet.NETWORKS) == set(paper.FLOAT)


def test_a_network_from_a_file(network):
    name, model, form = imagenet.load_network(str(network), preprocess="torch")
    assert name == "resnet50"
    assert form == imagenet.Form(SIZE, round(SIZE * 8 / 7), "torch")
    assert model.output_shape == (None, CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet51"}, r"`network` \(='resnet51'\) must be one of resnet50, dense"),
        ({"network": "absent.keras"}, r"`network` \(='absent.keras'\) must be one of"),
        ({"preprocess": None}, r"`preprocess` must be given for resnet50.keras: one of caffe"),
        ({"preprocess": "vgg"}, r"`preprocess` \(='vgg'\) must be one of caffe, tf, torch, none"),
        ({"resize": 20}, r"`resize` \(=20\) must be at least `input_size` \(=24\)"),
        ({"input_size": 32}, r"`input_size` \(=32\): the network takes pictures of \(24, 24, 3\)"),
    ],
)
def test_networks_are_checked(network, options, message):
    with pytest.raises(ValueError, match=message):
        imagenet.load_network(**{"network": str(network), "preprocess": "tf"} | options)


def test_a_network_of_any_size_needs_one(tmp_path):
    inputs = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 1)(inputs))
    keras.Model(inputs, pooled).save(tmp_path / "any.keras")
    with pytest.raises(ValueError, match=r"`input_size` must be given: any.keras takes pictures"):
        imagenet.load_network(str(tmp_path / "any.keras"), preprocess="tf")


# Tables ------------------------------------------------------------------------------------------


def test_the_papers_numbers_are_complete():
    lines = {2: [f"W{b}" for b in imagenet.BITS], 3: [f"A{b}" for b in imagenet.BITS]}
    for table in (2, 3):
        assert set(paper.TABLES[table]) == set(paper.FLOAT)
    for number, table in imagenet.TABLES.items():
        names = {column.name for column in table.columns}
        for network, scores in paper.TABLES[number].items():
            assert list(scores) == lines.get(number, [line.name for line in table.lines])
            for row in scores.values():
                assert names.issuperset(row)
                # Quantized, no network is better by more than noise.
                assert all(0 < top1 < paper.FLOAT[network] + 0.3 for top1 in row.values())
    assert paper.TABLES[2]["resnet50"]["W4"]["OCS r=0.05, best clip"] == 69.3
    assert paper.TABLES[3]["vgg16"]["A6"]["aciq"] == 71.4
    assert paper.TABLES[4]["inception_v3"]["batch 128"]["oracle"] == 70.3


def test_options_of_the_papers_columns():
    case = imagenet.Case("any", 1, 1, 2, "W5", "OCS r=0.02, best clip")
    assert imagenet.config(case, "kl") == ocs_tf.Config.paper(
        weight_bits=5, activation_bits=8, expand_ratio=0.02, weight_clip="kl"
    )
    case = dataclasses.replace(case, table=3, line="A4", column="aciq")
    assert imagenet.config(case) == ocs_tf.Config.paper(
        weight_bits=8, activation_bits=4, activation_clip="aciq"
    )
    case = dataclasses.replace(case, table=2, line="W4", column="ocs_tf")
    assert imagenet.config(case) == ocs_tf.Config(weight_bits=4, activation_bits=8)


def test_every_available_column_is_a_configuration():
    case = imagenet.Case("any", 1, 1)
    rows = imagenet.cases(case, imagenet.TABLES)
    assert rows[0] == case
    assert len(set(rows)) == len(rows)
    assert {row.table for row in rows} >= {0, 2, 3}
    for row in rows[1:]:
        assert isinstance(imagenet.config(row, "mse"), ocs_tf.Config)


def test_columns_that_this_version_lacks_are_left_out_and_named(monkeypatch, tmp_path):
    columns = [imagenet.Column("known", {}), imagenet.Column("strange", {"no_such_option": 1})]
    table = dataclasses.replace(imagenet.TABLES[2], columns=columns)
    monkeypatch.setitem(imagenet.TABLES, 2, table)
    case = imagenet.Case("any", 1, 1)
    assert [row.column for row in imagenet.cases(case, [2], [8])] == ["float", "known"]
    results = imagenet.Results(tmp_path / "rows.json")
    results.add(imagenet.Row("any", 1, 1, 2, "W8", "known", 50.0, 60.0))
    assert "no options for these columns of Table 2: strange." in imagenet.markdown(results)


@pytest.mark.parametrize(
    ("tables", "bits", "message"),
    [
        ([5], [8], r"`tables` \(=5\) must be among 2, 3, 4"),
        ([2], [9], r"`bits` \(=9\) must be among 8, 7, 6, 5, 4"),
    ],
)
def test_tables_and_bits_are_checked(tables, bits, message):
    with pytest.raises(ValueError, match=message):
        imagenet.cases(imagenet.Case("any", 1, 1), tables, bits)


# Measuring ---------------------------------------------------------------------------------------


def labels_of(model, folders):
    pictures = imagenet.find(folders / "val", FORM, CLASSES)
    inputs = np.concatenate(list(pictures.batches()))
    return np.asarray(model(inputs)).argmax(1), pictures.labels


def case(line="", column="float", table=2):
    return imagenet.Case("resnet50", CLASSES * PER_CLASS, 8, table if line else 0, line, column)


def test_float_scores(results, network, folders):
    model = keras.models.load_model(network)
    files = sorted((folders / "val").rglob("*.png"))
    labels = np.asarray(model(pil_inputs(files))).argmax(1)
    truth = np.array([int(file.parent.name[1:]) for file in files])
    row = results[case()]
    assert row.top1 == pytest.approx(100 * np.mean(labels == truth), abs=0.01)
    assert row.agreement == 100


@pytest.mark.parametrize("clip", paper.CLIPS)
def test_scores_of_the_papers_set_up(results, network, folders, clip):
    model = keras.models.load_model(network)
    (calibration,) = imagenet.find_calibration(
        folders / "train", imagenet.find(folders / "val", FORM, CLASSES)
    ).batches()
    config = ocs_tf.Config.paper(weight_bits=4, activation_bits=8, weight_clip=clip)
    quantized = ocs_tf.convert(model, config, representative_dataset=calibration, verbose=False)
    labels, truth = labels_of(quantized, folders)
    row = results[case("W4", clip)]
    assert row.top1 == pytest.approx(100 * np.mean(labels == truth), abs=0.01)
    agreement = 100 * np.mean(labels == labels_of(model, folders)[0])
    assert row.agreement == pytest.approx(agreement, abs=0.01)


def test_the_best_clip_is_the_best_without_splitting(tmp_path):
    results = imagenet.Results(tmp_path / "rows.json")
    scores = {"none": 10.0, "mse": 20.0, "aciq": 30.0, "kl": 25.0, "OCS r=0.05": 90.0}
    for column, top1 in scores.items():
        found = dataclasses.asdict(case("W4", column)) | {"top1": top1}
        results.add(imagenet.Row(**found))
    assert results.best_clip(case("W4", "OCS r=0.02, best clip")) == "aciq"


def test_rows_are_written(results):
    content = json.loads(results.path.read_text())
    columns = imagenet.TABLES[2].columns
    assert content["machine"]["keras"] == keras.__version__
    assert len(content["rows"]) == 1 + 2 * len(columns)
    for row in content["rows"]:
        assert ("best clip" in row["column"]) == (row["clip"] in paper.CLIPS)


def test_the_report_has_the_papers_numbers_beside_ours(results):
    text = results.path.with_suffix(".md").read_text()
    ours, theirs = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| W4")
    )
    columns = [column.name for column in imagenet.TABLES[2].columns]
    rows = [results[case("W4", column)] for column in columns]
    assert ours == ["W4", *(f"{row.top1:.1f} ({row.agreement:.1f})" for row in rows)]
    published = paper.TABLES[2]["resnet50"]["W4"]
    assert theirs == ["W4, paper", *(str(published.get(column, "")) for column in columns)]
    assert f"Float: {results[case()].top1:.1f} (paper: 76.1)." in text


def test_resume_measures_only_what_is_missing(results, network, folders, tmp_path, monkeypatch):
    content = json.loads(results.path.read_text())
    last = content["rows"].pop()
    (tmp_path / results.path.name).write_text(json.dumps(content))
    seen = []
    measure = imagenet.Scorer.measure
    monkeypatch.setattr(
        imagenet.Scorer,
        "measure",
        lambda self, case, results: seen.append(case) or measure(self, case, results),
    )
    again = run(network, folders, tmp_path)
    assert seen == [case(last["line"], last["column"])]
    assert {results.case_of(row): row.top1 for row in again} == {
        results.case_of(row): row.top1 for row in results
    }
    run(network, folders, tmp_path)
    assert len(seen) == 1


def test_activation_bits(network, folders, tmp_path):
    """Table 3, on a few pictures that are kept in memory."""
    results = run(network, folders, tmp_path, tables=[3], bits=[8], limit=6, keep_in_memory=True)
    columns = [row.column for row in results]
    assert columns == ["float", *(c.name for c in imagenet.TABLES[3].available().columns)]
    assert {row.pictures for row in results} == {6}


def test_errors_come_before_work(network, folders, tmp_path):
    with pytest.raises(ValueError, match="`tables`"):
        run(network, folders, tmp_path, tables=[1])
    assert not list(tmp_path.iterdir())
