"""Layers and operations for `random_graphs`, as lines of Python source."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers, ops

LARGEST = 96  # numbers in a sample of a tensor
# Names that are no identifiers, are keywords, differ in case only, or become the same identifier.
NAMES = (
    "in",
    "class",
    "my layer",
    "a:b",
    "a b",
    "a_b",
    "d,e",
    "d(1)",
    "größe",
    "_hidden",
    "In",
    "a;b",
    "1st",
    "x[0]",
    "%s",
    "層",
)
INPUT_NAMES = ("in0", "in1", "z", "b", "a", "in10", "in2", *NAMES)
ACTIVATIONS = (None, "relu", "relu6", "sigmoid", "tanh", "softmax", "leaky_relu")
MORE_ACTIVATIONS = ("gelu", "silu", "elu", "hard_sigmoid", "hard_silu", "softplus", "selu")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What an input holds that is no normally distributed number.

    Attributes:
        rows: of the table in which its first numbers are looked up; 0: there are none.
        indices: how many of the last axis are looked up; `None`: all.
        padded: the last steps are 0.
    """

    rows: int = 0
    indices: int | None = None
    padded: bool = False


class Source:
    """Lines of Python that are run as they are written."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"keras": keras, "layers": layers, "ops": ops}
        self.layers: list[str] = []
        self.contents: dict[str, Contents] = {}
        self.free = {"layer": list(NAMES), "input": list(INPUT_NAMES)}

    def __getitem__(self, name: str) -> Any:
        return self.names[name]

    def text(self) -> str:
        return "\n".join(self.lines)

    def line(self, text: str) -> None:
        exec(text, self.names)
        self.lines.append(text)

    def let(self, expression: str) -> str:
        """A new name for the value of `expression`."""
        name = f"x{len(self.lines)}"
        self.line(f"{name} = {expression}")
        return name

    def layer(self, expression: str) -> str:
        """A new name for a layer, which is called by a name of its own now and then."""
        if self.free["layer"] and self.number(0, 5) == 5:
            comma = "" if expression.endswith("()") else ", "
            expression = f"{expression[:-1]}{comma}name={self.name('layer')!r})"
        name = self.let(expression)
        self.layers.append(name)
        return name

    def name(self, kind: str) -> str:
        """One that no other layer has."""
        name = self.one_of(*self.free[kind])
        for names in self.free.values():
            names[:] = [other for other in names if other != name]
        return str(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without the batch."""
        return tuple(self[name].shape[1:])

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def number(self, smallest: int, largest: int) -> int:
        return self.draw(st.integers(smallest, max(smallest, largest)))

    def channels(self, largest: int = 5) -> int:
        """A number of channels, now and then a single one."""
        return self.one_of(*range(2, largest + 1), 1)

    def maybe(self) -> bool:
        return self.draw(st.booleans())


# Makers: of a tensor, by its name, from another one ---------------------------------------------

Maker = Callable[[Source, str], str]


def _options(s: Source, *more: str) -> str:
    """Options of a layer with a kernel."""
    options = [*more]
    activation = s.one_of(*ACTIVATIONS) if s.maybe() else None
    if activation:
        options.append(f"activation={activation!r}")
    if s.number(0, 2) == 2:
        options.append("use_bias=False")
    return "".join(f", {option}" for option in options if option)


def _call(s: Source, x: str, expression: str) -> str:
    return s.let(f"{s.layer(expression)}({x})")


def _windows(s: Source, x: str, *, dilates: bool = True) -> tuple[int, list[str]]:
    """Kernel size, and options of strides, dilation and padding."""
    sizes = s.shape(x)[:-1]
    size = s.number(1, 3)
    options = []
    reach = size
    if s.maybe():
        if dilates and s.number(0, 2) == 2:
            options.append("dilation_rate=2")
            reach = 2 * (size - 1) + 1
        else:
            options.append("strides=2")
    if min(sizes) < reach or s.maybe():
        options.append("padding='same'")
    return size, options


