"""Files that a user of the command names: models, data, outputs; and what is said of bad ones."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_BATCH = 32
# The statistics of ImageNet that Keras' applications and others are trained with.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_BGR_MEAN = np.array([103.939, 116.779, 123.68], np.float32)
# The usual input ranges of pretrained Keras models; arrays are 0..255, RGB.
PREPROCESS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "none": ("as it is", lambda x: x),
    "0..1": ("x/255", lambda x: np.asarray(x, np.float32) / 255),
    "-1..1": ("x/127.5 - 1", lambda x: np.asarray(x, np.float32) / 127.5 - 1),
    "imagenet": (
        "x/255, minus the mean and over the deviation of ImageNet",
        lambda x: (np.asarray(x, np.float32) / 255 - _MEAN) / _DEVIATION,
    ),
    "caffe": (
        "BGR minus the mean of ImageNet",
        lambda x: np.asarray(x, np.float32)[..., ::-1] - _BGR_MEAN,
    ),
}

# What the library calls an argument, and what the user of the command calls it.
_RENAMED = (
    ("`representative_dataset`", "--data"),
    ("representative_dataset", "--data"),
    ("overwrite=True", "--overwrite"),
)


class UsageError(ValueError):
    """A mistake in how the command was called."""


def existing(path: str, what: str, suffixes: Sequence[str] = ()) -> pathlib.Path:
    """`path` if it is a file with one of `suffixes` (any, if there are none)."""
    found = pathlib.Path(path)
    if not found.exists():
        raise UsageError(f"{what} {path} does not exist.")
    if not found.is_file():
        raise UsageError(f"{what} {path} is not a file.")
    if suffixes and found.suffix.lower() not in suffixes:
        raise UsageError(f"{what} {path} must end in one of {', '.join(suffixes)}.")
    return found


def check_output(flag: str, path: str | None, suffixes: Sequence[str], overwrite: bool) -> None:
    if not path:
        return
    target = pathlib.Path(path)
    if target.suffix.lower() not in suffixes:
        raise UsageError(f"{flag} {path} must end in {' or '.join(suffixes)}.")
    if not target.parent.is_dir():
        raise UsageError(f"the folder of {flag} {path} does not exist.")
    if target.is_dir():
        raise UsageError(f"{flag} {path} is a folder; name a file.")
    if target.exists() and not overwrite:
        raise UsageError(f"{flag} {path} exists; give --overwrite to replace it.")


def check_distinct(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Refuse an output that is another output, or an input, under whatever name.

    Arguments:
        outputs, inputs: paths by what the user calls them, `None` where not given.

    Raises:
        UsageError: two are the same file.
    """
    written: dict[Any, str] = {}
    for name, path in outputs.items():
        other = written.setdefault(_identity(path), f"{name} {path}") if path else None
        if other not in (None, f"{name} {path}"):
            raise UsageError(f"{other} and {name} {path} are the same file; name two files.")
    for name, path in inputs.items():
        if path and _identity(path) in written:
            raise UsageError(
                f"{written[_identity(path)]} would replace {name} {path}; name another file."
            )


def _identity(path: str) -> Any:
    """Equal for all names of one file, be it there or not."""
    real = os.path.realpath(path)
    for known in (real, os.path.dirname(real)):
        with contextlib.suppress(OSError):
            found = os.stat(known)
            rest = os.path.normcase(os.path.relpath(real, known))
            return found.st_dev, found.st_ino, rest
    return real


def load_keras(path: pathlib.Path) -> Any:
    import keras

    from ocs_tf import layers  # noqa: F401  registers them with Keras

    try:
        return keras.models.load_model(path)
    except Exception as error:
        raise UsageError(f"{path} cannot be loaded as a Keras model: {one_line(error)}") from error


def check_data(data: str | None) -> None:
    """Refuse what can be seen to be wrong with `--data` without opening it."""
    if not data:
        return
    path = pathlib.Path(data)
    if path.is_dir():
        if not _images(path):
            kinds = ", ".join(_IMAGE_SUFFIXES)
            raise UsageError(f"--data folder {path} holds no images ({kinds}).")
        return
    existing(data, "--data", (".npy", ".npz"))


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES)


def read_data(
    data: str | None, preprocessing: str, model: Any
) -> Callable[[], Iterator[Any]] | None:
    """The inputs at `--data` as a callable that yields batches, by input name.

    Arguments:
        data: an .npy or .npz file or a folder of images; nothing gives `None`.
        preprocessing: one of `PREPROCESS`.
        model: gives the names and shapes of the inputs.

    Raises:
        UsageError: the data cannot be read, or do not suit the model.
    """
    if not data:
        return None
    preprocess = PREPROCESS[preprocessing][1]
    path = pathlib.Path(data)
    if path.is_dir():
        shape = _image_shape(model)
        return lambda: (preprocess(_read_image(image, shape)) for image in _images(path))
    arrays = _read_arrays(path, model)
    length = max(map(len, arrays.values()))

    def batches() -> Iterator[dict[str, Any]]:
        for start in range(0, length, _BATCH):
            yield {name: preprocess(a[start : start + _BATCH]) for name, a in arrays.items()}

    return batches


def _read_arrays(path: pathlib.Path, model: Any) -> dict[str, Any]:
    """One array with a batch axis for each input of `model`."""
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays = content if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:
        raise UsageError(f"--data {path} cannot be read: {one_line(error)}") from error
    names = [str(tensor.name) for tensor in model.inputs]
    if isinstance(arrays, np.ndarray):
        arrays = {path.name: arrays}
    if len(names) == 1 and len(arrays) == 1:
        arrays = dict(zip(names, arrays.values(), strict=True))
    if not set(names) <= set(arrays):
        raise UsageError(
            f"--data {path} holds {', '.join(arrays)}, but the model's inputs are"
            f" {', '.join(names)}."
        )
    return {
        str(tensor.name): array[None] if array.ndim < len(tensor.shape) else array
        for tensor in model.inputs
        for array in [arrays[str(tensor.name)]]
    }


def _image_shape(model: Any) -> tuple[int, int, int]:
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or None in shapes[0] or shapes[0][2] not in (1, 3):
        raise UsageError(
            "--data is a folder of images, but the model does not take one image of known size:"
            f" its inputs have the shapes {', '.join(map(str, shapes))}."
        )
    return shapes[0]


def _read_image(path: pathlib.Path, shape: tuple[int, int, int]) -> Any:
    """The image, float32 0..255, cut to the model's proportions and scaled to its size."""
    import keras
    import tensorflow as tf

    try:
        image = tf.io.decode_image(path.read_bytes(), shape[2], expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise UsageError(f"--data: {path} is not an image that can be read.") from error
    return np.asarray(keras.preprocessing.image.smart_resize(image, shape[:2]), np.float32)


def one_line(error: BaseException) -> str:
    """An error's message on one line, in the words of the command."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    for theirs, ours in _RENAMED:
        text = text.replace(theirs, ours)
    return text
