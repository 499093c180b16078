"""Time and memory of channel splitting.

For every kernel and expand ratio, `split_channels` is timed against

- the floor: one `np.abs(kernel).max()` pass, and writing the expanded kernel;
- the direct algorithm: after every split, look at all channels again for the largest.

Times are CPU time of the one thread that works (waiting for a busy machine does not count), from
alternating runs; the ratio to the floor is taken within each run. The direct algorithm's time is
measured whole where it is short; elsewhere some of its splits are timed and multiplied by their
number, which is stated. Peak memory is what NumPy allocates, as `tracemalloc` sees it, plus the
kernel itself.

    python -m benchmarks.splitting [--quick] [--output_dir=DIR]
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from absl import app, flags
from numpy.typing import NDArray

from benchmarks.common import RESULTS, machine, markdown_table, save_json
from ocs_tf.numerics import code_limit, copy_count, split_channels

_QUICK = flags.DEFINE_bool("quick", False, "Small kernels and few runs, to see that it works.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", str(RESULTS), "Where the results go.")
_RUNS = flags.DEFINE_integer("runs", 15, "Runs that each median is taken of.", lower_bound=1)

KERNELS = {
    "3x3x512x512": (3, 3, 512, 512),
    "1x1x2048x2048": (1, 1, 2048, 2048),
    "4096x4096": (4096, 4096),
    "25088x4096 (VGG-16 fc1)": (25088, 4096),
}
QUICK_KERNELS = {"3x3x64x64": (3, 3, 64, 64), "256x256": (256, 256)}
RATIOS = (0.01, 0.02, 0.05, 0.1)
BITS = 5
TARGET_TIME, TARGET_MEMORY = 3.0, 2.2
# The direct algorithm is measured whole below this many splits times weights, else extrapolated.
DIRECT_BUDGET = 4e8


def make_kernel(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Laplace weights whose input channels differ in scale by a log-normal factor."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_exponential(shape, np.float32)
    kernel *= np.where(rng.random(shape, np.float32) < 0.5, np.float32(-1), np.float32(1))
    kernel *= np.exp(0.5 * rng.standard_normal((shape[-2], 1))).astype(np.float32)
    return kernel


def direct_split(
    expanded: NDArray[np.float32], channels: int, count: int, step: float | None
) -> None:
    """The algorithm as it reads, in place: scan all channels, split the largest, `count` times.

    `expanded` holds `channels` channels and has room for the copies, so that the scans are all
    that the algorithm is slower by.
    """
    shift = np.float32(0.0 if step is None else step / 4)
    axes = tuple(i for i in range(expanded.ndim) if i != expanded.ndim - 2)
    for end in range(channels, channels + count):
        current = expanded[..., :end, :]
        largest = np.argmax(np.maximum(current.max(axes), -current.min(axes)))
        half = current[..., largest, :] / 2
        expanded[..., largest, :] = half - shift
        expanded[..., end, :] = half + shift


def copy_expanded(kernel: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Write an array of the expanded kernel's size: what no algorithm gets around."""
    channels = kernel.shape[-2]
    expanded = np.empty((*kernel.shape[:-2], channels + count, kernel.shape[-1]), np.float32)
    expanded[..., :channels, :] = kernel
    expanded[..., channels:, :] = kernel[..., :count, :]
    return expanded


def seconds(function: Callable[[], Any]) -> float:
    """CPU time of `function`, which must not start threads."""
    start = time.thread_time()
    function()
    return time.thread_time() - start


