"""Random changes to what belongs to our operators in `.tflite` files, run in both TFLite runtimes.

    python tests/runtime/fuzz_files.py --seconds 60 --seed 0

A file is given by the seed and its number. Files are run in a child process, many in a row; if it
ends by itself or falls silent, the file that it was running is to blame. A crash is the runtime's
own only if the same graph crashes without our operators, too: their outputs are made constants, and
the delegate is not loaded. All other crashes are failures, and the exit status is 1.

The library is built with AddressSanitizer and UBSan, unless `--library` names one.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import model_builder as mb
import sanitized

RUNTIMES = {"litert": "ai_edge_litert.interpreter", "tf.lite": "tensorflow.lite.python.interpreter"}
NAMES = (b"OcsDequantize", b"OcsFullyConnected", b"OcsQuantize", b"OcsFakeQuantize")
LARGEST = 1 << 22  # elements of a tensor; memory is not what is tested
SECONDS_PER_FILE = 120.0

Change = Callable[[np.random.Generator, Any, Any], None]


# Making files.


def valid_file(rng: np.random.Generator) -> bytes:
    """A file that runs."""
    bits, scaling, copies = rng.integers(2, 9), rng.integers(0, 2), rng.integers(0, 4)
    kind = rng.integers(0, 5)
    if kind == 0:
        return mb.network(bits, scaling, copies)
    if kind == 1:
        return mb.only_weights(mb.PackedKernel.random(rng, (3, 2, 2, 5), bits, scaling, copies))
    if kind == 2:
        kernel = mb.PackedKernel.random(rng, (6, 37), bits, scaling, copies)
        return mb.connected(kernel, None if copies else np.ones(6, np.float32), 2)
    if kind == 3:
        return mb.chain(mb.PackedKernel.random(rng, (4, 6), bits, mb.TENSOR))
    inv_scale = rng.uniform(1, 40, 5 + copies).astype(np.float32)
    name = str(rng.choice(["OcsQuantize", "OcsFakeQuantize"]))
    channels = rng.integers(0, 5, copies).astype(np.int32) if copies else None
    return mb.rounding(name, 5, inv_scale, 1 / inv_scale, (-8, 7, 1), channels)


def number(rng: np.random.Generator) -> int:
    """Numbers that programs stumble over."""
    special = (0, 1, -1, 2, 3, 8, 9, 128, 255, 256, 46341, 2**16, 2**30, 2**31 - 1, -(2**31))
    return int(rng.choice(special) if rng.integers(0, 2) else rng.integers(-4, 40))


def change_type(rng: np.random.Generator, _: Any, tensor: Any) -> None:
    tensor.type = int(rng.integers(0, 12))


def change_shape(rng: np.random.Generator, _: Any, tensor: Any) -> None:
    shape = list(tensor.shape)
    if shape and rng.integers(0, 2):
        shape[rng.integers(0, len(shape))] = number(rng)
    elif rng.integers(0, 2):
        shape.append(number(rng))
    else:
        shape = shape[: rng.integers(0, len(shape) + 1)]
    if abs(int(np.prod(np.array(shape, object)))) <= LARGEST:
        tensor.shape = shape


def change_buffer(rng: np.random.Generator, model: Any, tensor: Any) -> None:
    kind = rng.integers(0, 3)
    if kind == 0:
        tensor.buffer = 0
    elif kind == 1:
        tensor.buffer = int(rng.integers(0, len(model.buffers)))
    else:
        size = int(rng.integers(0, 64))
        put(model, tensor, rng.integers(0, 256, size).astype(np.uint8))


def change_data(rng: np.random.Generator, model: Any, tensor: Any) -> None:
    """Another value of `meta` or `copies`, or another byte."""
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return
    data = np.array(data, np.uint8)
    if tensor.type == schema.TensorType.INT32 and len(data) % 4 == 0:
        values = data.view(np.int32)
        values[rng.integers(0, len(values))] = number(rng)
    else:
        data[rng.integers(0, len(data))] = rng.integers(0, 256)
    put(model, tensor, data)


def change_constant(rng: np.random.Generator, model: Any, tensor: Any) -> None:
    """A constant of another size that is consistent in itself."""
    values = np.array([number(rng) for _ in range(rng.integers(0, 14))], np.int32)
    tensor.shape = [len(values)]
    if tensor.type == schema.TensorType.UINT8:
        put(model, tensor, values.astype(np.uint8))
    else:
        put(model, tensor, values.view(np.uint8))


def change_variable(_: np.random.Generator, __: Any, tensor: Any) -> None:
    tensor.isVariable = True


def put(model: Any, tensor: Any, data: np.ndarray) -> None:
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1


def change_inputs(rng: np.random.Generator, model: Any, operator: Any) -> None:
    inputs = list(operator.inputs)
    position = rng.integers(0, max(1, len(inputs)))
    kind = rng.integers(0, 4)
    if kind == 0:
        del inputs[position:]
    elif kind == 1 or not inputs:
        inputs.append(any_tensor(rng, model))
    elif kind == 2:
        inputs[position] = any_tensor(rng, model)
    else:
        other = rng.integers(0, len(inputs))
        inputs[position], inputs[other] = inputs[other], inputs[position]
    operator.inputs = inputs


def change_outputs(rng: np.random.Generator, model: Any, operator: Any) -> None:
    outputs = [any_tensor(rng, model) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    operator.outputs = outputs


def change_name(rng: np.random.Generator, model: Any, operator: Any) -> None:
    model.operatorCodes[operator.opcodeIndex].customCode = NAMES[rng.integers(0, len(NAMES))]


def change_order(rng: np.random.Generator, model: Any, _: Any) -> None:
    rng.shuffle(model.subgraphs[0].operators)


def change_graph_outputs(rng: np.random.Generator, model: Any, operator: Any) -> None:
    tensors = [int(index) for index in (*operator.inputs, *operator.outputs) if index >= 0]
    graph = model.subgraphs[0]
    if rng.integers(0, 2):
        graph.outputs = [*graph.outputs, *tensors]
    else:
        graph.inputs = [*graph.inputs, *tensors]


def any_tensor(rng: np.random.Generator, model: Any) -> int:
    return int(rng.integers(-1, len(model.subgraphs[0].tensors)))


TENSOR_CHANGES: tuple[Change, ...] = (
    change_type,
    change_shape,
    change_buffer,
    change_data,
    change_data,
    change_constant,
    change_variable,
)
OPERATOR_CHANGES: tuple[Change, ...] = (
    change_inputs,
    change_inputs,
    change_outputs,
    change_name,
    change_order,
    change_graph_outputs,
)


def ours(model: Any) -> list[Any]:
    """The operators that the delegate takes."""
    return [
        operator
        for operator in model.subgraphs[0].operators
        if model.operatorCodes[operator.opcodeIndex].customCode in NAMES
    ]


def changed_file(seed: int, index: int) -> bytes:
    """A valid file with up to three changes to our operators."""
    rng = np.random.default_rng([seed, index])
    model = read(valid_file(rng))
    for _ in range(rng.integers(0, 4)):
        operators = ours(model)
        operator = operators[rng.integers(0, len(operators))]
        tensors = [int(t) for t in (*operator.inputs, *operator.outputs) if t >= 0]
        if tensors and rng.integers(0, 3):
            change = TENSOR_CHANGES[rng.integers(0, len(TENSOR_CHANGES))]
            change(rng, model, model.subgraphs[0].tensors[tensors[rng.integers(0, len(tensors))]])
        else:
            OPERATOR_CHANGES[rng.integers(0, len(OPERATOR_CHANGES))](rng, model, operator)
    return write(model)


def without_our_operators(content: bytes) -> bytes:
    """The same graph with zeros, as constants, where our operators' outputs are."""
    model = read(content)
    graph = model.subgraphs[0]
    for operator in ours(model):
        graph.operators.remove(operator)
        for index in operator.outputs:
            tensor = graph.tensors[index]
            if operator_shape := _shape_in_meta(model, operator):
                tensor.shape = operator_shape
            count = max(0, int(np.prod(tensor.shape)))
            width = 1 if tensor.type in (schema.TensorType.INT8, schema.TensorType.UINT8) else 4
            put(model, tensor, np.zeros(min(count, LARGEST) * width, np.uint8))
    return write(model)


