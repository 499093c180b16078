"""Backbones of keras-hub, whose kernels are inside of its own layers.

    pip install --no-deps keras-hub && pip install regex tokenizers
    python -m benchmarks.backbones [--quick] [--output_dir=DIR]

Small configurations, random weights, inputs drawn at random with padding masks. Each backbone is
converted (8-bit weights only; 8-bit weights and activations), saved, loaded, and exported. Writes
backbones.json and backbones.md. Some ten minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
from typing import Any

import keras
import numpy as np
from absl import flags

from benchmarks import common, steps

COMMAND = "python -m benchmarks.backbones"
QUICK = "ViT"
SAMPLES, LENGTH, WORDS = 16, 8, 50
_TEXT = {"vocabulary_size": WORDS, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
_HEADS = {**_TEXT, "num_heads": 2, "max_sequence_length": LENGTH}
_GROUPED = {**_TEXT, "num_query_heads": 4, "num_key_value_heads": 2}
_PICTURE = (32, 32, 3)
OPTIONS: dict[str, dict[str, Any]] = {
    "Bert": _HEADS,
    "DistilBert": _HEADS,
    "Roberta": _HEADS,
    "GPT2": _HEADS,
    "Llama": _GROUPED,
    "Gemma": {**_GROUPED, "head_dim": 8},
    "T5": {**_TEXT, "num_heads": 2},
    "Whisper": {
        **_TEXT,
        "num_heads": 2,
        "num_mels": 8,
        "max_encoder_sequence_length": LENGTH,
        "max_decoder_sequence_length": LENGTH,
    },
    "ViT": {
        "image_shape": (16, 16, 3),
        "patch_size": (4, 4),
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "mlp_dim": 32,
    },
    "SwinTransformer": {
        "image_shape": _PICTURE,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": (1, 1),
        "num_heads": (1, 2),
        "window_size": 2,
    },
    "MiT": {
        "image_shape": _PICTURE,
        "num_layers": 2,
        "layerwise_depths": [1, 1],
        "hidden_dims": [8, 16],
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "max_drop_path_rate": 0.1,
    },
    "HGNetV2": {
        "image_shape": _PICTURE,
        "depths": [1, 2],
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "stem_channels": [3, 8, 8],
        "hidden_act": "relu",
        "use_learnable_affine_block": True,
        "stackwise_stage_filters": [[8, 8, 16, 1, 1, 3], [16, 8, 32, 1, 2, 3]],
        "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, True],
    },
    "ResNet": {
        "image_shape": _PICTURE,
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
    },
    "EfficientNet": {
        "image_shape": _PICTURE,
        "stackwise_width_coefficients": [1.0, 1.0],
        "stackwise_depth_coefficients": [1.0, 1.0],
        "stackwise_block_types": ["unfused", "fused"],
        "stackwise_kernel_sizes": [3, 3],
        "stackwise_num_repeats": [1, 1],
        "stackwise_input_filters": [8, 8],
        "stackwise_output_filters": [8, 16],
        "stackwise_expansion_ratios": [1, 4],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
        "stackwise_strides": [1, 2],
        "min_depth": 8,
        "dropout": 0.0,
    },
    "CLIP": {"projection_dim": 8},
    "FNet": {**_TEXT, "max_sequence_length": LENGTH},
}
_CLIP = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "intermediate_dim": 32}


@dataclasses.dataclass(frozen=True)
class Case:
    """A backbone, by its name in keras-hub without "Backbone"."""

    backbone: str


@dataclasses.dataclass(frozen=True)
class Row(steps.Steps, Case):
    """What came out of each step."""


def model_of(name: str) -> keras.Model:
    """A backbone with random weights."""
    hub = importlib.import_module("keras_hub")
    options = dict(OPTIONS[name])
    if name == "CLIP":
        vision = importlib.import_module("keras_hub.src.models.clip.clip_vision_encoder")
        text = importlib.import_module("keras_hub.src.models.clip.clip_text_encoder")
        options["vision_encoder"] = vision.CLIPVisionEncoder(
            patch_size=4, image_shape=(16, 16, 3), **_CLIP
        )
        options["text_encoder"] = text.CLIPTextEncoder(
            vocabulary_size=WORDS, embedding_dim=16, max_sequence_length=LENGTH, **_CLIP
        )
    keras.utils.set_random_seed(0)
    model = getattr(hub.models, f"{name}Backbone")(**options)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "float" not in str(weight.dtype):
            continue
        if weight.name in ("moving_variance", "gamma", "scale"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            fan_in = max(1, int(np.prod(weight.shape[:-1])))
            weight.assign(rng.normal(0, fan_in**-0.5, weight.shape))
    return model


def inputs_of(model: keras.Model) -> Any:
    """Random inputs in the structure in which the model takes them."""
    rng = np.random.default_rng(1)

    def sample(tensor: Any) -> np.ndarray:
        shape = [SAMPLES, *(LENGTH if size is None else size for size in tensor.shape[1:])]
        if "mask" in tensor.name:
            mask = np.ones(shape, tensor.dtype)
            mask[: SAMPLES // 4, -2:] = 0
            return mask
        if "float" in tensor.dtype:
            return rng.normal(size=shape).astype(tensor.dtype)
        return rng.integers(0, 2 if "segment" in tensor.name else WORDS, shape).astype(tensor.dtype)

    return keras.tree.map_structure(sample, model.input)


def measure(name: str) -> Row:
    """All steps for one backbone."""
    model = model_of(name)
    return Row(name, **dataclasses.asdict(steps.measured(model, inputs_of(model))))


def markdown(rows: list[Row]) -> str:
    """The table, with the command that makes it."""
    return (
        "# Backbones of keras-hub\n\n"
        f"`{COMMAND}`: small configurations, random weights. {steps.LEGEND}\n\n"
        f"{steps.table('backbone', [(row.backbone, row) for row in rows])}"
    )


def benchmark(folder: str | pathlib.Path, quick: bool = False) -> list[Row]:
    """Measure, and write the results to `folder`; what was measured before is kept."""
    folder = pathlib.Path(folder)
    name = "backbones_quick" if quick else "backbones"
    results = common.Results(folder / f"{name}.json", Case, Row, machine=common.machine())
    names = [QUICK] if quick else OPTIONS
    results.fill(map(Case, names), lambda case: measure(case.backbone))
    common.save_text(folder / f"{name}.md", markdown(list(results)))
    return list(results)


def main() -> None:
    quick = flags.DEFINE_bool("quick", False, f"Only {QUICK}.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")
    common.run(lambda: print(markdown(benchmark(folder.value, quick.value))))


if __name__ == "__main__":
    main()
