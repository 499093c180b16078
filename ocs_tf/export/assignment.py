"""Which integer kernel belongs to which operator of a float .tflite file.

The converter renames and merges; what it cannot change is the data. So kernels are found by
content, and names only decide between equal ones.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from ocs_tf.export import _flatbuffer as fb
from ocs_tf.numerics.grid import code_limit

KINDS = ("conv", "dense", "depthwise")
KERNEL_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
BORDER_OPS = ("QUANTIZE", "DEQUANTIZE")  # between types, computing nothing
BITS = (4, 8)  # of builtin tensor types
CODE_MAX = code_limit(8)  # kernels are symmetric: -128 is left out
SMALLEST_RANGE = 1e-9  # ai-edge-quantizer widens anything narrower


class Kernel(Protocol):
    """What is asked of a kernel here; see `ExportKernel`."""

    @property
    def layer(self) -> str: ...
    @property
    def codes(self) -> np.ndarray: ...
    @property
    def scale(self) -> np.ndarray: ...
    @property
    def kind(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def channels(self) -> int: ...


AnyKernel = TypeVar("AnyKernel", bound=Kernel)


@dataclasses.dataclass(frozen=True)
class ExportKernel:
    """The integer kernel of one layer of the float graph.

    Attributes:
        layer: name of the Keras layer, for error messages and to tell equal kernels apart.
        codes: int8, in -127..127, in the layout of the Keras layer: `[h, w, in / groups, out]` for
            Conv2D, `[in, out]` for Dense, `[h, w, C, M]` for DepthwiseConv2D.
        scale: float32, the step: `()` per tensor or `[out]` per output channel (`[C * M]` for
            depthwise, channel by channel).
        kind: `"conv"`, `"dense"` or `"depthwise"`.
        bits: width of the tensor that holds the codes: 8, or 4 with codes in -7..7.

    Raises:
        ValueError: if a field breaks these rules.
    """

    layer: str
    codes: np.ndarray
    scale: np.ndarray
    kind: str
    bits: int = 8

    def __post_init__(self) -> None:
        def refuse(field: str, value: object, rule: str) -> None:
            raise ValueError(f"{field} of layer {self.layer!r} (={value}) must be {rule}")

        if self.kind not in KINDS:
            refuse("kind", repr(self.kind), "one of " + ", ".join(map(repr, KINDS)))
        if self.bits not in BITS:
            refuse("bits", self.bits, "one of " + ", ".join(map(str, BITS)))
        rank = 2 if self.kind == "dense" else 4
        if self.codes.dtype != np.int8 or self.codes.ndim != rank:
            found = f"{self.codes.dtype} {list(self.codes.shape)}"
            refuse("codes", found, f"int8 of rank {rank} for kind {self.kind!r}")
        limit = code_limit(self.bits)
        low, high = self.codes.min(initial=0), self.codes.max(initial=0)
        if low < -limit or high > limit:
            rule = f"in -{limit}..{limit}, for a tensor of {self.bits} bits"
            refuse("codes", f"range {low}..{high}", rule)
        if self.scale.dtype != np.float32 or self.scale.shape not in ((), (self.channels,)):
            found = f"{self.scale.dtype} {list(self.scale.shape)}"
            refuse("scale", found, f"float32 of shape [] or [{self.channels}]")
        smallest = SMALLEST_RANGE / CODE_MAX
        if not np.all(np.isfinite(self.scale) & (self.scale >= smallest)):
            refuse("scale", f"minimum {np.min(self.scale)}", f"finite and at least {smallest:.3g}")

    @property
    def channels(self) -> int:
        """Number of output channels."""
        if self.kind == "depthwise":
            return int(self.codes.shape[2] * self.codes.shape[3])
        return int(self.codes.shape[-1])


def assign(model: Any, kernels: Sequence[AnyKernel]) -> dict[int, AnyKernel]:
    """Operator index -> its kernel, found by content; the name decides between equal contents."""
    ops = [
        index
        for index, op in enumerate(model.subgraphs[0].operators)
        if fb.op_name(model, op) in KERNEL_OPS
    ]
    matches: dict[int, list[int]] = collections.defaultdict(list)
    for number, kernel in enumerate(kernels):
        found = [index for index in ops if _equals(model, index, kernel)]
        if not found:
            raise ValueError(
                f"kernel of layer {kernel.layer!r} ({kernel.kind} {list(kernel.codes.shape)})"
                " equals no weight tensor of the float model; the converter must not change it"
                " (fold batch normalization first) and the layer must be in use"
            )
        for index in found:
            matches[index].append(number)
    groups: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for index in ops:
        if index in matches:
            groups[tuple(matches[index])].append(index)
    assigned: dict[int, AnyKernel] = {}
    for numbers, indices in groups.items():
        assigned.update(_share_out(model, indices, [kernels[number] for number in numbers]))
    return assigned


def _equals(model: Any, index: int, kernel: Kernel) -> bool:
    """Whether the operator's weights are `codes * scale` in the operator's layout."""
    op = model.subgraphs[0].operators[index]
    weights = model.subgraphs[0].tensors[op.inputs[1]]
    expected = layout(kernel, fb.op_name(model, op))
    if expected is None or fb.shape(weights) != expected[0].shape or weights.type != fb.FLOAT32:
        return False
    if not fb.is_constant(model, weights):
        return False
    codes, scale = expected
    # A rounding difference of float32 is far below half a step; a folded factor is not.
    return bool(np.allclose(fb.constant(model, weights), codes * scale, rtol=1e-6, atol=0))


def layout(kernel: Kernel, op_name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes in the layout of `op_name` and the scale shaped to multiply them, None if impossible.

    A convolution over one channel and a depthwise one are the same: either op may hold either kind.
    """
    codes = kernel.codes
    per_channel = np.broadcast_to(kernel.scale, (kernel.channels,))
    if op_name == "FULLY_CONNECTED":
        return (codes.T, per_channel[:, None]) if kernel.kind == "dense" else None
    if kernel.kind == "dense":
        return None
    if op_name == "DEPTHWISE_CONV_2D":
        if kernel.kind == "conv" and codes.shape[2] != 1:
            return None
        return codes.reshape(1, *codes.shape[:2], -1), per_channel
    if kernel.kind == "depthwise" and codes.shape[2] != 1:
        return None
    return codes.transpose(3, 0, 1, 2), per_channel[:, None, None, None]


