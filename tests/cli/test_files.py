"""Folders of images as data of the command."""

from __future__ import annotations

import os
import pathlib
import socket
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ocs_tf.cli import files
from ocs_tf.cli.files import Images, UsageError, check_data, one_line, read_data
from ocs_tf.data import Source

COLORS = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
GREY = np.arange(96, dtype=np.uint8).reshape(8, 12)


def taking(*shape: int, dtype: str = "float32") -> keras.Model:
    inputs = keras.Input(shape, dtype=dtype, name="image")
    return keras.Model(inputs, keras.layers.Identity()(inputs))


def read(folder: pathlib.Path, *shape: int, samples: int | None = None) -> list[Any]:
    return list(Images(folder, taking(*shape), lambda x: x, samples)())


def fill(folder: pathlib.Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((8, 12, 3), i, np.uint8)).save(folder / f"{i:03}.png")


def values(images: list[Any]) -> list[float]:
    return [float(image.max()) for image in images]


@pytest.mark.parametrize("shape", [(8, 12), (5, 7), (16, 16)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_is_cropped_and_resized_as_keras_does(
    suffix: str, shape: tuple[int, int], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    smooth = np.asarray(Image.fromarray(COLORS[:2, :3]).resize((12, 8)))
    Image.fromarray(smooth).save(path)
    (image,) = read(tmp_path, *shape, 3)
    decoded = tf.io.decode_image(path.read_bytes(), 3)
    expected = keras.preprocessing.image.smart_resize(decoded, shape)
    assert image.dtype == np.float32
    # JPEG decoders differ a little.
    np.testing.assert_allclose(image, expected, atol=4 if suffix == "jpg" else 0)


SIXTEEN = GREY.astype(np.uint16) * 257
MODES: dict[str, tuple[Image.Image, str, np.ndarray]] = {
    "RGB": (Image.fromarray(COLORS), "png", COLORS),
    "webp": (Image.fromarray(COLORS), "webp", COLORS),
    "grey": (Image.fromarray(GREY), "png", GREY),
    "grey-alpha": (Image.fromarray(GREY).convert("LA"), "png", GREY),
    "alpha": (Image.fromarray(np.dstack([COLORS, GREY])), "png", COLORS),
    "palette": (Image.fromarray(GREY).convert("P"), "png", GREY),
    "one-bit": (Image.fromarray(GREY > 50), "png", np.where(GREY > 50, 255, 0)),
    "16-bit": (Image.fromarray(SIXTEEN), "png", GREY),
    "animated": (Image.fromarray(GREY), "gif", GREY),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_modes(mode: str, channels: int, tmp_path: pathlib.Path) -> None:
    image, suffix, expected = MODES[mode]
    more = {"save_all": True, "append_images": [image]} if mode == "animated" else {}
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else more))
    (image,) = read(tmp_path, 8, 12, channels)
    if expected.ndim == 3 and channels == 1:
        expected = expected @ [0.299, 0.587, 0.114]  # ITU-R 601-2
    if expected.ndim == 2:
        expected = np.repeat(expected[..., None], channels, axis=2)
    np.testing.assert_allclose(image, expected.reshape(8, 12, channels), atol=1)


def test_cmyk(tmp_path: pathlib.Path) -> None:
    Image.new("CMYK", (12, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    (image,) = read(tmp_path, 8, 12, 3)
    np.testing.assert_allclose(image.mean((0, 1)), [255, 0, 0], atol=4)


def test_orientation(tmp_path: pathlib.Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(COLORS).save(tmp_path / "a.png", exif=exif)
    (image,) = read(tmp_path, 12, 8, 3)
    np.testing.assert_array_equal(image, np.rot90(COLORS, -1))


def test_order_and_folders(tmp_path: pathlib.Path) -> None:
    """Nested folders by name, one like an image too; hidden ones and other files not at all."""
    for i, name in enumerate(["b", "a", "c.png/d", ".hidden"]):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 12, 3), i + 1, np.uint8)).save(tmp_path / name / "x.PNG")
    (tmp_path / "a" / "._x.png").write_bytes(b"of a file manager")
    (tmp_path / "a" / "labels.csv").write_text("x,1")
    assert values(read(tmp_path, 8, 12, 3)) == [2, 1, 3]


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
def test_what_only_looks_like_a_picture(tmp_path: pathlib.Path) -> None:
    fill(tmp_path / "real", 40)
    (tmp_path / "real" / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "again").symlink_to(tmp_path / "real", target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    with socket.socket(socket.AF_UNIX) as server:
        place = os.getcwd()
        os.chdir(tmp_path)  # paths of sockets must be short
        try:
            server.bind("socket.png")
        finally:
            os.chdir(place)
        images = Images(tmp_path, taking(8, 12, 3), lambda x: x, None)
        assert values(list(images())) == list(range(40))
    text = images.describe_skipped()
    assert text.startswith("3 of 43 images of --data cannot be read:")
    for name in ("pipe.png", "broken.png", "socket.png"):
        assert f"{name} (not a regular file)" in text


def test_broken_pictures_are_skipped_and_named(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, 40)
    assert Images(tmp_path, taking(8, 12, 3), lambda x: x, None).describe_skipped() == ""
    (tmp_path / "003.png").write_bytes(b"no image")
    whole = (tmp_path / "004.png").read_bytes()
    (tmp_path / "004.png").write_bytes(whole[:50])
    (tmp_path / "005.png").write_bytes(b"")
    images = Images(tmp_path, taking(8, 12, 3), lambda x: x, 100)
    for _ in range(2):
        assert values(list(images())) == [i for i in range(40) if i not in (3, 4, 5)]
        assert images.describe_skipped().startswith("3 of 40 images of --data cannot be read:")
        assert all(f"00{i}.png (" in images.describe_skipped() for i in (3, 4, 5))


def test_too_many_broken_pictures(tmp_path: pathlib.Path) -> None:
    """Told in the words of the command, also where the library reads them."""
    fill(tmp_path, 10)
    data = read_data(str(tmp_path), "0..1", taking(8, 12, 3), None)
    (tmp_path / "008.png").write_bytes(b"no image")
    assert data is not None
    assert len(list(data())) == 9
    (tmp_path / "009.png").write_bytes(b"no image")
    with pytest.raises(ValueError) as caught:
        list(Source(data).batches(taking(8, 12, 3)))
    assert one_line(caught.value).startswith("2 of 10 images of --data cannot be read:")
    assert one_line(caught.value).endswith("That is more than 10%.")


def test_each_is_decoded_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 12)
    decoded: list[str] = []
    read_image = files._read_image

    def counting(path: pathlib.Path, shape: tuple[int, int, int]) -> Any:
        decoded.append(path.name)
        return read_image(path, shape)

    monkeypatch.setattr(files, "_read_image", counting)
    data = read_data(str(tmp_path), "none", taking(8, 12, 3), 10)
    source = Source(data)
    first = source.batches(taking(8, 12, 3), batch_size=4, limit=10)
    again = np.concatenate([part for (part,) in source.batches(taking(8, 12, 3), limit=10)])
    np.testing.assert_array_equal(np.concatenate([part for (part,) in first]), again)
    assert decoded == [f"{i:03}.png" for i in range(10)]


def test_models_of_whole_numbers(tmp_path: pathlib.Path) -> None:
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    model = taking(5, 5, 3, dtype="uint8")
    ((image,),) = Source(read_data(str(tmp_path), "none", model, 1)).batches(model)
    (exact,) = read(tmp_path, 5, 5, 3)
    np.testing.assert_array_equal(image[0], np.rint(exact))


def test_without_pillow(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 1)
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'Pillow .*pip install "ocs_tf\[images\]"$'):
        check_data(str(tmp_path))


def test_an_array_of_numbers(tmp_path: pathlib.Path) -> None:
    """A last axis of size 1 may be missing."""
    np.save(tmp_path / "a.npy", np.arange(5.0))
    model = taking(1)
    ((batch,),) = Source(read_data(str(tmp_path / "a.npy"), "none", model, None)).batches(model)
    np.testing.assert_array_equal(batch, np.arange(5.0)[:, None])
