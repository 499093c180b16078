"""Small random models, as the Python source that builds them: a failing one can be pasted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from keras import layers, ops

SAMPLES = 12
LARGEST = 96  # numbers in a sample of a tensor
MOST_OUTPUTS = 3
TABLES = (7, 300)  # rows; 300 are more than 8 bits tell apart
WIDE = (100.0, 300.0, 1000.0)
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
_KERNELS = ("kernel", "depthwise_kernel", "embeddings")
ACTIVATIONS = (None, "relu", "relu6", "sigmoid", "tanh", "softmax", "leaky_relu")
MORE_ACTIVATIONS = ("gelu", "silu", "elu", "hard_sigmoid", "hard_silu", "softplus", "selu")


@dataclasses.dataclass(frozen=True, repr=False)
class Drawn:
    """A model, the lines that make it, and inputs for it."""

    model: keras.Model
    source: str
    inputs: dict[str, np.ndarray]

    def __repr__(self) -> str:
        return f"\n{self.source}\n"

    def outputs(
        self, model: keras.Model | None = None, inputs: dict[str, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Of another model on the inputs of this one, or on others."""
        model, inputs = model or self.model, inputs or self.inputs
        given: Any = [inputs[t.name] for t in self.model.inputs]
        if isinstance(model.input, dict):
            given = inputs
        # Not traced: TensorFlow takes some names of layers only outside of functions.
        found = model(given, training=False)
        return [np.asarray(value) for value in keras.tree.flatten(found)]

    def rounding(self, model: keras.Model) -> list[float]:
        """How far outputs move where inputs do by 8 units in the last place.

        Attention with scores of thousands, for example, enlarges float rounding that much.
        """
        near = {
            name: x * np.float32(1 + 2**-20) if x.dtype == np.float32 else x
            for name, x in self.inputs.items()
        }
        pairs = zip(self.outputs(model, near), self.outputs(model), strict=True)
        return [float(np.abs(np.float64(a) - b).max(initial=0)) for a, b in pairs]


@st.composite
def models(draw: Any, steps: int = 6) -> Drawn:
    """Functional models of up to `steps` steps, with random weights."""
    source = _Source(draw)
    body = _Body(source, depth=0)
    for _ in range(draw(st.sampled_from((1, 2, 2, 3)))):
        body.tensors.append(body.input())
    for _ in range(draw(st.integers(2, steps))):
        body.step()
    weights = [weight for name in source.layers for weight in source[name].weights]
    if not any(weight.name in _KERNELS for weight in weights):
        body.step(_kernel_layer)
    inputs = draw(st.permutations(body.inputs))
    outputs = draw(st.permutations(body.leaves()))
    source.line(f"model = keras.Model({_ends(source, inputs)}, [{', '.join(outputs)}])")
    seed = draw(st.integers(0, 9))
    fill(source["model"], seed)
    drawn = Drawn(source["model"], source.text(), samples(source["model"], seed, source.contents))
    assume(any(weight.name in _KERNELS for weight in drawn.model.weights))  # outputs read some
    assume(_computes(drawn))
    return drawn


def _computes(drawn: Drawn) -> bool:
    """Whether Keras can, for one sample, too: not a softmax over more axes than its mask has."""
    one = {name: array[:1] for name, array in drawn.inputs.items()}
    try:
        drawn.outputs()
        dataclasses.replace(drawn, inputs=one).outputs()
    except Exception:
        return False
    return True


def _ends(source: _Source, tensors: Sequence[str]) -> str:
    """Tensors as a list, or as a dict by their names."""
    if source.number(0, 3) == 3:
        return f"{{{', '.join(f'{source[t].name!r}: {t}' for t in tensors)}}}"
    return f"[{', '.join(tensors)}]"


