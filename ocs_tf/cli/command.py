"""The `ocs_tf` command: convert, report, export, compare, check, demo, doctor."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from ocs_tf._check import ACCELERATORS, CompilerError
from ocs_tf.cli.files import (
    PREPROCESS,
    Images,
    UsageError,
    check_data,
    check_distinct,
    check_output,
    existing,
    existing_model,
    load_keras,
    one_line,
    read_data,
)
from ocs_tf.config import CALIBRATION_SAMPLES, SWITCHES, SYNTHETIC, Config, Override
from ocs_tf.export.choices import ACTIVATIONS, ARRAY_SUFFIXES, IO_DTYPES, TARGETS
from ocs_tf.export.errors import VerificationError
from ocs_tf.options import options_of
from ocs_tf.process import held_stderr, open_stderr
from ocs_tf.runtime import NativeLibraryError
from ocs_tf.runtime.choices import RUNTIMES
from ocs_tf.writing import replacing

Flags = flags.FlagValues
Arguments = Sequence[str]

# What a user can mend; anything else is a mistake of ours.
_MISTAKES = (ValueError, OSError, VerificationError, NativeLibraryError, CompilerError)
_KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")

# Options of `Config` that are flags; `--override` stands for `overrides`.
_OPTIONS = {name: text for name, text in options_of(Config).items() if name != "overrides"}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
_SWITCHES_TOO = tuple(  # that have other values beside
    name for name, text in _OPTIONS.items() if name not in SWITCHES and "True" in text.values
)
_MAY_BE_NONE = tuple(name for name, text in _OPTIONS.items() if "None" in text.values)
_STRICT_TOO = " With --tflite, also if one would be computed in float32 in an int8 file."


@dataclasses.dataclass(frozen=True)
class Command:
    """One of the commands.

    Attributes:
        summary: what it does, one sentence.
        arguments: names of the positional arguments.
        example: arguments that work.
        define: declares its flags.
        run: does it, given the flags and the positional arguments.
    """

    summary: str
    arguments: tuple[str, ...]
    example: str
    define: Callable[[Flags], None]
    run: Callable[[Flags, Arguments], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's), and return its exit code.

    0: done. 2: a mistake of the user's, told in one line on stderr. An exception that escapes is a
    mistake of ours.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    open_stderr()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        command, values, positional = _parse(arguments)
        if command is None:
            return 0
        quiet = contextlib.nullcontext() if debug else held_stderr(_MISTAKES)
        with quiet, warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _show_warning
            command.run(values, positional)
    except _MISTAKES as error:
        if debug:
            raise
        print(f"ocs_tf: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: list[str]) -> tuple[Command | None, Flags, Arguments]:
    """The command, its flags and positional arguments; no command if help was asked for."""
    values = Flags()
    if not arguments:
        raise UsageError(f"which command? One of {', '.join(COMMANDS)}; see ocs_tf --help.")
    name, *rest = arguments
    if name in ("--help", "-h", "-help", "help"):
        print(_help())
        return None, values, ()
    if name == "--version":
        print(_version())
        return None, values, ()
    if name not in COMMANDS:
        raise UsageError(
            f"unknown command {name!r}; known: {', '.join(COMMANDS)}. See ocs_tf --help."
        )
    command = COMMANDS[name]
    command.define(values)
    flags.DEFINE_boolean(
        "debug", False, "show what libraries log, and where an error comes from", flag_values=values
    )
    if {"--help", "-h", "-help"} & set(rest):
        print(_command_help(name, command, values))
        return None, values, ()
    values.set_gnu_getopt(True)  # flags may stand behind positional arguments
    try:
        positional = values([name, *rest])[1:]
    except flags.Error as error:
        raise UsageError(f"{one_line(error)}; see ocs_tf {name} --help.") from error
    if len(positional) != len(command.arguments):
        wanted = (
            f"the arguments {' '.join(command.arguments)}" if command.arguments else "no arguments"
        )
        given = " ".join(positional) or "none"
        raise UsageError(f"{name} takes {wanted}; given: {given}.")
    return command, values, positional


# Flags -----------------------------------------------------------------------------------------


def _define_convert(values: Flags) -> None:
    for name, option in _OPTIONS.items():
        define = flags.DEFINE_boolean if name in SWITCHES else flags.DEFINE_string
        text = _plain(option.text()) + (_STRICT_TOO if name == "strict" else "")
        define(name, None, text, flag_values=values)
    flags.DEFINE_multi_string(
        "override",
        [],
        "other options for some layers, e.g. name=conv1,weight_bits=4; also regex=..., class=...;"
        " may be given several times",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "paper", False, "start from the configuration of the paper", flag_values=values
    )
    for name, text in (
        ("config", "start from the options in this .json file"),
        ("from_plan", "do what this plan .json says; takes no other options"),
        ("plan", "write the plan to this .json file"),
        ("output", "write the quantized model to this .keras file"),
        ("report", "write the report to this .json, .txt or .html file"),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    _define_data(values)
    flags.DEFINE_string("tflite", None, "write this .tflite file", flag_values=values)
    _define_target(values)


def _plain(text: str) -> str:
    """The text of an option as the command line writes its values."""
    return re.sub(
        r"\b(?:None|True|False)\b", lambda word: word[0].lower(), re.sub('[`"]', "", text)
    )


def _define_export(values: Flags) -> None:
    flags.DEFINE_string("output", None, "the .tflite file to write (required)", flag_values=values)
    _define_data(values)
    _define_target(values)
    flags.DEFINE_boolean(
        "strict", False, "fail if a layer would be computed in float32", flag_values=values
    )


def _define_data(values: Flags) -> None:
    flags.DEFINE_string(
        "data",
        None,
        "inputs: an .npy or .npz file, or a folder of images; 'synthetic' makes some from what the"
        " model's batch norms know of its training data",
        flag_values=values,
    )
    choices = "; ".join(f"{name}: {text}" for name, (text, _) in PREPROCESS.items())
    flags.DEFINE_enum("preprocess", "none", list(PREPROCESS), choices, flag_values=values)


def _define_target(values: Flags) -> None:
    flags.DEFINE_enum(
        "target",
        "int8",
        list(TARGETS),
        "int8: integers; int4: the same, with kernels of up to 4 bits in INT4; packed: kernels in"
        " exactly their bits, read by the delegate; float; auto: int8 where activations can be"
        " integers, else the smallest that this machine runs; smallest",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "activations",
        "auto",
        list(ACTIVATIONS),
        "with all targets but packed and float: int8, float, or dynamic (quantized by the runtime);"
        " auto: int8, but float with int4 if the model has no grids and there is no data",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "io",
        "int8",
        list(IO_DTYPES),
        "int8, uint8 or float32: the .tflite file's inputs and outputs",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "dynamic_batch", False, "leave the .tflite file's batch size open", flag_values=values
    )
    flags.DEFINE_boolean(
        "fused_dense",
        False,
        "with --target packed: multiply by large dense kernels as they are packed",
        flag_values=values,
    )
    flags.DEFINE_string(
        "c_array",
        None,
        "also write the .tflite file as a C++ array to this .cc, .cpp or .cxx file, with a header",
        flag_values=values,
    )
    flags.DEFINE_boolean("overwrite", False, "replace files that exist", flag_values=values)


def _define_compare(values: Flags) -> None:
    _define_data(values)
    flags.DEFINE_enum(
        "runtime",
        None,
        list(RUNTIMES),
        "what runs .tflite files: ai_edge_litert, tensorflow, or tflite_micro, which computes as"
        " microcontrollers do; default: the first of them that is installed",
        flag_values=values,
    )


def _define_check(values: Flags) -> None:
    flags.DEFINE_enum(
        "accelerator",
        "ethos-u55-128",
        list(ACCELERATORS),
        f"what Vela compiles for: {', '.join(ACCELERATORS)}",
        flag_values=values,
    )
    flags.DEFINE_string("report", None, "write the report to this .json file", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "replace files that exist", flag_values=values)


def _define_demo(values: Flags) -> None:
    flags.DEFINE_enum(
        "dataset",
        "digits",
        ["digits", "mnist", "cifar10"],
        "digits, mnist or cifar10; all but digits are downloaded",
        flag_values=values,
    )
    flags.DEFINE_string("output", "demo_output", "folder for the files", flag_values=values)
    flags.DEFINE_integer(
        "epochs", None, "of training; default: as many as suit the data", flag_values=values
    )


def _config(values: Flags) -> Config:
    """The `Config` that the flags describe."""
    options = {
        name: _value(name, values[name].value)
        for name in _OPTIONS
        if values[name].value is not None
    }
    overrides = tuple(_override(text) for text in values.override)
    if values.paper and values.config:
        raise UsageError("give --paper or --config, not both.")
    if values.config:
        base = _from_json(Config, values.config)
        both = (*overrides, *base.overrides)
        return dataclasses.replace(base, **options, overrides=both)
    return (Config.paper if values.paper else Config)(**options, overrides=overrides)


def _value(name: str, text: Any) -> Any:
    """A flag's text as the value of option `name`; `Config` decides whether it is allowed."""
    if text == "none" and name in _MAY_BE_NONE:
        return None
    if name in _SWITCHES_TOO and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError, TypeError):
            return text if isinstance(text, bool) else kind(text)
    return text


