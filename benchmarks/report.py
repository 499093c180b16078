"""docs/results.md and the headline table of README.md, written from benchmarks/results/*.json.

    python -m benchmarks.report

The text around the numbers is in benchmarks/templates. Every number comes from a measured row: a
template that asks for a row that does not exist, or for one of several, raises `LookupError`.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from benchmarks import common

TEMPLATES = pathlib.Path(__file__).with_name("templates")
README = common.ROOT / "README.md"
PAGE = common.ROOT / "docs" / "results.md"
BEGIN = "<!-- Written by `python -m benchmarks.report`; do not edit. -->"
END = "<!-- End of what is written. -->"

RESNET, DENSENET, MOBILENET = (
    "resnet20_cifar10",
    "densenet40_cifar10",
    "mobilenet_v1_075_imagenet",
)
# Interpreter and kernels, and what the table calls them.
RUNTIMES = {
    ("LiteRT", "XNNPACK"): "XNNPACK",
    ("LiteRT", "without"): "without XNNPACK",
    ("TFLite Micro", "reference"): "TFLite Micro",
}
IMAGES = {RESNET: 5000, DENSENET: 1000, MOBILENET: 500}
NAMES = {
    RESNET: "ResNet-20, CIFAR-10",
    DENSENET: "DenseNet-40, CIFAR-10",
    MOBILENET: "MobileNet v1 0.75, ImageNet",
    "tinydarknet_imagenet": "Tiny Darknet, ImageNet",
    "charlstm_shakespeare": "LSTM, characters",
    "transformer": "transformer, characters",
    "words_lstm_64": "LSTM, words",
}
RTN = "plain: one step per output channel, nearest"
# Configurations of `benchmarks.ingredients`: name in the results, name in the tables.
AT_EQUAL_SIZE = {
    "default": "calibrated, uniform",
    "mixed widths, as large as the default": "calibrated, mixed, bytes of uniform",
    "mixed widths": "calibrated, mixed, W bits on average",
    "no data": "data-free, uniform",
    "no data, mixed widths, as large as the default": "data-free, mixed, bytes of uniform",
    "no data, mixed widths": "data-free, mixed, W bits on average",
    RTN: "round-to-nearest, uniform",
}
# Name in the table: rounding and bias correction.
ON_DATA = {
    "RTN": ("nearest", False),
    "RTN, bias correction": ("nearest", True),
    "GPTQ-style": ("error_compensated", False),
    "GPTQ-style, bias correction": ("error_compensated", True),
}


@functools.cache
def rows(benchmark: str) -> list[dict[str, Any]]:
    """All rows of benchmarks/results/`benchmark`.json."""
    path = common.RESULTS / f"{benchmark}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def matching(benchmark: str, **values: Any) -> list[dict[str, Any]]:
    """The rows whose fields have these values."""
    return [row for row in rows(benchmark) if all(row[key] == values[key] for key in values)]


def one(benchmark: str, **values: Any) -> dict[str, Any]:
    """The row whose fields have these values.

    Raises:
        LookupError: there is none, or more than one.
    """
    found = matching(benchmark, **values)
    if len(found) != 1:
        raise LookupError(f"{benchmark}.json has {len(found)} rows with {values}, not one.")
    return found[0]


def paper() -> str:
    """Top-1 of the paper's configuration: round-to-nearest, per-tensor, weights only."""
    cases = [(RESNET, 8), (RESNET, 4), (DENSENET, 4), (MOBILENET, 8), (MOBILENET, 6)]
    return _weights_only("paper", ("none", "mse"), cases)


def default() -> str:
    """Top-1 of the default configuration with round-to-nearest, weights only."""
    cases = [(RESNET, 8), (RESNET, 4), (DENSENET, 4), (MOBILENET, 8), (MOBILENET, 5)]
    return _weights_only("default", ("optimal", "mse"), cases)


def _weights_only(setup: str, clips: Sequence[str], cases: Sequence[tuple[str, int]]) -> str:
    columns = [(clip, ratio) for clip in clips for ratio in (0.0, 0.02)]
    lines = []
    for network, bits in cases:
        scores = [
            _accuracy(
                network,
                setup=setup,
                weight_bits=bits,
                activation_bits=None,
                clip=clip,
                expand_ratio=ratio,
                rounding="nearest",
                bias_correction=False,
            )["top1"]
            for clip, ratio in columns
        ]
        lines.append([*_head(network), f"W{bits}", _float(network), *_best(scores, ".1f")])
    header = [f"`{clip}` r={ratio}" if ratio else f"`{clip}`" for clip, ratio in columns]
    return _table(("network", "images", "bits", "float", *header), lines, texts=1)


