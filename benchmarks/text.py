"""Text for language models: tokens, vocabularies, windows, and the loss of a model on them."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNKNOWN = "<unk>"
END = "<eos>"
_LARGEST_OUTPUT = 1 << 25  # values of a batch of logits


def words(text: str, prepared: bool = True) -> list[str]:
    """Words of a text, with `END` behind each line.

    Arguments:
        text: to split.
        prepared: words are what white space separates, as in the files of WikiText and PTB; else
            punctuation is set apart first.
    """
    if not prepared:
        text = re.sub(r"([^\w\s])", r" \1 ", text)
    return [word for line in text.splitlines() for word in (*line.split(), END)]


def vocabulary(tokens: Sequence[str], size: int) -> list[str]:
    """`UNKNOWN`, and the most frequent of the other tokens, `size` in all or fewer."""
    counts = collections.Counter(tokens)
    del counts[UNKNOWN]
    return [UNKNOWN, *(token for token, _ in counts.most_common(size - 1))]


def encode(tokens: Sequence[str], known: Sequence[str]) -> NDArray[np.int32]:
    """The place of each token in the vocabulary `known`.

    Raises:
        ValueError: a token is not known, and neither is `UNKNOWN`.
    """
    ids = {token: i for i, token in enumerate(known)}
    unknown = ids.get(UNKNOWN)
    found = [ids.get(token, unknown) for token in tokens]
    if None in found:
        raise ValueError(f"the vocabulary has no {tokens[found.index(None)]!r}, and no {UNKNOWN}.")
    return np.array(found, np.int32)


def windows(
    ids: NDArray[np.int32], context: int, scored: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Windows of a text, as views of it: inputs and targets `[N, context + scored]`.

    Windows overlap by `context`: each token is the target of a scored position just once, but for
    the first `context + 1` of the text, and for the rest that fills no window.

    Raises:
        ValueError: the text is shorter than one window.
    """
    width = context + scored
    if len(ids) <= width:
        raise ValueError(f"a text of {len(ids)} tokens has no window of {width} and a target.")
    views = np.lib.stride_tricks.sliding_window_view(ids, width)
    return views[:-1:scored], views[1::scored]


def samples(
    ids: NDArray[np.int32], width: int, batch: int, count: int, seed: int = 0
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """`count` batches of random windows: inputs and targets `[batch, width]`."""
    rng = np.random.default_rng(seed)
    views = np.lib.stride_tricks.sliding_window_view(ids, width + 1)
    for _ in range(count):
        chosen = views[rng.integers(len(views), size=batch)]
        yield chosen[:, :-1], chosen[:, 1:]


def loss(
    model: Any,
    inputs: NDArray[np.int32],
    targets: NDArray[np.integer[Any]],
    context: int = 0,
    probabilities: bool = False,
) -> float:
    """Mean cross entropy of a model's predictions, in nats per token.

    Arguments:
        model: a Keras model from windows `[N, T]` to logits `[N, T, V]`.
        inputs, targets: windows; those of a batch are read at a time.
        context: so many positions at the start of each window are not scored.
        probabilities: the model's outputs are probabilities instead of logits.
    """
    total = 0.0
    size = 1
    start = 0
    while start < len(inputs):
        outputs = np.asarray(model.predict_on_batch(inputs[start : start + size]))
        picked = targets[start : start + size, context:]
        total += float(_surprise(outputs[:, context:], picked, probabilities).sum())
        start += len(outputs)
        size = min(100, max(1, _LARGEST_OUTPUT // math.prod(outputs.shape[1:])))
    return total / targets[:, context:].size


def _surprise(
    outputs: NDArray[Any], targets: NDArray[np.integer[Any]], probabilities: bool
) -> NDArray[np.float64]:
    """Negative logarithm of the probability of each target, float64 `[N, T]`."""
    picked = np.take_along_axis(outputs, targets[..., None], -1)[..., 0].astype(np.float64)
    if probabilities:
        return -np.log(np.maximum(picked, np.finfo(np.float32).tiny))
    largest = outputs.max(-1)
    sums = np.exp(outputs - largest[..., None]).sum(-1, dtype=np.float64)
    return np.log(sums) + largest - picked
