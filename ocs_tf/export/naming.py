"""Layer names: identifiers for the converter, the original names in the file.

TensorFlow wants names of inputs to be Python identifiers, and those of layers to be scopes. The
names in a file are any text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from ocs_tf.export import flatbuffer as fb
from ocs_tf.keras_internals import layers_within


@contextlib.contextmanager
def identifiers(model: keras.Model) -> Iterator[dict[str, str]]:
    """Within this context, `model` and all within it are called by identifiers.

    Yields:
        The names of inputs, by the identifiers in their place.
    """
    taken: set[str] = set()
    by_name: dict[str, str] = {}
    called: list[keras.Operation] = [
        model,
        *_operations(model),
        *layers_within(model, include_self=False),
    ]
    called += model.inputs
    for one in called:
        if one.name not in by_name:
            name = fb.scope_name(one.name)
            while name in taken:
                name += "_"
            taken.add(name)
            by_name[one.name] = name
    inputs = {by_name[tensor.name]: tensor.name for tensor in model.inputs}
    # A TensorFlow variable keeps the scope that it was made in.
    handles = [v.value for v in model.variables if hasattr(v.value, "_handle_name")]
    before = [(one, "name", one.name) for one in called]
    before += [(handle, "_handle_name", handle._handle_name) for handle in handles]
    try:
        for one, attribute, name in before:
            vars(one)[attribute] = by_name[name] if attribute == "name" else _scopes(name)
        yield inputs
    finally:
        for one, attribute, name in before:
            vars(one)[attribute] = name


def _operations(model: keras.Model) -> list[keras.Operation]:
    """All that is called in `model`, bare operations included."""
    return list(getattr(model, "operations", model.layers))


def _scopes(handle: str) -> str:
    """The name of a variable's handle, `SCOPE/.../NAME:0`, in identifiers."""
    path, _, output = handle.rpartition(":")
    return f"{'/'.join(map(fb.scope_name, path.split('/')))}:{output}"


def restore(content: bytes, inputs: dict[str, str]) -> bytes:
    """The file with its inputs under their own names.

    Arguments:
        inputs: what `identifiers` gave.
    """
    changed = {safe: name for safe, name in inputs.items() if safe != name}
    if not changed:
        return content
    model = fb.read(content)
    for signature in model.signatureDefs or ():
        for entry in signature.inputs:
            name = changed.get(entry.name.decode())
            if name is None:
                continue
            tensor = model.subgraphs[signature.subgraphIndex].tensors[entry.tensorIndex]
            text = name.replace(";", "_")  # it ends the name of a tensor for some readers
            tensor.name = fb.name(tensor).replace(entry.name.decode(), text).encode()
            entry.name = name.encode()
    return fb.write(model)