def calibrated() -> str:
    """Top-1 and agreement of the default configuration with calibration data."""
    cases = [(RESNET, bits) for bits in (8, 4, 3)]
    cases += [(DENSENET, 4), *((MOBILENET, bits) for bits in (8, 6, 5, 4, 3))]
    lines = []
    for network, bits in cases:
        found = [
            _accuracy(
                network,
                setup="default",
                weight_bits=bits,
                activation_bits=8,
                clip="optimal",
                expand_ratio=0.02 if bits < 8 else 0.0,
                rounding=rounding,
                bias_correction=correction,
            )
            for rounding, correction in ON_DATA.values()
        ]
        scores = _best([row["top1"] for row in found], ".1f")
        cells = [f"{s} ({r['agreement']:.1f})" for s, r in zip(scores, found, strict=True)]
        lines.append([*_head(network), f"W{bits}A8", _float(network), *cells])
    return _table(("network", "images", "bits", "float", *ON_DATA), lines, texts=1)


def defaults() -> str:
    """Drop of top-1 and agreement of the default configuration, of the networks measured so far."""
    settings = list(dict.fromkeys(row["setting"] for row in rows("defaults")))
    networks = list(dict.fromkeys(row["network"] for row in rows("defaults")))
    lines = []
    for setting in settings:
        found = [matching("defaults", network=n, setting=setting) for n in networks]
        lines.append([setting, *(_drop(*row) for row in found)])
    return _table(("", *(NAMES[network] for network in networks)), lines, texts=1)


def _drop(row: dict[str, Any] | None = None) -> str:
    if row is None:
        return ""
    return f"{round(row['drop'], 1) + 0.0:.1f} ({row['agreement']:.1f})"  # no "-0.0"


def peers() -> str:
    """The best file of each tool: top-1 and agreement."""
    tools = ("TensorFlow converter", "ai-edge-quantizer", "ocs_tf")
    cases = [(network, bits) for network in IMAGES for bits in ("W8A8", "W4A8", "W4")]
    cases.insert(cases.index((MOBILENET, "W4")), (MOBILENET, "W4A8, depthwise W8"))
    lines = []
    for network, bits in cases:
        own = matching("peers", network=network, pictures=IMAGES[network], width=bits)
        found = [
            max(((r["top1"], r["agreement"]) for r in own if r["tool"] == tool), default=None)
            for tool in tools
        ]
        scores = iter(_best([row[0] for row in found if row], ".1f"))
        cells = [f"{next(scores)} ({row[1]:.1f})" if row else "-" for row in found]
        exact = one("peers", network=network, pictures=IMAGES[network], tool="float")["top1"]
        lines.append([*_head(network), bits, f"{exact:.1f}", *cells])
    return _table(("network", "images", "bits", "float", *tools), lines, texts=1)


def at_equal_size() -> str:
    """Top-1 and effective bits per weight, by configuration and bit width."""
    widths = (8, 6, 5, 4, 3)
    lines = []
    for network in IMAGES:
        for method, name in AT_EQUAL_SIZE.items():
            found = [
                matching(
                    "ingredients",
                    network=network,
                    pictures=IMAGES[network],
                    method=method,
                    bits=float(bits),
                )
                for bits in widths
            ]
            cells = [
                f"{row[0]['top1']:.1f} ({row[0]['effective_bits']:.2f})" if row else "-"
                for row in found
            ]
            lines.append([NAMES[network], name, _float(network), *cells])
    columns = [f"W{bits}" for bits in widths]
    return _table(("network", "configuration", "float", *columns), lines, texts=2)


def language_models() -> str:
    """Scores of language models, weights only; lower is better."""
    clips = ("none", "mse", "aciq", "kl")
    defaults = {"default": "data-free", "default, with data": "calibrated"}
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows("language_model")):
        exact = one("language_model", network=network, setup="float")
        digits = ".2f" if exact["unit"] == "perplexity" else ".3f"
        for bits in (8, 6, 5, 4):
            case = {"network": network, "bits": bits}
            found = [
                *(
                    one("language_model", **case, setup="paper", clip=clip, expand_ratio=0.02)
                    for clip in clips
                ),
                *(one("language_model", **case, setup=setup) for setup in defaults),
            ]
            scores = _best([row["score"] for row in found], digits, least=True)
            head = [NAMES[network], exact["unit"], f"W{bits}", f"{exact['score']:{digits}}"]
            lines.append([*head, *scores])
    header = ("network", "score in", "bits", "float", *(f"`{clip}`" for clip in clips))
    return _table((*header, *defaults.values()), lines, texts=2)


def latency() -> str:
    """Latency, loading time and size of files of single images, one thread."""
    files = {
        "float": "float32",
        "int8": "int8",
        "INT4 weights": "INT4, float32 activations",
        "packed 8": "packed, 8 bits",
        "packed 5": "packed, 5 bits",
        "packed 4": "packed, 4 bits",
        "packed 3": "packed, 3 bits",
    }
    lines = []
    for network in (MOBILENET, RESNET):
        for file, name in files.items():
            row = one("latency", network=network, file=file, samples=1)
            time = row["milliseconds"]["1"]
            size = f"{row['size'] / 1024:,.0f}"
            lines.append([NAMES[network], name, f"{time:.2f}", f"{row['load']:.1f}", size])
    return _table(("network", "file", "latency, ms", "loading, ms", "size, KiB"), lines, texts=2)