def _override(text: str) -> Override:
    """An `Override` from text like `name=conv1,weight_bits=4`."""
    known = ("name", "regex", "class", *(f.name for f in dataclasses.fields(Override)[1:]))
    # Only a comma before "key=" separates: regular expressions hold commas, too.
    items = [item.partition("=") for item in re.split(r",(?=\w+=)", text)]
    unknown = [key for key, _, _ in items if key not in known]
    if unknown:
        raise UsageError(
            f"--override {text!r} has the unknown key {unknown[0]!r}; known: {', '.join(known)}."
        )
    if len({key for key, _, _ in items}) < len(items):
        raise UsageError(f"--override {text!r} gives a key twice.")
    names = known[:3]
    try:
        return Override.from_dict(
            {key: value if key in names else _value(key, value) for key, _, value in items}
        )
    except ValueError as error:
        raise UsageError(f"--override {text!r}: {error}") from error


# Commands --------------------------------------------------------------------------------------


def _convert(values: Flags, arguments: Arguments) -> None:
    outputs = {
        "output": (".keras",),
        "tflite": (".tflite",),
        "plan": (".json",),
        "report": (".json", ".txt", ".html"),
    }
    if not any(values[name].value for name in outputs):
        raise UsageError("nothing to write; give --output, --tflite, --plan or --report.")
    for name, suffixes in outputs.items():
        check_output(f"--{name}", values[name].value, suffixes, values.overwrite)
    if values.c_array and not values.tflite:
        raise UsageError("--c_array needs --tflite, the file that it holds.")
    _check_arrays(values)
    check_distinct(
        {f"--{name}": values[name].value for name in outputs} | _arrays(values),
        {
            "the model": arguments[0],
            **{f"--{name}": values[name].value for name in ("data", "config", "from_plan")},
        },
    )
    source = existing_model(arguments[0], _KERAS_SUFFIXES)
    config = _config(values)
    if values.from_plan and config != Config():
        raise UsageError("--from_plan takes no other options; edit the plan instead.")
    check_data(values.data, values.preprocess)
    integers = values.target == "int8" and values.activations in ("auto", "int8")
    if values.tflite and integers and not (values.data or values.from_plan):
        raise UsageError(
            "--tflite with --target int8 needs --data, to measure activations; --data synthetic"
            " makes some."
        )

    import ocs_tf

    model = load_keras(source)
    samples = config.calibration_samples
    dataset = read_data(values.data, values.preprocess, model, samples)
    if values.from_plan:
        plan = _from_json(ocs_tf.Plan, values.from_plan)
        if plan.needs_data and dataset is None:
            raise UsageError(
                f"--from_plan {values.from_plan} has rounding={plan.rounding} and"
                f" bias_correction={plan.bias_correction}, which need --data."
            )
    else:
        plan = ocs_tf.plan(model, config, representative_dataset=dataset)
    quantized = ocs_tf.apply(
        model,
        plan,
        representative_dataset=dataset,
        calibration_samples=samples,
    )
    report = ocs_tf.report(quantized)
    print(report)
    for path, write in (
        (values.plan, plan.save),
        (values.report, report.save),
        (values.output, quantized.save),
    ):
        if path:
            with replacing(path, overwrite=values.overwrite) as temporary:
                write(temporary)
            print(f"Wrote {path} ({_size(path)}).")
    if values.tflite:
        _write_tflite(quantized, values.tflite, values, dataset)
    _tell_skipped(dataset)


