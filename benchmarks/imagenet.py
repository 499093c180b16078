"""The paper's Tables 2, 3 and 4 on your copy of ImageNet, its numbers beside yours.

    python -m benchmarks.imagenet --network resnet50 --pictures val --calibration train
    python -m benchmarks.imagenet --network my.keras --preprocess torch --pictures val ...

`--network` is one of `keras.applications` (see `NETWORKS`; `--weights` names a file, else Keras
downloads them), or any `.keras` file. `--pictures` holds a folder per class, whose sorted names are
the classes 0, 1, ..., as in Keras; if they are not all there, or in another order, `--labels` is a
text file of lines "folder index". `--calibration` holds the pictures that ranges and codes are
chosen on, 512 of them as in the paper: never those that are scored.

Rows go to `imagenet_NETWORK.json` one by one; what is in there already is not measured again.
`imagenet_NETWORK.md` is made from it at the end. Without a GPU, a row of 50,000 pictures takes
hours; `--limit` takes a random part of them, always the same.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from tqdm import tqdm

import ocs_tf
from benchmarks import common, paper

BITS = (8, 7, 6, 5, 4)
BATCH = 32
CALIBRATION_PICTURES = 512
SUFFIXES = (".jpeg", ".jpg", ".png", ".gif")
MODES = ("caffe", "tf", "torch", "none")
_BEST = "best"


# Networks ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Form:
    """How a picture becomes an input.

    Attributes:
        size: height and width of the input.
        resize: length of a picture's shorter side before `size` by `size` pixels are cut out of
            its middle.
        mode: of `keras.applications.imagenet_utils.preprocess_input`; `"none"`: 0..255.
    """

    size: int
    resize: int
    mode: str

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"`preprocess` (={self.mode!r}) must be one of {', '.join(MODES)}.")
        if not 1 <= self.size <= self.resize:
            raise ValueError(
                f"`resize` (={self.resize}) must be at least `input_size` (={self.size}), and that"
                " at least 1."
            )

    def read(self, path: tf.Tensor) -> tf.Tensor:
        """The picture in a file, uint8 `[size, size, 3]`."""
        # It reads PNG and GIF, too. Its default is fast, and some levels off Pillow's pictures.
        image = tf.io.decode_jpeg(tf.io.read_file(path), 3, dct_method="INTEGER_ACCURATE")
        sides = tf.shape(image)[:2]
        sides = sides * self.resize // tf.reduce_min(sides)
        image = tf.image.resize(image, sides, antialias=True)
        top, left = (tf.cast(tf.round((sides[i] - self.size) / 2), tf.int32) for i in (0, 1))
        image = image[top : top + self.size, left : left + self.size]
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    def inputs(self, images: np.ndarray) -> np.ndarray:
        """What the network takes for uint8 pictures, float32."""
        values = images.astype(np.float32)
        if self.mode == "none":
            return values
        return keras.applications.imagenet_utils.preprocess_input(
            values, data_format="channels_last", mode=self.mode
        )


# Names in `keras.applications`, and the pictures that their weights were trained on.
NETWORKS = {
    "resnet50": ("ResNet50", Form(224, 256, "caffe")),
    "densenet121": ("DenseNet121", Form(224, 256, "torch")),
    "inception_v3": ("InceptionV3", Form(299, 342, "tf")),
    "vgg16": ("VGG16", Form(224, 256, "caffe")),
}


def load_network(
    network: str,
    weights: str = "imagenet",
    input_size: int | None = None,
    resize: int | None = None,
    preprocess: str | None = None,
) -> tuple[str, keras.Model, Form]:
    """A network by name or from a file: its name in results, the model, and what it takes.

    Arguments:
        network: a name in `NETWORKS`, or the path of a `.keras` file.
        weights: for the former, of a file of weights, or `"imagenet"`.
        input_size, resize, preprocess: see `Form`. For a name, they replace what it has; for a
            file, `preprocess` must be given, `input_size` is the model's, and `resize` is 8/7 of
            it.

    Raises:
        ValueError: there is no such network, or an option does not suit it.
    """
    path = pathlib.Path(network)
    if network in NETWORKS:
        class_name, form = NETWORKS[network]
        form = Form(input_size or form.size, resize or form.resize, preprocess or form.mode)
        model = getattr(keras.applications, class_name)(weights=weights)
    elif path.suffix == ".keras" and path.is_file():
        if preprocess is None:
            raise ValueError(
                f"`preprocess` must be given for {path.name}: one of {', '.join(MODES)}."
            )
        model = keras.models.load_model(path, compile=False)
        size = input_size or model.input_shape[1]
        if size is None:
            raise ValueError(f"`input_size` must be given: {path.name} takes pictures of any size.")
        form = Form(size, resize or round(size * 8 / 7), preprocess)
    else:
        raise ValueError(
            f"`network` (={network!r}) must be one of {', '.join(NETWORKS)}, or the path of a"
            " .keras file."
        )
    wanted = tuple(model.input_shape[1:])
    if any(w not in (None, got) for w, got in zip(wanted, (form.size, form.size, 3), strict=True)):
        raise ValueError(f"`input_size` (={form.size}): the network takes pictures of {wanted}.")
    return path.stem, model, form


# Pictures ----------------------------------------------------------------------------------------


class Pictures:
    """Files of pictures and their classes, read batch by batch."""

    def __init__(self, files: Sequence[pathlib.Path], labels: Sequence[int], form: Form) -> None:
        self.files, self.labels, self.form = list(files), np.asarray(labels), form
        self._images = tf.data.Dataset.from_tensor_slices([str(file) for file in files]).map(
            form.read, num_parallel_calls=tf.data.AUTOTUNE
        )

    def __len__(self) -> int:
        return len(self.files)

    def keep(self) -> None:
        """Read each file once only: 150 KB of memory a picture of 224 x 224."""
        self._images = self._images.cache()

    def batches(self, size: int = BATCH) -> Iterator[np.ndarray]:
        """Inputs of the network, in the order of `files`."""
        for images in self._images.batch(size).prefetch(2).as_numpy_iterator():
            yield self.form.inputs(images)


def find(
    folder: pathlib.Path,
    form: Form,
    classes: int,
    labels: pathlib.Path | None = None,
    limit: int | None = None,
) -> Pictures:
    """The pictures to score: those in the folders of classes in `folder`.

    Arguments:
        folder: holds a folder per class.
        form: what the network takes.
        classes: how many the network knows.
        labels: a file of lines "folder index"; without it, sorted folders are 0, 1, ...
        limit: take so many of them at random, always the same; `None`: all.

    Raises:
        ValueError: no pictures, or folders that do not fit the classes.
    """
    _check_count("limit", limit)
    folders = sorted(path for path in _existing(folder, "pictures").iterdir() if path.is_dir())
    if labels is not None:
        index = read_labels(labels, classes)
        missing = [path.name for path in folders if path.name not in index]
        if missing:
            raise ValueError(f"`labels` (={labels}) has no line for the folder {missing[0]!r}.")
    elif len(folders) == classes:
        index = {path.name: i for i, path in enumerate(folders)}
    else:
        raise ValueError(
            f"`pictures` (={folder}) holds {len(folders)} folders, but the network knows {classes}"
            " classes; give `labels`, a file of lines 'folder index'."
        )
    found = [(file, index[path.name]) for path in folders for file in _pictures_in(path)]
    if not found:
        raise ValueError(f"`pictures` (={folder}) holds no pictures ({', '.join(SUFFIXES)}).")
    files, numbers = zip(*_sample(found, limit), strict=True)
    return Pictures(files, numbers, form)


def find_calibration(
    folder: pathlib.Path, scored: Pictures, count: int = CALIBRATION_PICTURES
) -> Pictures:
    """Pictures to calibrate on: `count` of those anywhere in `folder`, at random.

    Raises:
        ValueError: no pictures, or one that is scored as well.
    """
    _check_count("calibration_pictures", count)
    files = _sample(_pictures_in(_existing(folder, "calibration")), count)
    if not files:
        raise ValueError(f"`calibration` (={folder}) holds no pictures ({', '.join(SUFFIXES)}).")
    known: dict[tuple[str, int], pathlib.Path] = {_mark(file): file for file in scored.files}
    for file in files:
        twin = known.get(_mark(file))
        if twin and (twin.samefile(file) or twin.read_bytes() == file.read_bytes()):
            raise ValueError(
                f"`calibration` (={folder}) holds {file.name}, which is scored as well; nothing may"
                " be chosen on the pictures that are scored."
            )
    return Pictures(files, [-1] * len(files), scored.form)


def read_labels(path: pathlib.Path, classes: int) -> dict[str, int]:
    """Classes by folder, from a file of lines "folder index".

    Raises:
        ValueError: a line is malformed, or an index is not one of the network's.
    """
    index = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            *name, value = line.rsplit(maxsplit=1)
            if not name or not value.isdecimal() or int(value) >= classes:
                raise ValueError(
                    f"`labels` (={path}), line {number} (={line!r}) must be a folder and an index"
                    f" in 0..{classes - 1}."
                )
            index[name[0].strip()] = int(value)
    return index


def _existing(folder: pathlib.Path, name: str) -> pathlib.Path:
    if not folder.is_dir():
        raise ValueError(f"`{name}` (={folder}) must be a folder.")
    return folder


def _pictures_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _sample(items: list[Any], count: int | None) -> list[Any]:
    """`count` of `items` in a random order that is always the same; `None`: all as they are."""
    if count is None:
        return items
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))[:count]]


def _mark(file: pathlib.Path) -> tuple[str, int]:
    return file.name, file.stat().st_size


def _check_count(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"`{name}` (={value}) must be at least 1.")


# Tables ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Column:
    """Options of `Config`, or of `Config.paper`; `"best"` is the clip method that was best."""

    name: str
    options: Mapping[str, Any]
    of_paper: bool = True


@dataclasses.dataclass(frozen=True)
class Line:
    """Options that a line has in common, and the batch size it is scored with."""

    name: str
    options: Mapping[str, Any]
    batch: int = BATCH


@dataclasses.dataclass(frozen=True)
class Table:
    title: str
    lines: Sequence[Line]
    columns: Sequence[Column]

    def available(self) -> Table:
        """The table without the columns whose options this version does not have."""
        known = {field.name for field in dataclasses.fields(ocs_tf.Config)}
        columns = [column for column in self.columns if known.issuperset(column.options)]
        return dataclasses.replace(self, columns=columns)

    def missing(self) -> list[str]:
        """Names of the other columns."""
        available = self.available().columns
        return [column.name for column in self.columns if column not in available]


def _activation_ocs(name: str, ratio: float, split: str) -> Column:
    return Column(name, {"activation_expand_ratio": ratio, "activation_split": split})


TABLES = {
    2: Table(
        "Table 2: weight bits, activations in 8 bits",
        [Line(f"W{b}", {"weight_bits": b, "activation_bits": 8}) for b in BITS],
        [
            *(Column(clip, {"weight_clip": clip}) for clip in paper.CLIPS),
            *(
                Column(name, {"expand_ratio": ratio})
                for name, ratio in zip(paper.OCS, paper.RATIOS, strict=True)
            ),
            *(
                Column(name, {"expand_ratio": ratio, "weight_clip": _BEST})
                for name, ratio in zip(paper.OCS_CLIP, paper.RATIOS, strict=True)
            ),
            Column("ocs_tf, r=0", {"expand_ratio": 0.0}, of_paper=False),
            Column("ocs_tf", {}, of_paper=False),
        ],
    ),
    3: Table(
        "Table 3: activation bits, weights in 8 bits",
        [Line(f"A{b}", {"weight_bits": 8, "activation_bits": b}) for b in BITS],
        [
            *(Column(clip, {"activation_clip": clip}) for clip in paper.CLIPS),
            *(
                _activation_ocs(name, ratio, "count")
                for name, ratio in zip(paper.OCS, paper.RATIOS, strict=True)
            ),
            *(_activation_ocs(f"OCS r={r:g}, maximum", r, "maximum") for r in paper.RATIOS),
            Column("ocs_tf", {}, of_paper=False),
            Column("ocs_tf, mse", {"activation_clip": "mse"}, of_paper=False),
        ],
    ),
    4: Table(
        "Table 4: activations in 6 bits, split anew for each batch, r = 0.02",
        [Line(f"batch {n}", {"weight_bits": 8, "activation_bits": 6}, n) for n in paper.BATCHES],
        [_activation_ocs("oracle", 0.02, "oracle")],
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures; `table=0` is the float network."""

    network: str
    pictures: int
    calibration: int
    table: int = 0
    line: str = ""
    column: str = "float"