def peak_memory(kernel: NDArray[np.float32], ratio: float, step: float | None) -> float:
    """Peak bytes of the kernel and all that `split_channels` allocates, over the kernel's."""
    gc.collect()
    tracemalloc.start()
    split_channels(kernel, ratio, step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return 1 + peak / kernel.nbytes


def measure(
    name: str, kernel: NDArray[np.float32], ratio: float, step: float | None, runs: int
) -> dict[str, Any]:
    """One row of the results; times in seconds."""
    count = copy_count(ratio, kernel.shape[-2])
    timed = max(1, min(count, int(DIRECT_BUDGET // kernel.size)))
    split_channels(kernel, ratio, step)  # the first run pays for page faults and caches
    samples = []
    for _ in range(runs):
        sample = {
            "split": seconds(lambda: split_channels(kernel, ratio, step)),
            "pass": seconds(lambda: np.abs(kernel).max()),
            "copy": seconds(lambda: copy_expanded(kernel, count)),
        }
        sample["over_floor"] = sample["split"] / (sample["pass"] + sample["copy"])
        samples.append(sample)
    row: dict[str, Any] = {key: statistics.median(s[key] for s in samples) for key in samples[0]}

    direct = []
    for _ in range(min(runs, 3)):
        expanded = copy_expanded(kernel, count)
        splits = seconds(partial(direct_split, expanded, kernel.shape[-2], timed, step))
        direct.append(row["copy"] + splits / timed * count)
    row["direct"] = statistics.median(direct)
    row["direct_over_split"] = row["direct"] / row["split"]
    return {
        "kernel": name,
        "ratio": ratio,
        "copies": count,
        "kind": "plain" if step is None else "quantization-aware",
        **row,
        "direct_splits_timed": timed,
        "direct_extrapolated": timed < count,
        "memory": peak_memory(kernel, ratio, step),
    }


def check_same(kernel: NDArray[np.float32], ratio: float, step: float | None) -> None:
    """Both algorithms must give the same kernel, or their times say nothing."""
    split = split_channels(kernel, ratio, step).kernel
    count = copy_count(ratio, kernel.shape[-2])
    direct = copy_expanded(kernel, count)
    direct_split(direct, kernel.shape[-2], count, step)
    np.testing.assert_allclose(split, direct, rtol=1e-5, atol=1e-6)


def to_markdown(rows: list[dict[str, Any]], about: dict[str, Any], command: str) -> str:
    """The results as a page."""
    table = markdown_table(
        ["kernel", "r", "copies", "splits", "split ms", "abs max ms", "copy ms", "over floor",
         "direct ms", "direct over split", "memory"],
        [
            [
                row["kernel"],
                row["ratio"],
                row["copies"],
                row["kind"],
                *(f"{1e3 * row[key]:.2f}" for key in ("split", "pass", "copy")),
                f"{row['over_floor']:.2f}x",
                f"{1e3 * row['direct']:,.1f}{' *' if row['direct_extrapolated'] else ''}",
                f"{row['direct_over_split']:,.0f}x",
                f"{row['memory']:.2f}x",
            ]
            for row in rows
        ],
    )  # fmt: skip
    slowest = max(row["over_floor"] for row in rows)
    largest = max(row["memory"] for row in rows)
    versions = ", ".join(f"{key} {value}" for key, value in about["machine"].items() if value)
    return f"""# Splitting

Made by `{command}`. Machine: {versions}.

`split_channels`, float32 kernels, CPU time, medians of {about["runs"]} runs (direct: at most 3).
*Over floor*: median of the ratios, within each run, of `split_channels` to one
`np.abs(kernel).max()` pass (which makes a temporary of the kernel's size; `split_channels` makes
none) plus writing an array of the expanded kernel's size; target below {TARGET_TIME}x on kernels
of millions of weights, the worst row has {slowest:.2f}x. *Memory*: peak of the kernel and all that
`split_channels` allocates (`tracemalloc`) over the kernel's bytes; target below {TARGET_MEMORY}x,
the worst row has {largest:.2f}x. *Direct*: all channels scanned again after every split (*over
split*: ratio of the two times); `*`: not run whole, but the time of a split, measured over the
first few, times their number (`direct_splits_timed` in the JSON). Quantization-aware splits are on
the {BITS}-bit grid of the kernel's largest magnitude.

{table}
![Time of split_channels](splitting.png)
"""


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plain splits: time against the ratio, one panel per kernel."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["kernel"] for row in rows))
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.2 * len(names), 3.6), sharey=True, layout="constrained"
    )
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        own = [row for row in rows if row["kernel"] == name and row["kind"] == "plain"]
        ratios = [row["ratio"] for row in own]
        axis.plot(ratios, [1e3 * r["direct"] for r in own], color="tab:red", label="direct")
        for extrapolated, fill in ((False, "tab:red"), (True, "white")):
            marked = [r for r in own if r["direct_extrapolated"] is extrapolated]
            axis.plot(
                [r["ratio"] for r in marked],
                [1e3 * r["direct"] for r in marked],
                "o",
                color="tab:red",
                markerfacecolor=fill,
                label="direct, extrapolated" if extrapolated else None,
            )
        axis.plot(
            ratios, [1e3 * r["split"] for r in own], "o-", color="tab:blue", label="split_channels"
        )
        axis.plot(
            ratios,
            [1e3 * (r["pass"] + r["copy"]) for r in own],
            "--",
            color="gray",
            label="one pass + copy",
        )
        axis.set(title=name, xlabel="expand ratio", yscale="log", xscale="log")
        axis.set_xticks(ratios, [f"{r:g}" for r in ratios])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("CPU milliseconds")
    handles, labels = np.atleast_1d(axes)[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(_: list[str]) -> None:
    quick = _QUICK.value
    runs = min(_RUNS.value, 3) if quick else _RUNS.value
    kernels = QUICK_KERNELS if quick else KERNELS
    for step in (None, 0.1):
        check_same(make_kernel((3, 3, 40, 24)), 0.3, step)
    rows = []
    for name, shape in kernels.items():
        kernel = make_kernel(shape)
        step = float(np.abs(kernel).max() / code_limit(BITS))
        for kind_step in (None, step):
            for ratio in RATIOS:
                row = measure(name, kernel, ratio, kind_step, runs)
                rows.append(row)
                print(
                    f"{name}  r={ratio:<4}  {row['kind']:<18}  {1e3 * row['split']:8.2f} ms"
                    f"  {row['over_floor']:.2f}x floor  1/{row['direct_over_split']:,.0f} of direct"
                    f"  {row['memory']:.2f}x memory",
                    flush=True,
                )
    about = {"machine": machine(), "runs": runs}
    command = "python -m benchmarks.splitting" + (" --quick" if quick else "")
    output = Path(_OUTPUT_DIR.value)
    save_json(output / "splitting.json", {"command": command, **about, "rows": rows})
    (output / "splitting.md").write_text(to_markdown(rows, about, command))
    plot(rows, output / "splitting.png")


if __name__ == "__main__":
    app.run(main)