def _dense(s: Source, x: str) -> str:
    return _call(s, x, f"layers.Dense({s.channels(6)}{_options(s)})")


def _einsum(s: Source, x: str) -> str:
    letters = "bcd"[: len(s.shape(x)) - 1]
    activation = s.one_of("", ", activation='relu'", ", activation='tanh'")
    kind = s.number(0, 2)
    if kind == 2 and letters:  # over the last two axes
        equation, shape = f"a{letters}e,{letters[-1]}ef->a{letters[:-1]}f", [s.channels()]
        bias = "f"
    elif kind == 1:  # to two axes
        equation, shape = f"a{letters}e,efg->a{letters}fg", [s.number(1, 2), s.number(1, 3)]
        bias = "fg"
    else:
        equation, shape = f"a{letters}e,ef->a{letters}f", [s.channels()]
        bias = "f"
    middle = [] if kind == 2 and letters else [None] * len(letters)
    if kind == 2 and letters:
        middle = [None] * (len(letters) - 1)
    options = f", bias_axes={bias!r}" if s.maybe() else ""
    text = f"layers.EinsumDense({equation!r}, {(*middle, *shape)}{options}{activation})"
    return _call(s, x, text)


def _conv(s: Source, x: str) -> str:
    rank, channels = len(s.shape(x)) - 1, s.shape(x)[-1]
    groups = s.one_of(*(n for n in range(1, channels + 1) if channels % n == 0))
    filters = groups * s.number(1 if groups > 1 else 2, max(2, 5 // groups))
    size, options = _windows(s, x)
    if groups > 1:
        options.append(f"groups={groups}")
    if rank == 1 and "padding='same'" in options and s.number(0, 3) == 3:
        options[options.index("padding='same'")] = "padding='causal'"
    return _call(s, x, f"layers.Conv{rank}D({filters}, {size}{_options(s, *options)})")


def _depthwise(s: Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    size, options = _windows(s, x)
    multiplier = s.number(1, 2)
    if multiplier > 1:
        options.append("depth_multiplier=2")
    return _call(s, x, f"layers.DepthwiseConv{rank}D({size}{_options(s, *options)})")


def _separable(s: Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    size, options = _windows(s, x)
    if s.maybe():
        options.append("depth_multiplier=2")
    text = f"layers.SeparableConv{rank}D({s.channels(4)}, {size}{_options(s, *options)})"
    return _call(s, x, text)


def _transposed(s: Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    size, options = _windows(s, x, dilates=False)
    return _call(
        s, x, f"layers.Conv{rank}DTranspose({s.channels(4)}, {size}{_options(s, *options)})"
    )


def norm(s: Source, x: str) -> str:
    forms = [
        "layers.BatchNormalization()",
        "layers.BatchNormalization()",
        "layers.BatchNormalization(scale=False)",
        "layers.BatchNormalization(center=False)",
        "layers.LayerNormalization()",
        "layers.Rescaling(0.5, 0.25)",
    ]
    if len(s.shape(x)) > 1:
        forms.append("layers.BatchNormalization(axis=1)")
    if s.shape(x)[-1] % 2 == 0:
        forms.append("layers.GroupNormalization(2)")
    return _call(s, x, s.one_of(*forms))


def _activation(s: Source, x: str) -> str:
    function = s.one_of(*ACTIVATIONS[1:], *MORE_ACTIVATIONS)
    form = s.one_of(
        f"layers.Activation({function!r})",
        "layers.ReLU()",
        "layers.ReLU(6.0)",
        "layers.ReLU(1.0)",
        "layers.ReLU(negative_slope=0.25)",
        "layers.LeakyReLU()",
        "layers.Softmax()",
        "layers.PReLU()",
        "layers.ELU()",
    )
    return _call(s, x, form)


def _operation(s: Source, x: str) -> str:
    forms = [
        "ops.relu({})",
        "ops.relu6({})",
        "ops.sigmoid({})",
        "ops.tanh({})",
        "ops.gelu({})",
        "{} * 0.5",
        "{} + 1.5",
        "1.0 - {}",
        "-{}",
        "ops.square({})",
        "ops.abs({})",
        "{} / 3.0",
        "ops.clip({}, -1.0, 1.5)",
        "ops.exp(ops.minimum({}, 1.0))",
    ]
    if s.shape(x)[-1] > 1:
        forms += ["{}[..., 1:]", "{}[..., ::2]", "ops.flip({}, axis=-1)"]
        forms += ["ops.max({}, axis=-1, keepdims=True)", "ops.mean({}, axis=-1, keepdims=True)"]
    if s.shape(x)[-1] % 2 == 0:
        forms += ["ops.split({}, 2, axis=-1)[1]"]
    if len(s.shape(x)) > 1:
        forms += ["ops.mean({}, axis=1)", "ops.transpose({}, " + _swapped(s, x) + ")"]
    return s.let(s.one_of(*forms).format(x))


def _swapped(s: Source, x: str) -> str:
    axes = list(range(len(s.shape(x)) + 1))
    axes[1], axes[2] = axes[2], axes[1]
    return str(tuple(axes))


def _dropout(s: Source, x: str) -> str:
    forms = ["layers.Dropout(0.5)", "layers.GaussianNoise(0.5)", "layers.GaussianDropout(0.3)"]
    forms += ["layers.AlphaDropout(0.2)", "layers.ActivityRegularization(0.1)"]
    if len(s.shape(x)) in (2, 3):
        forms.append(f"layers.SpatialDropout{len(s.shape(x)) - 1}D(0.5)")
    return _call(s, x, s.one_of(*forms))


def _flatten(s: Source, x: str) -> str:
    return _call(s, x, "layers.Flatten()")


def _reshape(s: Source, x: str) -> str:
    count = int(np.prod(s.shape(x)))
    first = s.one_of(*(n for n in range(1, count + 1) if count % n == 0))
    rest = count // first
    second = s.one_of(*(n for n in range(1, rest + 1) if rest % n == 0))
    shape = s.one_of((first, rest), (first, second, rest // second), (-1, first))
    return _call(s, x, f"layers.Reshape({shape})")


def _permute(s: Source, x: str) -> str:
    axes = s.draw(st.permutations(range(1, len(s.shape(x)) + 1)))
    return _call(s, x, f"layers.Permute({tuple(axes)})")


def _pool(s: Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    kind = s.one_of("Max", "Average")
    if s.number(0, 2) == 2:
        options = "keepdims=True" if s.maybe() else ""
        return _call(s, x, f"layers.Global{kind}Pooling{rank}D({options})")
    size = s.number(1, min(2, *s.shape(x)[:-1]))
    options = s.one_of("", ", padding='same'", ", strides=1")
    return _call(s, x, f"layers.{kind}Pooling{rank}D({size}{options})")


def _pad(s: Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    forms = [f"layers.ZeroPadding{rank}D(1)", f"layers.UpSampling{rank}D(2)"]
    if min(s.shape(x)[:-1]) > 2:
        forms.append(f"layers.Cropping{rank}D(1)")
    if rank == 2:
        forms.append("layers.ZeroPadding2D(((0, 1), (1, 0)))")
    return _call(s, x, s.one_of(*forms))


def _resize(s: Source, x: str) -> str:
    method = s.one_of("nearest", "bilinear")
    size = (s.number(1, 5), s.number(1, 5))
    forms = [
        f"layers.UpSampling2D({s.one_of(2, (1, 2), (3, 2))}, interpolation={method!r})({x})",
        f"layers.Resizing({size[0]}, {size[1]}, interpolation={method!r})({x})",
        f"ops.image.resize({x}, {size}, interpolation={method!r})",
    ]
    return s.let(s.one_of(*forms))


def _recurrent(s: Source, x: str) -> str:
    layer = recurrent_layer(s, s.maybe())
    if s.number(0, 2) == 2:
        mode = s.one_of("concat", "sum", "ave", "mul")
        layer = layer.replace(", go_backwards=True", "")
        layer = f"layers.Bidirectional({layer}, merge_mode={mode!r})"
    return _call(s, x, layer)


def recurrent_layer(s: Source, returns: bool, units: int | None = None) -> str:
    kind = s.one_of("LSTM", "GRU", "SimpleRNN")
    options = [", return_sequences=True"] if returns else []
    if s.number(0, 3) == 3:
        options.append(", go_backwards=True")
    if kind == "GRU" and s.number(0, 2) == 2:
        options.append(", reset_after=False")
    if s.number(0, 3) == 3:
        options.append(", use_bias=False")
    options.append(s.one_of("", "", ", dropout=0.5", ", recurrent_dropout=0.5"))
    return f"layers.{kind}({units or s.channels(4)}{''.join(options)})"


def _distributed(s: Source, x: str) -> str:
    inside = f"layers.Dense({s.channels(4)}{_options(s)})"
    if len(s.shape(x)) == 3 and s.maybe():
        inside = f"layers.Conv1D({s.channels(4)}, 2, padding='same'{_options(s)})"
    return _call(s, x, f"layers.TimeDistributed({inside})")


def _attention(s: Source, x: str) -> str:
    mask = s.one_of("", "", ", use_causal_mask=True")
    return s.let(f"{s.layer(attention_layer(s, s.shape(x)[0]))}({x}, {x}{mask})")


def attention_layer(s: Source, steps: int) -> str:
    if s.number(0, 3) == 3:
        options = s.one_of("", ", dropout=0.5", ", use_bias=False")
        return f"layers.GroupQueryAttention({s.number(1, 3)}, 2, {s.number(1, 2)}{options})"
    options = s.one_of("", ", dropout=0.5", ", value_dim=3", ", use_bias=False", ", output_shape=3")
    heads = s.number(1, 2)
    # Keras 3.15 adds a bias of the shape (2, 1) along the steps if there are two of them.
    size = s.number(2 if heads == steps == 2 else 1, 3)
    return f"layers.MultiHeadAttention({heads}, {size}{options})"


def _repeat(s: Source, x: str) -> str:
    return _call(s, x, f"layers.RepeatVector({s.number(1, 3)})")


def keeping_shape(s: Source, x: str) -> str:
    """A layer with a kernel whose output has the shape of its input."""
    rank, channels = len(s.shape(x)), s.shape(x)[-1]
    forms = [f"layers.Dense({channels}{_options(s)})"]
    if rank == 2:
        forms.append(recurrent_layer(s, True, channels))
    if rank in (2, 3):
        size = s.number(1, 3)
        options = _options(s, "padding='same'")
        forms.append(f"layers.Conv{rank - 1}D({channels}, {size}{options})")
        forms.append(f"layers.DepthwiseConv{rank - 1}D({size}{options})")
        forms.append(f"layers.Conv{rank - 1}DTranspose({channels}, {size}{options})")
        forms.append(f"layers.SeparableConv{rank - 1}D({channels}, {size}{options})")
    return s.one_of(*forms)


_ANY: tuple[Maker, ...] = (_dense, _einsum, norm, _activation, _operation, _dropout, _reshape)
_SEQUENCES: tuple[Maker, ...] = (
    _conv,
    _depthwise,
    _separable,
    _transposed,
    _pool,
    _pad,
    _flatten,
    _permute,
)


def kernel_layer(s: Source, x: str) -> str:
    return _dense(s, x)


@functools.cache
def of_rank(rank: int) -> tuple[Maker, ...]:
    if rank == 1:
        return (*_ANY, _repeat)
    if rank == 2:
        return (*_ANY, *_SEQUENCES, _recurrent, _recurrent, _distributed, _attention)
    if rank == 3:
        return (*_ANY, *_SEQUENCES, _conv, _depthwise, _distributed, _resize, _resize)
    return (*_ANY, _flatten, _permute)