@dataclasses.dataclass(frozen=True)
class Row(Case):
    """A measured case.

    Attributes:
        top1: accuracy in percent.
        agreement: share of pictures that get the float network's label, in percent.
        clip: the method that `"best"` stood for.
        seconds: to convert and to score.
    """

    top1: float = math.nan
    agreement: float = math.nan
    clip: str = ""
    seconds: float = 0.0


class Results(common.Results[Case, Row]):
    """Measured rows, kept in a JSON file."""

    def __init__(self, path: pathlib.Path, resume: bool = True, **head: Any) -> None:
        super().__init__(path, Case, Row, resume, **head)

    def best_clip(self, case: Case) -> str:
        """The clip method of the best top-1 on the line of `case`, without splitting.

        As in the paper, it is the best on the pictures that are scored.
        """
        rows = [self[dataclasses.replace(case, column=clip)] for clip in paper.CLIPS]
        return max(rows, key=lambda row: row.top1).column


def cases(float_case: Case, tables: Iterable[int], bits: Iterable[int] = BITS) -> list[Case]:
    """The rows of these tables, and of these bits of them.

    Raises:
        ValueError: a table or a number of bits that the paper does not have.
    """
    tables, bits = list(tables), list(bits)
    for name, values, choices in (("tables", tables, tuple(TABLES)), ("bits", bits, BITS)):
        for value in values:
            if value not in choices:
                raise ValueError(
                    f"`{name}` (={value}) must be among {', '.join(map(str, choices))}."
                )
    lines = {f"{letter}{b}" for letter in "WA" for b in bits}
    return [float_case] + [
        dataclasses.replace(float_case, table=table, line=line.name, column=column.name)
        for table in tables
        for line in TABLES[table].lines
        if line.name in lines or table == 4
        for column in TABLES[table].available().columns
    ]