def fill(model: keras.Model, seed: int) -> None:
    """Weights as training might leave them: an outlier channel, statistics of batch norms."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if not np.issubdtype(np.dtype(weight.dtype), np.floating):
            continue  # the state of a dropout
        if weight.name in ("moving_variance", "gamma"):
            values = rng.uniform(0.5, 1.5, weight.shape)
            if weight.name == "gamma":
                values = values * rng.choice([-1, 1], weight.shape)
        elif weight.name in ("moving_mean", "beta", "bias"):
            values = rng.normal(0, 0.2, weight.shape)
        else:
            is_table = weight.name == "embeddings"
            fan_in = 4 if is_table else max(1, int(np.prod(weight.shape[:-1])))
            values = rng.normal(0, fan_in**-0.5, weight.shape)
            if len(weight.shape) > 1:
                values[..., weight.shape[-2] // 2, :] *= 3
        weight.assign(values)


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


def samples(
    model: keras.Model, seed: int, contents: Mapping[str, Contents], count: int = SAMPLES
) -> dict[str, np.ndarray]:
    """Inputs by name: normally distributed, or rows of a table."""
    rng = np.random.default_rng(100 + seed)
    found = {}
    for tensor in model.inputs:
        content = contents.get(tensor.name, Contents())
        shape = (count, *tensor.shape[1:])
        values = rng.normal(size=shape)
        if content.rows:
            rows = rng.integers(0, content.rows, shape)
            rows[::2, shape[1] // 2 :] = 0  # padding
            rows[:, 0] = rng.integers(1, content.rows, rows[:, 0].shape)
            values[..., : content.indices] = rows[..., : content.indices]
        if content.padded:
            for sample in range(count):
                values[sample, 1 + sample % shape[1] :] = 0
        found[tensor.name] = values.astype(tensor.dtype)
    return found


class _Source:
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


class _Body:
    """The inside of a model, of the top or nested in another one."""

    def __init__(self, source: _Source, depth: int) -> None:
        self.source = source
        self.depth = depth
        self.inputs: list[str] = []
        self.tensors: list[str] = []
        self.read: set[str] = set()
        self.indices: list[str] = []  # of tables; 0 is padding

    # Inputs and outputs

    def input(self) -> str:
        s = self.source
        kind = s.one_of("image", "vector", "sequence", "tokens", "tokens", "padded", "mixed")
        if kind == "tokens":
            return self.tokens(s.one_of(*TABLES))
        if kind == "mixed":  # indices beside numbers
            rows, indices = s.one_of(*TABLES), s.number(1, 2)
            both = self.named((indices + s.number(1, 3),), Contents(rows, indices))
            table = s.layer(f"layers.Embedding({rows}, {s.number(2, 3)})")
            looked_up = s.let(f"{table}({both}[:, :{indices}])")
            flat = s.let(f"layers.Flatten()({looked_up})")
            return s.let(f"layers.Concatenate()([{flat}, {both}[:, {indices}:]])")
        if kind == "padded":  # one channel's numbers may be rounded to 0, which is the padding
            steps = self.named((s.number(2, 6), s.number(3, 5)), Contents(padded=True))
            return s.let(f"layers.Masking()({steps})")
        sizes = {"image": (3, 6), "vector": (2, 8), "sequence": (2, 6)}[kind]
        rank = {"image": 3, "vector": 1, "sequence": 2}[kind]
        return self.named([*(s.number(*sizes) for _ in range(rank - 1)), s.channels()])

    def tokens(self, rows: int) -> str:
        """Indices of a table, as integers or floats, maybe behind layers that move them."""
        s = self.source
        count, dtype = s.number(2, 5), s.one_of("int32", "float32")
        move = s.one_of(
            "{}",
            "{}",
            f"layers.Reshape(({count},))({{}})",
            "layers.Flatten()({})",
            "ops.squeeze({}, axis=-1)",
            "ops.cast({}[:, :, 0], 'int32')",
        )
        shape = (count,) if move == "{}" else (count, 1)
        given = self.named(shape, Contents(rows), f", dtype={dtype!r}")
        indices = given if move == "{}" else s.let(move.format(given))
        self.indices.append(indices)
        options = ", mask_zero=True" if s.maybe() else ""
        table = s.layer(f"layers.Embedding({rows}, {s.number(2, 5)}{options})")
        return s.let(f"{table}({indices})")

    def named(self, shape: Any, contents: Contents | None = None, options: str = "") -> str:
        name = self.source.name("input")
        if contents:
            self.source.contents[name] = contents
        return self.given(shape, f"{options}, name={name!r}")

    def given(self, shape: Any, options: str = "") -> str:
        name = self.source.let(f"keras.Input({tuple(shape)}{options})")
        self.inputs.append(name)
        return name

    def leaves(self) -> list[str]:
        """The tensors that nothing reads, and now and then another one."""
        left = [t for t in self.tensors if t not in self.read and t not in self.inputs]
        left = left or self.tensors[-1:]
        while len(left) > MOST_OUTPUTS:
            flat = [self.source.let(f"layers.Flatten()({name})") for name in left[:2]]
            left = [self.source.let(f"layers.Concatenate()([{', '.join(flat)}])"), *left[2:]]
        inner = [t for t in self.tensors if t in self.read and t not in self.inputs]
        if inner and len(left) < MOST_OUTPUTS and self.source.number(0, 5) == 5:
            left.append(self.source.one_of(*inner))
        return left

    # Steps

    def step(self, make: Callable[[_Source, str], str] | None = None) -> None:
        s = self.source
        x = self.tensors[-1 - s.number(0, min(2, len(self.tensors) - 1))]
        if make is None:
            makers = [*_of_rank(len(s.shape(x))), self.merged, self.shared, self.residual]
            makers.append(self.wide)
            if len(s.shape(x)) == 2:
                makers += [self.masked, self.masked]
            if self.depth < 2:
                makers.append(self.nested)
            make = s.one_of(*makers)
        y = make(s, x)
        assume(None not in s.shape(y) and np.prod(s.shape(y)) > 0)
        self.read.add(x)
        if int(np.prod(s.shape(y))) > LARGEST:
            axes = tuple(range(1, len(s.shape(y)))) or (1,)
            y = s.let(f"ops.mean({y}, axis={axes})") if len(s.shape(y)) > 1 else y
            if len(s.shape(y)) == 1 and s.shape(y)[0] > LARGEST:
                y = s.let(f"{y}[:, :{LARGEST}]")
        self.tensors.append(y)

    def merged(self, s: _Source, x: str) -> str:
        """Of two tensors."""
        same = [t for t in self.tensors if s.shape(t) == s.shape(x)]
        stacked = [t for t in self.tensors if s.shape(t)[:-1] == s.shape(x)[:-1]]
        if s.maybe():
            other = s.one_of(*stacked)
            text = f"layers.Concatenate()([{x}, {other}])"
        else:
            other = s.one_of(*same)
            form = s.one_of(
                "layers.Add()([{}, {}])",
                "layers.Multiply()([{}, {}])",
                "layers.Subtract()([{}, {}])" if other != x else "layers.Add()([{}, {}])",
                "layers.Average()([{}, {}])",
                "layers.Maximum()([{}, {}])",
                "{} + {}",
                "{} * {}",
                "ops.maximum({}, {})",
                "ops.concatenate([{}, {}], axis=-1)",
            )
            text = form.format(x, other)
        self.read.add(other)
        return s.let(text)

    def wide(self, s: _Source, x: str) -> str:
        """Of two tensors whose ranges differ much."""
        same = [t for t in self.tensors if s.shape(t) == s.shape(x)]
        stacked = [t for t in self.tensors if s.shape(t)[:-1] == s.shape(x)[:-1]]
        form, others = s.one_of(
            ("layers.Concatenate()([{}, {}])", stacked),
            ("ops.concatenate([{}, {}], axis=-1)", stacked),
            ("layers.Maximum()([{}, {}])", same),
            ("ops.minimum({}, {})", same),
            ("layers.Add()([{}, {}])", same),
            ("{} + {}", same),
        )
        other = s.one_of(*others)
        self.read.add(other)
        factor = s.one_of(*WIDE)
        scaled = s.one_of(f"{other} * {factor}", f"layers.Rescaling({factor})({other})")
        return s.let(form.format(*s.draw(st.permutations([x, s.let(scaled)]))))

    def masked(self, s: _Source, x: str) -> str:
        """Attention or a recurrent layer with a mask: that of indices, or of later steps."""
        length = s.shape(x)[0]
        found = [t for t in self.indices if s.shape(t) == (length,)]
        padding = s.let(f"ops.not_equal({s.one_of(*found)}, 0)") if found else ""
        kind = s.one_of("layer", "recurrent", "bare", "bare", "dot")
        if kind == "recurrent" and padding:
            return s.let(f"{s.layer(_recurrent_layer(s, s.maybe()))}({x}, mask={padding})")
        if kind == "dot":
            options = s.one_of("", "dropout=0.5", "use_scale=True")
            layer = s.layer(f"layers.{s.one_of('Attention', 'AdditiveAttention')}({options})")
            mask = f", mask=[{padding}, {padding}]" if padding else ""
            causal = s.one_of("", ", use_causal_mask=True")
            return s.let(f"{layer}([{x}, {x}]{mask}{causal})")
        if kind == "bare":
            scores = s.let(f"ops.matmul({x}, ops.transpose({x}, (0, 2, 1))) * 0.5")
            kept = f"ops.cast({padding}, 'float32')[:, None, :]"
            kept = kept if padding else f"ops.tril(ops.ones(({length}, {length})))"
            form = s.one_of(
                "ops.softmax({} + (1.0 - {}) * -1e9)",
                "layers.Softmax()({} - (1.0 - {}) * 1e4)",
                "ops.softmax(ops.where({1} > 0.5, {0}, -1e9))",
            )
            weights = s.let(form.format(scores, s.let(kept)))
            return s.let(f"ops.matmul({weights}, {x})")
        layer = s.layer(_attention_layer(s, s.shape(x)[0]))
        mask = f", attention_mask={padding}[:, None, :]" if padding else ", use_causal_mask=True"
        return s.let(f"{layer}({x}, {x}{mask})")

    def residual(self, s: _Source, x: str) -> str:
        y = s.let(f"{s.layer(_keeping_shape(s, x))}({x})")
        if s.maybe():
            y = _norm(s, y)
        if s.maybe():
            y = s.let(f"layers.ReLU()({y})")
        return s.let(f"layers.Add()([{x}, {y}])")

    def shared(self, s: _Source, x: str) -> str:
        """A layer that is called twice: in a row, or on two tensors."""
        same = [t for t in self.tensors if s.shape(t) == s.shape(x) and t != x]
        layer = s.layer(_keeping_shape(s, x))
        y = s.let(f"{layer}({x})")
        if same and s.maybe():
            other = s.one_of(*same)
            self.read.add(other)
            self.tensors.append(s.let(f"{layer}({other})"))
            return y
        return s.let(f"{layer}({y})")

    def nested(self, s: _Source, x: str) -> str:
        """A model inside, called once or twice."""
        shape = s.shape(x)
        if s.number(0, 2) == 2:
            count = s.number(1, 2)
            parts = [f"keras.Input({shape})"]
            parts += [s.layer(_keeping_shape(s, x)) for _ in range(count)]
            if s.maybe():
                parts.append(s.layer(s.one_of("layers.BatchNormalization()", "layers.ReLU()")))
            model = s.layer(f"keras.Sequential([{', '.join(parts)}])")
        else:
            body = _Body(s, self.depth + 1)
            body.tensors.append(body.given(shape))
            for _ in range(s.number(1, 3)):
                body.step()
            inputs, outputs = body.inputs, body.leaves()
            model = s.layer(f"keras.Model({inputs[0]}, {outputs[-1]})")
        y = s.let(f"{model}({x})")
        again = [t for t in self.tensors if s.shape(t) == shape and t != x]
        again += [y] if s.shape(y) == shape else []
        if again and s.maybe():
            other = s.one_of(*again)
            self.read.add(other)
            z = s.let(f"{model}({other})")
            self.tensors.append(y)
            return z
        return y


# Makers: of a tensor, by its name, from another one ---------------------------------------------

Maker = Callable[[_Source, str], str]


def _options(s: _Source, *more: str) -> str:
    """Options of a layer with a kernel."""
    options = [*more]
    activation = s.one_of(*ACTIVATIONS) if s.maybe() else None
    if activation:
        options.append(f"activation={activation!r}")
    if s.number(0, 2) == 2:
        options.append("use_bias=False")
    return "".join(f", {option}" for option in options if option)


def _call(s: _Source, x: str, expression: str) -> str:
    return s.let(f"{s.layer(expression)}({x})")


def _windows(s: _Source, x: str, *, dilates: bool = True) -> tuple[int, list[str]]:
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


def _dense(s: _Source, x: str) -> str:
    return _call(s, x, f"layers.Dense({s.channels(6)}{_options(s)})")


def _einsum(s: _Source, x: str) -> str:
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


def _conv(s: _Source, x: str) -> str:
    rank, channels = len(s.shape(x)) - 1, s.shape(x)[-1]
    groups = s.one_of(*(n for n in range(1, channels + 1) if channels % n == 0))
    filters = groups * s.number(1 if groups > 1 else 2, max(2, 5 // groups))
    size, options = _windows(s, x)
    if groups > 1:
        options.append(f"groups={groups}")
    if rank == 1 and "padding='same'" in options and s.number(0, 3) == 3:
        options[options.index("padding='same'")] = "padding='causal'"
    return _call(s, x, f"layers.Conv{rank}D({filters}, {size}{_options(s, *options)})")


def _depthwise(s: _Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    size, options = _windows(s, x)
    multiplier = s.number(1, 2)
    if multiplier > 1:
        options.append("depth_multiplier=2")
    return _call(s, x, f"layers.DepthwiseConv{rank}D({size}{_options(s, *options)})")


def _separable(s: _Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    size, options = _windows(s, x)
    if s.maybe():
        options.append("depth_multiplier=2")
    text = f"layers.SeparableConv{rank}D({s.channels(4)}, {size}{_options(s, *options)})"
    return _call(s, x, text)


def _transposed(s: _Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    size, options = _windows(s, x, dilates=False)
    return _call(
        s, x, f"layers.Conv{rank}DTranspose({s.channels(4)}, {size}{_options(s, *options)})"
    )


def _norm(s: _Source, x: str) -> str:
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


def _activation(s: _Source, x: str) -> str:
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


def _operation(s: _Source, x: str) -> str:
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


def _swapped(s: _Source, x: str) -> str:
    axes = list(range(len(s.shape(x)) + 1))
    axes[1], axes[2] = axes[2], axes[1]
    return str(tuple(axes))


def _dropout(s: _Source, x: str) -> str:
    forms = ["layers.Dropout(0.5)", "layers.GaussianNoise(0.5)", "layers.GaussianDropout(0.3)"]
    forms += ["layers.AlphaDropout(0.2)", "layers.ActivityRegularization(0.1)"]
    if len(s.shape(x)) in (2, 3):
        forms.append(f"layers.SpatialDropout{len(s.shape(x)) - 1}D(0.5)")
    return _call(s, x, s.one_of(*forms))


def _flatten(s: _Source, x: str) -> str:
    return _call(s, x, "layers.Flatten()")


def _reshape(s: _Source, x: str) -> str:
    count = int(np.prod(s.shape(x)))
    first = s.one_of(*(n for n in range(1, count + 1) if count % n == 0))
    rest = count // first
    second = s.one_of(*(n for n in range(1, rest + 1) if rest % n == 0))
    shape = s.one_of((first, rest), (first, second, rest // second), (-1, first))
    return _call(s, x, f"layers.Reshape({shape})")


def _permute(s: _Source, x: str) -> str:
    axes = s.draw(st.permutations(range(1, len(s.shape(x)) + 1)))
    return _call(s, x, f"layers.Permute({tuple(axes)})")


def _pool(s: _Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    kind = s.one_of("Max", "Average")
    if s.number(0, 2) == 2:
        options = "keepdims=True" if s.maybe() else ""
        return _call(s, x, f"layers.Global{kind}Pooling{rank}D({options})")
    size = s.number(1, min(2, *s.shape(x)[:-1]))
    options = s.one_of("", ", padding='same'", ", strides=1")
    return _call(s, x, f"layers.{kind}Pooling{rank}D({size}{options})")


def _pad(s: _Source, x: str) -> str:
    rank = len(s.shape(x)) - 1
    forms = [f"layers.ZeroPadding{rank}D(1)", f"layers.UpSampling{rank}D(2)"]
    if min(s.shape(x)[:-1]) > 2:
        forms.append(f"layers.Cropping{rank}D(1)")
    if rank == 2:
        forms.append("layers.ZeroPadding2D(((0, 1), (1, 0)))")
    return _call(s, x, s.one_of(*forms))


def _resize(s: _Source, x: str) -> str:
    method = s.one_of("nearest", "bilinear")
    size = (s.number(1, 5), s.number(1, 5))
    forms = [
        f"layers.UpSampling2D({s.one_of(2, (1, 2), (3, 2))}, interpolation={method!r})({x})",
        f"layers.Resizing({size[0]}, {size[1]}, interpolation={method!r})({x})",
        f"ops.image.resize({x}, {size}, interpolation={method!r})",
    ]
    return s.let(s.one_of(*forms))


def _recurrent(s: _Source, x: str) -> str:
    layer = _recurrent_layer(s, s.maybe())
    if s.number(0, 2) == 2:
        mode = s.one_of("concat", "sum", "ave", "mul")
        layer = layer.replace(", go_backwards=True", "")
        layer = f"layers.Bidirectional({layer}, merge_mode={mode!r})"
    return _call(s, x, layer)


def _recurrent_layer(s: _Source, returns: bool, units: int | None = None) -> str:
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


def _distributed(s: _Source, x: str) -> str:
    inside = f"layers.Dense({s.channels(4)}{_options(s)})"
    if len(s.shape(x)) == 3 and s.maybe():
        inside = f"layers.Conv1D({s.channels(4)}, 2, padding='same'{_options(s)})"
    return _call(s, x, f"layers.TimeDistributed({inside})")


def _attention(s: _Source, x: str) -> str:
    mask = s.one_of("", "", ", use_causal_mask=True")
    return s.let(f"{s.layer(_attention_layer(s, s.shape(x)[0]))}({x}, {x}{mask})")


def _attention_layer(s: _Source, steps: int) -> str:
    if s.number(0, 3) == 3:
        options = s.one_of("", ", dropout=0.5", ", use_bias=False")
        return f"layers.GroupQueryAttention({s.number(1, 3)}, 2, {s.number(1, 2)}{options})"
    options = s.one_of("", ", dropout=0.5", ", value_dim=3", ", use_bias=False", ", output_shape=3")
    heads = s.number(1, 2)
    # Keras 3.15 adds a bias of the shape (2, 1) along the steps if there are two of them.
    size = s.number(2 if heads == steps == 2 else 1, 3)
    return f"layers.MultiHeadAttention({heads}, {size}{options})"


def _repeat(s: _Source, x: str) -> str:
    return _call(s, x, f"layers.RepeatVector({s.number(1, 3)})")


def _keeping_shape(s: _Source, x: str) -> str:
    """A layer with a kernel whose output has the shape of its input."""
    rank, channels = len(s.shape(x)), s.shape(x)[-1]
    forms = [f"layers.Dense({channels}{_options(s)})"]
    if rank == 2:
        forms.append(_recurrent_layer(s, True, channels))
    if rank in (2, 3):
        size = s.number(1, 3)
        options = _options(s, "padding='same'")
        forms.append(f"layers.Conv{rank - 1}D({channels}, {size}{options})")
        forms.append(f"layers.DepthwiseConv{rank - 1}D({size}{options})")
        forms.append(f"layers.Conv{rank - 1}DTranspose({channels}, {size}{options})")
        forms.append(f"layers.SeparableConv{rank - 1}D({channels}, {size}{options})")
    return s.one_of(*forms)


_ANY: tuple[Maker, ...] = (_dense, _einsum, _norm, _activation, _operation, _dropout, _reshape)
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


def _kernel_layer(s: _Source, x: str) -> str:
    return _dense(s, x)


@functools.cache
def _of_rank(rank: int) -> tuple[Maker, ...]:
    if rank == 1:
        return (*_ANY, _repeat)
    if rank == 2:
        return (*_ANY, *_SEQUENCES, _recurrent, _recurrent, _distributed, _attention)
    if rank == 3:
        return (*_ANY, *_SEQUENCES, _conv, _depthwise, _distributed, _resize, _resize)
    return (*_ANY, _flatten, _permute)
