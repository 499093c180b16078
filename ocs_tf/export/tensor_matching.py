"""Matching of the tensors of a float .tflite file with those of the Keras graph, and their ranges.

The converter renames, fuses and reorders; what it cannot change is the data. So the file is run and
its tensors are told apart by content.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from ocs_tf.export import attention_scores
from ocs_tf.export import flatbuffer as fb
from ocs_tf.runtime import runner

_TOLERANCE = 1e-4  # of the tensor's largest magnitude: float sums in another order, no more
_THREADS = 2

Sample = Sequence[np.ndarray] | Mapping[str, np.ndarray]


def match_tensors(
    float_model: bytes, inputs: Sample, tensors: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """Find the Keras tensor that each activation of a float .tflite file equals.

    Two tensors are equal if they have the same values in the same order, whatever their shapes (the
    converter moves reshapes about), to within 1e-4 of their largest magnitude. Equal contents are
    told apart by shape, then by layer name, then by order: a key names its layer (`"conv"`), and
    `tensors` lists them in topological order.

    Arguments:
        float_model: a float .tflite file with fixed input shapes.
        inputs: the batch that `tensors` were computed from: arrays by Keras input name, or a list
            of the only one. The leading axis is cut into samples of the file's batch size.
        tensors: what Keras computes for `inputs`, float arrays with the same leading axis, by a key
            of the caller's choice.

    Returns:
        TFLite tensor name -> key of `tensors`. Several TFLite tensors may equal one Keras tensor.
        Keras tensors that were fused away are absent, as are TFLite tensors that Keras lacks.

    Raises:
        ValueError: if the inputs or tensors do not fit the model or each other.
    """
    kept = _AllTensors(float_model)
    found: dict[str, list[np.ndarray]] = {}
    for values in kept.run(inputs):
        for name, value in values.items():
            found.setdefault(name, []).append(np.array(value))
    samples = len(next(iter(found.values())))
    wanted = {key: _flat(key, value, samples) for key, value in tensors.items()}
    shapes = {key: np.shape(value)[1:] for key, value in tensors.items()}
    matches: dict[str, str] = {}
    used: dict[str, int] = {}
    for name, chunks in found.items():
        value = np.stack([chunk.ravel() for chunk in chunks])
        keys = [key for key, other in wanted.items() if _close(value, other)]
        if keys:
            shape = chunks[0].shape[1:]
            # sorted is stable: what the ranking cannot tell apart is taken in topological order.
            matches[name] = min(
                keys,
                key=lambda key: (
                    shapes[key] != shape,
                    -fb.name_affinity(name, key),
                    used.get(key, 0),
                ),
            )
            used[matches[name]] = used.get(matches[name], 0) + 1
    return matches


def measure_ranges(float_model: bytes, dataset: Iterable[Sample]) -> dict[str, tuple[float, float]]:
    """Minimum and maximum of every float activation of a .tflite file over a dataset.

    One pass; no activation outlives its sample. What softmaxes read, and what is made of masks,
    ranges over what `attention` says.

    Arguments:
        float_model: a float .tflite file with fixed input shapes.
        dataset: batches of inputs, each as `inputs` of `match_tensors`.

    Returns:
        TFLite tensor name -> `(min, max)`, for the model's inputs, outputs and all in between.

    Raises:
        ValueError: if the dataset is empty, does not fit the model, or a tensor is not finite.
    """
    kept = _AllTensors(float_model)
    parsed = fb.read_straight(float_model)
    scores = attention_scores.scores(parsed)
    ranges: dict[str, tuple[float, float]] = {}
    masks = attention_scores.mask_ranges(parsed)
    for batch in dataset:
        for values in kept.run(batch):
            for name, value in values.items():
                low, high = float(value.min()), float(value.max())
                if name in scores:
                    low = scores[name].low(values, low)
                if not (np.isfinite(low) and np.isfinite(high)):
                    raise ValueError(f"activation {name!r} is not finite: range {(low, high)}")
                least, most = ranges.get(name, (low, high))
                ranges[name] = (min(least, low), max(most, high))
    if not ranges:
        raise ValueError("dataset is empty: at least one batch is needed to measure ranges")
    for name, (low, high) in masks.items():
        least, most = ranges.get(name, (low, high))
        ranges[name] = (min(least, low), max(most, high))
    return ranges


def largest_score(float_model: bytes, inputs: Sample) -> float:
    """The largest magnitude of scores that a softmax reads, among those that may be masked.

    Arguments:
        float_model, inputs: as of `match_tensors`; masks are those of Keras.
    """
    scores = attention_scores.scores(fb.read_straight(float_model))
    masked = {score.softmax: score for score in scores.values() if score.mask}
    if not masked:
        return 0.0
    runs = _AllTensors(float_model).run(inputs)
    return max(score.largest(values) for values in runs for score in masked.values())


def tensor_values(
    float_model: bytes, inputs: Sample, tensors: Collection[int]
) -> Iterator[dict[int, np.ndarray]]:
    """What a float .tflite file computes for some of its tensors, by their indices, run by run.

    Arguments:
        float_model, inputs: as of `match_tensors`.
        tensors: indices of tensors that an operator reads or the file returns, of any type.
    """
    for values in _AllTensors(float_model, {str(i): i for i in tensors}).run(inputs):
        yield {int(name): np.array(value) for name, value in values.items()}


class _AllTensors:
    """An interpreter that keeps every intermediate tensor: all float ones, or those given."""

    def __init__(self, float_model: bytes, names: Mapping[str, int] | None = None) -> None:
        model = fb.read(float_model)
        graph = model.subgraphs[0]
        read = {i for op in graph.operators for i in op.inputs} | set(graph.outputs)
        # What nobody reads, a part of a SPLIT say, runtimes may not keep.
        known = fb.float_activations(model) if names is None else names
        self._names = {name: i for name, i in known.items() if i in read}
        # The default delegate keeps intermediate tensors too, once asked to, and is 4 times as
        # fast as going without.
        self._interpreter = runner.opened(
            float_model, num_threads=_THREADS, experimental_preserve_all_tensors=True
        )
        self._inputs = self._interpreter.get_input_details()
        signature = model.signatureDefs[0].inputs if model.signatureDefs else []
        self._index_of = {entry.name.decode(): entry.tensorIndex for entry in signature}

    def run(self, inputs: Sample) -> Iterable[dict[str, np.ndarray]]:
        """All float activations by name, sample by sample; arrays are valid until the next one."""
        arrays = self._in_order(inputs)
        runner.allocate_for(self._interpreter, arrays)
        batch = int(self._inputs[0]["shape"][0])
        for start in range(0, len(arrays[0]), batch):
            samples = [array[start : start + batch] for array in arrays]
            runner.run(self._interpreter, samples, self._inputs)
            yield {name: self._interpreter.get_tensor(i) for name, i in self._names.items()}

    def _in_order(self, inputs: Sample) -> list[np.ndarray]:
        """The input arrays in the interpreter's order, checked."""
        if isinstance(inputs, Mapping):
            by_index = {self._index_of.get(name): array for name, array in inputs.items()}
            if set(by_index) != {detail["index"] for detail in self._inputs}:
                raise ValueError(
                    f"inputs names {sorted(inputs)}, the model's are {sorted(self._index_of)}"
                )
            arrays = [np.asarray(by_index[detail["index"]]) for detail in self._inputs]
        else:
            if len(inputs) != len(self._inputs) or len(inputs) > 1:
                raise ValueError(
                    f"inputs holds {len(inputs)} arrays by position for {len(self._inputs)} model"
                    " inputs; a file keeps no order of several inputs: pass a mapping by name, from"
                    f" {sorted(self._index_of)}"
                )
            arrays = [np.asarray(inputs[0])]
        for detail, array in zip(self._inputs, arrays, strict=True):
            batch = int(detail["shape"][0])
            shape = [int(size) for size in detail["shape_signature"][1:]]
            fits = len(shape) == array.ndim - 1 and all(
                size in (-1, given) for size, given in zip(shape, array.shape[1:], strict=True)
            )
            if not fits or len(array) % batch or len(array) == 0:
                raise ValueError(
                    f"input {detail['name']!r} has shape {list(array.shape)}; the model takes"
                    f" [{batch} x n, {', '.join(map(str, shape))}]"
                )
            if len(array) != len(arrays[0]):
                raise ValueError(f"inputs differ in length: {[len(a) for a in arrays]}")
        return arrays


def _flat(key: str, value: np.ndarray, samples: int) -> np.ndarray:
    """A Keras tensor as `[samples, n]`."""
    value = np.asarray(value)
    if value.ndim == 0 or value.size % samples:
        raise ValueError(
            f"tensors[{key!r}] has shape {list(value.shape)}; its leading axis must hold the"
            f" {samples} samples of inputs"
        )
    return value.reshape(samples, -1)


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two tensors hold the same values, to within float rounding."""
    if one.shape != other.shape:
        return False
    limit = _TOLERANCE * max(np.max(np.abs(one), initial=0), np.max(np.abs(other), initial=0))
    return bool(np.max(np.abs(one - other), initial=0) <= limit)