def config(case: Case, clip: str = "") -> ocs_tf.Config:
    """The options of a case; `clip` replaces `"best"`."""
    table = TABLES[case.table]
    line = next(line for line in table.lines if line.name == case.line)
    column = next(column for column in table.columns if column.name == case.column)
    options = {**line.options, **column.options}
    options = {name: clip if value == _BEST else value for name, value in options.items()}
    return ocs_tf.Config.paper(**options) if column.of_paper else ocs_tf.Config(**options)


class Scorer:
    """Measures cases of one network."""

    def __init__(self, model: keras.Model, pictures: Pictures, calibration: Pictures) -> None:
        self.model, self.pictures = model, pictures
        self.calibration = np.concatenate(list(calibration.batches()))
        self.labels = self._labels(model, BATCH)

    def measure(self, case: Case, results: Results) -> Row:
        if not case.table:
            return self._row(case, self.labels)
        start = time.perf_counter()
        table = TABLES[case.table]
        column = next(column for column in table.columns if column.name == case.column)
        clip = results.best_clip(case) if _BEST in column.options.values() else ""
        model = ocs_tf.convert(
            self.model,
            config(case, clip),
            representative_dataset=self.calibration,
            verbose=False,
        )
        batch = next(line.batch for line in table.lines if line.name == case.line)
        labels = self._labels(model, batch)
        seconds = round(time.perf_counter() - start, 1)
        return dataclasses.replace(self._row(case, labels), clip=clip, seconds=seconds)

    def _labels(self, model: keras.Model, batch: int) -> np.ndarray:
        count = math.ceil(len(self.pictures) / batch)
        batches = tqdm(self.pictures.batches(batch), "batches", count, leave=False)
        outputs = (np.asarray(model.predict_on_batch(inputs)) for inputs in batches)
        return np.concatenate([out.reshape(len(out), -1).argmax(1) for out in outputs])

    def _row(self, case: Case, labels: np.ndarray) -> Row:
        return Row(
            **dataclasses.asdict(case),
            top1=round(100 * float(np.mean(labels == self.pictures.labels)), 2),
            agreement=round(100 * float(np.mean(labels == self.labels)), 2),
        )


