"""Assignment of integer kernels to the operators of a float .tflite file.

The converter renames and merges; what it cannot change is the data. So kernels are found by
content, and names only decide between equal ones.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from ocs_tf.export import flatbuffer as fb
from ocs_tf.numerics.grid import code_limit

# The operator that each kind of kernel is for; a convolution of one channel may also be a depthwise
# one, or the other way around.
KINDS = {
    "conv": "CONV_2D",
    "conv3d": "CONV_3D",
    "dense": "FULLY_CONNECTED",
    "depthwise": "DEPTHWISE_CONV_2D",
    "lookup": "GATHER",
    "transposed": "TRANSPOSE_CONV",
    "transposed3d": "CONV_3D_TRANSPOSE",
}
# The operators that read a kernel, and which of their inputs it is.
KERNEL_INPUTS = {
    "CONV_2D": 1,
    "CONV_3D": 1,
    "CONV_3D_TRANSPOSE": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "GATHER": 0,
    "TRANSPOSE_CONV": 1,
}
_RANKS = {"dense": 2, "lookup": 2, "conv3d": 5, "transposed3d": 5}  # 4, of the others
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
        codes: int8, in -127..127: `[h, w, in / groups, out]` of convolutions, transposed ones
            included, `[d, h, w, in / groups, out]` of those in three dimensions, `[in, out]` of
            dense kernels and lookups, `[h, w, C, M]` of depthwise ones. One dimension is `[1, w]`.
        scale: float32, the step: `()` per tensor or `[out]` per output channel (`[C * M]` for
            depthwise, channel by channel).
        kind: one of `KINDS`.
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
        rank = _RANKS.get(self.kind, 4)
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


def assign(model: Any, kernels: Sequence[AnyKernel]) -> dict[fb.Place, AnyKernel]:
    """The kernel of each operator that has one; the name decides between equal contents."""
    places = _kernel_places(model)
    matches: dict[fb.Place, list[int]] = collections.defaultdict(list)
    for number, kernel in enumerate(kernels):
        found = [place for place in places if _equals(model, place, kernel)]
        if not found:
            shape = list(kernel.codes.shape)
            remedy = ""
            if kernel.kind == "dense" and shape[-2] == 1:
                remedy = (
                    " It may turn a Dense layer that reads one channel into a product; a"
                    " convolution of size 1 computes the same and is kept."
                )
            raise ValueError(
                f"kernel of layer {kernel.layer!r} ({kernel.kind} {shape}) is not in the"
                " converted file: TensorFlow's converter merged other operations into it, or the"
                " layer is not used. Leave it in float32 with an override (weight_bits=None)."
                f"{remedy}"
            )
        for place in found:
            matches[place].append(number)
    groups: dict[tuple[int, ...], list[fb.Place]] = collections.defaultdict(list)
    for place in places:
        if place in matches:
            groups[tuple(matches[place])].append(place)
    assigned: dict[fb.Place, AnyKernel] = {}
    for numbers, alike in groups.items():
        assigned.update(_share_out(model, alike, [kernels[number] for number in numbers]))
    return assigned


def _kernel_places(model: Any) -> list[fb.Place]:
    """The operators that may read a kernel."""
    return [place for place, op in fb.operators(model) if fb.op_name(model, op) in KERNEL_INPUTS]


def unmatched(model: Any, kernels: Iterable[Kernel]) -> list[str]:
    """Names of the kernels that equal no weight tensor of a float file, each once."""
    places = _kernel_places(model)
    found = [k.layer for k in kernels if not any(_equals(model, place, k) for place in places)]
    return list(dict.fromkeys(found))


def _equals(model: Any, place: fb.Place, kernel: Kernel) -> bool:
    """Whether the operator's weights are `codes * scale` in the operator's layout."""
    op = fb.operator(model, place)
    weights = model.subgraphs[place[0]].tensors[kernel_input(model, op)]
    expected = layout(kernel, fb.op_name(model, op))
    if expected is None or fb.shape(weights) != expected[0].shape or weights.type != fb.FLOAT32:
        return False
    if not fb.is_constant(model, weights):
        return False
    codes, scale = expected
    # A rounding difference of float32 is far below half a step; a folded factor is not.
    return bool(np.allclose(fb.constant(model, weights), codes * scale, rtol=1e-6, atol=0))


def kernel_input(model: Any, op: Any) -> int:
    """The tensor that `op`, one of `KERNEL_INPUTS`, reads its kernel from."""
    return int(op.inputs[KERNEL_INPUTS[fb.op_name(model, op)]])


def bias_input(model: Any, op: Any) -> int | None:
    """The tensor that `op`, one of `KERNEL_INPUTS`, reads its bias from, if it has one."""
    at = 3 if fb.op_name(model, op) == "TRANSPOSE_CONV" else 2
    return int(op.inputs[at]) if len(op.inputs) > at and op.inputs[at] >= 0 else None


def layout(kernel: Kernel, op_name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes in the layout of `op_name` and the scale shaped to multiply them, None if impossible.

    A convolution over one channel and a depthwise one are the same: either op may hold either kind.
    """
    codes = kernel.codes
    per_channel = np.broadcast_to(kernel.scale, (kernel.channels,))
    kind = kernel.kind
    alike = {"CONV_2D", "DEPTHWISE_CONV_2D"}
    same = KINDS[kind] == op_name or (alike == {KINDS[kind], op_name} and codes.shape[2] == 1)
    if not same:
        return None
    if op_name in ("GATHER", "CONV_3D"):
        return codes, per_channel
    if op_name == "FULLY_CONNECTED":
        return codes.T, per_channel[:, None]
    if op_name == "CONV_3D_TRANSPOSE":
        return codes.swapaxes(-1, -2), per_channel[:, None]
    if op_name == "DEPTHWISE_CONV_2D":
        return codes.reshape(1, *codes.shape[:2], -1), per_channel
    return codes.transpose(3, 0, 1, 2), per_channel[:, None, None, None]


