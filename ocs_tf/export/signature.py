"""The order of a file's inputs and outputs: that of the Keras model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ocs_tf.export import flatbuffer as fb


def in_keras_order(content: bytes, model: keras.Model) -> bytes:
    """The `.tflite` file that TensorFlow's converter made of `model`, its borders in Keras' order.

    The converter orders inputs and outputs as it likes; only the signature says which is which.
    """
    parsed = fb.read(content)
    if not parsed.signatureDefs:
        return content
    signature = parsed.signatureDefs[0]
    graph = parsed.subgraphs[signature.subgraphIndex]
    before = signature.inputs, signature.outputs, list(graph.inputs), list(graph.outputs)
    signature.inputs = _sorted(signature.inputs, [str(tensor.name) for tensor in model.inputs])
    outputs = [f"output_{index}" for index in range(len(model.outputs))]
    signature.outputs = _sorted(signature.outputs, outputs)
    graph.inputs = _in_order_of(signature.inputs, graph.inputs)
    graph.outputs = _in_order_of(signature.outputs, graph.outputs)
    after = signature.inputs, signature.outputs, graph.inputs, graph.outputs
    return content if after == before else fb.write(parsed)


def sized_as(content: bytes, model: keras.Model, samples: Sequence[np.ndarray]) -> bytes:
    """The `.tflite` file of `model`, whose open sizes are at first those of `samples`.

    They stay open. The converter would have them be 1, for which a runtime may fail to prepare.
    The batch size is left alone.
    """
    if not any(None in tensor.shape[1:] for tensor in model.inputs):
        return content
    parsed = fb.read(content)
    graph = parsed.subgraphs[0]
    for index, array in zip(graph.inputs, samples, strict=True):
        tensor = graph.tensors[index]
        tensor.shape = [tensor.shape[0], *array.shape[1:]]
    return fb.write(parsed)


def follow(rewritten: Any, original: Any) -> None:
    """Let the signatures of a parsed file name its inputs and outputs.

    Arguments:
        rewritten: `original` with other tensors as inputs and outputs, in the same order. Where
            an output is read by operators, too, ai-edge-quantizer makes a second tensor of it.
    """
    for signature, before in zip(
        rewritten.signatureDefs or (), original.signatureDefs or (), strict=True
    ):
        old, new = (m.subgraphs[signature.subgraphIndex] for m in (original, rewritten))
        for entries, known, border, borders in (
            (signature.inputs, before.inputs, old.inputs, new.inputs),
            (signature.outputs, before.outputs, old.outputs, new.outputs),
        ):
            moved = dict(zip(border, borders, strict=True))
            for entry, same in zip(entries, known, strict=True):
                entry.tensorIndex = moved[same.tensorIndex]


def _sorted(entries: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Entries of a signature in the order of `names`."""
    position = {name: index for index, name in enumerate(names)}
    return sorted(entries, key=lambda entry: position.get(entry.name.decode(), len(position)))


def _in_order_of(entries: Sequence[Any], border: Sequence[int]) -> list[int]:
    """The tensors of a graph's border in the order of a signature's `entries`."""
    named = [entry.tensorIndex for entry in entries]
    return named if sorted(named) == sorted(border) else list(border)