# The report --------------------------------------------------------------------------------------

NOTES = """\
Top-1 in percent; in brackets, the share of pictures that get the float network's label. Every score
is that of the Keras model which `ocs_tf.convert` returns. Columns named as in the paper are
`Config.paper`; "best clip" is the method that was best on these pictures without splitting, as in
the paper. Those named `ocs_tf` are `Config` as it is by default, with the calibration pictures.
"""
COMPARED = """\
Lines named *paper* are those of Zhao et al., ICML 2019: torchvision's weights, 50,000 pictures. Its
networks are not quite these, so compare what is lost against float. Its VGG-16 has batch norm;
Keras's has none.
"""


def markdown(results: Results) -> str:
    """The whole report."""
    parts = ["# ImageNet, table by table", "Made by `python -m benchmarks.imagenet`.", NOTES]
    rows = list(results)
    for case in dict.fromkeys((r.network, r.pictures, r.calibration) for r in rows):
        own = [row for row in rows if (row.network, row.pictures, row.calibration) == case]
        parts += _network(own)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _network(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    parts = [
        f"## {first.network}, {first.pictures:,} pictures",
        f"Calibrated on {first.calibration:,} pictures.",
    ]
    if first.network in paper.FLOAT:
        parts.append(COMPARED)
    floats = [f"{row.top1:.1f}" for row in rows if not row.table]
    known = paper.FLOAT.get(first.network)
    if floats:
        parts.append(f"Float: {floats[0]}" + (f" (paper: {known})." if known else "."))
    for number, table in TABLES.items():
        found = [row for row in rows if row.table == number]
        if found:
            parts += [f"### {table.title}", _table(number, table, found)]
        missing = [name for name in table.missing() if all(row.column != name for row in found)]
        if missing:
            parts.append(
                f"This version of `ocs_tf` has no options for these columns of Table {number}:"
                f" {'; '.join(missing)}."
            )
    return parts


def _table(number: int, table: Table, rows: Sequence[Row]) -> str:
    published = paper.TABLES[number].get(rows[0].network, {})
    columns = [c.name for c in table.columns if any(row.column == c.name for row in rows)]
    cells = {(row.line, row.column): row for row in rows}
    lines = []
    for name in (line.name for line in table.lines):
        measured = [cells.get((name, column)) for column in columns]
        if any(measured):
            texts = [f"{row.top1:.1f} ({row.agreement:.1f})" if row else "" for row in measured]
            lines.append([name, *texts])
            if name in published:
                lines.append(
                    [f"{name}, paper", *(str(published[name].get(c, "")) for c in columns)]
                )
    return common.markdown_table(["", *columns], lines)


def benchmark(
    network: str,
    pictures: pathlib.Path,
    calibration: pathlib.Path,
    folder: pathlib.Path = common.RESULTS,
    *,
    weights: str = "imagenet",
    input_size: int | None = None,
    resize: int | None = None,
    preprocess: str | None = None,
    labels: pathlib.Path | None = None,
    limit: int | None = None,
    calibration_pictures: int = CALIBRATION_PICTURES,
    tables: Sequence[int] = tuple(TABLES),
    bits: Sequence[int] = BITS,
    keep_in_memory: bool = False,
    resume: bool = True,
) -> Results:
    """Measure what is missing, and write `imagenet_NETWORK.json` and `.md` to `folder`.

    Arguments are those of `load_network`, `find`, `find_calibration` and `cases`.

    Raises:
        ValueError: as those do, before anything is measured.
    """
    name, model, form = load_network(network, weights, input_size, resize, preprocess)
    scored = find(pictures, form, math.prod(model.output_shape[1:]), labels, limit)
    calibrated = find_calibration(calibration, scored, calibration_pictures)
    todo = cases(Case(name, len(scored), len(calibrated)), tables, bits)
    if keep_in_memory:
        scored.keep()
    path = folder / f"imagenet_{name}.json"
    results = Results(path, resume, machine=common.machine())
    scorer = functools.cache(lambda: Scorer(model, scored, calibrated))
    try:
        results.fill(todo, lambda case: scorer().measure(case, results), name)
    finally:  # an interrupted run reports what it has
        common.save_text(path.with_suffix(".md"), markdown(results))
    return results


def main() -> None:
    network = flags.DEFINE_string(
        "network",
        None,
        f"One of {', '.join(NETWORKS)}, or the path of a .keras file.",
        required=True,
    )
    pictures = flags.DEFINE_string("pictures", None, "Pictures to score, by class.", required=True)
    calibration = flags.DEFINE_string("calibration", None, "Other pictures.", required=True)
    weights = flags.DEFINE_string("weights", "imagenet", "File of the named network's weights.")
    size = flags.DEFINE_integer("input_size", None, "Of the network, if its file does not say.")
    resize = flags.DEFINE_integer("resize", None, "Shorter side of pictures before they are cut.")
    preprocess = flags.DEFINE_enum("preprocess", None, MODES, "What pixels become, as in Keras.")
    labels = flags.DEFINE_string("labels", None, "File of lines 'folder index'.")
    limit = flags.DEFINE_integer("limit", None, "Score so many pictures, chosen at random.")
    count = flags.DEFINE_integer("calibration_pictures", CALIBRATION_PICTURES, "So many of them.")
    tables = flags.DEFINE_list("tables", list(map(str, TABLES)), "Of the paper.")
    bits = flags.DEFINE_list("bits", list(map(str, BITS)), "Lines of tables 2 and 3.")
    memory = flags.DEFINE_bool("keep_in_memory", False, "Read pictures from the disk only once.")
    resume = flags.DEFINE_bool("resume", True, "Keep the rows that were measured before.")
    folder = flags.DEFINE_string("output_dir", str(common.RESULTS), "Folder of the results.")

    def run() -> None:
        benchmark(
            network.value,
            pathlib.Path(pictures.value),
            pathlib.Path(calibration.value),
            pathlib.Path(folder.value),
            weights=weights.value,
            input_size=size.value,
            resize=resize.value,
            preprocess=preprocess.value,
            labels=pathlib.Path(labels.value) if labels.value else None,
            limit=limit.value,
            calibration_pictures=count.value,
            tables=[int(table) for table in tables.value],
            bits=[int(b) for b in bits.value],
            keep_in_memory=memory.value,
            resume=resume.value,
        )

    common.run(run)


if __name__ == "__main__":
    main()