def _shape_in_meta(model: Any, operator: Any) -> list[int] | None:
    name = model.operatorCodes[operator.opcodeIndex].customCode
    if name != b"OcsDequantize" or len(operator.inputs) < 3:
        return None
    data = model.buffers[model.subgraphs[0].tensors[operator.inputs[2]].buffer].data
    if data is None or len(data) % 4:
        return None
    return [int(size) for size in np.array(data, np.uint8).view(np.int32)[4:]]


def read(content: bytes) -> Any:
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def write(model: Any) -> bytes:
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


# The child: runs files.


def run_file(module: Any, content: bytes, delegates: list[Any], seed: int) -> bool:
    """Runs a file with several batch sizes; whether the first run came to its end."""
    rng = np.random.default_rng(seed)
    model = read(content)
    # XNNPACK makes nonsense of a batch of 0, in files without our operators as well.
    alone = len(ours(model)) == len(model.subgraphs[0].operators)
    ran = False
    try:
        interpreter = module.Interpreter(
            model_content=content, experimental_delegates=delegates, num_threads=1
        )
        for batch in (None, 3, 0 if alone else 2, 1):
            for details in interpreter.get_input_details():
                shape = list(details["shape"])
                if batch is not None and shape:
                    interpreter.resize_tensor_input(details["index"], [batch, *shape[1:]])
            interpreter.allocate_tensors()
            for details in interpreter.get_input_details():
                values = rng.normal(0, 9, details["shape"]).astype(details["dtype"])
                interpreter.set_tensor(details["index"], values)
            interpreter.invoke()
            for details in interpreter.get_output_details():
                interpreter.get_tensor(details["index"])
            ran = True
    except (RuntimeError, ValueError, TypeError):
        pass  # a refusal, of ours or of the runtime
    return ran


