"""Language models with quantized weights, over bits, expand ratios and clip methods.

    python -m benchmarks.language_model            # three networks: half an hour on two cores
    python -m benchmarks.language_model --quick    # a few rows on little text: about a minute
    python -m benchmarks.language_model --networks words --train wiki.train.tokens \\
        --valid wiki.valid.tokens --hidden 650 --vocabulary 33278 --epochs 40

The grid is that of Table 6 of the OCS paper, whose model is `words`: an embedding, two LSTMs and a
dense layer, as of Zaremba et al., "Recurrent Neural Network Regularization", 2014. Networks:

- `charlstm_shakespeare`: characters, two LSTM(128); of the zoo, as its authors trained it.
- `transformer`: characters, two blocks of causal attention; trained here on the zoo's text.
- `words`: trained here on `--train` and scored on `--valid`, or on nine tenths of `--text` and the
  rest, which is the zoo's text by default. Or give `--model`, a trained one.

Models carry no state from window to window: each window starts with words that are read but not
scored, and all others are scored once.

Weights trained here are kept in `--cache_dir`. Rows go to `language_model.json` one by one; what is
in there already for the same weights is not measured again (`--noresume` does).
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import pathlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import flags
from numpy.typing import NDArray
from tqdm import tqdm

import ocs_tf
from benchmarks import common, text

COMMAND = "python -m benchmarks.language_model"
ZOO_NETWORK = "charlstm_shakespeare"
NETWORKS = (ZOO_NETWORK, "transformer", "words")
BITS = (8, 6, 5, 4)
RATIOS = (0.0, 0.01, 0.02, 0.05)
CLIPS = ("none", "mse", "aciq", "kl")
RATIO = 0.02  # of all rows but the grid's
PAPER, ALONE = "paper", "alone"
# The default set-up: title, whether data are given, options besides the bits.
ALIKE = {"first_layer_bits": "same", "last_layer_bits": "same", "expand_ratio": RATIO}
DEFAULTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "default": (False, {}),
    "all layers alike": (False, ALIKE),
    "default, with data": (True, {}),
    "all layers alike, with data": (True, ALIKE),
}
ALONE_BITS = 4
# The most that weights of so many bits should cost, in bits per character.
AIMS = {8: 0.002, 6: 0.01, 5: 0.03, 4: 0.1}
CALIBRATION = 40  # windows
CACHE = pathlib.Path.home() / ".cache" / "ocs_tf"


# Networks -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Network:
    """A float language model, and the text to score it on.

    Attributes:
        name: in the results.
        about: what it is, in a sentence.
        unit: `"bits per character"` or `"perplexity"`.
        model: from tokens `[N, T]` to logits, or probabilities, `[N, T, V]`.
        inputs, targets: windows of tokens `[N, T]`.
        context: so many positions at the start of each window are not scored.
        calibration: windows of other text.
    """

    name: str
    about: str
    unit: str
    model: keras.Model
    inputs: NDArray[np.int32]
    targets: NDArray[np.integer[Any]]
    context: int
    calibration: NDArray[np.int32]

    def __post_init__(self) -> None:
        self.weights = 0
        for weight in self.model.get_weights():
            self.weights = zlib.crc32(np.ascontiguousarray(weight).tobytes(), self.weights)
        outputs = np.asarray(self.model.predict_on_batch(self.inputs[:1]))
        self.probabilities = bool(outputs.min() >= 0 and np.allclose(outputs.sum(-1), 1, atol=1e-3))

    @property
    def tokens(self) -> int:
        """How many are scored."""
        return int(self.targets[:, self.context :].size)

    def score(self, model: keras.Model) -> float:
        """The metric, lower is better."""
        nats = text.loss(model, self.inputs, self.targets, self.context, self.probabilities)
        return in_unit(nats, self.unit)


def in_unit(nats: float, unit: str) -> float:
    """A cross entropy per token in bits per character, or as perplexity."""
    return math.exp(nats) if unit == "perplexity" else nats / math.log(2)


def transformer(
    vocabulary: int, width: int, channels: int = 96, heads: int = 4, blocks: int = 2
) -> keras.Model:
    """A small decoder: from up to `width` tokens to the logits of each one's successor."""
    layers = keras.layers
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    places = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    x = layers.Embedding(vocabulary, channels, name="token")(tokens)
    x = x + layers.Embedding(width, channels, name="position")(places)
    for i in range(blocks):
        y = layers.LayerNormalization(name=f"norm_{i}a")(x)
        attention = layers.MultiHeadAttention(heads, channels // heads, name=f"attention_{i}")
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(name=f"norm_{i}b")(x)
        y = layers.Dense(4 * channels, activation="gelu", name=f"up_{i}")(y)
        x = x + layers.Dense(channels, name=f"down_{i}")(y)
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(tokens, layers.Dense(vocabulary, name="logits")(x), name="transformer")


def stacked_lstm(vocabulary: int, hidden: int, dropout: float = 0.0) -> keras.Model:
    """The paper's architecture: an embedding and two LSTMs of `hidden` units, a dense layer."""
    layers = keras.layers
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    # From Keras' small numbers, training does not get beyond the frequencies of words for long.
    start = keras.initializers.RandomNormal(stddev=1.0)
    x = layers.Embedding(vocabulary, hidden, start, name="embedding")(tokens)
    x = layers.Dropout(dropout)(x)
    for i in range(2):
        x = layers.LSTM(hidden, return_sequences=True, name=f"lstm_{i}")(x)
        x = layers.Dropout(dropout)(x)
    return keras.Model(tokens, layers.Dense(vocabulary, name="logits")(x), name="words")


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network is trained: Adam on random windows of the text, with a rate that falls off.

    Attributes:
        width: tokens in a window.
        batch: windows in a step.
        steps: of the optimizer.
        rate: the highest one.
    """

    width: int
    batch: int
    steps: int
    rate: float


def trained(
    make: Callable[[], keras.Model], ids: NDArray[np.int32], training: Training, cache: pathlib.Path
) -> keras.Model:
    """What `make` makes, trained on the text `ids`; from `cache`, if it has been there before."""
    keras.utils.set_random_seed(0)
    model = make()
    recipe = [training, model.name, [weight.shape for weight in model.weights]]
    key = zlib.crc32(repr(recipe).encode(), zlib.crc32(np.ascontiguousarray(ids).tobytes()))
    path = cache / f"{model.name}_{key:08x}.weights.h5"
    if path.exists():
        model.load_weights(path)
        return model
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, training.steps, warmup_target=training.rate, warmup_steps=training.steps // 20
    )
    model.compile(
        keras.optimizers.Adam(rate, clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = text.samples(ids, training.width, training.batch, training.steps)
    progress = tqdm(batches, f"training {model.name}", training.steps, unit="step")
    for inputs, targets in progress:
        progress.set_postfix(mean_nats=f"{float(model.train_on_batch(inputs, targets)):.3f}")
    cache.mkdir(parents=True, exist_ok=True)
    model.save_weights(path)
    return model


def zoo_network(zoo: Any, limit: int | None) -> Network:
    """The character model of the zoo; the score is the zoo's."""
    entry = zoo.load(ZOO_NETWORK, limit=limit)
    return Network(
        ZOO_NETWORK,
        "Characters of Shakespeare; an embedding, two LSTM(128), a dense layer",
        "bits per character",
        entry.model,
        entry.inputs,
        entry.targets,
        50,
        entry.calibration,
    )


def transformer_network(
    shakespeare: str, limit: int | None, cache: pathlib.Path, steps: int = 1200
) -> Network:
    """A transformer, trained on the first nine tenths of the text."""
    known = sorted(set(shakespeare))
    ids = text.encode(shakespeare, known)
    learned, scored = np.split(ids, [len(ids) * 9 // 10])
    context, rest = 32, 96
    model = trained(
        lambda: transformer(len(known), context + rest),
        learned,
        Training(context + rest, 32, steps, 2e-3),
        cache,
    )
    return _scored_on(
        "transformer",
        "Characters of Shakespeare; two blocks of causal attention, 96 channels",
        "bits per character",
        model,
        (learned, scored),
        (context, rest),
        limit,
    )


@dataclasses.dataclass(frozen=True)
class Words:
    """A word-level model, and its text.

    Attributes:
        name: in the results.
        learned, scored: words of the two parts of the text; none for the zoo's text.
        size: of the vocabulary.
        hidden: units of each LSTM.
        epochs: how often training reads the text.
        dropout: while training.
        model: path of a trained `.keras` to take instead.
        known: its vocabulary; by default `UNKNOWN` and the most frequent words of `learned`.
    """

    name: str = "words"
    learned: Sequence[str] = ()
    scored: Sequence[str] = ()
    size: int = 2000
    hidden: int = 64
    epochs: float = 8.0
    dropout: float = 0.0
    model: pathlib.Path | None = None
    known: Sequence[str] | None = None


def words_network(words: Words, limit: int | None, cache: pathlib.Path) -> Network:
    """The paper's architecture, or a model of the user's."""
    known = words.known or text.vocabulary(words.learned, words.size)
    learned, scored = (text.encode(part, known) for part in (words.learned, words.scored))
    context, rest = 35, 70
    if words.model is not None:
        model = keras.models.load_model(words.model, compile=False)
        about = f"A model of the user's; {len(known):,} words"
    else:
        width, batch = 35, 40
        steps = max(1, round(words.epochs * len(learned) / (batch * width)))
        model = trained(
            lambda: stacked_lstm(len(known), words.hidden, words.dropout),
            learned,
            Training(width, batch, steps, 4e-3 if words.hidden < 256 else 1e-3),
            cache,
        )
        about = f"{len(known):,} words; an embedding, two LSTM({words.hidden}), a dense layer"
    parts, sizes = (learned, scored), (context, rest)
    return _scored_on(words.name, about, "perplexity", model, parts, sizes, limit)


def _scored_on(
    name: str,
    about: str,
    unit: str,
    model: keras.Model,
    parts: tuple[NDArray[np.int32], NDArray[np.int32]],
    sizes: tuple[int, int],
    limit: int | None,
) -> Network:
    """A network with windows: of what it learned from to calibrate, of the other part to score."""
    learned, _ = text.windows(parts[0], *sizes)
    inputs, targets = (each[:limit] for each in text.windows(parts[1], *sizes))
    calibration = learned[:: max(1, len(learned) // CALIBRATION)][:CALIBRATION]
    return Network(name, about, unit, model, inputs, targets, sizes[0], calibration)


# Rows ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures.

    Attributes:
        network: its name.
        weights: checksum of the float weights.
        tokens: how many are scored.
        setup: `"float"`, `PAPER`, `ALONE`, or one of `DEFAULTS`.
        bits, expand_ratio, clip: of the weights; the default set-ups choose the latter two.
        kernel: with `ALONE`, the only one that is quantized.
    """

    network: str
    weights: int
    tokens: int
    setup: str = "float"
    bits: int = 32
    expand_ratio: float = 0.0
    clip: str = ""
    kernel: str = ""


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """A measured case.

    Attributes:
        unit: of `score`; lower is better in both.
        score: bits per character, or perplexity.
        weight_bytes: of all that the model stores.
        seconds: to convert.
        about: what the network is.
    """

    unit: str = ""
    score: float = math.nan
    weight_bytes: int = 0
    seconds: float = 0.0
    about: str = ""


Results = common.Results[Case, Row]


def config(case: Case, kernels: Iterable[str] = ()) -> ocs_tf.Config:
    """The options of a case; `kernels` are the names of all kernels of the network."""
    if case.setup == PAPER:
        return ocs_tf.Config.paper(
            weight_bits=case.bits,
            first_layer_bits="same",
            expand_ratio=case.expand_ratio,
            weight_clip=case.clip,
            # The last layer is quantized, too, which the released code leaves in float.
            overrides={keras.layers.Dense: {"weight_bits": case.bits}},
        )
    if case.setup == ALONE:
        others: dict[Any, Any] = {k: {"weight_bits": None} for k in kernels if k != case.kernel}
        return ocs_tf.Config(weight_bits=case.bits, **ALIKE, overrides=others)
    _, options = DEFAULTS[case.setup]
    return ocs_tf.Config(weight_bits=case.bits, activation_bits=None, **options)


def cases(network: Network, quick: bool = False) -> Iterator[Case]:
    """All rows of a network, the important ones first."""
    case = Case(network.name, network.weights, network.tokens)
    yield case
    widths = (8, 4) if quick else BITS
    clips = CLIPS[:2] if quick else CLIPS
    for bits, ratio, clip in itertools.product(widths, (0.0, RATIO), clips):
        yield dataclasses.replace(case, setup=PAPER, bits=bits, expand_ratio=ratio, clip=clip)
    for bits, setup in itertools.product(widths, DEFAULTS):
        yield dataclasses.replace(case, setup=setup, bits=bits)
    if quick:
        return
    for kernel in kernels_of(network.model):
        yield dataclasses.replace(case, setup=ALONE, bits=ALONE_BITS, kernel=kernel)
    for bits, ratio, clip in itertools.product(widths, RATIOS, clips):
        yield dataclasses.replace(case, setup=PAPER, bits=bits, expand_ratio=ratio, clip=clip)


def kernels_of(model: keras.Model) -> list[str]:
    """Names of the kernels that can be quantized."""
    return list(ocs_tf.plan(model, weight_clip="none", rounding="nearest", verbose=False).layers)


def measure(network: Network, case: Case) -> Row:
    """Quantize and score."""
    start = time.perf_counter()
    model, size = network.model, 4 * network.model.count_params()
    if case.setup != "float":
        with_data, _ = DEFAULTS.get(case.setup, (False, {}))
        model = ocs_tf.convert(
            model,
            config(case, kernels_of(model) if case.setup == ALONE else ()),
            representative_dataset=network.calibration if with_data else None,
            verbose=False,
        )
        size = ocs_tf.report(model).bytes_after
    seconds = time.perf_counter() - start
    row = Row(
        **dataclasses.asdict(case),
        unit=network.unit,
        score=round(network.score(model), 5),
        weight_bytes=size,
        seconds=round(seconds, 2),
        about=network.about,
    )
    del model
    gc.collect()
    return row


def run(network: Network, results: Results, quick: bool = False) -> None:
    """Measure what is missing in `results`."""
    results.fill(cases(network, quick), lambda case: measure(network, case), network.name)


# The report ---------------------------------------------------------------------------------------

NOTES = """\
Weights only: activations and states stay in float. Lower is better. In brackets: what is lost
against float. *The paper's set-up*: one step per kernel, rounded to the nearest, the same bits in
all layers, embeddings and the last one included (`r`: expand ratio; embeddings are not split).
*The default*: `convert(model, weight_bits=...)`: one step per output channel (one for an
embedding), first and last layer in 8 bits; *all layers alike*: these in the same bits as the
others, and `r` = 0.02 at 8 bits, too; *with data*: codes chosen on some windows that are not
scored. No state is carried from window to window; the start of each is read but not scored.
"""


def markdown(results: Results, findings: str = "") -> str:
    """The whole report."""
    lines = ["# Language models", "", f"Made by `{COMMAND}`.", "", NOTES]
    lines += [findings, ""] if findings else []
    newest = {row.network: (row.weights, row.tokens) for row in results}  # retrained since
    for name, key in newest.items():
        rows = [r for r in results if r.network == name and (r.weights, r.tokens) == key]
        lines += _network(rows)
    return "\n".join(lines).rstrip() + "\n"


def _network(rows: Sequence[Row]) -> list[str]:
    exact = next((row for row in rows if row.setup == "float"), None)
    if exact is None:
        return []
    lines = [
        f"## {exact.network}",
        "",
        f"{exact.about}. Float: {exact.score:.{_digits(exact)}f} {exact.unit} on"
        f" {exact.tokens:,} of them, {exact.weight_bytes:,} bytes of weights.",
        "",
    ]
    paper = {(r.bits, r.expand_ratio, r.clip): r for r in rows if r.setup == PAPER}
    if paper:
        lines += ["The paper's set-up, by clip method:", "", *_paper(paper, exact), ""]
    ours = {(r.bits, r.setup): r for r in rows if r.setup in DEFAULTS}
    if ours:
        lines += ["The default:", "", *_defaults(ours, exact), ""]
    alone = [r for r in rows if r.setup == ALONE]
    if alone:
        header = ["kernel", f"W{ALONE_BITS}"]
        table = common.markdown_table(header, [[f"`{r.kernel}`", _cell(r, exact)] for r in alone])
        lines += ["One kernel at a time, the others in float; without data:", "", table]
    return lines


def _paper(rows: dict[tuple[int, float, str], Row], exact: Row) -> list[str]:
    lines = []
    for bits in BITS:
        scores = [row.score for key, row in rows.items() if key[0] == bits]
        for ratio in RATIOS:
            found = [rows.get((bits, ratio, clip)) for clip in CLIPS]
            if any(found):
                line = ["" if r is None else _cell(r, exact, r.score == min(scores)) for r in found]
                lines.append([f"W{bits}", f"{ratio:g}", *line])
    return common.markdown_table(["", "r", *CLIPS], lines).splitlines()


def _defaults(rows: dict[tuple[int, str], Row], exact: Row) -> list[str]:
    lines = []
    aims = exact.unit == "bits per character"
    for bits in sorted({bits for bits, _ in rows}, reverse=True):
        found = [rows.get((bits, setup)) for setup in DEFAULTS]
        line = ["" if row is None else _cell(row, exact) for row in found]
        lines.append([f"W{bits}", *line, *([f"+{AIMS[bits]:g}"] if aims else [])])
    header = ["", *DEFAULTS, *(["aim"] if aims else [])]
    return common.markdown_table(header, lines).splitlines()


def _cell(row: Row, exact: Row, best: bool = False) -> str:
    digits = _digits(row)
    score = f"{row.score:.{digits}f}"
    return f"{f'**{score}**' if best else score} ({row.score - exact.score:+.{digits}f})"


def _digits(row: Row) -> int:
    return 2 if row.unit == "perplexity" else 4


def benchmark(
    folder: pathlib.Path = common.RESULTS,
    quick: bool = False,
    networks: Sequence[str] = NETWORKS,
    limit: int | None = None,
    resume: bool = True,
    zoo: str | None = None,
    cache: pathlib.Path = CACHE,
    words: Words | None = None,
) -> Results:
    """Measure what is missing, and write `language_model[_quick].json` and `.md` to `folder`."""
    path = folder / ("language_model_quick.json" if quick else "language_model.json")
    results = Results(path, Case, Row, resume)
    if quick:
        networks, limit = networks[:1], limit or 40
    findings = path.with_name(path.stem + "_findings.md")
    try:
        for name in networks:
            run(_load(name, zoo, limit, cache, words), results, quick)
    finally:  # an interrupted run reports what it has
        said = findings.read_text(encoding="utf-8") if findings.exists() else ""
        common.save_text(path.with_suffix(".md"), markdown(results, said))
    return results


def _load(
    name: str, zoo: str | None, limit: int | None, cache: pathlib.Path, words: Words | None
) -> Network:
    words = words or Words()
    if name == "words" and words.learned:
        return words_network(words, limit, cache)
    module = common.load_zoo(zoo)
    if name == ZOO_NETWORK:
        return zoo_network(module, limit)
    shakespeare = (module.HERE / "shakespeare.txt").read_text(encoding="utf-8")
    if name == "transformer":
        return transformer_network(shakespeare, limit, cache)
    if name == "words":
        learned, scored = _split(text.words(shakespeare, prepared=False))
        words = dataclasses.replace(words, learned=learned, scored=scored)
        return words_network(words, limit, cache)
    raise ValueError(f"`--networks` holds {name!r}; known: {', '.join(NETWORKS)}.")


def _split(tokens: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Nine tenths of a text, and the rest."""
    return tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]


def read_words(
    train: str | None, valid: str | None, whole: str | None, model: str | None, **options: Any
) -> Words:
    """The words of text files and the model that flags name.

    Arguments:
        train, valid: paths of the text to learn from, and of that to score on.
        whole: path of a text for both.
        model: path of a trained `.keras`.
        **options: further fields of `Words`.

    Raises:
        ValueError: files are missing, or one too many is given.
    """
    if bool(train) != bool(valid) or (train and whole):
        raise ValueError("give both --train and --valid, or --text alone, or none of them.")
    learned, scored = (
        _split(_words_in(whole))
        if whole
        else (_words_in(path) if path else () for path in (train, valid))
    )
    name = pathlib.Path(whole or train or "words").name.split(".")[0]
    kind = pathlib.Path(model).stem if model else f"lstm_{options.get('hidden', Words.hidden)}"
    return Words(
        f"{name}_{kind}", learned, scored, model=pathlib.Path(model) if model else None, **options
    )


def _words_in(path: str) -> list[str]:
    return text.words(pathlib.Path(path).read_text(encoding="utf-8"))


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, "A few rows on little text, in about a minute.")
    networks = flags.DEFINE_list("networks", list(NETWORKS), "Networks to measure.")
    limit = flags.DEFINE_integer("limit", None, "Score on at most this many windows of text.")
    resume = flags.DEFINE_bool("resume", True, "Keep the rows that were measured before.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    cache = flags.DEFINE_string("cache_dir", str(CACHE), "Folder of the weights trained here.")
    zoo = flags.DEFINE_string("zoo", None, "Folder of the zoo; else $OCS_TF_ZOO or ../shared/zoo.")
    train = flags.DEFINE_string("train", None, "Text to train `words` on: words and spaces.")
    valid = flags.DEFINE_string("valid", None, "Text to score `words` on.")
    whole = flags.DEFINE_string("text", None, "Text for both, in place of --train and --valid.")
    model = flags.DEFINE_string("model", None, "A trained .keras in place of `words`.")
    known = flags.DEFINE_string("words_file", None, "The words of --model by id, one a line.")
    size = flags.DEFINE_integer("vocabulary", Words.size, "Words that `words` knows.")
    hidden = flags.DEFINE_integer("hidden", Words.hidden, "Units of each LSTM of `words`.")
    epochs = flags.DEFINE_float("epochs", Words.epochs, "How often to read the text in training.")
    dropout = flags.DEFINE_float("dropout", Words.dropout, "Of `words`, in training.")

    def run_flags() -> None:
        words = read_words(
            train.value,
            valid.value,
            whole.value,
            model.value,
            size=size.value,
            hidden=hidden.value,
            epochs=epochs.value,
            dropout=dropout.value,
            known=pathlib.Path(known.value).read_text("utf-8").split("\n") if known.value else None,
        )
        benchmark(
            pathlib.Path(folder.value),
            quick.value,
            networks.value,
            limit.value,
            resume.value,
            zoo.value,
            pathlib.Path(cache.value),
            words,
        )

    common.run(run_flags)


if __name__ == "__main__":
    main()