def _share_out(
    model: Any, indices: Sequence[int], candidates: Sequence[AnyKernel]
) -> dict[int, AnyKernel]:
    """Give each operator one of the kernels, all of which equal its weights.

    The codes may differ all the same: 2 steps of 0.5 weigh as much as 1 step of 1. Operators take
    the kernel whose layer they are named after, the rest what is left in order of the graph; any
    choice computes the same function.
    """
    if all(_same(candidates[0], other) for other in candidates):
        return dict.fromkeys(indices, candidates[0])
    graph = model.subgraphs[0]
    left = list(candidates)
    chosen: dict[int, AnyKernel] = {}
    for index in indices:
        op = graph.operators[index]
        names = [fb.name(graph.tensors[i]) for i in (op.inputs[1], op.outputs[0])]
        clarity = [max(fb.name_affinity(name, k.layer) for name in names) for k in candidates]
        if clarity.count(max(clarity)) == 1:
            chosen[index] = candidates[clarity.index(max(clarity))]
            left = [kernel for kernel in left if kernel is not chosen[index]]
    for index in indices:
        if index not in chosen:
            chosen[index] = left.pop(0) if left else candidates[-1]
    return chosen


def _same(one: Kernel, other: Kernel) -> bool:
    """Whether two kernels are written alike."""
    return (
        one.kind == other.kind
        and one.bits == other.bits
        and np.array_equal(one.codes, other.codes)
        and np.array_equal(one.scale, other.scale)
    )


def separate(model: Any, assigned: Mapping[int, Kernel]) -> bool:
    """Give operators with different kernels different weight buffers; whether any was shared.

    The converter merges equal constants, and ai-edge-quantizer quantizes a buffer once.
    """
    graph = model.subgraphs[0]
    owners: dict[int, Kernel] = {}  # by buffer
    changed = False
    for index, kernel in assigned.items():
        op = graph.operators[index]
        tensor = graph.tensors[op.inputs[1]]
        if _same(owners.setdefault(tensor.buffer, kernel), kernel):
            continue
        twin = copy.copy(tensor)
        twin.name = f"{fb.name(tensor)};{kernel.layer};{index}".encode()
        twin.buffer = len(model.buffers)
        model.buffers.append(copy.copy(model.buffers[tensor.buffer]))
        graph.tensors.append(twin)
        op.inputs = [op.inputs[0], len(graph.tensors) - 1, *op.inputs[2:]]
        owners[twin.buffer] = kernel
        changed = True
    return changed


def computing_operators(model: Any) -> list[Any]:
    """The operators of a written file but for those between types: the float file's, in order."""
    ops = model.subgraphs[0].operators
    return [op for op in ops if fb.op_name(model, op) not in BORDER_OPS]


def stored_kernels(
    model: Any, assigned: Mapping[int, ExportKernel]
) -> Iterator[tuple[Any, Any, ExportKernel]]:
    """Each operator of a written file that has a kernel, the tensor that holds it, and the kernel.

    The operator reads the tensor, or what a DEQUANTIZE makes of it.
    """
    graph = model.subgraphs[0]
    sources = {
        op.outputs[0]: op.inputs[0]
        for op in graph.operators
        if fb.op_name(model, op) == "DEQUANTIZE"
    }
    ops = computing_operators(model)
    for index, kernel in assigned.items():
        read = ops[index].inputs[1]
        yield ops[index], graph.tensors[sources.get(read, read)], kernel
