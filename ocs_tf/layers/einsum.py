"""Axes of the kernel of an `EinsumDense`, from its equation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import keras


@dataclasses.dataclass(frozen=True)
class EinsumSpec:
    """The kernel of an `EinsumDense`, seen as a matrix `[C, F]`.

    The letters of the kernel that the output lacks are summed over and make up the C input
    channels, in the input's order; the others are the F output channels, in the output's order.

    Attributes:
        kernel_shape: in the layout of the Keras layer.
        axes: of the Keras kernel, those that are summed over first.
        summed: how many of them are.
        full_output_shape: the output's, `None` where it is open.
        output_shape: to broadcast `[F]` against the output, 1 where it has an axis that the kernel
            lacks.
        bias_shape: of a bias in the Keras layer.
        input_axes: of the input, those that are summed over last.
        direct: whether C is the last axis of the input, F that of the output, and nothing else.
        regular: whether the kernel shares no axis with both input and output, and the bias, if any,
            has an element for each output channel, no more. Only such layers can be quantized here.
    """

    kernel_shape: tuple[int, ...]
    axes: tuple[int, ...]
    summed: int
    full_output_shape: tuple[int | None, ...]
    output_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    input_axes: tuple[int, ...]
    direct: bool
    regular: bool

    @classmethod
    def of(cls, layer: keras.layers.Layer, input_shape: Sequence[int | None]) -> EinsumSpec:
        """The axes of a `layer` that reads inputs of this shape."""
        left, result = layer.equation.replace(" ", "").split("->")
        source, kernel = left.split(",")
        rank = len(input_shape)
        free = (c for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in left)
        dots = "".join(next(free) for _ in range(rank - len(source.replace("...", ""))))
        source, result = (text.replace("...", dots) for text in (source, result))
        # The layer is told the sizes behind the batch, and not those of "...". Older versions of
        # Keras do not tell the whole output's shape before the layer is built.
        told = [c for c in result[0 if result[:1] in dots else 1 :] if c not in dots]
        sizes = dict(zip(source, input_shape, strict=True))
        sizes |= {
            c: n for c, n in zip(told, layer.partial_output_shape, strict=True) if n is not None
        }
        summed = [c for c in source if c in kernel and c not in result]
        outputs = [c for c in result if c in kernel]
        kept = [c for c in source if c not in kernel]
        order = [*summed, *outputs]
        regular = set(kept) <= set(result) and not set(outputs) & set(source)
        regular = regular and set(layer.bias_axes or outputs) == set(outputs)
        output_shape = tuple(int(sizes[c] or 0) if c in kernel else 1 for c in result)
        return cls(
            kernel_shape=tuple(int(sizes[c] or 0) for c in kernel),
            axes=tuple(kernel.index(c) for c in order),
            summed=len(summed),
            full_output_shape=tuple(sizes[c] for c in result),
            output_shape=output_shape,
            bias_shape=output_shape[result.index(outputs[0]) if outputs else len(result) :],
            input_axes=tuple(source.index(c) for c in (*kept, *summed)),
            direct=(source[-1:], result[-1:]) == ("".join(summed), "".join(outputs)),
            regular=regular,
        )

    @property
    def ordered_shape(self) -> tuple[int, ...]:
        """`kernel_shape` in the order of `axes`."""
        return tuple(self.kernel_shape[axis] for axis in self.axes)

    @property
    def sums_last(self) -> bool:
        """Whether the last axis of the input is summed over."""
        return self.summed > 0 and self.input_axes[-1] == len(self.input_axes) - 1

    @property
    def keras_order(self) -> tuple[int, ...]:
        """The permutation that leads from `ordered_shape` back to `kernel_shape`."""
        return tuple(self.axes.index(axis) for axis in range(len(self.axes)))

    @property
    def channels(self) -> int:
        """Input channels C."""
        return math.prod(self.ordered_shape[: self.summed])

    @property
    def outputs(self) -> int:
        """Output channels F."""
        return math.prod(self.kernel_shape) // self.channels