def _report(values: Flags, arguments: Arguments) -> None:
    source = existing_model(arguments[0], _KERAS_SUFFIXES)

    import ocs_tf

    print(ocs_tf.report(load_keras(source)))


def _export(values: Flags, arguments: Arguments) -> None:
    if not values.output:
        raise UsageError("export needs --output, the .tflite file to write.")
    check_output("--output", values.output, (".tflite",), values.overwrite)
    _check_arrays(values)
    check_distinct(
        {"--output": values.output} | _arrays(values),
        {"the model": arguments[0], "--data": values.data},
    )
    source = existing_model(arguments[0], _KERAS_SUFFIXES)
    check_data(values.data, values.preprocess)
    model = load_keras(source)
    dataset: Any = SYNTHETIC
    if values.data != SYNTHETIC:
        dataset = read_data(values.data, values.preprocess, model, CALIBRATION_SAMPLES)
    _write_tflite(model, values.output, values, dataset)
    _tell_skipped(dataset)


def _arrays(values: Flags) -> dict[str, str]:
    """The files that `--c_array` writes, by what the user calls them."""
    if not values.c_array:
        return {}
    header = pathlib.Path(values.c_array).with_suffix(".h")
    return {"--c_array": values.c_array, "the header of --c_array": str(header)}


def _check_arrays(values: Flags) -> None:
    for (name, path), suffixes in zip(
        _arrays(values).items(), (ARRAY_SUFFIXES, (".h",)), strict=False
    ):
        check_output(name, path, suffixes, values.overwrite)


