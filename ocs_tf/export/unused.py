"""Kernels that no output depends on are not in a file, and nothing is missing.

A recurrent layer that reads one step multiplies its recurrent kernel by zeros; of attention whose
scores alone are read, values and outputs are not computed. The converter leaves such kernels out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from ocs_tf.export import flatbuffer as fb
from ocs_tf.export.kernel_matching import unmatched
from ocs_tf.export.lowering import Lowered
from ocs_tf.graph import adapters, composites
from ocs_tf.planning.calibration import observe


def drop_unused(lowered: Lowered, float_model: bytes, samples: Mapping[str, np.ndarray]) -> None:
    """Take the kernels out of `lowered.kernels` that are neither in the file nor used; note them.

    Arguments:
        float_model: the file made of `lowered.model`.
        samples: an array for each input, by name, in order.
    """
    absent = unmatched(fb.read(float_model), lowered.kernels)
    unused = [name for name in absent if not _matters(lowered.model, name, list(samples.values()))]
    lowered.kernels[:] = [k for k in lowered.kernels if k.layer not in unused]
    lowered.notes.extend(
        f"The kernel {name!r} is not in the file: no output depends on it." for name in unused
    )


def _matters(model: keras.Model, name: str, inputs: Sequence[np.ndarray]) -> bool:
    """Whether the outputs change with the numbers of the kernel `"layer"` or `"layer/path"`."""
    layer_name, _, path = name.partition("/")
    layer = model.get_layer(layer_name)
    if path:
        part = composites.parts(layer)[path]
    else:
        adapter = adapters.any_adapter(layer)
        assert adapter is not None, layer
        part = composites.Part(layer, adapter)
    holder = part.holder
    before = _outputs(model, inputs)
    weights = holder.get_weights()
    changed = part.adapter.to_keras(part.adapter.read(holder)[0] + 1, holder)
    part.adapter.write(holder, changed)
    after = _outputs(model, inputs)
    holder.set_weights(weights)
    return not all(map(np.array_equal, before, after))


def _outputs(model: keras.Model, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    return next(observe(model, model.outputs, [inputs]))
