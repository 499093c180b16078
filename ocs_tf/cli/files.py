"""Files named on the command line: models, data, outputs; checks and error messages."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ocs_tf.config import SYNTHETIC

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_MOST_UNREADABLE = 0.1  # of the images in a folder
_NAMED = 10  # files in one message, at most
_IN_MEMORY = 1 << 28  # bytes of decoded images; more are kept on the disk
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


def existing_model(path: str, suffixes: Sequence[str]) -> pathlib.Path:
    """`path` if it is a file with one of `suffixes`, or the folder of a SavedModel."""
    found = pathlib.Path(path)
    return found if (found / "saved_model.pb").is_file() else existing(path, "model", suffixes)


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
    from ocs_tf import load_model

    try:
        return load_model(path)
    except Exception as error:
        raise UsageError(f"{path} cannot be loaded as a Keras model: {one_line(error)}") from error


def check_data(data: str | None, preprocessing: str = "none") -> None:
    """Refuse what can be seen to be wrong with `--data` without opening it."""
    if not data:
        return
    if data == SYNTHETIC:
        if preprocessing != "none":
            raise UsageError(
                f"--preprocess {preprocessing} is for real data; --data synthetic makes inputs as"
                " the model takes them."
            )
        return
    path = pathlib.Path(data)
    if path.is_dir():
        if importlib.util.find_spec("PIL") is None:
            raise UsageError(
                f"--data {path} is a folder of images, which Pillow reads. It is not installed:"
                ' pip install "ocs_tf[images]"'
            )
        if not _images(path):
            kinds = ", ".join(_IMAGE_SUFFIXES)
            raise UsageError(f"--data folder {path} holds no images ({kinds}).")
        return
    existing(data, "--data", (".npy", ".npz"))


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files named like images in `folder` and its subfolders, in a fixed order.

    Hidden files and folders are left out; folders that cannot be read are among the results.
    """
    found: list[pathlib.Path] = []
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        found.append(pathlib.Path(error.filename))

    for place, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(f for f in folders if f[0] != ".")
        if real not in seen:
            names = [pathlib.Path(place, name) for name in files if name[0] != "."]
            found += [path for path in names if path.suffix.lower() in _IMAGE_SUFFIXES]
        seen.add(real)
    return sorted(found)


def read_data(
    data: str | None, preprocessing: str, model: Any, samples: int | None
) -> Callable[[], Any] | None:
    """The inputs at `--data` as a callable that gives samples, or batches by input name.

    Arguments:
        data: an .npy or .npz file, a folder of images, or "synthetic", made for `model` when it is
            first read; nothing gives `None`.
        preprocessing: one of `PREPROCESS`.
        model: gives the names and shapes of the inputs.
        samples: how many are going to be read, the first ones; `None` for all.

    Raises:
        UsageError: the data cannot be read, or do not suit the model.
    """
    if not data:
        return None
    if data == SYNTHETIC:
        from ocs_tf._synthesize import OnDemand, synthesize

        return OnDemand(functools.partial(synthesize, model))
    preprocess = PREPROCESS[preprocessing][1]
    path = pathlib.Path(data)
    if path.is_dir():
        return Images(path, model, preprocess, samples)
    arrays = _read_arrays(path, model)
    length = max(map(len, arrays.values()))

    return lambda: _Batches(arrays, length, preprocess)


class _Batches:
    """Arrays by name, preprocessed a batch at a time; it has a length, so that all are used."""

    def __init__(
        self, arrays: Mapping[str, Any], length: int, preprocess: Callable[[Any], Any]
    ) -> None:
        self._arrays, self._length, self._preprocess = arrays, length, preprocess

    def __len__(self) -> int:
        return -(-self._length // _BATCH)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = slice(index * _BATCH, (index + 1) * _BATCH)
        return {name: self._preprocess(array[rows]) for name, array in self._arrays.items()}


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
        str(tensor.name): array[None] if _is_sample(array, tensor) else array
        for tensor in model.inputs
        for array in [arrays[str(tensor.name)]]
    }


def _is_sample(array: Any, tensor: Any) -> bool:
    """Whether `array` has no batch axis; a last axis of size 1 may be missing instead."""
    lacks_last = tensor.shape[-1] == 1 and array.shape[-1:] != (1,)
    return array.ndim < len(tensor.shape) - bool(lacks_last and len(tensor.shape) > 1)


