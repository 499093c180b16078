"""Errors of TensorFlow's converter in words for users: layer, operator, reason."""

from __future__ import annotations

import re
from collections.abc import Iterator

import keras

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export import naming

_DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "i1": "bool"}
_DTYPES |= {f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
_DTYPES |= {f"ui{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)}
_CONTROL_FLOW = ("CALL_ONCE", "IF", "STABLEHLO_WHILE", "WHILE")
_NO_OPERATOR = "op is neither a custom op nor a flex op"


def describe(model: keras.Model, error: Exception) -> str:
    """One sentence or two on the converter's `error`, which is long and in its own words.

    Arguments:
        model: what was to be converted.
        error: what the converter raised.
    """
    message = str(error)
    found = re.search(r"error: loc\((.*?)\): ('(tfl?)\.(\w+)' .*)", message)
    if found is None:
        return f"TensorFlow's converter fails on the model: {_cause(model, error)}."
    place, reason, dialect, operator = found.groups()
    dtype = _dtype(message, f"{dialect}.{operator}")
    if _NO_OPERATOR in reason:
        kind = f" on {dtype}" if dtype else ""
        reason = f"TFLite has no operator for TensorFlow's {operator}{kind}"
    elif dtype and dtype != "float32":
        reason += f" ({dtype})"
    layers = list(dict.fromkeys(_layers_at(model, place))) or list(_layers_of_type(model, dtype))
    where = f"at {', '.join(map(repr, layers))}" if layers else "on the model"
    text = f"TensorFlow's converter fails {where}: {reason}."
    if operator == "reshape" or "Tensordot" in place:
        text += (
            " A Dense layer that reads a sequence of one channel computes the same as a Conv1D of"
            " size 1, which converts."
        )
    return text


def check_straight(content: bytes, model: keras.Model) -> None:
    """Refuse a file with loops or branches, which activations in integers cannot have.

    Arguments:
        content: the float file.
        model: what it was made of.

    Raises:
        ValueError: there are; the message names the layers.
    """
    parsed = fb.read(content)
    if len(parsed.subgraphs) == 1:
        return
    graph = parsed.subgraphs[0]
    found = [op for op in graph.operators if fb.op_name(parsed, op) in _CONTROL_FLOW]
    names = {fb.op_name(parsed, op) for op in found}
    outputs = [fb.name(graph.tensors[i]) for op in found for i in op.outputs]
    layers = [
        operation.name
        for operation in _operations(model)
        if any(fb.name_affinity(name, operation.name) for name in outputs)
    ]
    stateful = [o.name for o in _operations(model) if getattr(o, "stateful", False)]
    where = ", ".join(map(repr, layers or stateful)) or "the model"
    what = f"computed by {' and '.join(sorted(names)) or 'control flow'}"
    if stateful and not layers:
        what = "keeps a state between calls"
    raise ValueError(
        f"{where}: {what}, which TFLite cannot have with integer activations. Export with"
        " activations='float' or 'dynamic', or target='float'."
    )


def _cause(model: keras.Model, error: Exception) -> str:
    """Why `model` cannot be traced, if that is it: the converter only says that it has no model."""
    import tensorflow as tf

    try:
        specs = [tf.TensorSpec(t.shape, t.dtype) for t in model.inputs]
        call = tf.function(lambda *tensors: model(list(tensors), training=False), autograph=False)
        with naming.identifiers(model):
            call.get_concrete_function(*specs)
    except Exception as traced:
        error = traced
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0].rstrip('.')}"


def _dtype(message: str, operator: str) -> str:
    """The element type that the operator reads; empty if the message does not tell."""
    types = re.search(rf'"{re.escape(operator)}"\(.*?: \(tensor<(?:[\d?]+x)*([a-z]+\d+)>', message)
    return _DTYPES.get(types[1], types[1]) if types else ""


def _operations(model: keras.Model) -> Iterator[keras.Operation]:
    for operation in model.operations:
        if not isinstance(operation, keras.layers.InputLayer):
            yield operation


def _layers_at(model: keras.Model, place: str) -> Iterator[str]:
    """Names of the layers, and bare operations, whose scopes are in the location `place`."""
    parts = set(re.split(r"[/;\"@:]", place))
    stems = {re.sub(r"_\d+$", "", part).lower() for part in parts if part}
    for operation in _operations(model):
        name = fb.scope_name(operation.name)
        bare = not isinstance(operation, keras.layers.Layer)
        if parts & {name, f"{name}_1"} or (bare and type(operation).__name__.lower() in stems):
            yield operation.name


def _layers_of_type(model: keras.Model, dtype: str) -> Iterator[str]:
    """Names of what makes tensors of `dtype`, for an operator of which no more is known."""
    for operation in _operations(model) if dtype not in ("", "float32") else ():
        outputs = keras.tree.flatten(operation.output)
        if any(keras.backend.standardize_dtype(t.dtype) == dtype for t in outputs):
            yield operation.name