def child(options: argparse.Namespace) -> None:
    """Runs files from number `first` on, until it is killed; tells the number of each before."""
    warnings.simplefilter("ignore")
    module = importlib.import_module(RUNTIMES[options.child])
    index = options.first
    while True:
        print("file", index, flush=True)
        content = changed_file(options.seed, index)
        if options.plain:
            run_file(module, without_our_operators(content), [], index)
        else:
            ran = run_file(module, content, [module.load_delegate(options.library)], index)
            print("ran" if ran else "refused", index, flush=True)
        if options.only:
            return
        index += 1


# The parent: watches.


class Child:
    """A child process, and what it says."""

    def __init__(self, options: argparse.Namespace, runtime: str, *arguments: object) -> None:
        command = [sys.executable, __file__, "--library", options.library, "--child", runtime]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [*map(str, command), "--seed", str(options.seed), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=options.environment,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def next_line(self, seconds: float) -> str | None:
        """None at the end of the process.

        Raises:
            queue.Empty: it is silent for too long.
        """
        return self.lines.get(timeout=max(0.0, seconds))

    def end(self, kill: bool = False) -> tuple[int, str]:
        """The exit status, and the end of what was written to stderr."""
        if kill:
            self.process.kill()
        status = self.process.wait()
        self.errors.seek(0)
        return status, self.errors.read().decode(errors="replace")[-20000:]


def crashes(options: argparse.Namespace, runtime: str, index: int, *arguments: str) -> bool:
    """Whether one file crashes in a process of its own."""
    process = Child(options, runtime, "--first", index, "--only", *arguments)
    try:
        while process.next_line(SECONDS_PER_FILE) is not None:
            pass
    except queue.Empty:
        process.end(kill=True)
        return True
    return process.end()[0] != 0


def fuzz(options: argparse.Namespace, runtime: str) -> tuple[int, int, int, int]:
    """Numbers of files, of those that ran, of our crashes, of the runtime's own."""
    deadline = None  # counted from the first file on: importing takes its time
    files = ran = failures = foreign = 0
    index = options.first
    while deadline is None or time.monotonic() < deadline:
        process = Child(options, runtime, "--first", index)
        hangs = False
        try:
            while True:
                line = process.next_line(SECONDS_PER_FILE)
                if line is None:
                    break
                what, _, digits = line.partition(" ")
                if what == "file":
                    deadline = deadline or time.monotonic() + options.seconds
                    if time.monotonic() > deadline:
                        process.end(kill=True)
                        return files, ran, failures, foreign
                    index = int(digits)
                else:
                    files += 1
                    ran += what == "ran"
        except queue.Empty:
            hangs = True
        status, errors = process.end(kill=hangs)
        what = "hangs" if hangs else f"crashes (exit status {status})"
        if crashes(options, runtime, index, "--plain"):
            foreign += 1
            print(f"{runtime}: file {index} {what}, without our operators as well", flush=True)
        else:
            failures += 1
            print(f"{runtime}: file {index} {what}:\n{errors}", flush=True)
        index += 1
    return files, ran, failures, foreign


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for all runtimes together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", help="the delegate; built with sanitizers if not given")
    parser.add_argument("--sanitized", action="store_true", help="--library has sanitizers")
    parser.add_argument("--runtime", choices=RUNTIMES, help="one instead of all")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    # The child's own.
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return 0
    with tempfile.TemporaryDirectory() as name:
        if options.library is None:
            if sanitized.missing():
                sys.exit(f"{sanitized.missing()}; or give a library as --library")
            folder = pathlib.Path(name)
            options.library = sanitized.library(folder, sanitized.objects(folder))
            options.sanitized = True
        options.environment = sanitized.environment() if options.sanitized else None
        runtimes = [options.runtime] if options.runtime else list(RUNTIMES)
        options.seconds /= len(runtimes)
        failed = False
        for runtime in runtimes:
            files, ran, failures, foreign = fuzz(options, runtime)
            print(
                f"{runtime}: {files} files, {ran} ran; {failures} crashes,"
                f" {foreign} more without our operators as well",
                flush=True,
            )
            # Were all files refused by the runtime, nothing would have been tried.
            failed |= failures > 0 or ran == 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