def runtimes() -> str:
    """Output codes of int8 files that differ from the Keras model's, in each runtime."""
    lines = []
    for network in IMAGES:
        for bits in (8, 5):
            case = {"network": network, "weight_bits": bits}
            cells = []
            for interpreter, kernels in RUNTIMES:
                row = one("runtimes", **case, interpreter=interpreter, kernels=kernels)
                cells += [f"{row['differing']:.2f}", row["steps"], f"{row['agreement']:.2f}"]
            lines.append([*_head(network), f"W{bits}A8", *cells])
    header = ["network", "images", "bits"]
    for name in RUNTIMES.values():
        header += [f"{name}: differ, %", "at most, LSB", "same top-1, %"]
    return _table(header, lines, texts=1)


def memory() -> str:
    """CPU time and memory of `convert` on large networks."""
    lines = [
        [
            row["network"],
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['seconds'] / 60:.1f}",
            f"{(row['peak'] - row['before']) / row['model']:.1f}",
        ]
        for row in rows("memory")
    ]
    header = ("network", "parameters, M", "CPU minutes", "memory, x model size")
    return _table(header, lines, texts=1)


def headline() -> str:
    """The five rows of README.md: top-1 of round-to-nearest and of `ocs_tf`."""
    plain = {"clip": "mse", "expand_ratio": 0.0, "rounding": "nearest", "bias_correction": False}
    weights = {"setup": "default", "activation_bits": None}
    cases: list[tuple[str, str, str, int]] = [
        (RESNET, "W4A8, calibrated", "default", 4),
        (DENSENET, "W4A8, calibrated", "default", 4),
        (MOBILENET, "W8A8, calibrated", "default", 8),
        (MOBILENET, "W5, no data, float32 activations", "no data", 5),
        (
            MOBILENET,
            "W4A8, calibrated, mixed precision",
            "mixed widths, as large as the default",
            4,
        ),
    ]
    lines = []
    for network, name, method, bits in cases:
        case = {"network": network, "pictures": IMAGES[network], "bits": float(bits)}
        own = one("ingredients", **case, method=method)
        if method == "no data":
            nearest = _accuracy(network, **weights, weight_bits=bits, **plain)
        else:
            nearest = one("ingredients", **case, method=RTN)
        cells = [_float(network), f"{nearest['top1']:.1f}", f"**{own['top1']:.1f}**"]
        lines.append([NAMES[network], name, f"{own['effective_bits']:.2f}", *cells])
    header = (
        "network",
        "quantization",
        "bits per weight",
        "float32",
        "round-to-nearest",
        "`ocs_tf`",
    )
    return _table(header, lines, texts=2)


def standard_error(network: str) -> str:
    """One standard error of the float network's top-1, in points: of a share p of n images."""
    share = _accuracy(network, setup="float")["top1"] / 100
    return f"{100 * math.sqrt(share * (1 - share) / IMAGES[network]):.1f}"


TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        paper,
        default,
        calibrated,
        defaults,
        peers,
        at_equal_size,
        language_models,
        latency,
        runtimes,
        memory,
        headline,
    )
}


def render(name: str) -> str:
    """The text of a template in benchmarks/templates, with its numbers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.globals.update(
        {f"{key}_table": table for key, table in TABLES.items()},
        one=one,
        images=IMAGES,
        standard_error=standard_error,
    )
    return environment.get_template(name).render()


def page() -> str:
    """The text of docs/results.md."""
    return render("results.md")


def readme(text: str) -> str:
    """README's `text` with what stands between the two markers written anew.

    Raises:
        ValueError: the markers are not there once each, in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"the text must hold the lines {BEGIN!r} and {END!r}, once each.")
    return f"{before}{BEGIN}\n\n{render('headline.md').strip()}\n\n{END}{after}"


def _accuracy(network: str, **values: Any) -> dict[str, Any]:
    return one("accuracy", network=network, pictures=IMAGES[network], **values)


def _float(network: str) -> str:
    return f"{_accuracy(network, setup='float')['top1']:.1f}"


def _head(network: str) -> list[str]:
    return [NAMES[network], f"{IMAGES[network]:,}"]


def _best(values: Sequence[float], digits: str, least: bool = False) -> list[str]:
    """The values as text, the best one bold if no other reads the same."""
    texts = [f"{value:{digits}}" for value in values]
    best = f"{(min if least else max)(values):{digits}}"
    return [f"**{t}**" if t == best and texts.count(best) == 1 else t for t in texts]


def _table(header: Sequence[str], lines: Sequence[Sequence[Any]], texts: int) -> str:
    """A Markdown table; the columns behind the first `texts` are aligned to the right."""
    ruler = ["---"] * texts + ["--:"] * (len(header) - texts)
    every = [header, ruler, *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in every)


def main() -> None:
    """Write both files."""
    common.save_text(PAGE, page())
    common.save_text(README, readme(README.read_text(encoding="utf-8")))
    print(f"Wrote {PAGE.relative_to(common.ROOT)} and the headline of {README.name}.")


if __name__ == "__main__":
    common.run(main)