def _compare(values: Flags, arguments: Arguments) -> None:
    paths = [existing_model(path, (*_KERAS_SUFFIXES, ".tflite")) for path in arguments]
    if not values.data:
        raise UsageError("compare needs --data, the inputs to run both models on.")
    if values.data == SYNTHETIC:
        raise UsageError("compare needs real inputs as --data: synthetic ones resemble no class.")
    check_data(values.data)

    from ocs_tf._compare import compare

    reference, other = (
        _tflite_model(path, values.runtime)
        if path.suffix.lower() == ".tflite"
        else load_keras(path)
        for path in paths
    )
    dataset = read_data(values.data, values.preprocess, reference, None)
    results = compare(reference, other, dataset)
    print(f"{paths[1]} against {paths[0]}")
    print("\n".join(map(str, results)))
    _tell_skipped(dataset)


def _tflite_model(path: pathlib.Path, runtime: str | None) -> Any:
    from ocs_tf.runtime.model import TFLiteModel

    try:
        return TFLiteModel(path, runtime=runtime)
    except ImportError as error:
        raise UsageError(str(error)) from error


def _check(values: Flags, arguments: Arguments) -> None:
    path = existing(arguments[0], "file", (".tflite",))
    check_output("--report", values.report, (".json",), values.overwrite)

    import ocs_tf

    report = ocs_tf.check(path, values.accelerator)
    print(report)
    if values.report:
        report.save(values.report, overwrite=values.overwrite)
        print(f"Wrote {values.report}.")


def _demo(values: Flags, arguments: Arguments) -> None:
    from ocs_tf.cli.demo import run

    run(pathlib.Path(values.output), dataset=values.dataset, epochs=values.epochs)


def _doctor(values: Flags, arguments: Arguments) -> None:
    from ocs_tf.cli.doctor import diagnosis

    print(diagnosis())