def _image_shape(model: Any) -> tuple[int, int, int]:
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or None in shapes[0] or shapes[0][2] not in (1, 3):
        raise UsageError(
            "--data is a folder of images, but the model does not take one image of known size:"
            f" its inputs have the shapes {', '.join(map(str, shapes))}."
        )
    return shapes[0]


class Images:
    """The images in a folder, as inputs of a model: a callable that yields them.

    Those that cannot be read are left out. Each is decoded once, if it is known how many are
    going to be read: they are kept in a temporary file.

    Arguments:
        folder: with images, in folders of classes, say.
        model: takes one image of known size.
        preprocess: of arrays 0..255, RGB.
        samples: how many are going to be read, the first ones; `None` for all.

    Raises:
        UsageError: `model` does not take images, or, while they are read, more than 10 % of them
            cannot be.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: Any,
        preprocess: Callable[[Any], Any],
        samples: int | None,
    ) -> None:
        self._shape = _image_shape(model)
        self._whole_numbers = np.dtype(model.inputs[0].dtype).kind in "iu"
        self._preprocess = preprocess
        self._paths = _images(folder)
        self._keep = samples or 0
        self._wanted = min(len(self._paths), samples or len(self._paths))
        self._kept: dict[pathlib.Path, int] = {}
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  closed with self
        self._skipped: dict[pathlib.Path, str] = {}

    def __call__(self) -> Iterator[Any]:
        for path in self._paths:
            if path not in self._skipped:
                try:
                    image = self._image(path)
                except Exception as error:  # Pillow raises whatever a broken file leads to
                    self._skip(path, error)
                else:
                    yield self._preprocess(image)

    def describe_skipped(self) -> str:
        """Which images were left out, and why; nothing if there are none."""
        if not self._skipped:
            return ""
        named = [f"{path} ({reason})" for path, reason in self._skipped.items()]
        more = f", and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        return (
            f"{len(named)} of {self._wanted} images of --data cannot be read:"
            f" {', '.join(named[:_NAMED])}{more}."
        )

    def _image(self, path: pathlib.Path) -> Any:
        if path in self._kept:
            size = 4 * math.prod(self._shape)
            self._file.seek(self._kept[path] * size)
            return np.frombuffer(self._file.read(size), np.float32).reshape(self._shape)
        image = _read_image(path, self._shape)
        if self._whole_numbers:
            image = np.rint(image)
        if len(self._kept) < self._keep:
            self._file.seek(0, os.SEEK_END)
            self._file.write(image.tobytes())
            self._kept[path] = len(self._kept)
        return image

    def _skip(self, path: pathlib.Path, error: Exception) -> None:
        text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        self._skipped[path] = text.replace(f" {str(path)!r}", "").rstrip(".")
        if len(self._skipped) > _MOST_UNREADABLE * self._wanted:
            raise UsageError(
                f"{self.describe_skipped()} That is more than {_MOST_UNREADABLE:.0%}."
            ) from error


def _read_image(path: pathlib.Path, shape: tuple[int, int, int]) -> Any:
    """The image, float32 0..255, cut to the model's proportions and scaled to its size."""
    import keras
    from PIL import Image, ImageOps

    if not path.is_file():  # to open a pipe would wait for somebody to write to it
        raise ValueError("not a regular file")
    with Image.open(path) as image:
        pixels = _pixels(ImageOps.exif_transpose(image), shape[2])
    return np.asarray(keras.preprocessing.image.smart_resize(pixels, shape[:2]), np.float32)


def _pixels(image: Any, channels: int) -> Any:
    """An image of any mode as float32 0..255 `[height, width, channels]`; alpha is left out."""
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image, np.float32)[..., None] / 257
        return np.repeat(grey, channels, axis=2)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32)
    return pixels.reshape(*pixels.shape[:2], channels)


def one_line(error: BaseException) -> str:
    """An error's message on one line, in the words of the command."""
    if isinstance(error.__cause__, UsageError):
        error = error.__cause__  # raised while the library read data
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    for theirs, ours in _RENAMED:
        text = text.replace(theirs, ours)
    return text