def _share_out(
    model: Any, places: Sequence[fb.Place], candidates: Sequence[AnyKernel]
) -> dict[fb.Place, AnyKernel]:
    """Give each operator one of the kernels, all of which equal its weights.

    The codes may differ all the same: 2 steps of 0.5 weigh as much as 1 step of 1. Operators take
    the kernel whose layer they are named after, the rest what is left in order of the graph; any
    choice computes the same function.
    """
    if all(_same(candidates[0], other) for other in candidates):
        return dict.fromkeys(places, candidates[0])
    left = list(candidates)
    chosen: dict[fb.Place, AnyKernel] = {}
    for place in places:
        op, tensors = fb.operator(model, place), model.subgraphs[place[0]].tensors
        names = [fb.name(tensors[i]) for i in (kernel_input(model, op), op.outputs[0])]
        clarity = [max(fb.name_affinity(name, k.layer) for name in names) for k in candidates]
        if clarity.count(max(clarity)) == 1:
            chosen[place] = candidates[clarity.index(max(clarity))]
            left = [kernel for kernel in left if kernel is not chosen[place]]
    for place in places:
        if place not in chosen:
            chosen[place] = left.pop(0) if left else candidates[-1]
    return chosen


def _same(one: Kernel, other: Kernel) -> bool:
    """Whether two kernels are written alike."""
    return (
        one.kind == other.kind
        and one.bits == other.bits
        and np.array_equal(one.codes, other.codes)
        and np.array_equal(one.scale, other.scale)
    )


def separate(model: Any, assigned: Mapping[fb.Place, Kernel]) -> bool:
    """Give operators with different kernels different weight buffers; whether any was shared.

    The converter merges equal constants, and ai-edge-quantizer quantizes a buffer once.
    """
    owners: dict[int, Kernel] = {}  # by buffer
    changed = False
    for place, kernel in assigned.items():
        op, tensors = fb.operator(model, place), model.subgraphs[place[0]].tensors
        weights = kernel_input(model, op)
        tensor = tensors[weights]
        if _same(owners.setdefault(tensor.buffer, kernel), kernel):
            continue
        twin = copy.copy(tensor)
        twin.name = f"{fb.name(tensor)};{kernel.layer};{place[1]}".encode()
        twin.buffer = len(model.buffers)
        model.buffers.append(copy.copy(model.buffers[tensor.buffer]))
        tensors.append(twin)
        op.inputs = [len(tensors) - 1 if i == weights else i for i in op.inputs]
        owners[twin.buffer] = kernel
        changed = True
    return changed


def computing_operators(graph: Any, model: Any) -> list[Any]:
    """The operators of a written graph but for those between types: the float one's, in order."""
    return [op for op in graph.operators if fb.op_name(model, op) not in BORDER_OPS]


def stored_kernels(
    model: Any, assigned: Mapping[fb.Place, ExportKernel]
) -> Iterator[tuple[Any, Any, ExportKernel]]:
    """Each operator of a written file that has a kernel, the tensor that holds it, and the kernel.

    The operator reads the tensor, or what a DEQUANTIZE makes of it.
    """
    computing = [computing_operators(graph, model) for graph in model.subgraphs]
    sources = [
        {op.outputs[0]: op.inputs[0] for op in graph.operators if _dequantizes(model, op)}
        for graph in model.subgraphs
    ]
    for (subgraph, index), kernel in assigned.items():
        op = computing[subgraph][index]
        read = kernel_input(model, op)
        yield op, model.subgraphs[subgraph].tensors[sources[subgraph].get(read, read)], kernel


def _dequantizes(model: Any, op: Any) -> bool:
    return fb.op_name(model, op) == "DEQUANTIZE"