COMMANDS: Mapping[str, Command] = {
    "convert": Command(
        "Quantize a trained Keras model without training (post-training quantization).",
        ("MODEL",),
        "model.keras --weight_bits 5 --data images.npy --output model_w5.keras",
        _define_convert,
        _convert,
    ),
    "report": Command(
        "Show bits, copies, error and size of each layer of a quantized model.",
        ("MODEL",),
        "model_w5.keras",
        lambda values: None,
        _report,
    ),
    "export": Command(
        "Write a quantized Keras model to a .tflite file.",
        ("MODEL",),
        "model_w5.keras --output model_w5.tflite",
        _define_export,
        _export,
    ),
    "compare": Command(
        "Show how close the outputs of two models (.keras or .tflite) are on the same inputs.",
        ("REFERENCE", "OTHER"),
        "model.keras model_w5.tflite --data images.npy",
        _define_compare,
        _compare,
    ),
    "check": Command(
        "Compile a .tflite file for an Arm Ethos-U NPU, and show operators, cycles and memory.",
        ("FILE",),
        "model_w5.tflite --accelerator ethos-u55-128",
        _define_check,
        _check,
    ),
    "demo": Command(
        "Train a small network, quantize it in several ways, and compare.",
        (),
        "",
        _define_demo,
        _demo,
    ),
    "doctor": Command(
        "Show versions, and what works on this machine: the delegate, runtimes, channels_first.",
        (),
        "",
        lambda values: None,
        _doctor,
    ),
}


# Files -----------------------------------------------------------------------------------------


def _from_json(kind: Any, path: str) -> Any:
    """The `Config` or `Plan` in a file."""
    content = existing(path, "file", (".json",)).read_bytes()
    try:
        return kind.from_json(content)
    except ValueError as error:
        raise UsageError(f"{path} does not hold a {kind.__name__}: {one_line(error)}") from error


def _size(path: str) -> str:
    return f"{pathlib.Path(path).stat().st_size:,} bytes"


def _write_tflite(model: Any, path: str, values: Flags, dataset: Any) -> None:
    import ocs_tf

    result = ocs_tf.export_tflite(
        model,
        path,
        target=values.target,
        representative_dataset=dataset,
        activations=values.activations,
        io_dtype=values.io,
        dynamic_batch=values.dynamic_batch,
        fused_dense=values.fused_dense,
        c_array=values.c_array,
        overwrite=values.overwrite,
        strict=bool(values.strict),
    )
    print(result)


# Messages --------------------------------------------------------------------------------------


def _tell_skipped(dataset: Any) -> None:
    text = dataset.describe_skipped() if isinstance(dataset, Images) else ""
    if text:
        print(f"ocs_tf: {text}", file=sys.stderr)


def _show_warning(message: Warning | str, *rest: Any, **options: Any) -> None:
    """A Python warning in one line, as errors are told."""
    print(f"ocs_tf: warning: {one_line(Warning(message))}", file=sys.stderr)


def _version() -> str:
    import ocs_tf

    return f"ocs_tf {ocs_tf.__version__}"


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = [f"  {name.ljust(width)}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Post-training quantization of Keras models: outlier channel splitting, GPTQ-style",
            "rounding, mixed precision, and export to integer TFLite.",
            "",
            "usage: ocs_tf COMMAND [ARGUMENTS] [--FLAGS]",
            "",
            *commands,
            "",
            "example: ocs_tf convert model.keras --weight_bits 5 --output model_w5.keras",
            "Flags of a command: ocs_tf COMMAND --help",
        ]
    )


def _command_help(name: str, command: Command, values: Flags) -> str:
    usage = " ".join(["ocs_tf", name, *command.arguments, "[--FLAGS]"])
    example = f"ocs_tf {name} {command.example}".strip()
    lines = [command.summary, "", f"usage:   {usage}", f"example: {example}", ""]
    return "\n".join([*lines, *(_flag_help(values[flag]) for flag in _in_order(values))])


def _in_order(values: Flags) -> list[str]:
    """Names of flags in the order of their definition."""
    return list(values.flag_values_dict())


def _flag_help(flag: Any) -> str:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    if flag.name in _OPTIONS:
        shown = f" (default {_plain(f'`{_DEFAULTS[flag.name]}`')})"
    else:
        shown = "" if flag.default in (None, False, []) else f" (default {flag.default})"
    text = re.sub(r"^<.*?>: |;\n.*", "", flag.help)  # what absl adds around it
    return textwrap.fill(
        f"{text}{shown}",
        width=100,
        initial_indent=f"  {name.ljust(26)} ",
        subsequent_indent=" " * 29,
    )
