"""The benchmark of language models: what it computes from text, and all of it on tiny models."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys
import types

import keras
import numpy as np
import pytest

import ocs_tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from benchmarks import language_model, text

SENTENCES = "the cat sat on the mat .\nthe dog sat , too .\n"


# Text ---------------------------------------------------------------------------------------------


def test_words_of_a_prepared_text_are_between_white_space():
    tokens = text.words("a <unk> @-@ b .\n\nc")
    assert " ".join(tokens) == "a <unk> @-@ b . <eos> <eos> c <eos>"


def test_words_of_other_texts_have_their_punctuation_apart():
    assert " ".join(text.words("Come, it's I.", prepared=False)) == "Come , it ' s I . <eos>"


def test_vocabulary_is_the_most_frequent_words():
    tokens = [*"abbccc", *["<unk>"] * 4]
    assert text.vocabulary(tokens, 3) == ["<unk>", "c", "b"]
    assert text.vocabulary(tokens, 99) == ["<unk>", "c", "b", "a"]


def test_encode_counts_what_it_does_not_know_as_unknown():
    assert text.encode(["b", "x", "a"], ["<unk>", "a", "b"]).tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="no 'x', and no <unk>"):
        text.encode(["a", "x"], ["a"])


@pytest.mark.parametrize(("length", "context", "scored"), [(50, 3, 4), (11, 3, 7), (40, 0, 5)])
def test_windows_score_each_token_once(length, context, scored):
    ids = np.arange(length, dtype=np.int32)
    inputs, targets = text.windows(ids, context, scored)
    np.testing.assert_array_equal(targets, inputs + 1)
    once = targets[:, context:].ravel()
    np.testing.assert_array_equal(once, np.arange(context + 1, context + 1 + once.size))
    assert length - 1 - once[-1] < scored  # no whole window is left
    assert np.shares_memory(inputs, ids)


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="7 tokens has no window of 7"):
        text.windows(np.arange(7, dtype=np.int32), 3, 4)


def test_samples_are_windows_of_the_text():
    ids = np.arange(30, dtype=np.int32)
    batches = list(text.samples(ids, 5, 4, 3))
    assert len(batches) == 3
    for inputs, targets in batches:
        np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(5))
        np.testing.assert_array_equal(targets, inputs + 1)


# Loss ---------------------------------------------------------------------------------------------


class Table:
    """A model whose outputs were computed before."""

    def __init__(self, outputs):
        self.outputs = outputs

    def predict_on_batch(self, inputs):
        return self.outputs[inputs[:, 0]]


@pytest.fixture(scope="module")
def outputs():
    return np.random.default_rng(0).normal(scale=4, size=(7, 6, 5)).astype("float32")


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("context", [0, 2])
def test_loss(outputs, probabilities, context):
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 5, (7, 6))
    exact = keras.ops.softmax(outputs.astype("float64")).numpy()
    chances = [exact[n, t, targets[n, t]] for n in range(7) for t in range(context, 6)]
    given = exact.astype("float32") if probabilities else outputs
    inputs = np.repeat(np.arange(7, dtype=np.int32)[:, None], 6, 1)
    found = text.loss(Table(given), inputs, targets, context, probabilities)
    assert found == pytest.approx(-sum(map(math.log, chances)) / len(chances), rel=1e-6)


def test_loss_of_large_logits_is_finite():
    outputs = np.array([[[1000.0, 0.0]]], np.float32)
    inputs = np.zeros((1, 1), np.int32)
    assert text.loss(Table(outputs), inputs, np.array([[1]])) == pytest.approx(1000)


def test_units():
    # One of 8 alike: 3 bits each, and as much doubt as between 8.
    assert language_model.in_unit(math.log(8), "bits per character") == pytest.approx(3)
    assert language_model.in_unit(math.log(8), "perplexity") == pytest.approx(8)


def test_the_zoos_score(zoo):
    network = language_model.zoo_network(zoo, 3)
    entry = zoo.load(network.name, limit=3)
    assert network.tokens == 3 * 200
    assert network.score(network.model) == pytest.approx(entry.score(entry.model), abs=1e-6)


# Networks -----------------------------------------------------------------------------------------


def test_transformer_reads_nothing_ahead():
    keras.utils.set_random_seed(0)
    model = language_model.transformer(7, 6, channels=8, heads=2, blocks=1)
    inputs = np.random.default_rng(0).integers(0, 7, (2, 6))
    changed = inputs.copy()
    changed[:, 4:] = (inputs[:, 4:] + 1) % 7
    before, after = (np.asarray(model.predict_on_batch(i)) for i in (inputs, changed))
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert np.abs(before[:, 4:] - after[:, 4:]).min(axis=-1).max() > 1e-4


def test_transformer_is_quantized_throughout():
    model = language_model.transformer(7, 6, channels=8, heads=2, blocks=1)
    projections = {f"attention_0/{p}" for p in ("query", "key", "value", "attention_output")}
    kernels = {"token", "position", "up_0", "down_0", "logits"} | projections
    assert set(language_model.kernels_of(model)) == kernels


def test_training_learns_and_is_kept(tmp_path):
    ids = np.tile(np.arange(5, dtype=np.int32), 40)
    training = language_model.Training(width=8, batch=4, steps=40, rate=3e-2)

    def train():
        return language_model.trained(
            lambda: language_model.stacked_lstm(5, 8), ids, training, tmp_path
        )

    model = train()
    inputs, targets = text.windows(ids, 1, 7)
    assert text.loss(model, inputs, targets, 1) < 0.5 * math.log(5)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    for old, new in zip(model.get_weights(), train().get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert kept.stat().st_mtime_ns == before


def test_words_from_files(tmp_path):
    for name in ("wiki.train.tokens", "wiki.valid.tokens"):
        (tmp_path / name).write_text(SENTENCES, encoding="utf-8")
    train, valid = (str(tmp_path / f"wiki.{part}.tokens") for part in ("train", "valid"))
    words = language_model.read_words(train, valid, None, None, hidden=8)
    assert words.name == "wiki_lstm_8"
    assert list(words.scored) == text.words(SENTENCES)
    whole = language_model.read_words(None, None, train, "my.keras")
    assert whole.name == "wiki_my"
    assert [*whole.learned, *whole.scored] == text.words(SENTENCES)
    with pytest.raises(ValueError, match="--train and --valid, or --text"):
        language_model.read_words(train, None, None, None)


def test_a_model_of_the_users_with_probabilities(tmp_path):
    keras.utils.set_random_seed(0)
    known = text.vocabulary(text.words(SENTENCES), 9)
    model = language_model.stacked_lstm(len(known), 4)
    soft = keras.layers.Softmax()(model.outputs[0])
    keras.Model(model.inputs, soft).save(tmp_path / "soft.keras")
    model.save(tmp_path / "hard.keras")
    scores = []
    for name in ("soft", "hard"):
        words = language_model.Words(
            "my", text.words(SENTENCES * 20), text.words(SENTENCES * 20), 9
        )
        words = dataclasses.replace(words, model=tmp_path / f"{name}.keras")
        network = language_model.words_network(words, 2, tmp_path)
        scores.append(network.score(network.model))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


# End to end ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language_model")
    tokens = text.words(SENTENCES * 40)
    words = language_model.Words("tiny", tokens, tokens, size=9, hidden=8, epochs=4)
    options = {"networks": ["words"], "limit": 3, "cache": folder / "cache", "words": words}
    with pytest.MonkeyPatch.context() as patch:  # a part of the grid
        patch.setattr(language_model, "BITS", (8, 4))
        patch.setattr(language_model, "RATIOS", (0.0, 0.02))
        patch.setattr(language_model, "CLIPS", ("none",))
        patch.setattr(language_model, "CALIBRATION", 2)
        for setup in ("all layers alike", "all layers alike, with data"):
            patch.delitem(language_model.DEFAULTS, setup)
        yield folder, options, language_model.benchmark(folder, **options)


def test_grid(benchmark):
    _, _, results = benchmark
    exact = next(row for row in results if row.setup == "float")
    assert exact.tokens == 3 * 70
    assert exact.unit == "perplexity"
    assert 1 <= exact.score < 9
    paper = [row for row in results if row.setup == language_model.PAPER]
    assert len(paper) == 2 * 2
    alone = [row.kernel for row in results if row.setup == language_model.ALONE]
    lstms = [f"lstm_{i}/{kernel}" for i in (0, 1) for kernel in ("kernel", "recurrent_kernel")]
    assert alone == ["embedding", *lstms, "logits"]
    for row in results:
        assert row.bits == 4 or row.score == pytest.approx(exact.score, rel=0.5)
        if row.bits == 8:
            assert row.score == pytest.approx(exact.score, rel=0.02)


def test_weight_bytes_of_the_papers_set_up(benchmark):
    _, _, results = benchmark
    row = next(
        r for r in results if (r.setup, r.bits, r.expand_ratio) == (language_model.PAPER, 4, 0)
    )
    codes = (9 * 8 + 4 * 8 * 32 + 8 * 9) // 2
    assert row.weight_bytes == codes + 4 * (6 + 2 * 32 + 9)  # steps and biases


def test_report(benchmark):
    folder, _, results = benchmark
    written = (folder / "language_model.md").read_text()
    assert written == language_model.markdown(results)
    exact = next(row for row in results if row.setup == "float")
    assert f"Float: {exact.score:.2f} perplexity" in written
    for row in results:
        assert f"{row.score:.2f}" in written
    assert "aim" not in written  # these are in bits per character


def test_what_was_measured_is_not_measured_again(benchmark, monkeypatch):
    folder, options, results = benchmark
    monkeypatch.setattr(language_model, "measure", None)
    again = language_model.benchmark(folder, **options)
    assert list(again) == list(results)


def test_rows_of_other_weights_do_not_count(benchmark):
    _, _, results = benchmark
    row = next(iter(results))
    network = types.SimpleNamespace(name=row.network, weights=row.weights + 1, tokens=row.tokens)
    assert next(language_model.cases(network)) not in results


def test_bits_per_character_are_shown_beside_their_aims():
    case, clip = language_model.Case("net", 1, 100), language_model.CLIPS[-1]
    rows = [
        language_model.Row(**dataclasses.asdict(c), unit="bits per character", score=score)
        for c, score in (
            (case, 1.5),
            (dataclasses.replace(case, setup="default", bits=4), 1.625),
            (dataclasses.replace(case, setup="paper", bits=4, clip=clip), 1.75),
        )
    ]
    lines = language_model.markdown(rows).splitlines()
    paper, ours = (line for line in lines if line.startswith("| W4"))
    assert paper.endswith("| **1.7500** (+0.2500) |")
    assert ours.startswith("| W4 | 1.6250 (+0.1250) |")
    assert ours.endswith("| +0.1 |")


def test_quick(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(language_model, "DEFAULTS", {"default": (False, {})})
    results = language_model.benchmark(tmp_path, quick=True, limit=2)
    assert json.loads((tmp_path / "language_model_quick.json").read_text())
    assert {row.network for row in results} == {language_model.ZOO_NETWORK}
    rows = {(row.setup, row.bits): row.score for row in results}
    assert rows["default", 8] == pytest.approx(rows["float", 32], abs=0.01)
    assert rows["default", 8] < rows["default", 4]


@pytest.mark.parametrize(("setup", "options"), language_model.DEFAULTS.items())
def test_activations_stay_in_float(setup, options, monkeypatch):
    monkeypatch.setitem(language_model.DEFAULTS, setup, options)  # some tests leave set-ups out
    case = language_model.Case("net", 1, 100, setup, 5)
    assert language_model.config(case).resolve(with_data=True).activation_bits is None
    assert isinstance(language_model.config(case), ocs_tf.Config)
