"""Inputs that a file is run on: representative data, or drawn ones that fit the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ocs_tf import data, drawing
from ocs_tf.config import CALIBRATION_SAMPLES
from ocs_tf.export.lowering import Lowered
from ocs_tf.graph.analysis.indices import table_rows
from ocs_tf.graph.reader import Graph

_SAMPLES = 3


def sample_inputs(lowered: Lowered, source: data.Source | None) -> dict[str, np.ndarray]:
    """A few inputs of a lowered model, by name: real ones, or drawn ones that fit.

    Numbers are drawn from all of the input's grid; indices from the rows of the smallest table that
    they are looked up in, and other integers from 0 and 1. There are as many as fill batches of the
    model's own size.
    """
    batch = data.fixed_batch_size(lowered.model) or 1
    count = -(-_SAMPLES // batch) * batch
    if source is not None:
        batches = list(named_batches(lowered, source, limit=count))  # of one sample each, often
        shapes = [{name: array.shape[1:] for name, array in batch.items()} for batch in batches]
        alike = [b for b, shape in zip(batches, shapes, strict=True) if shape == shapes[0]]
        given = {name: np.concatenate([b[name] for b in alike]) for name in batches[0]}
        size = len(next(iter(given.values())))
        count = min(count, -(-size // batch) * batch)
        return {name: array[np.arange(count) % size] for name, array in given.items()}
    graph = Graph(lowered.model)
    rng = np.random.default_rng(0)
    sample = {}
    open_size = _open_size(lowered.model)
    for tensor in graph.model.inputs:
        shape = count, *drawing.sized(tensor.shape[1:], open_size)
        rows = table_rows(graph, tensor)
        grid = lowered.grids.get(tensor.name)
        low, high = (grid.minimum, grid.maximum) if grid else (-1.0, 1.0)
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        values = drawing.drawn(rng, shape, "int" if rows else dtype, low, high, rows or 2)
        sample[str(tensor.name)] = values.astype(dtype)
    return sample


def _open_size(model: keras.Model) -> int:
    """What the sizes are set to that a model leaves open: the first with which it can be run.

    No layer lacks elements, and no table of positions is too short.
    """
    if all(None not in tensor.shape[1:] for tensor in model.inputs):
        return drawing.OPEN_SIZES[0]
    fitting = [size for size in drawing.OPEN_SIZES if _gives_outputs(model, size)]
    return next((size for size in fitting if _runs(model, size)), max(drawing.OPEN_SIZES))


def _gives_outputs(model: keras.Model, size: int) -> bool:
    """Whether inputs of this size leave something of each output."""
    specs = [keras.KerasTensor(_with_size(t, size), t.dtype) for t in model.inputs]
    try:
        outputs = keras.tree.flatten(model.compute_output_spec(specs))
    except ValueError:
        return False
    return all(0 not in output.shape for output in outputs)


def _runs(model: keras.Model, size: int) -> bool:
    zeros = [keras.ops.zeros(_with_size(t, size), t.dtype) for t in model.inputs]
    alone = isinstance(model, keras.Sequential)
    try:
        model(zeros[0] if alone else keras.tree.pack_sequence_as(model.input, zeros))
    except (ValueError, tf.errors.OpError):
        return False
    return True


def _with_size(tensor: keras.KerasTensor, size: int) -> tuple[int, ...]:
    return 1, *drawing.sized(tensor.shape[1:], size)


def named_batches(
    lowered: Lowered, source: data.Source, limit: int = CALIBRATION_SAMPLES
) -> Iterator[Mapping[str, Any]]:
    """Batches of representative data, by the names of the inputs."""
    names = [tensor.name for tensor in lowered.model.inputs]
    for batch in source.batches(lowered.model, limit=limit):
        yield dict(zip(names, batch, strict=True))
