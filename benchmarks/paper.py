"""ImageNet results of the OCS paper, as numbers to print beside measured ones.

R. Zhao, Y. Hu, J. Dotzel, C. De Sa, Z. Zhang, "Improving Neural Network Quantization without
Retraining using Outlier Channel Splitting", ICML 2019, https://arxiv.org/abs/1901.09504: top-1 in
percent of torchvision's networks on the 50,000 pictures of the validation set.
"""

from __future__ import annotations

CLIPS = ("none", "mse", "aciq", "kl")
RATIOS = (0.01, 0.02, 0.05)
OCS = tuple(f"OCS r={ratio:g}" for ratio in RATIOS)
OCS_CLIP = tuple(f"OCS r={ratio:g}, best clip" for ratio in RATIOS)
BATCHES = (1, 2, 4, 8, 32, 128)

FLOAT = {"vgg16": 73.4, "resnet50": 76.1, "densenet121": 74.4, "inception_v3": 75.9}
"""Not quantized. The first is VGG-16 with batch norm, which Keras does not have."""

_Scores = dict[str, dict[int, tuple[float, ...]]]

_WEIGHTS: _Scores = {
    "vgg16": {
        8: (73.0, 72.6, 72.8, 68.4, 72.6, 72.9, 72.8, 72.7, 72.8, 72.5),
        7: (72.8, 72.5, 72.5, 60.7, 72.1, 72.8, 72.5, 72.4, 72.1, 72.6),
        6: (70.8, 71.3, 71.2, 63.2, 72.3, 72.2, 72.3, 71.8, 71.8, 72.1),
        5: (63.1, 66.9, 61.2, 62.7, 69.3, 70.2, 71.0, 68.8, 69.5, 70.0),
        4: (0.2, 53.5, 34.2, 59.4, 10.4, 26.3, 37.9, 63.8, 63.8, 65.9),
    },
    "resnet50": {
        8: (75.4, 75.5, 75.4, 73.5, 75.7, 75.7, 75.7, 75.7, 75.7, 75.4),
        7: (75.0, 75.2, 75.0, 72.8, 75.5, 75.5, 75.6, 75.5, 75.5, 75.5),
        6: (72.9, 73.5, 74.3, 71.6, 74.9, 74.7, 75.0, 74.8, 74.8, 75.2),
        5: (14.5, 69.1, 69.9, 69.4, 69.4, 71.9, 72.6, 71.0, 71.9, 73.4),
        4: (0.1, 45.0, 33.2, 62.9, 12.1, 36.1, 55.2, 66.2, 67.1, 69.3),
    },
    "densenet121": {
        8: (74.1, 73.8, 73.7, 71.0, 74.2, 74.2, 74.2, 74.2, 74.2, 74.2),
        7: (73.8, 73.3, 73.1, 62.3, 73.9, 74.0, 74.0, 74.1, 74.2, 74.1),
        6: (71.0, 71.4, 71.1, 60.7, 72.9, 73.0, 73.2, 73.2, 73.1, 73.1),
        5: (46.9, 65.4, 61.4, 54.6, 65.5, 69.7, 71.3, 70.0, 70.7, 71.6),
        4: (0.4, 33.3, 25.2, 42.6, 13.1, 37.5, 53.0, 52.7, 56.5, 63.0),
    },
    "inception_v3": {
        8: (74.8, 74.6, 74.0, 72.6, 75.2, 75.4, 75.3, 74.8, 75.0, 74.9),
        7: (73.2, 71.2, 69.1, 69.4, 74.8, 74.7, 74.7, 71.8, 73.8, 74.2),
        6: (58.3, 66.2, 62.3, 63.0, 71.3, 71.8, 72.1, 70.5, 71.7, 72.5),
        5: (0.5, 30.4, 29.6, 40.5, 45.2, 54.0, 60.2, 57.0, 60.0, 62.9),
        4: (0.1, 0.2, 0.1, 1.6, 0.1, 0.2, 0.6, 2.1, 2.3, 4.8),
    },
}

_ACTIVATIONS: _Scores = {
    "vgg16": {
        8: (72.5, 73.2, 73.1, 73.2, 72.7, 72.8, 72.5),
        7: (70.8, 72.8, 72.8, 72.7, 70.5, 70.7, 70.2),
        6: (49.0, 71.3, 71.4, 70.6, 49.2, 46.0, 45.9),
        5: (0.7, 62.0, 58.1, 51.6, 1.6, 1.0, 1.4),
        4: (0.1, 11.5, 5.0, 2.4, 0.1, 0.2, 0.1),
    },
    "resnet50": {
        8: (75.5, 75.9, 75.8, 75.8, 75.6, 75.5, 75.7),
        7: (75.4, 75.3, 75.2, 75.3, 74.1, 74.5, 74.1),
        6: (62.6, 73.5, 73.5, 72.8, 63.3, 63.3, 63.6),
        5: (5.7, 63.7, 65.4, 56.7, 10.0, 12.6, 6.0),
        4: (0.1, 9.0, 20.6, 7.2, 0.1, 0.1, 0.1),
    },
    "densenet121": {
        8: (74.0, 74.1, 73.8, 74.1, 74.1, 74.2, 74.1),
        7: (73.0, 73.7, 72.9, 73.7, 73.2, 73.2, 73.0),
        6: (67.2, 72.6, 70.9, 72.1, 67.9, 65.8, 66.6),
        5: (19.9, 66.9, 64.6, 64.5, 16.0, 18.7, 13.2),
        4: (0.2, 26.9, 20.1, 16.5, 0.1, 0.1, 0.1),
    },
    "inception_v3": {
        8: (74.8, 75.1, 73.4, 75.0, 74.8, 74.9, 74.8),
        7: (72.6, 74.2, 71.3, 73.8, 72.6, 72.4, 72.6),
        6: (51.6, 69.6, 60.7, 67.9, 54.1, 51.5, 48.5),
        5: (1.3, 34.2, 5.8, 25.3, 1.0, 0.9, 1.0),
        4: (0.1, 0.3, 0.1, 0.2, 0.1, 0.1, 0.2),
    },
}

_ORACLE = {
    "resnet50": (74.6, 74.5, 74.0, 74.1, 73.5, 73.3),
    "inception_v3": (71.7, 71.7, 71.6, 70.9, 70.7, 70.3),
}


def _named(scores: _Scores, letter: str, columns: tuple[str, ...]) -> dict:
    return {
        network: {
            f"{letter}{bits}": dict(zip(columns, row, strict=True)) for bits, row in rows.items()
        }
        for network, rows in scores.items()
    }


Scores = dict[str, dict[str, dict[str, float]]]

TABLES: dict[int, Scores] = {
    2: _named(_WEIGHTS, "W", (*CLIPS, *OCS, *OCS_CLIP)),
    3: _named(_ACTIVATIONS, "A", (*CLIPS, *OCS)),
    4: {
        network: {f"batch {n}": {"oracle": top1} for n, top1 in zip(BATCHES, row, strict=True)}
        for network, row in _ORACLE.items()
    },
}
"""By table, network, line and column: weights (activations in 8 bits), activations (weights in 8
bits), and splits chosen anew for each batch (activations in 6 bits, r = 0.02)."""
