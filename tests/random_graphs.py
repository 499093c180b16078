"""Small random models, as the Python source that builds them: a failing one can be pasted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from tests.random_layers import (
    LARGEST,
    Contents,
    Source,
    attention_layer,
    keeping_shape,
    kernel_layer,
    norm,
    of_rank,
    recurrent_layer,
)

SAMPLES = 12
MOST_OUTPUTS = 3
TABLES = (7, 300)  # rows; 300 are more than 8 bits tell apart
WIDE = (100.0, 300.0, 1000.0)
_KERNELS = ("kernel", "depthwise_kernel", "embeddings")


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
    source = Source(draw)
    body = _Body(source, depth=0)
    for _ in range(draw(st.sampled_from((1, 2, 2, 3)))):
        body.tensors.append(body.input())
    for _ in range(draw(st.integers(2, steps))):
        body.step()
    weights = [weight for name in source.layers for weight in source[name].weights]
    if not any(weight.name in _KERNELS for weight in weights):
        body.step(kernel_layer)
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


def _ends(source: Source, tensors: Sequence[str]) -> str:
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


class _Body:
    """The inside of a model, of the top or nested in another one."""

    def __init__(self, source: Source, depth: int) -> None:
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

    def step(self, make: Callable[[Source, str], str] | None = None) -> None:
        s = self.source
        x = self.tensors[-1 - s.number(0, min(2, len(self.tensors) - 1))]
        if make is None:
            makers = [*of_rank(len(s.shape(x))), self.merged, self.shared, self.residual]
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

    def merged(self, s: Source, x: str) -> str:
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

    def wide(self, s: Source, x: str) -> str:
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

    def masked(self, s: Source, x: str) -> str:
        """Attention or a recurrent layer with a mask: that of indices, or of later steps."""
        length = s.shape(x)[0]
        found = [t for t in self.indices if s.shape(t) == (length,)]
        padding = s.let(f"ops.not_equal({s.one_of(*found)}, 0)") if found else ""
        kind = s.one_of("layer", "recurrent", "bare", "bare", "dot")
        if kind == "recurrent" and padding:
            return s.let(f"{s.layer(recurrent_layer(s, s.maybe()))}({x}, mask={padding})")
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
        layer = s.layer(attention_layer(s, s.shape(x)[0]))
        mask = f", attention_mask={padding}[:, None, :]" if padding else ", use_causal_mask=True"
        return s.let(f"{layer}({x}, {x}{mask})")

    def residual(self, s: Source, x: str) -> str:
        y = s.let(f"{s.layer(keeping_shape(s, x))}({x})")
        if s.maybe():
            y = norm(s, y)
        if s.maybe():
            y = s.let(f"layers.ReLU()({y})")
        return s.let(f"layers.Add()([{x}, {y}])")

    def shared(self, s: Source, x: str) -> str:
        """A layer that is called twice: in a row, or on two tensors."""
        same = [t for t in self.tensors if s.shape(t) == s.shape(x) and t != x]
        layer = s.layer(keeping_shape(s, x))
        y = s.let(f"{layer}({x})")
        if same and s.maybe():
            other = s.one_of(*same)
            self.read.add(other)
            self.tensors.append(s.let(f"{layer}({other})"))
            return y
        return s.let(f"{layer}({y})")

    def nested(self, s: Source, x: str) -> str:
        """A model inside, called once or twice."""
        shape = s.shape(x)
        if s.number(0, 2) == 2:
            count = s.number(1, 2)
            parts = [f"keras.Input({shape})"]
            parts += [s.layer(keeping_shape(s, x)) for _ in range(count)]
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
