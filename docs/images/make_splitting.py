"""Draws splitting.png for the README: one layer's weights before and after splitting.

    OCS_TF_ZOO=folder python docs/images/make_splitting.py

The layer is `layer2_0_conv2` of a ResNet-20 that was trained on CIFAR-10, batch norm folded. The
folder holds `resnet20_cifar10.keras`; see `benchmarks/common.py`.
"""

from __future__ import annotations

import os
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ocs_tf import numerics
from ocs_tf.graph.reader import Graph

HERE = pathlib.Path(__file__).resolve().parent
MODEL, LAYER = "resnet20_cifar10.keras", "layer2_0_conv2"
BITS = 4
RATIO = 0.05
GREY, RED = "#8a97a6", "#d1495b"


def draw(axes: Axes, kernel: NDArray[np.float32], ratio: float, marked: set[int]) -> None:
    """Histogram of the expanded float weights, over the grid that they are rounded to."""
    quantized = numerics.quantize_kernel(kernel, BITS, ratio)
    # Values before rounding: the float kernel, split on the step that the codes have.
    split = numerics.split_channels(kernel, ratio, quantized.scale)
    in_marked = np.isin(split.channel_map, list(marked))
    parts = [split.kernel[:, :, ~in_marked].ravel(), split.kernel[:, :, in_marked].ravel()]
    limit = numerics.code_limit(BITS)
    for level in np.arange(-limit, limit + 1) * float(quantized.scale):
        axes.axvline(level, color="#2e6f95", linewidth=0.8, alpha=0.75, zorder=0)
    axes.hist(
        parts,
        bins=np.linspace(-0.7, 0.7, 141).tolist(),
        stacked=True,
        color=[GREY, RED],
        label=["other channels", "the channels that are split"],
    )
    axes.set_yscale("log")
    axes.set_ylim(0.7, 2000)
    axes.set_xlim(-0.7, 0.7)
    axes.set_ylabel("weights (log scale)")
    quality = numerics.sqnr_db(kernel, quantized.effective_kernel())
    what = (
        f"Split, {quantized.splits} channels added to {quantized.channels}"
        if ratio
        else "As trained"
    )
    axes.set_title(
        f"{what}: step {float(quantized.scale):.3f}, signal to noise {quality:.1f} dB",
        loc="left",
        fontsize=10,
    )


def main() -> None:
    folder = os.environ.get("OCS_TF_ZOO") or HERE.parents[2] / "shared" / "zoo"
    model = keras.models.load_model(pathlib.Path(folder) / MODEL, compile=False)
    kernel = Graph(model).kernels[LAYER].weights()[0]
    channel_map = numerics.split_channels(kernel, RATIO).channel_map
    marked = set(channel_map[kernel.shape[-2] :].tolist())
    figure, axes = plt.subplots(2, 1, figsize=(7.2, 4.8), sharex=True, layout="constrained")
    draw(axes[0], kernel, 0.0, marked)
    draw(axes[1], kernel, RATIO, marked)
    axes[0].legend(loc="upper left", fontsize=8, framealpha=1)
    axes[1].set_xlabel(f"weight value; vertical lines: the {2**BITS - 1} levels of {BITS} bits")
    figure.savefig(HERE / "splitting.png", dpi=150)


if __name__ == "__main__":
    main()
